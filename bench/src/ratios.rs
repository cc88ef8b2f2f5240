//! `deft-bench cpu`: the CPU backend, each grouping's time over PerQuery's.

use std::path::PathBuf;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use deft::cache::{DType, KvElement};
use deft::plan::Planner;
use deft_workloads::StepWorkload;
use half::{bf16, f16};
use serde::{Deserialize, Serialize};

use crate::GroupingArg;
use crate::clock::Clock;
use crate::cpu::CpuSession;
use crate::device::Device;
use crate::document::Document;
use crate::problem::of_workload;
use crate::progress::Progress;
use crate::trees::WORKLOADS;

/// Queries that are compared with f64.
const CHECKED: u32 = 4;
/// Rounds that a workload takes at least.
const ROUNDS: u32 = 5;

/// Times the CPU backend on the trees, as ratios within this run.
///
/// The groupings take turns and the cheapest call of each counts, in processor time of all threads where
/// the system tells it: so ratios hold on a machine that others use as well. Times of different runs do
/// not compare, and are not reported. Results are checked against f64 first.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// Run workloads whose name contains this.
    #[arg(long, value_name = "NAME")]
    filter: Option<String>,
    /// Seconds that a workload takes at least.
    #[arg(long, default_value_t = 4.0)]
    seconds: f64,
    /// Where to write the results, workload by workload.
    #[arg(long, value_name = "OUT")]
    json: Option<PathBuf>,
}

/// One workload with one grouping.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(crate) struct Row {
    pub(crate) workload: String,
    pub(crate) grouping: String,
    /// Processor time of PerQuery over that of this grouping.
    pub(crate) ratio_to_per_query: f64,
}

/// Runs the command; the number of rows that are wrong.
pub(crate) fn run(args: &Args) -> Result<usize> {
    let mut workloads = StepWorkload::parse(WORKLOADS)?;
    if let Some(name) = &args.filter {
        workloads.retain(|workload| workload.name.contains(name));
        ensure!(!workloads.is_empty(), "no workload's name contains `{name}`");
    }
    let time = Duration::try_from_secs_f64(args.seconds)
        .with_context(|| format!("--seconds {} is no span of time", args.seconds))?;
    let mut document = Document::new("cpu", &Device::Cpu, None);
    let progress = Progress::new(workloads.len());
    progress.say(&format!("{}; times as fast as PerQuery, in processor time", document.device));
    let names = GroupingArg::ALL.map(|grouping| format!("{:>10}", grouping.name()));
    progress.say(&format!("{:24} {}", "workload", names.join(" ")));
    let mut wrong = 0;
    for workload in &workloads {
        progress.doing(&workload.name);
        match measure(workload, time)? {
            Ok(rows) => {
                let ratios = rows.iter().map(|row| format!("{:9.2}x", row.ratio_to_per_query));
                let ratios: Vec<String> = ratios.collect();
                progress.say(&format!("{:24} {}", workload.name, ratios.join(" ")));
                document.rows.extend(rows);
            }
            Err(problem) => {
                wrong += 1;
                progress.say(&format!("{}: WRONG: {problem}", workload.name));
            }
        }
        progress.step();
        document.write(args.json.as_deref())?;
    }
    Ok(wrong)
}

/// A row a grouping, or what is wrong with the results.
fn measure(workload: &StepWorkload, time: Duration) -> Result<Result<Vec<Row>, String>> {
    match workload.dtype {
        DType::F16 => measure_typed::<f16>(workload, time),
        DType::F32 => measure_typed::<f32>(workload, time),
        _ => measure_typed::<bf16>(workload, time),
    }
}

fn measure_typed<T: KvElement>(
    workload: &StepWorkload,
    time: Duration,
) -> Result<Result<Vec<Row>, String>> {
    let problem = of_workload::<T>(workload, CHECKED)?;
    let mut session = CpuSession::new(&problem.inputs)?;
    session.lengths.clone_from(&problem.lengths);
    let mut plans = Vec::new();
    for grouping in GroupingArg::ALL {
        let config = session.plan_config(grouping.into());
        let plan = Planner::new(config)?.plan(&problem.view)?;
        let verdict = problem.judge(&session.attend(&plan)?);
        if !verdict.passes() {
            return Ok(Err(format!("{}: {verdict}", grouping.name())));
        }
        plans.push((plan, Duration::MAX));
    }
    let begin = Instant::now();
    let mut rounds = 0;
    while rounds < ROUNDS || begin.elapsed() < time {
        for (plan, best) in &mut plans {
            let clock = Clock::start();
            session.run(plan)?;
            *best = clock.elapsed().min(*best);
        }
        rounds += 1;
    }
    // A clock too coarse for the work has no ratios to give.
    let seconds = |at: usize| plans[at].1.as_secs_f64().max(1e-9);
    let rows = GroupingArg::ALL.into_iter().enumerate().map(|(at, grouping)| Row {
        workload: workload.name.clone(),
        grouping: grouping.name().to_owned(),
        ratio_to_per_query: seconds(0) / seconds(at),
    });
    Ok(Ok(rows.collect()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_workload_has_a_ratio_a_grouping_and_per_querys_is_one() {
        let workloads = StepWorkload::parse(WORKLOADS).unwrap();
        let small = workloads.iter().find(|w| w.name == "qwen05_tot").unwrap();
        let rows = measure(small, Duration::ZERO).unwrap().unwrap();
        assert_eq!(rows.len(), 4);
        assert_eq!(rows[0].grouping, "per-query");
        assert_eq!(rows[0].ratio_to_per_query, 1.0);
        assert!(rows.iter().all(|row| row.ratio_to_per_query > 0.0));
    }
}
