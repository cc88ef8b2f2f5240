//! Prompts that are computed, loaded, and restored by both at once.

use std::fs::File;
use std::io::{self, Cursor, Read, Seek, SeekFrom};
use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use deft::{Demoted, Restored};
use deft_engine::TreeModel;
use deft_engine::cuda::CudaModel;

use super::Setting;
use crate::say;

const ROUNDS: usize = 5;
/// Rates of throttled inputs in GB/s.
const RATES: [f64; 5] = [0.5, 1.0, 2.0, 5.0, 20.0];

/// A demoted prompt that is read at most at a rate.
struct Throttled<'a> {
    bytes: Cursor<&'a [u8]>,
    seconds_a_byte: f64,
    /// When what was read so far may be there.
    until: Option<Instant>,
}

impl<'a> Throttled<'a> {
    fn new(demoted: &'a Demoted, gb_a_second: f64) -> Self {
        let bytes = Cursor::new(demoted.bytes());
        Self { bytes, seconds_a_byte: 1e-9 / gb_a_second, until: None }
    }
}

impl Read for Throttled<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let began = self.until.unwrap_or_else(Instant::now).max(Instant::now() - SLACK);
        let read = self.bytes.read(buffer)?;
        let until = began + Duration::from_secs_f64(read as f64 * self.seconds_a_byte);
        std::thread::sleep(until.saturating_duration_since(Instant::now()));
        self.until = Some(until);
        Ok(read)
    }
}

/// A disk goes on reading while what it has read is looked at.
const SLACK: Duration = Duration::from_millis(2);

impl Seek for Throttled<'_> {
    fn seek(&mut self, to: SeekFrom) -> io::Result<u64> {
        self.bytes.seek(to)
    }
}

/// Median milliseconds of `work`, which is undone each time, and the tokens that it computed and loaded.
fn time(
    model: &mut CudaModel,
    mut work: impl FnMut(&mut CudaModel) -> Result<Restored>,
) -> Result<(f64, [u32; 2])> {
    let mut times = Vec::new();
    for _ in 0..ROUNDS {
        model.stream().synchronize()?;
        let begin = Instant::now();
        let restored = work(model)?;
        model.stream().synchronize()?;
        times.push((begin.elapsed().as_secs_f64() * 1e3, [restored.computed, restored.loaded]));
        ensure!(restored.fault.is_none(), "a load failed: {:?}", restored.fault);
        model.prune(restored.node)?;
        model.clear_prompts()?;
    }
    times.sort_by(|a, b| a.0.total_cmp(&b.0));
    Ok(times[ROUNDS / 2])
}

