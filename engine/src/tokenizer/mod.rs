//! Text to tokens and back: byte-level BPE, as GPT-2 (SmolLM2 too) and Llama 3 have it, and SentencePiece's
//! vocabularies, as Llama 2 and Gemma.

mod build;
mod bytes;
mod pieces;
mod pre;
mod stream;

use std::collections::HashMap;
use std::path::Path;

use aho_corasick::AhoCorasick;

use self::bytes::ByteTable;
pub use self::stream::TextStream;
use crate::gguf::{GgufError, Metadata};
use crate::quiet::quietly;

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
    /// The same for what follows a control token, where that differs.
    after_control: Option<Box<tokenizers::Tokenizer>>,
    /// Tokens beside those of the model.
    added: HashMap<u32, String>,
    /// Finds control tokens' names; of those that begin together the longest.
    control_names: AhoCorasick,
    /// The control tokens, in the order in which `control_names` numbers them.
    control: Vec<u32>,
    vocabulary: usize,
    missing_bytes: Vec<u8>,
    begin: Option<u32>,
    bos: Option<u32>,
    eos: Option<u32>,
    ends: Vec<u32>,
    names: Names,
    warnings: Vec<String>,
}

/// What bytes a token's name stands for.
#[derive(Debug)]
enum Names {
    /// A character a byte.
    Bytes(ByteTable),
    /// SentencePiece's pieces.
    Pieces {
        /// Whether a text gets a space before it.
        prefix: bool,
    },
}

impl Names {
    fn bytes(&self, name: &str) -> Vec<u8> {
        match self {
            Self::Bytes(table) => table.decode(name),
            Self::Pieces { .. } => pieces::decode(name),
        }
    }

    /// What a token of one byte may be called.
    fn of_byte(&self, byte: u8) -> Vec<String> {
        match self {
            Self::Bytes(table) => {
                let names = table.0.iter().filter(|&(_, &named)| named == byte);
                names.map(|(name, _)| name.to_string()).collect()
            }
            Self::Pieces { .. } => {
                let plain = match byte {
                    b' ' => Some(pieces::SPACE),
                    byte => byte.is_ascii().then_some(char::from(byte)),
                };
                let plain = plain.map(|character| character.to_string());
                plain.into_iter().chain([format!("<0x{byte:02X}>")]).collect()
            }
        }
    }
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
    /// A file of a folder cannot be read, or is no JSON.
    #[error("{file}: {error}")]
    File {
        /// The file.
        file: String,
        /// Why.
        error: std::io::Error,
    },
}

/// What `run` gives, or an error where the crate below panics on what it was given.
fn guarded<T>(run: impl FnOnce() -> Result<T, TokenizerError>) -> Result<T, TokenizerError> {
    quietly(run).unwrap_or_else(|panic| Err(TokenizerError::Tokenizers(panic.into())))
}

/// A file of a folder, if it is there.
pub(crate) fn read_of(folder: &Path, name: &str) -> Result<Option<String>, TokenizerError> {
    let path = folder.join(name);
    match std::fs::read_to_string(&path) {
        Ok(text) => Ok(Some(text)),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(None),
        Err(error) => {
            let file = path.display().to_string();
            Err(TokenizerError::File { file, error })
        }
    }
}

/// The same as JSON; null if it is not there.
pub(crate) fn json_of(folder: &Path, name: &str) -> Result<serde_json::Value, TokenizerError> {
    let text = read_of(folder, name)?;
    let json = text.map_or(Ok(serde_json::Value::Null), |text| serde_json::from_str(&text));
    json.map_err(|error| TokenizerError::File {
        file: folder.join(name).display().to_string(),
        error: error.into(),
    })
}

impl Tokenizer {
    /// The tokenizer in a GGUF file's metadata: byte-level BPE (`tokenizer.ggml.model` is `gpt2`) of one of the
    /// pre-tokenizers `llama-bpe`, `smaug-bpe`, `qwen2`, `tekken`, `smollm` and `gpt-2`, or SentencePiece's BPE
    /// (`llama`).
    ///
    /// # Errors
    /// [`TokenizerError`].
    pub fn from_gguf(metadata: &Metadata) -> Result<Self, TokenizerError> {
        build::from_gguf(metadata)
    }

    /// The tokenizer of a `tokenizer.json`, given as text: byte-level BPE, or SentencePiece's BPE or Unigram. Its
    /// truncation, padding and dropout are for training, and do not count.
    ///
    /// # Errors
    /// [`TokenizerError`].
    pub fn from_json(json: &str) -> Result<Self, TokenizerError> {
        build::from_json(json, &serde_json::Value::Null)
    }

    /// The tokenizer of a model's folder: `tokenizer.json`, and what `tokenizer_config.json` says of tokens that
    /// begin and end a text.
    ///
    /// # Errors
    /// [`TokenizerError`].
    pub fn open(folder: &Path) -> Result<Self, TokenizerError> {
        let name = "tokenizer.json";
        let json = read_of(folder, name)?.ok_or_else(|| TokenizerError::File {
            file: folder.join(name).display().to_string(),
            error: std::io::ErrorKind::NotFound.into(),
        })?;
        let config = json_of(folder, "tokenizer_config.json")?;
        build::from_json(&json, &config)
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

    /// What was missing in the file or is odd about it, for people: texts may become other tokens than those that the
    /// model was trained with. Empty for a sound tokenizer.
    pub fn warnings(&self) -> &[String] {
        &self.warnings
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
            let inner = match &self.after_control {
                Some(inner) if !tokens.is_empty() => inner,
                _ => &self.inner,
            };
            let encode = || inner.encode_fast(text.as_str(), false);
            let encoding = guarded(|| encode().map_err(TokenizerError::Tokenizers))?;
            tokens.extend_from_slice(encoding.get_ids());
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

    /// The token that begins a text, whether or not the model wants it.
    pub fn bos(&self) -> Option<u32> {
        self.bos
    }

    /// The token that ends a text.
    pub fn eos(&self) -> Option<u32> {
        self.eos
    }

    /// Names of the control tokens.
    pub(crate) fn control_names(&self) -> impl Iterator<Item = &str> + Clone {
        let names = self.control.iter().filter_map(|id| self.added.get(id));
        names.map(String::as_str)
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
        Some(self.names.bytes(&name))
    }

    /// The text of tokens; bytes that are no character become U+FFFD. As transformers has it, the space that the
    /// tokenizer puts before a text is taken off.
    pub fn decode(&self, tokens: &[u32]) -> String {
        let bytes = tokens.iter().filter_map(|&token| self.bytes(token));
        let bytes: Vec<u8> = bytes.flatten().collect();
        let text = match (&self.names, bytes.as_slice()) {
            (Names::Pieces { prefix: true }, [b' ', rest @ ..]) => rest,
            (_, all) => all,
        };
        String::from_utf8_lossy(text).into_owned()
    }
}

#[cfg(test)]
pub(crate) use tests::{small, small_metadata};

#[cfg(test)]
mod tests;
