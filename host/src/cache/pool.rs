//! Which pages are in use, and by how many owners: bookkeeping only, no storage.

use kernels_gpu::abi::{APPEND_LIVE, PAGE_TOKENS};

use super::PageId;

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
    /// A pool needs a page at least.
    #[error("pages is 0: a pool needs at least one")]
    NoPages,
    /// `page * 64 + token` has to fit an append target, beside its flag bit.
    #[error("pages is {pages}, the limit is {}", PagePool::MAX_PAGES)]
    TooManyPages {
        /// Pages asked for.
        pages: u64,
    },
    /// A page takes memory.
    #[error("page_bytes is 0")]
    NoPageBytes,
    /// The memory given holds no page.
    #[error("capacity_bytes is {capacity_bytes}, but a page takes {page_bytes} bytes")]
    CapacityBelowPage {
        /// Memory given.
        capacity_bytes: u64,
        /// Bytes of a page, of all layers and KV heads.
        page_bytes: u64,
    },
    /// The page is free or beyond the pool: nobody holds a reference to it.
    #[error("page {page} is not in use (the pool has {capacity} pages)")]
    PageNotInUse {
        /// The page named.
        page: PageId,
        /// Pages of the pool.
        capacity: u32,
    },
    /// A page's reference count is full.
    #[error("page {page} has {} references, the limit", u32::MAX)]
    TooManyReferences {
        /// The page named.
        page: PageId,
    },
}

/// A fixed number of pages, each free or held by one or more references.
///
/// `free + live = capacity` at all times. A call that fails has changed nothing.
///
/// ```
/// let mut pool = deft::cache::PagePool::new(4)?;
/// let pages = pool.allocate_many(3)?;
/// assert_eq!((pool.live(), pool.free()), (3, 1));
/// assert_eq!(
///     pool.allocate_many(2).unwrap_err().to_string(),
///     "out of pages: 2 wanted, 1 free of 4"
/// );
/// assert!(pool.release(pages[0])?);
/// # Ok::<(), deft::cache::PoolError>(())
/// ```
#[derive(Clone, Debug)]
pub struct PagePool {
    capacity: u32,
    /// References of every page that was ever in use; pages from `references.len()` on are untouched.
    references: Vec<u32>,
    /// Pages that were in use and came back, the last one on top.
    returned: Vec<PageId>,
}

impl PagePool {
    /// Most pages a pool may have: `page * 64 + token` stays below [`APPEND_LIVE`].
    pub const MAX_PAGES: u32 = APPEND_LIVE / PAGE_TOKENS;

    /// A pool of `pages` free pages.
    ///
    /// # Errors
    /// [`PoolError::NoPages`], or [`PoolError::TooManyPages`] above [`PagePool::MAX_PAGES`].
    pub fn new(pages: u32) -> Result<Self, PoolError> {
        if pages == 0 {
            return Err(PoolError::NoPages);
        }
        if pages > Self::MAX_PAGES {
            let pages = u64::from(pages);
            return Err(PoolError::TooManyPages { pages });
        }
        Ok(Self {
            capacity: pages,
            references: Vec::new(),
            returned: Vec::new(),
        })
    }

    /// As many pages as fit `capacity_bytes`, when a page of all layers and KV heads takes `page_bytes`.
    ///
    /// # Errors
    /// [`PoolError::NoPageBytes`], [`PoolError::CapacityBelowPage`], or [`PoolError::TooManyPages`].
    pub(crate) fn with_capacity_bytes(
        capacity_bytes: u64,
        page_bytes: u64,
    ) -> Result<Self, PoolError> {
        let pages = capacity_bytes
            .checked_div(page_bytes)
            .ok_or(PoolError::NoPageBytes)?;
        if pages == 0 {
            return Err(PoolError::CapacityBelowPage {
                capacity_bytes,
                page_bytes,
            });
        }
        Self::new(u32::try_from(pages).map_err(|_| PoolError::TooManyPages { pages })?)
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
        (self.references.len() - self.returned.len()) as u32
    }

    /// References to `page`; 0 for a free page and for one beyond the pool.
    pub(crate) fn references(&self, page: PageId) -> u32 {
        self.references.get(page as usize).copied().unwrap_or(0)
    }

