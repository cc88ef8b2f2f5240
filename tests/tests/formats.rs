//! Nodes in several formats: attention on the CPU, and everything that trees do, against the codecs' definition in f64.

use deft::format::ThinKeys;
use deft::plan::HeadShape;
use deft::{
    DType, Device, DraftNode, Grouping, Kv, KvElement, KvFormat, NodeKey, Out, PlanUpdate,
    TreeCache, bf16, f16,
};
use deft_tests::coded::Coded;
use deft_tests::emulated::Emulated;
use deft_tests::forests::pick;
use deft_tests::problem::{GROUPINGS, heads};
use kernels_gpu::Arch;
use rand::RngExt;

fn formats(head_dim: u32) -> Vec<KvFormat> {
    let names = [
        "fp8",
        "fp8-token",
        "int4-g64",
        "kivi4",
        "kivi2",
        "kivi4-keep48",
        "native-keep32",
    ];
    let mut formats: Vec<KvFormat> = names.map(|name| name.parse().unwrap()).into();
    formats.push(KvFormat::Int4 { group: head_dim });
    formats
}

/// A random forest of which some nodes are sealed in one of `formats`, growing ones as well; the nodes that ask.
fn grow<T: KvElement>(world: &mut Coded<T>, formats: &[KvFormat]) -> Vec<NodeKey> {
    let lengths = [1, 63, 64, 65, 128, 150, 200, 320];
    let mut growing: Vec<NodeKey> = (0..2)
        .map(|_| {
            let tokens = pick(world.rng(), &lengths);
            world.root(tokens)
        })
        .collect();
    let mut all = growing.clone();
    for _ in 0..4 {
        let at = world.rng().random_range(0..growing.len());
        let parent = growing.swap_remove(at);
        let children = world.rng().random_range(1..4);
        for child in world.fork(parent, children) {
            let tokens = pick(world.rng(), &[0, 7, 64, 70, 130]);
            world.push(child, tokens);
            growing.push(child);
            all.push(child);
        }
        if world.rng().random_range(0..4) > 0 {
            let format = pick(world.rng(), formats);
            world.seal(parent, format);
        }
    }
    for leaf in growing {
        if world.rng().random_range(0..3) == 0 {
            let format = pick(world.rng(), formats);
            world.seal(leaf, format);
            let tokens = world.rng().random_range(0..70);
            world.push(leaf, tokens);
        }
        if world.rng().random_range(0..4) == 0 {
            let draft = [None, Some(0), Some(0)].map(|parent| DraftNode { parent, tokens: 2 });
            all.extend(world.draft(leaf, &draft));
        }
    }
    all
}

/// Nodes to ask, each for one or several of its last tokens.
fn ask<T: KvElement>(world: &mut Coded<T>, nodes: &[NodeKey]) -> Vec<(NodeKey, u32)> {
    let mut asked = Vec::new();
    for &node in nodes {
        let length = world.cache.forest().length(node).unwrap();
        if length > 0 {
            let most = [1, 1, length.min(9)][world.rng().random_range(0..3)];
            asked.push((node, most));
        }
    }
    asked
}

