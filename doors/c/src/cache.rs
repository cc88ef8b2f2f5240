//! A cache of token trees.

use deft::{Batch, DType, DraftNode, Kv, NodeKey, Out, TreeCache};

use crate::device::{Device, open};
use crate::error::{Error, Status, check_slice, free, given, given_mut, guard, refuse, slice};
use crate::plan::update_code;
use crate::tensor::{Tensor, dtype, typed};

/// `deft_cache_shape`: layers, heads and memory of a cache.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct Shape {
    /// Bytes for pages.
    pub capacity_bytes: u64,
    /// Layers.
    pub layers: u32,
    /// Query heads.
    pub q_heads: u32,
    /// KV heads.
    pub kv_heads: u32,
    /// Elements of a head: 64, 80, 96, 112, 128, 192 or 256.
    pub head_dim: u32,
    /// 0 f16, 1 bf16, 2 f32.
    pub dtype: i32,
    /// -1 for the CPU, otherwise a GPU's number.
    pub gpu: i32,
    /// 0 for `1 / sqrt(head_dim)`.
    pub scale: f32,
    /// 0 for none.
    pub soft_cap: f32,
}

/// `deft_draft_node`.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct Draft {
    /// Index of the parent within the draft; -1 right below the trunk.
    pub parent: i32,
    /// Tokens of the node.
    pub tokens: u32,
}

/// `deft_cache`.
#[derive(Debug)]
pub struct Cache {
    /// What it is to Rust.
    pub inner: TreeCache,
    dtype: DType,
    device: Device,
}

impl Cache {
    /// A cache of `shape`.
    ///
    /// # Errors
    /// [`Error`], naming the argument.
    pub fn new(shape: &Shape) -> Result<Self, Error> {
        let device = Device::numbered(shape.gpu)?;
        let dtype = dtype(shape.dtype)?;
        let place = match device {
            Device::Cpu => deft::Device::cpu(),
            Device::Cuda(gpu) => open(gpu)?.into(),
        };
        let mut builder = TreeCache::builder(&place)
            .layers(shape.layers)
            .heads(shape.q_heads, shape.kv_heads, shape.head_dim)
            .dtype(dtype)
            .capacity_bytes(shape.capacity_bytes);
        if shape.scale != 0.0 {
            builder = builder.scale(shape.scale);
        }
        if shape.soft_cap != 0.0 {
            builder = builder.soft_cap(shape.soft_cap);
        }
        Ok(Self { inner: builder.build()?, dtype, device })
    }

    /// Puts a draft below `trunk`.
    ///
    /// # Errors
    /// [`Error`], naming the argument.
    pub fn insert_draft(&mut self, trunk: NodeKey, draft: &[Draft]) -> Result<Vec<NodeKey>, Error> {
        let mut nodes = Vec::with_capacity(draft.len());
        for (index, &Draft { parent, tokens }) in draft.iter().enumerate() {
            if parent < -1 {
                return refuse!("draft[{index}].parent is {parent}; it must be -1, or an index");
            }
            nodes.push(DraftNode { parent: u32::try_from(parent).ok(), tokens });
        }
        Ok(self.inner.insert_draft(trunk, &nodes)?)
    }

    /// Writes K and V of a batch's rows, `[rows, kv_heads, head_dim]`.
    ///
    /// # Safety
    /// The tensors' memory is valid, and not written meanwhile; on a GPU until `stream` has done the work.
    ///
    /// # Errors
    /// [`Error`], naming the argument; nothing is written then.
    pub unsafe fn append(
        &mut self,
        layer: u32,
        batch: &Batch,
        [k, v]: [&Tensor; 2],
        stream: usize,
    ) -> Result<(), Error> {
        let config = self.inner.config();
        let shape = dims(batch, config.kv_heads, config.head_dim);
        self.check_here([("k", k), ("v", v)])?;
        // SAFETY: the caller's.
        typed!(self.dtype, T => unsafe {
            let (k, v) = (k.rows::<T>("k", &shape, stream)?, v.rows::<T>("v", &shape, stream)?);
            Ok(self.inner.append(layer, batch, Kv::new(k, v))?)
        })
    }

