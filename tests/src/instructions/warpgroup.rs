//! `wgmma`: descriptors, layouts of operands, and accumulators.

use device::{Bf16, F16};
use kernels_gpu::selftest::{self, Warpgroup, wgmma_registers, wgmma_shared};

use super::{Case, Half, Values, matrix, product, rng};

type Kernel = unsafe fn(*const u32, *mut u32);

/// A kernel and the shape it is made for.
#[derive(Clone, Copy)]
struct Shape {
    entry: &'static str,
    kernel: Kernel,
    half: Half,
    n: usize,
    steps: usize,
    trans_a: bool,
    trans_b: bool,
    a_in_registers: bool,
}

/// Order of an operand's core matrices in shared memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Order {
    /// The next 8 of K first: a page's K, and its V when K of the product is tokens, the other way round.
    KFirst,
    /// The next 8 of M or N first.
    OuterFirst,
    /// Rows of 128 bytes, swizzled, as copies of boxes leave them; only `b`.
    Swizzled,
}

pub(super) fn cases() -> Vec<Case> {
    let mut cases = Vec::new();
    for (seed, shape) in (200..).zip(shapes()) {
        for (order_a, order_b) in [
            (Order::KFirst, Order::KFirst),
            (Order::KFirst, Order::OuterFirst),
            (Order::OuterFirst, Order::KFirst),
            (Order::KFirst, Order::Swizzled),
        ] {
            let row = if shape.trans_b { shape.n } else { 16 * shape.steps };
            if order_b == Order::Swizzled && row % 64 != 0 {
                continue;
            }
            for accumulate in [true, false] {
                let whole = case(seed, &shape, Values::Whole, [order_a, order_b], accumulate);
                cases
                    .push(whole.named(format!("{order_a:?} {order_b:?}, accumulate {accumulate}")));
            }
        }
        let any = case(seed, &shape, Values::Any, [Order::KFirst; 2], true);
        // Sums of 64 products of up to 4 each: an ulp of 256 for every addition.
        cases.push(any.named("of any numbers").within(1e-6, 64.0 * 256.0 * 1.2e-7));
    }
    cases
}

fn shapes() -> Vec<Shape> {
    let shared = |entry, kernel: Kernel, half, n, steps, trans_a, trans_b| Shape {
        entry,
        kernel,
        half,
        n,
        steps,
        trans_a,
        trans_b,
        a_in_registers: false,
    };
    let registers = |entry, kernel: Kernel, half, n, trans_b| Shape {
        a_in_registers: true,
        ..shared(entry, kernel, half, n, 4, false, trans_b)
    };
    let (bf16, f16) = (Half::Bf16, Half::F16);
    vec![
        shared(
            "selftest_wgmma_n8",
            wgmma_shared::<Bf16, false, false, 1, 4>,
            bf16,
            8,
            1,
            false,
            false,
        ),
        shared(
            "selftest_wgmma_n16",
            wgmma_shared::<F16, false, false, 2, 8>,
            f16,
            16,
            2,
            false,
            false,
        ),
        shared(
            "selftest_wgmma_n32",
            wgmma_shared::<Bf16, false, false, 4, 16>,
            bf16,
            32,
            4,
            false,
            false,
        ),
        shared(
            "selftest_wgmma_n64",
            wgmma_shared::<Bf16, false, false, 4, 32>,
            bf16,
            64,
            4,
            false,
            false,
        ),
        shared(
            "selftest_wgmma_n128",
            wgmma_shared::<F16, false, false, 4, 64>,
            f16,
            128,
            4,
            false,
            false,
        ),
        shared(
            "selftest_wgmma_n64_trans_a",
            wgmma_shared::<Bf16, true, false, 4, 32>,
            bf16,
            64,
            4,
            true,
            false,
        ),
        shared(
            "selftest_wgmma_n64_trans_b",
            wgmma_shared::<Bf16, false, true, 4, 32>,
            bf16,
            64,
            4,
            false,
            true,
        ),
        shared(
            "selftest_wgmma_n128_trans_ab",
            wgmma_shared::<F16, true, true, 4, 64>,
            f16,
            128,
            4,
            true,
            true,
        ),
        shared(
            "selftest_wgmma_n256_trans_b",
            wgmma_shared::<Bf16, false, true, 4, 128>,
            bf16,
            256,
            4,
            false,
            true,
        ),
        registers(
            "selftest_wgmma_n64_registers",
            wgmma_registers::<Bf16, false, 32>,
            bf16,
            64,
            false,
        ),
        registers(
            "selftest_wgmma_n128_registers_trans_b",
            wgmma_registers::<F16, true, 64>,
            f16,
            128,
            true,
        ),
    ]
}

