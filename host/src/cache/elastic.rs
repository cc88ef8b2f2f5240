//! Stores: memory that is set aside, or that comes and goes; what a pool knows of it.

use super::pool::PoolError;
use super::{CacheShape, PageId, PagePool};

/// Where a cache's pages get their memory.
#[non_exhaustive]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Store {
    /// All at once, when the cache is made.
    Fixed {
        /// Bytes for pages: as many as fit.
        bytes: u64,
    },
    /// As pages are taken, and back as they come free, a run of pages (an *extent*) at a time. Addresses are set aside
    /// once and stay, and so do plans and graphs.
    Elastic {
        /// Most bytes for pages: as many extents as fit.
        reserve: u64,
        /// Bytes that have memory from the start on and keep it, in whole extents.
        initial: u64,
    },
}

impl Store {
    /// Most bytes for pages.
    pub fn bytes(&self) -> u64 {
        match *self {
            Self::Fixed { bytes } => bytes,
            Self::Elastic { reserve, .. } => reserve,
        }
    }
}

/// What a store takes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct StoreBytes {
    /// Bytes of pages that nodes hold.
    pub held: u64,
    /// Bytes of memory, on the device where it is one.
    pub memory: u64,
    /// Most bytes: addresses set aside.
    pub reserved: u64,
}

/// An elastic pool within `reserve` bytes whose first extents keep their memory, `initial` bytes of them.
///
/// # Errors
/// [`PoolError`].
pub(crate) fn elastic_pool(
    shape: &CacheShape,
    [reserve, initial]: [u64; 2],
    extent_pages: u32,
) -> Result<PagePool, PoolError> {
    let extent_bytes = shape.page_bytes().saturating_mul(u64::from(extent_pages));
    let most = u64::from(PagePool::MAX_PAGES / extent_pages);
    if initial > reserve {
        return Err(PoolError::InitialAboveReserve { initial, reserve });
    }
    match reserve / extent_bytes {
        0 => Err(PoolError::ReserveBelowExtent { reserve, extent_bytes }),
        extents if extents > most => {
            let pages = extents.saturating_mul(u64::from(extent_pages));
            Err(PoolError::Pages { pages })
        }
        extents => {
            let kept = initial.div_ceil(extent_bytes).min(extents);
            PagePool::elastic(extent_pages, extents as u32, kept as u32)
        }
    }
}

/// Of an elastic store.
impl PagePool {
    /// The first extent without memory; `None` if all have it, as always where the store is not elastic.
    pub(crate) fn next_extent(&self) -> Option<u32> {
        self.extents.as_ref()?.next()
    }

    /// An extent with memory of which no page is held, besides the one that is kept ahead.
    pub(crate) fn surplus_extent(&self) -> Option<u32> {
        self.extents.as_ref()?.surplus()
    }

    /// Whether an extent with memory has no page that is held.
    pub(crate) fn has_empty_extent(&self) -> bool {
        self.extents.as_ref().is_some_and(|extents| extents.empty().next().is_some())
    }

    /// Pages of an extent; `None` where the store is not elastic.
    pub(crate) fn extent_pages(&self) -> Option<u32> {
        Some(self.extents.as_ref()?.pages())
    }

    /// Extents that keep their memory.
    pub(crate) fn kept_extents(&self) -> u32 {
        self.extents.as_ref().map_or(0, |extents| extents.kept())
    }

    /// Extents with memory.
    pub(crate) fn mapped_extents(&self) -> u32 {
        self.extents.as_ref().map_or(0, |extents| extents.mapped())
    }

    /// An extent has got memory.
    pub(crate) fn extent_mapped(&mut self, extent: u32) {
        self.extents.as_mut().expect("the store is elastic").map(extent);
    }

    /// An extent of which no page is held has lost its memory.
    pub(crate) fn extent_unmapped(&mut self, extent: u32) {
        self.extents.as_mut().expect("the store is elastic").unmap(extent);
    }

