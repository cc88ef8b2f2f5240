//! Arithmetic and conversions.

use kernels_gpu::selftest;
use rand::RngExt;

use super::{Case, Half, rng};

pub(super) fn cases() -> Vec<Case> {
    vec![arithmetic(), special_arithmetic(), conversions(), e4m3()]
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

/// Every code but the NaNs, by the codec's table.
fn e4m3() -> Case {
    let codes: Vec<u8> =
        (0..=255).map(|code: u8| if code & 0x7f == 0x7f { 0 } else { code }).collect();
    let output = codes.iter().map(|&code| deft::format::e4m3_to_f32(code).to_bits()).collect();
    let input = bytemuck::cast_slice::<_, u32>(&codes).to_vec();
    Case::exact("selftest_e4m3", selftest::e4m3, 64, input, output)
}
