//! The user's side: decoding, drafting and pruning through [`TreeCache`], against a cache by name.

mod beams;
mod cases;
mod fuzz;

use deft::{
    Batch, CacheError, DType, Device, DraftNode, Grouping, Kv, KvElement, NodeKey, Out, PlanUpdate,
    TreeCache, bf16, f16,
};
use deft_tests::oracle::assert_close;
use deft_tests::shadow::Shadow;
use rand::rngs::SmallRng;
use rand::seq::SliceRandom;
use rand::{RngExt, SeedableRng};

const GROUPINGS: [Grouping; 4] =
    [Grouping::PerQuery, Grouping::Node, Grouping::NodeChunk, Grouping::Flatten];

fn ones(nodes: &[NodeKey]) -> Vec<(NodeKey, u32)> {
    nodes.iter().map(|&node| (node, 1)).collect()
}

/// A cache with its shadow.
struct Pair {
    cache: TreeCache,
    shadow: Shadow,
    rng: SmallRng,
}

impl Pair {
    fn new(dtype: DType, seed: u64) -> Self {
        Self {
            cache: TreeCache::builder(&Device::cpu())
                .layers(2)
                .heads(4, 2, 64)
                .dtype(dtype)
                .capacity_bytes(64 << 20)
                .build()
                .unwrap(),
            shadow: Shadow::default(),
            rng: SmallRng::seed_from_u64(seed),
        }
    }

    fn row_elements(&self) -> usize {
        let config = self.cache.config();
        (config.kv_heads * config.head_dim) as usize
    }

    fn random<T: KvElement>(&mut self, count: usize) -> Vec<T> {
        let rng = &mut self.rng;
        let values = (0..count).map(|_| T::from_f32(rng.random_range(-1.5..1.5)));
        values.collect()
    }

    /// New tokens of `nodes`, one each: to the shadow, and their rows by layer for the cache.
    fn tokens<T: KvElement>(&mut self, nodes: &[NodeKey]) -> Vec<[Vec<T>; 2]> {
        let row = self.row_elements();
        let layers = self.cache.config().layers;
        let rows: Vec<[Vec<T>; 2]> =
            (0..layers).map(|_| [(); 2].map(|()| self.random(nodes.len() * row))).collect();
        for (i, &node) in nodes.iter().enumerate() {
            let exact = |values: &Vec<T>| {
                let values = values[i * row..(i + 1) * row].iter();
                values.map(|value| value.to_f32().into()).collect()
            };
            let token = rows.iter().map(|[k, v]| [exact(k), exact(v)]).collect();
            self.shadow.push(node, token);
        }
        rows
    }

    /// Writes new tokens of a node, or all that a draft's node has.
    fn prefill<T: KvElement>(&mut self, node: NodeKey, parent: Option<NodeKey>, tokens: u32) {
        self.shadow.insert(node, parent);
        let rows = self.tokens::<T>(&vec![node; tokens as usize]);
        let batch = self.cache.batch(&[(node, tokens)]).unwrap();
        for (layer, [k, v]) in (0..).zip(&rows) {
            self.cache.append(layer, &batch, Kv::new(k, v)).unwrap();
        }
    }

    fn root<T: KvElement>(&mut self, tokens: u32) -> NodeKey {
        let root = self.cache.insert_root().unwrap();
        self.prefill::<T>(root, None, tokens);
        root
    }

    fn fork(&mut self, node: NodeKey, n: usize) -> Vec<NodeKey> {
        let children = self.cache.fork(node, n).unwrap();
        for &child in &children {
            self.shadow.insert(child, Some(node));
        }
        children
    }

    /// A first decode step of `leaves`.
    fn begin<T: KvElement>(&mut self, leaves: &[NodeKey], grouping: Grouping) -> Batch {
        self.cache.set_grouping(grouping);
        let batch = self.cache.batch(&ones(leaves)).unwrap();
        self.write::<T>(&batch);
        batch
    }

    /// A further one.
    fn step<T: KvElement>(&mut self, batch: &mut Batch) -> PlanUpdate {
        let update = self.cache.advance(batch, 1).unwrap();
        self.write::<T>(batch);
        update
    }

