//! Random operations with hostile arguments: no panic, an error changes nothing, and attention agrees with f64 whatever
//! was refused, freed, moved or spoilt by NaN before.
//!
//! `DEFT_FUZZ_SECONDS` sets how long, 4 if it is not set. Cases that failed are kept beside this file.

use std::time::{Duration, Instant};

use deft::cache::{PagedOrder, PagedTable};
use deft::{
    Batch, CacheError, Device, DraftNode, Grouping, Kv, KvElement, NodeKey, Out, RotaryTable,
    StepGraph, TreeCache, bf16, f16,
};
use deft_tests::emulated::Emulated;
use deft_tests::oracle::assert_close;
use deft_tests::shadow::{Shadow, Token};
use proptest::collection::vec;
use proptest::prelude::*;
use proptest::sample::Index;
use proptest::test_runner::{Config, FileFailurePersistence, TestRunner};
use rand::rngs::SmallRng;
use rand::{RngExt, SeedableRng};

use super::GROUPINGS;

const LAYERS: u32 = 2;
const HEADS: [u32; 3] = [4, 2, 64];
/// Elements of a row of K or V.
const ROW: usize = 128;
const PAGES: u64 = 24;
/// Batches that are kept.
const BATCHES: usize = 4;
/// Rows of a batch that are compared.
const CHECKED: usize = 12;

/// A node, or a key that names none of this cache.
#[derive(Clone, Debug)]
struct Pick {
    index: Index,
    /// 0: a node that is gone; 1: another cache's; 2: no key at all.
    wrong: Option<u8>,
}

#[derive(Clone, Debug)]
enum Op {
    Root,
    Fork(Pick, usize),
    Batch(Vec<(Pick, u32)>),
    Advance(Index, u32),
    Refresh(Index),
    Regroup(Index, Index),
    /// Writes new K and V of a batch and attends.
    Step(Index, bool),
    /// Of the wrong arguments that a step may have, one.
    Wrong(Index, u8),
    Import(Pick, u32, u32, bool),
    Export(Pick, u32, u32, u32),
    Shrink(Vec<Pick>, u32),
    Draft(Pick, Vec<(Option<u32>, u32)>),
    /// The path down to a node of a draft, or any nodes.
    Accept(Pick, Vec<Pick>),
    Merge(Pick),
    Prune(Pick),
}

fn tokens() -> impl Strategy<Value = u32> {
    prop_oneof![
        12 => 1u32..4,
        4 => 60u32..68,
        1 => 100u32..300,
        1 => Just(0u32),
        1 => prop_oneof![Just(70_000u32), Just(u32::MAX), Just(u32::MAX - 63)],
    ]
}

fn pick() -> impl Strategy<Value = Pick> {
    let wrong = prop::option::weighted(0.08, 0u8..3);
    (any::<Index>(), wrong).prop_map(|(index, wrong)| Pick { index, wrong })
}

fn draft() -> impl Strategy<Value = Vec<(Option<u32>, u32)>> {
    let parent = prop_oneof![8 => prop::option::of(0u32..6), 1 => Just(Some(u32::MAX))];
    vec((parent, prop_oneof![9 => 1u32..30, 1 => tokens()]), 0..7)
}

