//! Keys, values and queries on the host.

use deft::abi::PAGE_TOKENS;
use deft::attention::AttentionParams;
use deft::cache::{CacheShape, DType};
use deft::plan::HeadShape;
use deft::tree::TreeView;
use half::{bf16, f16};
use kernels_gpu::layout::{CORE, element_offset, half_page_elements, page_elements};
use rayon::prelude::*;

use crate::random::{Random, normal_pair};

/// What slots without a token hold: whatever a former owner left, so kernels must not let it through.
const POISON: f32 = f32::NAN;

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
    /// Heads of `shape`, stored as `dtype`, with the usual scale.
    pub(crate) fn of(shape: HeadShape, dtype: DType) -> Self {
        Self {
            dtype,
            kv_heads: shape.kv_heads,
            group: shape.group_size(),
            head_dim: shape.head_dim,
            params: AttentionParams::new(shape.head_dim),
        }
    }
    pub(crate) fn head_shape(&self) -> HeadShape {
        HeadShape {
            q_heads: self.q_heads(),
            kv_heads: self.kv_heads,
            head_dim: self.head_dim,
        }
    }
    /// Bytes of a token's K and V of one layer.
    pub(crate) fn token_bytes(&self) -> u64 {
        2 * u64::from(self.kv_heads * self.head_dim) * self.dtype.bytes() as u64
    }
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
        Self::filled(heads, &filled, random)
    }

    /// Random K and V in all of `pages` pages.
    pub(crate) fn full(heads: Heads, pages: u32, random: Random) -> Self {
        Self::filled(heads, &vec![PAGE_TOKENS; pages as usize], random)
    }

    /// Random K and V of the first `filled[page]` tokens of each page, poison everywhere else.
    fn filled(heads: Heads, filled: &[u32], random: Random) -> Self {
        let elements = filled.len() * heads.page_elements();
        let mut pool = Self {
            heads,
            elements: vec![encode(heads.dtype, POISON); elements],
        };
        pool.elements
            .par_chunks_mut(heads.page_elements())
            .zip(filled)
            .enumerate()
            .for_each(|(page, (elements, &tokens))| {
                fill_page(&heads, elements, tokens, random, page as u64);
            });
        pool
    }
}

impl HostPool {
    /// Number of pages.
    pub(crate) fn pages(&self) -> u32 {
        (self.elements.len() / self.heads.page_elements()) as u32
    }

    /// A page as rows: where each goes, and K and V as `[64, kv_heads, head_dim]`.
    pub(crate) fn page_rows(&self, page: u32) -> (Vec<u32>, Vec<u16>, Vec<u16>) {
        let Heads {
            kv_heads, head_dim, ..
        } = self.heads;
        let row = (kv_heads * head_dim) as usize;
        let mut rows = [(); 2].map(|()| Vec::with_capacity(PAGE_TOKENS as usize * row));
        for token in 0..PAGE_TOKENS {
            for kv_head in 0..kv_heads {
                let base = page as usize * self.heads.page_elements()
                    + (kv_head * page_elements(head_dim)) as usize;
                let half = half_page_elements(head_dim) as usize;
                for (base, rows) in [base, base + half].into_iter().zip(&mut rows) {
                    for dim in (0..head_dim).step_by(CORE as usize) {
                        let at = base + element_offset(head_dim, token, dim) as usize;
                        rows.extend_from_slice(&self.elements[at..at + CORE as usize]);
                    }
                }
            }
        }
        let [k, v] = rows;
        let first = page * PAGE_TOKENS;
        ((first..first + PAGE_TOKENS).collect(), k, v)
    }

