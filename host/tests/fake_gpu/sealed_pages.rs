//! Nodes in KV formats on the fake GPU, against the CPU's: launches, captured steps, exports.

use deft::cache::{CacheShape, PagedOrder, PagedTable};
use deft::cuda::CudaDevice;
use deft::{DType, Device, Kv, KvFormat, NodeKey, Out, PlanUpdate, TreeCache, bf16};

/// One layer of 4 query heads over 2 KV heads; 128 pages on a GPU.
fn cache(device: &Device, head_dim: u32) -> TreeCache {
    let dtype = DType::Bf16;
    let shape = CacheShape { layers: 1, kv_heads: 2, head_dim, dtype, pages: 1 };
    let builder = TreeCache::builder(device).layers(1).heads(4, 2, head_dim).dtype(dtype);
    builder.capacity_bytes(128 * shape.padded().page_bytes()).build().unwrap()
}

/// The same tree on a GPU and on the CPU.
struct Pair {
    gpu: TreeCache,
    cpu: TreeCache,
    nodes: Vec<[NodeKey; 2]>,
    written: usize,
}

fn values(count: usize, seed: usize) -> Vec<bf16> {
    let value = |i: usize| ((i * 7919 + seed * 104_729) % 2003) as f32 / 1000.0 - 1.0;
    (0..count).map(|i| bf16::from_f32(value(i))).collect()
}

impl Pair {
    fn new() -> Self {
        Self::of(64)
    }

    /// A root of 300 tokens and four leaves.
    fn of(head_dim: u32) -> Self {
        let (gpu, cpu) = (CudaDevice::new(0).unwrap().into(), Device::cpu());
        let (gpu, cpu) = (cache(&gpu, head_dim), cache(&cpu, head_dim));
        let mut pair = Self { gpu, cpu, nodes: Vec::new(), written: 0 };
        let roots = pair.both().map(|cache| cache.insert_root().unwrap());
        pair.nodes.push(roots);
        pair.push(0, 300);
        let [ours, theirs] = [(&mut pair.gpu, roots[0]), (&mut pair.cpu, roots[1])]
            .map(|(cache, root)| cache.fork(root, 4).unwrap());
        pair.nodes.extend(ours.into_iter().zip(theirs).map(|(a, b)| [a, b]));
        for leaf in 1..5 {
            pair.push(leaf, 30 * leaf as u32);
        }
        pair
    }

    /// Elements of a token's K.
    fn width(&self) -> usize {
        2 * self.cpu.config().head_dim as usize
    }

    fn both(&mut self) -> [&mut TreeCache; 2] {
        [&mut self.gpu, &mut self.cpu]
    }

    fn push(&mut self, node: usize, tokens: u32) {
        self.written += 1;
        let elements = tokens as usize * self.width();
        let [k, v] = [0, 1].map(|half| values(elements, 2 * self.written + half));
        let keys = self.nodes[node];
        for (cache, key) in self.both().into_iter().zip(keys) {
            let batch = cache.batch(&[(key, tokens)]).unwrap();
            cache.append(0, &batch, Kv::new(&k, &v)).unwrap();
        }
    }

    fn seal(&mut self, node: usize, format: KvFormat) -> u32 {
        let keys = self.nodes[node];
        let pages: Vec<u32> = (self.both().into_iter().zip(keys))
            .map(|(cache, key)| cache.seal_as(key, format).unwrap())
            .collect();
        assert_eq!(pages[0], pages[1]);
        pages[0]
    }

    /// Attends at all leaves, and compares.
    fn check(&mut self, what: &str) {
        let leaves = self.nodes[1..].to_vec();
        let width = self.width();
        let q = values(leaves.len() * 2 * width, 5);
        let mut results = Vec::new();
        for (of, cache) in self.both().into_iter().enumerate() {
            let asked: Vec<_> = leaves.iter().map(|keys| (keys[of], 1)).collect();
            let batch = cache.batch_held(&asked).unwrap();
            let (mut out, mut lse) = (vec![bf16::NAN; q.len()], vec![f32::NAN; leaves.len() * 4]);
            cache.attend(0, &batch, &q, Out::with_lse(&mut out, &mut lse)).unwrap();
            results.push((out, lse));
        }
        for (a, b) in results[0].0.iter().zip(&results[1].0) {
            assert!((a.to_f32() - b.to_f32()).abs() < 4e-3, "{what}: {a}, not {b}");
        }
        for (a, b) in results[0].1.iter().zip(&results[1].1) {
            assert!((a - b).abs() < 1e-4, "{what}: LSE {a}, not {b}");
        }
    }

