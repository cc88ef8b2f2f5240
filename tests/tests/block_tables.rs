//! Attention over foreign caches in place, planned from block tables, against attention of each sequence for itself.

use deft::PlanUpdate;
use deft::attention::cpu::InPlace;
use deft::attention::{AttentionParams, PagedAttend, PagedTensor};
use deft::cache::KvElement;
use deft::plan::{BlockTables, BlockTablesError, Grouping, HeadShape, PagedPlan};
use deft_tests::inputs::{normals, unwritten};
use deft_tests::oracle::{Oracle, Outputs};
use deft_tests::problem::{GROUPINGS, heads};
use half::{bf16, f16};
use rand::rngs::SmallRng;
use rand::{RngExt, SeedableRng};

/// Sequences of a foreign cache.
#[derive(Clone, Debug, Default)]
struct Sequences {
    page_size: usize,
    /// Blocks that the cache has.
    blocks: usize,
    tables: Vec<Vec<i32>>,
    lens: Vec<usize>,
    /// Of each sequence's last tokens that have a query, those before it that it sees.
    seen: Vec<Vec<Vec<usize>>>,
}

impl Sequences {
    /// Up to `most` sequences that begin where others do or anew, blocks in no order; with drafts or a query each.
    fn random(rng: &mut SmallRng, most: usize, drafts: bool) -> Self {
        let page_size = [1, 8, 16, 32, 64][rng.random_range(0..5)];
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

    fn grow(&mut self, sequence: usize, len: usize) {
        self.lens[sequence] = len;
        while self.tables[sequence].len() * self.page_size < len {
            self.tables[sequence].push(self.blocks as i32);
            self.blocks += 1;
        }
    }

    /// Every query sees its sequence up to itself.
    fn causal(mut self) -> Self {
        for seen in self.seen.iter_mut().flat_map(|seen| seen.iter_mut().enumerate()) {
            *seen.1 = (0..=seen.0).collect();
        }
        self
    }

    fn queries(&self) -> usize {
        self.seen.iter().map(Vec::len).sum()
    }

    /// Calls `then` with the tables as a caller has them.
    fn tables<R>(&self, masks: bool, then: impl FnOnce(BlockTables<'_>) -> R) -> R {
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
    fn visible(&self, row: usize) -> Vec<(usize, usize)> {
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
enum Layout {
    Nhd,
    Hnd,
    /// A block's K, then its V, in one tensor.
    Both,
    /// With room between heads, tokens and blocks.
    Padded,
}

const LAYOUTS: [Layout; 4] = [Layout::Nhd, Layout::Hnd, Layout::Both, Layout::Padded];

/// K and V in one array, and where each begins.
struct Foreign<T> {
    memory: Vec<T>,
    begins: [usize; 2],
    strides: [usize; 3],
}

impl<T: KvElement> Foreign<T> {
    /// Random K and V of the tokens that somebody sees; NaN elsewhere.
    fn new(sequences: &Sequences, heads: HeadShape, layout: Layout, seed: u64) -> Self {
        let (dim, kv) = (heads.head_dim as usize, heads.kv_heads as usize);
        let (page, blocks) = (sequences.page_size, sequences.blocks.max(1));
        let size = page * kv * dim;
        let (strides, second, len) = match layout {
            Layout::Nhd => ([size, kv * dim, dim], blocks * size, 2 * blocks * size),
            Layout::Hnd => ([size, dim, page * dim], blocks * size, 2 * blocks * size),
            Layout::Both => ([2 * size, kv * dim, dim], size, 2 * blocks * size),
            Layout::Padded => {
                let slot = kv * (dim + 8) + 3;
                let block = page * slot + 5;
                ([block, slot, dim + 8], blocks * block, 2 * blocks * block)
            }
        };
        let mut foreign = Self { memory: unwritten(len), begins: [0, second], strides };
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

    fn row(&self, half: usize, (block, slot): (usize, usize), head: usize) -> usize {
        let [of_block, of_slot, of_head] = self.strides;
        self.begins[half] + block * of_block + slot * of_slot + head * of_head
    }

    fn tensors(&self, blocks: usize) -> [PagedTensor<'_>; 2] {
        self.begins.map(|begin| PagedTensor {
            elements: T::elements(&self.memory[begin..]),
            blocks,
            strides: self.strides,
        })
    }
}

/// Compares all rows with attention of each sequence for itself.
fn check<T: KvElement>(
    sequences: &Sequences,
    plan: &PagedPlan,
    heads: HeadShape,
    layout: Layout,
    context: &str,
) {
    let (rows, dim) = (sequences.queries(), heads.head_dim as usize);
    let foreign = Foreign::<T>::new(sequences, heads, layout, 7);
    let q = normals::<T>(3, rows * heads.q_heads as usize * dim, 1.0);
    let mut outputs = Outputs::<T>::unwritten(rows * heads.q_heads as usize, heads.head_dim);
    let params = AttentionParams::new(heads.head_dim);
    let [k, v] = foreign.tensors(sequences.blocks);
    let call = PagedAttend {
        k,
        v,
        kv_heads: heads.kv_heads,
        head_dim: heads.head_dim,
        q: T::elements(&q),
        out: T::elements_mut(&mut outputs.out),
        lse: Some(f32::elements_mut(&mut outputs.lse)),
        params,
    };
    InPlace::default().attend(plan, call).unwrap();
    let pairs = (0..rows as u32).flat_map(|row| (0..heads.kv_heads).map(move |head| (row, head)));
    let pairs: Vec<_> = pairs.collect();
    let oracle = Oracle::of(heads, &params, &q, &pairs, |row, head| {
        let mut kv = [Vec::new(), Vec::new()];
        for place in sequences.visible(row as usize) {
            for (half, values) in kv.iter_mut().enumerate() {
                let at = foreign.row(half, place, head as usize);
                values.extend(foreign.memory[at..at + dim].iter().map(|x| f64::from(x.to_f32())));
            }
        }
        kv.into()
    });
    let verdict = oracle.judge(&outputs);
    assert!(verdict.passes(), "{context}: {verdict}");
}

fn plan(sequences: &Sequences, heads: HeadShape, grouping: Grouping, masks: bool) -> PagedPlan {
    let HeadShape { q_heads, kv_heads, head_dim } = heads;
    let config = InPlace::plan_config(grouping, [q_heads, kv_heads, head_dim], bf16::DTYPE);
    sequences.tables(masks, |tables| PagedPlan::new(config, &tables)).unwrap()
}

/// Random sequences in every layout, type and grouping.
fn check_random(seeds: std::ops::Range<u64>, drafts: bool, masks: bool) {
    for seed in seeds {
        let mut rng = SmallRng::seed_from_u64(seed);
        let mut sequences = Sequences::random(&mut rng, 20, drafts);
        if !masks {
            sequences = sequences.causal();
        }
        if sequences.queries() == 0 {
            continue;
        }
        let heads = [heads(4, 2, 64), heads(3, 3, 80), heads(8, 1, 128)][seed as usize % 3];
        let layout = LAYOUTS[seed as usize % 4];
        let grouping = GROUPINGS[seed as usize / 4 % GROUPINGS.len()];
        let plan = plan(&sequences, heads, grouping, masks);
        let context = format!("seed {seed}, {grouping:?}, {layout:?}, {heads:?}");
        match seed % 5 {
            0 => check::<f16>(&sequences, &plan, heads, layout, &context),
            1 => check::<f32>(&sequences, &plan, heads, layout, &context),
            _ => check::<bf16>(&sequences, &plan, heads, layout, &context),
        }
    }
}

#[test]
fn sequences_that_begin_alike_get_what_each_for_itself_gets() {
    check_random(0..60, false, false);
}

#[test]
fn new_tokens_of_a_sequence_see_it_up_to_themselves() {
    check_random(100..140, true, false);
}

#[test]
fn draft_trees_see_what_their_masks_say() {
    check_random(200..260, true, true);
}

#[test]
fn a_plan_follows_sequences_that_grow_shrink_and_change() {
    let shape = heads(4, 2, 64);
    let mut updates = Vec::new();
    for seed in 0..8 {
        let mut rng = SmallRng::seed_from_u64(seed);
        let mut sequences = Sequences::random(&mut rng, 9, false);
        let mut plan = plan(&sequences, shape, Grouping::Flatten, false);
        for step in 0..40 {
            let all = 0..sequences.lens.len();
            match rng.random_range(0..20) {
                0 => {
                    let sequence = rng.random_range(all);
                    let len = rng.random_range(0..=sequences.lens[sequence]);
                    sequences.lens[sequence] = len;
                    sequences.tables[sequence].truncate(len.div_ceil(sequences.page_size));
                }
                1 => {
                    let (from, to) = (rng.random_range(all.clone()), rng.random_range(all));
                    sequences.tables[to] = sequences.tables[from].clone();
                    sequences.lens[to] = sequences.lens[from];
                }
                _ => all.for_each(|sequence| {
                    sequences.grow(sequence, sequences.lens[sequence] + rng.random_range(0..7));
                }),
            }
            updates.push(sequences.tables(false, |tables| plan.update(&tables)).unwrap());
            if step % 3 == 0 {
                let context = format!("seed {seed}, step {step}, {:?}", updates.last());
                check::<f32>(&sequences, &plan, shape, Layout::Nhd, &context);
            }
        }
    }
    for update in [PlanUpdate::Unchanged, PlanUpdate::Patched, PlanUpdate::Replanned] {
        let count = updates.iter().filter(|&&found| found == update).count();
        assert!(count >= 10, "{update:?}: {count} of {}", updates.len());
    }
}

#[test]
fn what_is_shared_is_read_once() {
    let row = |ids: &[i32]| [ids, &vec![-1; 8 - ids.len()]].concat();
    // A prompt of three blocks; one branch has its fourth as well, which is another's last; one stands alone.
    let ids = [row(&[5, 2, 9, 4, 1]), row(&[5, 2, 9, 4]), row(&[5, 2, 9, 3]), row(&[7])].concat();
    let (lens, stride, page_size) = ([66, 60, 49, 16], 8, 16);
    let tables =
        BlockTables { ids: &ids, stride, lens: &lens, page_size, queries: &[], masks: &[] };
    let config = InPlace::plan_config(Grouping::Flatten, [4, 2, 64], bf16::DTYPE);
    let plan = PagedPlan::new(config, &tables).unwrap();
    assert_eq!(plan.tokens(), [66 + 60 + 49 + 16, 48 + 18 + 12 + 1 + 16]);
    assert_eq!(plan.blocks(), 10);
    let runs = plan.view().runs.iter().map(|run| (run.parent, run.tokens, run.queries.clone()));
    let expected = [
        (None, 48, 0..3),
        (Some(0), 18, 0..1),
        (Some(0), 12, 1..2),
        (Some(0), 1, 2..3),
        (None, 16, 3..4),
    ];
    assert_eq!(runs.collect::<Vec<_>>(), expected);
}

#[test]
fn bad_tables_are_refused_by_name_and_change_nothing() {
    let (ids, lens) = ([0, 1, 2, 3], [20, 32]);
    let good =
        BlockTables { ids: &ids, stride: 2, lens: &lens, page_size: 16, queries: &[], masks: &[] };
    let config = InPlace::plan_config(Grouping::Flatten, [4, 2, 64], f32::DTYPE);
    let mut plan = PagedPlan::new(config, &good).unwrap();
    let before = plan.plan().clone();
    let long = [0; 4 * 2];
    for (tables, message) in [
        (BlockTables { page_size: 48, ..good }, "page_size is 48; it must divide 64"),
        (BlockTables { page_size: 0, ..good }, "page_size is 0; it must divide 64"),
        (
            BlockTables { stride: 3, ..good },
            "block_tables has 4 elements, [sequences, stride] takes 6",
        ),
        (BlockTables { queries: &[1], ..good }, "queries has 1 elements, [sequences] takes 2"),
        (
            BlockTables { lens: &[20, 33], ..good },
            "lens[1] is 33; it must be between 0 and 32, what a row of block_tables holds",
        ),
        (
            BlockTables { lens: &[-1, 32], ..good },
            "lens[0] is -1; it must be between 0 and 32, what a row of block_tables holds",
        ),
        (
            BlockTables { ids: &[0, 1, -7, 3], ..good },
            "block_tables[2] is -7; it must be between 0 and 2147483647, a block",
        ),
        (
            BlockTables { queries: &[21, 1], ..good },
            "queries[0] is 21; it must be between 0 and 20, its sequence's length",
        ),
        (
            BlockTables { queries: &[1, -2], ..good },
            "queries[1] is -2; it must be between 0 and 32, its sequence's length",
        ),
        (
            BlockTables { queries: &[2, 1], masks: &[1, 3], ..good },
            "masks has 2 elements, [rows, words], a bit for each query of the longest draft, takes 3",
        ),
        (
            BlockTables { queries: &[2, 1], masks: &[1, 1, 1], ..good },
            "masks[1] is 0x1; a query sees its own token",
        ),
        (
            BlockTables { queries: &[2, 1], masks: &[1, 3, 3], ..good },
            "masks[2] is 0x3; bits are of the sequence's own queries",
        ),
        (
            BlockTables { ids: &[], lens: &[], ..good },
            "the view has 0 queries; a plan holds 1 to 65535",
        ),
        (
            BlockTables { ids: &long[..0], stride: 0, lens: &[0; 70_000], ..good },
            "the view has 70000 queries; a plan holds 1 to 65535",
        ),
    ] {
        let error: BlockTablesError = plan.update(&tables).unwrap_err();
        assert_eq!(error.to_string(), message);
        assert_eq!(*plan.plan(), before);
    }
    assert_eq!(plan.update(&good).unwrap(), PlanUpdate::Unchanged);
}

#[test]
fn calls_that_do_not_fit_the_plan_are_refused_by_name_and_write_nothing() {
    let (ids, lens) = ([0, 1, 2, 9], [20, 32]);
    let tables =
        BlockTables { ids: &ids, stride: 2, lens: &lens, page_size: 16, queries: &[], masks: &[] };
    let config = InPlace::plan_config(Grouping::Flatten, [4, 2, 64], f32::DTYPE);
    let plan = PagedPlan::new(config, &tables).unwrap();
    let (memory, q) = (vec![0.0; 10 * 16 * 2 * 64], vec![0.0; 2 * 4 * 64]);
    static HALVES: [bf16; 512] = [bf16::ZERO; 512];
    let refuse = |change: &dyn Fn(&mut PagedAttend<'_>)| {
        let mut out = vec![9.0; q.len()];
        let kv = || PagedTensor {
            elements: f32::elements(&memory),
            blocks: 10,
            strides: [16 * 2 * 64, 2 * 64, 64],
        };
        let mut call = PagedAttend {
            k: kv(),
            v: kv(),
            kv_heads: 2,
            head_dim: 64,
            q: f32::elements(&q),
            out: f32::elements_mut(&mut out),
            lse: None,
            params: AttentionParams::new(64),
        };
        change(&mut call);
        let result = InPlace::default().attend(&plan, call).map_err(|error| error.to_string());
        assert!(result.is_ok() || out.iter().all(|&x| x == 9.0));
        result.err()
    };
    assert_eq!(refuse(&|_| ()), None);
    for (change, message) in [
        (
            (&|call: &mut PagedAttend<'_>| call.v.blocks = 9) as &dyn Fn(&mut PagedAttend<'_>),
            "block_tables[3] names page 9, v has 9",
        ),
        (
            &|call| call.k.blocks = 11,
            "k has 20480 elements, [blocks, page_size, kv_heads, head_dim] by its strides takes 22528",
        ),
        (
            &|call| call.v.strides[1] = usize::MAX,
            "v has 20480 elements, [blocks, page_size, kv_heads, head_dim] by its strides takes \
             18446744073709551615",
        ),
        (&|call| call.head_dim = 60, "head_dim is 60; it must be a multiple of 8, up to 256"),
        (&|call| call.kv_heads = 0, "kv_heads is 0; it must be between 1 and 4096"),
        (&|call| call.kv_heads = 1, "q has 512 elements, [rows, q_heads, head_dim] takes 256"),
        (&|call| call.q = bf16::elements(&HALVES), "q is bf16, the cache holds f32"),
        (&|call| call.params.scale = f32::NAN, "scale is NaN; it must be finite"),
    ] {
        let refused: Option<String> = refuse(change);
        assert_eq!(refused.as_deref(), Some(message));
    }
}
