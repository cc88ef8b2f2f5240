//! What a GPU computes between a model's matrix products, against the definitions in f64.

mod rank;
mod rotate;
mod rows;

use anyhow::{Context, Result};
use bytemuck::Pod;
use deft::cache::KvElement;
use deft::cuda::DeviceBuffer;
use deft_engine::cuda::ops::ModelOps;
use half::{bf16, f16};

use crate::gpu::Gpu;
use crate::random::{Random, normal_pair};
use crate::say;

/// Head dimension of the operations that do not depend on it.
const HEAD_DIM: u32 = 128;

/// How one case fared.
#[derive(Debug, Default)]
struct Verdict {
    /// Largest error, in units of what is allowed; 0 where bits are compared.
    error: f64,
    problem: Option<String>,
}

impl Verdict {
    /// Takes a condition in; `what` says what did not hold.
    fn require(&mut self, holds: bool, what: impl FnOnce() -> String) {
        if !holds && self.problem.is_none() {
            self.problem = Some(what());
        }
    }

    /// Takes a number in that may be off by `allowed`.
    fn compare(&mut self, found: f64, expected: f64, allowed: f64, what: impl FnOnce() -> String) {
        let same = found == expected || found.is_nan() && expected.is_nan();
        let error = if same {
            0.0
        } else {
            (found - expected).abs() / allowed
        };
        self.require(error <= 1.0, || {
            format!("{}: {found}, expected {expected}", what())
        });
        if error > self.error {
            self.error = error;
        }
    }
}

/// A kind of case: what it is called, and how it is run.
type Case<'a> = (String, Box<dyn Fn(&mut Random) -> Result<Verdict> + 'a>);

/// Runs every operation on random data; the number of cases that are wrong.
pub(crate) fn run(gpu: &Gpu, filter: Option<&str>, seed: u64) -> Result<u32> {
    say(&format!(
        "{:40} {:>6} {:>6} {:>14}",
        "model operations", "cases", "wrong", "error/allowed"
    ));
    let mut wrong = 0;
    wrong += run_typed::<bf16>(gpu, filter, seed)?;
    wrong += run_typed::<f16>(gpu, filter, seed)?;
    let ops = ModelOps::new(&gpu.device, bf16::DTYPE, HEAD_DIM)?;
    wrong += run_cases(rank::cases(gpu, &ops), filter, seed)?;
    wrong += run_cases(rows::untyped_cases(gpu, &ops), filter, seed)?;
    Ok(wrong)
}

fn run_typed<T: KvElement>(gpu: &Gpu, filter: Option<&str>, seed: u64) -> Result<u32> {
    let ops = ModelOps::new(&gpu.device, T::DTYPE, HEAD_DIM)?;
    let mut cases = rows::cases::<T>(gpu, &ops);
    cases.extend(rotate::cases::<T>(gpu));
    run_cases(cases, filter, seed)
}

fn run_cases(cases: Vec<Case<'_>>, filter: Option<&str>, seed: u64) -> Result<u32> {
    let mut wrong = 0;
    for (name, case) in cases {
        if filter.is_some_and(|part| !name.contains(part)) {
            continue;
        }
        let mut worst = Verdict::default();
        let (rounds, mut failed) = (3, 0);
        for round in 0..rounds {
            let mut random = Random::new(seed.wrapping_mul(31).wrapping_add(round));
            let verdict = case(&mut random).with_context(|| name.clone())?;
            worst.error = worst.error.max(verdict.error);
            if let Some(problem) = verdict.problem {
                failed += 1;
                worst.problem.get_or_insert(problem);
            }
        }
        say(&format!(
            "{name:40} {rounds:6} {failed:6} {:14.3}",
            worst.error
        ));
        if let Some(problem) = worst.problem {
            say(&format!("    {problem}"));
        }
        wrong += failed;
    }
    Ok(wrong)
}

/// An array of random values that are close to normal, with deviation `scale`.
fn normal(random: &mut Random, count: usize, scale: f32) -> Vec<f32> {
    let source = Random::new(random.next());
    let pairs = (0..count.div_ceil(2)).flat_map(|i| normal_pair(source.at(i as u64)));
    pairs.take(count).map(|value| scale * value).collect()
}

fn normal_elements<T: KvElement>(random: &mut Random, count: usize, scale: f32) -> Vec<T> {
    let values = normal(random, count, scale).into_iter();
    values.map(T::from_f32).collect()
}

fn upload<T: Pod>(gpu: &Gpu, data: &[T]) -> Result<DeviceBuffer<T>> {
    Ok(DeviceBuffer::from_slice(&gpu.device, "input", data)?)
}

/// A buffer whose bytes are all 0xff: NaNs, or ids that no row has.
fn poisoned<T: Pod>(gpu: &Gpu, len: usize) -> Result<DeviceBuffer<T>> {
    let buffer = DeviceBuffer::uninitialized(&gpu.device, "output", len)?;
    buffer.fill_bytes(0xff, &gpu.stream)?;
    Ok(buffer)
}

fn download<T: Pod>(gpu: &Gpu, buffer: &DeviceBuffer<T>) -> Result<Vec<T>> {
    gpu.settle("a model's operation")?;
    let mut data = vec![T::zeroed(); buffer.len()];
    buffer.read(0, &mut data, &gpu.stream)?;
    Ok(data)
}

/// Largest relative error of rounding to a 16-bit type and of the f32 arithmetic before it.
fn rounding<T: KvElement>() -> f64 {
    let bits = match T::DTYPE {
        deft::DType::Bf16 => 8,
        _ => 11,
    };
    2.0_f64.powi(-bits) + 4e-6
}

/// Compares an array of 16-bit elements with what is rounded to it.
fn compare_rounded<T: KvElement>(verdict: &mut Verdict, found: &[T], expected: &[f64]) {
    for (i, (found, expected)) in found.iter().zip(expected).enumerate() {
        // Below the normal range of f16 its steps are 2^-24.
        let allowed = expected.abs() * rounding::<T>() + 2.0_f64.powi(-25);
        let found = f64::from(found.to_f32());
        verdict.compare(found, *expected, allowed, || format!("element {i}"));
    }
}
