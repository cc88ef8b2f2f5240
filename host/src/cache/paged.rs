//! Import from and export to the paged layouts that other engines keep.

use super::{CacheShape, HostPages, KvElement};

/// Order of a foreign page's axes.
#[non_exhaustive]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum PagedOrder {
    /// `[pages, page_size, kv_heads, head_dim]`.
    Nhd,
    /// `[pages, kv_heads, page_size, head_dim]`.
    Hnd,
}

/// How a foreign cache is paged, and which of its pages hold one sequence.
#[derive(Clone, Copy, Debug)]
pub struct PagedTable<'a> {
    /// Order of axes.
    pub order: PagedOrder,
    /// Tokens of a page.
    pub page_size: u32,
    /// The sequence's pages: its token `i` is token `i % page_size` of page `pages[i / page_size]`.
    pub pages: &'a [u32],
}

impl PagedTable<'_> {
    /// Element offset of `(token, kv_head)`'s first dim.
    pub(crate) fn offset(&self, shape: &CacheShape, token: usize, kv_head: u32) -> usize {
        let size = self.page_size as usize;
        let (page, slot) = (self.pages[token / size] as usize, token % size);
        let (heads, head) = (shape.kv_heads as usize, kv_head as usize);
        let row = match self.order {
            PagedOrder::Nhd => (page * size + slot) * heads + head,
            PagedOrder::Hnd => (page * heads + head) * size + slot,
        };
        row * shape.head_dim as usize
    }
}

impl<T: KvElement> HostPages<T> {
    /// Copies a foreign sequence's first tokens of one layer into this cache: token `i` to `places[i]`
    /// (`page * 64 + token`). `k` and `v` are whole foreign caches in the table's layout.
    pub(crate) fn import(
        &mut self,
        layer: u32,
        places: &[u32],
        table: &PagedTable<'_>,
        k: &[T],
        v: &[T],
    ) {
        let shape = *self.shape();
        for (token, &place) in places.iter().enumerate() {
            for kv_head in 0..shape.kv_heads {
                let begin = table.offset(&shape, token, kv_head);
                let row = begin..begin + shape.head_dim as usize;
                self.write_head(layer, place, kv_head, &k[row.clone()], &v[row]);
            }
        }
    }

    /// Copies tokens of one layer out to a foreign cache: `places[i]` to the sequence's token `i`. The
    /// rest of `k` and `v` stays as it is.
    pub(crate) fn export(
        &self,
        layer: u32,
        places: &[u32],
        table: &PagedTable<'_>,
        k: &mut [T],
        v: &mut [T],
    ) {
        let shape = *self.shape();
        for (token, &place) in places.iter().enumerate() {
            for kv_head in 0..shape.kv_heads {
                let begin = table.offset(&shape, token, kv_head);
                let row = begin..begin + shape.head_dim as usize;
                self.read_head(layer, place, kv_head, &mut k[row.clone()], &mut v[row]);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cache::DType;

    const SHAPE: CacheShape =
        CacheShape { layers: 2, kv_heads: 3, head_dim: 64, dtype: DType::F32, pages: 4 };

    fn foreign(pages: u32, page_size: u32) -> [Vec<f32>; 2] {
        let elements = (pages * page_size) as usize * SHAPE.row_elements();
        [1.0, -1.0].map(|sign| (0..elements).map(|i| sign * (i + 1) as f32).collect())
    }

    #[test]
    fn what_is_imported_is_exported_again() {
        for order in [PagedOrder::Nhd, PagedOrder::Hnd] {
            for (page_size, pages) in [(1, &[4, 0, 2][..]), (16, &[3, 1, 2]), (64, &[1, 0, 3])] {
                let tokens = pages.len() * page_size as usize - usize::from(page_size > 1);
                // Scattered over all pages, no two the same.
                let places: Vec<u32> = (0..tokens as u32).map(|i| (i * 37 + 5) % 256).collect();
                let table = PagedTable { order, page_size, pages };
                let [k, v] = foreign(5, page_size);
                let mut cache = HostPages::new(SHAPE).unwrap();
                cache.import(1, &places, &table, &k, &v);
                let mut out_k = vec![0.0; k.len()];
                let mut out_v = vec![0.0; v.len()];
                cache.export(1, &places, &table, &mut out_k, &mut out_v);
                for (out, source) in [(&out_k, &k), (&out_v, &v)] {
                    let written = out.iter().zip(source).filter(|(out, _)| **out != 0.0);
                    assert_eq!(written.clone().count(), tokens * SHAPE.row_elements());
                    assert!(written.into_iter().all(|(out, source)| out == source));
                }
            }
        }
    }

    #[test]
    fn the_two_orders_are_what_their_names_say() {
        let (page_size, heads, dim) = (16, 3, 64);
        for (order, row) in [
            (PagedOrder::Nhd, (2 * page_size + 7) * heads + 1),
            (PagedOrder::Hnd, (2 * heads + 1) * page_size + 7),
        ] {
            let table = PagedTable { order, page_size: 16, pages: &[0, 2] };
            let [k, v] = foreign(3, 16);
            let mut cache = HostPages::new(SHAPE).unwrap();
            let places: Vec<u32> = (0..24).collect();
            cache.import(0, &places, &table, &k, &v);
            let mut rows = [(); 2].map(|()| vec![0.0; SHAPE.row_elements()]);
            let [read_k, read_v] = &mut rows;
            cache.read(0, 23, read_k, read_v);
            assert_eq!(read_k[dim..2 * dim], k[row * dim..][..dim]);
            assert_eq!(read_v[dim..2 * dim], v[row * dim..][..dim]);
        }
    }
}