    /// Writes random K and V of one token; returns `(k, v)` as `[kv_heads, head_dim]`.
    pub(crate) fn write_token(
        &mut self,
        page: u32,
        token: u32,
        random: &mut Random,
    ) -> (Vec<u16>, Vec<u16>) {
        let Heads {
            dtype,
            kv_heads,
            head_dim,
            ..
        } = self.heads;
        let mut rows = (Vec::new(), Vec::new());
        for kv_head in 0..kv_heads {
            let base = page as usize * self.heads.page_elements()
                + (kv_head * page_elements(head_dim)) as usize;
            for dim in 0..head_dim {
                let offset = base + element_offset(head_dim, token, dim) as usize;
                let [k, v] = normal_pair(random.next()).map(|value| encode(dtype, value));
                self.elements[offset] = k;
                self.elements[offset + half_page_elements(head_dim) as usize] = v;
                rows.0.push(k);
                rows.1.push(v);
            }
        }
        rows
    }

    /// Copies one token's K and V.
    pub(crate) fn move_token(&mut self, from: u32, to: u32) {
        let head_dim = self.heads.head_dim;
        let place = |place: u32, kv_head: u32, half: u32, dim: u32| {
            (place / PAGE_TOKENS) as usize * self.heads.page_elements()
                + (kv_head * page_elements(head_dim)
                    + half * half_page_elements(head_dim)
                    + element_offset(head_dim, place % PAGE_TOKENS, dim)) as usize
        };
        for kv_head in 0..self.heads.kv_heads {
            for half in 0..2 {
                for dim in 0..head_dim {
                    let element = self.elements[place(from, kv_head, half, dim)];
                    self.elements[place(to, kv_head, half, dim)] = element;
                }
            }
        }
    }

    /// K and V of one token and KV head: `[head_dim]` each, added to `k` and `v`.
    pub(crate) fn read_token(
        &self,
        (page, token): (u32, u32),
        kv_head: u32,
        k: &mut Vec<f64>,
        v: &mut Vec<f64>,
    ) {
        let Heads {
            dtype, head_dim, ..
        } = self.heads;
        let base = page as usize * self.heads.page_elements()
            + (kv_head * page_elements(head_dim)) as usize;
        let half = half_page_elements(head_dim) as usize;
        for (base, row) in [(base, k), (base + half, v)] {
            for dim in (0..head_dim).step_by(CORE as usize) {
                let at = base + element_offset(head_dim, token, dim) as usize;
                let chunk = &self.elements[at..at + CORE as usize];
                row.extend(chunk.iter().map(|&bits| f64::from(decode(dtype, bits))));
            }
        }
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
                causal: 0,
            }],
            pages: vec![3, 1],
            queries: 1,
            ..TreeView::default()
        }
    }

    #[test]
    fn a_token_reads_back_dim_by_dim() {
        let pool = HostPool::random(heads(), 4, &view(), Random::new(1));
        let (mut k, mut v) = (Vec::new(), Vec::new());
        pool.read_token((1, 5), 1, &mut k, &mut v);
        let at = |half: usize, dim: u32| {
            let base = 3 * 64 * 128 + half * 64 * 64;
            f64::from(decode(
                DType::Bf16,
                pool.elements[base + element_offset(64, 5, dim) as usize],
            ))
        };
        for dim in 0..64 {
            assert_eq!((k[dim as usize], v[dim as usize]), (at(0, dim), at(1, dim)));
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
    fn a_written_token_is_what_a_move_brings_along() {
        let mut pool = HostPool::random(heads(), 4, &view(), Random::new(1));
        let (k, v) = pool.write_token(0, 9, &mut Random::new(5));
        pool.move_token(9, 2 * 64 + 33);
        let at = |half: usize, kv_head: usize, dim: u32| {
            pool.elements[2 * pool.heads.page_elements()
                + kv_head * 64 * 128
                + half * 64 * 64
                + element_offset(64, 33, dim) as usize]
        };
        for kv_head in 0..2 {
            for dim in 0..64 {
                assert_eq!(at(0, kv_head, dim), k[kv_head * 64 + dim as usize]);
                assert_eq!(at(1, kv_head, dim), v[kv_head * 64 + dim as usize]);
            }
        }
    }
}
