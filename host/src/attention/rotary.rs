//! Rotary position embedding of keys on their way into the cache.

use std::sync::atomic::{AtomicU64, Ordering};

use kernels_gpu::abi::AppendTarget;
use kernels_gpu::rotary::rotate;

use super::check::{check_append, check_length};
use super::{Backend, BackendError, Counters};
use crate::cache::{CacheShape, Elements, KvElement};

/// Cosines and sines of a rotary position embedding, both `[positions, head_dim / 2]`: column `i` is of
/// the angle by which dims `i` and `i + head_dim / 2` of a key turn together.
///
/// That pairing is Llama's ("rotate half"); RoFormer (arXiv 2104.09864, equation 34) pairs neighbours,
/// which is the same embedding with the dims in another order. Scaled variants (Llama 3's, YaRN's and
/// their like) are other numbers in the same tables.
#[derive(Clone, Debug, PartialEq)]
pub struct RotaryTable {
    id: TableId,
    head_dim: u32,
    cos: Vec<f32>,
    sin: Vec<f32>,
}

/// Tells tables apart without reading them: a device that has one's copy need not look. Clones are the same table.
#[derive(Clone, Copy, Debug)]
struct TableId(
    #[cfg_attr(not(feature = "cuda"), expect(dead_code, reason = "GPUs ask for it"))] u64,
);

impl TableId {
    fn next() -> Self {
        static NEXT: AtomicU64 = AtomicU64::new(0);
        Self(NEXT.fetch_add(1, Ordering::Relaxed))
    }
}

/// Tables are equal by their numbers.
impl PartialEq for TableId {
    fn eq(&self, _: &Self) -> bool {
        true
    }
}

impl RotaryTable {
    /// Its number: a table of this number has these angles.
    #[cfg(feature = "cuda")]
    pub(crate) fn id(&self) -> u64 {
        self.id.0
    }

    /// Angles `p * theta^(-2 i / head_dim)` for positions `p` below `positions` (RoFormer, section 3.2.2;
    /// there and in Llama 2 theta is 10000), computed in f64.
    ///
    /// # Errors
    /// [`BackendError::Param`] for an odd or no head dimension, or a theta that is not positive and finite.
    pub fn new(head_dim: u32, positions: u32, theta: f64) -> Result<Self, BackendError> {
        check_head_dim(head_dim)?;
        if !(theta.is_finite() && theta > 0.0) {
            return Err(BackendError::Param {
                name: "theta",
                value: theta as f32,
                expected: "positive and finite",
            });
        }
        let half = head_dim / 2;
        let frequency = |i: u32| theta.powf(-f64::from(i) / f64::from(half));
        let frequencies: Vec<f64> = (0..half).map(frequency).collect();
        Self::from_frequencies(&frequencies, positions)
    }

    /// Angles `p * frequencies[i]` for positions `p` below `positions`, computed in f64; a head has twice as many
    /// dims as there are `frequencies`. So scaled embeddings are made.
    ///
    /// # Errors
    /// [`BackendError::Param`] for no frequencies.
    pub fn from_frequencies(frequencies: &[f64], positions: u32) -> Result<Self, BackendError> {
        let head_dim = 2 * frequencies.len() as u32;
        check_head_dim(head_dim)?;
        let angles = (0..positions).flat_map(|position| {
            let angle = move |frequency: &f64| f64::from(position) * frequency;
            frequencies.iter().map(angle)
        });
        let (cos, sin) = angles.map(|angle| (angle.cos() as f32, angle.sin() as f32)).unzip();
        Ok(Self { id: TableId::next(), head_dim, cos, sin })
    }

    /// Number of positions.
    pub(crate) fn positions(&self) -> usize {
        self.cos.len() / self.row()
    }
    /// `[positions, head_dim / 2]`.
    pub fn cos(&self) -> &[f32] {
        &self.cos
    }
    /// `[positions, head_dim / 2]`.
    pub fn sin(&self) -> &[f32] {
        &self.sin
    }

