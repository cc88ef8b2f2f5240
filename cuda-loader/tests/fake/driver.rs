//! A stand-in for `libcuda.so.1`: one device whose memory is the host's, objects that are counted, streams whose work
//! runs as late as it may, and graphs. Kernels do nothing, or what a test does in their place. Any call can be made to
//! fail. What a driver would crash on is counted as misuse.

#![allow(non_snake_case, clippy::missing_safety_doc, clippy::not_unsafe_ptr_arg_deref)]

mod space;
mod state;
mod streams;

use std::collections::BTreeMap;
use std::ffi::{CStr, c_char, c_void};

use state::{Kind, State, state};
use streams::{Capture, Kernels, Place, Work};

const SUCCESS: i32 = 0;
const INVALID_VALUE: i32 = 1;
const NOT_READY: i32 = 600;
const CAPTURE_UNSUPPORTED: i32 = 900;
const CAPTURE_UNJOINED: i32 = 904;
const CAPTURE_ISOLATION: i32 = 905;
const CONTEXT: usize = 0xc0;
const DEVICE: i32 = 0;

/// Has call number `call` from now on fail with `code`: 0 for none, `u64::MAX` for all. With 0 no context is current
/// either, as in a new thread: where a context could not be given back it stayed, and the next run would make fewer
/// calls.
#[unsafe(no_mangle)]
pub extern "C" fn fake_fail(call: u64, code: i32) {
    let mut state = state();
    if call == 0 {
        state.current = 0;
    }
    (state.calls, state.fail_at, state.code, state.failed) = (0, call, code, "");
    state.calls_of.clear();
}

/// Calls since the last `fake_fail`.
#[unsafe(no_mangle)]
pub extern "C" fn fake_calls() -> u64 {
    state().calls
}

/// Those of one name.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn fake_calls_of(name: *const c_char) -> u64 {
    // SAFETY: a text.
    let name = unsafe { CStr::from_ptr(name) }.to_str().unwrap();
    state().calls_of.get(name).copied().unwrap_or(0)
}

/// Has `kernels` be called when kernels run.
#[unsafe(no_mangle)]
pub extern "C" fn fake_kernels(kernels: Kernels) {
    state().kernels = Some(kernels);
}

/// Objects that were made and not destroyed.
#[unsafe(no_mangle)]
pub extern "C" fn fake_live() -> usize {
    let state = state();
    state.objects.len() + state.contexts + state.capturing.len()
}

/// Bytes copied in either direction.
#[unsafe(no_mangle)]
pub extern "C" fn fake_bytes() -> u64 {
    state().bytes
}

/// Uses of what is not there.
#[unsafe(no_mangle)]
pub extern "C" fn fake_misuse() -> u64 {
    state().misuse
}

/// The call that failed last.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn fake_failed(name: *mut u8, room: usize) -> usize {
    let failed = state().failed;
    let len = failed.len().min(room);
    // SAFETY: the caller's.
    unsafe { name.copy_from_nonoverlapping(failed.as_ptr(), len) };
    len
}

macro_rules! driver {
    ($($name:ident($($argument:ident: $type:ty),*) |$state:ident| $body:block)*) => {$(
        #[unsafe(no_mangle)]
        #[allow(unused_unsafe, clippy::too_many_arguments)]
        pub unsafe extern "C" fn $name($($argument: $type),*) -> i32 {
            let mut locked = state();
            let $state = &mut *locked;
            if let Err(code) = $state.call(stringify!($name)) {
                return code;
            }
            // SAFETY: arguments are what the driver's function of this name takes.
            #[allow(unused_variables)]
            unsafe { $body }
            #[allow(unreachable_code)]
            SUCCESS
        }
    )*};
}

