//! Tensors of the caller's, and the slices that they become.

use std::ffi::c_void;
use std::ops::Range;

use deft::cache::{Elements, ElementsMut, KvElement};
use deft::cuda::{DevicePtr, DeviceRows, RawStream};
use deft::{DType, Rows, RowsMut};

use crate::device::Device;
use crate::error::{Error, refuse};

/// `deft_tensor`: a tensor of up to four dimensions.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct Tensor {
    /// The first element.
    pub data: *mut c_void,
    /// DLPack's number: 1 for the host's memory, 2 for a GPU's.
    pub device: i32,
    /// Which GPU, as the driver counts; not read for the host's memory.
    pub device_id: i32,
    /// 0 f16, 1 bf16, 2 f32.
    pub dtype: i32,
    /// Dimensions that are used.
    pub ndim: i32,
    /// Elements of each dimension.
    pub shape: [i64; 4],
    /// Elements from one of a dimension to the next.
    pub strides: [i64; 4],
}

/// An element type by its number.
///
/// # Errors
/// For a number of none.
pub fn dtype(code: i32) -> Result<DType, Error> {
    [DType::F16, DType::Bf16, DType::F32]
        .get(usize::try_from(code).unwrap_or(usize::MAX))
        .copied()
        .ok_or_else(|| Error(format!("dtype is {code}; it must be 0 (f16), 1 (bf16) or 2 (f32)")))
}

/// Runs an expression with `$type` as the element type.
macro_rules! typed {
    ($dtype:expr, $type:ident => $run:expr) => {
        match $dtype {
            deft::DType::F16 => {
                type $type = deft::f16;
                $run
            }
            deft::DType::Bf16 => {
                type $type = deft::bf16;
                $run
            }
            _ => {
                type $type = f32;
                $run
            }
        }
    };
}
pub(crate) use typed;

impl Tensor {
    /// Where it is.
    pub(crate) fn device(&self, name: &str) -> Result<Device, Error> {
        match (self.device, u32::try_from(self.device_id)) {
            (1, _) => Ok(Device::Cpu),
            (2, Ok(gpu)) => Ok(Device::Cuda(gpu)),
            (2, Err(_)) => {
                refuse!("{name}.device_id is {}; it must be a GPU's number", self.device_id)
            }
            (other, _) => refuse!("{name}.device is {other}; it must be 1 (CPU) or 2 (CUDA)"),
        }
    }

    /// Checks dimensions, strides and alignment; elements from the first to the last.
    pub(crate) fn check(&self, name: &str, shape: &[(&str, Option<u64>)]) -> Result<usize, Error> {
        let names: Vec<&str> = shape.iter().map(|dim| dim.0).collect();
        let names = names.join(", ");
        let (ndim, expected) = (self.ndim, shape.len());
        if ndim != expected as i32 {
            return refuse!("{name} has {ndim} dimensions; it must have {expected}, [{names}]");
        }
        let mut reach = Some(1i64);
        for (at, (dim, expected)) in shape.iter().enumerate() {
            let (len, stride) = (self.shape[at], self.strides[at]);
            match expected {
                Some(expected) if u64::try_from(len) != Ok(*expected) => {
                    return refuse!("{name}.shape[{at}] is {len}; it must be {expected}, {dim}");
                }
                _ if len < 0 => {
                    return refuse!("{name}.shape[{at}] is {len}; it must not be negative");
                }
                _ => {}
            }
            if stride < 0 {
                return refuse!("{name}.strides[{at}] is {stride}; it must not be negative");
            }
            if at + 1 == shape.len() && stride != 1 && len > 1 {
                return refuse!(
                    "{name}.strides[{at}] is {stride}; it must be 1, rows are contiguous"
                );
            }
            let last = (len - 1).max(0).checked_mul(stride);
            reach = reach.zip(last).and_then(|(reach, last)| reach.checked_add(last));
        }
        if self.shape[..expected].contains(&0) {
            return Ok(0);
        }
        let size = dtype(self.dtype)?.bytes();
        let Some(reach) = reach.filter(|reach| *reach < isize::MAX as i64 / size as i64) else {
            return refuse!("{name}.strides reach beyond the address space");
        };
        let address = self.data.addr();
        if address == 0 {
            return refuse!("{name}.data is NULL");
        }
        if !address.is_multiple_of(size) {
            return refuse!("{name}.data is at {address:#x}; it must be a multiple of {size}");
        }
        Ok(reach as usize)
    }

    /// As [`Tensor::check`] where nothing lies between rows.
    pub(crate) fn check_rows(
        &self,
        name: &str,
        shape: &[(&str, Option<u64>)],
    ) -> Result<usize, Error> {
        let elements = self.check(name, shape)?;
        let mut expected = 1;
        for at in (0..shape.len()).rev() {
            let (len, stride) = (self.shape[at], self.strides[at]);
            if len > 1 && elements > 0 && stride != expected {
                return refuse!(
                    "{name}.strides[{at}] is {stride}; it must be {expected}: it is contiguous"
                );
            }
            expected *= len;
        }
        Ok(elements)
    }

    /// Bytes that it reaches over.
    fn bytes(&self, elements: usize) -> Range<usize> {
        let begin = self.data.addr();
        begin..begin + elements * dtype(self.dtype).map_or(0, DType::bytes)
    }

