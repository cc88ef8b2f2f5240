//! ThinK: the most important channels of keys.
//!
//! ```text
//! channels  [keep] u8, ascending
//! K         64 tokens of the kept channels, as a page of head dimension `keep`
//! ```
//!
//! Every page has its channels, so it can be read without its node. The pages of a node have the same ones.

use kernels_gpu::abi::PAGE_TOKENS;
use kernels_gpu::layout::element_offset;

use super::half::Half;
use super::{FormatError, PageShape, kivi};

/// How a thin page stores the channels that its keys keep, and V.
#[non_exhaustive]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
#[cfg_attr(feature = "serde", serde(rename_all = "lowercase"))]
pub enum ThinKeys {
    /// In the cache's element type.
    Native,
    /// As [`KvFormat::Kivi`](super::KvFormat::Kivi) of 4 bits.
    Kivi4,
    /// As [`KvFormat::Kivi`](super::KvFormat::Kivi) of 2 bits.
    Kivi2,
}

impl ThinKeys {
    /// Bits of a code; 0 for none.
    pub(super) const fn bits(self) -> u32 {
        match self {
            Self::Native => 0,
            Self::Kivi4 => 4,
            Self::Kivi2 => 2,
        }
    }

    pub(super) const fn from_bits(bits: u32) -> Option<Self> {
        Some(match bits {
            0 => Self::Native,
            4 => Self::Kivi4,
            2 => Self::Kivi2,
            _ => return None,
        })
    }

    /// Bits and group of the codes.
    pub(super) fn groups(self) -> Option<(u32, u32)> {
        (self != Self::Native).then(|| (self.bits(), 32))
    }
}

impl std::fmt::Display for ThinKeys {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Native => "native",
            Self::Kivi4 => "kivi4",
            Self::Kivi2 => "kivi2",
        })
    }
}

pub(super) fn check(keep: u32, keys: ThinKeys, head_dim: u32) -> Result<(), FormatError> {
    if keep == 0 || !keep.is_multiple_of(16) || keep > head_dim {
        return Err(FormatError::OutOfRange {
            name: "keep",
            value: keep,
            expected: format!("a multiple of 16, at most head_dim, {head_dim}"),
        });
    }
    match keys.groups() {
        None => Ok(()),
        Some((bits, group)) => kivi::check(bits, group, head_dim),
    }
}

/// The `keep` channels of the highest scores, ascending; of equal scores the lower channel.
///
/// ThinK's score of a channel is the sum of squares of the last queries times that of the keys: the squared norm of
/// their outer product.
pub fn choose_channels(scores: &[f64], keep: u32) -> Vec<u8> {
    let mut order: Vec<usize> = (0..scores.len()).collect();
    order.sort_by(|&a, &b| scores[b].total_cmp(&scores[a]));
    let mut kept: Vec<u8> = order.iter().take(keep as usize).map(|&i| i as u8).collect();
    kept.sort_unstable();
    kept
}

/// K with `keep` channels, stored as `kept`.
#[derive(Clone, Copy, Debug)]
pub(super) struct Thin<H> {
    pub(super) keep: u32,
    pub(super) kept: H,
}

impl<H> Thin<H> {
    fn list_bytes(&self) -> usize {
        self.keep.next_multiple_of(16) as usize
    }

    fn inner(&self, shape: PageShape) -> PageShape {
        let head_dim = self.keep;
        PageShape { head_dim, ..shape }
    }

    /// Where a kept channel lies in a thin page, and in a whole one.
    fn places(&self, shape: PageShape, channels: &[u8]) -> impl Iterator<Item = (usize, usize)> {
        let (keep, head_dim) = (self.keep, shape.head_dim);
        (0..PAGE_TOKENS).flat_map(move |token| {
            (0..).zip(channels).map(move |(thin, &whole)| {
                let thin = element_offset(keep, token, thin) as usize;
                (thin, element_offset(head_dim, token, u32::from(whole)) as usize)
            })
        })
    }
}

impl<H: Half> Half for Thin<H> {
    fn bytes(&self, shape: PageShape) -> usize {
        self.list_bytes() + self.kept.bytes(self.inner(shape))
    }

    fn encode(&self, shape: PageShape, values: &[f32], channels: &[u8], bytes: &mut [u8]) {
        let inner = self.inner(shape);
        let mut kept = vec![0.0; inner.half_elements()];
        for (thin, whole) in self.places(shape, channels) {
            kept[thin] = values[whole];
        }
        let (list, bytes) = bytes.split_at_mut(self.list_bytes());
        list[..channels.len()].copy_from_slice(channels);
        self.kept.encode(inner, &kept, &[], bytes);
    }

    fn decode(&self, shape: PageShape, bytes: &[u8], values: &mut [f32]) {
        let inner = self.inner(shape);
        let (list, bytes) = bytes.split_at(self.list_bytes());
        let mut kept = vec![0.0; inner.half_elements()];
        self.kept.decode(inner, bytes, &mut kept);
        values.fill(0.0);
        for (thin, whole) in self.places(shape, &list[..self.keep as usize]) {
            values[whole] = kept[thin];
        }
    }
}
