//! Records that host and device share, in device memory as little-endian 32-bit words.
//!
//! A plan serves every layer and every KV head: nothing in it names one. It is cut into *shares*,
//! one a thread block and KV head. A share is a *program*: a self-contained run of words that a
//! block fetches with one bulk copy before it knows anything else.
//!
//! ```text
//! program := ProgramHeader  WorkItem*  Segment*  (page ids | rows)*  (16-byte aligned, zero padded)
//! ```
//!
//! A [`WorkItem`] is one running softmax: a contiguous range of queries against one or more
//! [`Segment`]s. A segment is a run of pages of one node, seen by a sub-range of the item's queries.
//! So the same records express one query's whole path (Flash-Decoding), one node (DeFT-Node), a chunk
//! of one (DeFT-Node-Chunk) and an even cut through the depth-first flattened tree (DeFT-Flatten).

/// Tokens a page holds, of one KV head and layer.
pub const PAGE_TOKENS: u32 = 64;

/// Marks an absent index in any of these records.
pub const NONE: u32 = u32::MAX;

/// First words of a program.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[cfg_attr(not(target_arch = "nvptx64"), derive(bytemuck::Pod, bytemuck::Zeroable))]
pub struct ProgramHeader {
    /// Number of [`WorkItem`]s, right after this header.
    pub items: u32,
    /// Number of [`Segment`]s, right after the items.
    pub segments: u32,
    /// Words of the whole program, this header included, padding not.
    pub words: u32,
    /// Items of native pages, and in the upper half their segments. In the program of a launch they come first, and those
    /// of the launch's format after them.
    pub native: u32,
}

impl ProgramHeader {
    /// [`ProgramHeader::native`].
    #[inline(always)]
    pub const fn pack_native(items: u32, segments: u32) -> u32 {
        items | segments << 16
    }

    /// Items of native pages.
    #[inline(always)]
    pub const fn native_items(&self) -> u32 {
        self.native & 0xffff
    }

    /// Segments of native pages.
    #[inline(always)]
    pub const fn native_segments(&self) -> u32 {
        self.native >> 16
    }
}

/// A range of queries and what they attend to here.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[cfg_attr(not(target_arch = "nvptx64"), derive(bytemuck::Pod, bytemuck::Zeroable))]
pub struct WorkItem {
    /// First query, in depth-first numbering.
    pub query_begin: u32,
    /// Number of queries; rows = `query_count` x (query heads a KV head).
    pub query_count: u32,
    /// First segment, counted within this program.
    pub segment_begin: u32,
    /// Number of segments.
    pub segment_count: u32,
    /// Partial slot of `query_begin`; query `q` uses `partial_slot + (q - query_begin)`. [`NONE`]: no
    /// other item holds KV of these queries, so the item writes the output itself.
    pub partial_slot: u32,
    /// Word index, counted from the program's start, of the row in `q`, `out` and `lse` of each of the item's queries;
    /// [`NONE`]: query `q` is row `q`. An item whose rows are listed has partial slots: the merge knows rows.
    pub row_word: u32,
    /// How the pages of the item's segments are stored; 0: in the cache's element type.
    pub format: u32,
    /// Zero.
    pub reserved: u32,
}

/// A run of pages, all of one node (or of one block of small nodes), for some of an item's queries.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[cfg_attr(not(target_arch = "nvptx64"), derive(bytemuck::Pod, bytemuck::Zeroable))]
pub struct Segment {
    /// Word index of the first page id, counted from the program's start.
    pub page_word: u32,
    /// Pages to read.
    pub page_count: u32,
    /// Words reserved for page ids; those past `page_count` await growth.
    pub page_capacity: u32,
    /// Tokens to read, if `length_slot` is [`NONE`].
    pub tokens: u32,
    /// Index of the counter that holds the node's present length, or [`NONE`] for a node that has
    /// stopped growing. Then tokens = `clamp(lengths[length_slot] - first_token, 0, 64 x page_count)`.
    pub length_slot: u32,
    /// Tokens of the node before this segment; a multiple of [`PAGE_TOKENS`].
    pub first_token: u32,
    /// Visible to queries `query_begin + (visible & 0xffff) .. query_begin + (visible >> 16)`.
    pub visible: u32,
    /// Index into the plan's masks, or [`NONE`]. Word `mask + page * query_count + q` is a `u64` whose
    /// bit `t` says that the item's query `q` sees token `t` of the segment's page `page`. A mask holds
    /// bits only for tokens that exist and queries that are visible.
    pub mask: u32,
}

/// A query whose partial results are merged, and where they are.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[cfg_attr(not(target_arch = "nvptx64"), derive(bytemuck::Pod, bytemuck::Zeroable))]
pub struct MergeRow {
    /// The query; [`NONE`] for an unused row.
    pub query: u32,
    /// First entry in the plan's list of partial slots.
    pub slot_begin: u32,
    /// Number of entries, merged in their order; 0 for a query that sees no token (its output is zero
    /// and its LSE is -inf).
    pub slot_count: u32,
    /// The query's row in `out` and `lse`.
    pub row: u32,
}

