//! A cache whose memory comes and goes beside one of fixed memory: the same bits, and no more memory than it says.

use deft::attention::{self, Backend, BackendError, ElasticMemory};
use deft::cache::{CacheShape, Store};
use deft::{CacheError, DType, Device, DraftNode, NodeKey, TreeCache};
use rand::rngs::SmallRng;
use rand::{RngExt, SeedableRng};

const LAYERS: u32 = 2;
const HEADS: (u32, u32, u32) = (4, 2, 64);
const ROW: usize = 128;
/// Bytes of an extent, 16 pages.
const EXTENT: u64 = 16 * 64 * LAYERS as u64 * 2 * ROW as u64 * 4;

fn builder(store: Store) -> deft::CacheBuilder {
    let (q, kv, dim) = HEADS;
    let builder = TreeCache::builder(&Device::cpu()).layers(LAYERS).heads(q, kv, dim);
    builder.dtype(DType::F32).store(store)
}

fn elastic(extents: u64, initial: u64) -> TreeCache {
    builder(Store::Elastic { reserve: extents * EXTENT, initial }).build().unwrap()
}

/// The two caches, with nodes that correspond.
struct Twins {
    caches: [TreeCache; 2],
    /// Leaves that grow.
    leaves: Vec<[NodeKey; 2]>,
    rng: SmallRng,
}

impl Twins {
    fn each<T>(
        &mut self,
        act: impl Fn(&mut TreeCache, usize) -> Result<T, CacheError>,
    ) -> Option<[T; 2]> {
        let [a, b] = &mut self.caches;
        match (act(a, 0), act(b, 1)) {
            (Ok(a), Ok(b)) => Some([a, b]),
            (Err(a), Err(b)) => {
                assert_eq!(
                    a.to_string().split(" free of").count(),
                    b.to_string().split(" free of").count()
                );
                None
            }
            (a, b) => panic!("{:?}, but {:?}", a.err(), b.err()),
        }
    }

    fn values(&mut self, count: usize) -> Vec<f32> {
        (0..count).map(|_| self.rng.random_range(-1.0..1.0)).collect()
    }

    fn some_leaf(&mut self) -> Option<usize> {
        let count = self.leaves.len();
        (count > 0).then(|| self.rng.random_range(0..count))
    }

    /// New tokens of a leaf, and attention of theirs: the same bits.
    fn grow(&mut self, leaf: [NodeKey; 2], tokens: u32) -> bool {
        let rows = tokens as usize;
        let inputs: Vec<[Vec<f32>; 3]> = (0..LAYERS)
            .map(|_| [rows * ROW, rows * ROW, rows * 2 * ROW].map(|count| self.values(count)))
            .collect();
        let run = self.each(|cache, which| {
            let batch = cache.batch(&[(leaf[which], tokens)])?;
            let mut out = vec![f32::NAN; LAYERS as usize * rows * 2 * ROW];
            for (layer, ([k, v, q], out)) in
                (0..).zip(inputs.iter().zip(out.chunks_exact_mut(rows * 2 * ROW)))
            {
                cache.append(layer, &batch, deft::Kv::new(k, v))?;
                cache.attend(layer, &batch, q, out)?;
            }
            Ok(out)
        });
        run.is_some_and(|[a, b]| {
            assert!(a == b && a.iter().all(|value| value.is_finite()));
            true
        })
    }

    fn operate(&mut self) {
        match self.rng.random_range(0..12) {
            0 => {
                let tokens = self.rng.random_range(1..400);
                let root = self.each(|cache, _| cache.insert_root()).unwrap();
                match self.grow(root, tokens) {
                    true => self.leaves.push(root),
                    false => drop(self.each(|cache, which| cache.prune(root[which]))),
                }
            }
            1 => {
                let Some(at) = self.some_leaf() else { return };
                let (leaf, n) = (self.leaves.swap_remove(at), self.rng.random_range(1..4));
                let [a, b] = self.each(|cache, which| cache.fork(leaf[which], n)).unwrap();
                self.leaves.extend(a.into_iter().zip(b).map(|(a, b)| [a, b]));
            }
            2..5 => {
                let Some(at) = self.some_leaf() else { return };
                let tokens = self.rng.random_range(1..150);
                self.grow(self.leaves[at], tokens);
            }
            5..8 => {
                let Some(at) = self.some_leaf() else { return };
                let leaf = self.leaves.swap_remove(at);
                // Sometimes the whole tree of a node without other leaves.
                self.each(|cache, which| {
                    let mut node = leaf[which];
                    while let Some(parent) = cache.forest().parent(node)? {
                        if cache.forest().children(parent)?.count() > 1 {
                            break;
                        }
                        node = parent;
                    }
                    cache.prune(node)
                });
            }
            8 => {
                let Some(at) = self.some_leaf() else { return };
                let (leaf, k) = (self.leaves[at], self.rng.random_range(1..100));
                self.each(|cache, which| cache.shrink(&[leaf[which]], k));
            }
            9 => {
                let Some(at) = self.some_leaf() else { return };
                self.draft(self.leaves[at]);
            }
            10 => {
                let Some(at) = self.some_leaf() else { return };
                let leaf = self.leaves[at];
                self.each(|cache, which| cache.seal_as(leaf[which], "fp8".parse().unwrap()));
            }
            _ => {
                self.caches[1].compact().unwrap();
            }
        }
    }

