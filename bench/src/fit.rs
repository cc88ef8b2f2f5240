//! `deft-bench fit`: the planner's cost model against measured times, and constants that fit them better.

use std::path::{Path, PathBuf};

use anyhow::{Context, Result, ensure};
use deft::plan::{CostModel, Grouping, PlanConfig, Planner};
use deft::tree::TreeView;
use deft_workloads::StepWorkload;

use crate::document::Document;
use crate::refit::{Errors, as_rust, refit, rounded};
use crate::report::Row;
use crate::trees::{WORKLOADS, cost_constant, set_cost};
use crate::{GroupingArg, draw, say};

/// Predicts measured times by the planner's cost model, and with --refit finds constants that predict them better.
///
/// Each row of the files that `trees --json` wrote is planned again, and what the model says its plan takes is held
/// against what it took. A row of which another planner made another plan is marked `*` and not counted. An error
/// is the logarithm of predicted over measured.
///
/// --refit moves one constant after the other, all plans as they were when they were timed, and keeps what makes
/// median + worst / 4 of the errors' sizes less. It takes trees drawn by another seed than workloads/held-out.json
/// only: that file and workloads/trees.json are there to judge by, with --judge.
///
/// Example:
///   deft-bench draw --seed 7 > drawn.json
///   deft-bench trees --workloads drawn.json --grouping flatten,node,per-query --json times.json
///   deft-bench fit times.json --workloads drawn.json --refit --judge h100-trees.json,h100-held-out.json
#[derive(Debug, clap::Args)]
#[command(verbatim_doc_comment)]
pub(crate) struct Args {
    /// Results of `deft-bench trees --json`.
    #[arg(required = true, value_name = "RESULTS")]
    results: Vec<PathBuf>,
    /// The workloads of those rows, besides those that come with the program and workloads/held-out.json; several
    /// may be given.
    #[arg(long, value_name = "FILE")]
    workloads: Vec<PathBuf>,
    /// Results to judge the refitted constants by: of other trees than those that they are fitted to.
    #[arg(long, value_name = "RESULTS", value_delimiter = ',', requires = "refit")]
    judge: Vec<PathBuf>,
    /// Take rows whose workload's name contains this.
    #[arg(long, value_name = "NAME")]
    filter: Option<String>,
    /// A constant that the rows were planned and are predicted with, as of `trees`.
    #[arg(long, value_name = "NAME=VALUE", value_parser = cost_constant)]
    cost: Vec<(String, f64)>,
    /// Search for constants that fit better, and print them as Rust.
    #[arg(long)]
    refit: bool,
}

/// A measured row, planned again.
pub(crate) struct Case {
    label: String,
    workload: StepWorkload,
    planner: Planner,
    view: TreeView,
    measured_us: f64,
    /// It is the plan that was timed, as far as its items and partial slots say.
    same_plan: bool,
}

/// Runs the command; nothing of it can be wrong.
pub(crate) fn run(args: &Args) -> Result<usize> {
    let workloads = args.read_workloads()?;
    let (mut cases, cost) = args.read_cases(&args.results, &workloads)?;
    if args.refit {
        refuse_known(&cases)?;
    }
    report(&mut cases, &cost);
    if args.refit {
        let (mut judged, of_gpu) = if args.judge.is_empty() {
            (Vec::new(), cost)
        } else {
            args.read_cases(&args.judge, &workloads)?
        };
        ensure!(of_gpu == cost, "--judge has times of another kind of GPU");
        refuse_fitted(&cases, &judged)?;
        cases.retain(|case| case.same_plan);
        ensure!(!cases.is_empty(), "every row was measured with another plan");
        let fitted = rounded(refit(&mut cases, cost));
        say("\nrefitted:");
        report(&mut cases, &fitted);
        if !judged.is_empty() {
            say("\njudged, before:");
            report(&mut judged, &cost);
            say("\njudged, refitted:");
            report(&mut judged, &fitted);
        }
        say(&as_rust(fitted));
    }
    Ok(0)
}

fn read(path: &Path) -> Result<String> {
    std::fs::read_to_string(path).with_context(|| format!("cannot read {}", path.display()))
}

/// The trees that the model is judged by.
fn known() -> Result<Vec<StepWorkload>> {
    let mut known = StepWorkload::parse(WORKLOADS)?;
    known.extend(StepWorkload::parse(&draw::text(draw::HELD_OUT, draw::KNOWN_KINDS)?)?);
    Ok(known)
}

