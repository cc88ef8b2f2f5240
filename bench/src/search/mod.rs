//! `deft-bench search`: how often search methods are right on tasks with checkers.

pub(crate) mod model;
mod report;
mod task;

use std::path::PathBuf;

use anyhow::{Context, Result, ensure};
use clap::ValueEnum;
use deft_engine::TreeModel;
use deft_search::tasks::{Evaluation, Method, Setting, evaluate};
use deft_search::{Cancel, Sampler, TextCodec};

use self::model::Opened;
use self::report::Row;
use self::task::TaskArg;
use crate::document::Document;
use crate::progress::Progress;
use crate::{DeviceArgs, LibraryArgs};

/// Where `cargo xtask model` puts the default model.
pub(crate) const DEFAULT_MODEL: &str = "target/models/SmolLM2-135M-Instruct.Q4_1.gguf";

/// Counts how often search methods are right, each with the same number of tokens a problem.
///
/// Problems are drawn by seed: --first and the ones after it. `right` counts problems whose first answer is
/// right, `covered` those of which any answer is. Checking costs no tokens, so `checked` and `thoughts` are
/// told more than the others: theirs is the accuracy of the model with a verifier.
///
/// A task may have a size after a colon: digits of digit-sort, words of acrostic, terms of distinct-sum,
/// the largest number of game-of-24.
///
/// Examples:
///   deft-bench search --task acrostic:3 --problems 20
///   deft-bench search --task digit-sort:3 --method greedy,thoughts --tokens 128 --json out.json
#[derive(Debug, clap::Args)]
#[command(verbatim_doc_comment)]
pub(crate) struct Args {
    #[command(flatten)]
    device: DeviceArgs,
    #[command(flatten)]
    libraries: LibraryArgs,
    /// The model, a GGUF file.
    #[arg(long, value_name = "FILE", default_value = DEFAULT_MODEL)]
    model: PathBuf,
    /// Tasks: NAME or NAME:SIZE; several may be given, separated by commas.
    #[arg(
        long,
        value_delimiter = ',',
        value_name = "TASK",
        default_value = "acrostic,digit-sort,distinct-sum,game-of-24"
    )]
    task: Vec<TaskArg>,
    /// Methods; several may be given, separated by commas.
    #[arg(
        long,
        value_enum,
        value_delimiter = ',',
        default_value = "greedy,majority,checked,beam,thoughts"
    )]
    method: Vec<MethodArg>,
    /// Problems of each task.
    #[arg(long, default_value_t = 50)]
    problems: u64,
    /// Seed of the first problem.
    #[arg(long, default_value_t = 0)]
    first: u64,
    /// Tokens that a method may run for a problem, after the prompt.
    #[arg(long, default_value_t = 128)]
    tokens: u64,
    /// Samples or beams at a time, and thoughts after a state.
    #[arg(long, default_value_t = 8)]
    width: usize,
    /// States that a tree of thoughts keeps.
    #[arg(long, default_value_t = 4)]
    keep: usize,
    /// Temperature of what is sampled.
    #[arg(long, default_value_t = 0.7)]
    temperature: f32,
    /// Seed of the samples.
    #[arg(long, default_value_t = 1)]
    seed: u64,
    /// Where to write the results, row by row.
    #[arg(long, value_name = "OUT")]
    json: Option<PathBuf>,
}

/// A kind of [`Method`] on the command line.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum MethodArg {
    /// The likeliest token at a time, one answer
    Greedy,
    /// Samples; the answer most often given
    Majority,
    /// Samples until the checker finds one right
    Checked,
    /// The likeliest answer of a beam search
    Beam,
    /// Trees of thoughts, judged by the checker
    Thoughts,
}

impl Args {
    fn method(&self, method: MethodArg) -> Method {
        let (width, keep) = (self.width, self.keep);
        match method {
            MethodArg::Greedy => Method::Greedy,
            MethodArg::Majority => Method::Majority { width },
            MethodArg::Checked => Method::Checked { width },
            MethodArg::Beam => Method::Beam { width },
            MethodArg::Thoughts => Method::Thoughts { thoughts: width, keep },
        }
    }