fn op() -> impl Strategy<Value = Op> {
    let batch = any::<Index>;
    prop_oneof![
        3 => Just(Op::Root),
        6 => (pick(), prop_oneof![9 => 0usize..4, 1 => Just(usize::MAX)]).prop_map(|(n, k)| Op::Fork(n, k)),
        14 => vec((pick(), tokens()), 0..6).prop_map(Op::Batch),
        10 => (batch(), tokens()).prop_map(|(b, n)| Op::Advance(b, n)),
        4 => batch().prop_map(Op::Refresh),
        2 => (batch(), any::<Index>()).prop_map(|(b, g)| Op::Regroup(b, g)),
        8 => (batch(), any::<bool>()).prop_map(|(b, rotated)| Op::Step(b, rotated)),
        4 => (batch(), 0u8..9).prop_map(|(b, kind)| Op::Wrong(b, kind)),
        3 => (pick(), tokens(), 0u32..20, any::<bool>()).prop_map(|(n, k, p, o)| Op::Import(n, k, p, o)),
        3 => (pick(), tokens(), tokens(), 0u32..20).prop_map(|(n, a, b, p)| Op::Export(n, a, b, p)),
        2 => (vec(pick(), 0..3), tokens()).prop_map(|(n, k)| Op::Shrink(n, k)),
        6 => (pick(), draft()).prop_map(|(n, d)| Op::Draft(n, d)),
        5 => (pick(), vec(pick(), 0..3)).prop_map(|(n, p)| Op::Accept(n, p)),
        4 => pick().prop_map(Op::Merge),
        4 => pick().prop_map(Op::Prune),
    ]
}

/// A cache, what it should hold, and another one whose keys and batches are wrong here.
struct World<T> {
    cache: TreeCache,
    shadow: Shadow,
    /// Keys of all nodes that ever were.
    keys: Vec<NodeKey>,
    batches: Vec<Batch>,
    foreign_key: NodeKey,
    foreign_batch: Batch,
    graph: StepGraph,
    rng: SmallRng,
    /// Kernels keep a token that is not finite in another way than the CPU does.
    kernels: bool,
    done: [u32; 2],
    of: std::marker::PhantomData<T>,
}

type Rows<T> = Vec<[Vec<T>; 2]>;

impl<T: KvElement> World<T> {
    fn new(kernels: bool, seed: u64) -> Self {
        let [q_heads, kv_heads, head_dim] = HEADS;
        let make = || {
            let builder = TreeCache::builder(&Device::cpu())
                .layers(LAYERS)
                .heads(q_heads, kv_heads, head_dim)
                .dtype(T::DTYPE)
                .capacity_bytes(
                    PAGES * 64 * (2 * ROW * T::DTYPE.bytes()) as u64 * u64::from(LAYERS),
                );
            let builder = match kernels {
                true => builder.backend(|shape| Ok(Box::new(Emulated::new(shape, 1)))),
                false => builder,
            };
            builder.build().unwrap()
        };
        let mut other = make();
        let foreign_key = other.insert_root().unwrap();
        Self {
            cache: make(),
            shadow: Shadow::default(),
            keys: Vec::new(),
            batches: Vec::new(),
            foreign_batch: other.batch(&[(foreign_key, 3)]).unwrap(),
            foreign_key,
            graph: StepGraph::new(),
            rng: SmallRng::seed_from_u64(seed),
            kernels,
            done: [0; 2],
            of: std::marker::PhantomData,
        }
    }

    fn is_alive(&self, node: NodeKey) -> bool {
        self.cache.forest().length(node).is_ok()
    }

    fn node(&self, pick: &Pick) -> NodeKey {
        let of = |alive: bool| {
            let some: Vec<_> = self
                .keys
                .iter()
                .filter(|&&key| self.is_alive(key) == alive)
                .collect();
            if some.is_empty() {
                NodeKey::default()
            } else {
                **pick.index.get(&some)
            }
        };
        match pick.wrong {
            None => of(true),
            Some(0) => of(false),
            Some(1) => self.foreign_key,
            Some(_) => NodeKey::default(),
        }
    }

    /// All that a call that is refused must leave as it was.
    fn state(&self) -> impl PartialEq + std::fmt::Debug + use<T> {
        let forest = self.cache.forest();
        let pages = (forest.pool().free(), forest.tail_pages().to_vec());
        let positions: Vec<_> = self
            .batches
            .iter()
            .map(|batch| batch.positions().to_vec())
            .collect();
        let nodes: Vec<_> = self
            .batches
            .iter()
            .map(|batch| batch.nodes().to_vec())
            .collect();
        (
            forest.lengths().to_vec(),
            pages,
            forest.node_count(),
            forest.growth_cursor(),
            positions,
            nodes,
        )
    }

