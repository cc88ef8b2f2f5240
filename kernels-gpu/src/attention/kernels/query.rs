//! The query tile of a work item: rows = queries x (query heads of one KV head).

use super::program::Program;
use crate::abi::{NONE, WorkItem};
use crate::attention::tile::CONSUMERS;
use device::global;
use device::matrix::Row;
use device::shared::Shared;

/// Where rows of a work item lie in `[queries, q_heads, head_dim]`.
#[derive(Clone, Copy)]
pub(super) struct RowMap {
    /// First query of the item.
    pub(super) query_begin: u32,
    /// Rows of the item.
    pub(super) rows: u32,
    /// Query heads a KV head.
    pub(super) group: Group,
    /// Query heads.
    pub(super) q_heads: u32,
    /// First query head of the KV head.
    pub(super) first_head: u32,
    /// Where the rows of the item's queries are listed, or [`NONE`].
    row_word: u32,
    program: Program,
}

impl RowMap {
    /// For one item and KV head.
    #[inline(always)]
    pub(super) fn new(
        item: &WorkItem,
        program: Program,
        group: Group,
        kv_heads: u32,
        kv_head: u32,
    ) -> Self {
        Self {
            query_begin: item.query_begin,
            rows: item.query_count * group.size,
            group,
            q_heads: kv_heads * group.size,
            first_head: kv_head * group.size,
            row_word: item.row_word,
            program,
        }
    }

    /// Whether the rows of the item's queries are listed; otherwise query `q` is row `q`.
    #[inline(always)]
    fn listed(&self) -> bool {
        self.row_word != NONE
    }

    /// Index of `(query, head)` of the item's first row, in units of `head_dim` elements, if rows are not listed.
    #[inline(always)]
    pub(super) fn first(&self) -> usize {
        self.query_begin as usize * self.q_heads as usize + self.first_head as usize
    }

    /// How far a row is from the first: 32 bits, since an item has few rows.
    #[inline(always)]
    pub(super) fn offset(&self, row: u32) -> u32 {
        self.group.query(row) * (self.q_heads - self.group.size) + row
    }

    /// The row in `q` and `lse` of the query of one of the item's rows.
    ///
    /// # Safety
    /// As [`RowMap::head_index`].
    #[inline(always)]
    pub(super) unsafe fn query_row(&self, row: u32) -> u32 {
        let query = self.group.query(row);
        if self.listed() {
            // SAFETY: the list has an entry for each of the item's queries.
            unsafe { self.program.word(self.row_word + query) }
        } else {
            self.query_begin + query
        }
    }

    /// Index of `(query, head)` of one of the item's rows.
    ///
    /// # Safety
    /// The item has the row, and is one of the program's.
    #[inline(always)]
    pub(super) unsafe fn head_index(&self, row: u32) -> usize {
        // SAFETY: the caller's.
        let place = unsafe { self.query_row(row) };
        let head = self.first_head + (row - self.group.query(row) * self.group.size);
        place as usize * self.q_heads as usize + head as usize
    }

    /// Index of `(query, head)` of one of the item's rows, in units of `head_dim` elements, if rows are listed.
    ///
    /// # Safety
    /// The item has the row, and is one of the program's.
    #[inline(always)]
    unsafe fn index(&self, row: u32) -> usize {
        let query = self.group.query(row);
        // SAFETY: the list has an entry for each of the item's queries.
        let place = unsafe { self.program.word(self.row_word + query) };
        let head = self.first_head + (row - query * self.group.size);
        place as usize * self.q_heads as usize + head as usize
    }
}

/// Query heads a KV head, and how to divide by it.
#[derive(Clone, Copy)]
pub(super) struct Group {
    /// Query heads a KV head.
    pub(super) size: u32,
    /// `ceil(2^16 / size)`.
    reciprocal: u32,
}

impl Group {
    /// For `size` query heads a KV head.
    #[inline(always)]
    pub(super) fn new(size: u32) -> Self {
        Self { size, reciprocal: 0x10000_u32.div_ceil(size) }
    }

    /// Query of `row`, relative to the item's first: exact for rows below 256 and sizes up to 256, where
    /// rounding the reciprocal up adds less than `row / 2^16 < 1 / size`.
    #[inline(always)]
    pub(super) fn query(&self, row: u32) -> u32 {
        (row * self.reciprocal) >> 16
    }
}

