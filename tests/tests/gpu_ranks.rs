//! A model on several GPUs: against one GPU and the CPU, with heads that do not come out even, by threads and by
//! processes, and with ranks that die or hang.
//!
//! With one GPU or none it says so and passes. `DEFT_CUBLAS` and `DEFT_NCCL` name the libraries' files or folders.

#[path = "gpu/model/walk.rs"]
mod walk;

use std::process::Command;
use std::sync::Mutex;
use std::time::{Duration, Instant};

use deft::cuda::CudaDevice;
use deft::{DType, NodeKey};
use deft_engine::cuda::{Choice, CudaModel, CudaModelError, CudaOptions, CudaWeights};
use deft_engine::ranked::{Ranked, START, follow};
use deft_engine::ranks::{Communicator, Launch, Memory, RankError, Shard, Tcp};
use deft_engine::select::{Select, Selected};
use deft_engine::{LlamaConfig, ModelError, TreeModel, Weights};
use deft_tests::gpu::say;
use deft_tests::oracle::relative_l2;
use deft_tests::watchdog::Watchdog;

use walk::{tokens, walk};

const LONG: Duration = Duration::from_secs(30);
/// Largest difference of a row of logits, relative in L2: those of `gpu_model` between a GPU and the CPU.
const LIMITS: [(DType, f64); 2] = [(DType::F16, 0.03 / 8.0), (DType::Bf16, 0.03)];

/// One suite at a time: the GPUs are the same.
static TURN: Mutex<()> = Mutex::new(());

/// GPUs that there are.
fn gpus() -> u32 {
    (0..).take_while(|&ordinal| CudaDevice::new(ordinal).is_ok()).count() as u32
}

/// Numbers of ranks that there are GPUs for; none, said aloud, without several.
fn several() -> Vec<u32> {
    let gpus = gpus();
    if gpus < 2 {
        say(&format!("skipped: {gpus} GPUs, several are needed"));
    }
    [2, 3, 4, 8].into_iter().filter(|&ranks| ranks <= gpus).collect()
}

/// A model whose KV heads, columns and vocabulary no number of ranks divides; and one where all do.
fn shapes() -> [LlamaConfig; 3] {
    let odd = LlamaConfig {
        layers: 3,
        hidden: 192,
        ffn: 416,
        q_heads: 9,
        kv_heads: 3,
        vocabulary: 1001,
        context: 512,
        ..LlamaConfig::smollm2_135m()
    };
    let even = LlamaConfig {
        layers: 2,
        hidden: 512,
        ffn: 1024,
        q_heads: 16,
        kv_heads: 8,
        head_dim: 128,
        vocabulary: 4096,
        context: 512,
        tied_embeddings: false,
        ..odd.clone()
    };
    // One KV head, which all ranks have.
    let shared = LlamaConfig { q_heads: 8, kv_heads: 1, ..odd.clone() };
    [odd, even, shared]
}

fn options() -> CudaOptions {
    let mut options = CudaOptions::default();
    options.kv_bytes = 64 << 20;
    options.max_rows = 64;
    options
}

/// A rank's model, on the GPU of its number.
fn model(
    weights: &Weights,
    dtype: DType,
    ranks: Box<dyn Communicator>,
) -> Result<CudaModel, CudaModelError> {
    let device = CudaDevice::new(ranks.rank())?;
    let shard = Shard::new(weights.config(), ranks.rank(), ranks.ranks())?;
    let weights = CudaWeights::read_shard(&device, weights, dtype, shard)?;
    CudaModel::new_rank(&device, weights, options(), ranks)
}

fn ranked(weights: &Weights, dtype: DType, ranks: u32) -> Ranked<CudaModel> {
    let weights = weights.clone();
    Ranked::in_threads(ranks, LONG, move |ranks| model(&weights, dtype, ranks)).unwrap()
}

