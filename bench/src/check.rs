//! `deft-bench check`: is what the GPU computes right, and the same every time?
//!
//! On the CPU only what needs no GPU runs: the recorded reasoning trees.

use std::collections::BTreeMap;

use anyhow::{Context, Result};
use deft::attention::AttentionParams;
use deft::cache::DType;
use deft::plan::Planner;
use deft_workloads::ReasoningRun;

use crate::compare::{Oracle, sample};
use crate::decode::{self, Outcome};
use crate::device::Device;
use crate::forests::{Asked, random_forest};
use crate::gpu::Gpu;
use crate::random::Random;
use crate::session::Session;
use crate::tensors::{Heads, HostPool, random_queries};
use crate::{DeviceKind, GpuArgs, GroupingArg, bits, ops, paths, reasoning, say, writes};

/// KV heads and query heads a KV head: MHA, GQA up to 16, MQA, odd ones.
const HEADS: [(u32, u32); 9] = [
    (1, 1),
    (2, 1),
    (8, 1),
    (8, 4),
    (2, 7),
    (3, 3),
    (4, 8),
    (1, 12),
    (1, 16),
];
const HEAD_DIMS: [u32; 3] = [64, 128, 256];
const DTYPES: [DType; 2] = [DType::Bf16, DType::F16];
/// Queries of a forest that are compared.
const CHECKED: u32 = 40;

/// Compares the GPU with f64: random forests, the operations of a model step, recorded reasoning trees, decode loops under one graph; with the
/// CPU bit by bit where it writes; and with itself over repeated runs.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// What to check; the CPU replays the reasoning trees and nothing else.
    #[arg(long, value_enum, default_value = "cuda")]
    device: DeviceKind,
    #[command(flatten)]
    gpu: GpuArgs,
    /// Random forests to compare on.
    #[arg(long, default_value_t = 500)]
    forests: u32,
    /// Runs that have to give the same bits.
    #[arg(long, default_value_t = 20)]
    runs: u32,
    /// Steps of each decode loop, all under one captured graph.
    #[arg(long, default_value_t = 300)]
    steps: u32,
    /// Recorded runs to replay of each reasoning task, 20 at most; 0 leaves them out.
    #[arg(long, value_name = "N", default_value_t = 3, value_parser = clap::value_parser!(u32).range(..=20))]
    reasoning: u32,
    /// Where the random numbers start.
    #[arg(long, default_value_t = 1)]
    seed: u64,
    /// Only kernels whose name contains this, such as `bf16_d128` or `rms_norm`.
    #[arg(long, value_name = "NAME")]
    filter: Option<String>,
    /// Wrong cases to describe before the rest are only counted.
    #[arg(long, default_value_t = 10)]
    describe: usize,
}

/// How a kind of case fared.
#[derive(Debug, Default)]
struct Tally {
    cases: u32,
    wrong: u32,
    max_rel_l2: f64,
    max_lse_error: f64,
}

/// Runs the command; the number of wrong cases.
pub(crate) fn run(args: &Args) -> Result<usize> {
    let device = args.device.open(&args.gpu)?;
    say(&device.describe());
    let mut wrong = 0;
    if let Device::Gpu(gpu) = &device {
        wrong += random_forests(args, gpu)?;
        wrong += backend_cases(args, gpu)?;
        wrong += ops::run(gpu, args.filter.as_deref(), args.seed)?;
        if args.steps > 0 {
            wrong += decode_loops(args, gpu)?;
        }
    }
    wrong += reasoning_runs(args, &device)?;
    Ok(wrong as usize)
}

/// Attends to random forests with every grouping; the number of wrong cases.
fn random_forests(args: &Args, gpu: &Gpu) -> Result<u32> {
    let mut tallies: BTreeMap<String, Tally> = BTreeMap::new();
    let mut described = 0;
    for case in 0..args.forests {
        let mut random = Random::new(
            args.seed
                .wrapping_mul(1_000_003)
                .wrapping_add(u64::from(case)),
        );
        let heads = random_heads(&mut random);
        let variant = format!("{}_d{}", heads.dtype, heads.head_dim);
        if !args.wants(&variant) {
            continue;
        }
        // A seed names a case: the same forest comes again with `--seed` and `--forests`.
        let runs = if case % 25 == 0 { args.runs } else { 1 };
        let outcome = run_case(gpu, heads, &mut random, case, runs)
            .with_context(|| format!("forest {case} of seed {}, {variant}", args.seed))?;
        for (grouping, verdict) in outcome {
            let tally = tallies.entry(format!("{variant} {grouping}")).or_default();
            tally.cases += 1;
            tally.max_rel_l2 = tally.max_rel_l2.max(verdict.max_rel_l2);
            tally.max_lse_error = tally.max_lse_error.max(verdict.max_lse_error);
            if let Some(problem) = verdict.problem {
                tally.wrong += 1;
                described += 1;
                if described <= args.describe {
                    say(&format!("forest {case}: {variant} {grouping}: {problem}"));
                }
            }
        }
    }
    say(&format!(
        "{:28} {:>6} {:>6} {:>10} {:>10}",
        "random forests", "cases", "wrong", "rel L2", "LSE error"
    ));
    for (name, tally) in &tallies {
        say(&format!(
            "{name:28} {:6} {:6} {:10.1e} {:10.1e}",
            tally.cases, tally.wrong, tally.max_rel_l2, tally.max_lse_error
        ));
    }
    let cases: u32 = tallies.values().map(|tally| tally.cases).sum();
    let wrong: u32 = tallies.values().map(|tally| tally.wrong).sum();
    say(&format!("{cases} cases, {wrong} wrong"));
    Ok(wrong)
}

