//! `deft-bench trees`: single decode steps of whole trees, checked and timed.

use std::path::{Path, PathBuf};
use std::time::Instant;

use anyhow::{Context, Result, bail, ensure};
use deft::cache::{DType, KvElement};
use deft::plan::{Candidates, CostModel, Grouping, PlanConfig, Planner};
use deft_workloads::StepWorkload;
use half::{bf16, f16};

use crate::device::{Device, Runner};
use crate::document::Document;
use crate::gpu::Repeats;
use crate::peers::Peers;
use crate::problem::{self, of_workload};
use crate::report::{HEADER, summary};
use crate::{DeviceArgs, GroupingArg, say};

pub(crate) use crate::report::Row;

/// Checks each workload's attention against f64, then times it.
///
/// Times are those of one replayed CUDA graph, with an L2 that a 256 MB read has emptied. A row whose
/// results are wrong is not timed, and the program ends with status 1.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// Workloads to run instead of those that come with the program; see workloads/README.md.
    #[arg(long, value_name = "FILE")]
    workloads: Option<PathBuf>,
    /// How queries and KV are grouped; several may be given, separated by commas.
    #[arg(long, value_delimiter = ',', default_value = "flatten")]
    grouping: Vec<GroupingArg>,
    /// Which plans flatten chooses from; several are tried one after the other.
    #[arg(long, value_delimiter = ',', value_parser = candidates)]
    candidates: Vec<Candidates>,
    /// Run workloads whose name contains this.
    #[arg(long, value_name = "NAME")]
    filter: Option<String>,
    #[command(flatten)]
    device: DeviceArgs,
    /// Where to write the results.
    #[arg(long, value_name = "OUT")]
    pub(crate) json: Option<PathBuf>,
    /// Timed replays a row.
    #[arg(long, default_value_t = 60)]
    pub(crate) iterations: usize,
    /// Replays before those.
    #[arg(long, default_value_t = 10)]
    pub(crate) warmup: usize,
    /// Queries that are compared with f64, all heads each.
    #[arg(long, default_value_t = 16)]
    pub(crate) checked: u32,
    /// Shares a KV head; left out, as many as fill the device. Several are tried one after the other.
    #[arg(long, value_delimiter = ',')]
    shares: Vec<u32>,
    /// Most rows of a work item; several are tried one after the other.
    #[arg(long, value_delimiter = ',')]
    max_rows: Vec<u32>,
    /// Pages of a node-chunk item; several are tried one after the other.
    #[arg(long, value_delimiter = ',')]
    chunk_pages: Vec<u32>,
    /// Time attention without its merge as well.
    #[arg(long)]
    parts: bool,
    /// Time attention, whole and without its merge, with the kernels' code in the caches as well: right after the
    /// same attention over a copy of the data.
    #[arg(long)]
    warm_code: bool,
    /// A constant of the planner's cost model, to refit it: such as `bytes_per_ns=42` (see `CostModel`).
    #[arg(long, value_name = "NAME=VALUE", value_parser = cost_constant)]
    cost: Vec<(String, f64)>,
}

/// Parses `NAME=VALUE`, where NAME is a field of the cost model.
pub(crate) fn cost_constant(text: &str) -> std::result::Result<(String, f64), String> {
    let (name, value) = text.split_once('=').ok_or("not of the form NAME=VALUE")?;
    let value: f64 = value.parse().map_err(|_| format!("`{value}` is no number"))?;
    set_cost(&mut { CostModel::H100 }, name, value)?;
    Ok((name.to_owned(), value))
}

pub(crate) fn set_cost(
    cost: &mut CostModel,
    name: &str,
    value: f64,
) -> std::result::Result<(), String> {
    let mut fields = serde_json::to_value(*cost).map_err(|error| error.to_string())?;
    let field = fields.get_mut(name);
    *field.ok_or_else(|| format!("the cost model has no `{name}`"))? = value.into();
    *cost = serde_json::from_value(fields).map_err(|error| error.to_string())?;
    Ok(())
}

/// The workloads that come with the program.
pub(crate) const WORKLOADS: &str = include_str!("../../workloads/trees.json");

/// Runs the command; the number of rows that are wrong.
pub(crate) fn run(args: &Args) -> Result<usize> {
    let (report, wrong) = measure(args, args.json.as_deref())?;
    say(&summary(&report, &Peers::embedded()?));
    Ok(wrong)
}

/// Checks and times what `args` ask for, into the file `json` as well; the number of rows that are wrong.
pub(crate) fn measure(args: &Args, json: Option<&Path>) -> Result<(Document<Row>, usize)> {
    let workloads = args.read_workloads()?;
    let peers = Peers::embedded()?;
    let device = args.device.open()?;
    say(&device.describe());
    let repeats = Repeats { warmup: args.warmup, measured: args.iterations.max(1) };
    let mut report = Document::new("trees", &device, device.time_nothing(repeats)?);
    say(HEADER);
    let mut wrong = 0;
    for (_, workload) in &workloads {
        let run = match workload.dtype {
            DType::F32 => bail!("the GPU kernels store bf16 and f16, not f32"),
            DType::F16 => run_workload::<f16>,
            _ => run_workload::<bf16>,
        };
        let outcome = run(args, workload, &device, repeats, &peers, &mut report);
        // Rows so far are worth keeping, whatever happens next.
        report.write(json)?;
        wrong += outcome.with_context(|| format!("workload {}", workload.name))?;
    }
    Ok((report, wrong))
}

