//! The pages themselves, in the host's memory.

use kernels_gpu::abi::{PAGE_TOKENS, TokenMove};
use kernels_gpu::layout::{CORE, element_offset, half_page_elements, page_elements, page_offset};

use super::plane::Plane;
use super::{CacheShape, KvElement, PageId, SLAB_PAGES, ShapeError, SlabClass};

const CHUNK: usize = CORE as usize;

/// A cache in the host's memory: a plane a layer, `[page][kv_head][page_elements]`.
///
/// Layers and places (`page * 64 + token`) were checked before: those beyond the cache panic.
#[derive(Debug)]
pub(crate) struct HostPages<T> {
    shape: CacheShape,
    planes: Vec<Plane<T>>,
    /// Of an elastic store: whether each extent has memory.
    mapped: Option<Vec<bool>>,
    /// What is added to the logits of rows of compacted nodes, of each layer that has such: `[cells][64]`.
    biases: Vec<Option<Plane<f32>>>,
}

/// K and V of a page, of one layer and KV head, as [`kernels_gpu::layout`] has them.
#[derive(Clone, Copy, Debug)]
pub(crate) struct PageRef<'a, T> {
    /// `[8 token groups][head_dim / 8][8 tokens][8 dims]`.
    pub(crate) k: &'a [T],
    /// As `k`.
    pub(crate) v: &'a [T],
}

impl<T: KvElement> HostPages<T> {
    /// A cache of zeros, of a shape with elements `T`. Pages take memory when they are first written, where the system
    /// can do that.
    ///
    /// # Errors
    /// [`ShapeError`], [`ShapeError::OutOfMemory`] included.
    pub(crate) fn new(shape: CacheShape) -> Result<Self, ShapeError> {
        shape.validate()?;
        debug_assert_eq!(shape.dtype, T::DTYPE);
        let elements = shape.plane_elements() as usize;
        let plane = |_| Plane::zeroed(elements).ok_or(out_of_memory(&shape));
        let planes = (0..shape.layers).map(plane).collect::<Result<_, _>>()?;
        let biases = (0..shape.layers).map(|_| None).collect();
        Ok(Self { shape, planes, mapped: None, biases })
    }

    /// The same, which can give memory back to the system by extents of 16 pages; so many pages are a multiple of that.
    ///
    /// # Errors
    /// [`ShapeError`], [`ShapeError::OutOfMemory`] included.
    pub(crate) fn elastic(shape: CacheShape) -> Result<Self, ShapeError> {
        shape.validate()?;
        debug_assert_eq!(shape.dtype, T::DTYPE);
        debug_assert!(shape.pages.is_multiple_of(SLAB_PAGES));
        let elements = shape.plane_elements() as usize;
        let plane = |_| Plane::mapped(elements).ok_or(out_of_memory(&shape));
        let planes = (0..shape.layers).map(plane).collect::<Result<_, _>>()?;
        let mapped = Some(vec![false; (shape.pages / SLAB_PAGES) as usize]);
        let biases = (0..shape.layers).map(|_| None).collect();
        Ok(Self { shape, planes, mapped, biases })
    }

    /// Whether memory comes and goes.
    pub(crate) fn is_elastic(&self) -> bool {
        self.mapped.is_some()
    }

    /// Whether each extent has memory; empty where the store is not elastic.
    pub(crate) fn mapped(&mut self) -> &mut [bool] {
        self.mapped.as_deref_mut().unwrap_or_default()
    }

    /// Gives an extent's memory back to the system; whoever reads it finds zeros.
    pub(crate) fn discard(&mut self, extent: u32) {
        let shape = self.shape;
        let at =
            |extent| page_offset(shape.head_dim, shape.kv_heads, extent * SLAB_PAGES, 0) as usize;
        for plane in &mut self.planes {
            plane.discard(at(extent)..at(extent + 1));
        }
    }