/// Appends, rotates, moves and attends through the host-slice backend; the number of wrong cases.
fn backend_cases(args: &Args, gpu: &Gpu) -> Result<u32> {
    let (mut cases, mut wrong) = (0, 0);
    let library = gpu.device.clone().into();
    for (head_dim, dtype, variant) in args.variants() {
        for case in 0..3 {
            let mut random = Random::new(args.seed + u64::from(head_dim) + case);
            let heads = heads_of(head_dim, dtype, &mut random);
            cases += 1;
            let what = || format!("host-slice backend, {variant}, case {case}");
            let mut problem = writes::run(gpu, heads, &mut random).with_context(what)?;
            if problem.is_none() {
                problem = bits::run(gpu, heads, &mut random).with_context(what)?;
            }
            if problem.is_none() {
                problem = paths::run(&library, heads, &mut random).with_context(what)?;
            }
            if let Some(problem) = problem {
                wrong += 1;
                say(&format!("host-slice backend, {heads:?}: {problem}"));
            }
        }
    }
    say(&format!("host-slice backend: {cases} cases, {wrong} wrong"));
    Ok(wrong)
}

/// Decodes under one graph with each kernel variant; the number of loops that went wrong.
fn decode_loops(args: &Args, gpu: &Gpu) -> Result<u32> {
    say(&format!(
        "{:28} {:>6} {:>9} {:>8} {:>11} {:>8} {:>10} {:>10}",
        "decode loop, one graph",
        "steps",
        "untouched",
        "patched",
        "patch bytes",
        "planned",
        "rel L2",
        "LSE error"
    ));
    let mut wrong = 0;
    for (head_dim, dtype, variant) in args.variants() {
        for grouping in [GroupingArg::Flatten, GroupingArg::Node] {
            let name = format!("{variant} {}", grouping.name());
            let outcome = decode::run(gpu, dtype, head_dim, grouping.into(), args.steps)
                .with_context(|| format!("decode loop, {name}"))?;
            wrong += u32::from(outcome.problem.is_some());
            say(&decode_line(&name, &outcome));
        }
    }
    Ok(wrong)
}

fn decode_line(name: &str, outcome: &Outcome) -> String {
    let line = format!(
        "{name:28} {:6} {:9} {:8} {:11} {:8} {:10.1e} {:10.1e}",
        outcome.steps,
        outcome.untouched,
        outcome.patched,
        outcome.patch_bytes,
        outcome.planned,
        outcome.max_rel_l2,
        outcome.max_lse_error
    );
    with_problem(line, outcome.problem.as_deref())
}

/// Replays recorded runs, each with another kernel variant; the number that went wrong.
fn reasoning_runs(args: &Args, device: &Device) -> Result<u32> {
    let variants: Vec<_> = args.variants().collect();
    if args.reasoning == 0 || variants.is_empty() {
        return Ok(0);
    }
    say(&format!(
        "{:28} {:>6} {:>9} {:>8} {:>8} {:>10} {:>10}",
        "reasoning trees", "steps", "reshaped", "patched", "checked", "rel L2", "LSE error"
    ));
    let device = device.of_library();
    let (mut replayed, mut wrong) = (0, 0);
    for (task, text) in reasoning::TASKS {
        let runs = ReasoningRun::parse(text)?;
        for (index, run) in runs.iter().take(args.reasoning as usize).enumerate() {
            let (head_dim, dtype, variant) = &variants[replayed % variants.len()];
            replayed += 1;
            let seed = args.seed.wrapping_mul(1_000_003) + replayed as u64;
            let heads = heads_of(*head_dim, *dtype, &mut Random::new(seed));
            let outcome = reasoning::run(&device, heads, run, seed)
                .with_context(|| format!("{task}, run {index}, {heads:?}"))?;
            wrong += u32::from(outcome.problem.is_some());
            say(&reasoning_line(
                &format!("{task} {index} {variant}"),
                &outcome,
            ));
        }
    }
    say(&format!("reasoning trees: {replayed} runs, {wrong} wrong"));
    Ok(wrong)
}

