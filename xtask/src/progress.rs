//! What the PTX builder tells, on the terminal: notes as lines, long work as a spinner or a bar.

use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use indicatif::{ProgressBar, ProgressStyle};
use ptx_builder::Event;

use crate::console::say;

/// What is under way, and since when.
static CURRENT: Mutex<Option<(Instant, ProgressBar)>> = Mutex::new(None);

/// Shows `event`. Work that takes less than two seconds is not shown.
pub(crate) fn show(event: Event<'_>) {
    let mut current = CURRENT.lock().unwrap_or_else(PoisonError::into_inner);
    match event {
        Event::Note(line) => {
            if let Some((_, bar)) = current.take() {
                bar.finish_and_clear();
            }
            say(line);
        }
        Event::Working { what, bytes } => {
            let (started, bar) = current.get_or_insert_with(|| (Instant::now(), bar(bytes)));
            if started.elapsed() >= Duration::from_secs(2) {
                bar.set_message(what.to_owned());
                bar.set_position(bytes.map_or(0, |(so_far, _)| so_far));
                bar.tick();
            }
        }
        Event::Idle => {
            if let Some((_, bar)) = current.take() {
                bar.finish_and_clear();
            }
        }
    }
}

fn bar(bytes: Option<(u64, u64)>) -> ProgressBar {
    let (bar, template) = match bytes {
        None => (ProgressBar::new_spinner(), "    {spinner} {msg} ({elapsed})"),
        Some((_, all)) => {
            (ProgressBar::new(all), "    {msg} {wide_bar} {bytes} of {total_bytes}, {eta}")
        }
    };
    let style = ProgressStyle::with_template(template);
    bar.with_style(style.expect("the templates are constant and valid"))
}
