//! Streams, events and graphs.

use super::error::check;
use super::sys;
use super::{CudaDevice, CudaError, RawStream};

/// A queue of device work: our own, or one lent by the caller.
#[derive(Debug)]
pub struct Stream {
    device: CudaDevice,
    raw: RawStream,
    owned: bool,
}

// SAFETY: the driver lets any thread use a stream.
unsafe impl Send for Stream {}
// SAFETY: as above; enqueuing is synchronised by the driver.
unsafe impl Sync for Stream {}

impl Stream {
    /// A new stream that does not wait for the legacy default stream.
    ///
    /// # Errors
    /// [`CudaError::Driver`].
    pub fn new(device: &CudaDevice) -> Result<Self, CudaError> {
        let _current = device.activate()?;
        let mut handle = std::ptr::null_mut();
        // SAFETY: `handle` is a valid place for one handle; our context is current.
        check("cuStreamCreate", unsafe {
            sys::cuStreamCreate(&mut handle, sys::STREAM_NON_BLOCKING)
        })?;
        Ok(Self { device: device.clone(), raw: RawStream(handle as usize), owned: true })
    }

    /// The legacy default stream of the device's primary context.
    pub fn legacy(device: &CudaDevice) -> Self {
        Self { device: device.clone(), raw: RawStream(0), owned: false }
    }

    /// A stream that somebody else owns.
    ///
    /// # Safety
    /// `raw` is a default stream (0, 1, 2) or a live stream of the device's primary context, and stays
    /// one as long as the value returned.
    pub unsafe fn borrow_raw(device: &CudaDevice, raw: RawStream) -> Self {
        Self { device: device.clone(), raw, owned: false }
    }

    /// The handle, for calls that take a raw stream.
    pub fn raw(&self) -> RawStream {
        self.raw
    }

    /// The device the stream belongs to.
    pub fn device(&self) -> &CudaDevice {
        &self.device
    }

    /// Waits until all work enqueued so far is done.
    ///
    /// # Errors
    /// [`CudaError::Driver`]; a fault of an earlier kernel is reported here.
    pub fn synchronize(&self) -> Result<(), CudaError> {
        let _current = self.device.activate()?;
        self.finish()
    }

    /// [`Stream::synchronize`] for who has made the context current, and must not go on without having waited.
    pub(super) fn finish(&self) -> Result<(), CudaError> {
        // SAFETY: a live stream of this context (by construction).
        check("cuStreamSynchronize", unsafe { sys::cuStreamSynchronize(self.raw.handle()) })
    }

    /// Whether all work enqueued so far is done.
    ///
    /// # Errors
    /// [`CudaError::Driver`]; a fault of an earlier kernel is reported here.
    pub fn is_idle(&self) -> Result<bool, CudaError> {
        let _current = self.device.activate()?;
        // SAFETY: a live stream of this context (by construction).
        match unsafe { sys::cuStreamQuery(self.raw.handle()) } {
            sys::ERROR_NOT_READY => Ok(false),
            code => check("cuStreamQuery", code).map(|()| true),
        }
    }

    /// Whether work is recorded instead of run, by whomever.
    ///
    /// # Errors
    /// [`CudaError::Driver`].
    pub(super) fn is_captured(&self) -> Result<bool, CudaError> {
        let _current = self.device.activate()?;
        let mut status = 0;
        // SAFETY: a live stream of this context (by construction), and a valid place for one int.
        check("cuStreamIsCapturing", unsafe {
            sys::cuStreamIsCapturing(self.raw.handle(), &mut status)
        })?;
        Ok(status != sys::CAPTURE_NONE)
    }

    /// Has later work of this stream wait for what `event` was recorded behind, without the host waiting.
    ///
    /// # Errors
    /// [`CudaError::Driver`].
    pub fn wait(&self, event: &Event) -> Result<(), CudaError> {
        let _current = self.device.activate()?;
        // SAFETY: a live stream and a live event (by construction).
        check("cuStreamWaitEvent", unsafe {
            sys::cuStreamWaitEvent(self.raw.handle(), event.handle, 0)
        })
    }

    /// Records what `work` enqueues on this stream instead of running it. Nothing may be allocated,
    /// copied from or to host slices, or waited for meanwhile: the driver refuses it, and so the capture.
    /// However `work` ends, the stream is then no longer captured.
    ///
    /// # Errors
    /// Those of `work` (the capture is then dropped), and [`CudaError::Driver`].
    pub fn capture<E: From<CudaError>>(
        &self,
        work: impl FnOnce(&Self) -> Result<(), E>,
    ) -> Result<Graph, E> {
        let _current = self.device.activate()?;
        let capture = Capture::begin(self)?;
        work(self)?;
        let recorded = capture.end()?;
        let mut executable = std::ptr::null_mut();
        // SAFETY: the graph just captured, and a valid place for one handle.
        check("cuGraphInstantiate", unsafe {
            sys::cuGraphInstantiateWithFlags(&mut executable, recorded.0, 0)
        })?;
        Ok(Graph { device: self.device.clone(), executable })
    }
}

/// A stream that is being captured; no longer when this is dropped.
struct Capture<'a> {
    stream: &'a Stream,
}

