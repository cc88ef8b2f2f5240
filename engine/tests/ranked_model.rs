//! A model of several ranks against its definition and against one rank: threads, and processes' sockets.

mod common;

use std::net::TcpListener;
use std::time::{Duration, Instant};

use common::tapped::Tapped;
use common::{assert_rows, definition, tiny, tokens};
use deft::NodeKey;
use deft_engine::ranked::{Ranked, follow};
use deft_engine::ranks::{Communicator, Memory, Message, RankError, Tcp};
use deft_engine::select::{Select, Selected, most_likely};
use deft_engine::{
    CpuModel, CpuOptions, DraftToken, LlamaConfig, LoadError, ModelError, TreeModel, Variant,
    Weights,
};

const RANKS: [u32; 5] = [1, 2, 3, 4, 8];
const LONG: Duration = Duration::from_secs(60);

/// Models whose heads, columns and entries no number of ranks divides: with few KV heads, and with as many as 3.
fn shapes() -> [LlamaConfig; 3] {
    [
        LlamaConfig { q_heads: 8, ffn: 72, ..tiny(false) },
        LlamaConfig { q_heads: 9, kv_heads: 3, ffn: 64, ..tiny(true) },
        LlamaConfig { q_heads: 8, kv_heads: 8, ffn: 96, ..tiny(false) },
    ]
}

fn options() -> CpuOptions {
    CpuOptions { capacity_bytes: 16 << 20, ..CpuOptions::default() }
}

fn ranked(weights: &Weights, ranks: u32, timeout: Duration) -> Ranked<CpuModel> {
    faulty(weights, ranks, timeout, |ranks| ranks)
}

/// The same, with communicators that `change` has changed.
fn faulty(
    weights: &Weights,
    ranks: u32,
    timeout: Duration,
    change: impl Fn(Box<dyn Communicator>) -> Box<dyn Communicator> + Send + Sync + 'static,
) -> Ranked<CpuModel> {
    let weights = weights.clone();
    let load = move |ranks| CpuModel::load_rank(&weights, options(), change(ranks), |_, _| {});
    Ranked::in_threads(ranks, timeout, load).unwrap()
}

/// What a search asks of a model, and each row of logits with the path that it is after.
struct Told {
    rows: Vec<(Vec<u32>, Vec<f32>)>,
    chosen: Vec<u32>,
}

fn greedy(logits: &[f32], vocabulary: usize) -> Vec<u32> {
    logits.chunks(vocabulary).map(|row| most_likely(row, 1)[0]).collect()
}

/// A prompt, forks, greedy steps, a draft, and what goes away again.
fn search(model: &mut dyn TreeModel) -> Told {
    let vocabulary = model.vocabulary();
    let (mut logits, mut told) = (Vec::new(), Told { rows: Vec::new(), chosen: Vec::new() });
    let prompt = tokens(3, 70);
    let root = model.insert_prompt(&prompt, &mut logits).unwrap();
    told.rows.push((prompt.clone(), logits.clone()));
    let leaves = model.fork(root, 3).unwrap();
    let mut paths = vec![prompt; 3];
    let mut next = vec![5, 6, most_likely(&logits, 1)[0]];
    for _ in 0..4 {
        model.step(&leaves, &next, &mut logits).unwrap();
        for ((path, token), row) in paths.iter_mut().zip(&next).zip(logits.chunks(vocabulary)) {
            path.push(*token);
            told.rows.push((path.clone(), row.to_vec()));
        }
        next = greedy(&logits, vocabulary);
        told.chosen.extend(&next);
    }
    let below = model.fork(leaves[1], 2).unwrap();
    model.prune(leaves[0]).unwrap();
    let draft = [(None, 7), (Some(0), 8), (Some(0), 9), (None, 10)];
    let draft = draft.map(|(parent, token)| DraftToken { parent, token });
    let keys = model.verify(leaves[2], &draft, &mut logits).unwrap();
    for (after, row) in [&[7][..], &[7, 8], &[7, 9], &[10]].iter().zip(logits.chunks(vocabulary)) {
        told.rows.push(([&paths[2], *after].concat(), row.to_vec()));
    }
    model.accept(leaves[2], &[keys[0], keys[2]]).unwrap();
    let select = [Select::Top { k: 3 }, Select::Of(vec![1, 2])];
    for answer in model.step_select(&below, &[1, 2], &select).unwrap() {
        let Selected::Tokens { ids, .. } = answer else { unreachable!("tokens were asked for") };
        told.chosen.extend(ids);
    }
    assert_eq!(model.forest().context_length(leaves[2]).unwrap(), 76);
    told
}

