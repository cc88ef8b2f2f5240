//! What a draft costs, by the model, whichever way it was made.
//!
//! Cutting and dealing price pages that several row tiles read as if the cache had them. Whether it has is
//! seen here, when it is known who reads what when: each share is taken to walk its pages at a constant rate,
//! and a page is still in the cache if few enough others have passed since it was read last.

use std::ops::Range;

use kernels_gpu::abi::NONE;
use kernels_gpu::layout::CORE;

use super::cost::{Costs, PAGE_GROUPS, Rates};
use super::draft::Draft;
use super::encode::item_format;
use super::merge::Merge;
use crate::tree::TreeView;

/// Scratch of [`Scorer::score`].
#[derive(Debug, Default)]
pub(super) struct Scorer {
    /// By segment of the draft.
    reads: Vec<Read>,
    /// By run, its segment that was met last, or `NONE`.
    last: Vec<u32>,
    /// Runs of several segments.
    met_again: Vec<u32>,
    walks: Vec<Walk>,
    /// Where segments of the run at hand begin or end, in pages.
    edges: Vec<u32>,
    /// When the pages at hand are read, in nanoseconds, and by which segment.
    times: Vec<(f64, u32)>,
}

/// One segment's reading.
#[derive(Clone, Copy, Debug)]
struct Read {
    /// The segment of the same run before this one, or `NONE`.
    before: u32,
    share: u32,
    /// Pages that the share has read by then.
    at: u32,
    rates: Rates,
    /// Priced as if the cache had the pages.
    shared: bool,
}

/// A share's way through its pages.
#[derive(Clone, Copy, Debug, Default)]
struct Walk {
    pages: u32,
    ns: f64,
    /// The same by the prices of cuts.
    cut_ns: f64,
    /// What pages cost that were taken to be in the cache and are not.
    missed_ns: f64,
}

/// What a draft comes to.
#[derive(Clone, Copy, Debug)]
pub(super) struct Score {
    /// What the plan takes.
    pub(super) ns: f64,
    /// As [`Plan::reuse_distance`](super::Plan::reuse_distance).
    pub(super) reuse_pages: f64,
    /// Some pages are read for several row tiles, and not while the cache has them.
    pub(super) out_of_step: bool,
}

impl Scorer {
    /// Scores `draft`, whose items know whether they leave partial results, and sets the cost of its shares.
    pub(super) fn score(
        &mut self,
        view: &TreeView,
        costs: &Costs,
        draft: &mut Draft,
        merge: &Merge,
    ) -> Score {
        let asked = self.walk(view, costs, draft);
        let makespan = self.walks.iter().map(|walk| walk.ns).fold(0.0, f64::max);
        let seen = self.last.iter().zip(&view.runs);
        let seen = seen.filter(|(last, _)| **last != NONE);
        let unique: u64 = seen.map(|(_, run)| u64::from(run.pages.end - run.pages.start)).sum();
        let shares = draft.share_ns.len() as f64;
        let pages_per_ns = unique as f64 / makespan.max(1.0);
        let kept_pages = costs.cache_groups * shares / f64::from(PAGE_GROUPS);
        let mut passing = Passing {
            kept_ns: kept_pages / pages_per_ns.max(f64::MIN_POSITIVE),
            weight: 1.0,
            longest_ns: 0.0,
            kept_groups: 0.0,
            out_of_step: false,
        };
        for index in 0..self.met_again.len() {
            let run = self.met_again[index];
            passing.weight = costs.reading(view.runs[run as usize].format).weight;
            self.pass(run, view, draft, &mut passing);
        }
        for (ns, walk) in draft.share_ns.iter_mut().zip(&self.walks) {
            *ns = walk.cut_ns;
        }
        let costliest = self.walks.iter().map(|walk| walk.ns + walk.missed_ns);
        let costliest = costliest.fold(0.0, f64::max);
        let read = asked - passing.kept_groups;
        let memory = read * costs.memory_group_ns / shares;
        // What comes from memory passes; of that, no more can be different than there are.
        let passed = read / f64::from(PAGE_GROUPS) * passing.longest_ns / makespan.max(1.0);
        let work = (costliest.powi(3) + memory.powi(3)).cbrt();
        Score {
            ns: costs.launch_ns + work + costs.merging_ns(merge.most_slots()),
            reuse_pages: passed.min(unique as f64),
            out_of_step: passing.out_of_step,
        }
    }

