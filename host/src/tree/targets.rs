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
    /// [`ForestError::UnknownNode`], [`ForestError::TokenRange`], or [`ForestError::Compacted`] for tokens that are.
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
        if tokens.start < self.compacted_tokens(node)? && !tokens.is_empty() {
            return self.check_whole(node);
        }
        let (pages, begin) = match &record.content {
            Content::Owned { pages, .. } => (pages, 0),
            Content::Draft { block, begin, .. } => (&self.blocks[*block].pages, *begin),
        };
        targets.extend(tokens.map(|token| place(pages, begin + token)));
        Ok(())
    }

    /// Adds to `targets` where tokens `tokens` of the path to `node` lie: its ancestors' from the root on,
    /// then its own. So a token's number is its position.
    ///
    /// # Errors
    /// As [`TokenForest::append_targets`].
    pub fn path_targets(
        &self,
        node: NodeKey,
        tokens: Range<u32>,
        targets: &mut Vec<AppendTarget>,
    ) -> Result<(), ForestError> {
        let length = self.context_length(node)?;
        if tokens.start > tokens.end || u64::from(tokens.end) > length {
            return Err(ForestError::TokenRange {
                node,
                begin: tokens.start,
                end: tokens.end,
                length: u32::try_from(length).unwrap_or(u32::MAX),
            });
        }
        let mut path = vec![node];
        while let Some(parent) = self.parent(path[path.len() - 1])? {
            path.push(parent);
        }
        let mut before = 0;
        for &node in path.iter().rev() {
            let length = self.length(node)?;
            let own = |token: u32| token.saturating_sub(before).min(length);
            self.append_targets(node, own(tokens.start)..own(tokens.end), targets)?;
            before = before.saturating_add(length);
        }
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
        targets.extend(leaves.iter().map(|&leaf| APPEND_LIVE | self.nodes[leaf].slot));
        Ok(())
    }
}
