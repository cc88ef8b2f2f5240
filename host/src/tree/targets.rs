//! Where K and V of new tokens go.

use std::ops::Range;

use kernels_gpu::abi::{APPEND_LIVE, AppendTarget};

use super::node::{Content, place};
use super::{ForestError, NodeKey, TokenForest};

impl TokenForest {
    /// Adds to `targets` where tokens `tokens` of `node` lie, one [`AppendTarget`] a token: for a
    /// prefill, or for the tokens of a draft node.
    ///
    /// # Errors
    /// [`ForestError::UnknownNode`], or [`ForestError::TokenRange`].
    pub fn append_targets(
        &self,
        node: NodeKey,
        tokens: Range<u32>,
        targets: &mut Vec<AppendTarget>,
    ) -> Result<(), ForestError> {
        let record = self.node(node)?;
        let length = self.lengths[record.slot as usize];
        if tokens.start > tokens.end || tokens.end > length {
            return Err(ForestError::TokenRange {
                node,
                begin: tokens.start,
                end: tokens.end,
                length,
            });
        }
        let (pages, begin) = match &record.content {
            Content::Owned { pages, .. } => (pages, 0),
            Content::Draft { block, begin } => (&self.blocks[*block].pages, *begin),
        };
        targets.extend(tokens.map(|token| place(pages, begin + token)));
        Ok(())
    }

    /// Adds to `targets` the last token of each of `leaves`, in their order, by length slot: the same
    /// words serve every decode step until the leaves change.
    ///
    /// # Errors
    /// [`ForestError::UnknownNode`]; [`ForestError::Sealed`], [`ForestError::Draft`] or
    /// [`ForestError::DraftPending`] for a node that does not grow; or [`ForestError::EmptyNode`].
    pub fn live_targets(
        &self,
        leaves: &[NodeKey],
        targets: &mut Vec<AppendTarget>,
    ) -> Result<(), ForestError> {
        for &leaf in leaves {
            self.check_growing(leaf)?;
            if self.length_of(leaf) == 0 {
                return Err(ForestError::EmptyNode { node: leaf });
            }
        }
        targets.extend(
            leaves
                .iter()
                .map(|&leaf| APPEND_LIVE | self.nodes[leaf].slot),
        );
        Ok(())
    }
}
