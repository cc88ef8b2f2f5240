//! One work item on one KV head.

use std::cell::RefCell;
use std::ops::Range;

use kernels_gpu::abi::{NONE, PAGE_TOKENS, Segment};
use kernels_gpu::layout::{half_page_elements, prefix_elements};
use kernels_gpu::softmax::{Math, Partial};
use pulp::Arch;

use super::formats;
use super::in_place::Blocks;
use super::non_finite::NonFinite;
use super::tile::{MAX_LANES, PageMask, PageStep, SCORES, Tile};
use crate::attention::AttentionParams;
use crate::cache::{DType, Directory, HostPages, KvElement};
use crate::format::KvFormat;
use crate::plan::{Item, Plan};
use crate::tree::Residues;

/// The processor's own functions.
#[derive(Clone, Copy, Debug)]
pub(super) struct StdMath;

impl Math for StdMath {
    fn exp2(x: f32) -> f32 {
        x.exp2()
    }
    fn log2(x: f32) -> f32 {
        x.log2()
    }
}

/// What all items of a call have in common.
#[derive(Clone, Copy, Debug)]
pub(super) struct Call<'a, T> {
    pub(super) arch: Arch,
    pub(super) source: Source<'a, T>,
    pub(super) kv_heads: u32,
    pub(super) head_dim: u32,
    pub(super) plan: &'a Plan,
    pub(super) lengths: &'a [u32],
    pub(super) directory: Option<&'a Directory>,
    pub(super) residues: Option<&'a Residues>,
    /// `[queries, q_heads, head_dim]`.
    pub(super) q: &'a [T],
    pub(super) params: AttentionParams,
}

