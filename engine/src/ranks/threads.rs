//! Threads that end before what they use does.

use std::thread::JoinHandle;
use std::time::{Duration, Instant};

/// How long the end of a model waits for threads that should end too.
pub(crate) const END: Duration = Duration::from_secs(10);
/// Between looks.
const PAUSE: Duration = Duration::from_millis(1);

/// Threads that whoever drops this waits for, [`END`] in all: a thread that runs while the process ends meets libraries
/// that have ended already.
#[derive(Debug, Default)]
pub(crate) struct Threads(pub(crate) Vec<JoinHandle<()>>);

impl Drop for Threads {
    fn drop(&mut self) {
        join_within(END, self.0.drain(..));
    }
}

/// Waits for `threads`, at most so long in all; whether all have ended. One that has panicked has ended.
pub(crate) fn join_within(
    limit: Duration,
    threads: impl IntoIterator<Item = JoinHandle<()>>,
) -> bool {
    let begun = Instant::now();
    threads.into_iter().fold(true, |all, thread| {
        while !thread.is_finished() && begun.elapsed() < limit {
            std::thread::sleep(PAUSE);
        }
        let ended = thread.is_finished();
        if ended {
            let _ = thread.join();
        }
        all && ended
    })
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc::channel;

    use super::*;

    #[test]
    fn threads_are_waited_for_until_they_end_and_not_longer_than_is_allowed() {
        let (end, wait) = channel::<()>();
        let sleeper = std::thread::spawn(|| std::thread::sleep(Duration::from_millis(50)));
        let panicker = std::thread::spawn(|| std::panic::resume_unwind(Box::new("on purpose")));
        assert!(join_within(Duration::from_secs(60), [sleeper, panicker]));
        let stuck = std::thread::spawn(move || {
            let _ = wait.recv();
        });
        let begun = Instant::now();
        assert!(!join_within(Duration::from_millis(30), [stuck]));
        assert!(begun.elapsed() < Duration::from_secs(30));
        drop(end);
    }
}
