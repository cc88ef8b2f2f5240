//! A communicator, and the collectives that it enqueues.

use std::ffi::{c_int, c_void};
use std::sync::mpsc::{Receiver, RecvTimeoutError, channel};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::Duration;

use deft::DType;
use deft::cuda::{CudaDevice, CudaError, DevicePtr, RawStream};

use super::{Handle, Id, Nccl, NcclError, split_version};
use crate::ranks::threads::{END, join_within};

/// `ncclFloat32`.
const F32: c_int = 7;
/// `ncclFloat16`.
const F16: c_int = 6;
/// `ncclBfloat16`.
const BF16: c_int = 9;
/// `ncclSum`.
const SUM: c_int = 0;
/// `ncclInProgress`.
const IN_PROGRESS: c_int = 7;

/// This device among the ranks of a communicator. Work is enqueued, in order, on streams of the device.
#[derive(Debug)]
pub(crate) struct Comm {
    device: CudaDevice,
    handle: Handle,
    rank: u32,
    ranks: u32,
    /// Who ends it before its time.
    ending: Mutex<Option<JoinHandle<()>>>,
    nccl: Arc<Nccl>,
}

// SAFETY: any thread may use a communicator, one at a time (NCCL user guide, "Thread Safety"); `Comm` is not `Sync`.
unsafe impl Send for Comm {}

/// A handle on its way between threads.
#[derive(Debug)]
struct Sent(Handle);

impl Sent {
    fn take(self) -> Handle {
        self.0
    }
}

// SAFETY: as for `Comm`.
unsafe impl Send for Sent {}

/// Ranks on their way to a communicator.
#[derive(Debug)]
pub(crate) struct Joining {
    device: CudaDevice,
    nccl: Arc<Nccl>,
    place: (u32, u32),
    joined: Receiver<(Result<c_int, CudaError>, Sent)>,
}

impl Joining {
    /// Begins to join, as rank `rank` of `ranks`, those that have this `id`, with all connections that collectives take.
    pub(crate) fn begin(nccl: Nccl, device: &CudaDevice, place: (u32, u32), id: Id) -> Self {
        let (say, joined) = channel();
        let (device, nccl) = (device.clone(), Arc::new(nccl));
        let (of, library, (rank, ranks)) = (device.clone(), nccl.clone(), place);
        // The call takes as long as the last rank does. On a thread of its own it stays behind where that never comes.
        std::thread::spawn(move || {
            let mut handle = std::ptr::null_mut();
            // SAFETY: a valid place for one handle; the device's context is current; the library is held.
            let status = of.scoped(|| unsafe {
                (library.init_rank)(&mut handle, ranks as c_int, id, rank as c_int)
            });
            // Nobody hears where it took too long.
            let _ = say.send((status, Sent(handle)));
        });
        Self { device, nccl, place, joined }
    }

    /// The communicator, once all ranks are there; nothing if that takes longer than `pause`.
    ///
    /// # Errors
    /// [`NcclError::Call`].
    pub(crate) fn wait(&self, pause: Duration) -> Result<Option<Comm>, NcclError> {
        let (status, Sent(handle)) = match self.joined.recv_timeout(pause) {
            Ok(joined) => joined,
            Err(RecvTimeoutError::Timeout | RecvTimeoutError::Disconnected) => return Ok(None),
        };
        let (nccl, (rank, ranks)) = (self.nccl.clone(), self.place);
        nccl.check("ncclCommInitRank", status?)?;
        let (device, ending) = (self.device.clone(), Mutex::default());
        Ok(Some(Comm { device, handle, rank, ranks, ending, nccl }))
    }
}

impl Comm {
    pub(crate) fn rank(&self) -> u32 {
        self.rank
    }

    pub(crate) fn ranks(&self) -> u32 {
        self.ranks
    }

    /// Enqueues `x[i] = sum over ranks of x[i]`, `count` elements of `dtype`.
    ///
    /// # Safety
    /// `x` is valid until the work is done; `stream` is one of the device.
    ///
    /// # Errors
    /// [`NcclError::Call`].
    pub(crate) unsafe fn all_reduce(
        &self,
        x: DevicePtr,
        (count, dtype): (usize, DType),
        stream: RawStream,
    ) -> Result<(), NcclError> {
        let (x, stream) = (x.0 as *mut c_void, stream.0 as *mut c_void);
        let dtype = match dtype {
            DType::F16 => F16,
            DType::Bf16 => BF16,
            _ => F32,
        };
        // SAFETY: a live communicator; the rest is the caller's promise.
        self.call("ncclAllReduce", || unsafe {
            (self.nccl.all_reduce)(x, x, count, dtype, SUM, self.handle, stream)
        })
    }