/// Loads rows `0..padded` as core matrices `[row group of 8][dim chunk of 8][8 rows][8 dims]`, zeros past the
/// item's last row. All consumers take part.
#[inline(always)]
pub(super) unsafe fn load<const D: usize>(
    q: *const u16,
    tile: Shared<Row>,
    map: &RowMap,
    padded: u32,
    thread: u32,
) {
    let chunk = thread / 8 % (D as u32 / 8);
    // SAFETY: rows of the item's, and in them the thread's dims.
    unsafe {
        if map.listed() {
            load_by::<D>(tile, map, padded, thread, q.add(chunk as usize * 8), |row| {
                map.index(row) * D
            });
        } else {
            let origin = q.add(map.first() * D + chunk as usize * 8);
            load_by::<D>(tile, map, padded, thread, origin, |row| {
                (map.offset(row) * D as u32) as usize
            });
        }
    }
}

/// [`load`], where `place` says how many elements from `origin` the thread's dims of a row are.
#[inline(always)]
unsafe fn load_by<const D: usize>(
    tile: Shared<Row>,
    map: &RowMap,
    padded: u32,
    thread: u32,
    origin: *const u16,
    place: impl Fn(u32) -> usize,
) {
    // Rows a thread has of the largest tile: all its loads are in flight together.
    const BATCH: usize = 8;
    let chunks = D as u32 / 8;
    // A piece is 8 dims of a row; from a thread's piece to its next is a whole number of row groups.
    let row_step = CONSUMERS / chunks;
    let mut row = thread / (8 * chunks) * 8 + thread % 8;
    let mut tile = tile.at(thread);
    while row < padded {
        let rows: [u32; BATCH] = core::array::from_fn(|i| row + i as u32 * row_step);
        // All places before any piece, for a listed row's place is in memory too; past the last row that row's,
        // since places asked for under the pieces' conditions would be moved to them, one wait a row.
        let places = rows.map(|row| place(row.min(map.rows - 1)));
        let mut pieces = [[0u32; 4]; BATCH];
        for i in 0..BATCH {
            if rows[i] < map.rows {
                // SAFETY: 8 dims of a row of the item's.
                pieces[i] = unsafe { global::load_v4_u32(origin.add(places[i]).cast()) };
            }
        }
        for i in 0..BATCH {
            if rows[i] < padded {
                // SAFETY: the piece lies within the tile.
                unsafe { tile.at(i as u32 * CONSUMERS).cast().store(pieces[i]) };
            }
        }
        row += BATCH as u32 * row_step;
        tile = tile.at(BATCH as u32 * CONSUMERS);
    }
}

/// [`load`] of rows `0..16`, by one warp.
///
/// # Safety
/// The warp is whole; the item has at most 16 rows, and nobody else uses the tile.
#[inline(always)]
pub(super) unsafe fn load_narrow<const D: usize>(
    q: *const u16,
    tile: Shared<Row>,
    map: &RowMap,
    lane: u32,
) {
    const PIECES: usize = 8;
    let steps = D as u32 / 32;
    let mut first = 0;
    while first < 16 {
        let row = first + lane % 8;
        let mut pieces = [[0u32; 4]; PIECES];
        // SAFETY: 8 dims each of a row of the item's; the pieces lie within the tile.
        unsafe {
            if row < map.rows {
                let origin = q.add(map.head_index(row) * D + lane as usize / 8 * 8);
                for i in 0..steps as usize {
                    pieces[i] = global::load_v4_u32(origin.add(32 * i).cast());
                }
            }
            for i in 0..steps {
                tile.at(first * (D as u32 / 8) + lane + 32 * i).cast().store(pieces[i as usize]);
            }
        }
        first += 8;
    }
}

#[cfg(test)]
mod tests {
    use super::Group;

    #[test]
    fn a_row_is_divided_by_every_group_size_exactly() {
        for size in 1..=256 {
            let group = Group::new(size);
            for row in 0..256 {
                assert_eq!(group.query(row), row / size, "row {row}, size {size}");
            }
        }
    }
}
