//! Attention, scores and the merge in plain arithmetic.

use deft::abi::{MergeRow, NONE, PAGE_TOKENS, ProgramHeader, SCORE_MAX, Segment, WorkItem};
use deft::bf16;
use deft::format::e4m3_to_f32;
use deft::layout::{SLAB_PAGES, element_offset, half_page_elements, page_offset};

use super::{DIM, element, read, write};

/// A running softmax in base 2.
struct Softmax {
    max: f64,
    sum: f64,
    out: Vec<f64>,
}

impl Softmax {
    fn new() -> Self {
        Self { max: f64::NEG_INFINITY, sum: 0.0, out: vec![0.0; DIM as usize] }
    }

    fn add(&mut self, logit: f64, value: impl Fn(usize) -> f64) {
        let max = self.max.max(logit);
        if max == f64::NEG_INFINITY {
            return;
        }
        let (before, weight) = ((self.max - max).exp2(), (logit - max).exp2());
        self.max = max;
        self.sum = self.sum * before + weight;
        for (dim, out) in self.out.iter_mut().enumerate() {
            *out = *out * before + weight * value(dim);
        }
    }

    fn lse(&self) -> f64 {
        self.max + self.sum.log2()
    }

    fn normalised(&self, dim: usize) -> f64 {
        if self.sum == 0.0 { 0.0 } else { self.out[dim] / self.sum }
    }

    /// Writes a row of `out`, and of `lse` unless that is null, by natural logarithm.
    unsafe fn store(&self, out: u64, lse: u64, row: usize) {
        // SAFETY: as in `append`.
        unsafe {
            for dim in 0..DIM as usize {
                write(out, row * DIM as usize + dim, bf16::from_f64(self.normalised(dim)));
            }
            if lse != 0 {
                write(lse, row, (self.lse() * std::f64::consts::LN_2) as f32);
            }
        }
    }
}

/// An element of K (or V) in native pages: place, KV head, whether of V, dim.
pub(super) unsafe fn native(a: &[u64], place: u32, head: u32, value: bool, dim: u32) -> f64 {
    // SAFETY: as in `append`.
    unsafe { read::<bf16>(a[1], element(a[10] as u32, place, head, value, dim)).to_f64() }
}

/// The same in pages of E4M3.
pub(super) unsafe fn fp8(a: &[u64], place: u32, head: u32, value: bool, dim: u32) -> f64 {
    let [kv_heads, half_bytes, per_slab, format] =
        [a[10], a[15], a[16], a[17]].map(|number| number as u32);
    let (page, token) = (place / PAGE_TOKENS, place % PAGE_TOKENS);
    let slab = page_offset(DIM, kv_heads, page / per_slab * SLAB_PAGES, 0) * 2;
    let half = 2 * (page % per_slab * kv_heads + head) + u32::from(value);
    let half = a[1] + slab + u64::from(half * half_bytes);
    let scale = half + u64::from(half_page_elements(DIM));
    // Of four dims the second and third are swapped.
    let dim = dim & !3 | dim >> 1 & 1 | dim << 1 & 2;
    let at = match format {
        1 => 0,
        2 => token as usize,
        other => panic!("not a format of E4M3: {other}"),
    };
    // SAFETY: as in `append`.
    unsafe {
        let code = read::<u8>(half, element_offset(DIM, token, dim) as usize);
        f64::from(e4m3_to_f32(code)) * f64::from(read::<f32>(scale, at))
    }
}

/// Programs as a launch reads them.
struct Programs {
    shares: u32,
    stride: u32,
    q: u64,
    words: u64,
    masks: u64,
    lengths: u64,
    kv_heads: u32,
    group: u32,
    scale: f64,
}

/// One row of a work item.
struct ItemRow {
    item: WorkItem,
    /// Counted within the item.
    query: u32,
    member: u32,
    kv_head: u32,
    /// Its place in `[queries, q_heads]`.
    row: usize,
}

impl Programs {
    /// Tells each row what it sees: places and their logits.
    unsafe fn each_row(
        &self,
        key: impl Fn(&WorkItem, u32, u32, u32) -> f64,
        mut each: impl FnMut(&ItemRow, &[(u32, f64)]),
    ) {
        let heads = (0..self.shares).flat_map(|share| (0..self.kv_heads).map(move |h| (share, h)));
        for (share, kv_head) in heads {
            let program = self.words + u64::from(share * self.stride) * 4;
            // SAFETY: as in `append`.
            unsafe {
                let header: ProgramHeader = read(program, 0);
                let items = program + size_of::<ProgramHeader>() as u64;
                let segments = items + u64::from(header.items) * size_of::<WorkItem>() as u64;
                for item in 0..header.items {
                    let item: WorkItem = read(items, item as usize);
                    for query in 0..item.query_count {
                        let places = self.places(program, segments, &item, query);
                        let row = match item.row_word {
                            NONE => item.query_begin + query,
                            word => read(program, (word + query) as usize),
                        };
                        for member in 0..self.group {
                            let row =
                                ((row * self.kv_heads + kv_head) * self.group + member) as usize;
                            let logit = |place| {
                                let q =
                                    |dim| read::<bf16>(self.q, row * DIM as usize + dim as usize);
                                let of = |dim| q(dim).to_f64() * key(&item, place, kv_head, dim);
                                (place, (0..DIM).map(of).sum::<f64>() * self.scale)
                            };
                            let seen: Vec<_> = places.iter().map(|&place| logit(place)).collect();
                            each(&ItemRow { item, query, member, kv_head, row }, &seen);
                        }
                    }
                }
            }
        }
    }

