//! Prefixes in files: the same bits come back, and nothing else is taken.

use std::fs;
use std::io::{self, Read, Write};
use std::path::PathBuf;

use deft::cache::{LayerMap, PagedOrder, PagedTable};
use deft::saved::SavedError;
use deft::{CacheBuilder, CacheError, DType, Device, Kv, KvElement, NodeKey, TreeCache, bf16, f16};
use rand::rngs::SmallRng;
use rand::{RngExt, SeedableRng};

const ROW: usize = 3 * 64;

fn builder(dtype: DType) -> CacheBuilder {
    TreeCache::builder(&Device::cpu())
        .layer_map(LayerMap::new(&[0, 1, 1]).unwrap())
        .heads(3, 3, 64)
        .dtype(dtype)
        .capacity_bytes(4 << 20)
        .identity(99)
}

fn cache(dtype: DType) -> TreeCache {
    builder(dtype).build().unwrap()
}

/// Adds `tokens` ids' K and V below what is there, and seals the path; the leaf below.
fn seal<T: KvElement>(cache: &mut TreeCache, tokens: &[u32], seed: u64) -> NodeKey {
    let opened = cache.open(tokens, 0).unwrap();
    let rest = tokens.len() as u32 - opened.matched;
    let batch = cache.batch(&[(opened.node, rest)]).unwrap();
    let mut rng = SmallRng::seed_from_u64(seed);
    for layer in [0, 1] {
        let [k, v] = [(); 2].map(|()| -> Vec<T> {
            let count = rest as usize * ROW;
            (0..count).map(|_| T::from_f32(rng.random_range(-2.0..2.0))).collect()
        });
        cache.append(layer, &batch, Kv::new(&k, &v)).unwrap();
    }
    cache.seal(opened.node, tokens, 0).unwrap()
}

/// All bits of the path to `node`.
fn bits<T: KvElement>(cache: &mut TreeCache, node: NodeKey) -> Vec<u8> {
    let tokens = cache.forest().context_length(node).unwrap() as u32;
    let table = PagedTable { order: PagedOrder::Nhd, page_size: tokens, pages: &[0] };
    let mut all = Vec::new();
    for layer in 0..3 {
        let mut rows = [(); 2].map(|()| vec![T::from_f32(f32::NAN); tokens as usize * ROW]);
        let [k, v] = &mut rows;
        cache.export(layer, node, 0..tokens, &table, k, v).unwrap();
        rows.iter().for_each(|rows| all.extend_from_slice(T::elements(rows).bytes().unwrap()));
    }
    all
}

/// A system prompt, and a question below it, so that the path has several nodes and the cut is within a page.
fn saved<T: KvElement>() -> (TreeCache, NodeKey, Vec<u32>, Vec<u8>) {
    let mut cache = cache(T::DTYPE);
    let mut tokens: Vec<u32> = (0..150).collect();
    seal::<T>(&mut cache, &tokens, 1);
    tokens.truncate(100);
    tokens.extend(500..560);
    let leaf = seal::<T>(&mut cache, &tokens, 2);
    let mut file = Vec::new();
    cache.save_to(leaf, &mut file).unwrap();
    (cache, leaf, tokens, file)
}

fn round_trip<T: KvElement>() {
    let (mut first, leaf, tokens, file) = saved::<T>();
    let expected = bits::<T>(&mut first, leaf);
    // Into an empty cache, and into one that holds the first 70 tokens, with other bits in them.
    for held in [0, 70] {
        let mut second = cache(T::DTYPE);
        if held > 0 {
            seal::<T>(&mut second, &tokens[..held], 1);
        }
        let loaded = second.load_from(&mut &file[..], 0).unwrap();
        let found = bits::<T>(&mut second, loaded);
        let row = ROW * T::DTYPE.bytes();
        for (part, (found, expected)) in
            (found.chunks(160 * row)).zip(expected.chunks(160 * row)).enumerate()
        {
            assert!(found[held * row..] == expected[held * row..], "part {part}, {held} held");
        }
        assert_eq!(second.forest().is_sealed(loaded), Ok(false));
        second.prune(loaded).unwrap();
        let question = [&tokens[..], &[7, 8]].concat();
        assert_eq!(second.open(&question, 0).unwrap().matched, 160);
        assert_eq!(second.open(&question, 1).unwrap().matched, 0);
    }
}