/// Refuses to fit to them.
fn refuse_known(cases: &[Case]) -> Result<()> {
    let known = known()?;
    if let Some(case) = cases.iter().find(|case| known.contains(&case.workload)) {
        anyhow::bail!(
            "--refit is for trees drawn by another seed; {} is one to judge by",
            case.workload.name
        );
    }
    Ok(())
}

/// Refuses to judge by what was fitted to.
fn refuse_fitted(cases: &[Case], judged: &[Case]) -> Result<()> {
    let fitted = |case: &&Case| cases.iter().any(|other| other.workload == case.workload);
    if let Some(case) = judged.iter().find(fitted) {
        anyhow::bail!(
            "--judge is for other trees than those fitted to; {} is one of them",
            case.workload.name
        );
    }
    Ok(())
}

impl Args {
    fn read_workloads(&self) -> Result<Vec<StepWorkload>> {
        let mut all = Vec::new();
        for path in &self.workloads {
            let parsed = StepWorkload::parse(&read(path)?);
            all.extend(parsed.with_context(|| path.display().to_string())?);
        }
        all.extend(known()?);
        Ok(all)
    }

    /// Every row of `paths`, planned again, and the model of the GPU that they were timed on.
    fn read_cases(
        &self,
        paths: &[PathBuf],
        workloads: &[StepWorkload],
    ) -> Result<(Vec<Case>, CostModel)> {
        let (mut cost, mut cases) = (CostModel::H100, Vec::new());
        for path in paths {
            let document: Document<Row> = serde_json::from_str(&read(path)?)
                .with_context(|| format!("{} has no results of `trees`", path.display()))?;
            ensure!(
                document.empty_graph_us.is_some(),
                "{} was not measured on a GPU: {}",
                path.display(),
                document.device
            );
            let of_gpu = self.cost_of(&document.device);
            ensure!(
                cases.is_empty() || cost == of_gpu,
                "{} is of another kind of GPU than the files before it: {}",
                path.display(),
                document.device
            );
            cost = of_gpu;
            for row in document.rows.iter().filter(|row| self.takes(row)) {
                cases.push(Case::new(row, workloads, cost)?);
            }
        }
        ensure!(!cases.is_empty(), "no row was measured, or none taken");
        Ok((cases, cost))
    }

    fn takes(&self, row: &Row) -> bool {
        let named = self.filter.as_ref();
        row.median_us > 0.0 && named.is_none_or(|name| row.workload.contains(name))
    }

    fn cost_of(&self, device: &str) -> CostModel {
        let mut cost = CostModel::of_gpu(device);
        for (name, value) in &self.cost {
            set_cost(&mut cost, name, *value).expect("checked when it was parsed");
        }
        cost
    }
}

impl Case {
    fn new(row: &Row, workloads: &[StepWorkload], cost: CostModel) -> Result<Self> {
        let workload = workloads.iter().find(|known| known.name == row.workload);
        let workload = workload
            .with_context(|| format!("--workloads has no {}, which was measured", row.workload))?;
        let built = workload.build(0)?;
        let view = built.forest.view(&built.queries)?;
        let heads = workload.heads;
        let grouping = GroupingArg::named(&row.grouping)
            .with_context(|| format!("{}: no grouping is {}", row.workload, row.grouping))?;
        let mut config = PlanConfig::new(
            Grouping::from(grouping),
            heads.group_size(),
            heads.head_dim,
            row.shares,
        );
        config.max_rows = row.max_rows;
        config.candidates = row.candidates;
        config.element_bytes = workload.dtype.bytes() as u32;
        config.cost = cost;
        let mut planner = Planner::new(config)?;
        let plan = planner.plan(&view)?;
        let items = (0..plan.shares()).map(|share| plan.share(share).items().len());
        Ok(Self {
            label: format!(
                "{:26} {:10} {:>4} {:>4}",
                row.workload,
                row.plans(),
                row.shares,
                row.max_rows
            ),
            workload: workload.clone(),
            same_plan: items.sum::<usize>() == row.items
                && plan.partial_slots() == row.partial_slots,
            measured_us: row.median_us,
            planner,
            view,
        })
    }

    fn predicted_us(&mut self, cost: &CostModel) -> f64 {
        self.planner.predict_ns(&self.view, cost) / 1e3
    }

