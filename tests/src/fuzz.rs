//! Inputs that nobody would write: valid ones, changed. Compiled into the tests of the crates whose readers it feeds
//! (`#[path]`), because most of those are private.
//!
//! A reader may take an input or refuse it. It may not panic, end the process, take longer than [`PATIENCE`], or
//! hold more than its [`Limits`] of memory. A case that does is made as small as possible and printed; the seed is
//! fixed, so that it comes again. `GIGASMITH_FUZZ_SECONDS` makes every target search for that long, from another
//! seed each time, instead of trying [`CASES`].
//!
//! Unsafe code: the allocator that counts what a thread holds.
#![allow(unsafe_code)]

use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;
use std::sync::mpsc::{self, RecvTimeoutError};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use proptest::prelude::*;
use proptest::sample::Index;
use proptest::test_runner::{Config, RngAlgorithm, TestCaseError, TestError, TestRng, TestRunner};

/// Cases of a target, unless it is to search for longer.
const CASES: u32 = 96;
/// How long a case may take, on a machine that has other things to do.
const PATIENCE: Duration = Duration::from_secs(60);

/// Counts what each thread holds.
struct Counting;

#[global_allocator]
static COUNTING: Counting = Counting;

thread_local! {
    static HELD: Cell<isize> = const { Cell::new(0) };
    static MOST: Cell<isize> = const { Cell::new(0) };
}

fn count(bytes: isize) {
    // A thread that ends has no counter any more.
    let _ = HELD.try_with(|held| {
        held.set(held.get() + bytes);
        MOST.try_with(|most| most.set(most.get().max(held.get())))
    });
}

// SAFETY: the system's allocator does the work.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        count(layout.size() as isize);
        // SAFETY: the caller's promise.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, at: *mut u8, layout: Layout) {
        count(-(layout.size() as isize));
        // SAFETY: the caller's promise.
        unsafe { System.dealloc(at, layout) }
    }

    unsafe fn alloc_zeroed(&self, layout: Layout) -> *mut u8 {
        count(layout.size() as isize);
        // SAFETY: the caller's promise.
        unsafe { System.alloc_zeroed(layout) }
    }

    unsafe fn realloc(&self, at: *mut u8, layout: Layout, size: usize) -> *mut u8 {
        count(size as isize - layout.size() as isize);
        // SAFETY: the caller's promise.
        unsafe { System.realloc(at, layout, size) }
    }
}

/// One change of an input. Places are shares of its length, so that they mean something for every input.
#[derive(Debug, Clone)]
enum Change {
    Flip(Index, u8),
    Cut(Index),
    Remove(Index, usize),
    Insert(Index, Vec<u8>),
    /// A part of an input of the corpus, over what is there or before it.
    Splice {
        from: Index,
        start: Index,
        to: Index,
        length: usize,
        over: bool,
    },
    /// A number that is written out becomes another.
    Number(Index, usize),
    /// A value that is written out becomes another.
    Value(Index, usize),
    /// A part, again and again.
    Repeat(Index, usize, usize),
    /// Little- and big-endian numbers of 2, 4 and 8 bytes.
    Binary(Index, usize, u8),
}

const NUMBERS: [&str; 20] = [
    "0",
    "-1",
    "1",
    "2",
    "3",
    "7",
    "255",
    "256",
    "65536",
    "1048576",
    "2147483648",
    "4294967295",
    "4294967296",
    "9223372036854775807",
    "18446744073709551615",
    "18446744073709551616",
    "1e30",
    "1e-30",
    "0.5",
    "-0.0",
];
const VALUES: [&str; 14] = [
    "null",
    "true",
    "[]",
    "{}",
    "\"\"",
    "\"..\"",
    "\"../../x\"",
    "\"\\u0000\"",
    "\"\\u001b[2J\"",
    "[[]]",
    "[0,0]",
    "1e400",
    "\"\u{202e}\"",
    "\"x\"",
];
const TOKENS: [&[u8]; 12] =
    [b"{", b"}", b"[", b"]", b"\"", b",", b":", b"<", b">", b"&x;", b"\n", &[0xff, 0xfe, 0x80]];

