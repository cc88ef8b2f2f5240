//! The kernels between a model's matrix products, on the emulator, against their definitions in f64.

mod best;
mod part;
mod pick;
mod rank;
mod rotate;
mod rows;

use deft::cache::KvElement;
use device::emulator::{DevicePointer, Launch, Memory};
use device::{Bf16, Element, F16};
use half::{bf16, f16};
use kernels_gpu::model::limits::{CHUNK, THREADS};
use rand::RngExt;
use rand::rngs::SmallRng;

/// A 16-bit type on both sides.
trait Sixteen: KvElement {
    type Device: Element;
    /// Largest relative error of rounding to it.
    const ROUNDING: f64;
}

impl Sixteen for bf16 {
    type Device = Bf16;
    const ROUNDING: f64 = 1.0 / 256.0;
}

impl Sixteen for f16 {
    type Device = F16;
    const ROUNDING: f64 = 1.0 / 2048.0;
}

/// A launch with a thread for every eight elements of `[rows, width]`.
fn chunks(rows: usize, width: usize) -> Launch {
    let threads = (rows * width) as u32 / CHUNK;
    Launch::new([threads.div_ceil(THREADS), 1, 1], THREADS)
}

fn uniform(rng: &mut SmallRng, count: usize, limit: f32) -> Vec<f32> {
    (0..count).map(|_| rng.random_range(-limit..limit)).collect()
}

fn random<T: Sixteen>(rng: &mut SmallRng, count: usize, limit: f32) -> Vec<T> {
    let values = uniform(rng, count, limit).into_iter();
    values.map(T::from_f32).collect()
}

/// A constant buffer of 16-bit elements.
fn constant<T: Sixteen>(memory: &mut Memory, name: &str, values: &[T]) -> DevicePointer<u16> {
    memory.constant(name, bytemuck::cast_slice::<T, u16>(values))
}

fn values<T: Sixteen>(bits: &[u16]) -> Vec<f64> {
    let values = bytemuck::cast_slice::<u16, T>(bits).iter();
    values.map(|value| f64::from(value.to_f32())).collect()
}

/// Every value is the expected one, rounded once after arithmetic whose own error is a few f32 units.
fn assert_rounded<T: Sixteen>(found: &[u16], expected: &[f64], context: &str) {
    assert_eq!(found.len(), expected.len(), "{context}");
    for (i, (found, expected)) in values::<T>(found).iter().zip(expected).enumerate() {
        // Below the normal range of f16 its steps are 2^-24.
        let tolerance = expected.abs() * (T::ROUNDING + 2e-6) + 2.0_f64.powi(-25);
        assert!(
            (found - expected).abs() <= tolerance,
            "{context}: element {i} is {found}, expected {expected}"
        );
    }
}