/// Where K and V of a plan's pages are.
#[derive(Clone, Copy, Debug)]
pub(super) enum Source<'a, T> {
    /// In pages of this cache, of one layer.
    Own(&'a HostPages<T>, u32),
    /// In a foreign cache.
    InPlace(Blocks<'a, T>),
}

/// A thread's memory, kept from item to item.
#[derive(Debug, Default)]
struct Scratch {
    q: Vec<f32>,
    o: Vec<f32>,
    max: Vec<f32>,
    sum: Vec<f32>,
    scores: Vec<f32>,
    /// A page of K and V, where they are not f32 already.
    page: Vec<f32>,
    /// A page of V without the tokens that are not finite.
    finite: Vec<f32>,
}

thread_local! {
    static SCRATCH: RefCell<Scratch> = RefCell::default();
}

impl<T: KvElement> Call<'_, T> {
    pub(super) fn group(&self) -> usize {
        self.plan.group_size() as usize
    }

    pub(super) fn head_dim(&self) -> usize {
        self.head_dim as usize
    }

    /// The partial results of `item` for one KV head: normalised `o` as `[query_count, group, head_dim]`
    /// and the base-2 `lse` as `[query_count, group]`.
    pub(super) fn run(&self, item: &Item<'_>, kv_head: u32, o: &mut [f32], lse: &mut [f32]) {
        SCRATCH.with_borrow_mut(|scratch| {
            let rows = item.record.query_count as usize * self.group();
            let stride = stride_of(rows);
            scratch.reset(self.head_dim(), stride);
            self.gather(item, kv_head, &mut scratch.q, stride);
            self.pages(item, kv_head, |seen| self.page(scratch, stride, seen));
            scratch.finish(rows, stride, o, lse);
        });
    }

    /// Calls `page` for each page of `item`, with who sees what of it.
    pub(super) fn pages(&self, item: &Item<'_>, kv_head: u32, mut page: impl FnMut(Seen<'_>)) {
        let (group, queries) = (self.group(), item.record.query_count as usize);
        let format = item.format();
        for segment in item.segments {
            if format == KvFormat::Compacted {
                self.cells(item, segment, kv_head, &mut page);
                continue;
            }
            let length = self.lengths.get(segment.length_slot as usize);
            let mut tokens = segment.tokens_at(length.copied().unwrap_or(0));
            let visible =
                segment.visible_begin() as usize * group..segment.visible_end() as usize * group;
            let mut mask = segment.mask as usize;
            for &id in item.pages(segment) {
                if tokens == 0 {
                    break;
                }
                let words =
                    (segment.mask != NONE).then(|| &self.plan.masks()[mask..mask + queries]);
                page(Seen {
                    format,
                    page: id,
                    slot: kv_head,
                    bias: None,
                    tokens: tokens.min(PAGE_TOKENS),
                    rows: visible.clone(),
                    item_rows: queries * group,
                    mask: words.map(|words| PageMask { words, group }),
                });
                tokens -= tokens.min(PAGE_TOKENS);
                mask = mask.wrapping_add(queries);
            }
        }
    }

    /// The same of the rows of a compacted node that one of its KV heads has.
    fn cells(
        &self,
        item: &Item<'_>,
        segment: &Segment,
        kv_head: u32,
        page: &mut impl FnMut(Seen<'_>),
    ) {
        let (Source::Own(pages, layer), Some(directory)) = (&self.source, self.directory) else {
            unreachable!("plans of compacted nodes are of caches that have them");
        };
        let (cells, group) = (directory.head(*layer, kv_head), self.group());
        for &index in item.pages(segment) {
            let cell = cells[index as usize];
            if cell.rows() == 0 {
                // The head's rows end here, and others have more.
                break;
            }
            let bias = pages.biases(*layer, cell.cell).filter(|_| cell.is_biased());
            page(Seen {
                format: KvFormat::Native,
                page: cell.cell / self.kv_heads,
                slot: cell.cell % self.kv_heads,
                bias,
                tokens: cell.rows(),
                rows: segment.visible_begin() as usize * group
                    ..segment.visible_end() as usize * group,
                item_rows: item.record.query_count as usize * group,
                mask: None,
            });
        }
    }

    /// `q[dim][row]`, scaled.
    pub(super) fn gather(&self, item: &Item<'_>, kv_head: u32, target: &mut [f32], stride: usize) {
        let (group, head_dim) = (self.group(), self.head_dim());
        let kv_heads = self.kv_heads as usize;
        let factor = match self.params.soft_cap {
            Some(cap) => self.params.scale / cap,
            None => self.params.scale * std::f32::consts::LOG2_E,
        };
        let width = kv_heads * group * head_dim;
        let first_head = kv_head as usize * group * head_dim;
        let rows = item.rows().flat_map(|row| {
            let heads = row as usize * width + first_head;
            self.q[heads..heads + group * head_dim].chunks_exact(head_dim)
        });
        for (row, source) in rows.enumerate() {
            for (element, target) in source.iter().zip(target[row..].iter_mut().step_by(stride)) {
                *target = element.to_f32() * factor;
            }
        }
    }

    /// K and V of a page in f32, its first `elements` elements at least: where they are, or in `room`.
    pub(super) fn widened<'a>(
        &'a self,
        seen: &Seen<'_>,
        elements: usize,
        room: &'a mut Vec<f32>,
    ) -> (&'a [f32], &'a [f32]) {
        let half = half_page_elements(self.head_dim) as usize;
        let (pages, layer) = match &self.source {
            Source::Own(pages, layer) => (*pages, *layer),
            Source::InPlace(blocks) => {
                room.resize(2 * half, 0.0);
                let (k, v) = room.split_at_mut(half);
                let place = (seen.page, seen.tokens, seen.slot);
                self.arch.dispatch(|| blocks.widen(place, self.head_dim, [&mut *k, &mut *v]));
                return (k, v);
            }
        };
        if seen.format != KvFormat::Native {
            room.resize(2 * half, 0.0);
            let (k, v) = room.split_at_mut(half);
            let at = (layer, seen.page, seen.slot);
            formats::decode_page(pages, seen.format, at, [&mut *k, &mut *v]);
            return (k, v);
        }
        let page = pages.page(layer, seen.page, seen.slot);
        if T::DTYPE == DType::F32 {
            return (bytemuck::cast_slice(page.k), bytemuck::cast_slice(page.v));
        }
        room.resize(2 * half, 0.0);
        let (k, v) = room.split_at_mut(half);
        self.arch.dispatch(|| {
            T::widen(&page.k[..elements], &mut k[..elements]);
            T::widen(&page.v[..elements], &mut v[..elements]);
        });
        (k, v)
    }

    /// K of a page as it lies in this cache, if that is how it is read.
    pub(super) fn native_keys(&self, seen: &Seen<'_>) -> Option<&[T]> {
        match &self.source {
            Source::Own(pages, layer) if seen.format == KvFormat::Native => {
                Some(pages.page(*layer, seen.page, seen.slot).k)
            }
            _ => None,
        }
    }

    fn page(&self, scratch: &mut Scratch, stride: usize, seen: Seen<'_>) {
        let elements = prefix_elements(self.head_dim() as u32, seen.tokens) as usize;
        let (k, v) = self.widened(&seen, elements, &mut scratch.page);
        let partly = seen.mask.is_some() || seen.rows.end < seen.item_rows;
        let (v, non_finite) = if partly {
            let size = (self.head_dim(), seen.tokens as usize);
            NonFinite::take(self.arch, v, size, elements, &mut scratch.finite)
        } else {
            (v, None)
        };
        self.arch.dispatch(PageStep {
            tile: Tile {
                q: &scratch.q,
                o: &mut scratch.o,
                max: &mut scratch.max,
                sum: &mut scratch.sum,
                stride,
            },
            scores: &mut scratch.scores,
            k,
            v,
            tokens: seen.tokens as usize,
            rows: seen.rows,
            mask: seen.mask,
            bias: seen.bias,
            non_finite,
            soft_cap: self.params.soft_cap.map(|cap| cap * std::f32::consts::LOG2_E),
        });
    }
}

