//! Attention over K and V where another engine keeps them on a GPU.

use super::backend::aligned;
use super::capacity::plan_config;
use super::counters::Counters;
use super::kernels::{AttendPointers, AttentionKernels, ForeignHalf, ForeignPointers};
use super::{CudaDevice, CudaError, CudaPlan, DevicePtr, PlanCapacity, RawStream, Stream};
use crate::attention::{BackendError, PagedAttend, PagedTensor, check_paged_attend};
use crate::cache::{CacheShape, DType};
use crate::plan::{Grouping, PagedPlan, PlanConfig};

/// Attends over foreign caches on a GPU: K and V are read where they are, and nothing is written but `out` and `lse`. As
/// [`cpu::InPlace`](crate::attention::cpu::InPlace) does in the host's memory.
///
/// It has the plan, its lengths and its block tables on the device, and room for partial results. Its calls are on streams
/// that come one after the other.
#[derive(Debug)]
pub struct InPlace {
    device: CudaDevice,
    shape: CacheShape,
    group_size: u32,
    kernels: AttentionKernels,
    plan: Option<CudaPlan>,
    lengths: Counters,
    ids: Counters,
    /// Which [`PagedPlan`] the device has.
    number: Option<u64>,
}

impl InPlace {
    /// Compiles the kernels for query heads, KV heads and a head dimension of 64 or 128.
    ///
    /// # Errors
    /// [`CudaError::Argument`] for query heads that are no positive multiple of the KV heads, and for other head dimensions;
    /// [`CudaError::Shape`], [`CudaError::DType`] for f32, those of [`CudaDevice::kernel`], [`CudaError::OutOfMemory`].
    pub fn new(
        device: &CudaDevice,
        [q_heads, kv_heads, head_dim]: [u32; 3],
        dtype: DType,
    ) -> Result<Self, CudaError> {
        // Before the shape's check, which knows more of them.
        if !matches!(head_dim, 64 | 128) {
            return Err(CudaError::Argument {
                argument: "head_dim",
                value: head_dim.to_string(),
                expected: "64 or 128, which the kernels read in place".to_owned(),
            });
        }
        let shape = CacheShape { layers: 1, kv_heads, head_dim, dtype, pages: 1 };
        shape.validate()?;
        if dtype == DType::F32 {
            return Err(CudaError::DType { dtype });
        }
        if q_heads == 0 || !q_heads.is_multiple_of(kv_heads) {
            return Err(CudaError::Argument {
                argument: "q_heads",
                value: q_heads.to_string(),
                expected: format!("a positive multiple of kv_heads, {kv_heads}"),
            });
        }
        Ok(Self {
            kernels: AttentionKernels::in_place(device, &shape)?,
            lengths: Counters::new(device, "sequence lengths", 64)?,
            ids: Counters::new(device, "block tables", 64)?,
            device: device.clone(),
            group_size: q_heads / kv_heads,
            shape,
            plan: None,
            number: None,
        })
    }

    /// How to plan for it.
    pub fn plan_config(&self, grouping: Grouping) -> PlanConfig {
        plan_config(&self.device, &self.shape, grouping, self.group_size)
    }

    /// Brings `plan` to the device, copying what differs from what is there: what [`attend`](Self::attend) does by itself,
    /// unless it is captured. Graphs captured before are right for the new plan, if this is false; where device memory was
    /// taken anew it is true, and they are not to be launched again.
    ///
    /// # Errors
    /// [`CudaError::Argument`] for a plan that is not there while the stream is captured; [`CudaError::GroupSize`],
    /// [`CudaError::ItemRows`], [`CudaError::OutOfMemory`], [`CudaError::Driver`].
    pub fn update(&mut self, plan: &PagedPlan, stream: &Stream) -> Result<bool, CudaError> {
        if self.number == Some(plan.number()) {
            return Ok(false);
        }
        if stream.is_captured()? {
            return Err(CudaError::Argument {
                argument: "plan",
                value: "newer than what the device has".to_owned(),
                expected: "brought there before its stream is captured".to_owned(),
            });
        }
        self.number = None;
        let mut moved = false;
        for (counters, slots) in
            [(&mut self.lengths, plan.lengths().len()), (&mut self.ids, plan.ids().len())]
        {
            if let Some(grown) = counters.grown(&self.device, slots)? {
                *counters = grown;
                moved = true;
            }
        }
        let needed = PlanCapacity::of(plan.plan());
        let fits = |on: &&mut CudaPlan| on.capacity().holds(&needed).is_ok();
        let on = match self.plan.as_mut().filter(fits) {
            Some(on) => on,
            None => {
                let before = self.plan.take().map(|on| on.capacity().clone());
                let room = PlanCapacity::with_headroom(plan.plan(), before);
                moved = true;
                self.plan.insert(CudaPlan::new(&self.device, &self.shape, room, self.group_size)?)
            }
        };
        on.update(plan.plan(), stream)?;
        self.lengths.set(plan.lengths(), stream)?;
        self.ids.set(bytemuck::cast_slice(plan.ids()), stream)?;
        self.number = Some(plan.number());
        Ok(moved)
    }

