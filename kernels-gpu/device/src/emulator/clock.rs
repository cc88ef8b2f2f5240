//! Vector clocks: who has seen what.
//!
//! An *agent* is whatever touches memory in an order of its own: a thread, a thread's `cp.async`
//! copies, a warp's `wgmma`s, or a bulk copy. Each agent counts *epochs*; a clock holds, for each agent,
//! the latest epoch whose accesses happened before. An access `(agent, epoch)` is ordered before a
//! thread's present if the thread's clock has reached that epoch (FastTrack, Flanagan and Freund, 2009).

use std::collections::BTreeMap;
use std::sync::Arc;

use crate::emulator::grid::Synchronisation;
use crate::ordering::Scope;

/// Number of an agent within its block.
pub(crate) type Agent = u16;

/// Epoch of each agent of a block.
pub(crate) type Clock = Arc<[u32]>;

/// Bulk copies take turns at this many agents.
const BULK_AGENTS: u32 = 32;

/// How a block's agents are numbered.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Agents {
    threads: u32,
    next_bulk: u32,
}

impl Agents {
    pub(crate) fn new(threads: u32) -> Self {
        Self { threads, next_bulk: 0 }
    }

    pub(crate) fn count(&self) -> usize {
        (self.first_bulk() + BULK_AGENTS) as usize
    }

    pub(crate) fn async_copy(&self, thread: u32) -> Agent {
        (self.threads + thread) as Agent
    }

    pub(crate) fn wgmma(&self, warp: u32) -> Agent {
        (2 * self.threads + warp) as Agent
    }

    /// The agent and epoch of a new bulk copy.
    pub(crate) fn bulk(&mut self) -> (Agent, u32) {
        let turn = self.next_bulk;
        self.next_bulk += 1;
        let agent = self.first_bulk() + turn % BULK_AGENTS;
        (agent as Agent, turn / BULK_AGENTS + 1)
    }

    fn first_bulk(&self) -> u32 {
        2 * self.threads + self.threads / 32
    }

    /// The agent in words.
    pub(crate) fn describe(&self, agent: Agent) -> String {
        let agent = u32::from(agent);
        if agent < self.threads {
            format!("thread {agent}")
        } else if agent < 2 * self.threads {
            format!("thread {}'s asynchronous copy", agent - self.threads)
        } else if agent < self.first_bulk() {
            format!("warp {}'s wgmma", agent - 2 * self.threads)
        } else {
            "a bulk copy".to_owned()
        }
    }
}

/// What a thread has seen of other blocks, by block.
pub(crate) type Foreign = Option<Arc<BTreeMap<u32, Clock>>>;

/// What a thread has seen; cheap to clone, as the view of an operation it starts.
#[derive(Clone, Debug)]
pub(crate) struct View {
    agent: Agent,
    own: u32,
    seen: Clock,
    fenced: Clock,
    foreign: Foreign,
    /// What relaxed atomics read that others released, by block: a fence acquires it.
    unfenced: BTreeMap<u32, Released>,
    /// What the latest fences release with the relaxed atomics after them: for all, and for the block.
    fences: [Option<Released>; 2],
}

/// Two accesses ordered by program order or by what a view has seen.
impl View {
    pub(crate) fn new(agent: Agent, start: &Clock) -> Self {
        Self {
            agent,
            own: 1,
            seen: start.clone(),
            fenced: start.clone(),
            foreign: None,
            unfenced: BTreeMap::new(),
            fences: [None, None],
        }
    }

    /// The thread, and the epoch of its present accesses.
    pub(crate) fn now(&self) -> (Agent, u32) {
        (self.agent, self.own)
    }

    /// The view of an operation that the thread starts now; what the thread does next is not in it.
    pub(crate) fn fork(&mut self) -> Self {
        let view = self.clone();
        self.own += 1;
        view
    }

    /// Whether `(agent, epoch)` happened before.
    #[inline]
    pub(crate) fn sees(&self, agent: Agent, epoch: u32) -> bool {
        if agent == self.agent { epoch <= self.own } else { self.seen[usize::from(agent)] >= epoch }
    }

