//! Sixteen tokens of a page, by one warp: `mma.sync`.

use super::{Block, Totals, hide};
use crate::abi::WorkItem;
use crate::attention::kernels::group_layout::Cores;
use crate::attention::kernels::page::PartialPage;
use crate::attention::kernels::rows::soft_cap;
use crate::attention::kernels::warp_tile::WarpTile;
use crate::attention::tile::group_bytes;
use device::Element;
use device::matrix::Row;
use device::shared::Shared;

/// A page whose K is in shared memory.
#[derive(Clone, Copy)]
pub(super) struct Landed {
    pub(super) key: Shared<Row>,
    pub(super) page: PartialPage,
    pub(super) cell: u32,
}

/// Rows of an item in shared memory: those from `first` on, `step` apart, before `end`.
#[derive(Clone, Copy)]
pub(super) struct Columns {
    /// The item's first row.
    pub(super) queries: Shared<Row>,
    /// What is kept of it.
    pub(super) kept: Shared<[u32; 2]>,
    pub(super) first: u32,
    pub(super) step: u32,
    pub(super) end: u32,
}

/// Scores tokens `first..first + 16` of a page, `2 N` rows at a time. `KS = D / 16` for head dimension `D`.
///
/// # Safety
/// The warp is whole; page and rows are there.
#[inline(always)]
pub(super) unsafe fn score<E: Element, const D: usize, const KS: usize, const N: usize>(
    block: &Block,
    item: &WorkItem,
    Landed { key, page, cell }: Landed,
    first: u32,
    columns: Columns,
) {
    let lane = block.thread % 32;
    let token = first + lane / 4;
    // SAFETY: the caller's.
    unsafe {
        let mut totals = Totals::new(block, page, cell, token);
        // The sixteen tokens are what an item's rows are to attention.
        let tile = WarpTile::<KS, 0>::new::<D>(key.offset(first / 8 * group_bytes(D)));
        let mut row = columns.first;
        while row < columns.end {
            let rows = columns.queries.offset(row / 8 * group_bytes(D));
            let mut s: [f32; N] = tile.logits::<E, Cores, D, N>(rows);
            soft_cap(&mut s, block.logits);
            if page.tokens != 0 {
                hide(&mut s, block, item, page, token, row + lane % 4 * 2);
            }
            totals.add(&s, block, columns.kept.at(row));
            row += columns.step;
        }
        totals.store(block, page, cell, token);
    }
}