impl<'a> Capture<'a> {
    fn begin(stream: &'a Stream) -> Result<Self, CudaError> {
        // SAFETY: a live stream of the current context.
        check("cuStreamBeginCapture", unsafe {
            sys::cuStreamBeginCapture_v2(stream.raw.handle(), sys::CAPTURE_THREAD_LOCAL)
        })?;
        Ok(Self { stream })
    }

    fn end(self) -> Result<Recorded, CudaError> {
        std::mem::ManuallyDrop::new(self).end_once()
    }

    fn end_once(&self) -> Result<Recorded, CudaError> {
        let mut graph = Recorded(std::ptr::null_mut());
        // SAFETY: this thread began the capture; a valid place for one handle.
        check("cuStreamEndCapture", unsafe {
            sys::cuStreamEndCapture(self.stream.raw.handle(), &mut graph.0)
        })?;
        Ok(graph)
    }
}

impl Drop for Capture<'_> {
    fn drop(&mut self) {
        // What was recorded is of no use, and `work`'s own error or panic is the one to report.
        let _ = self.end_once();
    }
}

/// A captured graph; null if the driver gave none.
struct Recorded(sys::Handle);

impl Drop for Recorded {
    fn drop(&mut self) {
        if !self.0.is_null() {
            // SAFETY: our own graph, destroyed once; an executable graph is independent of it.
            unsafe { sys::cuGraphDestroy(self.0) };
        }
    }
}

impl Drop for Stream {
    fn drop(&mut self) {
        if !self.owned {
            return;
        }
        let _current = self.device.activate();
        // SAFETY: our own stream, destroyed once; the driver finishes its work first.
        unsafe { sys::cuStreamDestroy_v2(self.raw.handle()) };
    }
}

/// Recorded device work, ready to be replayed.
#[derive(Debug)]
pub struct Graph {
    device: CudaDevice,
    executable: sys::Handle,
}

// SAFETY: the driver lets any thread launch an executable graph, one at a time (`&mut self`).
unsafe impl Send for Graph {}

impl Graph {
    /// Enqueues the recorded work on `stream`.
    ///
    /// # Safety
    /// All memory the recorded work uses is still there.
    ///
    /// # Errors
    /// [`CudaError::Driver`].
    pub unsafe fn launch(&mut self, stream: &Stream) -> Result<(), CudaError> {
        let _current = self.device.activate()?;
        // SAFETY: a live executable graph and a live stream of one context.
        check("cuGraphLaunch", unsafe { sys::cuGraphLaunch(self.executable, stream.raw.handle()) })
    }
}

impl Drop for Graph {
    fn drop(&mut self) {
        let _current = self.device.activate();
        // SAFETY: our own graph, destroyed once.
        unsafe { sys::cuGraphExecDestroy(self.executable) };
    }
}

/// A point in a stream whose time is taken.
#[derive(Debug)]
pub struct Event {
    device: CudaDevice,
    handle: sys::Handle,
}

// SAFETY: the driver lets any thread use an event.
unsafe impl Send for Event {}

impl Event {
    /// A new event that takes the time.
    ///
    /// # Errors
    /// [`CudaError::Driver`].
    pub fn new(device: &CudaDevice) -> Result<Self, CudaError> {
        let _current = device.activate()?;
        let mut handle = std::ptr::null_mut();
        // SAFETY: `handle` is a valid place for one handle; our context is current.
        check("cuEventCreate", unsafe { sys::cuEventCreate(&mut handle, sys::EVENT_DEFAULT) })?;
        Ok(Self { device: device.clone(), handle })
    }

    /// Whether `stream` has come to where the event was recorded.
    ///
    /// # Errors
    /// [`CudaError::Driver`]; a fault of an earlier kernel is reported here.
    pub(super) fn is_done(&self) -> Result<bool, CudaError> {
        let _current = self.device.activate()?;
        // SAFETY: a live event.
        match unsafe { sys::cuEventQuery(self.handle) } {
            sys::ERROR_NOT_READY => Ok(false),
            code => check("cuEventQuery", code).map(|()| true),
        }
    }

    /// Takes the time once `stream` comes to here.
    ///
    /// # Errors
    /// [`CudaError::Driver`].
    pub fn record(&self, stream: &Stream) -> Result<(), CudaError> {
        let _current = self.device.activate()?;
        // SAFETY: a live event and a live stream of one context.
        check("cuEventRecord", unsafe { sys::cuEventRecord(self.handle, stream.raw.handle()) })
    }

    /// Waits for the event, and gives the microseconds since `start`.
    ///
    /// # Errors
    /// [`CudaError::Driver`]; a fault of an earlier kernel is reported here.
    pub fn microseconds_since(&self, start: &Self) -> Result<f64, CudaError> {
        let _current = self.device.activate()?;
        // SAFETY: a live event.
        check("cuEventSynchronize", unsafe { sys::cuEventSynchronize(self.handle) })?;
        let mut milliseconds = 0.0;
        // SAFETY: a valid place for one float, and two live events.
        check("cuEventElapsedTime", unsafe {
            sys::cuEventElapsedTime(&mut milliseconds, start.handle, self.handle)
        })?;
        Ok(f64::from(milliseconds) * 1e3)
    }
}

impl Drop for Event {
    fn drop(&mut self) {
        let _current = self.device.activate();
        // SAFETY: our own event, destroyed once.
        unsafe { sys::cuEventDestroy_v2(self.handle) };
    }
}