/// Largest difference of rows of `vocabulary` logits.
fn largest(found: &[(String, Vec<f32>)], right: &[(String, Vec<f32>)], vocabulary: usize) -> f64 {
    assert_eq!(found.len(), right.len());
    let mut largest = 0.0_f64;
    for ((what, found), (_, right)) in found.iter().zip(right) {
        for (found, right) in found.chunks(vocabulary).zip(right.chunks(vocabulary)) {
            let right: Vec<f64> = right.iter().map(|&x| f64::from(x)).collect();
            let error = relative_l2(found, &right);
            assert!(error.is_finite(), "{what}");
            largest = largest.max(error);
        }
    }
    largest
}

#[test]
fn a_changing_tree_on_several_gpus_is_the_one_on_one_gpu() {
    let _turn = TURN.lock();
    let watchdog = Watchdog::start();
    for ranks in several() {
        for config in shapes() {
            let vocabulary = config.vocabulary as usize;
            let weights = Weights::synthetic(config, 5).unwrap();
            for (dtype, limit) in LIMITS {
                watchdog.now("one GPU");
                let one = walk(&mut ranked(&weights, dtype, 1), |what| watchdog.now(what));
                watchdog.now("several GPUs");
                let mut model = ranked(&weights, dtype, ranks);
                let found = walk(&mut model, |what| watchdog.now(what));
                let error = largest(&found, &one, vocabulary);
                say(&format!(
                    "{ranks} GPUs, {} KV heads, {dtype}: {} passes within {error:.1e} of one GPU's, {} graphs; {}",
                    weights.config().kv_heads,
                    found.len(),
                    model.model().graphs(),
                    model.model().nccl().unwrap(),
                ));
                assert!(error < limit, "{error} is not below {limit}");
            }
        }
    }
}

#[test]
fn answers_chosen_on_several_gpus_are_those_of_their_logits() {
    let _turn = TURN.lock();
    let watchdog = Watchdog::start();
    for ranks in several() {
        watchdog.now("answers");
        let weights = Weights::synthetic(shapes()[0].clone(), 5).unwrap();
        let mixed = [
            Select::Top { k: 5 },
            Select::Draw { temperature: 0.8, at: vec![0.2, 0.7] },
            Select::Of(vec![0, 500, 1000]),
            Select::Logits,
        ];
        // These are ranked by each rank, and merged.
        let merged = [5, 1, 64, 2].map(|k| Select::Top { k });
        let answers = |ranks, asked: &[&[Select; 4]]| {
            let mut model = ranked(&weights, DType::F16, ranks);
            let mut logits = Vec::new();
            let root = model.insert_prompt(&tokens(9, 40, 1001), &mut logits).unwrap();
            let leaves = model.fork(root, mixed.len()).unwrap();
            let step = |select: &&[Select; 4]| {
                model.step_select(&leaves, &[1, 2, 3, 4], &select[..]).unwrap()
            };
            asked.iter().flat_map(step).collect::<Vec<_>>()
        };
        let asked = [&mixed, &merged, &merged, &merged, &mixed, &merged];
        let logits = [const { Select::Logits }; 4];
        let (found, gathered) = (answers(ranks, &asked), answers(ranks, &[&logits; 6]));
        let select = asked.into_iter().flatten();
        for (((found, right), gathered), select) in
            found.iter().zip(answers(1, &asked)).zip(gathered).zip(select)
        {
            let Selected::Logits(gathered) = gathered else { panic!("logits were asked for") };
            match (found, right) {
                (
                    Selected::Tokens { ids, log_probs },
                    Selected::Tokens { ids: right, log_probs: of_one },
                ) => {
                    let near = |expected: &[f64], limit| {
                        let pairs = || log_probs.iter().zip(expected);
                        assert!(pairs().all(|(a, b)| (a - b).abs() < limit), "{log_probs:?}");
                    };
                    // Of the same logits the same tokens; one GPU's differ a little, and with them those at a draw's edge.
                    match select.answer(&gathered) {
                        Selected::Tokens { ids: same, log_probs: of_same } => {
                            assert_eq!(*ids, same, "{ranks} GPUs");
                            near(&of_same, 1e-3);
                        }
                        other => panic!("{other:?} are no tokens"),
                    }
                    if *ids == right || matches!(select, Select::Top { .. }) {
                        near(&of_one, 0.02);
                    }
                }
                (Selected::Logits(found), Selected::Logits(right)) => {
                    let right: Vec<f64> = right.iter().map(|&x| f64::from(x)).collect();
                    assert!(relative_l2(found, &right) < LIMITS[0].1);
                }
                (found, right) => panic!("{found:?} is not {right:?}"),
            }
        }
    }
}

