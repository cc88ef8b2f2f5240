//! Entry points of the kernels that take a record. Their parameters are its fields: a pointer in a record would cost
//! generic loads.
#![expect(clippy::too_many_arguments, reason = "a kernel's parameters are scalars and pointers")]

use crate::abi::AppendTarget;
use crate::model::limits::{
    BEST_ROWS_SHARED_BYTES, BEST_SHARED_BYTES, BEST_THREADS, MERGE_TOP_K_THREADS,
    NORM_SHARED_BYTES, NORM_THREADS, PICK_SHARED_BYTES, THREADS, TOP_K_SHARED_BYTES, TOP_K_THREADS,
};
use device::{Bf16, Element, F16};

use super::{BestRows, BestState, Feed, MergeTopK, Norm, Pick, Qkv, Sampling, TopK, TopKPart};
use kernel_macros::kernel;

/// One block of [`rms_norm`](super::rms_norm).
#[kernel(
    threads = NORM_THREADS,
    shared = NORM_SHARED_BYTES,
    group = "model",
    instances(
        rms_norm_bf16: <Bf16>,
        rms_norm_f16: <F16>
    )
)]
#[inline(always)]
unsafe fn rms_norm<E: Element>(
    x: *const f32,
    picks: *const u32,
    weight: *const f32,
    out: *mut u16,
    hidden: u32,
    eps: f32,
) {
    // SAFETY: the caller's.
    unsafe { super::rms_norm::<E>(Norm { x, picks, weight, out, hidden, eps }) }
}

/// One block of [`add_rms_norm`](super::add_rms_norm).
#[kernel(
    threads = NORM_THREADS,
    shared = NORM_SHARED_BYTES,
    group = "model",
    instances(
        add_rms_norm_bf16: <Bf16>,
        add_rms_norm_f16: <F16>
    )
)]
#[inline(always)]
unsafe fn add_rms_norm<E: Element>(
    x: *mut f32,
    added: *const u16,
    picks: *const u32,
    weight: *const f32,
    out: *mut u16,
    hidden: u32,
    eps: f32,
) {
    // SAFETY: the caller's.
    unsafe { super::add_rms_norm::<E>(Norm { x, picks, weight, out, hidden, eps }, added) }
}

/// One block of [`rotate_append`](super::rotate_append).
#[kernel(
    threads = THREADS,
    min_blocks = 2,
    group = "model",
    instances(
        rotate_append_bf16_d64: <Bf16, 64>,
        rotate_append_bf16_d128: <Bf16, 128>,
        rotate_append_bf16_d256: <Bf16, 256>,
        rotate_append_f16_d64: <F16, 64>,
        rotate_append_f16_d128: <F16, 128>,
        rotate_append_f16_d256: <F16, 256>
    )
)]
#[inline(always)]
unsafe fn rotate_append<E: Element, const D: u32>(
    qkv: *const u16,
    bias: *const f32,
    norms: *const f32,
    q: *mut u16,
    pool: *mut u16,
    targets: *const AppendTarget,
    lengths: *const u32,
    tail_pages: *const u32,
    positions: *const u32,
    cos: *const f32,
    sin: *const f32,
    count: u32,
    q_heads: u32,
    kv_heads: u32,
    eps: f32,
) {
    // SAFETY: the caller's.
    unsafe {
        super::rotate_append::<E, D>(Qkv {
            qkv,
            bias,
            norms,
            q,
            pool,
            targets,
            lengths,
            tail_pages,
            positions,
            cos,
            sin,
            count,
            q_heads,
            kv_heads,
            eps,
        })
    }
}

/// One block of [`log_softmax_top_k`](super::log_softmax_top_k).
#[kernel(
    threads = TOP_K_THREADS,
    shared = TOP_K_SHARED_BYTES,
    group = "model"
)]
#[inline(always)]
unsafe fn log_softmax_top_k(
    logits: *const f32,
    ids: *mut u32,
    log_probs: *mut f32,
    vocab: u32,
    k: u32,
) {
    // SAFETY: the caller's.
    unsafe { super::log_softmax_top_k(TopK { logits, ids, log_probs, vocab, k }) }
}

/// One block of [`sample_top_k`](super::sample_top_k).
#[kernel(
    threads = TOP_K_THREADS,
    shared = TOP_K_SHARED_BYTES,
    group = "model"
)]
#[inline(always)]
unsafe fn sample_top_k(
    logits: *const f32,
    ids: *mut u32,
    log_probs: *mut f32,
    vocab: u32,
    k: u32,
    streams: *const u32,
    steps: *const u32,
    settings: *const u32,
) {
    // SAFETY: the caller's.
    unsafe {
        super::sample_top_k(
            TopK { logits, ids, log_probs, vocab, k },
            Sampling { streams, steps, settings },
        )
    }
}

/// One block of [`top_k_part`](super::top_k_part).
#[kernel(
    threads = TOP_K_THREADS,
    shared = TOP_K_SHARED_BYTES,
    group = "model"
)]
#[inline(always)]
unsafe fn top_k_part(logits: *const f32, found: *mut u32, entries: u32, first: u32, k: u32) {
    // SAFETY: the caller's.
    unsafe { super::top_k_part(TopKPart { logits, found, entries, first, k }) }
}

