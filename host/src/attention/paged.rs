//! Whether an import or an export fits this cache and the foreign one.

use super::check::{check_dtype, check_length, check_once, check_page, in_pages};
use super::{BackendError, PagedTokens};
use crate::cache::{CacheShape, Elements, ElementsMut};

/// Checks the arguments of [`Backend::import`](super::Backend::import): what exists, and that no place is named twice.
///
/// # Errors
/// [`BackendError`], naming the argument.
pub fn check_import(
    shape: &CacheShape,
    paged: PagedTokens<'_>,
    foreign: [Elements<'_>; 2],
) -> Result<(), BackendError> {
    check(shape, paged, foreign)?;
    check_once("places", paged.places)
}

/// Checks the arguments of [`Backend::export`](super::Backend::export): what exists, and that no page that is written
/// is named twice.
///
/// # Errors
/// [`BackendError`], naming the argument.
pub fn check_export(
    shape: &CacheShape,
    paged: PagedTokens<'_>,
    foreign: &[ElementsMut<'_>; 2],
) -> Result<(), BackendError> {
    let used = check(shape, paged, foreign.each_ref().map(ElementsMut::as_elements))?;
    check_once("pages", &paged.table.pages[..used])
}

/// The pages of the table that are used.
fn check(
    shape: &CacheShape,
    paged: PagedTokens<'_>,
    foreign: [Elements<'_>; 2],
) -> Result<usize, BackendError> {
    shape.check_layer(paged.layer)?;
    let (table, places) = (paged.table, paged.places);
    let page_size = table.page_size as usize;
    if page_size == 0 {
        return Err(BackendError::Param { name: "page_size", value: 0.0, expected: "positive" });
    }
    let used = places.len().div_ceil(page_size);
    let found = table.pages.len().min(used);
    check_length("pages", found, used, "[ceil(tokens / page_size)]")?;
    for (argument, foreign) in ["k", "v"].into_iter().zip(foreign) {
        check_dtype(shape, argument, foreign)?;
        let pages = foreign.len() / shape.row_elements() / page_size;
        for (index, &page) in table.pages[..used].iter().enumerate() {
            in_pages("pages", index, page, argument, pages)?;
        }
    }
    for (index, &place) in places.iter().enumerate() {
        check_page(shape, "places", index, place)?;
    }
    Ok(used)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cache::{DType, KvElement, PagedOrder, PagedTable};

    const SHAPE: CacheShape =
        CacheShape { layers: 2, kv_heads: 3, head_dim: 64, dtype: DType::F32, pages: 4 };

    fn paged<'a>(places: &'a [u32], page_size: u32, pages: &'a [u32]) -> PagedTokens<'a> {
        PagedTokens {
            layer: 0,
            places,
            table: PagedTable { order: PagedOrder::Nhd, page_size, pages },
        }
    }

    #[test]
    fn what_is_written_may_be_named_once() {
        let mut k = vec![0.0; 3 * 2 * SHAPE.row_elements()];
        let mut v = k.clone();
        let places = [7, 9, 7, 8, 1];
        let import = paged(&places[..3], 2, &[1, 2, 1]);
        assert_eq!(
            check_import(&SHAPE, import, [f32::elements(&k), f32::elements(&v)])
                .unwrap_err()
                .to_string(),
            "places[0] and places[2] both name 7; what is written is named once"
        );
        let foreign = [f32::elements_mut(&mut k), f32::elements_mut(&mut v)];
        let export =
            |count: usize| check_export(&SHAPE, paged(&places[..count], 2, &[1, 2, 1]), &foreign);
        assert!(export(4).is_ok(), "its third page is not used");
        assert_eq!(
            export(5).unwrap_err().to_string(),
            "pages[0] and pages[2] both name 1; what is written is named once"
        );
    }

    #[test]
    fn arguments_out_of_range_are_named() {
        let k = vec![0.0; 2 * 16 * SHAPE.row_elements()];
        let refuse = |paged| {
            let foreign = [f32::elements(&k); 2];
            check_import(&SHAPE, paged, foreign).unwrap_err().to_string()
        };
        let beyond = PagedTokens { layer: 2, ..paged(&[0], 16, &[0]) };
        assert_eq!(refuse(beyond), "layer is 2, the cache has 2");
        assert_eq!(refuse(paged(&[0], 0, &[0])), "page_size is 0; it must be positive");
        assert_eq!(
            refuse(paged(&[0; 17], 16, &[0])),
            "pages has 1 elements, [ceil(tokens / page_size)] takes 2"
        );
        assert_eq!(refuse(paged(&[0; 17], 16, &[1, 2])), "pages[1] names page 2, k has 2");
        assert_eq!(refuse(paged(&[0, 256], 16, &[0])), "places[1] names page 4, the cache has 4");
    }
}