    /// Whether `pages` pages are free.
    ///
    /// # Errors
    /// [`PoolError::OutOfPages`] if not.
    pub fn check_free(&self, pages: u64) -> Result<(), PoolError> {
        if pages > u64::from(self.free()) {
            return Err(PoolError::OutOfPages {
                wanted: pages,
                free: self.free(),
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
        if let Some(page) = self.returned.pop() {
            self.references[page as usize] = 1;
            return Ok(page);
        }
        self.references.push(1);
        Ok(self.references.len() as PageId - 1)
    }

    /// Takes `count` free pages, with one reference each, or none.
    ///
    /// # Errors
    /// [`PoolError::OutOfPages`].
    pub fn allocate_many(&mut self, count: u32) -> Result<Vec<PageId>, PoolError> {
        self.check_free(u64::from(count))?;
        (0..count).map(|_| self.allocate()).collect()
    }

    /// Adds a reference to a page in use.
    ///
    /// # Errors
    /// [`PoolError::PageNotInUse`], or [`PoolError::TooManyReferences`].
    pub(crate) fn retain(&mut self, page: PageId) -> Result<(), PoolError> {
        let references = self.references_mut(page)?;
        *references = references
            .checked_add(1)
            .ok_or(PoolError::TooManyReferences { page })?;
        Ok(())
    }

    /// Drops a reference to a page in use; `true` if it was the last and the page is free now.
    ///
    /// # Errors
    /// [`PoolError::PageNotInUse`].
    pub fn release(&mut self, page: PageId) -> Result<bool, PoolError> {
        let references = self.references_mut(page)?;
        *references -= 1;
        let last = *references == 0;
        if last {
            self.returned.push(page);
        }
        Ok(last)
    }

    fn references_mut(&mut self, page: PageId) -> Result<&mut u32, PoolError> {
        let capacity = self.capacity;
        self.references
            .get_mut(page as usize)
            .filter(|references| **references > 0)
            .ok_or(PoolError::PageNotInUse { page, capacity })
    }

    /// Checks every counter against a count from scratch, where debug assertions are on.
    ///
    /// # Panics
    /// If the bookkeeping is broken: a bug of this crate.
    pub fn debug_assert_invariants(&self) {
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
        assert_eq!(PagePool::new(0).unwrap_err(), PoolError::NoPages);
        assert_eq!(error(10, 0), PoolError::NoPageBytes);
        assert_eq!(
            error(10, 11).to_string(),
            "capacity_bytes is 10, but a page takes 11 bytes"
        );
        assert_eq!(
            error(u64::MAX, 1),
            PoolError::TooManyPages { pages: u64::MAX }
        );
        assert!(PagePool::new(PagePool::MAX_PAGES).is_ok());
        assert_eq!(
            PagePool::new(PagePool::MAX_PAGES + 1)
                .unwrap_err()
                .to_string(),
            "pages is 33554433, the limit is 33554432"
        );
    }

    #[test]
    fn a_page_returns_with_its_last_reference() {
        let mut pool = PagePool::new(2).unwrap();
        let page = pool.allocate().unwrap();
        pool.retain(page).unwrap();
        assert!(!pool.release(page).unwrap());
        assert!(pool.release(page).unwrap());
        let free = PoolError::PageNotInUse { page, capacity: 2 };
        assert_eq!(pool.release(page), Err(free));
        assert_eq!(pool.retain(page), Err(free));
        assert_eq!(
            pool.retain(7),
            Err(PoolError::PageNotInUse {
                page: 7,
                capacity: 2
            })
        );
        pool.debug_assert_invariants();
    }

    #[test]
    fn allocating_many_takes_all_or_nothing() {
        let mut pool = PagePool::new(5).unwrap();
        let held = pool.allocate_many(3).unwrap();
        assert_eq!(
            pool.allocate_many(3).unwrap_err(),
            PoolError::OutOfPages {
                wanted: 3,
                free: 2,
                capacity: 5
            }
        );
        assert_eq!(pool.free(), 2);
        for page in held {
            pool.release(page).unwrap();
        }
        let all = pool.allocate_many(5).unwrap();
        let distinct: std::collections::BTreeSet<_> = all.iter().collect();
        assert_eq!(distinct.len(), 5);
        pool.debug_assert_invariants();
    }
}