    fn run(&mut self, op: &Op) {
        let before = self.state();
        let outcome = self.apply(op);
        self.cache.forest().debug_assert_invariants();
        self.done[usize::from(outcome.is_err())] += 1;
        if let Err(error) = outcome {
            assert!(
                self.state() == before,
                "{op:?}: {error}: {before:?} is {:?}",
                self.state()
            );
            assert!(!error.to_string().is_empty());
        }
    }

    fn apply(&mut self, op: &Op) -> Result<(), CacheError> {
        match op {
            Op::Root => {
                let root = self.cache.insert_root()?;
                self.insert(root, None);
            }
            Op::Fork(node, n) => {
                let node = self.node(node);
                for child in self.cache.fork(node, *n)? {
                    self.insert(child, Some(node));
                }
            }
            Op::Batch(nodes) => {
                let nodes: Vec<_> = nodes
                    .iter()
                    .map(|(pick, n)| (self.node(pick), *n))
                    .collect();
                let batch = self.cache.batch(&nodes)?;
                self.step(&batch, false);
                self.batches.push(batch);
                if self.batches.len() > BATCHES {
                    self.batches.remove(0);
                }
            }
            Op::Advance(at, n) => {
                let Some(mut batch) = self.batch(at) else {
                    return Ok(());
                };
                let outcome = self.cache.advance(&mut batch, *n);
                self.put(at, &batch);
                outcome?;
                self.step(&batch, false);
            }
            Op::Refresh(at) => {
                let Some(mut batch) = self.batch(at) else {
                    return Ok(());
                };
                let outcome = self.cache.refresh(&mut batch);
                self.put(at, &batch);
                outcome?;
                self.step(&batch, false);
            }
            Op::Regroup(at, grouping) => {
                let Some(mut batch) = self.batch(at) else {
                    return Ok(());
                };
                let grouping: Grouping = *grouping.get(&GROUPINGS);
                let outcome = self.cache.regroup(&mut batch, grouping);
                self.put(at, &batch);
                outcome?;
                self.step(&batch, false);
            }
            Op::Step(at, rotated) => {
                let Some(batch) = self.batch(at) else {
                    return Ok(());
                };
                self.probe(&batch)?;
                self.step(&batch, *rotated);
            }
            Op::Wrong(at, kind) => {
                let Some(batch) = self.batch(at) else {
                    return Ok(());
                };
                self.wrong(&batch, *kind);
            }
            Op::Import(node, k, page_size, hnd) => self.import(node, *k, *page_size, *hnd)?,
            Op::Export(node, begin, end, page_size) => {
                self.export(node, *begin, *end, *page_size)?
            }
            Op::Shrink(nodes, k) => {
                let nodes: Vec<_> = nodes.iter().map(|pick| self.node(pick)).collect();
                self.cache.shrink(&nodes, *k)?;
                for node in nodes {
                    let length = self.length(node);
                    self.shadow.replace(node, length, Vec::new());
                }
            }
            Op::Draft(trunk, draft) => self.draft(trunk, draft)?,
            Op::Accept(node, path) => self.accept(node, path)?,
            Op::Merge(node) => self.merge(node)?,
            Op::Prune(node) => {
                let node = self.node(node);
                self.cache.prune(node)?;
            }
        }
        Ok(())
    }

    fn insert(&mut self, node: NodeKey, parent: Option<NodeKey>) {
        self.keys.push(node);
        self.shadow.insert(node, parent);
    }

    fn length(&self, node: NodeKey) -> usize {
        self.cache.forest().length(node).unwrap() as usize
    }

    fn batch(&self, at: &Index) -> Option<Batch> {
        (!self.batches.is_empty()).then(|| at.get(&self.batches).clone())
    }

