//! What a pass runs: which token is in which row, and the plan that says what it sees. No device here.

use std::ops::Range;

use deft::CacheError;
use deft::abi::AppendTarget;
use deft::plan::{Patch, Plan, PlanConfig, PlanError, Planner};
use deft::tree::{ForestError, GrowthCursor, NodeKey, TokenForest, TreeView, ViewScratch};

/// What [`Schedule::update`] had to do, and so what a device that held the plan lacks.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Change {
    /// Nothing: growth stayed within pages.
    Nothing,
    /// New pages: [`Schedule::dirty`] names the plan's words that changed.
    Pages,
    /// A new plan, with other rows.
    Everything,
}

/// The plan of a pass over some nodes, and the order of their rows.
///
/// Rows are the plan's queries, depth first, so row `r` is of node `order[r]` of those that were asked for.
#[derive(Debug)]
pub(super) struct Schedule {
    planner: Planner,
    plan: Plan,
    view: TreeView,
    scratch: ViewScratch,
    asked: Vec<NodeKey>,
    order: Vec<u32>,
    targets: Vec<AppendTarget>,
    cursor: Option<GrowthCursor>,
    dirty: Vec<Range<u32>>,
}

impl Schedule {
    pub(super) fn new(config: PlanConfig) -> Result<Self, PlanError> {
        Ok(Self {
            planner: Planner::new(config)?,
            plan: Plan::empty(),
            view: TreeView::default(),
            scratch: ViewScratch::default(),
            asked: Vec::new(),
            order: Vec::new(),
            targets: Vec::new(),
            cursor: None,
            dirty: Vec::new(),
        })
    }

    /// Brings the plan up to date for a query at each of `nodes`, whose newest token is in the forest.
    pub(super) fn update(
        &mut self,
        forest: &TokenForest,
        nodes: &[NodeKey],
    ) -> Result<Change, CacheError> {
        let cursor = self.cursor.filter(|_| self.asked == nodes);
        if let Some(growth) = cursor.and_then(|cursor| forest.growth_since(cursor)) {
            if growth.is_empty() {
                return Ok(Change::Nothing);
            }
            if self.plan.patch(growth, &mut self.dirty) == Patch::Patched {
                self.cursor = Some(forest.growth_cursor());
                return Ok(Change::Pages);
            }
        }
        self.cursor = None;
        self.plan_anew(forest, nodes)?;
        Ok(Change::Everything)
    }

    fn plan_anew(&mut self, forest: &TokenForest, nodes: &[NodeKey]) -> Result<(), CacheError> {
        forest.view_into(nodes, &mut self.scratch, &mut self.view)?;
        self.planner.plan_into(&self.view, &mut self.plan)?;
        self.asked.clear();
        self.asked.extend_from_slice(nodes);
        self.order.clone_from(&self.view.query_order);
        self.targets.clear();
        for &at in &self.order {
            add_target(forest, nodes[at as usize], &mut self.targets)?;
        }
        self.cursor = Some(forest.growth_cursor());
        Ok(())
    }

    /// Adds each row's position to `positions`: tokens before its newest on its path.
    pub(super) fn positions(
        &self,
        forest: &TokenForest,
        positions: &mut Vec<u32>,
    ) -> Result<(), ForestError> {
        for &at in &self.order {
            let tokens = forest.context_length(self.asked[at as usize])?;
            // A context is far below 2^32.
            positions.push((tokens - 1) as u32);
        }
        Ok(())
    }

    /// The plan.
    pub(super) fn plan(&self) -> &Plan {
        &self.plan
    }
    /// Words of the plan that the last patch changed.
    pub(super) fn dirty(&self) -> &[Range<u32>] {
        &self.dirty
    }
    /// Row `r` is of node `order[r]`.
    pub(super) fn order(&self) -> &[u32] {
        &self.order
    }
    /// Where each row's K and V go.
    pub(super) fn targets(&self) -> &[AppendTarget] {
        &self.targets
    }
    /// Whether row `r` is of node `r`.
    pub(super) fn in_order(&self) -> bool {
        (0..).zip(&self.order).all(|(row, &at)| row == at)
    }
}

/// Adds where the node's newest token goes: by its counter if it grows, so that the word serves later steps too.
fn add_target(
    forest: &TokenForest,
    node: NodeKey,
    targets: &mut Vec<AppendTarget>,
) -> Result<(), ForestError> {
    if !forest.is_draft(node)? && !forest.is_sealed(node)? {
        return forest.live_targets(&[node], targets);
    }
    let length = forest.length(node)?;
    forest.append_targets(node, length - 1..length, targets)
}

#[cfg(test)]
mod tests;
