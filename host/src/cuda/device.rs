//! One GPU: its primary context and what it can do.

use std::ffi::c_void;
use std::sync::Arc;

use super::CudaError;
use super::error::{check, from_cust};
use super::module::ModuleTable;
use super::sys;

/// An address in device memory (`CUdeviceptr`).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
#[repr(transparent)]
pub struct DevicePtr(pub u64);

impl DevicePtr {
    /// No address.
    pub const NULL: Self = Self(0);

    /// The address `bytes` further on.
    pub const fn offset(self, bytes: u64) -> Self {
        Self(self.0 + bytes)
    }
}

/// A stream (`CUstream`) of any owner. 0 is the legacy default stream, 1 the same by name, 2 the
/// per-thread one; all are passed on as they are.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[repr(transparent)]
pub struct RawStream(pub usize);

impl RawStream {
    pub(super) fn handle(self) -> sys::Handle {
        self.0 as *mut c_void
    }
}

/// A CUDA device, on its primary context: the one that candle, cudarc, `cust` and PyTorch use too, so
/// their pointers and streams are valid here. Cloning shares it.
#[derive(Clone)]
pub struct CudaDevice {
    inner: Arc<Inner>,
}

struct Inner {
    modules: ModuleTable,
    context: cust::context::Context,
    ordinal: u32,
    name: String,
    capability: (i32, i32),
    multiprocessors: u32,
    l2_bytes: usize,
    shared_per_block: u32,
    total_memory: usize,
    driver: i32,
    launch_ex: Option<sys::LaunchKernelEx>,
}

impl Drop for Inner {
    fn drop(&mut self) {
        // Modules belong to the context, which is released after this.
        if let Ok(_current) = activate(self.context.as_raw().cast()) {
            self.modules.unload();
        }
    }
}

impl std::fmt::Debug for CudaDevice {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "CudaDevice({}: {})", self.ordinal(), self.describe())
    }
}

impl CudaDevice {
    /// Opens device `ordinal` (counted as the driver does) and retains its primary context.
    ///
    /// # Errors
    /// [`CudaError::NoDevice`] without a driver or GPU, [`CudaError::NoSuchDevice`],
    /// [`CudaError::TooOld`] below compute capability 8.0.
    pub fn new(ordinal: u32) -> Result<Self, CudaError> {
        cuda_loader::ensure_linked();
        cust::init(cust::CudaFlags::empty()).map_err(|e| from_cust("cuInit", e))?;
        let count =
            cust::device::Device::num_devices().map_err(|e| from_cust("cuDeviceGetCount", e))?;
        if ordinal >= count {
            return Err(CudaError::NoSuchDevice { ordinal, count });
        }
        let device =
            cust::device::Device::get_device(ordinal).map_err(|e| from_cust("cuDeviceGet", e))?;
        let name = device.name().map_err(|e| from_cust("cuDeviceGetName", e))?;
        let total_memory = device
            .total_memory()
            .map_err(|e| from_cust("cuDeviceTotalMem", e))?;
        let attribute = |attribute| {
            let mut value = 0;
            // SAFETY: `value` is a valid place for one int; the device handle comes from the driver.
            let code = unsafe { sys::cuDeviceGetAttribute(&mut value, attribute, device.as_raw()) };
            check("cuDeviceGetAttribute", code).map(|()| value)
        };
        let capability = (
            attribute(sys::DEVICE_CAPABILITY_MAJOR)?,
            attribute(sys::DEVICE_CAPABILITY_MINOR)?,
        );
        if capability.0 < 8 {
            let (major, minor) = capability;
            return Err(CudaError::TooOld { name, major, minor });
        }
        let mut driver = 0;
        // SAFETY: `driver` is a valid place for one int.
        check("cuDriverGetVersion", unsafe {
            sys::cuDriverGetVersion(&mut driver)
        })?;
        let multiprocessors = attribute(sys::DEVICE_MULTIPROCESSORS)? as u32;
        let l2_bytes = attribute(sys::DEVICE_L2_BYTES)? as usize;
        let shared_per_block = attribute(sys::DEVICE_SHARED_PER_BLOCK)? as u32;
        // `Context::new` makes the context current; the thread gets back what it had.
        let before = current()?;
        let context = cust::context::Context::new(device)
            .map_err(|e| from_cust("cuDevicePrimaryCtxRetain", e))?;
        set_current(before)?;
        Ok(Self {
            inner: Arc::new(Inner {
                modules: ModuleTable::new(capability),
                context,
                ordinal,
                name,
                capability,
                multiprocessors,
                l2_bytes,
                shared_per_block,
                total_memory,
                driver,
                launch_ex: find_launch_ex(),
            }),
        })
    }

    /// Number of devices the driver shows.
    ///
    /// # Errors
    /// [`CudaError::NoDevice`] without a driver.
    pub fn count() -> Result<u32, CudaError> {
        cuda_loader::ensure_linked();
        cust::init(cust::CudaFlags::empty()).map_err(|e| from_cust("cuInit", e))?;
        cust::device::Device::num_devices().map_err(|e| from_cust("cuDeviceGetCount", e))
    }

