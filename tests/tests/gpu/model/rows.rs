//! Embedding, normalisation, gate, feeding and filling.

use deft::cache::KvElement;
use deft::cuda::DevicePtr;
use deft_engine::cuda::ops::{Embed, Feed, FillRandom, ModelOps, RmsNorm, SiluMul};
use deft_tests::reference;
use kernels_gpu::abi::NONE;
use kernels_gpu::random::uniform;

use deft_tests::forests::pick;
use deft_tests::gpu::Gpu;
use deft_tests::inputs::normals;
use rand::RngExt;
use rand::rngs::SmallRng;
use rand::seq::SliceRandom;

use super::ops::{Case, Verdict, compare_rounded};

const ROWS: [usize; 4] = [1, 3, 17, 50];

/// The operations on activations of `T`.
pub(super) fn cases<'a, T: KvElement>(gpu: &'a Gpu, ops: &'a ModelOps) -> Vec<Case<'a>> {
    let dtype = T::DTYPE;
    let mut cases: Vec<Case<'a>> = Vec::new();
    for hidden in [8, 576, 4096] {
        cases.push((
            format!("embed_{dtype} hidden {hidden}"),
            Box::new(move |random| embed::<T>(gpu, ops, hidden, random)),
        ));
    }
    for hidden in [8, 576, 4096, 16_384] {
        cases.push((
            format!("rms_norm_{dtype} hidden {hidden}"),
            Box::new(move |random| norm::<T>(gpu, ops, hidden, random)),
        ));
    }
    for ffn in [8, 1536, 14_336] {
        cases.push((
            format!("silu_mul_{dtype} ffn {ffn}"),
            Box::new(move |random| silu::<T>(gpu, ops, ffn, random)),
        ));
    }
    cases.push((
        format!("fill_random_{dtype}"),
        Box::new(move |random| {
            fill::<T>(gpu, random, |fill| {
                // SAFETY: the buffer is as long as `fill` says, and the stream the device's.
                unsafe { ops.fill_random(fill, gpu.stream.raw()) }.unwrap();
            })
        }),
    ));
    cases
}

/// The operations that know no 16-bit type.
pub(super) fn untyped_cases<'a>(gpu: &'a Gpu, ops: &'a ModelOps) -> Vec<Case<'a>> {
    vec![
        (
            "fill_random_f32".to_owned(),
            Box::new(move |random| {
                fill::<f32>(gpu, random, |fill| {
                    // SAFETY: as in `cases`.
                    unsafe { ops.fill_random_f32(fill, gpu.stream.raw()) }.unwrap();
                })
            }),
        ),
        ("feed_tokens".to_owned(), Box::new(move |random| feed(gpu, ops, random))),
    ]
}

fn embed<T: KvElement>(gpu: &Gpu, ops: &ModelOps, hidden: usize, random: &mut SmallRng) -> Verdict {
    let (rows, vocab) = (pick(random, &ROWS), 1000);
    let table: Vec<T> = normals(random.random(), vocab * hidden, 1.0);
    let tokens: Vec<u32> = (0..rows).map(|_| random.random_range(0..=vocab as u32 - 1)).collect();
    let (table_at, tokens_at) = (gpu.upload(&table), gpu.upload(&tokens));
    let x = gpu.unwritten::<f32>(rows * hidden);
    let embed = Embed {
        tokens: tokens_at.pointer(),
        table: table_at.pointer(),
        x: x.pointer(),
        rows: rows as u32,
        hidden: hidden as u32,
    };
    // SAFETY: buffers of the documented shapes, tokens below `vocab`, the device's stream.
    unsafe { ops.embed(&embed, gpu.stream.raw()) }.unwrap();
    let expected = tokens.iter().flat_map(|&token| {
        let row = &table[token as usize * hidden..][..hidden];
        row.iter().map(|value| value.to_f32())
    });
    let mut verdict = Verdict::default();
    let same = gpu.download(&x).into_iter().eq(expected);
    verdict.require(same, || format!("{rows} rows are not the table's"));
    verdict
}

fn norm<T: KvElement>(gpu: &Gpu, ops: &ModelOps, hidden: usize, random: &mut SmallRng) -> Verdict {
    let rows = pick(random, &ROWS);
    let x = normals(random.random(), rows * hidden, 5.0);
    let weight = normals(random.random(), hidden, 1.0);
    let mut picks: Vec<u32> = (0..rows as u32).collect();
    picks.shuffle(random);
    if rows > 1 {
        picks[1] = NONE;
    }
    let (x_at, weight_at) = (gpu.upload(&x), gpu.upload(&weight));
    let picks_at = gpu.upload(&picks);
    let all: Vec<u32> = (0..rows as u32).collect();
    let mut verdict = Verdict::default();
    for (rows_taken, pointer) in [(&all, DevicePtr::NULL), (&picks, picks_at.pointer())] {
        let out = gpu.unwritten::<T>(rows * hidden);
        let norm = RmsNorm {
            x: x_at.pointer(),
            picks: pointer,
            weight: weight_at.pointer(),
            out: out.pointer(),
            rows: rows as u32,
            hidden: hidden as u32,
            eps: 1e-5,
        };
        // SAFETY: buffers of the documented shapes, picked rows exist, the device's stream.
        unsafe { ops.rms_norm(&norm, gpu.stream.raw()) }.unwrap();
        let out = gpu.download(&out);
        for (&row, found) in rows_taken.iter().zip(out.chunks_exact(hidden)) {
            if row == NONE {
                let untouched = bytemuck::cast_slice::<T, u8>(found);
                verdict.require(untouched.iter().all(|byte| *byte == 0xff), || {
                    "a row that is left out was written".to_owned()
                });
                continue;
            }
            let row = &x[row as usize * hidden..][..hidden];
            let expected = reference::rms_norm(row, &weight, 1e-5);
            compare_rounded(&mut verdict, found, &expected);
        }
    }
    verdict
}

