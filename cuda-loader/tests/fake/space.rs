//! Virtual memory: addresses that are set aside, and physical memory that is mapped there. What is mapped begins as NaN,
//! and what is unmapped becomes it: whoever reads either notices.

use std::alloc::{Layout, alloc, dealloc};

use super::state::{Kind, State, state};
use super::{INVALID_VALUE, SUCCESS};

const GRANULARITY: usize = 64 << 10;
/// Memory that there is, unless a test says otherwise.
static LIMIT: std::sync::atomic::AtomicUsize = std::sync::atomic::AtomicUsize::new(usize::MAX);
const OUT_OF_MEMORY: i32 = 2;

/// Has physical memory end at so many bytes.
#[unsafe(no_mangle)]
pub extern "C" fn fake_limit(bytes: usize) {
    LIMIT.store(bytes, std::sync::atomic::Ordering::Relaxed);
}

/// Bytes of physical memory that are mapped.
#[unsafe(no_mangle)]
pub extern "C" fn fake_mapped() -> usize {
    state().mappings.values().sum()
}

impl State {
    fn poison(&mut self, address: usize, bytes: usize) {
        // SAFETY: within a space, which is the process's own memory.
        unsafe { (address as *mut u8).write_bytes(u8::MAX, bytes) };
    }

    fn space_of(&self, address: usize, bytes: usize) -> bool {
        let space = self.spaces.range(..=address).next_back();
        space.is_some_and(|(&begin, &len)| address + bytes <= begin + len)
    }

    fn overlaps(&self, address: usize, bytes: usize) -> bool {
        let below = self.mappings.range(..address + bytes).next_back();
        below.is_some_and(|(&begin, &len)| begin + len > address)
    }
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn cuMemGetAllocationGranularity(bytes: *mut usize, _properties: usize, _option: u32) -> i32 {
    let mut state = state();
    if let Err(code) = state.call("cuMemGetAllocationGranularity") {
        return code;
    }
    // SAFETY: a place for one size.
    unsafe { bytes.write(GRANULARITY) };
    SUCCESS
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn cuMemAddressReserve(
    pointer: *mut usize,
    bytes: usize,
    _alignment: usize,
    _wanted: usize,
    _flags: u64,
) -> i32 {
    let mut state = state();
    if let Err(code) = state.call("cuMemAddressReserve") {
        return code;
    }
    if bytes == 0 || !bytes.is_multiple_of(GRANULARITY) {
        return INVALID_VALUE;
    }
    // SAFETY: more than no bytes; a place for one address.
    unsafe {
        let address = alloc(Layout::from_size_align(bytes, GRANULARITY).unwrap()) as usize;
        state.objects.insert((Kind::Space, address));
        state.spaces.insert(address, bytes);
        pointer.write(address);
    }
    SUCCESS
}

#[unsafe(no_mangle)]
pub extern "C" fn cuMemAddressFree(address: usize, bytes: usize) -> i32 {
    let mut state = state();
    let mapped = state.overlaps(address, bytes);
    state.misuse += u64::from(mapped);
    let code = state.destroy("cuMemAddressFree", Kind::Space, address);
    if state.spaces.remove(&address) == Some(bytes) {
        // SAFETY: allocated above with this layout, and removed from the list.
        unsafe { dealloc(address as *mut u8, Layout::from_size_align(bytes, GRANULARITY).unwrap()) };
    } else {
        state.misuse += 1;
    }
    code
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn cuMemCreate(handle: *mut usize, bytes: usize, _properties: usize, _flags: u64) -> i32 {
    let mut state = state();
    if let Err(code) = state.call("cuMemCreate") {
        return code;
    }
    if bytes == 0 || !bytes.is_multiple_of(GRANULARITY) {
        return INVALID_VALUE;
    }
    if state.mappings.values().sum::<usize>() + bytes > LIMIT.load(std::sync::atomic::Ordering::Relaxed) {
        return OUT_OF_MEMORY;
    }
    let made = state.make(Kind::Physical);
    state.physical.insert(made, bytes);
    // SAFETY: a place for one handle.
    unsafe { handle.write(made) };
    SUCCESS
}

#[unsafe(no_mangle)]
pub extern "C" fn cuMemRelease(handle: usize) -> i32 {
    let mut state = state();
    state.physical.remove(&handle);
    state.destroy("cuMemRelease", Kind::Physical, handle)
}

#[unsafe(no_mangle)]
pub extern "C" fn cuMemMap(address: usize, bytes: usize, offset: usize, handle: usize, _flags: u64) -> i32 {
    let mut state = state();
    if let Err(code) = state.call("cuMemMap") {
        return code;
    }
    state.expect(Kind::Physical, handle);
    let fits = state.physical.get(&handle) == Some(&bytes) && state.space_of(address, bytes);
    if !fits || offset != 0 || state.overlaps(address, bytes) {
        return INVALID_VALUE;
    }
    state.objects.insert((Kind::Mapping, address));
    state.mappings.insert(address, bytes);
    SUCCESS
}

#[unsafe(no_mangle)]
pub extern "C" fn cuMemSetAccess(address: usize, bytes: usize, _access: usize, count: usize) -> i32 {
    let mut state = state();
    if let Err(code) = state.call("cuMemSetAccess") {
        return code;
    }
    state.expect(Kind::Mapping, address);
    if state.mappings.get(&address) != Some(&bytes) || count != 1 {
        return INVALID_VALUE;
    }
    state.memory.insert(address, bytes);
    state.poison(address, bytes);
    SUCCESS
}

#[unsafe(no_mangle)]
pub extern "C" fn cuMemUnmap(address: usize, bytes: usize) -> i32 {
    let mut state = state();
    let code = state.destroy("cuMemUnmap", Kind::Mapping, address);
    if state.mappings.remove(&address) == Some(bytes) {
        state.memory.remove(&address);
        state.poison(address, bytes);
    } else {
        state.misuse += 1;
    }
    code
}