    fn draft(&mut self, trunk: [NodeKey; 2]) {
        let tokens = self.rng.random_range(1..100);
        let draft = [None, Some(0), Some(0)].map(|parent| DraftNode { parent, tokens });
        let Some(keys) = self.each(|cache, which| cache.insert_draft(trunk[which], &draft)) else {
            return;
        };
        let values = self.values(3 * tokens as usize * ROW);
        let length = self.rng.random_range(0..3);
        self.each(|cache, which| {
            let keys = &keys[which];
            let all: Vec<_> = keys.iter().map(|&key| (key, tokens)).collect();
            let batch = cache.batch(&all)?;
            for layer in 0..LAYERS {
                cache.append(layer, &batch, deft::Kv::new(&values, &values))?;
            }
            cache.accept(trunk[which], &[keys[0], keys[2]][..length])
        });
    }

    /// The elastic cache's memory is what its extents in use take, and at most one more.
    fn check_memory(&mut self) {
        let cache = &mut self.caches[1];
        let bytes = cache.store_bytes();
        assert!(bytes.held <= bytes.memory && bytes.memory <= bytes.reserved, "{bytes:?}");
        if cache.bytes().len() == 1 {
            cache.compact().unwrap();
            let bytes = cache.store_bytes();
            assert!(bytes.memory <= bytes.held.next_multiple_of(EXTENT) + EXTENT, "{bytes:?}");
        }
        cache.forest().debug_assert_invariants();
    }
}

#[test]
fn a_cache_whose_memory_comes_and_goes_computes_what_one_of_fixed_memory_does() {
    for seed in 0..6 {
        let extents = 4;
        let fixed = builder(Store::Fixed { bytes: extents * EXTENT }).build().unwrap();
        let caches = [fixed, elastic(extents, 0)];
        let rng = SmallRng::seed_from_u64(seed);
        let mut twins = Twins { caches, leaves: Vec::new(), rng };
        let mut most = 0;
        for step in 0..300 {
            twins.operate();
            most = most.max(twins.caches[1].store_bytes().memory);
            if step % 20 == 0 {
                twins.check_memory();
            }
        }
        assert!(most >= 2 * EXTENT, "seed {seed}: {most}");
        for [_, leaf] in std::mem::take(&mut twins.leaves) {
            let _ = twins.caches[1].prune(leaf);
        }
    }
}

#[test]
fn a_tenth_of_the_pages_takes_an_eighth_of_the_memory_and_an_extent() {
    const EXTENTS: u64 = 100;
    let mut cache = elastic(EXTENTS, 0);
    let mut rng = SmallRng::seed_from_u64(1);
    let mut roots = Vec::new();
    while cache.forest().pool().free() >= 8 {
        let root = cache.insert_root().unwrap();
        cache.extend(&[root], 64 * rng.random_range(1..8)).unwrap();
        roots.push(root);
    }
    let full = cache.store_bytes();
    assert!(full.memory > full.reserved * 98 / 100, "{full:?}");
    while cache.store_bytes().held > full.reserved / 10 {
        let root = roots.swap_remove(rng.random_range(0..roots.len()));
        cache.prune(root).unwrap();
    }
    let scattered = cache.store_bytes();
    let moved = cache.compact().unwrap();
    let bytes = cache.store_bytes();
    assert_eq!(bytes.held, scattered.held);
    assert!(bytes.memory <= bytes.reserved * 12 / 100 + EXTENT, "{bytes:?}");
    assert!(moved > 0 && scattered.memory > bytes.memory, "{scattered:?}");
    // The next prompts fill what is there before they take more.
    let root = cache.insert_root().unwrap();
    cache.extend(&[root], 64).unwrap();
    assert_eq!(cache.store_bytes().memory, bytes.memory);
}