fn silu<T: KvElement>(gpu: &Gpu, ops: &ModelOps, ffn: usize, random: &mut SmallRng) -> Verdict {
    let rows = pick(random, &ROWS);
    let gate_up: Vec<T> = normals(random.random(), rows * 2 * ffn, 6.0);
    let source = gpu.upload(&gate_up);
    let out = gpu.unwritten::<T>(rows * ffn);
    let silu = SiluMul {
        gate_up: source.pointer(),
        out: out.pointer(),
        rows: rows as u32,
        ffn: ffn as u32,
    };
    // SAFETY: buffers of the documented shapes, the device's stream.
    unsafe { ops.silu_mul(&silu, gpu.stream.raw()) }.unwrap();
    let mut verdict = Verdict::default();
    let out = gpu.download(&out);
    for (row, found) in gate_up.chunks_exact(2 * ffn).zip(out.chunks_exact(ffn)) {
        let (gate, up) = row.split_at(ffn);
        let pairs = gate.iter().zip(up);
        let expected: Vec<f64> = pairs
            .map(|(gate, up)| reference::silu_mul(gate.to_f32().into(), up.to_f32().into()))
            .collect();
        compare_rounded(&mut verdict, found, &expected);
    }
    verdict
}

fn fill<T: KvElement>(gpu: &Gpu, random: &mut SmallRng, run: impl Fn(&FillRandom)) -> Verdict {
    // More than one chunk for each thread of the largest grid.
    let count = 8 * random.random_range(1..=400_000) as usize;
    let out = gpu.unwritten::<T>(count);
    let fill =
        FillRandom { out: out.pointer(), count: count as u64, seed: random.random(), scale: 0.02 };
    run(&fill);
    let expected = (0..count as u64).map(|i| T::from_f32(uniform(fill.seed, i, fill.scale)));
    let mut verdict = Verdict::default();
    let wrong = gpu
        .download(&out)
        .into_iter()
        .zip(expected)
        .position(|(found, expected)| found.to_f32().to_bits() != expected.to_f32().to_bits());
    verdict.require(wrong.is_none(), || format!("element {wrong:?} of {count} is not the host's"));
    verdict
}

fn feed(gpu: &Gpu, ops: &ModelOps, random: &mut SmallRng) -> Verdict {
    let (count, k, history_len) = (random.random_range(1..=700) as usize, 3, 5);
    let next: Vec<u32> = (0..count * k).map(|_| random.random_range(0..=50_000)).collect();
    let mut positions: Vec<u32> = (0..count).map(|_| random.random_range(0..=100)).collect();
    let targets: Vec<u32> = (0..count).map(|_| pick(random, &[NONE, 1, 2, 3])).collect();
    let mut tokens = vec![7_u32; count];
    let mut history = vec![u32::MAX; count * history_len];
    let (next_at, targets_at) = (gpu.upload(&next), gpu.upload(&targets));
    let (tokens_at, positions_at) = (gpu.upload(&tokens), gpu.upload(&positions));
    let history_at = gpu.unwritten::<u32>(history.len());
    let feed = Feed {
        next: next_at.pointer(),
        targets: targets_at.pointer(),
        tokens: tokens_at.pointer(),
        positions: positions_at.pointer(),
        history: history_at.pointer(),
        history_len: history_len as u32,
        next_stride: k as u32,
        count: count as u32,
    };
    // Twice, as two steps would.
    for _ in 0..2 {
        // SAFETY: buffers of the documented shapes, the device's stream.
        unsafe { ops.feed(&feed, gpu.stream.raw()) }.unwrap();
        for row in (0..count).filter(|&row| targets[row] != NONE) {
            tokens[row] = next[row * k];
            positions[row] += 1;
            history[row * history_len + positions[row] as usize % history_len] = tokens[row];
        }
    }
    let mut verdict = Verdict::default();
    for (name, buffer, expected) in [
        ("tokens", &tokens_at, &tokens),
        ("positions", &positions_at, &positions),
        ("history", &history_at, &history),
    ] {
        let same = gpu.download(buffer) == *expected;
        verdict.require(same, || format!("{name} of {count} rows differ"));
    }
    verdict
}
