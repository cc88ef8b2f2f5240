//! Rows of compacted nodes: the directory as kernels read it, biases, and the launch that gathers rows.

use deft::attention::{Compact, Counters};
use device::Element;
use device::emulator::{DevicePointer, Memory, Report};
use kernels_gpu::abi::{Cell, PAGE_TOKENS, TokenMove};
use kernels_gpu::cache::{self as kernels, THREADS};
use kernels_gpu::directory;
use kernels_gpu::layout::CORE;

use super::Emulated;

/// What kernels are told of a layer's compacted nodes.
#[derive(Clone, Debug, Default)]
pub(super) struct CompactedRows<'a> {
    /// `[kv_heads][stride]`, linked; empty without a directory.
    cells: Vec<Cell>,
    stride: u32,
    biases: &'a [f32],
}

/// The same in a launch's memory.
#[derive(Clone, Copy)]
pub(super) struct Directory {
    cells: Option<DevicePointer<Cell>>,
    pub(super) stride: u32,
    biases: Option<DevicePointer<f32>>,
}

impl Directory {
    pub(super) fn new(memory: &mut Memory, rows: &CompactedRows<'_>) -> Self {
        let cells = (!rows.cells.is_empty()).then(|| memory.constant("directory", &rows.cells));
        let biases = (!rows.biases.is_empty()).then(|| memory.constant("biases", rows.biases));
        Self { cells, stride: rows.stride, biases }
    }

    pub(super) fn cells(&self) -> *const Cell {
        self.cells.map_or(std::ptr::null(), DevicePointer::as_ptr)
    }

    pub(super) fn biases(&self) -> *const f32 {
        self.biases.map_or(std::ptr::null(), DevicePointer::as_ptr)
    }
}

impl Emulated {
    pub(super) fn compacted_rows(&self, layer: u32, counters: Counters<'_>) -> CompactedRows<'_> {
        let Some(directory) = counters.directory.filter(|directory| directory.stride() > 0) else {
            return CompactedRows::default();
        };
        let heads = (0..self.shape.kv_heads).map(|head| directory.head(layer, head).to_vec());
        let cells = heads.flat_map(|mut head| {
            directory::link(&mut head);
            head
        });
        let biases = self.biases.get(layer as usize).map_or(&[][..], Vec::as_slice);
        CompactedRows { cells: cells.collect(), stride: directory.stride(), biases }
    }

    /// Moves biases as tokens are moved.
    pub(super) fn move_biases(&mut self, moves: &[TokenMove]) -> Result<(), Box<Report>> {
        let kv_heads = self.shape.kv_heads;
        for layer in 0..self.biases.len() {
            if self.biases[layer].is_empty() {
                continue;
            }
            let mut memory = Memory::new();
            let words: &[u32] = bytemuck::cast_slice(&self.biases[layer]);
            let plane = memory.buffer("biases", words);
            let list = memory.constant::<u32>("moves", bytemuck::cast_slice(moves));
            self.launch([kv_heads.div_ceil(32), 1, 1], 32).run(&mut memory, || {
                let (plane, list) = (plane.as_mut_ptr(), list.as_ptr());
                // SAFETY: the emulator checks every access.
                unsafe { kernels::move_words(plane, list, moves.len() as u32, kv_heads) };
            })?;
            let words = memory.read(plane).map_err(Box::new)?;
            self.biases[layer] = bytemuck::cast_vec(words);
        }
        Ok(())
    }

    pub(super) fn compact_d<E: Element, const D: u32>(
        &mut self,
        call: &Compact<'_>,
    ) -> Result<(), Box<Report>> {
        let plane = self.plane(call.layer);
        let mut memory = Memory::new();
        let pool = memory.buffer("pool", &self.pool[plane.clone()]);
        let targets = memory.constant("targets", call.targets);
        let sources = memory.constant("sources", call.sources);
        let biases = call.biased.then(|| {
            let words = self.shape.cells() as usize * PAGE_TOKENS as usize;
            self.biases.resize(self.shape.layers as usize, Vec::new());
            let biases = &mut self.biases[call.layer as usize];
            biases.resize(words, 0.0);
            memory.buffer("biases", biases)
        });
        let count = call.targets.len() as u32;
        let threads = count * (D / CORE);
        if threads == 0 {
            return Ok(());
        }
        self.launch([threads.div_ceil(THREADS), 1, 1], THREADS).run(&mut memory, || {
            let biases = biases.map_or(std::ptr::null_mut(), DevicePointer::as_mut_ptr);
            // SAFETY: the emulator checks every access.
            unsafe {
                let (targets, sources) = (targets.as_ptr(), sources.as_ptr());
                kernels::compact::<E, D>(pool.as_mut_ptr(), biases, targets, sources, count);
            }
        })?;
        self.pool[plane].copy_from_slice(&memory.read(pool).map_err(Box::new)?);
        if let Some(biases) = biases {
            self.biases[call.layer as usize] = memory.read(biases).map_err(Box::new)?;
        }
        Ok(())
    }
}
