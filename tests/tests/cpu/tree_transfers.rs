//! Paths of a tree that come from, and go to, the paged caches of other engines.

use std::ops::Range;

use deft::cache::{PagedOrder, PagedTable};
use deft::{DType, Device, DraftNode, Kv, NodeKey, TreeCache, bf16, f16};

const HEADS: usize = 2;
const DIM: usize = 64;
const LAYERS: u32 = 2;

fn cache() -> TreeCache {
    TreeCache::builder(&Device::cpu())
        .layers(LAYERS)
        .heads(4, HEADS as u32, DIM as u32)
        .dtype(DType::Bf16)
        .capacity_bytes(8 << 20)
        .build()
        .unwrap()
}

/// A root of 70 tokens, a child of 30 and a draft of two tokens below it; and their keys.
fn path(cache: &mut TreeCache) -> [NodeKey; 3] {
    let root = cache.insert_root().unwrap();
    cache.extend(&[root], 70).unwrap();
    let child = cache.fork(root, 2).unwrap()[1];
    cache.extend(&[child], 30).unwrap();
    let draft = DraftNode { parent: None, tokens: 2 };
    [root, child, cache.insert_draft(child, &[draft]).unwrap()[0]]
}

/// Every element another number: element `dim` of `head` of the sequence's token `token`.
fn element(token: usize, head: usize, dim: usize) -> bf16 {
    bf16::from_f32(((token * HEADS + head) * 3 + dim) as f32 / 32.0)
}

/// A foreign cache of `pages` pages that holds the sequence `tokens` by `table`.
fn foreign(table: &PagedTable<'_>, pages: usize, tokens: Range<usize>) -> Vec<bf16> {
    let size = table.page_size as usize;
    let mut elements = vec![bf16::NAN; pages * size * HEADS * DIM];
    for (at, token) in tokens.enumerate() {
        let (page, slot) = (table.pages[at / size] as usize, at % size);
        for head in 0..HEADS {
            let row = match table.order {
                PagedOrder::Nhd => (page * size + slot) * HEADS + head,
                _ => (page * HEADS + head) * size + slot,
            };
            for dim in 0..DIM {
                elements[row * DIM + dim] = element(token, head, dim);
            }
        }
    }
    elements
}

fn same_bits(left: &[bf16], right: &[bf16]) -> bool {
    let bits = |elements: &[bf16]| bytemuck::cast_slice::<_, u16>(elements).to_vec();
    bits(left) == bits(right)
}

/// Attention of the draft with what is in the cache.
fn attention(cache: &mut TreeCache, leaf: NodeKey) -> Vec<bf16> {
    let batch = cache.batch_held(&[(leaf, 1)]).unwrap();
    let q = vec![bf16::from_f32(0.1); 4 * DIM];
    let mut out = vec![bf16::NAN; q.len()];
    cache.attend(1, &batch, &q, &mut out).unwrap();
    out
}

#[test]
fn an_imported_path_is_attended_to_like_an_appended_one() {
    let mut appended = cache();
    let nodes = path(&mut appended);
    let mut begin = 0;
    for node in nodes {
        let tokens = appended.forest().length(node).unwrap();
        let rows = (begin..begin + tokens as usize).flat_map(|token| {
            let heads = 0..HEADS;
            heads.flat_map(move |head| (0..DIM).map(move |dim| element(token, head, dim)))
        });
        let rows: Vec<bf16> = rows.collect();
        let batch = appended.batch_held(&[(node, tokens)]).unwrap();
        appended.append(1, &batch, Kv::new(&rows, &rows)).unwrap();
        begin += tokens as usize;
    }
    let right = attention(&mut appended, nodes[2]);
    for order in [PagedOrder::Nhd, PagedOrder::Hnd] {
        let mut imported = cache();
        let [root, _, leaf] = path(&mut imported);
        let table = PagedTable { order, page_size: 16, pages: &[6, 2, 4, 0, 5, 1, 3] };
        let kv = foreign(&table, 7, 0..102);
        imported.import(1, root, 0..70, &table, &kv, &kv).unwrap();
        // From the edge of the page in which the root ends.
        let rest = PagedTable { pages: &table.pages[4..], ..table };
        imported.import(1, leaf, 64..102, &rest, &kv, &kv).unwrap();
        assert!(same_bits(&attention(&mut imported, leaf), &right), "{order:?}");
    }
}

#[test]
fn part_of_a_path_is_exported_over_its_nodes_and_nothing_else_is_written() {
    let mut cache = cache();
    let [.., leaf] = path(&mut cache);
    let from = PagedTable {
        order: PagedOrder::Hnd,
        page_size: 7,
        pages: &(0..15).rev().collect::<Vec<u32>>(),
    };
    let kv = foreign(&from, 15, 0..102);
    cache.import(0, leaf, 0..102, &from, &kv, &kv).unwrap();
    // The root's end, all of the child, the draft's first token.
    let to = PagedTable { order: PagedOrder::Nhd, page_size: 5, pages: &[8, 0, 3, 1, 2, 4, 5] };
    let [mut k, mut v] = [(); 2].map(|()| vec![bf16::NAN; 9 * 5 * HEADS * DIM]);
    cache.export(0, leaf, 67..101, &to, &mut k, &mut v).unwrap();
    let right = foreign(&to, 9, 67..101);
    assert!(same_bits(&k, &right) && same_bits(&v, &right));
}

#[test]
fn what_does_not_fit_is_named_and_nothing_is_written() {
    let mut cache = cache();
    let [root, child, _] = path(&mut cache);
    let table = PagedTable { order: PagedOrder::Nhd, page_size: 16, pages: &[0, 1, 2, 3, 9] };
    let kv = vec![bf16::ONE; 5 * 16 * HEADS * DIM];
    let mut refuse = |layer, node, tokens: Range<u32>, table: &PagedTable<'_>| {
        let refused = cache.import(layer, node, tokens.clone(), table, &kv, &kv);
        let import = refused.unwrap_err().to_string();
        let [mut k, mut v] = [(); 2].map(|()| kv.clone());
        let refused = cache.export(layer, node, tokens, table, &mut k, &mut v);
        assert_eq!(refused.unwrap_err().to_string(), import);
        assert!(k == kv && v == kv);
        import
    };
    let layer = refuse(LAYERS, root, 0..1, &table);
    assert_eq!(layer, "layer is 2, the cache has 2");
    let beyond = refuse(0, child, 90..101, &table);
    assert!(beyond.starts_with("tokens 90..101 are not within") && beyond.ends_with("holds 100"));
    let pages = refuse(0, child, 0..100, &table);
    assert_eq!(pages, "pages has 5 elements, [ceil(tokens / page_size)] takes 7");
    let page = refuse(0, root, 0..70, &table);
    assert_eq!(page, "pages[4] names page 9, k has 5");
    let empty = PagedTable { page_size: 0, ..table };
    assert_eq!(refuse(0, root, 0..1, &empty), "page_size is 0; it must be positive");
    let other = [f16::ONE; 64];
    let dtype = cache.import(0, root, 0..1, &table, &other, &other);
    assert_eq!(dtype.unwrap_err().to_string(), "k is f16, the cache holds bf16");
    // Nothing of it came in.
    let [mut k, mut v] = [(); 2].map(|()| kv.clone());
    cache.export(0, root, 0..64, &table, &mut k, &mut v).unwrap();
    let untouched = 64 * HEADS * DIM;
    assert!(k[..untouched].iter().chain(&v[..untouched]).all(|&x| x == bf16::ZERO));
}
