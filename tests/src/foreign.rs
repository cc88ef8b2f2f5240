//! Foreign paged caches: sequences in blocks, K and V in any layout, and what attention over them gives in f64.

use deft::attention::{AttentionParams, PagedAttend, PagedTensor};
use deft::cache::KvElement;
use deft::plan::{BlockTables, HeadShape};
use rand::RngExt;
use rand::rngs::SmallRng;

use crate::forests::pick;
use crate::inputs::{normals, unwritten};
use crate::oracle::{Oracle, Outputs, Verdict};

/// Which queries sequences have.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Queries {
    /// One each.
    One,
    /// Several, each of which sees its sequence up to itself.
    Causal,
    /// Those of a draft tree.
    Drafts,
}

/// Sequences of a foreign cache.
#[derive(Clone, Debug, Default)]
pub struct Sequences {
    /// Tokens of a block.
    pub page_size: usize,
    /// Blocks that the cache has.
    pub blocks: usize,
    /// The blocks of each sequence.
    pub tables: Vec<Vec<i32>>,
    /// Its tokens.
    pub lens: Vec<usize>,
    /// Of each sequence's last tokens that have a query, those before it that it sees.
    pub seen: Vec<Vec<Vec<usize>>>,
}

impl Sequences {
    /// Up to `most` sequences that begin where others do or anew, blocks in no order; with drafts or a query each.
    pub fn random(rng: &mut SmallRng, most: usize, drafts: bool) -> Self {
        let page_size = pick(rng, &[1, 8, 16, 32, 64]);
        let mut all = Self { page_size, ..Self::default() };
        for sequence in 0..rng.random_range(1..=most) {
            let (mut table, mut len) = (Vec::new(), 0);
            if sequence > 0 && rng.random_bool(0.7) {
                let other = rng.random_range(0..sequence);
                // The last block as it is, or a copy of it.
                len = rng.random_range(0..=all.lens[other]);
                table = all.tables[other][..len.div_ceil(page_size)].to_vec();
                if len % page_size > 0 && rng.random_bool(0.8) {
                    table.pop();
                }
            }
            let most = if rng.random_bool(0.2) { 300 } else { 40 };
            let length = len + rng.random_range(0..=most);
            let most = if rng.random_bool(0.2) { 150 } else { 9 };
            all.tables.push(table);
            all.lens.push(0);
            all.seen.push(Vec::new());
            all.grow(sequence, length);
            let queries = match drafts {
                true => rng.random_range(0..=length.min(most)),
                false => 1,
            };
            for query in 0..queries {
                let parent = query.checked_sub(rng.random_range(1..4)).filter(|_| length > 1);
                let mut seen =
                    parent.map_or(Vec::new(), |parent| all.seen[sequence][parent].clone());
                seen.push(query);
                all.seen[sequence].push(seen);
            }
        }
        all
    }

    /// Up to `most` sequences with such queries.
    pub fn with(rng: &mut SmallRng, most: usize, queries: Queries) -> Self {
        let all = Self::random(rng, most, queries != Queries::One);
        if queries == Queries::Causal { all.causal() } else { all }
    }

    /// Makes a sequence `len` tokens long, of blocks that are no other's where it has too few.
    pub fn grow(&mut self, sequence: usize, len: usize) {
        self.lens[sequence] = len;
        while self.tables[sequence].len() * self.page_size < len {
            self.tables[sequence].push(self.blocks as i32);
            self.blocks += 1;
        }
    }

    /// Every query sees its sequence up to itself.
    #[must_use]
    pub fn causal(mut self) -> Self {
        for seen in self.seen.iter_mut().flat_map(|seen| seen.iter_mut().enumerate()) {
            *seen.1 = (0..=seen.0).collect();
        }
        self
    }

    /// Rows of queries, all sequences together.
    pub fn queries(&self) -> usize {
        self.seen.iter().map(Vec::len).sum()
    }

