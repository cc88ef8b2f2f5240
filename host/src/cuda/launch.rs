//! Kernel arguments and launches.

use std::ffi::c_void;

use kernels_gpu::ptx;

use super::error::{check, reason};
use super::sys;
use super::{CudaDevice, CudaError, DevicePtr, RawStream};

/// Most arguments any of our kernels takes.
const MAX_ARGUMENTS: usize = 24;

/// A kernel's arguments, in order. The driver reads as many bytes of each as the kernel declares, so a
/// slot of eight holds any of them.
#[derive(Clone, Debug, Default)]
pub struct Arguments {
    slots: [u64; MAX_ARGUMENTS],
    bytes: [u8; MAX_ARGUMENTS],
    len: usize,
}

impl Arguments {
    fn push(mut self, bits: u64, bytes: u8) -> Self {
        assert!(
            self.len < MAX_ARGUMENTS,
            "a kernel takes at most {MAX_ARGUMENTS} arguments"
        );
        self.slots[self.len] = bits;
        self.bytes[self.len] = bytes;
        self.len += 1;
        self
    }
    /// Adds an address.
    ///
    /// # Panics
    /// With more than 24 arguments.
    #[must_use]
    pub fn pointer(self, pointer: DevicePtr) -> Self {
        self.push(pointer.0, 8)
    }
    /// Adds a 32-bit integer.
    ///
    /// # Panics
    /// With more than 24 arguments.
    #[must_use]
    pub fn word(self, word: u32) -> Self {
        self.push(u64::from(word), 4)
    }
    /// Adds a 64-bit integer.
    ///
    /// # Panics
    /// With more than 24 arguments.
    #[must_use]
    pub fn long(self, long: u64) -> Self {
        self.push(long, 8)
    }
    /// Adds an f32.
    ///
    /// # Panics
    /// With more than 24 arguments.
    #[must_use]
    pub fn float(self, float: f32) -> Self {
        self.push(u64::from(float.to_bits()), 4)
    }
    /// Bytes of each argument, to be compared with what the kernel declares.
    pub fn sizes(&self) -> Vec<u32> {
        self.bytes[..self.len]
            .iter()
            .map(|&b| u32::from(b))
            .collect()
    }
    fn pointers(&mut self) -> [*mut c_void; MAX_ARGUMENTS] {
        std::array::from_fn(|index| (&raw mut self.slots[index]).cast())
    }
}

impl<A: ptx::Arguments> From<A> for Arguments {
    /// A kernel's record, in the kernel's order.
    fn from(record: A) -> Self {
        let bits = record.bits();
        let pairs = bits.as_ref().iter().zip(A::BYTES);
        pairs.fold(Self::default(), |arguments, (&bits, &bytes)| {
            arguments.push(bits, bytes as u8)
        })
    }
}

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
    pub unsafe fn launch(
        &self,
        launch: Launch,
        mut arguments: Arguments,
        stream: RawStream,
    ) -> Result<(), CudaError> {
        if launch.grid.contains(&0) {
            return Ok(());
        }
        let _current = self.device.activate()?;
        let mut pointers = arguments.pointers();
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
        arguments: Arguments,
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

#[cfg(test)]
mod tests {
    use kernels_gpu::ptx::Arguments as _;

    use super::*;

    #[test]
    fn the_driver_finds_every_argument_where_its_pointer_points() {
        let mut arguments = Arguments::default()
            .pointer(DevicePtr(0x7f00_dead_beef))
            .word(u32::MAX)
            .float(-1.5);
        assert_eq!(arguments.sizes(), [8, 4, 4]);
        let pointers = arguments.pointers();
        // SAFETY: each pointer points to the eight bytes of its slot, which `arguments` keeps alive.
        unsafe {
            assert_eq!(pointers[0].cast::<u64>().read(), 0x7f00_dead_beef);
            assert_eq!(pointers[1].cast::<u32>().read(), u32::MAX);
            assert_eq!(pointers[2].cast::<f32>().read(), -1.5);
        }
    }

    #[test]
    fn a_kernels_record_is_passed_in_the_kernels_order() {
        let arguments = Arguments::from(ptx::Advance {
            targets: 1 << 40,
            count: 7,
            lengths: 2,
        });
        assert_eq!(arguments.sizes(), ptx::Advance::BYTES);
        assert_eq!(arguments.slots[..3], [1 << 40, 7, 2]);
    }
}
