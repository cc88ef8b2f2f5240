//! `deft-bench plan`: what planning costs the host.

use std::hint::black_box;
use std::path::PathBuf;
use std::time::Instant;

use anyhow::{Context, Result, ensure};
use deft::abi::PAGE_TOKENS;
use deft::cache::PagePool;
use deft::plan::{Patch, Plan, PlanConfig, Planner, shares_for};
use deft::tree::{NodeKey, TokenForest, TreeView, ViewScratch};
use serde::{Deserialize, Serialize};

use crate::GroupingArg;
use crate::device::Device;
use crate::document::Document;
use crate::progress::Progress;
use crate::stats::Spread;

/// Multiprocessors and KV heads that plans are made for: an H100 and Llama-3-8B.
const MULTIPROCESSORS: u32 = 132;
const KV_HEADS: u32 = 8;
const GROUP: u32 = 4;
const HEAD_DIM: u32 = 128;
/// Tokens of a star's prompt, and of every other node.
const PROMPT: u32 = 4096;
const NODE_TOKENS: u32 = 128;

/// Times the host's part: views, plans from scratch, growth and patches, by tree and by change.
///
/// Trees are stars (a prompt of 4,096 tokens under 8 to 4096 leaves) and binary trees with as many leaves;
/// plans are for an H100 and Llama-3-8B's heads. Everything runs on one thread; times that others' work on
/// the machine spoils show as a wide p20 to p80.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// Most leaves of a tree; trees have 8, 64, 256, 1024 and 4096.
    #[arg(long, default_value_t = 4096)]
    leaves: u32,
    /// Timed calls a row.
    #[arg(long, default_value_t = 31)]
    iterations: usize,
    /// Where to write the results, tree by tree.
    #[arg(long, value_name = "OUT")]
    json: Option<PathBuf>,
}

/// One change of one tree.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(crate) struct Row {
    pub(crate) tree: String,
    pub(crate) nodes: u32,
    pub(crate) queries: u32,
    pub(crate) change: String,
    pub(crate) grouping: Option<String>,
    pub(crate) median_us: f64,
    pub(crate) p20_us: f64,
    pub(crate) p80_us: f64,
}

/// A forest of one tree.
struct Tree {
    name: &'static str,
    forest: TokenForest,
    leaves: Vec<NodeKey>,
    nodes: u32,
    iterations: usize,
}

/// Runs the command; no row can be wrong.
pub(crate) fn run(args: &Args) -> Result<usize> {
    let sizes = [8, 64, 256, 1024, 4096].into_iter();
    let sizes: Vec<u32> = sizes.filter(|&leaves| leaves <= args.leaves).collect();
    ensure!(!sizes.is_empty(), "--leaves is {}; the smallest tree has 8", args.leaves);
    let iterations = args.iterations.max(1);
    let mut document = Document::new("plan", &Device::Cpu, None);
    let progress = Progress::new(2 * sizes.len());
    progress.say(&document.device);
    progress.say(&format!(
        "{:7} {:>6} {:>8} {:12} {:10} {:>9} {:>8}-{:<8}",
        "tree", "nodes", "queries", "change", "grouping", "us", "p20", "p80"
    ));
    for &leaves in &sizes {
        for build in [Tree::star, Tree::binary] {
            let mut tree = build(leaves, iterations)?;
            progress.doing(&format!("{} of {leaves} leaves", tree.name));
            let rows = tree.measure()?;
            rows.iter().for_each(|row| progress.say(&row.line()));
            document.rows.extend(rows);
            progress.step();
            document.write(args.json.as_deref())?;
        }
    }
    Ok(0)
}

impl Tree {
    fn star(leaves: u32, iterations: usize) -> Result<Self> {
        let mut forest = Self::empty(leaves, iterations)?;
        let root = forest.insert_root(PROMPT)?;
        let children = forest.fork(root, leaves as usize)?;
        forest.extend(&children, NODE_TOKENS)?;
        Ok(Self { name: "star", forest, leaves: children, nodes: leaves + 1, iterations })
    }

    fn binary(leaves: u32, iterations: usize) -> Result<Self> {
        let mut forest = Self::empty(leaves, iterations)?;
        let mut level = vec![forest.insert_root(NODE_TOKENS)?];
        let mut nodes = 1;
        while level.len() < leaves as usize {
            let mut below = Vec::with_capacity(2 * level.len());
            for node in level {
                below.extend(forest.fork(node, 2)?);
            }
            forest.extend(&below, NODE_TOKENS)?;
            nodes += below.len() as u32;
            level = below;
        }
        Ok(Self { name: "binary", forest, leaves: level, nodes, iterations })
    }

    /// Room for a tree and all that its leaves grow by.
    fn empty(leaves: u32, iterations: usize) -> Result<TokenForest> {
        let filled = PROMPT / PAGE_TOKENS + 2 * leaves * NODE_TOKENS.div_ceil(PAGE_TOKENS);
        // A page a leaf and call, and one for the patch, for each of three sizes of growth.
        let grown = 3 * (iterations as u32 + 1) * leaves;
        Ok(TokenForest::new(PagePool::new(filled + grown)?))
    }

