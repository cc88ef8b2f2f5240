//! Sizes that an operation cannot have, told before anything is enqueued.

use deft::cuda::{CudaError, DevicePtr};
use kernels_gpu::model::limits::{CHUNK, MAX_HIDDEN, MAX_K};

use super::{Feed, FillRandom, TopK, TopKPart};

pub(super) fn refused(
    argument: &'static str,
    value: impl std::fmt::Display,
    expected: impl Into<String>,
) -> CudaError {
    CudaError::Argument { argument, value: value.to_string(), expected: expected.into() }
}

/// Threads of a launch with one for each eight elements of `[rows, width]`.
pub(super) fn chunk_threads(
    argument: &'static str,
    rows: u32,
    width: u32,
) -> Result<u64, CudaError> {
    if width == 0 || !width.is_multiple_of(CHUNK) {
        return Err(refused(argument, width, "a multiple of 8"));
    }
    let threads = u64::from(rows) * u64::from(width / CHUNK);
    if threads > u64::from(u32::MAX) {
        return Err(refused("rows", rows, "fewer than 2^35 elements in all"));
    }
    Ok(threads)
}

pub(super) fn hidden(hidden: u32) -> Result<(), CudaError> {
    if hidden == 0 || hidden > MAX_HIDDEN || !hidden.is_multiple_of(CHUNK) {
        let expected = format!("a multiple of 8 up to {MAX_HIDDEN}");
        return Err(refused("hidden", hidden, expected));
    }
    Ok(())
}

pub(super) fn part(part: &TopKPart) -> Result<(), CudaError> {
    let ends = u64::from(part.first) + u64::from(part.entries);
    if ends > i32::MAX as u64 || part.entries == 0 {
        let expected = "at least 1, and less than 2^31 with those before them";
        return Err(refused("entries", part.entries, expected));
    }
    merged(part.k)
}

/// Entries of a row that parts give between them.
pub(super) fn merged(k: u32) -> Result<(), CudaError> {
    if k == 0 || k > MAX_K {
        return Err(refused("k", k, format!("1 to {MAX_K}")));
    }
    Ok(())
}

pub(super) fn top_k(top_k: &TopK) -> Result<(), CudaError> {
    let most = top_k.vocab.min(MAX_K);
    if top_k.k == 0 || top_k.k > most {
        let expected = format!("1 to {MAX_K}, and at most vocab, {}", top_k.vocab);
        return Err(refused("k", top_k.k, expected));
    }
    if top_k.vocab > i32::MAX as u32 {
        return Err(refused("vocab", top_k.vocab, "less than 2^31"));
    }
    Ok(())
}

pub(super) fn feed(feed: &Feed) -> Result<(), CudaError> {
    if feed.history != DevicePtr::NULL && feed.history_len == 0 {
        return Err(refused("history_len", 0, "at least 1 where history is kept"));
    }
    Ok(())
}

pub(super) fn fill(fill: &FillRandom) -> Result<(), CudaError> {
    if fill.count.is_multiple_of(u64::from(CHUNK)) {
        return Ok(());
    }
    Err(refused("count", fill.count, "a multiple of 8"))
}

/// What the operations were loaded for against the cache's `head_dim` or `dtype`.
pub(super) fn same<T: PartialEq + std::fmt::Display>(
    argument: &'static str,
    cache: T,
    ops: T,
) -> Result<(), CudaError> {
    if cache == ops {
        return Ok(());
    }
    Err(refused(argument, cache, format!("{ops}, which the operations were loaded for")))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_that_no_kernel_takes_are_named_with_their_limit() {
        let error = hidden(577).unwrap_err().to_string();
        assert_eq!(error, "hidden is 577; expected a multiple of 8 up to 16384");
        assert!(hidden(16_392).is_err() && hidden(0).is_err() && hidden(16_384).is_ok());
        let error = chunk_threads("ffn", 3, 12).unwrap_err().to_string();
        assert_eq!(error, "ffn is 12; expected a multiple of 8");
        assert_eq!(chunk_threads("ffn", 3, 16).unwrap(), 6);
        assert!(chunk_threads("ffn", u32::MAX, 16).is_err());
    }

    #[test]
    fn a_ranking_is_of_1_to_64_entries_that_exist() {
        let ranking = |k, vocab| top_k(&TopK { k, vocab, ..TopK::default() });
        assert!(ranking(1, 1).is_ok() && ranking(64, 1000).is_ok());
        assert!(ranking(0, 1000).is_err() && ranking(65, 1000).is_err());
        let error = ranking(5, 4).unwrap_err().to_string();
        assert_eq!(error, "k is 5; expected 1 to 64, and at most vocab, 4");
        let of_part = |k, entries| part(&TopKPart { k, entries, first: 9, ..TopKPart::default() });
        assert!(of_part(64, 1).is_ok() && of_part(1, 0).is_err());
        assert!(of_part(1, i32::MAX as u32).is_err());
        assert_eq!(of_part(65, 1).unwrap_err().to_string(), "k is 65; expected 1 to 64");
    }
}
