//! Attention and merge, a launch each.

use bytemuck::Zeroable;
use deft::KvFormat;
use deft::attention::{Attend, AttentionParams, PagedAttend, check_paged_attend};
use deft::cache::{CacheShape, DType, ElementsMut};
use deft::plan::{PagedPlan, Plan};
use device::emulator::tensor::Tensor;
use device::emulator::{Launch, Memory, Report};
use device::wgmma::Accumulators;
use device::{Bf16, Element, F16};
use kernels_gpu::Arch;
use kernels_gpu::attention::hopper::Boxes;
use kernels_gpu::attention::tile::{MERGE_THREADS, MERGE_WARPS};
use kernels_gpu::attention::{
    self as kernels, CellPool, Coded, Codes, Compacted, Foreign, Format, Merge, Native, Pool, tile,
};

use super::rows::{CompactedRows, Directory};
use super::{Emulated, words, words_mut};

/// What all of a call's launches have in common.
struct Call<'a> {
    arch: Arch,
    seed: u64,
    shape: CacheShape,
    plan: &'a Plan,
    lengths: &'a [u32],
    kv: Kv<'a>,
    rows: CompactedRows<'a>,
    q: &'a [u16],
    out: &'a mut [u16],
    lse: Option<&'a mut [f32]>,
    params: AttentionParams,
}

/// Where K and V are.
#[derive(Clone, Copy)]
enum Kv<'a> {
    Pool(&'a [u16]),
    Foreign {
        kv: [&'a [u16]; 2],
        blocks: [usize; 2],
        ids: &'a [u32],
        strides: [[u32; 3]; 2],
        shift: u32,
    },
}

/// Attention in place by the kernels of `arch` under the schedule of `seed`.
///
/// # Panics
/// If the call is one that they do not take.
///
/// # Errors
/// What the emulator found.
pub fn attend_in_place(
    arch: Arch,
    seed: u64,
    plan: &PagedPlan,
    call: PagedAttend<'_>,
) -> Result<(), Box<Report>> {
    check_paged_attend(plan, &call).unwrap();
    let PagedAttend { kv_heads, head_dim, params, .. } = call;
    let dtype = match call.k.elements {
        deft::cache::Elements::Bf16(_) => DType::Bf16,
        _ => DType::F16,
    };
    let pieces = |stride: usize| {
        assert!(stride.is_multiple_of(8), "rows are read 16 bytes at a time");
        (stride / 8) as u32
    };
    let kv = Kv::Foreign {
        kv: [words(call.k.elements), words(call.v.elements)],
        blocks: [call.k.blocks, call.v.blocks],
        ids: bytemuck::cast_slice(plan.ids()),
        strides: [call.k.strides, call.v.strides].map(|strides| strides.map(pieces)),
        shift: plan.page_size().trailing_zeros(),
    };
    Call {
        arch,
        seed,
        shape: CacheShape { layers: 1, kv_heads, head_dim, dtype, pages: 1 },
        plan: plan.plan(),
        lengths: plan.lengths(),
        kv,
        rows: CompactedRows::default(),
        q: words(call.q),
        out: words_mut(call.out),
        lse: call.lse.map(floats),
        params,
    }
    .run()
}

/// A tensor of such strides, in pieces of eight elements, without its address.
fn boxes(
    head_dim: u32,
    kv_heads: u32,
    [of_block, of_token, of_head]: [u32; 3],
    shift: u32,
    blocks: usize,
) -> Tensor {
    Tensor {
        strides: [of_token, 8, of_head, of_block].map(|pieces| 16 * u64::from(pieces)),
        sizes: [64, 1 << shift, head_dim / 64, kv_heads, blocks as u32],
        of_box: [64, 8, head_dim / 64, 1, 1],
        ..Tensor::zeroed()
    }
}

fn floats<'a>(lse: ElementsMut<'a>) -> &'a mut [f32] {
    lse.into_typed().expect("an LSE is f32")
}

impl Emulated {
    pub(super) fn attend_any(&self, call: Attend<'_>) -> Result<(), Box<Report>> {
        Call {
            arch: self.arch,
            seed: self.seed,
            shape: self.shape,
            plan: call.plan,
            lengths: call.counters.lengths,
            kv: Kv::Pool(&self.pool[self.plane(call.layer)]),
            rows: self.compacted_rows(call.layer, call.counters),
            q: words(call.q),
            out: words_mut(call.out),
            lse: call.lse.map(floats),
            params: call.params,
        }
        .run()
    }
}

