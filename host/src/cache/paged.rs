//! Import from and export to the paged layouts that other engines keep.

use kernels_gpu::abi::PAGE_TOKENS;

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

/// Why an import or export was refused; nothing was written.
#[non_exhaustive]
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum PagedError {
    /// A page without tokens.
    #[error("page_size is 0")]
    PageSize,
    /// The layer does not exist.
    #[error("layer is {layer}, the cache has {layers}")]
    Layer {
        /// The layer asked for.
        layer: u32,
        /// Layers of the cache.
        layers: u32,
    },
    /// The table has too few pages for the tokens.
    #[error("{tokens} tokens take {expected} pages of {page_size}, the table has {found}")]
    Table {
        /// Tokens to move.
        tokens: usize,
        /// Tokens of a page.
        page_size: u32,
        /// Pages that takes.
        expected: usize,
        /// Pages of the table.
        found: usize,
    },
    /// The table names a page beyond the foreign cache.
    #[error("pages[{index}] is {page}, {argument} holds {pages} pages")]
    Page {
        /// The foreign slice, `k` or `v`.
        argument: &'static str,
        /// Index into the table.
        index: usize,
        /// The page named.
        page: u32,
        /// Whole pages that the foreign slice holds.
        pages: usize,
    },
    /// What is written to is named twice.
    #[error(
        "{argument}[{first}] and {argument}[{index}] are both {value}; what is written is named once"
    )]
    Twice {
        /// `places` of an import, `pages` of an export.
        argument: &'static str,
        /// Index of one.
        first: usize,
        /// Index of the other.
        index: usize,
        /// What both name.
        value: u32,
    },
    /// A place is beyond this cache.
    #[error("places[{index}] is in page {page}, the cache has {pages}")]
    Place {
        /// Index into the places.
        index: usize,
        /// The page it names.
        page: u32,
        /// Pages of the cache.
        pages: u32,
    },
}

/// Indices of two equal numbers, if there are any.
pub(crate) fn named_twice(numbers: &[u32]) -> Option<[usize; 2]> {
    if numbers.is_sorted_by(|before, after| before < after) {
        return None;
    }
    let mut order: Vec<usize> = (0..numbers.len()).collect();
    order.sort_by_key(|&index| numbers[index]);
    let equal = |pair: &&[usize]| numbers[pair[0]] == numbers[pair[1]];
    order.windows(2).find(equal).map(|pair| [pair[0], pair[1]])
}

impl PagedTable<'_> {
    /// Checks what is copied into this cache: no place is named twice.
    pub(crate) fn check_import(
        &self,
        shape: &CacheShape,
        layer: u32,
        places: &[u32],
        foreign: [usize; 2],
    ) -> Result<(), PagedError> {
        self.check(shape, layer, places, foreign)?;
        once("places", places)
    }

    /// Checks what is copied to the foreign cache: no page that is written is named twice.
    pub(crate) fn check_export(
        &self,
        shape: &CacheShape,
        layer: u32,
        places: &[u32],
        foreign: [usize; 2],
    ) -> Result<(), PagedError> {
        self.check(shape, layer, places, foreign)?;
        let used = places.len().div_ceil(self.page_size as usize);
        once("pages", &self.pages[..used])
    }

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

    fn check(
        &self,
        shape: &CacheShape,
        layer: u32,
        places: &[u32],
        foreign: [usize; 2],
    ) -> Result<(), PagedError> {
        let layers = shape.layers;
        if layer >= layers {
            return Err(PagedError::Layer { layer, layers });
        }
        if self.page_size == 0 {
            return Err(PagedError::PageSize);
        }
        let (tokens, page_size) = (places.len(), self.page_size);
        let expected = tokens.div_ceil(page_size as usize);
        let found = self.pages.len();
        if found < expected {
            return Err(PagedError::Table {
                tokens,
                page_size,
                expected,
                found,
            });
        }
        for (argument, elements) in ["k", "v"].into_iter().zip(foreign) {
            let pages = elements / shape.row_elements() / page_size as usize;
            let mut used = self.pages[..expected].iter().enumerate();
            if let Some((index, &page)) = used.find(|&(_, &page)| page as usize >= pages) {
                return Err(PagedError::Page {
                    argument,
                    index,
                    page,
                    pages,
                });
            }
        }
        let pages = shape.pages;
        let mut places = places.iter().map(|place| place / PAGE_TOKENS).enumerate();
        match places.find(|&(_, page)| page >= pages) {
            Some((index, page)) => Err(PagedError::Place { index, page, pages }),
            None => Ok(()),
        }
    }
}

fn once(argument: &'static str, numbers: &[u32]) -> Result<(), PagedError> {
    match named_twice(numbers) {
        Some([first, index]) => Err(PagedError::Twice {
            argument,
            first,
            index,
            value: numbers[index],
        }),
        None => Ok(()),
    }
}

impl<T: KvElement> HostPages<T> {
    /// Copies a foreign sequence's first tokens of one layer into this cache: token `i` to `places[i]`
    /// (`page * 64 + token`). `k` and `v` are whole foreign caches in the table's layout.
    ///
    /// # Errors
    /// [`PagedError`], naming the argument.
    pub fn import(
        &mut self,
        layer: u32,
        places: &[u32],
        table: &PagedTable<'_>,
        k: &[T],
        v: &[T],
    ) -> Result<(), PagedError> {
        let shape = *self.shape();
        table.check_import(&shape, layer, places, [k.len(), v.len()])?;
        for (token, &place) in places.iter().enumerate() {
            for kv_head in 0..shape.kv_heads {
                let begin = table.offset(&shape, token, kv_head);
                let row = begin..begin + shape.head_dim as usize;
                self.write_head(layer, place, kv_head, &k[row.clone()], &v[row]);
            }
        }
        Ok(())
    }

