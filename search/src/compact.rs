//! Merging chains of small nodes.
//!
//! Every fork starts pages of its own, so a method that forks and prunes at almost every token, as beam
//! search does, would hold a page for almost every token. A chain of nodes without side branches is one node
//! in all but storage. Once it would save [`SAVED_PAGES`] its tokens are run again, in one pass, as one node.

use deft::NodeKey;
use deft::abi::PAGE_TOKENS;

use super::error::is_out_of_pages;
use super::{BranchId, Event, SearchError, SearchTree};
use deft_engine::DraftToken;

/// Pages that a merge has to save while there are enough. More means fewer merges and more pages held.
pub(super) const SAVED_PAGES: u32 = 8;

/// Nodes of this many tokens or more at a chain's top stay, so that a token is run again a few times at most.
const LARGE_NODE: u32 = 16;

/// Nodes one below the other, each the only child of the one before.
struct Chain {
    nodes: Vec<NodeKey>,
    tokens: u32,
    pages: u32,
}

impl SearchTree<'_> {
    /// Merges the chain that ends in `id` if that saves `saved` pages. A held branch may have children: it stays.
    pub(super) fn compact(&mut self, id: BranchId, saved: u32) -> Result<(), SearchError> {
        if self.branch(id)?.held {
            return Ok(());
        }
        let chain = self.chain(id)?;
        if chain.pages < chain.tokens.div_ceil(PAGE_TOKENS) + saved {
            return Ok(());
        }
        let top = chain.nodes[0];
        let parent = self.parent(top)?.expect("a chain begins below the prompt");
        let tokens = &self.branch(id)?.tokens;
        let tokens = &tokens[tokens.len() - chain.tokens as usize..];
        let draft = tokens.iter().enumerate().map(|(index, &token)| DraftToken {
            parent: (index as u32).checked_sub(1),
            token,
        });
        let draft: Vec<DraftToken> = draft.collect();
        let merged = self.model.fork(parent, 1)?[0];
        let path = match self.model.verify(merged, &draft, &mut self.logits) {
            Ok(path) => path,
            Err(error) => {
                self.model.prune(merged)?;
                // Saving pages is no use if it takes more than there are: the search goes on as it is.
                return if is_out_of_pages(&error) {
                    Ok(())
                } else {
                    Err(error.into())
                };
            }
        };
        self.model.accept(merged, &path)?;
        self.model.prune(top)?;
        self.branch_mut(id)?.node = merged;
        self.stats.steps += 1;
        self.stats.recomputed += draft.len() as u64;
        let (branch, nodes, tokens) = (id, chain.nodes.len(), draft.len());
        self.emit(&Event::Compacted {
            branch,
            nodes,
            tokens,
        });
        Ok(())
    }

    /// The chain that ends in `id`, from the first small node on.
    fn chain(&self, id: BranchId) -> Result<Chain, SearchError> {
        let mut node = self.branch(id)?.node;
        let mut nodes = Vec::new();
        while !self.is_root(node) {
            nodes.push(node);
            let Some(parent) = self.parent(node)? else {
                break;
            };
            if self.children(parent)? != 1 || self.is_branch(parent) {
                break;
            }
            node = parent;
        }
        nodes.reverse();
        let length = |node: NodeKey| self.forest_result(self.model.forest().length(node));
        let lengths = nodes.iter().map(|&node| length(node));
        let lengths = lengths.collect::<Result<Vec<u32>, SearchError>>()?;
        let large = lengths
            .iter()
            .take_while(|&&tokens| tokens >= LARGE_NODE)
            .count();
        Ok(Chain {
            nodes: nodes.split_off(large),
            tokens: lengths[large..].iter().sum(),
            pages: lengths[large..]
                .iter()
                .map(|tokens| tokens.div_ceil(PAGE_TOKENS))
                .sum(),
        })
    }
}
