//! How fast a model is on this machine's CPU: one sequence, trees of leaves, prompts, and the memory it takes.
//!
//! ```sh
//! cargo xtask model
//! cargo run --release -p deft-engine --example 02_speed -- target/models/SmolLM2-135M-Instruct.Q4_1.gguf 1024
//! ```
//!
//! Times are the least of several, in milliseconds: as they pass, and of all threads' processors. On a machine that
//! does other work too, compare those of programs that take turns, and no others.

use std::error::Error;
use std::path::Path;
use std::time::Instant;

use deft_engine::{CpuModel, CpuOptions, Gguf, ModelError, TreeModel};

const STEPS: usize = 12;
const PROMPT: usize = 512;

fn main() -> Result<(), Box<dyn Error>> {
    let mut args = std::env::args().skip(1);
    let (Some(path), Some(context)) = (args.next(), args.next()) else {
        return Err("usage: 02_speed MODEL.gguf CONTEXT".into());
    };
    let context: usize = context.parse()?;
    let gguf = Gguf::open(Path::new(&path))?;
    let mut model = CpuModel::load(gguf.weights(), CpuOptions::default(), |_, _| {})?;
    println!("memory_mib loaded {:.0}", memory_mib("VmRSS:").unwrap_or(f64::NAN));

    let mut logits = Vec::new();
    let mut prompt = Least::default();
    for _ in 0..2 {
        let root = prompt.time(|| model.insert_prompt(&tokens(PROMPT), &mut logits))?;
        model.prune(root)?;
    }
    prompt.print(&format!("prompt_{PROMPT}"));

    decode(&mut model, 16, 1)?;
    for leaves in [8, 32, 64] {
        decode(&mut model, context, leaves)?;
    }
    println!("memory_mib most {:.0}", memory_mib("VmHWM:").unwrap_or(f64::NAN));
    Ok(())
}

/// Steps of `leaves` leaves on a prompt of `context` tokens.
fn decode(model: &mut CpuModel, context: usize, leaves: usize) -> Result<(), ModelError> {
    let mut logits = Vec::new();
    let root = model.insert_prompt(&tokens(context), &mut logits)?;
    let nodes = model.fork(root, leaves)?;
    let mut step = Least::default();
    for at in 0..STEPS {
        let next: Vec<u32> = tokens(at + leaves).split_off(at);
        step.time(|| model.step(&nodes, &next, &mut logits))?;
    }
    step.print(&format!("leaves_{leaves}_on_{context}"));
    model.prune(root)?;
    Ok(())
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

    fn print(&self, what: &str) {
        println!("{what} {:.2} {:.2}", self.0[0], self.0[1]);
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
