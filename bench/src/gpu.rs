//! A GPU to measure on: replayed graphs, a cold cache, and no silent hangs.

use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use deft::cuda::{Arch, CudaDevice, CudaError, DeviceBuffer, Event, Graph, Kernel, Launch, Stream};
use kernels_gpu::ptx::{self, Arguments as _};

use crate::stats::Spread;

/// Bytes read between measurements: five times an H100's L2.
const FLUSH_BYTES: usize = 256 << 20;
/// A kernel that takes longer does not end.
const PATIENCE: Duration = Duration::from_secs(20);

/// How measurements are repeated.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Repeats {
    pub(crate) warmup: usize,
    pub(crate) measured: usize,
}

/// A device with a stream of its own.
#[derive(Debug)]
pub(crate) struct Gpu {
    pub(crate) device: CudaDevice,
    pub(crate) stream: Stream,
    flush: Flush,
    pub(crate) events: (Event, Event),
}

#[derive(Debug)]
struct Flush {
    data: DeviceBuffer<u32>,
    sink: DeviceBuffer<u32>,
    kernel: Kernel,
}

impl Gpu {
    /// Opens device `ordinal`; kernels come from the PTX files first, then from the embedded PTX, that for `arch` if
    /// it is given.
    pub(crate) fn open(
        ordinal: u32,
        ptx: &[std::path::PathBuf],
        arch: Option<Arch>,
    ) -> Result<Self> {
        let device = CudaDevice::new(ordinal)?;
        if let Some(arch) = arch {
            device.use_arch(arch)?;
        }
        for path in ptx {
            let text = std::fs::read_to_string(path)
                .with_context(|| format!("cannot read {}", path.display()))?;
            device.use_ptx(&path.display().to_string(), text)?;
        }
        let stream = Stream::new(&device)?;
        Ok(Self {
            flush: Flush::new(&device, &stream)?,
            events: (Event::new(&device)?, Event::new(&device)?),
            stream,
            device,
        })
    }

    /// Waits for the stream, but not for ever: a hung kernel ends the program with its name.
    pub(crate) fn settle(&self, what: &str) -> Result<()> {
        let begin = Instant::now();
        while !self.stream.is_idle().with_context(|| what.to_owned())? {
            if begin.elapsed() > PATIENCE {
                // Waiting for the context's teardown would hang as well.
                eprintln!(
                    "{what}: the GPU has not answered for {} s: a kernel hangs",
                    PATIENCE.as_secs()
                );
                std::process::exit(3);
            }
            std::thread::sleep(Duration::from_micros(50));
        }
        Ok(())
    }

    /// Enqueues what empties the L2.
    pub(crate) fn empty_l2(&self) -> Result<()> {
        self.flush.enqueue(&self.stream)
    }

    /// Records what `work` enqueues.
    pub(crate) fn capture(
        &self,
        work: impl FnOnce(&Stream) -> Result<(), CudaError>,
    ) -> Result<Graph> {
        Ok(self.stream.capture(work)?)
    }

    /// Microseconds of one replay of `graph` with a cold L2.
    ///
    /// # Safety
    /// The memory that the graph uses is there.
    pub(crate) unsafe fn time(
        &self,
        graph: &mut Graph,
        repeats: Repeats,
        what: &str,
    ) -> Result<Spread> {
        // SAFETY: the caller's.
        unsafe { self.time_after(None, graph, repeats, what) }
    }

    /// The same, with `first` replayed between emptying the L2 and measuring.
    ///
    /// # Safety
    /// The memory that the graphs use is there.
    pub(crate) unsafe fn time_after(
        &self,
        mut first: Option<&mut Graph>,
        graph: &mut Graph,
        repeats: Repeats,
        what: &str,
    ) -> Result<Spread> {
        let mut samples = Vec::with_capacity(repeats.measured);
        for round in 0..repeats.warmup + repeats.measured {
            self.empty_l2()?;
            if let Some(first) = &mut first {
                // SAFETY: the caller vouches for the graph's memory.
                unsafe { first.launch(&self.stream) }?;
            }
            self.events.0.record(&self.stream)?;
            // SAFETY: the caller vouches for the graph's memory.
            unsafe { graph.launch(&self.stream) }?;
            self.events.1.record(&self.stream)?;
            self.settle(what)?;
            let time = self.events.1.microseconds_since(&self.events.0)?;
            if round >= repeats.warmup {
                samples.push(time);
            }
        }
        if samples.is_empty() {
            bail!("{what}: nothing was measured");
        }
        Ok(Spread::of(samples))
    }

    /// Microseconds of an empty graph, measured the same way.
    pub(crate) fn time_empty_graph(&self, repeats: Repeats) -> Result<Spread> {
        let mut empty = self.capture(|_| Ok(()))?;
        // SAFETY: the graph uses no memory.
        unsafe { self.time(&mut empty, repeats, "empty graph") }
    }
}

impl Flush {
    fn new(device: &CudaDevice, stream: &Stream) -> Result<Self> {
        let data = DeviceBuffer::uninitialized(device, "flush buffer", FLUSH_BYTES / 4)?;
        data.fill_bytes(0, stream)?;
        let sink = DeviceBuffer::from_slice(device, "flush sink", &[0])?;
        let kernel = device.kernel("read_flush", ptx::ReadAll::BYTES)?;
        Ok(Self { data, sink, kernel })
    }

    fn enqueue(&self, stream: &Stream) -> Result<()> {
        let launch = Launch {
            grid: [stream.device().multiprocessors() * 4, 1, 1],
            overlaps_predecessor: false,
        };
        let arguments = flush_arguments(&self.data, &self.sink);
        // SAFETY: the kernel reads `data`, all of it, and may write `sink`; both live as long as this.
        Ok(unsafe { self.kernel.launch(launch, arguments, stream.raw()) }?)
    }
}

fn flush_arguments(data: &DeviceBuffer<u32>, sink: &DeviceBuffer<u32>) -> ptx::ReadAll {
    ptx::ReadAll {
        data: data.pointer().0,
        vectors: (FLUSH_BYTES / 16) as u32,
        sink: sink.pointer().0,
    }
}
