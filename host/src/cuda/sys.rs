//! The driver: `libcuda.so.1`, opened when first needed, and those of its functions that this module calls.
//!
//! Nothing of the driver is linked, so a program built with this module needs no CUDA files to build and
//! starts without a driver. Every function answers its code as a plain `i32`: newer drivers have codes that
//! no enum of today knows, and receiving one as such an enum would be undefined behaviour. Names and
//! signatures: CUDA Driver API reference. All of them are in every driver for [`OLDEST_CUDA`].

use std::ffi::{c_char, c_void};
use std::sync::OnceLock;

/// What the driver must serve at least, as `cuDriverGetVersion` counts: the embedded PTX is of ISA 8.0.
pub(super) const OLDEST_CUDA: i32 = 12_000;
/// The same for compute capability 9.0, whose embedded PTX is of ISA 8.3.
pub(super) const OLDEST_CUDA_FOR_HOPPER: i32 = 12_030;

/// `CUdeviceptr`.
pub(super) type DevicePointer = u64;
/// `CUcontext`, `CUmodule`, `CUfunction`, `CUstream`, `CUevent`, `CUgraph`, `CUgraphExec`.
pub(super) type Handle = *mut c_void;

pub(super) const SUCCESS: i32 = 0;
pub(super) const ERROR_OUT_OF_MEMORY: i32 = 2;
/// Also the answer of every function where there is no driver.
pub(super) const ERROR_NOT_INITIALIZED: i32 = 3;
pub(super) const ERROR_NOT_READY: i32 = 600;

/// `CU_STREAM_NON_BLOCKING`.
pub(super) const STREAM_NON_BLOCKING: u32 = 1;
/// `CU_EVENT_DEFAULT`.
pub(super) const EVENT_DEFAULT: u32 = 0;
/// `CU_EVENT_DISABLE_TIMING`.
pub(super) const EVENT_DISABLE_TIMING: u32 = 2;
/// `CU_MEMHOSTALLOC_PORTABLE`.
pub(super) const HOST_ALLOC_PORTABLE: u32 = 1;
/// `CU_STREAM_CAPTURE_MODE_THREAD_LOCAL`.
pub(super) const CAPTURE_THREAD_LOCAL: u32 = 1;
/// `CU_STREAM_CAPTURE_STATUS_NONE`.
pub(super) const CAPTURE_NONE: i32 = 0;

/// `CU_DEVICE_ATTRIBUTE_MAX_SHARED_MEMORY_PER_BLOCK_OPTIN` and its siblings.
pub(super) const DEVICE_MULTIPROCESSORS: i32 = 16;
pub(super) const DEVICE_CAPABILITY_MAJOR: i32 = 75;
pub(super) const DEVICE_CAPABILITY_MINOR: i32 = 76;
pub(super) const DEVICE_SHARED_PER_BLOCK: i32 = 97;

pub(super) const JIT_ERROR_LOG: u32 = 5;
pub(super) const JIT_ERROR_LOG_BYTES: u32 = 6;

/// `CU_FUNC_ATTRIBUTE_SHARED_SIZE_BYTES` and its siblings.
pub(super) const FUNC_STATIC_SHARED: i32 = 1;
pub(super) const FUNC_LOCAL_BYTES: i32 = 3;
pub(super) const FUNC_REGISTERS: i32 = 4;
pub(super) const FUNC_MAX_DYNAMIC_SHARED: i32 = 8;

/// `CU_LAUNCH_ATTRIBUTE_PROGRAMMATIC_STREAM_SERIALIZATION`.
pub(super) const ATTRIBUTE_PROGRAMMATIC_SERIALIZATION: u32 = 6;

/// `CUlaunchAttribute`: 4 bytes of id, 4 of padding, a union of 64.
#[repr(C)]
#[derive(Clone, Copy)]
pub(super) struct LaunchAttribute {
    pub(super) id: u32,
    pub(super) padding: u32,
    pub(super) value: [u64; 8],
}

/// `CUlaunchConfig`.
#[repr(C)]
pub(super) struct LaunchConfig {
    pub(super) grid: [u32; 3],
    pub(super) block: [u32; 3],
    pub(super) shared_bytes: u32,
    pub(super) stream: Handle,
    pub(super) attributes: *const LaunchAttribute,
    pub(super) attribute_count: u32,
}

/// `CU_MEM_ALLOCATION_TYPE_PINNED`: physical memory of a device.
const MEMORY_OF_DEVICE: i32 = 1;
/// `CU_MEM_LOCATION_TYPE_DEVICE`.
const AT_DEVICE: i32 = 1;
/// `CU_MEM_ACCESS_FLAGS_PROT_READWRITE`.
const READ_WRITE: i32 = 3;
/// `CU_MEM_ALLOC_GRANULARITY_MINIMUM`.
pub(super) const GRANULARITY_MINIMUM: u32 = 0;

/// `CUmemAllocationProp`: a type, a kind of shareable handle, a location, a pointer for Windows, flags of 8 bytes.
#[repr(C)]
pub(super) struct AllocationProperties {
    kind: i32,
    handles: i32,
    location: [i32; 2],
    windows: *mut c_void,
    flags: u64,
}

