//! A cache that is filled by a model and a file at once.

use std::io::{self, Cursor, Read, Seek, SeekFrom};
use std::sync::{Arc, Barrier};
use std::time::Duration;

use deft::cache::{PagedOrder, PagedTable};
use deft::saved::SavedError;
use deft::{CacheError, DType, Device, Kv, NodeKey, Restored, TreeCache};
use rand::rngs::SmallRng;
use rand::{RngExt, SeedableRng};

const LAYERS: u32 = 2;
const ROW: usize = 64;
const TOKENS: u32 = 1500;

fn cache() -> TreeCache {
    TreeCache::builder(&Device::cpu())
        .layers(LAYERS)
        .heads(1, 1, 64)
        .dtype(DType::F32)
        .capacity_bytes(4 << 20)
        .build()
        .unwrap()
}

/// K or V of a token, as this test's model computes it.
fn row(id: u32, layer: u32, part: u64) -> impl Iterator<Item = f32> {
    let mut rng = SmallRng::seed_from_u64(u64::from(id) << 8 | u64::from(layer) << 1 | part);
    (0..ROW).map(move |_| rng.random_range(-1.0..1.0))
}

fn compute(cache: &mut TreeCache, leaf: NodeKey, ids: &[u32]) -> Result<(), CacheError> {
    let batch = cache.batch(&[(leaf, ids.len() as u32)])?;
    for layer in 0..LAYERS {
        let [k, v] = [0, 1]
            .map(|part| -> Vec<f32> { ids.iter().flat_map(|&id| row(id, layer, part)).collect() });
        cache.append(layer, &batch, Kv::new(&k, &v))?;
    }
    Ok(())
}

fn ids() -> Vec<u32> {
    (7000..7000 + TOKENS).collect()
}

fn file() -> Vec<u8> {
    let mut cache = cache();
    let leaf = cache.open(&ids(), 0).unwrap().node;
    compute(&mut cache, leaf, &ids()).unwrap();
    let leaf = cache.seal(leaf, &ids(), 0).unwrap();
    let mut file = Vec::new();
    cache.save_to(leaf, &mut file).unwrap();
    file
}

/// The path to `leaf` holds what the model computes.
fn check(cache: &mut TreeCache, leaf: NodeKey) {
    assert_eq!(cache.forest().context_length(leaf), Ok(u64::from(TOKENS)));
    let table = PagedTable { order: PagedOrder::Nhd, page_size: TOKENS, pages: &[0] };
    for layer in 0..LAYERS {
        let mut rows = [(); 2].map(|()| vec![f32::NAN; TOKENS as usize * ROW]);
        let [k, v] = &mut rows;
        cache.export(layer, leaf, 0..TOKENS, &table, k, v).unwrap();
        for (part, rows) in (0..).zip(rows) {
            let expected: Vec<f32> =
                ids().into_iter().flat_map(|id| row(id, layer, part)).collect();
            assert!(rows == expected, "layer {layer}, part {part}");
        }
    }
}

/// A file that waits before each read and fails at a place. Its first read waits for the first pass, too.
struct Slow {
    file: Cursor<Vec<u8>>,
    wait: Duration,
    fails_at: u64,
    first: Arc<Barrier>,
    began: bool,
}

impl Slow {
    fn new(file: &[u8], wait: u64) -> Self {
        Self {
            file: Cursor::new(file.to_vec()),
            wait: Duration::from_millis(wait),
            fails_at: u64::MAX,
            first: Arc::new(Barrier::new(2)),
            began: false,
        }
    }

    /// Which waits for nobody: where there may be a part for one side only.
    fn at_once(self) -> Self {
        let first = Arc::new(Barrier::new(1));
        Self { first, ..self }
    }
}

impl Read for Slow {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let begin = self.file.position();
        if (begin..begin + buffer.len() as u64).contains(&self.fails_at) {
            return Err(io::Error::other("injected"));
        }
        self.file.read(buffer)
    }
}

impl Seek for Slow {
    fn seek(&mut self, to: SeekFrom) -> io::Result<u64> {
        if !std::mem::replace(&mut self.began, true) {
            self.first.wait();
        }
        std::thread::sleep(self.wait);
        self.file.seek(to)
    }
}

/// Restores what `file` has. Whatever the threads' speeds, both sides have a part before either goes on.
fn restore(cache: &mut TreeCache, mut file: Slow, wait: u64) -> Restored {
    let (wait, first) = (Duration::from_millis(wait), file.first.clone());
    let mut began = false;
    let restored = cache.restore(&mut file, 0, 128, |cache, leaf, ids| {
        assert!(ids.len() <= 128);
        if !std::mem::replace(&mut began, true) {
            first.wait();
        }
        std::thread::sleep(wait);
        compute(cache, leaf, ids)
    });
    let restored: Result<Restored, CacheError> = restored;
    restored.unwrap()
}

