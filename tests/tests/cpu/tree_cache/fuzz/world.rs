//! A cache with what it should hold, and how the two are compared.

use deft::{
    Batch, CacheError, Device, Kv, KvElement, NodeKey, Out, RotaryTable, StepGraph, TreeCache,
};
use deft_tests::emulated::Emulated;
use deft_tests::oracle::assert_close;
use deft_tests::shadow::{Shadow, Token};
use proptest::sample::Index;
use rand::rngs::SmallRng;
use rand::{RngExt, SeedableRng};

use super::{CHECKED, HEADS, LAYERS, Op, PAGES, Pick, ROW};

/// A cache, what it should hold, and another one whose keys and batches are wrong here.
pub(super) struct World<T> {
    pub(super) cache: TreeCache,
    pub(super) shadow: Shadow,
    /// Keys of all nodes that ever were.
    pub(super) keys: Vec<NodeKey>,
    pub(super) batches: Vec<Batch>,
    pub(super) foreign_key: NodeKey,
    pub(super) foreign_batch: Batch,
    pub(super) graph: StepGraph,
    pub(super) rng: SmallRng,
    /// Kernels keep a token that is not finite in another way than the CPU does.
    pub(super) kernels: bool,
    pub(super) done: [u32; 2],
    pub(super) of: std::marker::PhantomData<T>,
}

pub(super) type Rows<T> = Vec<[Vec<T>; 2]>;

impl<T: KvElement> World<T> {
    pub(super) fn new(kernels: bool, seed: u64) -> Self {
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

    pub(super) fn is_alive(&self, node: NodeKey) -> bool {
        self.cache.forest().length(node).is_ok()
    }

    pub(super) fn node(&self, pick: &Pick) -> NodeKey {
        let of = |alive: bool| {
            let some: Vec<_> =
                self.keys.iter().filter(|&&key| self.is_alive(key) == alive).collect();
            if some.is_empty() { NodeKey::default() } else { **pick.index.get(&some) }
        };
        match pick.wrong {
            None => of(true),
            Some(0) => of(false),
            Some(1) => self.foreign_key,
            Some(_) => NodeKey::default(),
        }
    }

    /// All that a call that is refused must leave as it was.
    pub(super) fn state(&self) -> impl PartialEq + std::fmt::Debug + use<T> {
        let forest = self.cache.forest();
        let pages = (forest.pool().free(), forest.tail_pages().to_vec());
        let positions: Vec<_> =
            self.batches.iter().map(|batch| batch.positions().to_vec()).collect();
        let nodes: Vec<_> = self.batches.iter().map(|batch| batch.nodes().to_vec()).collect();
        (
            forest.lengths().to_vec(),
            pages,
            forest.node_count(),
            forest.growth_cursor(),
            positions,
            nodes,
        )
    }

    pub(super) fn run(&mut self, op: &Op) {
        let before = self.state();
        let outcome = self.apply(op);
        self.cache.forest().debug_assert_invariants();
        self.done[usize::from(outcome.is_err())] += 1;
        if let Err(error) = outcome {
            assert!(self.state() == before, "{op:?}: {error}: {before:?} is {:?}", self.state());
            assert!(!error.to_string().is_empty());
        }
    }

    pub(super) fn insert(&mut self, node: NodeKey, parent: Option<NodeKey>) {
        self.keys.push(node);
        self.shadow.insert(node, parent);
    }

    pub(super) fn length(&self, node: NodeKey) -> usize {
        self.cache.forest().length(node).unwrap() as usize
    }

    pub(super) fn batch(&self, at: &Index) -> Option<Batch> {
        (!self.batches.is_empty()).then(|| at.get(&self.batches).clone())
    }

    pub(super) fn put(&mut self, at: &Index, batch: &Batch) {
        let at = at.index(self.batches.len());
        self.batches[at] = batch.clone();
    }

    /// Queries: numbers.
    pub(super) fn queries(&mut self, rows: usize) -> Rows<T> {
        let rng = &mut self.rng;
        let count = rows * (HEADS[0] * HEADS[2]) as usize;
        let mut value = |_| T::from_f32(rng.random_range(-1.5..1.5));
        (0..LAYERS).map(|_| [(0..count).map(&mut value).collect(), Vec::new()]).collect()
    }

    /// Numbers, now and then one that is none.
    pub(super) fn values(&mut self, count: usize) -> Vec<T> {
        let rng = &mut self.rng;
        let mut values: Vec<T> =
            (0..count).map(|_| T::from_f32(rng.random_range(-1.5..1.5))).collect();
        if count > 0 && rng.random_ratio(1, 12) {
            let bad = [f32::NAN, f32::INFINITY, f32::NEG_INFINITY][rng.random_range(0..3)];
            values[rng.random_range(0..count)] = T::from_f32(bad);
        }
        values
    }

    pub(super) fn rows(&mut self, count: usize) -> Rows<T> {
        (0..LAYERS).map(|_| [(); 2].map(|()| self.values(count * ROW))).collect()
    }

    /// Tokens `begin..begin + count` of `rows`, as the definition takes them.
    pub(super) fn exact(rows: &Rows<T>, begin: usize, count: usize) -> Vec<Token> {
        let of = |values: &Vec<T>, token: usize| {
            let row = values[token * ROW..][..ROW].iter();
            row.map(|value| value.to_f32().into()).collect()
        };
        let token = |token| rows.iter().map(|[k, v]| [of(k, token), of(v, token)]).collect();
        (begin..begin + count).map(token).collect()
    }

    /// Whether the cache takes the batch at all.
    pub(super) fn probe(&mut self, batch: &Batch) -> Result<(), CacheError> {
        let (q, mut out) = self.query(batch);
        self.cache.attend(0, batch, &q, &mut out)
    }

    pub(super) fn query(&self, batch: &Batch) -> (Vec<T>, Vec<T>) {
        let q = vec![T::from_f32(1.0); batch.rows() * (HEADS[0] * HEADS[2]) as usize];
        (q.clone(), q)
    }

    /// Writes new K and V of the batch's tokens, and compares attention of some rows in every layer.
    pub(super) fn step(&mut self, batch: &Batch, rotated: bool) {
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
            self.shadow.replace(node, kept, Self::exact(&rows, begin, tokens));
            seen.extend((0..tokens).map(|row| (node, tokens - 1 - row)));
            begin += tokens;
        }
        self.compare(&seen, &q, &results);
    }

    pub(super) fn compare(
        &mut self,
        seen: &[(NodeKey, usize)],
        q: &Rows<T>,
        results: &[(Vec<T>, Vec<f32>)],
    ) {
        let (heads, dim) = (HEADS[0] as usize, HEADS[2] as usize);
        let first = self.rng.random_range(0..=seen.len().saturating_sub(CHECKED));
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
            assert_close(&out[elements], lse, &expected, dim, &format!("layer {layer}"));
        }
    }

    /// A call with one wrong argument, which must be refused, and write nothing.
    pub(super) fn wrong(&mut self, batch: &Batch, kind: u8) {
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
        assert!(T::elements(&out).bytes() == T::elements(&before).bytes(), "{kind}: {text}");
    }

    /// Compares attention at a node whose tokens were moved.
    pub(super) fn look(&mut self, node: NodeKey) {
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
