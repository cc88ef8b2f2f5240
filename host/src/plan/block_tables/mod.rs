//! Sharing found by itself: sequences whose block tables begin alike are a tree.
//!
//! A page of such a plan is 64 tokens of a sequence, and its id is where its blocks begin in the tables: `64 / page_size`
//! entries of one row. So nothing is listed twice, and a sequence that gets a block within a page keeps its plan.

mod runs;
mod shared;
mod tables;

use std::ops::Range;
use std::sync::atomic::{AtomicU64, Ordering};

use kernels_gpu::abi::PAGE_TOKENS;

pub use self::tables::{BlockTables, BlockTablesError};

use self::runs::{push_own, push_pages};
use self::shared::{Found, Tree};
use super::{Patch, Plan, PlanConfig, PlanUpdate, Planner};
use crate::tree::{Growth, TreeView, close_query_ranges, run};

/// A plan of attention over somebody else's paged cache, and what it was made of.
///
/// Sequences that begin with the same full blocks read them once. Blocks that are only partly a sequence's, and those
/// that hold tokens with queries, are each sequence's own.
#[derive(Debug)]
pub struct PagedPlan {
    planner: Planner,
    held: Held,
    /// Memory of the next.
    next: Held,
    tree: Tree,
    /// Sequences whose ids are others than before.
    changed: Vec<usize>,
    growth: Vec<Growth>,
    dirty: Vec<Range<u32>>,
    number: u64,
}

/// What a plan is of.
#[derive(Debug, Default)]
struct Held {
    plan: Plan,
    view: TreeView,
    ids: Vec<i32>,
    stride: usize,
    page_size: u32,
    /// One more than the largest id.
    blocks: u32,
    /// One query a sequence, so lengths may grow.
    grows: bool,
    /// Different blocks that sequences share.
    shared_blocks: u64,
    /// Blocks of each sequence before its own.
    shared: Vec<u32>,
    /// Tokens of each sequence behind those: the plan's counters.
    own: Vec<u32>,
    /// Pages of them that the plan has.
    pages: Vec<u32>,
}

impl PagedPlan {
    /// Plans `tables` for heads and workers as `config` has them.
    ///
    /// # Errors
    /// [`BlockTablesError`], naming the argument.
    pub fn new(config: PlanConfig, tables: &BlockTables<'_>) -> Result<Self, BlockTablesError> {
        let mut plan = Self {
            planner: Planner::new(config)?,
            held: Held::default(),
            next: Held::default(),
            tree: Tree::default(),
            changed: Vec::new(),
            growth: Vec::new(),
            dirty: Vec::new(),
            number: 0,
        };
        plan.update(tables)?;
        Ok(plan)
    }

    /// Plans `tables` in place of what was planned before. Where sequences with a query each have only grown, the plan is
    /// kept or patched; sharing that has begun since is then not looked for.
    ///
    /// # Errors
    /// As [`PagedPlan::new`]; the plan is then as it was.
    pub fn update(&mut self, tables: &BlockTables<'_>) -> Result<PlanUpdate, BlockTablesError> {
        let held = &self.held;
        let alike = held.is_like(tables);
        let known = |sequence| if alike { held.used(sequence) } else { &[] };
        let blocks = tables.check(known, &mut self.changed)?;
        static NEXT: AtomicU64 = AtomicU64::new(1);
        let number = NEXT.fetch_add(1, Ordering::Relaxed);
        if alike && let Some(update) = self.grow(tables) {
            self.number = number;
            self.held.blocks = blocks.max(self.held.blocks);
            return Ok(update);
        }
        self.tree.find(tables);
        self.next.fill(tables, &self.tree);
        self.next.blocks = if alike { blocks.max(self.held.blocks) } else { blocks };
        self.planner.plan_into(&self.next.view, &mut self.next.plan)?;
        std::mem::swap(&mut self.held, &mut self.next);
        self.number = number;
        Ok(PlanUpdate::Replanned)
    }

    /// Takes longer sequences into the plan as it is, if it is still right.
    fn grow(&mut self, tables: &BlockTables<'_>) -> Option<PlanUpdate> {
        let held = &mut self.held;
        let steps = tables.masks.is_empty() && tables.queries.iter().all(|&queries| queries == 1);
        if !held.grows || !steps {
            return None;
        }
        let row = |at: usize| at * tables.stride..(at + 1) * tables.stride;
        for &at in &self.changed {
            let shared = held.shared[at] as usize;
            if tables.row(at)[..shared] != held.ids[row(at)][..shared] {
                return None;
            }
        }
        self.growth.clear();
        for (at, (&shared, &pages)) in held.shared.iter().zip(&held.pages).enumerate() {
            let own = tables.len(at).checked_sub(shared * tables.page_size)?.div_ceil(PAGE_TOKENS);
            if own < pages {
                return None; // Only the last page follows the counter.
            }
            let step = PAGE_TOKENS / tables.page_size;
            for page in pages..own {
                let page = row(at).start as u32 + shared + page * step;
                self.growth.push(Growth { length_slot: at as u32, page });
            }
        }
        if held.plan.patch(&self.growth, &mut self.dirty) == Patch::Stale {
            return None;
        }
        for (at, (own, pages)) in held.own.iter_mut().zip(&mut held.pages).enumerate() {
            *own = tables.len(at) - held.shared[at] * tables.page_size;
            *pages = own.div_ceil(PAGE_TOKENS);
        }
        for &at in &self.changed {
            held.ids[row(at)].copy_from_slice(tables.row(at));
        }
        let patched = !self.growth.is_empty();
        Some(if patched { PlanUpdate::Patched } else { PlanUpdate::Unchanged })
    }