    /// Makes room for the biases of a layer, all 0, if there is none.
    ///
    /// # Errors
    /// [`ShapeError::OutOfMemory`].
    pub(crate) fn make_biases(&mut self, layer: u32) -> Result<(), ShapeError> {
        let biases = &mut self.biases[layer as usize];
        if biases.is_none() {
            let elements = self.shape.cells() as usize * PAGE_TOKENS as usize;
            let bytes = 4 * elements as u64;
            *biases = Some(Plane::zeroed(elements).ok_or(ShapeError::OutOfMemory { bytes })?);
        }
        Ok(())
    }

    /// The biases of a cell's rows: `[64]`; none of a layer that has none.
    pub(crate) fn biases(&self, layer: u32, cell: u32) -> Option<&[f32]> {
        let begin = cell as usize * PAGE_TOKENS as usize;
        let plane = self.biases[layer as usize].as_ref();
        plane.map(|plane| &plane[begin..begin + PAGE_TOKENS as usize])
    }

    /// As [`Self::biases`], to be written; of a layer for which [`Self::make_biases`] was called.
    pub(crate) fn biases_mut(&mut self, layer: u32, cell: u32) -> &mut [f32] {
        let begin = cell as usize * PAGE_TOKENS as usize;
        let plane = self.biases[layer as usize].as_mut().expect("room was made");
        &mut plane[begin..begin + PAGE_TOKENS as usize]
    }

    /// The cache's dimensions.
    pub(crate) fn shape(&self) -> &CacheShape {
        &self.shape
    }

    /// All bytes of a layer.
    pub(crate) fn plane_bytes(&self, layer: u32) -> &[u8] {
        bytemuck::cast_slice(&self.planes[layer as usize])
    }

    /// As [`Self::plane_bytes`], to be written.
    pub(crate) fn plane_bytes_mut(&mut self, layer: u32) -> &mut [u8] {
        bytemuck::cast_slice_mut(&mut self.planes[layer as usize])
    }

