//! Time by events: one worker computes token `i` in `a + b i`, one loads at a rate that may change.

use deft::restore::{Claim, RestoreNode, RestorePlan};

use crate::restore::node;

/// Llama-3-8B's K and V, 16 bits.
const TOKEN_BYTES: f64 = 131_072.0;
const RATES: [f64; 5] = [0.5e9, 1e9, 2e9, 5e9, 20e9];

#[derive(Clone, Copy)]
struct Speeds {
    /// Seconds for the first token.
    a: f64,
    /// More seconds for each token before it.
    b: f64,
    /// Bytes a second.
    rate: f64,
    /// When the rate halves.
    halves: f64,
}

impl Speeds {
    /// 20,000 tokens a second at first; half of that after 16,384 tokens.
    fn new(rate: f64) -> Self {
        let a = 1.0 / 20_000.0;
        let b = a / 16_384.0;
        let halves = f64::INFINITY;
        Self { a, b, rate, halves }
    }

    fn compute(&self, begin: f64, tokens: f64) -> f64 {
        tokens * (self.a + self.b * (begin + tokens / 2.0))
    }

    /// When a load ends that begins at `now`.
    fn loaded(&self, now: f64, tokens: f64) -> f64 {
        let seconds = tokens * TOKEN_BYTES / self.rate;
        let fast = (self.halves - now).clamp(0.0, seconds);
        now + fast + 2.0 * (seconds - fast)
    }

    /// The least time for a chain: the best place to meet, known beforehand.
    fn best(&self, tokens: u32) -> f64 {
        let time = |computed: u32| {
            let load = self.loaded(0.0, f64::from(tokens - computed));
            self.compute(0.0, f64::from(computed)).max(load)
        };
        (0..=tokens).map(time).fold(f64::INFINITY, f64::min)
    }
}

/// Time of a plan, and the tokens computed.
fn run(nodes: &[RestoreNode], positions: &[f64], speeds: Speeds) -> (f64, u32) {
    let plan = RestorePlan::new(nodes, 512, 256).unwrap();
    let (mut now, mut computed) = (0.0, 0);
    let mut running: [Option<(f64, Claim)>; 2] = [None, None];
    while !plan.is_done() {
        if running[0].is_none() {
            running[0] = plan.claim_compute().map(|claim| {
                let begin = positions[claim.node] + f64::from(claim.tokens.start);
                computed += claim.tokens.len() as u32;
                (now + speeds.compute(begin, claim.tokens.len() as f64), claim)
            });
        }
        if running[1].is_none() {
            running[1] = plan
                .claim_load()
                .map(|claim| (speeds.loaded(now, claim.tokens.len() as f64), claim));
        }
        let ends = running.iter().flatten().map(|(end, _)| *end);
        now = ends.fold(f64::INFINITY, f64::min);
        for worker in &mut running {
            if let Some((_, claim)) = worker.take_if(|(end, _)| *end <= now) {
                plan.complete(claim);
            }
        }
    }
    (now, computed)
}

#[test]
fn a_sequence_comes_back_within_a_tenth_of_the_best_time_whatever_the_rates() {
    for tokens in [4096, 16_384, 16_384 + 37, 65_536] {
        for rate in RATES {
            for halves in [false, true] {
                let mut speeds = Speeds::new(rate);
                if halves {
                    speeds.halves = speeds.best(tokens) / 2.0;
                }
                let (time, computed) = run(&[node(None, tokens)], &[0.0], speeds);
                let best = speeds.best(tokens);
                let context = format!(
                    "{tokens} tokens, {rate:e} B/s, halves: {halves}: {time} s, best {best} s"
                );
                assert!(time <= 1.10 * best, "{context}");
                let alone =
                    [speeds.compute(0.0, f64::from(tokens)), speeds.loaded(0.0, f64::from(tokens))];
                assert!(time <= 1.02 * alone[0].min(alone[1]), "{context}, alone {alone:?}");
                assert!(computed > 0 && computed < tokens, "{context}: {computed} computed");
            }
        }
    }
}

#[test]
fn a_prefix_that_many_leaves_share_is_restored_once_for_all_of_them() {
    let mut nodes = vec![node(None, 8192)];
    nodes.extend((0..8).map(|_| node(Some(0), 1024)));
    let positions: Vec<f64> =
        nodes.iter().map(|node| node.parent.map_or(0.0, |_| 8192.0)).collect();
    for rate in RATES {
        let speeds = Speeds::new(rate);
        let (time, _) = run(&nodes, &positions, speeds);
        let leaves = 8.0 * speeds.compute(8192.0, 1024.0);
        let alone = [speeds.compute(0.0, 8192.0) + leaves, speeds.loaded(0.0, 16_384.0)];
        assert!(time <= 1.02 * alone[0].min(alone[1]), "{rate:e} B/s: {time} s, alone {alone:?}");
        // Each leaf for itself would load or compute the prefix eight times.
        let apart = 8.0 * speeds.best(9216);
        assert!(time < 0.3 * apart, "{rate:e} B/s: {time} s, apart {apart} s");
    }
}
