//! Plans from block tables, and attention over foreign caches in place.

use deft::attention::{AttentionParams, PagedAttend, PagedTensor, cpu};
use deft::cuda::{self, CudaDevice, RawStream, Stream};
use deft::plan::{BlockTables, Grouping, PagedPlan};
use deft::{DType, PlanUpdate};

use crate::device::{Device, open};
use crate::error::{Error, Status, free, given, given_mut, guard, refuse, slice};
use crate::tensor::{Tensor, dtype};

/// `deft_block_tables`: sequences as an engine with a paged cache has them.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct Tables {
    /// `[sequences, stride]`.
    pub ids: *const i32,
    /// `[sequences]`.
    pub lens: *const i32,
    /// `[sequences]`; null for a query a sequence.
    pub queries: *const i32,
    /// `[rows, mask_words]`; null for none.
    pub masks: *const u64,
    /// How many sequences.
    pub sequences: u64,
    /// Ids from one sequence's first to the next's.
    pub stride: u64,
    /// Words of a row of masks.
    pub mask_words: u64,
    /// Tokens of a block.
    pub page_size: u32,
    /// Zero.
    pub reserved: u32,
}

/// `deft_plan`.
#[derive(Debug)]
pub struct Plan {
    heads: [u32; 3],
    dtype: DType,
    plan: PagedPlan,
    device: Device,
    backend: Backend,
}

#[derive(Debug)]
enum Backend {
    Cpu(cpu::InPlace),
    Gpu(CudaDevice, Box<cuda::InPlace>),
}

impl Tables {
    /// # Safety
    /// Pointers are null or valid for their shapes.
    unsafe fn read<'a>(&self) -> Result<BlockTables<'a>, Error> {
        let Some(ids) = self.sequences.checked_mul(self.stride) else {
            return refuse!("stride is {}; {} rows do not fit", self.stride, self.sequences);
        };
        // SAFETY: the caller's.
        unsafe {
            let queries = match self.queries.is_null() {
                true => &[],
                false => slice("queries", self.queries, self.sequences)?,
            };
            let rows = match queries {
                [] => self.sequences,
                _ => queries.iter().map(|&queries| u64::try_from(queries).unwrap_or(0)).sum(),
            };
            let masks = match self.masks.is_null() {
                true => &[],
                false => slice("masks", self.masks, rows.saturating_mul(self.mask_words))?,
            };
            Ok(BlockTables {
                ids: slice("block_tables", self.ids, ids)?,
                stride: self.stride as usize,
                lens: slice("lens", self.lens, self.sequences)?,
                page_size: self.page_size,
                queries,
                masks,
            })
        }
    }
}

impl Plan {
    /// Plans `tables` for query heads, KV heads and a head dimension, on the CPU (`gpu` -1) or a GPU.
    ///
    /// # Safety
    /// The pointers of `tables` are null or valid for their shapes.
    ///
    /// # Errors
    /// [`Error`], naming the argument.
    pub unsafe fn new(
        heads: [u32; 3],
        dtype: DType,
        gpu: i32,
        tables: &Tables,
    ) -> Result<Self, Error> {
        let [q_heads, kv_heads, _] = heads;
        if q_heads == 0 || !q_heads.is_multiple_of(kv_heads) {
            return refuse!(
                "q_heads is {q_heads}; it must be a positive multiple of kv_heads, {kv_heads}"
            );
        }
        let device = Device::numbered(gpu)?;
        let (backend, config) = match device {
            Device::Cpu => {
                let config = cpu::InPlace::plan_config(Grouping::Flatten, heads, dtype);
                (Backend::Cpu(cpu::InPlace::default()), config)
            }
            Device::Cuda(gpu) => {
                let gpu = open(gpu)?;
                let in_place = cuda::InPlace::new(&gpu, heads, dtype)?;
                let config = in_place.plan_config(Grouping::Flatten);
                (Backend::Gpu(gpu, Box::new(in_place)), config)
            }
        };
        // SAFETY: the caller's.
        let plan = PagedPlan::new(config, &unsafe { tables.read() }?)?;
        Ok(Self { heads, dtype, plan, device, backend })
    }

