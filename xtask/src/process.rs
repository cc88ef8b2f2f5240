//! Running other programs.

use std::ffi::OsStr;
use std::io::{BufRead, BufReader, Read};
use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::{env, thread};

use anyhow::{Context, Result, bail};
use serde::Deserialize;

use crate::console::Spinner;

/// The cargo that started this program.
pub(crate) fn cargo() -> Command {
    let mut command = Command::new(env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    command.current_dir(crate::workspace::root());
    command
}

/// Runs `command` with its output on the terminal.
pub(crate) fn run(command: &mut Command) -> Result<()> {
    let line = shown(command);
    let status = command
        .status()
        .with_context(|| format!("cannot start `{line}`"))?;
    if !status.success() {
        bail!("`{line}` ended with {status}");
    }
    Ok(())
}

/// Runs `command` quietly, `what` on a spinner if it takes long, and returns what it wrote to stdout
/// and stderr. If it fails, the error holds that text.
pub(crate) fn capture(command: &mut Command, what: &str) -> Result<Output> {
    let line = shown(command);
    let mut child = command
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .with_context(|| format!("cannot start `{line}`"))?;
    let mut stdout = child.stdout.take().expect("stdout is piped");
    let stdout = thread::spawn(move || {
        let mut text = Vec::new();
        stdout.read_to_end(&mut text).map(|_| text)
    });

    let spinner = Spinner::new(what);
    let mut stderr = Vec::new();
    let mut reader = BufReader::new(child.stderr.take().expect("stderr is piped"));
    loop {
        let begin = stderr.len();
        if reader.read_until(b'\n', &mut stderr)? == 0 {
            break;
        }
        spinner.tick(&String::from_utf8_lossy(&stderr[begin..]));
    }
    drop(spinner);

    let status = child.wait()?;
    let stdout = stdout.join().expect("the reading thread does not panic")?;
    let output = Output {
        stdout: String::from_utf8_lossy(&stdout).into_owned(),
        stderr: String::from_utf8_lossy(&stderr).into_owned(),
    };
    if !status.success() {
        let text = format!("{}{}", output.stdout, output.stderr);
        bail!("`{line}` ended with {status}:\n{}", text.trim_end());
    }
    Ok(output)
}

/// What a program wrote.
pub(crate) struct Output {
    pub(crate) stdout: String,
    pub(crate) stderr: String,
}

/// What cargo reports of a finished target, given `--message-format json-render-diagnostics`.
#[derive(Deserialize)]
pub(crate) struct Artifact {
    pub(crate) executable: Option<PathBuf>,
}

/// The artifacts among cargo's messages.
pub(crate) fn artifacts(messages: &str) -> impl Iterator<Item = Artifact> {
    messages
        .lines()
        .filter_map(|line| serde_json::from_str(line).ok())
}

/// The command line, for messages.
pub(crate) fn shown(command: &Command) -> String {
    let words: Vec<_> = std::iter::once(command.get_program())
        .chain(command.get_args())
        .map(OsStr::to_string_lossy)
        .collect();
    words.join(" ")
}
