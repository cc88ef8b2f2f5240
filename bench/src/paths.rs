//! Paths of a tree to other engines' paged caches and back.

use anyhow::Result;
use deft::cache::{DType, KvElement, PagedOrder, PagedTable};
use deft::{CacheConfig, Device, TreeCache};
use half::{bf16, f16};

use crate::bits::difference;
use crate::random::{Random, normal_pair};
use crate::tensors::Heads;

/// Layers of the cache; the last is used.
const LAYERS: u32 = 2;

/// Imports a sequence into a path of three nodes, piece by piece in one order, and exports it in the other; what
/// went wrong, if anything.
pub(crate) fn run(device: &Device, heads: Heads, random: &mut Random) -> Result<Option<String>> {
    match heads.dtype {
        DType::F16 => run_typed::<f16>(device, heads, random),
        _ => run_typed::<bf16>(device, heads, random),
    }
}

fn run_typed<T: KvElement>(
    device: &Device,
    heads: Heads,
    random: &mut Random,
) -> Result<Option<String>> {
    let mut cache = TreeCache::new(
        device,
        CacheConfig {
            layers: LAYERS,
            q_heads: heads.q_heads(),
            kv_heads: heads.kv_heads,
            head_dim: heads.head_dim,
            dtype: heads.dtype,
            capacity_bytes: 16 * u64::from(LAYERS) * heads.shape(16).page_bytes(),
            scale: None,
            soft_cap: None,
        },
    )?;
    // Three nodes of the path, and a sibling each that only takes pages.
    let mut leaf = cache.insert_root(random.between(1, 200))?;
    for _ in 0..2 {
        let children = cache.fork(leaf, 2)?;
        cache.extend(&children, random.between(1, 100))?;
        leaf = children[1];
    }
    let tokens = cache.forest().context_length(leaf)? as u32;
    let row = (heads.kv_heads * heads.head_dim) as usize;
    let sequence = [(); 2].map(|()| {
        let values = (0..tokens as usize * row).map(|_| normal_pair(random.next())[0]);
        values.map(T::from_f32).collect::<Vec<T>>()
    });
    for order in [PagedOrder::Nhd, PagedOrder::Hnd] {
        let page_size = random.between(1, 70);
        let mut pages: Vec<u32> = (0..tokens.div_ceil(page_size) + 3).collect();
        random.shuffle(&mut pages);
        let table = PagedTable {
            order,
            page_size,
            pages: &pages,
        };
        let what = format!("{order:?} pages of {page_size}, {tokens} tokens");
        let whole = [&sequence[0], &sequence[1]].map(|rows| paged(&heads, &table, rows));
        // What comes second starts at a page's edge.
        let cut = random.between(0, tokens / page_size) * page_size;
        let rest = PagedTable {
            pages: &pages[(cut / page_size) as usize..],
            ..table
        };
        let [k, v] = &whole;
        cache.import(LAYERS - 1, leaf, cut..tokens, &rest, k, v)?;
        cache.import(LAYERS - 1, leaf, 0..cut, &table, k, v)?;
        let blank = || vec![T::default(); k.len()];
        let (mut out_k, mut out_v) = (blank(), blank());
        cache.export(LAYERS - 1, leaf, 0..tokens, &table, &mut out_k, &mut out_v)?;
        for (name, found, right) in [("K", &out_k, k), ("V", &out_v, v)] {
            let (found, right) = (bytemuck::cast_slice(found), bytemuck::cast_slice(right));
            if let Some(difference) = difference(found, right) {
                let problem = format!("path, there and back, {what}: {name}: {difference}");
                return Ok(Some(problem));
            }
        }
    }
    Ok(None)
}

/// `rows`, `[tokens, kv_heads, head_dim]`, in a foreign cache that is zero elsewhere.
fn paged<T: KvElement>(heads: &Heads, table: &PagedTable<'_>, rows: &[T]) -> Vec<T> {
    let (dim, size) = (heads.head_dim as usize, table.page_size as usize);
    let kv_heads = heads.kv_heads as usize;
    let mut foreign = vec![T::default(); table.pages.len() * size * kv_heads * dim];
    for (index, vector) in rows.chunks_exact(dim).enumerate() {
        let (token, head) = (index / kv_heads, index % kv_heads);
        let (page, slot) = (table.pages[token / size] as usize, token % size);
        let at = match table.order {
            PagedOrder::Nhd => (page * size + slot) * kv_heads + head,
            _ => (page * kv_heads + head) * size + slot,
        };
        foreign[at * dim..][..dim].copy_from_slice(vector);
    }
    foreign
}

#[cfg(test)]
mod tests {
    use deft::attention::AttentionParams;

    use super::*;

    #[test]
    fn a_path_comes_and_goes_in_both_orders() {
        let mut random = Random::new(3);
        for (dtype, head_dim) in [(DType::Bf16, 64), (DType::F16, 128)] {
            let heads = Heads {
                dtype,
                kv_heads: 3,
                group: 2,
                head_dim,
                params: AttentionParams::new(head_dim),
            };
            for _ in 0..8 {
                assert_eq!(run(&Device::cpu(), heads, &mut random).unwrap(), None);
            }
        }
    }
}
