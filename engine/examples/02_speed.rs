//! How fast a model is on this machine's CPU: one sequence, trees of leaves, prompts, and the memory it takes.
//!
//! ```sh
//! cargo xtask model
//! cargo run --release -p deft-engine --example 02_speed -- target/models/SmolLM2-135M-Instruct.Q4_1.gguf \
//!     prompt:512 leaves:1:1024 leaves:32:1024
//! ```
//!
//! `prompt:N` runs a prompt of `N` tokens, `leaves:L:N` steps of `L` leaves on one. Instead of these, `-` reads them
//! from standard input, one a line, so that programs can take turns; the prompt below leaves is kept between such lines.
//!
//! A JSON object a line. Times are the least of several, in milliseconds: as they pass, and of all threads' processors.
//! On a machine that does other work too, compare those of programs that take turns, and no others. Memory is what is
//! resident now and was at most so far, in MiB. `likeliest` is the token after the prompt, or after the last step of the
//! first leaf.

use std::error::Error;
use std::io::BufRead;
use std::path::Path;
use std::str::FromStr;
use std::time::Instant;

use deft::NodeKey;
use deft_engine::{CpuModel, CpuOptions, Gguf, ModelError, TreeModel};
use serde_json::json;

const STEPS: usize = 4;

fn main() -> Result<(), Box<dyn Error>> {
    let mut args = std::env::args().skip(1);
    let (Some(path), cases) = (args.next(), args.collect::<Vec<_>>()) else {
        return Err("usage: 02_speed MODEL.gguf CASE...".into());
    };
    let gguf = Gguf::open(Path::new(&path))?;
    let mut speed = Speed {
        model: CpuModel::load(gguf.weights(), CpuOptions::default(), |_, _| {})?,
        held: None,
        logits: Vec::new(),
    };
    speed.print("loaded", &Least::default());
    if cases == ["-"] {
        for line in std::io::stdin().lock().lines() {
            speed.run(&line?)?;
        }
        return Ok(());
    }
    cases.iter().try_for_each(|case| speed.run(case))
}

/// What is timed.
enum Case {
    /// A prompt of so many tokens.
    Prompt(usize),
    /// So many leaves on a prompt of so many tokens.
    Leaves(usize, usize),
}

impl FromStr for Case {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let mut parts = text.split(':');
        let (name, numbers) =
            (parts.next(), parts.map(usize::from_str).collect::<Result<Vec<_>, _>>());
        match (name, numbers.as_deref()) {
            (Some("prompt"), Ok(&[tokens])) if tokens > 0 => Ok(Self::Prompt(tokens)),
            (Some("leaves"), Ok(&[leaves, tokens])) if leaves.min(tokens) > 0 => {
                Ok(Self::Leaves(leaves, tokens))
            }
            _ => Err(format!("`{text}` is neither prompt:TOKENS nor leaves:LEAVES:TOKENS")),
        }
    }
}

struct Speed {
    model: CpuModel,
    /// The prompt that the last leaves were on, and its tokens.
    held: Option<(usize, NodeKey)>,
    logits: Vec<f32>,
}

impl Speed {
    fn run(&mut self, case: &str) -> Result<(), Box<dyn Error>> {
        let mut least = Least::default();
        match case.parse()? {
            Case::Prompt(count) => {
                self.drop_held()?;
                let root =
                    least.time(|| self.model.insert_prompt(&tokens(count), &mut self.logits))?;
                self.model.prune(root)?;
            }
            Case::Leaves(leaves, context) => {
                let root = self.hold(context)?;
                let nodes = self.model.fork(root, leaves)?;
                for at in 0..STEPS {
                    let next: Vec<u32> = tokens(at + leaves).split_off(at);
                    least.time(|| self.model.step(&nodes, &next, &mut self.logits))?;
                }
                for node in nodes {
                    self.model.prune(node)?;
                }
            }
        }
        self.print(case, &least);
        Ok(())
    }

    /// The root of a prompt of `context` tokens.
    fn hold(&mut self, context: usize) -> Result<NodeKey, ModelError> {
        match self.held {
            Some((held, root)) if held == context => Ok(root),
            _ => {
                self.drop_held()?;
                let root = self.model.insert_prompt(&tokens(context), &mut self.logits)?;
                self.held = Some((context, root));
                Ok(root)
            }
        }
    }

    fn drop_held(&mut self) -> Result<(), ModelError> {
        if let Some((_, root)) = self.held.take() {
            self.model.prune(root)?;
        }
        Ok(())
    }

    fn print(&self, case: &str, least: &Least) {
        let row = self.logits.chunks(self.model.vocabulary()).next().unwrap_or(&[]);
        let line = json!({
            "case": case,
            "wall_ms": least.0[0],
            "processor_ms": least.0[1],
            "resident_mib": memory_mib("VmRSS:"),
            "most_mib": memory_mib("VmHWM:"),
            "likeliest": (0..row.len()).max_by(|&a, &b| row[a].total_cmp(&row[b])),
        });
        println!("{line}");
    }
}

/// Tokens that any model has, without meaning.
fn tokens(n: usize) -> Vec<u32> {
    (0..n as u32).map(|i| 100 + i * 37 % 400).collect()
}

/// The least time, as it passes and of processors.
struct Least([f64; 2]);

impl Default for Least {
    fn default() -> Self {
        Self([f64::INFINITY; 2])
    }
}

impl Least {
    fn time<T>(&mut self, run: impl FnOnce() -> T) -> T {
        let (begin, processor) = (Instant::now(), processor_ms());
        let result = run();
        self.0[0] = self.0[0].min(begin.elapsed().as_secs_f64() * 1e3);
        if let (Some(begin), Some(end)) = (processor, processor_ms()) {
            self.0[1] = self.0[1].min(end - begin);
        }
        result
    }
}

/// Milliseconds of all threads on a processor, where the system tells.
fn processor_ms() -> Option<f64> {
    let mut nanoseconds = 0;
    for task in std::fs::read_dir("/proc/self/task").ok()? {
        let text = std::fs::read_to_string(task.ok()?.path().join("schedstat")).ok()?;
        nanoseconds += text.split(' ').next()?.parse::<u64>().ok()?;
    }
    Some(nanoseconds as f64 * 1e-6)
}

/// A line of this process' status, in MiB.
fn memory_mib(name: &str) -> Option<f64> {
    let status = std::fs::read_to_string("/proc/self/status").ok()?;
    let line = status.lines().find_map(|line| line.strip_prefix(name))?;
    let kib: f64 = line.trim().trim_end_matches(" kB").parse().ok()?;
    Some(kib / 1024.0)
}
