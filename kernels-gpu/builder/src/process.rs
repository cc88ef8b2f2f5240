//! Running other programs.

use std::ffi::OsStr;
use std::io;
use std::process::{Command, Output, Stdio};
use std::thread;
use std::time::Duration;

use anyhow::{Context, Result, bail};

use crate::{Event, Listener};

/// Runs `command` and returns what it wrote to stdout and stderr; `what` names it to the listener meanwhile. If it
/// fails, the error holds that text.
pub(crate) fn capture(
    command: &mut Command,
    what: &str,
    listener: &Listener<'_>,
) -> Result<(String, String)> {
    let line = shown(command);
    let output = watch(command, || listener(Event::Working { what, bytes: None }));
    listener(Event::Idle);
    let output = output.with_context(|| format!("cannot start `{line}`"))?;
    let [stdout, stderr] =
        [output.stdout, output.stderr].map(|text| String::from_utf8_lossy(&text).into_owned());
    if !output.status.success() {
        let text = format!("{stdout}{stderr}");
        bail!("`{line}` ended with {}:\n{}", output.status, text.trim_end());
    }
    Ok((stdout, stderr))
}

/// Runs `command`, calling `tick` until it ends.
pub(crate) fn watch(command: &mut Command, tick: impl Fn()) -> io::Result<Output> {
    command.stdin(Stdio::null());
    thread::scope(|scope| {
        let work = scope.spawn(|| command.output());
        while !work.is_finished() {
            tick();
            thread::sleep(Duration::from_millis(20));
        }
        work.join().expect("the waiting thread does not panic")
    })
}

/// The command line, for messages.
pub(crate) fn shown(command: &Command) -> String {
    let words: Vec<_> = std::iter::once(command.get_program())
        .chain(command.get_args())
        .map(OsStr::to_string_lossy)
        .collect();
    words.join(" ")
}
