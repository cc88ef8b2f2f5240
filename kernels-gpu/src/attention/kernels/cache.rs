//! Where the pages of a plan lie: in this library's pool, or in blocks of a foreign paged cache.

use super::Attend;
use crate::layout;
use device::global;
use device::matrix::Row;

/// A cache that a launch reads.
pub trait Cache: Copy {
    /// Of one KV head.
    type Pages: Pages;

    /// The pages of `kv_head`.
    ///
    /// # Safety
    /// The KV head is one of the launch's.
    unsafe fn pages<const D: usize>(self, a: &Attend, kv_head: u32) -> Self::Pages;
}

/// The pages of one KV head. A *piece* is eight dims of a token, counted in the order of a native page.
pub trait Pages: Copy {
    /// Whether a page is whole in memory and V finite. Otherwise a table has its blocks, and V is looked through where not
    /// all queries of an item see a page.
    const NATIVE: bool;
    /// Whether pages are the cells of compacted nodes.
    const CELLS: bool = false;

    /// Which block of the cache holds `token` of `page`.
    ///
    /// # Safety
    /// The plan's sequences have the token.
    unsafe fn block(&self, page: u32, token: u32) -> u32;

    /// A piece of K (half 0) or V (half 1) of a page; its `place` is the block and the token of the page.
    ///
    /// # Safety
    /// The cache has the page, and the page the token.
    unsafe fn piece<const D: usize>(
        &self,
        half: usize,
        page: u32,
        place: (u32, u32),
        piece: u32,
    ) -> *const Row;
}

/// The launch's pool.
#[derive(Clone, Copy, Debug)]
pub struct Pool;

/// A KV head's pages in the pool.
#[derive(Clone, Copy)]
pub struct PoolPages {
    pub(super) first: *const Row,
    /// Bytes from a page to the next.
    pub(super) stride: u64,
}

impl PoolPages {
    /// K of page `page`, which V follows.
    #[inline(always)]
    pub(super) fn at(&self, page: u32) -> *const Row {
        self.first.wrapping_byte_add((u64::from(page) * self.stride) as usize)
    }
}

impl Cache for Pool {
    type Pages = PoolPages;

    #[inline(always)]
    unsafe fn pages<const D: usize>(self, a: &Attend, kv_head: u32) -> PoolPages {
        let page_bytes = 2 * layout::page_elements(D as u32) as u64;
        let offset = (u64::from(kv_head) * page_bytes) as usize;
        // SAFETY: the pool holds pages of every KV head.
        let first = unsafe { a.pool.cast::<Row>().byte_add(offset) };
        PoolPages { first, stride: page_bytes * u64::from(a.kv_heads) }
    }
}

/// The launch's pool, a cell a page.
#[derive(Clone, Copy, Debug)]
pub struct CellPool;

/// The cells of all KV heads.
#[derive(Clone, Copy)]
pub struct Cells(PoolPages);

impl Cache for CellPool {
    type Pages = Cells;

    #[inline(always)]
    unsafe fn pages<const D: usize>(self, a: &Attend, _kv_head: u32) -> Cells {
        let stride = 2 * layout::page_elements(D as u32) as u64;
        Cells(PoolPages { first: a.pool.cast(), stride })
    }
}

impl Pages for Cells {
    const NATIVE: bool = true;
    const CELLS: bool = true;

    #[inline(always)]
    unsafe fn block(&self, _page: u32, _token: u32) -> u32 {
        0
    }

    #[inline(always)]
    unsafe fn piece<const D: usize>(
        &self,
        half: usize,
        page: u32,
        place: (u32, u32),
        piece: u32,
    ) -> *const Row {
        // SAFETY: the caller's.
        unsafe { self.0.piece::<D>(half, page, place, piece) }
    }
}

impl Pages for PoolPages {
    const NATIVE: bool = true;

    #[inline(always)]
    unsafe fn block(&self, _page: u32, _token: u32) -> u32 {
        0
    }

    #[inline(always)]
    unsafe fn piece<const D: usize>(
        &self,
        half: usize,
        page: u32,
        _place: (u32, u32),
        piece: u32,
    ) -> *const Row {
        let offset = half * layout::half_page_elements(D as u32) as usize * 2;
        let place = (u64::from(page) * self.stride) as usize + offset + piece as usize * 16;
        // SAFETY: the caller's.
        unsafe { self.first.byte_add(place) }
    }
}

/// K and V of one layer where another engine keeps them: blocks of rows of `head_dim` contiguous elements.
#[derive(Clone, Copy, Debug)]
pub struct Foreign {
    /// Keys, 16 bit, 16-byte aligned.
    pub k: *const u16,
    /// As `k`.
    pub v: *const u16,
    /// Ids of blocks. A page is `64 >> shift` of them, from the one on that the plan's page id names.
    pub table: *const u32,
    /// Of K and of V, from one block, token of a block and KV head to the next: in pieces of eight elements. From the first
    /// row to the last there are fewer than `2^32` of them.
    pub strides: [[u32; 3]; 2],
    /// A block has `1 << shift` tokens, 64 at most.
    pub shift: u32,
}

/// A KV head's rows in a foreign cache.
#[derive(Clone, Copy)]
pub struct ForeignPages {
    halves: [*const Row; 2],
    table: *const u32,
    /// Of a block, and of a token.
    strides: [[u32; 2]; 2],
    shift: u32,
}

impl Cache for Foreign {
    type Pages = ForeignPages;

    #[inline(always)]
    unsafe fn pages<const D: usize>(self, _a: &Attend, kv_head: u32) -> ForeignPages {
        let Self {
            k,
            v,
            table,
            strides: [[k_block, k_token, k_head], [v_block, v_token, v_head]],
            shift,
        } = self;
        let of_head = |first: *const u16, stride: u32| {
            // SAFETY: there are rows of every KV head.
            unsafe {
                first.cast::<Row>().byte_add(u64::from(kv_head) as usize * stride as usize * 16)
            }
        };
        let halves = [of_head(k, k_head), of_head(v, v_head)];
        ForeignPages { halves, table, strides: [[k_block, k_token], [v_block, v_token]], shift }
    }
}

impl Pages for ForeignPages {
    const NATIVE: bool = false;

    #[inline(always)]
    unsafe fn block(&self, page: u32, token: u32) -> u32 {
        // SAFETY: the tables have an entry for each of the sequence's tokens.
        unsafe { global::load_u32(self.table.add((page + (token >> self.shift)) as usize)) }
    }

    #[inline(always)]
    unsafe fn piece<const D: usize>(
        &self,
        half: usize,
        _page: u32,
        (block, token): (u32, u32),
        piece: u32,
    ) -> *const Row {
        let [of_block, of_token] = self.strides[half];
        let slot = token & ((1 << self.shift) - 1);
        let pieces = block * of_block + slot * of_token + piece / 8 % (D as u32 / 8);
        // SAFETY: the caller's.
        unsafe { self.halves[half].add(pieces as usize) }
    }
}
