//! Prompts that begin alike on a GPU: kept, moved to pinned memory and to a file, and brought back by loads and passes, in
//! stores of either kind; against prompts that were run whole.

use std::io::Cursor;

use deft::{DType, Restored};
use deft_engine::cuda::{CudaModel, CudaOptions, CudaWeights};
use deft_engine::{LlamaConfig, ModelError, TreeModel};
use deft_tests::gpu::{Gpu, say};
use deft_tests::oracle::relative_l2;

/// Logits after a prefix that was kept, against those of a prompt in one piece: passes of other sizes round otherwise.
const LIMIT: f64 = 0.05;

fn open(gpu: &Gpu, kept: bool, elastic: bool) -> CudaModel {
    let config = LlamaConfig { layers: 4, ..LlamaConfig::smollm2_135m() };
    let weights = CudaWeights::random(&gpu.device, config, DType::Bf16, 4, 3).unwrap();
    let mut options = CudaOptions::default();
    options.kv_bytes = 512 << 20;
    options.kv_initial = elastic.then_some(0);
    options.prefix_bytes = if kept { u64::MAX } else { 0 };
    CudaModel::new(&gpu.device, weights, options).unwrap()
}

fn ids(seed: u32, count: u32) -> Vec<u32> {
    (0..count).map(|at| (at * 7919 + seed * 104_729) % 49_152).collect()
}

/// Runs `prompt`; how far its logits are from those of `whole`, and how many tokens were found.
fn compare(model: &mut CudaModel, whole: &mut CudaModel, prompt: &[u32]) -> (f64, u64) {
    let (mut got, mut right) = (Vec::new(), Vec::new());
    let before = model.prefix_stats().tokens_saved;
    let leaf = model.insert_prompt(prompt, &mut got).unwrap();
    model.prune(leaf).unwrap();
    let root = whole.insert_prompt(prompt, &mut right).unwrap();
    whole.prune(root).unwrap();
    let right: Vec<f64> = right.iter().map(|&x| f64::from(x)).collect();
    (relative_l2(&got, &right), model.prefix_stats().tokens_saved - before)
}

#[test]
fn a_second_prompt_runs_only_what_is_new_and_a_demoted_one_comes_back() {
    for gpu in Gpu::each() {
        for elastic in [false, true] {
            gpu.watchdog.now("prompts that begin alike");
            let (mut model, mut whole) = (open(&gpu, true, elastic), open(&gpu, false, false));
            let system = ids(1, 1500);
            let prompt = |seed| [&system[..], &ids(seed, 100)].concat();
            let name = if elastic { "elastic" } else { "fixed" };
            let mut worst = 0.0f64;
            for (seed, found) in [(2, 0), (3, 1500), (2, 1599)] {
                let (off, saved) = compare(&mut model, &mut whole, &prompt(seed));
                assert_eq!(saved, found, "{name}, prompt {seed}");
                worst = worst.max(off);
            }
            model.clear_prompts().unwrap();
            assert_eq!(model.forest().pool().live(), 0);
            let leaf = model.insert_prompt(&system, &mut Vec::new()).unwrap();
            let demoted = model.demote_prompt(leaf).unwrap();
            let mut file = Cursor::new(demoted.bytes().to_vec());
            let mut check = |way: &str,
                             bring: &mut dyn FnMut(
                &mut CudaModel,
            ) -> Result<Restored, ModelError>| {
                gpu.watchdog.now(way);
                let restored = bring(&mut model).unwrap();
                assert!(restored.fault.is_none(), "{way}: {:?}", restored.fault);
                let (off, saved) = compare(&mut model, &mut whole, &prompt(4));
                assert_eq!(saved, 1500, "{name}, {way}");
                say(&format!(
                    "{name}, {way}: {} computed, {} loaded; logits off by {off:.1e}",
                    restored.computed, restored.loaded
                ));
                worst = worst.max(off);
                model.prune(restored.node).unwrap();
                model.clear_prompts().unwrap();
                assert_eq!(model.forest().pool().live(), 0, "{name}, {way}");
            };
            check("loaded from memory", &mut |model| model.promote_prompt(&demoted));
            check("loaded from a file", &mut |model| model.promote_prompt(&mut file));
            let mut file = Cursor::new(demoted.bytes().to_vec());
            check("met from memory", &mut |model| model.restore_prompt(&demoted));
            check("met from a file", &mut |model| model.restore_prompt(&mut file));
            assert!(worst < LIMIT, "{name}: logits are off by {worst:.2e}");
        }
    }
}
