//! The C functions on `doors/cases.json`, the table that every door is tested with, on the CPU and on a GPU.

#[path = "../../../cuda-loader/tests/fake/mod.rs"]
mod fake;

use std::collections::BTreeMap;
use std::ffi::{CStr, c_void};
use std::path::Path;
use std::ptr::{null, null_mut};

use deft::cache::KvElement;
use deft::cuda::{CudaDevice, CudaError, DeviceBuffer, Stream};
use deft::{bf16, f16};
use deft_c::*;
use deft_tests::inputs::unwritten;
use deft_tests::oracle::relative_l2;
use deft_tests::reference::attention::{ReferenceParams, attend_row};
use serde_json::{Map, Value};

/// Elements that a case's values are drawn from, by index: the doors agree on them.
fn value(seed: u32, index: usize) -> f32 {
    let word = (index as u32).wrapping_mul(2_654_435_761).wrapping_add(seed.wrapping_mul(40_503));
    (word >> 8) as f32 / (1 << 23) as f32 - 1.0
}

struct Case(Map<String, Value>);

impl Case {
    /// All cases; one that is like another has what it does not say from there.
    fn all() -> Vec<Self> {
        let text = include_str!("../../cases.json");
        let cases: Vec<Map<String, Value>> = serde_json::from_str(text).unwrap();
        let like = |case: &Map<String, Value>| match case.get("like").and_then(Value::as_u64) {
            Some(at) => cases[at as usize].clone().into_iter().chain(case.clone()).collect(),
            None => case.clone(),
        };
        cases.iter().map(|case| Self(like(case))).collect()
    }

    fn text(&self, name: &str) -> &str {
        self.0.get(name).and_then(Value::as_str).unwrap_or_default()
    }

    fn number(&self, name: &str) -> usize {
        self.0[name].as_u64().unwrap() as usize
    }

    fn list(&self, name: &str) -> Option<Vec<i64>> {
        let list = self.0.get(name)?.as_array()?;
        Some(list.iter().map(|value| value.as_i64().unwrap()).collect())
    }

    fn lists(&self, name: &str) -> Option<Vec<Vec<i64>>> {
        let of =
            |list: &Value| list.as_array().unwrap().iter().map(|x| x.as_i64().unwrap()).collect();
        Some(self.0.get(name)?.as_array()?.iter().map(of).collect())
    }

    fn queries(&self) -> Option<Vec<i64>> {
        let of_drafts =
            || Some(self.lists("parents")?.iter().map(|draft| draft.len() as i64).collect());
        self.list("queries").or_else(of_drafts)
    }

    /// Of each row its sequence, and the tokens that it sees.
    fn visible(&self) -> Vec<(usize, Vec<usize>)> {
        let lens = self.list("lens").unwrap();
        let queries = self.queries().unwrap_or_else(|| vec![1; lens.len()]);
        let mut rows = Vec::new();
        for (sequence, (&len, &count)) in lens.iter().zip(&queries).enumerate() {
            let before = (len - count).max(0) as usize;
            for query in 0..count as usize {
                let mut own = Vec::new();
                match self.lists("parents") {
                    None => own.extend(0..=query),
                    Some(parents) => {
                        let mut at = query as i64;
                        while at >= 0 {
                            own.push(at as usize);
                            at = parents[sequence][at as usize];
                        }
                    }
                }
                let own = own.into_iter().map(|token| before + token).filter(|&t| t < len as usize);
                rows.push((sequence, (0..before).chain(own).collect()));
            }
        }
        rows
    }

    /// Packed ancestors: those of the table, or those that follow from `parents`.
    fn masks(&self) -> Option<(Vec<u64>, usize)> {
        if let Some(masks) = self.list("masks") {
            return Some((masks.into_iter().map(|word| word as u64).collect(), 1));
        }
        let parents = self.lists("parents")?;
        let words = parents.iter().map(Vec::len).max()?.div_ceil(64);
        let mut masks = Vec::new();
        for draft in &parents {
            for mut at in 0..draft.len() as i64 {
                let mut row = vec![0; words];
                while at >= 0 {
                    row[at as usize / 64] |= 1u64 << (at % 64);
                    at = draft[at as usize];
                }
                masks.extend(row);
            }
        }
        Some((masks, words))
    }

