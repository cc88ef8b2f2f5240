//! Two questions after one system prompt: the second computes only what is new. The prompt survives the process in a
//! file. And how long it takes to find a prompt of 4,096 tokens among a thousand.
//!
//! ```sh
//! cargo run --release -p deft-attention --example prefixes
//! ```

use std::error::Error;
use std::time::{Duration, Instant};

use deft::{CacheError, DType, Device, Kv, NodeKey, TreeCache};

const LAYERS: u32 = 2;
const KV_HEADS: u32 = 2;
const HEAD_DIM: u32 = 64;
/// Whose prompts may meet: one number for each tenant, say.
const SALT: u64 = 1;

fn main() -> Result<(), Box<dyn Error>> {
    let mut cache = cache(64 << 20)?;
    let system: Vec<u32> = (0..1000).collect();
    for (name, question) in [("first", 2000..2040), ("second", 3000..3025)] {
        let prompt: Vec<u32> = system.iter().copied().chain(question).collect();
        let (leaf, computed) = ask(&mut cache, &prompt)?;
        println!("{name} question: {} tokens, {computed} computed", prompt.len());
        cache.prune(leaf)?; // once it is answered
    }
    let stats = cache.prefix_stats();
    println!("held: {} pages in {} nodes", stats.pages, stats.nodes);

    // Another process, the next day.
    let path = std::env::temp_dir().join(format!("system-prompt-{}.kv", std::process::id()));
    let (leaf, _) = ask(&mut cache, &system)?;
    cache.save(leaf, &path)?;
    let mut tomorrow = self::cache(64 << 20)?;
    tomorrow.load(&path, SALT)?;
    std::fs::remove_file(&path)?;
    let prompt: Vec<u32> = system.iter().copied().chain(4000..4030).collect();
    let (_, computed) = ask(&mut tomorrow, &prompt)?;
    println!("third question, after loading: {} tokens, {computed} computed", prompt.len());

    let times = find_among(1000)?;
    println!(
        "opening a prompt of 4096 tokens among 1000 others: median {:.1?}, slowest of {} {:.1?}",
        times[times.len() / 2],
        times.len(),
        times[times.len() - 1]
    );
    Ok(())
}

fn cache(bytes: u64) -> Result<TreeCache, CacheError> {
    TreeCache::builder(&Device::best())
        .layers(LAYERS)
        .heads(2 * KV_HEADS, KV_HEADS, HEAD_DIM)
        .dtype(DType::Bf16)
        .capacity_bytes(bytes)
        .build()
}

/// Runs a prompt: the leaf to answer from, and the tokens that had to be computed.
fn ask(cache: &mut TreeCache, prompt: &[u32]) -> Result<(NodeKey, u32), CacheError> {
    let opened = cache.open(prompt, SALT)?;
    let rest = prompt.len() as u32 - opened.matched;
    if rest > 0 {
        let batch = cache.batch(&[(opened.node, rest)])?;
        // A model would compute them.
        let rows = vec![deft::bf16::ONE; (rest * KV_HEADS * HEAD_DIM) as usize];
        for layer in 0..LAYERS {
            cache.append(layer, &batch, Kv::new(&rows, &rows))?;
        }
    }
    Ok((cache.seal(opened.node, prompt, SALT)?, rest))
}

/// Times of opening a prompt that is all there, among prompts with as many different ends and beginnings; ascending.
fn find_among(others: u32) -> Result<Vec<Duration>, CacheError> {
    let mut cache = cache(512 << 20)?;
    let prompt: Vec<u32> = (0..4096).collect();
    ask(&mut cache, &prompt)?;
    for i in 0..others {
        // Half of them go on from its first 2,048 tokens.
        let shared = if i % 2 == 0 { 2048 } else { 0 };
        let other: Vec<u32> = (0..shared).chain(10_000 + 100 * i..10_080 + 100 * i).collect();
        ask(&mut cache, &other)?;
    }
    let mut times = Vec::new();
    for _ in 0..1001 {
        let started = Instant::now();
        let opened = cache.open(&prompt, SALT)?;
        times.push(started.elapsed());
        assert_eq!(opened.matched, 4096);
        cache.prune(opened.node)?;
    }
    times.sort_unstable();
    Ok(times)
}

#[test]
fn the_example_runs() {
    main().unwrap();
}