#[test]
fn what_is_computed_and_what_is_loaded_meet_with_nothing_missing() {
    let file = file();
    for (load, pass) in [(3, 3), (0, 40), (40, 0)] {
        let mut cache = cache();
        let restored = restore(&mut cache, Slow::new(&file, load), pass);
        assert_eq!((restored.held, restored.computed + restored.loaded), (0, TOKENS));
        assert!(restored.computed > 0 && restored.loaded > 0, "{restored:?}");
        assert!(restored.fault.is_none());
        check(&mut cache, restored.node);
        assert_eq!(cache.open(&ids(), 0).unwrap().matched, TOKENS);
    }
}

#[test]
fn a_prefix_comes_back_from_the_host_s_memory() {
    let mut cache = cache();
    let leaf = cache.open(&ids(), 0).unwrap().node;
    compute(&mut cache, leaf, &ids()).unwrap();
    let leaf = cache.seal(leaf, &ids(), 0).unwrap();
    let sealed = cache.forest().parent(leaf).unwrap().unwrap();
    // What is in use is copied and stays.
    let copied = cache.demote(sealed).unwrap();
    check(&mut cache, leaf);
    cache.prune(leaf).unwrap();
    let demoted = cache.demote(sealed).unwrap();
    assert_eq!((cache.forest().pool().live(), demoted.bytes()), (0, copied.bytes()));
    assert_eq!(demoted.bytes(), file());
    for salt in [0, 1] {
        let restored = cache.restore(&demoted, salt, 128, compute).unwrap();
        assert_eq!((restored.held, restored.computed + restored.loaded), (0, TOKENS));
        check(&mut cache, restored.node);
        let promoted = cache.promote(&demoted, salt).unwrap();
        assert_eq!((promoted.held, promoted.loaded), (TOKENS, 0));
        cache.prune(cache.forest().parent(restored.node).unwrap().unwrap()).unwrap();
        let promoted = cache.promote(&demoted, salt).unwrap();
        assert_eq!((promoted.held, promoted.loaded), (0, TOKENS));
        check(&mut cache, promoted.node);
    }
}

#[test]
fn tokens_that_the_cache_holds_are_neither_computed_nor_loaded() {
    let file = file();
    for held in [1, 64, 100, TOKENS - 1, TOKENS] {
        let mut cache = cache();
        let ids = &ids()[..held as usize];
        let leaf = cache.open(ids, 0).unwrap().node;
        compute(&mut cache, leaf, ids).unwrap();
        cache.seal(leaf, ids, 0).unwrap();
        let restored = restore(&mut cache, Slow::new(&file, 1).at_once(), 1);
        assert_eq!((restored.held, restored.computed + restored.loaded), (held, TOKENS - held));
        check(&mut cache, restored.node);
    }
}

#[test]
fn a_file_that_fails_or_was_changed_is_named_and_the_rest_computed() {
    let file = file();
    let broken = |at: usize| {
        let mut file = file.clone();
        file[at] ^= 1;
        Slow::new(&file, 1)
    };
    let failing = Slow { fails_at: file.len() as u64 - 9000, ..Slow::new(&file, 1) };
    let cut = Slow::new(&file[..file.len() * 2 / 3], 1);
    let end = file.len() - 5000;
    for (name, file) in [("broken", broken(end)), ("failing", failing), ("cut", cut)] {
        let mut cache = cache();
        // The bad place is in the first part that is read.
        let restored = restore(&mut cache, file, 1);
        let fault = restored.fault.expect(name);
        let named = match name {
            "broken" => matches!(fault, SavedError::Checksum { .. }),
            "failing" => matches!(fault, SavedError::Io { .. }),
            _ => matches!(fault, SavedError::Torn { .. }),
        };
        assert!(named, "{name}: {fault}");
        check(&mut cache, restored.node);
    }
}

#[test]
fn a_pass_that_fails_ends_it_with_nothing_sealed() {
    for calls in [0, 2] {
        let mut cache = cache();
        let mut left = calls;
        let refused =
            cache.restore(&mut Slow::new(&file(), 200).at_once(), 0, 64, |cache, leaf, ids| {
                if left == 0 {
                    return Err(CacheError::ForeignBatch);
                }
                left -= 1;
                compute(cache, leaf, ids)
            });
        assert!(matches!(refused, Err(CacheError::ForeignBatch)));
        assert_eq!(cache.forest().node_count(), 0);
        // One that adds no tokens is found out.
        let refused = cache.restore(&mut Slow::new(&file(), 200).at_once(), 0, 64, |_, _, _| {
            Ok::<(), CacheError>(())
        });
        assert!(refused.unwrap_err().to_string().contains("holds 0 tokens"));
        assert_eq!(cache.forest().pool().live(), 0);
    }
}