impl Call<'_> {
    fn run(self) -> Result<(), Box<Report>> {
        match self.shape.dtype {
            DType::Bf16 => self.run_e::<Bf16>(),
            _ => self.run_e::<F16>(),
        }
    }

    fn run_e<E: Element>(self) -> Result<(), Box<Report>> {
        match self.shape.head_dim {
            64 => self.run_d::<E, F16, 64, 4, 8, 32, 2, 12, 8>(),
            128 => self.run_d::<E, Bf16, 128, 8, 16, 64, 4, 6, 4>(),
            _ => self.run_d::<E, F16, 256, 16, 32, 128, 8, 3, 2>(),
        }
    }

    fn launch(&self, blocks: [u32; 3], threads: u32) -> Launch {
        Launch::new(blocks, threads).seed(self.seed)
    }

    /// Native pages are read in `E`, everything else in `V`: see [`super::dtype_of_variants`].
    fn run_d<
        E: Element,
        V: Element,
        const D: usize,
        const KS: usize,
        const NT: usize,
        const O: usize,
        const PER_LANE: usize,
        const NATIVE: u32,
        const CODED: u32,
    >(
        self,
    ) -> Result<(), Box<Report>>
    where
        [f32; O]: Accumulators,
    {
        let plan = self.plan;
        let (kv_heads, group) = (self.shape.kv_heads, plan.group_size());
        let partial_rows = (kv_heads * plan.partial_slots() * group) as usize;
        let mut memory = Memory::new();
        let q = memory.constant("q", self.q);
        let (mut pool, mut foreign) = (None, None);
        let variants = matches!(self.kv, Kv::Foreign { .. }) || plan.has_formats();
        let dtype = super::dtype_of_variants(self.shape.head_dim);
        assert!(!variants || self.shape.dtype == dtype, "emulated in {dtype} only");
        match self.kv {
            Kv::Pool(pages) => pool = Some(memory.constant("pool", pages)),
            Kv::Foreign { kv: [k, v], blocks, ids, strides, shift } => {
                let k = memory.constant("k", k);
                let v = memory.constant("v", v);
                let table = memory.constant("block tables", ids);
                let halves = [(k, "map of k", 0), (v, "map of v", 1)];
                let maps = halves.map(|(half, name, i)| {
                    let tensor = Tensor {
                        address: half.as_ptr() as u64,
                        ..boxes(D as u32, kv_heads, strides[i], shift, blocks[i])
                    };
                    memory.constant(name, &tensor.map())
                });
                foreign = Some((k, v, maps, table, strides, shift));
            }
        }
        let masks = memory.constant("masks", plan.masks());
        let lengths = memory.constant("lengths", self.lengths);
        let directory = Directory::new(&mut memory, &self.rows);
        let rows = memory.constant("merge rows", plan.merge_rows());
        let slots = memory.constant("merge slots", plan.merge_slots());
        let out = memory.unwritten::<u16>("out", self.q.len());
        let lse = self.lse.as_ref().map(|lse| memory.unwritten::<f32>("lse", lse.len()));
        let partial_o = memory.unwritten::<f32>("partial o", partial_rows * D);
        let partial_lse = memory.unwritten::<f32>("partial lse", partial_rows);
        let lse_pointer = || lse.map_or(std::ptr::null_mut(), |lse| lse.as_mut_ptr());
        let threads = match self.arch {
            Arch::Sm80 => [tile::ampere::THREADS; 2],
            Arch::Sm90a => [tile::hopper::THREADS, tile::hopper::Tile::<D>::CODED_THREADS],
        };
        let shared_bytes = |compacted| match (self.arch, compacted) {
            (Arch::Sm80, false) => tile::ampere::Tile::<D>::SHARED_BYTES,
            (Arch::Sm80, true) => tile::ampere::Tile::<D>::COMPACTED_SHARED_BYTES,
            (Arch::Sm90a, false) => tile::hopper::Tile::<D>::SHARED_BYTES,
            (Arch::Sm90a, true) => tile::hopper::Tile::<D>::COMPACTED_SHARED_BYTES,
        };
        for &pages in plan.launches() {
            let format = pages.format;
            let programs = memory.constant("programs", &super::programs(plan, pages));
            let kernel = format.kernel(self.shape.page());
            let coded = kernel.is_some_and(|kernel| kernel.family == "coded");
            // On a GPU the launches of one call overlap; they write to different slots.
            let launch = self
                .launch([plan.shares(), kv_heads, 1], threads[usize::from(coded)])
                .shared_bytes(shared_bytes(format == KvFormat::Compacted))
                // Of a page's last group of tokens, K is multiplied and then masked.
                .poison_matrix_reads();
            launch.run(&mut memory, || {
                let arguments = kernels::Attend {
                    q: q.as_ptr(),
                    pool: pool.map_or(std::ptr::null(), |pool| pool.as_ptr()),
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
                    scale_log2: self.params.scale * std::f32::consts::LOG2_E,
                    soft_cap: self.params.soft_cap.unwrap_or(0.0),
                };
                let coded = kernel.map_or(Coded::default(), |kernel| Coded {
                    half_bytes: kernel.half_bytes,
                    per_slab: kernel.per_slab,
                    format: kernel.format,
                    cells: directory.cells(),
                    cell_stride: directory.stride,
                    biases: directory.biases(),
                });
                // SAFETY: the emulator checks every access.
                unsafe {
                    match (kernel.map(|kernel| kernel.family), foreign) {
                        (None, None) => {
                            block::<E, Native, D, KS, NT, O, NATIVE>(self.arch, arguments, coded)
                        }
                        (None, Some(_)) if const { D == 256 } => {
                            panic!("reading in place is not emulated at a head dimension of 256")
                        }
                        (None, Some((k, v, maps, table, strides, shift))) => match self.arch {
                            Arch::Sm80 => {
                                let [k, v] = [k, v].map(|half| half.as_ptr());
                                let table = table.as_ptr();
                                let cache = Foreign { k, v, table, strides, shift };
                                kernels::ampere::attend::<V, Native, _, D, KS, NT>(
                                    arguments, cache, coded,
                                )
                            }
                            Arch::Sm90a => {
                                let [k, v] = maps.map(|map| map.as_ptr().cast());
                                let cache = Boxes { k, v, table: table.as_ptr(), shift };
                                kernels::hopper::attend::<V, Native, _, D, KS, NT, O, NATIVE>(
                                    arguments, cache, coded,
                                )
                            }
                        },
                        (Some("coded"), None) => {
                            block::<V, Codes, D, KS, NT, O, CODED>(self.arch, arguments, coded)
                        }
                        (Some("compacted"), None) => {
                            block::<V, Compacted, D, KS, NT, O, NATIVE>(self.arch, arguments, coded)
                        }
                        (family, _) => panic!("there is no kernel for {family:?}"),
                    }
                }
            })?;
        }
        let warps = plan.merge_rows().len() as u32 * kv_heads * group;
        if warps > 0 {
            self.launch([warps.div_ceil(MERGE_WARPS), 1, 1], MERGE_THREADS).dependent().run(
                &mut memory,
                || {
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
                    unsafe { kernels::merge::<E, D, PER_LANE>(arguments) }
                },
            )?;
        }
        self.out.copy_from_slice(&memory.read(out).map_err(Box::new)?);
        if let (Some(values), Some(lse)) = (self.lse, lse) {
            values.copy_from_slice(&memory.read(lse).map_err(Box::new)?);
        }
        Ok(())
    }
}

unsafe fn block<
    E: Element,
    F: Format,
    const D: usize,
    const KS: usize,
    const NT: usize,
    const O: usize,
    const S: u32,
>(
    arch: Arch,
    arguments: kernels::Attend,
    coded: Coded,
) where
    [f32; O]: Accumulators,
{
    // SAFETY: the caller's.
    unsafe {
        match arch {
            Arch::Sm80 if F::COMPACTED => {
                kernels::ampere::attend::<E, F, _, D, KS, NT>(arguments, CellPool, coded);
            }
            Arch::Sm80 => kernels::ampere::attend::<E, F, _, D, KS, NT>(arguments, Pool, coded),
            Arch::Sm90a => {
                kernels::hopper::attend::<E, F, _, D, KS, NT, O, S>(arguments, Pool, coded)
            }
        }
    }
}
