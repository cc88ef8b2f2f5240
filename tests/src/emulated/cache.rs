//! Launches that write to the cache or read it: appends, moves, and what comes from and goes to foreign paged caches.

use deft::attention::{Counters, PagedTokens, Rotation};
use deft::cache::{CacheShape, PagedOrder};
use device::Element;
use device::emulator::{DevicePointer, Memory, Report};
use kernels_gpu::abi::{AppendTarget, TokenMove};
use kernels_gpu::cache;

use super::{Emulated, instance};

/// The threads of a launch over `work` chunks.
fn blocks(work: u32) -> [u32; 3] {
    [work.div_ceil(cache::THREADS), 1, 1]
}

impl Emulated {
    pub(super) fn append_d<E: Element, const D: u32>(
        &mut self,
        layer: u32,
        targets: &[AppendTarget],
        counters: Counters<'_>,
        [k, v]: [&[u16]; 2],
        rotation: Option<Rotation<'_>>,
    ) -> Result<(), Box<Report>> {
        let mut memory = Memory::new();
        let plane = self.plane(layer);
        let pool = memory.buffer("pool", &self.pool[plane.clone()]);
        let (k, v) = (memory.constant("k", k), memory.constant("v", v));
        let rows = memory.constant("targets", targets);
        let lengths = memory.constant("lengths", counters.lengths);
        let tails = memory.constant("tail pages", counters.tail_pages);
        let (count, kv_heads) = (targets.len() as u32, self.shape.kv_heads);
        let rotation = rotation.map(|Rotation { table, positions }| {
            let [cos, sin] = [("cos", table.cos()), ("sin", table.sin())]
                .map(|(name, values)| memory.constant(name, values));
            (memory.constant("positions", positions), cos, sin)
        });
        // A thread for a chunk of K and one for a chunk of V, or one for both.
        let threads = if rotation.is_some() { 1 } else { 2 };
        self.launch(blocks(threads * count * kv_heads * (D / 8)), cache::THREADS).run(
            &mut memory,
            || {
                let (pool, k, v) = (pool.as_mut_ptr(), k.as_ptr(), v.as_ptr());
                let (rows, lengths, tails) = (rows.as_ptr(), lengths.as_ptr(), tails.as_ptr());
                // SAFETY: the emulator checks every access.
                unsafe {
                    match rotation {
                        None => {
                            cache::append::<E, D>(pool, k, v, rows, lengths, tails, count, kv_heads)
                        }
                        Some((positions, cos, sin)) => {
                            let (at, cos, sin) = (positions.as_ptr(), cos.as_ptr(), sin.as_ptr());
                            cache::append_rope::<E, D>(
                                pool, k, v, rows, lengths, tails, at, cos, sin, count, kv_heads,
                            );
                        }
                    }
                }
            },
        )?;
        self.pool[plane].copy_from_slice(&memory.read_poisoned(pool));
        Ok(())
    }

    pub(super) fn copy_d<const D: u32>(
        &mut self,
        moves: &[TokenMove],
        share: u32,
    ) -> Result<(), Box<Report>> {
        if moves.is_empty() {
            return Ok(());
        }
        let mut memory = Memory::new();
        let pool = memory.buffer("pool", &self.pool);
        let list = memory.constant::<u32>("moves", bytemuck::cast_slice(moves));
        let CacheShape { layers, pages, kv_heads, .. } = self.shape;
        let [x, ..] = blocks(layers * kv_heads * 2 * (D / 8));
        let grid = [x, (moves.len() as u32).div_ceil(share), 1];
        self.launch(grid, cache::THREADS).run(&mut memory, || {
            // SAFETY: the emulator checks every access.
            unsafe {
                cache::copy::<D>(
                    pool.as_mut_ptr(),
                    list.as_ptr(),
                    moves.len() as u32,
                    share,
                    layers,
                    pages,
                    kv_heads,
                );
            }
        })?;
        self.pool = memory.read_poisoned(pool);
        self.move_biases(moves)
    }

    /// Copies a foreign sequence's tokens into a layer: token `i` to `places[i]`. `page_stride` tokens are
    /// from a foreign page's first to the next one's.
    ///
    /// # Errors
    /// A mistake of the kernel's.
    pub fn import_strided(
        &mut self,
        paged: PagedTokens<'_>,
        page_stride: u32,
        foreign: [&[u16]; 2],
    ) -> Result<(), Box<Report>> {
        instance!(self.import_d::<E, D>(paged, page_stride, foreign))
    }

