//! Tensor maps of foreign caches, as Hopper's copies of boxes read them (CUDA Driver API, "Tensor Map Object Management").

use super::error::check;
use super::kernels::ForeignHalf;
use super::{CudaDevice, CudaError, sys};

/// Eight elements of 16 bits: what strides are counted in.
const PIECE_BYTES: u64 = 16;
/// Elements of a row that the 128-byte swizzle takes.
const ROW: u32 = 64;
/// Tokens of a box: those that lie in one group in shared memory.
pub(super) const BOX_TOKENS: u32 = 8;

/// What the kernels take for a tensor of 16-bit elements, of blocks of `1 << shift` tokens: its dimensions are, innermost
/// first, 64 dims, tokens of a block, the row's parts of 64 dims, KV heads and blocks; a box is eight tokens of one head.
///
/// # Errors
/// [`CudaError::Driver`] for what it cannot describe: strides of 2^40 bytes and more.
pub(super) fn tensor_map(
    device: &CudaDevice,
    half: &ForeignHalf,
    shift: u32,
    [kv_heads, head_dim]: [u32; 2],
) -> Result<[u64; 16], CudaError> {
    let parts = head_dim / ROW;
    let [of_block, of_token, of_head] = half.strides.map(|pieces| u64::from(pieces) * PIECE_BYTES);
    let sizes = [ROW, 1 << shift, parts, kv_heads, half.blocks].map(u64::from);
    let mut strides = [of_token, u64::from(ROW) * 2, of_head, of_block];
    for (stride, &size) in strides.iter_mut().zip(&sizes[1..]) {
        if size == 1 {
            // It is not counted with, but the driver looks at it.
            *stride = PIECE_BYTES;
        }
    }
    let of_box = [ROW, BOX_TOKENS, parts, 1, 1];
    let _current = device.activate()?;
    let mut map = sys::TensorMap([0; 16]);
    // SAFETY: a place for a map, as aligned as the driver asks for; arrays as long as the rank says.
    let code = unsafe {
        sys::cuTensorMapEncodeTiled(
            &raw mut map,
            sys::TENSOR_MAP_UINT16,
            sizes.len() as u32,
            half.first.0,
            sizes.as_ptr(),
            strides.as_ptr(),
            of_box.as_ptr(),
            [1; 5].as_ptr(),
            sys::TENSOR_MAP_NO_INTERLEAVE,
            sys::TENSOR_MAP_SWIZZLE_128B,
            if parts > 1 { sys::TENSOR_MAP_L2_256B } else { sys::TENSOR_MAP_L2_128B },
            sys::TENSOR_MAP_ZEROS_OUTSIDE,
        )
    };
    check("cuTensorMapEncodeTiled", code).map(|()| map.0)
}