    /// Follows every share through its items; the token groups that all ask for, by their bytes.
    fn walk(&mut self, view: &TreeView, costs: &Costs, draft: &Draft) -> f64 {
        self.reads.clear();
        self.met_again.clear();
        self.last.clear();
        self.last.resize(view.runs.len(), NONE);
        self.walks.clear();
        self.walks.resize(draft.share_ns.len(), Walk::default());
        let mut asked = 0.0;
        for item in &draft.items {
            let queries = item.queries.end - item.queries.start;
            let reading = costs.reading(item_format(view, draft, item));
            let (rates, cut) =
                (costs.scored_rates(queries, reading), costs.rates_in(queries, reading));
            let walk = &mut self.walks[item.share as usize];
            let slots = if item.partial_slot == NONE { 0 } else { queries };
            let fixed_ns = costs.item_ns + f64::from(slots) * costs.slot_ns;
            walk.ns += fixed_ns;
            walk.cut_ns += fixed_ns;
            for segment in &draft.segments[item.segments.start as usize..item.segments.end as usize]
            {
                let run = &view.runs[segment.run as usize];
                let own = groups(run.tokens.div_ceil(CORE), &segment.pages);
                let groups = groups(costs.groups(run.tokens), &segment.pages)
                    + f64::from(costs.groups(segment.joined.tokens));
                let shared = segment.shared;
                let before = &mut self.last[segment.run as usize];
                if *before != NONE && self.reads[*before as usize].before == NONE {
                    self.met_again.push(segment.run);
                }
                self.reads.push(Read {
                    before: *before,
                    share: item.share,
                    at: walk.pages,
                    rates,
                    shared,
                });
                *before = self.reads.len() as u32 - 1;
                walk.ns += groups * rates.of(shared);
                walk.cut_ns += groups * cut.of(shared);
                walk.pages += segment.pages.end - segment.pages.start + segment.joined.pages;
                // Joined pages are read by many tiles, and come from the cache as the pages before them do.
                asked += own * reading.weight;
            }
        }
        asked
    }

    /// Follows the pages of a run that has several segments.
    fn pass(&mut self, run: u32, view: &TreeView, draft: &Draft, passing: &mut Passing) {
        self.edges.clear();
        let mut index = self.last[run as usize];
        while index != NONE {
            let pages = &draft.segments[index as usize].pages;
            self.edges.extend([pages.start, pages.end]);
            index = self.reads[index as usize].before;
        }
        self.edges.sort_unstable();
        self.edges.dedup();
        for edge in 1..self.edges.len() {
            let pages = self.edges[edge - 1]..self.edges[edge];
            self.times.clear();
            let mut index = self.last[run as usize];
            while index != NONE {
                let own = &draft.segments[index as usize].pages;
                let read = &self.reads[index as usize];
                if own.start <= pages.start && pages.end <= own.end {
                    let walk = &self.walks[read.share as usize];
                    let middle = 0.5 * f64::from(pages.start + pages.end) - f64::from(own.start);
                    let at = (f64::from(read.at) + middle) / f64::from(walk.pages);
                    self.times.push((at * walk.ns, index));
                }
                index = read.before;
            }
            self.times.sort_unstable_by(|a, b| a.0.total_cmp(&b.0));
            let groups = groups(view.runs[run as usize].tokens.div_ceil(CORE), &pages);
            self.judge(groups, passing);
        }
    }

    /// Judges the reads of some pages by the time between them.
    fn judge(&mut self, groups: f64, passing: &mut Passing) {
        for i in 0..self.times.len() {
            let gap = |i: usize| self.times[i].0 - self.times[i - 1].0;
            let after = i > 0 && gap(i) <= passing.kept_ns;
            let before = i + 1 < self.times.len() && gap(i + 1) <= passing.kept_ns;
            if i > 0 {
                passing.longest_ns = passing.longest_ns.max(gap(i));
            }
            if after {
                passing.kept_groups += groups * passing.weight;
            }
            let read = &self.reads[self.times[i].1 as usize];
            if !after && !before && read.shared {
                let missed = groups * (read.rates.of(false) - read.rates.of(true));
                self.walks[read.share as usize].missed_ns += missed;
            }
            passing.out_of_step |= i > 0 && !after && read.shared;
        }
    }
}

/// What is known of pages that are read again.
struct Passing {
    /// How long the cache keeps a page.
    kept_ns: f64,
    /// Bytes of the run's pages over those of native ones.
    weight: f64,
    /// The longest time between two reads of a page.
    longest_ns: f64,
    /// Token groups read again while the cache has them, by their bytes.
    kept_groups: f64,
    out_of_step: bool,
}

/// Token groups in `pages` of a run of `all` groups.
fn groups(all: u32, pages: &Range<u32>) -> f64 {
    f64::from(all.min(pages.end * PAGE_GROUPS) - all.min(pages.start * PAGE_GROUPS))
}
