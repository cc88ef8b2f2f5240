//! Attention over shared, cut and copied prefixes, against attention by its definition.

use deft::prefix::Opened;
use deft::{DType, Device, Kv, KvElement, NodeKey, Out, TreeCache, bf16};
use deft_tests::oracle::assert_close;
use deft_tests::shadow::{Shadow, Token};
use rand::rngs::SmallRng;
use rand::{RngExt, SeedableRng};

const LAYERS: u32 = 2;
const ROW: usize = 2 * 64;

/// K or V that a model would compute for a token: of the ids up to it.
fn row<T: KvElement>(tokens: &[u32], layer: u32, part: u64) -> Vec<T> {
    let seed = tokens.iter().fold(part + 2 * u64::from(layer), |seed, &token| {
        (seed ^ u64::from(token)).wrapping_mul(0x9e37_79b9_7f4a_7c15).rotate_left(23)
    });
    let mut rng = SmallRng::seed_from_u64(seed);
    (0..ROW).map(|_| T::from_f32(rng.random_range(-1.5..1.5))).collect()
}

struct Model {
    cache: TreeCache,
    shadow: Shadow,
    rng: SmallRng,
}

impl Model {
    fn new(dtype: DType) -> Self {
        let cache = TreeCache::builder(&Device::cpu())
            .layers(LAYERS)
            .heads(4, 2, 64)
            .dtype(dtype)
            .capacity_bytes(8 << 20)
            .build()
            .unwrap();
        Self { cache, shadow: Shadow::default(), rng: SmallRng::seed_from_u64(5) }
    }

    /// Opens `prompt`, computes the rest of it in two parts and seals it; the leaf, and the tokens that were found.
    fn ask<T: KvElement>(&mut self, prompt: &[u32]) -> (NodeKey, u32) {
        let Opened { node, matched } = self.cache.open(prompt, 0).unwrap();
        let rest = prompt.len() - matched as usize;
        let mut begin = matched as usize;
        for count in [rest / 2, rest - rest / 2] {
            if count > 0 {
                self.write::<T>(node, prompt, begin..begin + count);
                begin += count;
            }
        }
        let leaf = self.cache.seal(node, prompt, 0).unwrap();
        self.remember::<T>(leaf, prompt);
        (leaf, matched)
    }

    fn write<T: KvElement>(&mut self, node: NodeKey, tokens: &[u32], new: std::ops::Range<usize>) {
        let batch = self.cache.batch(&[(node, new.len() as u32)]).unwrap();
        for layer in 0..LAYERS {
            let [k, v] = [0, 1].map(|part| -> Vec<T> {
                let rows = new.clone().map(|i| row::<T>(&tokens[..=i], layer, part));
                rows.flatten().collect()
            });
            self.cache.append(layer, &batch, Kv::new(&k, &v)).unwrap();
        }
    }

    /// What the path to `leaf` should hold.
    fn remember<T: KvElement>(&mut self, leaf: NodeKey, tokens: &[u32]) {
        self.shadow.insert(leaf, None);
        for i in 0..tokens.len() {
            let exact = |layer, part| {
                let row = row::<T>(&tokens[..=i], layer, part);
                row.iter().map(|x| x.to_f32().into()).collect()
            };
            let token: Token =
                (0..LAYERS).map(|layer| [0, 1].map(|part| exact(layer, part))).collect();
            self.shadow.push(leaf, token);
        }
    }

    /// A token more on each of `leaves`, whose attention is compared in every layer.
    fn step<T: KvElement>(&mut self, leaves: &mut [(NodeKey, Vec<u32>)]) {
        let nodes: Vec<NodeKey> = leaves.iter().map(|(node, _)| *node).collect();
        let ones: Vec<(NodeKey, u32)> = nodes.iter().map(|&node| (node, 1)).collect();
        let batch = self.cache.batch(&ones).unwrap();
        for (node, tokens) in &mut *leaves {
            tokens.push(self.rng.random_range(0..9));
            self.remember::<T>(*node, tokens);
        }
        for layer in 0..LAYERS {
            let [k, v] = [0, 1].map(|part| -> Vec<T> {
                let rows = leaves.iter().map(|(_, tokens)| row::<T>(tokens, layer, part));
                rows.flatten().collect()
            });
            self.cache.append(layer, &batch, Kv::new(&k, &v)).unwrap();
            let q =
                (0..leaves.len() * 4 * 64).map(|_| T::from_f32(self.rng.random_range(-1.5..1.5)));
            let q: Vec<T> = q.collect();
            let mut out = vec![T::from_f32(f32::NAN); q.len()];
            let mut lse = vec![f32::NAN; leaves.len() * 4];
            let results = Out::with_lse(&mut out, &mut lse);
            self.cache.attend(layer, &batch, &q, results).unwrap();
            let expected = self.shadow.attend(&self.cache, layer as usize, &nodes, &q);
            assert_close(&out, &lse, &expected, 64, &format!("layer {layer}"));
        }
    }
}

fn questions<T: KvElement>(system: u32) {
    let mut model = Model::new(T::DTYPE);
    let question = |i: u32, tokens: u32| -> Vec<u32> {
        (0..system).chain((0..tokens).map(|token| 1000 * (i + 1) + token)).collect()
    };
    let mut leaves = Vec::new();
    for (i, tokens) in [(0, 90), (1, 70), (2, 1), (3, 200)] {
        let prompt = question(i, tokens);
        let (leaf, matched) = model.ask::<T>(&prompt);
        assert_eq!(matched, if i == 0 { 0 } else { system }, "question {i}");
        leaves.push((leaf, prompt));
        model.step::<T>(&mut leaves);
    }
    // The first again: nothing is left to compute.
    let (leaf, matched) = model.ask::<T>(&question(0, 90));
    assert_eq!(matched, system + 90);
    leaves.push((leaf, question(0, 90)));
    // And an answer becomes the prompt of the next question.
    let (node, mut tokens) = leaves.remove(1);
    let node = model.cache.seal(node, &tokens, 0).unwrap();
    let spoken = tokens.len() as u32;
    model.remember::<T>(node, &tokens);
    leaves.push((node, tokens.clone()));
    tokens.extend(5000..5070);
    let (leaf, matched) = model.ask::<T>(&tokens);
    assert_eq!(matched, spoken);
    leaves.push((leaf, tokens));
    for _ in 0..3 {
        model.step::<T>(&mut leaves);
    }
    for (leaf, _) in leaves {
        model.cache.prune(leaf).unwrap();
    }
    model.cache.clear_prefixes().unwrap();
    assert_eq!(model.cache.forest().pool().live(), 0);
}

#[test]
fn questions_after_one_system_prompt_attend_as_if_each_had_its_own() {
    for system in [1, 63, 64, 65, 128, 200] {
        questions::<f32>(system);
    }
    questions::<bf16>(200);
}
