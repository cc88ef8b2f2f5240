//! A GPU for suites that run everywhere: the fake driver, whose streams run as late as they may, and kernels in plain
//! arithmetic for caches of bf16. They read what the library put into device memory, as the real ones
//! do, when their turn comes.
#![cfg(feature = "cuda")]

mod attention;
mod cache_faults;
mod captured_steps;
mod demoted_prefixes;
#[path = "../../../cuda-loader/tests/fake/mod.rs"]
mod driver;
mod elastic_store;
mod sealed_pages;
mod world;

use std::cell::Cell;
use std::ffi::{CStr, c_char};
use std::path::Path;

use attention::{attend, fp8, merge, native, score};
use deft::abi::{APPEND_LIVE, NONE, PAGE_TOKENS, TokenMove};
use deft::bf16;
use deft::cache::Store;
use deft::cuda::CudaDevice;
use deft::layout::{element_offset, half_page_elements, page_offset};
use driver::Fake;
use world::World;

/// Elements of a head, where it does not matter.
const DIM: u32 = 64;

thread_local! {
    /// Elements of a head of the kernel that runs.
    static HEAD_DIM: Cell<u32> = const { Cell::new(DIM) };
}

fn head_dim() -> u32 {
    HEAD_DIM.get()
}

/// A world on the fake GPU.
fn world(seed: u64) -> World {
    let device = CudaDevice::new(0).unwrap();
    World::new(&device, DIM as usize, Some(3), seed)
}

/// The same whose pages get memory as they are taken, a MiB at a time.
fn elastic_world(seed: u64) -> World {
    let device = CudaDevice::new(0).unwrap();
    let store = |reserve| Store::Elastic { reserve, initial: 0 };
    World::of_store(&device, DIM as usize, Some(3), seed, store)
}

/// The same with heads of `dim`.
#[allow(dead_code, reason = "not every suite uses it")]
pub(crate) fn world_of_heads(dim: u32, seed: u64) -> World {
    World::new(&CudaDevice::new(0).unwrap(), dim as usize, Some(3), seed)
}

/// The fake driver with these kernels.
fn load() -> Fake {
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
        if name == "pad_rows" {
            return pad_rows(a);
        }
        let (kernel, dim) = name.rsplit_once("_d").unwrap();
        HEAD_DIM.set(dim.parse().unwrap());
        match kernel {
            "append_bf16" => append(a, None),
            "append_rope_bf16" => {
                append(&[&a[..6], &a[9..]].concat(), Some([a[6], a[7], a[8]]));
            }
            "copy" => copy(a),
            "attend_bf16" => attend(blocks, a, native),
            "attend_coded_bf16" => attend(blocks, a, fp8),
            "score_bf16" => score(blocks, a),
            "merge_bf16" => merge(a),
            "import_pages_bf16" => transfer(a, true),
            "export_pages" => transfer(a, false),
            _ => panic!("no kernel {name}"),
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
    let page = page_offset(head_dim(), kv_heads, place / PAGE_TOKENS, head) as usize;
    let half = if value { half_page_elements(head_dim()) } else { 0 };
    page + (half + element_offset(head_dim(), place % PAGE_TOKENS, dim)) as usize
}

unsafe fn pad_rows(a: &[u64]) {
    let [count, from, to] = [a[3], a[4], a[5]].map(|number| number as usize);
    let sources = [a[0], a[1]].into_iter().filter(|&array| array != 0);
    for (array, source) in sources.enumerate() {
        for row in 0..count {
            for dim in 0..to {
                // SAFETY: as in `append`.
                unsafe {
                    let value: u16 = if dim < from { read(source, row * from + dim) } else { 0 };
                    write(a[2], (array * count + row) * to + dim, value);
                }
            }
        }
    }
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
                let at = |dim: u32| (row as u32 * kv_heads + head) * head_dim() + dim;
                for dim in 0..head_dim() {
                    let mut key: bf16 = read(a[1], at(dim) as usize);
                    if let Some([positions, cos, sin]) = rotation {
                        let turn =
                            read::<u32>(positions, row) * (head_dim() / 2) + dim % (head_dim() / 2);
                        let (cos, sin): (f32, f32) =
                            (read(cos, turn as usize), read(sin, turn as usize));
                        let other: bf16 =
                            read(a[1], at((dim + head_dim() / 2) % head_dim()) as usize);
                        let sign = if dim < head_dim() / 2 { -1.0 } else { 1.0 };
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
    let [count, layers, pages, kv_heads] = [a[2], a[4], a[5], a[6]].map(|number| number as u32);
    let plane = (pages * kv_heads * 2 * half_page_elements(head_dim())) as usize;
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
    heads.flat_map(|(head, value)| (0..head_dim()).map(move |dim| (head, value, dim)))
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
                let (array, foreign) =
                    (a[1 + usize::from(value)], (row * head_dim() + dim) as usize);
                let ours = element(kv_heads, place, head, value, dim);
                match import {
                    true => write(a[0], ours, read::<u16>(array, foreign)),
                    false => write(array, foreign, read::<u16>(a[0], ours)),
                }
            }
        }
    }
}
