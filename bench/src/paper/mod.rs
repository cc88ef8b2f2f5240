//! `deft-bench paper`: attention of whole decode tasks, summed as the paper sums it.

mod cases;
mod integral;
mod measure;
mod model;
mod row;
mod survey;
mod task;

use std::path::PathBuf;

use anyhow::{Context, Result, ensure};
use rayon::prelude::*;

use self::cases::{Case, cases, cpu_cases};
use self::measure::{Bench, Column, Tally};
use self::row::Row;
use self::survey::{Method, RunIo, Survey};
use self::task::Run;
use crate::device::Device;
use crate::document::Document;
use crate::gpu::Repeats;
use crate::progress::Progress;
use crate::{DeviceArgs, GroupingArg, say};

/// Pages of a node-chunk item: the paper's 128 tokens, and the other sizes it tries.
const CHUNK_PAGES: u32 = 2;
const OTHER_CHUNK_PAGES: [u32; 3] = [4, 8, 16];
/// Steps between timed ones with `--quick`, in strides.
const QUICK: u32 = 4;

/// Replays the DeFT paper's decode tasks and sums attention over all their steps and layers.
///
/// Few-shot prompts of 1k to 20k tokens with 20, 30 and 50 branches; four recorded tree-of-thought tasks;
/// speculative decoding with Medusa's draft trees and recorded acceptance. Heads are Llama-3-8B's, and for
/// some tasks CodeLlama-7B's and -34B's, in f16. While a tree keeps its shape, only every --stride-th step is timed
/// (a replayed CUDA graph, empty L2), and the others are integrated by trapezoids; IO by the paper's count
/// is of every step. Some steps of every task are compared with f64 first.
///
/// One random K and V serve all steps: attention takes as long whatever they hold. Times are attention's
/// alone, not the model's other layers'.
///
/// On a GPU all of it takes some minutes, --quick half of one. A CPU gives ratios alone, with --quick.
///
/// Examples:
///   deft-bench paper --json h100-paper.json
///   deft-bench paper --filter "sorting llama3" --stride 16
#[derive(Debug, clap::Args)]
#[command(verbatim_doc_comment)]
pub(crate) struct Args {
    /// How queries and KV are grouped; several may be given, separated by commas.
    #[arg(long, value_delimiter = ',', default_value = "per-query,node,node-chunk,flatten")]
    grouping: Vec<GroupingArg>,
    /// Run cases whose name, as the progress line shows it, contains this: `few-shot-30 codellama`.
    #[arg(long, value_name = "NAME")]
    filter: Option<String>,
    /// Fewer prompts, one recorded run of each task, and four times the stride.
    #[arg(long)]
    quick: bool,
    /// Most steps from one timed step to the next.
    #[arg(long, default_value_t = 64, value_parser = clap::value_parser!(u32).range(1..=1 << 20))]
    stride: u32,
    /// Most recorded runs of a reasoning task; the paper has 10.
    #[arg(long, value_parser = clap::value_parser!(u32).range(1..))]
    runs: Option<u32>,
    #[command(flatten)]
    device: DeviceArgs,
    /// Where to write the results, task by task.
    #[arg(long, value_name = "OUT")]
    json: Option<PathBuf>,
    /// Timed replays a step and grouping.
    #[arg(long, default_value_t = 5)]
    iterations: usize,
    /// Replays before those.
    #[arg(long, default_value_t = 1)]
    warmup: usize,
}

/// A case with its runs.
struct Task {
    case: Case,
    runs: Vec<(Run, Survey)>,
    columns: Vec<Column>,
}

/// Runs the command; the number of rows that are wrong.
pub(crate) fn run(args: &Args) -> Result<usize> {
    let device = args.device.open()?;
    ensure!(
        args.quick || !matches!(device, Device::Cpu),
        "on a CPU the paper's tasks take hours, and their times say nothing of a GPU's. `--quick` gives the \
         ratios of three of them within a minute"
    );
    say(&device.describe());
    let repeats = Repeats { warmup: args.warmup, measured: args.iterations.max(1) };
    let mut document = Document::new("paper", &device, device.time_nothing(repeats)?);
    let tasks = args.tasks(&device)?;
    let timings = tasks.iter().map(Task::timings).sum();
    let progress = Progress::new(timings);
    progress.say(&format!("{} cases, {timings} timings", tasks.len()));
    progress.say(Row::HEADER);
    let mut wrong = 0;
    for tasks in tasks.chunk_by(|a, b| a.case.model == b.case.model) {
        let surveys = || tasks.iter().flat_map(|task| &task.runs);
        let pages = surveys().map(|(_, survey)| survey.pages).max().unwrap_or(1);
        let queries = surveys().map(|(_, survey)| survey.queries).max();
        let model = tasks[0].case.model;
        progress.doing(&format!("random K and V for {}", model.name));
        let mut bench = Bench::new(&device, model, pages, queries.unwrap_or(1), repeats)?;
        for kernel in bench.kernels()? {
            if !document.kernels.contains(&kernel) {
                document.kernels.push(kernel);
            }
        }
        for task in tasks {
            let name = task.case.name();
            progress.doing(&name);
            wrong += task
                .measure(&mut bench, &device, &progress, &mut document.rows)
                .with_context(|| name.clone())?;
            document.write(args.json.as_deref())?;
        }
    }
    Ok(wrong)
}

