//! Embedding, normalisation, gate, feeding and filling.

use deft_tests::reference;
use device::emulator::{Launch, Memory};
use half::{bf16, f16};
use kernels_gpu::abi::NONE;
use kernels_gpu::model::limits::{MAX_HIDDEN, NORM_SHARED_BYTES, NORM_THREADS, THREADS};
use kernels_gpu::model::{self, Feed, Norm};
use kernels_gpu::random;
use rand::rngs::SmallRng;
use rand::{RngExt, SeedableRng};

use super::{Sixteen, assert_rounded, chunks, constant, uniform};

const SIZES: [(usize, usize); 5] = [(1, 8), (3, 576), (17, 576), (2, 4096), (3, 1000)];

fn embed_gathers<T: Sixteen>(rows: usize, hidden: usize) {
    let mut rng = SmallRng::seed_from_u64(hidden as u64);
    let vocab = 37;
    let table = super::random::<T>(&mut rng, vocab * hidden, 3.0);
    let tokens: Vec<u32> = (0..rows).map(|_| rng.random_range(0..vocab as u32)).collect();
    let mut memory = Memory::new();
    let table_at = constant(&mut memory, "table", &table);
    let tokens_at = memory.constant("tokens", &tokens);
    let x = memory.unwritten::<f32>("x", rows * hidden);
    chunks(rows, hidden)
        .run(&mut memory, || {
            // SAFETY: the emulator checks every access.
            unsafe {
                model::embed::<T::Device>(
                    tokens_at.as_ptr(),
                    table_at.as_ptr(),
                    x.as_mut_ptr(),
                    rows as u32,
                    hidden as u32,
                );
            }
        })
        .unwrap();
    let expected = tokens.iter().flat_map(|&token| {
        let row = &table[token as usize * hidden..][..hidden];
        row.iter().map(|value| value.to_f32())
    });
    assert!(memory.read(x).unwrap().into_iter().eq(expected));
}

#[test]
fn an_embedding_is_the_tokens_row_exactly() {
    for (rows, hidden) in SIZES {
        embed_gathers::<bf16>(rows, hidden);
        embed_gathers::<f16>(rows, hidden);
    }
}

/// Normalises `picks` of `x: [_, hidden]`; rows left out are `None`.
fn norm<T: Sixteen>(
    x: &[f32],
    weight: &[f32],
    picks: Option<&[u32]>,
    eps: f32,
    seed: u64,
) -> Vec<Option<Vec<u16>>> {
    let hidden = weight.len();
    let rows = picks.map_or(x.len() / hidden, <[u32]>::len);
    let mut memory = Memory::new();
    let x = memory.constant("x", x);
    let weight = memory.constant("weight", weight);
    let picks_at = picks.map(|picks| memory.constant("picks", picks));
    let out = memory.unwritten::<u16>("out", rows * hidden);
    Launch::new([rows as u32, 1, 1], NORM_THREADS)
        .shared_bytes(NORM_SHARED_BYTES)
        .seed(seed)
        .run(&mut memory, || {
            let norm = Norm {
                x: x.as_ptr(),
                picks: picks_at.map_or(std::ptr::null(), |picks| picks.as_ptr()),
                weight: weight.as_ptr(),
                out: out.as_mut_ptr(),
                hidden: hidden as u32,
                eps,
            };
            // SAFETY: the emulator checks every access.
            unsafe { model::rms_norm::<T::Device>(norm) }
        })
        .unwrap();
    let all = picks.is_none_or(|picks| !picks.contains(&NONE));
    let bits = if all { memory.read(out).unwrap() } else { memory.read_poisoned(out) };
    let rows = bits.chunks_exact(hidden);
    rows.map(|row| (!row.iter().all(|bits| *bits == u16::MAX)).then(|| row.to_vec())).collect()
}

fn norm_is_rms<T: Sixteen>(rows: usize, hidden: usize, eps: f32) {
    let mut rng = SmallRng::seed_from_u64(3 * hidden as u64);
    let x = uniform(&mut rng, rows * hidden, 20.0);
    let weight = uniform(&mut rng, hidden, 2.0);
    let found = norm::<T>(&x, &weight, None, eps, 1);
    for (row, found) in x.chunks_exact(hidden).zip(&found) {
        let expected = reference::rms_norm(row, &weight, eps);
        let context = format!("{} rows={rows} hidden={hidden}", T::DTYPE);
        assert_rounded::<T>(found.as_ref().unwrap(), &expected, &context);
    }
    assert_eq!(found, norm::<T>(&x, &weight, None, eps, 2), "other schedule");
}

