//! Layers that read the keys and values of others, against a cache that stores copies of them.

use deft::cache::{LayerMap, PagedOrder, PagedTable};
use deft::{CacheError, DType, Device, Kv, KvElement, NodeKey, Out, TreeCache, bf16, f16};
use rand::rngs::SmallRng;
use rand::{RngExt, SeedableRng};

const SOURCES: [u32; 5] = [0, 0, 2, 1, 2];
const ROW: usize = 2 * 64;

fn cache(dtype: DType, map: bool) -> TreeCache {
    let builder =
        TreeCache::builder(&Device::cpu()).heads(6, 2, 64).dtype(dtype).capacity_bytes(10 << 20);
    let map = match map {
        true => builder.layer_map(LayerMap::new(&SOURCES).unwrap()),
        false => builder.layers(SOURCES.len() as u32),
    };
    map.build().unwrap()
}

fn random<T: KvElement>(rng: &mut SmallRng, count: usize) -> Vec<T> {
    let values = (0..count).map(|_| T::from_f32(rng.random_range(-1.5..1.5)));
    values.collect()
}

/// Runs tokens of `nodes` through both caches; the outputs and LSEs have the same bits in every layer.
fn pass<T: KvElement>(caches: &mut [TreeCache; 2], nodes: [&[(NodeKey, u32)]; 2], seed: u64) {
    let map = LayerMap::new(&SOURCES).unwrap();
    let results = [0, 1].map(|which| {
        let mut rng = SmallRng::seed_from_u64(seed);
        let cache = &mut caches[which];
        let batch = cache.batch(nodes[which]).unwrap();
        let mut kept: Vec<[Vec<T>; 2]> = Vec::new();
        let mut bits = Vec::new();
        for layer in 0..map.layers() {
            let own = [(); 2].map(|()| random::<T>(&mut rng, batch.rows() * ROW));
            let kv = match map.is_own(layer) {
                true => own,
                false => kept[map.source(layer) as usize].clone(),
            };
            if map.is_own(layer) || which == 1 {
                cache.append(layer, &batch, Kv::new(&kv[0], &kv[1])).unwrap();
            }
            kept.push(kv);
            let q = random::<T>(&mut rng, batch.rows() * 6 * 64);
            let mut out = vec![T::from_f32(f32::NAN); q.len()];
            let mut lse = vec![f32::NAN; batch.rows() * 6];
            let results = Out::with_lse(&mut out, &mut lse);
            cache.attend(layer, &batch, &q, results).unwrap();
            let exact = out.iter().map(|x| x.to_f32().to_bits());
            bits.push((
                exact.collect::<Vec<_>>(),
                lse.iter().map(|x| x.to_bits()).collect::<Vec<_>>(),
            ));
        }
        bits
    });
    assert!(results[0] == results[1]);
}

fn same_bits<T: KvElement>() {
    let mut caches = [cache(T::DTYPE, true), cache(T::DTYPE, false)];
    let roots = [0, 1].map(|which| caches[which].insert_root().unwrap());
    pass::<T>(&mut caches, roots.map(|root| [(root, 75)]).each_ref().map(|nodes| &nodes[..]), 1);
    let leaves = [0, 1].map(|which| caches[which].fork(roots[which], 3).unwrap());
    for step in 0..70 {
        let ones = leaves
            .each_ref()
            .map(|leaves| leaves.iter().map(|&leaf| (leaf, 1)).collect::<Vec<_>>());
        pass::<T>(&mut caches, ones.each_ref().map(|nodes| &nodes[..]), 2 + step);
    }
}

#[test]
fn shared_layers_attend_as_if_each_had_a_copy_bit_for_bit() {
    same_bits::<f32>();
    same_bits::<f16>();
    same_bits::<bf16>();
}

#[test]
fn pages_hold_the_layers_that_are_not_shared_and_no_others() {
    let [mapped, plain] = [cache(DType::F32, true), cache(DType::F32, false)];
    let bytes = |cache: &TreeCache| cache.backend().shape().page_bytes();
    assert_eq!(5 * bytes(&mapped), 2 * bytes(&plain));
    assert_eq!(mapped.forest().pool().capacity() as u64, (10 << 20) / bytes(&mapped));
    assert_eq!(mapped.config().layers, 5);
    assert_eq!(mapped.layer_map().map(LayerMap::stored), Some(2));
}

#[test]
fn writing_to_a_shared_layer_is_refused_and_reading_it_reads_its_source() {
    let mut cache = cache(DType::F32, true);
    let root = cache.insert_root().unwrap();
    let batch = cache.batch(&[(root, 3)]).unwrap();
    let kv = vec![1.0_f32; 3 * ROW];
    for layer in [0, 2] {
        cache.append(layer, &batch, Kv::new(&kv, &kv)).unwrap();
    }
    let other = vec![2.0_f32; 3 * ROW];
    let error = cache.append(3, &batch, Kv::new(&other, &other)).unwrap_err();
    assert_eq!(
        error.to_string(),
        "layer 3 reads the keys and values of layer 0: there is nothing to write"
    );
    let table = PagedTable { order: PagedOrder::Nhd, page_size: 16, pages: &[0] };
    let mut foreign = [(); 2].map(|()| vec![7.0_f32; 16 * ROW]);
    let refused = cache.import(1, root, 0..3, &table, &foreign[0], &foreign[1]);
    assert!(matches!(refused, Err(CacheError::SharedLayer { layer: 1, of: 0 })));
    let [k, v] = &mut foreign;
    cache.export(4, root, 0..3, &table, k, v).unwrap();
    assert_eq!(k[..3 * ROW], kv);
    assert_eq!(k[3 * ROW..], [7.0; 13 * ROW]);
    let mut out = vec![0.0_f32; 3 * 6 * 64];
    let q = out.clone();
    let error = cache.attend(5, &batch, &q, &mut out).unwrap_err();
    assert_eq!(error.to_string(), "layer is 5, the cache has 5");
}
