//! What a GPU computes between a model's matrix products, against the definitions in f64.

use deft::cache::KvElement;
use deft_engine::cuda::ops::ModelOps;
use deft_tests::gpu::{Gpu, say, setting, wanted};
use half::{bf16, f16};
use rand::SeedableRng;
use rand::rngs::SmallRng;

use super::{best, rank, rotate, rows, select};

/// Head dimension of the operations that do not depend on it.
const HEAD_DIM: u32 = 128;

/// How one case fared.
#[derive(Debug, Default)]
pub(crate) struct Verdict {
    /// Largest error, in units of what is allowed; 0 where bits are compared.
    error: f64,
    problem: Option<String>,
}

impl Verdict {
    /// Takes a condition in; `what` says what did not hold.
    pub(crate) fn require(&mut self, holds: bool, what: impl FnOnce() -> String) {
        if !holds && self.problem.is_none() {
            self.problem = Some(what());
        }
    }

    /// Takes a number in that may be off by `allowed`.
    pub(crate) fn compare(
        &mut self,
        found: f64,
        expected: f64,
        allowed: f64,
        what: impl FnOnce() -> String,
    ) {
        let same = found == expected || found.is_nan() && expected.is_nan();
        let error = if same { 0.0 } else { (found - expected).abs() / allowed };
        self.require(error <= 1.0, || format!("{}: {found}, expected {expected}", what()));
        if error > self.error {
            self.error = error;
        }
    }
}

/// A kind of case: what it is called, and how it is run.
pub(crate) type Case<'a> = (String, Box<dyn Fn(&mut SmallRng) -> Verdict + 'a>);

#[test]
fn operations_of_a_model_are_what_their_definitions_say() {
    let mut wrong = 0;
    for gpu in Gpu::each() {
        wrong += run_typed::<bf16>(&gpu) + run_typed::<f16>(&gpu);
        let ops = ModelOps::new(&gpu.device, bf16::DTYPE, HEAD_DIM).unwrap();
        wrong += run_cases(&gpu, rank::cases(&gpu, &ops));
        wrong += run_cases(&gpu, best::cases(&gpu, &ops));
        wrong += run_cases(&gpu, select::cases(&gpu, &ops));
        wrong += run_cases(&gpu, rows::untyped_cases(&gpu, &ops));
    }
    assert_eq!(wrong, 0, "cases are wrong");
}

fn run_typed<T: KvElement>(gpu: &Gpu) -> u32 {
    let ops = ModelOps::new(&gpu.device, T::DTYPE, HEAD_DIM).unwrap();
    let mut cases = rows::cases::<T>(gpu, &ops);
    cases.extend(rotate::cases::<T>(gpu));
    run_cases(gpu, cases)
}

/// Runs each case on random data; how many went wrong.
fn run_cases(gpu: &Gpu, cases: Vec<Case<'_>>) -> u32 {
    let mut wrong = 0;
    for (name, case) in cases.into_iter().filter(|(name, _)| wanted(name)) {
        let mut worst = Verdict::default();
        let (rounds, mut failed) = (3, 0);
        for round in 0..rounds {
            let seed = setting("DEFT_SEED", 1).wrapping_mul(31).wrapping_add(round);
            gpu.watchdog.now(&name);
            let verdict = case(&mut SmallRng::seed_from_u64(seed));
            worst.error = worst.error.max(verdict.error);
            if let Some(problem) = verdict.problem {
                failed += 1;
                worst.problem.get_or_insert(problem);
            }
        }
        let (arch, error) = (gpu.arch(), worst.error);
        say(&format!("{arch} {name:40} {rounds} cases, {failed} wrong, error/allowed {error:.3}"));
        if let Some(problem) = worst.problem {
            say(&format!("    {problem}"));
        }
        wrong += failed;
    }
    wrong
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
pub(crate) fn compare_rounded<T: KvElement>(verdict: &mut Verdict, found: &[T], expected: &[f64]) {
    for (i, (found, expected)) in found.iter().zip(expected).enumerate() {
        // Below the normal range of f16 its steps are 2^-24.
        let allowed = expected.abs() * rounding::<T>() + 2.0_f64.powi(-25);
        let found = f64::from(found.to_f32());
        verdict.compare(found, *expected, allowed, || format!("element {i}"));
    }
}