    /// The device's number.
    pub fn ordinal(&self) -> u32 {
        self.inner.ordinal
    }
    /// The device's name, as the driver gives it.
    pub fn name(&self) -> &str {
        &self.inner.name
    }
    /// Compute capability, major and minor.
    pub fn capability(&self) -> (i32, i32) {
        self.inner.capability
    }
    /// Number of streaming multiprocessors.
    pub fn multiprocessors(&self) -> u32 {
        self.inner.multiprocessors
    }
    /// Size of the L2 cache in bytes.
    pub fn l2_bytes(&self) -> usize {
        self.inner.l2_bytes
    }
    /// Most shared memory a block may ask for, in bytes.
    pub fn shared_per_block(&self) -> u32 {
        self.inner.shared_per_block
    }
    /// Newest CUDA version the driver serves: 1000 x major + 10 x minor.
    pub fn driver_version(&self) -> i32 {
        self.inner.driver
    }
    /// Name, capability, multiprocessors, memory and driver in one line.
    pub fn describe(&self) -> String {
        let (major, minor) = self.inner.capability;
        format!(
            "{} (sm_{major}{minor}, {} SMs, {} MiB, CUDA driver {}.{})",
            self.inner.name,
            self.inner.multiprocessors,
            self.inner.total_memory >> 20,
            self.inner.driver / 1000,
            self.inner.driver % 1000 / 10,
        )
    }

    /// Bytes of device memory that are free, and that there are.
    ///
    /// # Errors
    /// [`CudaError::Driver`].
    pub fn memory_info(&self) -> Result<(usize, usize), CudaError> {
        let _current = self.activate()?;
        let (mut free, mut total) = (0, 0);
        // SAFETY: both are valid places for a size_t, and a context is current.
        check("cuMemGetInfo", unsafe {
            sys::cuMemGetInfo_v2(&mut free, &mut total)
        })?;
        Ok((free, total))
    }

    /// Where this device's kernels come from; a PTX file can take the embedded one's place.
    pub fn modules(&self) -> &ModuleTable {
        &self.inner.modules
    }

    pub(super) fn launch_ex(&self) -> Option<sys::LaunchKernelEx> {
        self.inner.launch_ex
    }

    /// Runs `work` with the primary context current on this thread, as libraries of the CUDA runtime want it
    /// (cuBLAS, say); then the thread's former context is again.
    ///
    /// # Errors
    /// [`CudaError::Driver`]; then `work` has not run.
    pub fn scoped<R>(&self, work: impl FnOnce() -> R) -> Result<R, CudaError> {
        let _current = self.activate()?;
        Ok(work())
    }

    /// Makes the primary context current on this thread until the guard is dropped.
    pub(super) fn activate(&self) -> Result<Active, CudaError> {
        activate(self.inner.context.as_raw().cast())
    }
}

fn activate(context: sys::Handle) -> Result<Active, CudaError> {
    let before = current()?;
    if before == context {
        return Ok(Active { restore: None });
    }
    set_current(context)?;
    Ok(Active {
        restore: Some(before),
    })
}

/// While it lives the device's context is current; then the thread's former one is again.
pub(super) struct Active {
    restore: Option<sys::Handle>,
}

impl Drop for Active {
    fn drop(&mut self) {
        if let Some(before) = self.restore {
            // The former context may be gone by now; then there is nothing to give back.
            let _ = set_current(before);
        }
    }
}

fn current() -> Result<sys::Handle, CudaError> {
    let mut context = std::ptr::null_mut();
    // SAFETY: `context` is a valid place for one handle.
    let code = unsafe { sys::cuCtxGetCurrent(&mut context) };
    check("cuCtxGetCurrent", code).map(|()| context)
}

fn set_current(context: sys::Handle) -> Result<(), CudaError> {
    // SAFETY: a context that is retained by us or was current on this thread, or null for none.
    check("cuCtxSetCurrent", unsafe { sys::cuCtxSetCurrent(context) })
}

/// `cuLaunchKernelEx` of this driver, if it has it (CUDA 11.8 or newer).
fn find_launch_ex() -> Option<sys::LaunchKernelEx> {
    let mut function = std::ptr::null_mut();
    // SAFETY: a NUL-terminated name and a valid place for one pointer.
    let code =
        unsafe { sys::cuGetProcAddress(c"cuLaunchKernelEx".as_ptr(), &mut function, 11080, 0) };
    if code != sys::SUCCESS || function.is_null() {
        return None;
    }
    // SAFETY: the driver answers with the address of the function of that name, whose signature since
    // CUDA 11.8 is `LaunchKernelEx`.
    Some(unsafe { std::mem::transmute::<*mut c_void, sys::LaunchKernelEx>(function) })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_device_opens_or_says_that_there_is_none() {
        match CudaDevice::new(0) {
            Ok(device) => assert!(device.multiprocessors() > 0),
            Err(CudaError::NoDevice { .. }) => {}
            Err(other) => panic!("{other}"),
        }
    }

    #[test]
    fn default_streams_keep_their_numbers() {
        for number in [0, 1, 2] {
            assert_eq!(RawStream(number).handle() as usize, number);
        }
    }
}
