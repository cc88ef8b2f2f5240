//! How large a cache is, and where its elements lie.

use kernels_gpu::abi::PAGE_TOKENS;
use kernels_gpu::layout;

use super::DType;

/// Head dimensions that a cache takes.
pub const HEAD_DIMS: [u32; 7] = [64, 80, 96, 112, 128, 192, 256];
/// Those that a GPU has kernels for. It keeps the others as the next larger of these
/// ([`CacheShape::padded`]).
pub const KERNEL_HEAD_DIMS: [u32; 3] = [64, 128, 256];
/// Most layers or KV heads of a cache.
pub const MAX_HEADS: u32 = 1 << 12;

/// The dimensions of a cache, as a backend holds it: `[layer][page][kv_head][page_elements]`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct CacheShape {
    /// Layers of the model.
    pub layers: u32,
    /// KV heads of a layer, as far as they are on this device.
    pub kv_heads: u32,
    /// Elements of a head's key and value.
    pub head_dim: u32,
    /// Element type.
    pub dtype: DType,
    /// Pages; each holds [`PAGE_TOKENS`] tokens of every layer and KV head.
    pub pages: u32,
}

/// Why a [`CacheShape`] is none, or has no such part.
#[non_exhaustive]
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ShapeError {
    /// A dimension is out of range.
    #[error("{name} is {value}; it must be between 1 and {max}")]
    OutOfRange {
        /// Which field.
        name: &'static str,
        /// What it was.
        value: u64,
        /// Most allowed.
        max: u64,
    },
    /// No cache has heads of this dimension.
    #[error("head_dim is {head_dim}; it must be 64, 80, 96, 112, 128, 192 or 256")]
    HeadDim {
        /// What it was.
        head_dim: u32,
    },
    /// There are no kernels for this head dimension, and rows are not padded here.
    #[error(
        "head_dim is {head_dim}; there are kernels for 64, 128 and 256: pad each half of a row with zeros, to {} elements",
        padded / 2
    )]
    NoKernel {
        /// What it was.
        head_dim: u32,
        /// The next larger one that has kernels.
        padded: u32,
    },
    /// The cache would not fit the address space.
    #[error("a cache of {pages} pages of {page_bytes} bytes does not fit the address space")]
    TooLarge {
        /// Pages asked for.
        pages: u32,
        /// Bytes of a page, of all layers and KV heads.
        page_bytes: u64,
    },
    /// The system has no memory for it.
    #[error("no memory for a cache of {bytes} bytes")]
    OutOfMemory {
        /// Bytes of all pages.
        bytes: u64,
    },
    /// A layer would read keys and values that are written after it.
    #[error("layer {layer} reads layer {of}; it must be itself or an earlier one")]
    LayerSource {
        /// The layer.
        layer: u32,
        /// Whose keys and values it would read.
        of: u32,
    },
    /// There is no such layer.
    #[error("layer is {layer}, the cache has {layers}")]
    Layer {
        /// The layer asked for.
        layer: u32,
        /// Layers of the cache.
        layers: u32,
    },
}

impl ShapeError {
    /// Of a head dimension that there are no kernels for.
    pub fn no_kernel(head_dim: u32) -> Self {
        match padded_head_dim(head_dim) {
            padded if padded > head_dim => Self::NoKernel { head_dim, padded },
            _ => Self::HeadDim { head_dim },
        }
    }
}

impl CacheShape {
    /// Whether every dimension is in its range.
    ///
    /// # Errors
    /// [`ShapeError`], naming the dimension.
    pub(crate) fn validate(&self) -> Result<(), ShapeError> {
        self.validate_page()?;
        let max = u64::from(super::PagePool::MAX_PAGES);
        in_range("pages", u64::from(self.pages), max)?;
        let bytes = self.page_bytes().checked_mul(u64::from(self.pages));
        match bytes {
            Some(bytes) if bytes <= isize::MAX as u64 => Ok(()),
            _ => Err(ShapeError::TooLarge { pages: self.pages, page_bytes: self.page_bytes() }),
        }
    }

    /// As [`Self::validate`], and whether there are kernels for such heads.
    ///
    /// # Errors
    /// [`ShapeError`], naming the dimension.
    #[cfg(feature = "cuda")]
    pub(crate) fn validate_for_kernels(&self) -> Result<(), ShapeError> {
        self.validate()?;
        match KERNEL_HEAD_DIMS.contains(&self.head_dim) {
            true => Ok(()),
            false => Err(ShapeError::no_kernel(self.head_dim)),
        }
    }

    /// The same with the next larger head dimension that there are kernels for, which is how a GPU keeps it: each half of
    /// a key or value, then zeros. So dims that a rotary embedding turns together are half a row apart there too.
    #[must_use]
    pub fn padded(&self) -> Self {
        Self { head_dim: padded_head_dim(self.head_dim), ..*self }
    }