    /// Enqueues attention of one layer on the stream that all of the call's rows are of, and does not wait for it. What is
    /// the same as in the call before is not copied again; after [`update`](Self::update) nothing is, so it can be captured.
    ///
    /// # Errors
    /// Those of [`check_paged_attend`], [`BackendError::NotOnDevice`], [`BackendError::Misaligned`],
    /// [`BackendError::Device`] for rows of several streams, strides that are no multiple of 8, other heads than its own, and
    /// what the driver refuses. Nothing is written then.
    pub fn attend(&mut self, plan: &PagedPlan, call: PagedAttend<'_>) -> Result<(), BackendError> {
        check_paged_attend(plan, &call)?;
        self.check_heads(&call)?;
        let lse = call.lse.as_ref().map(|lse| ("lse", lse.on_device()));
        let rows = [
            ("k", call.k.elements.on_device()),
            ("v", call.v.elements.on_device()),
            ("q", call.q.on_device()),
            ("out", call.out.on_device()),
        ];
        let mut stream = None;
        let mut pointers = [DevicePtr::NULL; 5];
        for ((argument, rows), pointer) in rows.into_iter().chain(lse).zip(&mut pointers) {
            let rows = rows.ok_or(BackendError::NotOnDevice { argument })?;
            *pointer = aligned(argument, rows)?;
            same_stream(&mut stream, argument, rows.stream)?;
        }
        let [k, v, q, out, lse] = pointers;
        let half = |argument, first, tensor: &PagedTensor<'_>| {
            let (strides, blocks) = (pieces(argument, tensor)?, tensor.blocks);
            let blocks = u32::try_from(blocks).unwrap_or(u32::MAX);
            Ok::<_, BackendError>(ForeignHalf { first, blocks, strides })
        };
        let (k, v) = (half("k", k, &call.k)?, half("v", v, &call.v)?);
        let stream = stream.unwrap_or(RawStream(0));
        // SAFETY: whoever made the rows vouched for their stream.
        self.update(plan, &unsafe { Stream::borrow_raw(&self.device, stream) })?;
        let Some(on) = &self.plan else { unreachable!("the update brought it") };
        let shift = plan.page_size().trailing_zeros();
        let foreign = ForeignPointers { k, v, table: self.ids.device.pointer(), shift };
        let pointers = AttendPointers {
            q,
            pool: DevicePtr::NULL,
            lengths: self.lengths.device.pointer(),
            out,
            lse,
            partial_o: on.partial_o.pointer(),
            partial_lse: on.partial_lse.pointer(),
            ..AttendPointers::default()
        };
        // SAFETY: the rows are as long as the plan, the blocks and the strides say (checked above), and valid by the
        // promise of who made them; the plan's pages are places in the tables, whose ids are blocks that there are.
        unsafe {
            self.kernels.attend_in_place(on, &foreign, &pointers, &call.params, stream)?;
            self.kernels.merge(&on.images, on.group_size, &pointers, stream)?;
        }
        Ok(())
    }

    /// Whether the call is of the heads that the kernels are for.
    fn check_heads(&self, call: &PagedAttend<'_>) -> Result<(), BackendError> {
        let CacheShape { kv_heads, head_dim, dtype: expected, .. } = self.shape;
        for (argument, found, expected) in
            [("kv_heads", call.kv_heads, kv_heads), ("head_dim", call.head_dim, head_dim)]
        {
            if found != expected {
                return Err(refused(
                    argument,
                    found.to_string(),
                    format!("{expected}, as it was made for"),
                ));
            }
        }
        let found = call.k.elements.dtype();
        if found != expected {
            return Err(BackendError::DType { argument: "k", found, expected });
        }
        Ok(())
    }
}

fn refused(argument: &'static str, value: String, expected: String) -> BackendError {
    CudaError::Argument { argument, value, expected }.into()
}

/// The first argument's stream is that of all.
fn same_stream(
    all: &mut Option<RawStream>,
    argument: &'static str,
    stream: RawStream,
) -> Result<(), BackendError> {
    let expected = *all.get_or_insert(stream);
    if stream != expected {
        let (value, expected) =
            (format!("on stream {:#x}", stream.0), format!("on that of k, {:#x}", expected.0));
        return Err(refused(argument, value, expected));
    }
    Ok(())
}

/// Strides in pieces of eight elements, in which the kernels count with 32 bits.
fn pieces(argument: &'static str, tensor: &PagedTensor<'_>) -> Result<[u32; 3], BackendError> {
    const PIECES: usize = 8;
    if tensor.elements.len() / PIECES > u32::MAX as usize {
        let expected = format!("at most {}", u32::MAX as usize * PIECES);
        return Err(refused(
            argument,
            format!("{} elements long", tensor.elements.len()),
            expected,
        ));
    }
    if tensor.strides.iter().any(|stride| !stride.is_multiple_of(PIECES)) {
        let expected = format!("multiples of {PIECES}: rows are read 16 bytes at a time");
        return Err(refused(argument, format!("of strides {:?}", tensor.strides), expected));
    }
    // Of a single block, token or head the stride may be anything; it is not counted with.
    Ok(tensor.strides.map(|stride| u32::try_from(stride / PIECES).unwrap_or(0)))
}
