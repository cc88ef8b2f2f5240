//! How eight tokens lie in shared memory. A tile of K or V is one such group behind the other, whatever the layout.

use device::Element;
use device::matrix::Row;
use device::shared::Shared;
use device::wgmma::{self, Descriptor, Operand};

use crate::attention::tile::group_bytes;

/// A layout of groups of eight tokens. A *piece* is eight dims of a token, 16 bytes.
pub trait GroupLayout: Copy {
    /// Bytes from a group's start to piece 0 or 1 of `token`, 0 to 7.
    fn place(token: u32, piece: u32) -> u32;

    /// From a piece at `at`, found by [`place`](Self::place), to the one of the same token `2 pairs` further on.
    fn further(at: Shared<Row>, pairs: u32) -> Shared<Row>;

    /// Token of its group that the piece in place `index` of a group is of.
    fn token(index: u32) -> u32;

    /// Starts `s = Q K^T` of 64 rows and 64 tokens, over `KS` times 16 dims.
    ///
    /// # Safety
    /// As [`wgmma::mma_shared`].
    unsafe fn multiply_key<E: Element, const D: usize, const KS: usize>(
        s: &mut [f32; 32],
        query: Operand,
        key: Shared<Row>,
    );

    /// V of 64 tokens, as the B operand of P V.
    fn value<const D: usize>(value: Shared<Row>) -> Operand;
}

/// `[dim chunk of 8][8 tokens][8 dims]`, as in a page of the pool: core matrices without swizzle.
#[derive(Clone, Copy, Debug)]
pub struct Cores;

impl GroupLayout for Cores {
    #[inline(always)]
    fn place(token: u32, piece: u32) -> u32 {
        piece * 128 + token * 16
    }

    #[inline(always)]
    fn further(at: Shared<Row>, pairs: u32) -> Shared<Row> {
        at.offset(pairs * 256)
    }

    #[inline(always)]
    fn token(index: u32) -> u32 {
        index % 8
    }

    #[inline(always)]
    unsafe fn multiply_key<E: Element, const D: usize, const KS: usize>(
        s: &mut [f32; 32],
        query: Operand,
        key: Shared<Row>,
    ) {
        let key =
            Operand { descriptor: Descriptor::new(key, 128, group_bytes(D)), step_bytes: 256 };
        // SAFETY: the caller's.
        unsafe { wgmma::mma_shared::<E, false, false, KS, _>(s, query, key, false) };
    }

    #[inline(always)]
    fn value<const D: usize>(value: Shared<Row>) -> Operand {
        let group = group_bytes(D);
        Operand { descriptor: Descriptor::new(value, group, 128), step_bytes: 2 * group }
    }
}

/// `[64 dims][8 tokens][8 pieces]`, 128-byte swizzled: piece `p` of token `t` is in the place of `p ^ t`. So copies of boxes
/// leave rows of 128 bytes (PTX ISA, "Swizzling Modes"), and eight tokens' same pieces are in different banks.
#[derive(Clone, Copy, Debug)]
pub struct Swizzled;

/// Bytes of eight tokens' 64 dims.
const ATOM: u32 = 1024;

impl GroupLayout for Swizzled {
    #[inline(always)]
    fn place(token: u32, piece: u32) -> u32 {
        token * 128 + (piece ^ token) * 16
    }

    /// Addresses of a token's pieces differ from one another in bits 4 to 6, groups beginning at multiples of 1024.
    #[inline(always)]
    fn further(at: Shared<Row>, pairs: u32) -> Shared<Row> {
        Shared::from_address(at.address() ^ (pairs % 4 * 32)).offset(pairs / 4 * ATOM)
    }

    #[inline(always)]
    fn token(index: u32) -> u32 {
        index / 8 % 8
    }

    #[inline(always)]
    unsafe fn multiply_key<E: Element, const D: usize, const KS: usize>(
        s: &mut [f32; 32],
        query: Operand,
        key: Shared<Row>,
    ) {
        // 64 dims at a time: four steps within a row.
        for atom in 0..D as u32 / 64 {
            let descriptor = Descriptor::swizzled(key.offset(atom * ATOM), 16, group_bytes(D));
            let key = Operand { descriptor, step_bytes: 32 };
            let from = query.descriptor.offset(atom * 4 * query.step_bytes);
            let query = Operand { descriptor: from, ..query };
            // SAFETY: the caller's.
            unsafe { wgmma::mma_shared::<E, false, false, 4, _>(s, query, key, atom > 0) };
        }
    }

    #[inline(always)]
    fn value<const D: usize>(value: Shared<Row>) -> Operand {
        let group = group_bytes(D);
        Operand { descriptor: Descriptor::swizzled(value, ATOM, group), step_bytes: 2 * group }
    }
}