    fn measure(&mut self) -> Result<Vec<Row>> {
        let mut rows = Vec::new();
        let (mut scratch, mut view) = (ViewScratch::default(), TreeView::default());
        let time = self.time(|tree| {
            let seen = tree.forest.view_into(&tree.leaves, &mut scratch, &mut view);
            Ok(seen?)
        })?;
        rows.push(self.row("view", None, time));
        for grouping in GroupingArg::ALL {
            let mut planner = planner(grouping)?;
            let mut plan = Plan::empty();
            let time = self.time(|_| Ok(planner.plan_into(black_box(&view), &mut plan)?))?;
            rows.push(self.row("plan", Some(grouping), time));
        }
        let all = self.leaves.len();
        let mut sizes = vec![1, (all / 16).max(2), all];
        sizes.dedup();
        for growing in sizes {
            self.measure_growth(growing, &mut rows)?;
        }
        Ok(rows)
    }

    /// `growing` leaves enter a page each: what that costs the forest, and what it costs a plan.
    fn measure_growth(&mut self, growing: usize, rows: &mut Vec<Row>) -> Result<()> {
        let view = self.forest.view(&self.leaves)?;
        let mut plans = Vec::new();
        for grouping in GroupingArg::ALL {
            plans.push((grouping, planner(grouping)?.plan(&view)?));
        }
        let cursor = self.forest.growth_cursor();
        self.forest.extend(&self.leaves[..growing], PAGE_TOKENS)?;
        let growth = self.forest.growth_since(cursor);
        let growth = growth.context("growing changes no shape")?.to_vec();
        for (grouping, plan) in plans {
            let change = format!("patch-{growing}");
            let mut dirty = Vec::new();
            let mut copy = plan.clone();
            let mut samples = Vec::with_capacity(self.iterations);
            for _ in 0..self.iterations {
                copy.clone_from(&plan);
                let begin = Instant::now();
                let patch = copy.patch(black_box(&growth), &mut dirty);
                samples.push(begin.elapsed().as_secs_f64() * 1e6);
                ensure!(patch == Patch::Patched, "{change} found no room in a new plan");
            }
            rows.push(self.row(&change, Some(grouping), Spread::of(samples)));
        }
        let time = self.time(|tree| {
            let cursor = tree.forest.growth_cursor();
            tree.forest.extend(&tree.leaves[..growing], PAGE_TOKENS)?;
            black_box(tree.forest.growth_since(cursor));
            Ok(())
        })?;
        rows.push(self.row(&format!("growth-{growing}"), None, time));
        Ok(())
    }

    /// Microseconds of `work`.
    fn time(&mut self, mut work: impl FnMut(&mut Self) -> Result<()>) -> Result<Spread> {
        let mut samples = Vec::with_capacity(self.iterations);
        for _ in 0..self.iterations {
            let begin = Instant::now();
            work(self)?;
            samples.push(begin.elapsed().as_secs_f64() * 1e6);
        }
        Ok(Spread::of(samples))
    }

    fn row(&self, change: &str, grouping: Option<GroupingArg>, time: Spread) -> Row {
        Row {
            tree: self.name.to_owned(),
            nodes: self.nodes,
            queries: self.leaves.len() as u32,
            change: change.to_owned(),
            grouping: grouping.map(|grouping| grouping.name().to_owned()),
            median_us: time.median,
            p20_us: time.p20,
            p80_us: time.p80,
        }
    }
}

fn planner(grouping: GroupingArg) -> Result<Planner> {
    let shares = shares_for(MULTIPROCESSORS, KV_HEADS);
    let config = PlanConfig::new(grouping.into(), GROUP, HEAD_DIM, shares);
    Ok(Planner::new(config)?)
}

impl Row {
    fn line(&self) -> String {
        format!(
            "{:7} {:6} {:8} {:12} {:10} {:9.2} {:8.2}-{:<8.2}",
            self.tree,
            self.nodes,
            self.queries,
            self.change,
            self.grouping.as_deref().unwrap_or("-"),
            self.median_us,
            self.p20_us,
            self.p80_us
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_tree_has_a_row_a_change_and_grouping() {
        for build in [Tree::star, Tree::binary] {
            let mut tree = build(64, 2).unwrap();
            let rows = tree.measure().unwrap();
            // A view and its plans; then patches and growth of 1, 4 and 64 leaves.
            assert_eq!(rows.len(), 1 + 4 + 3 * (4 + 1));
            for change in ["view", "plan", "patch-1", "patch-4", "patch-64", "growth-64"] {
                assert!(rows.iter().any(|row| row.change == change), "{change}");
            }
            assert!(rows.iter().all(|row| row.queries == 64));
            assert_eq!(rows[0].nodes, if tree.name == "star" { 65 } else { 127 });
        }
    }
}
