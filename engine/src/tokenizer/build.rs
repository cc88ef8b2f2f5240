//! Tokenizers from files.

use std::collections::HashMap;

use aho_corasick::{AhoCorasick, MatchKind};
use serde_json::Value;
use tokenizers::models::bpe::{BPE, Merges, Vocab};
use tokenizers::pre_tokenizers::metaspace::PrependScheme;
use tokenizers::{AddedToken, ModelWrapper, PreTokenizerWrapper};

use super::bytes::ByteTable;
use super::pre::Pre;
use super::{Names, Tokenizer, TokenizerError, guarded, pieces};
use crate::gguf::{Metadata, required};

/// Control tokens that end a text or a turn.
const ENDS: [&str; 9] = [
    "<|im_end|>",
    "<|eot_id|>",
    "<|eom_id|>",
    "<|end|>",
    "<end_of_turn>",
    "<|endoftext|>",
    "<|end_of_text|>",
    "</s>",
    "<eos>",
];
/// Types of tokens in a GGUF file.
const UNKNOWN: i64 = 2;
const CONTROL: i64 = 3;
const USER_DEFINED: i64 = 4;

/// What a tokenizer is made of.
struct Parts {
    inner: tokenizers::Tokenizer,
    names: Names,
    added: HashMap<u32, String>,
    control: Vec<(String, u32)>,
    begin: Option<u32>,
    bos: Option<u32>,
    eos: Option<u32>,
    /// Where a text ends, beside `eos` and what is known by its name.
    ends: Vec<u32>,
    warnings: Vec<String>,
}

pub(super) fn from_gguf(metadata: &Metadata) -> Result<Tokenizer, TokenizerError> {
    guarded(|| gguf_parts(metadata)?.assemble())
}

fn gguf_parts(metadata: &Metadata) -> Result<Parts, TokenizerError> {
    let key = "tokenizer.ggml.tokens";
    let tokens = required(metadata.texts(key)?, key)?;
    let id = |name: &str| -> Result<Option<u32>, TokenizerError> {
        let id = metadata.u32(&format!("tokenizer.ggml.{name}_token_id"))?;
        Ok(id.filter(|&id| (id as usize) < tokens.len()))
    };
    let vocabulary = vocabulary(tokens)?;
    let kinds = kinds(metadata, tokens)?;
    let mut warnings = Vec::new();
    let key = "tokenizer.ggml.model";
    let (mut inner, names, begins) = match required(metadata.text(key)?, key)? {
        "gpt2" => {
            let pre = match metadata.text("tokenizer.ggml.pre")? {
                Some(name) => Pre::of(name)?,
                None => {
                    let (pre, warning) = Pre::guess(tokens);
                    warnings.push(warning);
                    pre
                }
            };
            let mut inner = tokenizers::Tokenizer::new(byte_level_bpe(metadata, vocabulary, pre)?);
            inner.with_pre_tokenizer(Some(pre.tokenizer()?));
            (inner, Names::Bytes(ByteTable::new()), pre.begins)
        }
        "llama" => {
            let unknown = kinds.iter().position(|&kind| kind == UNKNOWN);
            let unknown = id("unknown")?.or(unknown.map(|at| at as u32));
            let prefix = metadata.bool("tokenizer.ggml.add_space_prefix")?.unwrap_or(true);
            let model = pieces::bpe(metadata, tokens, vocabulary, unknown)?;
            let mut inner = tokenizers::Tokenizer::new(model);
            let normalizer = pieces::normalizer(prefix)?;
            let set = inner.with_normalizer(Some(normalizer));
            set.map_err(TokenizerError::Tokenizers)?;
            (inner, Names::Pieces { prefix }, true)
        }
        other => {
            return Err(TokenizerError::Unsupported {
                what: key,
                found: other.to_owned(),
                expected: "\"gpt2\", byte-level BPE, or \"llama\", SentencePiece's BPE",
            });
        }
    };
    let of_kinds = |wanted: &[i64]| -> Vec<(String, u32)> {
        let all = (0..).zip(tokens).zip(&kinds);
        let found = all.filter(|((_, name), kind)| wanted.contains(kind) && !name.is_empty());
        found.map(|((id, name), _)| (name.clone(), id)).collect()
    };
    // A user's token is one token wherever its text is.
    let own = of_kinds(&[USER_DEFINED]).into_iter();
    let own = own.map(|(name, _)| AddedToken::from(name, false).normalized(false));
    inner.add_tokens(own).map_err(TokenizerError::Tokenizers)?;
    let added = of_kinds(&[UNKNOWN, CONTROL, USER_DEFINED]).into_iter();
    let begins = metadata.bool("tokenizer.ggml.add_bos_token")?.unwrap_or(begins);
    let bos = id("bos")?;
    Ok(Parts {
        names,
        added: added.map(|(name, id)| (id, name)).collect(),
        control: of_kinds(&[UNKNOWN, CONTROL]),
        begin: bos.filter(|_| begins),
        bos,
        eos: id("eos")?,
        ends: [id("eot")?, id("eom")?].into_iter().flatten().collect(),
        warnings,
        inner,
    })
}

