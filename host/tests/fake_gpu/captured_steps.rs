//! Steps of a cache on the fake GPU, called and captured, each against f64: growth, new plans, prompts, drafts and
//! decoding in one loop, and what a step costs in calls of the driver.

use crate::world::ones;
use deft::attention::Reduce;
use deft::retain::Observe;
use deft::{CacheError, Kv, PlanUpdate, RotaryTable, Step, StepGraph, StepOptions, StepRun, bf16};

#[test]
fn one_graph_serves_a_loop_of_prompts_drafts_and_decoding() {
    let fake = crate::load();
    for rotated in [false, true] {
        let mut world = crate::world(7);
        world.table = rotated.then(|| RotaryTable::new(64, 2000, 10_000.0).unwrap());
        let runs = world.mixed_loop(90, &format!("rotated {rotated}"));
        let count = |kind| runs.iter().filter(|&&run| run == kind).count();
        assert_eq!(count(StepRun::Called), 1, "{runs:?}");
        // Once at first; then only where counters or plans outgrew their room.
        assert!(count(StepRun::Captured) <= 4, "{runs:?}");
        drop(world);
        assert_eq!(fake.live_objects(), 0);
    }
    assert_eq!(fake.misused(), 0);
}

#[test]
fn heads_without_kernels_come_in_padded_and_go_out_cut_whether_called_or_captured() {
    let fake = crate::load();
    for (dim, rotated) in [(80, true), (96, false), (112, true), (192, true)] {
        let mut world = crate::world_of_heads(dim, 11);
        world.table = rotated.then(|| RotaryTable::new(dim, 2000, 10_000.0).unwrap());
        let runs = world.mixed_loop(24, &format!("heads of {dim}"));
        assert!(runs.contains(&StepRun::Replayed), "{runs:?}");
        drop(world);
        assert_eq!(fake.live_objects(), 0);
    }
    assert_eq!(fake.misused(), 0);
}

#[test]
fn heads_with_kernels_take_no_launch_more_and_others_three_a_layer() {
    let fake = crate::load();
    let launches = |dim| {
        let mut world = crate::world_of_heads(dim, 5);
        let root = world.root();
        let batch = world.cache.batch(&[(root, 5)]).unwrap();
        let inputs = world.inputs(&batch);
        world.upload(&inputs);
        fake.fail_from_now(0, 0);
        world.call(&batch).unwrap();
        let launches = fake.calls_named("cuLaunchKernelEx");
        world.check(&batch, &inputs, "launches");
        launches
    };
    assert_eq!(launches(96), launches(128) + 3 * u64::from(crate::world::LAYERS));
}

#[test]
fn one_graph_of_eight_rows_serves_steps_of_three_to_eight_tokens() {
    let _fake = crate::load();
    let mut world = crate::world(9);
    let root = world.root();
    let prompt = world.cache.batch(&[(root, 70)]).unwrap();
    world.step(&mut StepGraph::new(), &prompt, "prompt");
    let leaves = world.fork(root, 8);
    let mut graph = StepGraph::new();
    let mut captures = 0;
    for (step, count) in [5, 3, 8, 4, 5, 3, 7].into_iter().enumerate() {
        let batch = world.cache.batch(&ones(&leaves[..count])).unwrap();
        let run = world.padded_step(&mut graph, &batch, 8, &format!("step {step}"));
        captures += u32::from(run == StepRun::Captured);
        let expected = [StepRun::Called, StepRun::Captured, StepRun::Replayed][step.min(2)];
        // A plan may outgrow the room of those before it, as eight leaves' that of three.
        assert!(run == expected || step > 1 && run == StepRun::Captured, "step {step}: {run:?}");
    }
    assert!(captures <= 3, "{captures} captures");
    assert!(graph.graphs() == 1 && graph.bytes() > 0);
    let batch = world.cache.batch(&ones(&leaves[..3])).unwrap();
    let append = |step: &mut Step<'_>| {
        let rows = [bf16::ZERO; 3 * 128];
        step.append(0, Kv::new(&rows[..], &rows[..]))
    };
    let options = StepOptions { rows: 16, events: None };
    let refused = world.cache.capture_with(&mut graph, &batch, options, append).unwrap_err();
    assert_eq!(
        refused.to_string(),
        "append in a step of 16 rows for 3 tokens: such rows are for launches of your own"
    );
}

