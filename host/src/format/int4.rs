//! Groups of channels of one token: Int4's K and V, and KIVI's V.
//!
//! ```text
//! codes   [8 token groups][head_dim / 8][8 tokens][8 dims], `bits` bits each, eight dims as [`place`](super::pack::place) says
//! scales  [64 tokens][head_dim / group], of the cache's element type
//! zeros   as scales
//! ```

use kernels_gpu::abi::PAGE_TOKENS;
use kernels_gpu::layout::{CORE, element_offset};

use super::half::Half;
use super::pack::{code_at, element};
use super::{FormatError, PageShape, pack};

const SIDE: usize = CORE as usize;

/// Codes of `bits` bits; every `group` channels of a token have a scale and a zero.
#[derive(Clone, Copy, Debug)]
pub(super) struct TokenGroups {
    pub(super) bits: u32,
    pub(super) group: u32,
}

pub(super) fn check(group: u32, head_dim: u32) -> Result<(), FormatError> {
    if group > 0 && group.is_multiple_of(CORE) && head_dim.is_multiple_of(group) {
        return Ok(());
    }
    Err(FormatError::OutOfRange {
        name: "group",
        value: group,
        expected: format!("a multiple of {CORE} that divides head_dim, {head_dim}"),
    })
}

impl TokenGroups {
    fn code_bytes(&self, shape: PageShape) -> usize {
        shape.half_elements() * self.bits as usize / 8
    }

    fn groups(&self, shape: PageShape) -> usize {
        (shape.head_dim / self.group * PAGE_TOKENS) as usize
    }
}

impl Half for TokenGroups {
    fn bytes(&self, shape: PageShape) -> usize {
        self.code_bytes(shape) + 2 * self.groups(shape) * shape.dtype.bytes()
    }

    fn encode(&self, shape: PageShape, values: &[f32], _channels: &[u8], bytes: &mut [u8]) {
        let (codes, params) = bytes.split_at_mut(self.code_bytes(shape));
        let firsts = (0..shape.head_dim).step_by(self.group as usize);
        let groups = (0..PAGE_TOKENS).flat_map(|token| {
            firsts.clone().map(move |first| {
                let dims = first..first + self.group;
                dims.map(move |dim| element_offset(shape.head_dim, token, dim) as usize)
            })
        });
        pack::quantise((shape.dtype, self.bits), values, groups, codes, params);
    }

    fn decode(&self, shape: PageShape, bytes: &[u8], values: &mut [f32]) {
        let (codes, params) = bytes.split_at(self.code_bytes(shape));
        let groups = self.groups(shape);
        let affine = pack::affine(shape.dtype, params);
        let (scales, zeros) = affine.split_at(groups);
        let chunks = shape.head_dim as usize / SIDE;
        for (row, values) in values.chunks_exact_mut(SIDE).enumerate() {
            let (core, token) = (row / SIDE, row % SIDE);
            let token = core / chunks * SIDE + token;
            let group = core % chunks * SIDE / self.group as usize;
            let at = token * (groups / PAGE_TOKENS as usize) + group;
            for (dim, value) in values.iter_mut().enumerate() {
                *value =
                    element(scales[at], zeros[at], code_at(codes, self.bits, SIDE * row + dim));
            }
        }
    }
}
