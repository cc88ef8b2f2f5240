//! Arrays by DLPack: a pointer with shape and strides, of whoever has `__dlpack__`.

use std::ffi::{c_char, c_void};

use deft_c::Tensor;
use pyo3::exceptions::PyValueError;
use pyo3::prelude::*;
use pyo3::types::{IntoPyDict, PyCapsule};

/// `DLTensor` of `dlpack.h`, version 0; what follows it in a `DLManagedTensor` is not read.
#[repr(C)]
struct DlTensor {
    data: *mut c_void,
    device: [i32; 2],
    ndim: i32,
    /// What the bits mean, how many, lanes.
    kind: u8,
    bits: u8,
    lanes: u16,
    shape: *const i64,
    strides: *const i64,
    byte_offset: u64,
}

const NAME: *const c_char = c"dltensor".as_ptr();
const INTEGER: u8 = 0;
const UNSIGNED: u8 = 1;
const FLOAT: u8 = 2;
const BFLOAT: u8 = 4;

/// An array of the caller's, and what keeps it.
pub(crate) struct Array {
    tensor: Tensor,
    _capsule: Py<PyAny>,
}

impl Array {
    /// The array's tensor, its element type left open, and what its elements are.
    fn read(name: &str, array: &Bound<'_, PyAny>) -> PyResult<(Self, [u8; 2])> {
        let capsule = Self::capsule(array).map_err(|error| {
            PyValueError::new_err(format!("{name} gives no DLPack tensor: {error}"))
        })?;
        let held = capsule.clone().unbind();
        let capsule = capsule.cast::<PyCapsule>()?;
        // SAFETY: a capsule of that name holds a `DLManagedTensor`, which begins with a `DLTensor`; the capsule, which
        // is not renamed, keeps it.
        let tensor = unsafe {
            let pointer = pyo3::ffi::PyCapsule_GetPointer(capsule.as_ptr(), NAME);
            match pointer.cast::<DlTensor>().as_ref() {
                Some(tensor) => tensor,
                None => return Err(PyErr::fetch(array.py())),
            }
        };
        let ndim = tensor.ndim;
        if !(0..=4).contains(&ndim) || tensor.lanes != 1 {
            let text = format!("{name} has {ndim} dimensions; it must have at most 4");
            return Err(PyValueError::new_err(text));
        }
        let (mut shape, mut strides) = ([0; 4], [0; 4]);
        for at in (0..ndim as usize).rev() {
            // SAFETY: both arrays have `ndim` elements; without strides the tensor is contiguous.
            unsafe {
                shape[at] = *tensor.shape.add(at);
                strides[at] = match tensor.strides.is_null() {
                    false => *tensor.strides.add(at),
                    true if at + 1 == ndim as usize => 1,
                    true => shape[at + 1] * strides[at + 1],
                };
            }
        }
        let data = tensor.data.wrapping_byte_add(tensor.byte_offset as usize);
        let [device, device_id] = tensor.device;
        let tensor_of = Tensor { data, device, device_id, dtype: -1, ndim, shape, strides };
        Ok((Self { tensor: tensor_of, _capsule: held }, [tensor.kind, tensor.bits]))
    }

    /// The array's capsule. A GPU's array need not wait for anything: the caller names the stream that it is used on.
    fn capsule<'py>(array: &Bound<'py, PyAny>) -> PyResult<Bound<'py, PyAny>> {
        const NO_WAIT: i32 = -1;
        let (device, _): (i32, i32) = array.call_method0("__dlpack_device__")?.extract()?;
        match device {
            2 => array.call_method(
                "__dlpack__",
                (),
                Some(&[("stream", NO_WAIT)].into_py_dict(array.py())?),
            ),
            _ => array.call_method0("__dlpack__"),
        }
    }

    /// An array of floats. 16-bit integers are taken as bf16 where `dtype` says so, for numpy has none.
    pub(crate) fn tensor(name: &str, array: &Bound<'_, PyAny>, dtype: i32) -> PyResult<Self> {
        let (mut array, kind) = Self::read(name, array)?;
        array.tensor.dtype = match kind {
            [FLOAT, 16] => 0,
            [BFLOAT, 16] => 1,
            [UNSIGNED | INTEGER, 16] if dtype == 1 => 1,
            [FLOAT, 32] => 2,
            [kind, bits] => {
                let text = format!(
                    "{name} has elements of DLPack's kind {kind} and {bits} bits; \
                     they must be float16, bfloat16 or float32"
                );
                return Err(PyValueError::new_err(text));
            }
        };
        Ok(array)
    }

    /// A contiguous array of integers in the host's memory.
    pub(crate) fn integers(
        name: &str,
        array: &Bound<'_, PyAny>,
        ndim: i32,
        bits: u8,
    ) -> PyResult<Self> {
        let (array, kind) = Self::read(name, array)?;
        let Tensor { device, shape, strides, .. } = array.tensor;
        let contiguous = match ndim {
            1 => shape[0] < 2 || strides[0] == 1,
            _ => (shape[1] < 2 || strides[1] == 1) && (shape[0] < 2 || strides[0] == shape[1]),
        };
        let fits = array.tensor.ndim == ndim && matches!(kind[0], INTEGER | UNSIGNED);
        if !fits || kind[1] != bits || device != 1 || !contiguous {
            return Err(PyValueError::new_err(format!(
                "{name} must be {bits}-bit integers of {ndim} dimensions, contiguous, on the CPU"
            )));
        }
        Ok(array)
    }

    pub(crate) fn shape(&self, dim: usize) -> usize {
        self.tensor.shape[dim] as usize
    }

    pub(crate) fn data(&self) -> *const c_void {
        self.tensor.data
    }

    /// The elements of an array that [`Array::integers`] has read as 32-bit.
    pub(crate) fn i32s(&self) -> &[i32] {
        match self.shape(0) {
            0 => &[],
            // SAFETY: contiguous, of 32 bits, kept by the capsule.
            len => unsafe { std::slice::from_raw_parts(self.data().cast(), len) },
        }
    }

    pub(crate) fn as_tensor(&self) -> Tensor {
        self.tensor
    }
}
