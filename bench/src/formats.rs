//! `deft-bench formats`: attention over nodes in formats beside native ones, on a GPU.

use anyhow::{Context, Result, ensure};
use deft::attention::AttentionParams;
use deft::cache::{PagedOrder, PagedTable};
use deft::cuda::{AttendBuffers, DeviceBuffer, PlanCapacity, Stream};
use deft::{Batch, DType, Device, Kv, KvFormat, NodeKey, TreeCache, bf16};
use deft_tests::inputs::normals;
use deft_tests::oracle::{reference_params, relative_l2};
use deft_tests::problem::heads;
use deft_tests::reference::attention::attend_row;

use crate::gpu::{Gpu, Repeats};
use crate::retain::exact;
use crate::trees::{cost_constant, set_cost};
use crate::{GpuArgs, say};

/// Times attention of a decode step over trees whose full pages are in a format: those above leaves, then all.
///
/// One layer, bf16, one replayed CUDA graph with an emptied L2. What is timed is compared with f64 over what the cache
/// exports first.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// Formats to seal nodes in.
    #[arg(long, value_delimiter = ',', default_value = "fp8,fp8-token,int4-g128,kivi4,kivi2")]
    formats: Vec<KvFormat>,
    /// Run trees whose name contains this.
    #[arg(long, value_name = "NAME", default_value = "")]
    filter: String,
    /// A constant of the planner's cost model (see `CostModel`).
    #[arg(long, value_name = "NAME=VALUE", value_parser = cost_constant)]
    cost: Vec<(String, f64)>,
    #[command(flatten)]
    gpu: GpuArgs,
    /// Timed replays a row.
    #[arg(long, default_value_t = 60)]
    iterations: usize,
}

/// A tree: of each level children of a node, and their tokens.
type Tree = (&'static str, [u32; 2], &'static [(usize, u32)]);

/// Query and KV heads of 128 beside levels.
const TREES: [Tree; 12] = [
    ("fewshot_16k_w4", [32, 8], &[(1, 16_384), (4, 256)]),
    ("fewshot_16k_w16", [32, 8], &[(1, 16_384), (16, 256)]),
    ("fewshot_16k_w32", [32, 8], &[(1, 16_384), (32, 256)]),
    ("drafts64_8k", [32, 8], &[(1, 8_192), (64, 1)]),
    ("drafts64_8k_mha", [32, 32], &[(1, 8_192), (64, 1)]),
    ("drafts64_32k", [32, 8], &[(1, 32_768), (64, 1)]),
    ("tot_4k_10_100", [32, 8], &[(1, 4_096), (10, 300), (10, 120)]),
    ("fewshot_8k_w32_g8", [64, 8], &[(1, 8_192), (32, 256)]),
    // Nothing was fitted to these.
    ("held_11k_w7", [32, 8], &[(1, 11_300), (7, 190)]),
    ("held_23k_w24", [32, 8], &[(1, 23_000), (24, 90)]),
    ("held_drafts40_14k", [32, 8], &[(1, 14_000), (40, 1)]),
    ("held_6k_5_40", [16, 4], &[(1, 6_100), (5, 700), (8, 60)]),
];
const DIMS: u32 = 128;

/// Runs the command; the number of rows that are wrong.
pub(crate) fn run(args: &Args) -> Result<usize> {
    let gpu = args.gpu.open()?;
    say(&gpu.device.describe());
    say(&format!(
        "{:20} {:>10} {:>9} {:>17} {:>17}",
        "us", "format", "native", "above leaves", "all"
    ));
    let mut wrong = 0;
    for tree in TREES.iter().filter(|tree| tree.0.contains(&args.filter)) {
        let mut case = Case::new(args, &gpu, tree)?;
        let native = case.time(tree.0, &mut wrong)?;
        for &format in &args.formats {
            let mut line = format!("{:20} {:>10} {native:9.2}", tree.0, format.to_string());
            for nodes in [case.inner.clone(), case.leaves.clone()] {
                for node in nodes {
                    case.cache.seal_as(node, format)?;
                }
                let us = case.time(tree.0, &mut wrong)?;
                line += &format!(" {us:9.2} {:6.2}x", native / us);
            }
            say(&line);
            for node in case.inner.iter().chain(&case.leaves) {
                case.cache.seal_as(*node, KvFormat::Native)?;
            }
        }
    }
    Ok(wrong)
}

struct Case<'g> {
    gpu: &'g Gpu,
    iterations: usize,
    heads: [u32; 2],
    cache: TreeCache,
    inner: Vec<NodeKey>,
    leaves: Vec<NodeKey>,
    batch: Batch,
    q: Vec<bf16>,
}

