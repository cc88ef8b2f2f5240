//! Steps of a cache captured as CUDA graphs on a GPU: loops of prompts, chunks, drafts, decoding, forks and pruning by one
//! graph, rows on a stream of the caller's, every step against f64. The same loop runs on the fake driver in CI
//! (`host/tests/fake_gpu/captured_steps.rs`). Half of them have pages whose memory comes as they are taken.
//!
//! Without a GPU it says so and passes. `DEFT_STEPS` sets the steps of the loop at head dimension 128, 300 if it is not
//! set; the others have a third of them.

#[path = "../../../host/tests/fake_gpu/world.rs"]
#[allow(dead_code, reason = "the suite shares it with others")]
mod world;

use deft::cache::{HEAD_DIMS, Store};
use deft::{RotaryTable, StepRun};
use deft_tests::gpu::{Gpu, say, setting, wanted};

#[test]
fn one_graph_serves_a_loop_of_prompts_drafts_and_decoding() {
    let steps = setting("DEFT_STEPS", 300) as u32;
    for gpu in Gpu::each() {
        let kinds = HEAD_DIMS.into_iter().zip([true, false].into_iter().cycle());
        let kinds = kinds.flat_map(|kind| [(kind, false), (kind, true)]);
        for ((dim, rotated), elastic) in kinds {
            if !wanted(&format!("bf16_d{dim}")) {
                continue;
            }
            let name =
                format!("{} bf16_d{dim}, rotated: {rotated}, elastic: {elastic}", gpu.arch());
            gpu.watchdog.now(&name);
            let store = |bytes: u64| match elastic {
                true => Store::Elastic { reserve: bytes.max(1 << 30), initial: 0 },
                false => Store::Fixed { bytes },
            };
            let mut world = world::World::of_store(&gpu.device, dim as usize, None, 7, store);
            world.table = rotated.then(|| RotaryTable::new(dim, 4000, 500_000.0).unwrap());
            let steps = if dim == 128 { steps } else { steps.div_ceil(3) };
            let runs = world.mixed_loop(steps, &name);
            let count = |kind| runs.iter().filter(|&&run| run == kind).count();
            say(&format!(
                "{name}: {} steps called, {} captured, {} replayed",
                count(StepRun::Called),
                count(StepRun::Captured),
                count(StepRun::Replayed)
            ));
            assert_eq!(count(StepRun::Called), 1, "{name}");
            assert!(count(StepRun::Captured) <= 6, "{name}");
        }
    }
}
