//! How byte-level tokenizers split a text before BPE, by the names that GGUF files have for it.

use tokenizers::pre_tokenizers::byte_level::ByteLevel;
use tokenizers::pre_tokenizers::digits::Digits;
use tokenizers::pre_tokenizers::sequence::Sequence;
use tokenizers::pre_tokenizers::split::{Split, SplitPattern};
use tokenizers::{PreTokenizerWrapper, SplitDelimiterBehavior};

use super::TokenizerError;

/// A way to split.
#[derive(Clone, Copy, Debug)]
pub(super) struct Pre {
    /// Its names.
    names: &'static [&'static str],
    split: How,
    /// Whether a word that is a token is that token, whatever its merges are.
    pub(super) ignore_merges: bool,
    /// Whether a text begins with a token where the file does not say.
    pub(super) begins: bool,
    /// A control token that only such vocabularies have, to know one by that does not say what it is.
    sign: &'static str,
}

#[derive(Clone, Copy, Debug)]
enum How {
    /// GPT-2's pattern.
    Gpt2,
    /// The same, after every digit was split off.
    Digits,
    Pattern(&'static str),
}

const LLAMA3: &str = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+";
const QWEN2: &str = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+";
const TEKKEN: &str = r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+";

const ALL: [Pre; 6] = [
    Pre {
        names: &["llama-bpe", "llama3", "llama-v3"],
        split: How::Pattern(LLAMA3),
        ignore_merges: true,
        begins: true,
        sign: "<|begin_of_text|>",
    },
    Pre {
        names: &["smaug-bpe"],
        split: How::Pattern(LLAMA3),
        ignore_merges: false,
        begins: false,
        sign: "",
    },
    Pre {
        names: &["qwen2", "deepseek-r1-qwen"],
        split: How::Pattern(QWEN2),
        ignore_merges: false,
        begins: false,
        sign: "<|object_ref_start|>",
    },
    Pre {
        names: &["tekken"],
        split: How::Pattern(TEKKEN),
        ignore_merges: true,
        begins: true,
        sign: "[AVAILABLE_TOOLS]",
    },
    Pre {
        names: &["smollm", "starcoder", "refact", "command-r", "codeshell"],
        split: How::Digits,
        ignore_merges: false,
        begins: false,
        sign: "<repo_name>",
    },
    Pre {
        names: &["gpt-2", "default", "phi-2"],
        split: How::Gpt2,
        ignore_merges: false,
        begins: false,
        sign: "",
    },
];

impl Pre {
    pub(super) fn of(name: &str) -> Result<Self, TokenizerError> {
        let found = ALL.iter().find(|pre| pre.names.contains(&name));
        found.copied().ok_or_else(|| TokenizerError::Unsupported {
            what: "tokenizer.ggml.pre",
            found: name.to_owned(),
            expected: "\"llama-bpe\", \"smaug-bpe\", \"qwen2\", \"tekken\", \"smollm\" or \"gpt-2\", or another \
                       name of one of these",
        })
    }

    /// What a vocabulary of these tokens is likely to be split by, and a warning that says so.
    pub(super) fn guess(tokens: &[String]) -> (Self, String) {
        let has_sign =
            |pre: &&Pre| !pre.sign.is_empty() && tokens.iter().any(|token| token == pre.sign);
        let found = ALL.iter().find(has_sign).unwrap_or(&ALL[ALL.len() - 1]);
        let why = match found.sign {
            "" => "which may split other texts than the model was trained with".to_owned(),
            sign => format!("by its token {sign:?}"),
        };
        let name = found.names[0];
        (*found, format!("tokenizer.ggml.pre is missing; taken for {name:?}, {why}"))
    }

    pub(super) fn tokenizer(self) -> Result<PreTokenizerWrapper, TokenizerError> {
        let gpt2 = ByteLevel::new(false, true, true);
        let parts = match self.split {
            How::Gpt2 => vec![gpt2.into()],
            How::Digits => vec![Digits::new(true).into(), gpt2.into()],
            How::Pattern(pattern) => {
                let pattern = SplitPattern::Regex(pattern.to_owned());
                let split = Split::new(pattern, SplitDelimiterBehavior::Isolated, false);
                let split = split.map_err(TokenizerError::Tokenizers)?;
                vec![split.into(), ByteLevel::new(false, true, false).into()]
            }
        };
        Ok(Sequence::new(parts).into())
    }
}