    /// K's and V's first elements in one array, its strides, its length.
    fn layout(&self) -> ([usize; 2], [usize; 3], usize) {
        let [_, kv, dim] = self.heads();
        let (page, blocks) = (self.number("page_size"), self.number("blocks"));
        let size = page * kv * dim;
        match self.text("layout") {
            "nhd" => ([0, blocks * size], [size, kv * dim, dim], 2 * blocks * size),
            "hnd" => ([0, blocks * size], [size, dim, page * dim], 2 * blocks * size),
            "both" => ([0, size], [2 * size, kv * dim, dim], 2 * blocks * size),
            _ => {
                let slot = kv * (dim + 8) + 8;
                let block = page * slot + 16;
                ([0, blocks * block], [block, slot, dim + 8], 2 * blocks * block)
            }
        }
    }

    fn heads(&self) -> [usize; 3] {
        let heads = self.list("heads").unwrap();
        [heads[0] as usize, heads[1] as usize, heads[2] as usize]
    }
}

fn last_error() -> String {
    // SAFETY: the text is this thread's, and nothing fails meanwhile.
    unsafe { CStr::from_ptr(deft_last_error()) }.to_str().unwrap().to_owned()
}

/// A GPU, or a fake one, on which no kernel runs.
struct Gpu {
    device: CudaDevice,
    stream: Stream,
    fake: bool,
}

impl Gpu {
    fn open() -> Option<Self> {
        // SAFETY: the driver's library may be loaded at any time.
        let fake = unsafe { libloading::Library::new("libcuda.so.1") }.is_err();
        if fake {
            fake::Fake::load(Path::new(env!("CARGO_TARGET_TMPDIR"))).fail_from_now(0, 0);
        }
        let device = match CudaDevice::new(0) {
            Err(CudaError::NoDevice { .. }) => return None,
            device => device.unwrap(),
        };
        println!("on {}", device.describe());
        Some(Self { stream: Stream::new(&device).unwrap(), device, fake })
    }

    fn upload<T: KvElement>(&self, host: &[T]) -> DeviceBuffer<T> {
        DeviceBuffer::from_slice(&self.device, "elements", host).unwrap()
    }

    fn download<T: KvElement>(&self, from: &DeviceBuffer<T>, host: &mut [T]) {
        from.read(0, host, &self.stream).unwrap();
        self.stream.synchronize().unwrap();
    }
}

/// A tensor in memory of which `data` is the first element.
fn tensor<T>(data: *const T, code: i32, shape: &[usize], strides: &[usize]) -> Tensor {
    let four = |values: &[usize]| std::array::from_fn(|at| values.get(at).map_or(0, |&x| x as i64));
    Tensor {
        data: data.cast_mut().cast::<c_void>(),
        device: 1,
        device_id: 0,
        dtype: code,
        ndim: shape.len() as i32,
        shape: four(shape),
        strides: four(strides),
    }
}