    /// Writes a token of each of the batch's nodes.
    fn write<T: KvElement>(&mut self, batch: &Batch) {
        let leaves: Vec<NodeKey> = batch.nodes().iter().map(|&(node, _)| node).collect();
        let rows = self.tokens::<T>(&leaves);
        for (layer, [k, v]) in (0..).zip(&rows) {
            self.cache.append(layer, batch, Kv::new(k, v)).unwrap();
        }
    }

    /// The newest tokens of `nodes`, grouped in each way.
    fn check_groupings<T: KvElement>(&mut self, nodes: &[NodeKey], context: &str) {
        for grouping in GROUPINGS {
            self.cache.set_grouping(grouping);
            let batch = self.cache.batch_held(&ones(nodes)).unwrap();
            self.check::<T>(&batch, context);
        }
    }

    /// Compares attention of `batch`, a token a node, with the shadow's.
    fn check<T: KvElement>(&mut self, batch: &Batch, context: &str) {
        let leaves: Vec<NodeKey> = batch.nodes().iter().map(|&(node, _)| node).collect();
        let heads = leaves.len() * self.cache.config().q_heads as usize;
        let dim = self.cache.config().head_dim as usize;
        for layer in 0..self.cache.config().layers {
            let q: Vec<T> = self.random(heads * dim);
            let mut out = vec![T::from_f32(f32::NAN); q.len()];
            let mut lse = vec![f32::NAN; heads];
            self.cache.attend(layer, batch, &q, Out::with_lse(&mut out, &mut lse)).unwrap();
            let expected = self.shadow.attend(&self.cache, layer as usize, &leaves, &q);
            let context = format!("{context}, {:?}, layer {layer}", batch.grouping());
            assert_close(&out, &lse, &expected, dim, &context);
            let mut without = vec![T::from_f32(f32::NAN); q.len()];
            self.cache.attend(layer, batch, &q, &mut without).unwrap();
            assert!(
                T::elements(&out).bytes() == T::elements(&without).bytes(),
                "{context}: asking for the LSE changes the output"
            );
        }
    }
}

#[test]
fn a_hundred_steps_over_page_edges_agree_with_the_definition() {
    for grouping in GROUPINGS {
        let mut pair = Pair::new(DType::F32, 1);
        let root = pair.root::<f32>(70);
        let mut leaves = pair.fork(root, 3);
        leaves.extend(pair.fork(leaves[1], 3));
        leaves.remove(1);
        let other = pair.root::<f32>(63);
        leaves.push(other);
        leaves.shuffle(&mut pair.rng);
        let mut plan = pair.begin::<f32>(&leaves, grouping);
        let mut updates = Vec::new();
        for step in 0..100 {
            updates.push(pair.step::<f32>(&mut plan));
            if step % 9 == 0 || updates.last() != Some(&PlanUpdate::Unchanged) {
                pair.check::<f32>(&plan, &format!("step {step}"));
            }
        }
        let count = |kind| updates.iter().filter(|&&update| update == kind).count();
        assert!(count(PlanUpdate::Unchanged) >= 90, "{updates:?}");
        assert!(count(PlanUpdate::Patched) >= 2, "{updates:?}");
    }
}

#[test]
fn branching_and_pruning_leave_the_rest_as_it_was() {
    let mut pair = Pair::new(DType::Bf16, 2);
    let root = pair.root::<bf16>(200);
    let mut leaves = pair.fork(root, 4);
    for round in 0..6 {
        for grouping in GROUPINGS {
            let mut plan = pair.begin::<bf16>(&leaves, grouping);
            for _ in 0..10 {
                pair.step::<bf16>(&mut plan);
            }
            pair.check::<bf16>(&plan, &format!("round {round}"));
        }
        let parent = leaves.remove(pair.rng.random_range(0..leaves.len()));
        leaves.extend(pair.fork(parent, 2));
        leaves.shuffle(&mut pair.rng);
        let gone = leaves.pop().unwrap();
        pair.cache.prune(gone).unwrap();
        pair.cache.forest().debug_assert_invariants();
    }
    for root in pair.cache.forest().roots().collect::<Vec<_>>() {
        pair.cache.prune(root).unwrap();
    }
    assert_eq!(pair.cache.forest().pool().live(), 0);
}

