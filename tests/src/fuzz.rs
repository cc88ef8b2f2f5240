//! Random cases for as long as there is time.

use std::fmt::Debug;
use std::time::{Duration, Instant};

use proptest::strategy::Strategy;
use proptest::test_runner::{Config, FileFailurePersistence, TestRunner};

/// Tries random cases for `share` of `DEFT_FUZZ_SECONDS`, of `seconds` where that is not set. Seeds of those that
/// fail are kept beside `source`, which is `file!()`, and are tried first the next time.
///
/// # Panics
/// With the smallest case for which `test` panics.
pub fn run<T: Debug>(
    source: &'static str,
    seconds: u64,
    share: f64,
    cases: &impl Strategy<Value = T>,
    test: impl Fn(T),
) {
    let seconds = crate::setting("DEFT_FUZZ_SECONDS", seconds) as f64 * share;
    let end = Instant::now() + Duration::from_secs_f64(seconds);
    while {
        let mut runner = TestRunner::new(Config {
            cases: 4,
            source_file: Some(source),
            failure_persistence: Some(Box::new(FileFailurePersistence::WithSource("regressions"))),
            max_shrink_time: 60_000,
            ..Config::default()
        });
        let run = runner.run(cases, |case| {
            test(case);
            Ok(())
        });
        run.unwrap_or_else(|error| panic!("{error}"));
        Instant::now() < end
    } {}
}
