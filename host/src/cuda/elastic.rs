//! Addresses of pages whose memory comes and goes: the driver's functions for virtual memory.
//!
//! The driver maps physical memory in pieces of its granularity (2 MiB). An *extent* is so many pages in a row that they
//! are whole pieces in every layer. Its memory is one mapping a layer; the driver keeps it until it is unmapped.

use std::thread::JoinHandle;

use super::error::check;
use super::sys;
use super::{CudaDevice, CudaError, DevicePtr, Event, Stream};
use crate::cache::{CacheShape, SLAB_PAGES};

/// Pages of a cache that have addresses from the start on, and memory by extents.
#[derive(Debug)]
pub struct ElasticPages {
    at: Addresses,
    extent_pages: u32,
    /// Whether each extent has memory, with those that are to lose it.
    mapped: Vec<bool>,
    /// Extents that nobody uses any more once their event has passed.
    leaving: Vec<(u32, Event)>,
    /// The extent that a thread gives memory to.
    coming: Option<(u32, JoinHandle<Result<(), CudaError>>)>,
}

/// A range of addresses, as the driver set it aside. A copy does not keep it.
#[derive(Clone, Debug)]
struct Addresses {
    device: CudaDevice,
    base: u64,
    planes: u32,
    /// Of a layer.
    plane_bytes: usize,
    /// Of an extent in one layer.
    piece_bytes: usize,
}

impl CudaDevice {
    /// Pages of an extent: the fewest that are whole pieces of the driver's granularity in each layer, and whole slabs
    /// of formats.
    ///
    /// # Errors
    /// [`CudaError::Driver`].
    pub fn extent_pages(&self, shape: &CacheShape) -> Result<u32, CudaError> {
        let _current = self.activate()?;
        let (mut granularity, properties) = (0, sys::AllocationProperties::of(self.handle()));
        // SAFETY: a valid place for one size_t, and properties as the driver lays them out.
        check("cuMemGetAllocationGranularity", unsafe {
            sys::cuMemGetAllocationGranularity(
                &mut granularity,
                &properties,
                sys::GRANULARITY_MINIMUM,
            )
        })?;
        let page = shape.page_bytes() / u64::from(shape.layers.max(1));
        let pages = granularity as u64 / common_divisor(granularity as u64, page);
        // A power of two, as the granularity is.
        Ok(pages.max(1).next_multiple_of(u64::from(SLAB_PAGES)) as u32)
    }
}

fn common_divisor(a: u64, b: u64) -> u64 {
    if b == 0 { a.max(1) } else { common_divisor(b, a % b) }
}

impl ElasticPages {
    /// Sets addresses aside for a valid shape.
    pub(super) fn reserve(device: &CudaDevice, shape: &CacheShape) -> Result<Self, CudaError> {
        let extent_pages = device.extent_pages(shape)?;
        if !shape.pages.is_multiple_of(extent_pages) {
            return Err(CudaError::Argument {
                argument: "pages",
                value: shape.pages.to_string(),
                expected: format!("a multiple of {extent_pages}, the pages of an extent"),
            });
        }
        let plane_bytes = (shape.page_bytes() / u64::from(shape.layers)) as usize;
        let plane_bytes = plane_bytes * shape.pages as usize;
        let extents = shape.pages / extent_pages;
        let mut at = Addresses {
            device: device.clone(),
            base: 0,
            planes: shape.layers,
            plane_bytes,
            piece_bytes: plane_bytes / extents as usize,
        };
        let _current = device.activate()?;
        // SAFETY: a valid place for an address; our context is current.
        check("cuMemAddressReserve", unsafe {
            sys::cuMemAddressReserve(&mut at.base, at.bytes(), 0, 0, 0)
        })?;
        let mapped = vec![false; extents as usize];
        Ok(Self { at, extent_pages, mapped, leaving: Vec::new(), coming: None })
    }

    /// Where the pages begin.
    pub(super) fn pointer(&self) -> DevicePtr {
        DevicePtr(self.at.base)
    }

    /// Pages of an extent.
    pub fn extent_pages(&self) -> u32 {
        self.extent_pages
    }

    /// Bytes of memory that the extents have now, with those that are to lose it.
    pub fn bytes(&mut self) -> u64 {
        self.collect();
        let coming = self.coming.iter().count();
        let mapped = self.mapped.iter().filter(|&&mapped| mapped).count();
        (mapped + coming) as u64 * u64::from(self.at.planes) * self.at.piece_bytes as u64
    }

    /// Gives an extent memory, zeroed before what is enqueued on `stream` from now on; one that has it keeps it.
    ///
    /// # Errors
    /// [`CudaError::OutOfMemory`], [`CudaError::Driver`]; then the extent has no memory.
    ///
    /// # Panics
    /// If there is no such extent.
    pub fn map(&mut self, extent: u32, stream: &Stream) -> Result<(), CudaError> {
        self.collect();
        self.leaving.retain(|&(leaving, _)| leaving != extent);
        if self.mapped[extent as usize] {
            // Every V in it is finite, as the kernels have left it.
            return Ok(());
        }
        match self.coming.take_if(|coming| coming.0 == extent).map(|(_, thread)| joined(thread)) {
            Some(Ok(())) => {}
            // What was refused then may be granted now.
            Some(Err(_)) | None => self.at.map(extent)?,
        }
        self.at.zero(extent, stream).inspect_err(|_| {
            // Some of it may be under way.
            let _ = stream.synchronize();
            self.at.unmap(extent);
        })?;
        self.mapped[extent as usize] = true;
        Ok(())
    }

