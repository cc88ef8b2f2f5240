//! Processor time, for ratios on a machine that others use as well.

use std::time::{Duration, Instant};

/// Processor time of all threads, or time that passes where the system does not tell.
pub(crate) struct Clock {
    begin: Instant,
    processor: Option<Duration>,
}

impl Clock {
    pub(crate) fn start() -> Self {
        Self { begin: Instant::now(), processor: processor_time() }
    }

    pub(crate) fn elapsed(&self) -> Duration {
        match (processor_time(), self.processor) {
            (Some(now), Some(begin)) => now.saturating_sub(begin),
            _ => self.begin.elapsed(),
        }
    }
}

/// First field of every thread's `schedstat`: nanoseconds on a processor.
fn processor_time() -> Option<Duration> {
    let mut nanoseconds = 0;
    for task in std::fs::read_dir("/proc/self/task").ok()? {
        let text = std::fs::read_to_string(task.ok()?.path().join("schedstat")).ok()?;
        nanoseconds += text.split(' ').next()?.parse::<u64>().ok()?;
    }
    Some(Duration::from_nanos(nanoseconds))
}
