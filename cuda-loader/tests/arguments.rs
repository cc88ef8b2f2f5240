//! With a driver of known answers: every argument arrives, on the first call and on later ones.

use std::env;
use std::path::Path;
use std::process::Command;

unsafe extern "C" {
    fn cuInit(flags: u32) -> i32;
    fn cuCtxGetCurrent(context: *mut usize) -> i32;
    fn cuTexRefSetMipmapLevelClamp(texture: usize, low: f32, high: f32) -> i32;
    fn cuLaunchKernel(
        function: usize,
        grid_x: u32,
        grid_y: u32,
        grid_z: u32,
        block_x: u32,
        block_y: u32,
        block_z: u32,
        shared: u32,
        stream: usize,
        parameters: usize,
        extra: usize,
    ) -> i32;
}

const MARK: &str = "CUDA_LOADER_FAKE_DRIVER";

/// The loader finds its library once a process and by name, so the fake one gets a process of its
/// own: this test again, started with another library path.
#[test]
fn arguments_reach_the_driver_unchanged() {
    if env::var_os(MARK).is_some() {
        return call_the_fake_driver();
    }
    let folder = Path::new(env!("CARGO_TARGET_TMPDIR"));
    let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fake/driver.rs");
    let built = Command::new(env::var_os("RUSTC").unwrap_or_else(|| "rustc".into()))
        .args([
            "--edition=2024",
            "--crate-type=cdylib",
            "-Copt-level=1",
            "-o",
        ])
        .arg(folder.join("libcuda.so.1"))
        .arg(source)
        .output()
        .expect("rustc runs");
    assert!(
        built.status.success(),
        "{}",
        String::from_utf8_lossy(&built.stderr)
    );

    let child = Command::new(env::current_exe().unwrap())
        .args(["--exact", "arguments_reach_the_driver_unchanged"])
        .env("LD_LIBRARY_PATH", folder)
        .env(MARK, "1")
        .output()
        .expect("this test runs again");
    assert!(
        child.status.success(),
        "{}",
        String::from_utf8_lossy(&child.stdout)
    );
}

fn call_the_fake_driver() {
    cuda_loader::ensure_linked();
    assert!(cuda_loader::has_driver());
    let digest = [1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11]
        .into_iter()
        .reduce(|digest, argument| digest * 3 + argument);
    for _ in 0..2 {
        // SAFETY: the signatures are the fake driver's.
        let (init, clamp, launch, missing) = unsafe {
            (
                cuInit(41),
                cuTexRefSetMipmapLevelClamp(7, 2.0, 3.0),
                cuLaunchKernel(1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11),
                cuCtxGetCurrent(&mut 0),
            )
        };
        assert_eq!(init, 42);
        assert_eq!(clamp, 327);
        assert_eq!(Some(launch), digest);
        assert_eq!(missing, cuda_loader::SYMBOL_NOT_FOUND);
    }
}
