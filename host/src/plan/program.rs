//! A plan as the kernels read it, and typed views of it for everybody else.

use std::ops::Range;
use std::sync::atomic::{AtomicU64, Ordering};

use kernels_gpu::abi::{MergeRow, NONE, ProgramHeader, Segment, WorkItem, words_of};

use super::{Grouping, LaunchPages};
use crate::format::KvFormat;

/// What every backend executes: which queries meet which pages where, and how the parts merge.
///
/// A plan names neither a layer nor a KV head, so one plan serves them all, on any number of devices.
/// Only a [`Planner`](super::Planner) makes one, so its indices can be relied upon; it can be written as
/// JSON to be looked at, and not be read back.
#[derive(Clone, Debug, PartialEq, Eq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize))]
pub struct Plan {
    pub(super) grouping: Grouping,
    pub(super) group_size: u32,
    pub(super) queries: u32,
    pub(super) shares: u32,
    pub(super) stride: u32,
    pub(super) words: Vec<u32>,
    pub(super) masks: Vec<u64>,
    #[cfg_attr(feature = "serde", serde(with = "merge_rows"))]
    pub(super) merge_rows: Vec<MergeRow>,
    pub(super) merge_slots: Vec<u32>,
    pub(super) partial_slots: u32,
    #[cfg_attr(feature = "serde", serde(skip))]
    pub(super) residues: Vec<PlanResidue>,
    /// Estimated cost of each share.
    pub(super) share_ns: Vec<u64>,
    pub(super) predicted_ns: u64,
    pub(super) reuse_pages: u64,
    /// Some item's pages are not native.
    #[cfg_attr(feature = "serde", serde(skip))]
    pub(super) formats: bool,
    #[cfg_attr(feature = "serde", serde(skip))]
    pub(super) launches: Vec<LaunchPages>,
    /// Where runs grow, by length counter.
    #[cfg_attr(feature = "serde", serde(skip))]
    pub(super) live: Vec<LiveTail>,
    /// One more than the largest page and length slot named.
    #[cfg_attr(feature = "serde", serde(skip))]
    pub(super) bounds: Bounds,
    #[cfg_attr(feature = "serde", serde(skip))]
    pub(super) identity: Identity,
}

/// Queries that see a node of which rows were folded away. Each has a partial slot for what it gets of the residue,
/// beside those of work items.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PlanResidue {
    /// The queries.
    pub queries: Range<u32>,
    /// The first one's slot; those of the others follow.
    pub partial_slot: u32,
    /// The residue's number in [`Residues`](crate::tree::Residues).
    pub index: u32,
}

impl Default for Plan {
    fn default() -> Self {
        Self::empty()
    }
}

/// How many pages, indices and length slots a plan takes for granted.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Bounds {
    pub(crate) pages: u32,
    pub(crate) slots: u32,
    /// Indices of a directory, which the pages of compacted runs are.
    pub(crate) indices: u32,
}

impl Bounds {
    pub(super) fn include(&mut self, format: KvFormat, pages: &[u32], length_slot: u32) {
        let last = pages.iter().copied().max();
        let bound = match format {
            KvFormat::Compacted => &mut self.indices,
            _ => &mut self.pages,
        };
        *bound = (*bound).max(last.map_or(0, |page| page.saturating_add(1)));
        if length_slot != NONE {
            self.slots = self.slots.max(length_slot + 1);
        }
    }
}

/// Which plan this is: no two that differ have the same number, so who keeps a copy need not compare. Equality of
/// plans is of what they say, whoever made them.
#[derive(Clone, Debug)]
pub(super) struct Identity {
    number: u64,
    /// The number before the last patch, and the words that it changed.
    #[cfg_attr(not(feature = "cuda"), expect(dead_code, reason = "only devices ask"))]
    patch: Option<(u64, Vec<Range<u32>>)>,
}

impl Identity {
    const EMPTY: Self = Self { number: 0, patch: None };

    fn next(patch: Option<(u64, Vec<Range<u32>>)>) -> Self {
        static NEXT: AtomicU64 = AtomicU64::new(1);
        Self { number: NEXT.fetch_add(1, Ordering::Relaxed), patch }
    }

