//! What candidates cost at least, so that one that could not be best is not made.

use super::choose::Request;
use super::cost::Costs;
use super::node::unit_ns;
use super::sequence::Sequence;
use kernels_gpu::layout::CORE;

/// What candidates cost at least, whatever they leave to merge.
pub(super) struct Floors<'a> {
    costs: &'a Costs,
    /// The least that all pages cost, in whichever items.
    work: f64,
    /// Reading every page once.
    memory: f64,
    /// Node's items, and the costliest of them.
    nodes: f64,
    node: f64,
    /// All paths.
    paths: f64,
}

impl<'a> Floors<'a> {
    pub(super) fn of(request: Request<'a>) -> Self {
        let Request { view, config, costs } = request;
        let mut floors = Self { costs, work: 0.0, memory: 0.0, nodes: 0.0, node: 0.0, paths: 0.0 };
        let one = costs.rates(1);
        let max_queries = config.max_queries();
        for run in &view.runs {
            let queries = run.queries.end - run.queries.start;
            if queries == 0 || run.tokens == 0 {
                continue;
            }
            let bytes = f64::from(run.tokens.div_ceil(CORE)) * costs.reading(run.format).weight;
            let groups = f64::from(costs.groups(run.tokens)) * costs.reading(run.format).weight;
            let tiles = queries.div_ceil(max_queries);
            let tile = costs.rates(queries.div_ceil(tiles)).of(tiles > 1);
            floors.memory += bytes * costs.memory_group_ns / f64::from(config.shares);
            floors.nodes += f64::from(tiles) * (groups * tile + costs.item_ns);
            floors.node = floors.node.max(groups * tile + costs.item_ns);
            // Paths leave out the masked pages that their query does not see.
            if run.mask.is_none() {
                floors.work += costs.least_ns(groups, queries);
                floors.paths += groups * f64::from(queries) * one.of(queries > 1);
            }
        }
        floors
    }

    pub(super) fn any(&self, shares: u32) -> f64 {
        let work = self.work / f64::from(shares) + self.costs.item_ns;
        self.costs.launch_ns + work.max(self.memory)
    }

    pub(super) fn nodes(&self, shares: u32) -> f64 {
        self.costs.launch_ns + self.node.max(self.nodes / f64::from(shares))
    }

    pub(super) fn paths(&self, shares: u32) -> f64 {
        self.costs.launch_ns + self.paths / f64::from(shares) + self.costs.item_ns
    }
}

/// What whole units cost at least.
pub(super) fn units_floor(sequence: &Sequence, costs: &Costs, shares: u32) -> f64 {
    let (mut all, mut costliest) = (0.0, 0.0f64);
    for unit in &sequence.units {
        let ns = unit_ns(unit, costs);
        all += ns;
        costliest = costliest.max(ns);
    }
    costs.launch_ns + costliest.max(all / f64::from(shares))
}