    /// Moves of pages by which extents become empty, each from a held page to a free one.
    pub(crate) fn compaction(&self) -> Vec<(PageId, PageId)> {
        let Some(extents) = &self.extents else {
            return Vec::new();
        };
        let pages = extents.pages();
        let held = |extent| {
            let all = extent * pages..(extent + 1) * pages;
            all.filter(|&page| self.references(page) > 0).collect()
        };
        extents.compaction(held, |extent| !self.has_slabs(extent, pages))
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;

    const PAGES: u32 = 16;
    const EXTENTS: u32 = 64;

    /// What an elastic pool should be, in the plainest way: pages held, with their extents counted anew each time.
    #[derive(Default)]
    struct Model {
        held: BTreeMap<PageId, u32>,
        mapped: std::collections::BTreeSet<u32>,
    }

    impl Model {
        fn held_of(&self, extent: u32) -> u32 {
            self.held.range(extent * PAGES..(extent + 1) * PAGES).count() as u32
        }

        /// The extents that the next page may be of: the fullest of those that have a free one.
        fn fullest(&self) -> Vec<u32> {
            let open = self.mapped.iter().map(|&extent| (self.held_of(extent), extent));
            let open: Vec<_> = open.filter(|&(held, _)| held < PAGES).collect();
            let most = open.iter().map(|&(held, _)| held).max();
            open.iter()
                .filter(|&&(held, _)| Some(held) == most)
                .map(|&(_, extent)| extent)
                .collect()
        }
    }

    fn settle(pool: &mut PagePool, model: &mut Model) {
        while let Some(extent) = pool.surplus_extent() {
            assert_eq!(model.held_of(extent), 0);
            assert!(model.mapped.remove(&extent));
            pool.extent_unmapped(extent);
        }
        let empty = model.mapped.iter().filter(|&&extent| model.held_of(extent) == 0).count();
        // Two of the kept ones may be empty, and one more ahead of them is surplus.
        assert!(empty <= 2, "{empty} empty extents");
    }

    fn take(pool: &mut PagePool, model: &mut Model) -> bool {
        if pool.ready() == 0 {
            let Some(extent) = pool.next_extent() else {
                assert_eq!(pool.live(), PAGES * EXTENTS);
                assert!(matches!(pool.allocate(), Err(PoolError::OutOfPages { free: 0, .. })));
                return false;
            };
            assert!(model.mapped.insert(extent));
            pool.extent_mapped(extent);
        }
        let (next, fullest) = (pool.next_pages(1), model.fullest());
        let page = pool.allocate().unwrap();
        assert_eq!(next, [page]);
        assert!(fullest.contains(&(page / PAGES)), "{page} is not of {fullest:?}");
        assert_eq!(model.held.insert(page, 1), None, "a page has one owner");
        true
    }

    #[test]
    fn a_hundred_thousand_pages_taken_and_given_back_are_as_in_the_model() {
        let mut pool = PagePool::elastic(PAGES, EXTENTS, 2).unwrap();
        let mut model = Model::default();
        let mut state = 7u64;
        let mut random = |below: u32| {
            state = state
                .wrapping_mul(6_364_136_223_846_793_005)
                .wrapping_add(1_442_695_040_888_963_407);
            (state >> 33) as u32 % below
        };
        let (mut operations, mut full, mut compacted) = (0, 0, 0);
        while operations < 100_000 {
            // Towards some occupancy, over and over.
            let target = random(PAGES * EXTENTS + 1);
            for _ in 0..2000 {
                operations += 1;
                let grow = random(1000) < if pool.live() < target { 700 } else { 300 };
                match grow {
                    true => full += u32::from(!take(&mut pool, &mut model)),
                    false => {
                        let at = random(pool.live().max(1)) as usize;
                        let Some(&page) = model.held.keys().nth(at) else { continue };
                        match random(4) {
                            0 => {
                                pool.retain(page);
                                *model.held.get_mut(&page).unwrap() += 1;
                            }
                            _ => {
                                let left = model.held.get_mut(&page).unwrap();
                                *left -= 1;
                                let last = *left == 0;
                                if last {
                                    model.held.remove(&page);
                                }
                                assert_eq!(pool.release(page), last);
                            }
                        }
                    }
                }
                settle(&mut pool, &mut model);
                assert_eq!(pool.live() as usize, model.held.len());
                assert_eq!(pool.ready(), pool.mapped_extents() * PAGES - pool.live());
                assert_eq!(pool.mapped_extents() as usize, model.mapped.len());
            }
            let moves = pool.compaction();
            compacted += moves.len();
            for (from, to) in moves {
                let references = model.held.remove(&from).unwrap();
                pool.relocate(from, to);
                assert_eq!(model.held.insert(to, references), None);
            }
            settle(&mut pool, &mut model);
            for (&page, &references) in &model.held {
                assert_eq!(pool.references(page), references);
            }
            assert!(pool.mapped_extents() <= pool.live().div_ceil(PAGES) + 2);
            pool.debug_assert_invariants();
        }
        assert!(compacted > 1000 && full < 50_000, "{compacted} moves, {full} times full");
    }

    #[test]
    fn what_was_taken_last_and_given_back_is_taken_again_in_the_same_order() {
        let mut pool = PagePool::elastic(PAGES, 4, 0).unwrap();
        (0..3).for_each(|extent| pool.extent_mapped(extent));
        let held = pool.allocate_many(23).unwrap();
        pool.release(held[3]);
        let next = pool.next_pages(20);
        let taken = pool.allocate_many(20).unwrap();
        assert_eq!(next, taken);
        for &page in taken.iter().rev() {
            pool.release(page);
        }
        assert_eq!(pool.next_pages(20), next);
        pool.debug_assert_invariants();
    }

    #[test]
    fn slabs_are_cut_where_there_is_memory_and_do_not_move() {
        let class = crate::cache::SlabClass { key: 1, per_slab: 31 };
        let mut pool = PagePool::elastic(2 * PAGES, 4, 0).unwrap();
        assert!(pool.allocate_in_slabs(class, 1).is_err(), "no extent has memory");
        (0..3).for_each(|extent| pool.extent_mapped(extent));
        let natives = pool.allocate_many(33).unwrap();
        let coded = pool.allocate_in_slabs(class, 31).unwrap();
        assert!(coded.iter().all(|page| page / 31 == 3), "beside the last native page: {coded:?}");
        for &page in &natives[..30] {
            pool.release(page);
        }
        let moves = pool.compaction();
        assert_eq!(moves.len(), 2, "{moves:?}");
        moves.iter().for_each(|&(from, to)| pool.relocate(from, to));
        pool.debug_assert_invariants();
        assert_eq!(pool.surplus_extent(), Some(2));
    }

    #[test]
    fn sizes_that_cannot_be_are_refused_by_name() {
        let shape = CacheShape {
            layers: 1,
            kv_heads: 1,
            head_dim: 64,
            dtype: crate::cache::DType::Bf16,
            pages: 1,
        };
        let refuse = |sizes| elastic_pool(&shape, sizes, 16).unwrap_err().to_string();
        assert_eq!(
            refuse([200_000, 0]),
            "reserve is 200000 bytes, but memory comes 262144 bytes at a time"
        );
        assert_eq!(
            refuse([1 << 20, 1 << 21]),
            "initial is 2097152 bytes; it must be at most reserve, 1048576"
        );
        assert!(refuse([u64::MAX, 0]).starts_with("pages is "));
        assert_eq!(elastic_pool(&shape, [1 << 20, 1], 16).unwrap().capacity(), 64);
    }
}
