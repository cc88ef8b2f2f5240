//! Pages of other sizes in the memory of native ones.
//!
//! [`SLAB_PAGES`] native pages in a row of which none is in use become a *slab*: it holds as many smaller pages as fit,
//! all of one class, and becomes native again with the last of them.

use std::collections::BTreeMap;

use super::PageId;
use super::pool::{PagePool, PoolError};

/// Native pages of a slab.
pub use kernels_gpu::layout::SLAB_PAGES;

/// Pages of one size other than the native one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct SlabClass {
    /// Tells classes apart.
    pub(crate) key: u32,
    /// Pages that a slab holds. Page `i` is page `i % per_slab` of slab `i / per_slab`.
    pub(crate) per_slab: u32,
}

/// What is in use of a class.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct SlabUse {
    /// Pages held.
    pub(crate) pages: u32,
    /// Slabs that they are in.
    pub(crate) slabs: u32,
}

/// The slabs of a pool.
#[derive(Clone, Debug, Default)]
pub(super) struct Slabs {
    classes: Vec<(SlabClass, Class)>,
}

#[derive(Clone, Debug, Default)]
struct Class {
    /// Pages held in each slab.
    held: BTreeMap<u32, u32>,
    /// Pages of those slabs that are free, the next one on top.
    free: Vec<PageId>,
}

impl Slabs {
    fn class(&mut self, class: SlabClass) -> &mut Class {
        let at = self.classes.iter().position(|(other, _)| *other == class);
        let at = at.unwrap_or_else(|| {
            self.classes.push((class, Class::default()));
            self.classes.len() - 1
        });
        &mut self.classes[at].1
    }

    fn find(&self, class: SlabClass) -> Option<&Class> {
        let found = self.classes.iter().find(|(other, _)| *other == class);
        found.map(|(_, class)| class)
    }
}

impl Class {
    fn used(&self) -> SlabUse {
        SlabUse { pages: self.held.values().sum(), slabs: self.held.len() as u32 }
    }
}

impl PagePool {
    /// Native pages that slabs hold; they are counted in [`PagePool::live`].
    pub fn slab_pages(&self) -> u32 {
        let slabs = self.slabs.classes.iter().map(|(_, class)| class.held.len());
        slabs.sum::<usize>() as u32 * SLAB_PAGES
    }

    /// What is in use of a class.
    pub(crate) fn slab_use(&self, class: SlabClass) -> SlabUse {
        let found = self.slabs.find(class);
        found.map_or(SlabUse::default(), Class::used)
    }

