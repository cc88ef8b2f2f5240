//! The GPU kernels as a backend: their own source, on the emulator.

mod paged;

use deft::attention::{
    Attend, Backend, BackendError, Counters, PagedTokens, Rotation, check_append, check_attend,
    check_export, check_import, check_moves,
};
use deft::cache::{CacheShape, DType, Elements, ElementsMut, KvElement};
use deft::plan::Plan;
use device::emulator::{Launch, Memory, Report};
use device::wgmma::Accumulators;
use device::{Bf16, Element, F16};
use kernels_gpu::Arch;
use kernels_gpu::abi::{AppendTarget, TokenMove};
use kernels_gpu::attention::tile::{MERGE_THREADS, MERGE_WARPS};
use kernels_gpu::attention::{self as kernels, Merge, tile};
use kernels_gpu::cache;

use crate::problem::Problem;
use crate::transfers::Inspect;

/// A cache of 16-bit elements whose every operation is a launch on the emulator.
#[derive(Debug)]
pub struct Emulated {
    shape: CacheShape,
    /// `[layers][pages][kv_heads][page elements]`.
    pool: Vec<u16>,
    arch: Arch,
    seed: u64,
}

impl Emulated {
    /// A cache of zeros, whose attention is Hopper's; `seed` decides what a schedule may.
    ///
    /// # Panics
    /// If the elements do not have 16 bits, or the head dimension is none that the kernels have.
    pub fn new(shape: CacheShape, seed: u64) -> Self {
        assert_eq!(shape.dtype.bytes(), 2, "the kernels have 16-bit elements");
        assert!(matches!(shape.head_dim, 64 | 128 | 256));
        let elements = shape.layers as usize * shape.plane_elements() as usize;
        Self {
            shape,
            pool: vec![0; elements],
            arch: Arch::Sm90a,
            seed,
        }
    }

    /// The same with the attention kernels of `arch`.
    #[must_use]
    pub fn with_kernels(self, arch: Arch) -> Self {
        Self { arch, ..self }
    }

    fn plane(&self, layer: u32) -> std::ops::Range<usize> {
        let elements = self.shape.plane_elements() as usize;
        layer as usize * elements..(layer as usize + 1) * elements
    }

    fn launch(&self, blocks: [u32; 3], threads: u32) -> Launch {
        Launch::new(blocks, threads).seed(self.seed)
    }

