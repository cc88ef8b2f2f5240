//! Files that lie, at random: no panic, no memory far beyond the file's size, an end in time, and an error that
//! names the file or what is wrong in it. What is taken is used.
//!
//! `DEFT_FUZZ_SECONDS` sets how long for each kind of file, 1 if it is not set. Cases that failed are kept beside this
//! file.

mod edits;
#[path = "../../../engine/tests/common/files.rs"]
#[allow(dead_code, reason = "other suites use the rest")]
mod files;
mod models;
mod prefixes;
mod tokenizers;
mod workloads;

use std::fmt::{Debug, Display};
use std::sync::{Mutex, Once, PoisonError};
use std::time::{Duration, Instant};

use peak_alloc::PeakAlloc;
use proptest::strategy::Strategy;
use rayon::ThreadPoolBuilder;

#[global_allocator]
static MEMORY: PeakAlloc = PeakAlloc;

/// Memory that any file may take, and bytes beside it for each of its own.
const FREE: usize = 4 << 20;
const PER_BYTE: usize = 64;
/// As [`PER_BYTE`] of a tokenizer: a regular expression is compiled, to some 370 bytes for each of its own.
const PER_BYTE_OF_REGEX: usize = 512;
/// How long a file may take; the machine may be busy.
const LONGEST: Duration = Duration::from_secs(20);

/// Reads files that `make` makes of random cases, as often as there is time.
fn fuzz<T: Debug, F: AsRef<[u8]>, E: Display>(
    share: f64,
    per_byte: usize,
    cases: &impl Strategy<Value = T>,
    make: impl Fn(&T) -> F,
    read: impl Fn(&F) -> Result<(), E>,
) {
    // One at a time, for all share one count of memory.
    static ALONE: Mutex<()> = Mutex::new(());
    let _alone = ALONE.lock().unwrap_or_else(PoisonError::into_inner);
    // What each thread of the pool takes is no file's.
    static POOL: Once = Once::new();
    POOL.call_once(|| ThreadPoolBuilder::new().num_threads(1).build_global().unwrap());
    rayon::broadcast(|_| ());
    deft_tests::fuzz::run(file!(), 1, share, cases, |case| {
        let file = make(&case);
        let bytes = file.as_ref().len();
        MEMORY.reset_peak_usage();
        let (before, started) = (MEMORY.current_usage(), Instant::now());
        let result = read(&file);
        let taken = MEMORY.peak_usage().saturating_sub(before);
        assert!(taken <= FREE + per_byte * bytes, "{taken} bytes of memory for a file of {bytes}");
        assert!(started.elapsed() < LONGEST, "{:?}", started.elapsed());
        if let Err(error) = result {
            let text = error.to_string();
            // It may quote the file, escaped.
            let most = 2000 + 8 * bytes;
            assert!(
                (10..most).contains(&text.len()),
                "an error of {} bytes: {text:.300}",
                text.len()
            );
        }
    });
}