#[test]
fn initial_memory_is_there_and_stays() {
    let mut cache = elastic(8, 2 * EXTENT + 1);
    assert_eq!(cache.store_bytes().memory, 3 * EXTENT);
    let root = cache.insert_root().unwrap();
    cache.extend(&[root], 5 * 1024).unwrap();
    assert_eq!(cache.store_bytes().memory, 5 * EXTENT);
    cache.prune(root).unwrap();
    assert_eq!(cache.store_bytes().memory, 3 * EXTENT);
}

/// Bytes of memory that this process has, as Linux counts.
#[cfg(target_os = "linux")]
fn resident() -> u64 {
    let pages = std::fs::read_to_string("/proc/self/statm").unwrap();
    pages.split(' ').nth(1).unwrap().parse::<u64>().unwrap() * 4096
}

#[cfg(target_os = "linux")]
#[test]
fn the_system_gets_the_memory_back() {
    const TOKENS: u32 = 128 << 10;
    let mut cache = elastic(256, 0);
    let before = resident();
    let root = cache.insert_root().unwrap();
    for _ in 0..TOKENS / 1024 {
        let batch = cache.batch(&[(root, 1024)]).unwrap();
        let rows = vec![1.0f32; 1024 * ROW];
        for layer in 0..LAYERS {
            cache.append(layer, &batch, deft::Kv::new(&rows, &rows)).unwrap();
        }
    }
    let held = cache.store_bytes().held;
    let full = resident();
    assert!(full - before > held * 9 / 10, "{before}, then {full}, for {held}");
    cache.prune(root).unwrap();
    let after = resident();
    assert!(full - after > held * 9 / 10, "{full}, then {after}, of {held}");
}

/// A cache whose device has memory for so many extents.
#[derive(Debug)]
struct Poor {
    cache: Box<dyn Backend>,
    left: u32,
}

impl ElasticMemory for Poor {
    fn extent_pages(&self) -> u32 {
        16
    }
    fn map(&mut self, extent: u32) -> Result<(), BackendError> {
        let left = self.left.checked_sub(1);
        self.left = left.ok_or_else(|| BackendError::Device("no memory left".into()))?;
        self.cache.elastic().unwrap().map(extent)
    }
    fn unmap(&mut self, extent: u32) {
        self.left += 1;
        self.cache.elastic().unwrap().unmap(extent);
    }
    fn bytes(&mut self) -> u64 {
        self.cache.elastic().unwrap().bytes()
    }
}

impl Backend for Poor {
    fn shape(&self) -> &CacheShape {
        self.cache.shape()
    }
    fn name(&self) -> String {
        "poor".to_owned()
    }
    fn shares(&self) -> u32 {
        self.cache.shares()
    }
    fn append(
        &mut self,
        layer: u32,
        targets: &[u32],
        counters: attention::Counters<'_>,
        k: deft::cache::Elements<'_>,
        v: deft::cache::Elements<'_>,
    ) -> Result<(), BackendError> {
        self.cache.append(layer, targets, counters, k, v)
    }
    fn copy(&mut self, moves: &[deft::abi::TokenMove]) -> Result<(), BackendError> {
        self.cache.copy(moves)
    }
    fn import(
        &mut self,
        paged: attention::PagedTokens<'_>,
        foreign: [deft::cache::Elements<'_>; 2],
    ) -> Result<(), BackendError> {
        self.cache.import(paged, foreign)
    }
    fn export(
        &mut self,
        paged: attention::PagedTokens<'_>,
        foreign: [deft::cache::ElementsMut<'_>; 2],
    ) -> Result<(), BackendError> {
        self.cache.export(paged, foreign)
    }
    fn elastic(&mut self) -> Option<&mut dyn ElasticMemory> {
        Some(self)
    }
    fn attend(&mut self, call: attention::Attend<'_>) -> Result<(), BackendError> {
        self.cache.attend(call)
    }
}

#[test]
fn a_device_without_memory_refuses_and_the_cache_is_as_it_was() {
    let store = Store::Elastic { reserve: 8 * EXTENT, initial: 0 };
    let poor = |shape| {
        let cache = attention::cpu::new_elastic(shape)?;
        Ok(Box::new(Poor { cache, left: 2 }) as Box<dyn Backend>)
    };
    let mut cache = builder(store).backend(poor).build().unwrap();
    let root = cache.insert_root().unwrap();
    cache.extend(&[root], 2048).unwrap();
    let refused = cache.extend(&[root], 1).unwrap_err();
    assert!(refused.to_string().contains("no memory left"), "{refused}");
    assert_eq!(cache.forest().length(root), Ok(2048));
    cache.shrink(&[root], 64).unwrap();
    cache.extend(&[root], 64).unwrap();
    let refused = builder(store).backend(|shape| Ok(attention::cpu::new(shape)?)).build();
    assert!(matches!(refused, Err(CacheError::NotElastic { extents: None, .. })));
}
