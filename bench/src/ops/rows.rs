//! Embedding, normalisation, gate, feeding and filling.

use anyhow::Result;
use deft::abi::NONE;
use deft::cache::KvElement;
use deft::cuda::DevicePtr;
use deft_engine::cuda::ops::{Embed, Feed, FillRandom, ModelOps, RmsNorm, SiluMul};
use deft_tests::reference;
use kernels_gpu::random::uniform;

use super::{Case, Verdict, compare_rounded, download, normal, normal_elements, poisoned, upload};
use crate::gpu::Gpu;
use crate::random::Random;

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
                Ok(unsafe { ops.fill_random(fill, gpu.stream.raw()) }?)
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
                    Ok(unsafe { ops.fill_random_f32(fill, gpu.stream.raw()) }?)
                })
            }),
        ),
        (
            "feed_tokens".to_owned(),
            Box::new(move |random| feed(gpu, ops, random)),
        ),
    ]
}

fn embed<T: KvElement>(
    gpu: &Gpu,
    ops: &ModelOps,
    hidden: usize,
    random: &mut Random,
) -> Result<Verdict> {
    let (rows, vocab) = (random.pick(&ROWS), 1000);
    let table: Vec<T> = normal_elements(random, vocab * hidden, 1.0);
    let tokens: Vec<u32> = (0..rows)
        .map(|_| random.between(0, vocab as u32 - 1))
        .collect();
    let (table_at, tokens_at) = (upload(gpu, &table)?, upload(gpu, &tokens)?);
    let x = poisoned::<f32>(gpu, rows * hidden)?;
    let embed = Embed {
        tokens: tokens_at.pointer(),
        table: table_at.pointer(),
        x: x.pointer(),
        rows: rows as u32,
        hidden: hidden as u32,
    };
    // SAFETY: buffers of the documented shapes, tokens below `vocab`, the device's stream.
    unsafe { ops.embed(&embed, gpu.stream.raw()) }?;
    let expected = tokens.iter().flat_map(|&token| {
        let row = &table[token as usize * hidden..][..hidden];
        row.iter().map(|value| value.to_f32())
    });
    let mut verdict = Verdict::default();
    let same = download(gpu, &x)?.into_iter().eq(expected);
    verdict.require(same, || format!("{rows} rows are not the table's"));
    Ok(verdict)
}

fn norm<T: KvElement>(
    gpu: &Gpu,
    ops: &ModelOps,
    hidden: usize,
    random: &mut Random,
) -> Result<Verdict> {
    let rows = random.pick(&ROWS);
    let x = normal(random, rows * hidden, 5.0);
    let weight = normal(random, hidden, 1.0);
    let mut picks: Vec<u32> = (0..rows as u32).collect();
    random.shuffle(&mut picks);
    if rows > 1 {
        picks[1] = NONE;
    }
    let (x_at, weight_at) = (upload(gpu, &x)?, upload(gpu, &weight)?);
    let picks_at = upload(gpu, &picks)?;
    let all: Vec<u32> = (0..rows as u32).collect();
    let mut verdict = Verdict::default();
    for (rows_taken, pointer) in [(&all, DevicePtr::NULL), (&picks, picks_at.pointer())] {
        let out = poisoned::<T>(gpu, rows * hidden)?;
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
        unsafe { ops.rms_norm(&norm, gpu.stream.raw()) }?;
        let out = download(gpu, &out)?;
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
    Ok(verdict)
}

fn silu<T: KvElement>(
    gpu: &Gpu,
    ops: &ModelOps,
    ffn: usize,
    random: &mut Random,
) -> Result<Verdict> {
    let rows = random.pick(&ROWS);
    let gate_up: Vec<T> = normal_elements(random, rows * 2 * ffn, 6.0);
    let source = upload(gpu, &gate_up)?;
    let out = poisoned::<T>(gpu, rows * ffn)?;
    let silu = SiluMul {
        gate_up: source.pointer(),
        out: out.pointer(),
        rows: rows as u32,
        ffn: ffn as u32,
    };
    // SAFETY: buffers of the documented shapes, the device's stream.
    unsafe { ops.silu_mul(&silu, gpu.stream.raw()) }?;
    let mut verdict = Verdict::default();
    let out = download(gpu, &out)?;
    for (row, found) in gate_up.chunks_exact(2 * ffn).zip(out.chunks_exact(ffn)) {
        let (gate, up) = row.split_at(ffn);
        let pairs = gate.iter().zip(up);
        let expected: Vec<f64> = pairs
            .map(|(gate, up)| reference::silu_mul(gate.to_f32().into(), up.to_f32().into()))
            .collect();
        compare_rounded(&mut verdict, found, &expected);
    }
    Ok(verdict)
}

fn fill<T: KvElement>(
    gpu: &Gpu,
    random: &mut Random,
    run: impl Fn(&FillRandom) -> Result<()>,
) -> Result<Verdict> {
    // More than one chunk for each thread of the largest grid.
    let count = 8 * random.between(1, 400_000) as usize;
    let out = poisoned::<T>(gpu, count)?;
    let fill = FillRandom {
        out: out.pointer(),
        count: count as u64,
        seed: random.next(),
        scale: 0.02,
    };
    run(&fill)?;
    let expected = (0..count as u64).map(|i| T::from_f32(uniform(fill.seed, i, fill.scale)));
    let mut verdict = Verdict::default();
    let wrong = download(gpu, &out)?
        .into_iter()
        .zip(expected)
        .position(|(found, expected)| found.to_f32().to_bits() != expected.to_f32().to_bits());
    verdict.require(wrong.is_none(), || {
        format!("element {wrong:?} of {count} is not the host's")
    });
    Ok(verdict)
}

fn feed(gpu: &Gpu, ops: &ModelOps, random: &mut Random) -> Result<Verdict> {
    let (count, k, history_len) = (random.between(1, 700) as usize, 3, 5);
    let next: Vec<u32> = (0..count * k).map(|_| random.between(0, 50_000)).collect();
    let mut positions: Vec<u32> = (0..count).map(|_| random.between(0, 100)).collect();
    let targets: Vec<u32> = (0..count).map(|_| random.pick(&[NONE, 1, 2, 3])).collect();
    let mut tokens = vec![7_u32; count];
    let mut history = vec![u32::MAX; count * history_len];
    let (next_at, targets_at) = (upload(gpu, &next)?, upload(gpu, &targets)?);
    let (tokens_at, positions_at) = (upload(gpu, &tokens)?, upload(gpu, &positions)?);
    let history_at = poisoned::<u32>(gpu, history.len())?;
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
        unsafe { ops.feed(&feed, gpu.stream.raw()) }?;
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
        let same = download(gpu, buffer)? == *expected;
        verdict.require(same, || format!("{name} of {count} rows differ"));
    }
    Ok(verdict)
}