#[test]
fn drafts_are_attended_to_and_the_accepted_path_joins_the_trunk() {
    let mut pair = Pair::new(DType::F16, 3);
    let mut trunk = pair.root::<f16>(1000 % 64 + 50);
    let below = pair.fork(trunk, 1);
    pair.begin::<f16>(&below, Grouping::Flatten);
    trunk = below[0];
    for round in 0..20 {
        let count = pair.rng.random_range(1..100);
        let draft: Vec<DraftNode> = (0..count)
            .map(|i| DraftNode {
                parent: (i > 0 && pair.rng.random_range(0..4) > 0)
                    .then(|| pair.rng.random_range(0..i)),
                tokens: pair.rng.random_range(1..4),
            })
            .collect();
        let keys = pair.cache.insert_draft(trunk, &draft).unwrap();
        for (&key, node) in keys.iter().zip(&draft) {
            let parent = node.parent.map_or(trunk, |parent| keys[parent as usize]);
            pair.prefill::<f16>(key, Some(parent), node.tokens);
        }
        let mut queries = vec![trunk];
        queries.extend(&keys);
        queries.shuffle(&mut pair.rng);
        pair.check_groupings::<f16>(&queries, &format!("draft {round}"));
        // Some node's path, the draft's last most likely the deepest.
        let mut path = Vec::new();
        let mut next = Some(count as usize - 1);
        while let Some(at) = next {
            path.insert(0, keys[at]);
            next = draft[at].parent.map(|parent| parent as usize);
        }
        pair.cache.accept(trunk, &path).unwrap();
        for &key in &path {
            for token in pair.shadow.tokens(key).to_vec() {
                pair.shadow.push(trunk, token);
            }
        }
        pair.check_groupings::<f16>(&[trunk], &format!("accepted {round}"));
    }
}

#[test]
fn one_token_drafts_are_written_as_one_batch() {
    let mut pair = Pair::new(DType::F32, 4);
    let trunk = pair.root::<f32>(64);
    let node = |parent| DraftNode { parent, tokens: 1 };
    let draft = [node(None), node(Some(0)), node(None), node(Some(1))];
    let keys = pair.cache.insert_draft(trunk, &draft).unwrap();
    for (&key, node) in keys.iter().zip(&draft) {
        let parent = node.parent.map_or(trunk, |parent| keys[parent as usize]);
        pair.shadow.insert(key, Some(parent));
    }
    let batch = pair.cache.batch(&ones(&keys)).unwrap();
    pair.write::<f32>(&batch);
    pair.check::<f32>(&batch, "draft");
}

#[test]
fn a_batch_that_would_read_the_wrong_tokens_is_refused() {
    let mut pair = Pair::new(DType::F32, 5);
    let root = pair.root::<f32>(64);
    let leaves = pair.fork(root, 2);
    let mut batch = pair.begin::<f32>(&leaves, Grouping::Flatten);
    let (q, mut out) = ([0.0f32; 2 * 4 * 64], [7.0f32; 2 * 4 * 64]);
    let mut refuse = |pair: &mut Pair, batch: &Batch| {
        let error = pair.cache.attend(0, batch, &q[..], &mut out[..]).unwrap_err();
        assert_eq!(out, [7.0; 2 * 4 * 64]);
        error.to_string()
    };
    let refresh = "since it was made; advance or refresh it";
    pair.cache.extend(&leaves[..1], 1).unwrap();
    assert_eq!(
        refuse(&mut pair, &batch),
        format!("the batch is out of date: one of its nodes grew {refresh}")
    );
    pair.cache.extend(&leaves, 64).unwrap();
    assert_eq!(
        refuse(&mut pair, &batch),
        format!("the batch is out of date: one of its nodes grew into a new page {refresh}")
    );
    pair.cache.refresh(&mut batch).unwrap();
    assert_eq!(batch.positions(), [64 + 65, 64 + 64]);
    pair.cache.prune(leaves[0]).unwrap();
    let error = refuse(&mut pair, &batch);
    assert!(error.contains("nodes were added or removed"), "{error}");
    let error = pair.cache.refresh(&mut batch).unwrap_err();
    assert!(error.to_string().ends_with("belongs to another forest"));
    let mut other = Pair::new(DType::F32, 6);
    let error = other.cache.attend(0, &batch, &q[..], &mut [7.0f32; 512][..]);
    assert!(matches!(error, Err(CacheError::ForeignBatch)));
}