    /// The plan. Its page ids are indices of [`PagedPlan::ids`], its length counters [`PagedPlan::lengths`].
    pub fn plan(&self) -> &Plan {
        &self.held.plan
    }
    /// The tree that was found; queries in order of the caller's rows by [`TreeView::query_order`].
    pub fn view(&self) -> &TreeView {
        &self.held.view
    }
    /// The block tables: `[sequences, stride]`.
    pub fn ids(&self) -> &[i32] {
        &self.held.ids
    }
    /// The ids that are read, each with its index in [`PagedPlan::ids`].
    pub(crate) fn used_ids(&self) -> impl Iterator<Item = (usize, &i32)> {
        let held = &self.held;
        let rows = (0..held.own.len()).map(move |at| (at * held.stride..).zip(held.used(at)));
        rows.flatten()
    }
    /// Another one after every update, in the whole process: who keeps a copy need not compare.
    #[cfg_attr(not(feature = "cuda"), expect(dead_code, reason = "only devices ask"))]
    pub(crate) fn number(&self) -> u64 {
        self.number
    }
    /// Tokens of a block.
    pub fn page_size(&self) -> u32 {
        self.held.page_size
    }
    /// How many blocks a cache must have.
    pub fn blocks(&self) -> u32 {
        self.held.blocks
    }
    /// The plan's counters: tokens of each sequence that are its own, behind those that it shares.
    pub fn lengths(&self) -> &[u32] {
        &self.held.own
    }
    /// Tokens that the sequences' queries see, counted once a sequence, and how many different ones they are.
    pub fn tokens(&self) -> [u64; 2] {
        let Held { own, shared, page_size, shared_blocks, .. } = &self.held;
        let sum = |counts: &[u32]| counts.iter().map(|&count| u64::from(count)).sum::<u64>();
        let of_blocks = |blocks: u64| blocks * u64::from(*page_size) + sum(own);
        [of_blocks(sum(shared)), of_blocks(*shared_blocks)]
    }
}

impl Held {
    /// Whether sequences of `tables` are where those of the plan are.
    fn is_like(&self, tables: &BlockTables<'_>) -> bool {
        (self.stride, self.page_size) == (tables.stride, tables.page_size)
            && self.own.len() == tables.lens.len()
    }

    /// The ids of a sequence that are read.
    fn used(&self, sequence: usize) -> &[i32] {
        let used = self.shared[sequence] + self.own[sequence].div_ceil(self.page_size);
        &self.ids[sequence * self.stride..][..used as usize]
    }

    /// Makes the view of `tables` and of the tree that was found in them.
    fn fill(&mut self, tables: &BlockTables<'_>, tree: &Tree) {
        let sequences = tables.lens.len();
        self.ids.clear();
        self.ids.extend_from_slice(tables.ids);
        (self.stride, self.page_size) = (tables.stride, tables.page_size);
        self.grows = tables.masks.is_empty() && (0..sequences).all(|at| tables.queries(at) == 1);
        for counts in [&mut self.shared, &mut self.own, &mut self.pages] {
            counts.clear();
            counts.resize(sequences, 0);
        }
        self.shared_blocks = 0;
        let view = &mut self.view;
        view.runs.clear();
        view.pages.clear();
        view.masks.clear();
        view.query_order.clear();
        tree.walk(|node, parent| {
            match node {
                Found::Shared { sequence, blocks } => {
                    self.shared_blocks += u64::from(blocks.end - blocks.start);
                    let query = view.query_order.len() as u32;
                    let tokens = (blocks.end - blocks.start) * tables.page_size;
                    let pages = push_pages(view, tables, sequence, blocks);
                    view.runs.push(run(parent, query..query, tokens, pages));
                }
                Found::Own { sequence, begin } => {
                    let at = sequence as usize;
                    self.shared[at] = begin;
                    self.own[at] = tables.len(at) - begin * tables.page_size;
                    self.pages[at] = self.own[at].div_ceil(PAGE_TOKENS);
                    push_own(view, tables, tree.rows[at], (sequence, begin, self.own[at]), parent);
                }
            }
            view.runs.len() as u32 - 1
        });
        view.queries = view.query_order.len() as u32;
        close_query_ranges(&mut view.runs);
    }
}