    /// To be called when the words `dirty` of a plan were patched.
    pub(super) fn patched(&mut self, dirty: &[Range<u32>]) {
        *self = Self::next(Some((self.number, dirty.to_vec())));
    }
}

impl PartialEq for Identity {
    fn eq(&self, _other: &Self) -> bool {
        true
    }
}

impl Eq for Identity {}

/// A segment that holds the last page of a run that may grow.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct LiveTail {
    pub(super) length_slot: u32,
    /// Where its record is in [`Plan::words`].
    pub(super) segment_word: u32,
}

impl Plan {
    /// A plan of nothing, to be filled by [`Planner::plan_into`](super::Planner::plan_into).
    pub fn empty() -> Self {
        Self {
            grouping: Grouping::Flatten,
            group_size: 1,
            queries: 0,
            shares: 0,
            stride: 0,
            words: Vec::new(),
            masks: Vec::new(),
            merge_rows: Vec::new(),
            merge_slots: Vec::new(),
            partial_slots: 0,
            residues: Vec::new(),
            share_ns: Vec::new(),
            predicted_ns: 0,
            reuse_pages: 0,
            formats: false,
            launches: vec![LaunchPages::NATIVE],
            live: Vec::new(),
            bounds: Bounds::default(),
            identity: Identity::EMPTY,
        }
    }

    /// Empties the plan and keeps its memory.
    pub(super) fn clear(&mut self) {
        self.queries = 0;
        self.shares = 0;
        self.stride = 0;
        self.partial_slots = 0;
        self.predicted_ns = 0;
        self.reuse_pages = 0;
        self.formats = false;
        self.set_launches(&[]);
        self.words.clear();
        self.masks.clear();
        self.merge_rows.clear();
        self.merge_slots.clear();
        self.residues.clear();
        self.share_ns.clear();
        self.live.clear();
        self.bounds = Bounds::default();
        self.identity = Identity::next(None);
    }

    /// The plan's number: another one after every change.
    pub(crate) fn number(&self) -> u64 {
        self.identity.number
    }
    /// The number before the last [`Plan::patch`], if nothing else has changed the plan since, and the words that it
    /// changed.
    #[cfg(feature = "cuda")]
    pub(crate) fn last_patch(&self) -> Option<(u64, &[Range<u32>])> {
        let patch = self.identity.patch.as_ref();
        patch.map(|(before, dirty)| (*before, dirty.as_slice()))
    }
    /// How many pages and length slots there must be.
    pub(crate) fn bounds(&self) -> Bounds {
        self.bounds
    }

    /// How the plan was grouped.
    pub fn grouping(&self) -> Grouping {
        self.grouping
    }
    /// Query heads a KV head: the rows a query adds to a work item.
    pub fn group_size(&self) -> u32 {
        self.group_size
    }
    /// Number of queries.
    pub fn queries(&self) -> u32 {
        self.queries
    }
    /// Number of shares a KV head.
    pub fn shares(&self) -> u32 {
        self.shares
    }
    /// Words from one share's program to the next; a multiple of 4.
    pub fn stride(&self) -> u32 {
        self.stride
    }
    /// All programs: `[shares][stride]`.
    pub fn words(&self) -> &[u32] {
        &self.words
    }
    /// Masks of pages that hold several small nodes; see [`Segment::mask`].
    pub fn masks(&self) -> &[u64] {
        &self.masks
    }
    /// Queries whose result is merged from several partial slots.
    pub fn merge_rows(&self) -> &[MergeRow] {
        &self.merge_rows
    }
    /// Partial slots of all merge rows.
    pub fn merge_slots(&self) -> &[u32] {
        &self.merge_slots
    }
    /// Number of partial slots a KV head; each holds `group_size` rows of `(o, lse)`.
    pub fn partial_slots(&self) -> u32 {
        self.partial_slots
    }
    /// Queries that get something of residues, with slots of their own.
    pub fn residues(&self) -> &[PlanResidue] {
        &self.residues
    }
    /// What each share is estimated to cost, in nanoseconds by the configuration's cost model, if the row tiles of
    /// a tree keep in step.
    pub fn share_ns(&self) -> &[u64] {
        &self.share_ns
    }
    /// Cost of the costliest share over the mean of all shares: 1 is perfect balance.
    pub fn imbalance(&self) -> f64 {
        let total: u64 = self.share_ns.iter().sum();
        let max = self.share_ns.iter().max().copied().unwrap_or(0);
        if total == 0 {
            return 1.0;
        }
        max as f64 * self.share_ns.len() as f64 / total as f64
    }
    /// What attention of one layer takes with this plan, merge included, in nanoseconds by the configuration's
    /// cost model: a fixed cost and the costliest share, or all reads from memory where those take longer.
    pub fn predicted_ns(&self) -> u64 {
        self.predicted_ns
    }
    /// The largest number of different pages of one KV head that all shares together read between two reads of
    /// a page; 0 if none is read twice. If each share walks its pages at a constant rate.
    ///
    /// Times a page's bytes and the KV heads that run at once it is what a cache has to keep for every
    /// page to come from memory once. Growth that is patched in changes it as little as the balance.
    pub fn reuse_distance(&self) -> u64 {
        self.reuse_pages
    }
    /// Whether some item's pages are of another format than the native one.
    pub fn has_formats(&self) -> bool {
        self.formats
    }
    /// The program of share `index`.
    ///
    /// # Panics
    /// If `index` is not below [`Plan::shares`].
    pub fn share(&self, index: u32) -> Share<'_> {
        let begin = index as usize * self.stride as usize;
        Share { words: &self.words[begin..begin + self.stride as usize] }
    }
}

