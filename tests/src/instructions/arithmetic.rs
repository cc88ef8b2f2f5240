//! Arithmetic and conversions.

use kernels_gpu::selftest;
use rand::RngExt;

use super::{Case, Half, rng};

pub(super) fn cases() -> Vec<Case> {
    vec![arithmetic(), special_arithmetic(), conversions(), decoded_codes(), pairs()]
}

fn arithmetic() -> Case {
    let mut rng = rng(30);
    let operands: Vec<[f32; 3]> = (0..256)
        .map(|_| {
            let b: f32 = rng.random_range(0.01..100.0);
            [rng.random_range(-20.0..20.0), b, rng.random_range(-5.0..5.0)]
        })
        .collect();
    // tanh.approx is off by up to 2^-11 (PTX ISA), everything else by far less.
    case(&operands).named("of ordinary numbers").within(6e-4, 1e-6)
}

fn special_arithmetic() -> Case {
    let special = [
        0.0,
        1.0,
        -1.0,
        f32::INFINITY,
        f32::NEG_INFINITY,
        f32::MAX,
        f32::MIN_POSITIVE,
        -150.0,
        300.0,
    ];
    let mut operands = Vec::new();
    for a in special {
        for b in special {
            operands.push([a, b, 1.0]);
        }
    }
    operands.resize(96, [1.0, 2.0, 3.0]);
    case(&operands).named("of special numbers").within(6e-4, 0.0)
}

fn case(operands: &[[f32; 3]]) -> Case {
    let flush = |x: f64| {
        let x = x as f32;
        if x.is_subnormal() { 0.0_f32.copysign(x) } else { x }
    };
    let output = operands.iter().flat_map(|&[a, b, c]| {
        let [x, y, z] = [a, b, c].map(f64::from);
        [
            flush(x.exp2()),
            y.abs().log2() as f32,
            x.tanh() as f32,
            flush(1.0 / y),
            flush(1.0 / y.abs().sqrt()),
            (x * y + z) as f32,
            a.max(b),
        ]
    });
    let output = output.map(f32::to_bits).collect();
    let input = operands.iter().flatten().map(|x| x.to_bits()).collect();
    Case::exact("selftest_arithmetic", selftest::arithmetic, operands.len() as u32, input, output)
}

fn conversions() -> Case {
    let mut rng = rng(31);
    let special = [0.0, -0.0, 65504.0, 65520.0, 1e-7, 3e38, f32::INFINITY, 1.0 + 1.0 / 256.0];
    let mut values: Vec<f32> = special.to_vec();
    values.extend((0..248).map(|_| rng.random_range(-300.0..300.0)));
    let output = values.chunks_exact(2).flat_map(|pair| {
        let packed =
            |half: Half| u32::from(half.bits(pair[0])) | u32::from(half.bits(pair[1])) << 16;
        let unpacked = |half: Half, x: f32| half.value(half.bits(x)).to_bits();
        [
            packed(Half::Bf16),
            packed(Half::F16),
            unpacked(Half::Bf16, pair[0]),
            unpacked(Half::Bf16, pair[1]),
            unpacked(Half::F16, pair[0]),
            unpacked(Half::F16, pair[1]),
        ]
    });
    let output = output.collect();
    let input = values.iter().map(|x| x.to_bits()).collect();
    Case::exact("selftest_conversions", selftest::conversions, 128, input, output)
}

/// Numbers as kernels have those of E4M3 before they are multiplied: subnormal ones among them.
fn decoded_codes() -> Case {
    let mut rng = rng(32);
    let triples = (0..256u32).map(|code| {
        let (sign, magnitude) = ((code & 0x80) << 8, code & 0x7f);
        let factor = rng.random_range(0..0x7c00u32);
        [sign | magnitude << 4 | (sign | magnitude << 7) << 16, factor * 0x0001_0001, 0x8000_8000]
    });
    of_pairs(triples.collect()).named("of codes")
}

fn pairs() -> Case {
    let mut rng = rng(33);
    // Between 2^-8 and 2^8 in bf16, which is 2^-0.5 to 2 in f16.
    let mut number = || rng.random_range(0x3b80..0x4380u32) | rng.random_range(0..2u32) << 15;
    let triples = (0..256).map(|_| [(); 3].map(|()| number() | number() << 16));
    of_pairs(triples.collect()).named("of any numbers")
}

fn of_pairs(triples: Vec<[u32; 3]>) -> Case {
    let output = triples.iter().flat_map(|&triple| {
        [Half::Bf16, Half::F16].map(|half| {
            let lane = |shift: u32| {
                let [a, b, c] = triple.map(|word| f64::from(half.value((word >> shift) as u16)));
                u32::from(nearest(half, a * b + c))
            };
            lane(0) | lane(16) << 16
        })
    });
    let output = output.collect();
    let threads = triples.len() as u32;
    Case::exact("selftest_pairs", selftest::pairs, threads, triples.concat(), output)
}

/// A number rounded once: to a multiple of the last place that its exponent has.
fn nearest(half: Half, x: f64) -> u16 {
    let (bits, least) = match half {
        Half::Bf16 => (8, -126),
        Half::F16 => (11, -14),
    };
    let exponent = (x.to_bits() >> 52 & 0x7ff) as i32 - 1023;
    let place = 2f64.powi(exponent.max(least) + 1 - bits);
    half.bits(((x / place).round_ties_even() * place) as f32)
}
