//! SwiGLU's gate.

use super::{chunk_of_row, load_chunk, pack_chunk, sigmoid, unpack_chunk};
use crate::model::limits::THREADS;
use device::{Bf16, Element, F16, global};
use kernel_macros::kernel;

/// `out[i] = silu(gate[i]) * up[i]` with `silu(x) = x / (1 + e^-x)`: row `i` of `gate_up: [rows, 2 * ffn]` has the
/// gate first. `out: [rows, ffn]`. A thread a chunk.
///
/// # Safety
/// The arrays are valid for their shapes and 16-byte aligned, `ffn` a multiple of 8.
#[kernel(
    threads = THREADS,
    min_blocks = 2,
    group = "model",
    instances(
        silu_mul_bf16: <Bf16>,
        silu_mul_f16: <F16>
    )
)]
#[inline(always)]
pub unsafe fn silu_mul<E: Element>(gate_up: *const u16, out: *mut u16, rows: u32, ffn: u32) {
    let Some((row, dim)) = chunk_of_row(rows, ffn) else {
        return;
    };
    let (row, ffn, dim) = (row as usize, ffn as usize, dim as usize);
    // SAFETY: chunks of the row.
    unsafe {
        let gate = gate_up.add(row * 2 * ffn + dim);
        let (gate, up) = (load_chunk(gate), load_chunk(gate.add(ffn)));
        let (gate, up) = (unpack_chunk::<E>(gate), unpack_chunk::<E>(up));
        let values = core::array::from_fn(|i| gate[i] * sigmoid(gate[i]) * up[i]);
        global::store_v4_u32(out.add(row * ffn + dim).cast(), pack_chunk::<E>(values));
    }
}
