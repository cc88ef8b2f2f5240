//! `deft-bench retain`: what scores and compaction cost on a GPU, and what compacted nodes save.

use std::time::Instant;

use anyhow::{Context, Result, ensure};
use deft::attention::{AttentionParams, Reduce};
use deft::cache::KvElement;
use deft::cuda::{AttendBuffers, DeviceBuffer, PlanCapacity, ScoreBuffers};
use deft::retain::{Compaction, HeadCompaction, Observe, Source};
use deft::{Batch, DType, Device, Kv, NodeKey, Out, TreeCache, bf16};
use deft_tests::inputs::normals;
use deft_tests::oracle::{reference_params, relative_l2};
use deft_tests::problem::heads;
use deft_tests::reference::attention::attend_biased_row;

use crate::gpu::{Gpu, Repeats};
use crate::{GpuArgs, say};

/// Times score passes beside the attention of a decode step, compactions, and attention over what they leave.
///
/// A root of --prefix tokens has --leaves leaves of a token each; one layer, bf16. What is timed is compared with f64 first:
/// attention at a few rows, and the scores of a few tokens. Times are those of one replayed CUDA graph with an emptied L2; a
/// compaction's is what passes on the host until the device is done.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// Tokens of the root.
    #[arg(long, default_value_t = 16_384)]
    prefix: u32,
    /// Leaves.
    #[arg(long, default_value_t = 64)]
    leaves: usize,
    /// Of a hundred rows of the root, how many are left.
    #[arg(long, value_delimiter = ',', default_value = "60,30,10")]
    keep: Vec<u32>,
    /// Query heads.
    #[arg(long, default_value_t = 32)]
    q_heads: u32,
    /// KV heads.
    #[arg(long, default_value_t = 8)]
    kv_heads: u32,
    /// Elements of a head.
    #[arg(long, default_value_t = 128)]
    head_dim: u32,
    #[command(flatten)]
    gpu: GpuArgs,
    /// Timed replays a row.
    #[arg(long, default_value_t = 60)]
    iterations: usize,
}

/// Runs the command; the number of rows that are wrong.
pub(crate) fn run(args: &Args) -> Result<usize> {
    let gpu = args.gpu.open()?;
    say(&gpu.device.describe());
    let Args { prefix, leaves, q_heads, kv_heads, head_dim, .. } = args;
    say(&format!(
        "{leaves} leaves below {prefix} tokens, {q_heads} query heads, {kv_heads} KV heads of {head_dim}, bf16, one layer"
    ));
    let mut case = Case::new(args, &gpu)?;
    let mut wrong = case.check("whole")?;
    let whole = case.time_attention("attention over the whole")?;
    say(&format!("{:44} {whole:8.1} us", "attention over the whole"));
    for reduce in [Reduce::Last, Reduce::Sum, Reduce::Max] {
        let (of, us) = case.time_scores(reduce)?;
        wrong += of;
        let share = 100.0 * us / whole;
        say(&format!("{:44} {us:8.1} us {share:6.1} % of it", format!("score pass, {reduce:?}")));
    }
    for (&keep, merges) in args.keep.iter().flat_map(|keep| [(keep, false), (keep, true)]) {
        let mut case = Case::new(args, &gpu)?;
        let name =
            format!("{keep} % of the rows{}", if merges { ", merged, with biases" } else { "" });
        let (freed, ms) = case.compact(keep, merges)?;
        wrong += case.check(&name)?;
        let us = case.time_attention(&name)?;
        let share = 100.0 * us / whole;
        say(&format!(
            "{name:44} {us:8.1} us {share:6.1} % of it; compacted in {ms:.2} ms, {freed} pages free"
        ));
        let (of, us) = case.time_scores(Reduce::Last)?;
        wrong += of;
        say(&format!("{:44} {us:8.1} us", format!("  score pass, {:?}", Reduce::Last)));
    }
    Ok(wrong)
}

/// A row of a KV head that is left: key, value, bias.
type Row = (Vec<f64>, Vec<f64>, f64);

