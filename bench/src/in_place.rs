//! `deft-bench in-place`: trees whose K and V are in another engine's blocks, beside the same trees in native pages.

use std::collections::HashMap;
use std::path::PathBuf;

use anyhow::{Result, bail, ensure};
use deft::attention::{BackendError, PagedAttend, PagedTensor};
use deft::cache::{DType, KvElement};
use deft::cuda::{DeviceBuffer, DeviceRows, InPlace};
use deft::plan::{BlockTables, Grouping, PagedPlan, Planner};
use deft_tests::oracle::Outputs;
use deft_tests::problem::Problem;
use deft_tests::reference::attention::visible_tokens;
use deft_workloads::StepWorkload;
use half::{bf16, f16};
use kernels_gpu::abi::PAGE_TOKENS;

use crate::gpu::{Gpu, Repeats};
use crate::problem::{PageOrder, of_workload};
use crate::session::{Part, Session};
use crate::stats::Spread;
use crate::{GpuArgs, say};

/// Checks trees in place against f64, then times them beside the library's own pages.
///
/// Every query is a sequence with a block table of its own (NHD, K and V apart, blocks in random order), a draft's too: so
/// a draft's last blocks are each sequence's own. Times are those of one replayed CUDA graph with an emptied L2.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// Workloads to run instead of those that come with the program; see workloads/README.md.
    #[arg(long, value_name = "FILE")]
    workloads: Option<PathBuf>,
    /// Run workloads whose name contains this.
    #[arg(long, value_name = "NAME")]
    filter: Option<String>,
    /// Tokens of a block.
    #[arg(long, value_delimiter = ',', default_value = "16,64")]
    page_size: Vec<u32>,
    #[command(flatten)]
    gpu: GpuArgs,
    /// Timed replays a row.
    #[arg(long, default_value_t = 60)]
    iterations: usize,
    /// Queries that are compared with f64, all heads each.
    #[arg(long, default_value_t = 8)]
    checked: u32,
}

/// Runs the command; the number of rows that are wrong.
pub(crate) fn run(args: &Args) -> Result<usize> {
    let text = match &args.workloads {
        Some(path) => std::fs::read_to_string(path)?,
        None => crate::trees::WORKLOADS.to_owned(),
    };
    let gpu = args.gpu.open()?;
    say(&gpu.device.describe());
    say(
        "workload                   blocks    median     20%     80% us  native us  native / in place",
    );
    let mut wrong = 0;
    let wanted = |name: &str| args.filter.as_ref().is_none_or(|part| name.contains(part));
    for workload in StepWorkload::parse(&text)?.iter().filter(|it| wanted(&it.name)) {
        wrong += match workload.dtype {
            DType::F32 => bail!("the GPU kernels read bf16 and f16, not f32"),
            DType::F16 => run_workload::<f16>(args, workload, &gpu)?,
            _ => run_workload::<bf16>(args, workload, &gpu)?,
        };
    }
    Ok(wrong)
}

fn run_workload<T: KvElement>(args: &Args, workload: &StepWorkload, gpu: &Gpu) -> Result<usize> {
    let repeats = Repeats { warmup: 10, measured: args.iterations.max(1) };
    let (problem, name) = (of_workload::<T>(workload, args.checked)?, &workload.name);
    if problem.inputs.heads.head_dim > 128 {
        say(&format!("{name:26} head dimension 256 is not read in place"));
        return Ok(0);
    }
    let mut session = Session::new(gpu, &problem.inputs)?;
    session.set_lengths(&problem.lengths)?;
    let group = problem.inputs.heads.group_size();
    let config = session.cache.plan_config(Grouping::Flatten, group);
    session.load(&Planner::new(config)?.plan(&problem.view)?)?;
    let mut wrong = 0;
    let verdict = problem.judge(&session.attend(problem.view.queries, name)?);
    if !verdict.passes() {
        say(&format!("{name}, native: WRONG: {verdict}"));
        wrong += 1;
    }
    let native = session.time(Part::Whole, repeats, name)?.median;
    for &page_size in &args.page_size {
        ensure!(
            PAGE_TOKENS.is_multiple_of(page_size),
            "--page-size {page_size} does not divide 64"
        );
        let what = format!("{name}, blocks of {page_size}");
        let foreign = Foreign::new(&problem, page_size as usize);
        let (outputs, time) = foreign.run(&problem, gpu, repeats, &what)?;
        let verdict = problem.judge(&outputs);
        if !verdict.passes() {
            say(&format!("{what}: WRONG: {verdict}"));
            wrong += 1;
        }
        say(&format!(
            "{name:26} {page_size:6} {:9.1} {:7.1} {:7.1} {native:13.1} {:18.3}",
            time.median,
            time.p20,
            time.p80,
            native / time.median
        ));
    }
    Ok(wrong)
}

/// A problem's K and V in blocks of another engine.
struct Foreign<T> {
    page_size: usize,
    blocks: usize,
    /// `[sequences, stride]`.
    tables: Vec<i32>,
    lens: Vec<i32>,
    /// K, V: `[blocks, page_size, kv_heads, head_dim]`.
    kv: [Vec<T>; 2],
}

