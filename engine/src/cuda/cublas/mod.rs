//! Matrix products by cuBLAS, which is opened at run time.
//!
//! `cublasGemmEx` alone: its heuristics serve the skinny products of a decode step, and cublasLt would
//! ask every caller for an algorithm. Names and signatures: cuBLAS library reference.

mod product;

use std::ffi::{CStr, c_char, c_int, c_void};
use std::path::{Path, PathBuf};

use deft::DType;
use deft::cuda::{CudaDevice, CudaError, DeviceBuffer, RawStream};
use libloading::os::unix::{Library, Symbol};

pub(crate) use self::product::{Product, Sums};

use super::library::{Lookup, Missing, Wanted};

/// Environment variable that names the library's file, or the folder it is in.
pub const VARIABLE: &str = "DEFT_CUBLAS";

pub(super) static WANTED: Wanted = Wanted {
    variable: VARIABLE,
    file: "libcublas.so",
    versions: &[13, 12, 11],
    needs: Some("libcublasLt.so"),
};

/// Memory that cuBLAS may use: what it takes by itself on Hopper. Given by us, nothing is allocated while a
/// graph is captured.
const WORKSPACE_BYTES: usize = 32 << 20;

const OP_N: c_int = 0;
const OP_T: c_int = 1;
/// `CUBLAS_COMPUTE_32F`.
const COMPUTE_F32: c_int = 68;
/// `CUBLAS_GEMM_DEFAULT`.
const ALGORITHM: c_int = -1;
/// `CUBLAS_MATH_DISALLOW_REDUCED_PRECISION_REDUCTION`: sums over parts of a product are f32 too.
const MATH_MODE: c_int = 16;

type Handle = *mut c_void;
type Create = unsafe extern "C" fn(*mut Handle) -> c_int;
type Destroy = unsafe extern "C" fn(Handle) -> c_int;
type SetStream = unsafe extern "C" fn(Handle, *mut c_void) -> c_int;
type SetWorkspace = unsafe extern "C" fn(Handle, *mut c_void, usize) -> c_int;
type SetMathMode = unsafe extern "C" fn(Handle, c_int) -> c_int;
type GetVersion = unsafe extern "C" fn(Handle, *mut c_int) -> c_int;
type GetStatusString = unsafe extern "C" fn(c_int) -> *const c_char;
type GemmEx = unsafe extern "C" fn(
    Handle,
    c_int,
    c_int,
    c_int,
    c_int,
    c_int,
    *const c_void,
    *const c_void,
    c_int,
    c_int,
    *const c_void,
    c_int,
    c_int,
    *const c_void,
    *mut c_void,
    c_int,
    c_int,
    c_int,
    c_int,
) -> c_int;

/// Why a matrix product is not to be had.
#[non_exhaustive]
#[derive(Debug, thiserror::Error)]
pub enum CublasError {
    /// The library is not on the machine, or cannot be opened.
    #[error(
        "cuBLAS is not to be had: looked for {looked}. Install it (`pip install nvidia-cublas` for CUDA 13, \
         `nvidia-cublas-cu12` for CUDA 12, or the CUDA toolkit) and set {VARIABLE} to the file or its folder \
         if it is not found by itself{}",
        Missing::because(reasons)
    )]
    Missing {
        /// Where it was looked for.
        looked: String,
        /// What the dynamic linker said of files that are there.
        reasons: String,
    },
    /// The library lacks a function.
    #[error("{} has no {function}: it is older than cuBLAS 11, or no cuBLAS", library.display())]
    Function {
        /// The library's file.
        library: PathBuf,
        /// The function.
        function: &'static str,
    },
    /// A call was refused or failed.
    #[error("{call} failed with {status} ({reason})")]
    Call {
        /// The function.
        call: &'static str,
        /// Its status (`cublasStatus_t`).
        status: i32,
        /// The status in words.
        reason: String,
    },
    /// The device.
    #[error(transparent)]
    Cuda(#[from] CudaError),
}

