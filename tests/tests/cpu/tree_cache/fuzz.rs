//! Random operations with hostile arguments: no panic, an error changes nothing, and attention agrees with f64 whatever
//! was refused, freed, moved or spoilt by NaN before.
//!
//! `DEFT_FUZZ_SECONDS` sets how long, 4 if it is not set. Cases that failed are kept beside this file.

mod ops;
mod world;

use deft::{KvElement, bf16, f16};
use proptest::collection::vec;
use proptest::prelude::*;
use proptest::sample::Index;
use world::World;

const LAYERS: u32 = 2;
const HEADS: [u32; 3] = [4, 2, 64];
/// Elements of a row of K or V.
const ROW: usize = 128;
const PAGES: u64 = 24;
/// Batches that are kept.
const BATCHES: usize = 4;
/// Rows of a batch that are compared.
const CHECKED: usize = 12;

/// A node, or a key that names none of this cache.
#[derive(Clone, Debug)]
struct Pick {
    index: Index,
    /// 0: a node that is gone; 1: another cache's; 2: no key at all.
    wrong: Option<u8>,
}

#[derive(Clone, Debug)]
enum Op {
    Root,
    Fork(Pick, usize),
    Batch(Vec<(Pick, u32)>),
    Advance(Index, u32),
    Refresh(Index),
    Regroup(Index, Index),
    /// Writes new K and V of a batch and attends.
    Step(Index, bool),
    /// Of the wrong arguments that a step may have, one.
    Wrong(Index, u8),
    Import(Pick, u32, u32, bool),
    Export(Pick, u32, u32, u32),
    Shrink(Vec<Pick>, u32),
    Draft(Pick, Vec<(Option<u32>, u32)>),
    /// The path down to a node of a draft, or any nodes.
    Accept(Pick, Vec<Pick>),
    Merge(Pick),
    Prune(Pick),
}

fn tokens() -> impl Strategy<Value = u32> {
    prop_oneof![
        12 => 1u32..4,
        4 => 60u32..68,
        1 => 100u32..300,
        1 => Just(0u32),
        1 => prop_oneof![Just(70_000u32), Just(u32::MAX), Just(u32::MAX - 63)],
    ]
}

fn pick() -> impl Strategy<Value = Pick> {
    let wrong = prop::option::weighted(0.08, 0u8..3);
    (any::<Index>(), wrong).prop_map(|(index, wrong)| Pick { index, wrong })
}

fn draft() -> impl Strategy<Value = Vec<(Option<u32>, u32)>> {
    let parent = prop_oneof![8 => prop::option::of(0u32..6), 1 => Just(Some(u32::MAX))];
    vec((parent, prop_oneof![9 => 1u32..30, 1 => tokens()]), 0..7)
}

fn op() -> impl Strategy<Value = Op> {
    let batch = any::<Index>;
    prop_oneof![
        3 => Just(Op::Root),
        6 => (pick(), prop_oneof![9 => 0usize..4, 1 => Just(usize::MAX)]).prop_map(|(n, k)| Op::Fork(n, k)),
        14 => vec((pick(), tokens()), 0..6).prop_map(Op::Batch),
        10 => (batch(), tokens()).prop_map(|(b, n)| Op::Advance(b, n)),
        4 => batch().prop_map(Op::Refresh),
        2 => (batch(), any::<Index>()).prop_map(|(b, g)| Op::Regroup(b, g)),
        8 => (batch(), any::<bool>()).prop_map(|(b, rotated)| Op::Step(b, rotated)),
        4 => (batch(), 0u8..9).prop_map(|(b, kind)| Op::Wrong(b, kind)),
        3 => (pick(), tokens(), 0u32..20, any::<bool>()).prop_map(|(n, k, p, o)| Op::Import(n, k, p, o)),
        3 => (pick(), tokens(), tokens(), 0u32..20).prop_map(|(n, a, b, p)| Op::Export(n, a, b, p)),
        2 => (vec(pick(), 0..3), tokens()).prop_map(|(n, k)| Op::Shrink(n, k)),
        6 => (pick(), draft()).prop_map(|(n, d)| Op::Draft(n, d)),
        5 => (pick(), vec(pick(), 0..3)).prop_map(|(n, p)| Op::Accept(n, p)),
        4 => pick().prop_map(Op::Merge),
        4 => pick().prop_map(Op::Prune),
    ]
}

/// Runs random worlds for a share of the time; operations that were done and that were refused.
fn fuzz<T: KvElement>(kernels: bool, most_ops: usize, share: f64) -> [u32; 2] {
    let done = std::cell::Cell::new([0; 2]);
    let worlds = (any::<u64>(), vec(op(), 1..most_ops));
    deft_tests::fuzz::run(file!(), 4, share, &worlds, |(seed, ops)| {
        let mut world = World::<T>::new(kernels, seed);
        world.run(&Op::Root);
        ops.iter().for_each(|op| world.run(op));
        let [ok, refused] = done.get();
        done.set([ok + world.done[0], refused + world.done[1]]);
    });
    done.get()
}

#[test]
fn hostile_operations_on_the_cpu_change_nothing_and_the_rest_agrees_with_f64() {
    for [ok, refused] in [fuzz::<f32>(false, 120, 0.5), fuzz::<f16>(false, 120, 0.5)] {
        assert!(ok > 4 * 20 && refused > 20, "{ok} done, {refused} refused");
    }
}

#[test]
fn hostile_operations_on_the_kernels_change_nothing_and_the_rest_agrees_with_f64() {
    let [ok, refused] = fuzz::<bf16>(true, 16, 1.0);
    assert!(ok > 10 && refused > 0, "{ok} done, {refused} refused");
}