/// What the case does, and whether that is right: the error, or none.
fn run<T: KvElement>(case: &Case, code: i32, gpu: Option<&Gpu>) -> Option<String> {
    let ([q_heads, kv_heads, dim], page) = (case.heads(), case.number("page_size"));
    let (begins, strides, len) = case.layout();
    let memory: Vec<T> = (0..len).map(|i| T::from_f32(value(1, i))).collect();
    let visible = case.visible();
    let rows = visible.len();
    let q: Vec<T> = (0..rows * q_heads * dim).map(|i| T::from_f32(value(2, i))).collect();
    let (mut out, mut lse) = (unwritten::<T>(q.len()), unwritten::<f32>(rows * q_heads));

    let tables = case.lists("tables").unwrap();
    let stride = tables.iter().map(Vec::len).max().unwrap_or(0);
    let padded =
        tables.iter().flat_map(|row| row.iter().copied().chain(vec![-1; stride - row.len()]));
    let ids: Vec<i32> = padded.map(|id| id as i32).collect();
    let narrow = |list: Vec<i64>| list.into_iter().map(|x| x as i32).collect::<Vec<i32>>();
    let (lens, queries) = (narrow(case.list("lens").unwrap()), case.queries().map(narrow));
    let masks = case.masks();
    let block_tables = Tables {
        ids: ids.as_ptr(),
        lens: lens.as_ptr(),
        queries: queries.as_ref().map_or(null(), Vec::as_ptr),
        masks: masks.as_ref().map_or(null(), |masks| masks.0.as_ptr()),
        sequences: lens.len() as u64,
        stride: stride as u64,
        mask_words: masks.as_ref().map_or(0, |masks| masks.1 as u64),
        page_size: page as u32,
        reserved: 0,
    };
    let mut plan = null_mut();
    let heads = [q_heads, kv_heads, dim].map(|count| count as u32);
    let number = if gpu.is_some() { 0 } else { -1 };
    // SAFETY: all pointers are of arrays of these shapes.
    let status = unsafe {
        deft_plan_new(heads[0], heads[1], heads[2], code, number, &block_tables, &mut plan)
    };
    if status != 0 {
        assert_eq!(status, 1);
        return Some(last_error());
    }
    let of_rows = [q_heads * dim, dim, 1];
    let of_cache = [strides[0], strides[1], strides[2], 1];
    let cache_shape = [case.number("blocks"), page, kv_heads, dim];
    let on_gpu =
        gpu.map(|gpu| ([&memory, &q, &out].map(|host| gpu.upload(host)), gpu.upload(&lse)));
    let address = |pointer: u64| std::ptr::without_provenance::<T>(pointer as usize);
    let (places, lse_place, stream) = match (&on_gpu, gpu) {
        (Some((buffers, lse)), Some(gpu)) => (
            buffers.each_ref().map(|buffer| address(buffer.pointer().0)),
            address(lse.pointer().0).cast(),
            gpu.stream.raw().0,
        ),
        _ => ([memory.as_ptr(), q.as_ptr(), out.as_ptr()], lse.as_ptr(), 0),
    };
    let [memory_place, q_place, out_place] = places;
    let half = |begin| tensor(memory_place.wrapping_add(begin), code, &cache_shape, &of_cache);
    let mut tensors = BTreeMap::from([
        ("q", tensor(q_place, code, &[rows, q_heads, dim], &of_rows)),
        ("k", half(begins[0])),
        ("v", half(begins[1])),
        ("out", tensor(out_place, code, &[rows, q_heads, dim], &of_rows)),
    ]);
    let mut lse_tensor = tensor(lse_place, 2, &[rows, q_heads], &[q_heads, 1]);
    if gpu.is_some() {
        lse_tensor.device = 2;
        tensors.values_mut().for_each(|tensor| tensor.device = 2);
    }
    let k = tensors["k"];
    if let Some((name, what)) = case.text("change").split_once('.') {
        let tensor = tensors.get_mut(name).unwrap();
        match (name, what) {
            (_, "strides") => tensor.strides[3] = 2,
            ("out", "data") => tensor.data = k.data,
            (_, "data") => tensor.data = tensor.data.wrapping_byte_add(1),
            ("q", "shape") => tensor.shape[0] -= 1,
            (_, "shape") => tensor.shape[1] /= 2,
            (_, "dtype") => tensor.dtype = 0,
            other => panic!("{other:?}"),
        }
    }
    let mut tokens = [0; 2];
    // SAFETY: the tensors are of arrays of their shapes, or refused.
    let status = unsafe {
        deft_plan_tokens(plan, &mut tokens);
        let [q, k, v, out] = ["q", "k", "v", "out"].map(|name| &raw const tensors[name]);
        let status = deft_paged_tree_attention(plan, q, k, v, out, &lse_tensor, 0.0, 0.0, stream);
        deft_plan_free(plan);
        status
    };
    if let (Some(([.., of_out], of_lse)), Some(gpu)) = (&on_gpu, gpu) {
        gpu.download(of_out, &mut out);
        gpu.download(of_lse, &mut lse);
    }
    if status != 0 {
        assert_eq!(status, 1);
        assert_eq!(bytes(&out), bytes(&unwritten::<T>(q.len())), "nothing is written");
        return Some(last_error());
    }
    if let Some(expected) = case.list("tokens") {
        assert_eq!(tokens.map(|count| count as i64), expected[..]);
    }
    if gpu.is_some_and(|gpu| gpu.fake) {
        return None;
    }
    let scale = 1.0 / (dim as f64).sqrt();
    let params = ReferenceParams { q_heads, kv_heads, head_dim: dim, scale, soft_cap: None };
    for (row, (sequence, seen)) in visible.iter().enumerate() {
        for head in 0..q_heads {
            let wide =
                |values: &[T]| values.iter().map(|x| x.to_f32().into()).collect::<Vec<f64>>();
            let at = |half: usize, token: usize| {
                let block = tables[*sequence][token / page] as usize;
                let kv_head = head / (q_heads / kv_heads);
                let row = begins[half] + block * strides[0] + token % page * strides[1];
                wide(&memory[row + kv_head * strides[2]..][..dim])
            };
            let kv: Vec<_> = seen.iter().map(|&token| (at(0, token), at(1, token))).collect();
            let kv: Vec<_> = kv.iter().map(|(k, v)| (&k[..], &v[..])).collect();
            let index = row * q_heads + head;
            let (right, right_lse) = attend_row(&params, &wide(&q[index * dim..][..dim]), &kv);
            let (far, limit) = (relative_l2(&out[index * dim..][..dim], &right), T::DTYPE.bytes());
            assert!(far < if limit == 4 { 1e-5 } else { 5e-3 }, "row {row}, head {head}: {far}");
            let close = (f64::from(lse[index]) - right_lse).abs() < 1e-3;
            assert!(close || f64::from(lse[index]) == right_lse, "row {row}: {}", lse[index]);
        }
    }
    None
}

