//! Tree attention in a program of rust-cuda: `cust` owns context, stream and buffers, this library computes
//! on them. The result is compared with the CPU's.
//!
//! `CUDA_LIBRARY_PATH=cuda-loader/toolkit cargo run -p deft-attention --features cust --example rust_cuda`

use std::error::Error;

use cust::context::Context;
use cust::memory::{CopyDestination, DeviceBuffer};
use cust::stream::{Stream, StreamFlags};
use deft::attention::{Attend, AttentionParams, Counters, cpu};
use deft::cache::{CacheShape, KvElement, PagePool};
use deft::cuda::{Append, AttendBuffers, CudaCache, CudaDevice, CudaError, PlanCapacity};
use deft::plan::Planner;
use deft::tree::{NodeKey, TokenForest};
use deft::{DType, Grouping, bf16};

const GROUP: u32 = 4;
const SHAPE: CacheShape =
    CacheShape { layers: 1, kv_heads: 2, head_dim: 128, dtype: DType::Bf16, pages: 64 };

/// A prompt and its continuations.
struct Tree {
    forest: TokenForest,
    leaves: Vec<NodeKey>,
    /// Where each token's K and V go.
    targets: Vec<u32>,
}

fn tree() -> Result<Tree, Box<dyn Error>> {
    let mut forest = TokenForest::new(PagePool::new(SHAPE.pages)?);
    let prompt = forest.insert_root(300)?;
    let leaves = forest.fork(prompt, 5)?;
    forest.extend(&leaves, 20)?;
    let mut targets = Vec::new();
    forest.append_targets(prompt, 0..300, &mut targets)?;
    for &leaf in &leaves {
        forest.append_targets(leaf, 0..20, &mut targets)?;
    }
    Ok(Tree { forest, leaves, targets })
}

/// Numbers that repeat after a while.
fn numbers(len: usize, step: usize) -> Vec<bf16> {
    let number = |index: usize| bf16::from_f32((index * step % 251) as f32 / 125.0 - 1.0);
    (0..len).map(number).collect()
}

fn bits(numbers: &[bf16]) -> Vec<u16> {
    numbers.iter().map(|number| number.to_bits()).collect()
}

fn main() -> Result<(), Box<dyn Error>> {
    // Opened here first: a busy or missing device is an error that says so.
    let opened = match CudaDevice::new(0) {
        Err(error @ CudaError::NoDevice { .. }) => {
            println!("no GPU: {error}");
            return Ok(());
        }
        opened => opened?,
    };
    let context: Context = cust::quick_init()?;
    let device = CudaDevice::try_from(&context)?;
    assert_eq!(device.ordinal(), opened.ordinal());
    let tree = tree()?;
    let row = (SHAPE.kv_heads * SHAPE.head_dim) as usize;
    let k = numbers(tree.targets.len() * row, 7);
    let v = numbers(tree.targets.len() * row, 11);
    let q = numbers(tree.leaves.len() * GROUP as usize * row, 13);
    let on_gpu = on_gpu(&device, &tree, [&k, &v, &q])?;
    let on_cpu = on_cpu(&tree, [&k, &v, &q])?;
    let error = on_gpu
        .iter()
        .zip(&on_cpu)
        .map(|(gpu, cpu)| (gpu.to_f32() - cpu.to_f32()).abs())
        .fold(0.0, f32::max);
    println!(
        "{} queries on {}: the greatest difference from the CPU is {error}",
        tree.leaves.len(),
        device.describe()
    );
    // Outputs are averages of values of magnitude 1, rounded to bf16 (8 bits) once on either side.
    if error > 1.0 / 128.0 {
        return Err(format!("{error} is more than rounding explains").into());
    }
    Ok(())
}

fn on_gpu(
    device: &CudaDevice,
    tree: &Tree,
    [k, v, q]: [&[bf16]; 3],
) -> Result<Vec<bf16>, Box<dyn Error>> {
    let stream = Stream::new(StreamFlags::NON_BLOCKING, None)?;
    let k = DeviceBuffer::from_slice(&bits(k))?;
    let v = DeviceBuffer::from_slice(&bits(v))?;
    let q = DeviceBuffer::from_slice(&bits(q))?;
    let mut out = DeviceBuffer::from_slice(&vec![0u16; q.len()])?;
    let targets = DeviceBuffer::from_slice(&tree.targets)?;

    let forest = &tree.forest;
    let mut cache = CudaCache::new(device, SHAPE, 64)?;
    let config = cache.plan_config(Grouping::Flatten, GROUP);
    let plan = Planner::new(config)?.plan(&forest.view(&tree.leaves)?)?;
    let mut on_device = cache.reserve(PlanCapacity::of(&plan), GROUP)?;
    // SAFETY: the stream lives to the end of this function.
    let ours = unsafe { deft::cuda::Stream::borrow_cust(device, &stream) }?;
    cache.set_counters(forest.lengths(), forest.tail_pages(), &ours)?;
    on_device.update(&plan, &ours)?;
    let append = Append {
        targets: (&targets).into(),
        count: tree.targets.len() as u32,
        k: (&k).into(),
        v: (&v).into(),
    };
    let buffers = AttendBuffers::from_cust(&SHAPE, &plan, &q, &mut out, None)?;
    let params = AttentionParams::new(SHAPE.head_dim);
    // SAFETY: the buffers have a row for each target and query, the forest's targets and pages are the
    // cache's, and the wait below keeps everything alive.
    unsafe {
        cache.append(0, &append, (&stream).into())?;
        cache.attend(0, &on_device, &buffers, &params, (&stream).into())?;
    }
    stream.synchronize()?;
    let mut result = vec![0u16; out.len()];
    out.copy_to(&mut result)?;
    Ok(result.into_iter().map(bf16::from_bits).collect())
}

fn on_cpu(tree: &Tree, [k, v, q]: [&[bf16]; 3]) -> Result<Vec<bf16>, Box<dyn Error>> {
    let mut backend = cpu::new(SHAPE)?;
    let config = backend.plan_config(Grouping::Flatten, GROUP);
    let plan = Planner::new(config)?.plan(&tree.forest.view(&tree.leaves)?)?;
    let counters = Counters {
        lengths: tree.forest.lengths(),
        tail_pages: tree.forest.tail_pages(),
        directory: None,
        residues: None,
    };
    let mut out = vec![bf16::ZERO; q.len()];
    backend.append(0, &tree.targets, counters, bf16::elements(k), bf16::elements(v))?;
    backend.attend(Attend {
        layer: 0,
        plan: &plan,
        counters,
        q: bf16::elements(q),
        out: bf16::elements_mut(&mut out),
        lse: None,
        params: AttentionParams::new(SHAPE.head_dim),
    })?;
    Ok(out)
}
