//! Room for plans of passes of one size, and the graphs that were captured over it.

use deft::cuda::{CudaCache, CudaError, CudaPlan, Graph, PlanCapacity, Stream};
use deft::plan::Plan;

use super::CudaModelError;
use super::forward::{Forward, Pass, Run};
use super::probe::{Nobody, Observer};

/// Most passes that a lane has graphs of: there are as many as ways to rank.
const MAX_RECORDED: usize = 32;

/// Passes of `rows` rows. What their launches bake in follows from the room, not from the plan in it.
#[derive(Debug)]
pub(super) struct Lane {
    rows: u32,
    plan: CudaPlan,
    /// At most [`MAX_RECORDED`], the one that ran last at the end.
    ///
    /// A pass runs as it is the first time (which also makes cuBLAS load what it needs, as it must not during
    /// a capture), is captured the second, and replayed from then on.
    recorded: Vec<(Pass, Option<Graph>)>,
}

impl Lane {
    /// Room for `plan` and what it may grow to; `before` is room that was too small.
    pub(super) fn new(
        cache: &CudaCache,
        rows: u32,
        plan: &Plan,
        before: Option<&Self>,
    ) -> Result<Self, CudaError> {
        let before = before.map(|lane| lane.plan.capacity().clone());
        let room = room(PlanCapacity::of(plan), before, rows);
        Ok(Self { rows, plan: cache.reserve(room, plan.group_size())?, recorded: Vec::new() })
    }

    pub(super) fn rows(&self) -> u32 {
        self.rows
    }

    pub(super) fn holds(&self, plan: &Plan) -> bool {
        self.plan.capacity().holds(&PlanCapacity::of(plan)).is_ok()
    }

    pub(super) fn plan_mut(&mut self) -> &mut CudaPlan {
        &mut self.plan
    }

    /// Drops the graphs: addresses that they know have changed.
    pub(super) fn forget(&mut self) {
        self.recorded.clear();
    }

    /// Graphs that are there.
    pub(super) fn graphs(&self) -> usize {
        let graphs = self.recorded.iter();
        graphs.filter(|(_, graph)| graph.is_some()).count()
    }

    /// Bytes of device memory.
    pub(super) fn memory_bytes(&self) -> u64 {
        self.plan.bytes() as u64
    }

    /// Enqueues a pass, as a graph if it ran before.
    ///
    /// # Safety
    /// As [`Run::enqueue`]; the plan that was put here is that of the inputs.
    pub(super) unsafe fn launch(
        &mut self,
        forward: &Forward,
        cache: &CudaCache,
        pass: Pass,
        stream: &Stream,
    ) -> Result<(), CudaModelError> {
        let Some(at) = newest_last(&mut self.recorded, |(known, _)| *known == pass) else {
            // SAFETY: the caller's.
            unsafe { self.enqueue(forward, cache, pass, stream, &mut Nobody) }?;
            if self.recorded.len() == MAX_RECORDED {
                // Its graph may still run.
                stream.synchronize()?;
                self.recorded.remove(0);
            }
            self.recorded.push((pass, None));
            return Ok(());
        };
        if self.recorded[at].1.is_none() {
            // SAFETY: the caller's; the graph is launched under the same conditions.
            let work = |stream: &Stream| unsafe {
                self.enqueue(forward, cache, pass, stream, &mut Nobody)
            };
            self.recorded[at].1 = Some(stream.capture(work)?);
        }
        let Some(graph) = &mut self.recorded[at].1 else {
            unreachable!("it was just captured");
        };
        // SAFETY: buffers, pages and plan live as long as the model, which drops graphs when one of them moves.
        Ok(unsafe { graph.launch(stream) }?)
    }

    /// Enqueues a pass launch by launch.
    ///
    /// # Safety
    /// As [`Lane::launch`].
    pub(super) unsafe fn enqueue(
        &self,
        forward: &Forward,
        cache: &CudaCache,
        pass: Pass,
        stream: &Stream,
        observer: &mut dyn Observer,
    ) -> Result<(), CudaModelError> {
        let run = Run { forward, cache, plan: &self.plan, rows: self.rows, stream: stream.raw() };
        // SAFETY: the caller's.
        unsafe { run.enqueue(pass, observer) }
    }
}

/// Moves the entry that `is_it` to the end, where entries are in the order of their last use; its index there.
fn newest_last<T>(entries: &mut [T], is_it: impl FnMut(&T) -> bool) -> Option<usize> {
    let at = entries.iter().position(is_it)?;
    entries[at..].rotate_left(1);
    Some(entries.len() - 1)
}

/// Twice what is needed, and never less than there was.
fn room(needed: PlanCapacity, before: Option<PlanCapacity>, rows: u32) -> PlanCapacity {
    let mut room = needed.scaled(2);
    if let Some(before) = before {
        room = room.max(before);
    }
    // A query has at most one merge row, and each costs the merge's launch a warp a head.
    room.merge_rows = rows as usize;
    room
}

#[cfg(test)]
mod tests {
    use super::*;
    use deft::cache::PagePool;
    use deft::plan::{Grouping, PlanConfig, Planner};
    use deft::tree::TokenForest;

    fn capacity(prompt: u32, leaves: usize, grouping: Grouping) -> PlanCapacity {
        let mut forest = TokenForest::new(PagePool::new(1000).unwrap());
        let root = forest.insert_root(prompt).unwrap();
        let leaves = forest.fork(root, leaves).unwrap();
        forest.extend(&leaves, 70).unwrap();
        let mut planner = Planner::new(PlanConfig::new(grouping, 4, 128, 16)).unwrap();
        PlanCapacity::of(&planner.plan(&forest.view(&leaves).unwrap()).unwrap())
    }

    #[test]
    fn what_was_used_last_is_kept_longest() {
        let mut entries = [1, 2, 3, 4];
        assert_eq!(newest_last(&mut entries, |&entry| entry == 2), Some(3));
        assert_eq!(entries, [1, 3, 4, 2]);
        assert_eq!(newest_last(&mut entries, |&entry| entry == 7), None);
        assert_eq!(entries, [1, 3, 4, 2]);
    }

    #[test]
    fn a_lane_s_room_holds_what_it_was_made_for_and_what_it_held_before() {
        for grouping in [Grouping::Flatten, Grouping::PerQuery] {
            let small = capacity(100, 13, grouping);
            let large = capacity(20_000, 13, grouping);
            let first = room(small, None, 16);
            assert_eq!(first.holds(&small), Ok(()));
            assert!(first.holds(&large).is_err(), "{grouping:?}");
            let second = room(large, Some(first), 16);
            for held in [small, large] {
                assert_eq!(second.holds(&held), Ok(()));
            }
            assert_eq!((first.merge_rows, second.merge_rows), (16, 16));
        }
    }
}
