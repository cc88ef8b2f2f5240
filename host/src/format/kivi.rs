//! Groups of tokens of one channel: KIVI's K. Its V is [`super::int4`]'s.
//!
//! ```text
//! codes   [8 token groups][head_dim / 8][8 tokens][8 dims], `bits` bits each, eight dims as [`place`](super::pack::place) says
//! scales  [64 / group][head_dim], of the cache's element type
//! zeros   as scales
//! ```

use kernels_gpu::abi::PAGE_TOKENS;
use kernels_gpu::layout::{CORE, element_offset};

use super::half::Half;
use super::pack::{code_at, element};
use super::{FormatError, PageShape, int4, pack};

const SIDE: usize = CORE as usize;

/// Codes of `bits` bits; every `group` tokens of a channel have a scale and a zero.
#[derive(Clone, Copy, Debug)]
pub(super) struct ChannelGroups {
    pub(super) bits: u32,
    pub(super) group: u32,
}

pub(super) fn check(bits: u32, group: u32, head_dim: u32) -> Result<(), FormatError> {
    let refuse = |name, value, expected: &str| {
        let expected = expected.to_owned();
        Err(FormatError::OutOfRange { name, value, expected })
    };
    match (bits, group) {
        (2 | 4, 32) => int4::check(group, head_dim),
        (2 | 4, _) => refuse("group", group, "32"),
        _ => refuse("bits", bits, "2 or 4"),
    }
}

impl ChannelGroups {
    fn code_bytes(&self, shape: PageShape) -> usize {
        shape.half_elements() * self.bits as usize / 8
    }

    fn groups(&self, shape: PageShape) -> usize {
        (PAGE_TOKENS / self.group * shape.head_dim) as usize
    }
}

impl Half for ChannelGroups {
    fn bytes(&self, shape: PageShape) -> usize {
        self.code_bytes(shape) + 2 * self.groups(shape) * shape.dtype.bytes()
    }

    fn encode(&self, shape: PageShape, values: &[f32], _channels: &[u8], bytes: &mut [u8]) {
        let (codes, params) = bytes.split_at_mut(self.code_bytes(shape));
        let firsts = (0..PAGE_TOKENS).step_by(self.group as usize);
        let groups = firsts.flat_map(|first| {
            (0..shape.head_dim).map(move |dim| {
                let tokens = first..first + self.group;
                tokens.map(move |token| element_offset(shape.head_dim, token, dim) as usize)
            })
        });
        pack::quantise((shape.dtype, self.bits), values, groups, codes, params);
    }

    fn decode(&self, shape: PageShape, bytes: &[u8], values: &mut [f32]) {
        let (codes, params) = bytes.split_at(self.code_bytes(shape));
        let groups = self.groups(shape);
        let affine = pack::affine(shape.dtype, params);
        let (scales, zeros) = affine.split_at(groups);
        let head_dim = shape.head_dim as usize;
        let chunks = head_dim / SIDE;
        for (row, values) in values.chunks_exact_mut(SIDE).enumerate() {
            let core = row / SIDE;
            let token_group = core / chunks * SIDE / self.group as usize;
            let at = token_group * head_dim + core % chunks * SIDE;
            let params = scales[at..at + SIDE].iter().zip(&zeros[at..at + SIDE]);
            for (dim, (value, (&scale, &zero))) in values.iter_mut().zip(params).enumerate() {
                *value = element(scale, zero, code_at(codes, self.bits, SIDE * row + dim));
            }
        }
    }
}
