//! Attention and merge, a launch each.

use deft::KvFormat;
use deft::attention::Attend;
use deft::cache::DType;
use device::emulator::{Memory, Report};
use device::wgmma::Accumulators;
use device::{Bf16, Element, F16};
use kernels_gpu::Arch;
use kernels_gpu::attention::tile::{MERGE_THREADS, MERGE_WARPS};
use kernels_gpu::attention::{self as kernels, Coded, Format, Fp8, Merge, Native, tile};

use super::{Emulated, words, words_mut};

impl Emulated {
    pub(super) fn attend_any(&self, call: Attend<'_>) -> Result<(), Box<Report>> {
        match self.shape.dtype {
            DType::Bf16 => self.attend_e::<Bf16>(call),
            _ => self.attend_e::<F16>(call),
        }
    }

    fn attend_e<E: Element>(&self, call: Attend<'_>) -> Result<(), Box<Report>> {
        match self.shape.head_dim {
            64 => self.attend_d::<E, 64, 4, 8, 32, 2, 12, 8>(call),
            128 => self.attend_d::<E, 128, 8, 16, 64, 4, 6, 4>(call),
            _ => self.attend_d::<E, 256, 16, 32, 128, 8, 3, 2>(call),
        }
    }

    fn attend_d<
        E: Element,
        const D: usize,
        const KS: usize,
        const NT: usize,
        const O: usize,
        const V: usize,
        const NATIVE: u32,
        const CODED: u32,
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
        let q = memory.constant("q", words(call.q));
        let pool = memory.constant("pool", &self.pool[self.plane(call.layer)]);
        let masks = memory.constant("masks", plan.masks());
        let lengths = memory.constant("lengths", call.counters.lengths);
        let rows = memory.constant("merge rows", plan.merge_rows());
        let slots = memory.constant("merge slots", plan.merge_slots());
        let out = memory.unwritten::<u16>("out", call.q.len());
        let lse = call.lse.as_ref().map(|lse| memory.unwritten::<f32>("lse", lse.len()));
        let partial_o = memory.unwritten::<f32>("partial o", partial_rows * D);
        let partial_lse = memory.unwritten::<f32>("partial lse", partial_rows);
        let lse_pointer = || lse.map_or(std::ptr::null_mut(), |lse| lse.as_mut_ptr());
        let (threads, shared_bytes) = match self.arch {
            Arch::Sm80 => (tile::ampere::THREADS, tile::ampere::Tile::<D>::SHARED_BYTES),
            Arch::Sm90a => (tile::hopper::THREADS, tile::hopper::Tile::<D>::SHARED_BYTES),
        };
        let formats = [&[KvFormat::Native][..], &plan.formats()].concat();
        for format in formats {
            let mut words = vec![0; plan.words().len()];
            for share in 0..plan.shares() {
                let program = plan.share(share).of_format(format);
                words[(share * plan.stride()) as usize..][..program.len()]
                    .copy_from_slice(&program);
            }
            let programs = memory.constant("programs", &words);
            let kernel = format.kernel(self.shape.page());
            let coded = kernel.map_or(Coded::default(), |kernel| Coded {
                half_bytes: kernel.half_bytes,
                per_slab: kernel.per_slab,
                detail: kernel.detail,
            });
            // On a GPU the launches of one call overlap; they write to different slots.
            let launch = self
                .launch([plan.shares(), kv_heads, 1], threads)
                .shared_bytes(shared_bytes)
                // Of a page's last group of tokens, K is multiplied and then masked.
                .poison_matrix_reads();
            launch.run(&mut memory, || {
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
                    match kernel.map(|kernel| kernel.family) {
                        None => {
                            self.attend_block::<E, Native, D, KS, NT, O, NATIVE>(arguments, coded)
                        }
                        Some("fp8") => {
                            self.attend_block::<E, Fp8, D, KS, NT, O, CODED>(arguments, coded)
                        }
                        Some(family) => panic!("there is no kernel for {family}"),
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
                    unsafe { kernels::merge::<E, D, V>(arguments) }
                },
            )?;
        }
        let result = memory.read(out).map_err(Box::new)?;
        words_mut(call.out).copy_from_slice(&result);
        if let (Some(values), Some(lse)) = (call.lse, lse) {
            let values = values.into_typed::<f32>().expect("an LSE is f32");
            values.copy_from_slice(&memory.read(lse).map_err(Box::new)?);
        }
        Ok(())
    }

    unsafe fn attend_block<
        E: Element,
        F: Format,
        const D: usize,
        const KS: usize,
        const NT: usize,
        const O: usize,
        const S: u32,
    >(
        &self,
        arguments: kernels::Attend,
        coded: Coded,
    ) where
        [f32; O]: Accumulators,
    {
        // SAFETY: the caller's.
        unsafe {
            match self.arch {
                Arch::Sm80 => kernels::ampere::attend::<E, F, D, KS, NT>(arguments, coded),
                Arch::Sm90a => kernels::hopper::attend::<E, F, D, KS, NT, O, S>(arguments, coded),
            }
        }
    }
}