    /// Calls `then` with the tables as a caller has them.
    pub fn tables<R>(&self, masks: bool, then: impl FnOnce(BlockTables<'_>) -> R) -> R {
        let stride = self.tables.iter().map(Vec::len).max().unwrap_or(0) + 1;
        let padded = self.tables.iter().flat_map(|table| {
            let padding = std::iter::repeat_n(-1, stride - table.len());
            table.iter().copied().chain(padding)
        });
        let ids: Vec<i32> = padded.collect();
        let lens: Vec<i32> = self.lens.iter().map(|&len| len as i32).collect();
        let queries: Vec<i32> = self.seen.iter().map(|seen| seen.len() as i32).collect();
        let words = self.seen.iter().map(Vec::len).max().unwrap_or(0).div_ceil(64) + 1;
        let words = self.seen.iter().flatten().flat_map(|seen| {
            let mut row = vec![0u64; words];
            seen.iter().for_each(|&bit| row[bit / 64] |= 1 << (bit % 64));
            row
        });
        let bits: Vec<u64> = if masks { words.collect() } else { Vec::new() };
        let page_size = self.page_size as u32;
        let (ids, lens, queries, masks) = (&ids[..], &lens[..], &queries[..], &bits[..]);
        then(BlockTables { ids, stride, lens, page_size, queries, masks })
    }

    /// Block and place in it of each token that a row sees.
    ///
    /// # Panics
    /// If there are not so many rows.
    pub fn visible(&self, row: usize) -> Vec<(usize, usize)> {
        let mut left = row;
        for ((table, &len), seen) in self.tables.iter().zip(&self.lens).zip(&self.seen) {
            if left < seen.len() {
                let before = len.saturating_sub(seen.len());
                let own =
                    seen[left].iter().map(|token| before + token).filter(|&token| token < len);
                let tokens = (0..before).chain(own);
                let place =
                    |token| (table[token / self.page_size] as usize, token % self.page_size);
                return tokens.map(place).collect();
            }
            left -= seen.len();
        }
        unreachable!("there are not so many rows")
    }
}

/// How a foreign cache lies in memory.
#[derive(Clone, Copy, Debug)]
pub enum Layout {
    /// K, then V.
    Nhd,
    /// As `Nhd`.
    Hnd,
    /// A block's K, then its V, in one tensor.
    Both,
    /// K in one order, V in the other.
    Mixed,
    /// With room between heads, tokens and blocks, of whole pieces of eight elements.
    Padded,
    /// With room of any size.
    Unaligned,
}

/// The layouts that are read 16 bytes at a time.
pub const LAYOUTS: [Layout; 5] =
    [Layout::Nhd, Layout::Hnd, Layout::Both, Layout::Mixed, Layout::Padded];

/// K and V in one array, and queries.
#[derive(Clone, Debug)]
pub struct Foreign<T> {
    /// K and V: NaN where nobody sees it.
    pub memory: Vec<T>,
    /// Where K begins, and V.
    pub begins: [usize; 2],
    /// Of both, from one block, token and KV head to the next.
    pub strides: [[usize; 3]; 2],
    blocks: usize,
    heads: HeadShape,
    q: Vec<T>,
    params: AttentionParams,
}

impl<T: KvElement> Foreign<T> {
    /// Random K and V of the tokens that somebody sees; NaN elsewhere.
    pub fn new(sequences: &Sequences, heads: HeadShape, layout: Layout, seed: u64) -> Self {
        let (dim, kv) = (heads.head_dim as usize, heads.kv_heads as usize);
        let (page, blocks) = (sequences.page_size, sequences.blocks.max(1));
        let size = page * kv * dim;
        let (nhd, hnd) = ([size, kv * dim, dim], [size, dim, page * dim]);
        let padded = |room: [usize; 3]| {
            let slot = kv * (dim + room[0]) + room[1];
            [page * slot + room[2], slot, dim + room[0]]
        };
        let strides = match layout {
            Layout::Nhd => [nhd; 2],
            Layout::Hnd => [hnd; 2],
            Layout::Both => [[2 * size, kv * dim, dim]; 2],
            Layout::Mixed => [nhd, hnd],
            Layout::Padded => [padded([8, 16, 24]); 2],
            Layout::Unaligned => [padded([8, 3, 5]); 2],
        };
        let second = if matches!(layout, Layout::Both) { size } else { blocks * strides[0][0] };
        let params = AttentionParams::new(heads.head_dim);
        let q = normals::<T>(3, sequences.queries() * heads.q_heads as usize * dim, 1.0);
        let memory = unwritten(2 * blocks * strides[0][0]);
        let begins = [0, second];
        let mut foreign = Self { memory, begins, strides, blocks, heads, q, params };
        let values = normals::<T>(seed, 4096, 1.0);
        for row in 0..sequences.queries() {
            for place in sequences.visible(row) {
                for head in 0..kv {
                    for half in 0..2 {
                        let at = foreign.row(half, place, head);
                        for (dim, value) in foreign.memory[at..at + dim].iter_mut().enumerate() {
                            *value = values[(at * 31 + dim * 7) % 4096];
                        }
                    }
                }
            }
        }
        foreign
    }

