//! Where drafts come from.

use deft_engine::DraftToken;

/// Guesses what comes next.
pub trait Drafter {
    /// A tree of at most `limit` tokens that may follow `context`, the prompt and all that came after it.
    /// Parents precede children, else the search ends with [`SearchError::Argument`](crate::SearchError::Argument);
    /// empty for no guess.
    fn draft(&mut self, context: &[u32], limit: usize) -> Vec<DraftToken>;
}

/// Guesses that what followed the last tokens before will follow again (prompt lookup), in several ways at
/// once: a tree of the continuations of their most recent occurrences, those of longer matches first.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PromptLookup {
    /// Most tokens to match.
    pub longest_match: usize,
    /// Tokens of a continuation.
    pub depth: usize,
    /// Tokens of the tree.
    pub nodes: usize,
}

impl Default for PromptLookup {
    /// Matches of up to 3 tokens, 8 tokens deep, 24 in all.
    fn default() -> Self {
        Self { longest_match: 3, depth: 8, nodes: 24 }
    }
}

impl Drafter for PromptLookup {
    fn draft(&mut self, context: &[u32], limit: usize) -> Vec<DraftToken> {
        let limit = limit.min(self.nodes);
        let mut draft = Vec::new();
        for matched in (1..=self.longest_match.min(context.len())).rev() {
            let (earlier, last) = (context.len() - matched, &context[context.len() - matched..]);
            for begin in (0..earlier).rev() {
                if draft.len() >= limit {
                    return draft;
                }
                if context[begin..].starts_with(last) {
                    let rest = &context[begin + matched..];
                    add(&mut draft, &rest[..rest.len().min(self.depth)], limit);
                }
            }
        }
        draft
    }
}

/// Adds a path from the root, sharing what is there.
fn add(draft: &mut Vec<DraftToken>, path: &[u32], limit: usize) {
    let mut parent = None;
    for &token in path {
        let wanted = DraftToken { parent, token };
        let index = draft.iter().position(|&have| have == wanted);
        let index = index.unwrap_or(draft.len());
        if index == draft.len() {
            if index >= limit {
                return;
            }
            draft.push(wanted);
        }
        parent = Some(index as u32);
    }
}