#[test]
fn what_was_saved_comes_back_bit_for_bit_and_is_found() {
    round_trip::<f32>();
    round_trip::<f16>();
    round_trip::<bf16>();
}

/// Everything that a failed load has to leave alone.
fn state(cache: &TreeCache) -> (usize, u32, usize) {
    cache.forest().debug_assert_invariants();
    let stats = cache.prefix_stats();
    (cache.forest().node_count(), cache.forest().pool().live(), stats.nodes)
}

fn refuse(cache: &mut TreeCache, file: &[u8]) -> SavedError {
    let before = state(cache);
    let refused = cache.load_from(&mut &file[..], 0);
    assert_eq!(state(cache), before);
    match refused {
        Err(CacheError::Saved(error)) => error,
        other => panic!("{other:?}"),
    }
}

#[test]
fn a_file_that_ends_anywhere_too_soon_is_torn() {
    let (_, _, _, file) = saved::<bf16>();
    let mut cache = cache(DType::Bf16);
    let mut lengths: Vec<usize> = (0..900).collect();
    lengths.extend((900..file.len()).step_by(4999));
    lengths.push(file.len() - 1);
    for length in lengths {
        let error = refuse(&mut cache, &file[..length]);
        assert!(matches!(error, SavedError::Torn { .. }), "{length} bytes: {error}");
    }
    let longer = [&file[..], &[0]].concat();
    assert!(matches!(refuse(&mut cache, &longer), SavedError::TooLong));
}

#[test]
fn a_file_with_any_bit_changed_is_refused() {
    let (_, _, _, mut file) = saved::<bf16>();
    let mut cache = cache(DType::Bf16);
    let mut at: Vec<usize> = (0..760).collect();
    at.extend((760..file.len()).step_by(3989));
    for at in at {
        file[at] ^= 1 << (at % 8);
        let error = refuse(&mut cache, &file);
        let expected = match at {
            0..8 => matches!(error, SavedError::Foreign { .. }),
            8..12 => matches!(error, SavedError::Version { known: 1, .. }),
            // The counts: either cannot be, or the header then ends elsewhere.
            32..40 => !matches!(error, SavedError::Foreign { .. }),
            _ => matches!(error, SavedError::Checksum { .. }),
        };
        assert!(expected, "byte {at}: {error}");
        file[at] ^= 1 << (at % 8);
    }
    cache.load_from(&mut &file[..], 0).unwrap();
}

#[test]
fn a_file_of_another_cache_is_refused_by_what_differs() {
    let (_, _, _, file) = saved::<bf16>();
    let map = |sources: &[u32]| LayerMap::new(sources).unwrap();
    let others = [
        (
            builder(DType::Bf16).heads(6, 6, 64),
            "kv_heads of the saved prefix is 3, the cache's is 6",
        ),
        (builder(DType::Bf16).heads(3, 3, 128), "head_dim"),
        (builder(DType::F16), "dtype of the saved prefix is bf16, the cache's is f16"),
        (builder(DType::Bf16).layers(2), "layers of the saved prefix is 3, the cache's is 2"),
        (
            builder(DType::Bf16).layer_map(map(&[0, 1, 0])),
            "layer map of the saved prefix is [0, 1, 1]",
        ),
        (
            builder(DType::Bf16).identity(7),
            "identity of the saved prefix is 0x63, the cache's is 0x7",
        ),
    ];
    for (other, message) in others {
        let error = refuse(&mut other.build().unwrap(), &file).to_string();
        assert!(error.contains(message), "{error}");
    }
}