#[test]
fn any_number_of_ranks_gives_the_definition_s_logits_and_one_rank_s_tokens() {
    for config in shapes() {
        let weights = Weights::synthetic(config, 11).unwrap();
        let reference = definition(&weights);
        let mut one = CpuModel::load(&weights, options(), |_, _| {}).unwrap();
        let expected = search(&mut one);
        for ranks in RANKS {
            let mut model = ranked(&weights, ranks, LONG);
            let found = search(&mut model);
            assert_eq!(found.chosen, expected.chosen, "{ranks} ranks");
            for ((path, logits), (_, one)) in found.rows.iter().zip(&expected.rows) {
                assert_rows(logits, [&reference.logits(path).pop().unwrap()]);
                assert!(ranks > 1 || logits == one, "one rank has other bits");
            }
            // Fewer query heads are fewer row tiles, which read a page once each.
            let (read, most) = (model.traffic(), one.traffic());
            assert!(0 < read.read && read.read <= most.read, "counted once for all ranks");
            assert!(ranks > 1 || read == most);
            assert_eq!(model.ranks(), ranks);
        }
    }
}

#[test]
fn ranks_give_the_same_bits_in_every_run() {
    let weights = Weights::synthetic(shapes()[0].clone(), 11).unwrap();
    let run = || search(&mut ranked(&weights, 3, LONG)).rows;
    assert!(run() == run());
}

#[test]
fn families_share_out_their_biases_norms_and_caps() {
    let variant = Variant {
        qkv_bias: true,
        qk_norm: true,
        post_norms: true,
        logit_cap: Some(3.0),
        embedding_scale: 6.0,
        ..Variant::LLAMA
    };
    for config in shapes() {
        let config = LlamaConfig { variant: variant.clone(), ..config };
        let weights = Weights::synthetic(config, 11).unwrap();
        let expected = search(&mut CpuModel::load(&weights, options(), |_, _| {}).unwrap());
        for ranks in [2, 3, 8] {
            let found = search(&mut ranked(&weights, ranks, LONG));
            assert_eq!(found.chosen, expected.chosen, "{ranks} ranks");
            for ((_, found), (_, expected)) in found.rows.iter().zip(&expected.rows) {
                let expected: Vec<f64> = expected.iter().map(|&x| x.into()).collect();
                assert_rows(found, [&expected]);
            }
        }
    }
}

#[derive(Clone, Copy, Debug)]
enum Fault {
    Dies,
    Sleeps(Duration),
}

impl Fault {
    /// A communicator of a rank that this happens to at its `at`-th exchange, and at all after it.
    fn strike(self, inner: Box<dyn Communicator>, at: u32) -> Box<dyn Communicator> {
        let mut left = at;
        let tap = move |_: &Message| match (left, self) {
            // Without a word on the terminal.
            (0, Self::Dies) => std::panic::resume_unwind(Box::new("on purpose")),
            (0, Self::Sleeps(time)) => std::thread::sleep(time),
            _ => left -= 1,
        };
        Box::new(Tapped { inner, tap })
    }
}