impl Args {
    /// The cases that were asked for, looked at step by step.
    fn tasks(&self, device: &Device) -> Result<Vec<Task>> {
        let mut cases = match device {
            Device::Cpu => cpu_cases(),
            Device::Gpu(_) => cases(self.quick),
        };
        if let Some(name) = &self.filter {
            let all: Vec<String> = cases.iter().map(Case::name).collect();
            cases.retain(|case| case.name().contains(name));
            ensure!(
                !cases.is_empty(),
                "no case's name contains `{name}`; there are:\n  {}",
                all.join("\n  ")
            );
        }
        let stride = self.stride * if self.quick { QUICK } else { 1 };
        let tasks = cases.into_par_iter().map(|mut case| {
            if let Some(runs) = self.runs {
                case.runs = case.runs.min(runs as usize);
            }
            Task::new(case, stride, &self.grouping)
        });
        tasks.collect()
    }
}

impl Task {
    fn new(case: Case, stride: u32, groupings: &[GroupingArg]) -> Result<Self> {
        let runs = case.task.runs(case.prompt, case.runs)?;
        let runs = runs.into_par_iter().map(|run| {
            let survey = Survey::of(&run, case.model.heads, stride)?;
            Ok((run, survey))
        });
        let mut columns = Vec::new();
        for &grouping in groupings {
            let chunked = grouping == GroupingArg::NodeChunk;
            columns.push(Column { grouping, chunk_pages: chunked.then_some(CHUNK_PAGES) });
            if chunked && case.chunk_sizes {
                columns.extend(
                    OTHER_CHUNK_PAGES.map(|pages| Column { grouping, chunk_pages: Some(pages) }),
                );
            }
        }
        Ok(Self { runs: runs.collect::<Result<_>>()?, case, columns })
    }

    /// Timings that [`Task::measure`] takes.
    fn timings(&self) -> usize {
        self.sum(Survey::timed_steps) as usize * self.columns.len()
    }

    fn sum(&self, of: impl Fn(&Survey) -> u32) -> u32 {
        self.runs.iter().map(|(_, survey)| of(survey)).sum()
    }

    /// Times all columns and adds their rows; the number of columns that are wrong.
    fn measure(
        &self,
        bench: &mut Bench<'_>,
        device: &Device,
        progress: &Progress,
        rows: &mut Vec<Row>,
    ) -> Result<usize> {
        let mut tallies = vec![Tally::default(); self.columns.len()];
        for (index, (run, survey)) in self.runs.iter().enumerate() {
            let check = index == 0;
            bench
                .measure(run, survey, &self.columns, check, &mut tallies, progress)
                .with_context(|| format!("run {index}"))?;
        }
        let baseline = self.columns.iter().zip(&tallies).find(|(column, tally)| {
            column.grouping == GroupingArg::PerQuery && tally.problem.is_none()
        });
        let baseline = baseline.map(|(_, tally)| tally.attention_us);
        let mut wrong = 0;
        for (column, tally) in self.columns.iter().zip(&tallies) {
            if let Some(problem) = &tally.problem {
                progress.say(&format!("{}: WRONG: {problem}", self.case.name()));
                wrong += 1;
                continue;
            }
            let row = self.row(column, tally, baseline, matches!(device, Device::Gpu(_)));
            progress.say(&row.line());
            rows.push(row);
        }
        let row = self.medusa_row();
        progress.say(&row.line());
        rows.push(row);
        Ok(wrong)
    }

    fn row(&self, column: &Column, tally: &Tally, baseline: Option<f64>, timed: bool) -> Row {
        let layers = f64::from(self.case.model.layers) / self.runs.len() as f64;
        let mut row = self.formulas(Method::Grouping(column.grouping));
        row.grouping = column.grouping.name().to_owned();
        row.chunk_pages = column.chunk_pages;
        row.timed_steps = self.sum(Survey::timed_steps);
        row.attention_s = timed.then_some(tally.attention_us * layers * 1e-6);
        row.kv_issued_tb = tally.kv_issued * layers * 1e-12;
        row.partial_issued_tb = tally.partial_issued * layers * 1e-12;
        row.speedup_over_per_query = baseline.map(|us| us / tally.attention_us);
        row.max_rel_l2 = Some(tally.max_rel_l2);
        row
    }

