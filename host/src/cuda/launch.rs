//! Kernel arguments and launches.

use std::ffi::c_void;

use kernels_gpu::ptx::Arguments;

use super::error::{check, reason};
use super::sys;
use super::{CudaDevice, CudaError, RawStream};

/// Most arguments a kernel may take.
const MAX_ARGUMENTS: usize = 24;

/// A loaded kernel. Cloning shares it.
#[derive(Clone, Debug)]
pub struct Kernel {
    pub(super) device: CudaDevice,
    pub(super) function: sys::Handle,
    pub(super) name: String,
    pub(super) threads: u32,
    pub(super) shared_bytes: u32,
    /// It waits by itself for its predecessor.
    pub(super) waits: bool,
}

// SAFETY: a function handle may be used from any thread; the device keeps its module loaded.
unsafe impl Send for Kernel {}
// SAFETY: as above.
unsafe impl Sync for Kernel {}

/// What the compiler made of a kernel.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Resources {
    /// Registers a thread.
    pub registers: i32,
    /// Local memory a thread in bytes: spills and arrays that did not fit registers.
    pub local_bytes: i32,
    /// Static shared memory a block in bytes.
    pub static_shared_bytes: i32,
    /// Dynamic shared memory a block in bytes.
    pub dynamic_shared_bytes: u32,
    /// Threads a block.
    pub threads: u32,
}

/// Grid and order of one launch; threads and shared memory are the kernel's own.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Launch {
    /// Blocks in x, y, z; none in one of them launches nothing.
    pub grid: [u32; 3],
    /// Whether the kernel may start before its predecessor in the stream has ended (CUDA programming
    /// guide, "Programmatic dependent launch"). It does only if it waits by itself before it reads.
    pub overlaps_predecessor: bool,
}

impl Kernel {
    /// The entry's name.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Threads a block.
    pub fn threads(&self) -> u32 {
        self.threads
    }

    /// Registers, local and shared memory.
    ///
    /// # Errors
    /// [`CudaError::Driver`].
    pub fn resources(&self) -> Result<Resources, CudaError> {
        let _current = self.device.activate()?;
        let attribute = |attribute| {
            let mut value = 0;
            // SAFETY: a valid place for one int, and a live function.
            let code = unsafe { sys::cuFuncGetAttribute(&mut value, attribute, self.function) };
            check("cuFuncGetAttribute", code).map(|()| value)
        };
        Ok(Resources {
            registers: attribute(sys::FUNC_REGISTERS)?,
            local_bytes: attribute(sys::FUNC_LOCAL_BYTES)?,
            static_shared_bytes: attribute(sys::FUNC_STATIC_SHARED)?,
            dynamic_shared_bytes: self.shared_bytes,
            threads: self.threads,
        })
    }

    /// Enqueues the kernel on `stream`.
    ///
    /// # Safety
    /// The arguments are what the kernel takes, the memory they point to is valid for what it does with
    /// it until it has run, and the stream belongs to the device's primary context.
    ///
    /// # Errors
    /// [`CudaError::Launch`].
    ///
    /// # Panics
    /// With more than 24 arguments.
    pub unsafe fn launch(
        &self,
        launch: Launch,
        arguments: impl Arguments,
        stream: RawStream,
    ) -> Result<(), CudaError> {
        if launch.grid.contains(&0) {
            return Ok(());
        }
        let _current = self.device.activate()?;
        let bits = arguments.bits();
        let mut pointers = pointers(bits.as_ref(), bytes_of(&arguments));
        let mut value = [0; 8];
        value[0] = 1;
        let attribute = sys::LaunchAttribute {
            id: sys::ATTRIBUTE_PROGRAMMATIC_SERIALIZATION,
            padding: 0,
            value,
        };
        let config = sys::LaunchConfig {
            grid: launch.grid,
            block: [self.threads, 1, 1],
            shared_bytes: self.shared_bytes,
            stream: stream.handle(),
            attributes: &raw const attribute,
            // Without the attribute the kernel simply starts after its predecessor.
            attribute_count: u32::from(launch.overlaps_predecessor && self.waits),
        };
        // SAFETY: the structures are the driver's (sizes asserted), `pointers` has a place for each
        // parameter; the rest is the caller's promise.
        let code = unsafe {
            sys::cuLaunchKernelEx(
                &raw const config,
                self.function,
                pointers.as_mut_ptr(),
                std::ptr::null_mut(),
            )
        };
        if code == sys::SUCCESS {
            return Ok(());
        }
        Err(CudaError::Launch {
            entry: self.name.clone(),
            grid: launch.grid,
            threads: self.threads,
            shared_bytes: self.shared_bytes,
            code,
            reason: reason(code),
        })
    }

    /// Enqueues at least `threads` threads in x.
    ///
    /// # Safety
    /// As [`Kernel::launch`].
    ///
    /// # Errors
    /// [`CudaError::Launch`].
    pub unsafe fn launch_threads(
        &self,
        threads: u64,
        arguments: impl Arguments,
        stream: RawStream,
    ) -> Result<(), CudaError> {
        let blocks = threads.div_ceil(u64::from(self.threads));
        let launch = Launch {
            grid: [u32::try_from(blocks).unwrap_or(u32::MAX), 1, 1],
            overlaps_predecessor: false,
        };
        // SAFETY: the caller's.
        unsafe { self.launch(launch, arguments, stream) }
    }
}

/// Bytes of each of the arguments.
fn bytes_of<A: Arguments>(_: &A) -> &'static [u32] {
    A::BYTES
}

/// Where the driver finds each argument, of so many bytes. It reads as many as the kernel declares; each begins with a word.
fn pointers(bits: &[u64], bytes: &[u32]) -> [*mut c_void; MAX_ARGUMENTS] {
    assert!(bytes.len() <= MAX_ARGUMENTS, "a kernel takes at most {MAX_ARGUMENTS} arguments");
    let mut pointers = [std::ptr::null_mut(); MAX_ARGUMENTS];
    let mut left = bits;
    for (pointer, bytes) in pointers.iter_mut().zip(bytes) {
        let (own, others) = left.split_at(bytes.div_ceil(8) as usize);
        *pointer = own.as_ptr().cast_mut().cast();
        left = others;
    }
    pointers
}

#[cfg(test)]
mod tests {
    use kernels_gpu::ptx;

    use super::*;

    #[test]
    fn the_driver_finds_every_argument_where_its_pointer_points() {
        let record = ptx::Advance { targets: 0x7f00_dead_beef, count: u32::MAX, lengths: 2 };
        let bits = record.bits();
        let pointers = pointers(bits.as_ref(), ptx::Advance::BYTES);
        // SAFETY: each pointer points to the eight bytes of its argument, which `bits` keeps alive.
        unsafe {
            assert_eq!(pointers[0].cast::<u64>().read(), 0x7f00_dead_beef);
            assert_eq!(pointers[1].cast::<u32>().read(), u32::MAX);
            assert_eq!(pointers[2].cast::<u64>().read(), 2);
        }
        assert!(pointers[3..].iter().all(|pointer| pointer.is_null()));
    }
}