/// Puts an operand, `[outer][k]`, into shared memory at byte `offset`; its place for the kernel.
fn place(
    memory: &mut Vec<u16>,
    offset: u32,
    operand: &[Vec<f32>],
    half: Half,
    transposed: bool,
    order: Order,
) -> [u32; 4] {
    let (outer, inner) = (operand.len() / 8, operand[0].len() / 8);
    if order == Order::Swizzled {
        return place_swizzled(memory, offset, operand, half, transposed);
    }
    let core = |o: usize, k: usize| match order {
        Order::KFirst => o * inner + k,
        _ => k * outer + o,
    };
    memory.resize(offset as usize / 2 + outer * inner * 64, 0);
    for (row, values) in operand.iter().enumerate() {
        for (k, value) in values.iter().enumerate() {
            let within = if transposed { k % 8 * 8 + row % 8 } else { row % 8 * 8 + k % 8 };
            memory[offset as usize / 2 + core(row / 8, k / 8) * 64 + within] = half.bits(*value);
        }
    }
    let bytes = |o, k| core(o, k) as u32 * 128;
    [offset, bytes(0, 1), bytes(1, 0), bytes(0, 2)]
}

/// [`place`], in rows of 64: a row's pieces of 16 bytes change places by its number (PTX ISA, "Swizzling Modes").
fn place_swizzled(
    memory: &mut Vec<u16>,
    offset: u32,
    operand: &[Vec<f32>],
    half: Half,
    transposed: bool,
) -> [u32; 4] {
    let (outer, inner) = (operand.len(), operand[0].len());
    memory.resize(offset as usize / 2 + outer * inner, 0);
    // Rows of K for an MN-major operand; 64 of the row's dimension after the other.
    let rows = if transposed { inner } else { outer };
    for (o, values) in operand.iter().enumerate() {
        for (k, value) in values.iter().enumerate() {
            let (row, column) = if transposed { (k, o) } else { (o, k) };
            let piece = (column % 64 / 8) ^ (row % 8);
            let at = (column / 64 * rows + row) * 64 + piece * 8 + column % 8;
            memory[offset as usize / 2 + at] = half.bits(*value);
        }
    }
    let step = if transposed { 2048 } else { 32 };
    [offset, rows as u32 * 128, 1024, step]
}

fn case(seed: u64, shape: &Shape, values: Values, orders: [Order; 2], accumulate: bool) -> Case {
    let mut rng = rng(seed);
    let (half, n, k) = (shape.half, shape.n, 16 * shape.steps);
    let a = matrix(&mut rng, values, half, 64, k);
    let b = matrix(&mut rng, values, half, k, n);
    let before = matrix(&mut rng, values, half, 64, n);
    let zeros = vec![vec![0.0; n]; 64];
    let after = product(&a, &b, if accumulate { &before } else { &zeros });
    let transposed: Vec<Vec<f32>> = (0..n).map(|n| b.iter().map(|row| row[n]).collect()).collect();

    let mut memory = Vec::new();
    let mut header = Warpgroup { accumulate: accumulate.into(), ..Warpgroup::default() };
    if !shape.a_in_registers {
        header.a = place(&mut memory, 0, &a, half, shape.trans_a, orders[0]);
    }
    let offset = memory.len().next_multiple_of(512) as u32 * 2;
    header.swizzled = (orders[1] == Order::Swizzled).into();
    header.b = place(&mut memory, offset, &transposed, half, shape.trans_b, orders[1]);
    header.words = memory.len() as u32 / 2;
    assert!(4 * header.words <= selftest::SHARED_BYTES);

    let mut input: Vec<u32> = bytemuck::cast_slice(&[header]).to_vec();
    input.extend(memory.chunks(2).map(|pair| u32::from(pair[0]) | u32::from(pair[1]) << 16));
    if shape.a_in_registers {
        for step in 0..shape.steps {
            input.extend((0..128).flat_map(|thread| a_fragment(&a, half, thread, step)));
        }
    }
    input.extend((0..128).flat_map(|thread| accumulators(&before, thread)));
    let output = (0..128).flat_map(|thread| accumulators(&after, thread));
    Case::exact(shape.entry, shape.kernel, 128, input, output.collect())
}

/// A thread's words of `a`'s 16 columns `16 * step..` (PTX ISA, "wgmma.mma_async", A fragment).
fn a_fragment(a: &[Vec<f32>], half: Half, thread: usize, step: usize) -> [u32; 4] {
    let (warp, group, t) = (thread / 32, thread % 32 / 4, thread % 4);
    std::array::from_fn(|i| {
        let row = 16 * warp + group + if i % 2 == 0 { 0 } else { 8 };
        let column = 16 * step + 2 * t + if i < 2 { 0 } else { 8 };
        u32::from(half.bits(a[row][column])) | u32::from(half.bits(a[row][column + 1])) << 16
    })
}

/// A thread's accumulators (PTX ISA, "wgmma.mma_async", D fragment).
fn accumulators(d: &[Vec<f32>], thread: usize) -> Vec<u32> {
    let (warp, group, t) = (thread / 32, thread % 32 / 4, thread % 4);
    let element = |i: usize| {
        let row = 16 * warp + group + if i % 4 < 2 { 0 } else { 8 };
        d[row][8 * (i / 4) + 2 * t + i % 2].to_bits()
    };
    (0..d[0].len() / 2).map(element).collect()
}
