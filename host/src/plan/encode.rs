//! From a draft to the words that kernels read.

use bytemuck::Pod;
use kernels_gpu::abi::{NONE, PAGE_TOKENS, ProgramHeader, Segment, WorkItem, words_of};

use super::draft::{Draft, DraftItem, DraftSegment};
use super::program::{LiveTail, Plan};
use super::{PlanConfig, PlanError};
use crate::format::KvFormat;
use crate::tree::{Run, TreeView};

/// Scratch of [`encode`].
#[derive(Debug, Default)]
pub(super) struct Encoder {
    /// What each share holds, then where its next entry goes.
    shares: Vec<Cursor>,
    /// Query `q` is row `q`: no rows are listed.
    in_order: bool,
    /// Formats of items, the native one apart.
    formats: Vec<KvFormat>,
}

/// Counts, or positions, within one share's program.
#[derive(Clone, Copy, Debug, Default)]
struct Cursor {
    item: u32,
    segment: u32,
    page: u64,
    /// Items and segments of native pages.
    native: [u32; 2],
}

const HEADER: u32 = words_of::<ProgramHeader>();
const ITEM: u32 = words_of::<WorkItem>();
const SEGMENT: u32 = words_of::<Segment>();
/// Most entries of an array that 32 bits index.
const MAX_WORDS: u64 = NONE as u64 - 1;
/// Most segments of a program and pages of a segment: the kernels pass a page's place as 16 bits of each.
pub(super) const MAX_PLACE: u32 = u16::MAX as u32;

impl Encoder {
    /// Writes `draft` into `plan`'s programs and masks.
    pub(super) fn encode(
        &mut self,
        view: &TreeView,
        config: &PlanConfig,
        draft: &Draft,
        plan: &mut Plan,
    ) -> Result<(), PlanError> {
        self.formats.clear();
        self.shares.clear();
        self.shares.resize(draft.share_ns.len(), Cursor::default());
        self.in_order = (0..).zip(&view.query_order).all(|(query, &row)| query == row);
        let (mut masks, mut most_pages) = (0u64, 0);
        for item in &draft.items {
            let share = &mut self.shares[item.share as usize];
            share.item += 1;
            match item_format(view, draft, item) {
                KvFormat::Native => {
                    share.native[0] += 1;
                    share.native[1] += item.segments.end - item.segments.start;
                }
                format if self.formats.contains(&format) => {}
                format => self.formats.push(format),
            }
            if !self.in_order {
                share.page += u64::from(item.queries.end - item.queries.start);
            }
            for segment in &draft.segments[item.segments.start as usize..item.segments.end as usize]
            {
                let run = &view.runs[segment.run as usize];
                let pages = capacity(run, segment, config.slack_pages);
                share.segment += 1;
                share.page += u64::from(pages);
                most_pages = most_pages.max(pages);
                if run.mask.is_some() || run.causal_tokens(&segment.queries).is_some() {
                    masks += u64::from(segment.pages.end - segment.pages.start)
                        * u64::from(item.queries.end - item.queries.start);
                }
            }
        }
        let segments = self.shares.iter().map(|share| share.segment);
        let most_segments = segments.max().unwrap_or(0);
        limit(u64::from(most_segments), u64::from(MAX_PLACE), "segments of one program")?;
        limit(u64::from(most_pages), u64::from(MAX_PLACE), "pages of one segment")?;
        let longest = self.shares.iter().map(Cursor::words).max().unwrap_or(0);
        let stride = longest.next_multiple_of(4);
        let words = stride * draft.share_ns.len() as u64;
        limit(words, MAX_WORDS, "words of programs")?;
        limit(masks, MAX_WORDS, "masks")?;
        plan.stride = stride as u32;
        plan.words.clear();
        plan.words.resize(stride as usize * draft.share_ns.len(), 0);
        plan.masks.clear();
        plan.live.clear();
        for (share, program) in
            self.shares.iter_mut().zip(plan.words.chunks_exact_mut(stride as usize))
        {
            let header = ProgramHeader {
                items: share.item,
                segments: share.segment,
                words: share.words() as u32,
                native: ProgramHeader::pack_native(share.native[0], share.native[1]),
            };
            put(program, 0, &header);
            *share = Cursor {
                item: HEADER,
                segment: HEADER + share.item * ITEM,
                page: u64::from(HEADER + share.item * ITEM + share.segment * SEGMENT),
                ..*share
            };
        }
        self.write(view, config, draft, plan);
        self.formats.sort_unstable_by_key(|format| format.code());
        plan.formats = !self.formats.is_empty();
        plan.set_launches(&self.formats);
        plan.live.sort_unstable();
        Ok(())
    }

