//! The cells of compacted nodes on their way into the ring.

use core::ops::Range;

use super::ring::Ring;
use crate::abi::PAGE_TOKENS;
use crate::attention::kernels::cells::Cells;
use crate::attention::kernels::page::PartialPage;
use crate::attention::tile::hopper::Tile;
use device::bulk::{self, Bytes};
use device::matrix::Row;
use device::mbarrier;

/// Producer: streams the cells at `places`, which all have rows, of one segment. `pool` is the layer's first cell.
#[inline(always)]
pub(super) unsafe fn stream<const D: usize, const S: u32>(
    ring: &mut Ring<D, S>,
    cells: Cells,
    places: Range<u32>,
    segment: u32,
    whole: bool,
    pool: *const Row,
) {
    let mut place = places.start;
    while place < places.end {
        // SAFETY: the directory has the place and the pool the cell, and a stage is written only when it is empty.
        unsafe {
            let cell = cells.at(place);
            let rows = cell.rows();
            let offset = u64::from(cell.cell) * u64::from(Tile::<D>::PAGE_BYTES);
            let source = pool.byte_add(offset as usize);
            let values = source.byte_add(Tile::<D>::HALF_BYTES as usize);
            let bytes = Bytes::new(rows.div_ceil(8) * Tile::<D>::GROUP_BYTES);
            ring.wait_empty();
            ring.describe(PartialPage {
                tokens: if whole && rows == PAGE_TOKENS { 0 } else { rows },
                place: segment | cell.bias_flag(),
            });
            ring.describe_cell(cell.cell);
            mbarrier::arrive_expect_tx(ring.full(), bytes * 2);
            bulk::copy_global_to_shared(ring.key(), source, bytes, ring.full());
            bulk::copy_global_to_shared(ring.value(), values, bytes, ring.full());
        }
        ring.advance();
        place += 1;
    }
}