    /// Whether what `(agent, epoch)` wrote through the generic proxy is visible to the async proxy.
    pub(crate) fn fences(&self, agent: Agent, epoch: u32) -> bool {
        self.fenced[usize::from(agent)] >= epoch
    }

    /// Whether `(agent, epoch)` of another block happened before.
    pub(crate) fn sees_foreign(&self, block: u32, agent: Agent, epoch: u32) -> bool {
        self.foreign
            .as_ref()
            .and_then(|blocks| blocks.get(&block))
            .is_some_and(|clock| clock[usize::from(agent)] >= epoch)
    }

    /// Makes all that was seen until now visible to the async proxy.
    pub(crate) fn fence_proxy(&mut self) {
        self.fenced = self.present();
        self.own += 1;
    }

    /// Learns of one agent's epoch.
    pub(crate) fn learn(&mut self, agent: Agent, epoch: u32) {
        if !self.sees(agent, epoch) {
            let mut clock = self.seen.to_vec();
            clock[usize::from(agent)] = epoch;
            self.seen = clock.into();
        }
    }

    /// Learns what was released, a join of clocks; `joins` remembers the latest.
    pub(crate) fn acquire(&mut self, released: &Released, joins: &mut Joins) {
        self.seen = joins.join(&self.seen, &released.seen);
        self.fenced = joins.join(&self.fenced, &released.fenced);
        merge_foreign(&mut self.foreign, &released.foreign);
    }

    /// Takes over what was released, knowing that all the thread has seen is in it.
    pub(crate) fn adopt(&mut self, released: &Released) {
        self.seen = released.seen.clone();
        self.fenced = released.fenced.clone();
        self.foreign = released.foreign.clone();
    }

    /// Learns what another block released.
    pub(crate) fn acquire_foreign(&mut self, block: u32, released: &Released) {
        let blocks = Arc::new(BTreeMap::from([(block, released.seen.clone())]));
        merge_foreign(&mut self.foreign, &Some(blocks));
        merge_foreign(&mut self.foreign, &released.foreign);
    }

    /// All that was seen until now, as something others can acquire.
    pub(crate) fn release(&mut self) -> Released {
        let released = Released {
            seen: self.present(),
            fenced: self.fenced.clone(),
            foreign: self.foreign.clone(),
        };
        self.own += 1;
        released
    }

    /// Reads, with an atomic operation of a thread of `block`, what one of block `from` released.
    pub(crate) fn read_released(
        &mut self,
        from: u32,
        block: u32,
        released: &Released,
        acquires: bool,
    ) {
        let joins = &mut Joins::default();
        if !acquires {
            match self.unfenced.get_mut(&from) {
                Some(known) => known.join(released, joins),
                None => {
                    self.unfenced.insert(from, released.clone());
                }
            }
        } else if from == block {
            self.acquire(released, joins);
        } else {
            self.acquire_foreign(from, released);
        }
    }

    /// What an atomic write releases: whether for the block alone, and what.
    pub(crate) fn releases(&mut self, by: Synchronisation) -> [Option<(bool, Released)>; 2] {
        let is_narrow = by.scope == Scope::Block;
        if by.order.releases() {
            return [Some((is_narrow, self.release())), None];
        }
        let [for_all, for_block] = self.fences.clone();
        [for_all.map(|released| (is_narrow, released)), for_block.map(|released| (true, released))]
    }

    /// A fence of a thread of `block`.
    pub(crate) fn fence(&mut self, block: u32, scope: Scope) {
        let is_narrow = scope == Scope::Block;
        for (from, released) in std::mem::take(&mut self.unfenced) {
            let acquires = from == block || !is_narrow;
            self.read_released(from, block, &released, acquires);
        }
        self.fences[usize::from(is_narrow)] = Some(self.release());
    }

    fn present(&self) -> Clock {
        let mut clock = self.seen.to_vec();
        clock[usize::from(self.agent)] = self.own;
        clock.into()
    }
}

/// What those who arrived somewhere had seen.
#[derive(Clone, Debug)]
pub(crate) struct Released {
    seen: Clock,
    fenced: Clock,
    foreign: Foreign,
}

