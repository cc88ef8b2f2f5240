//! Blocks against their definition, one element at a time, in f64.

use deft::{bf16, f16};
use kernels_gpu::random::word;
use pulp::Arch;

use crate::weights::Format;

const ALL: [Format; 11] = [
    Format::F32,
    Format::F16,
    Format::Bf16,
    Format::Q4_0,
    Format::Q4_1,
    Format::Q5_0,
    Format::Q5_1,
    Format::Q8_0,
    Format::Q4K,
    Format::Q5K,
    Format::Q6K,
];

fn half(block: &[u8], at: usize) -> f64 {
    f16::from_le_bytes([block[at], block[at + 1]]).to_f64()
}

/// Bits `first..first + count` of the bytes from `at` on, the lowest first.
fn bits(block: &[u8], at: usize, first: usize, count: usize) -> f64 {
    let bit = |bit: usize| u32::from(block[at + bit / 8] >> (bit % 8) & 1);
    f64::from((0..count).map(|i| bit(first + i) << i).sum::<u32>())
}

/// Four bits of element `i` of 32 in 16 bytes.
fn nibble(block: &[u8], at: usize, i: usize) -> f64 {
    bits(block, at + i % 16, 4 * (i / 16), 4)
}

/// `[scale, least value]` of group `g`, six bits each in the twelve bytes from 4 on: of groups 0 to 3 in bytes `g` and
/// `4 + g`; of 4 to 7 the lower four in byte `4 + g`, the upper two on top of bytes `g - 4` and `g`.
fn six_bits(block: &[u8], g: usize) -> [f64; 2] {
    if g < 4 {
        return [bits(block, 4 + g, 0, 6), bits(block, 8 + g, 0, 6)];
    }
    let upper = |byte: usize| 16.0 * bits(block, 4 + byte, 6, 2);
    [bits(block, 8 + g, 0, 4) + upper(g - 4), bits(block, 8 + g, 4, 4) + upper(g)]
}

/// The terms of element `i` of a block: what is multiplied by the scale, and what is added.
fn terms(format: Format, block: &[u8], i: usize) -> [f64; 2] {
    let (group, within) = (i / 32, i % 32);
    let fifth = |at| 16.0 * bits(block, at, i, 1);
    // Of 64 elements in 32 bytes the first half has the low bits.
    let shared = |at: usize| bits(block, at + i / 64 * 32 + within, 4 * (group % 2), 4);
    match format {
        Format::Q4_0 => [half(block, 0) * (nibble(block, 2, i) - 8.0), 0.0],
        Format::Q4_1 => [half(block, 0) * nibble(block, 4, i), half(block, 2)],
        Format::Q5_0 => {
            let q = nibble(block, 6, i) + fifth(2) - 16.0;
            [half(block, 0) * q, 0.0]
        }
        Format::Q5_1 => {
            let q = nibble(block, 8, i) + fifth(4);
            [half(block, 0) * q, half(block, 2)]
        }
        Format::Q8_0 => [half(block, 0) * f64::from(block[2 + i] as i8), 0.0],
        Format::Q4K | Format::Q5K => {
            let [scale, least] = six_bits(block, group);
            let q = match format {
                Format::Q4K => shared(16),
                _ => shared(48) + 16.0 * bits(block, 16 + within, group, 1),
            };
            [half(block, 0) * scale * q, -half(block, 2) * least]
        }
        Format::Q6K => {
            // Of 128 elements, 64 bytes: first the low bits of all, then the high bits.
            let (part, rest) = (i / 128, i % 128);
            let lower = bits(block, 64 * part + rest % 64, 4 * (rest / 64), 4);
            let upper = bits(block, 128 + 32 * part + within, 2 * (rest / 32), 2);
            let scale = f64::from(block[192 + i / 16] as i8);
            [half(block, 208) * scale * (lower + 16.0 * upper - 32.0), 0.0]
        }
        Format::F32 => {
            let bytes = *block[4 * i..].first_chunk().unwrap();
            [f64::from(f32::from_le_bytes(bytes)), 0.0]
        }
        Format::F16 => [half(block, 2 * i), 0.0],
        Format::Bf16 => {
            let bytes = *block[2 * i..].first_chunk().unwrap();
            [f64::from(bf16::from_le_bytes(bytes)), 0.0]
        }
    }
}