    /// Rotates `rows`, `[positions, heads, head_dim]`, in place: keys, or the queries that will meet
    /// them. Arithmetic is f32, rounded once.
    ///
    /// # Errors
    /// [`BackendError::Length`] if the rows are not as many whole heads for each position,
    /// [`BackendError::Position`] for a position beyond the tables; nothing is rotated then.
    pub fn rotate<T: KvElement>(
        &self,
        positions: &[u32],
        rows: &mut [T],
    ) -> Result<(), BackendError> {
        let heads = rows.len() / (positions.len() * self.head_dim as usize).max(1);
        let width = heads * self.head_dim as usize;
        let expected = positions.len() * width;
        check_length("rows", rows.len(), expected, "[positions, heads, head_dim]")?;
        self.check_positions(positions)?;
        if width == 0 {
            return Ok(());
        }
        for (row, &position) in rows.chunks_exact_mut(width).zip(positions) {
            let (cos, sin) = self.angles(position);
            for head in row.chunks_exact_mut(self.head_dim as usize) {
                rotate_head(head, cos, sin);
            }
        }
        Ok(())
    }

    /// Cosines and sines of one position, `[head_dim / 2]` each.
    pub(crate) fn angles(&self, position: u32) -> (&[f32], &[f32]) {
        let begin = position as usize * self.row();
        let row = begin..begin + self.row();
        (&self.cos[row.clone()], &self.sin[row])
    }

    fn row(&self) -> usize {
        self.head_dim as usize / 2
    }

    fn check_positions(&self, positions: &[u32]) -> Result<(), BackendError> {
        let limit = self.positions();
        let mut all = positions.iter().enumerate();
        match all.find(|&(_, &position)| position as usize >= limit) {
            Some((index, &position)) => {
                Err(BackendError::Position { index, position, positions: limit })
            }
            None => Ok(()),
        }
    }
}

/// The rotation of one append: a position for each of its rows. A token's position is the number of
/// tokens before it on its path, its ancestors' included
/// ([`TokenForest::context_length`](crate::tree::TokenForest::context_length) less 1 for a node's last).
#[derive(Clone, Copy, Debug)]
pub struct Rotation<'a> {
    /// The embedding.
    pub table: &'a RotaryTable,
    /// `[targets]`.
    pub positions: &'a [u32],
}

impl Rotation<'_> {
    /// Whether it has a position of its table for each of `targets` targets in a cache of `shape`.
    pub(super) fn check(&self, shape: &CacheShape, targets: usize) -> Result<(), BackendError> {
        if self.table.head_dim != shape.head_dim {
            return Err(BackendError::RotaryHeadDim {
                found: self.table.head_dim,
                expected: shape.head_dim,
            });
        }
        check_length("positions", self.positions.len(), targets, "[targets]")?;
        self.table.check_positions(self.positions)
    }
}

fn check_head_dim(head_dim: u32) -> Result<(), BackendError> {
    if head_dim == 0 || !head_dim.is_multiple_of(2) {
        return Err(BackendError::Param {
            name: "head_dim of a rotary table",
            value: head_dim as f32,
            expected: "even and positive",
        });
    }
    Ok(())
}