struct Case<'g> {
    gpu: &'g Gpu,
    args: &'g Args,
    cache: TreeCache,
    root: NodeKey,
    batch: Batch,
    q: Vec<bf16>,
    /// Of the root's tokens, then of the leaves': `[tokens, kv_heads, head_dim]`.
    kv: [Vec<bf16>; 2],
    /// Of each KV head the root's rows.
    rows: Vec<Vec<Row>>,
    lse: Vec<f32>,
}

impl<'g> Case<'g> {
    fn new(args: &'g Args, gpu: &'g Gpu) -> Result<Self> {
        let width = (args.kv_heads * args.head_dim) as usize;
        let pages = u64::from(args.prefix).div_ceil(64) * 2 + 4 * args.leaves as u64;
        let device = Device::from(gpu.device.clone());
        let mut cache = TreeCache::builder(&device)
            .layers(1)
            .heads(args.q_heads, args.kv_heads, args.head_dim)
            .dtype(DType::Bf16)
            .capacity_bytes(pages * 64 * 4 * width as u64)
            .build()?;
        let tokens = args.prefix as usize + args.leaves;
        let kv = [3, 4].map(|seed| normals::<bf16>(seed, tokens * width, 1.0));
        let root = cache.insert_root()?;
        let of = |tokens: std::ops::Range<usize>| {
            let rows = tokens.start * width..tokens.end * width;
            Kv::new(&kv[0][rows.clone()], &kv[1][rows])
        };
        let batch = cache.batch(&[(root, args.prefix)])?;
        cache.append(0, &batch, of(0..args.prefix as usize))?;
        let leaves = cache.fork(root, args.leaves)?;
        let leaves: Vec<_> = leaves.into_iter().map(|leaf| (leaf, 1)).collect();
        let batch = cache.batch(&leaves)?;
        cache.append(0, &batch, of(args.prefix as usize..tokens))?;
        let q_width = args.leaves * (args.q_heads * args.head_dim) as usize;
        let dims = args.head_dim as usize;
        let rows = (0..args.kv_heads as usize).map(|head| {
            let row =
                |half: &[bf16], token: usize| exact(&half[token * width + head * dims..][..dims]);
            let rows = (0..args.prefix as usize).map(|at| (row(&kv[0], at), row(&kv[1], at), 0.0));
            rows.collect()
        });
        let rows = rows.collect();
        let lse = vec![f32::NAN; args.leaves * args.q_heads as usize];
        let q = normals(5, q_width, 1.0);
        Ok(Self { gpu, args, cache, root, batch, q, kv, rows, lse })
    }

    fn params(&self) -> AttentionParams {
        AttentionParams::new(self.args.head_dim)
    }

    /// Attends, and compares a few rows with f64 over the rows that are left; how many are wrong.
    fn check(&mut self, what: &str) -> Result<usize> {
        let args = self.args;
        let mut out = vec![bf16::NAN; self.q.len()];
        self.cache.attend(0, &self.batch, &self.q, Out::with_lse(&mut out, &mut self.lse))?;
        let shape = heads(args.q_heads, args.kv_heads, args.head_dim);
        let params = reference_params(shape, &self.params());
        let (dims, heads) = (args.head_dim as usize, args.q_heads as usize);
        let mut wrong = 0;
        for query in [0, args.leaves / 2, args.leaves - 1] {
            for head in (0..heads).step_by(5) {
                let kv_head = head / (args.q_heads / args.kv_heads) as usize;
                let at = query * heads + head;
                let own = self.own(query, kv_head);
                let rows = self.rows[kv_head].iter().chain([&own]);
                let seen: Vec<_> = rows.map(|(k, v, bias)| ((&k[..], &v[..]), *bias)).collect();
                let q = exact(&self.q[at * dims..][..dims]);
                let (right, lse) = attend_biased_row(&params, &q, &seen);
                let error = relative_l2(&out[at * dims..][..dims], &right);
                if error > 5e-3 || (f64::from(self.lse[at]) - lse).abs() > 1e-3 {
                    say(&format!("{what}: WRONG: query {query}, head {head}: off by {error}"));
                    wrong += 1;
                }
            }
        }
        Ok(wrong)
    }