    /// Whether what is written has memory of its own.
    pub(crate) fn check_apart(&self, name: &str, others: &[(&str, &Self)]) -> Result<(), Error> {
        let reach = |tensor: &Self| {
            let dims = 0..tensor.ndim.clamp(0, 4) as usize;
            let last = dims.map(|at| (tensor.shape[at] - 1).max(0) * tensor.strides[at]);
            tensor.bytes(last.sum::<i64>() as usize + 1)
        };
        let written = reach(self);
        for (other, tensor) in others {
            let read = reach(tensor);
            if written.start < read.end && read.start < written.end {
                return refuse!("{name} and {other} share memory; what is written has its own");
            }
        }
        Ok(())
    }

    /// A tensor from its first element to its last.
    ///
    /// # Safety
    /// Its memory is valid for `'a` and not written meanwhile; on a GPU that of [`DeviceRows::new`].
    pub(crate) unsafe fn elements<'a>(
        &self,
        name: &str,
        shape: &[(&str, Option<u64>)],
        stream: usize,
    ) -> Result<Elements<'a>, Error> {
        let len = self.check(name, shape)?;
        let (device, dtype) = (self.device(name)?, dtype(self.dtype)?);
        // SAFETY: the caller's; the extent was checked.
        Ok(unsafe {
            typed!(dtype, T => match device {
                Device::Cpu => <T as KvElement>::elements(self.slice(len)),
                Device::Cuda(_) => self.on_gpu::<T>(len, stream).elements(),
            })
        })
    }

    /// As [`Tensor::elements`], contiguous.
    ///
    /// # Safety
    /// As [`Tensor::elements`].
    pub(crate) unsafe fn contiguous<'a>(
        &self,
        name: &str,
        shape: &[(&str, Option<u64>)],
        stream: usize,
    ) -> Result<Elements<'a>, Error> {
        self.check_rows(name, shape)?;
        // SAFETY: the caller's.
        unsafe { self.elements(name, shape, stream) }
    }

    /// As [`Tensor::contiguous`], to be written.
    ///
    /// # Safety
    /// Its memory is valid for `'a` and nobody else's meanwhile; on a GPU that of [`DeviceRows::new`].
    pub(crate) unsafe fn contiguous_mut<'a>(
        &self,
        name: &str,
        shape: &[(&str, Option<u64>)],
        stream: usize,
    ) -> Result<ElementsMut<'a>, Error> {
        let len = self.check_rows(name, shape)?;
        let (device, dtype) = (self.device(name)?, dtype(self.dtype)?);
        // SAFETY: the caller's; the extent was checked.
        Ok(unsafe {
            typed!(dtype, T => match device {
                Device::Cpu => <T as KvElement>::elements_mut(self.slice_mut(len)),
                Device::Cuda(_) => self.on_gpu::<T>(len, stream).elements_mut(),
            })
        })
    }

    /// Contiguous rows, wherever they are.
    ///
    /// # Safety
    /// As [`Tensor::contiguous`]; on a GPU that of [`DeviceRows::new`].
    pub(crate) unsafe fn rows<'a, T: KvElement>(
        &self,
        name: &str,
        shape: &[(&str, Option<u64>)],
        stream: usize,
    ) -> Result<Rows<'a, T>, Error> {
        let len = self.check_typed::<T>(name, shape)?;
        // SAFETY: the caller's; extent and type were checked.
        unsafe {
            Ok(match self.device(name)? {
                Device::Cpu => Rows::Host(self.slice(len)),
                Device::Cuda(_) => Rows::Device(self.on_gpu(len, stream)),
            })
        }
    }

    /// As [`Tensor::rows`], to be written.
    ///
    /// # Safety
    /// As [`Tensor::contiguous_mut`]; on a GPU that of [`DeviceRows::new`].
    pub(crate) unsafe fn rows_mut<'a, T: KvElement>(
        &self,
        name: &str,
        shape: &[(&str, Option<u64>)],
        stream: usize,
    ) -> Result<RowsMut<'a, T>, Error> {
        let len = self.check_typed::<T>(name, shape)?;
        // SAFETY: the caller's; extent and type were checked.
        unsafe {
            Ok(match self.device(name)? {
                Device::Cpu => RowsMut::Host(self.slice_mut(len)),
                Device::Cuda(_) => RowsMut::Device(self.on_gpu(len, stream)),
            })
        }
    }

    fn check_typed<T: KvElement>(
        &self,
        name: &str,
        shape: &[(&str, Option<u64>)],
    ) -> Result<usize, Error> {
        let (found, expected) = (dtype(self.dtype)?, T::DTYPE);
        if found != expected {
            return refuse!("{name} is {found}, the cache holds {expected}");
        }
        self.check_rows(name, shape)
    }

    /// # Safety
    /// `len` elements are valid for `'a`, and of type `T`.
    unsafe fn slice<'a, T>(&self, len: usize) -> &'a [T] {
        match len {
            0 => &[],
            // SAFETY: the caller's.
            _ => unsafe { std::slice::from_raw_parts(self.data.cast(), len) },
        }
    }

    /// # Safety
    /// As [`Tensor::slice`], and nobody else's.
    unsafe fn slice_mut<'a, T>(&self, len: usize) -> &'a mut [T] {
        match len {
            0 => &mut [],
            // SAFETY: the caller's.
            _ => unsafe { std::slice::from_raw_parts_mut(self.data.cast(), len) },
        }
    }

    /// # Safety
    /// That of [`DeviceRows::new`].
    unsafe fn on_gpu<T: KvElement>(&self, len: usize, stream: usize) -> DeviceRows<T> {
        // SAFETY: the caller's.
        unsafe { DeviceRows::new(DevicePtr(self.data.addr() as u64), len, RawStream(stream)) }
    }
}
