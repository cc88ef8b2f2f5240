//! What the kernels write to the cache, on the emulator, bit by bit against the CPU's cache.

use deft::attention::{Backend, Counters, PagedTokens, RotaryTable, Rotation, cpu};
use deft::cache::{CacheShape, HEAD_DIMS, KvElement, PagedOrder, PagedTable};
use deft_tests::emulated::Emulated;
use half::{bf16, f16};
use kernels_gpu::abi::APPEND_LIVE;
use rand::rngs::SmallRng;
use rand::{RngExt, SeedableRng};

const LAYERS: u32 = 2;
const PAGES: u32 = 4;

fn shape<T: KvElement>(kv_heads: u32, head_dim: u32) -> CacheShape {
    CacheShape {
        layers: LAYERS,
        kv_heads,
        head_dim,
        dtype: T::DTYPE,
        pages: PAGES,
    }
}

fn random<T: KvElement>(rng: &mut SmallRng, count: usize) -> Vec<T> {
    let values = (0..count).map(|_| T::from_f32(rng.random_range(-4.0..4.0)));
    values.collect()
}

/// K and V of every place of a layer, `[places, kv_heads, head_dim]`.
fn rows<T: KvElement>(cpu: &mut dyn Backend, layer: u32) -> [Vec<u16>; 2] {
    let elements = (PAGES * 64) as usize * cpu.shape().row_elements();
    let mut rows = [(); 2].map(|()| vec![T::default(); elements]);
    let [k, v] = &mut rows;
    let table = PagedTable {
        order: PagedOrder::Nhd,
        page_size: 64,
        pages: &[0, 1, 2, 3],
    };
    let places: Vec<u32> = (0..PAGES * 64).collect();
    let paged = PagedTokens {
        layer,
        places: &places,
        table,
    };
    cpu.export(paged, [k, v].map(|rows| T::elements_mut(rows)))
        .unwrap();
    rows.map(|rows| bytemuck::cast_slice(&rows).to_vec())
}

fn append_rotated_as_the_cpu<T: KvElement>(kv_heads: u32, head_dim: u32, count: usize) {
    let shape = shape::<T>(kv_heads, head_dim);
    let mut rng = SmallRng::seed_from_u64(u64::from(head_dim) + count as u64);
    let table = RotaryTable::new(head_dim, 3000, 10_000.0).unwrap();
    // The last row goes to a growing node of 70 tokens, the others to places by number.
    let mut targets: Vec<u32> = (0..count as u32).map(|i| (i * 37 + 5) % 192).collect();
    targets[count - 1] = APPEND_LIVE | 1;
    let counters = Counters {
        lengths: &[9, 70],
        tail_pages: &[0, 3],
    };
    let mut positions: Vec<u32> = (0..count).map(|_| rng.random_range(1..3000)).collect();
    positions[0] = 2999;
    let rotation = Rotation {
        table: &table,
        positions: &positions,
    };
    let row = shape.row_elements();
    let k = random::<T>(&mut rng, count * row);
    let v = random::<T>(&mut rng, count * row);
    let mut cpu = cpu::new(shape).unwrap();
    let mut emulated = Emulated::new(shape, count as u64);
    for backend in [&mut *cpu, &mut emulated] {
        let (k, v) = (T::elements(&k), T::elements(&v));
        backend
            .append_rotated(1, &targets, counters, k, v, rotation)
            .unwrap();
    }
    let context = format!(
        "{count} rows, {kv_heads} KV heads of {} x {head_dim}",
        T::DTYPE
    );
    for layer in 0..LAYERS {
        assert!(
            emulated.rows(layer) == rows::<T>(&mut *cpu, layer),
            "{context}"
        );
    }
    let last = (3 * 64 + 5) * row..(3 * 64 + 6) * row;
    let [written_k, written_v] = emulated.rows(1).map(|rows| rows[last.clone()].to_vec());
    let appended = |rows: &[T]| bytemuck::cast_slice::<T, u16>(&rows[(count - 1) * row..]).to_vec();
    assert_ne!(written_k, appended(&k), "{context}: not rotated");
    assert_eq!(written_v, appended(&v), "{context}");
}

#[test]
fn keys_are_rotated_to_the_very_bits_of_the_cpu() {
    for head_dim in HEAD_DIMS {
        for (kv_heads, count) in [(1, 1), (3, 17), (2, 37)] {
            append_rotated_as_the_cpu::<bf16>(kv_heads, head_dim, count);
            append_rotated_as_the_cpu::<f16>(kv_heads, head_dim, count);
        }
    }
}

