//! Warp-wide matrix fragments: `ldmatrix`, `stmatrix` and `mma` (PTX ISA, "Warp Level Matrix
//! Instructions").
//!
//! An 8x8 matrix of 16-bit elements as a fragment: lane `l` holds row `l / 4`, columns `2 * (l % 4)` and
//! the next, in one word.

use super::bodies;
use super::element::Element;
use super::shared::Shared;
#[cfg(target_arch = "nvptx64")]
use core::arch::asm;

/// A row of an 8x8 matrix of 16-bit elements, as it lies in shared memory.
pub type Row = [u16; 8];

macro_rules! load {
    ($($(#[$doc:meta])* $name:ident, $count:literal, $trans:literal, $suffix:literal, $list:literal, ($($i:tt)+);)+) => {$(
        $(#[$doc])*
        ///
        /// # Safety
        /// All lanes of the warp call it together; every row's address is in shared memory, valid and
        /// 16-byte aligned.
        #[inline(always)]
        #[track_caller]
        pub unsafe fn $name(row: Shared<Row>) -> [u32; $count] {
            bodies! {
                ptx {
                    let mut fragments = [0; $count];
                    // SAFETY: the caller's.
                    unsafe {
                        asm!(concat!("ldmatrix.sync.aligned.m8n8.", $suffix, ".shared.b16 {{", $list, "}}, [{row}];"),
                            $(out(reg32) fragments[$i],)+ row = in(reg32) row.address(), options(nostack));
                    }
                    fragments
                }
                emulated { crate::emulator::matrix::load::<$count>(row.address(), $trans) }
            }
        }
    )+};
}

load! {
    /// Loads two 8x8 matrices: lane `8 * m + r` (m < 2) gives the address of matrix `m`'s row `r`.
    ldmatrix_x2, 2, false, "x2", "{0}, {1}", (0 1);
    /// Loads four 8x8 matrices: lane `8 * m + r` gives the address of matrix `m`'s row `r`.
    ldmatrix_x4, 4, false, "x4", "{0}, {1}, {2}, {3}", (0 1 2 3);
    /// [`ldmatrix_x2`], each matrix transposed.
    ldmatrix_x2_trans, 2, true, "x2.trans", "{0}, {1}", (0 1);
    /// [`ldmatrix_x4`], each matrix transposed.
    ldmatrix_x4_trans, 4, true, "x4.trans", "{0}, {1}, {2}, {3}", (0 1 2 3);
}

macro_rules! store {
    ($($(#[$doc:meta])* $name:ident, $count:literal, $trans:literal, $suffix:literal, $list:literal, ($($i:tt)+);)+) => {$(
        $(#[$doc])*
        ///
        /// # Safety
        /// All lanes of the warp call it together; every row's address is in shared memory, valid and
        /// 16-byte aligned.
        #[inline(always)]
        #[track_caller]
        pub unsafe fn $name(row: Shared<Row>, fragments: [u32; $count]) {
            bodies! {
                ptx {
                    // SAFETY: the caller's.
                    unsafe {
                        asm!(concat!("stmatrix.sync.aligned.m8n8.", $suffix, ".shared.b16 [{row}], {{", $list, "}};"),
                            $(in(reg32) fragments[$i],)+ row = in(reg32) row.address(), options(nostack));
                    }
                }
                emulated { crate::emulator::matrix::store::<$count>(row.address(), fragments, $trans) }
            }
        }
    )+};
}

store! {
    /// Stores two 8x8 matrices, the inverse of [`ldmatrix_x2`]; needs sm_90.
    stmatrix_x2, 2, false, "x2", "{0}, {1}", (0 1);
    /// Stores four 8x8 matrices, the inverse of [`ldmatrix_x4`]; needs sm_90.
    stmatrix_x4, 4, false, "x4", "{0}, {1}, {2}, {3}", (0 1 2 3);
    /// [`stmatrix_x4`], each matrix transposed; needs sm_90.
    stmatrix_x4_trans, 4, true, "x4.trans", "{0}, {1}, {2}, {3}", (0 1 2 3);
}

/// `c += a * b` for `a: [16, 16]`, `b: [16, 8]`, `c: [16, 8]` in f32.
///
/// With `g = lane / 4` and `t = lane % 4`: `a` is the 8x8 fragments of (rows 0.., columns 0..), (rows
/// 8.., columns 0..), (rows 0.., columns 8..), (rows 8.., columns 8..); `b` holds rows `2t, 2t + 1` of
/// column `g`, then rows `2t + 8, 2t + 9`; `c` holds row `g`, columns `2t, 2t + 1`, then row `g + 8`.
///
/// # Safety
/// All lanes of the warp call it together.
#[inline(always)]
#[track_caller]
pub unsafe fn mma_m16n8k16<E: Element>(c: &mut [f32; 4], a: [u32; 4], b: [u32; 2]) {
    bodies! {
        ptx {
            macro_rules! mma {
                ($type:literal) => {
                    // SAFETY: the caller's.
                    unsafe {
                        asm!(concat!("mma.sync.aligned.m16n8k16.row.col.f32.", $type, ".", $type,
                                ".f32 {{{0}, {1}, {2}, {3}}}, {{{4}, {5}, {6}, {7}}}, {{{8}, {9}}}, {{{0}, {1}, {2}, {3}}};"),
                            inout(reg32) c[0], inout(reg32) c[1], inout(reg32) c[2], inout(reg32) c[3],
                            in(reg32) a[0], in(reg32) a[1], in(reg32) a[2], in(reg32) a[3],
                            in(reg32) b[0], in(reg32) b[1], options(nomem, nostack));
                    }
                };
            }
            if E::IS_BF16 { mma!("bf16") } else { mma!("f16") }
        }
        emulated { crate::emulator::matrix::mma_m16n8k16(c, a, b, E::IS_BF16) }
    }
}
