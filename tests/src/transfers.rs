//! What a backend writes to its cache, bit by bit against the CPU's.

use deft::attention::{Backend, Counters, PagedTokens, Rotation};
use deft::cache::{CacheShape, KvElement, PagedOrder, PagedTable};
use kernels_gpu::abi::PAGE_TOKENS;
use kernels_gpu::layout::{element_offset, half_page_elements, page_offset};

use crate::inputs::normals;

/// A backend of 16-bit elements whose pool can be read.
pub trait Inspect: Backend {
    /// All elements, `[layers][pages][kv_heads][page elements]`.
    fn pool(&self) -> Vec<u16>;
}

/// K and V of every place of a layer of a pool, `[places, kv_heads, head_dim]`.
pub fn rows(shape: &CacheShape, pool: &[u16], layer: u32) -> [Vec<u16>; 2] {
    let CacheShape { kv_heads, head_dim, .. } = *shape;
    let elements = shape.plane_elements() as usize;
    let plane = &pool[layer as usize * elements..][..elements];
    [0, half_page_elements(head_dim)].map(|half| {
        let places = 0..shape.pages * PAGE_TOKENS;
        let heads = places.flat_map(|place| (0..kv_heads).map(move |head| (place, head)));
        let elements = heads.flat_map(|(place, head)| {
            let page = page_offset(head_dim, kv_heads, place / PAGE_TOKENS, head);
            let token = place % PAGE_TOKENS;
            (0..head_dim).map(move |dim| {
                plane[(page as u32 + half + element_offset(head_dim, token, dim)) as usize]
            })
        });
        elements.collect()
    })
}

/// The same of a backend in the host's memory, by an export.
///
/// # Panics
/// If it refuses.
pub fn host_rows<T: KvElement>(cpu: &mut dyn Backend, layer: u32) -> [Vec<u16>; 2] {
    let shape = *cpu.shape();
    let elements = (shape.pages * PAGE_TOKENS) as usize * shape.row_elements();
    let mut rows = [(); 2].map(|()| vec![T::default(); elements]);
    let [k, v] = &mut rows;
    let all: Vec<u32> = (0..shape.pages).collect();
    let table = PagedTable { order: PagedOrder::Nhd, page_size: PAGE_TOKENS, pages: &all };
    let places: Vec<u32> = (0..shape.pages * PAGE_TOKENS).collect();
    let paged = PagedTokens { layer, places: &places, table };
    cpu.export(paged, [k, v].map(|rows| T::elements_mut(rows))).unwrap();
    rows.map(|rows| bits(&rows).to_vec())
}

/// The elements' bits.
///
/// # Panics
/// If they do not have 16.
pub fn bits<T: KvElement>(elements: &[T]) -> &[u16] {
    bytemuck::cast_slice(elements)
}

/// How many elements differ, and the first.
pub fn difference(found: &[u16], right: &[u16]) -> Option<String> {
    let pairs = found.iter().zip(right);
    let wrong = pairs.clone().filter(|(found, right)| found != right);
    let (wrong, of) = (wrong.count(), found.len());
    let (at, (found, right)) = pairs.enumerate().find(|(_, (f, r))| f != r)?;
    Some(format!(
        "{wrong} of {of} elements differ, the first at {at}: {found:#06x}, expected {right:#06x}"
    ))
}

/// Asserts that K and V hold the right bits.
///
/// # Panics
/// If not.
pub fn assert_same(found: [&[u16]; 2], right: [&[u16]; 2], context: &str) {
    for ((name, found), right) in ["K", "V"].into_iter().zip(found).zip(right) {
        assert_eq!(found.len(), right.len(), "{context}, {name}");
        if let Some(difference) = difference(found, right) {
            panic!("{context}, {name}: {difference}");
        }
    }
}

/// Asserts that the two caches hold the same bits.
///
/// # Panics
/// If not.
pub fn assert_same_pages<T: KvElement>(
    cpu: &mut dyn Backend,
    backend: &dyn Inspect,
    context: &str,
) {
    let shape = *backend.shape();
    let pool = backend.pool();
    for layer in 0..shape.layers {
        let both = [rows(&shape, &pool, layer), host_rows::<T>(cpu, layer)];
        let [found, right] = both.each_ref().map(|rows| rows.each_ref().map(|x| &x[..]));
        assert_same(found, right, &format!("{context}, layer {layer}"));
    }
}

