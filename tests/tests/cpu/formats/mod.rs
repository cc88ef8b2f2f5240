//! Nodes in several formats: attention on the CPU, and everything that trees do, against the codecs' definition in f64.

mod limits;
mod prefixes;

use deft::cache::HEAD_DIMS;
use deft::format::{PageShape, ThinKeys};
use deft::plan::HeadShape;
use deft::{
    DType, Device, DraftNode, Grouping, Kv, KvElement, KvFormat, NodeKey, Out, TreeCache, bf16, f16,
};
use deft_tests::coded::Coded;
use deft_tests::forests::pick;
use deft_tests::problem::{GROUPINGS, heads};
use deft_tests::world::{Place, ask, decode_behind};
use rand::RngExt;

fn formats(head_dim: u32) -> Vec<KvFormat> {
    let names = ["fp8", "fp8-token", "int4-g64", "kivi4", "kivi2", "kivi4-keep48", "native-keep32"];
    let mut formats: Vec<KvFormat> = names.map(|name| name.parse().unwrap()).into();
    formats.push(KvFormat::Int4 { group: head_dim });
    // Groups of dims divide a head.
    formats.retain(|format| format.check(PageShape { head_dim, dtype: DType::F32 }).is_ok());
    formats
}

fn check_forest<T: KvElement>(heads: HeadShape, formats: &[KvFormat], seed: u64) {
    let mut world = Coded::<T>::on(&Place::Cpu, heads, 2, 400, seed);
    let asked = world.grow_sealed(formats);
    world.check_counters();
    for grouping in GROUPINGS {
        let context = format!("seed {seed}, {heads:?}, {} in {formats:?}", T::DTYPE);
        world.check(&asked, grouping, &context);
    }
    for &(node, _) in asked.iter().take(2) {
        let length = world.cache.forest().context_length(node).unwrap() as u32;
        world.check_export(node, length / 3..length);
    }
}

#[test]
fn random_forests_of_every_format_head_dim_and_ratio_agree_with_the_decoded_cache() {
    for head_dim in HEAD_DIMS {
        for (at, heads) in
            (0..).zip([heads(1, 1, head_dim), heads(4, 1, head_dim), heads(6, 2, head_dim)])
        {
            for (seed, format) in (at * 100..).zip(formats(head_dim)) {
                match (seed + at) % 3 {
                    0 => check_forest::<f32>(heads, &[format], seed),
                    1 => check_forest::<bf16>(heads, &[format], seed),
                    _ => check_forest::<f16>(heads, &[format], seed),
                }
            }
        }
    }
}

#[test]
fn forests_of_all_formats_at_once_agree_with_the_decoded_cache() {
    for seed in 0..12 {
        check_forest::<f32>(heads(4, 2, 64), &formats(64), 1000 + seed);
    }
    check_forest::<bf16>(heads(4, 2, 128), &formats(128), 2000);
    check_forest::<f16>(heads(4, 2, 128), &formats(128), 2001);
}

/// What happened to trees with sealed pages.
#[derive(Clone, Copy, Debug, Default)]
struct Happened {
    merged: u32,
    accepted: u32,
    unsealed: u32,
}

/// Three nodes, each sealed, one below the other, that become one; below it a sealed leaf that goes.
fn chain(world: &mut Coded<f32>, format: KvFormat) -> NodeKey {
    let top = world.root(150);
    let mut last = top;
    for tokens in [130, 70] {
        world.seal(last, format);
        last = world.fork(last, 1)[0];
        world.push(last, tokens);
    }
    world.seal(last, format);
    world.check(&[(top, 1), (last, 10)], Grouping::Flatten, "a chain");
    world.merge_chain(top);
    world.check_counters();
    let forest = world.cache.forest();
    assert_eq!(forest.format(top).unwrap(), (format, 128), "its own pages stay");
    assert_eq!(forest.length(top).unwrap(), 350);
    world.check(&[(top, 1)], Grouping::Flatten, "merged");
    assert_eq!(world.seal(top, format), 3);
    world.check(&[(top, 1)], Grouping::Flatten, "merged and sealed");
    let live = world.cache.forest().pool().live();
    let leaf = world.fork(top, 1)[0];
    world.push(leaf, 64);
    world.seal(leaf, format);
    world.cache.prune(leaf).unwrap();
    world.check_counters();
    assert_eq!(world.cache.forest().pool().live(), live);
    top
}

