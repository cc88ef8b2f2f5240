//! The door for users of rust-cuda: `cust`'s contexts, streams and buffers in this module's calls.
//!
//! | of `cust` | here |
//! |---|---|
//! | `&Context` | [`CudaDevice`], by `try_into` |
//! | `&Stream` | [`RawStream`], by `into`; [`Stream`], by [`Stream::borrow_cust`] |
//! | `&DeviceSlice<T>`, `&DeviceBuffer<T>` | [`DevicePtr`], by `into`; [`AttendBuffers::from_cust`] |
//!
//! Only handles are taken; the driver is called by this module's own declarations. `cust` receives the
//! driver's codes as an enum that newer drivers' codes are no value of, which is undefined behaviour, so
//! open the device here first: a driver that refuses does it then, and the error says why. The example
//! `rust_cuda` shows it.

use cust::context::Context;
use cust::memory::{DeviceBuffer, DeviceCopy, DeviceSlice};

use super::device::activate;
use super::error::check;
use super::{AttendBuffers, CudaDevice, CudaError, DevicePtr, RawStream, Stream, sys};
use crate::cache::CacheShape;
use crate::plan::Plan;

impl TryFrom<&Context> for CudaDevice {
    type Error = CudaError;

    /// The device whose primary context `context` is.
    ///
    /// # Errors
    /// Those of [`CudaDevice::new`]; [`CudaError::Argument`] if the context is no primary one.
    fn try_from(context: &Context) -> Result<Self, CudaError> {
        cuda_loader::ensure_linked();
        let count = Self::count()?;
        let handle: sys::Handle = context.as_raw().cast();
        let mut device = 0;
        {
            let _current = activate(handle)?;
            // SAFETY: a valid place for one int, and a context is current.
            check("cuCtxGetDevice", unsafe { sys::cuCtxGetDevice(&mut device) })?;
        }
        for ordinal in 0..count {
            let mut candidate = 0;
            // SAFETY: a valid place for one int.
            check("cuDeviceGet", unsafe { sys::cuDeviceGet(&mut candidate, ordinal as i32) })?;
            if candidate != device {
                continue;
            }
            let opened = Self::new(ordinal)?;
            check_context("context", handle, &opened)?;
            return Ok(opened);
        }
        Err(CudaError::NoSuchDevice { ordinal: device as u32, count })
    }
}

/// A context other than the device's own has other addresses and streams.
fn check_context(
    argument: &'static str,
    context: sys::Handle,
    device: &CudaDevice,
) -> Result<(), CudaError> {
    if context == device.context() {
        return Ok(());
    }
    Err(CudaError::Argument {
        argument,
        value: format!("{context:?}"),
        expected: format!(
            "the primary context of device {}, {:?}",
            device.ordinal(),
            device.context()
        ),
    })
}

impl From<&cust::stream::Stream> for RawStream {
    fn from(stream: &cust::stream::Stream) -> Self {
        cuda_loader::ensure_linked();
        Self(stream.as_inner() as usize)
    }
}

impl Stream {
    /// A stream of rust-cuda's.
    ///
    /// # Safety
    /// `stream` outlives the value returned.
    ///
    /// # Errors
    /// [`CudaError::Argument`] if it is not of the device's primary context, [`CudaError::Driver`].
    pub unsafe fn borrow_cust(
        device: &CudaDevice,
        stream: &cust::stream::Stream,
    ) -> Result<Self, CudaError> {
        let raw = RawStream::from(stream);
        let mut context = std::ptr::null_mut();
        let _current = device.activate()?;
        // SAFETY: a live stream and a valid place for one handle.
        check("cuStreamGetCtx", unsafe { sys::cuStreamGetCtx(raw.handle(), &mut context) })?;
        check_context("stream's context", context, device)?;
        // SAFETY: of this context, as was checked; it lives by the caller's promise.
        Ok(unsafe { Self::borrow_raw(device, raw) })
    }
}

impl<T: DeviceCopy> From<&DeviceSlice<T>> for DevicePtr {
    fn from(slice: &DeviceSlice<T>) -> Self {
        Self(slice.as_device_ptr().as_raw())
    }
}

impl<T: DeviceCopy> From<&DeviceBuffer<T>> for DevicePtr {
    fn from(buffer: &DeviceBuffer<T>) -> Self {
        Self::from(&**buffer)
    }
}

impl AttendBuffers {
    /// Rows of `plan`'s queries in memory of rust-cuda's, on a cache of `shape`: `q` and `out`
    /// `[queries, q_heads, head_dim]` of a 16-bit type, `lse` `[queries, q_heads]`.
    ///
    /// # Errors
    /// [`CudaError::Length`], [`CudaError::Argument`] for elements of another size.
    pub fn from_cust<T: DeviceCopy>(
        shape: &CacheShape,
        plan: &Plan,
        q: &DeviceSlice<T>,
        out: &mut DeviceSlice<T>,
        lse: Option<&mut DeviceSlice<f32>>,
    ) -> Result<Self, CudaError> {
        if size_of::<T>() != 2 {
            return Err(CudaError::Argument {
                argument: "size of q's elements",
                value: format!("{} bytes", size_of::<T>()),
                expected: "2 bytes".to_owned(),
            });
        }
        let heads = plan.queries() as usize * (plan.group_size() * shape.kv_heads) as usize;
        let elements = heads * shape.head_dim as usize;
        let lengths = [
            ("q", q.len(), elements),
            ("out", out.len(), elements),
            ("lse", lse.as_ref().map_or(heads, |lse| lse.len()), heads),
        ];
        for (argument, got, expected) in lengths {
            if got != expected {
                return Err(CudaError::Length { argument, got, expected });
            }
        }
        Ok(Self {
            q: DevicePtr::from(q),
            out: DevicePtr::from(&*out),
            lse: lse.map_or(DevicePtr::NULL, |lse| DevicePtr::from(&*lse)),
        })
    }
}