    /// The places that a query of an item sees.
    unsafe fn places(&self, program: u64, segments: u64, item: &WorkItem, query: u32) -> Vec<u32> {
        let mut places = Vec::new();
        for index in 0..item.segment_count {
            // SAFETY: as in `append`.
            unsafe {
                let segment: Segment = read(segments, (item.segment_begin + index) as usize);
                if !(segment.visible_begin()..segment.visible_end()).contains(&query) {
                    continue;
                }
                let length = match segment.length_slot {
                    NONE => 0,
                    slot => read(self.lengths, slot as usize),
                };
                for token in 0..segment.tokens_at(length) {
                    let (page, bit) = (token / PAGE_TOKENS, token % PAGE_TOKENS);
                    let word = segment.mask.wrapping_add(page * item.query_count + query);
                    if segment.mask == NONE
                        || read::<u64>(self.masks, word as usize) >> bit & 1 == 1
                    {
                        let page: u32 = read(program, (segment.page_word + page) as usize);
                        places.push(page * PAGE_TOKENS + bit);
                    }
                }
            }
        }
        places
    }
}

pub(super) unsafe fn attend(
    shares: u32,
    a: &[u64],
    element: unsafe fn(&[u64], u32, u32, bool, u32) -> f64,
) {
    let [stride, kv_heads, group, partial_slots] = [a[9], a[10], a[11], a[12]].map(|n| n as u32);
    let scale = f64::from(f32::from_bits(a[13] as u32));
    assert_eq!(f32::from_bits(a[14] as u32), 0.0, "no soft cap here");
    let [q, words, masks, lengths] = [a[0], a[2], a[3], a[4]];
    let programs = Programs { shares, stride, q, words, masks, lengths, kv_heads, group, scale };
    // SAFETY: as in `append`.
    unsafe {
        // Native items go with those of a format.
        let of = |item: &WorkItem| if item.format == 0 { native } else { element };
        let key = |item: &_, place, kv_head, dim| of(item)(a, place, kv_head, false, dim);
        programs.each_row(key, |row, seen| {
            let ItemRow { item, query, member, kv_head, row } = *row;
            let mut softmax = Softmax::new();
            for &(place, logit) in seen {
                softmax.add(logit, |dim| of(&item)(a, place, kv_head, true, dim as u32));
            }
            if item.partial_slot == NONE {
                softmax.store(a[5], a[6], row);
                return;
            }
            let slot = (kv_head * partial_slots + item.partial_slot + query) * group + member;
            for dim in 0..DIM as usize {
                write(a[7], slot as usize * DIM as usize + dim, softmax.normalised(dim) as f32);
            }
            write(a[8], slot as usize, softmax.lse() as f32);
        });
    }
}

/// The largest probabilities of native pages.
pub(super) unsafe fn score(shares: u32, a: &[u64]) {
    let [stride, kv_heads, group] = [a[10], a[12], a[13]].map(|n| n as u32);
    let scale = f64::from(f32::from_bits(a[14] as u32));
    assert_eq!(a[16] as u32, SCORE_MAX, "no other scores here");
    let [q, words, masks, lengths] = [a[0], a[4], a[5], a[6]];
    let programs = Programs { shares, stride, q, words, masks, lengths, kv_heads, group, scale };
    // SAFETY: as in `append`.
    unsafe {
        let key = |_: &_, place, kv_head, dim| {
            let at = element(kv_heads, place, kv_head, false, dim);
            read::<bf16>(a[1], at).to_f64()
        };
        programs.each_row(key, |row, seen| {
            if read::<u32>(a[8], row.row / (kv_heads * group) as usize) == 0 {
                return;
            }
            for &(place, logit) in seen {
                let lse = f64::from(read::<f32>(a[7], row.row)) * std::f64::consts::LOG2_E;
                let cell = place / PAGE_TOKENS * kv_heads + row.kv_head;
                let at = (cell * PAGE_TOKENS + place % PAGE_TOKENS) as usize;
                let p = ((logit - lse).exp2() as f32).max(read::<f32>(a[9], at));
                write(a[9], at, p);
            }
        });
    }
}

pub(super) unsafe fn merge(a: &[u64]) {
    let [rows, partial_slots, kv_heads, group] = [a[6], a[7], a[8], a[9]].map(|n| n as u32);
    // SAFETY: as in `append`.
    unsafe {
        for index in 0..rows as usize {
            let merged: MergeRow = read(a[2], index);
            if merged.query == NONE {
                continue;
            }
            for (kv_head, member) in
                (0..kv_heads).flat_map(|head| (0..group).map(move |m| (head, m)))
            {
                let mut softmax = Softmax::new();
                for entry in 0..merged.slot_count {
                    let slot: u32 = read(a[3], (merged.slot_begin + entry) as usize);
                    let slot = ((kv_head * partial_slots + slot) * group + member) as usize;
                    let partial = |dim| f64::from(read::<f32>(a[0], slot * DIM as usize + dim));
                    softmax.add(f64::from(read::<f32>(a[1], slot)), partial);
                }
                let row = (merged.row * kv_heads + kv_head) * group + member;
                softmax.store(a[4], a[5], row as usize);
            }
        }
    }
}
