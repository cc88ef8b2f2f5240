//! Rotation with append, against the append of keys and values by themselves and the host's rotation of queries.

use deft::attention::{Backend, Counters, RotaryTable, Rotation};
use deft::cache::CacheShape;
use deft_tests::emulated::Emulated;
use deft_tests::reference;
use deft_tests::transfers::Inspect;
use device::emulator::Memory;
use half::{bf16, f16};
use kernels_gpu::abi::{APPEND_LIVE, NONE};
use kernels_gpu::model::{self, Qkv};
use rand::rngs::SmallRng;
use rand::{RngExt, SeedableRng};

use super::{Sixteen, chunks, constant};

const COUNTERS: Counters<'static> =
    Counters { lengths: &[9, 70, 0], tail_pages: &[0, 2, 1], directory: None, residues: None };

/// Rows of a fused projection, and where they go.
struct Case<T> {
    shape: CacheShape,
    q_heads: usize,
    qkv: Vec<T>,
    targets: Vec<u32>,
    positions: Vec<u32>,
    table: RotaryTable,
    /// `[q_heads + 2 kv_heads, head_dim]` and `[2, head_dim]`.
    bias: Option<Vec<f32>>,
    norms: Option<Vec<f32>>,
    /// Without tables.
    still: bool,
}

const EPS: f32 = 0.01;

impl<T: Sixteen> Case<T> {
    fn new(q_heads: usize, kv_heads: u32, head_dim: u32, count: usize) -> Self {
        let mut rng = SmallRng::seed_from_u64(u64::from(head_dim) + count as u64);
        let heads = q_heads + 2 * kv_heads as usize;
        let mut targets: Vec<u32> = (0..count as u32).map(|i| (i * 37 + 5) % 128).collect();
        let mut positions: Vec<u32> = (0..count).map(|_| rng.random_range(1..300)).collect();
        positions[0] = 299;
        if count > 2 {
            // A growing node, no node, and a counter that counts no token: the last two have no position.
            targets[count - 1] = APPEND_LIVE | 1;
            targets[1] = NONE;
            targets[2] = APPEND_LIVE | 2;
            positions[1] = u32::MAX;
            positions[2] = u32::MAX;
        }
        Self {
            shape: CacheShape { layers: 1, kv_heads, head_dim, dtype: T::DTYPE, pages: 3 },
            q_heads,
            qkv: super::random(&mut rng, count * heads * head_dim as usize, 4.0),
            targets,
            positions,
            table: RotaryTable::new(head_dim, 300, 10_000.0).unwrap(),
            bias: None,
            norms: None,
            still: false,
        }
    }

    /// The same with biases, norms of heads, or both.
    fn with(mut self, biased: bool, normed: bool) -> Self {
        let mut rng = SmallRng::seed_from_u64(9);
        let width = self.qkv.len() / self.targets.len();
        self.bias = biased.then(|| super::uniform(&mut rng, width, 2.0));
        let gains = 2 * self.shape.head_dim as usize;
        self.norms = normed.then(|| super::uniform(&mut rng, gains, 3.0));
        self
    }

    /// What remains to be turned and kept, in f64 until it is rounded after each step.
    fn prepared(&self) -> Self {
        let d = self.shape.head_dim as usize;
        let width = self.qkv.len() / self.targets.len();
        let keys = (self.q_heads + self.shape.kv_heads as usize) * d;
        let mut qkv = self.qkv.clone();
        for row in qkv.chunks_exact_mut(width) {
            if let Some(bias) = &self.bias {
                row.iter_mut().zip(bias).for_each(|(x, b)| *x = T::from_f32(x.to_f32() + b));
            }
            if let Some(norms) = &self.norms {
                for (head, x) in row[..keys].chunks_exact_mut(d).enumerate() {
                    let gain = if head < self.q_heads { &norms[..d] } else { &norms[d..] };
                    let values: Vec<f32> = x.iter().map(|x| x.to_f32()).collect();
                    let normed = reference::rms_norm(&values, gain, EPS);
                    x.iter_mut().zip(normed).for_each(|(x, y)| *x = T::from_f32(y as f32));
                }
            }
        }
        Self {
            shape: self.shape,
            q_heads: self.q_heads,
            qkv,
            targets: self.targets.clone(),
            positions: self.positions.clone(),
            table: self.table.clone(),
            bias: None,
            norms: None,
            still: false,
        }
    }