pub(super) fn run(setting: &Setting<'_>) -> Result<usize> {
    setting.watchdog.now("a prompt to restore");
    let mut model = setting.model(|options| {
        options.prefill_rows = 512;
        options.prefix_bytes = u64::MAX;
        options.kv_bytes = 8 << 30;
    })?;
    let vocabulary = model.vocabulary() as u32;
    let prompt: Vec<u32> =
        (0..setting.args.tokens as u32).map(|at| (at * 7919 + 13) % vocabulary).collect();
    let mut logits = Vec::new();
    let compute = |model: &mut CudaModel, tokens: usize, logits: &mut Vec<f32>| -> Result<f64> {
        let mut times = Vec::new();
        for _ in 0..ROUNDS {
            let begin = Instant::now();
            let leaf = model.insert_prompt(&prompt[..tokens], logits)?;
            times.push(begin.elapsed().as_secs_f64() * 1e3);
            model.prune(leaf)?;
            model.clear_prompts()?;
        }
        times.sort_by(f64::total_cmp);
        Ok(times[ROUNDS / 2])
    };
    compute(&mut model, prompt.len(), &mut logits)?;
    let half = compute(&mut model, prompt.len() / 2, &mut Vec::new())?;
    let whole = compute(&mut model, prompt.len(), &mut logits)?;
    // c(n) = a n + b n^2 through both.
    let n = prompt.len() as f64;
    let b = (whole - 2.0 * half) / (n * n / 2.0);
    let a = (whole - b * n * n) / n;
    let leaf = model.insert_prompt(&prompt, &mut Vec::new())?;
    let path = setting.args.folder.join("deft-tiers.kv");
    let begin = Instant::now();
    model.save_prompt(leaf, &path)?;
    let saved = begin.elapsed().as_secs_f64() * 1e3;
    let begin = Instant::now();
    let demoted = model.demote_prompt(leaf)?;
    let bytes = demoted.bytes().len() as f64;
    say(&format!(
        "a prompt of {} tokens, {:.2} GB: computed in {whole:.2} ms (its first half in {half:.2}), demoted in {:.0} ms, saved in {saved:.0} ms",
        prompt.len(),
        bytes / 1e9,
        begin.elapsed().as_secs_f64() * 1e3,
    ));
    say("source          load ms   GB/s   both ms  computed   best ms  of best  of min");
    let row = |name: &str, (load, _): (f64, [u32; 2]), (both, [computed, _]): (f64, [u32; 2])| {
        // The best meeting place, were both sides without any cost of their own.
        let at = |m: f64| (a * m + b * m * m).max(load * (n - m) / n);
        let best = (0..=128).map(|step| at(n * f64::from(step) / 128.0)).fold(f64::MAX, f64::min);
        say(&format!(
            "{name:<14} {load:>8.2} {:>6.2} {both:>9.2} {computed:>9} {best:>9.2} {:>8.3} {:>7.3}",
            bytes / 1e6 / load,
            both / best,
            both / load.min(whole)
        ));
    };
    setting.watchdog.now("restoring from pinned memory");
    let load = time(&mut model, |model| Ok(model.promote_prompt(&demoted)?))?;
    let both = time(&mut model, |model| Ok(model.restore_prompt(&demoted)?))?;
    row("pinned memory", load, both);
    setting.watchdog.now("restoring from a file");
    let load = time(&mut model, |model| Ok(model.promote_prompt(&mut File::open(&path)?)?))?;
    let both = time(&mut model, |model| Ok(model.restore_prompt(&mut File::open(&path)?)?))?;
    row("file", load, both);
    for rate in RATES {
        setting.watchdog.now(&format!("restoring at {rate} GB/s"));
        let throttled = || Throttled::new(&demoted, rate);
        let load = time(&mut model, |model| Ok(model.promote_prompt(&mut throttled())?))?;
        let both = time(&mut model, |model| Ok(model.restore_prompt(&mut throttled())?))?;
        row(&format!("{rate} GB/s"), load, both);
    }
    std::fs::remove_file(&path)?;
    check(&mut model, &demoted, (&prompt, &logits))
}

/// Whether logits after a restored prompt are those after a computed one; 1 if not.
fn check(model: &mut CudaModel, demoted: &Demoted, of: (&[u32], &[f32])) -> Result<usize> {
    let mut wrong = 0;
    for both in [false, true] {
        let restored = match both {
            true => model.restore_prompt(demoted)?,
            false => model.promote_prompt(demoted)?,
        };
        let mut logits = Vec::new();
        let leaf = model.insert_prompt(of.0, &mut logits)?;
        let norm = |values: &mut dyn Iterator<Item = f32>| -> f64 {
            values.map(|x| f64::from(x).powi(2)).sum::<f64>().sqrt()
        };
        let off = norm(&mut logits.iter().zip(of.1).map(|(a, b)| a - b))
            / norm(&mut of.1.iter().copied());
        say(&format!(
            "logits after a prompt that was {} are off by {off:.2e}",
            if both { "met" } else { "loaded" }
        ));
        wrong += usize::from(off.is_nan() || off > 5e-2);
        for leaf in [leaf, restored.node] {
            model.prune(leaf)?;
        }
        model.clear_prompts()?;
    }
    Ok(wrong)
}
