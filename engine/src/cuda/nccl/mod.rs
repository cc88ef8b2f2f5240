//! NCCL, which is opened at run time.
//!
//! Names and signatures: NCCL user guide, API. One communicator a device, each on a thread or in a process of its own.

mod comm;

use std::ffi::{CStr, c_char, c_int, c_void};
use std::path::{Path, PathBuf};
use std::sync::Once;

use deft::cuda::CudaError;
use libloading::os::unix::{Library, Symbol};

pub(crate) use self::comm::{Comm, Joining};

use super::library::{Lookup, Missing, Wanted};

/// Environment variable that names the library's file, or the folder it is in.
pub const VARIABLE: &str = "DEFT_NCCL";

static WANTED: Wanted =
    Wanted { variable: VARIABLE, file: "libnccl.so", versions: &[2], needs: None };

/// What is set where the environment says nothing of it (NCCL user guide, Environment Variables): NVLink's multicast is
/// off; and ranks are connected when they join, not by the first collective, whose call would wait for a rank that has
/// gone, and nobody could end it.
const SETTINGS: [(&str, &str); 2] = [("NCCL_NVLS_ENABLE", "0"), ("NCCL_RUNTIME_CONNECT", "0")];

/// `NCCL_UNIQUE_ID_BYTES`.
const ID_BYTES: usize = 128;

type Handle = *mut c_void;

/// Names a communicator: one rank makes it, all get it.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub(super) struct Id([u8; ID_BYTES]);

impl Id {
    pub(super) fn bytes(&self) -> &[u8] {
        &self.0
    }

    pub(super) fn from_bytes(bytes: &[u8]) -> Option<Self> {
        Some(Self(*bytes.first_chunk()?))
    }
}

type GetVersion = unsafe extern "C" fn(*mut c_int) -> c_int;
type GetErrorString = unsafe extern "C" fn(c_int) -> *const c_char;
type GetUniqueId = unsafe extern "C" fn(*mut Id) -> c_int;
type InitRank = unsafe extern "C" fn(*mut Handle, c_int, Id, c_int) -> c_int;
type OfComm = unsafe extern "C" fn(Handle) -> c_int;
type AsyncError = unsafe extern "C" fn(Handle, *mut c_int) -> c_int;
type Group = unsafe extern "C" fn() -> c_int;
type AllReduce = unsafe extern "C" fn(
    *const c_void,
    *mut c_void,
    usize,
    c_int,
    c_int,
    Handle,
    *mut c_void,
) -> c_int;
type AllGather =
    unsafe extern "C" fn(*const c_void, *mut c_void, usize, c_int, Handle, *mut c_void) -> c_int;
type Broadcast = unsafe extern "C" fn(
    *const c_void,
    *mut c_void,
    usize,
    c_int,
    c_int,
    Handle,
    *mut c_void,
) -> c_int;

/// Why several GPUs do not run together.
#[non_exhaustive]
#[derive(Debug, thiserror::Error)]
pub enum NcclError {
    /// The library is not on the machine, or cannot be opened.
    #[error(
        "NCCL is not to be had: looked for {looked}. Install it (`pip install nvidia-nccl-cu13` for CUDA 13, \
         `nvidia-nccl-cu12` for CUDA 12) and set {VARIABLE} to the file or its folder if it is not found by itself{}",
        Missing::because(reasons)
    )]
    Missing {
        /// Where it was looked for.
        looked: String,
        /// What the dynamic linker said of files that are there.
        reasons: String,
    },
    /// The library lacks a function.
    #[error("{} has no {function}: it is older than NCCL 2.4, or no NCCL", library.display())]
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
        /// Its status (`ncclResult_t`).
        status: i32,
        /// The status in words.
        reason: String,
    },
    /// The device.
    #[error(transparent)]
    Cuda(#[from] CudaError),
}

impl From<Missing> for NcclError {
    fn from(Missing { looked, reasons }: Missing) -> Self {
        Self::Missing { looked, reasons }
    }
}

/// The library's functions.
#[derive(Debug)]
pub(super) struct Nccl {
    version: i32,
    path: PathBuf,
    words: Symbol<GetErrorString>,
    unique_id: Symbol<GetUniqueId>,
    init_rank: Symbol<InitRank>,
    destroy: Symbol<OfComm>,
    abort: Symbol<OfComm>,
    async_error: Symbol<AsyncError>,
    group_start: Symbol<Group>,
    group_end: Symbol<Group>,
    all_reduce: Symbol<AllReduce>,
    all_gather: Symbol<AllGather>,
    broadcast: Symbol<Broadcast>,
    /// Last, so that it is closed last.
    _library: Library,
}

