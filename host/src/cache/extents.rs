//! Which pages have memory behind them, in a pool whose memory comes and goes.
//!
//! Memory is given to an *extent* at a time, pages in a row. Pages are taken from the fullest extent that has free ones,
//! so that the others drain; an extent of which no page is held may lose its memory.

use std::cmp::Reverse;
use std::collections::BTreeSet;

use super::PageId;

/// The extents of a pool.
#[derive(Clone, Debug)]
pub(super) struct Extents {
    /// Pages of an extent.
    pages: u32,
    /// The first so many keep their memory.
    kept: u32,
    /// Each one's free pages, the next one to be taken on top; `None` without memory.
    free: Vec<Option<Vec<PageId>>>,
    /// Those with memory and free pages by pages held, so that the fullest comes last; of equals the first.
    open: BTreeSet<(u32, Reverse<u32>)>,
    /// Free pages with memory.
    ready: u32,
    /// Those with memory.
    mapped: u32,
}

impl Extents {
    pub(super) fn new(pages: u32, extents: u32, kept: u32) -> Self {
        let free = vec![None; extents as usize];
        Self { pages, kept, free, open: BTreeSet::new(), ready: 0, mapped: 0 }
    }

    pub(super) fn pages(&self) -> u32 {
        self.pages
    }
    pub(super) fn kept(&self) -> u32 {
        self.kept
    }
    pub(super) fn ready(&self) -> u32 {
        self.ready
    }
    pub(super) fn mapped(&self) -> u32 {
        self.mapped
    }

    /// Pages held of an extent; `None` without memory.
    pub(super) fn held(&self, extent: u32) -> Option<u32> {
        let free = self.free.get(extent as usize)?.as_ref()?;
        Some(self.pages - free.len() as u32)
    }

    /// The extent that a page is of.
    pub(super) fn of(&self, page: PageId) -> u32 {
        page / self.pages
    }

    /// The first extent without memory.
    pub(super) fn next(&self) -> Option<u32> {
        self.free.iter().position(Option::is_none).map(|extent| extent as u32)
    }

    /// Extents with memory of which no page is held, the last first.
    pub(super) fn empty(&self) -> impl Iterator<Item = u32> + '_ {
        self.open.range(..(1, Reverse(u32::MAX))).map(|&(_, Reverse(extent))| extent)
    }

    /// An empty extent more than the one that is kept ahead.
    pub(super) fn surplus(&self) -> Option<u32> {
        let mut empty = self.empty();
        let last = empty.next().filter(|&extent| extent >= self.kept);
        empty.next().and(last)
    }

    /// Gives an extent memory.
    pub(super) fn map(&mut self, extent: u32) {
        let pages = extent * self.pages..(extent + 1) * self.pages;
        let before = self.free[extent as usize].replace(pages.rev().collect());
        assert!(before.is_none(), "extent {extent} has memory");
        self.open.insert((0, Reverse(extent)));
        self.ready += self.pages;
        self.mapped += 1;
    }

    /// Takes an empty extent's memory away.
    pub(super) fn unmap(&mut self, extent: u32) {
        assert_eq!(self.held(extent), Some(0), "extent {extent} is in use");
        self.free[extent as usize] = None;
        self.open.remove(&(0, Reverse(extent)));
        self.ready -= self.pages;
        self.mapped -= 1;
    }

    /// Takes the next page; one is ready.
    pub(super) fn take(&mut self) -> PageId {
        let &(_, Reverse(extent)) = self.open.last().expect("free pages were counted");
        self.change(extent, |free| free.pop().expect("it is open"))
    }

    /// Takes a page that is free and has memory.
    pub(super) fn take_page(&mut self, page: PageId) {
        self.change(self.of(page), |free| {
            let at = free.iter().position(|&other| other == page).expect("the page is free");
            free.remove(at);
        });
    }

    /// Takes a page back.
    pub(super) fn put(&mut self, page: PageId) {
        self.change(self.of(page), |free| free.push(page));
    }

    fn change<R>(&mut self, extent: u32, change: impl FnOnce(&mut Vec<PageId>) -> R) -> R {
        let free = self.free[extent as usize].as_mut().expect("the extent has memory");
        let before = free.len() as u32;
        let result = change(free);
        let after = free.len() as u32;
        self.open.remove(&(self.pages - before, Reverse(extent)));
        if after > 0 {
            self.open.insert((self.pages - after, Reverse(extent)));
        }
        self.ready = self.ready + after - before;
        result
    }

    /// Pages in the order in which they are taken next.
    pub(super) fn upcoming(&self) -> impl Iterator<Item = PageId> + '_ {
        // The fullest stays the fullest until it is full.
        self.open.iter().rev().flat_map(|&(_, Reverse(extent))| {
            self.free[extent as usize].iter().flat_map(|free| free.iter().rev().copied())
        })
    }

    /// Moves of pages by which extents become empty: from the emptiest of those for which `may_move` says so to free
    /// pages of fuller ones, as long as that empties one.
    pub(super) fn compaction(
        &self,
        held_pages: impl Fn(u32) -> Vec<PageId>,
        may_move: impl Fn(u32) -> bool,
    ) -> Vec<(PageId, PageId)> {
        let held = |extent| self.held(extent).filter(|&held| held > 0).map(|held| (held, extent));
        let mut used: Vec<_> = (0..self.free.len() as u32).filter_map(held).collect();
        // Those that cannot be emptied are filled first.
        used.sort_by_key(|&(held, extent)| (may_move(extent), Reverse(held), extent));
        let mut room: u32 = used.iter().map(|&(held, _)| self.pages - held).sum();
        let mut sources = Vec::new();
        let mut last = used.len();
        while let Some(&(held, extent)) = used[..last].last().filter(|used| may_move(used.1)) {
            room -= self.pages - held;
            if (room as usize) < sources.len() + held as usize {
                break;
            }
            sources.extend(held_pages(extent));
            last -= 1;
        }
        let targets = used[..last].iter().flat_map(|&(_, extent)| {
            self.free[extent as usize].iter().flat_map(|free| free.iter().rev().copied())
        });
        sources.into_iter().zip(targets).collect()
    }

    /// Checks the counters against a count from scratch.
    pub(super) fn assert_invariants(&self, references: impl Fn(PageId) -> u32) {
        let (mut ready, mut mapped) = (0, 0);
        for (extent, free) in (0..).zip(&self.free) {
            let pages = extent * self.pages..(extent + 1) * self.pages;
            let held = pages.clone().filter(|&page| references(page) > 0).count() as u32;
            let Some(free) = free else {
                assert_eq!(held, 0, "extent {extent} is in use without memory");
                continue;
            };
            let mut all = free.clone();
            all.sort_unstable();
            assert!(all.into_iter().eq(pages.filter(|&page| references(page) == 0)));
            assert_eq!(self.open.contains(&(held, Reverse(extent))), !free.is_empty());
            ready += free.len() as u32;
            mapped += 1;
        }
        assert_eq!((ready, mapped), (self.ready, self.mapped));
        assert!(self.open.len() <= mapped as usize);
    }
}