fn check_forest<T: KvElement>(heads: HeadShape, formats: &[KvFormat], seed: u64) {
    let mut world = Coded::<T>::new(heads, 400, seed);
    let nodes = grow(&mut world, formats);
    world.check_counters();
    let asked = ask(&mut world, &nodes);
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
    for head_dim in [64, 128, 256] {
        for (at, heads) in (0..).zip([
            heads(1, 1, head_dim),
            heads(4, 1, head_dim),
            heads(6, 2, head_dim),
        ]) {
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
    assert_eq!(
        forest.format(top).unwrap(),
        (format, 128),
        "its own pages stay"
    );
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
    let mut world = Coded::<f32>::new(heads(2, 1, 64), 700, seed);
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
        let grows = forest.grows(node).unwrap();
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
    let Happened {
        merged,
        accepted,
        unsealed,
    } = happened;
    let least = [merged, accepted, unsealed].into_iter().min();
    assert!(least >= Some(3), "{happened:?}");
}

#[test]
fn a_leaf_grows_behind_sealed_pages_without_a_new_plan() {
    let mut world = Coded::<f32>::new(heads(2, 1, 64), 200, 1);
    let root = world.root(130);
    let leaves = world.fork(root, 3);
    for &leaf in &leaves {
        world.push(leaf, 128);
        assert_eq!(world.seal(leaf, "kivi4".parse().unwrap()), 2);
    }
    for grouping in GROUPINGS {
        world.cache.set_grouping(grouping);
        let asked: Vec<_> = leaves.iter().map(|&leaf| (leaf, 1)).collect();
        let mut batch = world.cache.batch(&asked).unwrap();
        world.write(&batch);
        let mut updates = Vec::new();
        for _ in 0..70 {
            updates.push(world.cache.advance(&mut batch, 1).unwrap());
            world.write(&batch);
        }
        world.check_batch(&batch, "behind sealed pages");
        assert!(!updates.contains(&PlanUpdate::Replanned), "{updates:?}");
        assert!(updates.contains(&PlanUpdate::Patched), "{updates:?}");
    }
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
        builder = builder.seal(format);
    }
    let mut cache = builder.build().unwrap();
    let rows = |n: usize, width: usize, seed: usize| -> Vec<bf16> {
        let value = |i: usize| ((i * 37 + seed * 11) % 101) as f32 / 50.0 - 1.0;
        (0..n * width).map(|i| bf16::from_f32(value(i))).collect()
    };
    let root = cache.insert_root().unwrap();
    let batch = cache.batch(&[(root, 192)]).unwrap();
    cache
        .append(0, &batch, Kv::new(&rows(192, 256, 1), &rows(192, 256, 2)))
        .unwrap();
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
    cache
        .append(0, &batch, Kv::new(&rows(15, 256, 3), &rows(15, 256, 4)))
        .unwrap();
    let (mut out, mut lse) = (vec![bf16::NAN; 15 * 1024], vec![f32::NAN; 15 * 8]);
    cache
        .attend(
            0,
            &batch,
            &rows(15, 1024, 5),
            Out::with_lse(&mut out, &mut lse),
        )
        .unwrap();
    (
        out.iter().map(|x| x.to_bits()).collect(),
        lse.iter().map(|x| x.to_bits()).collect(),
    )
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

#[test]
fn pages_come_back_at_once_and_bytes_are_what_the_format_says() {
    let table = [
        ("fp8", 2.0),
        ("int4-g128", 3.76),
        ("kivi4", 3.2),
        ("kivi2", 5.33),
        ("native-keep80", 1.23),
    ];
    for (name, ratio) in table {
        let mut world = Coded::<bf16>::new(heads(1, 1, 128), 420, 1);
        let root = world.root(200 * 64 + 5);
        assert_eq!(world.cache.forest().pool().free(), 420 - 201);
        let native = 200 * world.page().native_bytes() as u64 * 2;
        assert_eq!(world.seal(root, name.parse().unwrap()), 200);
        world.check_counters();
        let bytes = world.cache.bytes();
        let [rest, coded] = bytes[..] else {
            panic!("{bytes:?}")
        };
        assert_eq!((rest.pages, coded.pages), (1, 200));
        let found = native as f64 / coded.bytes as f64;
        assert!((found - ratio).abs() < 0.01, "{name}: {found}, not {ratio}");
        // Whole slabs of 16 pages are held, and a page of a slab may be left over.
        let slabs = 200u32.div_ceil(coded.format.pages_per_slab(world.page()));
        let pool = world.cache.forest().pool();
        assert_eq!(pool.free(), 420 - 1 - 16 * slabs, "{name}");
        assert!(pool.check_free(u64::from(420 - 1 - 16 * slabs)).is_ok());
    }
}

#[test]
fn a_nan_refuses_the_seal_and_nothing_changes() {
    let mut cache = TreeCache::builder(&Device::cpu())
        .layers(2)
        .heads(2, 2, 64)
        .dtype(DType::F32)
        .capacity_bytes(16 << 20)
        .seal("kivi4".parse().unwrap())
        .build()
        .unwrap();
    let root = cache.insert_root().unwrap();
    let batch = cache.batch(&[(root, 200)]).unwrap();
    for (layer, value) in [(0, 1.0), (1, f32::NAN)] {
        let k = vec![1.0f32; 200 * 128];
        let mut v = k.clone();
        v[(64 + 7) * 128 + 64 + 3] = value;
        cache.append(layer, &batch, Kv::new(&k, &v)).unwrap();
    }
    let live = cache.forest().pool().live();
    let error = cache
        .seal_as(root, "kivi4".parse().unwrap())
        .unwrap_err()
        .to_string();
    let expected = "from[1], layer 1, KV head 1: v of token 7 is NaN at dim 3; codes hold";
    assert!(error.starts_with(expected), "{error}");
    let leaves = cache.fork(root, 2).unwrap();
    assert_eq!(cache.forest().format(root).unwrap(), (KvFormat::Native, 0));
    assert_eq!(
        (
            cache.forest().pool().live(),
            cache.forest().pool().slab_pages()
        ),
        (live, 0)
    );
    cache.forest().debug_assert_invariants();
    let batch = cache.batch(&[(leaves[0], 1)]).unwrap();
    let one = vec![1.0f32; 128];
    cache.append(0, &batch, Kv::new(&one, &one)).unwrap();
    let mut out = vec![7.0f32; 128];
    cache.attend(0, &batch, &one, &mut out).unwrap();
    assert_eq!(out, one);
}

#[test]
fn sealed_tokens_are_neither_written_nor_taken_away() {
    let mut world = Coded::<f32>::new(heads(1, 1, 64), 100, 3);
    let leaf = world.root(150);
    let held = world.cache.batch_held(&[(leaf, 30)]).unwrap();
    assert_eq!(world.seal(leaf, "fp8".parse().unwrap()), 2);
    assert_eq!(
        world.seal(leaf, "fp8".parse().unwrap()),
        0,
        "they are already"
    );
    let rows = vec![0.5f32; 30 * 64];
    let stale = world
        .cache
        .append(0, &held, Kv::new(&rows, &rows))
        .unwrap_err();
    assert!(
        stale.to_string().starts_with("the batch is out of date"),
        "{stale}"
    );
    let held = world.cache.batch_held(&[(leaf, 30)]).unwrap();
    let refused = "are kept in fp8: seal it as native first";
    let error = world
        .cache
        .append(0, &held, Kv::new(&rows, &rows))
        .unwrap_err()
        .to_string();
    assert!(
        error.starts_with("the first 128 tokens of") && error.ends_with(refused),
        "{error}"
    );
    let error = world.cache.shrink(&[leaf], 23).unwrap_err().to_string();
    assert!(error.ends_with(refused), "{error}");
    let error = world
        .cache
        .seal_as(leaf, "kivi2".parse().unwrap())
        .unwrap_err()
        .to_string();
    assert!(
        error.ends_with("has pages in fp8: seal it as native first"),
        "{error}"
    );
    let table = deft::cache::PagedTable {
        order: deft::cache::PagedOrder::Nhd,
        page_size: 16,
        pages: &[0, 1],
    };
    let (k, v) = (vec![0.0f32; 32 * 64], vec![0.0f32; 32 * 64]);
    let error = world
        .cache
        .import(0, leaf, 100..132, &table, &k, &v)
        .unwrap_err()
        .to_string();
    assert_eq!(
        error,
        "tokens 0..28 of those named are kept in fp8: seal their node as native first"
    );
    world.check(&[(leaf, 30)], Grouping::Flatten, "unchanged");
    // Native tokens are as free as ever.
    world
        .cache
        .import(0, leaf, 128..150, &table, &k, &v)
        .unwrap();
    world.cache.shrink(&[leaf], 22).unwrap();
    assert_eq!(world.cache.forest().length(leaf).unwrap(), 128);
    world.check_counters();
}

#[test]
fn a_pool_without_a_free_slab_says_so_and_a_fork_leaves_the_node_native() {
    let mut world = Coded::<f32>::new(heads(1, 1, 64), 31, 4);
    let root = world.root(20 * 64);
    let error = world
        .cache
        .seal_as(root, "kivi4".parse().unwrap())
        .unwrap_err()
        .to_string();
    assert!(
        error.starts_with("out of pages of a format: 20 wanted, 0 free; "),
        "{error}"
    );
    assert_eq!(world.cache.forest().pool().live(), 20);
    world.check(&[(root, 1)], Grouping::Flatten, "unchanged");
    let small = world.root(64);
    world.cache.prune(root).unwrap();
    assert_eq!(world.seal(small, "kivi4".parse().unwrap()), 1);
    world.check_counters();
}

#[test]
fn a_backend_without_formats_refuses_them_by_name() {
    let builder = || {
        TreeCache::builder(&Device::cpu())
            .layers(1)
            .heads(2, 1, 64)
            .dtype(DType::Bf16)
            .capacity_bytes(2 << 20)
            .backend(|shape| Ok(Box::new(Emulated::new(shape, 1).with_kernels(Arch::Sm80))))
    };
    let format: KvFormat = "int4-g64".parse().unwrap();
    let message = "KV format int4-g64 is not available on GPU kernels for sm_80, emulated yet; seal as native";
    let error = builder().seal(format).build().unwrap_err();
    assert_eq!(error.to_string(), message);
    let mut cache = builder().build().unwrap();
    let root = cache.insert_root().unwrap();
    cache.extend(&[root], 64).unwrap();
    assert_eq!(
        cache.seal_as(root, format).unwrap_err().to_string(),
        message
    );
    assert_eq!(cache.seal_as(root, KvFormat::Native).unwrap(), 0);
    assert_eq!(cache.forest().pool().slab_pages(), 0);
    let group = KvFormat::Int4 { group: 96 };
    let error = TreeCache::builder(&Device::cpu())
        .layers(1)
        .heads(2, 1, 64)
        .dtype(DType::Bf16)
        .capacity_bytes(2 << 20)
        .seal(group)
        .build()
        .unwrap_err();
    assert!(
        error.to_string().starts_with("group is 96; it must be"),
        "{error}"
    );
}

#[test]
fn thin_keys_are_chosen_by_queries_and_keys_and_inherited() {
    let format = KvFormat::Thin {
        keep: 16,
        keys: ThinKeys::Native,
    };
    let mut cache = TreeCache::builder(&Device::cpu())
        .layers(1)
        .heads(1, 1, 64)
        .dtype(DType::F32)
        .capacity_bytes(16 << 20)
        .build()
        .unwrap();
    let write = |cache: &mut TreeCache, node, loud: usize| {
        let batch = cache.batch(&[(node, 64)]).unwrap();
        let k: Vec<f32> = (0..64 * 64)
            .map(|i| if i % 64 / 16 == loud { 2.0 } else { 1.0 })
            .collect();
        cache.append(0, &batch, Kv::new(&k, &k)).unwrap();
    };
    let kept = |cache: &mut TreeCache, node| -> Vec<usize> {
        let (mut k, mut v) = (vec![9.0f32; 64 * 64], vec![9.0f32; 64 * 64]);
        let pages = [0, 1, 2, 3];
        let table = deft::cache::PagedTable {
            order: deft::cache::PagedOrder::Nhd,
            page_size: 16,
            pages: &pages,
        };
        let end = cache.forest().context_length(node).unwrap() as u32;
        cache
            .export(0, node, end - 64..end, &table, &mut k, &mut v)
            .unwrap();
        (0..64).filter(|&dim| k[dim] != 0.0).collect()
    };
    let root = cache.insert_root().unwrap();
    write(&mut cache, root, 1);
    // Keys alone would say 16..32; queries weigh 48..64 more.
    let weights: Vec<f32> = (0..64)
        .map(|dim| if dim >= 48 { 100.0 } else { 1.0 })
        .collect();
    let wrong = cache
        .seal_scored(root, format, &weights[1..])
        .unwrap_err()
        .to_string();
    assert!(wrong.starts_with("weights has 63 elements"), "{wrong}");
    cache.seal_scored(root, format, &weights).unwrap();
    assert_eq!(kept(&mut cache, root), (48..64).collect::<Vec<_>>());
    let leaf = cache.fork(root, 1).unwrap()[0];
    write(&mut cache, leaf, 2);
    cache.seal_as(leaf, format).unwrap();
    assert_eq!(
        kept(&mut cache, leaf),
        (48..64).collect::<Vec<_>>(),
        "as above it"
    );
    let other = cache.insert_root().unwrap();
    write(&mut cache, other, 2);
    cache.seal_as(other, format).unwrap();
    assert_eq!(
        kept(&mut cache, other),
        (32..48).collect::<Vec<_>>(),
        "by its own keys"
    );
}

#[test]
fn items_are_of_one_format_and_bytes_are_counted_in_it() {
    let mut world = Coded::<bf16>::new(heads(4, 2, 128), 300, 5);
    let root = world.root(64 * 40 + 10);
    let format: KvFormat = "kivi2".parse().unwrap();
    let plain = world.cache.batch_held(&[(root, 1)]).unwrap();
    world.seal(root, format);
    let leaves = world.fork(root, 3);
    for &leaf in &leaves {
        world.push(leaf, 70);
    }
    let asked: Vec<_> = leaves.iter().map(|&leaf| (leaf, 1)).collect();
    for grouping in [Grouping::Node, Grouping::NodeChunk, Grouping::Flatten] {
        world.cache.set_grouping(grouping);
        let batch = world.cache.batch_held(&asked).unwrap();
        let plan = batch.plan();
        assert!(plan.has_formats() && !plain.plan().has_formats());
        let mut tokens = std::collections::HashMap::<KvFormat, u32>::new();
        for item in (0..plan.shares()).flat_map(|share| plan.share(share).items()) {
            for segment in item.segments {
                let length = world.cache.forest().lengths();
                let length = length.get(segment.length_slot as usize).copied();
                *tokens.entry(item.format()).or_default() += segment.tokens_at(length.unwrap_or(0));
            }
        }
        assert_eq!(tokens[&format], 64 * 40, "{grouping:?}");
        assert_eq!(tokens[&KvFormat::Native], 10 + 3 * 70, "{grouping:?}");
        let lengths = world.cache.forest().lengths();
        let io = plan.issued_io(heads(4, 2, 128), 2, lengths, false);
        let native = 2 * 2 * 128 * 2 * (16 + 3 * 72);
        let coded = 2 * 40 * format.page_bytes(world.page()) as u64;
        assert_eq!(io.kv, native + coded, "{grouping:?}");
    }
}
