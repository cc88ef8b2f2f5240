//! `deft-bench head-dims`: a step of a cache with heads of every dimension, on a GPU.

use anyhow::{Context, Result};
use deft::cache::{CacheShape, HEAD_DIMS};
use deft::cuda::{DeviceBuffer, DeviceRows};
use deft::{
    Batch, CacheError, DType, Device, Kv, NodeKey, StepGraph, StepOptions, StepRun, TreeCache, bf16,
};
use deft_tests::inputs::normals;

use crate::gpu::Gpu;
use crate::stats::Spread;
use crate::{GpuArgs, say};

/// Times a decode step of one layer, append and attention, by head dimension: those with kernels beside those that are
/// padded to them.
///
/// bf16, rows on the device, one replayed graph with an emptied L2. The suites `gpu` compare such steps with f64.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// Head dimensions.
    #[arg(long, value_delimiter = ',', default_values_t = HEAD_DIMS)]
    dims: Vec<u32>,
    #[command(flatten)]
    gpu: GpuArgs,
    /// Timed replays a row.
    #[arg(long, default_value_t = 100)]
    iterations: usize,
}

/// A prompt, leaves below it and their tokens.
type Tree = (&'static str, u32, usize, u32);

const HEADS: [u32; 2] = [32, 8];
const TREES: [Tree; 4] = [
    ("one_leaf_1k", 960, 1, 64),
    ("fewshot_4k_w16", 4_096, 16, 64),
    ("fewshot_16k_w16", 16_384, 16, 256),
    ("fewshot_16k_w64", 16_384, 64, 256),
];
const WARMUP: usize = 10;

/// Runs the command; nothing can be wrong.
pub(crate) fn run(args: &Args) -> Result<usize> {
    let gpu = args.gpu.open()?;
    say(&gpu.device.describe());
    let dims = args.dims.iter().map(|dim| format!("{dim:>9}")).collect::<String>();
    say(&format!("{:20}{dims}", "us, heads of"));
    for tree in TREES {
        let mut line = format!("{:20}", tree.0);
        for &dim in &args.dims {
            let mut case = Case::new(&gpu, dim, &tree)?;
            line += &format!("{:9.2}", case.time(args.iterations.max(1))?);
        }
        say(&line);
    }
    Ok(0)
}

struct Case<'g> {
    gpu: &'g Gpu,
    cache: TreeCache,
    batch: Batch,
    /// K, V, Q, and outputs.
    rows: [DeviceBuffer<bf16>; 4],
}

impl<'g> Case<'g> {
    fn new(gpu: &'g Gpu, head_dim: u32, &(_, prompt, leaves, tokens): &Tree) -> Result<Self> {
        let ([q_heads, kv_heads], dtype) = (HEADS, DType::Bf16);
        let shape = CacheShape { layers: 1, kv_heads, head_dim, dtype, pages: 1 };
        let pages = u64::from(prompt.div_ceil(64) + leaves as u32 * (tokens.div_ceil(64) + 2));
        let mut cache = TreeCache::builder(&Device::from(gpu.device.clone()))
            .layers(1)
            .heads(q_heads, kv_heads, head_dim)
            .dtype(dtype)
            .capacity_bytes(pages * shape.padded().page_bytes())
            .build()?;
        let root = cache.insert_root()?;
        fill(&mut cache, &[root], prompt, shape.row_elements())?;
        let nodes = cache.fork(root, leaves)?;
        fill(&mut cache, &nodes, tokens, shape.row_elements())?;
        let asked: Vec<_> = nodes.iter().map(|&leaf| (leaf, 1)).collect();
        let batch = cache.batch(&asked)?;
        let rows = |seed, heads: u32| {
            let rows = normals::<bf16>(seed, leaves * (heads * head_dim) as usize, 1.0);
            DeviceBuffer::from_slice(&gpu.device, "rows", &rows)
        };
        let rows = [rows(3, kv_heads)?, rows(4, kv_heads)?, rows(5, q_heads)?, rows(6, q_heads)?];
        Ok(Self { gpu, cache, batch, rows })
    }

    /// Microseconds of a replayed step.
    fn time(&mut self, iterations: usize) -> Result<f64> {
        let (gpu, mut graph) = (self.gpu, StepGraph::new());
        let [k, v, q, out] = self.rows.each_ref().map(|rows| {
            // SAFETY: the buffer is on the cache's device and lives as long as the graph; its stream is waited for below.
            unsafe { DeviceRows::<bf16>::new(rows.pointer(), rows.len(), gpu.stream.raw()) }
        });
        let (begin, end) = &gpu.events;
        let options = StepOptions { rows: 0, events: Some((begin, end)) };
        let mut samples = Vec::new();
        for round in 0..WARMUP + iterations {
            gpu.empty_l2()?;
            let run = self.cache.capture_with(&mut graph, &self.batch, options, |step| {
                step.append(0, Kv::new(k, v))?;
                step.attend(0, q, out)
            });
            let run: Result<StepRun, CacheError> = run;
            gpu.settle("a step")?;
            if round >= WARMUP {
                anyhow::ensure!(run? == StepRun::Replayed, "the step was not replayed");
                samples.push(end.microseconds_since(begin).context("both were recorded")?);
            }
        }
        Ok(Spread::of(samples).median)
    }
}

/// Appends tokens to nodes, up to 1,024 at a time.
fn fill(cache: &mut TreeCache, nodes: &[NodeKey], tokens: u32, width: usize) -> Result<()> {
    let most = 1_024 / nodes.len() as u32;
    let mut left = tokens;
    while left > 0 {
        let here = left.min(most);
        let asked: Vec<_> = nodes.iter().map(|&node| (node, here)).collect();
        let batch = cache.batch(&asked)?;
        let kv = [1, 2].map(|seed| normals::<bf16>(seed, batch.rows() * width, 1.0));
        cache.append(0, &batch, Kv::new(&kv[0], &kv[1]))?;
        left -= here;
    }
    Ok(())
}