    fn is_written(&self, row: usize) -> bool {
        let target = self.targets[row];
        target != NONE && target != APPEND_LIVE | 2
    }

    /// Queries (poison in rows passed over) and the pool, by the kernel.
    fn run<const D: u32>(&self) -> (Vec<u16>, Vec<u16>) {
        let (count, kv_heads) = (self.targets.len(), self.shape.kv_heads);
        let d = D as usize;
        let mut memory = Memory::new();
        let qkv = constant(&mut memory, "qkv", &self.qkv);
        let q = memory.unwritten::<u16>("q", count * self.q_heads * d);
        let pool = memory.buffer("pool", &vec![0_u16; self.shape.plane_elements() as usize]);
        let targets = memory.constant("targets", &self.targets);
        let lengths = memory.constant("lengths", COUNTERS.lengths);
        let tails = memory.constant("tail pages", COUNTERS.tail_pages);
        let positions = memory.constant("positions", &self.positions);
        let cos = memory.constant("cos", self.table.cos());
        let sin = memory.constant("sin", self.table.sin());
        let mut some = |name, values: &Option<Vec<f32>>| {
            values.as_ref().map(|values| memory.constant(name, values))
        };
        let (bias, norms) = (some("bias", &self.bias), some("norms", &self.norms));
        chunks(count, (self.q_heads + 2 * kv_heads as usize) * d / 2)
            .run(&mut memory, || {
                let arguments = Qkv {
                    qkv: qkv.as_ptr(),
                    bias: bias.map_or(std::ptr::null(), |bias| bias.as_ptr()),
                    norms: norms.map_or(std::ptr::null(), |norms| norms.as_ptr()),
                    q: q.as_mut_ptr(),
                    pool: pool.as_mut_ptr(),
                    targets: targets.as_ptr(),
                    lengths: lengths.as_ptr(),
                    tail_pages: tails.as_ptr(),
                    positions: positions.as_ptr(),
                    cos: if self.still { std::ptr::null() } else { cos.as_ptr() },
                    sin: if self.still { std::ptr::null() } else { sin.as_ptr() },
                    count: count as u32,
                    q_heads: self.q_heads as u32,
                    kv_heads,
                    eps: EPS,
                };
                // SAFETY: the emulator checks every access.
                unsafe { model::rotate_append::<T::Device, D>(arguments) }
            })
            .unwrap();
        (memory.read_poisoned(q), memory.read(pool).unwrap())
    }

    /// The same by the host, and by the append of rows that are written.
    fn expected(&self) -> (Vec<u16>, Vec<u16>) {
        let (d, kv_heads) = (self.shape.head_dim as usize, self.shape.kv_heads as usize);
        let (q_width, kv_width) = (self.q_heads * d, kv_heads * d);
        let mut q = vec![u16::MAX; self.targets.len() * q_width];
        let (mut k, mut v) = (Vec::new(), Vec::new());
        let (mut targets, mut positions) = (Vec::new(), Vec::new());
        for (row, fused) in self.qkv.chunks_exact(q_width + 2 * kv_width).enumerate() {
            if !self.is_written(row) {
                continue;
            }
            let mut queries = fused[..q_width].to_vec();
            let position = self.positions[row];
            self.table.rotate(&[position], &mut queries).unwrap();
            q[row * q_width..][..q_width].copy_from_slice(bytemuck::cast_slice(&queries));
            k.extend_from_slice(&fused[q_width..][..kv_width]);
            v.extend_from_slice(&fused[q_width + kv_width..]);
            targets.push(self.targets[row]);
            positions.push(position);
        }
        let mut backend = Emulated::new(self.shape, 1);
        let rotation = Rotation { table: &self.table, positions: &positions };
        let (k, v) = (T::elements(&k), T::elements(&v));
        backend.append_rotated(0, &targets, COUNTERS, k, v, rotation).unwrap();
        (q, backend.pool())
    }
}

