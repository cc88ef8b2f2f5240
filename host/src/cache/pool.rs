//! Which pages are in use, and by how many owners: bookkeeping only, no storage.

use kernels_gpu::abi::{APPEND_LIVE, PAGE_TOKENS};

use super::PageId;
use super::extents::Extents;
use super::fresh::Fresh;
use super::slabs::{SLAB_PAGES, Slabs};

/// Why a [`PagePool`] refused.
#[non_exhaustive]
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum PoolError {
    /// More pages were wanted than are free.
    #[error("out of pages: {wanted} wanted, {free} free of {capacity}")]
    OutOfPages {
        /// Pages that the operation needs.
        wanted: u64,
        /// Pages that are free.
        free: u32,
        /// Pages of the pool.
        capacity: u32,
    },
    /// More pages of a format were wanted than are free, or than free native pages in a row make room for.
    #[error(
        "out of pages of a format: {wanted} wanted, {free} free; {per_slab} of them take {SLAB_PAGES} native pages in a \
         row that are free"
    )]
    OutOfSlabs {
        /// Pages that the operation needs.
        wanted: u32,
        /// Pages that are free, or would be of free slabs.
        free: u64,
        /// Pages that a slab holds.
        per_slab: u32,
    },
    /// A pool has a page at least, and `page * 64 + token` has to fit an append target, beside its flag bit.
    #[error("pages is {pages}; it must be between 1 and {}", PagePool::MAX_PAGES)]
    Pages {
        /// Pages asked for.
        pages: u64,
    },
    /// The memory given holds no page.
    #[error("capacity_bytes is {capacity_bytes}, but a page takes {page_bytes} bytes")]
    CapacityBelowPage {
        /// Memory given.
        capacity_bytes: u64,
        /// Bytes of a page, of all layers and KV heads.
        page_bytes: u64,
    },
    /// The address space of an elastic store holds none of the pieces in which its memory comes.
    #[error("reserve is {reserve} bytes, but memory comes {extent_bytes} bytes at a time")]
    ReserveBelowExtent {
        /// Address space asked for.
        reserve: u64,
        /// Bytes of memory that come and go together.
        extent_bytes: u64,
    },
    /// An elastic store would begin with more memory than it may have.
    #[error("initial is {initial} bytes; it must be at most reserve, {reserve}")]
    InitialAboveReserve {
        /// Memory to begin with.
        initial: u64,
        /// Address space.
        reserve: u64,
    },
}

/// A fixed number of pages, each free or held by the nodes of a [`TokenForest`](crate::tree::TokenForest) that have a
/// token on it.
///
/// `free + live = capacity` at all times. A page that came back last is the next to be taken. Pages of formats lie in
/// slabs, each of 16 native pages in a row: those are live as long as the slab holds a page.
///
/// In an elastic store free pages may lack memory; those that have it are [`PagePool::ready`], and only they are taken,
/// first of the extent with the fewest free pages.
#[derive(Clone, Debug)]
pub struct PagePool {
    capacity: u32,
    live: u32,
    /// References of every page that was ever in use; pages from `references.len()` on are untouched. Of an elastic
    /// store it has all pages.
    references: Vec<u32>,
    /// Pages that were in use and came back, the last one on top; none of an elastic store.
    returned: Vec<PageId>,
    /// Where memory comes and goes.
    pub(super) extents: Option<Extents>,
    /// Pages in use of each run of [`SLAB_PAGES`], as far as [`Self::references`] go.
    pub(super) held_by_slab: Vec<u8>,
    pub(super) slabs: Slabs,
    /// Pages taken, if somebody wants to know.
    fresh: Option<Fresh>,
}

impl PagePool {
    /// Most pages a pool may have: `page * 64 + token` stays below [`APPEND_LIVE`].
    pub const MAX_PAGES: u32 = APPEND_LIVE / PAGE_TOKENS;

    /// A pool of `pages` free pages.
    ///
    /// # Errors
    /// [`PoolError::Pages`] for 0, or more than [`PagePool::MAX_PAGES`].
    pub fn new(pages: u32) -> Result<Self, PoolError> {
        Self::with_pages(u64::from(pages))
    }

    fn with_pages(pages: u64) -> Result<Self, PoolError> {
        if !(1..=u64::from(Self::MAX_PAGES)).contains(&pages) {
            return Err(PoolError::Pages { pages });
        }
        Ok(Self {
            capacity: pages as u32,
            live: 0,
            references: Vec::new(),
            returned: Vec::new(),
            extents: None,
            held_by_slab: Vec::new(),
            slabs: Slabs::default(),
            fresh: None,
        })
    }

