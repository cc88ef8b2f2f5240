//! Every call of the driver that an operation of a cache makes is made to fail: an error changes nothing, the same
//! operation then works, and attention agrees with f64.

use crate::driver::Fake;
use crate::world::{Inputs, LAYERS, World, ones};
use deft::cache::{PagedOrder, PagedTable};
use deft::{Batch, CacheError, NodeKey, RotaryTable, StepGraph};

type Operation = dyn FnMut(&mut World) -> Result<(), CacheError>;

/// A world that is ready for an operation.
struct Ready {
    world: World,
    /// What is compared in the end.
    nodes: Vec<NodeKey>,
    op: Box<Operation>,
    /// What the operation computes, if anything.
    results: Option<(Batch, Inputs)>,
    /// What a world should hold once it is done.
    done: Box<dyn FnOnce(&mut World)>,
}

/// A prompt of five tokens with three leaves of as many tokens.
fn grown(rotated: bool, tokens: u32) -> (World, Vec<NodeKey>) {
    let mut world = crate::world(5);
    world.table = rotated.then(|| RotaryTable::new(64, 300, 10_000.0).unwrap());
    let root = world.root();
    let prompt = world.cache.batch(&[(root, 5)]).unwrap();
    world.step(&mut StepGraph::new(), &prompt, "prompt");
    let leaves = world.fork(root, 3);
    let each: Vec<_> = leaves.iter().map(|&leaf| (leaf, tokens)).collect();
    let batch = world.cache.batch(&each).unwrap();
    world.step(&mut StepGraph::new(), &batch, "leaves");
    (world, leaves)
}

/// A step after `before` others of the same graph, the last into a new page.
fn step(rotated: bool, captured: bool, before: u32) -> Ready {
    let (mut world, leaves) = grown(rotated, 1);
    let mut batch = world.cache.batch(&ones(&leaves)).unwrap();
    let mut graph = StepGraph::new();
    for _ in 0..before {
        world.step(&mut graph, &batch, "before");
        world.cache.advance(&mut batch, 1).unwrap();
    }
    let inputs = world.inputs(&batch);
    world.upload(&inputs);
    let results = Some((batch.clone(), inputs));
    let op = move |world: &mut World| match captured {
        true => world.capture(&mut graph, &batch).map(drop),
        false => world.call(&batch).map(drop),
    };
    Ready { world, nodes: leaves, op: Box::new(op), results, done: Box::new(|_| {}) }
}

fn accept() -> Ready {
    let (mut world, leaves) = grown(false, 62);
    let trunk = leaves[1];
    let (keys, batch) = world.drafted(trunk);
    world.step(&mut StepGraph::new(), &batch, "draft");
    let path = [keys[0], keys[2], keys[3]];
    Ready {
        world,
        nodes: leaves,
        op: Box::new(move |world| world.cache.accept(trunk, &path)),
        results: None,
        done: Box::new(move |world| world.joined(trunk, &path)),
    }
}

fn merge() -> Ready {
    let (mut world, leaves) = grown(false, 3);
    let below = world.fork(leaves[0], 1)[0];
    let batch = world.cache.batch(&[(below, 2)]).unwrap();
    world.step(&mut StepGraph::new(), &batch, "chain");
    let top = leaves[0];
    Ready {
        world,
        nodes: leaves,
        op: Box::new(move |world| world.cache.merge_chain(top)),
        results: None,
        done: Box::new(move |world| world.joined(top, &[below])),
    }
}

const TABLE: PagedTable<'static> = PagedTable { order: PagedOrder::Nhd, page_size: 4, pages: &[0] };

fn import() -> Ready {
    let (mut world, leaves) = grown(false, 3);
    let leaf = leaves[2];
    world.cache.extend(&[leaf], 4).unwrap();
    let foreign = world.foreign(leaf, 4);
    let op = move |world: &mut World| {
        (0..LAYERS)
            .zip(&foreign)
            .try_for_each(|(layer, [k, v])| world.cache.import(layer, leaf, 8..12, &TABLE, k, v))
    };
    Ready { world, nodes: leaves, op: Box::new(op), results: None, done: Box::new(|_| {}) }
}

