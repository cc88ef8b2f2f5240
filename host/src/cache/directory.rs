//! Where the rows of compacted nodes lie, by layer and KV head.

use std::ops::Range;

use kernels_gpu::abi::Cell;

use super::PageId;

/// Cells of compacted nodes. A compacted node has a range of *indices*: of each layer and KV head, index by index, the
/// [`Cell`]s that its rows lie in. A run of such a node names indices where others name pages.
///
/// A [`TokenForest`](crate::tree::TokenForest) has one, and backends are handed it beside the counters.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Directory {
    /// Layers with keys of their own.
    layers: u32,
    kv_heads: u32,
    /// Indices of a layer and KV head.
    stride: u32,
    /// `[layers, kv_heads, stride]`.
    cells: Vec<Cell>,
    /// Indices that no node has: ascending, apart from each other.
    free: Vec<Range<u32>>,
    /// One more than the largest cell ever named.
    cell_bound: u64,
    version: u64,
}

impl Directory {
    /// One without indices. All nodes have rows in cells of as many layers and KV heads.
    pub fn new(layers: u32, kv_heads: u32) -> Self {
        Self { layers, kv_heads, ..Self::default() }
    }

    /// All cells: `[layers, kv_heads, stride]`. Entries that no node has are zeros.
    pub fn cells(&self) -> &[Cell] {
        &self.cells
    }
    /// Indices of a layer and KV head.
    pub fn stride(&self) -> u32 {
        self.stride
    }
    /// Layers, of those with keys of their own, and KV heads.
    pub fn heads(&self) -> (u32, u32) {
        (self.layers, self.kv_heads)
    }
    /// Counts changes of the cells: who keeps a copy has to renew it when this has changed.
    pub fn version(&self) -> u64 {
        self.version
    }

    /// The cells of one layer and KV head: `[stride]`.
    ///
    /// # Panics
    /// If there is no such layer or head.
    pub fn head(&self, layer: u32, kv_head: u32) -> &[Cell] {
        assert!(layer < self.layers && kv_head < self.kv_heads);
        let stride = self.stride as usize;
        &self.cells[(layer * self.kv_heads + kv_head) as usize * stride..][..stride]
    }

    /// One more than the largest cell that was ever named.
    pub(crate) fn cell_bound(&self) -> u64 {
        self.cell_bound
    }

    /// Takes `count` indices in a row, the first that fit; more are made where none do.
    pub(crate) fn take(&mut self, count: u32) -> Range<u32> {
        if count == 0 {
            return 0..0;
        }
        let fits = |range: &Range<u32>| range.end - range.start >= count;
        let at = match self.free.iter().position(fits) {
            Some(at) => at,
            None => self.grow(count),
        };
        let range = &mut self.free[at];
        let taken = range.start..range.start + count;
        range.start = taken.end;
        if range.start == range.end {
            self.free.remove(at);
        }
        taken
    }

    /// Makes room for `count` indices behind the last that is in use; where they are in the list of the free.
    fn grow(&mut self, count: u32) -> usize {
        let old = self.stride;
        let used = self.free.last().filter(|range| range.end == old).map_or(old, |last| last.start);
        let new = (used + count).max(2 * old);
        let mut cells = vec![Cell::default(); (self.layers * self.kv_heads * new) as usize];
        if old > 0 {
            let heads = self.cells.chunks_exact(old as usize);
            for (to, from) in cells.chunks_exact_mut(new as usize).zip(heads) {
                to[..old as usize].copy_from_slice(from);
            }
        }
        (self.cells, self.stride) = (cells, new);
        self.version += 1;
        if used < old {
            self.free.pop();
        }
        self.free.push(used..new);
        self.free.len() - 1
    }

    /// Takes back what [`Self::take`] gave.
    pub(crate) fn give_back(&mut self, indices: Range<u32>) {
        if indices.is_empty() {
            return;
        }
        for head in self.cells.chunks_exact_mut(self.stride as usize) {
            head[indices.start as usize..indices.end as usize].fill(Cell::default());
        }
        self.version += 1;
        let at = self.free.partition_point(|range| range.start < indices.start);
        self.free.insert(at, indices);
        self.free.dedup_by(|later, kept| {
            let joined = kept.end == later.start;
            if joined {
                kept.end = later.end;
            }
            joined
        });
    }

