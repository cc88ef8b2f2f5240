//! One GPU: its primary context and what it can do.

use std::ffi::c_void;
use std::sync::Arc;

use super::error::{check, reason, version};
use super::module::ModuleTable;
use super::pinned::Staging;
use super::sys;
use super::{CudaError, RawStream};

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
    staging: Staging,
    context: PrimaryContext,
    ordinal: u32,
    properties: Properties,
}

/// A reference to a device's primary context.
struct PrimaryContext {
    handle: sys::Handle,
    device: i32,
}

// SAFETY: the driver lets any thread make a context current.
unsafe impl Send for PrimaryContext {}
// SAFETY: as above.
unsafe impl Sync for PrimaryContext {}

impl PrimaryContext {
    fn retain(device: i32) -> Result<Self, CudaError> {
        let mut handle = std::ptr::null_mut();
        // SAFETY: a valid place for one handle; the device is one of the driver's.
        check("cuDevicePrimaryCtxRetain", unsafe {
            sys::cuDevicePrimaryCtxRetain(&mut handle, device)
        })?;
        Ok(Self { handle, device })
    }
}

impl Drop for PrimaryContext {
    fn drop(&mut self) {
        // SAFETY: retained once, released once.
        unsafe { sys::cuDevicePrimaryCtxRelease_v2(self.device) };
    }
}

