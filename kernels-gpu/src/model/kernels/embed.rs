//! Rows of the embedding table as the residual stream's begin.

use super::{chunk_of_row, load_chunk, store_chunk_f32, unpack_chunk};
use crate::model::limits::THREADS;
use device::{Bf16, Element, F16, global};
use kernel_macros::kernel;

/// `x[i] = table[tokens[i]]`: `tokens: [rows]`, `table: [vocab, hidden]` of `E`, `x: [rows, hidden]` f32. A thread
/// a chunk.
///
/// # Safety
/// The arrays are valid for their shapes and 16-byte aligned, `hidden` a multiple of 8, tokens below `vocab`.
#[kernel(
    threads = THREADS,
    min_blocks = 2,
    group = "model",
    instances(
        embed_bf16: <Bf16>,
        embed_f16: <F16>
    )
)]
#[inline(always)]
pub unsafe fn embed<E: Element>(
    tokens: *const u32,
    table: *const u16,
    x: *mut f32,
    rows: u32,
    hidden: u32,
) {
    let Some((row, dim)) = chunk_of_row(rows, hidden) else {
        return;
    };
    // SAFETY: the row exists, its token too, and `dim` is the start of one of their chunks.
    unsafe {
        let token = global::load_u32(tokens.add(row as usize));
        let from = token as usize * hidden as usize + dim as usize;
        let data = load_chunk(table.add(from));
        let to = row as usize * hidden as usize + dim as usize;
        store_chunk_f32(x.add(to), unpack_chunk::<E>(data));
    }
}
