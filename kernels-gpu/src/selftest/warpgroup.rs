//! `wgmma`, from shared memory and from registers.

use super::{fill_shared, own_words, store_own_words};
use device::shared::dynamic_shared_mem;
use device::wgmma::{self, Accumulators, Descriptor, Operand};
use device::{Bf16, Element, F16, global};
use kernel_macros::kernel;

/// First words of the input of a `wgmma` kernel: where operands lie, in bytes.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[cfg_attr(not(target_arch = "nvptx64"), derive(bytemuck::Pod, bytemuck::Zeroable))]
pub struct Warpgroup {
    /// Words to copy into shared memory, from what follows.
    pub words: u32,
    /// `a`: offset in shared memory, leading bytes, stride bytes, step bytes.
    pub a: [u32; 4],
    /// `b`, likewise.
    pub b: [u32; 4],
    /// 0: what the accumulators hold is dropped.
    pub accumulate: u32,
    /// 1: `b` has the 128-byte swizzle.
    pub swizzled: u32,
}

/// Words of [`Warpgroup`].
const HEADER: usize = size_of::<Warpgroup>() / 4;

/// Reads the operands' places and fills shared memory; what is left of the input.
#[inline(always)]
unsafe fn prepare(input: *const u32) -> (Operand, Operand, bool, *const u32) {
    let base = dynamic_shared_mem::<u32>();
    // SAFETY: the caller's.
    unsafe {
        let word = |i: usize| global::load_u32(input.add(i));
        let operand = |i: usize, swizzled: bool| {
            let (at, leading, stride) = (base.offset(word(i)), word(i + 1), word(i + 2));
            let descriptor = match swizzled {
                true => Descriptor::swizzled(at, leading, stride),
                false => Descriptor::new(at, leading, stride),
            };
            Operand { descriptor, step_bytes: word(i + 3) }
        };
        let words = word(0);
        fill_shared(base, input.add(HEADER), words);
        let rest = input.add(HEADER + words as usize);
        (operand(1, false), operand(5, word(10) != 0), word(9) != 0, rest)
    }
}

/// Four warps. `input`: [`Warpgroup`], shared memory's words, `[128][N / 2]` accumulators. `output:
/// [128][N / 2]`: `d (+)= a b` over `STEPS` steps.
///
/// # Safety
/// As the module says.
#[kernel(
    threads = 128,
    shared = super::SHARED_BYTES,
    group = "selftest",
    archs("sm_90a"),
    instances(
        selftest_wgmma_n8: <Bf16, false, false, 1, 4>,
        selftest_wgmma_n16: <F16, false, false, 2, 8>,
        selftest_wgmma_n32: <Bf16, false, false, 4, 16>,
        selftest_wgmma_n64: <Bf16, false, false, 4, 32>,
        selftest_wgmma_n128: <F16, false, false, 4, 64>,
        selftest_wgmma_n64_trans_a: <Bf16, true, false, 4, 32>,
        selftest_wgmma_n64_trans_b: <Bf16, false, true, 4, 32>,
        selftest_wgmma_n128_trans_ab: <F16, true, true, 4, 64>,
        selftest_wgmma_n256_trans_b: <Bf16, false, true, 4, 128>
    )
)]
#[inline(always)]
pub unsafe fn wgmma_shared<
    E: Element,
    const TRANS_A: bool,
    const TRANS_B: bool,
    const STEPS: usize,
    const COUNT: usize,
>(
    input: *const u32,
    output: *mut u32,
) where
    [f32; COUNT]: Accumulators,
{
    // SAFETY: the caller's; the warpgroup is whole.
    unsafe {
        let (a, b, accumulate, rest) = prepare(input);
        let mut d = own_words::<COUNT>(rest).map(f32::from_bits);
        wgmma::fence_accumulators(&mut d);
        wgmma::mma_shared::<E, TRANS_A, TRANS_B, STEPS, _>(&mut d, a, b, accumulate);
        wgmma::commit_group();
        wgmma::wait_group_settle::<0, _>(&mut d);
        store_own_words(output, d.map(f32::to_bits));
    }
}

/// As [`wgmma_shared`], with `[128][4]` words of `a` for each of four steps before the accumulators.
///
/// # Safety
/// As the module says.
#[kernel(
    threads = 128,
    shared = super::SHARED_BYTES,
    group = "selftest",
    archs("sm_90a"),
    instances(
        selftest_wgmma_n64_registers: <Bf16, false, 32>,
        selftest_wgmma_n128_registers_trans_b: <F16, true, 64>
    )
)]
#[inline(always)]
pub unsafe fn wgmma_registers<E: Element, const TRANS_B: bool, const COUNT: usize>(
    input: *const u32,
    output: *mut u32,
) where
    [f32; COUNT]: Accumulators,
{
    // SAFETY: the caller's; the warpgroup is whole.
    unsafe {
        let (_, b, accumulate, rest) = prepare(input);
        let a: [[u32; 4]; 4] = core::array::from_fn(|step| own_words(rest.add(step * 512)));
        let mut d = own_words::<COUNT>(rest.add(4 * 512)).map(f32::from_bits);
        wgmma::fence_accumulators(&mut d);
        wgmma::mma_registers::<E, TRANS_B, 4, _>(&mut d, &a, b, accumulate);
        wgmma::commit_group();
        wgmma::wait_group_settle::<0, _>(&mut d);
        store_own_words(output, d.map(f32::to_bits));
    }
}
