//! Prefixes that go to pinned memory and come back on the fake GPU, loaded alone and met by passes, with every call of
//! the driver failing once.

use std::io::Cursor;

use crate::driver::Fake;
use deft::cache::{CacheShape, PagedOrder, PagedTable, Store};
use deft::cuda::CudaDevice;
use deft::{CacheError, DType, Demoted, Device, Kv, NodeKey, RestoreFrom, TreeCache, bf16};

const LAYERS: u32 = 2;
const KV_HEADS: u32 = 2;
const TOKENS: u32 = 700;

fn cache(store: fn(u64) -> Store) -> TreeCache {
    cache_of(store, 64)
}

/// With heads of `head_dim`, and as many pages whichever it is.
fn cache_of(store: fn(u64) -> Store, head_dim: u32) -> TreeCache {
    let device = Device::from(CudaDevice::new(0).unwrap());
    let dtype = DType::Bf16;
    let shape = CacheShape { layers: LAYERS, kv_heads: KV_HEADS, head_dim, dtype, pages: 1 };
    let pages = 64 * shape.padded().page_bytes();
    let builder = TreeCache::builder(&device).layers(LAYERS).heads(2, KV_HEADS, head_dim);
    builder.dtype(dtype).store(store(pages)).build().unwrap()
}

fn fixed(bytes: u64) -> Store {
    Store::Fixed { bytes }
}

fn elastic(reserve: u64) -> Store {
    Store::Elastic { reserve, initial: 0 }
}

/// K or V of a token: it tells all that it is of.
fn row(cache: &TreeCache, id: u32, layer: u32, part: u32) -> impl Iterator<Item = bf16> + use<> {
    (0..KV_HEADS * cache.config().head_dim).map(move |dim| {
        let mixed = (id * 4 + layer * 2 + part).wrapping_mul(2_654_435_761) ^ (dim * 40_503);
        bf16::from_f32((mixed >> 8 & 0xff) as f32 / 16.0 - 8.0)
    })
}

fn rows(cache: &TreeCache, ids: &[u32], layer: u32, part: u32) -> Vec<bf16> {
    ids.iter().flat_map(|&id| row(cache, id, layer, part)).collect()
}

fn compute(cache: &mut TreeCache, leaf: NodeKey, ids: &[u32]) -> Result<(), CacheError> {
    let batch = cache.batch(&[(leaf, ids.len() as u32)])?;
    for layer in 0..LAYERS {
        let [k, v] = [0, 1].map(|part| rows(cache, ids, layer, part));
        cache.append(layer, &batch, Kv::new(&k, &v))?;
    }
    Ok(())
}

fn ids() -> Vec<u32> {
    (9000..9000 + TOKENS).collect()
}

/// Seals the first `count` ids as a prefix that `below` is a leaf of.
fn seal(cache: &mut TreeCache, count: u32) -> NodeKey {
    let ids = &ids()[..count as usize];
    let opened = cache.open(ids, 0).unwrap();
    compute(cache, opened.node, &ids[opened.matched as usize..]).unwrap();
    cache.seal(opened.node, ids, 0).unwrap()
}

fn demoted(cache: &mut TreeCache) -> Demoted {
    let leaf = seal(cache, TOKENS);
    let sealed = cache.forest().parent(leaf).unwrap().unwrap();
    cache.prune(leaf).unwrap();
    let demoted = cache.demote(sealed).unwrap();
    assert_eq!(cache.forest().pool().live(), 0, "its pages are free");
    demoted
}

fn check(cache: &mut TreeCache, leaf: NodeKey, what: &str) {
    assert_eq!(cache.forest().context_length(leaf), Ok(u64::from(TOKENS)), "{what}");
    let table = PagedTable { order: PagedOrder::Nhd, page_size: TOKENS, pages: &[0] };
    for layer in 0..LAYERS {
        let elements = (TOKENS * KV_HEADS * cache.config().head_dim) as usize;
        let mut held = [(); 2].map(|()| vec![bf16::NAN; elements]);
        let [k, v] = &mut held;
        cache.export(layer, leaf, 0..TOKENS, &table, k, v).unwrap();
        for (part, held) in (0..).zip(held) {
            assert!(held == rows(cache, &ids(), layer, part), "{what}: layer {layer}, part {part}");
        }
    }
    cache.forest().debug_assert_invariants();
}

