//! Where the rows of compacted nodes lie: page ids of a program of compacted pages are places in a directory.

use super::format::{Coded, Format};
use crate::abi::Cell;
use crate::directory::LinkedCell;
use crate::layout;
use device::global;
use device::matrix::Row;

/// The directory of one layer and KV head; null where page ids are those of pages.
#[derive(Clone, Copy)]
pub(super) struct Cells(*const Cell);

impl Cells {
    /// None: page ids are those of pages.
    pub(super) const NONE: Self = Self(core::ptr::null());

    /// Those of `kv_head` that a launch over pages of format `F` is told.
    ///
    /// # Safety
    /// The directory has the KV head.
    #[inline(always)]
    pub(super) unsafe fn of<F: Format>(coded: &Coded, kv_head: u32) -> Self {
        if F::COMPACTED {
            // SAFETY: the caller's.
            unsafe { Self::new(coded.cells, coded.cell_stride, kv_head) }
        } else {
            Self::NONE
        }
    }

    /// Of `kv_head`, whose cells are `stride` from those of the next, in the layer's `cells`.
    ///
    /// # Safety
    /// There are cells of the head, if there are any.
    #[inline(always)]
    pub(super) unsafe fn new(cells: *const Cell, stride: u32, kv_head: u32) -> Self {
        if cells.is_null() {
            return Self::NONE;
        }
        // SAFETY: the caller's.
        Self(unsafe { cells.add(kv_head as usize * stride as usize) })
    }

    /// Whether page ids are places here.
    #[inline(always)]
    pub(super) fn are_there(self) -> bool {
        !self.0.is_null()
    }

    /// The cell at `place`.
    ///
    /// # Safety
    /// The directory has the place.
    #[inline(always)]
    pub(super) unsafe fn at(self, place: u32) -> LinkedCell {
        // SAFETY: the caller's.
        let [cell, bits] = unsafe { global::load_v2_u32(self.0.add(place as usize).cast()) };
        LinkedCell { cell, bits }
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
