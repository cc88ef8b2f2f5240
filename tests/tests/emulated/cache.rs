//! The cache kernels' own source, on the emulator, against element-by-element writes.

use deft::attention::{Backend, Counters};
use deft::cache::{CacheShape, DType, Elements};
use deft_tests::emulated::Emulated;
use deft_tests::transfers::Inspect;
use device::Bf16;
use device::emulator::{Launch, Memory};
use kernels_gpu::abi::{APPEND_LIVE, NONE, TokenMove};
use kernels_gpu::cache::{self, THREADS};
use rand::rngs::SmallRng;
use rand::seq::SliceRandom;
use rand::{RngExt, SeedableRng};

const SHAPES: [(u32, u32, u32); 4] = [(1, 1, 64), (2, 3, 64), (1, 2, 128), (2, 1, 256)];

fn shape((layers, kv_heads, head_dim): (u32, u32, u32), pages: u32) -> CacheShape {
    CacheShape { layers, kv_heads, head_dim, dtype: DType::Bf16, pages }
}

/// Index into the pool of K (or V) of a token, written out from the layout's definition.
fn element(shape: &CacheShape, layer: u32, place: u32, head: u32, value: u32, dim: u32) -> usize {
    let (page, token, d) = (place / 64, place % 64, shape.head_dim);
    let tiles = [
        (layer, shape.pages),
        (page, shape.kv_heads),
        (head, 2),
        (value, 8),
        (token / 8, d / 8),
        (dim / 8, 8),
        (token % 8, 8),
        (dim % 8, 1),
    ];
    tiles.iter().fold(0, |at, (index, next)| (at + *index as usize) * *next as usize)
}

fn random_rows(shape: &CacheShape, rows: usize, rng: &mut SmallRng) -> [Vec<half::bf16>; 2] {
    let elements = rows * (shape.kv_heads * shape.head_dim) as usize;
    [(); 2].map(|()| {
        // Any but those whose exponent is full: V that is not finite is not kept bit by bit.
        let bits =
            (0..elements).map(|_| rng.random_range(0..0x7f80) | rng.random_range(0..2) << 15);
        bits.map(half::bf16::from_bits).collect()
    })
}

fn write_row(
    pool: &mut [u16],
    shape: &CacheShape,
    layer: u32,
    place: u32,
    row: usize,
    kv: &[Vec<half::bf16>; 2],
) {
    for head in 0..shape.kv_heads {
        for dim in 0..shape.head_dim {
            let source = row * (shape.kv_heads * shape.head_dim) as usize
                + (head * shape.head_dim + dim) as usize;
            for (value, rows) in (0..).zip(kv) {
                pool[element(shape, layer, place, head, value, dim)] = rows[source].to_bits();
            }
        }
    }
}

#[test]
fn append_writes_each_row_to_its_target_and_nothing_else() {
    for (seed, dims) in (0..).zip(SHAPES) {
        let mut rng = SmallRng::seed_from_u64(seed);
        let shape = shape(dims, 5);
        for rows in [1, 17, 64, 131] {
            let mut backend = Emulated::new(shape, seed);
            let mut expected = backend.pool();
            let mut targets: Vec<u32> = (0..shape.pages * 64).collect();
            targets.shuffle(&mut rng);
            targets.truncate(rows);
            let kv = random_rows(&shape, rows, &mut rng);
            let layer = shape.layers - 1;
            let [k, v] = &kv;
            let elements = [Elements::Bf16(k), Elements::Bf16(v)];
            backend.append(layer, &targets, Counters::default(), elements[0], elements[1]).unwrap();
            for (row, place) in targets.iter().enumerate() {
                write_row(&mut expected, &shape, layer, *place, row, &kv);
            }
            assert!(backend.pool() == expected, "{rows} rows, {shape:?}");
        }
    }
}