/// What a model says whose rank `victim` meets `fault` at its `at`-th exchange, and how long that takes after it.
fn struck(
    ranks: u32,
    victim: u32,
    at: u32,
    timeout: Duration,
    fault: Fault,
) -> (RankError, Duration) {
    let weights = Weights::synthetic(shapes()[0].clone(), 11).unwrap();
    let mut model = faulty(&weights, ranks, timeout, move |inner| {
        if inner.rank() != victim {
            return inner;
        }
        fault.strike(inner, at)
    });
    let mut logits = Vec::new();
    let begun = Instant::now();
    let error = loop {
        match model.insert_prompt(&tokens(1, 20), &mut logits) {
            Ok(root) => {
                assert!(at >= 5, "a prompt has two exchanges a layer, and one for its logits");
                let leaves = model.fork(root, 2).unwrap();
                match model.step(&leaves, &[1, 2], &mut logits) {
                    Ok(()) => {}
                    Err(error) => break error,
                }
            }
            Err(error) => break error,
        }
    };
    let waited = begun.elapsed();
    let ModelError::Ranks(error) = error else { panic!("{error}") };
    // It is over, at once and for everything.
    let again = Instant::now();
    let ModelError::Ranks(same) = model.make_room(1).unwrap_err() else { panic!() };
    assert_eq!(same, error);
    model.forest().debug_assert_invariants();
    drop(model);
    assert!(again.elapsed() < LONG / 2);
    (error, waited)
}

#[test]
fn a_rank_that_dies_anywhere_ends_the_call_with_its_name() {
    for ranks in [2, 3, 8] {
        for at in [0, 1, 4, 5, 9] {
            let victim = 1 + at % (ranks - 1);
            let (error, waited) = struck(ranks, victim, at, LONG, Fault::Dies);
            assert!(
                matches!(error, RankError::Gone { rank, .. } if rank == victim),
                "{ranks} {at}: {error}"
            );
            assert!(waited < LONG / 2, "{waited:?}");
        }
    }
}

#[test]
fn a_rank_that_hangs_ends_the_call_with_its_name_in_time() {
    let timeout = Duration::from_millis(500);
    for (ranks, victim) in [(2, 1), (8, 5)] {
        let (error, waited) = struck(ranks, victim, 6, timeout, Fault::Sleeps(6 * timeout));
        assert!(matches!(error, RankError::Stalled { rank, .. } if rank == victim), "{error}");
        assert!(waited >= timeout && waited < 5 * timeout, "{waited:?}");
    }
}

#[test]
fn a_rank_that_is_slow_but_in_time_changes_nothing() {
    let weights = Weights::synthetic(shapes()[0].clone(), 11).unwrap();
    let slow = |inner: Box<dyn Communicator>| -> Box<dyn Communicator> {
        let fault = Fault::Sleeps(Duration::from_millis(5 * u64::from(inner.rank())));
        fault.strike(inner, 0)
    };
    let found = search(&mut faulty(&weights, 3, LONG, slow));
    assert!(found.rows == search(&mut ranked(&weights, 3, LONG)).rows);
}

#[test]
fn one_of_several_ranks_restores_no_prompt_by_itself() {
    let weights = Weights::synthetic(shapes()[0].clone(), 11).unwrap();
    let ranks = Box::new(Memory::new(2, LONG).unwrap().remove(0));
    let mut model = CpuModel::load_rank(&weights, options(), ranks, |_, _| {}).unwrap();
    let free = model.forest().pool().free();
    let error = model.restore_prompt(&mut std::io::empty()).unwrap_err();
    assert!(error.to_string().contains("restore_prompt"), "{error}");
    assert!(error.to_string().contains("one of 2 ranks"), "{error}");
    assert_eq!(model.forest().pool().free(), free);
}

#[test]
fn ranks_whose_trees_differ_are_found_out() {
    let weights = Weights::synthetic(shapes()[0].clone(), 11).unwrap();
    let load = move |ranks: Box<dyn Communicator>| {
        // Rank 2 has fewer pages than the others.
        let capacity_bytes = if ranks.rank() == 2 { 2 << 20 } else { 4 << 20 };
        let options = CpuOptions { capacity_bytes, ..options() };
        CpuModel::load_rank(&weights, options, ranks, |_, _| {})
    };
    let mut model = Ranked::in_threads(3, LONG, load).unwrap();
    let mut logits = Vec::new();
    let root = model.insert_prompt(&[1, 2, 3], &mut logits).unwrap();
    let error = model.fork(root, 2).unwrap_err();
    let expected = "rank 2 has another history than rank 0 after 1 operations: ";
    assert!(error.to_string().starts_with(expected), "{error}");
}

