//! `deft-bench trees`: single decode steps of whole trees, checked and timed.

use std::path::PathBuf;
use std::time::Instant;

use anyhow::{Context, Result, ensure};
use deft::plan::{CostModel, Grouping, PlanConfig, Planner};
use deft::workload::StepWorkload;

use crate::compare::{Oracle, sample};
use crate::device::{Device, Runner};
use crate::gpu::Repeats;
use crate::peers::Peers;
use crate::problem::Problem;
use crate::report::{Report, header};
use crate::{DeviceArgs, GroupingArg, command_line, say};

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
    /// Run workloads whose name contains this.
    #[arg(long, value_name = "NAME")]
    filter: Option<String>,
    #[command(flatten)]
    device: DeviceArgs,
    /// Where to write the results.
    #[arg(long, value_name = "OUT")]
    json: Option<PathBuf>,
    /// Timed replays a row.
    #[arg(long, default_value_t = 60)]
    iterations: usize,
    /// Replays before those.
    #[arg(long, default_value_t = 10)]
    warmup: usize,
    /// Queries that are compared with f64, all heads each.
    #[arg(long, default_value_t = 16)]
    checked: u32,
    /// Shares a KV head; left out, as many as fill the device.
    #[arg(long)]
    shares: Option<u32>,
    /// Most rows of a work item.
    #[arg(long)]
    max_rows: Option<u32>,
    /// Pages of a node-chunk item.
    #[arg(long)]
    chunk_pages: Option<u32>,
}

/// The workloads that come with the program.
pub(crate) const WORKLOADS: &str = include_str!("../../../workloads/trees.json");

/// Runs the command; the number of rows that are wrong.
pub(crate) fn run(args: &Args) -> Result<usize> {
    let text = match &args.workloads {
        Some(path) => std::fs::read_to_string(path)
            .with_context(|| format!("cannot read {}", path.display()))?,
        None => WORKLOADS.to_owned(),
    };
    let mut workloads = StepWorkload::parse(&text)?;
    if let Some(name) = &args.filter {
        workloads.retain(|workload| workload.name.contains(name));
        ensure!(
            !workloads.is_empty(),
            "no workload's name contains `{name}`"
        );
    }
    let peers = Peers::embedded()?;
    let device = args.device.open()?;
    say(&device.describe());
    let repeats = Repeats {
        warmup: args.warmup,
        measured: args.iterations.max(1),
    };
    let mut report = Report {
        device: device.describe(),
        commit: option_env!("DEFT_COMMIT").unwrap_or_default().to_owned(),
        command: command_line(),
        empty_graph_us: device.time_nothing(repeats)?,
        kernels: Vec::new(),
        rows: Vec::new(),
    };
    say(&header());
    let mut wrong = 0;
    for workload in &workloads {
        let outcome = run_workload(args, workload, &device, repeats, &peers, &mut report);
        // Rows so far are worth keeping, whatever happens next.
        if let Some(path) = &args.json {
            report.write(path)?;
        }
        wrong += outcome.with_context(|| format!("workload {}", workload.name))?;
    }
    say(&report.summary(&peers));
    Ok(wrong)
}

fn run_workload(
    args: &Args,
    workload: &StepWorkload,
    device: &Device,
    repeats: Repeats,
    peers: &Peers,
    report: &mut Report,
) -> Result<usize> {
    let problem = Problem::new(workload)?;
    let view = &problem.view;
    let queries = sample(view.queries, args.checked);
    let oracle = Oracle::new(&problem.pool, view, &problem.q, &queries);
    let mut runner = device.runner(&problem)?;
    for line in runner.kernels()? {
        if !report.kernels.contains(&line) {
            say(&format!("  {line}"));
            report.kernels.push(line);
        }
    }
    let mut wrong = 0;
    for &grouping in &args.grouping {
        let what = format!("{} {}", workload.name, grouping.name());
        let mut planner = Planner::new(args.plan_config(grouping, &problem, &runner))?;
        let begin = Instant::now();
        let plan = planner.plan(view)?;
        let plan_us = begin.elapsed().as_secs_f64() * 1e6;
        runner.load(&plan)?;
        let verdict = oracle.judge(&runner.attend(&plan, &what)?);
        if !verdict.passes() {
            say(&format!("{what}: WRONG: {verdict}"));
            wrong += 1;
            continue;
        }
        let time = runner.time(&plan, repeats, &what)?;
        let mut row = problem.row(workload, grouping, &plan, plan_us);
        row.max_rel_l2 = verdict.max_rel_l2;
        row.max_lse_error = verdict.max_lse_error;
        // The peers ran on a GPU.
        if let Device::Gpu(_) = device {
            row.best_peer_us = peers.best_us(&workload.name);
        }
        row.set_time(time);
        say(&row.line());
        report.rows.push(row);
    }
    Ok(wrong)
}

impl Args {
    fn plan_config(
        &self,
        grouping: GroupingArg,
        problem: &Problem,
        runner: &Runner<'_>,
    ) -> PlanConfig {
        let heads = &problem.heads;
        let pages = problem.view.pages.len() as u32;
        let shares = self.shares.unwrap_or_else(|| runner.shares(pages));
        let mut config = PlanConfig::new(
            Grouping::from(grouping),
            heads.group,
            heads.head_dim,
            shares,
        );
        if let Runner::Cpu(_) = runner {
            config.cost = CostModel::CPU_CORE;
        }
        if let Some(rows) = self.max_rows {
            config.max_rows = rows;
        }
        if let Some(pages) = self.chunk_pages {
            config.chunk_pages = pages;
        }
        config
    }
}