fn export() -> Ready {
    let mut ready = import();
    (ready.op)(&mut ready.world).unwrap();
    let leaf = ready.nodes[2];
    ready.op = Box::new(move |world| {
        let right = world.held(leaf, 4);
        for (layer, right) in (0..LAYERS).zip(right) {
            let [mut k, mut v] = right.clone().map(|rows| vec![deft::bf16::NAN; rows.len()]);
            world.cache.export(layer, leaf, 8..12, &TABLE, &mut k, &mut v)?;
            assert_eq!([k, v], right);
        }
        Ok(())
    });
    ready
}

/// Runs `make`'s operation once for each of its driver calls, with that call failing.
fn fail_each_call(fake: &Fake, name: &str, make: impl Fn() -> Ready) {
    let (mut call, mut most) = (0, 0);
    let (mut refused, mut swallowed) = (0, 0);
    loop {
        let mut ready = make();
        let world = &mut ready.world;
        let before = format!("{:?}", world.cache.forest());
        fake.fail_from_now(call, 46);
        let outcome = (ready.op)(world);
        let calls = fake.calls_made();
        most = calls.max(most);
        let what = format!("{name}, call {call}, {}", fake.failed());
        fake.fail_from_now(0, 0);
        match outcome {
            Ok(()) => swallowed += u32::from(call > 0),
            Err(error) => {
                refused += 1;
                assert!(error.to_string().contains("46"), "{what}: {error}");
                let after = format!("{:?}", world.cache.forest());
                assert_eq!(before, after, "{what}: {error}");
                (ready.op)(world).unwrap_or_else(|error| panic!("{what}, again: {error}"));
            }
        }
        if let Some((batch, inputs)) = &ready.results {
            world.check(batch, inputs, &what);
        }
        (ready.done)(world);
        world.cache.forest().debug_assert_invariants();
        world.verify(&ready.nodes, &what);
        drop((ready.op, ready.world));
        assert_eq!(fake.live_objects(), 0, "{what}: left behind");
        assert_eq!(fake.misused(), 0, "{what}: misuse");
        if call >= most {
            break;
        }
        call += 1;
    }
    // Of failures to go back to another context nobody is told, nor of those that can be made up for.
    assert!(refused >= 2 && refused >= swallowed / 2, "{name}: {refused} of {call} calls");
}

#[test]
fn a_step_that_fails_anywhere_changes_nothing() {
    let fake = crate::load();
    for rotated in [false, true] {
        fail_each_call(&fake, "a called step", || step(rotated, false, 1));
        fail_each_call(&fake, "a first step", || step(rotated, true, 0));
        fail_each_call(&fake, "a captured step", || step(rotated, true, 1));
        fail_each_call(&fake, "a replayed step", || step(rotated, true, 2));
    }
}

#[test]
fn a_replayed_step_into_a_new_page_that_fails_anywhere_changes_nothing() {
    let fake = crate::load();
    fail_each_call(&fake, "a page more", || {
        let (mut world, leaves) = grown(true, 61);
        let mut batch = world.cache.batch(&ones(&leaves)).unwrap();
        let mut graph = StepGraph::new();
        for _ in 0..3 {
            world.step(&mut graph, &batch, "before");
            world.cache.advance(&mut batch, 1).unwrap();
        }
        let inputs = world.inputs(&batch);
        world.upload(&inputs);
        let results = Some((batch.clone(), inputs));
        let op = move |world: &mut World| world.capture(&mut graph, &batch).map(drop);
        Ready { world, nodes: leaves, op: Box::new(op), results, done: Box::new(|_| {}) }
    });
}

#[test]
fn a_draft_or_a_chain_whose_tokens_cannot_be_moved_stays() {
    let fake = crate::load();
    fail_each_call(&fake, "accept", accept);
    fail_each_call(&fake, "merge_chain", merge);
}

#[test]
fn an_import_or_an_export_that_fails_anywhere_can_be_repeated() {
    let fake = crate::load();
    fail_each_call(&fake, "import", import);
    fail_each_call(&fake, "export", export);
}
