//! Host memory that the driver copies to and from by itself: pinned, so that a copy really runs beside the
//! host.
//!
//! Of pageable memory the driver promises neither that a copy has been staged when the call returns, nor that
//! it has not. So [`DeviceBuffer::upload`](super::DeviceBuffer::upload), whose source is free when it returns,
//! goes through pinned pieces that the device keeps: each is written again only after the event behind its last
//! copy.

use std::ffi::c_void;
use std::ptr::NonNull;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, PoisonError};

use bytemuck::Pod;

use super::error::check;
use super::{CudaDevice, CudaError, Stream, sys};
use crate::attention::HostBytes;

/// Pinned memory of at least one byte; a context must be current. The driver aligns it to a page.
fn allocate(bytes: usize) -> Result<NonNull<c_void>, CudaError> {
    let mut pointer = std::ptr::null_mut();
    // SAFETY: a valid place for one pointer.
    check("cuMemHostAlloc", unsafe {
        sys::cuMemHostAlloc(&mut pointer, bytes, sys::HOST_ALLOC_PORTABLE)
    })?;
    NonNull::new(pointer).ok_or_else(|| CudaError::Argument {
        argument: "pinned memory's address",
        value: "null".to_owned(),
        expected: format!("{bytes} bytes"),
    })
}

/// Zeroed pinned memory of a device's, freed when dropped.
#[derive(Debug)]
pub(super) struct PinnedBytes {
    device: CudaDevice,
    memory: NonNull<u8>,
    bytes: usize,
}

// SAFETY: any thread may use pinned memory; it is written by `&mut self` only.
unsafe impl Send for PinnedBytes {}
// SAFETY: as above.
unsafe impl Sync for PinnedBytes {}

impl PinnedBytes {
    pub(super) fn zeroed(device: &CudaDevice, bytes: usize) -> Result<Self, CudaError> {
        let _current = device.activate()?;
        let memory = allocate(bytes.max(1))?.cast::<u8>();
        // SAFETY: just allocated, as large.
        unsafe { memory.write_bytes(0, bytes) };
        Ok(Self { device: device.clone(), memory, bytes })
    }
}

impl HostBytes for PinnedBytes {
    fn bytes(&self) -> &[u8] {
        // SAFETY: our own memory, initialised and as large.
        unsafe { std::slice::from_raw_parts(self.memory.as_ptr(), self.bytes) }
    }

    fn bytes_mut(&mut self) -> &mut [u8] {
        // SAFETY: as above, and borrowed exclusively.
        unsafe { std::slice::from_raw_parts_mut(self.memory.as_ptr(), self.bytes) }
    }
}

impl Drop for PinnedBytes {
    fn drop(&mut self) {
        let _current = self.device.activate();
        // SAFETY: allocated once, freed once; whoever copied from it has waited.
        unsafe { sys::cuMemFreeHost(self.memory.as_ptr().cast()) };
    }
}

/// Pieces, made at once by the first copy, so that none has to be made later; with more copies in flight the next one
/// waits for the oldest.
const PIECES: usize = 16;
/// The smallest piece.
const PIECE_BYTES: usize = 64 << 10;

/// A device's pinned pieces, the one used longest ago first.
#[derive(Debug, Default)]
pub(super) struct Staging {
    pieces: Mutex<Vec<Piece>>,
    begun: AtomicBool,
}

/// Pinned memory, and the event behind the last copy from it.
#[derive(Debug)]
pub(super) struct Piece {
    memory: NonNull<c_void>,
    bytes: usize,
    used: usize,
    event: sys::Handle,
}

// SAFETY: any thread may use pinned memory and events.
unsafe impl Send for Piece {}