impl From<Missing> for CublasError {
    fn from(Missing { looked, reasons }: Missing) -> Self {
        Self::Missing { looked, reasons }
    }
}

/// The library's functions.
#[derive(Debug)]
struct Functions {
    destroy: Symbol<Destroy>,
    gemm: Symbol<GemmEx>,
    status: Option<Symbol<GetStatusString>>,
    /// Last, so that it is closed last.
    _library: Library,
}

/// A cuBLAS handle that enqueues on one stream.
#[derive(Debug)]
pub(crate) struct Cublas {
    device: CudaDevice,
    handle: Handle,
    functions: Functions,
    workspace: DeviceBuffer<u8>,
    version: i32,
    path: PathBuf,
}

// SAFETY: a handle may move between threads as long as one at a time uses it (cuBLAS library reference,
// "Thread Safety"); `Cublas` is not `Sync`.
unsafe impl Send for Cublas {}

impl Cublas {
    /// Opens the library, at `path` if it is given, and makes a handle for `stream`.
    ///
    /// # Safety
    /// `stream` is a stream of the device's primary context that outlives the handle.
    ///
    /// # Errors
    /// [`CublasError`].
    pub(crate) unsafe fn new(
        device: &CudaDevice,
        path: Option<&Path>,
        stream: RawStream,
    ) -> Result<Self, CublasError> {
        let lookup = Lookup::new(&WANTED, path, |name| std::env::var_os(name));
        let (library, path) = lookup.open()?;
        let missing = |function| CublasError::Function { library: path.clone(), function };
        macro_rules! function {
            ($name:literal, $kind:ty) => {
                // SAFETY: the library's function of this name has this signature since cuBLAS 11.
                unsafe { library.get::<$kind>(concat!($name, "\0").as_bytes()) }
                    .map_err(|_| missing($name))
            };
        }
        let create = function!("cublasCreate_v2", Create)?;
        let set_stream = function!("cublasSetStream_v2", SetStream)?;
        let set_workspace = function!("cublasSetWorkspace_v2", SetWorkspace)?;
        let set_math_mode = function!("cublasSetMathMode", SetMathMode)?;
        let get_version = function!("cublasGetVersion_v2", GetVersion)?;
        let functions = Functions {
            destroy: function!("cublasDestroy_v2", Destroy)?,
            gemm: function!("cublasGemmEx", GemmEx)?,
            status: function!("cublasGetStatusString", GetStatusString).ok(),
            _library: library,
        };
        let workspace = DeviceBuffer::uninitialized(device, "cuBLAS workspace", WORKSPACE_BYTES)?;
        let mut handle = std::ptr::null_mut();
        // SAFETY: a valid place for one handle; the device's context is current.
        let created = device.scoped(|| unsafe { create(&mut handle) })?;
        functions.check("cublasCreate", created)?;
        let mut cublas =
            Self { device: device.clone(), handle, functions, workspace, version: 0, path };
        let memory = cublas.workspace.pointer().0 as *mut c_void;
        let stream = stream.0 as *mut c_void;
        let version = &mut cublas.version;
        let calls = device.scoped(|| {
            // SAFETY: a live handle, a stream of the context that is current (the caller's promise), memory that the
            // handle's owner keeps, and a valid place for one int. The stream comes first: setting it takes
            // the workspace back.
            unsafe {
                [
                    ("cublasSetStream", set_stream(handle, stream)),
                    ("cublasSetWorkspace", set_workspace(handle, memory, WORKSPACE_BYTES)),
                    ("cublasSetMathMode", set_math_mode(handle, MATH_MODE)),
                    ("cublasGetVersion", get_version(handle, version)),
                ]
            }
        })?;
        for (call, status) in calls {
            cublas.functions.check(call, status)?;
        }
        Ok(cublas)
    }