    /// One page of one layer and KV head.
    #[inline]
    pub(crate) fn page(&self, layer: u32, page: PageId, kv_head: u32) -> PageRef<'_, T> {
        let range = self.page_range(page, kv_head);
        let (k, v) = self.planes[layer as usize][range]
            .split_at(half_page_elements(self.shape.head_dim) as usize);
        PageRef { k, v }
    }

    /// Bytes of a page of a slab's class, of one layer and KV head; `bytes` is what a page takes.
    #[inline]
    pub(crate) fn coded(
        &self,
        layer: u32,
        page: PageId,
        kv_head: u32,
        (class, bytes): (SlabClass, usize),
    ) -> &[u8] {
        let range = self.coded_range(page, kv_head, class, bytes);
        &bytemuck::cast_slice(&self.planes[layer as usize])[range]
    }

    /// As [`Self::coded`], to be written.
    pub(crate) fn coded_mut(
        &mut self,
        layer: u32,
        page: PageId,
        kv_head: u32,
        (class, bytes): (SlabClass, usize),
    ) -> &mut [u8] {
        let range = self.coded_range(page, kv_head, class, bytes);
        &mut bytemuck::cast_slice_mut(&mut self.planes[layer as usize])[range]
    }

    /// One page of one layer and KV head, to be written: K and V.
    pub(crate) fn page_mut(&mut self, layer: u32, page: PageId, kv_head: u32) -> [&mut [T]; 2] {
        let range = self.page_range(page, kv_head);
        let half = half_page_elements(self.shape.head_dim) as usize;
        let (k, v) = self.planes[layer as usize][range].split_at_mut(half);
        [k, v]
    }

    fn coded_range(
        &self,
        page: PageId,
        kv_head: u32,
        class: SlabClass,
        bytes: usize,
    ) -> std::ops::Range<usize> {
        let shape = &self.shape;
        let (slab, within) = (page / class.per_slab, page % class.per_slab);
        assert!(
            (slab + 1) * SLAB_PAGES <= shape.pages && kv_head < shape.kv_heads,
            "page {page} of {class:?}, KV head {kv_head} of {shape:?}"
        );
        let slab = page_offset(shape.head_dim, shape.kv_heads, slab * SLAB_PAGES, 0);
        let head = within as usize * shape.kv_heads as usize + kv_head as usize;
        let begin = slab as usize * size_of::<T>() + head * bytes;
        begin..begin + bytes
    }

    /// Writes K and V of one token of one layer, both `[kv_heads, head_dim]`.
    pub(crate) fn write(&mut self, layer: u32, place: u32, k: &[T], v: &[T]) {
        let head_dim = self.shape.head_dim as usize;
        let heads = k.chunks_exact(head_dim).zip(v.chunks_exact(head_dim));
        for (kv_head, (k, v)) in (0..).zip(heads) {
            self.write_head(layer, place, kv_head, k, v);
        }
    }

    /// Reads K and V of one token of one layer, both `[kv_heads, head_dim]`.
    #[cfg(test)]
    pub(super) fn read(&self, layer: u32, place: u32, k: &mut [T], v: &mut [T]) {
        let head_dim = self.shape.head_dim as usize;
        let heads = k.chunks_exact_mut(head_dim).zip(v.chunks_exact_mut(head_dim));
        for (kv_head, (k, v)) in (0..).zip(heads) {
            self.read_head(layer, place, kv_head, k, v);
        }
    }

    /// Writes K and V of one token, layer and KV head: `[head_dim]`.
    pub(crate) fn write_head(&mut self, layer: u32, place: u32, kv_head: u32, k: &[T], v: &[T]) {
        let range = self.page_range(place / PAGE_TOKENS, kv_head);
        let head_dim = self.shape.head_dim;
        let (page_k, page_v) =
            self.planes[layer as usize][range].split_at_mut(half_page_elements(head_dim) as usize);
        for (page, row) in [(page_k, k), (page_v, v)] {
            for (dim, chunk) in chunks(row.chunks_exact(CHUNK)) {
                let at = element_offset(head_dim, place % PAGE_TOKENS, dim) as usize;
                page[at..at + CHUNK].copy_from_slice(chunk);
            }
        }
    }

    /// Reads K and V of one token, layer and KV head: `[head_dim]`.
    pub(crate) fn read_head(&self, layer: u32, place: u32, kv_head: u32, k: &mut [T], v: &mut [T]) {
        let page = self.page(layer, place / PAGE_TOKENS, kv_head);
        for (page, row) in [(page.k, k), (page.v, v)] {
            for (dim, chunk) in chunks(row.chunks_exact_mut(CHUNK)) {
                let at = element_offset(self.shape.head_dim, place % PAGE_TOKENS, dim) as usize;
                chunk.copy_from_slice(&page[at..at + CHUNK]);
            }
        }
    }

    /// Moves tokens of all layers, one move after the other, and biases with them.
    pub(crate) fn copy(&mut self, moves: &[TokenMove]) {
        let (head_dim, kv_heads) = (self.shape.head_dim, self.shape.kv_heads);
        let half = half_page_elements(head_dim) as usize;
        for plane in self.biases.iter_mut().flatten() {
            for step in moves {
                for kv_head in 0..kv_heads {
                    let at = |place: u32| {
                        let cell = place / PAGE_TOKENS * kv_heads + kv_head;
                        cell as usize * PAGE_TOKENS as usize + (place % PAGE_TOKENS) as usize
                    };
                    plane[at(step.to)] = plane[at(step.from)];
                }
            }
        }
        let base = |place: u32, kv_head| {
            page_offset(head_dim, kv_heads, place / PAGE_TOKENS, kv_head) as usize
        };
        for plane in &mut self.planes {
            for step in moves {
                for kv_head in 0..kv_heads {
                    let (from, to) = (base(step.from, kv_head), base(step.to, kv_head));
                    for dim in (0..head_dim).step_by(CHUNK) {
                        let offset =
                            |place| element_offset(head_dim, place % PAGE_TOKENS, dim) as usize;
                        let (from, to) = (from + offset(step.from), to + offset(step.to));
                        plane.copy_within(from..from + CHUNK, to);
                        plane.copy_within(from + half..from + half + CHUNK, to + half);
                    }
                }
            }
        }
    }

    fn page_range(&self, page: PageId, kv_head: u32) -> std::ops::Range<usize> {
        let shape = &self.shape;
        assert!(
            page < shape.pages && kv_head < shape.kv_heads,
            "page {page}, KV head {kv_head} of {shape:?}"
        );
        let begin = page_offset(shape.head_dim, shape.kv_heads, page, kv_head) as usize;
        begin..begin + page_elements(shape.head_dim) as usize
    }
}