    /// What all rows have in common.
    fn setting(&self) -> Result<Setting> {
        let end = self.first.checked_add(self.problems);
        let end = end.with_context(|| format!("--first {} is too large", self.first))?;
        ensure!(self.problems > 0, "--problems is 0; at least 1 is needed");
        let sampler = Sampler::at(self.temperature);
        sampler.check()?;
        Ok(Setting {
            problems: self.first..end,
            tokens: self.tokens,
            sampler,
            seed: self.seed,
            cancel: Cancel::new(),
        })
    }
}

/// Runs the command. Nothing it finds counts as wrong.
pub(crate) fn run(args: &Args) -> Result<usize> {
    let setting = args.setting()?;
    let device = args.device.open()?;
    let progress = Progress::new(args.task.len() * args.method.len() * args.problems as usize);
    progress.doing("reading the model");
    let mut opened = Opened::read(&args.model, &device, args.libraries.cublas.as_deref())?;
    let mut document = Document::new("search", &device, None);
    document.model = Some(opened.name.clone());
    progress.say(&format!("{}; {}", document.device, opened.name));
    progress.say(report::HEADER);
    for task in &args.task {
        for &method in &args.method {
            let method = args.method(method);
            progress.doing(&format!("{task}: {method}"));
            let (model, codec) = opened.parts();
            let found = count(model, codec, task, (method, &setting), &progress)?;
            let row = Row::new(&task.to_string(), method, &setting, &found);
            progress.say(&row.line());
            document.rows.push(row);
            document.write(args.json.as_deref())?;
        }
    }
    progress.say(report::FOOTER);
    Ok(0)
}

fn count(
    model: &mut dyn TreeModel,
    codec: &dyn TextCodec,
    task: &TaskArg,
    (method, setting): (Method, &Setting),
    progress: &Progress,
) -> Result<Evaluation> {
    let mut step = |_: &Evaluation| progress.step();
    let task = task.task();
    Ok(evaluate(model, codec, &*task, (method, setting), &mut step)?)
}

#[cfg(test)]
#[allow(dead_code, reason = "the search tests use all of it")]
#[path = "../../../search/tests/searches/mock.rs"]
pub(crate) mod mock;

#[cfg(test)]
mod tests {
    use super::mock::{AsciiCodec, HashModel, HashModelConfig};
    use super::*;

    fn args(words: &[&str]) -> Args {
        let words = [&["deft-bench", "search"], words].concat();
        let crate::Command::Search(args) = crate::parse(&words).command else {
            panic!("another suite");
        };
        args
    }

    #[test]
    fn every_task_runs_with_every_method_within_its_tokens() {
        let args = args(&["--problems", "2", "--tokens", "20", "--first", "7"]);
        let setting = args.setting().unwrap();
        assert_eq!(setting.problems, 7..9);
        let mut model = HashModel::new(HashModelConfig::default()).unwrap();
        let progress = Progress::new(40);
        for task in &args.task {
            for &method in &args.method {
                let method = (args.method(method), &setting);
                let found = count(&mut model, &AsciiCodec, task, method, &progress).unwrap();
                assert_eq!(found.problems, 2);
                assert!(found.tokens > 0 && found.tokens <= 40, "{task} {}", method.0);
            }
        }
    }

    #[test]
    fn a_setting_without_problems_is_refused() {
        let error = args(&["--problems", "0"]).setting().unwrap_err();
        assert_eq!(error.to_string(), "--problems is 0; at least 1 is needed");
        let last = u64::MAX.to_string();
        let error = args(&["--first", &last]).setting().unwrap_err();
        assert!(error.to_string().contains("--first 18446744073709551615"));
    }

    #[test]
    fn a_model_that_is_not_there_is_fetched_by_the_command_that_the_error_names() {
        let path = std::path::Path::new("no/such.gguf");
        let Err(error) = Opened::read(path, &crate::device::Device::Cpu, None) else {
            panic!("there is no such file");
        };
        let message = format!("{error:#}");
        assert!(
            message.contains("no/such.gguf") && message.contains("cargo xtask model"),
            "{message}"
        );
    }
}
