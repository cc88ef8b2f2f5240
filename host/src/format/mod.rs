#![doc = include_str!("README.md")]

mod error;
mod fp8;
mod half;
mod int4;
mod kivi;
mod pack;
mod thin;

pub use self::error::FormatError;
pub use self::fp8::{Fp8Scale, e4m3_to_f32, f32_to_e4m3};
pub use self::thin::{ThinKeys, choose_channels};
pub use crate::cache::SLAB_PAGES;

use self::half::{Half, Raw};
use crate::cache::{CacheShape, DType, SlabClass};
use kernels_gpu::abi::PAGE_TOKENS;
use kernels_gpu::layout::{CORE, half_page_elements};

/// How K and V of a page are stored.
///
/// New tokens are always written as [`KvFormat::Native`]. [`TreeCache::seal_as`](crate::TreeCache::seal_as) rewrites
/// full pages of a node in another format, from which attention reads them.
#[non_exhaustive]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
#[cfg_attr(feature = "serde", serde(rename_all = "snake_case"))]
pub enum KvFormat {
    /// The cache's own element type.
    #[default]
    Native,
    /// 8 bits an element: 4 of exponent, 3 of mantissa (OCP 8-bit floating point, E4M3).
    Fp8 {
        /// What has a scale of its own.
        scale: Fp8Scale,
    },
    /// 4 bits an element. Groups of channels of one token have a scale and a zero.
    Int4 {
        /// Channels of a group: a multiple of 8 that divides the head dimension.
        group: u32,
    },
    /// KIVI ([arXiv 2402.02750](https://arxiv.org/abs/2402.02750)): groups of tokens of one channel in K, groups of
    /// channels of one token in V.
    Kivi {
        /// Bits of a code: 4 or 2.
        bits: u32,
        /// Tokens, or channels, of a group: 32.
        group: u32,
    },
    /// ThinK ([arXiv 2407.21018](https://arxiv.org/abs/2407.21018)): keys keep their most important channels, the
    /// others are 0.
    Thin {
        /// Channels that keys keep: a multiple of 16, at most the head dimension.
        keep: u32,
        /// How the kept channels of K, and V, are stored.
        keys: ThinKeys,
    },
    /// The cache's own element type, of fewer rows than the node has tokens, a different number for each layer and KV
    /// head: what [`TreeCache::compact_node`](crate::TreeCache::compact_node) makes. Not a format to seal nodes in.
    Compacted,
}

/// Which kernels read a format's pages, and what they are told of them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FormatKernel {
    /// The part of a kernel's name: `attend_<family>_<element type>_d<head dimension>`.
    pub family: &'static str,
    /// Bytes of K in a page of one KV head, and of V.
    pub half_bytes: u32,
    /// Pages that a slab holds.
    pub per_slab: u32,
    /// The format, as the kernels know it: its [`KvFormat::code`].
    pub format: u32,
}

/// What a page holds, beside its format: 64 tokens of one KV head.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct PageShape {
    /// Elements of a head's key and value: a multiple of 8.
    pub head_dim: u32,
    /// The cache's element type, in which scales and zeros are stored as well.
    pub dtype: DType,
}

impl CacheShape {
    /// The shape of a page of one KV head.
    pub const fn page(&self) -> PageShape {
        let (head_dim, dtype) = (self.head_dim, self.dtype);
        PageShape { head_dim, dtype }
    }
}

impl PageShape {
    /// Elements of K, or of V.
    pub const fn half_elements(self) -> usize {
        half_page_elements(self.head_dim) as usize
    }

    /// Bytes of the page in the native format.
    pub const fn native_bytes(self) -> usize {
        2 * self.half_elements() * self.dtype.bytes()
    }
}

impl KvFormat {
    /// Whether the format fits pages of this shape.
    ///
    /// # Errors
    /// [`FormatError`], naming the number that is out of range.
    pub fn check(self, shape: PageShape) -> Result<(), FormatError> {
        let head_dim = shape.head_dim;
        match self {
            Self::Native | Self::Compacted | Self::Fp8 { .. } => Ok(()),
            Self::Int4 { group } => int4::check(group, head_dim),
            Self::Kivi { bits, group } => kivi::check(bits, group, head_dim),
            Self::Thin { keep, keys } => thin::check(keep, keys, head_dim),
        }
    }

    /// Bytes of a page of one layer and KV head, of a shape that passes [`KvFormat::check`]: K's, then V's, both
    /// multiples of 16.
    pub fn page_bytes(self, shape: PageShape) -> usize {
        self.halves(|k, v| k.bytes(shape) + v.bytes(shape))
    }

