//! A row: in the file, and in the table on screen.

use serde::{Deserialize, Serialize};

use super::record::Decoded;

/// The table's head.
pub(super) const HEADER: &str =
    "prompt        tokens  drafts of  answer  passes  tokens a pass  ms a token  text";

/// One prompt, one way.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(crate) struct Row {
    pub(crate) prompt: String,
    pub(crate) prompt_tokens: usize,
    /// Most tokens that were drafted for a pass; 0 in plain decoding.
    pub(crate) nodes: usize,
    /// Tokens of the answer.
    pub(crate) tokens: usize,
    /// Of a token of the answer, without the prompt's run: the median of the turns.
    pub(crate) ms_a_token: f64,
    /// The answer's first token that is not plain decoding's.
    pub(crate) differs_at: Option<usize>,
    /// Tokens that each pass verified.
    pub(crate) drafted: Vec<usize>,
    /// Tokens of the answer that each pass gave; the first token is the prompt's.
    pub(crate) kept: Vec<usize>,
}

impl Row {
    pub(super) fn new(
        (prompt, prompt_tokens): (&str, usize),
        nodes: usize,
        (seconds, decoded): (f64, Decoded),
        plain: &[u32],
    ) -> Self {
        let Decoded { answer, drafted, kept, .. } = decoded;
        let same = answer.iter().zip(plain).take_while(|(a, b)| a == b).count();
        Self {
            prompt: prompt.to_owned(),
            prompt_tokens,
            nodes,
            tokens: answer.len(),
            ms_a_token: 1e3 * seconds / answer.len().max(1) as f64,
            differs_at: (answer != plain).then_some(same),
            drafted,
            kept,
        }
    }

    /// Tokens of the answer that a pass gave.
    pub(super) fn tokens_a_pass(&self) -> f64 {
        self.kept.iter().sum::<usize>() as f64 / self.kept.len().max(1) as f64
    }

    pub(super) fn line(&self) -> String {
        let text = match self.differs_at {
            None => "the same".to_owned(),
            Some(at) => format!("differs at {at}"),
        };
        format!(
            "{:12} {:7} {:10} {:7} {:7} {:14.2} {:11.2}  {text}",
            self.prompt,
            self.prompt_tokens,
            self.nodes,
            self.tokens,
            self.kept.len(),
            self.tokens_a_pass(),
            self.ms_a_token,
        )
    }
}