    /// Copies tokens of one layer out to a foreign cache: `places[i]` to the sequence's token `i`. The
    /// rest of `k` and `v` stays as it is.
    ///
    /// # Errors
    /// [`PagedError`], naming the argument.
    pub fn export(
        &self,
        layer: u32,
        places: &[u32],
        table: &PagedTable<'_>,
        k: &mut [T],
        v: &mut [T],
    ) -> Result<(), PagedError> {
        let shape = *self.shape();
        table.check_export(&shape, layer, places, [k.len(), v.len()])?;
        for (token, &place) in places.iter().enumerate() {
            for kv_head in 0..shape.kv_heads {
                let begin = table.offset(&shape, token, kv_head);
                let row = begin..begin + shape.head_dim as usize;
                self.read_head(layer, place, kv_head, &mut k[row.clone()], &mut v[row]);
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cache::DType;

    const SHAPE: CacheShape = CacheShape {
        layers: 2,
        kv_heads: 3,
        head_dim: 64,
        dtype: DType::F32,
        pages: 4,
    };

    fn foreign(pages: u32, page_size: u32) -> [Vec<f32>; 2] {
        let elements = (pages * page_size) as usize * SHAPE.row_elements();
        [1.0, -1.0].map(|sign| (0..elements).map(|i| sign * (i + 1) as f32).collect())
    }

    #[test]
    fn what_is_written_may_be_named_once() {
        let mut cache = HostPages::<f32>::new(SHAPE).unwrap();
        let [mut k, mut v] = foreign(3, 2);
        let table = PagedTable {
            order: PagedOrder::Nhd,
            page_size: 2,
            pages: &[1, 2, 1],
        };
        let import = cache.import(0, &[7, 9, 7], &table, &k, &v).unwrap_err();
        assert_eq!(
            import.to_string(),
            "places[0] and places[2] are both 7; what is written is named once"
        );
        let export = |count: usize, k: &mut [f32], v: &mut [f32]| {
            cache.export(0, &[7, 9, 7, 8, 1][..count], &table, k, v)
        };
        assert!(
            export(4, &mut k, &mut v).is_ok(),
            "its third page is not used"
        );
        assert_eq!(
            export(5, &mut k, &mut v).unwrap_err().to_string(),
            "pages[0] and pages[2] are both 1; what is written is named once"
        );
    }

    #[test]
    fn what_is_imported_is_exported_again() {
        for order in [PagedOrder::Nhd, PagedOrder::Hnd] {
            for (page_size, pages) in [(1, &[4, 0, 2][..]), (16, &[3, 1, 2]), (64, &[1, 0, 3])] {
                let tokens = pages.len() * page_size as usize - usize::from(page_size > 1);
                // Scattered over all pages, no two the same.
                let places: Vec<u32> = (0..tokens as u32).map(|i| (i * 37 + 5) % 256).collect();
                let table = PagedTable {
                    order,
                    page_size,
                    pages,
                };
                let [k, v] = foreign(5, page_size);
                let mut cache = HostPages::new(SHAPE).unwrap();
                cache.import(1, &places, &table, &k, &v).unwrap();
                let mut out_k = vec![0.0; k.len()];
                let mut out_v = vec![0.0; v.len()];
                cache
                    .export(1, &places, &table, &mut out_k, &mut out_v)
                    .unwrap();
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
            let table = PagedTable {
                order,
                page_size: 16,
                pages: &[0, 2],
            };
            let [k, v] = foreign(3, 16);
            let mut cache = HostPages::new(SHAPE).unwrap();
            let places: Vec<u32> = (0..24).collect();
            cache.import(0, &places, &table, &k, &v).unwrap();
            let mut rows = [(); 2].map(|()| vec![0.0; SHAPE.row_elements()]);
            let [read_k, read_v] = &mut rows;
            cache.read(0, 23, read_k, read_v);
            assert_eq!(read_k[dim..2 * dim], k[row * dim..][..dim]);
            assert_eq!(read_v[dim..2 * dim], v[row * dim..][..dim]);
        }
    }

    #[test]
    fn arguments_out_of_range_are_named() {
        let [k, v] = foreign(2, 16);
        let mut cache = HostPages::new(SHAPE).unwrap();
        let mut refuse = |layer, places: &[u32], page_size, pages: &[u32]| {
            let table = PagedTable {
                order: PagedOrder::Nhd,
                page_size,
                pages,
            };
            let import = cache.import(layer, places, &table, &k, &v).unwrap_err();
            import.to_string()
        };
        assert_eq!(refuse(2, &[0], 16, &[0]), "layer is 2, the cache has 2");
        assert_eq!(refuse(0, &[0], 0, &[0]), "page_size is 0");
        assert_eq!(
            refuse(0, &[0; 17], 16, &[0]),
            "17 tokens take 2 pages of 16, the table has 1"
        );
        assert_eq!(
            refuse(0, &[0; 17], 16, &[1, 2]),
            "pages[1] is 2, k holds 2 pages"
        );
        assert_eq!(
            refuse(0, &[0, 256], 16, &[0]),
            "places[1] is in page 4, the cache has 4"
        );
    }
}