#[test]
fn a_target_that_names_a_counter_is_that_nodes_last_token() {
    let shape = shape((1, 2, 64), 6);
    let mut rng = SmallRng::seed_from_u64(9);
    let lengths = [1, 64, 65, 7];
    let tail_pages = [4, 2, 5, 0];
    let order = [2, 0, 3, 1];
    let kv = random_rows(&shape, order.len(), &mut rng);
    let mut backend = Emulated::new(shape, 9);
    let mut expected = backend.pool();
    let targets = order.map(|slot| APPEND_LIVE | slot);
    let counters =
        Counters { lengths: &lengths, tail_pages: &tail_pages, directory: None, residues: None };
    let elements = [Elements::Bf16(&kv[0]), Elements::Bf16(&kv[1])];
    backend.append(0, &targets, counters, elements[0], elements[1]).unwrap();
    for (row, slot) in order.iter().enumerate() {
        let slot = *slot as usize;
        let place = tail_pages[slot] * 64 + (lengths[slot] - 1) % 64;
        write_row(&mut expected, &shape, 0, place, row, &kv);
    }
    assert!(backend.pool() == expected);
}

/// Launches `append` of one KV head of 64 dims directly, so that targets reach it unchecked.
fn append_raw(
    pool_pages: usize,
    targets: &[u32],
    lengths: &[u32],
) -> Result<Vec<u16>, Box<device::emulator::Report>> {
    let mut memory = Memory::new();
    let pool = memory.buffer("pool", &vec![0_u16; pool_pages * 2 * 64 * 64]);
    let rows = vec![1_u16; targets.len() * 64];
    let (k, v) = (memory.constant("k", &rows), memory.constant("v", &rows));
    let list = memory.constant("targets", targets);
    let counters = memory.constant("lengths", lengths);
    let tails = memory.constant("tail pages", &vec![0_u32; lengths.len()]);
    let count = targets.len() as u32;
    Launch::new([(count * 16).div_ceil(THREADS), 1, 1], THREADS).run(&mut memory, || {
        // SAFETY: the emulator checks every access.
        unsafe {
            cache::append::<Bf16, 64>(
                pool.as_mut_ptr(),
                k.as_ptr(),
                v.as_ptr(),
                list.as_ptr(),
                counters.as_ptr(),
                tails.as_ptr(),
                count,
                1,
            );
        }
    })?;
    Ok(memory.read_poisoned(pool))
}

#[test]
fn append_passes_over_absent_targets_and_counters_of_nothing() {
    let pool = append_raw(1, &[NONE, APPEND_LIVE, 3], &[0]).unwrap();
    let written = pool.iter().filter(|element| **element != 0).count();
    assert_eq!(written, 2 * 64, "K and V of one token");
}

#[test]
fn a_target_beyond_the_pool_is_reported_with_the_buffers_name() {
    let report = append_raw(1, &[64], &[]).unwrap_err();
    assert_eq!(report.cause, device::emulator::Cause::OutOfBounds);
    assert!(report.message.contains("buffer `pool`, which has 16384 bytes"), "{report}");
    assert!(report.site.is_some_and(|site| site.file().ends_with("append.rs")), "{report}");
}

#[test]
fn two_rows_with_one_target_are_reported_as_a_race() {
    let report = append_raw(1, &[5, 5], &[]).unwrap_err();
    assert_eq!(report.cause, device::emulator::Cause::Race, "{report}");
}

#[test]
fn moves_are_done_in_order_in_every_layer_and_head() {
    for (seed, dims) in (20..).zip(SHAPES) {
        let mut rng = SmallRng::seed_from_u64(seed);
        let shape = shape(dims, 3);
        let mut backend = Emulated::new(shape, seed);
        let all: Vec<u32> = (0..shape.pages * 64).collect();
        for layer in 0..shape.layers {
            let [k, v] = random_rows(&shape, all.len(), &mut rng);
            let (k, v) = (Elements::Bf16(&k), Elements::Bf16(&v));
            backend.append(layer, &all, Counters::default(), k, v).unwrap();
        }
        // The second writes where the first has read, the third reads what the second wrote.
        let mut moves = vec![(70, 3), (131, 70), (70, 191)];
        moves.extend((0..37).map(|i| (64 + i, i)));
        let mut expected = backend.pool();
        for (from, to) in &moves {
            for layer in 0..shape.layers {
                for head in 0..shape.kv_heads {
                    for value in 0..2 {
                        for dim in 0..shape.head_dim {
                            let at = |place| element(&shape, layer, place, head, value, dim);
                            expected[at(*to)] = expected[at(*from)];
                        }
                    }
                }
            }
        }
        let moves: Vec<TokenMove> =
            moves.iter().map(|&(from, to)| TokenMove { from, to }).collect();
        backend.copy(&moves).unwrap();
        assert!(backend.pool() == expected, "{shape:?}");
    }
}