    /// Enqueues a product.
    ///
    /// # Safety
    /// The product's matrices are valid for their shapes, 16-byte aligned and apart until the work is done.
    ///
    /// # Errors
    /// [`CublasError::Call`].
    pub(crate) unsafe fn multiply(&self, product: &Product) -> Result<(), CublasError> {
        let call = product.column_major();
        let op = |transpose| if transpose { OP_T } else { OP_N };
        let input = data_type(product.dtype);
        let output = match product.into {
            Sums::Half => input,
            Sums::F32 | Sums::Added => data_type(DType::F32),
        };
        let (one, [a, b, c]) = (1.0f32, [product.w, product.x, product.y].map(|at| at.0));
        // SAFETY: a live handle; factors are read before the call returns (the pointer mode is the host's); the
        // matrices are the caller's promise, and the mapping to columns is tested.
        let status = self.device.scoped(|| unsafe {
            (self.functions.gemm)(
                self.handle,
                op(call.transpose_a),
                op(call.transpose_b),
                call.m,
                call.n,
                call.k,
                (&raw const one).cast(),
                a as *const c_void,
                input,
                call.lda,
                b as *const c_void,
                input,
                call.ldb,
                (&raw const call.beta).cast(),
                c as *mut c_void,
                output,
                call.ldc,
                COMPUTE_F32,
                ALGORITHM,
            )
        })?;
        self.functions.check("cublasGemmEx", status)
    }

    /// Version and file.
    pub(crate) fn describe(&self) -> String {
        let (major, minor, patch) = split_version(self.version);
        format!("cuBLAS {major}.{minor}.{patch} ({})", self.path.display())
    }

    /// Bytes of device memory.
    pub(crate) fn memory_bytes(&self) -> u64 {
        self.workspace.len() as u64
    }
}

impl Functions {
    fn check(&self, call: &'static str, status: c_int) -> Result<(), CublasError> {
        if status == 0 {
            return Ok(());
        }
        let words = self.status.as_ref().map(|function| {
            // SAFETY: any status may be asked about; the answer is a string that is never freed.
            unsafe { CStr::from_ptr(function(status)) }.to_string_lossy().into_owned()
        });
        Err(CublasError::Call {
            call,
            status,
            reason: words.unwrap_or_else(|| "an older cuBLAS does not say why".to_owned()),
        })
    }
}

impl Drop for Cublas {
    fn drop(&mut self) {
        // SAFETY: our own handle, destroyed once. A failure means that the context is lost.
        let _ = self.device.scoped(|| unsafe { (self.functions.destroy)(self.handle) });
    }
}

/// `cudaDataType`: `CUDA_R_16F`, `CUDA_R_16BF` and `CUDA_R_32F`.
fn data_type(dtype: DType) -> c_int {
    match dtype {
        DType::F16 => 2,
        DType::Bf16 => 14,
        _ => 0,
    }
}

/// Major, minor and patch: `CUBLAS_VER_MAJOR * 10000 + CUBLAS_VER_MINOR * 100 + CUBLAS_VER_PATCH`.
fn split_version(version: i32) -> (i32, i32, i32) {
    (version / 10_000, version / 100 % 100, version % 100)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_library_that_is_missing_is_an_error_that_says_where_and_what_to_do() {
        let path = Path::new("/nowhere/libcublas.so.12");
        let missing = Lookup::new(&WANTED, Some(path), |_| None).open().unwrap_err();
        let message = CublasError::from(missing).to_string();
        assert!(message.starts_with("cuBLAS is not to be had"), "{message}");
        for part in ["/nowhere/libcublas.so.12", "nvidia-cublas", VARIABLE] {
            assert!(message.contains(part), "{message}");
        }
    }

    #[test]
    fn versions_are_split_as_cublas_packs_them() {
        assert_eq!(split_version(120_304), (12, 3, 4));
        assert_eq!(split_version(130_002), (13, 0, 2));
    }
}