/// From names to numbers.
fn vocabulary(tokens: &[String]) -> Result<Vocab, TokenizerError> {
    let mut vocabulary = Vocab::with_capacity(tokens.len());
    for (token, id) in tokens.iter().zip(0..) {
        if let Some(other) = vocabulary.insert(token.clone(), id) {
            let what = format!("tokens {other} and {id} are both {token:?}");
            return Err(TokenizerError::Inconsistent { what });
        }
    }
    Ok(vocabulary)
}

/// The type of each token; all ordinary where the file does not say.
fn kinds(metadata: &Metadata, tokens: &[String]) -> Result<Vec<i64>, TokenizerError> {
    let Some(kinds) = metadata.integers("tokenizer.ggml.token_type")? else {
        return Ok(vec![1; tokens.len()]);
    };
    if kinds.len() != tokens.len() {
        let what = format!("{} tokens have {} types", tokens.len(), kinds.len());
        return Err(TokenizerError::Inconsistent { what });
    }
    Ok(kinds.to_vec())
}

fn byte_level_bpe(metadata: &Metadata, vocabulary: Vocab, pre: Pre) -> Result<BPE, TokenizerError> {
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
    let builder = builder.ignore_merges(pre.ignore_merges);
    builder.build().map_err(TokenizerError::Tokenizers)
}

/// A `tokenizer.json`, with what `tokenizer_config.json` says of it or null.
pub(super) fn from_json(json: &str, config: &Value) -> Result<Tokenizer, TokenizerError> {
    guarded(|| json_parts(json, config)?.assemble())
}

fn json_parts(json: &str, config: &Value) -> Result<Parts, TokenizerError> {
    pieces::check_json(json)?;
    let mut inner: tokenizers::Tokenizer = json.parse().map_err(TokenizerError::Tokenizers)?;
    let names = names(&inner)?;
    // These are for training and for batches: a text is all its tokens, and always the same.
    inner.with_truncation(None).map_err(TokenizerError::Tokenizers)?;
    inner.with_padding(None);
    if let ModelWrapper::BPE(bpe) = inner.get_model()
        && bpe.dropout.is_some()
    {
        let mut bpe = bpe.clone();
        bpe.dropout = None;
        inner.with_model(bpe);
    }
    inner.set_encode_special_tokens(true);
    let all = inner.get_added_tokens_decoder();
    let control = all.iter().filter(|(_, token)| token.special);
    let control = control.map(|(&id, token)| (token.content.clone(), id));
    let control: Vec<_> = control.collect();
    let added = all.iter().map(|(&id, token)| (id, token.content.clone()));
    let of_config = |key: &str| {
        let token = &config[key];
        let name = token.as_str().or_else(|| token["content"].as_str())?;
        inner.token_to_id(name)
    };
    let first = first_of_template(&inner);
    let bos = of_config("bos_token").or(first);
    let begin = match config["add_bos_token"].as_bool() {
        Some(begins) => bos.filter(|_| begins),
        None => first,
    };
    Ok(Parts {
        names,
        added: added.collect(),
        control,
        begin,
        bos,
        eos: of_config("eos_token"),
        ends: Vec::new(),
        warnings: Vec::new(),
        inner,
    })
}

