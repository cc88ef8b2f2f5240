//! Models of the paper, as attention sees them.

use deft::plan::HeadShape;

/// Heads and layers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Model {
    pub(crate) name: &'static str,
    pub(crate) heads: HeadShape,
    pub(crate) layers: u32,
}

/// The paper's main model.
pub(crate) const LLAMA3_8B: Model =
    Model { name: "llama3-8b", heads: deft_workloads::LLAMA3_8B, layers: 32 };
/// As many KV heads as query heads.
pub(crate) const CODELLAMA_7B: Model = Model {
    name: "codellama-7b",
    heads: HeadShape { q_heads: 32, kv_heads: 32, head_dim: 128 },
    layers: 32,
};
/// Eight query heads a KV head.
pub(crate) const CODELLAMA_34B: Model = Model {
    name: "codellama-34b",
    heads: HeadShape { q_heads: 64, kv_heads: 8, head_dim: 128 },
    layers: 48,
};