    /// Attention of one layer: `q` and `out` are `[rows, q_heads, head_dim]`, `lse` f32 `[rows, q_heads]`.
    ///
    /// # Safety
    /// As [`Cache::append`]; nobody else reads or writes `out` and `lse`.
    ///
    /// # Errors
    /// [`Error`], naming the argument; nothing is written then.
    pub unsafe fn attend(
        &mut self,
        layer: u32,
        batch: &Batch,
        [q, out]: [&Tensor; 2],
        lse: Option<&Tensor>,
        stream: usize,
    ) -> Result<(), Error> {
        let config = self.inner.config();
        let shape = dims(batch, config.q_heads, config.head_dim);
        self.check_here([("q", q), ("out", out)])?;
        q.check_rows("q", &shape)?;
        out.check_rows("out", &shape)?;
        out.check_apart("out", &[("q", q)])?;
        if let Some(lse) = lse {
            self.check_here([("lse", lse)])?;
            lse.check_rows("lse", &shape[..2])?;
            lse.check_apart("lse", &[("q", q), ("out", out)])?;
        }
        // SAFETY: the caller's.
        typed!(self.dtype, T => unsafe {
            let q = q.rows::<T>("q", &shape, stream)?;
            let out = out.rows_mut::<T>("out", &shape, stream)?;
            let lse = lse.map(|lse| lse.rows_mut("lse", &shape[..2], stream)).transpose()?;
            Ok(self.inner.attend(layer, batch, q, Out { out, lse })?)
        })
    }

    /// Rows are in the host's memory, or on the cache's GPU.
    fn check_here<const N: usize>(&self, tensors: [(&str, &Tensor); N]) -> Result<(), Error> {
        for (name, tensor) in tensors {
            let found = tensor.device(name)?;
            if !matches!(found, Device::Cpu) && found != self.device {
                return refuse!("{name} is on {found}; the cache is on {}", self.device);
            }
        }
        Ok(())
    }
}

fn dims(batch: &Batch, heads: u32, head_dim: u32) -> [(&'static str, Option<u64>); 3] {
    let dim = |name, len| (name, Some(len));
    [
        dim("rows", batch.rows() as u64),
        dim("heads", u64::from(heads)),
        dim("head_dim", u64::from(head_dim)),
    ]
}

/// See the header.
///
/// # Safety
/// Pointers are null or valid for what the header says of them.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn deft_cache_new(shape: *const Shape, cache: *mut *mut Cache) -> Status {
    // SAFETY: the caller's.
    guard(|| unsafe {
        let (shape, cache) = (given("shape", shape)?, given_mut("cache", cache)?);
        *cache = Box::into_raw(Box::new(Cache::new(shape)?));
        Ok(())
    })
}

/// See the header.
///
/// # Safety
/// The cache is null or of [`deft_cache_new`], and used no more.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn deft_cache_free(cache: *mut Cache) {
    // SAFETY: the caller's.
    unsafe { free(cache) }
}

/// See the header.
///
/// # Safety
/// Pointers are null or valid for what the header says of them.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn deft_insert_root(cache: *mut Cache, node: *mut u64) -> Status {
    // SAFETY: the caller's.
    guard(|| unsafe {
        let node = given_mut("node", node)?;
        *node = given_mut("cache", cache)?.inner.insert_root()?.to_bits();
        Ok(())
    })
}

/// See the header.
///
/// # Safety
/// Pointers are null or valid for what the header says of them.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn deft_fork(
    cache: *mut Cache,
    node: u64,
    count: u64,
    children: *mut u64,
) -> Status {
    // SAFETY: the caller's.
    guard(|| unsafe {
        check_slice("children", children, count)?;
        let made =
            given_mut("cache", cache)?.inner.fork(NodeKey::from_bits(node), count as usize)?;
        write_keys(&made, children);
        Ok(())
    })
}

/// See the header.
///
/// # Safety
/// Pointers are null or valid for what the header says of them.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn deft_prune(cache: *mut Cache, node: u64) -> Status {
    // SAFETY: the caller's.
    guard(|| unsafe {
        given_mut("cache", cache)?.inner.prune(NodeKey::from_bits(node))?;
        Ok(())
    })
}