    /// Attention with a dense mask: all of K and V once, all logits through memory.
    fn medusa_row(&self) -> Row {
        let mut row = self.formulas(Method::Medusa);
        row.kv_issued_tb = self.terabytes(|io| io.unique_kv);
        row.partial_issued_tb = row.partial_tb;
        row
    }

    /// A row with what follows from the shapes of trees alone.
    fn formulas(&self, method: Method) -> Row {
        Row {
            task: self.case.task.name(),
            model: self.case.model.name.to_owned(),
            prompt_tokens: self.case.prompt,
            grouping: "medusa-io".to_owned(),
            chunk_pages: None,
            runs: self.runs.len() as u32,
            steps: self.sum(|survey| survey.steps),
            timed_steps: 0,
            attention_s: None,
            kv_tb: self.terabytes(|io| io.of(method).0),
            partial_tb: self.terabytes(|io| io.of(method).1),
            kv_issued_tb: 0.0,
            partial_issued_tb: 0.0,
            speedup_over_per_query: None,
            max_rel_l2: None,
        }
    }

    /// Mean of all runs, all layers.
    fn terabytes(&self, bytes: impl Fn(&RunIo) -> u64) -> f64 {
        let all: u64 = self.runs.iter().map(|(_, survey)| bytes(&survey.io)).sum();
        let layers = f64::from(self.case.model.layers) / self.runs.len() as f64;
        all as f64 * layers * 1e-12
    }
}

#[cfg(test)]
mod tests {
    use super::model::LLAMA3_8B;
    use super::*;

    fn tiny(task: task::Task, prompt: Option<u32>, stride: u32) -> Task {
        let case = Case { task, model: LLAMA3_8B, prompt, runs: 1, chunk_sizes: false };
        Task::new(case, stride, &GroupingArg::ALL).unwrap()
    }

    fn measure(task: &Task) -> Vec<Row> {
        let (_, survey) = &task.runs[0];
        let repeats = Repeats { warmup: 0, measured: 1 };
        let (pages, queries) = (survey.pages, survey.queries);
        let mut bench = Bench::new(&Device::Cpu, LLAMA3_8B, pages, queries, repeats).unwrap();
        let progress = Progress::new(task.timings());
        let mut rows = Vec::new();
        let wrong = task.measure(&mut bench, &Device::Cpu, &progress, &mut rows);
        assert_eq!(wrong.unwrap(), 0);
        rows
    }

    #[test]
    fn a_few_shot_task_on_the_cpu_is_right_and_has_ratios_but_no_times() {
        let task = tiny(task::Task::FewShot { branches: 3 }, Some(100), 300);
        let rows = measure(&task);
        let groupings: Vec<&str> = rows.iter().map(|row| &*row.grouping).collect();
        let expected = ["per-query", "node", "node-chunk", "flatten", "medusa-io"];
        assert_eq!(groupings, expected);
        for row in &rows[..4] {
            assert_eq!((row.steps, row.timed_steps, row.runs), (400, 3, 1));
            assert_eq!(row.attention_s, None);
            assert!(row.speedup_over_per_query.unwrap() > 0.0);
            assert!(row.max_rel_l2.unwrap() > 0.0, "it was compared with f64");
        }
        let [per_query, node, chunk, flatten, medusa] = &rows[..] else {
            panic!("{} rows", rows.len());
        };
        assert_eq!(per_query.speedup_over_per_query, Some(1.0));
        assert!(per_query.kv_issued_tb > flatten.kv_issued_tb);
        assert!(chunk.partial_issued_tb >= node.partial_issued_tb);
        // The paper counts KV at the width of the query heads, four times what is stored.
        let packed = flatten.kv_tb / flatten.kv_issued_tb;
        assert!((3.8..4.01).contains(&packed), "{packed}");
        assert!((medusa.kv_issued_tb / flatten.kv_issued_tb - 1.0).abs() < 0.02);
        assert_eq!(medusa.speedup_over_per_query, None);
    }

    #[test]
    fn a_draft_tree_on_the_cpu_is_right() {
        let task = tiny(task::Task::Speculative { tokens: 32 }, Some(70), 1 << 20);
        let rows = measure(&task);
        assert_eq!((rows[3].steps, rows[3].timed_steps), (1157, 1));
        assert!(rows[0].kv_tb > 20.0 * rows[3].kv_tb);
    }

    #[test]
    fn rows_read_back_as_they_were_written() {
        let task = tiny(task::Task::FewShot { branches: 2 }, Some(10), 1 << 20);
        let row = Row {
            // Numbers that any reader gets exactly.
            kv_tb: 1.5,
            partial_tb: 0.25,
            kv_issued_tb: 0.5,
            partial_issued_tb: 0.125,
            ..task.medusa_row()
        };
        let text = serde_json::to_string(&row).unwrap();
        assert_eq!(serde_json::from_str::<Row>(&text).unwrap(), row);
        assert!(text.contains("\"attention_s\":null"), "{text}");
    }
}