impl Released {
    pub(crate) fn nothing(start: &Clock) -> Self {
        Self { seen: start.clone(), fenced: start.clone(), foreign: None }
    }

    /// What was seen here or there.
    pub(crate) fn join(&mut self, other: &Self, joins: &mut Joins) {
        self.seen = joins.join(&self.seen, &other.seen);
        self.fenced = joins.join(&self.fenced, &other.fenced);
        merge_foreign(&mut self.foreign, &other.foreign);
    }
}

/// Collects what those who arrive have seen, until [`Gather::finish`].
#[derive(Debug, Default)]
pub(crate) struct Gather {
    seen: Vec<u32>,
    fenced: Vec<u32>,
    foreign: Foreign,
    latest: Option<(Clock, Clock)>,
}

impl Gather {
    /// Adds what `view` has seen until now.
    pub(crate) fn add(&mut self, view: &mut View) {
        self.seen.resize(view.seen.len(), 0);
        self.fenced.resize(view.seen.len(), 0);
        // Threads that passed the same barrier share clocks.
        let known = |latest: &Clock, clock: &Clock| Arc::ptr_eq(latest, clock);
        match &self.latest {
            Some((seen, fenced)) if known(seen, &view.seen) && known(fenced, &view.fenced) => {}
            _ => {
                raise(&mut self.seen, &view.seen);
                raise(&mut self.fenced, &view.fenced);
                self.latest = Some((view.seen.clone(), view.fenced.clone()));
            }
        }
        self.seen[usize::from(view.agent)] = view.own;
        merge_foreign(&mut self.foreign, &view.foreign);
        view.own += 1;
    }

    /// Adds one agent's epoch, in a block with `agents` agents.
    pub(crate) fn add_agent(&mut self, agents: usize, agent: Agent, epoch: u32) {
        self.seen.resize(agents, 0);
        self.fenced.resize(agents, 0);
        let present = &mut self.seen[usize::from(agent)];
        *present = (*present).max(epoch);
    }

    /// What was collected; starts anew.
    pub(crate) fn finish(&mut self) -> Released {
        self.latest = None;
        Released {
            seen: std::mem::take(&mut self.seen).into(),
            fenced: std::mem::take(&mut self.fenced).into(),
            foreign: self.foreign.take(),
        }
    }
}

/// The latest joins, since the lanes of a warp join the same clocks one after another.
#[derive(Debug, Default)]
pub(crate) struct Joins {
    latest: [Option<[Clock; 3]>; 4],
    next: usize,
}

impl Joins {
    fn join(&mut self, left: &Clock, right: &Clock) -> Clock {
        if Arc::ptr_eq(left, right) {
            return left.clone();
        }
        for [a, b, joined] in self.latest.iter().flatten() {
            if Arc::ptr_eq(a, left) && Arc::ptr_eq(b, right) {
                return joined.clone();
            }
        }
        let mut clock = left.to_vec();
        raise(&mut clock, right);
        let joined: Clock = clock.into();
        self.latest[self.next] = Some([left.clone(), right.clone(), joined.clone()]);
        self.next = (self.next + 1) % self.latest.len();
        joined
    }
}

fn raise(clock: &mut [u32], other: &[u32]) {
    for (epoch, other) in clock.iter_mut().zip(other) {
        *epoch = (*epoch).max(*other);
    }
}

fn merge_foreign(into: &mut Foreign, from: &Foreign) {
    let Some(from) = from else { return };
    let Some(blocks) = into else {
        *into = Some(from.clone());
        return;
    };
    if Arc::ptr_eq(blocks, from) {
        return;
    }
    let blocks = Arc::make_mut(blocks);
    for (block, clock) in from.iter() {
        match blocks.get_mut(block) {
            None => {
                blocks.insert(*block, clock.clone());
            }
            Some(known) if Arc::ptr_eq(known, clock) => {}
            Some(known) => {
                let mut joined = known.to_vec();
                raise(&mut joined, clock);
                *known = joined.into();
            }
        }
    }
}