    /// Pages that a slab of [`SLAB_PAGES`] native pages holds.
    pub fn pages_per_slab(self, shape: PageShape) -> u32 {
        (SLAB_PAGES as usize * shape.native_bytes() / self.page_bytes(shape)) as u32
    }

    /// The kernels that read its pages on a GPU; `None` if there are none.
    pub fn kernel(self, shape: PageShape) -> Option<FormatKernel> {
        let family = match self {
            Self::Fp8 { .. } | Self::Int4 { .. } | Self::Kivi { .. } => "coded",
            Self::Compacted => "compacted",
            Self::Native | Self::Thin { .. } => return None,
        };
        let half_bytes = self.page_bytes(shape) as u32 / 2;
        let (per_slab, format) = (self.pages_per_slab(shape), self.code());
        Some(FormatKernel { family, half_bytes, per_slab, format })
    }

    /// Whether what it makes of an element does not depend on which dims lie beside it.
    #[cfg(feature = "cuda")]
    pub(crate) const fn is_by_element(self) -> bool {
        matches!(self, Self::Native | Self::Fp8 { .. } | Self::Compacted)
    }

    /// Its pages as a pool counts them.
    pub(crate) fn slab_class(self, shape: PageShape) -> SlabClass {
        let (key, per_slab) = (self.code(), self.pages_per_slab(shape));
        SlabClass { key, per_slab }
    }

    /// Channels of keys that a page keeps, if those are chosen.
    pub const fn kept_channels(self) -> Option<u32> {
        match self {
            Self::Thin { keep, .. } => Some(keep),
            _ => None,
        }
    }

    /// Writes a page. `k` and `v` are 64 tokens in the order of a native page
    /// ([`element_offset`](kernels_gpu::layout::element_offset)); `channels` the ones to keep, ascending, for a format
    /// that has [`KvFormat::kept_channels`].
    ///
    /// # Errors
    /// [`FormatError::Value`]; `page` is then as it was.
    ///
    /// # Panics
    /// If a slice is not as long as `shape` says, or `channels` not as many as are kept.
    pub fn encode(
        self,
        shape: PageShape,
        [k, v]: [&[f32]; 2],
        channels: &[u8],
        page: &mut [u8],
    ) -> Result<(), FormatError> {
        assert_eq!(channels.len() as u32, self.kept_channels().unwrap_or(0));
        let most = self.largest(shape.dtype);
        check_values(shape, "k", k, most)?;
        check_values(shape, "v", v, most)?;
        self.halves(|of_k, of_v| {
            let (page_k, page_v) = page.split_at_mut(of_k.bytes(shape));
            of_k.encode(shape, k, channels, page_k);
            of_v.encode(shape, v, channels, page_v);
        });
        Ok(())
    }

    /// Reads a page as [`KvFormat::encode`] was given it, as far as the format can tell: each element is the f32
    /// nearest to what the codes say.
    ///
    /// # Panics
    /// If a slice is not as long as `shape` says.
    pub fn decode(self, shape: PageShape, page: &[u8], [k, v]: [&mut [f32]; 2]) {
        self.halves(|of_k, of_v| {
            let (page_k, page_v) = page.split_at(of_k.bytes(shape));
            of_k.decode(shape, page_k, k);
            of_v.decode(shape, page_v, v);
        });
    }

    /// The channels that a page of this format keeps; none if none were chosen.
    pub fn channels(self, page: &[u8]) -> &[u8] {
        &page[..self.kept_channels().unwrap_or(0) as usize]
    }

    /// The largest magnitude that can be stored.
    fn largest(self, dtype: DType) -> f32 {
        match (self, dtype) {
            // Half of the range, so that the range of a group is a number.
            (_, DType::F16) => ::half::f16::MAX.to_f32() / 2.0,
            // Kernels multiply with 2^112 times the largest element of a page.
            (Self::Fp8 { .. }, DType::Bf16) => 65_280.0,
            _ => f32::MAX / 2.0,
        }
    }

    /// How K and how V is stored.
    fn halves<R>(self, run: impl FnOnce(&dyn Half, &dyn Half) -> R) -> R {
        match self {
            Self::Native | Self::Compacted => run(&Raw, &Raw),
            Self::Fp8 { scale } => run(&scale, &scale),
            Self::Int4 { group } => {
                let half = int4::TokenGroups { bits: 4, group };
                run(&half, &half)
            }
            Self::Kivi { bits, group } => {
                run(&kivi::ChannelGroups { bits, group }, &int4::TokenGroups { bits, group })
            }
            Self::Thin { keep, keys } => match keys.groups() {
                None => run(&thin::Thin { keep, kept: Raw }, &Raw),
                Some((bits, group)) => {
                    let kept = kivi::ChannelGroups { bits, group };
                    let v = int4::TokenGroups { bits, group };
                    run(&thin::Thin { keep, kept }, &v)
                }
            },
        }
    }

