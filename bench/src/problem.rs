//! A forest with K, V and queries.

use anyhow::{Result, ensure};
use deft::cache::DType;
use deft::plan::{IssuedIo, Plan, PlanConfig};
use deft::tree::{NodeKey, TokenForest, TreeView};
use deft_workloads::StepWorkload;
use deft_workloads::{PaperIo, PaperMethod};

use crate::GroupingArg;
use crate::random::Random;
use crate::report::{Row, floor_us};
use crate::tensors::{Heads, HostPool, random_queries};

/// One layer of a forest, its pages in random order.
pub(crate) struct Problem {
    pub(crate) heads: Heads,
    pub(crate) view: TreeView,
    pub(crate) pool: HostPool,
    pub(crate) q: Vec<u16>,
    pub(crate) lengths: Vec<u32>,
    pub(crate) tail_pages: Vec<u32>,
}

impl Problem {
    pub(crate) fn new(workload: &StepWorkload) -> Result<Self> {
        ensure!(
            workload.dtype != DType::F32,
            "the GPU kernels store bf16 and f16, not f32"
        );
        let built = workload.build(0)?;
        let heads = Heads::of(workload.heads, workload.dtype);
        Self::of(heads, &built.forest, &built.queries)
    }

    /// What `queries` of `forest` ask, with random K, V and queries.
    pub(crate) fn of(heads: Heads, forest: &TokenForest, queries: &[NodeKey]) -> Result<Self> {
        let pages = forest.pool().capacity();
        let order = PageOrder::new(pages);
        let mut view = forest.view(queries)?;
        order.apply(&mut view.pages);
        let mut tail_pages = forest.tail_pages().to_vec();
        order.apply(&mut tail_pages);
        Ok(Self {
            pool: HostPool::random(heads, pages, &view, Random::new(2)),
            q: random_queries(&heads, view.queries, Random::new(3)),
            lengths: forest.lengths().to_vec(),
            tail_pages,
            heads,
            view,
        })
    }

    /// Bytes of K and V of all tokens that a query sees, each once.
    pub(crate) fn bytes_unique(&self) -> u64 {
        let runs = self.view.runs.iter().filter(|run| !run.queries.is_empty());
        let tokens: u64 = runs.map(|run| u64::from(run.tokens)).sum();
        tokens * self.heads.token_bytes()
    }

    /// Floating-point operations of both products, over what each query sees.
    pub(crate) fn flops(&self) -> u64 {
        let heads = self.heads.head_shape();
        let seen = PaperIo::of(&self.view, PaperMethod::FlashDecoding, heads, 1);
        // K and V of a byte an element: two operations each for every element read.
        2 * seen.kv
    }

    /// Bytes that `plan` reads and writes.
    pub(crate) fn issued_io(&self, plan: &Plan) -> IssuedIo {
        let bytes = self.heads.dtype.bytes() as u32;
        plan.issued_io(self.heads.head_shape(), bytes, &self.lengths, true)
    }

    /// The row of results, times and errors yet to come.
    pub(crate) fn row(
        &self,
        workload: &StepWorkload,
        config: &PlanConfig,
        plan: &Plan,
        plan_us: f64,
    ) -> Row {
        let bytes_unique = self.bytes_unique();
        let io = self.issued_io(plan);
        Row {
            workload: workload.name.clone(),
            grouping: GroupingArg::name_of(config.grouping).to_owned(),
            max_rows: config.max_rows,
            partial_us: None,
            median_us: 0.0,
            p20_us: 0.0,
            p80_us: 0.0,
            bytes_unique,
            bytes_issued: io.read(),
            bytes_kv: io.kv,
            bytes_written: io.written(),
            max_rel_l2: 0.0,
            max_lse_error: 0.0,
            floor_us: floor_us(bytes_unique, self.flops()),
            best_peer_us: None,
            shares: plan.shares(),
            items: (0..plan.shares())
                .map(|share| plan.share(share).items().len())
                .sum(),
            partial_slots: plan.partial_slots(),
            plan_us,
        }
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

    fn problem(name: &str) -> (StepWorkload, Problem) {
        let workloads = StepWorkload::parse(crate::trees::WORKLOADS).unwrap();
        let workload = workloads.into_iter().find(|w| w.name == name).unwrap();
        let problem = Problem::new(&workload).unwrap();
        (workload, problem)
    }

    #[test]
    fn the_floors_are_those_the_peers_were_held_against() {
        let (workload, problem) = problem("qwen05_tot");
        let mut config = PlanConfig::new(Grouping::Flatten, 7, 64, 66);
        let plan = Planner::new(config).unwrap().plan(&problem.view).unwrap();
        let row = problem.row(&workload, &config, &plan, 0.0);
        assert!((row.floor_us - 1.6).abs() < 0.05, "{}", row.floor_us);
        assert!(row.bytes_kv >= row.bytes_unique);
        config.grouping = Grouping::PerQuery;
        let per_query = Planner::new(config).unwrap().plan(&problem.view).unwrap();
        let again = problem.row(&workload, &config, &per_query, 0.0);
        assert!(again.bytes_kv > 2 * row.bytes_kv, "no sharing reads more");
    }

    #[test]
    fn bytes_and_floors_are_those_of_the_committed_run() {
        let text = include_str!("../../docs/benchmarks/h100-trees.json");
        let run: crate::document::Document<Row> = serde_json::from_str(text).unwrap();
        for name in ["tot_sorting_like", "spec64_ctx4k", "qwen05_tot"] {
            let row = run.rows.iter().find(|row| row.workload == name).unwrap();
            let (_, problem) = problem(name);
            assert_eq!(problem.bytes_unique(), row.bytes_unique, "{name}");
            let floor = floor_us(problem.bytes_unique(), problem.flops());
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