impl AllocationProperties {
    /// Physical memory of a device that no other process shares.
    pub(super) fn of(device: i32) -> Self {
        let windows = std::ptr::null_mut();
        let location = [AT_DEVICE, device];
        Self { kind: MEMORY_OF_DEVICE, handles: 0, location, windows, flags: 0 }
    }
}

/// `CUmemAccessDesc`.
#[repr(C)]
pub(super) struct Access {
    location: [i32; 2],
    flags: i32,
}

impl Access {
    /// A device may read and write.
    pub(super) fn of(device: i32) -> Self {
        Self { location: [AT_DEVICE, device], flags: READ_WRITE }
    }
}

/// `CUtensorMap`.
#[repr(C, align(64))]
pub(super) struct TensorMap(pub(super) [u64; 16]);

/// `CU_TENSOR_MAP_DATA_TYPE_UINT16`: copies do not look at the elements.
pub(super) const TENSOR_MAP_UINT16: i32 = 1;
/// `CU_TENSOR_MAP_INTERLEAVE_NONE`.
pub(super) const TENSOR_MAP_NO_INTERLEAVE: i32 = 0;
/// `CU_TENSOR_MAP_SWIZZLE_128B`.
pub(super) const TENSOR_MAP_SWIZZLE_128B: i32 = 3;
/// `CU_TENSOR_MAP_L2_PROMOTION_L2_128B`.
pub(super) const TENSOR_MAP_L2_128B: i32 = 2;
/// `CU_TENSOR_MAP_L2_PROMOTION_L2_256B`.
pub(super) const TENSOR_MAP_L2_256B: i32 = 3;
/// `CU_TENSOR_MAP_FLOAT_OOB_FILL_NONE`.
pub(super) const TENSOR_MAP_ZEROS_OUTSIDE: i32 = 0;

#[cfg(target_pointer_width = "64")]
const _: () = assert!(size_of::<AllocationProperties>() == 32 && size_of::<Access>() == 12);
const _: () = assert!(size_of::<LaunchAttribute>() == 72);
#[cfg(target_pointer_width = "64")]
const _: () = assert!(size_of::<LaunchConfig>() == 56);

