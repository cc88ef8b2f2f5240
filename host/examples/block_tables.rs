//! Times what planning from block tables takes, and attention in place beside attention over the library's own pages.
//!
//! `cargo run --release -p deft-attention --example block_tables`

use std::hint::black_box;
use std::time::Instant;

use deft::attention::cpu::InPlace;
use deft::attention::{AttentionParams, PagedAttend, PagedTensor};
use deft::cache::{KvElement, PagedOrder, PagedTable};
use deft::plan::{BlockTables, Grouping, PagedPlan};
use deft::{DType, Device, PlanUpdate, TreeCache, bf16};

const HEADS: [u32; 3] = [32, 8, 128];

/// Block tables of `count` sequences of `tokens`, of which each `family` share the first `prefix` tokens.
fn tables(count: usize, tokens: usize, page: usize, family: usize, prefix: usize) -> Vec<i32> {
    let (blocks, shared) = (tokens.div_ceil(page) + 4, prefix / page);
    let own = |sequence: usize, block: usize| match block < shared {
        true => sequence / family * family * blocks + block,
        false => sequence * blocks + block,
    };
    let sequences = (0..count).flat_map(|sequence| (0..blocks).map(move |b| own(sequence, b)));
    sequences.map(|id| id as i32).collect()
}

fn sequences<'a>(ids: &'a [i32], lens: &'a [i32], page: usize) -> BlockTables<'a> {
    let (stride, page_size) = (ids.len() / lens.len(), page as u32);
    BlockTables { ids, stride, lens, page_size, queries: &[], masks: &[] }
}

/// The fastest of some runs, in microseconds.
fn fastest(mut run: impl FnMut()) -> f64 {
    let times = (0..101).map(|_| {
        let start = Instant::now();
        run();
        start.elapsed().as_secs_f64() * 1e6
    });
    times.fold(f64::INFINITY, f64::min)
}

fn planning() -> Result<(), Box<dyn std::error::Error>> {
    println!("256 sequences of 4,096 tokens, microseconds: a new plan, and one more token each");
    for (name, family, prefix) in
        [("all share 2k", 256, 2048), ("32 share 3k each", 32, 3072), ("nothing shared", 1, 0)]
    {
        for page in [16, 64] {
            let ids = tables(256, 4096, page, family, prefix);
            let mut lens = vec![4000; 256];
            let config = InPlace::plan_config(Grouping::Flatten, HEADS, DType::Bf16);
            let mut plan = PagedPlan::new(config, &sequences(&ids, &lens, page))?;
            // Fewer pages, or more than were planned for.
            let mut shorter = true;
            let found = fastest(|| {
                lens.fill(if shorter { 3500 } else { 4000 });
                shorter = !shorter;
                let update = plan.update(&sequences(&ids, &lens, page)).expect("as before");
                assert_eq!(update, PlanUpdate::Replanned);
            });
            let grown = fastest(|| {
                lens.iter_mut().for_each(|len| *len += 1);
                black_box(plan.update(&sequences(&ids, &lens, page)).expect("there is room"));
            });
            let [read, different] = plan.tokens();
            let times = read as f64 / different as f64;
            println!(
                "  {name:16} pages of {page}: {found:7.1} {grown:6.1}   {times:.1} x fewer tokens read"
            );
        }
    }
    Ok(())
}

fn attention() -> Result<(), Box<dyn std::error::Error>> {
    println!(
        "attention of a layer of 32 branches over a prompt of 4,096 tokens: in place over own pages, in time"
    );
    let ([q_heads, kv_heads, head_dim], branches) = (HEADS, 32);
    let row = (kv_heads * head_dim) as usize;
    let q = vec![bf16::ONE; branches * (q_heads * head_dim) as usize];
    let mut out = q.clone();
    for page in [16, 64] {
        let ids = tables(branches, 4096 + 128, page, branches, 4096);
        let stride = ids.len() / branches;
        let blocks = *ids.iter().max().expect("some") as usize + 1;
        let memory = vec![bf16::ONE; blocks * page * row];
        let lens = vec![4096 + 100; branches];
        let page_size = page as u32;
        let mut cache = TreeCache::builder(&Device::cpu())
            .layers(1)
            .heads(q_heads, kv_heads, head_dim)
            .dtype(DType::Bf16)
            .capacity_bytes(256 << 20)
            .build()?;
        let root = cache.insert_root()?;
        cache.extend(&[root], 4096)?;
        let leaves = cache.fork(root, branches)?;
        cache.extend(&leaves, 100)?;
        for (leaf, ids) in leaves.iter().zip(ids.chunks(stride)) {
            let pages: Vec<u32> = ids.iter().map(|&id| id as u32).collect();
            let table = PagedTable { order: PagedOrder::Nhd, page_size, pages: &pages };
            cache.import(0, *leaf, 0..4196, &table, &memory, &memory)?;
        }
        let last: Vec<_> = leaves.iter().map(|&leaf| (leaf, 1)).collect();
        let batch = cache.batch_held(&last)?;
        let own = fastest(|| cache.attend(0, &batch, &q, &mut out).expect("it fits"));
        for order in [PagedOrder::Nhd, PagedOrder::Hnd] {
            let shape = [page, kv_heads as usize, head_dim as usize];
            let kv = PagedTensor::contiguous(bf16::elements(&memory), order, shape);
            let config = InPlace::plan_config(Grouping::Flatten, HEADS, DType::Bf16);
            let plan = PagedPlan::new(config, &sequences(&ids, &lens, page))?;
            let mut backend = InPlace::default();
            let in_place = fastest(|| {
                let call = PagedAttend {
                    k: kv,
                    v: kv,
                    kv_heads,
                    head_dim,
                    q: bf16::elements(&q),
                    out: bf16::elements_mut(&mut out),
                    lse: None,
                    params: AttentionParams::new(head_dim),
                };
                backend.attend(&plan, call).expect("it fits");
            });
            println!("  {order:?}, pages of {page}: {:.2}", in_place / own);
        }
    }
    Ok(())
}

fn main() -> Result<(), Box<dyn std::error::Error>> {
    planning()?;
    attention()
}