    /// Every class that was used, in the order of first use.
    pub(crate) fn slab_uses(&self) -> impl Iterator<Item = (SlabClass, SlabUse)> + '_ {
        let classes = self.slabs.classes.iter();
        classes.map(|(class, record)| (*class, record.used()))
    }

    /// Takes `count` free pages of a class, with one owner each, or none.
    ///
    /// # Errors
    /// [`PoolError::OutOfSlabs`].
    pub(crate) fn allocate_in_slabs(
        &mut self,
        class: SlabClass,
        count: u32,
    ) -> Result<Vec<PageId>, PoolError> {
        let rest = self.slabs.find(class).map_or(0, |class| class.free.len() as u64);
        let room = u64::from(self.free_slabs(class.per_slab)) * u64::from(class.per_slab);
        if u64::from(count) > rest + room {
            return Err(PoolError::OutOfSlabs {
                wanted: count,
                free: rest + room,
                per_slab: class.per_slab,
            });
        }
        let mut taken = Vec::with_capacity(count as usize);
        while taken.len() < count as usize {
            let Some(page) = self.slabs.class(class).free.pop() else {
                let slab = self.take_slab(class.per_slab);
                let pages = slab * class.per_slab..(slab + 1) * class.per_slab;
                let record = self.slabs.class(class);
                record.held.insert(slab, 0);
                record.free.extend(pages.rev());
                continue;
            };
            *self.slabs.class(class).held.entry(page / class.per_slab).or_default() += 1;
            taken.push(page);
        }
        Ok(taken)
    }

    /// Gives a page of a class back; its slab with it, if that is empty then.
    pub(crate) fn release_in_slab(&mut self, class: SlabClass, page: PageId) {
        let slab = page / class.per_slab;
        let record = self.slabs.class(class);
        record.free.push(page);
        let held = record.held.get_mut(&slab).expect("the page is in use");
        *held -= 1;
        if *held == 0 {
            record.held.remove(&slab);
            record.free.retain(|page| page / class.per_slab != slab);
            for page in slab * SLAB_PAGES..(slab + 1) * SLAB_PAGES {
                self.release(page);
            }
        }
    }

    /// Whether there is such a slab, whose pages have ids that fit a place.
    fn is_slab(&self, slab: u32, per_slab: u32) -> bool {
        let whole = (slab + 1) * SLAB_PAGES <= self.capacity();
        whole && u64::from(slab + 1) * u64::from(per_slab) <= u64::from(Self::MAX_PAGES)
    }

    fn is_free_slab(&self, slab: u32, per_slab: u32) -> bool {
        let held = self.held_by_slab.get(slab as usize).copied().unwrap_or(0);
        held == 0 && self.is_slab(slab, per_slab) && self.held_beside(slab).is_some()
    }

    /// Pages held of the extent that a slab is in, `None` without memory; of a store that is not elastic 0.
    fn held_beside(&self, slab: u32) -> Option<u32> {
        match &self.extents {
            Some(extents) => extents.held(extents.of(slab * SLAB_PAGES)),
            None => Some(0),
        }
    }

    /// Whether pages of `extent` lie in slabs.
    pub(super) fn has_slabs(&self, extent: u32, pages: u32) -> bool {
        let slabs = extent * pages / SLAB_PAGES..(extent + 1) * pages / SLAB_PAGES;
        let mut classes = self.slabs.classes.iter();
        classes.any(|(_, class)| class.held.range(slabs.clone()).next().is_some())
    }

    fn free_slabs(&self, per_slab: u32) -> u32 {
        let slabs = 0..self.capacity() / SLAB_PAGES;
        slabs.filter(|&slab| self.is_free_slab(slab, per_slab)).count() as u32
    }

    /// Takes a slab's native pages; there is a free one.
    fn take_slab(&mut self, per_slab: u32) -> u32 {
        let slabs = 0..self.capacity() / SLAB_PAGES;
        let free = slabs.filter(|&slab| self.is_free_slab(slab, per_slab));
        let fullest = free.max_by_key(|&slab| (self.held_beside(slab), std::cmp::Reverse(slab)));
        let slab = fullest.expect("slabs were counted");
        self.take_run(slab * SLAB_PAGES..(slab + 1) * SLAB_PAGES);
        slab
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const CLASS: SlabClass = SlabClass { key: 1, per_slab: 31 };

    #[test]
    fn a_slab_comes_and_goes_with_its_pages() {
        let mut pool = PagePool::new(40).unwrap();
        let native = pool.allocate().unwrap();
        let small = pool.allocate_in_slabs(CLASS, 31).unwrap();
        assert_eq!(small, (31..62).collect::<Vec<_>>(), "slab 1, for page 0 is in use");
        assert_eq!((pool.live(), pool.free(), pool.slab_pages()), (17, 23, 16));
        let error = pool.allocate_in_slabs(CLASS, 1).unwrap_err();
        assert_eq!(
            error.to_string(),
            "out of pages of a format: 1 wanted, 0 free; 31 of them take 16 native pages in a row that are free"
        );
        let all = pool.allocate_many(23).unwrap();
        assert!(all.iter().all(|page| !(16..32).contains(page)), "a slab's pages are its own");
        pool.debug_assert_invariants();
        for page in small {
            assert_eq!(pool.slab_use(CLASS).slabs, 1);
            pool.release_in_slab(CLASS, page);
            pool.debug_assert_invariants();
        }
        assert_eq!((pool.slab_use(CLASS), pool.free()), (SlabUse::default(), 16));
        pool.release(native);
        assert_eq!(pool.allocate_many(17).unwrap().len(), 17);
    }

    #[test]
    fn counters_are_exact_whatever_comes_and_goes() {
        let classes =
            [CLASS, SlabClass { key: 2, per_slab: 85 }, SlabClass { key: 3, per_slab: 15 }];
        let mut pool = PagePool::new(200).unwrap();
        let mut held: [Vec<PageId>; 4] = Default::default();
        let mut state = 1u32;
        let mut random = |below: u32| {
            state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            (state >> 16) % below
        };
        for _ in 0..2000 {
            let (kind, count) = (random(4) as usize, random(40));
            match (random(2), classes.get(kind)) {
                (0, Some(&class)) => match pool.allocate_in_slabs(class, count) {
                    Ok(pages) => held[kind].extend(pages),
                    Err(error) => assert!(matches!(error, PoolError::OutOfSlabs { .. })),
                },
                (0, None) => held[kind].extend(pool.allocate_many(count).unwrap_or_default()),
                (_, class) => {
                    for _ in 0..count.min(held[kind].len() as u32) {
                        let at = random(held[kind].len() as u32) as usize;
                        let page = held[kind].swap_remove(at);
                        match class {
                            Some(&class) => pool.release_in_slab(class, page),
                            None => drop(pool.release(page)),
                        }
                    }
                }
            }
            pool.debug_assert_invariants();
            assert_eq!(pool.live() - pool.slab_pages(), held[3].len() as u32);
            for (class, held) in classes.iter().zip(&held) {
                let mut pages = held.clone();
                pages.sort_unstable();
                pages.dedup();
                assert_eq!(pages.len(), held.len(), "a page has one owner");
                let slabs: std::collections::BTreeSet<_> =
                    pages.iter().map(|p| p / class.per_slab).collect();
                assert_eq!(pool.slab_use(*class).pages as usize, held.len());
                assert_eq!(pool.slab_use(*class).slabs as usize, slabs.len());
            }
        }
        assert!(held.iter().any(|pages| !pages.is_empty()));
    }
}