#[test]
fn rms_norm_divides_by_the_root_mean_square() {
    for (rows, hidden) in SIZES.into_iter().chain([(1, MAX_HIDDEN as usize)]) {
        norm_is_rms::<bf16>(rows, hidden, 1e-5);
        norm_is_rms::<f16>(rows, hidden, 0.5);
    }
}

#[test]
fn a_row_of_zeros_is_normalised_to_zeros() {
    let found = norm::<bf16>(&[0.0; 576], &[1.0; 576], None, 1e-5, 0);
    assert_eq!(found, [Some(vec![0; 576])]);
}

/// Rows and their norm once `added` is in them, `picks` only.
fn norm_added<T: Sixteen>(
    (x, added): (&[f32], &[T]),
    weight: &[f32],
    picks: Option<&[u32]>,
) -> (Vec<f32>, Vec<u16>) {
    let hidden = weight.len();
    let rows = picks.map_or(x.len() / hidden, <[u32]>::len);
    let mut memory = Memory::new();
    let x = memory.buffer("x", x);
    let added = constant(&mut memory, "added", added);
    let weight = memory.constant("weight", weight);
    let picks = picks.map(|picks| memory.constant("picks", picks));
    let out = memory.unwritten::<u16>("out", rows * hidden);
    Launch::new([rows as u32, 1, 1], NORM_THREADS)
        .shared_bytes(NORM_SHARED_BYTES)
        .seed(3)
        .run(&mut memory, || {
            let norm = Norm {
                x: x.as_mut_ptr(),
                picks: picks.map_or(std::ptr::null(), |picks| picks.as_ptr()),
                weight: weight.as_ptr(),
                out: out.as_mut_ptr(),
                hidden: hidden as u32,
                eps: 1e-5,
            };
            // SAFETY: the emulator checks every access.
            unsafe { model::add_rms_norm::<T::Device>(norm, added.as_ptr()) }
        })
        .unwrap();
    (memory.read(x).unwrap(), memory.read_poisoned(out))
}

fn norm_adds_first<T: Sixteen>(rows: usize, hidden: usize) {
    let mut rng = SmallRng::seed_from_u64(7 * hidden as u64);
    let x = uniform(&mut rng, rows * hidden, 20.0);
    let (weight, added) =
        (uniform(&mut rng, hidden, 2.0), super::random::<T>(&mut rng, rows * hidden, 9.0));
    let sum: Vec<f32> = x.iter().zip(&added).map(|(x, more)| x + more.to_f32()).collect();
    let expected = norm::<T>(&sum, &weight, None, 1e-5, 0);
    let (found, normed) = norm_added::<T>((&x, &added), &weight, None);
    assert_eq!(found, sum, "the stream has what was added");
    let of_rows: Vec<_> = normed.chunks_exact(hidden).map(|row| Some(row.to_vec())).collect();
    assert_eq!(of_rows, expected, "it is the sum's norm");
    let (last, first) = (rows as u32 - 1, x.len() - hidden);
    let (found, normed) = norm_added::<T>((&x, &added), &weight, Some(&[last, NONE]));
    assert!(found[..first] == x[..first] && found[first..] == sum[first..], "picked rows only");
    assert_eq!(normed[..hidden], *expected[rows - 1].as_ref().unwrap());
}

#[test]
fn a_norm_of_a_sum_adds_before_it_normalises_and_keeps_the_sum() {
    for (rows, hidden) in SIZES.into_iter().chain([(1, MAX_HIDDEN as usize)]) {
        norm_adds_first::<bf16>(rows, hidden);
        norm_adds_first::<f16>(rows, hidden);
    }
}

#[test]
fn picked_rows_are_normalised_in_their_order_and_none_is_left_out() {
    let mut rng = SmallRng::seed_from_u64(4);
    let (x, weight) = (uniform(&mut rng, 5 * 576, 1.0), uniform(&mut rng, 576, 1.0));
    let picks = [4, NONE, 0, 4];
    let found = norm::<f16>(&x, &weight, Some(&picks), 1e-6, 0);
    let all = norm::<f16>(&x, &weight, None, 1e-6, 0);
    assert_eq!(found, [all[4].clone(), None, all[0].clone(), all[4].clone()]);
}

