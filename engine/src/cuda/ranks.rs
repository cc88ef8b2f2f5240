//! A model's place among ranks: sums and gathers of its passes, and a watch over ranks that do not come.
//!
//! On a device a collective whose other side is missing waits for ever, and the host with it. So before the host waits
//! for a pass it looks, now and then, whether the pass is done, whether a rank has died, and for how long it has waited;
//! and ends NCCL's communicator, which ends the kernels, before it says what has happened.

use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use deft::cuda::{CudaDevice, DevicePtr, RawStream, Stream};

use super::nccl::{Comm, Id, Joining, Nccl};
use super::{CudaModelError, CudaOptions};
use crate::ranked::START;
use crate::ranks::{Communicator, RankError};

/// How long is looked without a pause whether a pass is done.
const SPIN: Duration = Duration::from_millis(20);
/// Between looks after that.
const PAUSE: Duration = Duration::from_micros(100);
/// Between looks at the other ranks.
const LOOK: Duration = Duration::from_millis(20);
/// How long a rank that hangs has to say that it is there.
const ROLL_CALL: Duration = Duration::from_secs(2);

/// A rank of several.
#[derive(Debug)]
pub(super) struct DeviceRanks {
    /// Goes first: who waits for this rank hears of its end.
    host: Mutex<Host>,
    comm: Comm,
}

impl Drop for DeviceRanks {
    /// A communicator that others have ended is not taken down with them.
    fn drop(&mut self) {
        let watched = self.host().ranks.watch();
        if !matches!(watched, Ok(()) | Err(RankError::Gone { .. })) {
            self.comm.abort();
        }
    }
}

/// The host's side.
#[derive(Debug)]
struct Host {
    ranks: Box<dyn Communicator>,
    over: Option<RankError>,
}

impl DeviceRanks {
    /// Joins the others; `ranks` is how their hosts talk.
    ///
    /// # Errors
    /// [`CudaModelError::Nccl`], [`CudaModelError::Ranks`].
    pub(super) fn join(
        device: &CudaDevice,
        mut ranks: Box<dyn Communicator>,
        options: &CudaOptions,
    ) -> Result<Self, CudaModelError> {
        let nccl = Nccl::open(options.nccl.as_deref())
            .inspect_err(|error| ranks.abort(&error.to_string()))?;
        // Some have more weights to read than others.
        ranks.barrier(START)?;
        let own = if ranks.rank() == 0 { nccl.id()?.bytes().to_vec() } else { Vec::new() };
        let id = Id::from_bytes(&ranks.broadcast(0, &own)?);
        let id = id.ok_or_else(|| RankError::Gone { rank: 0, reason: "it gave no id".into() })?;
        let place = (ranks.rank(), ranks.ranks());
        let mut host = Host { ranks, over: None };
        let comm = host.wait_for(Joining::begin(nccl, device, place, id))?;
        Ok(Self { comm, host: Mutex::new(host) })
    }

    pub(super) fn describe(&self) -> String {
        self.comm.describe()
    }

    pub(super) fn rank(&self) -> u32 {
        self.comm.rank()
    }

    fn host(&self) -> MutexGuard<'_, Host> {
        self.host.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Enqueues the sum over ranks of `x`, `count` f32, in its place.
    ///
    /// # Safety
    /// `x` is valid until the work is done; `stream` is one of the device.
    pub(super) unsafe fn all_reduce(
        &self,
        x: DevicePtr,
        count: usize,
        stream: RawStream,
    ) -> Result<(), CudaModelError> {
        // SAFETY: the caller's.
        Ok(unsafe { self.comm.all_reduce(x, count, stream) }?)
    }

    /// Enqueues the gather of `rows` rows of logits, `vocabulary` each, of which every rank has its even part.
    ///
    /// # Safety
    /// As [`DeviceRanks::all_reduce`].
    pub(super) unsafe fn gather_logits(
        &self,
        logits: DevicePtr,
        (rows, ends): (u32, &[u32]),
        stream: RawStream,
    ) -> Result<(), CudaModelError> {
        debug_assert_eq!(ends.len(), self.comm.ranks() as usize + 1);
        let vocabulary = ends[ends.len() - 1];
        // SAFETY: the caller's.
        Ok(unsafe { self.comm.gather_rows(logits, (rows, vocabulary), ends, stream) }?)
    }

    /// Whether there may be another pass.
    ///
    /// # Errors
    /// What ended the run.
    pub(super) fn check(&self) -> Result<(), CudaModelError> {
        match &self.host().over {
            None => Ok(()),
            Some(error) => Err(error.clone().into()),
        }
    }

    /// Waits until `stream` has done what was enqueued, or a rank has died, or it has taken too long.
    ///
    /// # Errors
    /// [`CudaModelError::Ranks`] and [`CudaModelError::Nccl`]: from then on at every pass.
    pub(super) fn settle(&self, stream: &Stream) -> Result<(), CudaModelError> {
        self.check()?;
        let (begun, mut looked) = (Instant::now(), Instant::now());
        while !stream.is_idle()? {
            let waited = begun.elapsed();
            if waited < SPIN {
                std::hint::spin_loop();
                continue;
            }
            std::thread::sleep(PAUSE);
            if looked.elapsed() < LOOK {
                continue;
            }
            looked = Instant::now();
            let mut host = self.host();
            let mut fault = host.ranks.watch();
            if let Err(error) = self.comm.check() {
                let reason = error.to_string();
                fault = fault.and(Err(RankError::Aborted { rank: self.rank(), reason }));
            }
            if fault.is_ok() && waited >= host.ranks.timeout() {
                fault = Err(host.who_is_late("a pass's collectives", waited));
            }
            if let Err(error) = fault {
                self.comm.abort();
                host.ranks.abort(&error.to_string());
                host.over = Some(error.clone());
                wait_for_end(stream);
                return Err(error.into());
            }
        }
        Ok(())
    }
}

/// Waits until the kernels of collectives that were ended have ended, lest their memory goes before.
fn wait_for_end(stream: &Stream) {
    let begun = Instant::now();
    // What fails, or takes longer, is beyond help.
    while matches!(stream.is_idle(), Ok(false)) && begun.elapsed() < ROLL_CALL {
        std::thread::sleep(PAUSE);
    }
}

impl Host {
    /// Waits until all ranks have joined, or one has died, or it has taken too long.
    fn wait_for(&mut self, joining: Joining) -> Result<Comm, CudaModelError> {
        let begun = Instant::now();
        loop {
            let joined = joining.wait(LOOK);
            if let Some(comm) = joined.inspect_err(|error| self.ranks.abort(&error.to_string()))? {
                return Ok(comm);
            }
            let (waited, mut fault) = (begun.elapsed(), self.ranks.watch());
            if fault.is_ok() && waited >= self.ranks.timeout() {
                fault = Err(self.who_is_late("NCCL's first connection", waited));
            }
            if let Err(error) = fault {
                self.ranks.abort(&error.to_string());
                return Err(error.into());
            }
        }
    }

    /// The rank that does not answer, of those that wait for each other in `what`.
    fn who_is_late(&mut self, what: &str, after: Duration) -> RankError {
        let (rank, what) = (self.ranks.rank(), what.to_owned());
        match self.ranks.barrier(ROLL_CALL) {
            // All hosts are there, so it is a device, and this one's is as late as any.
            Ok(()) => RankError::Stalled { rank, what, after },
            Err(RankError::Stalled { rank, .. }) => RankError::Stalled { rank, what, after },
            Err(error) => error,
        }
    }
}
