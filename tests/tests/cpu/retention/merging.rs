//! KVMerger's sets, and what a merged row stands for.

use deft::retain::{MergeBias, Merger, Retention};
use deft::{DType, Device, Kv, NodeKey, Out, TreeCache};
use deft_tests::inputs::normals;
use deft_tests::oracle::relative_l2;

fn merger(bias: MergeBias) -> Merger {
    Merger { threshold: 0.75, recent: 0, top: 0.0, sigma: 5.0, bias, window: u32::MAX }
}

/// A prompt of 15 different tokens, each eight times over, and nine more.
fn repeated() -> (TreeCache, NodeKey, Vec<f32>, Vec<f32>) {
    let mut cache = TreeCache::builder(&Device::cpu())
        .layers(1)
        .heads(2, 1, 64)
        .dtype(DType::F32)
        .capacity_bytes(16 * 64 * 128 * 4)
        .build()
        .unwrap();
    let (k, v) = (normals::<f32>(5, 24 * 64, 1.0), normals::<f32>(6, 24 * 64, 1.0));
    let repeat = |rows: &[f32]| -> Vec<f32> {
        let row = |token: usize| {
            let of = if token < 120 { token / 8 } else { token - 105 };
            rows[of * 64..][..64].to_vec()
        };
        (0..129).flat_map(row).collect()
    };
    let prompt = cache.insert_root().unwrap();
    let batch = cache.batch(&[(prompt, 129)]).unwrap();
    cache.append(0, &batch, Kv::new(&repeat(&k), &repeat(&v))).unwrap();
    let q = normals::<f32>(7, 129 * 2 * 64, 2.0);
    let (mut out, mut lse) = (vec![0.0; q.len()], vec![0.0; 129 * 2]);
    cache.attend(0, &batch, &q, Out::with_lse(&mut out, &mut lse)).unwrap();
    let observe = merger(MergeBias::LogN).observe().unwrap();
    cache.score(0, &batch, observe, &q, &lse).unwrap();
    let last = q[128 * 128..].to_vec();
    let out = out[128 * 128..].to_vec();
    (cache, prompt, last, out)
}

fn merged(bias: MergeBias) -> f64 {
    let (mut cache, prompt, q, exact) = repeated();
    let chosen = cache.select(&mut merger(bias), prompt, 1.0).unwrap().unwrap();
    assert_eq!(chosen.heads[0].rows.len(), 23);
    for (sources, row) in chosen.heads[0].each_row() {
        let first = sources.iter().map(|source| source.row).min().unwrap();
        let count = if first < 120 { 8 } else { 1 };
        assert!(first % count == 0 && sources.len() as u32 == count, "{sources:?}");
        let expected = if bias == MergeBias::LogN { (count as f32).ln() } else { 0.0 };
        assert!((row.bias - expected).abs() < 1e-6);
    }
    assert_eq!(cache.compact_node(prompt, &chosen).unwrap(), 1);
    let batch = cache.batch_held(&[(prompt, 1)]).unwrap();
    let mut out = vec![f32::NAN; 128];
    cache.attend(0, &batch, &q, &mut out).unwrap();
    let wide = |row: &[f32]| row.iter().map(|&x| f64::from(x)).collect::<Vec<_>>();
    relative_l2(&out, &wide(&exact))
}

#[test]
fn eight_equal_keys_in_one_are_exact_with_log_n_and_visibly_not_without() {
    let error = merged(MergeBias::LogN);
    assert!(error < 1e-3, "{error}");
    let plain = merged(MergeBias::Plain);
    assert!(plain > 3e-2, "{plain}");
    let scaled = merged(MergeBias::ScaleValues);
    assert!(scaled > plain, "{scaled} against {plain}");
}

#[test]
fn what_is_merged_again_counts_as_often_as_it_stands_for() {
    let (mut cache, prompt, _, _) = repeated();
    let mut once = merger(MergeBias::LogN);
    let chosen = cache.select(&mut once, prompt, 1.0).unwrap().unwrap();
    cache.compact_node(prompt, &chosen).unwrap();
    // Everything into two rows: a poor cache, but one that has lost no weight.
    once.threshold = -1.0;
    let chosen = cache.select(&mut once, prompt, 1.0).unwrap().unwrap();
    let weight: f32 = chosen.heads[0].rows.iter().map(|row| row.bias.exp()).sum();
    assert!((weight - 128.0).abs() < 1e-2, "{weight}");
    assert!(chosen.heads[0].rows.len() < 23);
    cache.compact_node(prompt, &chosen).unwrap();
    let merged = &cache.forest().compacted_rows(prompt).unwrap()[0];
    let weight: f32 = merged.biases.iter().map(|bias| bias.exp()).sum();
    assert!((weight - 128.0).abs() < 1e-2, "{weight}");
}