fn out_of_memory(shape: &CacheShape) -> ShapeError {
    ShapeError::OutOfMemory { bytes: shape.page_bytes() * u64::from(shape.pages) }
}

/// Chunks with their first dim.
fn chunks<I: Iterator>(chunks: I) -> impl Iterator<Item = (u32, I::Item)> {
    (0..).step_by(CHUNK).zip(chunks)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cache::DType;

    const SHAPE: CacheShape =
        CacheShape { layers: 2, kv_heads: 3, head_dim: 64, dtype: DType::F32, pages: 4 };

    /// K and V that tell the layer, place, head and dim they belong to.
    fn rows(layer: u32, place: u32) -> [Vec<f32>; 2] {
        let value = |sign: f32| {
            let elements = 0..SHAPE.row_elements();
            elements.map(move |i| sign * ((layer * 1000 + place) * 1000 + i as u32) as f32)
        };
        [value(1.0).collect(), value(-1.0).collect()]
    }

    fn filled() -> HostPages<f32> {
        let mut pages = HostPages::new(SHAPE).unwrap();
        for layer in 0..SHAPE.layers {
            for place in 0..SHAPE.pages * PAGE_TOKENS {
                let [k, v] = rows(layer, place);
                pages.write(layer, place, &k, &v);
            }
        }
        pages
    }

    fn read(pages: &HostPages<f32>, layer: u32, place: u32) -> [Vec<f32>; 2] {
        let mut rows = [(); 2].map(|()| vec![f32::NAN; SHAPE.row_elements()]);
        let [k, v] = &mut rows;
        pages.read(layer, place, k, v);
        rows
    }

    #[test]
    fn no_two_tokens_heads_or_layers_share_an_element() {
        let pages = filled();
        for layer in 0..SHAPE.layers {
            for place in 0..SHAPE.pages * PAGE_TOKENS {
                assert_eq!(read(&pages, layer, place), rows(layer, place));
            }
        }
        let page = pages.page(1, 2, 1);
        let [k, v] = rows(1, 2 * 64 + 13);
        let at = element_offset(64, 13, 42) as usize;
        assert_eq!((page.k[at], page.v[at]), (k[64 + 42], v[64 + 42]));
    }

    #[test]
    fn moves_run_one_after_the_other_in_every_layer() {
        let mut pages = filled();
        let step = |from, to| TokenMove { from, to };
        // The second writes where the first has read.
        pages.copy(&[step(70, 3), step(200, 70), step(5, 5)]);
        for layer in 0..SHAPE.layers {
            assert_eq!(read(&pages, layer, 3), rows(layer, 70));
            assert_eq!(read(&pages, layer, 70), rows(layer, 200));
            assert_eq!(read(&pages, layer, 200), rows(layer, 200));
            assert_eq!(read(&pages, layer, 5), rows(layer, 5));
            assert_eq!(read(&pages, layer, 71), rows(layer, 71));
        }
    }
}