#[test]
fn rows_are_padded_with_zeros_and_cut_again_and_nothing_else_is_written() {
    let mut rng = SmallRng::seed_from_u64(9);
    for (short, long) in [(40, 64), (48, 64), (56, 64), (96, 128)] {
        for rows in [1, 17, 37, 65] {
            let [first, second] = [(); 2].map(|()| {
                let bits = (0..rows * short).map(|_| rng.random_range(1..=u16::MAX));
                bits.collect::<Vec<_>>()
            });
            let both = pad(&[&first, &second], rows, [short, long]);
            let sources = [&first[..], &second].concat();
            for (padded, row) in both.chunks_exact(long).zip(sources.chunks_exact(short)) {
                assert_eq!(padded[..short], *row, "{rows} rows of {short}");
                assert!(padded[short..].iter().all(|&bits| bits == 0), "{rows} rows of {short}");
            }
            let cut = pad(&[&both[..rows * long]], rows, [long, short]);
            assert!(cut == first, "{rows} rows of {short}");
        }
    }
}

/// What `pad_rows` makes of one or two arrays of `rows` rows.
fn pad(sources: &[&[u16]], rows: usize, [from, to]: [usize; 2]) -> Vec<u16> {
    let mut memory = Memory::new();
    let target = memory.unwritten::<u16>("target", sources.len() * rows * to);
    let sources: Vec<_> = sources.iter().map(|rows| memory.constant("source", rows)).collect();
    let threads = (sources.len() * rows * to / 8) as u32;
    Launch::new([threads.div_ceil(THREADS), 1, 1], THREADS)
        // SAFETY: the emulator checks every access.
        .run(&mut memory, || unsafe {
            let (first, target) = (sources[0].as_ptr(), target.as_mut_ptr());
            let second = sources.get(1).map_or(std::ptr::null(), |second| second.as_ptr());
            cache::pad_rows(first, second, target, rows as u32, from as u32, to as u32);
        })
        .unwrap();
    memory.read(target).unwrap()
}

#[test]
fn advance_counts_each_named_counter_once_and_no_other() {
    let mut memory = Memory::new();
    let lengths = memory.buffer("lengths", &[5_u32; 300]);
    let mut targets = vec![NONE, 7];
    targets.extend((0..290).map(|slot| APPEND_LIVE | slot));
    let list = memory.constant("targets", &targets);
    let count = targets.len() as u32;
    Launch::new([count.div_ceil(THREADS), 1, 1], THREADS)
        // SAFETY: the emulator checks every access.
        .run(&mut memory, || unsafe {
            cache::advance(list.as_ptr(), count, lengths.as_mut_ptr());
        })
        .unwrap();
    let lengths = memory.read(lengths).unwrap();
    assert!(lengths[..290].iter().all(|length| *length == 6));
    assert!(lengths[290..].iter().all(|length| *length == 5));
}

#[test]
fn eight_values_of_which_one_is_not_finite_are_kept_as_zeros_with_keys_that_are_not_numbers() {
    // The largest finite values, NaN of least and most bits, infinities.
    let bits = [0x7f7f, 0xff7f, 0x7f81, 0xffff, 0x7f80, 0xff80, 0x7c00, 0x0000];
    for (chunk, bits) in (0..).zip(bits) {
        let shape = shape((1, 2, 64), 1);
        let mut rng = SmallRng::seed_from_u64(chunk);
        let mut kv = random_rows(&shape, 1, &mut rng);
        let first = 8 * chunk as usize;
        kv[1][first + chunk as usize] = half::bf16::from_bits(bits);
        let mut backend = Emulated::new(shape, 3);
        let (k, v) = (Elements::Bf16(&kv[0]), Elements::Bf16(&kv[1]));
        backend.append(0, &[9], Counters::default(), k, v).unwrap();
        if !half::bf16::from_bits(bits).is_finite() {
            kv[0][first..first + 8].fill(half::bf16::from_bits(0x7fff));
            kv[1][first..first + 8].fill(half::bf16::ZERO);
        }
        let mut expected = vec![0; backend.pool().len()];
        write_row(&mut expected, &shape, 0, 9, 0, &kv);
        assert!(backend.pool() == expected, "{bits:#06x}");
    }
}
