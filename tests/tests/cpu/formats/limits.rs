//! What is refused, what pages take, and which channels are kept.

use deft::cache::{PagedOrder, PagedTable};
use deft::format::ThinKeys;
use deft::plan::LaunchPages;
use deft::{DType, Device, Grouping, Kv, KvFormat, TreeCache, bf16};
use deft_tests::coded::Coded;
use deft_tests::emulated::Emulated;
use deft_tests::problem::heads;
use deft_tests::world::Place;
use kernels_gpu::Arch;
use kernels_gpu::abi::{ProgramHeader, WorkItem};

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
        let mut world = Coded::<bf16>::on(&Place::Cpu, heads(1, 1, 128), 2, 420, 1);
        let root = world.root(200 * 64 + 5);
        assert_eq!(world.cache.forest().pool().free(), 420 - 201);
        let native = 200 * world.page().native_bytes() as u64 * 2;
        assert_eq!(world.seal(root, name.parse().unwrap()), 200);
        world.check_counters();
        let bytes = world.cache.bytes();
        let [rest, coded] = bytes[..] else { panic!("{bytes:?}") };
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
        .sealed_format("kivi4".parse().unwrap())
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
    let error = cache.seal_as(root, "kivi4".parse().unwrap()).unwrap_err().to_string();
    let expected = "from[1], layer 1, KV head 1: v of token 7 is NaN at dim 3; codes hold";
    assert!(error.starts_with(expected), "{error}");
    let leaves = cache.fork(root, 2).unwrap();
    assert_eq!(cache.forest().format(root).unwrap(), (KvFormat::Native, 0));
    assert_eq!((cache.forest().pool().live(), cache.forest().pool().slab_pages()), (live, 0));
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
    let mut world = Coded::<f32>::on(&Place::Cpu, heads(1, 1, 64), 2, 100, 3);
    let leaf = world.root(150);
    let held = world.cache.batch_held(&[(leaf, 30)]).unwrap();
    assert_eq!(world.seal(leaf, "fp8".parse().unwrap()), 2);
    assert_eq!(world.seal(leaf, "fp8".parse().unwrap()), 0, "they are already");
    let rows = vec![0.5f32; 30 * 64];
    let stale = world.cache.append(0, &held, Kv::new(&rows, &rows)).unwrap_err();
    assert!(stale.to_string().starts_with("the batch is out of date"), "{stale}");
    let held = world.cache.batch_held(&[(leaf, 30)]).unwrap();
    let refused = "are kept in fp8: seal it as native first";
    let error = world.cache.append(0, &held, Kv::new(&rows, &rows)).unwrap_err().to_string();
    assert!(error.starts_with("the first 128 tokens of") && error.ends_with(refused), "{error}");
    let error = world.cache.shrink(&[leaf], 23).unwrap_err().to_string();
    assert!(error.ends_with(refused), "{error}");
    let error = world.cache.seal_as(leaf, "kivi2".parse().unwrap()).unwrap_err().to_string();
    assert!(error.ends_with("has pages in fp8: seal it as native first"), "{error}");
    let table = PagedTable { order: PagedOrder::Nhd, page_size: 16, pages: &[0, 1] };
    let (k, v) = (vec![0.0f32; 32 * 64], vec![0.0f32; 32 * 64]);
    let error = world.cache.import(0, leaf, 100..132, &table, &k, &v).unwrap_err().to_string();
    assert_eq!(
        error,
        "tokens 0..28 of those named are kept in fp8: seal their node as native first"
    );
    world.check(&[(leaf, 30)], Grouping::Flatten, "unchanged");
    // Native tokens are as free as ever.
    world.cache.import(0, leaf, 128..150, &table, &k, &v).unwrap();
    world.cache.shrink(&[leaf], 22).unwrap();
    assert_eq!(world.cache.forest().length(leaf).unwrap(), 128);
    world.check_counters();
}

#[test]
fn a_pool_without_a_free_slab_says_so_and_a_fork_leaves_the_node_native() {
    let mut world = Coded::<f32>::on(&Place::Cpu, heads(1, 1, 64), 2, 31, 4);
    let root = world.root(20 * 64);
    let error = world.cache.seal_as(root, "kivi4".parse().unwrap()).unwrap_err().to_string();
    assert!(error.starts_with("out of pages of a format: 20 wanted, 0 free; "), "{error}");
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
    let format: KvFormat = "native-keep48".parse().unwrap();
    let message = "KV format native-keep48 is not available on GPU kernels for sm_80, emulated yet; seal as native";
    let error = builder().sealed_format(format).build().unwrap_err();
    assert_eq!(error.to_string(), message);
    let mut cache = builder().build().unwrap();
    let root = cache.insert_root().unwrap();
    cache.extend(&[root], 64).unwrap();
    assert_eq!(cache.seal_as(root, format).unwrap_err().to_string(), message);
    assert_eq!(cache.seal_as(root, KvFormat::Native).unwrap(), 0);
    assert_eq!(cache.forest().pool().slab_pages(), 0);
    let group = KvFormat::Int4 { group: 96 };
    let error = TreeCache::builder(&Device::cpu())
        .layers(1)
        .heads(2, 1, 64)
        .dtype(DType::Bf16)
        .capacity_bytes(2 << 20)
        .sealed_format(group)
        .build()
        .unwrap_err();
    assert!(error.to_string().starts_with("group is 96; it must be"), "{error}");
}