    fn put(&mut self, at: &Index, batch: &Batch) {
        let at = at.index(self.batches.len());
        self.batches[at] = batch.clone();
    }

    /// Queries: numbers.
    fn queries(&mut self, rows: usize) -> Rows<T> {
        let rng = &mut self.rng;
        let count = rows * (HEADS[0] * HEADS[2]) as usize;
        let mut value = |_| T::from_f32(rng.random_range(-1.5..1.5));
        (0..LAYERS)
            .map(|_| [(0..count).map(&mut value).collect(), Vec::new()])
            .collect()
    }

    /// Numbers, now and then one that is none.
    fn values(&mut self, count: usize) -> Vec<T> {
        let rng = &mut self.rng;
        let mut values: Vec<T> = (0..count)
            .map(|_| T::from_f32(rng.random_range(-1.5..1.5)))
            .collect();
        if count > 0 && rng.random_ratio(1, 12) {
            let bad = [f32::NAN, f32::INFINITY, f32::NEG_INFINITY][rng.random_range(0..3)];
            values[rng.random_range(0..count)] = T::from_f32(bad);
        }
        values
    }

    fn rows(&mut self, count: usize) -> Rows<T> {
        (0..LAYERS)
            .map(|_| [(); 2].map(|()| self.values(count * ROW)))
            .collect()
    }

    /// Tokens `begin..begin + count` of `rows`, as the definition takes them.
    fn exact(rows: &Rows<T>, begin: usize, count: usize) -> Vec<Token> {
        let of = |values: &Vec<T>, token: usize| {
            let row = values[token * ROW..][..ROW].iter();
            row.map(|value| value.to_f32().into()).collect()
        };
        let token = |token| {
            rows.iter()
                .map(|[k, v]| [of(k, token), of(v, token)])
                .collect()
        };
        (begin..begin + count).map(token).collect()
    }

    /// Whether the cache takes the batch at all.
    fn probe(&mut self, batch: &Batch) -> Result<(), CacheError> {
        let (q, mut out) = self.query(batch);
        self.cache.attend(0, batch, &q, &mut out)
    }

    fn query(&self, batch: &Batch) -> (Vec<T>, Vec<T>) {
        let q = vec![T::from_f32(1.0); batch.rows() * (HEADS[0] * HEADS[2]) as usize];
        (q.clone(), q)
    }

    /// Writes new K and V of the batch's tokens, and compares attention of some rows in every layer.
    fn step(&mut self, batch: &Batch, rotated: bool) {
        let mut rows = self.rows(batch.rows());
        let q = self.queries(batch.rows());
        // Rotation by a table is compared elsewhere; here by that of position 0 alone.
        let table = RotaryTable::from_frequencies(&[0.0; 32], 4000).unwrap();
        let longest = batch.positions().iter().max().copied().unwrap_or(0);
        let rotated = rotated && longest < 4000;
        if rotated {
            // A rotation spreads what is not finite to another dim.
            for [k, _] in &mut rows {
                k.iter_mut()
                    .filter(|k| !k.to_f32().is_finite())
                    .for_each(|k| *k = T::from_f32(0.5));
            }
        }
        let heads = batch.rows() * HEADS[0] as usize;
        let mut results: Vec<(Vec<T>, Vec<f32>)> = q
            .iter()
            .map(|[q, _]| (vec![T::from_f32(f32::NAN); q.len()], vec![f32::NAN; heads]))
            .collect();
        let (cache, graph) = (&mut self.cache, &mut self.graph);
        let step = cache.capture(graph, batch, |step| {
            for (layer, ((out, lse), ([k, v], [q, _]))) in
                (0..).zip(results.iter_mut().zip(rows.iter().zip(&q)))
            {
                let kv = Kv::new(k, v);
                step.append(layer, if rotated { kv.rotated(&table) } else { kv })?;
                step.attend(layer, q, Out::with_lse(out, lse))?;
            }
            Ok::<(), CacheError>(())
        });
        step.expect("a fresh batch and right arguments");
        let (mut begin, mut seen) = (0, Vec::new());
        for &(node, tokens) in batch.nodes() {
            let tokens = tokens as usize;
            let kept = self.length(node) - tokens;
            self.shadow
                .replace(node, kept, Self::exact(&rows, begin, tokens));
            seen.extend((0..tokens).map(|row| (node, tokens - 1 - row)));
            begin += tokens;
        }
        self.compare(&seen, &q, &results);
    }

