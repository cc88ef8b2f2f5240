//! Keys, values and queries on the host, and attention over them in f64.

use deft::attention::AttentionParams;
use deft::cache::{CacheShape, DType};
use deft::tree::TreeView;
use half::{bf16, f16};
use kernels_gpu::abi::PAGE_TOKENS;
use kernels_gpu::layout::{element_offset, half_page_elements, page_elements};
use rayon::prelude::*;

use crate::random::{Random, normal_pair};

/// What slots without a token hold: finite (stale data of a former owner is), and loud if it is read.
const POISON: f32 = 3e4;

/// The nearest `dtype` number to `value`, 16 bits.
pub(crate) fn encode(dtype: DType, value: f32) -> u16 {
    match dtype {
        DType::F16 => f16::from_f32(value).to_bits(),
        _ => bf16::from_f32(value).to_bits(),
    }
}

/// The value of a 16-bit number.
pub(crate) fn decode(dtype: DType, bits: u16) -> f32 {
    match dtype {
        DType::F16 => f16::from_bits(bits).to_f32(),
        _ => bf16::from_bits(bits).to_f32(),
    }
}

/// Head counts and sizes of a problem.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct Heads {
    /// bf16 or f16.
    pub(crate) dtype: DType,
    pub(crate) kv_heads: u32,
    /// Query heads a KV head.
    pub(crate) group: u32,
    pub(crate) head_dim: u32,
    pub(crate) params: AttentionParams,
}

impl Heads {
    pub(crate) fn q_heads(&self) -> u32 {
        self.kv_heads * self.group
    }
    /// A cache of one layer.
    pub(crate) fn shape(&self, pages: u32) -> CacheShape {
        CacheShape {
            layers: 1,
            kv_heads: self.kv_heads,
            head_dim: self.head_dim,
            dtype: self.dtype,
            pages,
        }
    }
    /// Elements of one query's row of q and out.
    pub(crate) fn query_elements(&self) -> usize {
        (self.q_heads() * self.head_dim) as usize
    }
    /// Elements of a page of one layer, all KV heads.
    pub(crate) fn page_elements(&self) -> usize {
        (self.kv_heads * page_elements(self.head_dim)) as usize
    }
}

/// One layer's pool: `[page][kv_head][page_elements]`.
#[derive(Clone, Debug)]
pub(crate) struct HostPool {
    pub(crate) heads: Heads,
    pub(crate) elements: Vec<u16>,
}

impl HostPool {
    /// Random K and V in `pages` pages for the tokens that `view` has, poison everywhere else.
    pub(crate) fn random(heads: Heads, pages: u32, view: &TreeView, random: Random) -> Self {
        let mut filled = vec![0; pages as usize];
        for run in &view.runs {
            let ids = &view.pages[run.pages.start as usize..run.pages.end as usize];
            for (index, &page) in ids.iter().enumerate() {
                let before = index as u32 * PAGE_TOKENS;
                filled[page as usize] = run.tokens.saturating_sub(before).min(PAGE_TOKENS);
            }
        }
        let mut pool = Self {
            heads,
            elements: vec![encode(heads.dtype, POISON); pages as usize * heads.page_elements()],
        };
        pool.elements
            .par_chunks_mut(heads.page_elements())
            .zip(filled)
            .enumerate()
            .for_each(|(page, (elements, tokens))| {
                fill_page(&heads, elements, tokens, random, page as u64);
            });
        pool
    }
}

fn fill_page(heads: &Heads, elements: &mut [u16], tokens: u32, random: Random, page: u64) {
    let chunks = heads.head_dim / 8;
    let half = half_page_elements(heads.head_dim) as usize;
    for (part, elements) in elements.chunks_mut(half).enumerate() {
        // A core matrix is 8 tokens x 8 dims; a row of it is one token's 8 dims.
        for (row, dims) in elements.chunks_mut(8).enumerate() {
            let token = (row as u32 / 8 / chunks) * 8 + row as u32 % 8;
            if token >= tokens {
                continue;
            }
            let first = ((page * 4096 + part as u64) << 20) + row as u64 * 4;
            for (pair, two) in dims.chunks_mut(2).enumerate() {
                let values = normal_pair(random.at(first + pair as u64));
                two[0] = encode(heads.dtype, values[0]);
                two[1] = encode(heads.dtype, values[1]);
            }
        }
    }
}

