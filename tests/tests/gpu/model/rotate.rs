//! Rotation with append, against the append by itself and the host's rotation.

use deft::attention::RotaryTable;
use deft::cache::{CacheShape, KERNEL_HEAD_DIMS, KvElement};
use deft::cuda::{Append, CudaCache, Rotary};
use deft_engine::cuda::ops::{ModelOps, RotateAppend};
use kernels_gpu::abi::{APPEND_LIVE, NONE};

use deft_tests::forests::pick;
use deft_tests::gpu::Gpu;
use deft_tests::inputs::normals;
use rand::RngExt;
use rand::rngs::SmallRng;
use rand::seq::SliceRandom;

use super::ops::{Case, Verdict};

const LAYERS: u32 = 2;
const PAGES: u32 = 5;
const POSITIONS: u32 = 3000;

pub(super) fn cases<'a, T: KvElement>(gpu: &'a Gpu) -> Vec<Case<'a>> {
    let mut cases: Vec<Case<'a>> = Vec::new();
    for head_dim in KERNEL_HEAD_DIMS {
        for (q_heads, kv_heads) in [(9, 3), (32, 8), (1, 1)] {
            cases.push((
                format!("rotate_append_{}_d{head_dim} {q_heads}/{kv_heads} heads", T::DTYPE),
                Box::new(move |random| run::<T>(gpu, head_dim, q_heads, kv_heads, random)),
            ));
        }
    }
    cases
}

fn run<T: KvElement>(
    gpu: &Gpu,
    head_dim: u32,
    q_heads: u32,
    kv_heads: u32,
    random: &mut SmallRng,
) -> Verdict {
    let ops = ModelOps::new(&gpu.device, T::DTYPE, head_dim).unwrap();
    let shape = CacheShape { layers: LAYERS, kv_heads, head_dim, dtype: T::DTYPE, pages: PAGES };
    let count = pick(random, &[1, 3, 17, 50]);
    let table = RotaryTable::new(head_dim, POSITIONS, 500_000.0).unwrap();
    let (q_width, kv_width) = ((q_heads * head_dim) as usize, shape.row_elements());
    let qkv: Vec<T> = normals(random.random(), count * (q_width + 2 * kv_width), 1.0);
    let mut places: Vec<u32> = (0..4 * 64).collect();
    places.shuffle(random);
    let mut targets = places[..count].to_vec();
    targets[count - 1] = APPEND_LIVE;
    if count > 2 {
        targets[1] = NONE;
    }
    let positions: Vec<u32> = targets
        .iter()
        .map(|&target| match target {
            NONE => u32::MAX,
            _ => random.random_range(0..=POSITIONS - 1),
        })
        .collect();

    let mut expected_q = vec![u8::MAX; size_of::<T>() * count * q_width];
    let (mut k, mut v) = (Vec::new(), Vec::new());
    let fused = qkv.chunks_exact(q_width + 2 * kv_width);
    let rows = expected_q.chunks_exact_mut(size_of::<T>() * q_width);
    for ((fused, expected), row) in fused.zip(rows).zip(0..) {
        k.extend_from_slice(&fused[q_width..][..kv_width]);
        v.extend_from_slice(&fused[q_width + kv_width..]);
        let position: u32 = positions[row];
        if position != u32::MAX {
            let mut queries = fused[..q_width].to_vec();
            table.rotate(&[position], &mut queries).unwrap();
            expected.copy_from_slice(bytemuck::cast_slice(&queries));
        }
    }

    let [targets_at, positions_at] = [gpu.upload(&targets), gpu.upload(&positions)];
    let [cos, sin] = [gpu.upload(table.cos()), gpu.upload(table.sin())];
    let [qkv, k, v] = [gpu.upload(&qkv), gpu.upload(&k), gpu.upload(&v)];
    let q = gpu.unwritten::<T>(count * q_width);
    let rotary =
        Rotary { positions: positions_at.pointer(), cos: cos.pointer(), sin: sin.pointer() };
    let cache = || -> CudaCache {
        let mut cache = CudaCache::new(&gpu.device, shape, 1).unwrap();
        // The growing node's last token is the second of the last page.
        cache.set_counters(&[66], &[PAGES - 1], &gpu.stream).unwrap();
        cache
    };
    let (fused, plain) = (cache(), cache());
    let append = RotateAppend {
        qkv: qkv.pointer(),
        q: q.pointer(),
        targets: targets_at.pointer(),
        count: count as u32,
        q_heads,
        ..RotateAppend::default()
    };
    let separate = Append {
        targets: targets_at.pointer(),
        count: count as u32,
        k: k.pointer(),
        v: v.pointer(),
    };
    // SAFETY: buffers of the documented shapes, distinct places of the caches, positions of the table, the device's
    // stream.
    unsafe {
        ops.rotate_append(&fused, LAYERS - 1, &append, &rotary, gpu.stream.raw()).unwrap();
        plain.append_rotated(LAYERS - 1, &separate, &rotary, gpu.stream.raw()).unwrap();
    }
    let mut verdict = Verdict::default();
    let found = gpu.download(&q);
    let same = bytemuck::cast_slice::<T, u8>(&found) == expected_q;
    verdict.require(same, || format!("queries of {count} rows differ"));
    let pages = gpu.download(fused.pool());
    verdict.require(pages.iter().any(|bits| *bits != 0), || "no page was written".to_owned());
    let same = pages == gpu.download(plain.pool());
    verdict.require(same, || format!("pages after {count} rows differ"));
    verdict
}
