//! What each instruction of the device module should do, written out plainly, as cases that the emulator and a
//! GPU run alike: a kernel of [`kernels_gpu::selftest`], its input, and its output by definition.

mod arithmetic;
mod copies;
mod lanes;
mod matrices;
mod ordering;
mod warpgroup;

use device::emulator::{Launch, Memory, Report};
use kernels_gpu::selftest::SHARED_BYTES;
use rand::rngs::SmallRng;
use rand::{RngExt, SeedableRng};

/// One launch of one kernel.
#[derive(Clone)]
pub struct Case {
    /// The kernel's entry point.
    pub entry: &'static str,
    /// What is special about this input.
    pub what: String,
    /// Thread blocks.
    pub blocks: u32,
    /// Threads of a block.
    pub threads: u32,
    /// The kernel's input.
    pub input: Vec<u32>,
    /// What the output holds before; a kernel without any writes all of it.
    pub before: Option<Vec<u32>>,
    /// What the output holds after, by definition.
    pub expected: Vec<u32>,
    /// How near to it a result must be.
    pub tolerance: Tolerance,
    /// The kernel.
    kernel: unsafe fn(*const u32, *mut u32),
}

/// How near a result must be to its definition.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Tolerance {
    /// The same bits.
    Exact,
    /// `f32`s, off by at most `relative * |expected| + absolute`.
    Float {
        /// Relative part.
        relative: f32,
        /// Absolute part.
        absolute: f32,
    },
}

impl Case {
    /// One block whose output is wholly written and given exactly.
    fn exact(
        entry: &'static str,
        kernel: unsafe fn(*const u32, *mut u32),
        threads: u32,
        input: Vec<u32>,
        expected: Vec<u32>,
    ) -> Self {
        Self {
            entry,
            what: String::new(),
            blocks: 1,
            threads,
            input,
            before: None,
            expected,
            tolerance: Tolerance::Exact,
            kernel,
        }
    }

    fn named(mut self, what: impl Into<String>) -> Self {
        self.what = what.into();
        self
    }

    fn within(mut self, relative: f32, absolute: f32) -> Self {
        self.tolerance = Tolerance::Float { relative, absolute };
        self
    }

    /// The kernel's output on the emulator.
    ///
    /// # Errors
    /// What the emulator finds wrong with the kernel.
    pub fn emulate(&self, seed: u64) -> Result<Vec<u32>, Box<Report>> {
        let mut memory = Memory::new();
        let input = memory.constant("input", &self.input);
        let output = match &self.before {
            Some(before) => memory.buffer("output", before),
            None => memory.unwritten("output", self.expected.len()),
        };
        Launch::new([self.blocks, 1, 1], self.threads)
            .shared_bytes(SHARED_BYTES)
            .seed(seed)
            .resident(self.blocks)
            // SAFETY: the emulator checks every access.
            .run(&mut memory, || unsafe {
                (self.kernel)(input.as_ptr(), output.as_mut_ptr());
            })?;
        memory.read(output).map_err(Box::new)
    }

    /// Asserts that `output` is what the definition gives.
    ///
    /// # Panics
    /// If not, naming the first word that differs.
    pub fn check(&self, output: &[u32]) {
        assert_eq!(output.len(), self.expected.len(), "{}", self.entry);
        for (i, (&got, &expected)) in output.iter().zip(&self.expected).enumerate() {
            let near = match self.tolerance {
                Tolerance::Exact => got == expected,
                Tolerance::Float { relative, absolute } => {
                    let [got, expected] = [got, expected].map(f32::from_bits);
                    let same = got == expected || (got.is_nan() && expected.is_nan());
                    same || (got - expected).abs() <= relative * expected.abs() + absolute
                }
            };
            assert!(
                near,
                "{} {}: word {i} is {got:#x} ({}), not {expected:#x} ({}), {:?}",
                self.entry,
                self.what,
                f32::from_bits(got),
                f32::from_bits(expected),
                self.tolerance
            );
        }
    }
}

/// All cases.
pub fn cases() -> Vec<Case> {
    [
        lanes::cases(),
        matrices::cases(),
        warpgroup::cases(),
        copies::cases(),
        arithmetic::cases(),
        ordering::cases(),
    ]
    .concat()
}

fn rng(seed: u64) -> SmallRng {
    SmallRng::seed_from_u64(seed)
}

fn random_words(seed: u64, count: usize) -> Vec<u32> {
    let mut rng = rng(seed);
    (0..count).map(|_| rng.random()).collect()
}

/// 16-bit element types by name.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Half {
    Bf16,
    F16,
}

impl Half {
    fn bits(self, x: f32) -> u16 {
        match self {
            Self::Bf16 => half::bf16::from_f32(x).to_bits(),
            Self::F16 => half::f16::from_f32(x).to_bits(),
        }
    }

    fn value(self, bits: u16) -> f32 {
        match self {
            Self::Bf16 => half::bf16::from_bits(bits).to_f32(),
            Self::F16 => half::f16::from_bits(bits).to_f32(),
        }
    }
}

/// Values of a matrix product's operands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Values {
    /// Small whole numbers: sums are exact in any order, so every element's place shows.
    Whole,
    /// Any: sums differ in rounding.
    Any,
}

/// A matrix of values that `half` can hold, row by row.
fn matrix(
    rng: &mut SmallRng,
    values: Values,
    half: Half,
    rows: usize,
    columns: usize,
) -> Vec<Vec<f32>> {
    let mut value = || match values {
        Values::Whole => rng.random_range(-8..=8) as f32,
        Values::Any => half.value(half.bits(rng.random_range(-2.0..2.0))),
    };
    (0..rows).map(|_| (0..columns).map(|_| value()).collect()).collect()
}

/// `c + a * b` in f64, rounded once.
fn product(a: &[Vec<f32>], b: &[Vec<f32>], c: &[Vec<f32>]) -> Vec<Vec<f32>> {
    let element = |m: usize, n: usize| {
        let sum: f64 = (0..b.len()).map(|k| f64::from(a[m][k]) * f64::from(b[k][n])).sum();
        (f64::from(c[m][n]) + sum) as f32
    };
    (0..a.len()).map(|m| (0..b[0].len()).map(|n| element(m, n)).collect()).collect()
}
