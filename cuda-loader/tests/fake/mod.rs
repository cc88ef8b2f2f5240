//! The fake driver, built and loaded in the real one's place.

use std::ffi::{CString, c_char};
use std::path::Path;
use std::process::Command;
use std::sync::{Mutex, MutexGuard, PoisonError};

/// The fake driver's own functions.
#[allow(dead_code, reason = "not every suite uses all of them")]
pub(crate) struct Fake {
    /// Has a call from now on fail with a code: 0 for none, `u64::MAX` for all.
    fail: unsafe extern "C" fn(u64, i32),
    /// Calls since then.
    calls: unsafe extern "C" fn() -> u64,
    calls_of: unsafe extern "C" fn(*const c_char) -> u64,
    /// What is called when kernels run: name, blocks in x, arguments.
    pub(crate) kernels: unsafe extern "C" fn(extern "C" fn(*const c_char, u32, *const u64, usize)),
    /// Objects that were made and not destroyed.
    live: unsafe extern "C" fn() -> usize,
    /// Bytes copied in either direction.
    pub(crate) bytes: unsafe extern "C" fn() -> u64,
    /// Uses of what is not there.
    misuse: unsafe extern "C" fn() -> u64,
    failed: unsafe extern "C" fn(*mut u8, usize) -> usize,
    limit: unsafe extern "C" fn(usize),
    mapped: unsafe extern "C" fn() -> usize,
    /// The driver is one for all tests of a process.
    _alone: MutexGuard<'static, ()>,
}

#[allow(dead_code, reason = "not every suite uses all of them")]
impl Fake {
    /// Loads the fake driver. Whoever opens `libcuda.so.1` in this process later gets it too: the dynamic
    /// linker knows a library that is loaded by the name it gives itself.
    pub(crate) fn load(folder: &Path) -> Self {
        static ALONE: Mutex<()> = Mutex::new(());
        let alone = ALONE.lock().unwrap_or_else(PoisonError::into_inner);
        let path = folder.join("libcuda.so.1");
        static BUILT: std::sync::Once = std::sync::Once::new();
        BUILT.call_once(|| build(&path));
        // SAFETY: the library has no initialisers; the signatures are its own.
        unsafe {
            let library = libloading::Library::new(&path).expect("the fake driver loads");
            let fake = Self {
                fail: *library.get("fake_fail").unwrap(),
                calls: *library.get("fake_calls").unwrap(),
                calls_of: *library.get("fake_calls_of").unwrap(),
                kernels: *library.get("fake_kernels").unwrap(),
                live: *library.get("fake_live").unwrap(),
                bytes: *library.get("fake_bytes").unwrap(),
                misuse: *library.get("fake_misuse").unwrap(),
                failed: *library.get("fake_failed").unwrap(),
                limit: *library.get("fake_limit").unwrap(),
                mapped: *library.get("fake_mapped").unwrap(),
                _alone: alone,
            };
            std::mem::forget(library);
            fake
        }
    }

    /// As `fail`.
    pub(crate) fn fail_from_now(&self, call: u64, code: i32) {
        // SAFETY: takes any numbers.
        unsafe { (self.fail)(call, code) };
    }
    /// As `live`.
    pub(crate) fn live_objects(&self) -> usize {
        // SAFETY: takes nothing.
        unsafe { (self.live)() }
    }
    /// As `calls`.
    pub(crate) fn calls_made(&self) -> u64 {
        // SAFETY: takes nothing.
        unsafe { (self.calls)() }
    }
    /// As `misuse`.
    pub(crate) fn misused(&self) -> u64 {
        // SAFETY: takes nothing.
        unsafe { (self.misuse)() }
    }

    /// Calls of this name since the last `fail`.
    pub(crate) fn calls_named(&self, name: &str) -> u64 {
        let name = CString::new(name).unwrap();
        // SAFETY: a text.
        unsafe { (self.calls_of)(name.as_ptr()) }
    }

    /// As `limit`.
    pub(crate) fn limit_memory(&self, bytes: usize) {
        // SAFETY: takes any number.
        unsafe { (self.limit)(bytes) };
    }
    /// As `mapped`.
    pub(crate) fn mapped_bytes(&self) -> usize {
        // SAFETY: takes nothing.
        unsafe { (self.mapped)() }
    }

    /// The call that failed last.
    pub(crate) fn failed(&self) -> String {
        let mut name = vec![0; 64];
        // SAFETY: a place for as many bytes as are said.
        let len = unsafe { (self.failed)(name.as_mut_ptr(), name.len()) };
        name.truncate(len);
        String::from_utf8(name).unwrap()
    }
}

fn build(path: &Path) {
    let folders = Path::new(env!("CARGO_MANIFEST_DIR")).ancestors();
    let mut sources = folders.map(|folder| folder.join("cuda-loader/tests/fake/driver.rs"));
    let source = sources.find(|file| file.exists()).expect("the fake driver's source");
    let built = Command::new(std::env::var_os("RUSTC").unwrap_or_else(|| "rustc".into()))
        .args(["--edition=2024", "--crate-type=cdylib", "-Copt-level=1"])
        .arg("-Clink-arg=-Wl,-soname,libcuda.so.1")
        .arg("-o")
        .arg(path)
        .arg(source)
        .output()
        .expect("rustc runs");
    assert!(built.status.success(), "{}", String::from_utf8_lossy(&built.stderr));
}
