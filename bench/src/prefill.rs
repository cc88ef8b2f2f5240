//! `deft-bench prefill`: attention of whole prompts, every token a query that sees those before it and itself.

use std::path::PathBuf;
use std::time::Instant;

use anyhow::{Result, ensure};
use deft::attention::AttentionParams;
use deft::cache::PagePool;
use deft::plan::{Grouping, HeadShape, Planner};
use deft::tree::TokenForest;
use deft_tests::forests::view_tokens;
use deft_tests::problem::Problem;
use half::bf16;
use serde::{Deserialize, Serialize};

use crate::document::Document;
use crate::gpu::Repeats;
use crate::problem::PageOrder;
use crate::{DeviceArgs, say};

/// Heads of the layer: those of Llama-3-8B.
const HEADS: HeadShape = HeadShape { q_heads: 32, kv_heads: 8, head_dim: 128 };
const PAGE_TOKENS: u32 = kernels_gpu::abi::PAGE_TOKENS;

/// Checks causal attention of prompts against f64, then times it: 32/8 heads of 128, bf16.
///
/// Times are those of `trees`: one replayed CUDA graph, with an L2 that a 256 MB read has emptied.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// Tokens of the prompts.
    #[arg(long, value_delimiter = ',', default_value = "2048,8192,32768")]
    tokens: Vec<u32>,
    #[command(flatten)]
    device: DeviceArgs,
    /// Where to write the results.
    #[arg(long, value_name = "OUT")]
    json: Option<PathBuf>,
    /// Timed replays a prompt.
    #[arg(long, default_value_t = 30)]
    iterations: usize,
    /// Most rows of a work item; left out, as many as the kernels take.
    #[arg(long)]
    max_rows: Option<u32>,
}

/// A prompt.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(crate) struct Row {
    pub(crate) tokens: u32,
    pub(crate) median_us: f64,
    pub(crate) p20_us: f64,
    pub(crate) p80_us: f64,
    /// Of both products, over the tokens that each query sees.
    pub(crate) tflop_per_s: f64,
    pub(crate) items: usize,
    pub(crate) partial_slots: u32,
    pub(crate) plan_us: f64,
    pub(crate) max_rel_l2: f64,
}

/// Runs the command; the number of prompts that are wrong.
pub(crate) fn run(args: &Args) -> Result<usize> {
    let device = args.device.open()?;
    say(&device.describe());
    let repeats = Repeats { warmup: 5, measured: args.iterations.max(1) };
    let mut report = Document::new("prefill", &device, device.time_nothing(repeats)?);
    let mut wrong = 0;
    for &tokens in &args.tokens {
        ensure!(tokens > 0, "--tokens 0: a prompt has at least one token");
        let problem = problem(tokens)?;
        let mut runner = device.runner(&problem)?;
        let mut config = runner.plan_config(Grouping::Flatten);
        config.max_rows = args.max_rows.unwrap_or(config.max_rows);
        let mut planner = Planner::new(config)?;
        let begin = Instant::now();
        let plan = planner.plan(&problem.view)?;
        let plan_us = begin.elapsed().as_secs_f64() * 1e6;
        runner.load(&plan)?;
        let what = format!("a prompt of {tokens} tokens");
        let verdict = problem.judge(&runner.attend(&plan, &what)?);
        if !verdict.passes() {
            say(&format!("{what}: WRONG: {verdict}"));
            wrong += 1;
            continue;
        }
        let time = runner.time(&plan, repeats, &what)?;
        let shares = 0..plan.shares();
        let row = Row {
            tokens,
            median_us: time.median,
            p20_us: time.p20,
            p80_us: time.p80,
            tflop_per_s: flops(tokens) / time.median / 1e6,
            items: shares.map(|share| plan.share(share).items().len()).sum(),
            partial_slots: plan.partial_slots(),
            plan_us,
            max_rel_l2: verdict.max_rel_l2,
        };
        say(&format!(
            "{tokens:6} tokens: {:9.1} us ({:.1} to {:.1}), {:5.1} TFLOP/s; {} items, {} partial results, planned in \
             {:.0} us; rel L2 {:.1e}",
            row.median_us,
            row.p20_us,
            row.p80_us,
            row.tflop_per_s,
            row.items,
            row.partial_slots,
            row.plan_us,
            row.max_rel_l2
        ));
        report.rows.push(row);
        report.write(args.json.as_deref())?;
    }
    Ok(wrong)
}

/// One prompt, its pages in random order, of which 16 queries are compared with f64.
fn problem(tokens: u32) -> Result<Problem<bf16>> {
    let mut forest = TokenForest::new(PagePool::new(tokens.div_ceil(PAGE_TOKENS))?);
    let root = forest.insert_root(tokens)?;
    let mut view = view_tokens(&forest, &[(root, tokens)]);
    PageOrder::new(forest.pool().capacity()).apply(&mut view.pages);
    let params = AttentionParams::new(HEADS.head_dim);
    Ok(Problem::sampled(view, HEADS, params, 2, 16))
}

/// Two products, a multiplication and an addition each, of every query with every token that it sees.
fn flops(tokens: u32) -> f64 {
    let pairs = f64::from(tokens) * f64::from(tokens + 1) / 2.0;
    4.0 * pairs * f64::from(HEADS.q_heads * HEADS.head_dim)
}
