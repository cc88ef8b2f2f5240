//! Products against their definition, in f64.

use kernels_gpu::random::word;

use super::*;

/// A matrix of small random weights, and the weights.
fn random(shape: [usize; 2], format: Format, seed: u64) -> (Matrix, Vec<f32>) {
    let elements = shape[0] * shape[1];
    let size = format.bytes(elements as u64).unwrap();
    let mut bytes: Vec<u8> = (0..size).map(|i| word(seed, i) as u8).collect();
    for block in bytes.chunks_mut(format.block_bytes()) {
        // What is read as an exponent is small: no scale and no float is beyond 2^-3.
        match format {
            Format::F32 => block[3] = block[3] & 0x80 | 0x3d,
            Format::Q6K => block[209] = block[209] & 0x80 | 0x0c,
            Format::Bf16 => block[1] = block[1] & 0x80 | 0x3d,
            Format::F16 | Format::Q8_0 | Format::Q4_0 => block[1] = block[1] & 0x80 | 0x20,
            _ => {
                block[1] = block[1] & 0x80 | 0x20;
                block[3] = block[3] & 0x80 | 0x20;
            }
        }
    }
    let mut values = vec![f32::NAN; elements];
    format.dequantize(&bytes, &mut values);
    (Matrix::new(shape, format, bytes), values)
}

fn input(len: usize) -> Vec<f32> {
    let value = |i: u64| (word(99, i) % 2001) as f32 / 1000.0 - 1.0;
    (0..len as u64).map(value).collect()
}

/// Compares with the sum in f64; the bound is that of a sum of f32 in any order.
fn check(y: &[f32], values: &[f32], x: &[f32], columns: usize, before: f64, what: &str) {
    let rows = values.len() / columns;
    for (at, &y) in y.iter().enumerate() {
        let weights = &values[at % rows * columns..][..columns];
        let x = &x[at / rows * columns..][..columns];
        let products = weights.iter().zip(x).map(|(&w, &x)| f64::from(w) * f64::from(x));
        let (sum, size) = products.fold((before, before.abs()), |(sum, size), product| {
            (sum + product, size + product.abs())
        });
        let bound = f64::from(f32::EPSILON) * (columns as f64).sqrt().max(4.0) * size;
        assert!((f64::from(y) - sum).abs() <= bound, "{what} {at}: {y}, {sum}");
    }
}

/// The processor's own vectors, those of AVX2, and none.
fn archs() -> Vec<Arch> {
    let mut all = vec![Arch::Scalar, Arch::new()];
    #[cfg(target_arch = "x86_64")]
    all.extend(pulp::x86::V3::try_new().map(Arch::V3));
    all
}

const BLOCKS: [Format; 5] = [Format::Q4_0, Format::Q4_1, Format::Q5_0, Format::Q5_1, Format::Q8_0];
const LARGE: [Format; 3] = [Format::Q4K, Format::Q5K, Format::Q6K];

/// Sizes that fit no tile, task or span.
fn cases() -> Vec<(Format, [usize; 2])> {
    let mut cases = Vec::new();
    for format in [Format::F32, Format::F16, Format::Bf16] {
        cases
            .extend([[1, 1], [37, 19], [33, 65], [5, 1601], [70, 40]].map(|shape| (format, shape)));
    }
    for format in BLOCKS {
        cases.extend([[1, 32], [35, 96], [6, 1568]].map(|shape| (format, shape)));
    }
    for format in LARGE {
        cases.extend([[1, 256], [35, 256], [6, 1792]].map(|shape| (format, shape)));
    }
    cases
}

#[test]
fn products_are_those_of_the_definition() {
    for (format, shape) in cases() {
        let (matrix, values) = random(shape, format, 5);
        for n in [1, 2, 5, 7, 8, 13, 33] {
            let x = input(n * shape[1]);
            for arch in archs() {
                let what = format!("{format:?} {shape:?} {arch:?} {n}:");
                let mut y = vec![f32::NAN; n * shape[0]];
                apply_by(arch, [(&matrix, &mut y)], &x, Onto::Replace);
                check(&y, &values, &x, shape[1], 0.0, &what);
                y.fill(1.5);
                apply_by(arch, [(&matrix, &mut y)], &x, Onto::Add);
                check(&y, &values, &x, shape[1], 1.5, &what);
            }
        }
    }
}

#[test]
fn rows_of_a_batch_are_the_same_bits_as_alone_on_any_number_of_threads() {
    let pool = |threads| rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
    let pools = [1, 2, 4].map(pool);
    for (format, shape) in [(Format::Q4_1, [200, 1632]), (Format::F32, [99, 1601])] {
        let (matrix, _) = random(shape, format, 6);
        let x = input(33 * shape[1]);
        let alone = x.chunks(shape[1]).flat_map(|x| {
            let mut y = vec![f32::NAN; shape[0]];
            matrix.apply(x, &mut y, Onto::Replace);
            y
        });
        let alone: Vec<u32> = alone.map(f32::to_bits).collect();
        for n in 1..=33 {
            for pool in &pools {
                let mut y = vec![f32::NAN; n * shape[0]];
                pool.install(|| matrix.apply(&x[..n * shape[1]], &mut y, Onto::Replace));
                let bits: Vec<u32> = y.into_iter().map(f32::to_bits).collect();
                assert_eq!(bits, alone[..n * shape[0]], "{format:?} {n}");
            }
        }
    }
}

#[test]
fn matrices_side_by_side_give_what_each_gives() {
    let (first, _) = random([33, 64], Format::Q8_0, 1);
    let (second, _) = random([70, 64], Format::F16, 2);
    let x = input(3 * 64);
    let [mut together, mut apart] = [(); 2].map(|()| (vec![f32::NAN; 99], vec![f32::NAN; 210]));
    let products = [(&first, &mut together.0[..]), (&second, &mut together.1[..])];
    apply_all(products, &x, Onto::Replace);
    first.apply(&x, &mut apart.0, Onto::Replace);
    second.apply(&x, &mut apart.1, Onto::Replace);
    assert_eq!(together, apart);
}

#[test]
fn rows_are_those_that_were_stored() {
    for (format, shape) in cases() {
        let (matrix, values) = random(shape, format, 3);
        let mut rows = vec![7.0];
        (0..shape[0]).for_each(|row| matrix.push_row(row, &mut rows));
        assert_eq!(rows[1..], values, "{format:?}");
        assert_eq!(rows[0], 7.0);
    }
}

#[test]
#[should_panic(expected = "x is [n, columns]")]
fn sizes_that_do_not_go_together_are_a_bug() {
    let matrix = Matrix::new([2, 3], Format::F32, vec![0; 24]);
    matrix.apply(&[0.0; 5], &mut [0.0; 4], Onto::Replace);
}