impl Drop for Inner {
    fn drop(&mut self) {
        // Modules and pinned memory belong to the context, which is released after this. Where it cannot be made current,
        // the driver refuses what it cannot do.
        let _current = activate(self.context.handle);
        self.staging.free();
        self.modules.unload();
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
    /// [`CudaError::TooOld`] below compute capability 8.0, [`CudaError::DriverTooOld`],
    /// [`CudaError::Driver`].
    pub fn new(ordinal: u32) -> Result<Self, CudaError> {
        let count = Self::count()?;
        if ordinal >= count {
            return Err(CudaError::NoSuchDevice { ordinal, count });
        }
        let mut device = 0;
        // SAFETY: `device` is a valid place for one int.
        check("cuDeviceGet", unsafe { sys::cuDeviceGet(&mut device, ordinal as i32) })?;
        let properties = Properties::of(device)?;
        let name = || properties.name.clone();
        let (major, minor) = properties.capability;
        if major < 8 {
            return Err(CudaError::TooOld { name: name(), major, minor });
        }
        let needed = match properties.capability {
            (9, 0) => sys::OLDEST_CUDA_FOR_HOPPER,
            _ => sys::OLDEST_CUDA,
        };
        if properties.driver < needed {
            return Err(CudaError::DriverTooOld { name: name(), found: properties.driver, needed });
        }
        Ok(Self {
            inner: Arc::new(Inner {
                modules: ModuleTable::new(properties.capability),
                staging: Staging::default(),
                context: PrimaryContext::retain(device)?,
                ordinal,
                properties,
            }),
        })
    }

    /// Number of devices the driver shows.
    ///
    /// # Errors
    /// [`CudaError::NoDevice`] without a driver, [`CudaError::Driver`].
    pub(crate) fn count() -> Result<u32, CudaError> {
        sys::open().map_err(|reason| CudaError::NoDevice { reason: reason.to_owned() })?;
        // SAFETY: may be called at any time, by any thread, again and again.
        let code = unsafe { sys::cuInit(0) };
        if code != sys::SUCCESS {
            return Err(CudaError::NoDevice {
                reason: format!("cuInit answered {code} ({})", reason(code)),
            });
        }
        let mut count = 0;
        // SAFETY: `count` is a valid place for one int.
        check("cuDeviceGetCount", unsafe { sys::cuDeviceGetCount(&mut count) })?;
        Ok(u32::try_from(count).unwrap_or(0))
    }

    /// The device's number.
    pub fn ordinal(&self) -> u32 {
        self.inner.ordinal
    }
    /// The device's name, as the driver gives it.
    pub fn name(&self) -> &str {
        &self.inner.properties.name
    }
    /// Compute capability, major and minor.
    pub fn capability(&self) -> (i32, i32) {
        self.inner.properties.capability
    }
    /// Number of streaming multiprocessors.
    pub fn multiprocessors(&self) -> u32 {
        self.inner.properties.multiprocessors
    }
    /// Most shared memory a block may ask for, in bytes.
    pub(super) fn shared_per_block(&self) -> u32 {
        self.inner.properties.shared_per_block
    }
    /// Newest CUDA version the driver serves: `12.8`.
    pub fn driver_version(&self) -> String {
        version(self.inner.properties.driver)
    }
    /// Name, capability, multiprocessors, memory and driver in one line.
    pub fn describe(&self) -> String {
        let (major, minor) = self.inner.properties.capability;
        format!(
            "{} (sm_{major}{minor}, {} SMs, {} MiB, CUDA driver {})",
            self.inner.properties.name,
            self.inner.properties.multiprocessors,
            self.inner.properties.total_memory >> 20,
            self.driver_version(),
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
        check("cuMemGetInfo", unsafe { sys::cuMemGetInfo_v2(&mut free, &mut total) })?;
        Ok((free, total))
    }

    /// The driver's number of the device.
    pub(super) fn handle(&self) -> i32 {
        self.inner.context.device
    }

    /// Waits for all work of the context.
    pub(super) fn synchronize(&self) -> Result<(), CudaError> {
        let _current = self.activate()?;
        // SAFETY: a context is current.
        check("cuCtxSynchronize", unsafe { sys::cuCtxSynchronize() })
    }

    pub(super) fn modules(&self) -> &ModuleTable {
        &self.inner.modules
    }

    pub(super) fn staging(&self) -> &Staging {
        &self.inner.staging
    }

    #[cfg(feature = "cust")]
    pub(super) fn context(&self) -> sys::Handle {
        self.inner.context.handle
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
        activate(self.inner.context.handle)
    }
}

pub(super) fn activate(context: sys::Handle) -> Result<Active, CudaError> {
    let before = current()?;
    if before == context {
        return Ok(Active { restore: None });
    }
    set_current(context)?;
    Ok(Active { restore: Some(before) })
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

/// What the driver says of a device.
struct Properties {
    name: String,
    capability: (i32, i32),
    multiprocessors: u32,
    shared_per_block: u32,
    total_memory: usize,
    /// Newest CUDA version the driver serves.
    driver: i32,
}

impl Properties {
    fn of(device: i32) -> Result<Self, CudaError> {
        const NAME_BYTES: usize = 256;
        let mut name = [0u8; NAME_BYTES];
        // SAFETY: a valid place for as many bytes as are said.
        check("cuDeviceGetName", unsafe {
            sys::cuDeviceGetName(name.as_mut_ptr().cast(), NAME_BYTES as i32, device)
        })?;
        let name = name.split(|&byte| byte == 0).next().unwrap_or_default();
        let mut total_memory = 0;
        // SAFETY: a valid place for one size_t.
        check("cuDeviceTotalMem", unsafe { sys::cuDeviceTotalMem_v2(&mut total_memory, device) })?;
        let mut driver = 0;
        // SAFETY: a valid place for one int.
        check("cuDriverGetVersion", unsafe { sys::cuDriverGetVersion(&mut driver) })?;
        let attribute = |attribute| {
            let mut value = 0;
            // SAFETY: a valid place for one int; the device is one of the driver's.
            let code = unsafe { sys::cuDeviceGetAttribute(&mut value, attribute, device) };
            check("cuDeviceGetAttribute", code).map(|()| value)
        };
        Ok(Self {
            name: String::from_utf8_lossy(name).into_owned(),
            capability: (
                attribute(sys::DEVICE_CAPABILITY_MAJOR)?,
                attribute(sys::DEVICE_CAPABILITY_MINOR)?,
            ),
            multiprocessors: attribute(sys::DEVICE_MULTIPROCESSORS)? as u32,
            shared_per_block: attribute(sys::DEVICE_SHARED_PER_BLOCK)? as u32,
            total_memory,
            driver,
        })
    }
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