driver! {
    cuInit(flags: u32) |state| { if flags != 0 { return INVALID_VALUE; } }
    cuDriverGetVersion(version: *mut i32) |state| { version.write(13_000); }
    cuDeviceGetCount(count: *mut i32) |state| { count.write(1); }
    cuDeviceGet(device: *mut i32, ordinal: i32) |state| {
        if ordinal != 0 { return INVALID_VALUE; }
        device.write(DEVICE);
    }
    cuDeviceGetName(name: *mut u8, bytes: i32, device: i32) |state| {
        name.copy_from_nonoverlapping(c"fake".as_ptr().cast(), 5);
    }
    cuDeviceTotalMem_v2(bytes: *mut usize, device: i32) |state| { bytes.write(1 << 34); }
    cuDeviceGetAttribute(value: *mut i32, attribute: i32, device: i32) |state| {
        value.write(match attribute { 16 => 132, 38 => 50 << 20, 75 => 9, 76 => 0, 97 => 227 << 10, _ => 0 });
    }
    cuDevicePrimaryCtxRetain(context: *mut usize, device: i32) |state| {
        state.contexts += 1;
        context.write(CONTEXT);
    }
    cuDevicePrimaryCtxSetFlags_v2(device: i32, flags: u32) |state| {}
    cuCtxGetCurrent(context: *mut usize) |state| { context.write(state.current); }
    cuCtxSetCurrent(context: usize) |state| { state.current = context; }
    cuCtxGetDevice(device: *mut i32) |state| { device.write(DEVICE); }
    cuMemGetInfo_v2(free: *mut usize, total: *mut usize) |state| {
        free.write(1 << 33);
        total.write(1 << 34);
    }
    cuModuleLoadDataEx(module: *mut usize, image: *const c_void, options: u32, names: *mut u32, values: *mut c_void)
    |state| { module.write(state.make(Kind::Module)); }
    cuModuleGetFunction(function: *mut usize, module: usize, name: *const c_char) |state| {
        state.expect(Kind::Module, module);
        // A function lives as long as its module, and is not given back.
        function.write(module + 1);
        state.functions.insert(module + 1, CStr::from_ptr(name).to_owned());
    }
    cuFuncSetAttribute(function: usize, attribute: i32, value: i32) |state| {
        state.expect(Kind::Module, function - 1);
    }
    cuFuncGetAttribute(value: *mut i32, attribute: i32, function: usize) |state| { value.write(1); }
    cuLaunchKernelEx(config: *const c_void, function: usize, arguments: *mut *mut c_void, extra: *mut c_void)
    |state| {
        state.expect(Kind::Module, function - 1);
        let stream = config.byte_add(32).cast::<usize>().read();
        let mut held = Vec::new();
        // Other callers than ours end their list nowhere.
        while state.kernels.is_some() && held.len() < 24 && !arguments.add(held.len()).read().is_null() {
            held.push(arguments.add(held.len()).read().cast::<u64>().read());
        }
        let name = state.functions.get(&function).cloned().unwrap_or_default();
        state.enqueue(stream, Work::Kernel { name, blocks: config.cast::<u32>().read(), arguments: held });
    }
    cuStreamCreate(stream: *mut usize, flags: u32) |state| { stream.write(state.make(Kind::Stream)); }
    cuStreamCreateWithPriority(stream: *mut usize, flags: u32, priority: i32) |state| {
        stream.write(state.make(Kind::Stream));
    }
    cuStreamGetCtx(stream: usize, context: *mut usize) |state| { context.write(CONTEXT); }
    cuStreamQuery(stream: usize) |state| {
        state.expect(Kind::Stream, stream);
        if state.queues.get(&stream).is_some_and(|queue| !queue.waiting.is_empty()) { return NOT_READY; }
    }
    cuStreamWaitEvent(stream: usize, event: usize, flags: u32) |state| {
        state.expect(Kind::Stream, stream);
        state.expect(Kind::Event, event);
        return state.wait(stream, event);
    }
    cuStreamBeginCapture_v2(stream: usize, mode: u32) |state| {
        state.expect(Kind::Stream, stream);
        if stream <= 2 || state.capturing.contains_key(&stream) { return INVALID_VALUE; }
        state.next += 16;
        let capture = state.next;
        state.capturing.insert(stream, capture);
        state.captures.insert(capture, Capture { origin: stream, work: Vec::new(), joined: BTreeMap::new() });
    }
    cuStreamIsCapturing(stream: usize, status: *mut i32) |state| {
        state.expect(Kind::Stream, stream);
        status.write(i32::from(state.capturing.contains_key(&stream)));
    }
    cuGraphInstantiateWithFlags(executable: *mut usize, graph: usize, flags: u64) |state| {
        state.expect(Kind::Graph, graph);
        let made = state.make(Kind::Executable);
        let work = state.graphs.get(&graph).cloned().unwrap_or_default();
        state.graphs.insert(made, work);
        executable.write(made);
    }
    cuGraphLaunch(executable: usize, stream: usize) |state| {
        state.expect(Kind::Executable, executable);
        state.expect(Kind::Stream, stream);
        for work in state.graphs.get(&executable).cloned().unwrap_or_default() {
            state.enqueue(stream, work);
        }
    }
    cuEventCreate(event: *mut usize, flags: u32) |state| { event.write(state.make(Kind::Event)); }
    cuEventRecord(event: usize, stream: usize) |state| {
        state.expect(Kind::Event, event);
        state.expect(Kind::Stream, stream);
        state.record(event, stream);
    }
    cuEventQuery(event: usize) |state| {
        state.expect(Kind::Event, event);
        if !state.is_done(event) { return NOT_READY; }
    }
    cuEventElapsedTime(ms: *mut f32, start: usize, end: usize) |state| { ms.write(0.5); }
    cuMemAlloc_v2(pointer: *mut usize, bytes: usize) |state| {
        if !state.capturing.is_empty() { return CAPTURE_UNSUPPORTED; }
        pointer.write(state.allocate(Kind::Memory, bytes));
    }
    cuMemAllocAsync(pointer: *mut usize, bytes: usize, stream: usize) |state| {
        pointer.write(state.allocate(Kind::Memory, bytes));
    }
    cuMemHostAlloc(pointer: *mut usize, bytes: usize, flags: u32) |state| {
        if !state.capturing.is_empty() { return CAPTURE_UNSUPPORTED; }
        pointer.write(state.allocate(Kind::Pinned, bytes));
    }
    cuMemcpyHtoDAsync_v2(to: usize, from: *const u8, bytes: usize, stream: usize) |state| {
        // A graph would read what is there when it runs.
        state.misuse += u64::from(state.capturing.contains_key(&stream));
        state.bytes += bytes as u64;
        state.enqueue(stream, Work::Copy { to, from: from as usize, bytes });
    }
    cuMemcpyHtoD_v2(to: usize, from: *const u8, bytes: usize) |state| {
        state.finish(0);
        if state.holds(to, bytes) { (to as *mut u8).copy_from(from, bytes); }
    }
    cuMemcpyDtoHAsync_v2(to: *mut u8, from: usize, bytes: usize, stream: usize) |state| {
        if let Err(code) = state.at_once(stream) { return code; }
        state.bytes += bytes as u64;
        if state.holds(from, bytes) { to.copy_from(from as *const u8, bytes); }
    }
    cuTensorMapEncodeTiled(map: *mut [u64; 16], element: i32, rank: u32, first: usize, sizes: *const u64,
        strides: *const u64, of_box: *const u32, element_strides: *const u32, interleave: i32, swizzle: i32,
        promotion: i32, outside: i32) |state| {
        map.write([first as u64; 16]);
    }
    cuMemsetD8Async(to: usize, value: u8, bytes: usize, stream: usize) |state| {
        state.enqueue(stream, Work::Set { to, value, bytes });
    }
    // Not called by the library: what arrives of many arguments, and of floating-point ones.
    cuLaunchCooperativeKernel(function: usize, grid_x: u32, grid_y: u32, grid_z: u32, block_x: u32, block_y: u32,
        block_z: u32, shared: u32, stream: usize, parameters: usize) |state| {
        let words = [grid_x, grid_y, grid_z, block_x, block_y, block_z, shared];
        let words = words.map(|word| word as usize).into_iter().chain([stream, parameters]);
        return words.fold(function, |digest, word| digest * 3 + word) as i32;
    }
    cuTexRefSetMipmapLevelClamp(texture: usize, low: f32, high: f32) |state| {
        return (texture as f32 + low * 10.0 + high * 100.0) as i32;
    }
}

