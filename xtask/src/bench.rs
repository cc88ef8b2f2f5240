//! `cargo xtask bench`: the benchmarks, built and run here.

use std::path::PathBuf;

use anyhow::{Result, ensure};
use clap::ValueEnum;

use crate::bundle;
use crate::process;

/// Builds deft-bench in release mode and runs one of its suites here.
///
/// Without a GPU the suites run on the CPU backend, where only ratios within one run mean something.
/// On another machine, `cargo xtask bundle` packs the same program. Every suite explains itself:
///   cargo xtask bench --suite paper -- --help
///
/// Examples:
///   cargo xtask bench
///   cargo xtask bench --suite paper --json docs/benchmarks/h100-paper.json
///   cargo xtask bench --suite paper --device cpu -- --quick
///   cargo xtask bench --suite cpu -- --filter fewshot
///   cargo xtask bench --suite search -- --task acrostic --problems 20
#[derive(clap::Args)]
#[command(verbatim_doc_comment)]
pub(crate) struct Args {
    /// What to run.
    #[arg(long, value_enum, default_value_t = Suite::Trees)]
    suite: Suite,
    /// What to run it on; `auto` is a GPU where there is one.
    #[arg(long, value_enum, default_value_t = Device::Auto)]
    device: Device,
    /// Where to write the results; docs/benchmarks/README.md has the fields.
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
    /// Options of the suite, after `--`.
    #[arg(last = true, value_name = "OPTIONS")]
    rest: Vec<String>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Suite {
    /// Single decode steps of 14 trees.
    Trees,
    /// The DeFT paper's decode tasks, attention summed over all steps.
    Paper,
    /// Time against the bound as queries, context or trees grow.
    Scaling,
    /// Planning on the host, by tree and by change; no device.
    Plan,
    /// The CPU backend: each grouping against PerQuery.
    Cpu,
    /// Search methods on tasks with checkers, by a language model (`cargo xtask model` fetches it).
    Search,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Device {
    Auto,
    Cuda,
    Cpu,
}

/// Runs the command.
pub(crate) fn run(args: &Args) -> Result<()> {
    let words = args.words()?;
    let program = bundle::build_bench()?;
    let mut command = std::process::Command::new(program);
    process::run(command.args(words))
}

impl Args {
    /// The command line of deft-bench.
    fn words(&self) -> Result<Vec<String>> {
        let name = |value: clap::builder::PossibleValue| value.get_name().to_owned();
        let suite = self.suite.to_possible_value().map(name).unwrap_or_default();
        let device = self.device.to_possible_value().map(name).unwrap_or_default();
        let mut words = vec![suite.clone()];
        match self.suite {
            Suite::Plan | Suite::Cpu => ensure!(
                self.device != Device::Cuda,
                "--device is cuda, but the suite `{suite}` measures this machine's CPU; leave it out"
            ),
            Suite::Trees | Suite::Paper | Suite::Scaling | Suite::Search => {
                words.extend(["--device".to_owned(), device]);
            }
        }
        if let Some(path) = &self.json {
            words.extend(["--json".to_owned(), path.display().to_string()]);
        }
        words.extend(self.rest.iter().cloned());
        Ok(words)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn args(suite: Suite, device: Device) -> Args {
        Args { suite, device, json: Some("a.json".into()), rest: vec!["--quick".to_owned()] }
    }

    #[test]
    fn options_are_passed_on_in_the_order_that_the_program_wants() {
        let words = args(Suite::Paper, Device::Auto).words().unwrap();
        assert_eq!(words.join(" "), "paper --device auto --json a.json --quick");
        let words = args(Suite::Cpu, Device::Cpu).words().unwrap();
        assert_eq!(words.join(" "), "cpu --json a.json --quick");
    }

    #[test]
    fn a_gpu_is_refused_where_the_host_is_measured() {
        let error = args(Suite::Plan, Device::Cuda).words().unwrap_err();
        assert!(error.to_string().contains("`plan` measures"), "{error}");
    }
}