    /// Writes the cells of a node: `of(head)` are those of head `layer * kv_heads + kv_head`, at most as many as
    /// there are `indices`.
    pub(crate) fn set<'a>(&mut self, indices: &Range<u32>, of: impl Fn(usize) -> &'a [Cell]) {
        if indices.is_empty() {
            return;
        }
        for (head, cells) in self.cells.chunks_exact_mut(self.stride as usize).enumerate() {
            let new = of(head);
            let place = &mut cells[indices.start as usize..indices.end as usize];
            place.fill(Cell::default());
            place[..new.len()].copy_from_slice(new);
            let bound = new.iter().map(|cell| u64::from(cell.cell) + 1).max();
            self.cell_bound = self.cell_bound.max(bound.unwrap_or(0));
        }
        self.version += 1;
    }

    /// Follows pages that were moved: `moved` gives the new place of one.
    pub(crate) fn relocate(&mut self, moved: impl Fn(PageId) -> Option<PageId>) {
        let kv_heads = self.kv_heads;
        for cell in self.cells.iter_mut().filter(|cell| cell.rows() > 0) {
            if let Some(page) = moved(cell.cell / kv_heads) {
                cell.cell = page * kv_heads + cell.cell % kv_heads;
                self.cell_bound = self.cell_bound.max(u64::from(cell.cell) + 1);
            }
        }
        self.version += 1;
    }

    /// Indices that no node has.
    pub(crate) fn free_indices(&self) -> u32 {
        self.free.iter().map(|range| range.end - range.start).sum()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const fn cell(cell: u32, tokens: u32) -> Cell {
        Cell { cell, tokens }
    }

    #[test]
    fn indices_are_taken_again_and_joined_and_cells_stay_where_they_are() {
        let mut directory = Directory::new(2, 1);
        let (a, b, c) = (directory.take(3), directory.take(2), directory.take(4));
        assert_eq!((a.clone(), b.clone(), c.clone()), (0..3, 3..5, 5..9));
        let of_b = [[cell(7, 64), cell(8, 3)], [cell(9, 64), cell(10, 1)]];
        directory.set(&b, |head| &of_b[head]);
        let stride = directory.stride();
        directory.give_back(c);
        directory.give_back(a);
        assert_eq!(directory.take(3), 0..3);
        assert_eq!(directory.take(40), 5..45);
        assert!(directory.stride() > stride);
        for (layer, cells) in of_b.iter().enumerate() {
            assert_eq!(directory.head(layer as u32, 0)[3..5], cells[..]);
        }
        directory.give_back(0..3);
        directory.give_back(5..45);
        directory.give_back(b);
        assert_eq!(directory.free.len(), 1);
        assert_eq!(directory.free[0], 0..directory.stride());
        assert_eq!(directory.free_indices(), directory.stride());
        assert!(directory.cells().iter().all(|&cell| cell == Cell::default()));
    }

    #[test]
    fn every_change_has_a_version_and_the_largest_cell_is_known() {
        let mut directory = Directory::new(1, 2);
        let indices = directory.take(1);
        let before = directory.version();
        let cells = [[cell(6, 64)], [cell(7, 9)]];
        directory.set(&indices, |head| &cells[head]);
        assert!(directory.version() > before);
        assert_eq!(directory.cell_bound(), 8);
        // Page 3 goes to 11.
        directory.relocate(|page| (page == 3).then_some(11));
        assert_eq!((directory.head(0, 0)[0], directory.head(0, 1)[0]), (cell(22, 64), cell(23, 9)));
        assert_eq!(directory.cell_bound(), 24);
        directory.give_back(indices.start..indices.start);
        assert_eq!(directory.free_indices(), directory.stride() - 1);
    }
}
