//! Bytes that attention methods move in a step, by the formulas of the DeFT paper.

use deft::plan::{Grouping, HeadShape};
use deft::tree::{Run, TreeView};

/// An attention method of the paper's IO tables.
#[non_exhaustive]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum PaperMethod {
    /// Flash-Decoding and Radix attention: every query reads its path.
    FlashDecoding,
    /// Tree attention as in Medusa: KV once, but all logits of all queries go through memory.
    Medusa,
    /// DeFT-Node and DeFT-Node-Chunk.
    DeftNode,
    /// DeFT-Flatten.
    DeftFlatten,
}

impl From<Grouping> for PaperMethod {
    fn from(grouping: Grouping) -> Self {
        match grouping {
            Grouping::PerQuery => Self::FlashDecoding,
            Grouping::Node | Grouping::NodeChunk => Self::DeftNode,
            _ => Self::DeftFlatten,
        }
    }
}

/// Bytes of one layer's attention in one step, by the formulas of the paper.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct PaperIo {
    /// K and V: `2 d sum(N_i)` a query at a time, `2 d N_tree` otherwise (Tables 11 and 12), with `d` =
    /// query heads x head dimension.
    pub kv: u64,
    /// Logits in memory: QK^T, scaled, masked and softmaxed, each `2 l_n N_tree` (Table 12), a query
    /// head at a time.
    pub logits: u64,
    /// Masks: `l_n N_tree` elements for Medusa (Table 12), a 64-bit word a token for DeFT-Flatten.
    pub mask: u64,
}

impl PaperIo {
    /// What the paper's formulas give for a step of `view`: `N_tree` tokens, `l_n` queries with `N_i`
    /// tokens each.
    pub fn of(view: &TreeView, method: PaperMethod, heads: HeadShape, element_bytes: u32) -> Self {
        let element = u64::from(element_bytes);
        let seen = view.runs.iter().filter(|run| !run.queries.is_empty());
        let tree: u64 = seen.clone().map(|run| u64::from(run.tokens)).sum();
        let queries = u64::from(view.queries);
        let token = 2 * u64::from(heads.q_heads) * u64::from(heads.head_dim) * element;
        match method {
            PaperMethod::FlashDecoding => Self {
                kv: token * seen.map(|run| seen_tokens(view, run)).sum::<u64>(),
                ..Self::default()
            },
            PaperMethod::Medusa => Self {
                kv: token * tree,
                logits: 4 * 2 * queries * tree * u64::from(heads.q_heads) * element,
                mask: queries * tree * element,
            },
            PaperMethod::DeftNode => Self { kv: token * tree, ..Self::default() },
            PaperMethod::DeftFlatten => {
                Self { kv: token * tree, mask: 8 * tree, ..Self::default() }
            }
        }
    }
}

/// Tokens of a run, counted once for each query that sees them.
fn seen_tokens(view: &TreeView, run: &Run) -> u64 {
    let width = run.queries.end - run.queries.start;
    let Some(mask) = run.mask else {
        return u64::from(run.tokens) * u64::from(width);
    };
    let words = u64::from(run.pages.end - run.pages.start) * u64::from(width);
    let masks = &view.masks[mask as usize..mask as usize + words as usize];
    masks.iter().map(|bits| u64::from(bits.count_ones())).sum()
}
