//! The user's side: decoding, drafting and pruning through [`TreeCache`], against a cache by name.

use deft::{
    CacheConfig, CacheError, DType, Device, DraftNode, Grouping, KvElement, NodeKey, PlanUpdate,
    TreeCache, TreePlan, bf16, f16,
};
use deft_tests::problem::assert_close;
use deft_tests::shadow::Shadow;
use rand::rngs::SmallRng;
use rand::seq::SliceRandom;
use rand::{RngExt, SeedableRng};

const GROUPINGS: [Grouping; 4] = [
    Grouping::PerQuery,
    Grouping::Node,
    Grouping::NodeChunk,
    Grouping::Flatten,
];

fn config(dtype: DType) -> CacheConfig {
    CacheConfig {
        layers: 2,
        q_heads: 4,
        kv_heads: 2,
        head_dim: 64,
        dtype,
        capacity_bytes: 64 << 20,
        scale: None,
        soft_cap: None,
    }
}

/// A cache with its shadow.
struct Pair {
    cache: TreeCache,
    shadow: Shadow,
    rng: SmallRng,
}

impl Pair {
    fn new(config: CacheConfig, seed: u64) -> Self {
        Self {
            cache: TreeCache::new(&Device::cpu(), config).unwrap(),
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
        let rows: Vec<[Vec<T>; 2]> = (0..layers)
            .map(|_| [(); 2].map(|()| self.random(nodes.len() * row)))
            .collect();
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

    /// Writes all of a node's tokens, which the cache counts already.
    fn prefill<T: KvElement>(&mut self, node: NodeKey, parent: Option<NodeKey>, tokens: u32) {
        self.shadow.insert(node, parent);
        let rows = self.tokens::<T>(&vec![node; tokens as usize]);
        for (layer, [k, v]) in (0..).zip(&rows) {
            self.cache
                .append_tokens(layer, node, 0..tokens, k, v)
                .unwrap();
        }
    }

    fn root<T: KvElement>(&mut self, tokens: u32) -> NodeKey {
        let root = self.cache.insert_root(tokens).unwrap();
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

    /// A decode step of all leaves of a plan.
    fn step<T: KvElement>(&mut self, plan: &mut TreePlan) -> PlanUpdate {
        let update = self.cache.step(plan).unwrap();
        let rows = self.tokens::<T>(plan.leaves());
        for (layer, [k, v]) in (0..).zip(&rows) {
            self.cache.append(layer, plan, k, v).unwrap();
        }
        update
    }

    /// Compares attention under `plan` with the shadow's.
    fn check<T: KvElement>(&mut self, plan: &TreePlan, context: &str) {
        let heads = plan.leaves().len() * self.cache.config().q_heads as usize;
        let dim = self.cache.config().head_dim as usize;
        for layer in 0..self.cache.config().layers {
            let q: Vec<T> = self.random(heads * dim);
            let mut out = vec![T::from_f32(f32::NAN); q.len()];
            let mut lse = vec![f32::NAN; heads];
            self.cache
                .attend_with_lse(layer, plan, &q, &mut out, &mut lse)
                .unwrap();
            let leaves = plan.leaves();
            let expected = self.shadow.attend(&self.cache, layer as usize, leaves, &q);
            let context = format!("{context}, {:?}, layer {layer}", plan.grouping());
            assert_close(&out, &lse, &expected, dim, &context);
            let mut without = vec![T::from_f32(f32::NAN); q.len()];
            self.cache.attend(layer, plan, &q, &mut without).unwrap();
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
        let mut pair = Pair::new(config(DType::F32), 1);
        let root = pair.root::<f32>(70);
        let mut leaves = pair.fork(root, 3);
        leaves.extend(pair.fork(leaves[1], 3));
        leaves.remove(1);
        let other = pair.root::<f32>(63);
        leaves.push(other);
        leaves.shuffle(&mut pair.rng);
        let mut plan = pair.cache.plan(&leaves, grouping).unwrap();
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
    let mut pair = Pair::new(config(DType::Bf16), 2);
    let root = pair.root::<bf16>(200);
    let mut leaves = pair.fork(root, 4);
    for round in 0..6 {
        for grouping in GROUPINGS {
            let mut plan = pair.cache.plan(&leaves, grouping).unwrap();
            for _ in 0..11 {
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
    let mut pair = Pair::new(config(DType::F16), 3);
    let mut trunk = pair.root::<f16>(1000 % 64 + 50);
    let below = pair.fork(trunk, 1);
    let mut trunk_plan = pair.cache.plan(&below, Grouping::Flatten).unwrap();
    pair.step::<f16>(&mut trunk_plan);
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
        for grouping in GROUPINGS {
            let plan = pair.cache.plan(&queries, grouping).unwrap();
            pair.check::<f16>(&plan, &format!("draft {round}"));
        }
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
        let plan = pair.cache.plan(&[trunk], Grouping::Flatten).unwrap();
        pair.check::<f16>(&plan, &format!("accepted {round}"));
    }
}

#[test]
fn one_token_drafts_are_written_through_the_plan() {
    let mut pair = Pair::new(config(DType::F32), 4);
    let trunk = pair.root::<f32>(64);
    let node = |parent| DraftNode { parent, tokens: 1 };
    let draft = [node(None), node(Some(0)), node(None), node(Some(1))];
    let keys = pair.cache.insert_draft(trunk, &draft).unwrap();
    for (&key, node) in keys.iter().zip(&draft) {
        let parent = node.parent.map_or(trunk, |parent| keys[parent as usize]);
        pair.shadow.insert(key, Some(parent));
    }
    let plan = pair.cache.plan(&keys, Grouping::Flatten).unwrap();
    let rows = pair.tokens::<f32>(&keys);
    for (layer, [k, v]) in (0..).zip(&rows) {
        pair.cache.append(layer, &plan, k, v).unwrap();
    }
    pair.check::<f32>(&plan, "draft");
}

#[test]
fn a_plan_that_would_read_the_wrong_pages_is_refused() {
    let mut pair = Pair::new(config(DType::F32), 5);
    let root = pair.root::<f32>(64);
    let leaves = pair.fork(root, 2);
    let mut plan = pair.cache.plan(&leaves, Grouping::Flatten).unwrap();
    pair.step::<f32>(&mut plan);
    let (q, mut out) = ([0.0f32; 2 * 4 * 64], [7.0f32; 2 * 4 * 64]);
    let mut refuse = |pair: &mut Pair, plan: &TreePlan| {
        let error = pair.cache.attend(0, plan, &q, &mut out).unwrap_err();
        assert_eq!(out, [7.0; 2 * 4 * 64]);
        error
    };
    pair.cache.extend(&leaves, 64).unwrap();
    assert_eq!(
        refuse(&mut pair, &plan).to_string(),
        "the plan is out of date: a node grew into a new page since it was made; update it"
    );
    assert_eq!(pair.cache.update(&mut plan).unwrap(), PlanUpdate::Patched);
    pair.cache.prune(leaves[0]).unwrap();
    let error = refuse(&mut pair, &plan).to_string();
    assert!(error.contains("nodes were added or removed"), "{error}");
    let error = pair.cache.update(&mut plan).unwrap_err();
    assert!(error.to_string().ends_with("belongs to another forest"));
    let mut other = Pair::new(config(DType::F32), 6);
    let error = refuse(&mut other, &plan);
    assert!(matches!(error, CacheError::ForeignPlan), "{error}");
}

#[test]
fn wrong_arguments_are_named_and_change_nothing() {
    let mut pair = Pair::new(config(DType::Bf16), 7);
    let root = pair.root::<bf16>(3);
    let leaves = pair.fork(root, 2);
    let plan = pair.cache.plan(&leaves, Grouping::Flatten).unwrap();
    let row = pair.row_elements();
    let kv = vec![bf16::ONE; 2 * row];
    let error = pair.cache.append(0, &plan, &kv, &kv).unwrap_err();
    assert!(
        error
            .to_string()
            .ends_with("query 0 of the plan, holds no token to write")
    );
    pair.cache.extend(&leaves, 1).unwrap();
    let mut plan = plan;
    pair.cache.update(&mut plan).unwrap();
    let mut refuse = |layer, k: &[bf16], v: &[bf16]| {
        let error = pair.cache.append(layer, &plan, k, v).unwrap_err();
        error.to_string()
    };
    assert_eq!(refuse(2, &kv, &kv), "layer is 2, the cache has 2");
    assert_eq!(
        refuse(0, &kv, &kv[1..]),
        "v has 255 elements, [targets, kv_heads, head_dim] takes 256"
    );
    let wrong = vec![1.0f32; 2 * row];
    let error = pair.cache.append(0, &plan, &wrong, &wrong).unwrap_err();
    assert_eq!(error.to_string(), "k is f32, the cache holds bf16");
    let q = vec![bf16::ONE; 2 * 4 * 64];
    let mut out = vec![bf16::ZERO; 2 * 4 * 64 - 1];
    let error = pair.cache.attend(0, &plan, &q, &mut out).unwrap_err();
    assert_eq!(
        error.to_string(),
        "out has 511 elements, [leaves, q_heads, head_dim] takes 512"
    );
    let error = pair
        .cache
        .append_tokens(0, root, 2..4, &kv, &kv)
        .unwrap_err();
    assert!(error.to_string().starts_with("tokens 2..4 are not within"));
    assert!(pair.cache.plan(&[], Grouping::Flatten).is_err());
    assert!(pair.cache.plan(&[root, root], Grouping::Flatten).is_err());
}
