//! An allocator that keeps large blocks for the next one to ask, instead of giving them back.
//!
//! A network's activations are large, short-lived, and of the same sizes call after call. The system's
//! allocator returns such blocks to the kernel and fetches them again, page by page: in operations that
//! only read and write memory, that is most of the time. [`Blocks`] does as the system's allocator does
//! until [`keep`] is called, which a model on a CPU does when it is loaded.
//!
//! Unsafe code: an allocator is unsafe by nature. Every block of 64 KiB or more is taken from the
//! system with its size rounded up, as a function of the size that was asked for alone, so that it
//! can be given back, or to somebody else, knowing only that.
#![allow(unsafe_code)]

use std::alloc::{GlobalAlloc, Layout, System};
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};

/// Blocks from this size on are kept, in bytes.
const LARGE: usize = 64 << 10;
/// Kept blocks, at most.
const SLOTS: usize = 256;

/// The allocator. A program makes it its own by `#[global_allocator]`.
#[derive(Debug, Default, Clone, Copy)]
pub struct Blocks;

/// Bytes that may be kept.
static LIMIT: AtomicUsize = AtomicUsize::new(0);
static SHELF: Mutex<Shelf> = Mutex::new(Shelf { blocks: [(0, 0); SLOTS], count: 0, bytes: 0 });

/// Lets [`Blocks`] keep so many bytes; 0, as at the start, for none.
pub fn keep(bytes: u64) {
    LIMIT.store(usize::try_from(bytes).unwrap_or(usize::MAX), Ordering::Relaxed);
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

    /// The newest block of exactly this size: it is the likeliest to be in a cache.
    fn take(&mut self, size: usize) -> Option<*mut u8> {
        let i = self.blocks[..self.count].iter().rposition(|block| block.0 == size)?;
        Some(self.remove(i).1 as *mut u8)
    }
}

/// The layout that a block is taken from the system with: large sizes are rounded up by an eighth at most,
/// so that nearly equal ones can take each other's place.
fn real(layout: Layout) -> Layout {
    let size = layout.size();
    if size < LARGE || layout.align() > 64 {
        return layout;
    }
    let step = 1 << (size.ilog2() - 3);
    size.checked_next_multiple_of(step).and_then(|s| Layout::from_size_align(s, 64).ok()).unwrap_or(layout)
}

fn is_kept(layout: Layout) -> bool {
    layout.size() >= LARGE && layout.align() <= 64
}

fn from_shelf(real: Layout) -> Option<*mut u8> {
    if LIMIT.load(Ordering::Relaxed) == 0 {
        return None;
    }
    SHELF.lock().ok()?.take(real.size())
}

// SAFETY: every pointer comes from `System`, asked for `real` of the layout, which is at least as large and
// as aligned; a block is on the shelf only between its release and its next use, under a lock; and it is
// released to `System` with the layout it was taken with, which `real` gives again.
unsafe impl GlobalAlloc for Blocks {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        let real = real(layout);
        if is_kept(layout)
            && let Some(block) = from_shelf(real)
        {
            return block;
        }
        // SAFETY: as the caller promises of a smaller size.
        unsafe { System.alloc(real) }
    }

    unsafe fn alloc_zeroed(&self, layout: Layout) -> *mut u8 {
        let real = real(layout);
        if is_kept(layout)
            && let Some(block) = from_shelf(real)
        {
            // SAFETY: the block is of this size, and nobody else has it.
            unsafe { block.write_bytes(0, layout.size()) };
            return block;
        }
        // SAFETY: as the caller promises of a smaller size.
        unsafe { System.alloc_zeroed(real) }
    }

    unsafe fn dealloc(&self, block: *mut u8, layout: Layout) {
        let real = real(layout);
        let limit = LIMIT.load(Ordering::Relaxed);
        if !is_kept(layout) || real.size() > limit {
            // SAFETY: it was taken with this layout.
            return unsafe { System.dealloc(block, real) };
        }
        let Ok(mut shelf) = SHELF.lock() else { return };
        while shelf.count == SLOTS || shelf.bytes + real.size() > limit {
            let (size, address) = shelf.remove(0);
            // SAFETY: blocks on the shelf were taken with their size and this alignment.
            unsafe { System.dealloc(address as *mut u8, Layout::from_size_align_unchecked(size, 64)) };
        }
        let end = shelf.count;
        shelf.blocks[end] = (real.size(), block as usize);
        shelf.count += 1;
        shelf.bytes += real.size();
    }

    unsafe fn realloc(&self, block: *mut u8, layout: Layout, size: usize) -> *mut u8 {
        let Ok(wanted) = Layout::from_size_align(size, layout.align()) else { return std::ptr::null_mut() };
        let (old, new) = (real(layout), real(wanted));
        if old == new {
            return block;
        }
        if old.align() == new.align() {
            // SAFETY: it was taken with the old layout, and the new one has the same alignment.
            return unsafe { System.realloc(block, old, new.size()) };
        }
        // SAFETY: as the caller promises; the new block is another, of at least `size`.
        unsafe {
            let to = self.alloc(wanted);
            if !to.is_null() {
                to.copy_from_nonoverlapping(block, size.min(layout.size()));
                self.dealloc(block, layout);
            }
            to
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
    }
}