/// How the tokens' names are bytes, by the decoder.
fn names(inner: &tokenizers::Tokenizer) -> Result<Names, TokenizerError> {
    let decoder = inner.get_decoder();
    let json = serde_json::to_value(decoder).unwrap_or_default();
    let of = |part: &Value| part["type"].as_str().unwrap_or_default().to_owned();
    let kinds: Vec<String> = match json["decoders"].as_array() {
        Some(parts) => parts.iter().map(of).collect(),
        None => vec![of(&json)],
    };
    let known = |kind: &String| {
        ["Replace", "ByteFallback", "Fuse", "Strip", "Metaspace"].contains(&&**kind)
    };
    match kinds.as_slice() {
        [kind] if kind == "ByteLevel" => Ok(Names::Bytes(ByteTable::new())),
        kinds if kinds.iter().all(known) => {
            let strips = kinds.iter().any(|kind| kind == "Strip");
            let scheme = json["prepend_scheme"].as_str();
            let prefix = strips || scheme.is_some_and(|scheme| scheme != "never");
            Ok(Names::Pieces { prefix })
        }
        _ => Err(TokenizerError::Unsupported {
            what: "decoder of tokenizer.json",
            found: format!("{decoder:?}"),
            expected: "ByteLevel, or one of SentencePiece's: Metaspace, or Replace, ByteFallback, Fuse and Strip",
        }),
    }
}

/// The token that the post-processor puts before every text.
fn first_of_template(inner: &tokenizers::Tokenizer) -> Option<u32> {
    let json = serde_json::to_value(inner.get_post_processor()).unwrap_or_default();
    let parts = json["processors"].as_array().cloned();
    let parts = parts.unwrap_or_else(|| vec![json]);
    let first = |part: &Value| part["single"][0]["SpecialToken"]["id"].as_str().map(str::to_owned);
    let named = parts.iter().find_map(first);
    inner.token_to_id(&named.unwrap_or_else(|| "<|begin_of_text|>".to_owned()))
}

impl Parts {
    fn assemble(mut self) -> Result<Tokenizer, TokenizerError> {
        self.control.retain(|(name, _)| !name.is_empty());
        let names = self.control.iter().map(|(name, _)| name);
        let finder = AhoCorasick::builder().match_kind(MatchKind::LeftmostLongest).build(names);
        let control_names = finder.map_err(|error| TokenizerError::Inconsistent {
            what: format!("{} control tokens: {error}", self.control.len()),
        })?;
        let named = ENDS.iter().filter_map(|name| self.inner.token_to_id(name));
        let named = named.filter(|id| self.added.contains_key(id));
        self.ends.extend(named.chain(self.eos));
        let vocabulary = self.inner.get_vocab(true);
        let largest = vocabulary.values().max();
        self.warnings.extend(same_number(&vocabulary));
        let missing_bytes = missing_bytes(&self.inner, &self.names);
        if !missing_bytes.is_empty() {
            let count = missing_bytes.len();
            let what =
                format!("{count} bytes have no token, and texts lose them: {missing_bytes:02x?}");
            self.warnings.push(what);
        }
        Ok(Tokenizer {
            vocabulary: largest.map_or(0, |&token| token as usize + 1),
            after_control: without_prefix(&self.inner),
            control: self.control.into_iter().map(|(_, token)| token).collect(),
            control_names,
            missing_bytes,
            inner: self.inner,
            added: self.added,
            begin: self.begin,
            bos: self.bos,
            eos: self.eos,
            ends: self.ends,
            names: self.names,
            warnings: self.warnings,
        })
    }
}

/// For what follows a control token, if only the first part of a text gets a space before it.
fn without_prefix(inner: &tokenizers::Tokenizer) -> Option<Box<tokenizers::Tokenizer>> {
    let Some(PreTokenizerWrapper::Metaspace(split)) = inner.get_pre_tokenizer() else {
        return None;
    };
    if split.get_prepend_scheme() != PrependScheme::First {
        return None;
    }
    let mut split = split.clone();
    split.set_prepend_scheme(PrependScheme::Never);
    let mut inner = inner.clone();
    inner.with_pre_tokenizer(Some(split));
    Some(Box::new(inner))
}

/// Two names of one token, if there are any.
fn same_number(vocabulary: &HashMap<String, u32>) -> Option<String> {
    let mut names = HashMap::with_capacity(vocabulary.len());
    vocabulary.iter().find_map(|(name, id)| {
        let other = names.insert(id, name)?;
        let (first, second) = (name.min(other), name.max(other));
        Some(format!("token {id} is called {first:?} and {second:?}"))
    })
}

/// Bytes of some UTF-8 text that have no token.
fn missing_bytes(inner: &tokenizers::Tokenizer, names: &Names) -> Vec<u8> {
    let bytes = 0..=u8::MAX;
    // The others are in no UTF-8.
    let of_texts = bytes.filter(|byte| !matches!(byte, 0xc0 | 0xc1 | 0xf5..));
    let is_missing =
        |&byte: &u8| names.of_byte(byte).iter().all(|name| inner.token_to_id(name).is_none());
    of_texts.filter(is_missing).collect()
}
