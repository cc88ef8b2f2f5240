//! Pages in other formats: what an `attend` of a format does beside that of native pages.
//!
//! The codes of half a page, K or V, are copied to shared memory as they are, and decoded there into core matrices of
//! the element type; from there on everything is as for native pages. `host/src/format` defines the formats. One kernel
//! reads all of them: which one a launch reads decides nothing but [`decode`]'s loop.

mod affine;
mod fp8;

use super::Attend;
use crate::abi::Cell;
use crate::layout::{self, SLAB_PAGES};
use affine::{ChannelGroups, TokenGroups};
use device::matrix::Row;
use device::shared::Shared;
use device::{Element, register};
use fp8::Fp8;

/// Which pages a kernel reads.
pub trait Format {
    /// Pages that are decoded, of the format that [`Coded::format`] says.
    const CODED: bool;
    /// Page ids are places in a directory of cells, which may have biases.
    const COMPACTED: bool;
}

/// Pages of the pool as they are.
#[derive(Clone, Copy, Debug)]
pub struct Native;

/// Rows of compacted nodes, as they are.
#[derive(Clone, Copy, Debug)]
pub struct Compacted;

/// Pages of one of the formats that have codes.
#[derive(Clone, Copy, Debug)]
pub struct Codes;

impl Format for Native {
    const CODED: bool = false;
    const COMPACTED: bool = false;
}

impl Format for Compacted {
    const CODED: bool = false;
    const COMPACTED: bool = true;
}

impl Format for Codes {
    const CODED: bool = true;
    const COMPACTED: bool = false;
}

/// How half a page is stored, with what is read of it once. A *piece* is eight dims of a token, counted in the order of a
/// native page; its codes lie in words of two lanes of 16 bits, dims of even number in the low one.
trait Half: Copy {
    /// What is loaded to decode a piece.
    type Piece: Copy;

    /// Loads a piece.
    ///
    /// # Safety
    /// The half page is there.
    unsafe fn load<const D: usize>(self, piece: u32) -> Self::Piece;

    /// The piece as 16-bit elements, each rounded once.
    fn decode<E: Element>(self, piece: Self::Piece) -> [u32; 4];
}

/// What a launch is told of its format's pages; zeros for native ones.
#[derive(Clone, Copy, Debug)]
pub struct Coded {
    /// Bytes of half a page of one KV head: of K, and of V.
    pub half_bytes: u32,
    /// Pages that a slab holds.
    pub per_slab: u32,
    /// The format: `KvFormat::code` of the host.
    pub format: u32,
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
        format: 0,
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

/// The threads that decode a half page, and which of them this is.
#[derive(Clone, Copy)]
pub(super) struct Crew {
    pub(super) thread: u32,
    pub(super) threads: u32,
}

/// Decodes half a page of `format`, K or V, at `half` into core matrices at `to`, `BATCH` pieces a thread at a time.
///
/// # Safety
/// The half page is there, and nobody reads `to`.
#[inline(always)]
pub(super) unsafe fn decode<E: Element, const D: usize, const BATCH: usize>(
    half: Shared<u8>,
    to: Shared<Row>,
    (format, value): (u32, bool),
    crew: Crew,
) {
    // `KvFormat::code`: kind, bits if there are several kinds of codes, group.
    let (kind, bits, group) = (format & 15, format >> 4 & 15, format >> 8 & 0xfff);
    let codes = affine::Packed::new(half, if kind == 3 { 4 } else { bits });
    // SAFETY: the caller's.
    unsafe {
        match (kind, value) {
            (1, _) => walk::<_, E, D, BATCH>(Fp8::<false>::new::<E, D>(half), to, crew),
            (2, _) => walk::<_, E, D, BATCH>(Fp8::<true>::new::<E, D>(half), to, crew),
            // Its scales and zeros are many registers.
            (4, false) => walk::<_, E, D, 2>(ChannelGroups(codes), to, crew),
            _ => walk::<_, E, D, BATCH>(TokenGroups::new::<D>(codes, group), to, crew),
        }
    }
}

/// Decodes all pieces of a half page, whose number is a multiple of `BATCH` for every thread.
#[inline(always)]
unsafe fn walk<H: Half, E: Element, const D: usize, const BATCH: usize>(
    half: H,
    to: Shared<Row>,
    Crew { thread, threads }: Crew,
) {
    let mut first = 0;
    // SAFETY: the pieces lie within the half page.
    unsafe {
        // Not unrolled: all formats' loops are in a kernel.
        while first < register::late(8 * D as u32) {
            let at = |i: usize| first + i as u32 * threads + thread;
            let loaded: [H::Piece; BATCH] = core::array::from_fn(|i| half.load::<D>(at(i)));
            // Without a condition of its own a piece is decoded while the next is.
            let decoded: [[u32; 4]; BATCH] = loaded.map(|piece| half.decode::<E>(piece));
            for i in 0..BATCH {
                to.at(at(i)).cast().store(decoded[i]);
            }
            first += BATCH as u32 * threads;
        }
    }
}

/// The token of a piece.
#[inline(always)]
pub(super) const fn token_of<const D: usize>(piece: u32) -> u32 {
    piece / D as u32 * 8 + piece % 8
}