fn change() -> impl Strategy<Value = Change> {
    let at = any::<Index>;
    let bytes = prop_oneof![
        (0..TOKENS.len()).prop_map(|i| TOKENS[i].to_vec()),
        (0..TOKENS.len(), 2usize..4000).prop_map(|(i, n)| TOKENS[i].repeat(n)),
        prop::collection::vec(any::<u8>(), 1..9),
    ];
    prop_oneof![
        3 => (at(), any::<u8>()).prop_map(|(i, b)| Change::Flip(i, b)),
        1 => at().prop_map(Change::Cut),
        2 => (at(), 1usize..64).prop_map(|(i, n)| Change::Remove(i, n)),
        2 => (at(), bytes).prop_map(|(i, b)| Change::Insert(i, b)),
        2 => (at(), at(), at(), 1usize..200, any::<bool>()).prop_map(|(from, start, to, length, over)| {
            Change::Splice { from, start, to, length, over }
        }),
        5 => (at(), 0..NUMBERS.len()).prop_map(|(i, n)| Change::Number(i, n)),
        4 => (at(), 0..VALUES.len()).prop_map(|(i, n)| Change::Value(i, n)),
        1 => (at(), 1usize..64, 2usize..200).prop_map(|(i, n, times)| Change::Repeat(i, n, times)),
        2 => (at(), 0..NUMBERS.len(), any::<u8>()).prop_map(|(i, n, kind)| Change::Binary(i, n, kind)),
    ]
}

/// Where things that `is_part` are, as ranges.
fn runs(bytes: &[u8], is_part: impl Fn(u8) -> bool) -> Vec<std::ops::Range<usize>> {
    let mut found = Vec::new();
    let mut start = None;
    for (i, b) in bytes.iter().enumerate() {
        match (is_part(*b), start) {
            (true, None) => start = Some(i),
            (false, Some(first)) => {
                found.push(first..i);
                start = None;
            }
            _ => {}
        }
    }
    found.extend(start.map(|first| first..bytes.len()));
    found
}

impl Change {
    fn apply(&self, bytes: &mut Vec<u8>, corpus: &[Vec<u8>]) {
        let place = |i: &Index, bytes: &[u8]| i.index(bytes.len() + 1);
        match self {
            Self::Flip(at, by) if !bytes.is_empty() => {
                let at = at.index(bytes.len());
                bytes[at] ^= by;
            }
            Self::Flip(..) => {}
            Self::Cut(at) => bytes.truncate(place(at, bytes)),
            Self::Remove(at, length) => {
                let at = place(at, bytes);
                bytes.drain(at..bytes.len().min(at + length));
            }
            Self::Insert(at, what) => {
                let at = place(at, bytes);
                bytes.splice(at..at, what.iter().copied());
            }
            Self::Splice { from, start, to, length, over } => {
                let from = &corpus[from.index(corpus.len())];
                let (start, to) = (place(start, from), place(to, bytes));
                let part = &from[start..from.len().min(start + length)];
                let end = if *over { bytes.len().min(to + part.len()) } else { to };
                bytes.splice(to..end, part.iter().copied());
            }
            Self::Number(which, number) => {
                let is_part = |b: u8| b.is_ascii_digit() || matches!(b, b'-' | b'.' | b'+');
                Self::replace(bytes, &runs(bytes, is_part), which, NUMBERS[*number]);
            }
            Self::Value(which, value) => {
                let is_part = |b: u8| !matches!(b, b'{' | b'}' | b'[' | b']' | b',' | b':' | b'\n' | b'\0');
                Self::replace(bytes, &runs(bytes, is_part), which, VALUES[*value]);
            }
            Self::Repeat(at, length, times) => {
                let at = place(at, bytes);
                let part = bytes[at..bytes.len().min(at + length)].repeat(*times);
                bytes.splice(at..at, part);
            }
            Self::Binary(at, number, kind) => {
                let number = NUMBERS[*number].parse::<f64>().unwrap_or(0.0) as i128 as u64;
                let mut raw = number.to_le_bytes()[..[2, 4, 8][usize::from(kind % 3)]].to_vec();
                if kind & 4 == 0 {
                    raw.reverse();
                }
                let at = place(at, bytes);
                bytes.splice(at..bytes.len().min(at + raw.len()), raw);
            }
        }
        // Growth by repetition is not what is looked for.
        bytes.truncate(1 << 20);
    }

    fn replace(bytes: &mut Vec<u8>, found: &[std::ops::Range<usize>], which: &Index, with: &str) {
        if !found.is_empty() {
            bytes.splice(found[which.index(found.len())].clone(), with.bytes());
        }
    }
}