    /// A leaf's token.
    fn own(&self, query: usize, kv_head: usize) -> Row {
        let (dims, heads) = (self.args.head_dim as usize, self.args.kv_heads as usize);
        let at = ((self.args.prefix as usize + query) * heads + kv_head) * dims;
        let [k, v] = [&self.kv[0], &self.kv[1]].map(|half| exact(&half[at..at + dims]));
        (k, v, 0.0)
    }

    /// Leaves `keep` of a hundred rows, heads different ones, as they are or with those between merged into them; pages
    /// that came free, and milliseconds.
    fn compact(&mut self, keep: u32, merges: bool) -> Result<(u32, f64)> {
        let mut of = Compaction { tokens: self.args.prefix / 64 * 64, heads: Vec::new() };
        for (head, rows) in self.rows.iter_mut().enumerate() {
            let mut left = HeadCompaction::default();
            let mut new = Vec::new();
            let mut set = Vec::new();
            for row in 0..of.tokens {
                set.push(row);
                // As even as it gets, each head at another place.
                let place = (row + 7 * head as u32) * keep;
                if place % 100 + keep < 100 {
                    continue;
                }
                if merges {
                    push_merged(&mut left, &mut new, rows, &set);
                } else {
                    left.push_kept(row, 0.0);
                    new.push(rows[row as usize].clone());
                }
                set.clear();
            }
            new.extend_from_slice(&rows[of.tokens as usize..]);
            *rows = new;
            of.heads.push(left);
        }
        let begin = Instant::now();
        let freed = self.cache.compact_node(self.root, &of)?;
        self.cache.cuda().context("the cache is on a GPU")?.stream().synchronize()?;
        let ms = begin.elapsed().as_secs_f64() * 1e3;
        self.cache.refresh(&mut self.batch)?;
        Ok((freed, ms))
    }

    /// Microseconds of the batch's attention.
    fn time_attention(&self, what: &str) -> Result<f64> {
        let (gpu, args) = (self.gpu, self.args);
        let cache = self.cache.cuda().context("the cache is on a GPU")?.cache();
        let plan = self.batch.plan();
        let mut room = cache.reserve(PlanCapacity::of(plan), plan.group_size())?;
        room.update(plan, &gpu.stream)?;
        let q = DeviceBuffer::from_slice(&gpu.device, "queries", &self.q)?;
        let out = DeviceBuffer::from_slice(&gpu.device, "outputs", &self.q)?;
        let lse = DeviceBuffer::from_slice(&gpu.device, "LSEs", &self.lse)?;
        let buffers = AttendBuffers { q: q.pointer(), out: out.pointer(), lse: lse.pointer() };
        let params = self.params();
        // SAFETY: the buffers have the batch's rows, counters and directory are on the device since `check`.
        let work = |stream: &deft::cuda::Stream| unsafe {
            cache.attend(0, &room, &buffers, &params, stream.raw())
        };
        let mut graph = gpu.capture(work)?;
        let repeats = Repeats { warmup: 10, measured: args.iterations.max(1) };
        // SAFETY: all that the graph uses is held here.
        Ok(unsafe { gpu.time(&mut graph, repeats, what) }?.median)
    }

    /// Scores, compares a few tokens with f64, and times the pass: how many are wrong, and microseconds.
    fn time_scores(&mut self, reduce: Reduce) -> Result<(usize, f64)> {
        self.cache.forget_scores()?;
        let observe = Observe { reduce, window: 1 };
        self.cache.score(0, &self.batch, observe, &self.q, &self.lse)?;
        let wrong = self.check_scores(reduce)?;
        let (gpu, args) = (self.gpu, self.args);
        let plan = self.cache.score_plan(&self.batch)?.clone();
        let cache = self.cache.cuda().context("the cache is on a GPU")?.cache();
        let mut room = cache.reserve(PlanCapacity::of(&plan), plan.group_size())?;
        room.update(&plan, &gpu.stream)?;
        let q = DeviceBuffer::from_slice(&gpu.device, "queries", &self.q)?;
        let lse = DeviceBuffer::from_slice(&gpu.device, "LSEs", &self.lse)?;
        let visible = vec![args.prefix + 1; args.leaves];
        let visible = DeviceBuffer::from_slice(&gpu.device, "visible tokens", &visible)?;
        let buffers =
            ScoreBuffers { q: q.pointer(), lse: lse.pointer(), visible: visible.pointer() };
        let params = self.params();
        // SAFETY: as in `time_attention`; the pass above made the scores.
        let work = |stream: &deft::cuda::Stream| unsafe {
            cache.score(0, &room, &buffers, reduce, &params, stream.raw())
        };
        let mut graph = gpu.capture(work)?;
        let repeats = Repeats { warmup: 10, measured: args.iterations.max(1) };
        // SAFETY: all that the graph uses is held here.
        Ok((wrong, unsafe { gpu.time(&mut graph, repeats, "scores") }?.median))
    }

