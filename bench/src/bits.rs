//! What a GPU writes to its cache, bit by bit against the CPU's.

use anyhow::Result;
use deft::abi::{APPEND_LIVE, PAGE_TOKENS};
use deft::attention::{Backend, Counters, PagedTokens, RotaryTable, Rotation, cpu};
use deft::cache::{CacheShape, DType, KvElement, PagedOrder, PagedTable};
use deft::cuda::CudaBackend;
use half::{bf16, f16};

use crate::gpu::Gpu;
use crate::random::{Random, normal_pair};
use crate::tensors::{Heads, HostPool};

const LAYERS: u32 = 2;
const PAGES: u32 = 9;
const POSITIONS: u32 = 5000;

/// Compares one random case; what went wrong, if anything.
pub(crate) fn run(gpu: &Gpu, heads: Heads, random: &mut Random) -> Result<Option<String>> {
    let shape = CacheShape {
        layers: LAYERS,
        ..heads.shape(PAGES)
    };
    match shape.dtype {
        DType::F16 => run_typed::<f16>(gpu, heads, shape, random),
        _ => run_typed::<bf16>(gpu, heads, shape, random),
    }
}

fn run_typed<T: KvElement>(
    gpu: &Gpu,
    heads: Heads,
    shape: CacheShape,
    random: &mut Random,
) -> Result<Option<String>> {
    let mut cpu = cpu::new(shape)?;
    let mut cuda = CudaBackend::new(&gpu.device, shape)?;
    rotated_append::<T>(&mut *cpu, &mut cuda, random)?;
    if let Some(problem) = compare::<T>(gpu, heads, &mut *cpu, &cuda)? {
        return Ok(Some(format!("append_rotated: {problem}")));
    }
    for order in [PagedOrder::Nhd, PagedOrder::Hnd] {
        for page_size in [1, 16, random.between(2, 100)] {
            let places = random_places(shape.pages, random);
            let what = format!("{order:?} pages of {page_size}, {} tokens", places.len());
            let pages = random_table(places.len(), page_size, random);
            let table = PagedTable {
                order,
                page_size,
                pages: &pages,
            };
            let mut foreign = Foreign::<T>::random(&shape, &table, random);
            foreign.import(&mut *cpu, &mut cuda, &places, &table)?;
            if let Some(problem) = compare::<T>(gpu, heads, &mut *cpu, &cuda)? {
                return Ok(Some(format!("import, {what}: {problem}")));
            }
            if let Some(problem) = foreign.export(&mut *cpu, &mut cuda, &places, &table)? {
                return Ok(Some(format!("export, {what}: {problem}")));
            }
        }
    }
    Ok(None)
}

/// Pages of a foreign sequence, in any order, with some pages of others between them.
fn random_table(tokens: usize, page_size: u32, random: &mut Random) -> Vec<u32> {
    let needed = tokens.div_ceil(page_size as usize);
    let mut pages: Vec<u32> = (0..needed as u32 + 3).collect();
    random.shuffle(&mut pages);
    pages.truncate(needed);
    pages
}

/// One layer of a foreign cache.
struct Foreign<T> {
    k: Vec<T>,
    v: Vec<T>,
}

impl<T: KvElement> Foreign<T> {
    fn random(shape: &CacheShape, table: &PagedTable<'_>, random: &mut Random) -> Self {
        let tokens = (table.pages.len() + 3) * table.page_size as usize;
        let elements = tokens * shape.row_elements();
        Self {
            k: random_elements(elements, random),
            v: random_elements(elements, random),
        }
    }

    fn import(
        &self,
        cpu: &mut dyn Backend,
        cuda: &mut CudaBackend,
        places: &[u32],
        table: &PagedTable<'_>,
    ) -> Result<()> {
        for backend in [cpu, cuda as &mut dyn Backend] {
            let foreign = [&self.k, &self.v].map(|elements| T::elements(elements));
            backend.import(paged(places, table), foreign)?;
        }
        Ok(())
    }

    /// Exports from both onto zeros and compares with each other, and with what was imported.
    fn export(
        &mut self,
        cpu: &mut dyn Backend,
        cuda: &mut CudaBackend,
        places: &[u32],
        table: &PagedTable<'_>,
    ) -> Result<Option<String>> {
        let [mut right_k, mut right_v] = [(); 2].map(|()| vec![T::default(); self.k.len()]);
        let onto = [T::elements_mut(&mut right_k), T::elements_mut(&mut right_v)];
        cpu.export(paged(places, table), onto)?;
        let [mut k, mut v] = [(); 2].map(|()| vec![T::default(); self.k.len()]);
        let onto = [T::elements_mut(&mut k), T::elements_mut(&mut v)];
        cuda.export(paged(places, table), onto)?;
        for (name, found, right) in [("K", &k, &right_k), ("V", &v, &right_v)] {
            let (found, right) = (bytemuck::cast_slice(found), bytemuck::cast_slice(right));
            if let Some(difference) = difference(found, right) {
                return Ok(Some(format!("{name}: {difference}")));
            }
        }
        // Onto what was imported, an export changes nothing.
        let (k, v) = (self.k.clone(), self.v.clone());
        let onto = [T::elements_mut(&mut self.k), T::elements_mut(&mut self.v)];
        cuda.export(paged(places, table), onto)?;
        for (name, found, right) in [("K", &self.k, &k), ("V", &self.v, &v)] {
            let (found, right) = (bytemuck::cast_slice(found), bytemuck::cast_slice(right));
            if let Some(difference) = difference(found, right) {
                return Ok(Some(format!("round trip, {name}: {difference}")));
            }
        }
        Ok(None)
    }
}

