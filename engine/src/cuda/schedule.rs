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

/// The plan of a pass, and where its rows are in the forest. Rows are in the order in which nodes were asked for.
#[derive(Debug)]
pub(super) struct Schedule {
    planner: Planner,
    plan: Plan,
    view: TreeView,
    scratch: ViewScratch,
    /// Nodes, each with as many of its last tokens as have a row.
    asked: Vec<(NodeKey, u32)>,
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
        let cursor = self.cursor.filter(|_| self.is_of(nodes));
        if let Some(growth) = cursor.and_then(|cursor| forest.growth_since(cursor)) {
            if growth.is_empty() {
                return Ok(Change::Nothing);
            }
            if self.plan.patch(growth, &mut self.dirty) == Patch::Patched {
                self.cursor = Some(forest.growth_cursor());
                return Ok(Change::Pages);
            }
        }
        self.ask(nodes.iter().map(|&node| (node, 1)));
        self.plan_anew(forest, true)?;
        self.cursor = Some(forest.growth_cursor());
        Ok(Change::Everything)
    }

    /// Plans the last `tokens` tokens of `node`, in their order.
    pub(super) fn plan_prompt(
        &mut self,
        forest: &TokenForest,
        node: NodeKey,
        tokens: u32,
    ) -> Result<(), CacheError> {
        self.ask([(node, tokens)].into_iter());
        self.plan_anew(forest, false)
    }

    fn is_of(&self, nodes: &[NodeKey]) -> bool {
        let asked = self.asked.iter().copied();
        asked.eq(nodes.iter().map(|&node| (node, 1)))
    }

    fn ask(&mut self, nodes: impl Iterator<Item = (NodeKey, u32)>) {
        self.cursor = None;
        self.asked.clear();
        self.asked.extend(nodes);
    }

    /// Plans what was asked for; with `steps` the tokens are those of a step, which the device may count.
    fn plan_anew(&mut self, forest: &TokenForest, steps: bool) -> Result<(), CacheError> {
        forest.view_tokens_into(&self.asked, &mut self.scratch, &mut self.view)?;
        self.planner.plan_into(&self.view, &mut self.plan)?;
        self.targets.clear();
        for &(node, tokens) in &self.asked {
            add_targets(forest, node, tokens, steps, &mut self.targets)?;
        }
        Ok(())
    }

    /// Adds each row's position to `positions`: tokens before it on its path.
    pub(super) fn positions(
        &self,
        forest: &TokenForest,
        positions: &mut Vec<u32>,
    ) -> Result<(), ForestError> {
        for &(node, tokens) in &self.asked {
            // A context is far below 2^32.
            let end = forest.context_length(node)? as u32;
            positions.extend(end - tokens..end);
        }
        Ok(())
    }

    /// The plan.
    pub(super) fn plan(&self) -> &Plan {
        &self.plan
    }
    /// Words of the plan that the last patch changed.
    #[cfg(test)]
    pub(super) fn dirty(&self) -> &[Range<u32>] {
        &self.dirty
    }
    /// Number of rows.
    pub(super) fn rows(&self) -> usize {
        self.targets.len()
    }
    /// Where each row's K and V go.
    pub(super) fn targets(&self) -> &[AppendTarget] {
        &self.targets
    }
}

/// Adds where the node's newest tokens go: in steps by its counter if it grows, so that the word serves later ones too.
fn add_targets(
    forest: &TokenForest,
    node: NodeKey,
    tokens: u32,
    steps: bool,
    targets: &mut Vec<AppendTarget>,
) -> Result<(), ForestError> {
    if steps && !forest.is_draft(node)? && !forest.is_sealed(node)? {
        return forest.live_targets(&[node], targets);
    }
    let length = forest.length(node)?;
    forest.append_targets(node, length - tokens..length, targets)
}

#[cfg(test)]
mod tests;
