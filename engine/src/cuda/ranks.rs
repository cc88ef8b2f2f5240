//! A model's place among ranks: sums and gathers of its passes, and a watch over ranks that do not come.
//!
//! On a device a collective whose other side is missing waits for ever, and the host with it. So before the host waits
//! for a pass it looks, now and then, whether the pass is done, whether a rank has died, and for how long it has waited;
//! and ends NCCL's communicator, which ends the kernels, before it says what has happened.

use std::ops::Range;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use deft::DType;
use deft::cuda::{CudaDevice, DeviceBuffer, DevicePtr, RawStream, Stream};
use kernels_gpu::model::limits::part_words;

use super::buffers::MAX_RANKED;
use super::nccl::{Comm, Id, Joining, Nccl};
use super::ops::{MergeTopK, TopK, TopKPart};
use super::rows::bucket;
use super::{CudaModelError, CudaOptions};
use crate::ranked::START;
use crate::ranks::{Communicator, RankError};

/// Rows up to which sums are f32: they take as long, and products that give f32 are the faster ones.
const EXACT_ROWS: u32 = 8;

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
    /// What ranks add to the residual stream, `[rows, hidden]`, of the model's type.
    sums: DeviceBuffer<u16>,
    dtype: DType,
    /// What all ranks have found of each row: `[ranks, rows]` records.
    found: DeviceBuffer<u32>,
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
    /// Joins the others for passes of as many rows as `options` say, with states of `hidden` elements of `dtype`; `ranks`
    /// is how their hosts talk.
    ///
    /// # Errors
    /// [`CudaModelError::Nccl`], [`CudaModelError::Ranks`].
    pub(super) fn join(
        device: &CudaDevice,
        mut ranks: Box<dyn Communicator>,
        options: &CudaOptions,
        (hidden, dtype): (u32, DType),
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
        let records = comm.ranks() as usize * bucket(options.max_rows) as usize;
        let words = records * part_words(MAX_RANKED) as usize;
        let found = DeviceBuffer::uninitialized(device, "what ranks have found", words)?;
        let rows = bucket(options.max_rows.max(options.prefill_rows)) as usize;
        let sums = rows * hidden as usize;
        let sums = DeviceBuffer::uninitialized(device, "what ranks add to the stream", sums)?;
        Ok(Self { comm, sums, dtype, found, host: Mutex::new(host) })
    }

    pub(super) fn describe(&self) -> String {
        self.comm.describe()
    }

    pub(super) fn rank(&self) -> u32 {
        self.comm.rank()
    }

    /// Whether what is added to so many rows is rounded to the model's 16 bits before it is summed.
    pub(super) fn rounds(rows: u32) -> bool {
        rows > EXACT_ROWS
    }

    /// Where it is: what this rank adds to the residual stream, and after [`DeviceRanks::sum`] what all do, `[rows, hidden]`.
    pub(super) fn sums(&self) -> DevicePtr {
        self.sums.pointer()
    }

    fn host(&self) -> MutexGuard<'_, Host> {
        self.host.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Enqueues the sum over ranks of [`DeviceRanks::sums`], or of `x` where it is not rounded, `[rows, hidden]` f32.
    ///
    /// # Safety
    /// The model was made for as many rows; `x` is valid until the work is done; `stream` is one of the device.
    pub(super) unsafe fn sum(
        &self,
        x: DevicePtr,
        (rows, hidden): (u32, u32),
        stream: RawStream,
    ) -> Result<(), CudaModelError> {
        let (x, dtype) = match Self::rounds(rows) {
            true => (self.sums(), self.dtype),
            false => (x, DType::F32),
        };
        let count = rows as usize * hidden as usize;
        debug_assert!(count <= self.sums.len());
        // SAFETY: the caller's; the buffer lives as long as the model.
        Ok(unsafe { self.comm.all_reduce(x, (count, dtype), stream) }?)
    }

    /// Enqueues the gather of `rows` rows of logits, `vocabulary` each, of which every rank has its even part.
    ///
    /// # Safety
    /// `logits` are valid until the work is done; `stream` is one of the device.
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

    /// How this rank ranks its entries, of which `logits` has `[rows, own]`, and how `ranking` comes of what all find.
    pub(super) fn top_k(
        &self,
        (logits, own): (DevicePtr, Range<u32>),
        TopK { ids, log_probs, rows, k, .. }: TopK,
    ) -> (TopKPart, MergeTopK) {
        let found = self.found.pointer();
        let merge = MergeTopK { found, ids, log_probs, parts: self.comm.ranks(), rows, k };
        let before = u64::from(self.rank()) * found_words(&merge) as u64;
        let found = found.offset(4 * before);
        let entries = own.len() as u32;
        (TopKPart { logits, found, rows, entries, first: own.start, k }, merge)
    }

    /// Enqueues the gather of what ranks have found, before it is merged.
    ///
    /// # Safety
    /// As [`DeviceRanks::gather_logits`]; `merge` is of [`DeviceRanks::top_k`].
    pub(super) unsafe fn gather_found(
        &self,
        merge: &MergeTopK,
        stream: RawStream,
    ) -> Result<(), CudaModelError> {
        // SAFETY: the caller's.
        Ok(unsafe { self.comm.gather(merge.found, found_words(merge), stream) }?)
    }

    /// Device memory of this.
    pub(super) fn memory_bytes(&self) -> u64 {
        4 * self.found.len() as u64 + 2 * self.sums.len() as u64
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

/// Words that a rank finds.
fn found_words(merge: &MergeTopK) -> usize {
    (merge.rows * part_words(merge.k)) as usize
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
