//! A GPU for suites that run everywhere: the fake driver, whose streams run as late as they may, and kernels in plain
//! arithmetic for caches of bf16 with heads of 64. They read what the library put into device memory, as the real ones
//! do, when their turn comes.

#[path = "../../../cuda-loader/tests/fake/mod.rs"]
pub(crate) mod driver;
#[allow(dead_code, reason = "not every suite uses all of it")]
pub(crate) mod world;

use std::ffi::{CStr, c_char};
use std::path::Path;

use deft::abi::{
    APPEND_LIVE, MergeRow, NONE, PAGE_TOKENS, ProgramHeader, SCORE_MAX, Segment, TokenMove,
    WorkItem,
};
use deft::bf16;
use deft::cache::Store;
use deft::cuda::CudaDevice;
use deft::format::e4m3_to_f32;
use deft::layout::{SLAB_PAGES, element_offset, half_page_elements, page_offset};
use driver::Fake;
use world::World;

/// Elements of a head.
const DIM: u32 = 64;

/// A world on the fake GPU.
#[allow(dead_code, reason = "not every suite uses it")]
pub(crate) fn world(seed: u64) -> World {
    let device = CudaDevice::new(0).unwrap();
    World::new(&device, DIM as usize, Some(3), seed)
}

/// The same whose pages get memory as they are taken, a MiB at a time.
#[allow(dead_code, reason = "not every suite uses it")]
pub(crate) fn elastic_world(seed: u64) -> World {
    let device = CudaDevice::new(0).unwrap();
    let store = |reserve| Store::Elastic { reserve, initial: 0 };
    World::of_store(&device, DIM as usize, Some(3), seed, store)
}

/// The fake driver with these kernels.
pub(crate) fn load() -> Fake {
    let fake = Fake::load(Path::new(env!("CARGO_TARGET_TMPDIR")));
    // SAFETY: the kernels take whatever the driver has.
    unsafe { (fake.kernels)(kernels) };
    fake.fail_from_now(0, 0);
    fake
}

extern "C" fn kernels(name: *const c_char, blocks: u32, arguments: *const u64, count: usize) {
    // SAFETY: the fake driver's, valid for the call; arguments are those of the kernel of this name.
    unsafe {
        let name = CStr::from_ptr(name).to_str().unwrap();
        let a = std::slice::from_raw_parts(arguments, count);
        match name {
            "append_bf16_d64" => append(a, None),
            "append_rope_bf16_d64" => {
                append(&[&a[..6], &a[9..]].concat(), Some([a[6], a[7], a[8]]));
            }
            "copy_d64" => copy(a),
            "attend_bf16_d64" => attend(blocks, a, native),
            "attend_coded_bf16_d64" => attend(blocks, a, fp8),
            "score_bf16_d64" => score(blocks, a),
            "merge_bf16_d64" => merge(a),
            "import_pages_bf16_d64" => transfer(a, true),
            "export_pages_d64" => transfer(a, false),
            other => panic!("no kernel {other}"),
        }
    }
}

unsafe fn read<T: Copy>(array: u64, index: usize) -> T {
    // SAFETY: the caller's.
    unsafe { (array as *const T).add(index).read() }
}

unsafe fn write<T>(array: u64, index: usize, value: T) {
    // SAFETY: the caller's.
    unsafe { (array as *mut T).add(index).write(value) }
}

/// Where K (or V) of a token begins in a plane, up to its dim.
fn element(kv_heads: u32, place: u32, head: u32, value: bool, dim: u32) -> usize {
    let page = page_offset(DIM, kv_heads, place / PAGE_TOKENS, head) as usize;
    let half = if value { half_page_elements(DIM) } else { 0 };
    page + (half + element_offset(DIM, place % PAGE_TOKENS, dim)) as usize
}

unsafe fn append(a: &[u64], rotation: Option<[u64; 3]>) {
    let (count, kv_heads) = (a[6] as u32, a[7] as u32);
    for row in 0..count as usize {
        // SAFETY: arrays as large as the kernel's documentation says.
        unsafe {
            let target: u32 = read(a[3], row);
            let place = match target {
                NONE => continue,
                live if live & APPEND_LIVE != 0 => {
                    let slot = (live & !APPEND_LIVE) as usize;
                    let token = read::<u32>(a[4], slot) - 1;
                    read::<u32>(a[5], slot) * PAGE_TOKENS + token % PAGE_TOKENS
                }
                place => place,
            };
            for head in 0..kv_heads {
                let at = |dim: u32| (row as u32 * kv_heads + head) * DIM + dim;
                for dim in 0..DIM {
                    let mut key: bf16 = read(a[1], at(dim) as usize);
                    if let Some([positions, cos, sin]) = rotation {
                        let turn = read::<u32>(positions, row) * (DIM / 2) + dim % (DIM / 2);
                        let (cos, sin): (f32, f32) =
                            (read(cos, turn as usize), read(sin, turn as usize));
                        let other: bf16 = read(a[1], at((dim + DIM / 2) % DIM) as usize);
                        let sign = if dim < DIM / 2 { -1.0 } else { 1.0 };
                        key = bf16::from_f32(key.to_f32() * cos + sign * other.to_f32() * sin);
                    }
                    write(a[0], element(kv_heads, place, head, false, dim), key);
                    let value: bf16 = read(a[2], at(dim) as usize);
                    write(a[0], element(kv_heads, place, head, true, dim), value);
                }
            }
        }
    }
}