#[test]
fn what_was_demoted_is_promoted_bit_by_bit() {
    let fake = crate::load();
    let fixed: fn(u64) -> Store = fixed;
    for (store, head_dim) in [(fixed, 64), (elastic, 64), (fixed, 80), (elastic, 192)] {
        let mut cache = cache_of(store, head_dim);
        let demoted = demoted(&mut cache);
        assert_eq!(demoted.tokens(), ids());
        for held in [0, 1, 64, 130, TOKENS - 1, TOKENS] {
            let leaf = (held > 0).then(|| seal(&mut cache, held));
            let restored = cache.promote(&demoted, 0).unwrap();
            assert_eq!((restored.held, restored.computed), (held, 0));
            assert_eq!(restored.loaded, TOKENS - held);
            check(&mut cache, restored.node, &format!("{held} held"));
            for leaf in leaf.into_iter().chain([restored.node]) {
                cache.prune(leaf).unwrap();
            }
            cache.clear_prefixes().unwrap();
            assert_eq!(cache.forest().node_count(), 0);
        }
        drop((demoted, cache));
        assert_eq!((fake.live_objects(), fake.misused()), (0, 0));
    }
}

#[test]
fn below_a_prefix_that_ends_within_a_page_the_pages_are_cut_otherwise() {
    let fake = crate::load();
    let mut cache = cache(fixed);
    // Two sealed nodes, of 130 and of 570 tokens: pages of the second begin at token 130.
    let first = seal(&mut cache, 130);
    let all = ids();
    compute(&mut cache, first, &all[130..]).unwrap();
    let leaf = cache.seal(first, &all, 0).unwrap();
    check(&mut cache, leaf, "two nodes");
    let sealed = cache.forest().parent(leaf).unwrap().unwrap();
    cache.prune(leaf).unwrap();
    let demoted = cache.demote(sealed).unwrap();
    let first = seal(&mut cache, 130);
    for part in [None, Some(64), Some(128)] {
        let restored = match part {
            None => cache.promote(&demoted, 0).unwrap(),
            Some(part) => cache.restore(&demoted, 0, part, compute).unwrap(),
        };
        assert_eq!((restored.held, restored.computed + restored.loaded), (130, TOKENS - 130));
        check(&mut cache, restored.node, &format!("{part:?}"));
        let sealed = cache.forest().parent(restored.node).unwrap().unwrap();
        cache.prune(sealed).unwrap();
    }
    cache.prune(first).unwrap();
    drop((demoted, cache));
    assert_eq!((fake.live_objects(), fake.misused()), (0, 0));
}

/// Restores from `from` while passes wait for `wait`.
fn meet<'a>(
    cache: &mut TreeCache,
    from: impl Into<RestoreFrom<'a>>,
    wait: u64,
) -> Result<deft::Restored, CacheError> {
    cache.restore(from, 0, 64, |cache, leaf, ids| {
        std::thread::sleep(std::time::Duration::from_millis(wait));
        compute(cache, leaf, ids)
    })
}

#[test]
fn passes_and_loads_meet_with_nothing_missing() {
    let fake = crate::load();
    for store in [fixed, elastic] {
        let mut cache = cache(store);
        let demoted = demoted(&mut cache);
        let mut file = Cursor::new(demoted.bytes().to_vec());
        for wait in [0, 1, 5, 20] {
            for of_file in [false, true] {
                let restored = match of_file {
                    true => {
                        file.set_position(0);
                        meet(&mut cache, &mut file, wait)
                    }
                    false => meet(&mut cache, &demoted, wait),
                };
                let restored = restored.unwrap();
                let what = format!("{wait} ms, file {of_file}: {restored:?}");
                assert_eq!(restored.computed + restored.loaded, TOKENS, "{what}");
                assert!(restored.fault.is_none(), "{what}");
                check(&mut cache, restored.node, &what);
                cache.prune(restored.node).unwrap();
                cache.clear_prefixes().unwrap();
                assert_eq!(cache.forest().pool().live(), 0, "{what}");
            }
        }
        drop((demoted, cache));
        assert_eq!((fake.live_objects(), fake.misused()), (0, 0));
    }
}

