//! NVIDIA's assembler and disassembler: what each kernel needs of a multiprocessor, and what is wrong with it.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, ensure};
use device::Arch;

use crate::wheel::Wheel;
use crate::{Event, Listener, process};

/// A program out of one of NVIDIA's wheels on PyPI.
pub(crate) struct Tool {
    program: &'static str,
    wheel: Wheel,
}

pub(crate) const PTXAS: Tool = Tool {
    program: "ptxas",
    wheel: Wheel { package: "nvidia-cuda-nvcc", version: "13.0.88", bytes: 0 },
};

pub(crate) const NVDISASM: Tool = Tool {
    program: "nvdisasm",
    wheel: Wheel { package: "nvidia-cuda-nvdisasm", version: "13.5.37", bytes: 0 },
};

impl Tool {
    /// Where it is; fetched into `target` if this machine has none.
    pub(crate) fn find_or_fetch(&self, target: &Path, listener: &Listener<'_>) -> Result<PathBuf> {
        if let Some(path) = on_path(self.program) {
            return Ok(path);
        }
        let folder =
            target.join("cuda").join(format!("{}-{}", self.wheel.package, self.wheel.version));
        let program = folder.join("nvidia/cu13/bin").join(self.program);
        if !program.is_file() {
            let (name, wheel) = (self.program, &self.wheel);
            listener(Event::Note(&format!(
                "no {name} on this machine: fetching {wheel} from PyPI into {}",
                folder.display()
            )));
            let fetched = wheel.unpack(&folder, |_| Ok(()), listener);
            fetched.context("a CUDA toolkit on PATH would do as well")?;
            ensure!(program.is_file(), "the wheel {wheel} holds no {name}");
            make_executable(&program)?;
        }
        Ok(program)
    }
}

/// GPUs that run what is compiled for `arch`, as ptxas names them.
pub(crate) fn gpus(arch: &str) -> &'static [&'static str] {
    match arch.parse() {
        Ok(Arch::Sm80) => &["sm_80", "sm_86", "sm_89"],
        Ok(Arch::Sm90a) => &["sm_90a"],
        Err(_) => &[],
    }
}

/// The release of ptxas: the 13.0.88 of `release 13.0, V13.0.88`.
pub(crate) fn release(ptxas: &Path, listener: &Listener<'_>) -> Result<String> {
    let (text, _) = process::capture(Command::new(ptxas).arg("--version"), "ptxas", listener)?;
    let release = text.split(", V").nth(1).and_then(|rest| rest.split_whitespace().next());
    Ok(release.context("ptxas tells no release")?.to_owned())
}

fn on_path(program: &str) -> Option<PathBuf> {
    std::env::split_paths(&std::env::var_os("PATH")?)
        .map(|folder| folder.join(program))
        .find(|path| path.is_file())
}

#[cfg(unix)]
fn make_executable(path: &Path) -> Result<()> {
    use std::os::unix::fs::PermissionsExt;
    Ok(fs::set_permissions(path, fs::Permissions::from_mode(0o755))?)
}

#[cfg(not(unix))]
fn make_executable(_path: &Path) -> Result<()> {
    Ok(())
}

/// What ptxas says of one entry.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Usage {
    pub(crate) entry: String,
    pub(crate) registers: u32,
}

/// Assembles the file `ptx` for `target` into `cubin`. Spills, stack frames and warnings are errors.
pub(crate) fn assemble(
    ptxas: &Path,
    ptx: &Path,
    target: &str,
    cubin: &Path,
    listener: &Listener<'_>,
) -> Result<Vec<Usage>> {
    let mut command = Command::new(ptxas);
    command.arg("--verbose").arg(format!("--gpu-name={target}")).args([
        ptx.as_os_str(),
        "--output-file".as_ref(),
        cubin.as_os_str(),
    ]);
    let what = format!("ptxas for {target}: {}", ptx.display());
    let (stdout, stderr) = process::capture(&mut command, &what, listener)?;
    let (usages, complaints) = read_report(&format!("{stdout}{stderr}"));
    ensure!(complaints.is_empty(), "{what} is not clean:\n    {}", complaints.join("\n    "));
    Ok(usages)
}

/// The machine code of `cubin` as text.
pub(crate) fn disassemble(
    nvdisasm: &Path,
    cubin: &Path,
    listener: &Listener<'_>,
) -> Result<String> {
    let mut command = Command::new(nvdisasm);
    command.arg("--print-code").arg(cubin);
    Ok(process::capture(&mut command, "nvdisasm", listener)?.0)
}

/// Reads what `ptxas --verbose` prints: the entries, and all that should not be there.
fn read_report(report: &str) -> (Vec<Usage>, Vec<String>) {
    let mut usages = Vec::new();
    let mut complaints = Vec::new();
    let mut function = "";
    let mut entry = "";
    for line in report.lines() {
        if let Some((_, rest)) = line.split_once("Compiling entry function '") {
            entry = rest.split('\'').next().unwrap_or_default();
        } else if let Some((_, name)) = line.split_once("Function properties for ") {
            function = name.trim();
        } else if line.contains("bytes stack frame") {
            let clean = line.split(',').all(|part| part.split_whitespace().next() == Some("0"));
            if !clean {
                complaints.push(format!("{function}: {}", line.trim()));
            }
        } else if let Some((_, rest)) = line.split_once("Used ") {
            let registers = rest.split(' ').next().and_then(|word| word.parse().ok());
            usages
                .push(Usage { entry: entry.to_owned(), registers: registers.unwrap_or_default() });
        } else if line.contains("warning") || line.contains("(C7") {
            complaints.push(line.trim().to_owned());
        }
    }
    (usages, complaints)
}

#[cfg(test)]
mod tests {
    use super::*;

    const CLEAN: &str = "\
ptxas info    : 0 bytes gmem
ptxas info    : Compiling entry function 'stream' for 'sm_90a'
ptxas info    : Function properties for stream
    0 bytes stack frame, 0 bytes spill stores, 0 bytes spill loads
ptxas info    : Used 31 registers, used 1 barriers
ptxas info    : Compile time = 12.7 ms
";

    #[test]
    fn a_clean_report_gives_the_registers_of_each_entry() {
        let (usages, complaints) = read_report(CLEAN);
        let expected = Usage { entry: "stream".to_owned(), registers: 31 };
        assert_eq!(usages, [expected]);
        assert!(complaints.is_empty(), "{complaints:?}");
    }

    #[test]
    fn spills_and_stack_frames_are_complaints_that_name_the_entry() {
        for clean in ["0 bytes stack frame", "0 bytes spill stores", "0 bytes spill loads"] {
            let (_, complaints) = read_report(&CLEAN.replace(clean, &clean.replace('0', "40")));
            assert_eq!(complaints.len(), 1);
            assert!(complaints[0].starts_with("stream: "), "{complaints:?}");
        }
    }

    #[test]
    fn warnings_and_performance_advisories_are_complaints() {
        let advisory = "ptxas info    : (C7508) Potential Performance Loss: 'setmaxnreg' ignored\n";
        let warning =
            "ptxas warning : Unresolved extern variable 'x' in whole program compilation\n";
        let (usages, complaints) = read_report(&format!("{advisory}{CLEAN}{warning}"));
        assert_eq!(usages.len(), 1);
        assert_eq!(complaints.len(), 2, "{complaints:?}");
    }
}
