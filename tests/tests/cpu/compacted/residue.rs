//! Rows that were folded away: what queries get of them, against the definition in f64.

use std::sync::Arc;

use deft::attention::BackendError;
use deft::retain::{Compaction, HeadCompaction};
use deft::tree::FeatureMap;
use deft::{CacheError, Grouping, NodeKey, Out};
use deft_tests::compacted::Compacted;
use deft_tests::problem::{GROUPINGS, heads};
use deft_tests::world::Place;

const DIMS: usize = 64;
const KV_HEADS: usize = 2;
const RANK: usize = 8;

/// Feature `i` is the magnitude of a product with a fixed vector, a different one for each layer and head.
#[derive(Debug)]
struct Magnitudes;

impl Magnitudes {
    fn exact(of: usize, x: &[f64]) -> Vec<f64> {
        let weight =
            |i: usize, dim: usize| ((of * 71 + i * 37 + dim * 13) % 41) as f64 / 80.0 - 0.25;
        let feature =
            |i| x.iter().enumerate().map(|(dim, x)| weight(i, dim) * x).sum::<f64>().abs();
        (0..RANK).map(feature).collect()
    }

    fn write(of: usize, x: &[f32], features: &mut [f32]) {
        let x: Vec<f64> = x.iter().map(|&x| x.into()).collect();
        for (feature, exact) in features.iter_mut().zip(Self::exact(of, &x)) {
            *feature = exact as f32;
        }
    }

    const fn query(layer: usize, q_head: usize) -> usize {
        1000 + layer * 10 + q_head
    }
    const fn key(layer: usize, kv_head: usize) -> usize {
        layer * 10 + kv_head
    }
}

impl FeatureMap for Magnitudes {
    fn rank(&self) -> usize {
        RANK
    }
    fn phi(&self, layer: u32, q_head: u32, q: &[f32], features: &mut [f32]) {
        Self::write(Self::query(layer as usize, q_head as usize), q, features);
    }
    fn psi(&self, layer: u32, kv_head: u32, k: &[f32], features: &mut [f32]) {
        Self::write(Self::key(layer as usize, kv_head as usize), k, features);
    }
}

/// A folded row: key, value, and how often it counts.
type Folded = (Vec<f64>, Vec<f64>, f64);

fn world(seed: u64) -> Compacted<f32> {
    let mut world =
        Compacted::on(&Place::Cpu, heads(4, KV_HEADS as u32, DIMS as u32), 2, 200, seed);
    world.cache.set_feature_map(Arc::new(Magnitudes)).unwrap();
    world
}

/// Keeps every third row of a node's pages, folds every third, and drops the others; what was folded of each head.
fn fold(world: &mut Compacted<f32>, node: NodeKey, tokens: u32) -> Vec<Vec<Folded>> {
    let counts = world.counts(node, tokens);
    let mut folded = Vec::new();
    let mut of = Vec::new();
    for (head, rows) in (0..).zip(counts) {
        let bias = |row: u32| world.rows(node, head)[row as usize].bias as f32;
        let mut compaction = HeadCompaction::default();
        (0..rows).step_by(3).for_each(|row| compaction.push_kept(row, bias(row)));
        // The second head of a layer folds nothing.
        let first = if head % 2 == 0 { 1 } else { rows };
        compaction.folded = (first..rows).step_by(3).collect();
        folded.push(
            compaction
                .folded
                .iter()
                .map(|&row| {
                    let row = &world.rows(node, head)[row as usize];
                    (row.k.clone(), row.v.clone(), row.bias.exp())
                })
                .collect(),
        );
        of.push(compaction);
    }
    world.compact(node, &Compaction { tokens, heads: of }).unwrap();
    folded
}

