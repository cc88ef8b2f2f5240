//! From a view of a forest to a plan.

use kernels_gpu::abi::PAGE_TOKENS;

use super::check::check;
use super::choose::{Chooser, Request};
use super::cost::{CostModel, Costs};
use super::encode::Encoder;
use super::program::Plan;
use super::{PlanConfig, PlanError};
use crate::tree::TreeView;

/// Makes plans. It owns what planning needs besides the plan, so that planning again allocates nothing.
#[derive(Debug)]
pub struct Planner {
    config: PlanConfig,
    costs: Costs,
    ancestors: Vec<(u32, u32)>,
    chooser: Chooser,
    encoder: Encoder,
}

impl Planner {
    /// A planner for one configuration.
    ///
    /// # Errors
    /// [`PlanError::OutOfRange`] or [`PlanError::BadCost`], naming the field.
    pub fn new(config: PlanConfig) -> Result<Self, PlanError> {
        config.validate()?;
        Ok(Self {
            costs: Costs::new(
                &config.cost,
                config.group_size,
                config.head_dim,
                config.element_bytes,
            ),
            config,
            ancestors: Vec::new(),
            chooser: Chooser::default(),
            encoder: Encoder::default(),
        })
    }

    /// What this planner was told.
    pub fn config(&self) -> &PlanConfig {
        &self.config
    }

    /// Plans `view`.
    ///
    /// # Errors
    /// If `view` has no queries or too many, contradicts itself, or needs a plan too large for its
    /// 32-bit indices.
    pub fn plan(&mut self, view: &TreeView) -> Result<Plan, PlanError> {
        let mut plan = Plan::empty();
        self.plan_into(view, &mut plan)?;
        Ok(plan)
    }

    /// Plans `view` into the memory of an old plan.
    ///
    /// # Errors
    /// As [`Planner::plan`]. `plan` is then unchanged if the view was at fault, and empty (no queries,
    /// no shares) if the plan would have been too large.
    pub fn plan_into(&mut self, view: &TreeView, plan: &mut Plan) -> Result<(), PlanError> {
        check(view, &mut self.ancestors)?;
        let Self { config, costs, chooser, encoder, .. } = self;
        let score = chooser.choose(Request { view, config, costs })?;
        let (draft, merge) = (&chooser.best, &chooser.merge);
        plan.clear();
        if let Err(error) = encoder.encode(view, config, draft, plan) {
            plan.clear();
            return Err(error);
        }
        plan.grouping = config.grouping;
        plan.group_size = config.group_size;
        plan.queries = view.queries;
        plan.shares = draft.share_ns.len() as u32;
        plan.predicted_ns = score.ns.round() as u64;
        plan.reuse_pages = score.reuse_pages.ceil() as u64;
        plan.partial_slots = merge.partial_slots;
        plan.merge_rows.clone_from(&merge.rows);
        plan.merge_slots.clone_from(&merge.slots);
        plan.residues.clone_from(&merge.residues);
        plan.share_ns.extend(draft.share_ns.iter().map(|&ns| ns.round() as u64));
        Ok(())
    }

    /// Plans a pass over `view` that leaves nothing to merge, as scores are, with a planner of
    /// [`Grouping::NodeChunk`](super::Grouping::NodeChunk): chunks are as long as makes shares even.
    pub(crate) fn plan_scores_into(
        &mut self,
        view: &TreeView,
        plan: &mut Plan,
    ) -> Result<(), PlanError> {
        let most = self.config.max_queries();
        let tokens = view.runs.iter().map(|run| {
            let tiles = (run.queries.end - run.queries.start).div_ceil(most);
            u64::from(run.tokens) * u64::from(tiles)
        });
        let pages = tokens.sum::<u64>().div_ceil(u64::from(PAGE_TOKENS));
        self.config.chunk_pages = pages.div_ceil(self.config.shares.into()).max(1) as u32;
        self.plan_into(view, plan)?;
        plan.leave_out_decoded();
        plan.partial_slots = 0;
        plan.merge_rows.clear();
        plan.merge_slots.clear();
        Ok(())
    }

    /// What the plan made last would take by other costs, in nanoseconds: a measured time is that of a plan, and
    /// stays so while constants are fitted to it. 0 if nothing was planned.
    ///
    /// # Panics
    /// It may, if `view` is not what was planned.
    pub fn predict_ns(&mut self, view: &TreeView, cost: &CostModel) -> f64 {
        if self.chooser.best.share_ns.is_empty() {
            return 0.0;
        }
        let PlanConfig { group_size, head_dim, element_bytes, .. } = self.config;
        let costs = Costs::new(cost, group_size, head_dim, element_bytes);
        self.chooser.rescore(view, &costs).ns
    }
}
