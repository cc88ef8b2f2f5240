//! SentencePiece's vocabularies: pieces with scores, U+2581 for a space, and a token for each byte.

use std::collections::HashMap;

use serde::Deserialize;
use serde::de::IgnoredAny;
use tokenizers::models::bpe::{BPE, Merges, Vocab};
use tokenizers::normalizers::{NormalizerWrapper, Prepend, Replace, Sequence};

use super::TokenizerError;
use crate::gguf::{Metadata, required};

/// In a piece it is a space.
pub(super) const SPACE: char = '\u{2581}';
/// Most bytes of a piece; those of models have 48 at most.
const MAX_PIECE: usize = 256;

/// BPE by the scores of a GGUF file's tokens.
pub(super) fn bpe(
    metadata: &Metadata,
    tokens: &[String],
    vocabulary: Vocab,
    unknown: Option<u32>,
) -> Result<BPE, TokenizerError> {
    let key = "tokenizer.ggml.scores";
    let scores = required(metadata.floats(key)?, key)?;
    if scores.len() != tokens.len() {
        let what = format!("{} tokens have {} scores", tokens.len(), scores.len());
        return Err(TokenizerError::Inconsistent { what });
    }
    if let Some(id) = scores.iter().position(|score| score.is_nan()) {
        let what = format!("token {id}, {:?}, has NaN for a score", tokens[id]);
        return Err(TokenizerError::Inconsistent { what });
    }
    let merges = merges(tokens, scores)?;
    let mut builder =
        BPE::builder().vocab_and_merges(vocabulary, merges).byte_fallback(true).fuse_unk(true);
    if let Some(id) = unknown {
        builder = builder.unk_token(tokens[id as usize].clone());
    }
    builder.build().map_err(TokenizerError::Tokenizers)
}

/// Whether the pieces of a `tokenizer.json`'s Unigram are short enough: they become a tree with a table for each byte,
/// so this is asked before the file is taken.
pub(super) fn check_json(json: &str) -> Result<(), TokenizerError> {
    #[derive(Deserialize)]
    struct File {
        model: Option<Model>,
    }
    #[derive(Deserialize)]
    struct Model {
        vocab: Option<Vocabulary>,
    }
    #[derive(Deserialize)]
    #[serde(untagged)]
    enum Vocabulary {
        Pieces(Vec<(String, IgnoredAny)>),
        Other(IgnoredAny),
    }
    let model = match serde_json::from_str::<File>(json) {
        Ok(file) => file.model,
        // Of two models, or vocabularies, both would be made.
        Err(error) if error.to_string().contains("duplicate field") => {
            return Err(TokenizerError::Tokenizers(error.into()));
        }
        // No JSON, or none of a tokenizer: that is said when it is taken.
        Err(_) => None,
    };
    match model.and_then(|model| model.vocab) {
        Some(Vocabulary::Pieces(pieces)) => {
            pieces.iter().enumerate().try_for_each(|(id, (piece, _))| check_length(id, piece))
        }
        Some(Vocabulary::Other(_)) | None => Ok(()),
    }
}

fn check_length(id: usize, piece: &str) -> Result<(), TokenizerError> {
    if piece.len() > MAX_PIECE {
        let what = format!("token {id} has {} bytes; the limit is {MAX_PIECE}", piece.len());
        return Err(TokenizerError::Inconsistent { what });
    }
    Ok(())
}

/// Every way to put a token together out of two: of the best token first, as SentencePiece merges.
fn merges(tokens: &[String], scores: &[f64]) -> Result<Merges, TokenizerError> {
    let ids: HashMap<&str, usize> = tokens.iter().map(|token| &**token).zip(0..).collect();
    let mut all = Vec::new();
    for (id, token) in tokens.iter().enumerate() {
        check_length(id, token)?;
        for (at, _) in token.char_indices().skip(1) {
            let (left, right) = token.split_at(at);
            if let (Some(&l), Some(&r)) = (ids.get(left), ids.get(right)) {
                all.push((id, l, r));
            }
        }
    }
    let lengths: Vec<usize> = tokens.iter().map(|token| token.chars().count()).collect();
    all.sort_by(|&(a, a_left, a_right), &(b, b_left, b_right)| {
        scores[b]
            .total_cmp(&scores[a])
            .then_with(|| lengths[b_left].cmp(&lengths[a_left]))
            .then_with(|| lengths[b_right].cmp(&lengths[a_right]))
    });
    let pair =
        |(_, left, right): (usize, usize, usize)| (tokens[left].clone(), tokens[right].clone());
    Ok(all.into_iter().map(pair).collect())
}

/// Spaces become U+2581, and one comes before every text if `prefix` says so.
pub(super) fn normalizer(prefix: bool) -> Result<NormalizerWrapper, TokenizerError> {
    let spaces = Replace::new(" ", SPACE.to_string()).map_err(TokenizerError::Tokenizers)?;
    let mut parts = vec![spaces.into()];
    if prefix {
        parts.insert(0, Prepend::new(SPACE.to_string()).into());
    }
    Ok(Sequence::new(parts).into())
}

/// The byte that a token such as `<0x0A>` is.
pub(super) fn byte(name: &str) -> Option<u8> {
    let digits = name.strip_prefix("<0x")?.strip_suffix('>')?;
    let is_hex = digits.len() == 2 && digits.bytes().all(|digit| digit.is_ascii_hexdigit());
    u8::from_str_radix(digits, 16).ok().filter(|_| is_hex)
}

/// Bytes of a token.
pub(super) fn decode(name: &str) -> Vec<u8> {
    match byte(name) {
        Some(byte) => vec![byte],
        None => name.replace(SPACE, " ").into_bytes(),
    }
}
