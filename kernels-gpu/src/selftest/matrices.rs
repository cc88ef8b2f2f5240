//! Fragments: `ldmatrix`, `stmatrix`, `mma`.

use super::{fill_shared, own_words, store_own_words};
use device::shared::{Shared, dynamic_shared_mem};
use device::warp::FULL_MASK;
use device::{Bf16, Element, F16, global, matrix, warp};
use kernel_macros::kernel;

/// Words of four 8x8 matrices of 16 bits.
const MATRICES: u32 = 4 * 32;

/// One warp. `input`: the words of four 8x8 matrices, then for each lane the row (of 32) whose address it
/// gives. `output: [32][12]`: what `ldmatrix` x4, x4.trans, x2 and x2.trans load.
///
/// # Safety
/// As the module says.
#[kernel(
    threads = 32,
    shared = super::SHARED_BYTES,
    group = "selftest",
    archs("sm_90a"),
    instances(selftest_ldmatrix)
)]
#[inline(always)]
pub unsafe fn ldmatrix(input: *const u32, output: *mut u32) {
    let base = dynamic_shared_mem::<u32>();
    // SAFETY: the caller's; the warp is whole, and every row lies in what was filled.
    unsafe {
        fill_shared(base, input, MATRICES);
        let [row] = own_words(input.add(MATRICES as usize));
        let row = base.cast::<matrix::Row>().at(row);
        let [a, b, c, d] = matrix::ldmatrix_x4(row);
        let [e, f, g, h] = matrix::ldmatrix_x4_trans(row);
        let [i, j] = matrix::ldmatrix_x2(row);
        let [k, l] = matrix::ldmatrix_x2_trans(row);
        store_own_words(output, [a, b, c, d, e, f, g, h, i, j, k, l]);
    }
}

/// One warp. `input: [32][5]`: four fragments and the row (of 32) whose address the lane gives. `output`: the
/// words of four 8x8 matrices as `stmatrix` x4 stores them, as x4.trans does, and as x2 does, which leaves the
/// last two as x4.trans left them.
///
/// # Safety
/// As the module says.
#[kernel(
    threads = 32,
    shared = super::SHARED_BYTES,
    group = "selftest",
    archs("sm_90a"),
    instances(selftest_stmatrix)
)]
#[inline(always)]
pub unsafe fn stmatrix(input: *const u32, output: *mut u32) {
    let base = dynamic_shared_mem::<u32>();
    // SAFETY: the caller's; the warp is whole, and every row lies in shared memory.
    unsafe {
        let [a, b, c, d, row] = own_words(input);
        let row = base.cast::<matrix::Row>().at(row);
        matrix::stmatrix_x4(row, [a, b, c, d]);
        write_out(base, output);
        matrix::stmatrix_x4_trans(row, [a, b, c, d]);
        write_out(base, output.add(MATRICES as usize));
        matrix::stmatrix_x2(row, [a, b]);
        write_out(base, output.add(2 * MATRICES as usize));
    }
}

/// Writes the matrices in shared memory to `output`, by one warp, between two barriers.
#[inline(always)]
unsafe fn write_out(base: Shared<u32>, output: *mut u32) {
    // SAFETY: the caller's.
    unsafe {
        warp::sync_warp(FULL_MASK);
        let mut word = warp::lane_id();
        while word < MATRICES {
            global::store_u32(output.add(word as usize), base.at(word).load());
            word += warp::LANES;
        }
        warp::sync_warp(FULL_MASK);
    }
}

/// One warp. `input: [32][10]`: `a` (4), `b` (2) and `c` (4) of `mma.m16n8k16`. `output: [32][4]`: `c + a b`.
///
/// # Safety
/// As the module says.
#[kernel(
    threads = 32,
    shared = super::SHARED_BYTES,
    group = "selftest",
    archs("sm_90a"),
    instances(
        selftest_mma_bf16: <Bf16>,
        selftest_mma_f16: <F16>
    )
)]
#[inline(always)]
pub unsafe fn mma<E: Element>(input: *const u32, output: *mut u32) {
    // SAFETY: the caller's; the warp is whole.
    unsafe {
        let [a0, a1, a2, a3, b0, b1, c @ ..]: [u32; 10] = own_words(input);
        let mut c = c.map(f32::from_bits);
        matrix::mma_m16n8k16::<E>(&mut c, [a0, a1, a2, a3], [b0, b1]);
        store_own_words(output, c.map(f32::to_bits));
    }
}
