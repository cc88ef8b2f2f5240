//! Streams whose work runs as late as it may: when somebody waits for it, and then no other stream's than what it waits for.

use std::collections::{BTreeMap, VecDeque};
use std::ffi::{CString, c_char};

use super::{CAPTURE_ISOLATION, CAPTURE_UNSUPPORTED, Kind, SUCCESS, State};

/// What a test does in a kernel's place: its name, the blocks in x, and its arguments, eight bytes each.
pub(super) type Kernels = extern "C" fn(*const c_char, u32, *const u64, usize);

#[derive(Clone)]
pub(super) enum Work {
    Copy { to: usize, from: usize, bytes: usize },
    Set { to: usize, value: u8, bytes: usize },
    Kernel { name: CString, blocks: u32, arguments: Vec<u64> },
    /// Another stream's first so many pieces of work.
    Wait { stream: usize, before: usize },
}

/// A stream's work.
#[derive(Default)]
pub(super) struct Queue {
    pub(super) waiting: VecDeque<Work>,
    pub(super) done: usize,
}

/// A capture under way.
pub(super) struct Capture {
    pub(super) origin: usize,
    pub(super) work: Vec<Work>,
    /// Streams that it covers besides, and whether the origin has waited for all of their work.
    pub(super) joined: BTreeMap<usize, bool>,
}

/// Where an event was recorded.
#[derive(Clone, Copy)]
pub(super) enum Place {
    Stream { stream: usize, before: usize },
    Captured { capture: usize, stream: usize },
}

impl State {
    /// Enqueues work, or records it if the stream is captured.
    pub(super) fn enqueue(&mut self, stream: usize, work: Work) {
        self.expect(Kind::Stream, stream);
        match self.capturing.get(&stream) {
            None => self.queues.entry(stream).or_default().waiting.push_back(work),
            Some(capture) => {
                let capture = self.captures.get_mut(capture).unwrap();
                if let Some(joined) = capture.joined.get_mut(&stream) {
                    *joined = false;
                }
                capture.work.push(work);
            }
        }
    }
    /// Runs a stream's first `before` pieces of work, and what they wait for.
    pub(super) fn run(&mut self, stream: usize, before: usize) {
        while let Some(queue) = self.queues.get_mut(&stream).filter(|queue| queue.done < before) {
            let Some(work) = queue.waiting.pop_front() else { return };
            queue.done += 1;
            match work {
                Work::Wait { stream, before } => self.run(stream, before),
                work => self.execute(work),
            }
        }
    }
    pub(super) fn execute(&mut self, work: Work) {
        match work {
            Work::Copy { to, from, bytes } => {
                if self.holds(to, bytes) {
                    // SAFETY: the device has these bytes; whoever enqueued the copy keeps its source until it is done.
                    unsafe { (to as *mut u8).copy_from(from as *const u8, bytes) };
                }
            }
            Work::Set { to, value, bytes } => {
                if self.holds(to, bytes) {
                    // SAFETY: the device has these bytes.
                    unsafe { (to as *mut u8).write_bytes(value, bytes) };
                }
            }
            Work::Kernel { name, blocks, arguments } => {
                if let Some(kernels) = self.kernels {
                    kernels(name.as_ptr(), blocks, arguments.as_ptr(), arguments.len());
                }
            }
            Work::Wait { .. } => unreachable!("streams wait, not the device"),
        }
    }
    /// Runs all work of a stream; of the legacy one, that of all.
    pub(super) fn finish(&mut self, stream: usize) {
        match stream {
            0 => self.queues.keys().copied().collect::<Vec<_>>().into_iter().for_each(|stream| self.run(stream, usize::MAX)),
            stream => self.run(stream, usize::MAX),
        }
    }
    /// A synchronous call between other work on the stream, which no captured stream takes.
    pub(super) fn at_once(&mut self, stream: usize) -> Result<(), i32> {
        self.expect(Kind::Stream, stream);
        if self.capturing.contains_key(&stream) {
            return Err(CAPTURE_UNSUPPORTED);
        }
        self.finish(stream);
        Ok(())
    }
    pub(super) fn is_done(&self, event: usize) -> bool {
        match self.events.get(&event) {
            Some(Place::Stream { stream, before }) => self.queues.get(stream).is_none_or(|queue| queue.done >= *before),
            _ => true,
        }
    }
    pub(super) fn record(&mut self, event: usize, stream: usize) {
        let place = match self.capturing.get(&stream) {
            Some(&capture) => Place::Captured { capture, stream },
            None => {
                let queue = self.queues.entry(stream).or_default();
                Place::Stream { stream, before: queue.done + queue.waiting.len() }
            }
        };
        self.events.insert(event, place);
    }
    pub(super) fn wait(&mut self, stream: usize, event: usize) -> i32 {
        match self.events.get(&event).copied() {
            None => {}
            Some(Place::Stream { .. }) if self.capturing.contains_key(&stream) => return CAPTURE_ISOLATION,
            Some(Place::Stream { stream: other, before }) => {
                self.enqueue(stream, Work::Wait { stream: other, before });
            }
            Some(Place::Captured { capture, stream: other }) => {
                let Some(under_way) = self.captures.get_mut(&capture) else { return CAPTURE_ISOLATION };
                if stream == under_way.origin {
                    under_way.joined.insert(other, true);
                } else {
                    under_way.joined.insert(stream, false);
                    self.capturing.insert(stream, capture);
                }
            }
        }
        SUCCESS
    }
}
