//! SentencePiece's vocabularies: pieces with scores, U+2581 for a space, and a token for each byte.

use std::collections::HashMap;

use tokenizers::models::bpe::{BPE, Merges, Vocab};
use tokenizers::normalizers::{NormalizerWrapper, Prepend, Replace, Sequence};

use super::TokenizerError;
use crate::gguf::{Metadata, required};

/// In a piece it is a space.
pub(super) const SPACE: char = '\u{2581}';
/// Most bytes of a piece that others are merged to; those of models have 48 at most.
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

/// Every way to put a token together out of two: of the best token first, as SentencePiece merges.
fn merges(tokens: &[String], scores: &[f64]) -> Result<Merges, TokenizerError> {
    let ids: HashMap<&str, usize> = tokens.iter().map(|token| &**token).zip(0..).collect();
    let mut all = Vec::new();
    for (id, token) in tokens.iter().enumerate() {
        if token.len() > MAX_PIECE {
            let what = format!("token {id} has {} bytes; the limit is {MAX_PIECE}", token.len());
            return Err(TokenizerError::Inconsistent { what });
        }
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