    fn write(&mut self, view: &TreeView, config: &PlanConfig, draft: &Draft, plan: &mut Plan) {
        for item in &draft.items {
            let cursor = &mut self.shares[item.share as usize];
            let base = item.share as usize * plan.stride as usize;
            let program = &mut plan.words[base..base + plan.stride as usize];
            let header: &ProgramHeader =
                bytemuck::from_bytes(bytemuck::cast_slice(&program[..HEADER as usize]));
            let first_segment = HEADER + header.items * ITEM;
            let query_count = item.queries.end - item.queries.start;
            let record = WorkItem {
                query_begin: item.queries.start,
                query_count,
                segment_begin: (cursor.segment - first_segment) / SEGMENT,
                segment_count: item.segments.end - item.segments.start,
                partial_slot: item.partial_slot,
                row_word: if self.in_order { NONE } else { cursor.page as u32 },
                format: item_format(view, draft, item).code(),
                reserved: 0,
            };
            if !self.in_order {
                let rows =
                    &view.query_order[item.queries.start as usize..item.queries.end as usize];
                let at = cursor.page as usize;
                program[at..at + rows.len()].copy_from_slice(rows);
                cursor.page += rows.len() as u64;
            }
            put(program, cursor.item, &record);
            cursor.item += ITEM;
            for segment in &draft.segments[item.segments.start as usize..item.segments.end as usize]
            {
                let run = &view.runs[segment.run as usize];
                let record = Segment {
                    page_word: cursor.page as u32,
                    page_capacity: capacity(run, segment, config.slack_pages),
                    visible: Segment::pack_visible(
                        segment.queries.start - item.queries.start,
                        segment.queries.end - item.queries.start,
                    ),
                    mask: push_masks(&mut plan.masks, view, run, segment, &item.queries),
                    ..record_of(run, segment)
                };
                put(program, cursor.segment, &record);
                if record.length_slot != NONE {
                    plan.live.push(LiveTail {
                        length_slot: record.length_slot,
                        segment_word: base as u32 + cursor.segment,
                    });
                }
                let first = (run.pages.start + segment.pages.start) as usize;
                let pages = &view.pages[first..first + record.page_count as usize];
                let at = cursor.page as usize;
                program[at..at + pages.len()].copy_from_slice(pages);
                plan.bounds.include(run.format, pages, record.length_slot);
                cursor.segment += SEGMENT;
                cursor.page += u64::from(record.page_capacity);
            }
        }
    }
}

/// How an item's pages are stored: all in the same way.
pub(super) fn item_format(view: &TreeView, draft: &Draft, item: &DraftItem) -> KvFormat {
    let segments = &draft.segments[item.segments.start as usize..item.segments.end as usize];
    let mut formats = segments.iter().map(|segment| view.runs[segment.run as usize].format);
    let format = formats.next().unwrap_or_default();
    debug_assert!(formats.all(|other| other == format), "an item mixes formats");
    format
}

impl Cursor {
    fn words(&self) -> u64 {
        u64::from(HEADER)
            + u64::from(self.item) * u64::from(ITEM)
            + u64::from(self.segment) * u64::from(SEGMENT)
            + self.page
    }
}

fn limit(words: u64, max: u64, of: &'static str) -> Result<(), PlanError> {
    if words > max {
        return Err(PlanError::TooLarge { words, of, max });
    }
    Ok(())
}

/// Whether the segment is where its run grows: it holds the run's last page.
fn is_live(run: &Run, segment: &DraftSegment) -> bool {
    run.length_slot.is_some() && segment.pages.end == run.pages.end - run.pages.start
}

fn capacity(run: &Run, segment: &DraftSegment, slack: u32) -> u32 {
    let pages = segment.pages.end - segment.pages.start + segment.joined.pages;
    if is_live(run, segment) { pages + slack } else { pages }
}

/// The fields that depend on the run and its pages alone.
fn record_of(run: &Run, segment: &DraftSegment) -> Segment {
    let first_token = segment.pages.start * PAGE_TOKENS;
    let counted = run.first_token + first_token;
    Segment {
        page_count: segment.pages.end - segment.pages.start + segment.joined.pages,
        tokens: run.tokens.min(segment.pages.end.saturating_mul(PAGE_TOKENS)) - first_token
            + segment.joined.tokens,
        length_slot: run.length_slot.filter(|_| is_live(run, segment)).unwrap_or(NONE),
        first_token: counted,
        ..Segment::default()
    }
}

/// Copies the masks of a segment's pages, one word for each of the item's `queries`.
fn push_masks(
    masks: &mut Vec<u64>,
    view: &TreeView,
    run: &Run,
    segment: &DraftSegment,
    queries: &std::ops::Range<u32>,
) -> u32 {
    let at = masks.len() as u32;
    if let Some(first) = run.causal_tokens(&segment.queries) {
        masks.extend(queries.clone().map(|query| {
            if !segment.queries.contains(&query) {
                return 0;
            }
            let tokens = (first + query - segment.queries.start).min(run.tokens);
            u64::MAX >> (PAGE_TOKENS - tokens)
        }));
        return at;
    }
    let Some(mask) = run.mask else { return NONE };
    let width = run.queries.end - run.queries.start;
    let before = (segment.queries.start - queries.start) as usize;
    let after = (queries.end - segment.queries.end) as usize;
    for page in segment.pages.clone() {
        let begin = mask + page * width + (segment.queries.start - run.queries.start);
        let end = begin + (segment.queries.end - segment.queries.start);
        masks.extend(std::iter::repeat_n(0, before));
        masks.extend_from_slice(&view.masks[begin as usize..end as usize]);
        masks.extend(std::iter::repeat_n(0, after));
    }
    at
}

fn put<T: Pod>(words: &mut [u32], at: u32, record: &T) {
    let record: &[u32] = bytemuck::cast_slice(std::slice::from_ref(record));
    words[at as usize..at as usize + record.len()].copy_from_slice(record);
}
