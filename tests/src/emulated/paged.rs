//! Import and export between the emulated cache and a foreign paged one.

use deft::attention::PagedTokens;
use deft::cache::{DType, PagedOrder, PagedTable};
use device::emulator::{Memory, Report};
use device::{Bf16, Element, F16};
use kernels_gpu::cache;

use super::Emulated;

/// What both kernels are told of a foreign cache, after its pointers.
#[derive(Clone, Copy)]
struct Strides {
    page_size: u32,
    page: u32,
    token: u32,
    head: u32,
}

impl Emulated {
    /// Copies a foreign sequence's tokens into a layer: token `i` to `places[i]`. `page_stride` tokens are
    /// from a foreign page's first to the next one's.
    ///
    /// # Errors
    /// A mistake of the kernel's.
    pub fn import_strided(
        &mut self,
        PagedTokens {
            layer,
            places,
            table,
        }: PagedTokens<'_>,
        page_stride: u32,
        foreign: [&[u16]; 2],
    ) -> Result<(), Box<Report>> {
        let strides = self.strides(&table, page_stride);
        let pages = table.pages;
        match (self.shape.dtype, self.shape.head_dim) {
            (DType::Bf16, 64) => self.import_d::<Bf16, 64>(layer, places, pages, strides, foreign),
            (DType::Bf16, 128) => {
                self.import_d::<Bf16, 128>(layer, places, pages, strides, foreign)
            }
            (DType::Bf16, _) => self.import_d::<Bf16, 256>(layer, places, pages, strides, foreign),
            (_, 64) => self.import_d::<F16, 64>(layer, places, pages, strides, foreign),
            (_, 128) => self.import_d::<F16, 128>(layer, places, pages, strides, foreign),
            (_, _) => self.import_d::<F16, 256>(layer, places, pages, strides, foreign),
        }
    }

    /// Copies `places[i]` of a layer to a foreign sequence's token `i`.
    pub(super) fn export_onto(
        &self,
        PagedTokens {
            layer,
            places,
            table,
        }: PagedTokens<'_>,
        foreign: [&mut [u16]; 2],
    ) -> Result<(), Box<Report>> {
        let strides = self.strides(&table, table.page_size);
        match self.shape.head_dim {
            64 => self.export_d::<64>(layer, places, table.pages, strides, foreign),
            128 => self.export_d::<128>(layer, places, table.pages, strides, foreign),
            _ => self.export_d::<256>(layer, places, table.pages, strides, foreign),
        }
    }

    fn strides(&self, table: &PagedTable<'_>, page_stride: u32) -> Strides {
        let (kv_heads, page_size) = (self.shape.kv_heads, table.page_size);
        let (token, head) = match table.order {
            PagedOrder::Nhd => (kv_heads, 1),
            _ => (1, page_size),
        };
        Strides {
            page_size,
            page: page_stride * kv_heads,
            token,
            head,
        }
    }

    fn paged_blocks(&self, count: u32) -> [u32; 3] {
        let threads = count.div_ceil(8) * 8 * 2 * (self.shape.head_dim / 8);
        [threads.div_ceil(cache::THREADS), self.shape.kv_heads, 1]
    }

    fn import_d<E: Element, const D: u32>(
        &mut self,
        layer: u32,
        places: &[u32],
        pages: &[u32],
        strides: Strides,
        [k, v]: [&[u16]; 2],
    ) -> Result<(), Box<Report>> {
        let mut memory = Memory::new();
        let plane = self.plane(layer);
        let pool = memory.buffer("pool", &self.pool[plane.clone()]);
        let (k, v) = (memory.constant("k", k), memory.constant("v", v));
        let list = memory.constant("places", places);
        let table = memory.constant("table", pages);
        let (count, kv_heads) = (places.len() as u32, self.shape.kv_heads);
        self.launch(self.paged_blocks(count), cache::THREADS)
            .run(&mut memory, || {
                // SAFETY: the emulator checks every access.
                unsafe {
                    cache::import_pages::<E, D>(
                        pool.as_mut_ptr(),
                        k.as_ptr(),
                        v.as_ptr(),
                        list.as_ptr(),
                        table.as_ptr(),
                        count,
                        kv_heads,
                        strides.page_size,
                        strides.page,
                        strides.token,
                        strides.head,
                    );
                }
            })?;
        self.pool[plane].copy_from_slice(&memory.read_poisoned(pool));
        Ok(())
    }

    fn export_d<const D: u32>(
        &self,
        layer: u32,
        places: &[u32],
        pages: &[u32],
        strides: Strides,
        foreign: [&mut [u16]; 2],
    ) -> Result<(), Box<Report>> {
        let mut memory = Memory::new();
        let pool = memory.constant("pool", &self.pool[self.plane(layer)]);
        let [k, v] = [("k", &foreign[0]), ("v", &foreign[1])]
            .map(|(name, elements)| memory.buffer(name, elements));
        let list = memory.constant("places", places);
        let table = memory.constant("table", pages);
        let (count, kv_heads) = (places.len() as u32, self.shape.kv_heads);
        self.launch(self.paged_blocks(count), cache::THREADS)
            .run(&mut memory, || {
                // SAFETY: the emulator checks every access.
                unsafe {
                    cache::export_pages::<D>(
                        pool.as_ptr(),
                        k.as_mut_ptr(),
                        v.as_mut_ptr(),
                        list.as_ptr(),
                        table.as_ptr(),
                        count,
                        kv_heads,
                        strides.page_size,
                        strides.page,
                        strides.token,
                        strides.head,
                    );
                }
            })?;
        for (foreign, written) in foreign.into_iter().zip([k, v]) {
            foreign.copy_from_slice(&memory.read_poisoned(written));
        }
        Ok(())
    }
}