    fn compare(&mut self, seen: &[(NodeKey, usize)], q: &Rows<T>, results: &[(Vec<T>, Vec<f32>)]) {
        let (heads, dim) = (HEADS[0] as usize, HEADS[2] as usize);
        let first = self
            .rng
            .random_range(0..=seen.len().saturating_sub(CHECKED));
        let some = first..seen.len().min(first + CHECKED);
        for (layer, ([q, _], (out, lse))) in q.iter().zip(results).enumerate() {
            let elements = some.start * heads * dim..some.end * heads * dim;
            let expected = self.shadow.attend_rows(
                &self.cache,
                layer,
                &seen[some.clone()],
                &q[elements.clone()],
            );
            let lse = &lse[some.start * heads..some.end * heads];
            assert_close(
                &out[elements],
                lse,
                &expected,
                dim,
                &format!("layer {layer}"),
            );
        }
    }

    /// A call with one wrong argument, which must be refused, and write nothing.
    fn wrong(&mut self, batch: &Batch, kind: u8) {
        let rows = batch.rows();
        let (q, mut out) = self.query(batch);
        let before = out.clone();
        let kv = vec![T::from_f32(1.0); rows * ROW];
        let (mut more, mut lse) = (kv.clone(), vec![7.0; rows * HEADS[0] as usize + 1]);
        more.push(T::from_f32(1.0));
        let good = Kv::new(&kv, &kv);
        let cache = &mut self.cache;
        let refused = match kind {
            0 => cache.append(LAYERS, batch, good),
            1 => cache.append(u32::MAX, batch, good),
            2 => cache.append(0, batch, Kv::new(&kv, &more)),
            3 => cache.append(0, batch, Kv::new(&[][..], &kv[..])),
            4 => cache.append(0, &self.foreign_batch, good),
            5 => cache.attend(0, batch, &q[..0], &mut out),
            6 => cache.attend(0, batch, &q, Out::with_lse(&mut out, &mut lse)),
            7 => cache.attend(LAYERS, batch, &q, &mut out),
            _ => {
                let short = RotaryTable::new(
                    HEADS[2],
                    batch.positions().iter().max().copied().unwrap_or(0),
                    1e4,
                );
                cache.append(0, batch, good.rotated(&short.unwrap()))
            }
        };
        let error = refused.expect_err("an argument is wrong");
        let text = error.to_string();
        assert!(
            text.contains("batch") || text.contains(|c: char| c.is_ascii_digit()),
            "{kind}: {text}"
        );
        assert!(
            T::elements(&out).bytes() == T::elements(&before).bytes(),
            "{kind}: {text}"
        );
    }