fn silu_gates<T: Sixteen>(rows: usize, ffn: usize) {
    let mut rng = SmallRng::seed_from_u64(ffn as u64);
    let mut gate_up = super::random::<T>(&mut rng, rows * 2 * ffn, 12.0);
    for (i, gate) in [0.0, -0.0, 200.0, -200.0, -90.0, 1e-4].into_iter().enumerate() {
        gate_up[i] = T::from_f32(gate);
    }
    let mut memory = Memory::new();
    let source = constant(&mut memory, "gate_up", &gate_up);
    let out = memory.unwritten::<u16>("out", rows * ffn);
    chunks(rows, ffn)
        .run(&mut memory, || {
            // SAFETY: the emulator checks every access.
            unsafe {
                model::silu_mul::<T::Device>(
                    source.as_ptr(),
                    out.as_mut_ptr(),
                    rows as u32,
                    ffn as u32,
                );
            }
        })
        .unwrap();
    let rows = gate_up.chunks_exact(2 * ffn);
    let expected: Vec<f64> = rows
        .flat_map(|row| {
            let value = |i: usize| f64::from(row[i].to_f32());
            (0..ffn).map(move |i| reference::silu_mul(value(i), value(ffn + i)))
        })
        .collect();
    assert_rounded::<T>(&memory.read(out).unwrap(), &expected, "silu");
}

#[test]
fn the_gate_is_silu_of_the_first_half_times_the_second() {
    for (rows, ffn) in SIZES {
        silu_gates::<bf16>(rows, ffn);
        silu_gates::<f16>(rows, ffn);
    }
}

#[test]
fn a_choice_becomes_the_input_one_position_further_and_stays_in_the_history() {
    let (count, history_len, next_stride) = (300, 4, 3);
    let next: Vec<u32> = (0..count * next_stride).map(|i| 7 * i).collect();
    let mut targets = vec![5; count as usize];
    targets[0] = NONE;
    targets[299] = NONE;
    let positions: Vec<u32> = (0..count).map(|i| i % 9).collect();
    for history_kept in [true, false] {
        let mut memory = Memory::new();
        let next_at = memory.constant("next", &next);
        let targets_at = memory.constant("targets", &targets);
        let tokens_at = memory.buffer("tokens", &vec![1_u32; count as usize]);
        let positions_at = memory.buffer("positions", &positions);
        let history_at = memory.buffer("history", &vec![2_u32; (count * history_len) as usize]);
        Launch::new([count.div_ceil(THREADS), 1, 1], THREADS)
            .run(&mut memory, || {
                let feed = Feed {
                    next: next_at.as_ptr(),
                    targets: targets_at.as_ptr(),
                    tokens: tokens_at.as_mut_ptr(),
                    positions: positions_at.as_mut_ptr(),
                    history: if history_kept {
                        history_at.as_mut_ptr()
                    } else {
                        std::ptr::null_mut()
                    },
                    history_len,
                    next_stride,
                    count,
                };
                // SAFETY: the emulator checks every access.
                unsafe { model::feed(feed) }
            })
            .unwrap();
        let mut expected = (vec![1; count as usize], positions.clone());
        let mut history = vec![2; (count * history_len) as usize];
        for row in 1..299_u32 {
            let token = 7 * row * next_stride;
            expected.0[row as usize] = token;
            expected.1[row as usize] += 1;
            if history_kept {
                let column = expected.1[row as usize] % history_len;
                history[(row * history_len + column) as usize] = token;
            }
        }
        let found = (memory.read(tokens_at).unwrap(), memory.read(positions_at).unwrap());
        assert!(found == expected);
        assert!(memory.read(history_at).unwrap() == history);
    }
}

#[test]
fn random_weights_are_the_hosts_in_every_type_whatever_the_grid() {
    let (seed, scale) = (0x0123_4567_89ab_cdef, 0.02);
    for (blocks, chunks) in [(1, 1), (3, 257), (2, 1500)] {
        let count = 8 * chunks;
        let mut memory = Memory::new();
        let [b, h] = ["bf16", "f16"].map(|name| memory.unwritten::<u16>(name, count));
        let f = memory.unwritten::<f32>("f32", count);
        let chunks = chunks as u64;
        Launch::new([blocks, 1, 1], THREADS)
            .run(&mut memory, || {
                // SAFETY: the emulator checks every access.
                unsafe {
                    model::fill::<<bf16 as Sixteen>::Device>(b.as_mut_ptr(), chunks, seed, scale);
                    model::fill::<<f16 as Sixteen>::Device>(h.as_mut_ptr(), chunks, seed, scale);
                    model::fill_f32(f.as_mut_ptr(), chunks, seed, scale);
                }
            })
            .unwrap();
        let (b, h, f) = (memory.read(b), memory.read(h), memory.read(f));
        let (b, h, f) = (b.unwrap(), h.unwrap(), f.unwrap());
        for index in 0..count {
            let value = random::uniform(seed, index as u64, scale);
            assert_eq!(f[index].to_bits(), value.to_bits());
            assert_eq!(b[index], bf16::from_f32(value).to_bits());
            assert_eq!(h[index], f16::from_f32(value).to_bits());
        }
    }
}
