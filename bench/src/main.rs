//! `deft-bench`: times attention on tree-shaped workloads.
//!
//! One program with everything in it (kernels as PTX, workloads, the peers' times), so that it can be
//! carried to a machine that has a GPU and nothing else.

mod beams;
mod clock;
mod cpu;
mod device;
mod document;
mod draw;
mod engine;
mod fit;
mod formats;
mod gpu;
mod head_dims;
mod in_place;
mod layers;
mod paper;
mod peers;
mod planning;
mod prefill;
mod problem;
mod progress;
mod quality;
mod random;
mod ratios;
mod refit;
mod report;
mod retain;
mod scaling;
mod search;
mod session;
mod side_by_side;
mod speculate;
mod stats;
mod tiers;
mod trace;
mod trees;

use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::Result;
use clap::{Parser, Subcommand, ValueEnum};
use deft::cuda::{Arch, CudaError};
use deft::plan::Grouping;

use crate::device::Device;

/// Times DeFT's attention on tree-shaped workloads; what it times is compared with f64 first.
#[derive(Debug, Parser)]
#[command(name = "deft-bench", version, max_term_width = 100)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    Trees(trees::Args),
    Paper(paper::Args),
    InPlace(in_place::Args),
    Scaling(scaling::Args),
    Plan(planning::Args),
    Prefill(prefill::Args),
    Cpu(ratios::Args),
    Draw(draw::Args),
    Fit(fit::Args),
    Peers(side_by_side::Args),
    Engine(engine::Args),
    Beams(beams::Args),
    Search(search::Args),
    Speculate(speculate::Args),
    Quality(quality::Args),
    Layers(layers::Args),
    Trace(trace::Args),
    Tiers(tiers::Args),
    Retain(retain::Args),
    Formats(formats::Args),
    HeadDims(head_dims::Args),
}

/// Which device runs it, with which kernels.
#[derive(Clone, Debug, clap::Args)]
pub(crate) struct DeviceArgs {
    /// What to run on; `auto` is a GPU where there is one.
    #[arg(long, value_enum, default_value = "auto")]
    device: DeviceKind,
    #[command(flatten)]
    gpu: GpuArgs,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum DeviceKind {
    Auto,
    Cuda,
    Cpu,
}

/// Which GPU, with which kernels.
#[derive(Clone, Debug, clap::Args)]
pub(crate) struct GpuArgs {
    /// Number of the GPU, as the driver counts.
    #[arg(long, default_value_t = 0)]
    gpu: u32,
    /// PTX to take kernels from before the embedded; several may be given.
    #[arg(long, value_name = "FILE")]
    ptx: Vec<PathBuf>,
    /// Take the embedded kernels for this architecture, not the GPU's own: `sm_80` runs on all.
    #[arg(long)]
    arch: Option<Arch>,
}

/// Libraries that are opened when the program runs.
#[derive(Clone, Debug, clap::Args)]
pub(crate) struct LibraryArgs {
    /// cuBLAS's file (libcublas.so.12, say) or the folder it is in; on a GPU only.
    #[arg(long, value_name = "PATH")]
    cublas: Option<PathBuf>,
}

impl DeviceArgs {
    fn open(&self) -> Result<Device> {
        self.device.open(&self.gpu)
    }
}

impl DeviceKind {
    fn open(self, gpu: &GpuArgs) -> Result<Device> {
        if self == Self::Cpu {
            return Ok(Device::Cpu);
        }
        match gpu.open() {
            Ok(gpu) => Ok(Device::Gpu(gpu)),
            Err(error) => match error.downcast_ref() {
                Some(CudaError::NoDevice { .. }) if self == Self::Auto => {
                    say(&format!("{error}; running on the CPU"));
                    Ok(Device::Cpu)
                }
                _ => Err(error),
            },
        }
    }
}

impl GpuArgs {
    fn open(&self) -> Result<gpu::Gpu> {
        gpu::Gpu::open(self.gpu, &self.ptx, self.arch)
    }

    /// The same so many devices further.
    fn next(&self, further: u32) -> Result<gpu::Gpu> {
        gpu::Gpu::open(self.gpu + further, &self.ptx, self.arch)
    }
}

/// [`Grouping`] on the command line.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum GroupingArg {
    PerQuery,
    Node,
    NodeChunk,
    Flatten,
}

impl GroupingArg {
    pub(crate) const ALL: [Self; 4] = [Self::PerQuery, Self::Node, Self::NodeChunk, Self::Flatten];

    /// The name of any grouping.
    pub(crate) fn name_of(grouping: Grouping) -> &'static str {
        let mut all = Self::ALL.into_iter();
        all.find(|&argument| Grouping::from(argument) == grouping).map_or("other", Self::name)
    }

    /// The grouping of that name.
    pub(crate) fn named(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|grouping| grouping.name() == name)
    }

    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::PerQuery => "per-query",
            Self::Node => "node",
            Self::NodeChunk => "node-chunk",
            Self::Flatten => "flatten",
        }
    }
}

impl From<GroupingArg> for Grouping {
    fn from(argument: GroupingArg) -> Self {
        match argument {
            GroupingArg::PerQuery => Self::PerQuery,
            GroupingArg::Node => Self::Node,
            GroupingArg::NodeChunk => Self::NodeChunk,
            GroupingArg::Flatten => Self::Flatten,
        }
    }
}

/// Prints a line at once: where a kernel hangs, the last line says which.
pub(crate) fn say(line: &str) {
    use std::io::Write;
    let mut out = std::io::stdout().lock();
    // A reader that went away is no reason to stop measuring.
    let _ = writeln!(out, "{line}").and_then(|()| out.flush());
}

fn main() -> ExitCode {
    let outcome = match Cli::parse().command {
        Command::Trees(args) => trees::run(&args),
        Command::Paper(args) => paper::run(&args),
        Command::InPlace(args) => in_place::run(&args),
        Command::Scaling(args) => scaling::run(&args),
        Command::Plan(args) => planning::run(&args),
        Command::Prefill(args) => prefill::run(&args),
        Command::Cpu(args) => ratios::run(&args),
        Command::Draw(args) => draw::run(&args),
        Command::Fit(args) => fit::run(&args),
        Command::Peers(args) => side_by_side::run(&args),
        Command::Beams(args) => beams::run(&args),
        Command::Engine(args) => engine::run(&args),
        Command::Search(args) => search::run(&args),
        Command::Speculate(args) => speculate::run(&args),
        Command::Quality(args) => quality::run(&args),
        Command::Layers(args) => layers::run(&args),
        Command::Trace(args) => trace::run(&args),
        Command::Tiers(args) => tiers::run(&args),
        Command::Retain(args) => retain::run(&args),
        Command::Formats(args) => formats::run(&args),
        Command::HeadDims(args) => head_dims::run(&args),
    };
    match outcome {
        Ok(0) => ExitCode::SUCCESS,
        Ok(wrong) => {
            eprintln!("{wrong} wrong");
            ExitCode::FAILURE
        }
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::from(2)
        }
    }
}

/// A command line, for tests.
#[cfg(test)]
pub(crate) fn parse(words: &[&str]) -> Cli {
    Cli::try_parse_from(words).unwrap_or_else(|error| panic!("{error}"))
}
