//! What the fake driver keeps: objects, memory, streams, and which call is to fail.

use std::alloc::{Layout, alloc_zeroed, dealloc};
use std::collections::{BTreeMap, BTreeSet};
use std::ffi::CString;
use std::sync::{LazyLock, Mutex, MutexGuard, PoisonError};

use super::SUCCESS;
use super::streams::{Capture, Kernels, Place, Queue, Work};

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Kind {
    Module,
    Stream,
    Event,
    Graph,
    Executable,
    Memory,
    Pinned,
    /// Addresses set aside.
    Space,
    /// Memory without an address, by handle.
    Physical,
    /// Memory at addresses of a space.
    Mapping,
}

#[derive(Default)]
pub(super) struct State {
    /// Calls since the last order, in all and by name.
    pub(super) calls: u64,
    pub(super) calls_of: BTreeMap<&'static str, u64>,
    /// Which call fails; 0 for none, `u64::MAX` for all.
    pub(super) fail_at: u64,
    pub(super) code: i32,
    pub(super) failed: &'static str,
    pub(super) next: usize,
    pub(super) objects: BTreeSet<(Kind, usize)>,
    /// Bytes at each address, of both kinds of memory.
    pub(super) memory: BTreeMap<usize, usize>,
    /// Bytes of each space, of physical memory, of each mapping.
    pub(super) spaces: BTreeMap<usize, usize>,
    pub(super) physical: BTreeMap<usize, usize>,
    pub(super) mappings: BTreeMap<usize, usize>,
    pub(super) functions: BTreeMap<usize, CString>,
    pub(super) kernels: Option<Kernels>,
    pub(super) queues: BTreeMap<usize, Queue>,
    /// The capture that a stream is part of.
    pub(super) capturing: BTreeMap<usize, usize>,
    pub(super) captures: BTreeMap<usize, Capture>,
    /// Work of graphs and of executable graphs.
    pub(super) graphs: BTreeMap<usize, Vec<Work>>,
    /// Bytes copied in either direction.
    pub(super) bytes: u64,
    pub(super) events: BTreeMap<usize, Place>,
    pub(super) contexts: usize,
    pub(super) current: usize,
    pub(super) misuse: u64,
}

static STATE: LazyLock<Mutex<State>> = LazyLock::new(|| {
    Mutex::new(State {
        next: 0x1000,
        ..State::default()
    })
});

pub(super) fn state() -> MutexGuard<'static, State> {
    STATE.lock().unwrap_or_else(PoisonError::into_inner)
}

impl State {
    /// Counts a call; its code if it is to fail.
    pub(super) fn call(&mut self, name: &'static str) -> Result<(), i32> {
        self.calls += 1;
        *self.calls_of.entry(name).or_default() += 1;
        if self.fail_at == u64::MAX || self.calls == self.fail_at {
            self.failed = name;
            return Err(self.code);
        }
        Ok(())
    }
    pub(super) fn make(&mut self, kind: Kind) -> usize {
        self.next += 16;
        self.objects.insert((kind, self.next));
        self.next
    }
    pub(super) fn expect(&mut self, kind: Kind, handle: usize) {
        // 0, 1 and 2 are the default streams.
        if !(kind == Kind::Stream && handle <= 2) && !self.objects.contains(&(kind, handle)) {
            self.misuse += 1;
        }
    }
    /// Objects are gone even if the driver says that it failed: what it means is that the context is lost.
    pub(super) fn destroy(&mut self, name: &'static str, kind: Kind, handle: usize) -> i32 {
        let failed = self.call(name);
        if !self.objects.remove(&(kind, handle)) {
            self.misuse += 1;
        }
        failed.err().unwrap_or(SUCCESS)
    }
    pub(super) fn allocate(&mut self, kind: Kind, bytes: usize) -> usize {
        let layout = Layout::from_size_align(bytes, 256).unwrap();
        // SAFETY: the callers here ask for at least one byte.
        let address = unsafe { alloc_zeroed(layout) } as usize;
        self.objects.insert((kind, address));
        self.memory.insert(address, bytes);
        address
    }
    pub(super) fn free(&mut self, name: &'static str, kind: Kind, address: usize) -> i32 {
        // Device memory is freed behind the work that uses it; who frees host memory must have waited.
        if kind == Kind::Memory {
            self.finish(0);
        }
        let mut waiting = self.queues.values().flat_map(|queue| &queue.waiting);
        let read_still = |work: &Work| matches!(work, Work::Copy { from, .. } if *from == address);
        let read = waiting.any(read_still);
        self.misuse += u64::from(read || !self.capturing.is_empty());
        let code = self.destroy(name, kind, address);
        if let Some(bytes) = self.memory.remove(&address) {
            // SAFETY: allocated above with this layout, and removed from the list.
            unsafe { dealloc(address as *mut u8, Layout::from_size_align(bytes, 256).unwrap()) };
        }
        code
    }
    /// Whether device memory has these bytes.
    pub(super) fn holds(&mut self, address: usize, bytes: usize) -> bool {
        let (mut at, end) = (address, address + bytes);
        while at < end {
            match self.memory.range(..=at).next_back() {
                Some((&begin, &len)) if at < begin + len => at = begin + len,
                _ => break,
            }
        }
        self.misuse += u64::from(at < end);
        at >= end
    }
}