fn run_workload<T: KvElement>(
    args: &Args,
    workload: &StepWorkload,
    device: &Device,
    repeats: Repeats,
    peers: &Peers,
    report: &mut Document<Row>,
) -> Result<usize> {
    let problem = of_workload::<T>(workload, args.checked)?;
    let view = &problem.view;
    let mut runner = device.runner(&problem)?;
    for line in runner.kernels()? {
        if !report.kernels.contains(&line) {
            say(&format!("  {line}"));
            report.kernels.push(line);
        }
    }
    let mut wrong = 0;
    for config in args.configs(&runner) {
        let name = GroupingArg::name_of(config.grouping);
        let what =
            format!("{} {name}, {} shares, {} rows", workload.name, config.shares, config.max_rows);
        let mut planner = Planner::new(config)?;
        let begin = Instant::now();
        let plan = planner.plan(view)?;
        let plan_us = begin.elapsed().as_secs_f64() * 1e6;
        runner.load(&plan)?;
        let verdict = problem.judge(&runner.attend(&plan, &what)?);
        if !verdict.passes() {
            say(&format!("{what}: WRONG: {verdict}"));
            wrong += 1;
            continue;
        }
        let time = runner.time(&plan, repeats, &what)?;
        let mut row = problem::row(&problem, workload, &config, &plan, plan_us);
        row.max_rel_l2 = verdict.max_rel_l2;
        row.max_lse_error = verdict.max_lse_error;
        // The peers ran on a GPU.
        if let Device::Gpu(_) = device {
            row.best_peer_us = peers.best_us(&workload.name);
        }
        row.set_time(time);
        if args.parts {
            row.partial_us = runner.time_partial(repeats, &what)?;
        }
        if args.warm_code {
            let mut twin = device.runner(&problem)?;
            twin.load(&plan)?;
            row.warm_code_us = runner.time_with_warm_code(&twin, repeats, &what)?;
        }
        say(&row.line());
        report.rows.push(row);
    }
    Ok(wrong)
}

impl Args {
    /// The workloads that are asked for, and as their file has them.
    pub(crate) fn read_workloads(&self) -> Result<Vec<(serde_json::Value, StepWorkload)>> {
        let text = match &self.workloads {
            Some(path) => std::fs::read_to_string(path)
                .with_context(|| format!("cannot read {}", path.display()))?,
            None => WORKLOADS.to_owned(),
        };
        let parsed = StepWorkload::parse(&text)?;
        let values: Vec<serde_json::Value> = serde_json::from_str(&text)?;
        let mut workloads: Vec<_> = values.into_iter().zip(parsed).collect();
        if let Some(name) = &self.filter {
            workloads.retain(|(_, workload)| workload.name.contains(name));
            ensure!(!workloads.is_empty(), "no workload's name contains `{name}`");
        }
        Ok(workloads)
    }

    /// Flatten with each kind of candidates that was asked for; another grouping as it is.
    fn chosen_from(&self, config: PlanConfig) -> Vec<PlanConfig> {
        let asked: &[_] = if config.grouping == Grouping::Flatten { &self.candidates } else { &[] };
        vary(vec![config], asked, |config, candidates| config.candidates = candidates)
    }

    /// Every combination of what was asked for.
    fn configs<T: KvElement>(&self, runner: &Runner<'_, T>) -> Vec<PlanConfig> {
        let mut configs = Vec::new();
        for &grouping in &self.grouping {
            let mut config = runner.plan_config(grouping.into());
            for (name, value) in &self.cost {
                set_cost(&mut config.cost, name, *value).expect("checked when it was parsed");
            }
            configs.push(config);
        }
        let configs = configs.into_iter().flat_map(|config| self.chosen_from(config)).collect();
        let configs = vary(configs, &self.shares, |config, shares| config.shares = shares);
        let configs = vary(configs, &self.max_rows, |config, rows| config.max_rows = rows);
        vary(configs, &self.chunk_pages, |config, pages| {
            config.chunk_pages = pages;
        })
    }
}

/// Parses the name of a kind of candidates, as rows have it.
pub(crate) fn candidates(name: &str) -> std::result::Result<Candidates, String> {
    serde_json::from_value(name.into()).map_err(|error| error.to_string())
}

/// Each of `configs` with each of `values`, or as it is if there are none.
fn vary<V: Copy>(
    configs: Vec<PlanConfig>,
    values: &[V],
    set: impl Fn(&mut PlanConfig, V),
) -> Vec<PlanConfig> {
    if values.is_empty() {
        return configs;
    }
    let each = configs.into_iter().flat_map(|config| {
        let set = &set;
        values.iter().map(move |&value| {
            let mut config = config;
            set(&mut config, value);
            config
        })
    });
    each.collect()
}
