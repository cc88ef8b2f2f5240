//! A cache whose memory comes and goes, on the fake GPU: what it computes, what memory it has, and what happens when
//! the driver refuses. Pages without memory read as NaN.

use crate::world::{World, ones};
use deft::{CacheError, NodeKey, RotaryTable, StepRun};

/// Bytes of an extent: 16 pages.
const EXTENT: u64 = 1 << 20;

/// Adds tokens to a leaf, 200 at a time, with K and V.
fn grow(world: &mut World, leaf: NodeKey, tokens: u32) {
    for begin in (0..tokens).step_by(200) {
        let count = 200.min(tokens - begin);
        let batch = world.cache.batch(&[(leaf, count)]).unwrap();
        let inputs = world.inputs(&batch);
        world.upload(&inputs);
        world.append(&batch).unwrap();
    }
}

/// A world with three trees of 1,000 tokens.
fn grown(seed: u64) -> (World, [NodeKey; 3]) {
    let mut world = crate::elastic_world(seed);
    let roots = [world.root(), world.root(), world.root()];
    for &root in &roots {
        grow(&mut world, root, 1000);
    }
    (world, roots)
}

#[test]
fn one_graph_serves_a_loop_whose_pages_get_memory_as_they_are_taken() {
    let fake = crate::load();
    let mut world = crate::elastic_world(7);
    world.table = Some(RotaryTable::new(64, 2000, 10_000.0).unwrap());
    let runs = world.mixed_loop(90, "elastic");
    let captured = runs.iter().filter(|&&run| run == StepRun::Captured).count();
    assert!(captured <= 4, "{runs:?}");
    let bytes = world.cache.store_bytes();
    assert!(bytes.memory <= bytes.held + 2 * EXTENT && bytes.reserved == 8 * EXTENT, "{bytes:?}");
    drop(world);
    assert_eq!((fake.live_objects(), fake.misused()), (0, 0));
}

#[test]
fn memory_follows_the_pages_that_are_held() {
    let fake = crate::load();
    let mut world = crate::elastic_world(3);
    assert_eq!(world.cache.store_bytes().held, 0);
    let roots = [world.root(), world.root(), world.root()];
    for (count, &root) in (1..).zip(&roots) {
        grow(&mut world, root, 1024);
        // And one extent ahead, which a thread maps.
        let memory = world.cache.store_bytes().memory;
        assert!(memory == count * EXTENT || memory == (count + 1) * EXTENT, "{memory}");
    }
    world.verify(&roots, "full");
    world.cache.prune(roots[1]).unwrap();
    world.cache.prune(roots[0]).unwrap();
    world.verify(&roots[2..], "pruned");
    assert_eq!(world.cache.store_bytes().memory, 2 * EXTENT, "one in use, one ahead");
    assert_eq!(fake.mapped_bytes() as u64, 2 * EXTENT);
    grow(&mut world, roots[2], 3000);
    world.verify(&roots[2..], "grown again");
    drop(world);
    assert_eq!((fake.live_objects(), fake.misused(), fake.mapped_bytes()), (0, 0, 0));
}

#[test]
fn memory_goes_back_only_after_what_reads_it() {
    let fake = crate::load();
    let (mut world, roots) = grown(4);
    let batch = world.cache.batch(&ones(&roots)).unwrap();
    let inputs = world.inputs(&batch);
    world.upload(&inputs);
    // Enqueued; the fake driver runs it when somebody waits.
    world.call(&batch).unwrap();
    world.cache.prune(roots[0]).unwrap();
    world.cache.prune(roots[1]).unwrap();
    assert!(fake.mapped_bytes() as u64 >= 3 * EXTENT, "a step reads it still");
    world.check(&batch, &inputs, "read to the end");
    world.cache.cuda().unwrap().stream().synchronize().unwrap();
    assert!(world.cache.store_bytes().memory <= 2 * EXTENT);
    assert_eq!(fake.misused(), 0);
}

#[test]
fn an_extent_that_was_leaving_is_taken_again_as_it_is() {
    let fake = crate::load();
    let (mut world, roots) = grown(5);
    let batch = world.cache.batch(&ones(&roots[..1])).unwrap();
    let inputs = world.inputs(&batch);
    world.upload(&inputs);
    world.call(&batch).unwrap();
    let created = fake.calls_named("cuMemCreate");
    world.cache.prune(roots[2]).unwrap();
    world.cache.prune(roots[1]).unwrap();
    let other = world.root();
    world.cache.extend(&[other], 1900).unwrap();
    assert!(fake.calls_named("cuMemCreate") <= created + 2, "at most the one ahead");
    world.check(&batch, &inputs, "meanwhile");
    assert_eq!(fake.misused(), 0);
}