#[test]
fn a_prompt_goes_on_as_decoding_by_the_same_batch() {
    let mut pair = Pair::new(DType::F32, 9);
    let root = pair.cache.insert_root().unwrap();
    pair.shadow.insert(root, None);
    let mut batch = pair.cache.batch(&[(root, 70)]).unwrap();
    assert!(batch.positions().iter().copied().eq(0..70));
    let parts = [70u32, 40, 1, 1, 63, 1];
    for (part, tokens) in parts.into_iter().enumerate() {
        if part > 0 {
            pair.cache.advance(&mut batch, tokens).unwrap();
        }
        assert_eq!(batch.rows(), tokens as usize);
        let rows = pair.tokens::<f32>(&vec![root; tokens as usize]);
        for (layer, [k, v]) in (0..).zip(&rows) {
            pair.cache.append(layer, &batch, Kv::new(k, v)).unwrap();
        }
        pair.check_groupings::<f32>(&[root], &format!("part {part}"));
    }
    assert_eq!(pair.cache.forest().length(root).unwrap(), 176);
}

#[test]
fn what_cannot_be_batched_leaves_every_node_as_it_was() {
    let mut pair = Pair::new(DType::F32, 8);
    let root = pair.root::<f32>(30);
    let [a, b] = pair.fork(root, 2)[..] else { panic!("two leaves") };
    let before = pair.cache.forest().lengths().to_vec();
    let live = pair.cache.forest().pool().live();
    let refused: [&[(NodeKey, u32)]; 6] = [
        &[],
        &[(a, 1), (a, 2)],
        &[(a, 0)],
        &[(a, 5), (root, 1)],
        &[(a, 70_000)],
        &[(b, 100), (a, u32::MAX)],
    ];
    for nodes in refused {
        pair.cache.batch(nodes).unwrap_err();
        assert_eq!(pair.cache.forest().lengths(), before, "{nodes:?}");
        assert_eq!(pair.cache.forest().pool().live(), live, "{nodes:?}");
    }
    pair.cache.batch(&[(a, 300), (b, 1)]).unwrap();
    pair.cache.forest().debug_assert_invariants();
}

#[test]
fn wrong_arguments_are_named_and_change_nothing() {
    let mut pair = Pair::new(DType::Bf16, 7);
    let root = pair.root::<bf16>(3);
    let leaves = pair.fork(root, 2);
    let batch = pair.cache.batch(&ones(&leaves)).unwrap();
    let row = pair.row_elements();
    let kv = vec![bf16::ONE; 2 * row];
    let mut refuse = |layer, k: &[bf16], v: &[bf16]| {
        let error = pair.cache.append(layer, &batch, Kv::new(k, v)).unwrap_err();
        error.to_string()
    };
    assert_eq!(refuse(2, &kv, &kv), "layer is 2, the cache has 2");
    assert_eq!(
        refuse(0, &kv, &kv[1..]),
        "v has 255 elements, [targets, kv_heads, head_dim] takes 256"
    );
    let wrong = vec![1.0f32; 2 * row];
    let error = pair.cache.append(0, &batch, Kv::new(&wrong, &wrong)).unwrap_err();
    assert_eq!(error.to_string(), "k is f32, the cache holds bf16");
    let q = vec![bf16::ONE; 2 * 4 * 64];
    let mut out = vec![bf16::ZERO; 2 * 4 * 64 - 1];
    let error = pair.cache.attend(0, &batch, &q, &mut out).unwrap_err();
    assert_eq!(error.to_string(), "out has 511 elements, [rows, q_heads, head_dim] takes 512");
    let empty = pair.cache.fork(leaves[0], 1).unwrap();
    let error = pair.cache.batch_held(&ones(&empty)).unwrap_err();
    assert!(error.to_string().starts_with("tokens 0..1 are not within"));
    let incomplete = TreeCache::builder(&Device::cpu()).layers(1).build();
    assert_eq!(
        incomplete.unwrap_err().to_string(),
        "the cache cannot be built without .heads(q_heads, kv_heads, head_dim)"
    );
}
