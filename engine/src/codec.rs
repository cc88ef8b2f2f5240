//! Between text and tokens.

use std::error::Error;

use crate::{Control, Tokenizer};

/// What search needs of a tokenizer.
pub trait TextCodec {
    /// The tokens of `text`, without any that a template would add.
    ///
    /// # Errors
    /// The tokenizer's.
    fn encode(&self, text: &str) -> Result<Vec<u32>, Box<dyn Error + Send + Sync>>;

    /// The text of `tokens`; what is not UTF-8 becomes U+FFFD.
    fn decode(&self, tokens: &[u32]) -> String;

    /// Whether `token` ends a sequence.
    fn is_end(&self, token: u32) -> bool;
}

impl TextCodec for Tokenizer {
    /// Control tokens are text like any other here; a chat template puts them in by itself.
    fn encode(&self, text: &str) -> Result<Vec<u32>, Box<dyn Error + Send + Sync>> {
        Ok(Self::encode(self, text, Control::Text)?)
    }

    fn decode(&self, tokens: &[u32]) -> String {
        Self::decode(self, tokens)
    }

    fn is_end(&self, token: u32) -> bool {
        Self::is_end(self, token)
    }
}
