//! The query tile of a work item: rows = queries x (query heads of one KV head).

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
    /// The program in global memory: a read of the part in shared memory would be a second way, for each row.
    words: *const u32,
}

impl RowMap {
    /// For one item and KV head.
    #[inline(always)]
    pub(super) fn new(
        item: &WorkItem,
        words: *const u32,
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
            words,
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

    /// Index of `(query, head)` of one of the item's rows, in units of `head_dim` elements, if rows are listed.
    ///
    /// # Safety
    /// The item has the row, and is one of the program's.
    #[inline(always)]
    unsafe fn index(&self, row: u32) -> usize {
        let query = self.group.query(row);
        // SAFETY: the list has an entry for each of the item's queries.
        let place = unsafe { global::load_u32(self.words.add((self.row_word + query) as usize)) };
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
        Self {
            size,
            reciprocal: 0x10000_u32.div_ceil(size),
        }
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
            load_by::<D, 1>(tile, map, padded, thread, |row| {
                q.add(map.index(row) * D + chunk as usize * 8)
            });
        } else {
            let origin = q.add(map.first() * D + chunk as usize * 8);
            // As many loads in flight a thread as the accumulators' registers, still free, hold.
            load_by::<D, 16>(tile, map, padded, thread, |row| {
                origin.add((map.offset(row) * D as u32) as usize)
            });
        }
    }
}

/// [`load`], `BATCH` rows of a thread at a time; `source` says where the thread's dims of a row are.
#[inline(always)]
unsafe fn load_by<const D: usize, const BATCH: usize>(
    tile: Shared<Row>,
    map: &RowMap,
    padded: u32,
    thread: u32,
    source: impl Fn(u32) -> *const u16,
) {
    let chunks = D as u32 / 8;
    // A piece is 8 dims of a row; from a thread's piece to its next is a whole number of row groups.
    let row_step = CONSUMERS / chunks;
    let mut row = thread / (8 * chunks) * 8 + thread % 8;
    let mut place = tile.at(thread);
    while row < padded {
        let mut pieces = [[0u32; 4]; BATCH];
        for i in 0..BATCH as u32 {
            let row = row + i * row_step;
            if row < map.rows {
                // SAFETY: 8 dims of that row.
                pieces[i as usize] = unsafe { global::load_v4_u32(source(row).cast()) };
            }
        }
        for i in 0..BATCH as u32 {
            if row + i * row_step < padded {
                // SAFETY: the piece lies within the tile.
                unsafe { place.at(i * CONSUMERS).cast().store(pieces[i as usize]) };
            }
        }
        row += BATCH as u32 * row_step;
        place = place.at(BATCH as u32 * CONSUMERS);
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
