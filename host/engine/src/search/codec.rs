//! Between text and tokens.

/// What search needs of a tokenizer.
pub trait TextCodec {
    /// The tokens of `text`, without any that a template would add.
    fn encode(&self, text: &str) -> Vec<u32>;

    /// The text of `tokens`; what is not UTF-8 becomes U+FFFD.
    fn decode(&self, tokens: &[u32]) -> String;

    /// Tokens that end a sequence.
    fn end_tokens(&self) -> &[u32];
}