#[test]
fn calls_that_all_ranks_refuse_leave_all_as_they_were() {
    let weights = Weights::synthetic(shapes()[1].clone(), 11).unwrap();
    let mut model = ranked(&weights, 4, LONG);
    let mut logits = Vec::new();
    let refused = [
        model.insert_prompt(&[], &mut logits).unwrap_err().to_string(),
        model.insert_prompt(&[97], &mut logits).unwrap_err().to_string(),
        model.insert_prompt(&tokens(1, 301), &mut logits).unwrap_err().to_string(),
        model.prune(NodeKey::default()).unwrap_err().to_string(),
    ];
    for (message, part) in refused.iter().zip(["empty", "token 97", "context of 300", "null"]) {
        assert!(message.contains(part), "{message}");
    }
    let mut one = CpuModel::load(&weights, options(), |_, _| {}).unwrap();
    // A key of another model is nobody's on any rank.
    let foreign = one.insert_prompt(&[1, 2], &mut logits).unwrap();
    let own = model.insert_prompt(&[1, 2], &mut logits).unwrap();
    assert!(model.fork(foreign, 1).is_err());
    assert_eq!(model.fork(own, 1).unwrap().len(), 1);
    model.prune(own).unwrap();
    one.prune(foreign).unwrap();
    assert_eq!(search(&mut model).chosen, search(&mut one).chosen);
}

#[test]
fn a_rank_without_a_model_says_why() {
    let weights = Weights::synthetic(shapes()[0].clone(), 11).unwrap();
    let load = move |ranks: Box<dyn Communicator>| {
        let capacity_bytes = if ranks.rank() == 1 { 1 } else { 4 << 20 };
        let options = CpuOptions { capacity_bytes, ..options() };
        CpuModel::load_rank(&weights, options, ranks, |_, _| {})
    };
    let error = Ranked::in_threads(3, LONG, load).unwrap_err();
    assert!(matches!(&error, LoadError::Ranks(RankError::Aborted { rank: 1, .. })), "{error}");
    let weights = Weights::synthetic(shapes()[0].clone(), 11).unwrap();
    let load = move |ranks| CpuModel::load_rank(&weights, options(), ranks, |_, _| {});
    let error = Ranked::in_threads(9, LONG, load).unwrap_err().to_string();
    assert!(error.contains("ranks is 9; it must be at most 8, the model's query heads"), "{error}");
}

fn address() -> String {
    TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().to_string()
}

#[test]
fn ranks_over_sockets_are_ranks_over_memory() {
    let weights = Weights::synthetic(shapes()[1].clone(), 11).unwrap();
    let addresses = [address(), address()];
    let meet = |rank: u32| {
        addresses.each_ref().map(|address| {
            let tcp = Tcp::meet((rank, 3), address, LONG, LONG).unwrap();
            Box::new(tcp) as Box<dyn Communicator>
        })
    };
    let load = |data| CpuModel::load_rank(&weights, options(), data, |_, _| {}).unwrap();
    let found = std::thread::scope(|scope| {
        let others: Vec<_> = (1..3)
            .map(|rank| {
                let (meet, load) = (&meet, &load);
                scope.spawn(move || {
                    let [control, data] = meet(rank);
                    follow(load(data), control)
                })
            })
            .collect();
        let [control, data] = meet(0);
        let mut model = Ranked::lead(load(data), control).unwrap();
        let found = search(&mut model);
        drop(model);
        others.into_iter().for_each(|other| other.join().unwrap().unwrap());
        found
    });
    assert!(found.rows == search(&mut ranked(&weights, 3, LONG)).rows);
}