    /// Compares the scores of a few rows of the root with f64; how many are wrong.
    fn check_scores(&mut self, reduce: Reduce) -> Result<usize> {
        let args = self.args;
        let (dims, heads) = (args.head_dim as usize, args.q_heads as usize);
        let group = heads / args.kv_heads as usize;
        let t = f64::from(args.prefix + 1);
        let mut wrong = 0;
        for kv_head in [0, args.kv_heads - 1] {
            let scores = self.cache.scores(self.root, 0, kv_head)?.context("no scores")?;
            let rows = &self.rows[kv_head as usize];
            // A last page that is not full has none.
            ensure!(!scores.is_empty() && scores.len() <= rows.len(), "{} scores", scores.len());
            for at in (0..scores.len()).step_by(scores.len() / 40 + 1) {
                let (k, _, bias) = &rows[at];
                let (mut sum, mut most, mut near) = (0.0, 0.0f64, false);
                for row in 0..args.leaves * group {
                    let at = row / group * heads + kv_head as usize * group + row % group;
                    let q = exact(&self.q[at * dims..][..dims]);
                    let product: f64 = q.iter().zip(k).map(|(q, k)| q * k).sum();
                    let logit = product / f64::from(args.head_dim).sqrt() + bias;
                    let p = (logit - f64::from(self.lse[at])).exp();
                    sum += p;
                    most = most.max(p);
                    near |= (p * t - 1.0).abs() < 1e-3;
                }
                let got = f64::from(f32::from_bits(scores[at]));
                let agrees = match reduce {
                    Reduce::Sum => (got - sum).abs() <= 1e-3 * sum,
                    Reduce::Max => (got - most).abs() <= 1e-3 * most,
                    Reduce::Last => {
                        near || scores[at] == if most * t >= 1.0 { t as u32 } else { 0 }
                    }
                };
                if !agrees {
                    say(&format!(
                        "{reduce:?} of row {at}, head {kv_head}: WRONG: {got}, not {sum} or {most}"
                    ));
                    wrong += 1;
                }
            }
        }
        Ok(wrong)
    }
}

/// Adds the mean of some rows, with the logarithm of their number as bias.
fn push_merged(head: &mut HeadCompaction, new: &mut Vec<Row>, rows: &[Row], set: &[u32]) {
    let weight = 1.0 / set.len() as f32;
    let bias = (set.len() as f32).ln();
    let sources: Vec<_> = set.iter().map(|&row| Source { row, k: weight, v: weight }).collect();
    head.push(&sources, bias);
    let mean = |half: fn(&Row) -> &Vec<f64>| -> Vec<f64> {
        let mut sum = vec![0.0f32; half(&rows[0]).len()];
        for &row in set {
            let row = half(&rows[row as usize]);
            sum.iter_mut().zip(row).for_each(|(sum, x)| *sum += weight * *x as f32);
        }
        exact(&sum.into_iter().map(bf16::from_f32).collect::<Vec<_>>())
    };
    new.push((mean(|row| &row.0), mean(|row| &row.1), bias.into()));
}

pub(crate) fn exact<T: KvElement>(row: &[T]) -> Vec<f64> {
    row.iter().map(|x| x.to_f32().into()).collect()
}
