//! The driver entry points this module calls itself.
//!
//! They are declared here, not taken from `cust`, for one reason: each returns a plain `i32`. `cust`
//! 0.3.2 declares a Rust enum of the codes that CUDA 11 knew, and newer drivers have more; receiving one
//! of those as that enum is undefined behaviour. So everything that can report a kernel's fault, or is
//! newer than that enum, is here. Names and signatures: CUDA Driver API reference.

use std::ffi::{c_char, c_void};

/// `CUdeviceptr`.
pub(super) type DevicePointer = u64;
/// `CUcontext`, `CUmodule`, `CUfunction`, `CUstream`, `CUevent`, `CUgraph`, `CUgraphExec`.
pub(super) type Handle = *mut c_void;

pub(super) const SUCCESS: i32 = 0;
pub(super) const ERROR_OUT_OF_MEMORY: i32 = 2;
pub(super) const ERROR_NOT_READY: i32 = 600;

/// `CU_STREAM_NON_BLOCKING`.
pub(super) const STREAM_NON_BLOCKING: u32 = 1;
/// `CU_EVENT_DEFAULT`.
pub(super) const EVENT_DEFAULT: u32 = 0;
/// `CU_STREAM_CAPTURE_MODE_THREAD_LOCAL`.
pub(super) const CAPTURE_THREAD_LOCAL: u32 = 1;

/// `CU_DEVICE_ATTRIBUTE_MAX_SHARED_MEMORY_PER_BLOCK_OPTIN` and its siblings.
pub(super) const DEVICE_MULTIPROCESSORS: i32 = 16;
pub(super) const DEVICE_L2_BYTES: i32 = 38;
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

const _: () = assert!(size_of::<LaunchAttribute>() == 72);
const _: () = assert!(size_of::<LaunchConfig>() == 56);

/// `cuLaunchKernelEx` (CUDA 11.8), fetched at run time.
pub(super) type LaunchKernelEx = unsafe extern "C" fn(
    config: *const LaunchConfig,
    function: Handle,
    arguments: *mut *mut c_void,
    extra: *mut *mut c_void,
) -> i32;

unsafe extern "C" {
    pub(super) fn cuGetErrorName(code: i32, name: *mut *const c_char) -> i32;
    pub(super) fn cuGetErrorString(code: i32, text: *mut *const c_char) -> i32;
    pub(super) fn cuGetProcAddress(
        name: *const c_char,
        function: *mut *mut c_void,
        version: i32,
        flags: u64,
    ) -> i32;

    pub(super) fn cuDriverGetVersion(version: *mut i32) -> i32;
    pub(super) fn cuDeviceGetAttribute(value: *mut i32, attribute: i32, device: i32) -> i32;
    pub(super) fn cuCtxGetCurrent(context: *mut Handle) -> i32;
    pub(super) fn cuCtxSetCurrent(context: Handle) -> i32;
    pub(super) fn cuMemGetInfo_v2(free: *mut usize, total: *mut usize) -> i32;

    pub(super) fn cuModuleLoadDataEx(
        module: *mut Handle,
        image: *const c_void,
        options: u32,
        names: *mut u32,
        values: *mut *mut c_void,
    ) -> i32;
    pub(super) fn cuModuleUnload(module: Handle) -> i32;
    pub(super) fn cuModuleGetFunction(
        function: *mut Handle,
        module: Handle,
        name: *const c_char,
    ) -> i32;
    pub(super) fn cuFuncSetAttribute(function: Handle, attribute: i32, value: i32) -> i32;
    pub(super) fn cuFuncGetAttribute(value: *mut i32, attribute: i32, function: Handle) -> i32;
    pub(super) fn cuLaunchKernel(
        function: Handle,
        grid_x: u32,
        grid_y: u32,
        grid_z: u32,
        block_x: u32,
        block_y: u32,
        block_z: u32,
        shared_bytes: u32,
        stream: Handle,
        arguments: *mut *mut c_void,
        extra: *mut *mut c_void,
    ) -> i32;

    pub(super) fn cuStreamCreate(stream: *mut Handle, flags: u32) -> i32;
    pub(super) fn cuStreamDestroy_v2(stream: Handle) -> i32;
    pub(super) fn cuStreamQuery(stream: Handle) -> i32;
    pub(super) fn cuStreamSynchronize(stream: Handle) -> i32;
    pub(super) fn cuStreamBeginCapture_v2(stream: Handle, mode: u32) -> i32;
    pub(super) fn cuStreamEndCapture(stream: Handle, graph: *mut Handle) -> i32;
    pub(super) fn cuGraphInstantiateWithFlags(
        executable: *mut Handle,
        graph: Handle,
        flags: u64,
    ) -> i32;
    pub(super) fn cuGraphLaunch(executable: Handle, stream: Handle) -> i32;
    pub(super) fn cuGraphDestroy(graph: Handle) -> i32;
    pub(super) fn cuGraphExecDestroy(executable: Handle) -> i32;

    pub(super) fn cuEventCreate(event: *mut Handle, flags: u32) -> i32;
    pub(super) fn cuEventDestroy_v2(event: Handle) -> i32;
    pub(super) fn cuEventRecord(event: Handle, stream: Handle) -> i32;
    pub(super) fn cuEventSynchronize(event: Handle) -> i32;
    pub(super) fn cuEventElapsedTime(ms: *mut f32, start: Handle, end: Handle) -> i32;

    pub(super) fn cuMemAlloc_v2(pointer: *mut DevicePointer, bytes: usize) -> i32;
    pub(super) fn cuMemFree_v2(pointer: DevicePointer) -> i32;
    pub(super) fn cuMemAllocAsync(pointer: *mut DevicePointer, bytes: usize, stream: Handle)
    -> i32;
    pub(super) fn cuMemFreeAsync(pointer: DevicePointer, stream: Handle) -> i32;
    pub(super) fn cuMemcpyHtoDAsync_v2(
        to: DevicePointer,
        from: *const c_void,
        bytes: usize,
        stream: Handle,
    ) -> i32;
    pub(super) fn cuMemcpyDtoHAsync_v2(
        to: *mut c_void,
        from: DevicePointer,
        bytes: usize,
        stream: Handle,
    ) -> i32;
    pub(super) fn cuMemsetD8Async(
        to: DevicePointer,
        value: u8,
        bytes: usize,
        stream: Handle,
    ) -> i32;
}