#[test]
fn thin_keys_are_chosen_by_queries_and_keys_and_inherited() {
    let format = KvFormat::Thin { keep: 16, keys: ThinKeys::Native };
    let mut cache = TreeCache::builder(&Device::cpu())
        .layers(1)
        .heads(1, 1, 64)
        .dtype(DType::F32)
        .capacity_bytes(16 << 20)
        .build()
        .unwrap();
    let write = |cache: &mut TreeCache, node, loud: usize| {
        let batch = cache.batch(&[(node, 64)]).unwrap();
        let k: Vec<f32> =
            (0..64 * 64).map(|i| if i % 64 / 16 == loud { 2.0 } else { 1.0 }).collect();
        cache.append(0, &batch, Kv::new(&k, &k)).unwrap();
    };
    let kept = |cache: &mut TreeCache, node| -> Vec<usize> {
        let (mut k, mut v) = (vec![9.0f32; 64 * 64], vec![9.0f32; 64 * 64]);
        let pages = [0, 1, 2, 3];
        let table = PagedTable { order: PagedOrder::Nhd, page_size: 16, pages: &pages };
        let end = cache.forest().context_length(node).unwrap() as u32;
        cache.export(0, node, end - 64..end, &table, &mut k, &mut v).unwrap();
        (0..64).filter(|&dim| k[dim] != 0.0).collect()
    };
    let root = cache.insert_root().unwrap();
    write(&mut cache, root, 1);
    // Keys alone would say 16..32; queries weigh 48..64 more.
    let weights: Vec<f32> = (0..64).map(|dim| if dim >= 48 { 100.0 } else { 1.0 }).collect();
    let wrong = cache.seal_scored(root, format, &weights[1..]).unwrap_err().to_string();
    assert!(wrong.starts_with("weights has 63 elements"), "{wrong}");
    cache.seal_scored(root, format, &weights).unwrap();
    assert_eq!(kept(&mut cache, root), (48..64).collect::<Vec<_>>());
    let leaf = cache.fork(root, 1).unwrap()[0];
    write(&mut cache, leaf, 2);
    cache.seal_as(leaf, format).unwrap();
    assert_eq!(kept(&mut cache, leaf), (48..64).collect::<Vec<_>>(), "as above it");
    let other = cache.insert_root().unwrap();
    write(&mut cache, other, 2);
    cache.seal_as(other, format).unwrap();
    assert_eq!(kept(&mut cache, other), (32..48).collect::<Vec<_>>(), "by its own keys");
}

#[test]
fn items_are_of_one_format_and_bytes_are_counted_in_it() {
    let mut world = Coded::<bf16>::on(&Place::Cpu, heads(4, 2, 128), 2, 300, 5);
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

#[test]
fn native_items_come_first_in_the_launch_of_one_format() {
    let mut world = Coded::<bf16>::on(&Place::Cpu, heads(4, 2, 128), 1, 300, 5);
    let root = world.root(64 * 12 + 10);
    let leaves = world.fork(root, 3);
    for &leaf in &leaves {
        world.push(leaf, 70);
    }
    let asked: Vec<_> = leaves.iter().map(|&leaf| (leaf, 1)).collect();
    let [kivi2, fp8]: [KvFormat; 2] = ["kivi2", "fp8"].map(|name| name.parse().unwrap());
    let pages = |format, native| LaunchPages { format, native };
    let check = |world: &mut Coded<bf16>, expected: &[LaunchPages]| {
        let batch = world.cache.batch_held(&asked).unwrap();
        let plan = batch.plan();
        assert_eq!(plan.launches(), expected);
        for share in (0..plan.shares()).map(|share| plan.share(share)) {
            let mut left = share.items().len();
            for launch in expected {
                let words = share.of_launch(*launch);
                let header: &ProgramHeader =
                    bytemuck::from_bytes(bytemuck::cast_slice(&words[..4]));
                let items: &[WorkItem] =
                    bytemuck::cast_slice(&words[4..][..8 * header.items as usize]);
                let (native, others) = items.split_at(header.native_items() as usize);
                assert!(
                    native.iter().all(|item| item.format == 0)
                        && (launch.native || native.is_empty())
                );
                assert!(others.iter().all(|item| item.format == launch.format.code()));
                let segments: u32 = native.iter().map(|item| item.segment_count).sum();
                assert_eq!(segments, header.native_segments());
                left -= items.len();
            }
            assert_eq!(left, 0, "each item is in one launch");
        }
    };
    check(&mut world, &[pages(KvFormat::Native, true)]);
    world.seal(root, kivi2);
    check(&mut world, &[pages(kivi2, true)]);
    world.seal(leaves[1], fp8);
    check(&mut world, &[pages(fp8, true), pages(kivi2, false)]);
}
