use kernels_gpu::layout::element_offset;

use super::*;
use crate::cache::{HEAD_DIMS, KERNEL_HEAD_DIMS};

const DTYPES: [DType; 3] = [DType::F16, DType::Bf16, DType::F32];

/// One of each kind, and both ends of their numbers.
fn formats(head_dim: u32) -> Vec<KvFormat> {
    let names = "fp8 fp8-token int4-g8 int4-g64 kivi4 kivi2 native-keep16 native-keep48 kivi4-keep48 kivi2-keep32";
    let mut formats: Vec<KvFormat> = names.split(' ').map(|name| name.parse().unwrap()).collect();
    formats.push(KvFormat::Native);
    formats.push(KvFormat::Int4 { group: head_dim });
    for keys in [ThinKeys::Native, ThinKeys::Kivi4] {
        formats.push(KvFormat::Thin { keep: head_dim, keys });
    }
    // Groups of dims divide a head: 32 do not divide 80 and 112, nor 64 those, 96 and 192 but the last.
    if !KERNEL_HEAD_DIMS.contains(&head_dim) {
        formats.retain(|format| format.check(shape(head_dim, DType::F32)).is_ok());
        assert!(formats.len() >= 8, "{head_dim}: {formats:?}");
    }
    formats
}

fn shape(head_dim: u32, dtype: DType) -> PageShape {
    PageShape { head_dim, dtype }
}

/// Numbers of `dtype` between -1 and 1, channels of different scales, in a page's order.
fn values(shape: PageShape, seed: u32) -> Vec<f32> {
    let number = |i: u32| {
        let bits = (i ^ seed.wrapping_mul(0x9e37_79b9)).wrapping_mul(2_654_435_761);
        let channel = 2f32.powi((i % 8) as i32 - 7);
        ((bits >> 8) as f32 / (1 << 23) as f32 - 1.0) * channel
    };
    let numbers = 0..shape.half_elements() as u32;
    numbers.map(|i| pack::round(shape.dtype, f64::from(number(i)))).collect()
}

fn first_channels(format: KvFormat) -> Vec<u8> {
    (0..format.kept_channels().unwrap_or(0)).map(|channel| channel as u8).collect()
}

fn coded(format: KvFormat, shape: PageShape, k: &[f32], v: &[f32]) -> [Vec<f32>; 2] {
    let mut page = vec![0xa5; format.page_bytes(shape)];
    let channels = first_channels(format);
    format.encode(shape, [k, v], &channels, &mut page).unwrap();
    let mut halves = [(); 2].map(|()| vec![f32::NAN; shape.half_elements()]);
    let [decoded_k, decoded_v] = &mut halves;
    format.decode(shape, &page, [decoded_k, decoded_v]);
    halves
}

fn all(mut test: impl FnMut(KvFormat, PageShape)) {
    for head_dim in HEAD_DIMS {
        for dtype in DTYPES {
            for format in formats(head_dim) {
                assert_eq!(format.check(shape(head_dim, dtype)), Ok(()));
                test(format, shape(head_dim, dtype));
            }
        }
    }
}

#[test]
fn a_page_takes_the_bytes_that_the_table_says() {
    let of = shape(128, DType::Bf16);
    let table = include_str!("README.md").lines();
    let mut seen = 0;
    for line in table.filter(|line| line.starts_with("| [`KvFormat::")) {
        let cells: Vec<&str> = line.split('|').map(str::trim).collect();
        let format: KvFormat = cells[2].trim_matches('`').parse().unwrap();
        let sum =
            |cell: &str| cell.split(" + ").map(|n| n.parse::<usize>().unwrap()).sum::<usize>();
        format.halves(|k, v| {
            assert_eq!((k.bytes(of), v.bytes(of)), (sum(cells[3]), sum(cells[4])), "{format}");
        });
        assert_eq!(format.page_bytes(of), sum(cells[5]), "{format}");
        let ratio = of.native_bytes() as f64 / format.page_bytes(of) as f64;
        assert_eq!(format!("{ratio:.2}"), cells[6], "{format}");
        seen += 1;
    }
    assert_eq!(seen, 8);
    all(|format, shape| {
        format.halves(|k, v| assert_eq!((k.bytes(shape) % 16, v.bytes(shape) % 16), (0, 0)));
    });
}