    fn append_d<E: Element, const D: u32>(
        &mut self,
        layer: u32,
        targets: &[AppendTarget],
        counters: Counters<'_>,
        [k, v]: [Elements<'_>; 2],
    ) -> Result<(), Box<Report>> {
        let mut memory = Memory::new();
        let plane = self.plane(layer);
        let pool = memory.buffer("pool", &self.pool[plane.clone()]);
        let k = memory.constant::<u16>(
            "k",
            bytemuck::cast_slice(k.bytes().expect("rows are on the host")),
        );
        let v = memory.constant::<u16>(
            "v",
            bytemuck::cast_slice(v.bytes().expect("rows are on the host")),
        );
        let rows = memory.constant("targets", targets);
        let lengths = memory.constant("lengths", counters.lengths);
        let tails = memory.constant("tail pages", counters.tail_pages);
        let (count, kv_heads) = (targets.len() as u32, self.shape.kv_heads);
        let work = count * kv_heads * 2 * (D / 8);
        self.launch([work.div_ceil(cache::THREADS), 1, 1], cache::THREADS)
            .run(&mut memory, || {
                // SAFETY: the emulator checks every access.
                unsafe {
                    cache::append::<E, D>(
                        pool.as_mut_ptr(),
                        k.as_ptr(),
                        v.as_ptr(),
                        rows.as_ptr(),
                        lengths.as_ptr(),
                        tails.as_ptr(),
                        count,
                        kv_heads,
                    );
                }
            })?;
        self.pool[plane].copy_from_slice(&memory.read_poisoned(pool));
        Ok(())
    }

    fn append_e<E: Element>(
        &mut self,
        layer: u32,
        targets: &[AppendTarget],
        counters: Counters<'_>,
        rows: [Elements<'_>; 2],
    ) -> Result<(), Box<Report>> {
        match self.shape.head_dim {
            64 => self.append_d::<E, 64>(layer, targets, counters, rows),
            128 => self.append_d::<E, 128>(layer, targets, counters, rows),
            _ => self.append_d::<E, 256>(layer, targets, counters, rows),
        }
    }

    fn append_rope_d<E: Element, const D: u32>(
        &mut self,
        layer: u32,
        targets: &[AppendTarget],
        counters: Counters<'_>,
        [k, v]: [Elements<'_>; 2],
        rotation: Rotation<'_>,
    ) -> Result<(), Box<Report>> {
        let mut memory = Memory::new();
        let plane = self.plane(layer);
        let pool = memory.buffer("pool", &self.pool[plane.clone()]);
        let k = memory.constant::<u16>(
            "k",
            bytemuck::cast_slice(k.bytes().expect("rows are on the host")),
        );
        let v = memory.constant::<u16>(
            "v",
            bytemuck::cast_slice(v.bytes().expect("rows are on the host")),
        );
        let rows = memory.constant("targets", targets);
        let lengths = memory.constant("lengths", counters.lengths);
        let tails = memory.constant("tail pages", counters.tail_pages);
        let positions = memory.constant("positions", rotation.positions);
        let cos = memory.constant("cos", rotation.table.cos());
        let sin = memory.constant("sin", rotation.table.sin());
        let (count, kv_heads) = (targets.len() as u32, self.shape.kv_heads);
        let work = count * kv_heads * (D / 8);
        self.launch([work.div_ceil(cache::THREADS), 1, 1], cache::THREADS)
            .run(&mut memory, || {
                // SAFETY: the emulator checks every access.
                unsafe {
                    cache::append_rope::<E, D>(
                        pool.as_mut_ptr(),
                        k.as_ptr(),
                        v.as_ptr(),
                        rows.as_ptr(),
                        lengths.as_ptr(),
                        tails.as_ptr(),
                        positions.as_ptr(),
                        cos.as_ptr(),
                        sin.as_ptr(),
                        count,
                        kv_heads,
                    );
                }
            })?;
        self.pool[plane].copy_from_slice(&memory.read_poisoned(pool));
        Ok(())
    }

    fn append_rope_e<E: Element>(
        &mut self,
        layer: u32,
        targets: &[AppendTarget],
        counters: Counters<'_>,
        rows: [Elements<'_>; 2],
        rotation: Rotation<'_>,
    ) -> Result<(), Box<Report>> {
        match self.shape.head_dim {
            64 => self.append_rope_d::<E, 64>(layer, targets, counters, rows, rotation),
            128 => self.append_rope_d::<E, 128>(layer, targets, counters, rows, rotation),
            _ => self.append_rope_d::<E, 256>(layer, targets, counters, rows, rotation),
        }
    }

    fn copy_d<const D: u32>(&mut self, moves: &[TokenMove]) -> Result<(), Box<Report>> {
        let mut memory = Memory::new();
        let pool = memory.buffer("pool", &self.pool);
        let list = memory.constant::<u32>("moves", bytemuck::cast_slice(moves));
        let CacheShape {
            layers,
            pages,
            kv_heads,
            ..
        } = self.shape;
        let work = layers * kv_heads * 2 * (D / 8);
        self.launch([work.div_ceil(cache::THREADS), 1, 1], cache::THREADS)
            .run(&mut memory, || {
                // SAFETY: the emulator checks every access.
                unsafe {
                    cache::copy::<D>(
                        pool.as_mut_ptr(),
                        list.as_ptr(),
                        moves.len() as u32,
                        layers,
                        pages,
                        kv_heads,
                    );
                }
            })?;
        self.pool = memory.read_poisoned(pool);
        Ok(())
    }

    fn attend_d<
        E: Element,
        const D: usize,
        const KS: usize,
        const NT: usize,
        const O: usize,
        const V: usize,
    >(
        &self,
        call: Attend<'_>,
    ) -> Result<(), Box<Report>>
    where
        [f32; O]: Accumulators,
    {
        let plan = call.plan;
        let (kv_heads, group) = (self.shape.kv_heads, plan.group_size());
        let partial_rows = (kv_heads * plan.partial_slots() * group) as usize;
        let mut memory = Memory::new();
        let q = memory.constant::<u16>(
            "q",
            bytemuck::cast_slice(call.q.bytes().expect("rows are on the host")),
        );
        let pool = memory.constant("pool", &self.pool[self.plane(call.layer)]);
        let programs = memory.constant("programs", plan.words());
        let masks = memory.constant("masks", plan.masks());
        let lengths = memory.constant("lengths", call.counters.lengths);
        let rows = memory.constant("merge rows", plan.merge_rows());
        let slots = memory.constant("merge slots", plan.merge_slots());
        let out = memory.unwritten::<u16>("out", call.q.len());
        let lse = call
            .lse
            .as_ref()
            .map(|lse| memory.unwritten::<f32>("lse", lse.len()));
        let partial_o = memory.unwritten::<f32>("partial o", partial_rows * D);
        let partial_lse = memory.unwritten::<f32>("partial lse", partial_rows);
        let lse_pointer = || lse.map_or(std::ptr::null_mut(), |lse| lse.as_mut_ptr());
        let (threads, shared_bytes) = match self.arch {
            Arch::Sm80 => (tile::ampere::THREADS, tile::ampere::Tile::<D>::SHARED_BYTES),
            Arch::Sm90a => (tile::hopper::THREADS, tile::hopper::Tile::<D>::SHARED_BYTES),
        };
        self.launch([plan.shares(), kv_heads, 1], threads)
            .shared_bytes(shared_bytes)
            // Of a page's last group of tokens, K is multiplied and then masked.
            .poison_matrix_reads()
            .run(&mut memory, || {
                let arguments = kernels::Attend {
                    q: q.as_ptr(),
                    pool: pool.as_ptr(),
                    programs: programs.as_ptr(),
                    masks: masks.as_ptr(),
                    lengths: lengths.as_ptr(),
                    out: out.as_mut_ptr(),
                    lse: lse_pointer(),
                    partial_o: partial_o.as_mut_ptr(),
                    partial_lse: partial_lse.as_mut_ptr(),
                    stride: plan.stride(),
                    kv_heads,
                    group,
                    partial_slots: plan.partial_slots(),
                    scale_log2: call.params.scale * std::f32::consts::LOG2_E,
                    soft_cap: call.params.soft_cap.unwrap_or(0.0),
                };
                // SAFETY: the emulator checks every access.
                unsafe {
                    match self.arch {
                        Arch::Sm80 => kernels::ampere::attend::<E, D, KS, NT>(arguments),
                        Arch::Sm90a => kernels::hopper::attend::<E, D, KS, NT, O>(arguments),
                    }
                }
            })?;
        let warps = plan.merge_rows().len() as u32 * kv_heads * group;
        if warps > 0 {
            self.launch([warps.div_ceil(MERGE_WARPS), 1, 1], MERGE_THREADS)
                .dependent()
                .run(&mut memory, || {
                    let arguments = Merge {
                        partial_o: partial_o.as_ptr(),
                        partial_lse: partial_lse.as_ptr(),
                        rows: rows.as_ptr(),
                        slots: slots.as_ptr(),
                        out: out.as_mut_ptr(),
                        lse: lse_pointer(),
                        row_count: plan.merge_rows().len() as u32,
                        partial_slots: plan.partial_slots(),
                        kv_heads,
                        group,
                    };
                    // SAFETY: the emulator checks every access.
                    unsafe { kernels::merge::<E, D, V>(arguments) }
                })?;
        }
        let result = memory.read(out).map_err(Box::new)?;
        call.out
            .into_bytes()
            .expect("rows are on the host")
            .copy_from_slice(bytemuck::cast_slice(&result));
        if let (Some(values), Some(lse)) = (call.lse, lse) {
            let values = values.into_typed::<f32>().expect("an LSE is f32");
            values.copy_from_slice(&memory.read(lse).map_err(Box::new)?);
        }
        Ok(())
    }

    fn attend_e<E: Element>(&self, call: Attend<'_>) -> Result<(), Box<Report>> {
        match self.shape.head_dim {
            64 => self.attend_d::<E, 64, 4, 8, 32, 2>(call),
            128 => self.attend_d::<E, 128, 8, 16, 64, 4>(call),
            _ => self.attend_d::<E, 256, 16, 32, 128, 8>(call),
        }
    }
}

/// Runs `plan` over `problem` by every architecture's kernels under the schedule of `seed`, and compares.
///
/// # Panics
/// If a kernel makes a mistake or gives something else.
pub fn check<T: KvElement>(problem: &Problem<T>, plan: &Plan, seed: u64) {
    for arch in Arch::ALL {
        let mut backend = Emulated::new(problem.shape(1), seed).with_kernels(arch);
        problem.store(&mut backend, 0);
        let context = format!(
            "{}, seed {seed}, {:?}, {} shares, {} {:?}",
            arch.name(),
            plan.grouping(),
            plan.shares(),
            T::DTYPE,
            problem.inputs.heads
        );
        problem.check(&mut backend, 0, plan, &context);
    }
}

impl Inspect for Emulated {
    fn pool(&self) -> Vec<u16> {
        self.pool.clone()
    }
}

impl Backend for Emulated {
    fn shape(&self) -> &CacheShape {
        &self.shape
    }

    fn name(&self) -> String {
        format!("GPU kernels for {}, emulated", self.arch.name())
    }

    fn shares(&self) -> u32 {
        4
    }

    fn append(
        &mut self,
        layer: u32,
        targets: &[AppendTarget],
        counters: Counters<'_>,
        k: Elements<'_>,
        v: Elements<'_>,
    ) -> Result<(), BackendError> {
        check_append(&self.shape, layer, targets, counters, [k, v], None)?;
        match self.shape.dtype {
            DType::Bf16 => self.append_e::<Bf16>(layer, targets, counters, [k, v]),
            _ => self.append_e::<F16>(layer, targets, counters, [k, v]),
        }
        .map_err(|report| BackendError::Device(report))
    }

    fn append_rotated(
        &mut self,
        layer: u32,
        targets: &[AppendTarget],
        counters: Counters<'_>,
        k: Elements<'_>,
        v: Elements<'_>,
        rotation: Rotation<'_>,
    ) -> Result<(), BackendError> {
        let rows = [k, v];
        check_append(&self.shape, layer, targets, counters, rows, Some(rotation))?;
        match self.shape.dtype {
            DType::Bf16 => self.append_rope_e::<Bf16>(layer, targets, counters, [k, v], rotation),
            _ => self.append_rope_e::<F16>(layer, targets, counters, [k, v], rotation),
        }
        .map_err(|report| BackendError::Device(report))
    }

    fn copy(&mut self, moves: &[TokenMove]) -> Result<(), BackendError> {
        check_moves(&self.shape, moves)?;
        match self.shape.head_dim {
            64 => self.copy_d::<64>(moves),
            128 => self.copy_d::<128>(moves),
            _ => self.copy_d::<256>(moves),
        }
        .map_err(|report| BackendError::Device(report))
    }

    fn import(
        &mut self,
        paged: PagedTokens<'_>,
        foreign: [Elements<'_>; 2],
    ) -> Result<(), BackendError> {
        check_import(&self.shape, paged, foreign)?;
        let foreign = foreign
            .map(|foreign| bytemuck::cast_slice(foreign.bytes().expect("rows are on the host")));
        self.import_strided(paged, paged.table.page_size, foreign)
            .map_err(|report| BackendError::Device(report))
    }

    fn export(
        &mut self,
        paged: PagedTokens<'_>,
        foreign: [ElementsMut<'_>; 2],
    ) -> Result<(), BackendError> {
        check_export(&self.shape, paged, &foreign)?;
        let foreign = foreign.map(|foreign| {
            bytemuck::cast_slice_mut(foreign.into_bytes().expect("rows are on the host"))
        });
        self.export_onto(paged, foreign)
            .map_err(|report| BackendError::Device(report))
    }

    fn attend(&mut self, call: Attend<'_>) -> Result<(), BackendError> {
        check_attend(&self.shape, &call)?;
        match self.shape.dtype {
            DType::Bf16 => self.attend_e::<Bf16>(call),
            _ => self.attend_e::<F16>(call),
        }
        .map_err(|report| BackendError::Device(report))
    }
}
