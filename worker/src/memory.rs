//! An allocator that keeps large blocks for the next one to ask, instead of giving them back.
//!
//! A network's activations are large, short-lived, and of the same sizes call after call. The system's
//! allocator returns such blocks to the kernel and fetches them again, page by page: in operations that
//! only read and write memory, that is most of the time. [`Blocks`] does as the system's allocator does
//! until [`keep`] is called, which a model on a CPU does when it is loaded.
//!
//! Unsafe code: an allocator is unsafe by nature. Every block of 64 KiB or more (but for those of unusual alignment)
//! is taken from the system with its size rounded up, as a function of the size that was asked for alone, so that it
//! can be given back, or to somebody else, knowing only that. They are aligned to lines of the cache.
#![allow(unsafe_code)]

use std::alloc::{GlobalAlloc, Layout, System};
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};

/// Blocks from this size on are kept, in bytes.
const LARGE: usize = 64 << 10;
/// Kept blocks, at most.
const SLOTS: usize = 256;
/// What large blocks are aligned to: a line of the cache.
const LINE: usize = 64;

/// The allocator. A program makes it its own by `#[global_allocator]`.
#[derive(Debug, Default, Clone, Copy)]
pub struct Blocks;

/// Bytes that may be kept.
static LIMIT: AtomicUsize = AtomicUsize::new(0);
static SHELF: Mutex<Shelf> = Mutex::new(Shelf { blocks: [(0, 0); SLOTS], count: 0, bytes: 0 });

/// Lets [`Blocks`] keep so many bytes; 0, as at the start, for none.
pub fn keep(bytes: u64) {
    let limit = usize::try_from(bytes).unwrap_or(usize::MAX);
    LIMIT.store(limit, Ordering::Relaxed);
    if let Ok(mut shelf) = SHELF.lock() {
        shelf.shrink(limit);
    }
}

/// Kept blocks as (size, address), the oldest first.
struct Shelf {
    blocks: [(usize, usize); SLOTS],
    count: usize,
    bytes: usize,
}

impl Shelf {
    fn remove(&mut self, i: usize) -> (usize, usize) {
        let block = self.blocks[i];
        self.blocks.copy_within(i + 1..self.count, i);
        self.count -= 1;
        self.bytes -= block.0;
        block
    }

    /// Gives the oldest blocks back to the system until no more than so many bytes are left.
    fn shrink(&mut self, bytes: usize) {
        while self.bytes > bytes {
            let (size, address) = self.remove(0);
            // SAFETY: blocks on the shelf were taken with their size, and nobody uses them.
            unsafe { large::release(address as *mut u8, size) };
        }
    }

    /// The newest block of exactly this size: it is the likeliest to be in a cache.
    fn take(&mut self, size: usize) -> Option<*mut u8> {
        let i = self.blocks[..self.count].iter().rposition(|block| block.0 == size)?;
        Some(self.remove(i).1 as *mut u8)
    }
}

/// What a block really is: large sizes are rounded up by an eighth at most, so that nearly equal ones can take each
/// other's place.
fn real(layout: Layout) -> Layout {
    let size = layout.size();
    if !is_large(layout) {
        return layout;
    }
    let step = 1 << (size.ilog2() - 3);
    size.checked_next_multiple_of(step).and_then(|s| Layout::from_size_align(s, LINE).ok()).unwrap_or(layout)
}

fn is_large(layout: Layout) -> bool {
    layout.size() >= LARGE && layout.align() <= LINE
}

/// Large blocks lie in what the system is asked for, which is a line longer and aligned as it aligns everything: only
/// so can it hand out zeros without writing them, and move a block that grows without copying it. Where that starts is
/// noted in front of the block.
mod large {
    use super::{GlobalAlloc, LINE, Layout, System};

    fn whole(size: usize) -> Option<Layout> {
        Layout::from_size_align(size.checked_add(LINE)?, align_of::<u128>()).ok()
    }

    /// From `start` to the block: at least room for a pointer.
    fn offset(start: *mut u8) -> usize {
        LINE - start.addr() % LINE
    }

    /// # Safety
    /// `start` is the system's, of a block's `whole` layout.
    unsafe fn note(start: *mut u8) -> *mut u8 {
        // SAFETY: the offset is a multiple of 16 up to `LINE`, so that both are inside.
        unsafe {
            let block = start.add(offset(start));
            block.cast::<*mut u8>().sub(1).write(start);
            block
        }
    }