/// One block of [`sample_part`](super::sample_part).
#[kernel(
    threads = TOP_K_THREADS,
    shared = TOP_K_SHARED_BYTES,
    group = "model"
)]
#[inline(always)]
unsafe fn sample_part(
    logits: *const f32,
    found: *mut u32,
    entries: u32,
    first: u32,
    k: u32,
    streams: *const u32,
    steps: *const u32,
    settings: *const u32,
) {
    // SAFETY: the caller's.
    unsafe {
        super::sample_part(
            TopKPart { logits, found, entries, first, k },
            Sampling { streams, steps, settings },
        )
    }
}

/// One block of [`merge_top_k`](super::merge_top_k).
#[kernel(threads = MERGE_TOP_K_THREADS, group = "model")]
#[inline(always)]
unsafe fn merge_top_k(
    found: *const u32,
    ids: *mut u32,
    log_probs: *mut f32,
    parts: u32,
    rows: u32,
    k: u32,
) {
    // SAFETY: the caller's.
    unsafe { super::merge_top_k(MergeTopK { found, ids, log_probs, parts, rows, k }) }
}

/// One block of [`pick_tokens`](super::pick_tokens).
#[kernel(
    threads = TOP_K_THREADS,
    shared = PICK_SHARED_BYTES,
    group = "model"
)]
#[inline(always)]
unsafe fn pick_tokens(
    logits: *const f32,
    rows: *const u32,
    asks: *const u32,
    ids: *mut u32,
    log_probs: *mut f32,
    vocab: u32,
) {
    // SAFETY: the caller's.
    unsafe { super::pick_tokens(Pick { logits, rows, asks, ids, log_probs, vocab }) }
}

/// One block of [`best_rows`](super::best_rows).
#[kernel(
    threads = TOP_K_THREADS,
    shared = BEST_ROWS_SHARED_BYTES,
    group = "model"
)]
#[inline(always)]
unsafe fn best_rows(
    logits: *const f32,
    scores: *const f32,
    totals: *mut f32,
    keys: *mut u64,
    state: *mut u32,
    vocab: u32,
    segment_bits: u32,
) {
    let rows = BestRows { logits, scores, totals, vocab, segment_bits, entry_bits: 0 };
    // SAFETY: the caller's.
    unsafe { super::best_rows(rows, keys, state) }
}

/// One block of [`best_count`](super::best_count).
#[kernel(threads = BEST_THREADS, shared = BEST_SHARED_BYTES, group = "model")]
#[inline(always)]
unsafe fn best_count(
    keys: *const u64,
    state: *mut u32,
    len: u32,
    k: u32,
    digit: u32,
    first: u32,
    shift: u32,
    width: u32,
    width_before: u32,
) {
    let state = BestState { words: state, digit, first, shift, width, width_before };
    // SAFETY: the caller's.
    unsafe { super::best_count(keys, len, k, state) }
}

/// One block of [`best_collect`](super::best_collect).
#[kernel(threads = BEST_THREADS, shared = BEST_SHARED_BYTES, group = "model")]
#[inline(always)]
unsafe fn best_collect(
    logits: *const f32,
    scores: *const f32,
    totals: *mut f32,
    keys: *const u64,
    state: *mut u32,
    candidates: *mut u64,
    len: u32,
    vocab: u32,
    segment_bits: u32,
    entry_bits: u32,
    digit: u32,
    width_before: u32,
) {
    let rows = BestRows { logits, scores, totals, vocab, segment_bits, entry_bits };
    let state = BestState { words: state, digit, first: 0, shift: 0, width: 0, width_before };
    // SAFETY: the caller's.
    unsafe { super::best_collect(rows, keys, len, state, candidates) }
}

/// One block of [`best_emit`](super::best_emit).
#[kernel(threads = BEST_THREADS, shared = BEST_SHARED_BYTES, group = "model")]
#[inline(always)]
unsafe fn best_emit(
    logits: *const f32,
    totals: *mut f32,
    candidates: *const u64,
    state: *mut u32,
    entries: *mut u32,
    log_probs: *mut f32,
    vocab: u32,
    entry_bits: u32,
    digit: u32,
    width_before: u32,
) {
    let scores = core::ptr::null();
    let rows = BestRows { logits, scores, totals, vocab, segment_bits: 0, entry_bits };
    let state = BestState { words: state, digit, first: 0, shift: 0, width: 0, width_before };
    // SAFETY: the caller's.
    unsafe { super::best_emit(rows, candidates, state, entries, log_probs) }
}

/// One block of [`feed`](super::feed).
#[kernel(
    threads = THREADS,
    min_blocks = 2,
    group = "model",
    instances(feed_tokens)
)]
#[inline(always)]
unsafe fn feed(
    next: *const u32,
    targets: *const AppendTarget,
    tokens: *mut u32,
    positions: *mut u32,
    history: *mut u32,
    history_len: u32,
    next_stride: u32,
    count: u32,
) {
    // SAFETY: the caller's.
    unsafe {
        super::feed(Feed {
            next,
            targets,
            tokens,
            positions,
            history,
            history_len,
            next_stride,
            count,
        })
    }
}
