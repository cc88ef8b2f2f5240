//! Attention over trees whose nodes have their pages on several ranks: merged, it is attention by its definition.

use deft::attention::{Attend, Counters, cpu};
use deft::cache::KvElement;
use deft::plan::{Grouping, PlanConfig, Planner};
use deft::tree::TreeView;
use deft_engine::ranks::{Communicator, Memory, TIMEOUT, merge_partials};
use deft_tests::oracle::Outputs;
use deft_tests::problem::{GROUPINGS, Problem, heads};
use deft_tests::views;
use kernels_gpu::abi::PAGE_TOKENS;

/// What of `view` lies on a rank: every `ranks`-th page of a run, and a run whole that has masks. Lengths by slot too.
fn part(view: &TreeView, rank: u32, ranks: u32) -> (TreeView, Vec<u32>) {
    let mut part = TreeView { pages: Vec::new(), ..view.clone() };
    let mut lengths = Vec::new();
    for (index, run) in (0..).zip(&mut part.runs) {
        let first = part.pages.len() as u32;
        let mut tokens = 0;
        for (at, page) in (0..).zip(run.pages.clone()) {
            let owner = if run.mask.is_some() { index } else { at + index };
            if owner % ranks == rank {
                part.pages.push(view.pages[page as usize]);
                tokens += PAGE_TOKENS.min(run.tokens - at * PAGE_TOKENS);
            }
        }
        run.tokens = tokens;
        run.pages = first..part.pages.len() as u32;
        run.mask = run.mask.filter(|_| tokens > 0);
        if let Some(slot) = run.length_slot {
            lengths.resize(lengths.len().max(slot as usize + 1), 0);
            lengths[slot as usize] = tokens;
        }
    }
    (part, lengths)
}

/// A rank's outputs and LSEs, merged with the others'.
fn attend(problem: &Problem<f32>, grouping: Grouping, mut ranks: Memory) -> Outputs<f32> {
    let (view, lengths) = part(&problem.view, ranks.rank(), ranks.ranks());
    let shape = problem.inputs.heads;
    let mut backend = cpu::new(problem.shape(1)).unwrap();
    problem.store(&mut *backend, 0);
    let config = PlanConfig::new(grouping, shape.group_size(), shape.head_dim, 5);
    let plan = Planner::new(config).unwrap().plan(&view).unwrap();
    let mut outputs = problem.unwritten();
    let call = Attend {
        layer: 0,
        plan: &plan,
        counters: Counters { lengths: &lengths, tail_pages: &[], directory: None, residues: None },
        q: f32::elements(&problem.inputs.q),
        out: f32::elements_mut(&mut outputs.out),
        lse: Some(f32::elements_mut(&mut outputs.lse)),
        params: problem.inputs.params,
    };
    backend.attend(call).unwrap();
    merge_partials(&mut ranks, &mut outputs.out, &mut outputs.lse).unwrap();
    outputs
}

/// Runs `work` on every rank, on threads of their own.
fn each<T: Send>(rooms: Vec<Memory>, work: impl Fn(Memory) -> T + Sync) -> Vec<T> {
    let work = &work;
    std::thread::scope(|scope| {
        let rank = |room| scope.spawn(move || work(room));
        let threads: Vec<_> = rooms.into_iter().map(rank).collect();
        threads.into_iter().map(|thread| thread.join().unwrap()).collect()
    })
}

#[test]
fn pages_on_any_number_of_ranks_give_attention_over_all_of_them() {
    for (seed, heads) in (0..).zip([heads(4, 1, 64), heads(6, 2, 64), heads(8, 8, 128)]) {
        let params = deft::attention::AttentionParams::new(heads.head_dim);
        let problem = Problem::<f32>::new(views::random(seed, 24), heads, params, seed);
        for ranks in [1, 2, 3, 4, 8] {
            for grouping in GROUPINGS {
                let rooms = Memory::new(ranks, TIMEOUT).unwrap();
                let found = each(rooms, |room| attend(&problem, grouping, room));
                assert!(found.iter().all(|other| other.same_bits(&found[0])), "ranks disagree");
                let verdict = problem.judge(&found[0]);
                assert!(verdict.passes(), "{ranks} ranks, {grouping:?}, seed {seed}: {verdict}");
            }
        }
    }
}

#[test]
fn rows_without_a_token_anywhere_are_zero_and_nan_stays_nan() {
    let rooms = Memory::new(2, TIMEOUT).unwrap();
    const NOTHING: f32 = f32::NEG_INFINITY;
    // Rows of two: of nobody, of one rank with a NaN, and of the second rank alone.
    let outs = [[0.0, 0.0, 1.0, 1.0, 0.0, 0.0], [0.0, 0.0, f32::NAN, 1.0, 7.0, 0.0]];
    let lses = [[NOTHING, 0.5, NOTHING], [NOTHING, f32::NAN, 3.0]];
    let found = each(rooms, |mut room| {
        let me = room.rank() as usize;
        let (mut out, mut lse) = (outs[me], lses[me]);
        merge_partials(&mut room, &mut out, &mut lse).unwrap();
        (out, lse)
    });
    for (out, lse) in found {
        assert_eq!((&out[..2], lse[0]), (&[0.0; 2][..], NOTHING));
        assert!(out[2].is_nan() && lse[1].is_nan());
        assert_eq!(out[4..], [7.0, 0.0]);
        assert!((lse[2] - 3.0).abs() < 1e-6);
    }
}

#[test]
fn outputs_that_are_no_rows_are_refused() {
    let error = merge_partials(&mut Memory::alone(), &mut [0.0; 5], &mut [0.0; 2]).unwrap_err();
    assert_eq!(error.to_string(), "out.len() is 5; it must be a multiple of the rows of lse, 2");
}