/// Appends rotated keys to both, in the last layer, and compares all pages.
///
/// # Panics
/// If they differ, or one refuses.
pub fn check_append_rotated<T: KvElement>(
    cpu: &mut dyn Backend,
    backend: &mut dyn Inspect,
    targets: &[u32],
    counters: Counters<'_>,
    [k, v]: [&[T]; 2],
    rotation: Rotation<'_>,
) {
    let layer = cpu.shape().layers - 1;
    let append = |backend: &mut dyn Backend| {
        let (k, v) = (T::elements(k), T::elements(v));
        backend.append_rotated(layer, targets, counters, k, v, rotation).unwrap();
    };
    append(cpu);
    append(backend);
    let context = format!("{} rotated rows, {:?}", targets.len(), cpu.shape());
    assert_same_pages::<T>(cpu, backend, &context);
}

/// A sequence in a foreign paged cache, and where its tokens go in ours.
#[derive(Debug)]
pub struct Sequence<T> {
    /// Tokens of a foreign page.
    pub page_size: u32,
    /// The sequence's foreign pages; pages that are not named are others'.
    pub pages: Vec<u32>,
    /// Places of our cache.
    pub places: Vec<u32>,
    /// K and V of one layer of the foreign cache.
    pub foreign: [Vec<T>; 2],
}

impl<T: KvElement> Sequence<T> {
    /// Random K and V in as many foreign pages as `pages` names, and `spare` more.
    pub fn new(
        shape: &CacheShape,
        page_size: u32,
        pages: Vec<u32>,
        places: Vec<u32>,
        spare: usize,
        seed: u64,
    ) -> Self {
        let elements = (pages.len() + spare) * page_size as usize * shape.row_elements();
        Self {
            page_size,
            pages,
            places,
            foreign: [seed, !seed].map(|seed| normals(seed, elements, 1.0)),
        }
    }

    /// Its page table.
    pub fn table(&self, order: PagedOrder) -> PagedTable<'_> {
        PagedTable { order, page_size: self.page_size, pages: &self.pages }
    }

    /// Imports to the last layer of both and exports from it, onto poison and onto what was imported.
    ///
    /// # Panics
    /// If the two differ, or one refuses.
    pub fn check(&self, order: PagedOrder, cpu: &mut dyn Backend, backend: &mut dyn Inspect) {
        let context = format!(
            "{} tokens in {order:?} pages of {}, {:?}",
            self.places.len(),
            self.page_size,
            cpu.shape()
        );
        let paged = PagedTokens {
            layer: cpu.shape().layers - 1,
            places: &self.places,
            table: self.table(order),
        };
        let import = |backend: &mut dyn Backend| {
            let foreign = self.foreign.each_ref().map(|rows| T::elements(rows));
            backend.import(paged, foreign).unwrap();
        };
        import(cpu);
        import(backend);
        assert_same_pages::<T>(cpu, backend, &format!("import, {context}"));
        let exported = |backend: &mut dyn Backend, mut onto: [Vec<T>; 2]| {
            let foreign = onto.each_mut().map(|rows| T::elements_mut(rows));
            backend.export(paged, foreign).unwrap();
            onto
        };
        let poison = [(); 2].map(|()| vec![T::from_f32(f32::NAN); self.foreign[0].len()]);
        let right = exported(cpu, poison.clone());
        let found = exported(backend, poison);
        let same = |found: &[Vec<T>; 2], right: &[Vec<T>; 2], what: &str| {
            let [found, right] = [found, right].map(|rows| rows.each_ref().map(|x| bits(x)));
            assert_same(found, right, &format!("{what}, {context}"));
        };
        same(&found, &right, "export");
        // Onto what was imported, an export changes nothing.
        let back = exported(backend, self.foreign.clone());
        same(&back, &self.foreign, "round trip");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_difference_is_counted_and_its_first_place_named() {
        assert_eq!(difference(&[1, 2], &[1, 2]), None);
        assert_eq!(
            difference(&[1, 2, 3], &[1, 7, 8]).unwrap(),
            "2 of 3 elements differ, the first at 1: 0x0002, expected 0x0007"
        );
    }
}
