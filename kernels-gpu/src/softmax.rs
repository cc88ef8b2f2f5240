//! The running softmax of one query row, and how partial results merge.
//!
//! Attention over any split of the KV is a merge of partial results `(o, lse)`; merging is
//! commutative and associative with [`Partial::EMPTY`] as identity (DeFT, section 3.1, equation 1;
//! FlashAttention's online softmax). Logits are in base 2: `s2 = s * log2(e)`, so that the device's
//! `ex2` serves.

/// The scalar part of a partial result: what is needed to weigh its `o` against others.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Partial {
    /// Largest base-2 logit, or -inf for no token.
    pub max: f32,
    /// Sum of `2^(s2 - max)`.
    pub sum: f32,
}

impl Partial {
    /// The result over no token.
    pub const EMPTY: Self = Self {
        max: f32::NEG_INFINITY,
        sum: 0.0,
    };
}
