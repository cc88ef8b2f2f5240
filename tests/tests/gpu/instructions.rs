//! Every instruction of the device module on a GPU, against its plain definition and the emulator.
//!
//! Without a GPU it says so and passes. `cargo xtask bundle` packs it for a machine that has one.

use deft::cuda::{Arguments, CudaDevice, CudaError, DeviceBuffer, Launch, Stream};
use deft_tests::instructions::{Case, Tolerance, cases};

/// What every case's kernel takes: where its input and its output are.
struct Buffers([u64; 2]);

impl Arguments for Buffers {
    const BYTES: &'static [u32] = &[8, 8];

    fn bits(&self) -> impl AsRef<[u64]> {
        self.0
    }
}

/// A device that has all instructions (Hopper), or why there is none.
fn device() -> Result<CudaDevice, String> {
    let device = match CudaDevice::new(0) {
        Err(CudaError::NoDevice { .. }) => return Err("no GPU".to_owned()),
        other => other.unwrap(),
    };
    match device.capability() {
        (9, 0) => Ok(device),
        (major, minor) => Err(format!("{} has sm_{major}{minor}, not sm_90", device.describe())),
    }
}

/// The case's output on the GPU.
fn run(case: &Case, device: &CudaDevice, stream: &Stream) -> Result<Vec<u32>, CudaError> {
    let input = DeviceBuffer::from_slice(device, "input", &case.input)?;
    let mut words = case.before.clone().unwrap_or(vec![u32::MAX; case.expected.len()]);
    let output = DeviceBuffer::from_slice(device, "output", &words)?;
    let buffers = Buffers([input.pointer().0, output.pointer().0]);
    let kernel = device.kernel(case.entry, Buffers::BYTES)?;
    let launch = Launch { grid: [case.blocks, 1, 1], overlaps_predecessor: false };
    // SAFETY: the kernel takes these two arguments, which live until the read below has waited for it.
    unsafe { kernel.launch(launch, buffers, stream.raw()) }?;
    output.read(0, &mut words, stream)?;
    Ok(words)
}

/// Largest difference of two outputs, as `f32`s if the case's are.
fn distance(case: &Case, left: &[u32], right: &[u32]) -> f32 {
    let pairs = left.iter().zip(right);
    match case.tolerance {
        Tolerance::Exact => pairs.filter(|(a, b)| a != b).count() as f32,
        Tolerance::Float { .. } => pairs
            .filter(|(a, b)| a != b)
            .map(|(a, b)| (f32::from_bits(*a) - f32::from_bits(*b)).abs())
            .fold(0.0, f32::max),
    }
}

#[test]
fn gpu_emulator_and_definition_agree_on_every_instruction() {
    let device = match device() {
        Ok(device) => device,
        Err(why) => {
            println!("skipped: {why}");
            return;
        }
    };
    let stream = Stream::new(&device).unwrap();
    for case in cases() {
        let on_gpu = run(&case, &device, &stream).unwrap();
        let emulated = case.emulate(0).unwrap();
        let (tolerance, off) = (case.tolerance, distance(&case, &on_gpu, &emulated));
        println!(
            "{:40} {:50} GPU and emulator differ by {off:.1e}, {tolerance:?}",
            case.entry, case.what
        );
        case.check(&on_gpu);
        case.check(&emulated);
    }
}