fn reasoning_line(name: &str, outcome: &reasoning::Outcome) -> String {
    let line = format!(
        "{name:28} {:6} {:9} {:8} {:8} {:10.1e} {:10.1e}",
        outcome.steps,
        outcome.reshaped,
        outcome.patched,
        outcome.checked,
        outcome.max_rel_l2,
        outcome.max_lse_error
    );
    with_problem(line, outcome.problem.as_deref())
}

/// A line of a table, and what went wrong behind it.
fn with_problem(line: String, problem: Option<&str>) -> String {
    match problem {
        Some(problem) => format!("{line}  WRONG: {problem}"),
        None => line,
    }
}

impl Args {
    /// Whether `--filter` lets kernels of this name through.
    fn wants(&self, variant: &str) -> bool {
        let filter = self.filter.as_ref();
        filter.is_none_or(|name| variant.contains(name))
    }

    /// Head dimension, element type and name of every kernel variant that is wanted.
    fn variants(&self) -> impl Iterator<Item = (u32, DType, String)> {
        let all = HEAD_DIMS.into_iter().flat_map(|head_dim| {
            DTYPES.map(|dtype| (head_dim, dtype, format!("{dtype}_d{head_dim}")))
        });
        all.filter(|(.., variant)| self.wants(variant))
    }
}

/// One grouping of one case.
#[derive(Debug)]
struct CaseVerdict {
    max_rel_l2: f64,
    max_lse_error: f64,
    problem: Option<String>,
}

fn random_heads(random: &mut Random) -> Heads {
    let head_dim = random.pick(&HEAD_DIMS);
    let dtype = random.pick(&DTYPES);
    heads_of(head_dim, dtype, random)
}

/// Random head counts, now and then with a soft cap.
fn heads_of(head_dim: u32, dtype: DType, random: &mut Random) -> Heads {
    let (kv_heads, group) = random.pick(&HEADS);
    let mut params = AttentionParams::new(head_dim);
    if random.between(0, 3) == 0 {
        params.soft_cap = Some(random.between(5, 50) as f32);
    }
    Heads {
        dtype,
        kv_heads,
        group,
        head_dim,
        params,
    }
}

fn run_case(
    gpu: &Gpu,
    heads: Heads,
    random: &mut Random,
    case: u32,
    runs: u32,
) -> Result<Vec<(&'static str, CaseVerdict)>> {
    let Asked { forest, nodes } = random_forest(random)?;
    let view = forest.view(&nodes)?;
    let pages = forest.pool().capacity();
    let pool = HostPool::random(heads, pages, &view, Random::new(u64::from(case)));
    let q = random_queries(&heads, view.queries, Random::new(u64::from(case) + 1));
    let oracle = Oracle::new(&pool, &view, &q, &sample(view.queries, CHECKED));
    let slots = forest.lengths().len() as u32;
    let mut session = Session::new(gpu, &pool, &q, view.queries, slots)?;
    session
        .cache
        .set_counters(forest.lengths(), forest.tail_pages(), &gpu.stream)?;
    let mut verdicts = Vec::new();
    for grouping in GroupingArg::ALL {
        let shares = random.between(1, 40);
        let mut config = session.cache.plan_config(grouping.into(), heads.group);
        config.shares = shares;
        let plan = Planner::new(config)?.plan(&view)?;
        session.load(&plan)?;
        let what = format!(
            "{heads:?}, {} shares, {} queries, {} partial slots",
            shares,
            view.queries,
            plan.partial_slots()
        );
        let first = session.attend(view.queries, &what)?;
        let verdict = oracle.judge(&first);
        let mut problem = (!verdict.passes()).then(|| format!("{what}: {verdict}"));
        for run in 1..runs {
            if problem.is_none() && session.attend(view.queries, &what)? != first {
                problem = Some(format!("{what}: run {run} gave other bits than the first"));
            }
        }
        let verdict = CaseVerdict {
            max_rel_l2: verdict.max_rel_l2,
            max_lse_error: verdict.max_lse_error,
            problem,
        };
        verdicts.push((grouping.name(), verdict));
    }
    Ok(verdicts)
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;

    #[derive(Parser)]
    struct Words {
        #[command(flatten)]
        args: Args,
    }

    #[test]
    fn a_kernel_filter_leaves_the_variants_that_it_names() {
        let names = |filter: &str| {
            let words = ["check", "--filter", filter];
            let args = Words::try_parse_from(words).unwrap().args;
            args.variants().map(|variant| variant.2).collect::<Vec<_>>()
        };
        assert_eq!(names("d128"), ["bf16_d128", "f16_d128"]);
        assert_eq!(names("bf16").len(), 3);
        assert_eq!(names("fp8"), [""; 0]);
    }
}