    /// As many pages as fit `capacity_bytes`, when a page of all layers and KV heads takes `page_bytes`.
    ///
    /// # Errors
    /// [`PoolError::CapacityBelowPage`], or [`PoolError::Pages`].
    pub(crate) fn with_capacity_bytes(
        capacity_bytes: u64,
        page_bytes: u64,
    ) -> Result<Self, PoolError> {
        match capacity_bytes / page_bytes {
            0 => Err(PoolError::CapacityBelowPage { capacity_bytes, page_bytes }),
            pages => Self::with_pages(pages),
        }
    }

    /// A pool of `extents` times `pages` pages, none of which has memory; the first `kept` extents keep theirs once they
    /// have it.
    ///
    /// # Errors
    /// [`PoolError::Pages`].
    pub(crate) fn elastic(pages: u32, extents: u32, kept: u32) -> Result<Self, PoolError> {
        let mut pool = Self::with_pages(u64::from(pages) * u64::from(extents))?;
        pool.references = vec![0; pool.capacity as usize];
        pool.held_by_slab = vec![0; pool.capacity.div_ceil(SLAB_PAGES) as usize];
        pool.extents = Some(Extents::new(pages, extents, kept));
        Ok(pool)
    }

    /// Pages of the pool.
    pub fn capacity(&self) -> u32 {
        self.capacity
    }

    /// Pages that nobody holds.
    pub fn free(&self) -> u32 {
        self.capacity - self.live()
    }

    /// Pages that somebody holds.
    pub fn live(&self) -> u32 {
        self.live
    }

    /// Free pages that can be taken as things are: all of them, but in an elastic store, where some lack memory.
    pub fn ready(&self) -> u32 {
        self.extents.as_ref().map_or(self.free(), Extents::ready)
    }

    /// References to `page`; 0 for a free page and for one beyond the pool.
    pub(crate) fn references(&self, page: PageId) -> u32 {
        self.references.get(page as usize).copied().unwrap_or(0)
    }

    /// Whether `pages` pages are ready.
    ///
    /// # Errors
    /// [`PoolError::OutOfPages`] if not.
    pub fn check_free(&self, pages: u64) -> Result<(), PoolError> {
        if pages > u64::from(self.ready()) {
            return Err(PoolError::OutOfPages {
                wanted: pages,
                free: self.ready(),
                capacity: self.capacity,
            });
        }
        Ok(())
    }

    /// Takes a free page, with one reference.
    ///
    /// # Errors
    /// [`PoolError::OutOfPages`].
    pub(crate) fn allocate(&mut self) -> Result<PageId, PoolError> {
        self.check_free(1)?;
        let page = match &mut self.extents {
            Some(extents) => extents.take(),
            None => self.returned.pop().unwrap_or_else(|| self.touch()),
        };
        self.hold(page, 1);
        Ok(page)
    }

    /// Counts a page that was taken.
    fn hold(&mut self, page: PageId, references: u32) {
        self.live += 1;
        self.references[page as usize] = references;
        self.held_by_slab[(page / SLAB_PAGES) as usize] += 1;
        if let Some(fresh) = &mut self.fresh {
            fresh.add(page);
        }
    }

    /// Remembers from now on which pages are taken, or no longer.
    pub(crate) fn watch_fresh(&mut self, watch: bool) {
        self.fresh = watch.then(Fresh::default);
    }

    /// Lists pages again that [`Self::take_fresh`] gave.
    pub(crate) fn put_fresh(&mut self, pages: &[PageId]) {
        if let Some(fresh) = &mut self.fresh {
            pages.iter().for_each(|&page| fresh.add(page));
        }
    }

    /// The pages taken since this was last asked, each once; some may be free again.
    pub(crate) fn take_fresh(&mut self) -> Vec<PageId> {
        self.fresh.as_mut().map_or_else(Vec::new, Fresh::take)
    }

    /// Takes the count of a page back; its references.
    fn drop_hold(&mut self, page: PageId) -> u32 {
        self.live -= 1;
        self.held_by_slab[(page / SLAB_PAGES) as usize] -= 1;
        match &mut self.extents {
            Some(extents) => extents.put(page),
            None => self.returned.push(page),
        }
        std::mem::take(&mut self.references[page as usize])
    }

    /// The next page that was never in use.
    fn touch(&mut self) -> PageId {
        let page = self.references.len();
        self.references.push(0);
        self.held_by_slab.resize(page / SLAB_PAGES as usize + 1, 0);
        page as PageId
    }

    /// Takes free pages, with one reference each.
    pub(super) fn take_run(&mut self, pages: std::ops::Range<PageId>) {
        while self.references.len() < pages.end as usize {
            let page = self.touch();
            self.returned.push(page);
        }
        self.returned.retain(|page| !pages.contains(page));
        for page in pages {
            if let Some(extents) = &mut self.extents {
                extents.take_page(page);
            }
            self.hold(page, 1);
        }
    }

    /// Takes `count` free pages, with one reference each, or none.
    ///
    /// # Errors
    /// [`PoolError::OutOfPages`].
    pub(crate) fn allocate_many(&mut self, count: u32) -> Result<Vec<PageId>, PoolError> {
        self.check_free(u64::from(count))?;
        (0..count).map(|_| self.allocate()).collect()
    }

