//! Text as its tokens come.

use super::Tokenizer;

/// Puts tokens together to text, one at a time, and holds back what is no whole character yet.
#[derive(Clone, Debug, Default)]
pub struct TextStream {
    pending: Vec<u8>,
}

impl TextStream {
    /// The text that `token` completes; empty while a character is not whole. Bytes that will never
    /// be one become U+FFFD.
    pub fn push(&mut self, tokenizer: &Tokenizer, token: u32) -> String {
        self.pending.extend(tokenizer.bytes(token).unwrap_or_default());
        let mut text = String::new();
        let mut kept = 0;
        for chunk in self.pending.utf8_chunks() {
            text.push_str(chunk.valid());
            kept = chunk.invalid().len();
            if kept > 0 {
                text.push(char::REPLACEMENT_CHARACTER);
            }
        }
        // Only at the end can an invalid sequence still become a character.
        let tail = &self.pending[self.pending.len() - kept..];
        if kept > 0 && may_go_on(tail) {
            text.pop();
            self.pending = tail.to_vec();
        } else {
            self.pending.clear();
        }
        text
    }

    /// What is left at the end: U+FFFD for an unfinished character.
    pub fn finish(self) -> String {
        String::from_utf8_lossy(&self.pending).into_owned()
    }
}

/// Whether `bytes`, not valid, begin a character.
fn may_go_on(bytes: &[u8]) -> bool {
    std::str::from_utf8(bytes).is_err_and(|error| error.error_len().is_none())
}