#[test]
fn a_prefix_that_does_not_fit_leaves_no_part_of_itself() {
    let (_, _, _, file) = saved::<f32>();
    let page = 64 * 2 * 2 * ROW as u64 * 4;
    let mut small = builder(DType::F32).capacity_bytes(2 * page).build().unwrap();
    let before = state(&small);
    let error = small.load_from(&mut &file[..], 0).unwrap_err().to_string();
    assert!(error.contains("out of pages"), "{error}");
    assert_eq!(state(&small), before);
}

/// Takes or gives so many bytes, then fails.
struct Failing<S>(S, usize);

impl<S> Failing<S> {
    fn take(&mut self, bytes: usize) -> io::Result<usize> {
        match self.1 {
            0 => Err(io::Error::other("injected")),
            left => {
                let bytes = bytes.min(left).min(1000);
                self.1 -= bytes;
                Ok(bytes)
            }
        }
    }
}

impl<S: Read> Read for Failing<S> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let bytes = self.take(buffer.len())?;
        self.0.read(&mut buffer[..bytes])
    }
}

impl<S: Write> Write for Failing<S> {
    fn write(&mut self, buffer: &[u8]) -> io::Result<usize> {
        let bytes = self.take(buffer.len())?;
        self.0.write(&buffer[..bytes])
    }

    fn flush(&mut self) -> io::Result<()> {
        self.0.flush()
    }
}

#[test]
fn a_stream_that_fails_at_any_place_changes_nothing() {
    let (mut first, leaf, _, file) = saved::<f16>();
    let mut second = cache(DType::F16);
    for at in (0..file.len()).step_by(9973) {
        let before = [state(&first), state(&second)];
        let written = first.save_to(leaf, &mut Failing(Vec::new(), at)).unwrap_err();
        let read = second.load_from(&mut Failing(&file[..], at), 0).unwrap_err();
        for (error, action) in [(written, "write"), (read, "read")] {
            let expected = format!("cannot {action} a saved prefix: injected");
            assert_eq!(error.to_string(), expected);
        }
        assert_eq!([state(&first), state(&second)], before);
    }
    second.load_from(&mut &file[..], 0).unwrap();
}

/// A folder of this test's own.
fn folder(name: &str) -> PathBuf {
    let folder = std::env::temp_dir().join(format!("deft-saved-{name}-{}", std::process::id()));
    fs::create_dir_all(&folder).unwrap();
    folder
}

fn names(folder: &PathBuf) -> Vec<String> {
    let entries = fs::read_dir(folder).unwrap();
    entries.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect()
}

#[test]
fn a_file_is_there_whole_or_not_at_all() {
    let folder = folder("whole");
    let path = folder.join("prompt.kv");
    let (mut first, leaf, tokens, bytes) = saved::<bf16>();
    first.save(leaf, &path).unwrap();
    assert_eq!(fs::read(&path).unwrap(), bytes);
    // One that cannot be written leaves the old one.
    let root = first.insert_root().unwrap();
    let error = first.save(root, &path).unwrap_err().to_string();
    assert!(error.contains("is not in the prefix index"), "{error}");
    assert_eq!((fs::read(&path).unwrap(), names(&folder).len()), (bytes, 1));
    // A new one takes its place.
    let longer = [&tokens[..], &[1; 70]].concat();
    let leaf = seal::<bf16>(&mut first, &longer, 3);
    first.save(leaf, &path).unwrap();
    let mut second = cache(DType::Bf16);
    let loaded = second.load(&path, 0).unwrap();
    assert_eq!(second.forest().context_length(loaded), Ok(230));
    assert_eq!(names(&folder), ["prompt.kv"]);
    fs::remove_dir_all(&folder).unwrap();
    for result in [first.save(leaf, &path).map(drop), second.load(&path, 0).map(drop)] {
        let error = result.unwrap_err().to_string();
        assert!(error.contains("prompt.kv"), "{error}");
    }
}