    /// The format as a word of a plan; 0 for [`KvFormat::Native`]: kind, then bits, group and kept channels from bit
    /// 4, 8 and 20 on.
    pub const fn code(self) -> u32 {
        match self {
            Self::Native => 0,
            Self::Fp8 { scale: Fp8Scale::Head } => 1,
            Self::Fp8 { scale: Fp8Scale::TokenHead } => 2,
            Self::Int4 { group } => 3 | group << 8,
            Self::Kivi { bits, group } => 4 | bits << 4 | group << 8,
            Self::Compacted => 6,
            Self::Thin { keep, keys } => 5 | keys.bits() << 4 | keep << 20,
        }
    }

    /// The format of a [`KvFormat::code`]; `None` for a word that is none.
    pub const fn from_code(code: u32) -> Option<Self> {
        let (bits, group, keep) = (code >> 4 & 0xf, code >> 8 & 0xfff, code >> 20);
        let format = match code & 0xf {
            0 => Self::Native,
            1 => Self::Fp8 { scale: Fp8Scale::Head },
            2 => Self::Fp8 { scale: Fp8Scale::TokenHead },
            3 => Self::Int4 { group },
            4 => Self::Kivi { bits, group },
            5 => match ThinKeys::from_bits(bits) {
                Some(keys) => Self::Thin { keep, keys },
                None => return None,
            },
            6 => Self::Compacted,
            _ => return None,
        };
        if format.code() == code { Some(format) } else { None }
    }
}

impl std::fmt::Display for KvFormat {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Native => f.write_str("native"),
            Self::Compacted => f.write_str("compacted"),
            Self::Fp8 { scale: Fp8Scale::Head } => f.write_str("fp8"),
            Self::Fp8 { scale: Fp8Scale::TokenHead } => f.write_str("fp8-token"),
            Self::Int4 { group } => write!(f, "int4-g{group}"),
            Self::Kivi { bits, group: 32 } => write!(f, "kivi{bits}"),
            Self::Kivi { bits, group } => write!(f, "kivi{bits}-g{group}"),
            Self::Thin { keep, keys } => write!(f, "{keys}-keep{keep}"),
        }
    }
}

impl std::str::FromStr for KvFormat {
    type Err = FormatError;

    /// Reads the names that [`KvFormat`] is written as: `native`, `fp8`, `fp8-token`, `int4-g64`, `kivi4`, `kivi2`,
    /// `native-keep80`, `kivi4-keep64`.
    fn from_str(name: &str) -> Result<Self, FormatError> {
        let unknown = || FormatError::Name { name: name.into() };
        let (base, keep) = match name.split_once("-keep") {
            Some((base, keep)) => (base, Some(keep.parse().map_err(|_| unknown())?)),
            None => (name, None),
        };
        let format = match (base, base.strip_prefix("int4-g")) {
            ("native", _) => Self::Native,
            ("fp8", _) => Self::Fp8 { scale: Fp8Scale::Head },
            ("fp8-token", _) => Self::Fp8 { scale: Fp8Scale::TokenHead },
            ("kivi4", _) => Self::Kivi { bits: 4, group: 32 },
            ("kivi2", _) => Self::Kivi { bits: 2, group: 32 },
            (_, Some(group)) => Self::Int4 { group: group.parse().map_err(|_| unknown())? },
            _ => return Err(unknown()),
        };
        match (keep, format) {
            (None, format) => Ok(format),
            (Some(keep), Self::Native) => Ok(Self::Thin { keep, keys: ThinKeys::Native }),
            (Some(keep), Self::Kivi { bits, .. }) => {
                ThinKeys::from_bits(bits).map(|keys| Self::Thin { keep, keys }).ok_or_else(unknown)
            }
            _ => Err(unknown()),
        }
    }
}

/// Finds what is not a number, or beyond `most`.
fn check_values(
    shape: PageShape,
    half: &'static str,
    values: &[f32],
    most: f32,
) -> Result<(), FormatError> {
    assert_eq!(values.len(), shape.half_elements());
    let storable = |value: &f32| value.abs() <= most;
    match values.iter().position(|value| !storable(value)) {
        None => Ok(()),
        Some(at) => {
            let (chunks, row) = (shape.head_dim / CORE, at as u32 / CORE);
            Err(FormatError::Value {
                half,
                value: values[at],
                token: row / CORE / chunks * CORE + row % CORE,
                dim: row / CORE % chunks * CORE + at as u32 % CORE,
                most,
            })
        }
    }
}

const _: () = assert!(PAGE_TOKENS == 64, "codes and masks count on it");

#[cfg(test)]
mod tests;
