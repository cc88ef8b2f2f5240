//! Scores of tokens: what queries made of them.
//!
//! Of each layer that has keys of its own there is a plane `[cell][64]` of `u32`, a cell being 64 rows of keys of one KV head:
//! native page `page` has cells `page * kv_heads + kv_head`. A score pass computes the probabilities that attention has
//! computed before, from the same queries and the LSE that attention gave, and reduces them over the queries and the query heads
//! of a KV head that see a token. So it reads K once and no V.

use super::{AttentionParams, BackendError, Counters, check_length, check_params};
use crate::attention::check::check_dtype;
use crate::cache::{CacheShape, DType, Elements};
use crate::plan::Plan;

/// How the probabilities `p` of a token are reduced. All start from 0, and a plane holds results of one kind.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Reduce {
    /// The largest `t` of a query for which the token was important: `p >= 1 / t`, in f32 `p * t >= 1`. A `u32`.
    /// (CORM, arXiv 2404.15949.)
    Last,
    /// The sum of `p`. An `f32`.
    Sum,
    /// The largest `p`. An `f32`.
    Max,
}

/// One score pass: of every token that a query sees, `p = exp(logit + bias - lse)`.
#[derive(Debug)]
pub struct Score<'a> {
    /// The layer whose K is read.
    pub layer: u32,
    /// Which queries meet which pages.
    pub plan: &'a Plan,
    /// Lengths of the nodes that still grow.
    pub counters: Counters<'a>,
    /// As in [`Attend::q`](super::Attend::q).
    pub q: Elements<'a>,
    /// What attention of this layer gave for the same queries: `[queries, q_heads]`, natural logarithm.
    pub lse: Elements<'a>,
    /// How many tokens each query sees, itself included (its position plus one): `[queries]`, in the order of the rows of `q`. 0 leaves a
    /// query out.
    pub visible: &'a [u32],
    /// How probabilities become scores.
    pub reduce: Reduce,
    /// Numbers of the model.
    pub params: AttentionParams,
}

/// Checks the arguments of [`Backend::score`](super::Backend::score), but not whether the plan's pages exist.
///
/// # Errors
/// [`BackendError`], naming the argument.
pub fn check_score(shape: &CacheShape, call: &Score<'_>) -> Result<(), BackendError> {
    shape.check_layer(call.layer)?;
    let queries = call.plan.queries() as usize;
    let heads = queries * (call.plan.group_size() * shape.kv_heads) as usize;
    check_dtype(shape, "q", call.q)?;
    let elements = heads * shape.head_dim as usize;
    check_length("q", call.q.len(), elements, "[queries, q_heads, head_dim]")?;
    let (found, expected) = (call.lse.dtype(), DType::F32);
    if found != expected {
        return Err(BackendError::DType { argument: "lse", found, expected });
    }
    check_length("lse", call.lse.len(), heads, "[queries, q_heads]")?;
    check_length("visible", call.visible.len(), queries, "[queries]")?;
    check_params(&call.params)
}

/// Checks the cells of a call, and how many scores go with them.
///
/// # Errors
/// [`BackendError::Page`] for a cell that is not there (a page is `cell / kv_heads`), [`BackendError::Length`].
pub fn check_cells(
    shape: &CacheShape,
    layer: u32,
    cells: &[u32],
    scores: usize,
) -> Result<(), BackendError> {
    shape.check_layer(layer)?;
    for (index, &cell) in cells.iter().enumerate() {
        let (page, pages) = (cell / shape.kv_heads, shape.pages as usize);
        super::check::in_pages("cells", index, page, "the cache", pages)?;
    }
    check_length("scores", scores, cells.len() * 64, "[cells, 64]")
}