/// All that may happen to a tree, over and over.
fn live(format: KvFormat, seed: u64, happened: &mut Happened) {
    let mut world = Coded::<f32>::on(&Place::Cpu, heads(2, 1, 64), 2, 700, seed);
    let mut nodes = vec![chain(&mut world, format)];
    happened.merged += 2;
    for round in 0..20 {
        let node = pick(world.rng(), &nodes);
        let forest = world.cache.forest();
        let sealed = |node| u32::from(forest.format(node).unwrap().1 > 0);
        let own = sealed(node);
        let mut chain = Vec::new();
        let mut next = Some(node);
        while let Some(at) = next {
            let children: Vec<_> = forest.children(at).unwrap().collect();
            next = (children.len() == 1).then(|| children[0]);
            chain.extend(next);
        }
        let below: u32 = chain.iter().map(|&node| sealed(node)).sum();
        let grows = !forest.is_sealed(node).unwrap();
        let leaf = forest.children(node).unwrap().next().is_none();
        match world.rng().random_range(0..8) {
            0 if nodes.len() < 12 => {
                let children = world.rng().random_range(1..3);
                nodes.extend(world.fork(node, children));
            }
            1 | 2 if grows => {
                let tokens = world.rng().random_range(1..150);
                world.push(node, tokens);
            }
            3 if grows => {
                let draft = [None, Some(0), Some(0)].map(|parent| DraftNode { parent, tokens: 40 });
                let keys = world.draft(node, &draft);
                world.accept(node, &[keys[0], keys[2]]);
                happened.accepted += own;
            }
            4 | 5 => {
                world.seal(node, format);
            }
            6 => {
                world.merge_chain(node);
                nodes.retain(|node| !chain.contains(node));
                happened.merged += below;
            }
            7 if round % 3 == 0 => {
                world.seal(node, KvFormat::Native);
                happened.unsealed += own;
            }
            _ if leaf && nodes.len() > 4 => {
                world.cache.prune(node).unwrap();
                nodes.retain(|&other| other != node);
            }
            _ => {}
        }
        world.check_counters();
        let asked = ask(&mut world, &nodes);
        if !asked.is_empty() {
            let grouping = pick(world.rng(), &GROUPINGS);
            let context = format!("{format}, seed {seed}, round {round}");
            world.check(&asked, grouping, &context);
        }
    }
    for root in world.cache.forest().roots().collect::<Vec<_>>() {
        world.cache.prune(root).unwrap();
    }
    let pool = world.cache.forest().pool();
    assert_eq!((pool.live(), pool.slab_pages()), (0, 0));
}

#[test]
fn whatever_happens_to_a_tree_its_sealed_pages_go_with_it() {
    let mut happened = Happened::default();
    for (seed, format) in (0..).zip(formats(64)) {
        live(format, seed, &mut happened);
        live(format, seed + 50, &mut happened);
    }
    let Happened { merged, accepted, unsealed } = happened;
    let least = [merged, accepted, unsealed].into_iter().min();
    assert!(least >= Some(3), "{happened:?}");
}

#[test]
fn a_leaf_grows_behind_sealed_pages_without_a_new_plan() {
    let mut world = Coded::<f32>::on(&Place::Cpu, heads(2, 1, 64), 2, 200, 1);
    decode_behind(&mut world, "behind sealed pages", |world, leaf| {
        assert_eq!(world.seal(leaf, "kivi4".parse().unwrap()), 2);
    });
}

/// Bits of attention at three leaves of a root of 192 tokens, Node by Node, sealed as `format`.
fn bits(format: Option<KvFormat>, policy: bool) -> (Vec<u16>, Vec<u32>) {
    let mut builder = TreeCache::builder(&Device::cpu())
        .layers(1)
        .heads(8, 2, 128)
        .dtype(DType::Bf16)
        .capacity_bytes(4 << 20)
        .grouping(Grouping::Node);
    if let (Some(format), true) = (format, policy) {
        builder = builder.sealed_format(format);
    }
    let mut cache = builder.build().unwrap();
    let rows = |n: usize, width: usize, seed: usize| -> Vec<bf16> {
        let value = |i: usize| ((i * 37 + seed * 11) % 101) as f32 / 50.0 - 1.0;
        (0..n * width).map(|i| bf16::from_f32(value(i))).collect()
    };
    let root = cache.insert_root().unwrap();
    let batch = cache.batch(&[(root, 192)]).unwrap();
    cache.append(0, &batch, Kv::new(&rows(192, 256, 1), &rows(192, 256, 2))).unwrap();
    let leaves = cache.fork(root, 3).unwrap();
    if let (Some(format), false) = (format, policy) {
        cache.seal_as(root, format).unwrap();
    }
    if let Some(format) = format {
        let sealed = if format == KvFormat::Native { 0 } else { 192 };
        assert_eq!(cache.forest().format(root).unwrap(), (format, sealed));
    }
    let asked: Vec<_> = leaves.iter().map(|&leaf| (leaf, 5)).collect();
    let batch = cache.batch(&asked).unwrap();
    cache.append(0, &batch, Kv::new(&rows(15, 256, 3), &rows(15, 256, 4))).unwrap();
    let (mut out, mut lse) = (vec![bf16::NAN; 15 * 1024], vec![f32::NAN; 15 * 8]);
    cache.attend(0, &batch, &rows(15, 1024, 5), Out::with_lse(&mut out, &mut lse)).unwrap();
    (out.iter().map(|x| x.to_bits()).collect(), lse.iter().map(|x| x.to_bits()).collect())
}

#[test]
fn a_format_that_loses_nothing_gives_the_same_bits() {
    let plain = bits(None, false);
    for policy in [false, true] {
        assert_eq!(bits(Some(KvFormat::Native), policy), plain);
        let (keep, keys) = (128, ThinKeys::Native);
        assert_eq!(bits(Some(KvFormat::Thin { keep, keys }), policy), plain);
        assert_ne!(bits(Some("kivi2".parse().unwrap()), policy), plain);
    }
}