#[test]
fn names_and_words_stand_for_one_format() {
    for format in formats(256) {
        assert_eq!(format.to_string().parse(), Ok(format));
        assert_eq!(KvFormat::from_code(format.code()), Some(format));
    }
    assert_eq!(KvFormat::Native.code(), 0);
    assert_eq!(KvFormat::from_code(7), None);
    assert_eq!(KvFormat::from_code(1 | 32 << 8), None, "fp8 has no group");
    for name in ["int4", "kivi3", "fp8-keep64", "native-keep", ""] {
        let error = name.parse::<KvFormat>().unwrap_err();
        assert!(error.to_string().contains(&format!("{name:?}")), "{error}");
    }
}

#[test]
fn numbers_out_of_range_are_named() {
    let refuse = |format: KvFormat| format.check(shape(128, DType::F16)).unwrap_err().to_string();
    assert_eq!(
        refuse(KvFormat::Int4 { group: 48 }),
        "group is 48; it must be a multiple of 8 that divides head_dim, 128"
    );
    assert!(refuse(KvFormat::Int4 { group: 4 }).starts_with("group is 4"));
    assert!(refuse(KvFormat::Int4 { group: 0 }).starts_with("group is 0"));
    assert_eq!(refuse(KvFormat::Kivi { bits: 3, group: 32 }), "bits is 3; it must be 2 or 4");
    assert_eq!(refuse(KvFormat::Kivi { bits: 2, group: 1 }), "group is 1; it must be 32");
    let keys = ThinKeys::Native;
    for keep in [0, 72, 144] {
        assert_eq!(
            refuse(KvFormat::Thin { keep, keys }),
            format!("keep is {keep}; it must be a multiple of 16, at most head_dim, 128")
        );
    }
}

#[test]
fn equal_elements_come_back_exactly() {
    all(|format, shape| {
        for value in [0.0, -0.3, 1e-30, 1000.0].map(|x| pack::round(shape.dtype, x)) {
            let halves = vec![value; shape.half_elements()];
            let [k, v] = coded(format, shape, &halves, &halves);
            let kept = format.kept_channels().unwrap_or(shape.head_dim);
            for (at, (k, v)) in k.into_iter().zip(v).enumerate() {
                let channel = at as u32 / 64 % (shape.head_dim / 8) * 8 + at as u32 % 8;
                let whole = if channel < kept { value } else { 0.0 };
                assert_eq!((k, v), (whole, value), "{format} {shape:?}");
            }
        }
    });
}

/// Half a step of the element's group, and what rounding the scale adds.
fn bound(format: KvFormat, shape: PageShape, half: usize, values: &[f32], at: (u32, u32)) -> f64 {
    let (token, dim) = at;
    let element =
        |token, dim| f64::from(values[element_offset(shape.head_dim, token, dim) as usize]);
    let integer = |bits: u32, group: Vec<f64>| {
        let least = group.iter().copied().fold(f64::INFINITY, f64::min);
        let most = group.iter().copied().fold(f64::NEG_INFINITY, f64::max);
        let codes = f64::from((1u32 << bits) - 1);
        let ulp = match shape.dtype {
            DType::F16 => 2f64.powi(-11),
            DType::Bf16 => 2f64.powi(-8),
            DType::F32 => 2f64.powi(-23),
        };
        (most - least) * (0.5 / codes + ulp) + 2f64.powi(-24)
    };
    let tokens_of = |group: u32| {
        let first = token / group * group;
        (first..first + group).map(|token| element(token, dim)).collect()
    };
    let dims_of = |group: u32| {
        let first = dim / group * group;
        (first..first + group).map(|dim| element(token, dim)).collect()
    };
    let x = element(token, dim);
    match (format, half) {
        (KvFormat::Native | KvFormat::Compacted, _)
        | (KvFormat::Thin { keys: ThinKeys::Native, .. }, _) => 0.0,
        (KvFormat::Fp8 { .. }, _) => {
            let page = values.iter().map(|x| f64::from(x.abs())).fold(0.0, f64::max);
            (x.abs() / 16.0).max(page / 256.0 * 2f64.powi(-10))
        }
        (KvFormat::Int4 { group }, _) => integer(4, dims_of(group)),
        (KvFormat::Kivi { bits, .. }, 0) => integer(bits, tokens_of(32)),
        (KvFormat::Kivi { bits, .. }, _) => integer(bits, dims_of(32)),
        (KvFormat::Thin { keys, .. }, 0) => integer(keys.bits(), tokens_of(32)),
        (KvFormat::Thin { keys, .. }, _) => integer(keys.bits(), dims_of(32)),
    }
}

