//! Text to tokens and back: byte-level BPE, as GPT-2 (SmolLM2 too) and Llama 3 have it.

mod build;
mod bytes;
mod stream;

use std::collections::HashMap;

use aho_corasick::AhoCorasick;

use self::bytes::ByteTable;
pub use self::stream::TextStream;
use crate::gguf::{GgufError, Metadata};

/// What control tokens in a text are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Control {
    /// What they say: `<|im_end|>` is one token.
    Recognized,
    /// Text like any other: what users write.
    Text,
}

/// A model's tokenizer.
#[derive(Debug)]
pub struct Tokenizer {
    /// Knows ordinary tokens, and takes control tokens for text.
    inner: tokenizers::Tokenizer,
    /// Tokens beside those of the BPE model.
    added: HashMap<u32, String>,
    /// Finds control tokens' names; of those that begin together the longest.
    control_names: AhoCorasick,
    /// The control tokens, in the order in which `control_names` numbers them.
    control: Vec<u32>,
    vocabulary: usize,
    missing_bytes: Vec<u8>,
    begin: Option<u32>,
    ends: Vec<u32>,
    bytes: ByteTable,
}

/// Why there is no tokenizer, or no tokens.
#[non_exhaustive]
#[derive(Debug, thiserror::Error)]
pub enum TokenizerError {
    /// The metadata of a GGUF file.
    #[error(transparent)]
    Gguf(#[from] GgufError),
    /// A tokenizer of another kind.
    #[error("{what} is {found:?}; it must be {expected}")]
    Unsupported {
        /// What.
        what: &'static str,
        /// What it is.
        found: String,
        /// What it may be.
        expected: &'static str,
    },
    /// Tokens, or merges, that contradict each other.
    #[error("the tokenizer's {what}")]
    Inconsistent {
        /// Which, and how.
        what: String,
    },
    /// The `tokenizers` crate refused.
    #[error("tokenizer: {0}")]
    Tokenizers(tokenizers::Error),
}

impl Tokenizer {
    /// The tokenizer in a GGUF file's metadata: byte-level BPE (`tokenizer.ggml.model` is `gpt2`) of the
    /// pre-tokenizer `smollm`, `gpt-2`, `default` or `llama-bpe`.
    ///
    /// # Errors
    /// [`TokenizerError`].
    pub fn from_gguf(metadata: &Metadata) -> Result<Self, TokenizerError> {
        build::from_gguf(metadata)
    }

    /// The tokenizer of a `tokenizer.json`, given as text. It has to be byte-level BPE.
    ///
    /// # Errors
    /// [`TokenizerError`].
    pub fn from_json(json: &str) -> Result<Self, TokenizerError> {
        build::from_json(json)
    }

    /// One more than the largest token. Numbers below it may be missing.
    pub fn vocabulary(&self) -> usize {
        self.vocabulary
    }

    /// Bytes of UTF-8 that no token stands for by itself: [`Tokenizer::encode`] leaves them out where no larger
    /// token has them. Empty for a sound tokenizer.
    pub fn missing_bytes(&self) -> &[u8] {
        &self.missing_bytes
    }

    /// The tokens of `text`, without one that begins a text.
    ///
    /// # Errors
    /// [`TokenizerError::Tokenizers`].
    pub fn encode(&self, text: &str, control: Control) -> Result<Vec<u32>, TokenizerError> {
        self.encode_pieces(&[(text, control)])
    }

    /// The tokens of texts put together, as if they were one, though control tokens are recognized in
    /// some of them only.
    ///
    /// # Errors
    /// [`TokenizerError::Tokenizers`].
    pub fn encode_pieces(&self, pieces: &[(&str, Control)]) -> Result<Vec<u32>, TokenizerError> {
        let mut tokens = Vec::new();
        let mut plain = String::new();
        for &(text, control) in pieces {
            let mut begin = 0;
            if control == Control::Recognized {
                for found in self.control_names.find_iter(text) {
                    plain.push_str(&text[begin..found.start()]);
                    self.encode_plain(&mut plain, &mut tokens)?;
                    tokens.push(self.control[found.pattern()]);
                    begin = found.end();
                }
            }
            plain.push_str(&text[begin..]);
        }
        self.encode_plain(&mut plain, &mut tokens)?;
        Ok(tokens)
    }

    fn encode_plain(&self, text: &mut String, tokens: &mut Vec<u32>) -> Result<(), TokenizerError> {
        if !text.is_empty() {
            let encoding = self.inner.encode_fast(text.as_str(), false);
            tokens.extend_from_slice(encoding.map_err(TokenizerError::Tokenizers)?.get_ids());
            text.clear();
        }
        Ok(())
    }

    /// The token of this name, as the vocabulary has it.
    pub fn token(&self, name: &str) -> Option<u32> {
        self.inner.token_to_id(name)
    }

    /// The token that a text begins with, if the model wants one.
    pub fn begin(&self) -> Option<u32> {
        self.begin
    }

    /// Whether a text ends at `token`.
    pub fn is_end(&self, token: u32) -> bool {
        self.ends.contains(&token)
    }

    /// Bytes of a token: not always whole characters. None for a number that is no token.
    pub fn bytes(&self, token: u32) -> Option<Vec<u8>> {
        if let Some(added) = self.added.get(&token) {
            return Some(added.clone().into_bytes());
        }
        let name = self.inner.id_to_token(token)?;
        Some(self.bytes.decode(&name))
    }

    /// The text of tokens; bytes that are no character become U+FFFD.
    pub fn decode(&self, tokens: &[u32]) -> String {
        let bytes = tokens.iter().filter_map(|&token| self.bytes(token));
        String::from_utf8_lossy(&bytes.flatten().collect::<Vec<u8>>()).into_owned()
    }
}

#[cfg(test)]
pub(crate) use tests::small;

#[cfg(test)]
mod tests;