/// Attention at the last token of `nodes`, compared with f64 over rows and what was `folded` above each.
fn check(world: &mut Compacted<f32>, nodes: &[(NodeKey, Vec<&Vec<Vec<Folded>>>)], context: &str) {
    let asked: Vec<_> = nodes.iter().map(|&(node, _)| (node, 1)).collect();
    for grouping in GROUPINGS {
        world.cache.set_grouping(grouping);
        let batch = world.cache.batch_held(&asked).unwrap();
        for layer in 0..2_usize {
            let q: Vec<f32> =
                (0..nodes.len() * 4 * DIMS).map(|i| ((i * 29) % 53) as f32 / 30.0 - 0.8).collect();
            let (mut out, mut lse) = (vec![f32::NAN; q.len()], vec![f32::NAN; nodes.len() * 4]);
            let results = Out::with_lse(&mut out, &mut lse);
            world.cache.attend(layer as u32, &batch, &q, results).unwrap();
            for (at, q) in q.chunks_exact(DIMS).enumerate() {
                let ((node, folded), head) = (&nodes[at / 4], at % 4);
                let (o, of_rows) = world.right(layer as u32, (*node, 0), head, q);
                let exact: Vec<f64> = q.iter().map(|&x| x.into()).collect();
                let phi = Magnitudes::exact(Magnitudes::query(layer, head), &exact);
                let of = layer * KV_HEADS + head / 2;
                let mut sum = of_rows.exp();
                let mut right: Vec<f64> = o.iter().map(|o| o * sum).collect();
                for (k, v, count) in folded.iter().flat_map(|node| &node[of]) {
                    let psi = Magnitudes::exact(Magnitudes::key(layer, head / 2), k);
                    let weight: f64 = phi.iter().zip(&psi).map(|(a, b)| a * b).sum::<f64>() * count;
                    sum += weight;
                    right.iter_mut().zip(v).for_each(|(right, v)| *right += weight * v);
                }
                right.iter_mut().for_each(|right| *right /= sum);
                let error = deft_tests::oracle::relative_l2(&out[at * DIMS..][..DIMS], &right);
                assert!(error < 1e-5, "{context}, {grouping:?}, layer {layer}, row {at}: {error}");
                let error = (f64::from(lse[at]) - sum.ln()).abs();
                assert!(
                    error < 1e-4,
                    "{context}, {grouping:?}, layer {layer}, row {at}: LSE {error}"
                );
            }
        }
    }
}

#[test]
fn a_query_gets_one_more_part_of_every_node_above_it_that_has_folded_rows() {
    let mut world = world(1);
    let root = world.root(200);
    let of_root = fold(&mut world, root, 192);
    let children = world.fork(root, 3);
    let mut folded = Vec::new();
    for (&child, tokens) in children.iter().zip([130, 64, 5]) {
        world.push(child, tokens);
        folded.push((tokens >= 64).then(|| fold(&mut world, child, tokens / 64 * 64)));
        world.push(child, 2);
    }
    let nodes: Vec<_> = children
        .iter()
        .zip(&folded)
        .map(|(&child, own)| {
            (child, [Some(&of_root), own.as_ref()].into_iter().flatten().collect())
        })
        .collect();
    check(&mut world, &nodes, "three leaves");
    // Once more, with what was kept the first time.
    let more = fold(&mut world, root, 192);
    let nodes: Vec<_> = nodes
        .into_iter()
        .map(|(node, mut of)| {
            of.push(&more);
            (node, of)
        })
        .collect();
    check(&mut world, &nodes, "folded twice");
    // Chunks and other rows' orders: every query below gets its part.
    world.cache.set_grouping(Grouping::Flatten);
    let asked = [(children[2], 3), (children[0], 1)];
    let batch = world.cache.batch_held(&asked).unwrap();
    let slots = batch.plan().residues().iter().map(|of| of.queries.len()).collect::<Vec<_>>();
    assert_eq!(slots, [4, 1]);
    // What is below a node goes with it.
    world.prune(root);
    let residues = world.cache.forest().residues().unwrap();
    assert!((0..residues.len() as u32).all(|index| residues.of(index).is_empty()));
}