#[test]
fn an_element_is_off_by_half_a_step_at_most() {
    all(|format, shape| {
        let halves = [values(shape, 1), values(shape, 2)];
        let [k, v] = &halves;
        let decoded = coded(format, shape, k, v);
        let kept = format.kept_channels().unwrap_or(shape.head_dim);
        let mut off = 0;
        for (half, (decoded, values)) in decoded.iter().zip(&halves).enumerate() {
            for token in (0..64).step_by(7) {
                for dim in (0..shape.head_dim).step_by(5) {
                    let at = element_offset(shape.head_dim, token, dim) as usize;
                    if half == 0 && dim >= kept {
                        assert_eq!(decoded[at], 0.0);
                        continue;
                    }
                    let error = f64::from(decoded[at]) - f64::from(values[at]);
                    let bound = bound(format, shape, half, values, (token, dim));
                    assert!(
                        error.abs() <= bound,
                        "{format} {shape:?} {half} {token} {dim}: {error} > {bound}"
                    );
                    off += usize::from(error != 0.0);
                }
            }
        }
        let lossless =
            matches!(format, KvFormat::Native | KvFormat::Thin { keys: ThinKeys::Native, .. });
        assert_eq!(off == 0, lossless, "{format}");
    });
}

#[test]
fn what_cannot_be_stored_is_named_and_nothing_written() {
    let of = shape(64, DType::Bf16);
    for value in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY, -3e38, 65_536.0] {
        let stored =
            |format: &KvFormat| value == 65_536.0 && !matches!(format, KvFormat::Fp8 { .. });
        for format in formats(64).into_iter().filter(|format| !stored(format)) {
            let good = values(of, 1);
            let mut bad = good.clone();
            bad[element_offset(64, 37, 21) as usize] = value;
            for (half, k, v) in [("k", &bad, &good), ("v", &good, &bad)] {
                let mut page = vec![0xa5; format.page_bytes(of)];
                let channels = first_channels(format);
                let error = format.encode(of, [k, v], &channels, &mut page).unwrap_err();
                let message = error.to_string();
                let expected = format!("{half} of token 37 is {value} at dim 21; ");
                assert!(message.starts_with(&expected), "{message}");
                assert!(page.iter().all(|&byte| byte == 0xa5));
            }
        }
    }
    let of = shape(64, DType::F16);
    let wide = [32_752.0, -32_752.0].repeat(of.half_elements() / 2);
    let [k, _] = coded(KvFormat::Int4 { group: 64 }, of, &wide, &wide);
    assert!(k.iter().all(|&x| pack::round(DType::F16, f64::from(x)).is_finite()));
}

#[test]
fn the_codes_of_a_pair_of_dims_lie_in_both_lanes_of_a_word() {
    let of = shape(64, DType::Bf16);
    // Every token from 0 to 15 along a group of channels: codes are the elements.
    let mut ramp = vec![0.0; of.half_elements()];
    for token in 0..64 {
        for dim in 0..64 {
            ramp[element_offset(64, token, dim) as usize] = ((token + dim) % 16) as f32;
        }
    }
    let format = KvFormat::Int4 { group: 16 };
    let mut page = vec![0; format.page_bytes(of)];
    format.encode(of, [&ramp, &ramp], &[], &mut page).unwrap();
    for (bytes, piece) in page.chunks(4).zip(ramp.chunks(8)) {
        let [a, b, c, d, e, f, g, h] = std::array::from_fn(|dim| piece[dim] as u8);
        assert_eq!(bytes, [a | c << 4, e | g << 4, b | d << 4, f | h << 4]);
    }
    let scales = &page[2048..2048 + 512];
    assert!(scales.chunks(2).all(|scale| scale == ::half::bf16::ONE.to_le_bytes()));
    assert!(page[2048 + 512..2048 + 1024].iter().all(|&zero| zero == 0));
}