#[test]
fn a_graph_leaves_the_scores_that_calls_leave() {
    let _fake = crate::load();
    let [mut captured, mut called] = [11, 11].map(|seed| {
        let mut world = crate::world(seed);
        world.observe = Some(Observe { reduce: Reduce::Max, window: 1 });
        let root = world.root();
        let prompt = world.cache.batch(&[(root, 130)]).unwrap();
        world.step(&mut StepGraph::new(), &prompt, "prompt");
        let nodes = [world.fork(root, 3), vec![root]].concat();
        (world, nodes)
    });
    let mut graph = StepGraph::new();
    let mut runs = Vec::new();
    // Leaves come into a second page, and the scores of their first are there.
    for step in 0..70 {
        for of in [(&mut captured, &mut graph), (&mut called, &mut StepGraph::new())] {
            let ((world, nodes), graph) = of;
            let batch = world.cache.batch(&ones(&nodes[..3])).unwrap();
            runs.push(world.step(graph, &batch, &format!("step {step}")));
        }
        if step % 16 == 5 {
            let [got, right] =
                [&mut captured, &mut called].map(|(world, nodes)| world.scores(nodes));
            assert!(got.len() >= 2 * 2 * 128 && got.iter().all(|&p| p > 0), "step {step}");
            assert_eq!(got, right, "step {step}");
        }
    }
    let replayed = runs.iter().filter(|&&run| run == StepRun::Replayed).count();
    assert!(replayed > 60, "{replayed} of 70 steps were replayed");
}

#[test]
fn two_batches_take_turns_with_graphs_of_their_own() {
    let _fake = crate::load();
    let mut world = crate::world(3);
    let roots = [world.root(), world.root()];
    let mut batches = roots.map(|root| world.cache.batch(&[(root, 1)]).unwrap());
    let mut graphs = [StepGraph::new(), StepGraph::new()];
    for step in 0..70 {
        for (batch, graph) in batches.iter_mut().zip(&mut graphs) {
            if step > 0 {
                world.cache.advance(batch, 1).unwrap();
            }
            let run = world.step(graph, batch, &format!("step {step}"));
            assert_eq!(run == StepRun::Replayed, step > 1, "step {step}");
        }
    }
    let mut other = crate::world(4);
    let root = other.root();
    let batch = other.cache.batch(&[(root, 1)]).unwrap();
    let refused = other.capture(&mut graphs[0], &batch).unwrap_err();
    assert!(matches!(refused, CacheError::ForeignGraph), "{refused}");
}

/// Calls of the driver in one step, by name.
const COUNTED: [&str; 9] = [
    "cuGraphLaunch",
    "cuLaunchKernelEx",
    "cuMemcpyHtoDAsync_v2",
    "cuEventRecord",
    "cuStreamWaitEvent",
    "cuMemAlloc_v2",
    "cuMemHostAlloc",
    "cuStreamSynchronize",
    "cuEventSynchronize",
];

#[test]
fn a_step_that_only_grows_waits_for_nothing_and_allocates_nothing() {
    let fake = crate::load();
    let mut world = crate::world(11);
    world.table = Some(RotaryTable::new(64, 400, 10_000.0).unwrap());
    let root = world.root();
    let leaves = world.fork(root, 5);
    let mut batch = world.cache.batch(&ones(&leaves)).unwrap();
    let mut graph = StepGraph::new();
    let mut patched = 0;
    for step in 0..160 {
        let inputs = world.inputs(&batch);
        world.upload(&inputs);
        let captured = step % 2 == 0;
        fake.fail_from_now(0, 0);
        let run = match captured {
            true => world.capture(&mut graph, &batch).unwrap(),
            false => world.call(&batch).unwrap(),
        };
        let calls = COUNTED.map(|name| fake.calls_named(name));
        world.check(&batch, &inputs, &format!("step {step}"));
        // What was copied is done, so that its staging is free again.
        world.cache.cuda().unwrap().stream().synchronize().unwrap();
        let update = world.cache.advance(&mut batch, 1).unwrap();
        patched += u32::from(update == PlanUpdate::Patched);
        assert_ne!(update, PlanUpdate::Replanned);
        if step < 4 {
            continue;
        }
        // The plan is copied when pages were added before this step: at tokens 64 and 128.
        let crossed = step == 64 || step == 128 || step == 65 || step == 129;
        let copies = calls[2];
        match captured {
            true => {
                assert_eq!(run, StepRun::Replayed);
                // Lengths and positions; at a page's edge tail pages and the plan's words in three shares too.
                assert!(copies == 2 || crossed && copies <= 6, "step {step}: {copies} copies");
                // One event for each array that was copied, two for the caller's stream.
                assert_eq!((calls[0], calls[1]), (1, 0), "step {step}");
                assert!(calls[3] <= 2 + copies && calls[4] == 2, "step {step}: {calls:?}");
            }
            false => {
                // A layer's append, attention and merge.
                assert_eq!((calls[0], calls[1]), (0, 6), "step {step}");
                assert!(copies == 2 || crossed && copies <= 6, "step {step}: {copies} copies");
                assert!(calls[3] <= 8 + copies && calls[4] == 8, "step {step}: {calls:?}");
            }
        }
        assert_eq!(calls[5..], [0; 4], "step {step}: allocations and waits");
    }
    assert_eq!(patched, 2);
}