#[test]
fn residues_of_a_node_that_is_cut_add_up_to_the_whole_ones() {
    let attend = |cut: Option<u32>| {
        let mut world = world(2);
        let top = world.root(cut.unwrap_or(256));
        let mut nodes = vec![(top, cut.unwrap_or(256))];
        if let Some(cut) = cut {
            let below = world.fork(top, 1)[0];
            world.push(below, 256 - cut);
            nodes.push((below, 256 - cut));
        }
        // K and V by the token of the path, whoever holds it.
        let (mut before, mut last) = (0, top);
        for &(node, tokens) in &nodes {
            let batch = world.cache.batch_held(&[(node, tokens)]).unwrap();
            for layer in 0..2_u32 {
                let value = |half: u32| -> Vec<f32> {
                    (0..tokens as usize * KV_HEADS * DIMS)
                        .map(|i| {
                            let at = i + before as usize * KV_HEADS * DIMS;
                            ((at * (31 + half as usize) + layer as usize) % 97) as f32 / 50.0 - 1.0
                        })
                        .collect()
                };
                let (k, v) = (value(0), value(1));
                world.cache.append(layer, &batch, deft::Kv::new(&k, &v)).unwrap();
            }
            (before, last) = (before + tokens, node);
        }
        before = 0;
        for (node, tokens) in nodes {
            let own = before..before + tokens;
            let mut head =
                HeadCompaction::keep(own.clone().filter(|t| t % 4 == 0).map(|t| t - before));
            head.folded = own.filter(|t| t % 4 > 1).map(|t| t - before).collect();
            world.cache.compact_node(node, &Compaction { tokens, heads: vec![head; 4] }).unwrap();
            before += tokens;
        }
        let leaf = world.cache.fork(last, 1).unwrap()[0];
        let batch = world.cache.batch(&[(leaf, 1)]).unwrap();
        let q: Vec<f32> = (0..4 * DIMS).map(|i| ((i * 7) % 31) as f32 / 20.0 - 0.7).collect();
        let mut out = vec![f32::NAN; q.len()];
        let zeros = vec![0.0_f32; KV_HEADS * DIMS];
        world.cache.append(1, &batch, deft::Kv::new(&zeros, &zeros)).unwrap();
        world.cache.attend(1, &batch, &q, &mut out).unwrap();
        out
    };
    let whole: Vec<f64> = attend(None).iter().map(|&x| x.into()).collect();
    for cut in [64, 128, 192] {
        let error = deft_tests::oracle::relative_l2(&attend(Some(cut)), &whole);
        assert!(error < 1e-5, "cut at {cut}: {error}");
    }
}

#[test]
fn rows_are_folded_by_one_feature_map_only_and_not_without() {
    let mut world = Compacted::<f32>::on(&Place::Cpu, heads(4, 2, 64), 1, 50, 3);
    let root = world.root(64);
    let mut head = HeadCompaction::keep(0..60);
    head.folded = vec![61, 63];
    let compaction = Compaction { tokens: 64, heads: vec![HeadCompaction::keep(0..64), head] };
    let error = world.compact(root, &compaction).unwrap_err();
    assert_eq!(
        error.to_string(),
        "heads[1] folds 2 rows, but the cache has no feature map: set one first"
    );
    world.check_counters();
    world.cache.set_feature_map(Arc::new(Magnitudes)).unwrap();
    world.compact(root, &compaction).unwrap();
    let error = world.cache.set_feature_map(Arc::new(Magnitudes)).unwrap_err();
    assert!(matches!(error, CacheError::FeatureMapInUse), "{error}");
    world.prune(root);
    world.cache.set_feature_map(Arc::new(Magnitudes)).unwrap();
    let refused = BackendError::Residues { backend: "one".to_owned() };
    assert!(refused.to_string().ends_with("are read on the CPU, not on one"));
}
