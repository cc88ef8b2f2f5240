//! Kernels with one bug each: the emulator must name it, whatever the seed, and pass the kernel without it.

mod asynchronous;
mod atomics;
mod dependents;
mod lanes;
mod memory;
mod schedules;
mod synchronisation;

use device::emulator::{Cause, DevicePointer, Launch, Memory, Report};

/// Shared memory of a block, in bytes.
const SHARED_BYTES: u32 = 48 * 1024;

/// A kernel whose argument says whether the bug is in it.
type Kernel = fn(input: *const u32, output: *mut u32, bug: bool);

fn words() -> Vec<u32> {
    (0..4096).map(|i| i * 0x9e37 + 1).collect()
}

/// Launches one block of 128 threads over 4096 words in and 128 words out, and reads them.
fn launch(kernel: Kernel, bug: bool, seed: u64) -> Result<Vec<u32>, Box<Report>> {
    let mut memory = Memory::new();
    let input = memory.constant("input", &words());
    let output: DevicePointer<u32> = memory.unwritten("output", 128);
    Launch::new([1, 1, 1], 128)
        .shared_bytes(SHARED_BYTES)
        .seed(seed)
        .run(&mut memory, || kernel(input.as_ptr(), output.as_mut_ptr(), bug))?;
    memory.read(output).map_err(Box::new)
}

/// Asserts that the bug is found with every seed, as `cause` and in these words, and that nothing is found
/// without it.
#[track_caller]
fn finds(kernel: Kernel, cause: Cause, words: &[&str]) {
    finds_one_of(kernel, &[cause], words);
}

/// The same where what shows first depends on who runs first.
#[track_caller]
fn finds_one_of(kernel: Kernel, causes: &[Cause], words: &[&str]) {
    for seed in 0..16 {
        if let Err(report) = launch(kernel, false, seed) {
            panic!("without the bug: {report}");
        }
        let report = launch(kernel, true, seed).expect_err("the bug was not found");
        let text = report.to_string();
        assert!(causes.contains(&report.cause), "{text}");
        for word in words {
            assert!(text.contains(word), "`{word}` is not in: {text}");
        }
    }
}
