//! Several GPUs that run a model together, a thread each.

use anyhow::{Context, Result, anyhow};
use deft::cuda::CudaDevice;
use deft_engine::ranks::{Communicator as _, Memory, TIMEOUT};

use super::Engine;

/// Runs `work` on `gpus` devices at once; it does the same on all.
pub(super) fn on_all(
    engine: &Engine<'_>,
    gpus: u32,
    work: impl Fn(&CudaDevice, Memory) -> Result<()> + Sync,
) -> Result<()> {
    let mut rooms = Memory::new(gpus, TIMEOUT)?.into_iter();
    let first = rooms.next().context("there is no GPU")?;
    let run = |room: Memory| -> Result<()> {
        let rank = room.rank();
        let gpu = engine.args.gpu.next(rank)?;
        work(&gpu.device, room).with_context(|| format!("rank {rank}"))
    };
    let run = &run;
    std::thread::scope(|scope| {
        let others: Vec<_> = rooms.map(|room| scope.spawn(move || run(room))).collect();
        let outcome = work(&engine.device, first);
        others.into_iter().fold(outcome, |outcome, other| {
            let other = other.join().unwrap_or_else(|_| Err(anyhow!("a rank panicked")));
            // What ended the others is told by the one that it happened to.
            other.and(outcome)
        })
    })
}
