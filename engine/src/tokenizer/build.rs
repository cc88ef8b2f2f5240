//! Tokenizers from files.

use std::collections::HashMap;

use aho_corasick::{AhoCorasick, MatchKind};
use tokenizers::models::bpe::{BPE, Merges, Vocab};
use tokenizers::pre_tokenizers::byte_level::ByteLevel;
use tokenizers::pre_tokenizers::digits::Digits;
use tokenizers::pre_tokenizers::sequence::Sequence;
use tokenizers::pre_tokenizers::split::{Split, SplitPattern};
use tokenizers::{DecoderWrapper, PreTokenizerWrapper, SplitDelimiterBehavior};

use super::bytes::ByteTable;
use super::{Tokenizer, TokenizerError};
use crate::gguf::{Metadata, required};

/// How Llama 3 splits a text before BPE.
const LLAMA3: &str = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+";
/// Control tokens that end a text or a turn.
const ENDS: [&str; 5] = [
    "<|im_end|>",
    "<|eot_id|>",
    "<|eom_id|>",
    "<|endoftext|>",
    "<|end_of_text|>",
];
/// Types of tokens in a GGUF file.
const CONTROL: i64 = 3;
const USER_DEFINED: i64 = 4;

pub(super) fn from_gguf(metadata: &Metadata) -> Result<Tokenizer, TokenizerError> {
    let key = "tokenizer.ggml.model";
    let model = required(metadata.text(key)?, key)?;
    if model != "gpt2" {
        return Err(TokenizerError::Unsupported {
            what: key,
            found: model.to_owned(),
            expected: "\"gpt2\", byte-level BPE",
        });
    }
    let key = "tokenizer.ggml.tokens";
    let tokens = required(metadata.texts(key)?, key)?;
    let pre = metadata.text("tokenizer.ggml.pre")?.unwrap_or("default");
    let mut inner = tokenizers::Tokenizer::new(bpe(metadata, tokens, pre)?);
    inner.with_pre_tokenizer(Some(pre_tokenizer(pre)?));
    let (added, control) = added_tokens(metadata, tokens)?;
    let id = |key| -> Result<Option<u32>, TokenizerError> {
        Ok(metadata
            .u32(key)?
            .filter(|&id| (id as usize) < tokens.len()))
    };
    let begins = metadata
        .bool("tokenizer.ggml.add_bos_token")?
        .unwrap_or(false);
    let begin = id("tokenizer.ggml.bos_token_id")?.filter(|_| begins);
    let mut ends = ends(&inner);
    for key in ["tokenizer.ggml.eos_token_id", "tokenizer.ggml.eot_token_id"] {
        ends.extend(id(key)?);
    }
    assemble(inner, added, control, begin, ends)
}

fn bpe(metadata: &Metadata, tokens: &[String], pre: &str) -> Result<BPE, TokenizerError> {
    let vocabulary: Vocab = tokens.iter().cloned().zip(0..).collect();
    if vocabulary.len() != tokens.len() {
        let what = format!("{} tokens have {} names", tokens.len(), vocabulary.len());
        return Err(TokenizerError::Inconsistent { what });
    }
    let key = "tokenizer.ggml.merges";
    let merges = required(metadata.texts(key)?, key)?.iter().map(|merge| {
        // No part is empty, and the left one may begin with a space in odd files.
        let at = merge.char_indices().skip(1).find(|&(_, c)| c == ' ');
        let parts = at.map(|(at, _)| (merge[..at].to_owned(), merge[at + 1..].to_owned()));
        parts.ok_or_else(|| TokenizerError::Inconsistent {
            what: format!("merge {merge:?} is not of two tokens"),
        })
    });
    let merges: Merges = merges.collect::<Result<_, _>>()?;
    let builder = BPE::builder().vocab_and_merges(vocabulary, merges);
    let builder = builder.ignore_merges(pre == "llama-bpe");
    builder.build().map_err(TokenizerError::Tokenizers)
}