    /// Begins [`ElasticPages::map`] of an extent on another thread, unless that is busy.
    ///
    /// # Panics
    /// If there is no such extent.
    pub fn prepare(&mut self, extent: u32) {
        if self.mapped[extent as usize] || self.coming.is_some() {
            return;
        }
        let at = self.at.clone();
        let thread = std::thread::Builder::new().name("deft-elastic".to_owned());
        // Without a thread it is done when it is needed.
        let thread = thread.spawn(move || at.map(extent)).ok();
        self.coming = thread.map(|thread| (extent, thread));
    }

    /// Takes an extent's memory away, once what is enqueued on `stream` by now is done.
    ///
    /// # Panics
    /// If there is no such extent.
    pub fn unmap(&mut self, extent: u32, stream: &Stream) {
        if !self.mapped[extent as usize] {
            return;
        }
        let event = Event::new(&self.at.device).and_then(|event| {
            event.record(stream)?;
            Ok(event)
        });
        match event {
            Ok(event) => self.leaving.push((extent, event)),
            // Without an event the stream itself tells; if that fails too, the context is lost, and nothing runs.
            Err(_) => {
                let _ = stream.synchronize();
                self.take(extent);
            }
        }
        self.collect();
    }

    /// Takes the memory of those extents away that nobody uses any more.
    fn collect(&mut self) {
        for (extent, event) in std::mem::take(&mut self.leaving) {
            match event.is_done() {
                Ok(false) => self.leaving.push((extent, event)),
                Ok(true) => self.take(extent),
                // It is asked again, and freed at the latest with the pages.
                Err(_) => self.leaving.push((extent, event)),
            }
        }
    }

    fn take(&mut self, extent: u32) {
        self.at.unmap(extent);
        self.mapped[extent as usize] = false;
    }
}

fn joined(thread: JoinHandle<Result<(), CudaError>>) -> Result<(), CudaError> {
    thread.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
}

impl Drop for ElasticPages {
    fn drop(&mut self) {
        if let Some((extent, thread)) = self.coming.take() {
            self.mapped[extent as usize] = matches!(thread.join(), Ok(Ok(())));
        }
        // A failure here and below means that the context is lost, and the memory with it.
        let _ = self.at.device.synchronize();
        for extent in 0..self.mapped.len() as u32 {
            if self.mapped[extent as usize] {
                self.take(extent);
            }
        }
        let _current = self.at.device.activate();
        // SAFETY: the range that was set aside, given back once, with nothing mapped in it.
        unsafe { sys::cuMemAddressFree(self.at.base, self.at.bytes()) };
    }
}

impl Addresses {
    fn bytes(&self) -> usize {
        self.plane_bytes * self.planes as usize
    }

    /// Where an extent lies in each layer.
    fn pieces(&self, extent: u32) -> impl Iterator<Item = u64> + use<> {
        let (base, plane) = (self.base, self.plane_bytes as u64);
        let within = u64::from(extent) * self.piece_bytes as u64;
        (0..u64::from(self.planes)).map(move |layer| base + layer * plane + within)
    }

    /// Gives an extent memory in all layers, or in none.
    fn map(&self, extent: u32) -> Result<(), CudaError> {
        let _current = self.device.activate()?;
        for (done, piece) in self.pieces(extent).enumerate() {
            self.map_piece(piece).inspect_err(|_| {
                self.pieces(extent).take(done).for_each(|piece| self.unmap_piece(piece));
            })?;
        }
        Ok(())
    }

    /// Gives one piece memory that the device may read and write.
    fn map_piece(&self, address: u64) -> Result<(), CudaError> {
        let (bytes, device) = (self.piece_bytes, self.device.handle());
        let (properties, access) = (sys::AllocationProperties::of(device), sys::Access::of(device));
        let mut memory = 0;
        // SAFETY: a valid place for one handle, and properties as the driver lays them out.
        let code = unsafe { sys::cuMemCreate(&mut memory, bytes, &properties, 0) };
        if code == sys::ERROR_OUT_OF_MEMORY {
            let (free, total) = self.device.memory_info()?;
            let (what, bytes) = ("an extent of KV pages", bytes * self.planes as usize);
            return Err(CudaError::OutOfMemory { what, bytes, free, total });
        }
        check("cuMemCreate", code)?;
        // SAFETY: addresses of our own without memory, and memory as large.
        let mapped = check("cuMemMap", unsafe { sys::cuMemMap(address, bytes, 0, memory, 0) });
        // SAFETY: our handle, released once; a mapping keeps the memory.
        let released = check("cuMemRelease", unsafe { sys::cuMemRelease(memory) });
        mapped?;
        released
            .and_then(|()| {
                // SAFETY: just mapped; the access is as the driver lays it out.
                check("cuMemSetAccess", unsafe { sys::cuMemSetAccess(address, bytes, &access, 1) })
            })
            .inspect_err(|_| self.unmap_piece(address))
    }

    /// Takes an extent's memory away, which nothing uses.
    fn unmap(&self, extent: u32) {
        let _current = self.device.activate();
        self.pieces(extent).for_each(|piece| self.unmap_piece(piece));
    }

    /// A failure means that the context is lost, and the memory with it.
    fn unmap_piece(&self, address: u64) {
        // SAFETY: mapped as it is unmapped, once, and nothing reads it any more.
        unsafe { sys::cuMemUnmap(address, self.piece_bytes) };
    }

    /// Enqueues zeros for an extent with memory.
    fn zero(&self, extent: u32, stream: &Stream) -> Result<(), CudaError> {
        let _current = self.device.activate()?;
        self.pieces(extent).try_for_each(|piece| {
            let handle = stream.raw().handle();
            // SAFETY: addresses of our own that have memory.
            check("cuMemsetD8Async", unsafe {
                sys::cuMemsetD8Async(piece, 0, self.piece_bytes, handle)
            })
        })
    }
}
