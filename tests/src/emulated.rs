//! The GPU kernels as a backend: their own source, on the emulator.

mod attend;
mod paged;

use deft::attention::{
    Attend, Backend, BackendError, Counters, PagedTokens, Rotation, check_append,
    check_append_rotated, check_attend, check_moves, check_paged,
};
use deft::cache::{CacheShape, DType, Elements, ElementsMut};
use emulator::{Launch, Memory, Report};
use kernels_gpu::abi::{AppendTarget, PAGE_TOKENS, TokenMove};
use kernels_gpu::cache;
use kernels_gpu::device::{Bf16, Element, F16};
use kernels_gpu::entries::Arch;
use kernels_gpu::layout::{element_offset, half_page_elements, page_offset};

/// A cache of 16-bit elements whose every operation is a launch on the emulator.
#[derive(Debug)]
pub struct Emulated {
    shape: CacheShape,
    /// `[layers][pages][kv_heads][page elements]`.
    pool: Vec<u16>,
    arch: Arch,
    /// Whether Hopper's blocks merge within the attend launch.
    merges_in_attend: bool,
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
            merges_in_attend: true,
            seed,
        }
    }

    /// The same with the attention kernels of `arch`.
    #[must_use]
    pub fn with_kernels(self, arch: Arch) -> Self {
        Self { arch, ..self }
    }

    /// The same with every merge in a launch of its own.
    #[must_use]
    pub fn with_merge_launches(self) -> Self {
        Self {
            merges_in_attend: false,
            ..self
        }
    }

    /// The pool's elements, as they lie in device memory.
    pub fn pool(&self) -> &[u16] {
        &self.pool
    }

    /// K and V of every place of a layer, `[places, kv_heads, head_dim]`.
    pub fn rows(&self, layer: u32) -> [Vec<u16>; 2] {
        let CacheShape {
            kv_heads, head_dim, ..
        } = self.shape;
        let plane = &self.pool[self.plane(layer)];
        [0, half_page_elements(head_dim)].map(|half| {
            let places = 0..self.shape.pages * PAGE_TOKENS;
            let heads = places.flat_map(|place| (0..kv_heads).map(move |head| (place, head)));
            let elements = heads.flat_map(|(place, head)| {
                let page = page_offset(head_dim, kv_heads, place / PAGE_TOKENS, head);
                let token = place % PAGE_TOKENS;
                (0..head_dim).map(move |dim| {
                    plane[(page as u32 + half + element_offset(head_dim, token, dim)) as usize]
                })
            });
            elements.collect()
        })
    }

    fn plane(&self, layer: u32) -> std::ops::Range<usize> {
        let elements = self.shape.plane_elements() as usize;
        layer as usize * elements..(layer as usize + 1) * elements
    }

    fn launch(&self, blocks: [u32; 3], threads: u32) -> Launch {
        Launch::new(blocks, threads).seed(self.seed)
    }

    fn append_d<const D: u32>(
        &mut self,
        layer: u32,
        targets: &[AppendTarget],
        counters: Counters<'_>,
        [k, v]: [Elements<'_>; 2],
    ) -> Result<(), Box<Report>> {
        let mut memory = Memory::new();
        let plane = self.plane(layer);
        let pool = memory.buffer("pool", &self.pool[plane.clone()]);
        let k = memory.constant::<u16>("k", bytemuck::cast_slice(k.bytes()));
        let v = memory.constant::<u16>("v", bytemuck::cast_slice(v.bytes()));
        let rows = memory.constant("targets", targets);
        let lengths = memory.constant("lengths", counters.lengths);
        let tails = memory.constant("tail pages", counters.tail_pages);
        let (count, kv_heads) = (targets.len() as u32, self.shape.kv_heads);
        let work = count * kv_heads * 2 * (D / 8);
        self.launch([work.div_ceil(cache::THREADS), 1, 1], cache::THREADS)
            .run(&mut memory, || {
                // SAFETY: the emulator checks every access.
                unsafe {
                    cache::append::<D>(
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
        let k = memory.constant::<u16>("k", bytemuck::cast_slice(k.bytes()));
        let v = memory.constant::<u16>("v", bytemuck::cast_slice(v.bytes()));
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
        let sources = [k, v].map(|source| (source.dtype(), source.len()));
        check_append(&self.shape, layer, targets, counters, sources)?;
        match self.shape.head_dim {
            64 => self.append_d::<64>(layer, targets, counters, [k, v]),
            128 => self.append_d::<128>(layer, targets, counters, [k, v]),
            _ => self.append_d::<256>(layer, targets, counters, [k, v]),
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
        let sources = [k, v].map(|source| (source.dtype(), source.len()));
        check_append_rotated(&self.shape, layer, targets, counters, sources, rotation)?;
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
        let sizes = foreign.map(|foreign| (foreign.dtype(), foreign.len()));
        check_paged(&self.shape, paged, sizes)?;
        let foreign = foreign.map(|foreign| bytemuck::cast_slice(foreign.bytes()));
        self.import_strided(paged, paged.table.page_size, foreign)
            .map_err(|report| BackendError::Device(report))
    }

    fn export(
        &mut self,
        paged: PagedTokens<'_>,
        foreign: [ElementsMut<'_>; 2],
    ) -> Result<(), BackendError> {
        let sizes = foreign
            .each_ref()
            .map(|foreign| (foreign.dtype(), foreign.len()));
        check_paged(&self.shape, paged, sizes)?;
        let foreign = foreign.map(|foreign| bytemuck::cast_slice_mut(foreign.into_bytes()));
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