#[test]
fn kept_channels_are_the_highest_scores_and_lower_channels_of_equal_ones() {
    let scores = [3.0, 9.0, 3.0, 1.0, 3.0, 8.0];
    assert_eq!(choose_channels(&scores, 2), [1, 5]);
    assert_eq!(choose_channels(&scores, 4), [0, 1, 2, 5]);
    assert_eq!(choose_channels(&scores, 6), [0, 1, 2, 3, 4, 5]);
}

/// OCP 8-bit floating point, E4M3: the 127 numbers from 0 up, written out.
#[rustfmt::skip]
const E4M3: [f64; 127] = [
    0.0, 0.001953125, 0.00390625, 0.005859375, 0.0078125, 0.009765625, 0.01171875, 0.013671875,
    0.015625, 0.017578125, 0.01953125, 0.021484375, 0.0234375, 0.025390625, 0.02734375, 0.029296875,
    0.03125, 0.03515625, 0.0390625, 0.04296875, 0.046875, 0.05078125, 0.0546875, 0.05859375,
    0.0625, 0.0703125, 0.078125, 0.0859375, 0.09375, 0.1015625, 0.109375, 0.1171875,
    0.125, 0.140625, 0.15625, 0.171875, 0.1875, 0.203125, 0.21875, 0.234375,
    0.25, 0.28125, 0.3125, 0.34375, 0.375, 0.40625, 0.4375, 0.46875,
    0.5, 0.5625, 0.625, 0.6875, 0.75, 0.8125, 0.875, 0.9375,
    1.0, 1.125, 1.25, 1.375, 1.5, 1.625, 1.75, 1.875,
    2.0, 2.25, 2.5, 2.75, 3.0, 3.25, 3.5, 3.75,
    4.0, 4.5, 5.0, 5.5, 6.0, 6.5, 7.0, 7.5,
    8.0, 9.0, 10.0, 11.0, 12.0, 13.0, 14.0, 15.0,
    16.0, 18.0, 20.0, 22.0, 24.0, 26.0, 28.0, 30.0,
    32.0, 36.0, 40.0, 44.0, 48.0, 52.0, 56.0, 60.0,
    64.0, 72.0, 80.0, 88.0, 96.0, 104.0, 112.0, 120.0,
    128.0, 144.0, 160.0, 176.0, 192.0, 208.0, 224.0, 240.0,
    256.0, 288.0, 320.0, 352.0, 384.0, 416.0, 448.0,
];

#[test]
fn all_256_codes_of_e4m3_are_those_of_the_standard() {
    for code in 0..=255u8 {
        let value = e4m3_to_f32(code);
        let Some(&magnitude) = E4M3.get(usize::from(code & 0x7f)) else {
            assert!(value.is_nan(), "{code:#x}");
            continue;
        };
        let sign = if code < 0x80 { 1.0 } else { -1.0 };
        assert_eq!(f64::from(value), sign * magnitude, "{code:#x}");
        assert_eq!(value.is_sign_negative(), code >= 0x80);
        assert_eq!(f32_to_e4m3(value), code, "{value}");
    }
    assert_eq!((f32_to_e4m3(f32::NAN), f32_to_e4m3(-1e9)), (0x7f, 0xfe));
}

#[test]
fn a_number_gets_the_nearest_code_and_the_even_one_of_two() {
    for (code, pair) in (0u8..).zip(E4M3.windows(2)) {
        let [low, high] = [pair[0], pair[1]];
        let middle = 0.5 * (low + high);
        let even = code + code % 2;
        for (value, expected) in
            [(middle, even), (middle - middle * 1e-6, code), (middle + middle * 1e-6, code + 1)]
        {
            assert_eq!(f32_to_e4m3(value as f32), expected, "{value}");
            assert_eq!(f32_to_e4m3(-value as f32), expected | 0x80, "-{value}");
        }
    }
}
