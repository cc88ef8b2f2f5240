//! No silent hangs: a kernel that does not end, ends the program.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

/// What nothing takes that goes on.
const PATIENCE: Duration = Duration::from_secs(60);

/// Ends the program with the name of what it was at if that takes too long: a kernel that hangs, most likely.
#[derive(Debug)]
pub struct Watchdog {
    /// Since when, and at what; nothing before anything was said.
    at: Arc<Mutex<Option<(Instant, String)>>>,
}

impl Watchdog {
    /// Watches from the first word of what comes next until it is dropped.
    pub fn start() -> Self {
        let at = Arc::new(Mutex::new(None::<(Instant, String)>));
        let seen = Arc::downgrade(&at);
        std::thread::spawn(move || {
            while let Some(at) = seen.upgrade() {
                let now = at.lock().unwrap_or_else(PoisonError::into_inner).clone();
                drop(at);
                if let Some((since, what)) = now
                    && since.elapsed() > PATIENCE
                {
                    eprintln!("{what}: no answer for {} s: a kernel hangs", PATIENCE.as_secs());
                    std::process::exit(3);
                }
                std::thread::sleep(Duration::from_millis(200));
            }
        });
        Self { at }
    }

    /// Says what comes next.
    pub fn now(&self, what: &str) {
        let mut at = self.at.lock().unwrap_or_else(PoisonError::into_inner);
        *at = Some((Instant::now(), what.to_owned()));
    }

    /// What was said last; empty before anything was.
    pub fn phase(&self) -> String {
        let at = self.at.lock().unwrap_or_else(PoisonError::into_inner);
        at.as_ref().map(|(_, what)| what.clone()).unwrap_or_default()
    }
}