    /// Exports a leaf's path from both.
    fn check_exports(&mut self, leaf: usize) {
        let (keys, width) = (self.nodes[leaf], self.width());
        let mut results = Vec::new();
        for (cache, key) in self.both().into_iter().zip(keys) {
            let tokens = cache.forest().context_length(key).unwrap() as u32;
            let table = PagedTable { order: PagedOrder::Nhd, page_size: tokens, pages: &[0] };
            let [mut k, mut v] = [(); 2].map(|()| vec![bf16::NAN; tokens as usize * width]);
            cache.export(0, key, 0..tokens, &table, &mut k, &mut v).unwrap();
            results.push([k, v].concat());
        }
        assert!(results[0].iter().zip(&results[1]).all(|(a, b)| a.to_bits() == b.to_bits()));
    }
}

#[test]
fn nodes_are_sealed_read_exported_and_made_native_again() {
    let fake = crate::load();
    let dims = [64, 96, 192];
    for (name, dim) in ["fp8", "fp8-token"].into_iter().flat_map(|name| dims.map(|dim| (name, dim)))
    {
        let format: KvFormat = name.parse().unwrap();
        let mut pair = Pair::of(dim);
        pair.check("native");
        for (node, pages) in [(0, 4), (4, 1), (2, 0)] {
            assert_eq!(pair.seal(node, format), pages);
            pair.check(name);
        }
        pair.check_exports(4);
        pair.push(4, 70);
        assert_eq!(pair.seal(4, format), 1, "what it grew by");
        pair.check("grown");
        assert_eq!(pair.seal(0, KvFormat::Native), 4);
        pair.check("native again");
        pair.check_exports(1);
        drop(pair);
        assert_eq!(fake.live_objects(), 0);
    }
    assert_eq!(fake.misused(), 0);
}

#[test]
fn padded_heads_refuse_formats_that_group_dims_by_name_and_stay_native() {
    let fake = crate::load();
    let mut pair = Pair::of(96);
    let [root, _] = pair.nodes[0];
    for name in ["int4-g32", "kivi4"] {
        let refused = pair.gpu.seal_as(root, name.parse().unwrap()).unwrap_err().to_string();
        assert_eq!(
            refused,
            format!(
                "KV format {name} groups the dims of a head; head_dim is 96, kept as 128 here: seal as native, fp8 or \
                 fp8-token"
            )
        );
    }
    pair.check("native still");
    drop(pair);
    assert_eq!(fake.misused(), 0);
}

#[test]
fn a_plan_has_a_launch_for_each_format_and_none_more_for_native_pages() {
    let fake = crate::load();
    let mut pair = Pair::new();
    let launches = |pair: &mut Pair| {
        let before = fake.calls_named("cuLaunchKernelEx");
        pair.check("counted");
        fake.calls_named("cuLaunchKernelEx") - before
    };
    let native = launches(&mut pair);
    pair.seal(0, "fp8".parse().unwrap());
    assert_eq!(launches(&mut pair), native);
    pair.seal(4, "fp8-token".parse().unwrap());
    assert_eq!(launches(&mut pair), native + 1);
}

#[test]
fn a_leaf_grows_behind_sealed_pages_by_patches() {
    let _fake = crate::load();
    let mut pair = Pair::new();
    pair.seal(0, "fp8".parse().unwrap());
    let keys = pair.nodes[3];
    let mut batches = Vec::new();
    for (cache, key) in pair.both().into_iter().zip(keys) {
        batches.push(cache.batch(&[(key, 1)]).unwrap());
    }
    let mut updates = Vec::new();
    for step in 0..70 {
        let [k, v] = [0, 1].map(|half| values(128, 1000 + 2 * step + half));
        let q = values(256, step);
        let mut results = Vec::new();
        for (cache, batch) in pair.both().into_iter().zip(&mut batches) {
            if step > 0 {
                updates.push(cache.advance(batch, 1).unwrap());
            }
            cache.append(0, batch, Kv::new(&k, &v)).unwrap();
            let mut out = vec![bf16::NAN; q.len()];
            cache.attend(0, batch, &q, &mut out).unwrap();
            results.push(out);
        }
        for (a, b) in results[0].iter().zip(&results[1]) {
            assert!((a.to_f32() - b.to_f32()).abs() < 4e-3, "step {step}: {a}, not {b}");
        }
    }
    assert!(updates.contains(&PlanUpdate::Patched) && !updates.contains(&PlanUpdate::Replanned));
}