    /// Whether there is a layer `layer`.
    pub(crate) fn check_layer(&self, layer: u32) -> Result<(), ShapeError> {
        let layers = self.layers;
        match layer < layers {
            true => Ok(()),
            false => Err(ShapeError::Layer { layer, layers }),
        }
    }

    fn validate_page(&self) -> Result<(), ShapeError> {
        let max = u64::from(MAX_HEADS);
        in_range("layers", u64::from(self.layers), max)?;
        in_range("kv_heads", u64::from(self.kv_heads), max)?;
        if !HEAD_DIMS.contains(&self.head_dim) {
            let head_dim = self.head_dim;
            return Err(ShapeError::HeadDim { head_dim });
        }
        Ok(())
    }

    /// Bytes of a page: K and V of [`PAGE_TOKENS`] tokens, all layers and KV heads; `u64::MAX` for a shape that is
    /// refused and that has more.
    pub const fn page_bytes(&self) -> u64 {
        let row = self.head_dim as u64 * self.kv_heads as u64;
        let elements = row.saturating_mul(2 * self.layers as u64);
        elements.saturating_mul(self.dtype.bytes() as u64).saturating_mul(PAGE_TOKENS as u64)
    }

    /// Elements of a layer's plane: all pages and KV heads.
    pub const fn plane_elements(&self) -> u64 {
        layout::page_offset(self.head_dim, self.kv_heads, self.pages, 0)
    }

    /// Cells of a layer, [`Cell::cell`](kernels_gpu::abi::Cell::cell): one a page and KV head.
    pub const fn cells(&self) -> u64 {
        self.pages as u64 * self.kv_heads as u64
    }

    /// Elements of one token's K (or V) of a layer: `[kv_heads, head_dim]`.
    pub const fn row_elements(&self) -> usize {
        self.kv_heads as usize * self.head_dim as usize
    }
}

/// The next head dimension, from `head_dim` on, that there are kernels for; itself where there is none.
pub fn padded_head_dim(head_dim: u32) -> u32 {
    KERNEL_HEAD_DIMS.into_iter().find(|&dim| dim >= head_dim).unwrap_or(head_dim)
}

pub(crate) fn in_range(name: &'static str, value: u64, max: u64) -> Result<(), ShapeError> {
    if (1..=max).contains(&value) {
        return Ok(());
    }
    Err(ShapeError::OutOfRange { name, value, max })
}

#[cfg(test)]
mod tests {
    use super::*;

    const SHAPE: CacheShape =
        CacheShape { layers: 32, kv_heads: 8, head_dim: 128, dtype: DType::Bf16, pages: 10 };

    #[test]
    fn a_page_of_llama_3_8b_takes_8_mib() {
        assert_eq!(SHAPE.page_bytes(), 64 * 32 * 8 * 128 * 2 * 2);
        assert_eq!(SHAPE.plane_elements(), 10 * 8 * 64 * 128 * 2);
        assert_eq!(SHAPE.validate(), Ok(()));
    }

    #[test]
    fn heads_are_padded_to_the_next_dimension_with_kernels_and_those_that_have_some_stay() {
        let padded = HEAD_DIMS.map(|head_dim| CacheShape { head_dim, ..SHAPE }.padded().head_dim);
        assert_eq!(padded, [64, 128, 128, 128, 128, 256, 256]);
    }

    #[test]
    fn dimensions_out_of_range_are_named() {
        let message = |shape: CacheShape| shape.validate().unwrap_err().to_string();
        let layers = 0;
        assert_eq!(
            message(CacheShape { layers, ..SHAPE }),
            "layers is 0; it must be between 1 and 4096"
        );
        let kv_heads = 5000;
        assert_eq!(
            message(CacheShape { kv_heads, ..SHAPE }),
            "kv_heads is 5000; it must be between 1 and 4096"
        );
        for head_dim in [72, 512] {
            assert_eq!(
                message(CacheShape { head_dim, ..SHAPE }),
                format!("head_dim is {head_dim}; it must be 64, 80, 96, 112, 128, 192 or 256")
            );
        }
        let pages = 0;
        assert!(message(CacheShape { pages, ..SHAPE }).starts_with("pages is 0"));
        let huge = CacheShape {
            layers: 4096,
            kv_heads: 4096,
            head_dim: 256,
            dtype: DType::F32,
            pages: 1 << 25,
        };
        assert!(matches!(huge.validate(), Err(ShapeError::TooLarge { .. })));
        let overflowing =
            CacheShape { layers: u32::MAX, kv_heads: u32::MAX, head_dim: u32::MAX, ..SHAPE };
        assert_eq!(overflowing.page_bytes(), u64::MAX);
        assert!(overflowing.validate().is_err());
    }
}