/// Runs `work` on a thread for each rank, with a model each.
fn each<T: Send>(
    ranks: u32,
    timeout: Duration,
    weights: &Weights,
    work: impl Fn(u32, CudaModel) -> T + Sync,
) -> Vec<T> {
    let rooms = Memory::new(ranks, timeout).unwrap();
    let run = |room: Memory| {
        let rank = room.rank();
        work(rank, model(weights, DType::F16, Box::new(room)).unwrap())
    };
    let run = &run;
    std::thread::scope(|scope| {
        let threads: Vec<_> =
            rooms.into_iter().map(|room| scope.spawn(move || run(room))).collect();
        threads.into_iter().map(|thread| thread.join().unwrap()).collect()
    })
}

fn leaves(model: &mut CudaModel) -> Vec<NodeKey> {
    let prompt = tokens(4, 30, model.config().vocabulary);
    let root = model.insert_prompt(&prompt, &mut Vec::new()).unwrap();
    model.fork(root, 3).unwrap()
}

#[test]
fn tokens_that_stay_on_the_devices_are_the_same_on_all() {
    let _turn = TURN.lock();
    let watchdog = Watchdog::start();
    for ranks in several() {
        watchdog.now("tokens on devices");
        let weights = Weights::synthetic(shapes()[0].clone(), 5).unwrap();
        for choice in [Choice::GREEDY, Choice { ranked: 3, temperature: 0.9, seed: 3 }] {
            let decode = |_: u32, mut model: CudaModel| {
                let leaves = leaves(&mut model);
                let mut decode = model.decode(&leaves, &[1, 2, 3], choice).unwrap();
                (0..300).for_each(|_| decode.step().unwrap());
                decode.tokens().unwrap().to_vec()
            };
            let found = each(ranks, LONG, &weights, decode);
            let one = each(1, LONG, &weights, decode).pop().unwrap();
            assert!(found.iter().all(|tokens| *tokens == found[0]), "{ranks} ranks disagree");
            let pairs = found[0].iter().flatten().zip(one.iter().flatten());
            let (equal, all) = (pairs.clone().filter(|(a, b)| a == b).count(), pairs.count());
            say(&format!("{ranks} GPUs: {equal} of {all} tokens are one GPU's"));
        }
    }
}

#[test]
fn a_rank_that_dies_or_hangs_ends_the_others_in_time() {
    let _turn = TURN.lock();
    let watchdog = Watchdog::start();
    let timeout = Duration::from_secs(3);
    for ranks in several() {
        for hangs in [false, true] {
            watchdog.now("a rank that is gone");
            let weights = Weights::synthetic(shapes()[1].clone(), 5).unwrap();
            let victim = ranks - 1;
            let work = |rank: u32, mut model: CudaModel| {
                let leaves = leaves(&mut model);
                let mut logits = Vec::new();
                // Called, captured, replayed.
                for _ in 0..3 {
                    model.step(&leaves, &[1, 2, 3], &mut logits).unwrap();
                }
                if rank == victim {
                    if hangs {
                        std::thread::sleep(3 * timeout);
                    }
                    return None;
                }
                let begun = Instant::now();
                let error = model.step(&leaves, &[1, 2, 3], &mut logits).unwrap_err();
                let waited = begun.elapsed();
                let again = model.step(&leaves, &[1, 2, 3], &mut logits).unwrap_err();
                assert_eq!(again.to_string(), error.to_string());
                let ModelError::Ranks(error) = error else { panic!("{error}") };
                Some((error, waited))
            };
            for (error, waited) in each(ranks, timeout, &weights, work).into_iter().flatten() {
                say(&format!("{ranks} GPUs: \"{error}\" after {:.1} s", waited.as_secs_f64()));
                let named = match error {
                    RankError::Gone { rank, .. } => !hangs && rank == victim,
                    RankError::Stalled { rank, .. } => hangs && rank == victim,
                    _ => false,
                };
                assert!(named && waited < 2 * timeout + Duration::from_secs(3));
            }
        }
    }
}