/// A sequence in a foreign cache of two pages more than it needs, in descending order of pages.
struct Sequence {
    page_size: u32,
    pages: Vec<u32>,
    places: Vec<u32>,
    foreign: [Vec<bf16>; 2],
}

impl Sequence {
    fn new(shape: &CacheShape, page_size: u32, tokens: u32) -> Self {
        let needed = tokens.div_ceil(page_size);
        let elements = ((needed + 2) * page_size) as usize * shape.row_elements();
        let mut rng = SmallRng::seed_from_u64(u64::from(page_size + tokens));
        Self {
            page_size,
            pages: (1..=needed).rev().collect(),
            // Scattered over all pages, no two the same.
            places: (0..tokens).map(|i| (i * 37 + 5) % (PAGES * 64)).collect(),
            foreign: [(); 2].map(|()| random(&mut rng, elements)),
        }
    }

    fn table(&self, order: PagedOrder) -> PagedTable<'_> {
        PagedTable {
            order,
            page_size: self.page_size,
            pages: &self.pages,
        }
    }

    fn bits(&self) -> [&[u16]; 2] {
        let [k, v] = &self.foreign;
        [bytemuck::cast_slice(k), bytemuck::cast_slice(v)]
    }
}

fn imports_and_exports_as_the_cpu(shape: CacheShape, order: PagedOrder, sequence: &Sequence) {
    let table = sequence.table(order);
    let places = &sequence.places;
    let context = format!(
        "{} tokens in {order:?} pages of {}, {shape:?}",
        places.len(),
        sequence.page_size
    );
    let [k, v] = &sequence.foreign;
    let paged = PagedTokens {
        layer: 1,
        places,
        table,
    };
    let mut cpu = cpu::new(shape).unwrap();
    let mut emulated = Emulated::new(shape, places.len() as u64);
    for backend in [&mut *cpu, &mut emulated] {
        let (k, v) = (bf16::elements(k), bf16::elements(v));
        backend.import(paged, [k, v]).unwrap();
    }
    for layer in 0..LAYERS {
        assert!(
            emulated.rows(layer) == rows::<bf16>(&mut *cpu, layer),
            "import, {context}"
        );
    }
    let bits =
        |rows: [Vec<bf16>; 2]| rows.map(|rows| bytemuck::cast_slice::<_, u16>(&rows).to_vec());
    let unwritten = [(); 2].map(|()| vec![bf16::NAN; k.len()]);
    let exported = |backend: &mut dyn Backend, mut onto: [Vec<bf16>; 2]| {
        let [k, v] = &mut onto;
        let (k, v) = (bf16::elements_mut(k), bf16::elements_mut(v));
        backend.export(paged, [k, v]).unwrap();
        bits(onto)
    };
    let right = exported(&mut *cpu, unwritten.clone());
    assert!(
        exported(&mut emulated, unwritten) == right,
        "export, {context}"
    );
    let back = exported(&mut emulated, sequence.foreign.clone());
    assert!(back.iter().eq(sequence.bits()), "round trip, {context}");
}

#[test]
fn foreign_pages_come_and_go_as_on_the_cpu() {
    for head_dim in HEAD_DIMS {
        for order in [PagedOrder::Nhd, PagedOrder::Hnd] {
            for (page_size, tokens) in [(1, 3), (16, 1), (16, 37), (7, 50), (64, 130), (300, 17)] {
                let shape = shape::<bf16>(3, head_dim);
                let sequence = Sequence::new(&shape, page_size, tokens);
                imports_and_exports_as_the_cpu(shape, order, &sequence);
            }
        }
    }
}

#[test]
fn a_pool_whose_pages_hold_k_then_v_is_imported_from_one_buffer() {
    let shape = shape::<bf16>(2, 64);
    let sequence = Sequence::new(&shape, 16, 37);
    let page = 16 * shape.row_elements();
    let [k, v] = sequence.bits();
    let pages = k.chunks(page).zip(v.chunks(page));
    let pool: Vec<u16> = pages.flat_map(|(k, v)| [k, v].concat()).collect();
    let table = sequence.table(PagedOrder::Hnd);
    let paged = PagedTokens {
        layer: 0,
        places: &sequence.places,
        table,
    };
    let mut cpu = cpu::new(shape).unwrap();
    let [k, v] = &sequence.foreign;
    cpu.import(paged, [bf16::elements(k), bf16::elements(v)])
        .unwrap();
    let mut emulated = Emulated::new(shape, 3);
    emulated
        .import_strided(paged, 2 * 16, [&pool, &pool[page..]])
        .unwrap();
    assert!(emulated.rows(0) == rows::<bf16>(&mut *cpu, 0));
}
