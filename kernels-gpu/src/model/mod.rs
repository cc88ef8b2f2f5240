//! The operations of a Llama decode step between its matrix products, attention apart.
//!
//! The residual stream is f32, `[rows, hidden]`; what enters a product is 16-bit (`E`, bf16 or f16), and so is
//! what the fused projections give. Arithmetic is f32, rounded once.

#[cfg(any(target_arch = "nvptx64", feature = "emulate"))]
mod kernels;
pub mod limits;

#[cfg(any(target_arch = "nvptx64", feature = "emulate"))]
pub use kernels::{
    BestRows, BestState, Feed, MergeTopK, Norm, Pick, Qkv, Sampling, TopK, TopKPart, add_rms_norm,
    best_collect, best_count, best_emit, best_rows, embed, feed, fill, fill_f32, log_softmax_top_k,
    merge_top_k, pick_tokens, rms_norm, rotate_append, sample_part, sample_top_k, silu_mul,
    top_k_part,
};