/// A page and who sees what of it.
pub(super) struct Seen<'a> {
    pub(super) format: KvFormat,
    pub(super) page: u32,
    /// Which KV head's room in the page; of pages of all tokens the KV head itself.
    pub(super) slot: u32,
    /// Added to the logits of its tokens, in natural-logarithm units: `[64]`.
    pub(super) bias: Option<&'a [f32]>,
    pub(super) tokens: u32,
    pub(super) rows: Range<usize>,
    /// All rows of the item.
    pub(super) item_rows: usize,
    pub(super) mask: Option<PageMask<'a>>,
}

/// Room for the rows and the vector that reaches beyond them. An odd number of cache lines, so that the
/// rows of consecutive dims do not fall into the same set.
pub(super) fn stride_of(rows: usize) -> usize {
    ((rows + MAX_LANES).div_ceil(MAX_LANES) | 1) * MAX_LANES
}

impl Scratch {
    fn reset(&mut self, head_dim: usize, stride: usize) {
        self.q.clear();
        self.q.resize(head_dim * stride, 0.0);
        self.o.clear();
        self.o.resize(head_dim * stride, 0.0);
        self.max.clear();
        self.max.resize(stride, Partial::EMPTY.max);
        self.sum.clear();
        self.sum.resize(stride, Partial::EMPTY.sum);
        self.scores.resize(SCORES, 0.0);
    }

    fn finish(&self, rows: usize, stride: usize, o: &mut [f32], lse: &mut [f32]) {
        let head_dim = self.o.len() / stride;
        for (row, (o, lse)) in o.chunks_exact_mut(head_dim).zip(lse).take(rows).enumerate() {
            let partial = Partial { max: self.max[row], sum: self.sum[row] };
            *lse = partial.lse2::<StdMath>();
            let factor = partial.normalizer();
            for (o, source) in o.iter_mut().zip(self.o[row..].iter().step_by(stride)) {
                *o = source * factor;
            }
        }
    }
}
