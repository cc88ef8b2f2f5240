//! Attention over tokens that lie on several ranks, where heads do not suffice to share them.
//!
//! Each rank attends to the pages that it has, of all heads, and gives outputs with their LSE. Those are partial results
//! like any others: the merge is the one of a plan's pieces.

use kernels_gpu::softmax::{Math, Partial};

use super::{Communicator, RankError};

/// The processor's functions.
struct Std;

impl Math for Std {
    fn exp2(x: f32) -> f32 {
        x.exp2()
    }

    fn log2(x: f32) -> f32 {
        x.log2()
    }
}

/// Merges what every rank's tokens give: `out`, `[rows, width]`, and `lse`, `[rows]`, the natural logarithm of the sum of
/// `exp(logit)`, as [`TreeCache::attend`](deft::TreeCache::attend) gives them with
/// [`Out::with_lse`](deft::Out::with_lse); a row is a query of one query head. Both become those over all ranks' tokens,
/// the same bits on all ranks. A rank that has no token of a row brings an LSE of -inf.
///
/// # Errors
/// [`RankError::Argument`] for an `out` that is not of `lse`'s rows; [`RankError`] of the others.
pub fn merge_partials(
    ranks: &mut dyn Communicator,
    out: &mut [f32],
    lse: &mut [f32],
) -> Result<(), RankError> {
    if lse.is_empty() || !out.len().is_multiple_of(lse.len()) {
        let expected = format!("a multiple of the rows of lse, {}", lse.len());
        return Err(RankError::argument("out.len()", out.len(), expected));
    }
    if ranks.ranks() == 1 {
        return Ok(());
    }
    let width = out.len() / lse.len();
    let all = ranks.all_gather(&[&*out, &*lse].concat())?;
    if let Some(rank) = all.iter().position(|part| part.len() != out.len() + lse.len()) {
        let said = |part: &[f32]| format!("a merge of {} numbers", part.len());
        return Err(RankError::differs(rank as u32, said(&all[rank]), said(&all[0])));
    }
    for (row, (out, lse)) in out.chunks_exact_mut(width).zip(lse).enumerate() {
        let mut merged = Partial::EMPTY;
        out.fill(0.0);
        for part in &all {
            let (outs, lses) = part.split_at(part.len() - part.len() / (width + 1));
            let lse2 = lses[row] * std::f32::consts::LOG2_E;
            let both = merged.merge::<Std>(Partial::from_lse(lse2));
            merged = both.partial;
            for (sum, &part) in out.iter_mut().zip(&outs[row * width..]) {
                *sum = *sum * both.first + part * both.second;
            }
        }
        out.iter_mut().for_each(|sum| *sum *= merged.normalizer());
        *lse = merged.lse2::<Std>() * std::f32::consts::LN_2;
    }
    Ok(())
}