/// Random bytes, with scales that are finite.
fn random(format: Format, elements: usize, seed: u64) -> Vec<u8> {
    let bytes = format.bytes(elements as u64).unwrap();
    let mut random: Vec<u8> = (0..bytes).map(|i| word(seed, i) as u8).collect();
    let scale = |seed| f16::from_f32((word(seed, 1) % 4001) as f32 / 2000.0 - 1.0);
    for (at, block) in random.chunks_mut(format.block_bytes()).enumerate() {
        let scales: &[usize] = match format {
            Format::F32 | Format::F16 | Format::Bf16 => &[],
            Format::Q4_0 | Format::Q5_0 | Format::Q8_0 => &[0],
            Format::Q4_1 | Format::Q5_1 | Format::Q4K | Format::Q5K => &[0, 2],
            Format::Q6K => &[208],
        };
        for &place in scales {
            let scale = scale(seed ^ (at + place) as u64);
            block[place..place + 2].copy_from_slice(&scale.to_le_bytes());
        }
        if scales.is_empty() {
            // No exponent of all ones: neither infinite nor NaN.
            block[format.block_bytes() - 1] &= 0xbf;
        }
    }
    random
}

/// The processor's own vectors, those of AVX2, and none.
fn archs() -> Vec<Arch> {
    let mut all = vec![Arch::Scalar, Arch::new()];
    #[cfg(target_arch = "x86_64")]
    all.extend(pulp::x86::V3::try_new().map(Arch::V3));
    all
}

fn decoded(format: Format, arch: Arch, bytes: &[u8], elements: usize) -> Vec<f32> {
    let mut out = vec![f32::NAN; elements];
    format.dequantize_by(arch, bytes, &mut out);
    out
}

#[test]
fn every_element_is_that_of_the_definition() {
    for format in ALL {
        let block_elements = format.block_elements();
        // Floats: not a whole number of groups.
        let elements = if block_elements == 1 { 77 } else { 3 * block_elements };
        for seed in 0..20 {
            let bytes = random(format, elements, seed);
            let values = decoded(format, Arch::new(), &bytes, elements);
            for (i, &value) in values.iter().enumerate() {
                let block = &bytes[i / block_elements * format.block_bytes()..];
                let [product, sum] = terms(format, block, i % block_elements);
                let bound = 2f64.powi(-23) * (product.abs() + sum.abs());
                let error = (f64::from(value) - product - sum).abs();
                assert!(error <= bound, "{format:?} {i}: {value}, {}", product + sum);
            }
        }
    }
}

#[test]
fn every_instruction_set_gives_the_same_bits() {
    for format in ALL {
        let block = format.block_elements();
        let elements = 5 * if block == 1 { 37 } else { block };
        let bytes = random(format, elements, 7);
        let bits = |arch| {
            let values = decoded(format, arch, &bytes, elements);
            values.into_iter().map(f32::to_bits).collect::<Vec<_>>()
        };
        let plain = bits(Arch::Scalar);
        for arch in archs() {
            assert_eq!(bits(arch), plain, "{format:?} {arch:?}");
        }
    }
}

#[test]
fn all_numbers_of_16_bits_come_back() {
    let bytes: Vec<u8> = (0..=u16::MAX).flat_map(u16::to_le_bytes).collect();
    for arch in archs() {
        let halves = decoded(Format::F16, arch, &bytes, 1 << 16);
        let others = decoded(Format::Bf16, arch, &bytes, 1 << 16);
        for bits in 0..=u16::MAX {
            for (value, expected) in [
                (halves[usize::from(bits)], f16::from_bits(bits).to_f32()),
                (others[usize::from(bits)], bf16::from_bits(bits).to_f32()),
            ] {
                let same = value.to_bits() == expected.to_bits();
                assert!(same || value.is_nan() && expected.is_nan(), "{bits:x}: {value}");
            }
        }
    }
}