    /// The pages that [`Self::allocate_many`] takes next: at most `count`, as many as are ready.
    pub(crate) fn next_pages(&self, count: u32) -> Vec<PageId> {
        if let Some(extents) = &self.extents {
            return extents.upcoming().take(count as usize).collect();
        }
        let returned = self.returned.iter().rev().copied();
        let untouched = self.references.len() as PageId..self.capacity;
        returned.chain(untouched).take(count as usize).collect()
    }

    /// Adds a reference to a page in use. A page has no more of them than a forest has nodes.
    pub(crate) fn retain(&mut self, page: PageId) {
        debug_assert!(self.references(page) > 0, "page {page} is not in use");
        self.references[page as usize] += 1;
    }

    /// Drops a reference to a page in use; `true` if it was the last and the page is free now.
    pub(crate) fn release(&mut self, page: PageId) -> bool {
        debug_assert!(self.references(page) > 0, "page {page} is not in use");
        let references = &mut self.references[page as usize];
        *references -= 1;
        let last = *references == 0;
        if last {
            self.drop_hold(page);
        }
        last
    }

    /// Gives the free page `to` what the held page `from` is: its references. `from` is free then.
    pub(crate) fn relocate(&mut self, from: PageId, to: PageId) {
        let references = self.drop_hold(from);
        let extents = self.extents.as_mut().expect("pages move in elastic stores");
        extents.take_page(to);
        self.hold(to, references);
    }

    /// Checks every counter against a count from scratch, where debug assertions are on.
    ///
    /// # Panics
    /// If the bookkeeping is broken: a bug of this crate.
    pub(crate) fn debug_assert_invariants(&self) {
        if !cfg!(debug_assertions) {
            return;
        }
        assert!(self.references.len() <= self.capacity as usize);
        let held = self.references.iter().filter(|&&count| count > 0).count();
        assert_eq!(held, self.live() as usize, "held pages are counted as live");
        assert_eq!(self.free() + self.live(), self.capacity);
        let mut returned = self.returned.clone();
        returned.sort_unstable();
        returned.dedup();
        assert_eq!(returned.len(), self.returned.len(), "a page is free twice");
        assert!(returned.iter().all(|&page| self.references(page) == 0));
        let slabs = self.references.chunks(SLAB_PAGES as usize);
        let held = slabs.map(|slab| slab.iter().filter(|&&count| count > 0).count() as u8);
        assert!(held.eq(self.held_by_slab.iter().copied()));
        if let Some(extents) = &self.extents {
            extents.assert_invariants(|page| self.references(page));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bytes_are_cut_into_whole_pages() {
        let pool = PagePool::with_capacity_bytes(1000, 300).unwrap();
        assert_eq!((pool.capacity(), pool.free(), pool.live()), (3, 3, 0));
    }

    #[test]
    fn sizes_out_of_range_are_named() {
        let error = |bytes, page| PagePool::with_capacity_bytes(bytes, page).unwrap_err();
        assert_eq!(PagePool::new(0).unwrap_err(), PoolError::Pages { pages: 0 });
        assert_eq!(error(10, 11).to_string(), "capacity_bytes is 10, but a page takes 11 bytes");
        assert_eq!(error(u64::MAX, 1), PoolError::Pages { pages: u64::MAX });
        assert!(PagePool::new(PagePool::MAX_PAGES).is_ok());
        assert_eq!(
            PagePool::new(PagePool::MAX_PAGES + 1).unwrap_err().to_string(),
            "pages is 33554433; it must be between 1 and 33554432"
        );
    }

    #[test]
    fn a_page_returns_with_its_last_reference() {
        let mut pool = PagePool::new(2).unwrap();
        let page = pool.allocate().unwrap();
        pool.retain(page);
        assert!(!pool.release(page));
        assert_eq!((pool.live(), pool.references(page)), (1, 1));
        assert!(pool.release(page));
        assert_eq!((pool.live(), pool.references(page)), (0, 0));
        pool.debug_assert_invariants();
    }

    #[test]
    fn allocating_many_takes_all_or_nothing() {
        let mut pool = PagePool::new(5).unwrap();
        let held = pool.allocate_many(3).unwrap();
        assert_eq!(
            pool.allocate_many(3).unwrap_err(),
            PoolError::OutOfPages { wanted: 3, free: 2, capacity: 5 }
        );
        assert_eq!(pool.free(), 2);
        assert_eq!(pool.next_pages(1).len(), 1);
        for page in held {
            pool.release(page);
        }
        let next = pool.next_pages(7);
        let all = pool.allocate_many(5).unwrap();
        assert_eq!(next, all);
        let distinct: std::collections::BTreeSet<_> = all.iter().collect();
        assert_eq!(distinct.len(), 5);
        pool.debug_assert_invariants();
    }
}