/// [`Backend::append_rotated`] by way of [`Backend::append`]: rotates a copy of `k` on the host.
pub(super) fn append_rotated<B: Backend + ?Sized>(
    backend: &mut B,
    layer: u32,
    targets: &[AppendTarget],
    counters: Counters<'_>,
    [k, v]: [Elements<'_>; 2],
    rotation: Rotation<'_>,
) -> Result<(), BackendError> {
    check_append(backend.shape(), layer, targets, counters, [k, v], Some(rotation))?;
    fn rotated<T: KvElement>(k: &[T], rotation: Rotation<'_>) -> Result<Vec<T>, BackendError> {
        let mut rows = k.to_vec();
        rotation.table.rotate(rotation.positions, &mut rows)?;
        Ok(rows)
    }
    let mut append = |k| backend.append(layer, targets, counters, k, v);
    match k {
        Elements::F16(k) => append(Elements::F16(&rotated(k, rotation)?)),
        Elements::Bf16(k) => append(Elements::Bf16(&rotated(k, rotation)?)),
        Elements::F32(k) => append(Elements::F32(&rotated(k, rotation)?)),
        #[cfg(feature = "cuda")]
        Elements::Device(_) => Err(BackendError::NotOnHost { argument: "k" }),
    }
}

/// Rotates one head's key in place.
fn rotate_head<T: KvElement>(head: &mut [T], cos: &[f32], sin: &[f32]) {
    let (low, high) = head.split_at_mut(head.len() / 2);
    let angles = cos.iter().zip(sin);
    for ((x, y), (&cos, &sin)) in low.iter_mut().zip(high).zip(angles) {
        let [turned_x, turned_y] = rotate([x.to_f32(), y.to_f32()], cos, sin);
        (*x, *y) = (T::from_f32(turned_x), T::from_f32(turned_y));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use half::{bf16, f16};

    /// Llama's rotation written out in f64: `x * cos + rotate_half(x) * sin`.
    fn reference(head: &[f64], position: u32, theta: f64) -> Vec<f64> {
        let half = head.len() / 2;
        let turned = head[half..].iter().map(|x| -x).chain(head[..half].to_vec());
        let all = head.iter().zip(turned).enumerate();
        all.map(|(dim, (x, turned))| {
            let frequency = theta.powf(-2.0 * (dim % half) as f64 / head.len() as f64);
            let angle = f64::from(position) * frequency;
            x * angle.cos() + turned * angle.sin()
        })
        .collect()
    }

    fn agrees<T: KvElement + PartialEq>(head_dim: u32, tolerance: f64) {
        let theta = 500_000.0;
        let table = RotaryTable::new(head_dim, 1000, theta).unwrap();
        let positions = [0, 1, 17, 999];
        let width = 3 * head_dim as usize;
        let value = |i: usize| ((i * 37 % 101) as f32 - 50.0) / 25.0;
        let given: Vec<T> = (0..4 * width).map(|i| T::from_f32(value(i))).collect();
        let mut rows = given.clone();
        table.rotate(&positions, &mut rows).unwrap();
        let heads = given.chunks(head_dim as usize).zip(rows.chunks(head_dim as usize));
        for (index, (before, after)) in heads.enumerate() {
            let before: Vec<f64> = before.iter().map(|x| f64::from(x.to_f32())).collect();
            let expected = reference(&before, positions[index / 3], theta);
            for (after, expected) in after.iter().zip(expected) {
                let error = (f64::from(after.to_f32()) - expected).abs();
                assert!(error <= tolerance * expected.abs().max(0.1), "{after:?} {expected}");
            }
        }
        assert_eq!(given[..width], rows[..width], "position 0 turns by nothing");
    }

    #[test]
    fn keys_turn_as_in_double_precision() {
        for head_dim in crate::cache::HEAD_DIMS {
            agrees::<f32>(head_dim, 1e-5);
            // Half a unit in the last place of the elements, and a little for f32.
            agrees::<bf16>(head_dim, 1.01 / 256.0);
            agrees::<f16>(head_dim, 1.01 / 2048.0);
        }
    }

    #[test]
    fn the_product_of_key_and_query_depends_on_their_distance_alone() {
        let table = RotaryTable::new(64, 600, 10_000.0).unwrap();
        let product = |key_position: u32, query_position: u32| {
            let mut key: Vec<f32> = (0..64).map(|i| (i as f32 * 0.7).sin()).collect();
            let mut query: Vec<f32> = (0..64).map(|i| (i as f32 * 1.3).cos()).collect();
            table.rotate(&[key_position], &mut key).unwrap();
            table.rotate(&[query_position], &mut query).unwrap();
            key.iter().zip(query).map(|(k, q)| k * q).sum::<f32>()
        };
        assert!((product(0, 60) - product(500, 560)).abs() < 1e-3);
        assert!((product(0, 60) - product(0, 61)).abs() > 1e-2);
    }

    #[test]
    fn bad_tables_and_positions_are_named() {
        let refused = |result: Result<RotaryTable, BackendError>| result.unwrap_err().to_string();
        assert_eq!(
            refused(RotaryTable::new(65, 1, 1e4)),
            "head_dim of a rotary table is 65; it must be even and positive"
        );
        assert_eq!(
            refused(RotaryTable::new(64, 1, -1.0)),
            "theta is -1; it must be positive and finite"
        );
        let table = RotaryTable::new(4, 10, 1e4).unwrap();
        let mut rows = [1.0_f32; 8];
        let error = table.rotate(&[1, 10], &mut rows).unwrap_err();
        assert_eq!(error.to_string(), "positions[1] is 10, the rotary table has 10 positions");
        assert!(table.rotate(&[1, 2], &mut rows[..7]).is_err());
        assert_eq!(rows, [1.0; 8]);
    }
}
