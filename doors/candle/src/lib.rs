//! The candle door: attention over a paged KV cache of candle's tensors, where they are.
//!
//! [`PagedTreeAttention`] is an operator of candle (`CustomOp3`) over queries, keys and values. Sequences whose block tables
//! begin alike share those blocks: they are read once for all of them. CPU tensors; on CUDA and Metal candle's own error
//! says that there is no implementation.

use std::sync::{Mutex, PoisonError};

use candle_core::{CpuStorage, CustomOp3, Error, Layout, Result, Shape, Tensor};
use deft::attention::cpu::InPlace;
use deft::attention::{AttentionParams, PagedAttend, PagedTensor};
use deft::cache::KvElement;
use deft::plan::{BlockTables, Grouping, PagedPlan};
use deft::{DType, PlanUpdate};

/// Attention of one step, for all layers: a plan of its block tables and the memory that it works in.
#[derive(Debug)]
pub struct PagedTreeAttention {
    plan: PagedPlan,
    kv_heads: usize,
    head_dim: usize,
    params: AttentionParams,
    in_place: Mutex<InPlace>,
}

impl PagedTreeAttention {
    /// Plans `tables` for query heads, KV heads and head dimension, and K and V of `dtype`.
    ///
    /// # Errors
    /// What is refused, with its value and the limit.
    pub fn new(heads: [u32; 3], dtype: DType, tables: &BlockTables<'_>) -> Result<Self> {
        let [q_heads, kv_heads, head_dim] = heads;
        if q_heads == 0 || !q_heads.is_multiple_of(kv_heads) {
            candle_core::bail!(
                "q_heads is {q_heads}; it must be a positive multiple of kv_heads, {kv_heads}"
            );
        }
        let config = InPlace::plan_config(Grouping::Flatten, heads, dtype);
        Ok(Self {
            plan: PagedPlan::new(config, tables).map_err(Error::wrap)?,
            kv_heads: kv_heads as usize,
            head_dim: head_dim as usize,
            params: AttentionParams::new(head_dim),
            in_place: Mutex::default(),
        })
    }

    /// Plans `tables` in place of those before; cheap where sequences have only grown.
    ///
    /// # Errors
    /// As [`PagedTreeAttention::new`]; the plan is as it was.
    pub fn update(&mut self, tables: &BlockTables<'_>) -> Result<PlanUpdate> {
        self.plan.update(tables).map_err(Error::wrap)
    }

    /// Scale and soft cap, where they are not `1 / sqrt(head_dim)` and none.
    pub fn params_mut(&mut self) -> &mut AttentionParams {
        &mut self.params
    }

    /// Attention of one layer: `q` and the result are `[rows, q_heads, head_dim]`, K and V
    /// `[blocks, page_size, kv_heads, head_dim]` of any strides that keep rows contiguous: where heads come first,
    /// `transpose(1, 2)` of them.
    ///
    /// # Errors
    /// What is refused, with its value and the limit.
    pub fn forward(&self, q: &Tensor, k: &Tensor, v: &Tensor) -> Result<Tensor> {
        q.contiguous()?.apply_op3_no_bwd(k, v, self)
    }

    /// K or V as the plan's blocks.
    fn half<'a, T: KvElement>(
        &self,
        name: &str,
        (elements, layout): (&'a [T], &Layout),
    ) -> Result<PagedTensor<'a>> {
        let (blocks, page, heads, dim) = layout.shape().dims4()?;
        let found = [page, heads, dim];
        let expected = [self.plan.page_size() as usize, self.kv_heads, self.head_dim];
        if found != expected {
            candle_core::bail!(
                "{name} has blocks of {found:?}; they must be {expected:?}, [page_size, kv_heads, head_dim]"
            );
        }
        let &[block, slot, head, 1] = layout.stride() else {
            candle_core::bail!("{name} has strides {:?}; rows are contiguous", layout.stride());
        };
        let elements = T::elements(&elements[layout.start_offset()..]);
        Ok(PagedTensor { elements, blocks, strides: [block, slot, head] })
    }

    fn run<T: KvElement>(&self, q: (&[T], &Layout), kv: [(&[T], &Layout); 2]) -> Result<Vec<T>> {
        let [k, v] = kv;
        let (k, v) = (self.half("k", k)?, self.half("v", v)?);
        let (rows, q_heads, _) = q.1.shape().dims3()?;
        let q = &q.0[q.1.start_offset()..][..q.1.shape().elem_count()];
        let mut out = vec![T::default(); rows * q_heads * self.head_dim];
        let call = PagedAttend {
            k,
            v,
            kv_heads: self.kv_heads as u32,
            head_dim: self.head_dim as u32,
            q: T::elements(q),
            out: T::elements_mut(&mut out),
            lse: None,
            params: self.params,
        };
        let mut in_place = self.in_place.lock().unwrap_or_else(PoisonError::into_inner);
        in_place.attend(&self.plan, call).map_err(Error::wrap)?;
        Ok(out)
    }
}

impl CustomOp3 for PagedTreeAttention {
    fn name(&self) -> &'static str {
        "paged-tree-attention"
    }

    fn cpu_fwd(
        &self,
        q: &CpuStorage,
        of_q: &Layout,
        k: &CpuStorage,
        of_k: &Layout,
        v: &CpuStorage,
        of_v: &Layout,
    ) -> Result<(CpuStorage, Shape)> {
        use CpuStorage::{BF16, F16, F32};
        let out = match (q, k, v) {
            (F16(q), F16(k), F16(v)) => F16(self.run((q, of_q), [(k, of_k), (v, of_v)])?),
            (BF16(q), BF16(k), BF16(v)) => BF16(self.run((q, of_q), [(k, of_k), (v, of_v)])?),
            (F32(q), F32(k), F32(v)) => F32(self.run((q, of_q), [(k, of_k), (v, of_v)])?),
            _ => candle_core::bail!("q, k and v must all be f16, all bf16 or all f32"),
        };
        Ok((out, of_q.shape().clone()))
    }
}