/// Declares the driver's functions once: for each a field of the table of addresses, and a function of this
/// module that calls it.
macro_rules! entry_points {
    ($($(#[$only:meta])* fn $name:ident($($argument:ident: $type:ty),* $(,)?);)*) => {
        #[expect(non_snake_case, reason = "the driver's own names")]
        struct Driver {
            $($(#[$only])* $name: unsafe extern "C" fn($($type),*) -> i32,)*
        }

        impl Driver {
            #[cfg(target_os = "linux")]
            fn find(library: &libloading::Library) -> Result<Self, String> {
                // SAFETY: each is called with the signature that the driver documents for its name.
                unsafe {
                    Ok(Self {
                        $($(#[$only])* $name: *library
                            .get(stringify!($name))
                            .map_err(|_| concat!(
                                "libcuda.so.1 lacks ", stringify!($name), ", so it is too old"
                            ))?,)*
                    })
                }
            }
        }

        $(
            $(#[$only])*
            #[expect(non_snake_case, reason = "the driver's own names")]
            #[allow(clippy::too_many_arguments)]
            pub(super) unsafe fn $name($($argument: $type),*) -> i32 {
                match driver() {
                    // SAFETY: the caller's, who knows the function by its name.
                    Ok(driver) => unsafe { (driver.$name)($($argument),*) },
                    Err(_) => ERROR_NOT_INITIALIZED,
                }
            }
        )*
    };
}

entry_points! {
    fn cuGetErrorName(code: i32, name: *mut *const c_char);
    fn cuGetErrorString(code: i32, text: *mut *const c_char);

    fn cuInit(flags: u32);
    fn cuDriverGetVersion(version: *mut i32);
    fn cuDeviceGetCount(count: *mut i32);
    fn cuDeviceGet(device: *mut i32, ordinal: i32);
    fn cuDeviceGetName(name: *mut c_char, bytes: i32, device: i32);
    fn cuDeviceTotalMem_v2(bytes: *mut usize, device: i32);
    fn cuDeviceGetAttribute(value: *mut i32, attribute: i32, device: i32);
    fn cuDevicePrimaryCtxRetain(context: *mut Handle, device: i32);
    fn cuDevicePrimaryCtxRelease_v2(device: i32);
    fn cuCtxGetCurrent(context: *mut Handle);
    fn cuCtxSetCurrent(context: Handle);
    fn cuCtxSynchronize();
    #[cfg(feature = "cust")]
    fn cuCtxGetDevice(device: *mut i32);
    fn cuMemGetInfo_v2(free: *mut usize, total: *mut usize);

    fn cuModuleLoadDataEx(
        module: *mut Handle,
        image: *const c_void,
        options: u32,
        names: *mut u32,
        values: *mut *mut c_void,
    );
    fn cuModuleUnload(module: Handle);
    fn cuModuleGetFunction(function: *mut Handle, module: Handle, name: *const c_char);
    fn cuFuncSetAttribute(function: Handle, attribute: i32, value: i32);
    fn cuFuncGetAttribute(value: *mut i32, attribute: i32, function: Handle);
    fn cuLaunchKernelEx(
        config: *const LaunchConfig,
        function: Handle,
        arguments: *mut *mut c_void,
        extra: *mut *mut c_void,
    );

    fn cuTensorMapEncodeTiled(
        map: *mut TensorMap,
        element: i32,
        rank: u32,
        first: DevicePointer,
        sizes: *const u64,
        strides: *const u64,
        of_box: *const u32,
        element_strides: *const u32,
        interleave: i32,
        swizzle: i32,
        promotion: i32,
        outside: i32,
    );

    fn cuStreamCreate(stream: *mut Handle, flags: u32);
    fn cuStreamDestroy_v2(stream: Handle);
    fn cuStreamQuery(stream: Handle);
    fn cuStreamSynchronize(stream: Handle);
    fn cuStreamWaitEvent(stream: Handle, event: Handle, flags: u32);
    #[cfg(feature = "cust")]
    fn cuStreamGetCtx(stream: Handle, context: *mut Handle);
    fn cuStreamBeginCapture_v2(stream: Handle, mode: u32);
    fn cuStreamEndCapture(stream: Handle, graph: *mut Handle);
    fn cuStreamIsCapturing(stream: Handle, status: *mut i32);
    fn cuGraphInstantiateWithFlags(executable: *mut Handle, graph: Handle, flags: u64);
    fn cuGraphLaunch(executable: Handle, stream: Handle);
    fn cuGraphDestroy(graph: Handle);
    fn cuGraphExecDestroy(executable: Handle);

    fn cuEventCreate(event: *mut Handle, flags: u32);
    fn cuEventDestroy_v2(event: Handle);
    fn cuEventRecord(event: Handle, stream: Handle);
    fn cuEventQuery(event: Handle);
    fn cuEventSynchronize(event: Handle);
    fn cuEventElapsedTime(ms: *mut f32, start: Handle, end: Handle);

    fn cuMemAlloc_v2(pointer: *mut DevicePointer, bytes: usize);
    fn cuMemFree_v2(pointer: DevicePointer);
    fn cuMemAddressReserve(
        pointer: *mut DevicePointer,
        bytes: usize,
        alignment: usize,
        wanted: DevicePointer,
        flags: u64,
    );
    fn cuMemAddressFree(pointer: DevicePointer, bytes: usize);
    fn cuMemGetAllocationGranularity(
        bytes: *mut usize,
        properties: *const AllocationProperties,
        option: u32,
    );
    fn cuMemCreate(
        handle: *mut u64,
        bytes: usize,
        properties: *const AllocationProperties,
        flags: u64,
    );
    fn cuMemMap(pointer: DevicePointer, bytes: usize, offset: usize, handle: u64, flags: u64);
    fn cuMemSetAccess(pointer: DevicePointer, bytes: usize, access: *const Access, count: usize);
    fn cuMemUnmap(pointer: DevicePointer, bytes: usize);
    fn cuMemRelease(handle: u64);
    fn cuMemHostAlloc(pointer: *mut *mut c_void, bytes: usize, flags: u32);
    fn cuMemFreeHost(pointer: *mut c_void);
    fn cuMemcpyHtoDAsync_v2(to: DevicePointer, from: *const c_void, bytes: usize, stream: Handle);
    fn cuMemcpyDtoHAsync_v2(to: *mut c_void, from: DevicePointer, bytes: usize, stream: Handle);
    fn cuMemsetD8Async(to: DevicePointer, value: u8, bytes: usize, stream: Handle);
}

/// Opens the driver, unless that was done.
///
/// # Errors
/// Why there is none, in words.
pub(super) fn open() -> Result<(), &'static str> {
    driver().map(drop)
}

fn driver() -> Result<&'static Driver, &'static str> {
    static DRIVER: OnceLock<Result<Driver, String>> = OnceLock::new();
    DRIVER.get_or_init(load).as_ref().map_err(String::as_str)
}

#[cfg(target_os = "linux")]
fn load() -> Result<Driver, String> {
    // SAFETY: the driver's library may be loaded at any time.
    let library = unsafe { libloading::Library::new("libcuda.so.1") }.map_err(|error| {
        // The dynamic linker's own words are the error's cause.
        let words = std::error::Error::source(&error)
            .map_or_else(|| error.to_string(), ToString::to_string);
        format!("libcuda.so.1 could not be opened ({words})")
    })?;
    let driver = Driver::find(&library)?;
    // The addresses are good for as long as the program runs.
    std::mem::forget(library);
    Ok(driver)
}

#[cfg(not(target_os = "linux"))]
fn load() -> Result<Driver, String> {
    Err("the CUDA driver is opened on Linux only".to_owned())
}
