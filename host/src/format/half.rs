//! One half of a page, K or V: what a format is made of.

use super::PageShape;
use super::pack::{get, put};

/// How 64 tokens of K, or of V, are stored.
///
/// Values are in the order of a native page, `[8 token groups][head_dim / 8][8 tokens][8 dims]`. They are finite, and
/// slices are as long as they have to be.
pub(super) trait Half {
    /// Bytes stored, a multiple of 16.
    fn bytes(&self, shape: PageShape) -> usize;
    /// Stores `values`; `channels` are those kept by a format that chooses.
    fn encode(&self, shape: PageShape, values: &[f32], channels: &[u8], bytes: &mut [u8]);
    /// Reads all values.
    fn decode(&self, shape: PageShape, bytes: &[u8], values: &mut [f32]);
}

/// Elements as they are, in the cache's type.
#[derive(Clone, Copy, Debug)]
pub(super) struct Raw;

impl Half for Raw {
    fn bytes(&self, shape: PageShape) -> usize {
        shape.half_elements() * shape.dtype.bytes()
    }

    fn encode(&self, shape: PageShape, values: &[f32], _channels: &[u8], bytes: &mut [u8]) {
        put(shape.dtype, values.iter().copied(), bytes);
    }

    fn decode(&self, shape: PageShape, bytes: &[u8], values: &mut [f32]) {
        get(shape.dtype, bytes, values);
    }
}
