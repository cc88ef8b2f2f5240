//! Where the rows of compacted nodes lie: the page ids of their segments are places in a directory.

use super::format::{Coded, Format};
use crate::abi::Cell;
use crate::directory::LinkedCell;
use crate::layout;
use device::global;
use device::matrix::Row;

/// The directory of one layer and KV head.
#[derive(Clone, Copy)]
pub(super) struct Cells {
    /// The KV head's first entry; null where a launch has no pages of compacted nodes.
    first: *const Cell,
    kv_heads: u32,
    kv_head: u32,
}

impl Cells {
    /// Those of `kv_head` of `kv_heads` that a launch over pages of format `F` is told.
    ///
    /// # Safety
    /// The directory has the KV head.
    #[inline(always)]
    pub(super) unsafe fn of<F: Format>(coded: &Coded, kv_heads: u32, kv_head: u32) -> Self {
        let cells = if F::COMPACTED { coded.cells } else { core::ptr::null() };
        // SAFETY: the caller's.
        unsafe { Self::new(cells, coded.cell_stride, kv_heads, kv_head) }
    }

    /// Of `kv_head` of `kv_heads`, whose cells are `stride` from those of the next, in the layer's `cells`, if there are any.
    ///
    /// # Safety
    /// There are cells of the head, if there are any.
    #[inline(always)]
    pub(super) unsafe fn new(cells: *const Cell, stride: u32, kv_heads: u32, kv_head: u32) -> Self {
        let mut first = cells;
        if !cells.is_null() {
            // SAFETY: the caller's.
            first = unsafe { cells.add(kv_head as usize * stride as usize) };
        }
        Self { first, kv_heads, kv_head }
    }

    /// The cell at `place`.
    ///
    /// # Safety
    /// The directory has the place.
    #[inline(always)]
    pub(super) unsafe fn at(self, place: u32) -> LinkedCell {
        // SAFETY: the caller's.
        let [cell, bits] = unsafe { global::load_v2_u32(self.first.add(place as usize).cast()) };
        LinkedCell { cell, bits }
    }

    /// The cell that the KV head has of a native page.
    #[inline(always)]
    pub(super) fn of_page(self, page: u32) -> u32 {
        page * self.kv_heads + self.kv_head
    }
}

/// K of `cell` in a layer's pages.
///
/// # Safety
/// The layer has the cell.
#[inline(always)]
pub(super) unsafe fn key<const D: usize>(pool: *const u16, cell: u32) -> *const Row {
    let offset = layout::page_offset(D as u32, 1, cell, 0);
    // SAFETY: the caller's.
    unsafe { pool.add(offset as usize).cast() }
}