    /// Enqueues a gather in place: of `count` words from every rank, one rank's after the other's at `x`, this one has its own
    /// and gets the others'.
    ///
    /// # Safety
    /// As [`Comm::all_reduce`].
    ///
    /// # Errors
    /// [`NcclError::Call`].
    pub(crate) unsafe fn gather(
        &self,
        x: DevicePtr,
        count: usize,
        stream: RawStream,
    ) -> Result<(), NcclError> {
        let own = x.offset(4 * u64::from(self.rank) * count as u64).0 as *mut c_void;
        let (x, stream) = (x.0 as *mut c_void, stream.0 as *mut c_void);
        // SAFETY: as for `all_reduce`; in place, as NCCL wants it.
        self.call("ncclAllGather", || unsafe {
            (self.nccl.all_gather)(own, x, count, F32, self.handle, stream)
        })
    }

    /// Enqueues a gather in place: of each of `rows` rows of `x`, `stride` f32 apart, every rank has its entries, those
    /// between `ends[rank]` and `ends[rank + 1]`, and gets the others'.
    ///
    /// # Safety
    /// As [`Comm::all_reduce`].
    ///
    /// # Errors
    /// [`NcclError::Call`].
    pub(crate) unsafe fn gather_rows(
        &self,
        x: DevicePtr,
        (rows, stride): (u32, u32),
        ends: &[u32],
        stream: RawStream,
    ) -> Result<(), NcclError> {
        let stream = stream.0 as *mut c_void;
        let at = |row: u32, entry: u32| {
            x.offset(4 * (u64::from(row) * u64::from(stride) + u64::from(entry))).0 as *mut c_void
        };
        let counts: Vec<u32> = ends.windows(2).map(|pair| pair[1] - pair[0]).collect();
        let even = counts.iter().all(|&count| count == counts[0]);
        let (handle, nccl) = (self.handle, &self.nccl);
        // One launch for all of a group.
        // SAFETY: each start has its end, on this thread.
        self.call("ncclGroupStart", || unsafe { (nccl.group_start)() })?;
        let mut enqueued = Ok(());
        for row in 0..rows {
            if even {
                let own = at(row, ends[self.rank as usize]);
                // SAFETY: as for `all_reduce`; in place, as NCCL wants it: a rank's part is at its place of the whole.
                let gathered = self.call("ncclAllGather", || unsafe {
                    (nccl.all_gather)(own, at(row, 0), counts[0] as usize, F32, handle, stream)
                });
                enqueued = enqueued.and(gathered);
                continue;
            }
            for (root, &count) in counts.iter().enumerate() {
                let part = at(row, ends[root]);
                // SAFETY: as for `all_reduce`.
                let sent = self.call("ncclBroadcast", || unsafe {
                    (nccl.broadcast)(part, part, count as usize, F32, root as c_int, handle, stream)
                });
                enqueued = enqueued.and(sent);
            }
        }
        // SAFETY: as for the start.
        let ended = self.call("ncclGroupEnd", || unsafe { (nccl.group_end)() });
        enqueued.and(ended)
    }

    /// What has gone wrong since, if anything.
    ///
    /// # Errors
    /// [`NcclError::Call`].
    pub(crate) fn check(&self) -> Result<(), NcclError> {
        if self.ending().is_some() {
            return Ok(());
        }
        let mut status = 0;
        // SAFETY: a live communicator, and a valid place for one int.
        self.call("ncclCommGetAsyncError", || unsafe {
            (self.nccl.async_error)(self.handle, &mut status)
        })?;
        match status {
            IN_PROGRESS => Ok(()),
            status => self.nccl.check("a collective", status),
        }
    }

    /// Ends all collectives of this rank, whether the others come or not: the kernels that wait, and those after them in
    /// a graph. None can follow.
    pub(crate) fn abort(&self) {
        let mut ending = self.ending();
        if ending.is_some() {
            return;
        }
        let (device, nccl, handle) = (self.device.clone(), self.nccl.clone(), Sent(self.handle));
        // The call tells the kernels at once and returns when there is no graph with them any more, so not here.
        *ending = Some(std::thread::spawn(move || {
            let handle = handle.take();
            // SAFETY: our own communicator, ended once; the library is held. A failure leaves nothing to do.
            let _ = device.scoped(|| unsafe { (nccl.abort)(handle) });
        }));
    }

    fn ending(&self) -> MutexGuard<'_, Option<JoinHandle<()>>> {
        self.ending.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Version and file.
    pub(crate) fn describe(&self) -> String {
        let (major, minor, patch) = split_version(self.nccl.version);
        format!("NCCL {major}.{minor}.{patch} ({})", self.nccl.path.display())
    }

    fn call(&self, call: &'static str, run: impl FnOnce() -> c_int) -> Result<(), NcclError> {
        let status = self.device.scoped(run)?;
        self.nccl.check(call, status)
    }
}

impl Drop for Comm {
    /// After its graphs.
    fn drop(&mut self) {
        let ending = self.ending().take();
        match ending {
            // What runs into the end of the process meets libraries that have ended.
            Some(thread) => drop(join_within(END, [thread])),
            // SAFETY: our own communicator, ended once.
            None => drop(self.device.scoped(|| unsafe { (self.nccl.destroy)(self.handle) })),
        }
    }
}