    /// New tokens of a leaf that come from pages of another engine.
    fn import(&mut self, pick: &Pick, k: u32, page_size: u32, hnd: bool) -> Result<(), CacheError> {
        let node = self.node(pick);
        let order = if hnd {
            PagedOrder::Hnd
        } else {
            PagedOrder::Nhd
        };
        let no_pages = PagedTable {
            order,
            page_size,
            pages: &[],
        };
        if page_size == 0 {
            return self
                .cache
                .import::<T>(0, node, 0..k.max(1), &no_pages, &[], &[]);
        }
        self.cache.extend(&[node], k)?;
        let rows = self.rows(k as usize);
        let end = self.cache.forest().context_length(node)? as u32;
        // Backwards, so that pages are in no order.
        let pages: Vec<u32> = (0..k.div_ceil(page_size)).rev().collect();
        let table = PagedTable {
            pages: &pages,
            ..no_pages
        };
        for (layer, kv) in (0..).zip(&rows) {
            let [keys, values] = kv
                .each_ref()
                .map(|rows| to_pages(rows, page_size as usize, &pages, hnd));
            let imported = self
                .cache
                .import(layer, node, end - k..end, &table, &keys, &values);
            imported.expect("the tokens are there");
        }
        let kept = self.length(node) - k as usize;
        self.shadow
            .replace(node, kept, Self::exact(&rows, 0, k as usize));
        Ok(())
    }

    fn export(
        &mut self,
        pick: &Pick,
        begin: u32,
        end: u32,
        page_size: u32,
    ) -> Result<(), CacheError> {
        let node = self.node(pick);
        let tokens = end.saturating_sub(begin).min(2000) as usize;
        let pages: Vec<u32> = (0..tokens.div_ceil(page_size.max(1) as usize) as u32).collect();
        let table = PagedTable {
            order: PagedOrder::Nhd,
            page_size,
            pages: &pages,
        };
        let room = pages.len() * page_size.max(1) as usize * ROW;
        for layer in 0..LAYERS {
            let [mut k, mut v] = [(); 2].map(|()| vec![T::from_f32(7.0); room]);
            self.cache
                .export(layer, node, begin..end, &table, &mut k, &mut v)?;
            for (at, token) in self.shadow.path(node)[begin as usize..end as usize]
                .iter()
                .enumerate()
            {
                for (found, right) in [&k, &v].into_iter().zip(&token[layer as usize]) {
                    let spoilt = token[layer as usize]
                        .iter()
                        .flatten()
                        .any(|x| !x.is_finite());
                    let found = found[at * ROW..][..ROW]
                        .iter()
                        .map(|x| f64::from(x.to_f32()));
                    let same = found
                        .zip(right)
                        .all(|(a, &b)| a == b || a.is_nan() && b.is_nan());
                    assert!(
                        same || self.kernels && spoilt,
                        "token {at} of layer {layer}"
                    );
                }
            }
        }
        Ok(())
    }

    fn draft(&mut self, trunk: &Pick, draft: &[(Option<u32>, u32)]) -> Result<(), CacheError> {
        let trunk = self.node(trunk);
        let draft: Vec<_> = draft
            .iter()
            .map(|&(parent, tokens)| DraftNode { parent, tokens })
            .collect();
        let keys = self.cache.insert_draft(trunk, &draft)?;
        for (&key, node) in keys.iter().zip(&draft) {
            let parent = node.parent.map_or(trunk, |parent| keys[parent as usize]);
            self.insert(key, Some(parent));
        }
        // One by one from the top: no node sees those that are not written yet, whatever is in their pages.
        for (&key, node) in keys.iter().zip(&draft) {
            let batch = self.cache.batch_held(&[(key, node.tokens)]).unwrap();
            self.step(&batch, false);
        }
        Ok(())
    }

    fn accept(&mut self, pick: &Pick, path: &[Pick]) -> Result<(), CacheError> {
        let forest = self.cache.forest();
        let mut trunk = self.node(pick);
        let mut nodes: Vec<_> = path.iter().map(|pick| self.node(pick)).collect();
        if forest.is_draft(trunk).unwrap_or(false) {
            nodes.clear();
            while forest.is_draft(trunk)? {
                nodes.insert(0, trunk);
                trunk = forest.parent(trunk)?.expect("a draft has a trunk");
            }
        }
        self.cache.accept(trunk, &nodes)?;
        self.shadow.merge(trunk, &nodes, &[]);
        self.look(trunk);
        Ok(())
    }