#[unsafe(no_mangle)]
pub extern "C" fn cuDevicePrimaryCtxRelease_v2(_device: i32) -> i32 {
    let mut state = state();
    let failed = state.call("cuDevicePrimaryCtxRelease_v2");
    state.misuse += u64::from(state.contexts == 0);
    state.contexts = state.contexts.saturating_sub(1);
    failed.err().unwrap_or(SUCCESS)
}

/// The work is done however the wait for it is answered.
#[unsafe(no_mangle)]
pub extern "C" fn cuStreamSynchronize(stream: usize) -> i32 {
    let mut state = state();
    if let Err(code) = state.at_once(stream) {
        return code;
    }
    state.call("cuStreamSynchronize").err().unwrap_or(SUCCESS)
}

/// As `cuStreamSynchronize`, of all streams.
#[unsafe(no_mangle)]
pub extern "C" fn cuCtxSynchronize() -> i32 {
    let mut state = state();
    state.finish(0);
    state.call("cuCtxSynchronize").err().unwrap_or(SUCCESS)
}

/// As `cuStreamSynchronize`.
#[unsafe(no_mangle)]
pub extern "C" fn cuEventSynchronize(event: usize) -> i32 {
    let mut state = state();
    state.expect(Kind::Event, event);
    if let Some(Place::Stream { stream, before }) = state.events.get(&event).copied() {
        state.run(stream, before);
    }
    state.call("cuEventSynchronize").err().unwrap_or(SUCCESS)
}