#[test]
fn without_room_for_both_sides_what_is_read_waits_on_the_host() {
    let _fake = crate::load();
    let mut cache = cache(fixed);
    let demoted = demoted(&mut cache);
    // 11 pages are wanted, 22 for both; 15 are free.
    let other = cache.insert_root().unwrap();
    cache.extend(&[other], 49 * 64).unwrap();
    let restored = meet(&mut cache, &demoted, 5).unwrap();
    assert!(restored.loaded > 0);
    check(&mut cache, restored.node, "15 pages");
    assert_eq!(cache.forest().pool().live(), 49 + 11);
}

/// Runs `operation` once for each of its driver calls, with that call failing.
fn fail_each_call(
    fake: &Fake,
    operation: fn(&mut TreeCache, &Demoted) -> Result<NodeKey, CacheError>,
) {
    let (mut call, mut most) = (0, 0);
    while call <= most + 1 {
        let mut cache = cache(fixed);
        let demoted = demoted(&mut cache);
        fake.fail_from_now(call, 46);
        let outcome = operation(&mut cache, &demoted);
        most = fake.calls_made().max(most);
        let what = format!("call {call} of {most}, {}", fake.failed());
        fake.fail_from_now(0, 0);
        let leaf = outcome.unwrap_or_else(|error| {
            assert!(call > 0 && error.to_string().contains("46"), "{what}: {error}");
            assert_eq!(cache.forest().node_count(), 0, "{what}: {error}");
            operation(&mut cache, &demoted).unwrap_or_else(|error| panic!("{what}: {error}"))
        });
        check(&mut cache, leaf, &what);
        drop((demoted, cache));
        assert_eq!(fake.live_objects(), 0, "{what}: left behind");
        assert_eq!(fake.misused(), 0, "{what}: misuse");
        // Of long rows of equal calls some are enough.
        call += 1 + most / 100;
    }
}

#[test]
fn loads_that_fail_anywhere_leave_nothing_behind() {
    let fake = crate::load();
    fail_each_call(&fake, |cache, demoted| Ok(cache.promote(demoted, 0)?.node));
}

#[test]
fn meetings_that_fail_anywhere_leave_nothing_behind_or_are_computed() {
    let fake = crate::load();
    fail_each_call(&fake, |cache, demoted| Ok(meet(cache, demoted, 0)?.node));
}

#[test]
fn a_prefix_whose_pinned_memory_is_refused_stays() {
    let fake = crate::load();
    let (mut call, mut calls) = (1, 1);
    while call <= calls {
        let mut cache = cache(fixed);
        let leaf = seal(&mut cache, TOKENS);
        let sealed = cache.forest().parent(leaf).unwrap().unwrap();
        cache.prune(leaf).unwrap();
        fake.fail_from_now(call, 46);
        let outcome = cache.demote(sealed);
        calls = fake.calls_made().max(calls);
        let what = format!("call {call}, {}", fake.failed());
        fake.fail_from_now(0, 0);
        let demoted = outcome.unwrap_or_else(|_| {
            let opened = cache.open(&ids(), 0).unwrap();
            assert_eq!(opened.matched, TOKENS, "{what}");
            cache.prune(opened.node).unwrap();
            cache.demote(sealed).unwrap()
        });
        let restored = cache.promote(&demoted, 0).unwrap();
        check(&mut cache, restored.node, &what);
        drop((demoted, cache));
        assert_eq!((fake.live_objects(), fake.misused()), (0, 0), "{what}");
        call += 7;
    }
}
