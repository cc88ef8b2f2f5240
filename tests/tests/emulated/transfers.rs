//! What the kernels write to the cache, on the emulator, bit by bit against the CPU's cache.

use deft::attention::cpu;
use deft::attention::{Counters, PagedTokens, RotaryTable, Rotation};
use deft::cache::{CacheShape, KERNEL_HEAD_DIMS, KvElement, PagedOrder};
use deft_tests::emulated::Emulated;
use deft_tests::inputs::normals;
use deft_tests::transfers::{
    Inspect, Sequence, assert_same_pages, bits, check_append_rotated, rows,
};
use half::{bf16, f16};
use kernels_gpu::abi::APPEND_LIVE;
use rand::rngs::SmallRng;
use rand::{RngExt, SeedableRng};

const LAYERS: u32 = 2;
const PAGES: u32 = 4;

fn shape<T: KvElement>(kv_heads: u32, head_dim: u32) -> CacheShape {
    CacheShape { layers: LAYERS, kv_heads, head_dim, dtype: T::DTYPE, pages: PAGES }
}

fn append_rotated_as_the_cpu<T: KvElement>(kv_heads: u32, head_dim: u32, count: usize) {
    let shape = shape::<T>(kv_heads, head_dim);
    let mut rng = SmallRng::seed_from_u64(u64::from(head_dim) + count as u64);
    let table = RotaryTable::new(head_dim, 3000, 10_000.0).unwrap();
    // The last row goes to a growing node of 70 tokens, the others to places by number.
    let mut targets: Vec<u32> = (0..count as u32).map(|i| (i * 37 + 5) % 192).collect();
    targets[count - 1] = APPEND_LIVE | 1;
    let counters =
        Counters { lengths: &[9, 70], tail_pages: &[0, 3], directory: None, residues: None };
    let mut positions: Vec<u32> = (0..count).map(|_| rng.random_range(1..3000)).collect();
    positions[0] = 2999;
    let rotation = Rotation { table: &table, positions: &positions };
    let row = shape.row_elements();
    let [k, v] = [1, 2].map(|seed| normals::<T>(seed, count * row, 2.0));
    let mut cpu = cpu::new(shape).unwrap();
    let mut emulated = Emulated::new(shape, count as u64);
    let both = [&k[..], &v[..]];
    check_append_rotated(&mut *cpu, &mut emulated, &targets, counters, both, rotation);
    let context = format!("{count} rows, {kv_heads} KV heads of {} x {head_dim}", T::DTYPE);
    let last = (3 * 64 + 5) * row..(3 * 64 + 6) * row;
    let written = rows(&shape, &emulated.pool(), 1);
    let [written_k, written_v] = written.each_ref().map(|rows| &rows[last.clone()]);
    let appended = |rows| &bits::<T>(rows)[(count - 1) * row..];
    assert_ne!(written_k, appended(&k), "{context}: not rotated");
    assert_eq!(written_v, appended(&v), "{context}");
}

#[test]
fn keys_are_rotated_to_the_very_bits_of_the_cpu() {
    for head_dim in KERNEL_HEAD_DIMS {
        for (kv_heads, count) in [(1, 1), (3, 17), (2, 37)] {
            append_rotated_as_the_cpu::<bf16>(kv_heads, head_dim, count);
            append_rotated_as_the_cpu::<f16>(kv_heads, head_dim, count);
        }
    }
}

/// A sequence in a foreign cache of two pages more than it needs, in descending order of pages; in ours scattered over
/// all pages, no two tokens in one place.
fn sequence(shape: &CacheShape, page_size: u32, tokens: u32) -> Sequence<bf16> {
    let pages = (1..=tokens.div_ceil(page_size)).rev().collect();
    let places = (0..tokens).map(|i| (i * 37 + 5) % (PAGES * 64)).collect();
    let seed = u64::from(page_size + tokens);
    Sequence::new(shape, page_size, pages, places, 2, seed)
}

#[test]
fn foreign_pages_come_and_go_as_on_the_cpu() {
    for head_dim in KERNEL_HEAD_DIMS {
        for order in [PagedOrder::Nhd, PagedOrder::Hnd] {
            for (page_size, tokens) in [(1, 3), (16, 1), (16, 37), (7, 50), (64, 130), (300, 17)] {
                let shape = shape::<bf16>(3, head_dim);
                let mut cpu = cpu::new(shape).unwrap();
                let mut emulated = Emulated::new(shape, tokens.into());
                let sequence = sequence(&shape, page_size, tokens);
                sequence.check(order, &mut *cpu, &mut emulated);
            }
        }
    }
}

#[test]
fn a_pool_whose_pages_hold_k_then_v_is_imported_from_one_buffer() {
    let shape = shape::<bf16>(2, 64);
    let sequence = sequence(&shape, 16, 37);
    let page = 16 * shape.row_elements();
    let [k, v] = &sequence.foreign;
    let pages = bits(k).chunks(page).zip(bits(v).chunks(page));
    let pool: Vec<u16> = pages.flat_map(|(k, v)| [k, v].concat()).collect();
    let table = sequence.table(PagedOrder::Hnd);
    let mut cpu = cpu::new(shape).unwrap();
    let mut emulated = Emulated::new(shape, 3);
    let paged = PagedTokens { layer: 0, places: &sequence.places, table };
    cpu.import(paged, [bf16::elements(k), bf16::elements(v)]).unwrap();
    emulated.import_strided(paged, 2 * 16, [&pool, &pool[page..]]).unwrap();
    assert_same_pages::<bf16>(&mut *cpu, &emulated, "one buffer");
}
