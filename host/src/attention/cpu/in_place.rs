//! Attention over K and V where another engine keeps them.

use kernels_gpu::layout::{CORE, element_offset};
use pulp::Arch;

use super::item::{Call, Source};
use super::{MAX_HEAD_DIM, Workspace, on_host, plan_config};
use crate::attention::{BackendError, PagedAttend, check_paged_attend};
use crate::cache::{DType, KvElement};
use crate::plan::{Grouping, PagedPlan, PlanConfig};

/// Attends over foreign caches in the host's memory; it keeps the memory that its calls work in.
#[derive(Debug)]
pub struct InPlace {
    arch: Arch,
    workspace: Workspace,
}

/// K and V of one layer in blocks, and which blocks make up a plan's pages.
#[derive(Clone, Copy, Debug)]
pub(super) struct Blocks<'a, T> {
    /// K and V, each with the elements from one block, token and KV head to the next.
    pub(super) kv: [(&'a [T], [usize; 3]); 2],
    /// A page is `64 / page_size` of these, from the one that its id names.
    pub(super) ids: &'a [i32],
    pub(super) page_size: u32,
}

impl Default for InPlace {
    fn default() -> Self {
        Self { arch: Arch::new(), workspace: Workspace::default() }
    }
}

impl InPlace {
    /// How to plan for it: query heads, KV heads and head dimension of the cache.
    pub fn plan_config(grouping: Grouping, heads: [u32; 3], dtype: DType) -> PlanConfig {
        plan_config(grouping, heads, dtype)
    }

    /// Attention of one layer. Nothing is written but `out` and `lse`, and no array made as large as K or V.
    ///
    /// # Errors
    /// Those of [`check_paged_attend`]; nothing is written then.
    pub fn attend(&mut self, plan: &PagedPlan, call: PagedAttend<'_>) -> Result<(), BackendError> {
        check_paged_attend(plan, &call)?;
        match call.k.elements.dtype() {
            DType::F16 => self.run::<half::f16>(plan, call),
            DType::Bf16 => self.run::<half::bf16>(plan, call),
            DType::F32 => self.run::<f32>(plan, call),
        }
    }

    fn run<T: KvElement>(
        &mut self,
        plan: &PagedPlan,
        call: PagedAttend<'_>,
    ) -> Result<(), BackendError> {
        let k = on_host("k", call.k.elements.typed::<T>())?;
        let v = on_host("v", call.v.elements.typed::<T>())?;
        let out = on_host("out", call.out.into_typed::<T>())?;
        let lse = call.lse.map(|lse| on_host("lse", lse.into_typed())).transpose()?;
        let blocks = Blocks {
            kv: [(k, call.k.strides), (v, call.v.strides)],
            ids: plan.ids(),
            page_size: plan.page_size(),
        };
        let call = Call {
            arch: self.arch,
            source: Source::InPlace(blocks),
            kv_heads: call.kv_heads,
            head_dim: call.head_dim,
            plan: plan.plan(),
            lengths: plan.lengths(),
            directory: None,
            residues: None,
            q: on_host("q", call.q.typed())?,
            params: call.params,
        };
        self.workspace.run(&call, out, lse);
        Ok(())
    }
}

impl<T: KvElement> Blocks<'_, T> {
    /// K and V of a page's tokens in f32, as native pages have them: of `(page, tokens, KV head)`.
    #[inline(always)]
    pub(super) fn widen(
        &self,
        (page, tokens, kv_head): (u32, u32, u32),
        head_dim: u32,
        halves: [&mut [f32]; 2],
    ) {
        let ids = &self.ids[page as usize..];
        let mut wide = [0.0; MAX_HEAD_DIM];
        let wide = &mut wide[..head_dim as usize];
        for ((elements, [block, slot, head]), half) in self.kv.into_iter().zip(halves) {
            for token in 0..tokens {
                let id = ids[(token / self.page_size) as usize] as usize;
                let row =
                    id * block + (token % self.page_size) as usize * slot + kv_head as usize * head;
                T::widen(&elements[row..row + head_dim as usize], wide);
                let first = element_offset(head_dim, token, 0) as usize;
                let chunks = half[first..].chunks_mut((CORE * CORE) as usize);
                for (to, from) in chunks.zip(wide.chunks_exact(CORE as usize)) {
                    to[..CORE as usize].copy_from_slice(from);
                }
            }
        }
    }
}