impl Staging {
    /// Has `copy` enqueue copies on `stream` from a piece with room for `bytes` bytes.
    pub(super) fn copy(
        &self,
        bytes: usize,
        stream: &Stream,
        copy: impl FnOnce(&mut Piece) -> Result<(), CudaError>,
    ) -> Result<(), CudaError> {
        let _current = stream.device().activate()?;
        let mut piece = self.take(bytes)?;
        // Some copies may be on their way even if a later one was refused.
        let outcome = copy(&mut piece);
        // SAFETY: a live event and a live stream of one context.
        let recorded = unsafe { sys::cuEventRecord(piece.event, stream.raw().handle()) };
        if recorded != sys::SUCCESS {
            // No event tells when the piece is free again, but an idle stream does. If that cannot be had,
            // the context is lost; the piece is then never touched again.
            stream.finish()?;
        }
        self.lock().push(piece);
        outcome
    }

    /// A piece that no copy reads any more.
    fn take(&self, bytes: usize) -> Result<Piece, CudaError> {
        let mut pieces = self.lock();
        if !self.begun.load(Ordering::Relaxed) {
            while pieces.len() < PIECES {
                pieces.push(Piece::new(PIECE_BYTES)?);
            }
            self.begun.store(true, Ordering::Relaxed);
        }
        for index in 0..pieces.len() {
            if pieces[index].bytes < bytes {
                continue;
            }
            // SAFETY: a live event.
            match unsafe { sys::cuEventQuery(pieces[index].event) } {
                sys::SUCCESS => {
                    let mut piece = pieces.remove(index);
                    piece.used = 0;
                    return Ok(piece);
                }
                sys::ERROR_NOT_READY => {}
                code => check("cuEventQuery", code)?,
            }
        }
        if pieces.len() >= PIECES {
            let oldest = &pieces[0];
            // SAFETY: a live event.
            check("cuEventSynchronize", unsafe { sys::cuEventSynchronize(oldest.event) })?;
            let mut oldest = pieces.remove(0);
            if oldest.bytes >= bytes {
                oldest.used = 0;
                return Ok(oldest);
            }
            oldest.free();
        }
        Piece::new(bytes.max(PIECE_BYTES).next_power_of_two())
    }

    /// Frees all pieces once their copies are done. The context must be current.
    pub(super) fn free(&self) {
        for piece in self.lock().drain(..) {
            // SAFETY: a live event; a failure means that the context is lost, and all copies with it.
            unsafe { sys::cuEventSynchronize(piece.event) };
            piece.free();
        }
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Vec<Piece>> {
        self.pieces.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Piece {
    fn new(bytes: usize) -> Result<Self, CudaError> {
        let memory = allocate(bytes)?;
        let mut event = std::ptr::null_mut();
        // SAFETY: a valid place for one handle; a context is current.
        let code = unsafe { sys::cuEventCreate(&mut event, sys::EVENT_DISABLE_TIMING) };
        check("cuEventCreate", code).inspect_err(|_| {
            // SAFETY: the memory just allocated, which nobody knows yet.
            unsafe { sys::cuMemFreeHost(memory.as_ptr()) };
        })?;
        Ok(Self { memory, bytes, used: 0, event })
    }

    /// A copy of `data` in the piece.
    ///
    /// # Panics
    /// If the piece has no room for it.
    pub(super) fn put<T: Pod>(&mut self, data: &[T]) -> *const c_void {
        let bytes = size_of_val(data);
        assert!(bytes <= self.bytes - self.used, "a piece has room for all");
        // SAFETY: the place lies within the piece, which no copy reads and nobody else has.
        let place = unsafe {
            let place = self.memory.cast::<u8>().add(self.used);
            place.copy_from_nonoverlapping(NonNull::from(data).cast(), bytes);
            place
        };
        self.used += bytes;
        place.as_ptr().cast_const().cast()
    }

    fn free(self) {
        // SAFETY: both are this piece's own, given back once, and no copy reads the memory.
        unsafe {
            sys::cuMemFreeHost(self.memory.as_ptr());
            sys::cuEventDestroy_v2(self.event);
        }
    }
}