fn compare<T: Sixteen, const D: u32>() {
    for (q_heads, kv_heads) in [(1, 1), (9, 3), (8, 2)] {
        for count in [1, 3, 17] {
            let mut case = Case::<T>::new(q_heads, kv_heads, D, count);
            // The last dim of the last row's V is not kept as it is.
            *case.qkv.last_mut().unwrap() = T::from_f32(f32::INFINITY);
            let (q, pool) = case.run::<D>();
            let (expected_q, expected_pool) = case.expected();
            let context = format!("{count} rows, {q_heads} + 2 * {kv_heads} heads of {D}");
            assert!(q == expected_q, "queries: {context}");
            assert!(pool == expected_pool, "pages: {context}");
        }
    }
}

#[test]
fn one_launch_rotates_queries_and_appends_as_append_rotated_does() {
    compare::<bf16, 64>();
    compare::<f16, 64>();
    compare::<bf16, 128>();
    compare::<f16, 256>();
}

/// The largest difference of elements that are not the same bits, relative to the largest element.
fn largest_difference<T: Sixteen>(found: &[u16], expected: &[u16]) -> f64 {
    let (differing, right): (Vec<_>, Vec<_>) =
        found.iter().copied().zip(expected.iter().copied()).filter(|(a, b)| a != b).unzip();
    let differences = super::values::<T>(&differing).into_iter().zip(super::values::<T>(&right));
    // Of poison or NaN there is no difference.
    let largest = differences.map(|(a, b)| if (a - b).is_nan() { f64::MAX } else { (a - b).abs() });
    let scale = super::values::<T>(expected).into_iter().map(f64::abs);
    largest.fold(0.0, f64::max) / scale.filter(|x| x.is_finite()).fold(0.0, f64::max)
}

fn prepares<T: Sixteen, const D: u32>(biased: bool, normed: bool) {
    for (q_heads, kv_heads) in [(1, 1), (9, 3)] {
        for count in [1, 17] {
            let case = Case::<T>::new(q_heads, kv_heads, D, count).with(biased, normed);
            let (q, pool) = case.run::<D>();
            let (expected_q, expected_pool) = case.prepared().expected();
            // A sum is rounded as the host rounds it; after a norm the last bit may be another, and is turned.
            let limit = if normed { 2.0 * T::ROUNDING } else { 0.0 };
            for (found, expected) in [(q, expected_q), (pool, expected_pool)] {
                let difference = largest_difference::<T>(&found, &expected);
                assert!(
                    difference <= limit,
                    "{count} rows, {q_heads}/{kv_heads} heads of {D}: {difference}"
                );
            }
        }
    }
}

#[test]
fn biases_are_added_and_heads_normed_before_they_turn() {
    prepares::<bf16, 64>(true, false);
    prepares::<f16, 64>(false, true);
    prepares::<bf16, 128>(false, true);
    prepares::<f16, 128>(true, true);
    prepares::<bf16, 256>(true, true);
}

#[test]
fn without_tables_nothing_turns() {
    let case = Case::<f16>::new(9, 3, 64, 17);
    let still = Case { still: true, ..case.prepared() };
    let zero = Case { positions: vec![0; 17], ..case };
    let (found, expected) = (still.run::<64>(), zero.run::<64>());
    assert!(found == expected);
}

#[test]
fn a_bias_that_overflows_v_is_kept_as_any_v_that_is_not_finite() {
    let mut case = Case::<f16>::new(2, 1, 64, 3).with(true, false);
    let (width, values) = (4 * 64, 3 * 64);
    case.qkv[values + 5] = f16::MAX;
    case.bias = Some((0..width).map(|at| if at == values + 5 { 1e4 } else { 0.0 }).collect());
    assert!(case.run::<64>() == case.prepared().expected());
}
