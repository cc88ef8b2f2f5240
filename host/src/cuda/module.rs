//! Kernels by name: found in the embedded PTX, compiled by the driver when first asked for.

use std::borrow::Cow;
use std::collections::HashMap;
use std::ffi::{CString, c_void};
use std::sync::{Arc, Mutex, PoisonError};

use super::error::{check, reason};
use super::images::{self, Image};
use super::launch::Kernel;
use super::{Arch, CudaDevice, CudaError, sys};

/// Shared memory a block gets without asking.
const DEFAULT_SHARED_BYTES: u32 = 48 << 10;
const LOG_BYTES: usize = 16 << 10;

/// The kernels of one device. They are the embedded ones that suit the device, unless a text of the
/// user's own was put in their place.
#[derive(Debug)]
pub(super) struct ModuleTable {
    capability: (i32, i32),
    state: Mutex<State>,
}

#[derive(Debug)]
struct State {
    /// The embedded kernels' architecture.
    arch: Arch,
    /// Texts of the user's own, the last first.
    own: Vec<Arc<Image>>,
    embedded: Vec<Arc<Image>>,
    kernels: HashMap<String, Loaded>,
    replaced: Vec<Loaded>,
}

#[derive(Clone, Debug)]
struct Loaded {
    module: sys::Handle,
    function: sys::Handle,
    threads: u32,
    shared_bytes: u32,
    waits: bool,
    parameters: Vec<u32>,
}

// SAFETY: module and function handles may be used from any thread; the map is behind a mutex.
unsafe impl Send for ModuleTable {}
// SAFETY: as above.
unsafe impl Sync for ModuleTable {}

impl ModuleTable {
    pub(super) fn new(capability: (i32, i32)) -> Self {
        Self {
            capability,
            state: Mutex::new(State {
                arch: images::arch_of(capability),
                own: Vec::new(),
                embedded: Vec::new(),
                kernels: HashMap::new(),
                replaced: Vec::new(),
            }),
        }
    }

    fn use_ptx(&self, label: &str, text: String) -> Result<(), CudaError> {
        let image = Image::new(label.to_owned(), Cow::Owned(text))?;
        let mut state = self.lock();
        state.forget_kernels();
        state.own.insert(0, Arc::new(image));
        Ok(())
    }

    fn use_arch(&self, arch: Arch) -> Result<(), CudaError> {
        let target = arch.name().trim_start_matches("sm_");
        check_target(target, self.capability).map_err(|problem| CudaError::Image {
            image: "the embedded PTX".to_owned(),
            problem,
        })?;
        let mut state = self.lock();
        state.forget_kernels();
        state.embedded.clear();
        state.arch = arch;
        Ok(())
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn image(&self, state: &mut State, entry: &str) -> Result<Arc<Image>, CudaError> {
        let has = |image: &&Arc<Image>| image.index.entries.contains_key(entry);
        if let Some(image) = state.own.iter().chain(&state.embedded).find(has) {
            return Ok(image.clone());
        }
        let image = Arc::new(Image::embedded(entry, state.arch)?);
        state.embedded.push(image.clone());
        Ok(image)
    }

    /// Unloads everything. The context must be current, and no kernel be in use.
    pub(super) fn unload(&mut self) {
        let mut state = self.lock();
        let kernels = std::mem::take(&mut state.kernels);
        for loaded in kernels.into_values().chain(state.replaced.drain(..)) {
            // SAFETY: the module was loaded by this table and is unloaded once; a failure means that
            // the context is lost, and the module with it.
            unsafe { sys::cuModuleUnload(loaded.module) };
        }
    }
}

impl State {
    /// Has kernels looked up anew. Former ones may be in use, so they stay loaded as long as the device is open.
    fn forget_kernels(&mut self) {
        let replaced = std::mem::take(&mut self.kernels);
        self.replaced.extend(replaced.into_values());
    }
}

impl CudaDevice {
    /// Takes kernels that `text` has from there from now on, in place of the embedded ones. `label` names
    /// the text in errors.
    ///
    /// # Errors
    /// [`CudaError::Image`] if the text is no PTX.
    pub fn use_ptx(&self, label: &str, text: String) -> Result<(), CudaError> {
        self.modules().use_ptx(label, text)
    }

    /// Takes the embedded kernels for `arch` from now on: every device runs those for [`Arch::Sm80`], and its own are
    /// what is taken anyway.
    ///
    /// # Errors
    /// [`CudaError::Image`] if the device does not run them.
    pub fn use_arch(&self, arch: Arch) -> Result<(), CudaError> {
        self.modules().use_arch(arch)
    }

    /// The architecture of the kernels that are taken.
    pub fn arch(&self) -> Arch {
        self.modules().lock().arch
    }

    /// The kernel `name`, compiled now if it was not used before. `parameters` are the bytes of each
    /// argument that the caller passes.
    ///
    /// # Errors
    /// [`CudaError::NoSuchEntry`], [`CudaError::Parameters`], [`CudaError::Image`], [`CudaError::Jit`],
    /// [`CudaError::Driver`].
    pub fn kernel(&self, name: &str, parameters: &[u32]) -> Result<Kernel, CudaError> {
        let table = self.modules();
        let mut state = table.lock();
        let image = table.image(&mut state, name)?;
        let loaded = match state.kernels.get(name) {
            Some(loaded) => loaded.clone(),
            None => {
                let loaded = self.load(&image, name, state.arch)?;
                state.kernels.insert(name.to_owned(), loaded.clone());
                loaded
            }
        };
        if loaded.parameters != parameters {
            return Err(CudaError::Parameters {
                entry: name.to_owned(),
                image: image.label.clone(),
                found: loaded.parameters,
                passed: parameters.to_vec(),
            });
        }
        Ok(Kernel {
            device: self.clone(),
            function: loaded.function,
            name: name.to_owned(),
            threads: loaded.threads,
            shared_bytes: loaded.shared_bytes,
            waits: loaded.waits,
        })
    }