fn pre_tokenizer(pre: &str) -> Result<PreTokenizerWrapper, TokenizerError> {
    let gpt2 = ByteLevel::new(false, true, true);
    match pre {
        "gpt-2" | "default" => Ok(gpt2.into()),
        "smollm" => Ok(Sequence::new(vec![Digits::new(true).into(), gpt2.into()]).into()),
        "llama-bpe" => {
            let pattern = SplitPattern::Regex(LLAMA3.to_owned());
            let split = Split::new(pattern, SplitDelimiterBehavior::Isolated, false);
            let split = split.map_err(TokenizerError::Tokenizers)?;
            let bytes = ByteLevel::new(false, true, false);
            Ok(Sequence::new(vec![split.into(), bytes.into()]).into())
        }
        other => Err(TokenizerError::Unsupported {
            what: "tokenizer.ggml.pre",
            found: other.to_owned(),
            expected: "\"smollm\", \"gpt-2\", \"default\" or \"llama-bpe\"",
        }),
    }
}

type Added = (HashMap<u32, String>, Vec<(String, u32)>);

/// Tokens that are no product of BPE, and of those the control tokens.
fn added_tokens(metadata: &Metadata, tokens: &[String]) -> Result<Added, TokenizerError> {
    let Some(types) = metadata.integers("tokenizer.ggml.token_type")? else {
        return Ok(Added::default());
    };
    if types.len() != tokens.len() {
        let what = format!("{} tokens have {} types", tokens.len(), types.len());
        return Err(TokenizerError::Inconsistent { what });
    }
    let all = (0..).zip(tokens).zip(types);
    let added = all.filter(|&((_, name), &kind)| {
        (kind == CONTROL || kind == USER_DEFINED) && !name.is_empty()
    });
    let added = added.map(|((id, name), _)| (id, name.clone()));
    let added: HashMap<u32, String> = added.collect();
    let control = added.iter().map(|(&id, name)| (name.clone(), id)).collect();
    Ok((added, control))
}

pub(super) fn from_json(json: &str) -> Result<Tokenizer, TokenizerError> {
    let mut inner: tokenizers::Tokenizer = json.parse().map_err(TokenizerError::Tokenizers)?;
    if !matches!(inner.get_decoder(), Some(DecoderWrapper::ByteLevel(_))) {
        return Err(TokenizerError::Unsupported {
            what: "decoder of tokenizer.json",
            found: format!("{:?}", inner.get_decoder()),
            expected: "ByteLevel",
        });
    }
    inner.set_encode_special_tokens(true);
    let all = inner.get_added_tokens_decoder();
    let control = all.iter().filter(|(_, token)| token.special);
    let control = control
        .map(|(&id, token)| (token.content.clone(), id))
        .collect();
    let added = all
        .iter()
        .map(|(&id, token)| (id, token.content.clone()))
        .collect();
    let begin = inner.token_to_id("<|begin_of_text|>");
    let ends = ends(&inner);
    assemble(inner, added, control, begin, ends)
}

fn ends(inner: &tokenizers::Tokenizer) -> Vec<u32> {
    ENDS.iter()
        .filter_map(|name| inner.token_to_id(name))
        .collect()
}

fn assemble(
    inner: tokenizers::Tokenizer,
    added: HashMap<u32, String>,
    mut control: Vec<(String, u32)>,
    begin: Option<u32>,
    ends: Vec<u32>,
) -> Result<Tokenizer, TokenizerError> {
    control.retain(|(name, _)| !name.is_empty());
    let names = control.iter().map(|(name, _)| name);
    let finder = AhoCorasick::builder()
        .match_kind(MatchKind::LeftmostLongest)
        .build(names);
    let control_names = finder.map_err(|error| TokenizerError::Inconsistent {
        what: format!("{} control tokens: {error}", control.len()),
    })?;
    let largest = inner.get_vocab(true).into_values().max();
    let bytes = ByteTable::new();
    let missing_bytes = missing_bytes(&inner, &bytes);
    Ok(Tokenizer {
        vocabulary: largest.map_or(0, |token| token as usize + 1),
        control: control.into_iter().map(|(_, token)| token).collect(),
        control_names,
        missing_bytes,
        inner,
        added,
        begin,
        ends,
        bytes,
    })
}

/// Bytes of some UTF-8 text that have no token.
fn missing_bytes(inner: &tokenizers::Tokenizer, bytes: &ByteTable) -> Vec<u8> {
    let all = bytes.0.iter();
    let missing = all.filter(|&(name, &byte)| {
        // These are in no UTF-8.
        let is_text = !matches!(byte, 0xc0 | 0xc1 | 0xf5..);
        is_text && inner.token_to_id(name.encode_utf8(&mut [0; 4])).is_none()
    });
    let mut missing: Vec<u8> = missing.map(|(_, &byte)| byte).collect();
    missing.sort_unstable();
    missing
}
