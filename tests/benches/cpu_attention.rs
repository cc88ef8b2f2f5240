//! The CPU backend on `workloads/trees.json`: each grouping's time over PerQuery's.
//!
//! `cargo bench -p deft-tests --bench cpu_attention [-- NAME...]`. The groupings take turns and the
//! cheapest of all rounds counts, in processor time of all threads where the system tells it, so that
//! ratios hold on a machine that others use as well; times of different runs do not compare.

use std::time::{Duration, Instant};

use deft::attention::{Attend, AttentionParams, Backend, Counters, cpu};
use deft::cache::{CacheShape, KvElement};
use deft::plan::{Grouping, Plan, Planner};
use deft::tree::TokenForest;
use deft::workload::StepWorkload;
use deft_tests::workloads;
use half::bf16;

const GROUPINGS: [Grouping; 4] = [
    Grouping::PerQuery,
    Grouping::Node,
    Grouping::NodeChunk,
    Grouping::Flatten,
];
/// Rounds and time that a workload takes at least.
const ROUNDS: u32 = 5;
const TIME: Duration = Duration::from_secs(4);

fn main() {
    let names: Vec<String> = std::env::args()
        .skip(1)
        .filter(|a| !a.starts_with('-'))
        .collect();
    println!(
        "{:24} {:>12} {:>8} {:>8} {:>8}",
        "workload", "PerQuery", "Node", "Chunk", "Flatten"
    );
    for workload in workloads::steps() {
        if names.is_empty() || names.contains(&workload.name) {
            measure(&workload);
        }
    }
}

fn measure(workload: &StepWorkload) {
    let built = workload.build(0).expect("a workload of the repository");
    let shape = CacheShape {
        layers: 1,
        kv_heads: workload.heads.kv_heads,
        head_dim: workload.heads.head_dim,
        dtype: bf16::DTYPE,
        pages: built.forest.pool().capacity(),
    };
    let mut backend = cpu::new(shape).expect("memory for the workload");
    fill(&mut *backend, &shape);
    let view = built.forest.view(&built.queries).expect("queries");
    let group = workload.heads.q_heads / shape.kv_heads;
    let plans = GROUPINGS.map(|grouping| {
        let config = backend.plan_config(grouping, group);
        Planner::new(config).unwrap().plan(&view).unwrap()
    });
    let elements = (view.queries * workload.heads.q_heads * shape.head_dim) as usize;
    let q: Vec<bf16> = values(elements);
    let mut out = vec![bf16::ZERO; elements];
    let mut best = [Duration::MAX; GROUPINGS.len()];
    let begin = Instant::now();
    let mut rounds = 0;
    while rounds < ROUNDS || begin.elapsed() < TIME {
        for (plan, best) in plans.iter().zip(&mut best) {
            let clock = Clock::start();
            attend(&mut *backend, &built.forest, plan, &q, &mut out);
            *best = clock.elapsed().min(*best);
        }
        rounds += 1;
    }
    let ratio = |i: usize| best[0].as_secs_f64() / best[i].as_secs_f64();
    println!(
        "{:24} {:>9.3} ms {:>7.2}x {:>7.2}x {:>7.2}x",
        workload.name,
        best[0].as_secs_f64() * 1e3,
        ratio(1),
        ratio(2),
        ratio(3)
    );
}

/// Processor time of all threads, or time that passes where that is not to be had.
struct Clock {
    begin: Instant,
    processor: Option<Duration>,
}

impl Clock {
    fn start() -> Self {
        Self {
            begin: Instant::now(),
            processor: processor_time(),
        }
    }

    fn elapsed(&self) -> Duration {
        match (processor_time(), self.processor) {
            (Some(now), Some(begin)) => now - begin,
            _ => self.begin.elapsed(),
        }
    }
}

/// First field of every thread's `schedstat`: nanoseconds on a processor.
fn processor_time() -> Option<Duration> {
    let mut nanoseconds = 0;
    for task in std::fs::read_dir("/proc/self/task").ok()? {
        let text = std::fs::read_to_string(task.ok()?.path().join("schedstat")).ok()?;
        nanoseconds += text.split(' ').next()?.parse::<u64>().ok()?;
    }
    Some(Duration::from_nanos(nanoseconds))
}

fn attend(
    backend: &mut dyn Backend,
    forest: &TokenForest,
    plan: &Plan,
    q: &[bf16],
    out: &mut [bf16],
) {
    let params = AttentionParams::new(backend.shape().head_dim);
    let call = Attend {
        layer: 0,
        plan,
        plan_revision: 0,
        counters: Counters {
            lengths: forest.lengths(),
            tail_pages: forest.tail_pages(),
        },
        q: q.into(),
        out: out.into(),
        lse: None,
        params,
    };
    backend.attend(call).expect("a plan of this cache");
}

fn fill(backend: &mut dyn Backend, shape: &CacheShape) {
    let targets: Vec<u32> = (0..64).collect();
    let row: Vec<bf16> = values(64 * shape.row_elements());
    for page in 0..shape.pages {
        let targets: Vec<u32> = targets.iter().map(|token| page * 64 + token).collect();
        let (k, v) = (row[..].into(), row[..].into());
        backend
            .append(0, &targets, Counters::default(), k, v)
            .unwrap();
    }
}

fn values(count: usize) -> Vec<bf16> {
    let value = |i: usize| (i.wrapping_mul(0x9e37_79b9) >> 8 & 0xffff) as f32 / 65536.0 - 0.5;
    (0..count).map(|i| bf16::from_f32(value(i))).collect()
}