fn paged<'a>(places: &'a [u32], table: &PagedTable<'a>) -> PagedTokens<'a> {
    PagedTokens {
        layer: LAYERS - 1,
        places,
        table: *table,
    }
}

/// Appends random rows to both: to places by number, and the last to a node that grows.
fn rotated_append<T: KvElement>(
    cpu: &mut dyn Backend,
    cuda: &mut CudaBackend,
    random: &mut Random,
) -> Result<()> {
    let shape = *cpu.shape();
    let table = RotaryTable::new(shape.head_dim, POSITIONS, 500_000.0)?;
    let mut targets = random_places(shape.pages - 1, random);
    targets.push(APPEND_LIVE);
    let counters = Counters {
        lengths: &[random.between(1, 500)],
        tail_pages: &[shape.pages - 1],
    };
    let positions: Vec<u32> = targets
        .iter()
        .map(|_| random.between(0, POSITIONS - 1))
        .collect();
    let elements = targets.len() * shape.row_elements();
    let (k, v) = (
        random_elements::<T>(elements, random),
        random_elements::<T>(elements, random),
    );
    let rotation = Rotation {
        table: &table,
        positions: &positions,
    };
    for backend in [cpu, cuda as &mut dyn Backend] {
        let (k, v) = (T::elements(&k), T::elements(&v));
        backend.append_rotated(shape.layers - 1, &targets, counters, k, v, rotation)?;
    }
    Ok(())
}

/// Some of the places of `pages` pages, in any order, none twice.
fn random_places(pages: u32, random: &mut Random) -> Vec<u32> {
    let mut places: Vec<u32> = (0..pages * PAGE_TOKENS).collect();
    random.shuffle(&mut places);
    places.truncate(random.between(1, pages * PAGE_TOKENS) as usize);
    places
}

fn random_elements<T: KvElement>(count: usize, random: &mut Random) -> Vec<T> {
    let values = (0..count).map(|_| T::from_f32(normal_pair(random.next())[0]));
    values.collect()
}

/// Whether the two caches hold the same bits.
fn compare<T: KvElement>(
    gpu: &Gpu,
    heads: Heads,
    cpu: &mut dyn Backend,
    cuda: &CudaBackend,
) -> Result<Option<String>> {
    let shape = *cpu.shape();
    let mut rows =
        [(); 2].map(|()| vec![T::default(); PAGE_TOKENS as usize * shape.row_elements()]);
    for layer in 0..shape.layers {
        let plane = shape.plane_elements() as usize;
        let mut elements = vec![0; plane];
        let first = layer as usize * plane;
        cuda.cache()
            .pool()
            .read(first, &mut elements, &gpu.stream)?;
        let device = HostPool { heads, elements };
        for page in 0..shape.pages {
            let (places, found_k, found_v) = device.page_rows(page);
            let table = PagedTable {
                order: PagedOrder::Nhd,
                page_size: PAGE_TOKENS,
                pages: &[0],
            };
            let [k, v] = &mut rows;
            let paged = PagedTokens {
                layer,
                places: &places,
                table,
            };
            let [k, v] = [k, v].map(|rows| &mut rows[..]);
            cpu.export(paged, [T::elements_mut(k), T::elements_mut(v)])?;
            for (name, found, right) in [("K", found_k, k), ("V", found_v, v)] {
                if let Some(difference) = difference(&found, bytemuck::cast_slice(right)) {
                    return Ok(Some(format!(
                        "layer {layer}, page {page}, {name}: {difference}"
                    )));
                }
            }
        }
    }
    Ok(None)
}

/// How many elements differ, and the first.
pub(crate) fn difference(found: &[u16], right: &[u16]) -> Option<String> {
    let pairs = found.iter().zip(right);
    let wrong = pairs.clone().filter(|(found, right)| found != right);
    let (wrong, of) = (wrong.count(), found.len());
    let (at, (found, right)) = pairs.enumerate().find(|(_, (f, r))| f != r)?;
    Some(format!(
        "{wrong} of {of} elements differ, the first at {at}: {found:#06x}, expected {right:#06x}"
    ))
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