    /// Where the row of a block, a token of it and a KV head begins, of K (half 0) or V.
    pub fn row(&self, half: usize, (block, slot): (usize, usize), head: usize) -> usize {
        let [of_block, of_slot, of_head] = self.strides[half];
        self.begins[half] + block * of_block + slot * of_slot + head * of_head
    }

    /// Plants a NaN or an infinity into K or V of a few tokens that somebody sees.
    pub fn spoil(&mut self, sequences: &Sequences, rng: &mut SmallRng) {
        for _ in 0..rng.random_range(1..4) {
            let seen = sequences.visible(rng.random_range(0..sequences.queries()));
            if seen.is_empty() {
                continue;
            }
            let head = rng.random_range(0..self.heads.kv_heads as usize);
            let half = usize::from(rng.random_range(0..3) > 0);
            let at = self.row(half, pick(rng, &seen), head);
            let bad = pick(rng, &[f32::NAN, f32::INFINITY, f32::NEG_INFINITY]);
            self.memory[at + rng.random_range(0..self.heads.head_dim as usize)] = T::from_f32(bad);
        }
    }

    /// A call that writes to `outputs`.
    pub fn call<'a>(&'a self, outputs: &'a mut Outputs<T>) -> PagedAttend<'a> {
        let [k, v] = [0, 1].map(|half| PagedTensor {
            elements: T::elements(&self.memory[self.begins[half]..]),
            blocks: self.blocks,
            strides: self.strides[half],
        });
        PagedAttend {
            k,
            v,
            kv_heads: self.heads.kv_heads,
            head_dim: self.heads.head_dim,
            q: T::elements(&self.q),
            out: T::elements_mut(&mut outputs.out),
            lse: Some(f32::elements_mut(&mut outputs.lse)),
            params: self.params,
        }
    }

    /// Compares what `attend` gives with attention of each sequence for itself.
    pub fn judge(
        &self,
        sequences: &Sequences,
        attend: impl FnOnce(PagedAttend<'_>),
    ) -> (Verdict, Outputs<T>) {
        let (rows, dim) = (sequences.queries(), self.heads.head_dim as usize);
        let mut outputs =
            Outputs::<T>::unwritten(rows * self.heads.q_heads as usize, self.heads.head_dim);
        attend(self.call(&mut outputs));
        let heads = 0..self.heads.kv_heads;
        let pairs = (0..rows as u32).flat_map(|row| heads.clone().map(move |head| (row, head)));
        let pairs: Vec<_> = pairs.collect();
        let oracle = Oracle::of(self.heads, &self.params, &self.q, &pairs, |row, head| {
            let mut kv = [Vec::new(), Vec::new()];
            for place in sequences.visible(row as usize) {
                for (half, values) in kv.iter_mut().enumerate() {
                    let at = self.row(half, place, head as usize);
                    let row = &self.memory[at..at + dim];
                    values.extend(row.iter().map(|x| f64::from(x.to_f32())));
                }
            }
            kv.into()
        });
        (oracle.judge(&outputs), outputs)
    }

    /// As [`judge`](Self::judge).
    ///
    /// # Panics
    /// If something else comes out.
    pub fn check(
        &self,
        sequences: &Sequences,
        context: &str,
        attend: impl FnOnce(PagedAttend<'_>),
    ) -> Outputs<T> {
        let (verdict, outputs) = self.judge(sequences, attend);
        assert!(verdict.passes(), "{context}: {verdict}");
        outputs
    }
}