impl<T: KvElement> Foreign<T> {
    /// Full blocks of the same tokens behind the same blocks are shared.
    fn new(problem: &Problem<T>, page_size: usize) -> Self {
        let view = &problem.view;
        let mut tables = vec![Vec::new(); view.queries as usize];
        let mut lens = vec![0; tables.len()];
        let mut shared = HashMap::new();
        let mut blocks: Vec<Vec<(u32, u32)>> = Vec::new();
        for query in 0..view.queries {
            let row = view.query_order[query as usize] as usize;
            let tokens = visible_tokens(view, query);
            lens[row] = tokens.len() as i32;
            for block in tokens.chunks(page_size) {
                let key = (tables[row].last().copied(), block.to_vec());
                let known = shared.get(&key).copied().filter(|_| block.len() == page_size);
                let id = known.unwrap_or(blocks.len() as u32);
                if known.is_none() {
                    shared.insert(key, id);
                    blocks.push(block.to_vec());
                }
                tables[row].push(id);
            }
        }
        let order = PageOrder::new(blocks.len() as u32);
        let stride = tables.iter().map(Vec::len).max().unwrap_or(0);
        let ids = tables.iter_mut().flat_map(|table| {
            order.apply(table);
            let ids = table.iter().map(|&id| id as i32);
            ids.chain(std::iter::repeat(-1)).take(stride)
        });
        let ids = ids.collect();
        let row = problem.inputs.row();
        let mut kv = [(); 2].map(|()| vec![T::zeroed(); blocks.len() * page_size * row]);
        for (id, block) in blocks.iter().enumerate() {
            let mut id = [id as u32];
            order.apply(&mut id);
            for (slot, &(page, token)) in block.iter().enumerate() {
                let to = (id[0] as usize * page_size + slot) * row;
                let from = (page * PAGE_TOKENS + token) as usize * row;
                for (to_half, half) in kv.iter_mut().zip([&problem.inputs.k, &problem.inputs.v]) {
                    to_half[to..to + row].copy_from_slice(&half[from..from + row]);
                }
            }
        }
        Self { page_size, blocks: blocks.len(), tables: ids, lens, kv }
    }

    /// What comes out, and how long it takes.
    fn run(
        &self,
        problem: &Problem<T>,
        gpu: &Gpu,
        repeats: Repeats,
        what: &str,
    ) -> Result<(Outputs<T>, Spread)> {
        let (heads, params) = (problem.inputs.heads, problem.inputs.params);
        let shape = [heads.q_heads, heads.kv_heads, heads.head_dim];
        let mut in_place = InPlace::new(&gpu.device, shape, T::DTYPE)?;
        let tables = BlockTables {
            ids: &self.tables,
            stride: self.tables.len() / self.lens.len(),
            lens: &self.lens,
            page_size: self.page_size as u32,
            queries: &[],
            masks: &[],
        };
        let plan = PagedPlan::new(in_place.plan_config(Grouping::Flatten), &tables)?;
        let device = &gpu.device;
        let [k, v] =
            [&self.kv[0], &self.kv[1]].map(|half| DeviceBuffer::from_slice(device, "K or V", half));
        let (k, v) = (k?, v?);
        let q = DeviceBuffer::from_slice(device, "queries", &problem.inputs.q)?;
        let mut outputs = problem.unwritten();
        let out = DeviceBuffer::from_slice(device, "outputs", &outputs.out)?;
        let lse = DeviceBuffer::from_slice(device, "LSEs", &outputs.lse)?;
        in_place.update(&plan, &gpu.stream)?;
        let mut attend = || -> Result<(), BackendError> {
            let stream = gpu.stream.raw();
            // SAFETY: the buffers are on the device and outlive all work on its stream.
            let rows = |buffer: &DeviceBuffer<T>| unsafe {
                DeviceRows::<T>::new(buffer.pointer(), buffer.len(), stream)
            };
            // SAFETY: as above.
            let lse = unsafe { DeviceRows::<f32>::new(lse.pointer(), lse.len(), stream) };
            let head = heads.head_dim as usize;
            let token = heads.kv_heads as usize * head;
            let strides = [self.page_size * token, token, head];
            let paged = |buffer| PagedTensor {
                elements: rows(buffer).elements(),
                blocks: self.blocks,
                strides,
            };
            let call = PagedAttend {
                k: paged(&k),
                v: paged(&v),
                kv_heads: heads.kv_heads,
                head_dim: heads.head_dim,
                q: rows(&q).elements(),
                out: rows(&out).elements_mut(),
                lse: Some(lse.elements_mut()),
                params,
            };
            in_place.attend(&plan, call)
        };
        attend()?;
        gpu.settle(what)?;
        out.read(0, &mut outputs.out, &gpu.stream)?;
        lse.read(0, &mut outputs.lse, &gpu.stream)?;
        let mut graph = gpu.stream.capture(|_| attend())?;
        // SAFETY: the graph's memory is that of the buffers and of `in_place`.
        let time = unsafe { gpu.time(&mut graph, repeats, what) }?;
        Ok((outputs, time))
    }
}
