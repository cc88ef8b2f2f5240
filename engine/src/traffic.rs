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

/// Bytes of K and V of the paths to `leaves`, all layers: whole groups of eight tokens of each node. A draft's tokens
/// lie together.
pub(crate) fn path_bytes(
    forest: &TokenForest,
    leaves: impl Iterator<Item = NodeKey>,
    config: &LlamaConfig,
    element_bytes: u32,
) -> Result<u64, ForestError> {
    let mut tokens = 0;
    // Nodes of a draft have the same trunk, whose path is gone up once.
    let mut last = None;
    for leaf in leaves {
        let trunk = forest.trunk(leaf)?;
        let Some(trunk) = trunk else {
            tokens += path_tokens(forest, leaf)?;
            continue;
        };
        let (above, context) = match last {
            Some((of, above, context)) if of == trunk => (above, context),
            _ => (path_tokens(forest, trunk)?, forest.context_length(trunk)?),
        };
        last = Some((trunk, above, context));
        tokens += above + (forest.context_length(leaf)? - context).next_multiple_of(GROUP);
    }
    let token = 2 * u64::from(config.kv_width()) * u64::from(element_bytes);
    Ok(u64::from(config.layers) * token * tokens)
}

/// Tokens of the path to a node of no draft, in whole groups of each node.
fn path_tokens(forest: &TokenForest, leaf: NodeKey) -> Result<u64, ForestError> {
    let mut tokens = 0;
    let mut next = Some(leaf);
    while let Some(node) = next {
        tokens += u64::from(forest.length(node)?).next_multiple_of(GROUP);
        next = forest.parent(node)?;
    }
    Ok(tokens)
}