impl<'g> Case<'g> {
    fn new(args: &Args, gpu: &'g Gpu, &(_, [q_heads, kv_heads], levels): &Tree) -> Result<Self> {
        let width = (kv_heads * DIMS) as usize;
        let nodes = levels.iter().scan(1, |nodes, &(children, tokens)| {
            *nodes *= children as u64;
            Some(*nodes * u64::from(tokens.div_ceil(64) + 1))
        });
        // Pages of formats beside native ones while nodes are sealed.
        let pages = 2 * nodes.sum::<u64>() + 64;
        let cost = args.cost.clone();
        let mut cache = TreeCache::builder(&Device::from(gpu.device.clone()))
            .layers(1)
            .heads(q_heads, kv_heads, DIMS)
            .dtype(DType::Bf16)
            .capacity_bytes(pages * 64 * 4 * width as u64)
            .planner(move |config| {
                for (name, value) in &cost {
                    set_cost(&mut config.cost, name, *value).expect("it was parsed");
                }
            })
            .build()?;
        let (mut inner, mut leaves) = (Vec::new(), vec![cache.insert_root()?]);
        for (level, &(children, tokens)) in levels.iter().enumerate() {
            if level > 0 {
                inner.append(&mut leaves);
                let parents = inner[inner.len() - last_level(levels, level)..].to_vec();
                for node in parents {
                    leaves.extend(cache.fork(node, children)?);
                }
            }
            for &leaf in &leaves {
                fill(&mut cache, leaf, tokens, width)?;
            }
        }
        let asked: Vec<_> = leaves.iter().map(|&leaf| (leaf, 1)).collect();
        let batch = cache.batch(&asked)?;
        let kv = [3, 4].map(|seed| normals::<bf16>(seed, leaves.len() * width, 1.0));
        cache.append(0, &batch, Kv::new(&kv[0], &kv[1]))?;
        let q = normals(5, leaves.len() * (q_heads * DIMS) as usize, 1.0);
        let (iterations, heads) = (args.iterations.max(1), [q_heads, kv_heads]);
        Ok(Self { gpu, iterations, heads, cache, inner, leaves, batch, q })
    }

    /// Compares with f64, and times: microseconds of a replayed graph.
    fn time(&mut self, what: &str, wrong: &mut usize) -> Result<f64> {
        self.cache.refresh(&mut self.batch)?;
        *wrong += self.check(what)?;
        let gpu = self.gpu;
        let cache = self.cache.cuda().context("the cache is on a GPU")?.cache();
        let plan = self.batch.plan();
        let mut room = cache.reserve(PlanCapacity::of(plan), plan.group_size())?;
        room.update(plan, &gpu.stream)?;
        let q = DeviceBuffer::from_slice(&gpu.device, "queries", &self.q)?;
        let out = DeviceBuffer::from_slice(&gpu.device, "outputs", &self.q)?;
        let lse = vec![0f32; self.q.len() / DIMS as usize];
        let lse = DeviceBuffer::from_slice(&gpu.device, "LSEs", &lse)?;
        let buffers = AttendBuffers { q: q.pointer(), out: out.pointer(), lse: lse.pointer() };
        let params = AttentionParams::new(DIMS);
        // SAFETY: the buffers have the batch's rows, counters are on the device since `check`.
        let work =
            |stream: &Stream| unsafe { cache.attend(0, &room, &buffers, &params, stream.raw()) };
        let mut graph = gpu.capture(work)?;
        let repeats = Repeats { warmup: 10, measured: self.iterations };
        // SAFETY: all that the graph uses is held here.
        Ok(unsafe { gpu.time(&mut graph, repeats, what) }?.median)
    }

    /// Attends, and compares rows of the first and the last leaf with f64; how many are wrong.
    fn check(&mut self, what: &str) -> Result<usize> {
        let [q_heads, kv_heads] = self.heads.map(|heads| heads as usize);
        let dims = DIMS as usize;
        let mut out = vec![bf16::NAN; self.q.len()];
        self.cache.attend(0, &self.batch, &self.q, &mut out)?;
        let shape = heads(self.heads[0], self.heads[1], DIMS);
        let params = reference_params(shape, &AttentionParams::new(DIMS));
        let mut wrong = 0;
        for leaf in [0, self.leaves.len() - 1] {
            let tokens = self.cache.forest().context_length(self.leaves[leaf])? as u32;
            let mut kv = [(); 2].map(|()| vec![bf16::NAN; tokens as usize * kv_heads * dims]);
            let [k, v] = &mut kv;
            let table = PagedTable { order: PagedOrder::Nhd, page_size: tokens, pages: &[0] };
            self.cache.export(0, self.leaves[leaf], 0..tokens, &table, k, v)?;
            for head in [0, q_heads - 1] {
                let own = |half: &[bf16]| -> Vec<Vec<f64>> {
                    let first = head / (q_heads / kv_heads) * dims;
                    half.chunks_exact(kv_heads * dims)
                        .map(|row| exact(&row[first..first + dims]))
                        .collect()
                };
                let [k, v] = [own(&kv[0]), own(&kv[1])];
                let seen: Vec<_> = k.iter().zip(&v).map(|(k, v)| (&k[..], &v[..])).collect();
                let at = (leaf * q_heads + head) * dims;
                let (right, _) = attend_row(&params, &exact(&self.q[at..at + dims]), &seen);
                let error = relative_l2(&out[at..at + dims], &right);
                if error.is_nan() || error > 5e-3 {
                    say(&format!("{what}: WRONG: leaf {leaf}, head {head}: off by {error}"));
                    wrong += 1;
                }
            }
        }
        Ok(wrong)
    }
}

/// Nodes of the level above `level`.
fn last_level(levels: &[(usize, u32)], level: usize) -> usize {
    levels[..level].iter().map(|&(children, _)| children).product()
}

/// Appends tokens to a node; every 1,000 are alike.
fn fill(cache: &mut TreeCache, node: NodeKey, tokens: u32, width: usize) -> Result<()> {
    let kv = [1, 2].map(|seed| normals::<bf16>(seed, tokens.min(1_000) as usize * width, 1.0));
    let mut left = tokens;
    while left > 0 {
        let here = left.min(1_000);
        let batch = cache.batch(&[(node, here)])?;
        let rows = ..here as usize * width;
        cache.append(0, &batch, Kv::new(&kv[0][rows], &kv[1][rows]))?;
        left -= here;
    }
    ensure!(cache.forest().format(node)?.0 == KvFormat::Native, "nothing is sealed yet");
    Ok(())
}