    /// # Safety
    /// `block` is one of these.
    unsafe fn start(block: *mut u8) -> *mut u8 {
        // SAFETY: `note` wrote it there.
        unsafe { block.cast::<*mut u8>().sub(1).read() }
    }

    /// A block of so many bytes, or null.
    pub(super) fn take(size: usize, is_zeroed: bool) -> *mut u8 {
        let Some(whole) = whole(size) else { return std::ptr::null_mut() };
        // SAFETY: the size is not zero.
        let start = unsafe { if is_zeroed { System.alloc_zeroed(whole) } else { System.alloc(whole) } };
        // SAFETY: just taken with this layout.
        if start.is_null() { start } else { unsafe { note(start) } }
    }

    /// # Safety
    /// `block` was taken with this size, and nobody uses it any more.
    pub(super) unsafe fn release(block: *mut u8, size: usize) {
        // SAFETY: as it was taken.
        if let Some(whole) = whole(size) {
            unsafe { System.dealloc(start(block), whole) };
        }
    }

    /// The block with another size, or null, and then as it was.
    ///
    /// # Safety
    /// `block` was taken with the size `from`.
    pub(super) unsafe fn resize(block: *mut u8, from: usize, to: usize) -> *mut u8 {
        let (Some(old), Some(new)) = (whole(from), whole(to)) else { return std::ptr::null_mut() };
        // SAFETY: as it was taken; the values lie where they lay from the start, and both places are inside.
        unsafe {
            let was = start(block);
            let before = block.addr() - was.addr();
            let start = System.realloc(was, old, new.size());
            if start.is_null() {
                return start;
            }
            if before != offset(start) {
                start.add(before).copy_to(start.add(offset(start)), from.min(to));
            }
            note(start)
        }
    }
}

fn from_shelf(real: Layout) -> Option<*mut u8> {
    if LIMIT.load(Ordering::Relaxed) == 0 {
        return None;
    }
    SHELF.lock().ok()?.take(real.size())
}

