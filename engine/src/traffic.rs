//! What attention reads, counted alike for all models.

use deft::NodeKey;
use deft::plan::{HeadShape, Plan};
use deft::tree::{ForestError, TokenForest};

use crate::LlamaConfig;

/// Tokens of a K or V row are read in whole groups of as many.
const GROUP: u64 = 8;

/// Bytes of K and V that a pass by `plan` reads, all layers, with elements of `element_bytes`.
pub(crate) fn plan_bytes(
    plan: &Plan,
    config: &LlamaConfig,
    element_bytes: u32,
    lengths: &[u32],
) -> u64 {
    let heads =
        HeadShape { q_heads: config.q_heads, kv_heads: config.kv_heads, head_dim: config.head_dim };
    let io = plan.issued_io(heads, element_bytes, lengths, false);
    u64::from(config.layers) * io.kv
}

/// Bytes of K and V of the path to `leaf`, all layers: whole groups of eight tokens of each node. A draft's tokens
/// lie together.
pub(crate) fn path_bytes(
    forest: &TokenForest,
    leaf: NodeKey,
    config: &LlamaConfig,
    element_bytes: u32,
) -> Result<u64, ForestError> {
    let (mut tokens, mut drafted) = (0, 0);
    let mut next = Some(leaf);
    while let Some(node) = next {
        let length = u64::from(forest.length(node)?);
        if forest.is_draft(node)? {
            drafted += length;
        } else {
            tokens += length.next_multiple_of(GROUP);
        }
        next = forest.parent(node)?;
    }
    tokens += drafted.next_multiple_of(GROUP);
    let token = 2 * u64::from(config.kv_width()) * u64::from(element_bytes);
    Ok(u64::from(config.layers) * token * tokens)
}
