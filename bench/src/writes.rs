//! The host-slice backend: what it appends and moves, bit by bit, and what it attends to.

use std::collections::BTreeSet;

use anyhow::Result;
use deft::abi::{PAGE_TOKENS, TokenMove};
use deft::attention::{Attend, Backend, Counters};
use deft::cuda::CudaBackend;
use deft::plan::{Grouping, Planner};
use deft::tree::TreeView;

use crate::compare::{Oracle, Outputs, UNWRITTEN, sample};
use crate::cpu::{elements, elements_mut};
use crate::forests::{Asked, random_forest};
use crate::gpu::Gpu;
use crate::random::Random;
use crate::tensors::{Heads, HostPool, random_queries};

/// Layers of the cache; the last is used, those before must stay as they are.
const LAYERS: u32 = 2;
const MOVES: u32 = 60;
const CHECKED: u32 = 12;

/// Appends a random forest, moves tokens of it, attends to it; what went wrong, if anything.
pub(crate) fn run(gpu: &Gpu, heads: Heads, random: &mut Random) -> Result<Option<String>> {
    let Asked { forest, nodes } = random_forest(random)?;
    let view = forest.view(&nodes)?;
    let pages = forest.pool().capacity();
    let mut pool = HostPool::random(heads, pages, &view, Random::new(random.next()));
    let mut shape = heads.shape(pages);
    shape.layers = LAYERS;
    let mut backend = CudaBackend::new(&gpu.device, shape)?;
    append(&mut backend, &pool, &view)?;
    if let Some(problem) = compare_pages(gpu, &backend, &pool, &view)? {
        return Ok(Some(format!("append: {problem}")));
    }
    let moves = random_moves(&view, random);
    backend.copy(&moves)?;
    for step in &moves {
        pool.move_token(step.from, step.to);
    }
    // Moves are of all layers; the first one is zero and stays so.
    if let Some(problem) = compare_pages(gpu, &backend, &pool, &view)? {
        return Ok(Some(format!("copy: {problem}")));
    }
    let q = random_queries(&heads, view.queries, Random::new(random.next()));
    let counters = Counters {
        lengths: forest.lengths(),
        tail_pages: forest.tail_pages(),
    };
    let config = backend.plan_config(Grouping::Flatten, heads.group);
    let plan = Planner::new(config)?.plan(&view)?;
    let oracle = Oracle::new(&pool, &view, &q, &sample(view.queries, CHECKED));
    // After the first time the plan is on the device.
    for _ in 0..2 {
        let mut outputs = Outputs {
            out: vec![UNWRITTEN; q.len()],
            lse: vec![f32::NAN; (view.queries * heads.q_heads()) as usize],
        };
        backend.attend(Attend {
            layer: LAYERS - 1,
            plan: &plan,
            counters,
            q: elements(heads.dtype, &q),
            out: elements_mut(heads.dtype, &mut outputs.out),
            lse: Some(&mut outputs.lse),
            params: heads.params,
        })?;
        let verdict = oracle.judge(&outputs);
        if !verdict.passes() {
            return Ok(Some(format!("attend: {verdict}")));
        }
    }
    Ok(None)
}

/// Appends all tokens of all pages in use, poison included, to the last layer.
fn append(backend: &mut CudaBackend, pool: &HostPool, view: &TreeView) -> Result<()> {
    let (mut targets, mut k, mut v) = (Vec::new(), Vec::new(), Vec::new());
    // A page of several draft nodes is listed for each of them.
    let pages: BTreeSet<u32> = view.pages.iter().copied().collect();
    for page in pages {
        let (places, keys, values) = pool.page_rows(page);
        targets.extend(places);
        k.extend(keys);
        v.extend(values);
    }
    let dtype = pool.heads.dtype;
    let (k, v) = (elements(dtype, &k), elements(dtype, &v));
    Ok(backend.append(LAYERS - 1, &targets, Counters::default(), k, v)?)
}

/// Moves between tokens that exist, some onto sources of former moves.
fn random_moves(view: &TreeView, random: &mut Random) -> Vec<TokenMove> {
    let mut places = Vec::new();
    for run in &view.runs {
        for token in 0..run.tokens {
            let page = view.pages[(run.pages.start + token / PAGE_TOKENS) as usize];
            places.push(page * PAGE_TOKENS + token % PAGE_TOKENS);
        }
    }
    if places.is_empty() {
        return Vec::new();
    }
    // A target is never the source of a later move: the order the forest gives them in, too.
    let mut written = Vec::new();
    let mut moves = Vec::new();
    for _ in 0..MOVES {
        let (from, to) = (random.pick(&places), random.pick(&places));
        if from != to && !written.contains(&from) {
            written.push(to);
            moves.push(TokenMove { from, to });
        }
    }
    moves
}

/// Whether the pages in use are on the device as in `pool`, and the other layers zero.
fn compare_pages(
    gpu: &Gpu,
    backend: &CudaBackend,
    pool: &HostPool,
    view: &TreeView,
) -> Result<Option<String>> {
    let plane = pool.elements.len();
    let mut device = vec![0; plane * LAYERS as usize];
    backend.cache().pool().read(0, &mut device, &gpu.stream)?;
    let (others, last) = device.split_at(plane * (LAYERS as usize - 1));
    if let Some(at) = others.iter().position(|&bits| bits != 0) {
        return Ok(Some(format!("element {at} of another layer was written")));
    }
    let page_elements = pool.heads.page_elements();
    for &page in &view.pages {
        let range = page as usize * page_elements..(page as usize + 1) * page_elements;
        let pairs = last[range.clone()].iter().zip(&pool.elements[range]);
        let wrong = pairs
            .clone()
            .filter(|(found, right)| found != right)
            .count();
        if let Some((at, (found, right))) = pairs.enumerate().find(|(_, (f, r))| f != r) {
            return Ok(Some(format!(
                "{wrong} elements of page {page} differ, the first at {at}: {found:#06x}, expected \
                 {right:#06x}"
            )));
        }
    }
    Ok(None)
}