/// One share's program.
#[derive(Clone, Copy, Debug)]
pub struct Share<'a> {
    words: &'a [u32],
}

/// A work item with its segments.
#[derive(Clone, Copy, Debug)]
pub struct Item<'a> {
    /// The item's record.
    pub record: &'a WorkItem,
    /// Its segments, in the order they are processed.
    pub segments: &'a [Segment],
    program: &'a [u32],
}

impl<'a> Share<'a> {
    fn header(&self) -> &'a ProgramHeader {
        bytemuck::from_bytes(bytemuck::cast_slice(
            &self.words[..words_of::<ProgramHeader>() as usize],
        ))
    }
    /// The share's work items, in order.
    pub fn items(&self) -> impl ExactSizeIterator<Item = Item<'a>> + use<'a> {
        let header = self.header();
        let words = self.words;
        let items_begin = words_of::<ProgramHeader>() as usize;
        let segments_begin = items_begin + (header.items * words_of::<WorkItem>()) as usize;
        let segments_end = segments_begin + (header.segments * words_of::<Segment>()) as usize;
        let items: &[WorkItem] = bytemuck::cast_slice(&words[items_begin..segments_begin]);
        let segments: &[Segment] = bytemuck::cast_slice(&words[segments_begin..segments_end]);
        items.iter().map(move |record| {
            let begin = record.segment_begin as usize;
            Item {
                record,
                segments: &segments[begin..begin + record.segment_count as usize],
                program: words,
            }
        })
    }
}

impl<'a> Item<'a> {
    /// How the pages of all the item's segments are stored.
    ///
    /// # Panics
    /// If a plan says what no planner writes.
    pub fn format(&self) -> KvFormat {
        KvFormat::from_code(self.record.format).expect("the planner writes formats")
    }
    /// The row in `q`, `out` and `lse` of each of the item's queries.
    pub fn rows(&self) -> impl ExactSizeIterator<Item = u32> + use<'a> {
        let (record, program) = (self.record, self.program);
        (0..record.query_count).map(move |query| match record.row_word {
            NONE => record.query_begin + query,
            word => program[(word + query) as usize],
        })
    }
    /// Page ids of one of the item's segments.
    pub fn pages(&self, segment: &Segment) -> &'a [u32] {
        let begin = segment.page_word as usize;
        &self.program[begin..begin + segment.page_count as usize]
    }
}

#[cfg(feature = "serde")]
mod merge_rows {
    use kernels_gpu::abi::MergeRow;
    use serde::{Serialize, Serializer};

    pub(super) fn serialize<S: Serializer>(rows: &[MergeRow], s: S) -> Result<S::Ok, S::Error> {
        bytemuck::cast_slice::<_, u32>(rows).serialize(s)
    }
}