/// See the header.
///
/// # Safety
/// Pointers are null or valid for what the header says of them.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn deft_insert_draft(
    cache: *mut Cache,
    trunk: u64,
    draft: *const Draft,
    count: u64,
    nodes: *mut u64,
) -> Status {
    // SAFETY: the caller's.
    guard(|| unsafe {
        let draft = slice("draft", draft, count)?;
        check_slice("nodes", nodes, count)?;
        let made = given_mut("cache", cache)?.insert_draft(NodeKey::from_bits(trunk), draft)?;
        write_keys(&made, nodes);
        Ok(())
    })
}

/// See the header.
///
/// # Safety
/// Pointers are null or valid for what the header says of them.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn deft_accept(
    cache: *mut Cache,
    trunk: u64,
    path: *const u64,
    count: u64,
) -> Status {
    // SAFETY: the caller's.
    guard(|| unsafe {
        let path = keys(slice("path", path, count)?);
        Ok(given_mut("cache", cache)?.inner.accept(NodeKey::from_bits(trunk), &path)?)
    })
}

/// See the header.
///
/// # Safety
/// Pointers are null or valid for what the header says of them.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn deft_batch_new(
    cache: *mut Cache,
    nodes: *const u64,
    tokens: *const u32,
    count: u64,
    batch: *mut *mut Batch,
) -> Status {
    // SAFETY: the caller's.
    guard(|| unsafe {
        let (nodes, tokens) = (slice("nodes", nodes, count)?, slice("tokens", tokens, count)?);
        let nodes: Vec<_> = keys(nodes).into_iter().zip(tokens.iter().copied()).collect();
        let batch = given_mut("batch", batch)?;
        let made = given_mut("cache", cache)?.inner.batch(&nodes)?;
        *batch = Box::into_raw(Box::new(made));
        Ok(())
    })
}

/// See the header.
///
/// # Safety
/// Pointers are null or valid for what the header says of them.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn deft_batch_advance(
    cache: *mut Cache,
    batch: *mut Batch,
    tokens: u32,
    update: *mut i32,
) -> Status {
    // SAFETY: the caller's.
    guard(|| unsafe {
        let batch = given_mut("batch", batch)?;
        let done = given_mut("cache", cache)?.inner.advance(batch, tokens)?;
        if let Some(update) = update.as_mut() {
            *update = update_code(done);
        }
        Ok(())
    })
}

/// See the header.
///
/// # Safety
/// The batch is null or of [`deft_batch_new`], and used no more.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn deft_batch_free(batch: *mut Batch) {
    // SAFETY: the caller's.
    unsafe { free(batch) }
}

/// See the header.
///
/// # Safety
/// Pointers are null or valid for what the header says of them.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn deft_append(
    cache: *mut Cache,
    layer: u32,
    batch: *const Batch,
    k: *const Tensor,
    v: *const Tensor,
    stream: usize,
) -> Status {
    // SAFETY: the caller's.
    guard(|| unsafe {
        let tensors = [given("k", k)?, given("v", v)?];
        given_mut("cache", cache)?.append(layer, given("batch", batch)?, tensors, stream)
    })
}

/// See the header.
///
/// # Safety
/// Pointers are null or valid for what the header says of them.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn deft_attend(
    cache: *mut Cache,
    layer: u32,
    batch: *const Batch,
    q: *const Tensor,
    out: *const Tensor,
    lse: *const Tensor,
    stream: usize,
) -> Status {
    // SAFETY: the caller's.
    guard(|| unsafe {
        let (tensors, batch) = ([given("q", q)?, given("out", out)?], given("batch", batch)?);
        given_mut("cache", cache)?.attend(layer, batch, tensors, lse.as_ref(), stream)
    })
}

fn keys(bits: &[u64]) -> Vec<NodeKey> {
    bits.iter().copied().map(NodeKey::from_bits).collect()
}

/// # Safety
/// There is room for as many.
unsafe fn write_keys(keys: &[NodeKey], to: *mut u64) {
    for (at, key) in keys.iter().enumerate() {
        // SAFETY: the caller's.
        unsafe { to.add(at).write(key.to_bits()) };
    }
}