#[test]
fn a_rank_that_does_not_connect_ends_the_others_in_time() {
    let _turn = TURN.lock();
    let watchdog = Watchdog::start();
    let timeout = Duration::from_secs(3);
    for ranks in several() {
        for hangs in [false, true] {
            watchdog.now("a rank that does not connect");
            let weights = Weights::synthetic(shapes()[1].clone(), 5).unwrap();
            let victim = ranks - 1;
            let run = |mut room: Memory| {
                if room.rank() == victim {
                    // It has its weights and the name of the communicator, and goes no further.
                    room.barrier(START).unwrap();
                    room.broadcast(0, &[]).unwrap();
                    std::thread::sleep(if hangs { 3 * timeout } else { Duration::ZERO });
                    return None;
                }
                let begun = Instant::now();
                let error = model(&weights, DType::F16, Box::new(room)).unwrap_err();
                let CudaModelError::Ranks(error) = error else { panic!("{error}") };
                Some((error, begun.elapsed()))
            };
            let run = &run;
            let found: Vec<_> = std::thread::scope(|scope| {
                let rooms = Memory::new(ranks, timeout).unwrap().into_iter();
                let threads: Vec<_> = rooms.map(|room| scope.spawn(move || run(room))).collect();
                threads.into_iter().filter_map(|thread| thread.join().unwrap()).collect()
            });
            assert_eq!(found.len(), victim as usize);
            for (error, waited) in found {
                say(&format!("{ranks} GPUs: \"{error}\" after {:.1} s", waited.as_secs_f64()));
                let named = match &error {
                    RankError::Gone { rank, .. } => !hangs && *rank == victim,
                    RankError::Stalled { rank, what, .. } => {
                        hangs && *rank == victim && what == "NCCL's first connection"
                    }
                    _ => false,
                };
                assert!(named && waited < 2 * timeout + Duration::from_secs(10));
            }
        }
    }
}

#[test]
fn processes_run_together_as_a_launcher_starts_them() {
    const CHILD: &str = "DEFT_TESTS_RANK";
    let weights = || Weights::synthetic(shapes()[1].clone(), 5).unwrap();
    let join = |launch: &Launch| {
        let meet = |channel| {
            let address = launch.address_of(channel).unwrap();
            let at = (launch.rank, launch.ranks);
            Box::new(Tcp::meet(at, &address, LONG, LONG).unwrap()) as Box<dyn Communicator>
        };
        (meet(0), meet(1))
    };
    if std::env::var_os(CHILD).is_some() {
        let (control, data) = join(&Launch::from_env().unwrap());
        return follow(model(&weights(), DType::F16, data).unwrap(), control).unwrap();
    }
    let _turn = TURN.lock();
    if several().is_empty() {
        return;
    }
    let watchdog = Watchdog::start();
    watchdog.now("processes");
    let port = 20_000 + std::process::id() as u16 % 20_000;
    let mut child = Command::new(std::env::current_exe().unwrap())
        .args(["processes_run_together_as_a_launcher_starts_them", "--exact", "--nocapture"])
        .env(CHILD, "1")
        .envs([("RANK", "1"), ("WORLD_SIZE", "2"), ("LOCAL_RANK", "1")])
        .envs([("MASTER_ADDR", "127.0.0.1"), ("DEFT_PORT", &*port.to_string())])
        .spawn()
        .unwrap();
    let launch = Launch { rank: 0, ranks: 2, local: 0, address: format!("127.0.0.1:{port}") };
    let (control, data) = join(&launch);
    let mut together = Ranked::lead(model(&weights(), DType::F16, data).unwrap(), control).unwrap();
    let found = walk(&mut together, |what| watchdog.now(what));
    drop(together);
    assert!(child.wait().unwrap().success());
    let threads = walk(&mut ranked(&weights(), DType::F16, 2), |what| watchdog.now(what));
    let error = largest(&found, &threads, shapes()[1].vocabulary as usize);
    say(&format!("two processes are within {error:.1e} of two threads"));
    assert!(error < LIMITS[0].1);
}