    pub(crate) fn error(&mut self, cost: &CostModel) -> f64 {
        (self.predicted_us(cost) / self.measured_us).ln()
    }
}

/// Prints every row and a summary of those that count.
fn report(cases: &mut [Case], cost: &CostModel) {
    say(&format!(
        "{:26} {:10} {:>4} {:>4} {:>9} {:>9} {:>7}",
        "workload", "grouping", "shar", "rows", "measured", "predicted", "error"
    ));
    for case in &mut *cases {
        let mark = if case.same_plan { "" } else { " *" };
        let (predicted, error) = (case.predicted_us(cost), case.error(cost));
        say(
            &format!("{} {:9.2} {predicted:9.2} {error:+7.3}{mark}", case.label, case.measured_us,),
        );
    }
    let counted = cases.iter_mut().filter(|case| case.same_plan);
    match Errors::of(counted, cost) {
        Some(errors) => say(&format!(
            "{} of {} rows: error {:.3} at the median, {:.3} at worst",
            errors.rows,
            cases.len(),
            errors.median,
            errors.worst
        )),
        None => say("no row was measured with the plan that is made now"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Rows of drawn trees that took what the model says with `truth`.
    fn cases(seed: u64, truth: &CostModel) -> Vec<Case> {
        let drawn = StepWorkload::parse(&draw::text(seed, draw::KNOWN_KINDS).unwrap()).unwrap();
        let mut cases = Vec::new();
        for workload in &drawn {
            for grouping in [GroupingArg::Flatten, GroupingArg::PerQuery] {
                let mut row = Row {
                    workload: workload.name.clone(),
                    grouping: grouping.name().to_owned(),
                    shares: (132 / workload.heads.kv_heads).max(1),
                    max_rows: 64,
                    median_us: 1.0,
                    ..blank()
                };
                let mut case = Case::new(&row, &drawn, CostModel::H100).unwrap();
                row.median_us = case.predicted_us(truth);
                case.measured_us = row.median_us;
                case.same_plan = true;
                cases.push(case);
            }
        }
        cases
    }

    fn blank() -> Row {
        let text = include_str!("../../docs/benchmarks/h100-trees.json");
        let run: Document<Row> = serde_json::from_str(text).unwrap();
        run.rows[0].clone()
    }

    #[test]
    fn constants_that_made_the_times_are_found_again() {
        let mut truth = CostModel::H100;
        truth.launch_ns = 6_500.0;
        truth.bytes_per_ns = 33.0;
        truth.partial_bytes_per_ns = 18.0;
        let mut cases = cases(11, &truth);
        let before = Errors::of(cases.iter_mut(), &CostModel::H100).unwrap();
        let fitted = refit(&mut cases, CostModel::H100);
        let after = Errors::of(cases.iter_mut(), &fitted).unwrap();
        assert!(before.worst > 0.1, "{before:?}");
        assert!(after.median < 0.02, "{before:?}, {after:?}, {fitted:?}");
        assert!(after.loss() < 0.25 * before.loss(), "{after:?}");
    }

    #[test]
    fn a_plan_is_predicted_as_when_it_was_chosen() {
        let mut cases = cases(12, &CostModel::H100);
        for case in &mut cases {
            let ns = case.planner.plan(&case.view).unwrap().predicted_ns();
            let again = case.planner.predict_ns(&case.view, &CostModel::H100);
            assert_eq!(ns, again.round() as u64, "{}", case.label);
        }
    }

    #[test]
    fn trees_to_judge_by_are_not_fitted_on_nor_the_other_way_round() {
        let of = |seed| cases(seed, &CostModel::H100);
        let error = refuse_known(&of(draw::HELD_OUT)).unwrap_err().to_string();
        let first = known().unwrap();
        let first = first.iter().find(|known| error.contains(&known.name));
        assert!(first.is_some(), "{error}");
        refuse_known(&of(11)).unwrap();
        refuse_fitted(&of(11), &of(12)).unwrap();
        let error = refuse_fitted(&of(11), &of(11)).unwrap_err().to_string();
        assert!(error.contains("--judge"), "{error}");
    }

    #[test]
    fn fitted_constants_are_printed_to_be_pasted() {
        let text = as_rust(rounded(CostModel::H100));
        assert!(text.contains("    memory_bytes_per_ns: 23.400,\n"), "{text}");
        assert!(text.contains("    cache_bytes: 198000.0,\n"), "{text}");
    }
}