/// What a reader may take.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Limits {
    /// Bytes that it may hold beyond the input, at most.
    pub(crate) memory: usize,
}

/// What a reader makes of an input: nothing, or what is wrong with how it took or refused it.
pub(crate) type Verdict = Result<(), String>;

/// Feeds `read` with changed inputs of the corpus, in a thread that is watched. `read` gets the number of the input
/// that was changed, and its bytes.
pub(crate) fn fuzz(
    name: &'static str,
    corpus: Vec<Vec<u8>>,
    limits: Limits,
    read: impl Fn(usize, &[u8]) -> Verdict + Send + 'static,
) {
    let seconds = std::env::var("GIGASMITH_FUZZ_SECONDS").ok().and_then(|s| s.parse().ok());
    let until = seconds.map(|s| Instant::now() + Duration::from_secs(s));
    let (beat, beats) = mpsc::channel();
    let latest = Arc::new(Mutex::new(Vec::new()));
    let shown = Arc::clone(&latest);
    let search = std::thread::Builder::new().name(name.into()).spawn(move || {
        let case = |which: usize, bytes: &[u8]| {
            let _ = beat.send(());
            latest.lock().unwrap().clone_from(&bytes.to_vec());
            let before = HELD.with(Cell::get);
            MOST.with(|most| most.set(before));
            let verdict = read(which, bytes);
            let held = usize::try_from(MOST.with(Cell::get) - before).unwrap_or(0);
            match verdict {
                Ok(()) if held > limits.memory => Err(format!("it held {held} bytes")),
                other => other,
            }
        };
        for (i, input) in corpus.iter().enumerate() {
            case(i, input).unwrap_or_else(|reason| panic!("{name}: an unchanged input: {reason}"));
        }
        search(name, &corpus, until, &case);
    });
    let search = search.expect("a thread can be started");
    loop {
        match beats.recv_timeout(PATIENCE) {
            Ok(()) => {}
            Err(RecvTimeoutError::Timeout) if search.is_finished() => break,
            Err(RecvTimeoutError::Timeout) => {
                // A thread cannot be ended; the process can, and the input is what matters.
                panic!("{name} hangs on {}", printed(&shown.lock().unwrap()));
            }
            Err(RecvTimeoutError::Disconnected) => break,
        }
    }
    if let Err(panic) = search.join() {
        std::panic::resume_unwind(panic);
    }
}

fn search(name: &str, corpus: &[Vec<u8>], until: Option<Instant>, case: &impl Fn(usize, &[u8]) -> Verdict) {
    let inputs = (any::<Index>(), prop::collection::vec(change(), 1..6));
    let changed = |(which, changes): &(Index, Vec<Change>)| {
        let which = which.index(corpus.len());
        let mut bytes = corpus[which].clone();
        changes.iter().for_each(|change| change.apply(&mut bytes, corpus));
        (which, bytes)
    };
    let mut round = 0u64;
    loop {
        let mut seed = [7; 32];
        if until.is_some() {
            let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap_or_default();
            seed[..8].copy_from_slice(&(now.as_nanos() as u64 ^ round).to_le_bytes());
        }
        let config =
            Config { cases: CASES, failure_persistence: None, max_shrink_iters: 2000, ..Config::default() };
        let mut runner = TestRunner::new_with_rng(config, TestRng::from_seed(RngAlgorithm::ChaCha, &seed));
        let result = runner.run(&inputs, |input| {
            let (which, bytes) = changed(&input);
            case(which, &bytes).map_err(TestCaseError::fail)
        });
        match result {
            Ok(()) => {}
            Err(TestError::Fail(reason, input)) => {
                let (which, bytes) = changed(&input);
                panic!("{name}: {reason}: input {which}, changed by {:?}: {}", input.1, printed(&bytes));
            }
            Err(error) => panic!("{name}: {error}"),
        }
        round += 1;
        if until.is_none_or(|until| Instant::now() >= until) {
            if until.is_some() {
                report(name, round * u64::from(CASES));
            }
            return;
        }
    }
}

#[allow(clippy::print_stdout)]
fn report(name: &str, cases: u64) {
    println!("{name}: {cases} cases");
}

/// As a Rust literal, so that it can become a test.
fn printed(bytes: &[u8]) -> String {
    let shown: String = bytes[..bytes.len().min(4000)].escape_ascii().to_string();
    format!("b\"{shown}\" ({} bytes)", bytes.len())
}
