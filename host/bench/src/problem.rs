//! A workload with K, V and queries.

use anyhow::{Result, ensure};
use deft::attention::AttentionParams;
use deft::cache::DType;
use deft::plan::{Plan, PlanConfig};
use deft::tree::TreeView;
use deft::workload::{StepTree, StepWorkload};

use crate::GroupingArg;
use crate::random::Random;
use crate::report::{Row, floor_us};
use crate::tensors::{Heads, HostPool, random_queries};

/// One layer of a workload, its pages in random order.
pub(crate) struct Problem {
    pub(crate) heads: Heads,
    pub(crate) view: TreeView,
    pub(crate) pool: HostPool,
    pub(crate) q: Vec<u16>,
    pub(crate) lengths: Vec<u32>,
    pub(crate) tail_pages: Vec<u32>,
    unique_tokens: u64,
    path_tokens: u64,
}

impl Problem {
    pub(crate) fn new(workload: &StepWorkload) -> Result<Self> {
        let shape = workload.heads;
        ensure!(
            workload.dtype != DType::F32,
            "the GPU kernels store bf16 and f16, not f32"
        );
        let heads = Heads {
            dtype: workload.dtype,
            kv_heads: shape.kv_heads,
            group: shape.group_size(),
            head_dim: shape.head_dim,
            params: AttentionParams::new(shape.head_dim),
        };
        let built = workload.build(0)?;
        let pages = built.forest.pool().capacity();
        let mut view = built.forest.view(&built.queries)?;
        // The forest hands pages out in order; a cache in use has them anywhere.
        let mut order: Vec<u32> = (0..pages).collect();
        Random::new(1).shuffle(&mut order);
        for page in &mut view.pages {
            *page = order[*page as usize];
        }
        let tail_pages = built.forest.tail_pages().iter();
        Ok(Self {
            pool: HostPool::random(heads, pages, &view, Random::new(2)),
            q: random_queries(&heads, view.queries, Random::new(3)),
            lengths: built.forest.lengths().to_vec(),
            tail_pages: tail_pages
                .map(|&page| order.get(page as usize).copied().unwrap_or(page))
                .collect(),
            unique_tokens: workload
                .trees()
                .iter()
                .flat_map(StepTree::tokens)
                .map(|&t| u64::from(t))
                .sum(),
            path_tokens: workload.trees().iter().map(path_tokens).sum(),
            heads,
            view,
        })
    }

    /// The row of results, times and errors yet to come.
    pub(crate) fn row(
        &self,
        workload: &StepWorkload,
        config: &PlanConfig,
        plan: &Plan,
        plan_us: f64,
    ) -> Row {
        let heads = &self.heads;
        let token_bytes = u64::from(heads.kv_heads * heads.head_dim) * 2 * 2;
        let bytes_unique = self.unique_tokens * token_bytes;
        let flops = self.path_tokens * u64::from(heads.q_heads() * heads.head_dim) * 4;
        let io = plan.issued_io(
            workload.heads,
            heads.dtype.bytes() as u32,
            &self.lengths,
            true,
        );
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
            floor_us: floor_us(bytes_unique, flops),
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

/// Tokens that all queries of a tree see together.
fn path_tokens(tree: &StepTree) -> u64 {
    let mut path = vec![0u64; tree.tokens().len()];
    for (node, (parent, &tokens)) in tree.parents().iter().zip(tree.tokens()).enumerate() {
        let above = parent.map_or(0, |parent| path[parent as usize]);
        path[node] = above + u64::from(tokens);
    }
    tree.queries().iter().map(|&node| path[node as usize]).sum()
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
    fn pages_are_out_of_order_but_each_is_there_once() {
        let (_, problem) = problem("qwen05_tot");
        let mut pages = problem.view.pages.clone();
        assert!(!pages.is_sorted());
        pages.sort_unstable();
        pages.dedup();
        assert_eq!(pages.len(), problem.view.pages.len());
    }
}