    fn merge(&mut self, pick: &Pick) -> Result<(), CacheError> {
        let node = self.node(pick);
        let children = |of: NodeKey| -> Vec<NodeKey> {
            let children = self.cache.forest().children(of);
            children.map(Iterator::collect).unwrap_or_default()
        };
        let (mut below, mut last) = (Vec::new(), children(node));
        while let [only] = last[..] {
            below.push(only);
            last = children(only);
        }
        self.cache.merge_chain(node)?;
        self.shadow.merge(node, &below, &last);
        self.look(node);
        Ok(())
    }

    /// Compares attention at a node whose tokens were moved.
    fn look(&mut self, node: NodeKey) {
        if self.length(node) == 0 {
            return;
        }
        let batch = self.cache.batch_held(&[(node, 1)]).unwrap();
        let heads = HEADS[0] as usize;
        let q = self.queries(1);
        let results: Vec<_> = (0..)
            .zip(&q)
            .map(|(layer, [q, _])| {
                let (mut out, mut lse) =
                    (vec![T::from_f32(f32::NAN); q.len()], vec![f32::NAN; heads]);
                let results = Out::with_lse(&mut out, &mut lse);
                self.cache.attend(layer, &batch, q, results).unwrap();
                (out, lse)
            })
            .collect();
        self.compare(&[(node, 0)], &q, &results);
    }
}

/// `rows` in pages of another engine's cache.
fn to_pages<T: KvElement>(rows: &[T], page_size: usize, pages: &[u32], hnd: bool) -> Vec<T> {
    let (heads, dim) = (HEADS[1] as usize, HEADS[2] as usize);
    let mut paged = vec![T::from_f32(7.0); pages.len() * page_size * ROW];
    for (at, row) in rows.chunks_exact(dim).enumerate() {
        let (token, head) = (at / heads, at % heads);
        let (page, slot) = (pages[token / page_size] as usize, token % page_size);
        let within = if hnd {
            head * page_size + slot
        } else {
            slot * heads + head
        };
        let place = (page * page_size * heads + within) * dim;
        paged[place..place + dim].copy_from_slice(row);
    }
    paged
}

/// Runs random worlds as long as there is time; operations that were done and that were refused.
fn fuzz<T: KvElement>(kernels: bool, most_ops: usize, share: u32) -> [u32; 2] {
    let seconds = deft_tests::setting("DEFT_FUZZ_SECONDS", 4);
    let end = Instant::now() + Duration::from_secs(seconds) / share;
    let done = std::cell::Cell::new([0; 2]);
    let worlds = (any::<u64>(), vec(op(), 1..most_ops));
    loop {
        let mut runner = TestRunner::new(Config {
            cases: 4,
            source_file: Some(file!()),
            failure_persistence: Some(Box::new(FileFailurePersistence::WithSource("regressions"))),
            max_shrink_time: 60_000,
            ..Config::default()
        });
        let run = runner.run(&worlds, |(seed, ops)| {
            let mut world = World::<T>::new(kernels, seed);
            world.run(&Op::Root);
            ops.iter().for_each(|op| world.run(op));
            let [ok, refused] = done.get();
            done.set([ok + world.done[0], refused + world.done[1]]);
            Ok(())
        });
        run.unwrap_or_else(|error| panic!("{error}"));
        if Instant::now() > end {
            return done.get();
        }
    }
}

#[test]
fn hostile_operations_on_the_cpu_change_nothing_and_the_rest_agrees_with_f64() {
    for [ok, refused] in [fuzz::<f32>(false, 120, 2), fuzz::<f16>(false, 120, 2)] {
        assert!(ok > 4 * 20 && refused > 20, "{ok} done, {refused} refused");
    }
}

#[test]
fn hostile_operations_on_the_kernels_change_nothing_and_the_rest_agrees_with_f64() {
    let [ok, refused] = fuzz::<bf16>(true, 16, 1);
    assert!(ok > 10 && refused > 0, "{ok} done, {refused} refused");
}