/// A capture is over however its end is answered.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn cuStreamEndCapture(stream: usize, graph: *mut usize) -> i32 {
    let mut state = state();
    let failed = state.call("cuStreamEndCapture");
    let Some(ended) = state.capturing.get(&stream).copied() else {
        state.misuse += 1;
        return INVALID_VALUE;
    };
    state.capturing.retain(|_, capture| *capture != ended);
    let capture = state.captures.remove(&ended).unwrap();
    if let Err(code) = failed {
        return code;
    }
    if capture.joined.values().any(|joined| !joined) {
        return CAPTURE_UNJOINED;
    }
    let made = state.make(Kind::Graph);
    state.graphs.insert(made, capture.work);
    // SAFETY: a place for one handle.
    unsafe { graph.write(made) };
    SUCCESS
}

macro_rules! destroy {
    ($($name:ident($kind:ident) $how:ident;)*) => {$(
        #[unsafe(no_mangle)]
        pub extern "C" fn $name(handle: usize) -> i32 {
            state().$how(stringify!($name), Kind::$kind, handle)
        }
    )*};
}

destroy! {
    cuModuleUnload(Module) destroy;
    cuStreamDestroy_v2(Stream) destroy;
    cuGraphDestroy(Graph) destroy;
    cuGraphExecDestroy(Executable) destroy;
    cuEventDestroy_v2(Event) destroy;
    cuMemFree_v2(Memory) free;
    cuMemFreeHost(Pinned) free;
}

#[unsafe(no_mangle)]
pub extern "C" fn cuMemFreeAsync(address: usize, _stream: usize) -> i32 {
    state().free("cuMemFreeAsync", Kind::Memory, address)
}

/// Codes have names unless every call fails.
fn name_of(code: i32, name: *mut *const c_char) -> i32 {
    let state = state();
    if state.fail_at == u64::MAX {
        return state.code;
    }
    let text = match code {
        46 => c"CUDA_ERROR_DEVICE_UNAVAILABLE",
        999 => c"CUDA_ERROR_UNKNOWN",
        _ => return INVALID_VALUE,
    };
    // SAFETY: a place for one pointer.
    unsafe { name.write(text.as_ptr()) };
    SUCCESS
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn cuGetErrorName(code: i32, name: *mut *const c_char) -> i32 {
    name_of(code, name)
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn cuGetErrorString(code: i32, text: *mut *const c_char) -> i32 {
    name_of(code, text)
}