/// Where `append` writes one token's K and V: `page * 64 + token`, or [`APPEND_LIVE`]` | slot` for the
/// last token of the node whose length counter is `slot` (`tail_pages[slot]`, token
/// `(lengths[slot] - 1) % 64`).
pub type AppendTarget = u32;

/// Marks an [`AppendTarget`] that names a length counter.
pub const APPEND_LIVE: u32 = 1 << 31;

/// One token's K and V, all KV heads and layers, moved from one place to another.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[cfg_attr(not(target_arch = "nvptx64"), derive(bytemuck::Pod, bytemuck::Zeroable))]
pub struct TokenMove {
    /// `page * 64 + token` to read.
    pub from: u32,
    /// `page * 64 + token` to write.
    pub to: u32,
}

/// Where some rows of a compacted node lie, of one KV head and layer: a *cell* is the room of 64 tokens that a native
/// page has for a KV head. Of a program of compacted pages a page id `i` is, for KV head `h` of layer `l`, entry
/// `(l x KV heads + h) x stride + i` of the directory; segments count as many tokens as the longest head has.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[cfg_attr(not(target_arch = "nvptx64"), derive(bytemuck::Pod, bytemuck::Zeroable))]
pub struct Cell {
    /// `page x KV heads + slot`: the element offset of the cell is that of KV head `slot` of native page `page`. Its
    /// biases are floats `64 x cell..64 x cell + 64` of the layer's plane.
    pub cell: u32,
    /// Rows in the cell, in the low 16 bits: 64, fewer in a head's last cell, 0 where the head has no row left. With
    /// [`CELL_BIASED`].
    pub tokens: u32,
}

/// Marks the [`Cell::tokens`] of a cell whose rows have biases: natural logarithms, added to the scaled (and capped)
/// logit.
pub const CELL_BIASED: u32 = 1 << 31;

/// A row that compaction writes: a weighted sum of [`RowSource`]s, in f32, rounded once; a single source of weights 1
/// is copied bit for bit.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq)]
#[cfg_attr(not(target_arch = "nvptx64"), derive(bytemuck::Pod, bytemuck::Zeroable))]
pub struct RowTarget {
    /// The cell to write.
    pub cell: u32,
    /// The row in it, below 64.
    pub token: u32,
    /// One past its last source; its first is the target's before.
    pub end: u32,
    /// Its bias; 0 for none.
    pub bias: f32,
}

/// A row that compaction reads.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq)]
#[cfg_attr(not(target_arch = "nvptx64"), derive(bytemuck::Pod, bytemuck::Zeroable))]
pub struct RowSource {
    /// The cell to read.
    pub cell: u32,
    /// The row in it, below 64.
    pub token: u32,
    /// What its key is multiplied by.
    pub k: f32,
    /// What its value is multiplied by.
    pub v: f32,
}

/// A score that is a number of tokens: it becomes the largest `t`, if it is less, of those rows that see `t` tokens and
/// have `p >= 1 / t`.
pub const SCORE_LAST: u32 = 0;
/// A score that is an f32, to which all `p` are added. Several work items that read a page add in any order.
pub const SCORE_SUM: u32 = 1;
/// A score that is an f32, which becomes the largest `p` if it is less.
pub const SCORE_MAX: u32 = 2;

impl Cell {
    /// Rows in the cell.
    pub const fn rows(&self) -> u32 {
        self.tokens & 0xffff
    }
    /// Whether its rows have biases.
    pub const fn is_biased(&self) -> bool {
        self.tokens & CELL_BIASED != 0
    }
}

impl Segment {
    /// Packs the visible query range, relative to the item's first query.
    pub const fn pack_visible(begin: u32, end: u32) -> u32 {
        begin | (end << 16)
    }
    /// First visible query, relative to the item's first query.
    pub const fn visible_begin(&self) -> u32 {
        self.visible & 0xffff
    }
    /// One past the last visible query, relative to the item's first query.
    pub const fn visible_end(&self) -> u32 {
        self.visible >> 16
    }
    /// Tokens to read when the node holds `length` tokens (`length` is ignored by a node that has
    /// stopped growing).
    pub const fn tokens_at(&self, length: u32) -> u32 {
        if self.length_slot == NONE {
            return self.tokens;
        }
        let rest = length.saturating_sub(self.first_token);
        let room = self.page_count * PAGE_TOKENS;
        if rest < room { rest } else { room }
    }
}

/// 32-bit words of a record.
pub const fn words_of<T>() -> u32 {
    (size_of::<T>() / 4) as u32
}

const _: () = assert!(size_of::<ProgramHeader>() == 16);
const _: () = assert!(size_of::<WorkItem>() == 32);
const _: () = assert!(size_of::<Segment>() == 32);
const _: () = assert!(size_of::<MergeRow>() == 16);
const _: () = assert!(size_of::<TokenMove>() == 8);
const _: () = assert!(size_of::<Cell>() == 8);
const _: () = assert!(size_of::<RowTarget>() == 16);
const _: () = assert!(size_of::<RowSource>() == 16);
