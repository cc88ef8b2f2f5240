//! The query tile of a work item: rows = queries x (query heads of one KV head).

use super::program::Program;
use crate::abi::{NONE, WorkItem};
use crate::attention::tile::{CONSUMERS, max_rows};
use device::matrix::Row;
use device::shared::Shared;
use device::{global, register};

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

    /// The same, divided by now and not where it is used first.
    #[inline(always)]
    pub(super) fn divided(self) -> Self {
        Self { size: self.size, reciprocal: register::late(self.reciprocal) }
    }

    /// Query of `row`, relative to the item's first: exact for rows below 256 and sizes up to 256, where
    /// rounding the reciprocal up adds less than `row / 2^16 < 1 / size`.
    #[inline(always)]
    pub(super) fn query(&self, row: u32) -> u32 {
        (row * self.reciprocal) >> 16
    }
}

/// Pieces of the largest tile a thread has: all its loads are in flight together.
const PIECES: usize = 8;

/// A thread's part of a query tile, on its way: 8 dims of a row a piece.
#[derive(Clone, Copy)]
pub(super) struct Asked([[u32; 4]; PIECES]);

/// A thread's first row of a tile.
#[inline(always)]
const fn first_row<const D: usize>(thread: u32) -> u32 {
    thread / D as u32 * 8 + thread % 8
}

/// From a thread's row to its next: a whole number of row groups.
const fn row_step<const D: usize>() -> u32 {
    CONSUMERS / (D as u32 / 8)
}

/// `$run` with where a thread's dims of row 0 are, and how many elements from there they are of a row: whether rows are listed
/// is asked here, once.
macro_rules! by_place {
    ($q:expr, $map:expr, $thread:expr, |$origin:ident, $place:ident| $run:expr) => {{
        let (map, dims) = ($map, $q.add(($thread / 8 % (D as u32 / 8)) as usize * 8));
        if map.listed() {
            let ($origin, $place) = (dims, |row: u32| map.index(row) * D);
            $run
        } else {
            let $origin = dims.add(map.first() * D);
            let $place = |row: u32| (map.offset(row) * D as u32) as usize;
            $run
        }
    }};
}

/// Asks for the rows of a thread's from `first` on, as many as it may have in flight. Whatever comes between this and
/// [`Asked::keep`] costs no time of its own.
#[inline(always)]
unsafe fn ask_from<const D: usize>(
    map: &RowMap,
    first: u32,
    origin: *const u16,
    place: impl Fn(u32) -> usize,
) -> Asked {
    let rows: [u32; PIECES] = core::array::from_fn(|i| first + i as u32 * row_step::<D>());
    // All places before any piece, for a listed row's place is in memory too; past the last row that row's,
    // since places asked for under the pieces' conditions would be moved to them, one wait a row.
    let places = rows.map(|row| place(row.min(map.rows - 1)));
    let mut pieces = [[0u32; 4]; PIECES];
    for i in 0..PIECES {
        if rows[i] < map.rows {
            // SAFETY: 8 dims of a row of the item's.
            pieces[i] = unsafe { global::load_v4_u32(origin.add(places[i]).cast()) };
        }
    }
    Asked(pieces)
}

/// Asks for the item's rows, all of them. All consumers take part.
#[inline(always)]
pub(super) unsafe fn ask<const D: usize>(q: *const u16, map: &RowMap, thread: u32) -> Asked {
    const { assert!(PIECES as u32 * row_step::<D>() >= max_rows(D as u32)) }
    // SAFETY: rows of the item's, and in them the thread's dims.
    unsafe {
        by_place!(q, map, thread, |origin, place| {
            ask_from::<D>(map, first_row::<D>(thread), origin, place)
        })
    }
}

impl Asked {
    /// Keeps what [`ask`] asked for as rows `0..padded` of core matrices, `[row group of 8][dim chunk of 8][8 rows][8 dims]`, zeros
    /// past the item's last row.
    #[inline(always)]
    pub(super) unsafe fn keep<const D: usize>(self, tile: Shared<Row>, padded: u32, thread: u32) {
        // SAFETY: the caller's.
        unsafe { self.keep_from::<D>(tile.at(thread), padded, first_row::<D>(thread)) };
    }

    #[inline(always)]
    unsafe fn keep_from<const D: usize>(self, tile: Shared<Row>, padded: u32, first: u32) {
        for i in 0..PIECES {
            if first + i as u32 * row_step::<D>() < padded {
                // SAFETY: the piece lies within the tile.
                unsafe { tile.at(i as u32 * CONSUMERS).cast().store(self.0[i]) };
            }
        }
    }
}

/// Loads rows `0..padded`, as [`Asked::keep`] keeps them. All consumers take part.
#[inline(always)]
pub(super) unsafe fn load<const D: usize>(
    q: *const u16,
    tile: Shared<Row>,
    map: &RowMap,
    padded: u32,
    thread: u32,
) {
    // SAFETY: rows of the item's, and in them the thread's dims; pieces lie within the tile.
    unsafe {
        by_place!(q, map, thread, |origin, place| {
            let mut row = first_row::<D>(thread);
            let mut tile = tile.at(thread);
            while row < padded {
                ask_from::<D>(map, row, origin, place).keep_from::<D>(tile, padded, row);
                row += PIECES as u32 * row_step::<D>();
                tile = tile.at(PIECES as u32 * CONSUMERS);
            }
        });
    }
}

/// Loads rows `0..16` as [`Asked::keep`] keeps them, by one warp.
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