    /// Copies `places[i]` of a layer to a foreign sequence's token `i`.
    pub(super) fn export_onto(
        &self,
        paged: PagedTokens<'_>,
        foreign: [&mut [u16]; 2],
    ) -> Result<(), Box<Report>> {
        instance!(self.export_d::<D>(paged, foreign))
    }

    fn import_d<E: Element, const D: u32>(
        &mut self,
        paged: PagedTokens<'_>,
        page_stride: u32,
        [k, v]: [&[u16]; 2],
    ) -> Result<(), Box<Report>> {
        let mut memory = Memory::new();
        let plane = self.plane(paged.layer);
        let pool = memory.buffer("pool", &self.pool[plane.clone()]);
        let (k, v) = (memory.constant("k", k), memory.constant("v", v));
        let foreign = self.foreign(&mut memory, paged, page_stride);
        let (blocks, kv_heads) = (foreign.blocks::<D>(self.shape.kv_heads), self.shape.kv_heads);
        self.launch(blocks, cache::THREADS).run(&mut memory, || {
            // SAFETY: the emulator checks every access.
            unsafe {
                cache::import_pages::<E, D>(
                    pool.as_mut_ptr(),
                    k.as_ptr(),
                    v.as_ptr(),
                    foreign.places.as_ptr(),
                    foreign.table.as_ptr(),
                    foreign.count,
                    kv_heads,
                    foreign.page_size,
                    foreign.page,
                    foreign.token,
                    foreign.head,
                );
            }
        })?;
        self.pool[plane].copy_from_slice(&memory.read_poisoned(pool));
        Ok(())
    }

    fn export_d<const D: u32>(
        &self,
        paged: PagedTokens<'_>,
        onto: [&mut [u16]; 2],
    ) -> Result<(), Box<Report>> {
        let mut memory = Memory::new();
        let pool = memory.constant("pool", &self.pool[self.plane(paged.layer)]);
        let [k, v] = [("k", &onto[0]), ("v", &onto[1])]
            .map(|(name, elements)| memory.buffer(name, elements));
        let foreign = self.foreign(&mut memory, paged, paged.table.page_size);
        let (blocks, kv_heads) = (foreign.blocks::<D>(self.shape.kv_heads), self.shape.kv_heads);
        self.launch(blocks, cache::THREADS).run(&mut memory, || {
            // SAFETY: the emulator checks every access.
            unsafe {
                cache::export_pages::<D>(
                    pool.as_ptr(),
                    k.as_mut_ptr(),
                    v.as_mut_ptr(),
                    foreign.places.as_ptr(),
                    foreign.table.as_ptr(),
                    foreign.count,
                    kv_heads,
                    foreign.page_size,
                    foreign.page,
                    foreign.token,
                    foreign.head,
                );
            }
        })?;
        for (onto, written) in onto.into_iter().zip([k, v]) {
            onto.copy_from_slice(&memory.read_poisoned(written));
        }
        Ok(())
    }

    /// What both kernels are told of a foreign cache whose pages' first tokens are `page_stride` tokens apart.
    fn foreign(&self, memory: &mut Memory, paged: PagedTokens<'_>, page_stride: u32) -> Foreign {
        let (kv_heads, page_size) = (self.shape.kv_heads, paged.table.page_size);
        let (token, head) = match paged.table.order {
            PagedOrder::Nhd => (kv_heads, 1),
            _ => (1, page_size),
        };
        Foreign {
            places: memory.constant("places", paged.places),
            table: memory.constant("table", paged.table.pages),
            count: paged.places.len() as u32,
            page_size,
            page: page_stride * kv_heads,
            token,
            head,
        }
    }
}

/// A foreign cache but for its elements; strides are in rows of a head.
#[derive(Clone, Copy)]
struct Foreign {
    places: DevicePointer<u32>,
    table: DevicePointer<u32>,
    count: u32,
    page_size: u32,
    page: u32,
    token: u32,
    head: u32,
}

impl Foreign {
    fn blocks<const D: u32>(&self, kv_heads: u32) -> [u32; 3] {
        let threads = self.count.div_ceil(8) * 8 * 2 * (D / 8);
        [threads.div_ceil(cache::THREADS), kv_heads, 1]
    }
}
