//! The directory of compacted nodes as kernels read it.
//!
//! The host's has the number of rows in the low half of [`Cell::tokens`]. A kernel also wants to know how many cells of a
//! head are left without looking at all of them, so its copy has
//!
//! ```text
//! bits 0..8   rows in the cell
//! bits 8..31  how many cells in a row, from this one on, have rows
//! bit  31     CELL_BIASED
//! ```

use crate::abi::{CELL_BIASED, Cell};

/// Most indices of a directory's head.
pub const MAX_STRIDE: u32 = (1 << 23) - 1;

/// A [`Cell`] of a linked directory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LinkedCell {
    /// As [`Cell::cell`].
    pub cell: u32,
    /// Rows, what follows, [`CELL_BIASED`].
    pub bits: u32,
}

impl LinkedCell {
    /// Rows in the cell; 0 of an entry that is none.
    #[inline(always)]
    pub const fn rows(self) -> u32 {
        self.bits & 0xff
    }
    /// Cells in a row, from this one on, that have rows.
    #[inline(always)]
    pub const fn following(self) -> u32 {
        (self.bits & !CELL_BIASED) >> 8
    }
    /// [`CELL_BIASED`] if the cell's rows have biases, else 0.
    #[inline(always)]
    pub const fn bias_flag(self) -> u32 {
        self.bits & CELL_BIASED
    }
}

/// Turns the cells of one layer and KV head into what kernels read.
///
/// # Panics
/// With more than [`MAX_STRIDE`] cells.
pub fn link(head: &mut [Cell]) {
    assert!(head.len() <= MAX_STRIDE as usize, "a directory of {} indices a head", head.len());
    let mut following = 0;
    for cell in head.iter_mut().rev() {
        let rows = cell.tokens & 0xffff;
        following = if rows == 0 { 0 } else { following + 1 };
        cell.tokens = cell.tokens & CELL_BIASED | following << 8 | rows;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_linked_cell_says_its_rows_its_bias_and_how_many_follow() {
        let cell = |cell, tokens| Cell { cell, tokens };
        let mut head = [cell(7, 64), cell(3, 9 | CELL_BIASED), cell(0, 0), cell(5, 1), cell(6, 64)];
        link(&mut head);
        let linked = head.map(|Cell { cell, tokens }| {
            let linked = LinkedCell { cell, bits: tokens };
            (linked.cell, linked.rows(), linked.following(), linked.bias_flag() != 0)
        });
        let expected = [
            (7, 64, 2, false),
            (3, 9, 1, true),
            (0, 0, 0, false),
            (5, 1, 2, false),
            (6, 64, 1, false),
        ];
        assert_eq!(linked, expected);
    }
}
