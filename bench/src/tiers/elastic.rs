//! Decoding, growth and shrinking with an elastic store.

use std::time::Instant;

use anyhow::Result;
use deft_engine::TreeModel;
use deft_engine::cuda::{Choice, CudaModel, instrument};

use super::Setting;
use crate::say;
use crate::stats::Spread;

/// Leaves that decode at a time, and tokens of their prompt.
const LEAVES: usize = 32;
const PROMPT: u32 = 8192;
/// Most bytes of pages.
const KV_BYTES: u64 = 24 << 30;
const ROUNDS: usize = 5;

pub(super) fn run(setting: &Setting<'_>) -> Result<()> {
    growth(setting)?;
    setting.watchdog.now("decoding with both stores");
    let mut fixed = setting.model(|options| options.kv_bytes = KV_BYTES / 4)?;
    let mut elastic = setting.model(|options| {
        (options.kv_bytes, options.kv_initial) = (KV_BYTES / 4, Some(0));
    })?;
    let mut times = [Vec::new(), Vec::new()];
    // Taking turns, and the first round is not counted: it captures graphs.
    for round in 0..=ROUNDS {
        for (model, times) in [&mut fixed, &mut elastic].into_iter().zip(&mut times) {
            setting.watchdog.now(&format!("decoding, round {round}"));
            let time = decode(model, setting.args.steps)?;
            if round > 0 {
                times.push(time);
            }
        }
    }
    let [fixed, elastic] = times.map(Spread::of);
    say(&format!(
        "decode, {LEAVES} leaves of a prompt of {PROMPT}, {} steps: fixed {:.1} us a step, elastic {:.1} us, ratio {:.4}",
        setting.args.steps,
        fixed.median,
        elastic.median,
        elastic.median / fixed.median
    ));
    Ok(())
}

/// Microseconds of a step.
fn decode(model: &mut CudaModel, steps: usize) -> Result<f64> {
    let root = instrument::assume_prompt(model, PROMPT)?;
    let leaves = model.fork(root, LEAVES)?;
    let mut decode = model.decode(&leaves, &[1; LEAVES], Choice::GREEDY)?;
    for _ in 0..4 {
        decode.step()?;
    }
    decode.synchronize()?;
    let begin = Instant::now();
    for _ in 0..steps {
        decode.step()?;
    }
    decode.synchronize()?;
    let time = begin.elapsed().as_secs_f64() * 1e6 / steps as f64;
    model.prune(root)?;
    Ok(time)
}

/// Memory as the driver has it while a store grows and shrinks, and what each extent takes.
fn growth(setting: &Setting<'_>) -> Result<()> {
    setting.watchdog.now("growing and shrinking");
    let before = setting.used()?;
    let mut model = setting.model(|options| {
        (options.kv_bytes, options.kv_initial) = (KV_BYTES, Some(0));
    })?;
    let weights = setting.used()?;
    let token = KV_BYTES / u64::from(model.forest().pool().capacity()) / 64;
    let mut roots = Vec::new();
    let mut waits = Vec::new();
    let part = 16 * 64;
    while u64::from(model.forest().pool().free()) * 64 >= part {
        let begin = Instant::now();
        roots.push(instrument::assume_prompt(&mut model, part as u32)?);
        waits.push(begin.elapsed().as_secs_f64() * 1e3);
    }
    let full = setting.used()?;
    say(&format!(
        "growth by {part} tokens of {token} bytes: {} times, median {:.3} ms",
        waits.len(),
        Spread::of(waits).median
    ));
    say("occupancy   held MiB   memory MiB   driver MiB above empty");
    let total = roots.len();
    let row = |model: &mut CudaModel, name: &str| -> Result<()> {
        model.stream().synchronize()?;
        let bytes = model.store_bytes();
        let used = setting.used()?.saturating_sub(weights);
        say(&format!("{name:>9} {:>10} {:>12} {:>12}", bytes.held >> 20, bytes.memory >> 20, used));
        Ok(())
    };
    row(&mut model, "100 %")?;
    let begin = Instant::now();
    let pruned = total - total / 10;
    for root in roots.drain(..pruned) {
        model.prune(root)?;
    }
    let shrunk = begin.elapsed().as_secs_f64() * 1e3 / pruned as f64;
    row(&mut model, "10 %")?;
    for root in roots.drain(..) {
        model.prune(root)?;
    }
    row(&mut model, "0 %")?;
    drop(model);
    say(&format!(
        "driver: {before} MiB before, {weights} with weights, {full} full, {} after; {shrunk:.3} ms a prune",
        setting.used()?
    ));
    Ok(())
}
