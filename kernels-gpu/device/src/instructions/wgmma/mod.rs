//! Warpgroup matrix multiplication from shared memory (PTX ISA, "Asynchronous Warpgroup Level Matrix
//! Multiply-Accumulate Instructions"); sm_90a.
//!
//! `d[64, N] (+)= a[64, 16 * STEPS] * b[16 * STEPS, N]` in f32, by the 128 threads of four consecutive
//! warps, the first a multiple of 4. `N` is given by the accumulators' type: `[f32; N / 2]`.
//!
//! With `w` the warp within the warpgroup, `g = lane / 4` and `t = lane % 4`, element `4 * j + 2 * h + i`
//! of a thread's accumulators is row `16 * w + g + 8 * h`, column `8 * j + 2 * t + i`.
//!
//! Order of calls: [`fence`] (or [`fence_accumulators`]), multiplications, [`commit_group`],
//! [`wait_group`]; then [`settle`] on accumulators before they are read. In between nothing may touch the
//! accumulators, the registers of `a`, or write the operands in shared memory.

#[cfg(target_arch = "nvptx64")]
mod ptx;

use super::bodies;
use super::element::Element;
#[cfg(target_arch = "nvptx64")]
use super::intrinsics;
use super::shared::Shared;

/// Describes a matrix in shared memory made of 8x8 core matrices of 128 contiguous bytes, no swizzle
/// (PTX ISA, "Matrix Descriptor Format"): `leading_bytes` from a core matrix to the one with the next 8
/// of K, `stride_bytes` to the one with the next 8 of M or N. All are multiples of 16; addresses wrap at
/// 256 KiB.
///
/// A core matrix is 8 rows of M or N by 8 contiguous of K (K-major), or, for an operand that is
/// transposed, 8 rows of K by 8 contiguous of M or N (MN-major).
///
/// ```compile_fail,E0308
/// # use deft_device::{shared::Shared, wgmma::Operand};
/// fn operand(tile: Shared<u16>) -> Operand {
///     Operand { descriptor: tile, step_bytes: 256 } // an address, not a descriptor
/// }
/// ```
#[repr(transparent)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Descriptor(u64);

/// Of the two bits of a descriptor that name its layout (PTX ISA, "Matrix Descriptor Format").
const SWIZZLE_128: u64 = 1;

impl Descriptor {
    /// Of the matrix at `address`.
    #[inline(always)]
    pub const fn new<T>(address: Shared<T>, leading_bytes: u32, stride_bytes: u32) -> Self {
        const fn field(bytes: u32) -> u64 {
            ((bytes & 0x3ffff) >> 4) as u64
        }
        let [leading, stride] = [field(leading_bytes), field(stride_bytes)];
        Self(field(address.address()) | leading << 16 | stride << 32)
    }

    /// Of the matrix at `address` with the 128-byte swizzle, as copies of boxes leave it: a row is 64 neighbours of K
    /// (K-major), or of M or N (MN-major), and eight rows are 1024 bytes at a multiple of that. `stride_bytes` are from
    /// eight rows to the next eight; an MN-major matrix has its next 64 of M or N `leading_bytes` further on.
    ///
    /// K-major, the next 16 of K are 32 bytes further within a row.
    #[inline(always)]
    pub const fn swizzled<T>(address: Shared<T>, leading_bytes: u32, stride_bytes: u32) -> Self {
        Self(Self::new(address, leading_bytes, stride_bytes).0 | SWIZZLE_128 << 62)
    }

    /// Of what lies `bytes` further on, a multiple of 16.
    #[inline(always)]
    pub const fn offset(self, bytes: u32) -> Self {
        Self(self.0 + (bytes >> 4) as u64)
    }

    /// As the instructions take it.
    #[inline(always)]
    pub const fn bits(self) -> u64 {
        self.0
    }
}

/// An operand in shared memory: its first 16 of K, and how far on the next 16 begin.
#[derive(Clone, Copy, Debug)]
pub struct Operand {
    /// Of the first 16 of K.
    pub descriptor: Descriptor,
    /// Bytes from one 16 of K to the next, a multiple of 16.
    pub step_bytes: u32,
}

mod sealed {
    pub trait Sealed {}
}

/// A thread's share of the accumulators: `[f32; N / 2]` for N = 8, 16, 32, 64, 128, 256.
pub trait Accumulators: sealed::Sealed {
    /// Columns of the product.
    const N: u32;

    /// The accumulators as a slice.
    fn as_mut_slice(&mut self) -> &mut [f32];

    /// Makes the compiler treat the accumulators as changed here.
    #[doc(hidden)]
    #[cfg(target_arch = "nvptx64")]
    fn touch(&mut self);

    #[doc(hidden)]
    #[cfg(target_arch = "nvptx64")]
    unsafe fn mma_shared<E: Element, const TRANS_A: bool, const TRANS_B: bool, const STEPS: usize>(
        &mut self,
        a: Operand,
        b: Operand,
        accumulate: bool,
    );

    #[doc(hidden)]
    #[cfg(target_arch = "nvptx64")]
    unsafe fn mma_registers<E: Element, const TRANS_B: bool, const STEPS: usize>(
        &mut self,
        a: &[[u32; 4]; STEPS],
        b: Operand,
        accumulate: bool,
    );
}

macro_rules! accumulators {
    ($($n:literal)+) => {$(
        impl sealed::Sealed for [f32; $n / 2] {}

        #[cfg(not(target_arch = "nvptx64"))]
        impl Accumulators for [f32; $n / 2] {
            const N: u32 = $n;

            fn as_mut_slice(&mut self) -> &mut [f32] {
                self
            }
        }
    )+};
}
accumulators!(8 16 32 64 128 256);

