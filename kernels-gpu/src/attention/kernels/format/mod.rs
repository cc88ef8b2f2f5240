//! Pages in other formats: what an `attend` of a format does beside that of native pages.
//!
//! The codes of half a page, K or V, are copied to shared memory as they are, and decoded there into core matrices of
//! the element type; from there on everything is as for native pages. `host/src/format` defines the formats.

mod fp8;

use super::Attend;
use crate::abi::Cell;
use crate::layout::{self, SLAB_PAGES};
use device::Element;
use device::matrix::Row;
use device::shared::Shared;

pub use fp8::Fp8;

/// How half a page is stored. A *piece* is eight dims of a token, counted in the order of a native page.
pub trait Format {
    /// Whether there is anything to decode.
    const CODED: bool = true;
    /// Whether page ids are places in a directory of cells, which may have biases.
    const COMPACTED: bool = false;
    /// What is loaded to decode a piece.
    type Piece: Copy;

    /// Loads piece `piece` of the half page at `half`.
    ///
    /// # Safety
    /// The half page is there, and `detail` is the launch's.
    unsafe fn load<const D: usize>(half: Shared<u8>, detail: u32, piece: u32) -> Self::Piece;

    /// The piece as 16-bit elements, each rounded once.
    fn decode<E: Element>(piece: Self::Piece) -> [u32; 4];
}

/// Elements as they are, in pages or in the cells of compacted nodes.
#[derive(Clone, Copy, Debug)]
pub struct Elements<const COMPACTED: bool>;

/// Pages of the pool.
pub type Native = Elements<false>;
/// Rows of compacted nodes.
pub type Compacted = Elements<true>;

impl<const C: bool> Format for Elements<C> {
    const CODED: bool = false;
    const COMPACTED: bool = C;
    type Piece = [u32; 4];

    #[inline(always)]
    unsafe fn load<const D: usize>(half: Shared<u8>, _detail: u32, piece: u32) -> Self::Piece {
        // SAFETY: the caller's.
        unsafe { half.cast::<Row>().at(piece).cast().load() }
    }

    #[inline(always)]
    fn decode<E: Element>(piece: Self::Piece) -> [u32; 4] {
        piece
    }
}

/// What a launch is told of its format's pages; zeros for native ones.
#[derive(Clone, Copy, Debug)]
pub struct Coded {
    /// Bytes of half a page of one KV head: of K, and of V.
    pub half_bytes: u32,
    /// Pages that a slab holds.
    pub per_slab: u32,
    /// A number that the format asks for.
    pub detail: u32,
    /// The layer's directory, `[kv_heads][cell_stride]`, linked ([`crate::directory`]).
    pub cells: *const Cell,
    /// Indices of a KV head in it.
    pub cell_stride: u32,
    /// The layer's biases, `[cell][64]`, natural logarithms; read where a cell says that it has some.
    pub biases: *const f32,
}

impl Coded {
    /// Of native pages.
    pub const NATIVE: Self = Self {
        half_bytes: 0,
        per_slab: 0,
        detail: 0,
        cells: core::ptr::null(),
        cell_stride: 0,
        biases: core::ptr::null(),
    };
}

impl Default for Coded {
    #[inline(always)]
    fn default() -> Self {
        Self::NATIVE
    }
}

/// Where the pages of a format lie, for one KV head.
#[derive(Clone, Copy)]
pub(super) struct CodedPages {
    /// The layer's pages.
    pool: *const Row,
    slab_bytes: u64,
    kv_heads: u32,
    kv_head: u32,
    pub(super) coded: Coded,
}

impl CodedPages {
    #[inline(always)]
    pub(super) fn new<const D: usize>(a: &Attend, kv_head: u32, coded: Coded) -> Self {
        let page_bytes = 2 * layout::page_elements(D as u32) as u64;
        let slab_bytes = u64::from(SLAB_PAGES) * page_bytes * u64::from(a.kv_heads);
        Self { pool: a.pool.cast(), slab_bytes, kv_heads: a.kv_heads, kv_head, coded }
    }

    /// A page's K; V follows.
    ///
    /// # Safety
    /// The page is one of the pool's.
    #[inline(always)]
    pub(super) unsafe fn page(&self, page: u32) -> *const Row {
        let slab = page / self.coded.per_slab;
        let within = (page - slab * self.coded.per_slab) * self.kv_heads + self.kv_head;
        let offset = u64::from(slab) * self.slab_bytes
            + u64::from(within) * u64::from(2 * self.coded.half_bytes);
        // SAFETY: the caller's.
        unsafe { self.pool.byte_add(offset as usize) }
    }
}

/// Decodes half a page at `half` into core matrices at `to`, `BATCH` pieces a thread at a time; by `threads` threads,
/// this one being `thread`.
///
/// # Safety
/// The half page is there, and nobody reads `to`.
#[inline(always)]
pub(super) unsafe fn decode<F: Format, E: Element, const D: usize, const BATCH: usize>(
    half: Shared<u8>,
    to: Shared<Row>,
    detail: u32,
    thread: u32,
    threads: u32,
) {
    let pieces = 8 * D as u32;
    let mut first = thread;
    // SAFETY: the pieces lie within the half page.
    unsafe {
        // Without a condition of its own a piece is decoded while the next is.
        while first + (BATCH as u32 - 1) * threads < pieces {
            let at = |i: usize| first + i as u32 * threads;
            let loaded: [F::Piece; BATCH] =
                core::array::from_fn(|i| F::load::<D>(half, detail, at(i)));
            let decoded: [[u32; 4]; BATCH] = loaded.map(F::decode::<E>);
            for i in 0..BATCH {
                to.at(at(i)).cast().store(decoded[i]);
            }
            first += BATCH as u32 * threads;
        }
        while first < pieces {
            let piece = F::load::<D>(half, detail, first);
            to.at(first).cast().store(F::decode::<E>(piece));
            first += threads;
        }
    }
}

/// The token of a piece.
#[inline(always)]
pub(super) const fn token_of<const D: usize>(piece: u32) -> u32 {
    piece / D as u32 * 8 + piece % 8
}
