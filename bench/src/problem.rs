//! Problems of the workloads, and the bytes and operations that they take.

use anyhow::Result;
use deft::attention::AttentionParams;
use deft::cache::KvElement;
use deft::plan::{HeadShape, IssuedIo, Plan, PlanConfig};
use deft::tree::{NodeKey, TokenForest};
use deft_tests::problem::Problem;
use deft_workloads::{PaperIo, PaperMethod, StepWorkload};

use crate::GroupingArg;
use crate::random::Random;
use crate::report::{Row, floor_us};

/// A workload's step, of which `checked` queries are compared with f64.
pub(crate) fn of_workload<T: KvElement>(
    workload: &StepWorkload,
    checked: u32,
) -> Result<Problem<T>> {
    let built = workload.build(0)?;
    of_forest(workload.heads, &built.forest, &built.queries, checked)
}

/// What `queries` of `forest` ask, its pages in random order; `checked` of them are compared with f64.
pub(crate) fn of_forest<T: KvElement>(
    heads: HeadShape,
    forest: &TokenForest,
    queries: &[NodeKey],
    checked: u32,
) -> Result<Problem<T>> {
    let mut view = forest.view(queries)?;
    PageOrder::new(forest.pool().capacity()).apply(&mut view.pages);
    let params = AttentionParams::new(heads.head_dim);
    Ok(Problem::sampled(view, heads, params, 2, checked))
}

/// Bytes of K and V of all tokens that a query sees, each once.
pub(crate) fn bytes_unique<T: KvElement>(problem: &Problem<T>) -> u64 {
    let runs = problem.view.runs.iter();
    let runs = runs.filter(|run| !run.queries.is_empty());
    let tokens: u64 = runs.map(|run| u64::from(run.tokens)).sum();
    tokens * (2 * problem.inputs.row() * size_of::<T>()) as u64
}

/// Floating-point operations of both products, over what each query sees.
pub(crate) fn flops<T: KvElement>(problem: &Problem<T>) -> u64 {
    let (view, heads) = (&problem.view, problem.inputs.heads);
    // K and V of a byte an element: two operations each for every element read.
    2 * PaperIo::of(view, PaperMethod::FlashDecoding, heads, 1).kv
}

/// Bytes that `plan` reads and writes.
pub(crate) fn issued_io<T: KvElement>(problem: &Problem<T>, plan: &Plan) -> IssuedIo {
    let bytes = size_of::<T>() as u32;
    plan.issued_io(problem.inputs.heads, bytes, &problem.lengths, true)
}

/// The row of results, times and errors yet to come.
pub(crate) fn row<T: KvElement>(
    problem: &Problem<T>,
    workload: &StepWorkload,
    config: &PlanConfig,
    plan: &Plan,
    plan_us: f64,
) -> Row {
    let bytes_unique = bytes_unique(problem);
    let io = issued_io(problem, plan);
    Row {
        workload: workload.name.clone(),
        grouping: GroupingArg::name_of(config.grouping).to_owned(),
        candidates: config.candidates,
        max_rows: config.max_rows,
        partial_us: None,
        warm_code_us: None,
        median_us: 0.0,
        p20_us: 0.0,
        p80_us: 0.0,
        bytes_unique,
        bytes_issued: io.read(),
        bytes_kv: io.kv,
        bytes_written: io.written(),
        max_rel_l2: 0.0,
        max_lse_error: 0.0,
        floor_us: floor_us(bytes_unique, flops(problem)),
        best_peer_us: None,
        shares: plan.shares(),
        items: (0..plan.shares()).map(|share| plan.share(share).items().len()).sum(),
        partial_slots: plan.partial_slots(),
        plan_us,
    }
}

/// Where a forest's pages lie: it hands them out in order, a cache in use has them anywhere.
pub(crate) struct PageOrder(Vec<u32>);

impl PageOrder {
    /// Of a pool of `pages` pages.
    pub(crate) fn new(pages: u32) -> Self {
        let mut order: Vec<u32> = (0..pages).collect();
        Random::new(1).shuffle(&mut order);
        Self(order)
    }

    /// Renames pages; what is no page stays as it is.
    pub(crate) fn apply(&self, pages: &mut [u32]) {
        for page in pages {
            *page = self.0.get(*page as usize).copied().unwrap_or(*page);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use deft::plan::{Grouping, Planner};
    use half::bf16;

    /// A workload whose elements have 16 bits; which of the two types does not matter here.
    fn problem(name: &str) -> (StepWorkload, Problem<bf16>) {
        let workloads = StepWorkload::parse(crate::trees::WORKLOADS).unwrap();
        let workload = workloads.into_iter().find(|w| w.name == name).unwrap();
        let problem = of_workload(&workload, 0).unwrap();
        (workload, problem)
    }

    #[test]
    fn the_floors_are_those_the_peers_were_held_against() {
        let (workload, problem) = problem("qwen05_tot");
        let mut config = PlanConfig::new(Grouping::Flatten, 7, 64, 66);
        let plan = Planner::new(config).unwrap().plan(&problem.view).unwrap();
        let flat = row(&problem, &workload, &config, &plan, 0.0);
        assert!((flat.floor_us - 1.6).abs() < 0.05, "{}", flat.floor_us);
        assert!(flat.bytes_kv >= flat.bytes_unique);
        config.grouping = Grouping::PerQuery;
        let per_query = Planner::new(config).unwrap().plan(&problem.view).unwrap();
        let again = row(&problem, &workload, &config, &per_query, 0.0);
        assert!(again.bytes_kv > 2 * flat.bytes_kv, "no sharing reads more");
    }

    #[test]
    fn bytes_and_floors_are_those_of_the_committed_run() {
        let text = include_str!("../../docs/benchmarks/h100-trees.json");
        let run: crate::document::Document<Row> = serde_json::from_str(text).unwrap();
        for name in ["tot_sorting_like", "spec64_ctx4k", "qwen05_tot"] {
            let row = run.rows.iter().find(|row| row.workload == name).unwrap();
            let (_, problem) = problem(name);
            assert_eq!(bytes_unique(&problem), row.bytes_unique, "{name}");
            let floor = floor_us(bytes_unique(&problem), flops(&problem));
            assert!((floor - row.floor_us).abs() < 1e-9, "{name}: {floor}");
        }
    }

    #[test]
    fn pages_are_out_of_order_but_each_is_there_once() {
        let (_, problem) = problem("qwen05_tot");
        let mut pages = problem.view.pages.clone();
        assert!(!pages.is_sorted());
        pages.sort_unstable();
        pages.dedup();
        assert_eq!(pages.len(), problem.view.pages.len());
    }
}