unsafe fn copy(a: &[u64]) {
    let [count, layers, pages, kv_heads] = [a[2], a[3], a[4], a[5]].map(|number| number as u32);
    let plane = (pages * kv_heads * 2 * half_page_elements(DIM)) as usize;
    for index in 0..count as usize {
        // SAFETY: as in `append`.
        unsafe {
            let step: TokenMove = read(a[1], index);
            for layer in 0..layers as usize {
                for (head, value, dim) in elements(kv_heads) {
                    let from = element(kv_heads, step.from, head, value, dim);
                    let to = element(kv_heads, step.to, head, value, dim);
                    write(a[0], layer * plane + to, read::<u16>(a[0], layer * plane + from));
                }
            }
        }
    }
}

fn elements(kv_heads: u32) -> impl Iterator<Item = (u32, bool, u32)> {
    let heads = (0..kv_heads).flat_map(|head| [(head, false), (head, true)]);
    heads.flat_map(|(head, value)| (0..DIM).map(move |dim| (head, value, dim)))
}

unsafe fn transfer(a: &[u64], import: bool) {
    let [count, kv_heads, page_size, page_stride, token_stride, head_stride] =
        [a[5], a[6], a[7], a[8], a[9], a[10]].map(|number| number as u32);
    for token in 0..count {
        // SAFETY: as in `append`.
        unsafe {
            let place: u32 = read(a[3], token as usize);
            let page: u32 = read(a[4], (token / page_size) as usize);
            for (head, value, dim) in elements(kv_heads) {
                let row =
                    page * page_stride + token % page_size * token_stride + head * head_stride;
                let (array, foreign) = (a[1 + usize::from(value)], (row * DIM + dim) as usize);
                let ours = element(kv_heads, place, head, value, dim);
                match import {
                    true => write(a[0], ours, read::<u16>(array, foreign)),
                    false => write(array, foreign, read::<u16>(a[0], ours)),
                }
            }
        }
    }
}

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
unsafe fn native(a: &[u64], place: u32, head: u32, value: bool, dim: u32) -> f64 {
    // SAFETY: as in `append`.
    unsafe { read::<bf16>(a[1], element(a[10] as u32, place, head, value, dim)).to_f64() }
}

/// The same in pages of E4M3.
unsafe fn fp8(a: &[u64], place: u32, head: u32, value: bool, dim: u32) -> f64 {
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
        key: impl Fn(u32, u32, u32) -> f64,
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
                                let of = |dim| q(dim).to_f64() * key(place, kv_head, dim);
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

unsafe fn attend(shares: u32, a: &[u64], element: unsafe fn(&[u64], u32, u32, bool, u32) -> f64) {
    let [stride, kv_heads, group, partial_slots] = [a[9], a[10], a[11], a[12]].map(|n| n as u32);
    let scale = f64::from(f32::from_bits(a[13] as u32));
    assert_eq!(f32::from_bits(a[14] as u32), 0.0, "no soft cap here");
    let [q, words, masks, lengths] = [a[0], a[2], a[3], a[4]];
    let programs = Programs { shares, stride, q, words, masks, lengths, kv_heads, group, scale };
    // SAFETY: as in `append`.
    unsafe {
        let key = |place, kv_head, dim| element(a, place, kv_head, false, dim);
        programs.each_row(key, |row, seen| {
            let ItemRow { item, query, member, kv_head, row } = *row;
            let mut softmax = Softmax::new();
            for &(place, logit) in seen {
                softmax.add(logit, |dim| element(a, place, kv_head, true, dim as u32));
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
unsafe fn score(shares: u32, a: &[u64]) {
    let [stride, kv_heads, group] = [a[10], a[12], a[13]].map(|n| n as u32);
    let scale = f64::from(f32::from_bits(a[14] as u32));
    assert_eq!(a[16] as u32, SCORE_MAX, "no other scores here");
    let [q, words, masks, lengths] = [a[0], a[4], a[5], a[6]];
    let programs = Programs { shares, stride, q, words, masks, lengths, kv_heads, group, scale };
    // SAFETY: as in `append`.
    unsafe {
        let key = |place, kv_head, dim| {
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

unsafe fn merge(a: &[u64]) {
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
