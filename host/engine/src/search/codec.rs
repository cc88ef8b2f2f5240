//! Between text and tokens.

use std::error::Error;

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