    fn load(&self, image: &Image, name: &str, arch: Arch) -> Result<Loaded, CudaError> {
        let entry = image.entry(name)?;
        let wrong = |problem: String| CudaError::Image { image: image.label.clone(), problem };
        check_target(&image.index.target, self.capability()).map_err(wrong)?;
        let threads =
            entry.threads.ok_or_else(|| wrong(format!("entry {name} states no .maxntid")))?;
        let shared_bytes = images::shared_bytes(name, entry, arch);
        if shared_bytes > self.shared_per_block() {
            return Err(wrong(format!(
                "entry {name} needs {shared_bytes} bytes of shared memory a block; {} has {}",
                self.name(),
                self.shared_per_block()
            )));
        }
        let text = image.index.extract(&image.text, entry);
        let text = CString::new(text).map_err(|e| wrong(e.to_string()))?;
        let symbol = CString::new(name).map_err(|e| wrong(e.to_string()))?;
        let _current = self.activate()?;
        let module = compile(&text).map_err(|(code, log)| CudaError::Jit {
            entry: name.into(),
            image: image.label.as_str().into(),
            code,
            reason: reason(code).into(),
            log: log.into(),
        })?;
        let function = find_function(module, &symbol, shared_bytes).inspect_err(|_| {
            // SAFETY: the module just loaded, which nobody knows yet.
            unsafe { sys::cuModuleUnload(module) };
        })?;
        Ok(Loaded {
            module,
            function,
            threads,
            shared_bytes,
            waits: entry.waits,
            parameters: entry.parameters.clone(),
        })
    }
}

/// Whether PTX for `sm_<target>` runs on a device (PTX ISA, ".target": plain targets run on later devices,
/// those with an `a` on no other).
fn check_target(target: &str, (major, minor): (i32, i32)) -> Result<(), String> {
    let device = major * 10 + minor;
    let runs = match target.strip_suffix('a') {
        Some(number) => number.parse() == Ok(device),
        None => target.parse::<i32>().is_ok_and(|number| number <= device),
    };
    if runs {
        return Ok(());
    }
    Err(format!("it is PTX for sm_{target}, the device is sm_{device}"))
}

/// Has the driver compile `text`; the error is its code and log.
fn compile(text: &CString) -> Result<sys::Handle, (i32, String)> {
    let mut errors = vec![0u8; LOG_BYTES];
    let mut names = [sys::JIT_ERROR_LOG, sys::JIT_ERROR_LOG_BYTES];
    let mut values: [*mut c_void; 2] = [errors.as_mut_ptr().cast(), LOG_BYTES as *mut c_void];
    let mut module = std::ptr::null_mut();
    // SAFETY: NUL-terminated PTX, a valid place for one handle, and two options whose values are a buffer
    // and its size (the driver takes the size by value).
    let code = unsafe {
        sys::cuModuleLoadDataEx(
            &mut module,
            text.as_ptr().cast(),
            names.len() as u32,
            names.as_mut_ptr(),
            values.as_mut_ptr(),
        )
    };
    if code == sys::SUCCESS {
        return Ok(module);
    }
    let end = errors.iter().position(|&byte| byte == 0).unwrap_or(LOG_BYTES);
    let log = String::from_utf8_lossy(&errors[..end]).trim().to_owned();
    let log = if log.is_empty() { "the driver left no log".to_owned() } else { log };
    Err((code, log))
}

fn find_function(
    module: sys::Handle,
    name: &CString,
    shared_bytes: u32,
) -> Result<sys::Handle, CudaError> {
    let mut function = std::ptr::null_mut();
    // SAFETY: a live module, a NUL-terminated name, a valid place for one handle.
    check("cuModuleGetFunction", unsafe {
        sys::cuModuleGetFunction(&mut function, module, name.as_ptr())
    })?;
    if shared_bytes > DEFAULT_SHARED_BYTES {
        // SAFETY: a live function.
        check("cuFuncSetAttribute(max dynamic shared memory)", unsafe {
            sys::cuFuncSetAttribute(function, sys::FUNC_MAX_DYNAMIC_SHARED, shared_bytes as i32)
        })?;
    }
    Ok(function)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_device_takes_its_own_kernels_unless_told_otherwise() {
        let table = ModuleTable::new((9, 0));
        assert_eq!(table.lock().arch, Arch::Sm90a);
        table.use_arch(Arch::Sm80).unwrap();
        let image = table.image(&mut table.lock(), "merge_f16_d64").unwrap();
        assert_eq!(image.index.target, "80");
        table.use_arch(Arch::Sm90a).unwrap();
        let image = table.image(&mut table.lock(), "merge_f16_d64").unwrap();
        assert_eq!(image.index.target, "90a");
    }

    #[test]
    fn kernels_that_a_device_does_not_run_are_refused() {
        let table = ModuleTable::new((8, 9));
        let error = table.use_arch(Arch::Sm90a).unwrap_err();
        assert!(error.to_string().contains("sm_90a"), "{error}");
        assert_eq!(table.lock().arch, Arch::Sm80);
    }

    #[test]
    fn ptx_runs_on_its_own_and_later_devices_unless_it_is_specific() {
        assert!(check_target("80", (9, 0)).is_ok() && check_target("90a", (9, 0)).is_ok());
        assert!(check_target("90a", (10, 0)).is_err());
        let error = check_target("90", (8, 6)).unwrap_err();
        assert_eq!(error, "it is PTX for sm_90, the device is sm_86");
    }
}