// SAFETY: every pointer comes from `System`, by way of `large` or not as `is_large` says of the layout, with a size
// that `real` gives again; a block is on the shelf only between its release and its next use, under a lock.
unsafe impl GlobalAlloc for Blocks {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        if !is_large(layout) {
            // SAFETY: as the caller promises.
            return unsafe { System.alloc(layout) };
        }
        let real = real(layout);
        from_shelf(real).unwrap_or_else(|| large::take(real.size(), false))
    }

    unsafe fn alloc_zeroed(&self, layout: Layout) -> *mut u8 {
        if !is_large(layout) {
            // SAFETY: as the caller promises.
            return unsafe { System.alloc_zeroed(layout) };
        }
        let real = real(layout);
        match from_shelf(real) {
            Some(block) => {
                // SAFETY: the block is of this size, and nobody else has it.
                unsafe { block.write_bytes(0, layout.size()) };
                block
            }
            None => large::take(real.size(), true),
        }
    }

    unsafe fn dealloc(&self, block: *mut u8, layout: Layout) {
        if !is_large(layout) {
            // SAFETY: as the caller promises.
            return unsafe { System.dealloc(block, layout) };
        }
        let real = real(layout);
        let limit = LIMIT.load(Ordering::Relaxed);
        if real.size() > limit {
            // SAFETY: it was taken with this size.
            return unsafe { large::release(block, real.size()) };
        }
        let Ok(mut shelf) = SHELF.lock() else { return };
        shelf.shrink(limit - real.size());
        if shelf.count == SLOTS {
            let (size, address) = shelf.remove(0);
            // SAFETY: blocks on the shelf were taken with their size.
            unsafe { large::release(address as *mut u8, size) };
        }
        let end = shelf.count;
        shelf.blocks[end] = (real.size(), block as usize);
        shelf.count += 1;
        shelf.bytes += real.size();
    }

    unsafe fn realloc(&self, block: *mut u8, layout: Layout, size: usize) -> *mut u8 {
        let Ok(wanted) = Layout::from_size_align(size, layout.align()) else { return std::ptr::null_mut() };
        match (is_large(layout), is_large(wanted)) {
            // SAFETY: as the caller promises.
            (false, false) => unsafe { System.realloc(block, layout, size) },
            (true, true) => {
                let (old, new) = (real(layout).size(), real(wanted).size());
                // SAFETY: it was taken with the old size.
                if old == new { block } else { unsafe { large::resize(block, old, new) } }
            }
            // SAFETY: as the caller promises; the new block is another, of at least `size`.
            _ => unsafe {
                let to = self.alloc(wanted);
                if !to.is_null() {
                    to.copy_from_nonoverlapping(block, size.min(layout.size()));
                    self.dealloc(block, layout);
                }
                to
            },
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_are_rounded_up_by_an_eighth_at_most() {
        for size in (LARGE..8 * LARGE).step_by(77_777) {
            let layout = Layout::from_size_align(size, 4).unwrap();
            let real = real(layout);
            assert!(real.size() >= size && real.size() <= size + size / 8 && real.align() == 64);
        }
        let small = Layout::from_size_align(LARGE - 1, 4).unwrap();
        assert_eq!(real(small), small);
    }

    /// The only test that sets the limit: it is the process's.
    #[test]
    fn blocks_come_back_and_the_oldest_leave_first() {
        let layout = |mib: usize| Layout::from_size_align(mib << 20, 4).unwrap();
        let address = |block: *mut u8| block as usize;
        keep(40 << 20);
        // SAFETY: every block is used within its size and released once, with its layout.
        unsafe {
            let first = Blocks.alloc(layout(16));
            first.write_bytes(7, 16 << 20);
            Blocks.dealloc(first, layout(16));
            let again = Blocks.alloc_zeroed(layout(16));
            assert_eq!(address(again), address(first), "the block was kept");
            assert!(std::slice::from_raw_parts(again, 16 << 20).iter().all(|b| *b == 0));
            let other = Blocks.alloc(layout(17));
            assert_ne!(address(other), address(again));
            // 16 + 18 MiB fit, 20 more do not: the one that was released first makes room.
            Blocks.dealloc(again, layout(16));
            Blocks.dealloc(other, layout(17));
            let large = Blocks.alloc(layout(20));
            Blocks.dealloc(large, layout(20));
            let shelf = SHELF.lock().unwrap();
            let sizes: Vec<_> = shelf.blocks[..shelf.count].iter().map(|b| b.0 >> 20).collect();
            assert_eq!(sizes, [18, 20]);
            drop(shelf);
            // Growing in place, to another size, and across the limit of what is large.
            let mut block = Blocks.alloc(layout(1));
            block.write_bytes(3, 1 << 20);
            for (from, to) in [(1 << 20, (1 << 20) + 1), ((1 << 20) + 1, 9 << 20), (9 << 20, 1000)] {
                block = Blocks.realloc(block, Layout::from_size_align(from, 4).unwrap(), to);
                assert_eq!(std::slice::from_raw_parts(block, 1000), [3; 1000]);
            }
            Blocks.dealloc(block, Layout::from_size_align(1000, 4).unwrap());
        }
        keep(0);
        assert_eq!(SHELF.lock().unwrap().count, 0);
    }

    /// Small ones too, which the system moves by other distances than pages.
    #[test]
    fn large_blocks_are_aligned_and_keep_their_values_when_they_grow() {
        let mut others = Vec::new();
        for first in (LARGE..2 * LARGE).step_by(4_099) {
            let value = |i: usize| (i * 31 % 251) as u8;
            let mut block = large::take(first, true);
            // SAFETY: blocks are used within their sizes, and released once with the last.
            unsafe {
                assert!(std::slice::from_raw_parts(block, first).iter().all(|b| *b == 0));
                (0..first).for_each(|i| block.add(i).write(value(i)));
                let mut size = first;
                for next in [first + 48, 3 * first, 200 * first, first - 100] {
                    others.push(vec![0u8; next % 1009]);
                    block = large::resize(block, size, next);
                    size = next;
                    assert_eq!(block.addr() % LINE, 0);
                    let kept = std::slice::from_raw_parts(block, size.min(first));
                    assert!(kept.iter().enumerate().all(|(i, b)| *b == value(i)), "{first} to {next}");
                    (0..first.min(size)).for_each(|i| block.add(i).write(value(i)));
                }
                large::release(block, size);
            }
        }
    }
}