    /// Plans `tables` in place of those before: 0 for a plan that was kept, 1 patched, 2 made anew.
    ///
    /// # Safety
    /// As [`Plan::new`].
    ///
    /// # Errors
    /// [`Error`], naming the argument; the plan is as it was.
    pub unsafe fn update(&mut self, tables: &Tables) -> Result<i32, Error> {
        // SAFETY: the caller's.
        let tables = unsafe { tables.read() }?;
        Ok(update_code(self.plan.update(&tables)?))
    }

    /// Brings the plan to its GPU, as the next attention would. Whether graphs captured before are not to be launched again.
    ///
    /// # Safety
    /// `stream` is a stream of the GPU's primary context.
    ///
    /// # Errors
    /// [`Error`], from the GPU.
    pub unsafe fn upload(&mut self, stream: usize) -> Result<bool, Error> {
        self.check_stream(stream)?;
        match &mut self.backend {
            Backend::Cpu(_) => Ok(false),
            Backend::Gpu(device, in_place) => {
                // SAFETY: the caller's.
                let stream = unsafe { Stream::borrow_raw(device, RawStream(stream)) };
                Ok(in_place.update(&self.plan, &stream)?)
            }
        }
    }

    fn check_here(&self, tensors: &[(&str, &Tensor)]) -> Result<(), Error> {
        for (name, tensor) in tensors {
            let (found, expected) = (tensor.device(name)?, self.device);
            if found != expected {
                return refuse!("{name} is on {found}; it must be on {expected}, as the plan is");
            }
        }
        Ok(())
    }

    fn check_stream(&self, stream: usize) -> Result<(), Error> {
        match self.device {
            Device::Cpu if stream != 0 => {
                refuse!("stream is {stream:#x}; it must be 0, there is none on the CPU")
            }
            _ => Ok(()),
        }
    }

    /// Tokens that queries see, counted once a sequence; how many different ones they are.
    pub fn tokens(&self) -> [u64; 2] {
        self.plan.tokens()
    }

    /// Query heads, KV heads, head dimension.
    pub fn heads(&self) -> [u32; 3] {
        self.heads
    }

    /// Rows of `q`.
    pub fn rows(&self) -> u32 {
        self.plan.plan().queries()
    }

    /// Attention of one layer: `scale` 0 for `1 / sqrt(head_dim)`, `soft_cap` 0 for none. On a GPU it is enqueued on `stream`,
    /// which the tensors are made and used on.
    ///
    /// # Safety
    /// The tensors' memory is valid; nobody writes it meanwhile, nor reads `out` and `lse`: on a GPU in the order of `stream`,
    /// a stream of its primary context.
    ///
    /// # Errors
    /// [`Error`], naming the argument; nothing is written then.
    pub unsafe fn attend(
        &mut self,
        [q, k, v, out]: [&Tensor; 4],
        lse: Option<&Tensor>,
        scale: f32,
        soft_cap: f32,
        stream: usize,
    ) -> Result<(), Error> {
        let ([q_heads, kv_heads, head_dim], rows) = (self.heads, self.rows());
        let dim = |name, len: u32| (name, Some(u64::from(len)));
        let of_rows = [dim("rows", rows), dim("q_heads", q_heads), dim("head_dim", head_dim)];
        let of_cache = [
            ("blocks", None),
            dim("page_size", self.plan.page_size()),
            dim("kv_heads", kv_heads),
            dim("head_dim", head_dim),
        ];
        q.check_rows("q", &of_rows)?;
        k.check("k", &of_cache)?;
        v.check("v", &of_cache)?;
        out.check_rows("out", &of_rows)?;
        let inputs = [("q", q), ("k", k), ("v", v)];
        out.check_apart("out", &inputs)?;
        if let Some(lse) = lse {
            lse.check_rows("lse", &of_rows[..2])?;
            lse.check_apart("lse", &inputs)?;
            lse.check_apart("lse", &[("out", out)])?;
        }
        self.check_stream(stream)?;
        self.check_here(&inputs)?;
        self.check_here(&[("out", out), ("lse", lse.unwrap_or(out))])?;
        // SAFETY: the caller's; what is written is apart from the rest.
        unsafe {
            let paged = |name, tensor: &Tensor| {
                let elements = tensor.elements(name, &of_cache, stream)?;
                let strides = [0, 1, 2].map(|at| tensor.strides[at] as usize);
                Ok::<_, Error>(PagedTensor { elements, blocks: tensor.shape[0] as usize, strides })
            };
            let (k_cache, v_cache) = (paged("k", k)?, paged("v", v)?);
            let found = dtype(k.dtype)?;
            if found != self.dtype {
                return refuse!("k is {found}, the plan is for {}", self.dtype);
            }
            let q_rows = q.contiguous("q", &of_rows, stream)?;
            let written = out.contiguous_mut("out", &of_rows, stream)?;
            let lse =
                lse.map(|lse| lse.contiguous_mut("lse", &of_rows[..2], stream)).transpose()?;
            let mut params = AttentionParams::new(head_dim);
            if scale != 0.0 {
                params.scale = scale;
            }
            params.soft_cap = Some(soft_cap).filter(|&cap| cap != 0.0);
            let call = PagedAttend {
                k: k_cache,
                v: v_cache,
                kv_heads,
                head_dim,
                q: q_rows,
                out: written,
                lse,
                params,
            };
            match &mut self.backend {
                Backend::Cpu(in_place) => in_place.attend(&self.plan, call)?,
                Backend::Gpu(_, in_place) => in_place.attend(&self.plan, call)?,
            }
            Ok(())
        }
    }
}

