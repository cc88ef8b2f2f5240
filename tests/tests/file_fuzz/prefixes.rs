//! Saved prefixes.

use std::cell::RefCell;

use deft::{DType, Device, Kv, TreeCache, f16};
use proptest::prelude::*;

use crate::edits::{edited, edits};
use crate::fuzz;

const ROW: usize = 64;
/// Words before ids: the header's numbers and one layer's source.
const HEADER: usize = 8 + 4 * 4 + 8 + 2 * 4 + 4;

fn cache() -> TreeCache {
    let builder = TreeCache::builder(&Device::cpu()).layers(1).heads(1, 1, 64);
    builder.dtype(DType::F16).capacity_bytes(1 << 18).build().unwrap()
}

/// The bytes with the checksums that they should have, if the header is of `tokens` tokens.
fn summed(mut file: Vec<u8>, tokens: usize) -> Vec<u8> {
    let pages = (0..tokens).step_by(64).map(|begin| (tokens - begin).min(64) * 2 * ROW * 2);
    let mut begin = 0;
    for length in std::iter::once(HEADER + 4 * tokens).chain(pages) {
        let end = begin + length;
        if let Some(sum) = file.get(begin..end).map(crc32fast::hash) {
            let bytes = sum.to_le_bytes();
            file.iter_mut().skip(end).zip(bytes).for_each(|(to, from)| *to = from);
        }
        begin = end + 4;
    }
    file
}

#[test]
fn saved_prefix() {
    let tokens: Vec<u32> = (0..100).collect();
    let mut first = cache();
    let opened = first.open(&tokens, 0).unwrap();
    let batch = first.batch(&[(opened.node, 100)]).unwrap();
    let rows = vec![f16::ONE; 100 * ROW];
    first.append(0, &batch, Kv::new(&rows, &rows)).unwrap();
    let leaf = first.seal(opened.node, &tokens, 0).unwrap();
    let mut file = Vec::new();
    first.save_to(leaf, &mut file).unwrap();
    assert_eq!(summed(file.clone(), 100), file, "sums are where they are looked for");

    let second = RefCell::new(cache());
    let head = HEADER + 4 * 100 + 4;
    let make = |(edits, of_head, sums): &(Vec<_>, bool, bool)| {
        let (begin, rest) = file.split_at(if *of_head { head } else { file.len() });
        let file = [&edited(begin.to_vec(), edits), rest].concat();
        if *sums { summed(file, 100) } else { file }
    };
    fuzz(1.0, &(edits(), any::<bool>(), any::<bool>()), make, |bytes| {
        let mut cache = second.borrow_mut();
        cache.clear_prefixes().unwrap();
        let before = (cache.forest().node_count(), cache.forest().pool().live());
        let result = cache.load_from(&mut &bytes[..], 0);
        if let Ok(leaf) = result {
            assert!(cache.forest().context_length(leaf).unwrap() > 0);
            cache.prune(leaf).unwrap();
            cache.clear_prefixes().unwrap();
        }
        cache.forest().debug_assert_invariants();
        assert_eq!((cache.forest().node_count(), cache.forest().pool().live()), before);
        result.map(drop)
    });
}