#[test]
fn where_the_device_has_no_more_memory_prefixes_go_and_then_it_is_an_error() {
    let fake = crate::load();
    let mut world = crate::elastic_world(6);
    fake.limit_memory(3 * EXTENT as usize);
    let ids: Vec<u32> = (0..1000).collect();
    let opened = world.cache.open(&ids, 0).unwrap();
    world.insert(opened.node, None);
    grow(&mut world, opened.node, 1000);
    let below = world.cache.seal(opened.node, &ids, 0).unwrap();
    world.cache.prune(below).unwrap();
    let root = world.root();
    grow(&mut world, root, 2000);
    assert_eq!(world.cache.prefix_stats().evictions, 0);
    grow(&mut world, root, 1000);
    assert_eq!(world.cache.prefix_stats().evictions, 1, "its memory was needed");
    world.verify(&[root], "in all memory there is");
    let length = world.cache.forest().length(root).unwrap();
    let refused = world.cache.extend(&[root], 100).unwrap_err();
    assert!(refused.to_string().starts_with("an extent of KV pages needs"), "{refused}");
    assert_eq!(world.cache.forest().length(root).unwrap(), length);
    fake.limit_memory(usize::MAX);
    grow(&mut world, root, 100);
    world.verify(&[root], "with more memory");
    drop(world);
    assert_eq!((fake.live_objects(), fake.misused()), (0, 0));
}

/// What is to be done under faults, in a world with two prompts of an extent each.
type Operation = fn(&mut World, [NodeKey; 2]) -> Result<(), CacheError>;

fn operate(fake: &crate::driver::Fake, operation: Operation, call: u64) -> u64 {
    let mut world = crate::elastic_world(8);
    let roots = [world.root(), world.root()];
    for root in roots {
        grow(&mut world, root, 1000);
    }
    let lengths = |world: &World| roots.map(|root| world.cache.forest().length(root).ok());
    let before = lengths(&world);
    fake.fail_from_now(call, 46);
    let outcome = operation(&mut world, roots);
    let calls = fake.calls_made();
    let what = format!("call {call}, {}", fake.failed());
    fake.fail_from_now(0, 0);
    if let Err(error) = outcome {
        assert!(call > 0 && error.to_string().contains("46"), "{what}: {error}");
        assert_eq!(lengths(&world), before, "{what}: {error}");
        operation(&mut world, roots).unwrap_or_else(|error| panic!("{what}, again: {error}"));
    }
    world.cache.forest().debug_assert_invariants();
    world.verify(&roots[1..], &what);
    drop(world);
    assert_eq!(fake.live_objects(), 0, "{what}: left behind");
    assert_eq!(fake.misused(), 0, "{what}: misuse");
    calls
}

fn fail_each_call(operation: Operation) {
    let fake = crate::load();
    // The thread that maps ahead makes some of them now and some later.
    let most = (0..3).map(|_| operate(&fake, operation, 0)).max().unwrap();
    for call in 1..=most + 2 {
        operate(&fake, operation, call);
    }
}

#[test]
fn growth_that_fails_anywhere_changes_nothing() {
    fail_each_call(|world, _| {
        let other = world.cache.insert_root()?;
        let grown = world.cache.extend(&[other], 64 * 33);
        world.cache.prune(other)?;
        grown
    });
}

#[test]
fn pruning_that_fails_to_give_back_memory_is_pruning() {
    fail_each_call(|world, [first, _]| {
        let other = world.cache.insert_root()?;
        let grown = world.cache.extend(&[other], 64 * 20);
        world.cache.prune(other)?;
        grown?;
        if world.cache.forest().length(first).is_ok() {
            world.cache.prune(first)?;
        }
        world.cache.store_bytes();
        Ok(())
    });
}

#[test]
fn pages_that_move_are_the_same_pages() {
    let fake = crate::load();
    let mut world = crate::elastic_world(9);
    let root = world.root();
    grow(&mut world, root, 100);
    let leaves = world.fork(root, 24);
    // Leaves take pages in turn, so that each extent has some of every one.
    for _ in 0..3 {
        for &leaf in &leaves {
            grow(&mut world, leaf, 64);
        }
    }
    let full = world.cache.store_bytes().memory;
    for &leaf in leaves.iter().filter(|&&leaf| leaf != leaves[3] && leaf != leaves[17]) {
        world.cache.prune(leaf).unwrap();
    }
    let kept = [leaves[3], leaves[17]];
    world.verify(&kept, "scattered");
    let scattered = world.cache.store_bytes();
    let mut calls = 0;
    let mut call = 1;
    while call == 1 || call <= calls {
        fake.fail_from_now(call, 46);
        let outcome = world.cache.compact();
        calls = fake.calls_made().max(calls);
        fake.fail_from_now(0, 0);
        world.verify(&kept, &format!("call {call}, {}", fake.failed()));
        call += 1;
        if outcome.is_ok() {
            break;
        }
    }
    world.cache.compact().unwrap();
    world.verify(&kept, "together");
    let bytes = world.cache.store_bytes();
    assert_eq!(bytes.held, scattered.held);
    assert!(full >= 4 * EXTENT && scattered.memory > 2 * EXTENT, "{full}, {scattered:?}");
    assert_eq!(bytes.memory, 2 * EXTENT, "one in use, one ahead");
    for leaf in kept {
        grow(&mut world, leaf, 70);
    }
    world.verify(&kept, "grown on");
    drop(world);
    assert_eq!((fake.live_objects(), fake.misused()), (0, 0));
}