/// Random q: `[queries, q_heads, head_dim]`.
pub(crate) fn random_queries(heads: &Heads, queries: u32, random: Random) -> Vec<u16> {
    let mut q = vec![0; queries as usize * heads.query_elements()];
    q.par_chunks_mut(2).enumerate().for_each(|(pair, two)| {
        let values = normal_pair(random.at(pair as u64));
        for (element, value) in two.iter_mut().zip(values) {
            *element = encode(heads.dtype, value);
        }
    });
    q
}

/// One query's attention in f64, one KV head's group of query heads.
#[derive(Clone, Debug)]
pub(crate) struct Reference {
    /// `[group, head_dim]`.
    pub(crate) out: Vec<f64>,
    /// `[group]`, natural logarithm; -inf for a query that sees no token.
    pub(crate) lse: Vec<f64>,
}

/// `page * 64 + token` of all tokens that query `query` sees.
pub(crate) fn visible_places(view: &TreeView, query: u32) -> Vec<u32> {
    let mut places = Vec::new();
    for run in view.runs.iter().filter(|run| run.queries.contains(&query)) {
        let ids = &view.pages[run.pages.start as usize..run.pages.end as usize];
        for (index, &page) in ids.iter().enumerate() {
            let before = index as u32 * PAGE_TOKENS;
            let tokens = run.tokens.saturating_sub(before).min(PAGE_TOKENS);
            let seen = match run.mask {
                None => u64::MAX,
                Some(mask) => {
                    let width = run.queries.end - run.queries.start;
                    let word = mask + index as u32 * width + (query - run.queries.start);
                    view.masks[word as usize]
                }
            };
            places.extend(
                (0..tokens)
                    .filter(|token| seen >> token & 1 == 1)
                    .map(|token| page * PAGE_TOKENS + token),
            );
        }
    }
    places
}

/// Attention of `query` to `places`, KV head `kv_head`.
pub(crate) fn reference(
    pool: &HostPool,
    q: &[u16],
    query: u32,
    kv_head: u32,
    places: &[u32],
) -> Reference {
    let heads = &pool.heads;
    let (group, dims) = (heads.group as usize, heads.head_dim as usize);
    let number = |bits: u16| f64::from(decode(heads.dtype, bits));
    let q_begin = query as usize * heads.query_elements() + kv_head as usize * group * dims;
    let q: Vec<f64> = q[q_begin..q_begin + group * dims]
        .iter()
        .map(|&bits| number(bits))
        .collect();
    let row = |place: u32, half: usize, into: &mut [f64]| {
        let base = (place / PAGE_TOKENS) as usize * heads.page_elements()
            + kv_head as usize * page_elements(heads.head_dim) as usize
            + half * half_page_elements(heads.head_dim) as usize;
        for (chunk, into) in into.chunks_mut(8).enumerate() {
            let offset = element_offset(heads.head_dim, place % PAGE_TOKENS, chunk as u32 * 8);
            let from = &pool.elements[base + offset as usize..][..8];
            for (into, &bits) in into.iter_mut().zip(from) {
                *into = number(bits);
            }
        }
    };
    let mut token = vec![0.0; dims];
    let mut logits = vec![0.0; group * places.len()];
    for (index, &place) in places.iter().enumerate() {
        row(place, 0, &mut token);
        for head in 0..group {
            let dot = dot(&q[head * dims..][..dims], &token) * f64::from(heads.params.scale);
            logits[head * places.len() + index] = match heads.params.soft_cap.map(f64::from) {
                None => dot,
                Some(cap) => cap * (dot / cap).tanh(),
            };
        }
    }
    let mut lse = vec![f64::NEG_INFINITY; group];
    for (head, lse) in lse.iter_mut().enumerate() {
        let logits = &mut logits[head * places.len()..][..places.len()];
        let max = logits.iter().copied().fold(f64::NEG_INFINITY, f64::max);
        let sum: f64 = logits.iter().map(|logit| (logit - max).exp()).sum();
        if sum > 0.0 {
            *lse = max + sum.ln();
        }
        for logit in logits {
            *logit = (*logit - *lse).exp();
        }
    }
    let mut out = vec![0.0; group * dims];
    for (index, &place) in places.iter().enumerate() {
        row(place, 1, &mut token);
        for (head, out) in out.chunks_mut(dims).enumerate() {
            let weight = logits[head * places.len() + index];
            for (out, value) in out.iter_mut().zip(&token) {
                *out += weight * value;
            }
        }
    }
    Reference { out, lse }
}