pub(crate) fn update_code(update: PlanUpdate) -> i32 {
    match update {
        PlanUpdate::Unchanged => 0,
        PlanUpdate::Patched => 1,
        PlanUpdate::Replanned => 2,
    }
}

/// See the header.
///
/// # Safety
/// Pointers are null or valid for what the header says of them.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn deft_plan_new(
    q_heads: u32,
    kv_heads: u32,
    head_dim: u32,
    dtype_code: i32,
    gpu: i32,
    tables: *const Tables,
    plan: *mut *mut Plan,
) -> Status {
    // SAFETY: the caller's.
    guard(|| unsafe {
        let (tables, plan) = (given("tables", tables)?, given_mut("plan", plan)?);
        let made = Plan::new([q_heads, kv_heads, head_dim], dtype(dtype_code)?, gpu, tables)?;
        *plan = Box::into_raw(Box::new(made));
        Ok(())
    })
}

/// See the header.
///
/// # Safety
/// Pointers are null or valid for what the header says of them.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn deft_plan_update(
    plan: *mut Plan,
    tables: *const Tables,
    update: *mut i32,
) -> Status {
    // SAFETY: the caller's.
    guard(|| unsafe {
        let done = given_mut("plan", plan)?.update(given("tables", tables)?)?;
        if let Some(update) = update.as_mut() {
            *update = done;
        }
        Ok(())
    })
}

/// See the header.
///
/// # Safety
/// Pointers are null or valid for what the header says of them.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn deft_plan_upload(
    plan: *mut Plan,
    stream: usize,
    moved: *mut i32,
) -> Status {
    // SAFETY: the caller's.
    guard(|| unsafe {
        let done = given_mut("plan", plan)?.upload(stream)?;
        if let Some(moved) = moved.as_mut() {
            *moved = i32::from(done);
        }
        Ok(())
    })
}

/// See the header.
///
/// # Safety
/// Pointers are null or valid for what the header says of them.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn deft_plan_tokens(plan: *const Plan, tokens: *mut [u64; 2]) -> Status {
    // SAFETY: the caller's.
    guard(|| unsafe {
        *given_mut("tokens", tokens)? = given("plan", plan)?.tokens();
        Ok(())
    })
}

/// See the header.
///
/// # Safety
/// The plan is null or of [`deft_plan_new`], and used no more.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn deft_plan_free(plan: *mut Plan) {
    // SAFETY: the caller's.
    unsafe { free(plan) }
}

/// See the header.
///
/// # Safety
/// Pointers are null or valid for what the header says of them.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn deft_paged_tree_attention(
    plan: *mut Plan,
    q: *const Tensor,
    k: *const Tensor,
    v: *const Tensor,
    out: *const Tensor,
    lse: *const Tensor,
    scale: f32,
    soft_cap: f32,
    stream: usize,
) -> Status {
    // SAFETY: the caller's.
    guard(|| unsafe {
        let tensors = [given("q", q)?, given("k", k)?, given("v", v)?, given("out", out)?];
        given_mut("plan", plan)?.attend(tensors, lse.as_ref(), scale, soft_cap, stream)
    })
}