/// The bytes of some elements.
fn bytes<T: KvElement>(values: &[T]) -> Vec<u8> {
    T::elements(values).bytes().unwrap().to_vec()
}

/// Runs all cases; on a GPU those of f32 in bf16, and expects of them what they say of a GPU.
fn run_all(gpu: Option<&Gpu>) {
    for case in Case::all() {
        let error = match case.text("dtype") {
            "f16" => run::<f16>(&case, 0, gpu),
            "f32" if gpu.is_none() => run::<f32>(&case, 2, gpu),
            _ => run::<bf16>(&case, 1, gpu),
        };
        let own = gpu.map_or("", |_| case.text("gpu error"));
        let expected = if own.is_empty() { case.text("error") } else { own };
        let (name, found) = (case.text("name"), error.unwrap_or_default());
        let right = found.contains(expected) && expected.is_empty() == found.is_empty();
        assert!(right, "{name}: {found:?}, not {expected:?}");
    }
}

#[test]
fn every_case_gives_what_it_says() {
    run_all(None);
}

#[test]
fn every_case_gives_the_same_on_a_gpu() {
    if let Some(gpu) = Gpu::open() {
        run_all(Some(&gpu));
    }
}

#[test]
fn null_and_numbers_of_nothing_are_refused_by_name() {
    let tables = Tables {
        ids: null(),
        lens: null(),
        queries: null(),
        masks: null(),
        sequences: 1,
        stride: 1,
        mask_words: 0,
        page_size: 16,
        reserved: 0,
    };
    let mut plan = null_mut();
    let shape = Shape {
        capacity_bytes: 1 << 20,
        layers: 1,
        q_heads: 2,
        kv_heads: 1,
        head_dim: 64,
        dtype: 2,
        gpu: -1,
        scale: 0.0,
        soft_cap: 0.0,
    };
    // SAFETY: null pointers are refused, the others are valid.
    unsafe {
        assert_eq!(deft_plan_new(1, 1, 64, 2, -1, null(), &mut plan), 1);
        assert_eq!(last_error(), "tables is NULL");
        assert_eq!(deft_plan_new(1, 1, 64, 2, -1, &tables, null_mut()), 1);
        assert_eq!(last_error(), "plan is NULL");
        assert_eq!(deft_plan_new(1, 1, 64, 3, -1, &tables, &mut plan), 1);
        assert_eq!(last_error(), "dtype is 3; it must be 0 (f16), 1 (bf16) or 2 (f32)");
        assert_eq!(deft_plan_new(1, 1, 64, 2, -1, &tables, &mut plan), 1);
        assert_eq!(last_error(), "block_tables is NULL; it must have 1 elements");
        let mut cache = null_mut();
        assert_eq!(deft_cache_new(&Shape { gpu: -2, ..shape }, &mut cache), 1);
        assert_eq!(last_error(), "gpu is -2; it must be -1 for the CPU, or a GPU's number");
        assert_eq!(deft_cache_new(&shape, &mut cache), 0);
        let mut root = 0;
        assert_eq!(deft_insert_root(cache, &mut root), 0);
        let draft = [Draft { parent: -2, tokens: 1 }];
        assert_eq!(deft_insert_draft(cache, root, draft.as_ptr(), 1, &mut 0), 1);
        assert_eq!(last_error(), "draft[0].parent is -2; it must be -1, or an index");
        assert_eq!(deft_fork(cache, root, 1, null_mut()), 1);
        assert_eq!(last_error(), "children is NULL; it must have 1 elements");
        deft_cache_free(cache);
        deft_cache_free(null_mut());
        deft_plan_free(null_mut());
    }
}