fn dot(a: &[f64], b: &[f64]) -> f64 {
    let mut sums = [0.0; 8];
    for (a, b) in a.chunks(8).zip(b.chunks(8)) {
        for ((sum, a), b) in sums.iter_mut().zip(a).zip(b) {
            *sum += a * b;
        }
    }
    sums.iter().sum()
}

#[cfg(test)]
mod tests {
    use super::*;
    use deft::tree::Run;

    fn heads() -> Heads {
        Heads {
            dtype: DType::Bf16,
            kv_heads: 2,
            group: 2,
            head_dim: 64,
            params: AttentionParams::new(64),
        }
    }

    fn view() -> TreeView {
        TreeView {
            runs: vec![Run {
                parent: None,
                queries: 0..1,
                tokens: 70,
                pages: 0..2,
                length_slot: None,
                mask: None,
            }],
            pages: vec![3, 1],
            queries: 1,
            ..TreeView::default()
        }
    }

    #[test]
    fn every_token_is_filled_and_every_other_slot_is_poison() {
        let pool = HostPool::random(heads(), 4, &view(), Random::new(1));
        let poison = encode(DType::Bf16, POISON);
        let at = |page: usize, kv_head: usize, half: usize, token: u32, dim: u32| {
            pool.elements[(page * 2 + kv_head) * 64 * 128
                + half * 64 * 64
                + element_offset(64, token, dim) as usize]
        };
        for (kv_head, half, dim) in [(0, 0, 0), (1, 1, 63), (0, 1, 9)] {
            assert_ne!(at(3, kv_head, half, 63, dim), poison);
            assert_ne!(at(1, kv_head, half, 5, dim), poison);
            assert_eq!(at(1, kv_head, half, 6, dim), poison);
            assert_eq!(at(0, kv_head, half, 0, dim), poison);
        }
    }

    #[test]
    fn equal_keys_average_the_values() {
        let mut pool = HostPool::random(heads(), 4, &view(), Random::new(1));
        for token in 0..2 {
            for dim in 0..64 {
                let offset =
                    3 * pool.heads.page_elements() + element_offset(64, token, dim) as usize;
                pool.elements[offset] = 0;
                pool.elements[offset + 64 * 64] = encode(DType::Bf16, token as f32);
            }
        }
        let q = random_queries(&pool.heads, 1, Random::new(2));
        let places = [3 * 64, 3 * 64 + 1];
        let reference = reference(&pool, &q, 0, 0, &places);
        assert!(reference.out.iter().all(|&o| (o - 0.5).abs() < 1e-12));
        assert!(reference.lse.iter().all(|&l| (l - 2f64.ln()).abs() < 1e-12));
    }

    #[test]
    fn a_query_sees_the_tokens_of_its_path_in_order() {
        let places = visible_places(&view(), 0);
        assert_eq!(places.len(), 70);
        assert_eq!((places[0], places[63], places[64]), (192, 255, 64));
    }
}