impl Nccl {
    /// Opens the library, at `path` if it is given.
    ///
    /// # Errors
    /// [`NcclError`].
    pub(super) fn open(path: Option<&Path>) -> Result<Self, NcclError> {
        set_up();
        let lookup = Lookup::new(&WANTED, path, |name| std::env::var_os(name));
        let (library, path) = lookup.open()?;
        macro_rules! function {
            ($name:literal, $kind:ty) => {
                // SAFETY: the library's function of this name has this signature since NCCL 2.4.
                unsafe { library.get::<$kind>(concat!($name, "\0").as_bytes()) }
                    .map_err(|_| NcclError::Function { library: path.clone(), function: $name })?
            };
        }
        let get_version = function!("ncclGetVersion", GetVersion);
        let mut nccl = Self {
            version: 0,
            words: function!("ncclGetErrorString", GetErrorString),
            unique_id: function!("ncclGetUniqueId", GetUniqueId),
            init_rank: function!("ncclCommInitRank", InitRank),
            destroy: function!("ncclCommDestroy", OfComm),
            abort: function!("ncclCommAbort", OfComm),
            async_error: function!("ncclCommGetAsyncError", AsyncError),
            group_start: function!("ncclGroupStart", Group),
            group_end: function!("ncclGroupEnd", Group),
            all_reduce: function!("ncclAllReduce", AllReduce),
            all_gather: function!("ncclAllGather", AllGather),
            broadcast: function!("ncclBroadcast", Broadcast),
            path,
            _library: library,
        };
        // SAFETY: a valid place for one int.
        let status = unsafe { get_version(&mut nccl.version) };
        nccl.check("ncclGetVersion", status)?;
        Ok(nccl)
    }

    /// A new name for a communicator.
    ///
    /// # Errors
    /// [`NcclError::Call`].
    pub(super) fn id(&self) -> Result<Id, NcclError> {
        let mut id = Id([0; ID_BYTES]);
        // SAFETY: a valid place for an id.
        let status = unsafe { (self.unique_id)(&mut id) };
        self.check("ncclGetUniqueId", status).map(|()| id)
    }

    fn check(&self, call: &'static str, status: c_int) -> Result<(), NcclError> {
        if status == 0 {
            return Ok(());
        }
        // SAFETY: any status may be asked about; the answer is a string that is never freed.
        let reason = unsafe { CStr::from_ptr((self.words)(status)) };
        let reason = reason.to_string_lossy().into_owned();
        Err(NcclError::Call { call, status, reason })
    }
}

/// Sets [`SETTINGS`], unless the environment says otherwise; before the library reads them.
fn set_up() {
    static ONCE: Once = Once::new();
    ONCE.call_once(|| {
        for (name, value) in SETTINGS {
            if std::env::var_os(name).is_none() {
                // SAFETY: Rust's own readers of the environment are kept apart from this by the standard library, and of
                // C code only NCCL reads it in this program while models are made, on this thread and later.
                unsafe { std::env::set_var(name, value) };
            }
        }
    });
}

/// Major, minor and patch: `NCCL_VERSION`, which has two digits for the minor number since 2.9.
fn split_version(version: i32) -> (i32, i32, i32) {
    match version {
        ..10_000 => (version / 1000, version / 100 % 10, version % 100),
        _ => (version / 10_000, version / 100 % 100, version % 100),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions_are_split_as_nccl_packs_them() {
        assert_eq!(split_version(2408), (2, 4, 8));
        assert_eq!(split_version(22_809), (2, 28, 9));
    }

    #[test]
    fn a_library_that_is_missing_is_an_error_that_says_where_and_what_to_do() {
        let error = Nccl::open(Some(Path::new("/nowhere/libnccl.so.2"))).unwrap_err();
        let message = error.to_string();
        assert!(message.starts_with("NCCL is not to be had"), "{message}");
        for part in ["/nowhere/libnccl.so.2", "nvidia-nccl", VARIABLE] {
            assert!(message.contains(part), "{message}");
        }
    }

    #[test]
    fn ids_come_back_from_their_bytes() {
        let id = Id(std::array::from_fn(|at| at as u8));
        assert_eq!(Id::from_bytes(id.bytes()).unwrap().bytes(), id.bytes());
        assert!(Id::from_bytes(&[0; ID_BYTES - 1]).is_none());
    }
}