/// Orders accesses to registers and shared memory before the multiplications that follow.
///
/// # Safety
/// All lanes of the warpgroup's four warps call it.
#[inline(always)]
#[track_caller]
pub unsafe fn fence() {
    bodies! {
        // SAFETY: the caller's.
        ptx { unsafe { intrinsics::wgmma_fence() } }
        emulated { crate::emulator::wgmma::fence() }
    }
}

/// [`fence`], with what was computed into `d` before it staying before it.
///
/// # Safety
/// As there.
#[inline(always)]
#[track_caller]
pub unsafe fn fence_accumulators<D: Accumulators>(d: &mut D) {
    bodies! {
        ptx { d.touch() }
        emulated { let _ = d; }
    }
    // SAFETY: the caller's.
    unsafe { fence() }
}

/// Closes the present group of multiplications.
///
/// # Safety
/// All lanes of the warpgroup's four warps call it.
#[inline(always)]
#[track_caller]
pub unsafe fn commit_group() {
    bodies! {
        // SAFETY: the caller's.
        ptx { unsafe { intrinsics::wgmma_commit_group() } }
        emulated { crate::emulator::wgmma::commit_group() }
    }
}

/// Waits until all but the `PENDING` latest groups are complete. Accumulators need [`settle`] before they
/// are read.
///
/// # Safety
/// All lanes of the warpgroup's four warps call it.
#[inline(always)]
#[track_caller]
pub unsafe fn wait_group<const PENDING: u32>() {
    bodies! {
        // SAFETY: the caller's.
        ptx { unsafe { intrinsics::wgmma_wait_group(PENDING as u64) } }
        emulated { crate::emulator::wgmma::wait_group(PENDING) }
    }
}

/// Hands over accumulators that a [`wait_group`] before this call has covered. No instruction: it keeps
/// the compiler from reading them before the wait.
///
/// # Safety
/// All multiplications into `d` are complete.
#[inline(always)]
#[track_caller]
pub unsafe fn settle<D: Accumulators>(d: &mut D) {
    bodies! {
        ptx { d.touch() }
        emulated { crate::emulator::wgmma::settle(d.as_mut_slice()) }
    }
}

/// [`wait_group`], then [`settle`].
///
/// # Safety
/// As there.
#[inline(always)]
#[track_caller]
pub unsafe fn wait_group_settle<const PENDING: u32, D: Accumulators>(d: &mut D) {
    // SAFETY: the caller's.
    unsafe {
        wait_group::<PENDING>();
        settle(d);
    }
}

/// Starts `d (+)= a * b`, both operands in shared memory, over `STEPS` (1, 2, 4, 8 or 16) times 16 of K;
/// without `accumulate`, what `d` held is dropped. `TRANS_A`, `TRANS_B`: the operand is MN-major.
///
/// # Safety
/// All lanes of the warpgroup's four warps call it with the same operands, after [`fence`]. The operands
/// are written, and visible to the async proxy.
#[inline(always)]
#[track_caller]
pub unsafe fn mma_shared<
    E: Element,
    const TRANS_A: bool,
    const TRANS_B: bool,
    const STEPS: usize,
    D: Accumulators,
>(
    d: &mut D,
    a: Operand,
    b: Operand,
    accumulate: bool,
) {
    bodies! {
        // SAFETY: the caller's.
        ptx { unsafe { d.mma_shared::<E, TRANS_A, TRANS_B, STEPS>(a, b, accumulate) } }
        emulated {
            crate::emulator::wgmma::mma(
                d.as_mut_slice(),
                crate::emulator::wgmma::A::Shared {
                    descriptor: a.descriptor.0, step_bytes: a.step_bytes, transposed: TRANS_A,
                },
                crate::emulator::wgmma::B {
                    descriptor: b.descriptor.0, step_bytes: b.step_bytes, transposed: TRANS_B,
                },
                crate::emulator::wgmma::Shape { n: D::N, steps: STEPS as u32, bf16: E::IS_BF16, accumulate },
            )
        }
    }
}

/// Starts `d (+)= a * b` with `a` in registers, over `STEPS` (1, 2, 4 or 8) times 16 of K. `a[s]` is, of
/// the warp's 16 rows and the step's 16 columns, what `mma.m16n8k16` takes as `a`.
///
/// # Safety
/// As [`mma_shared`]; the registers of `a` stay as they are until the wait.
#[inline(always)]
#[track_caller]
pub unsafe fn mma_registers<
    E: Element,
    const TRANS_B: bool,
    const STEPS: usize,
    D: Accumulators,
>(
    d: &mut D,
    a: &[[u32; 4]; STEPS],
    b: Operand,
    accumulate: bool,
) {
    bodies! {
        // SAFETY: the caller's.
        ptx { unsafe { d.mma_registers::<E, TRANS_B, STEPS>(a, b, accumulate) } }
        emulated {
            crate::emulator::wgmma::mma(
                d.as_mut_slice(),
                crate::emulator::wgmma::A::Registers(a),
                crate::emulator::wgmma::B {
                    descriptor: b.descriptor.0, step_bytes: b.step_bytes, transposed: TRANS_B,
                },
                crate::emulator::wgmma::Shape { n: D::N, steps: STEPS as u32, bf16: E::IS_BF16, accumulate },
            )
        }
    }
}
