//! Ranks that are threads of one process.

use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use super::{Communicator, Message, RankError, TIMEOUT};

/// A rank among threads of one process.
///
/// Dropping it is this rank's end: whoever waits for it gets [`RankError::Gone`] at once.
#[derive(Debug)]
pub struct Memory {
    rank: u32,
    ranks: u32,
    timeout: Duration,
    room: Arc<Room>,
}

/// Where they meet.
#[derive(Debug)]
struct Room {
    state: Mutex<State>,
    changed: Condvar,
}

#[derive(Debug)]
struct State {
    /// What each rank has brought to this exchange.
    brought: Vec<Option<Message>>,
    /// Who has seen what all brought: the last one clears the room for the next exchange.
    seen: Vec<bool>,
    /// How a rank ended.
    gone: Vec<Option<String>>,
    /// Why all of this is over.
    over: Option<RankError>,
}

impl Memory {
    /// As many ranks, each for a thread of its own. Collectives wait `timeout` for a rank.
    ///
    /// # Errors
    /// [`RankError::Argument`] for none.
    pub fn new(ranks: u32, timeout: Duration) -> Result<Vec<Self>, RankError> {
        if ranks == 0 {
            return Err(RankError::argument("ranks", ranks, "at least 1"));
        }
        let count = ranks as usize;
        let state = State {
            brought: vec![None; count],
            seen: vec![false; count],
            gone: vec![None; count],
            over: None,
        };
        let room = Arc::new(Room { state: Mutex::new(state), changed: Condvar::new() });
        Ok((0..ranks).map(|rank| Self { rank, ranks, timeout, room: room.clone() }).collect())
    }

    /// The only rank: nothing is sent or waited for.
    pub fn alone() -> Self {
        let mut only = Self::new(1, TIMEOUT).unwrap_or_default();
        only.pop().expect("there is one")
    }
}

impl Room {
    /// Nobody panics while the state is changed.
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Waits while `is_missing` any rank. One that ended is named before one that is late.
    fn wait<'a>(
        &'a self,
        mut state: MutexGuard<'a, State>,
        (deadline, own): (Deadline, &Message),
        is_missing: impl Fn(&State, usize) -> bool,
    ) -> Result<MutexGuard<'a, State>, RankError> {
        loop {
            let missing = || (0..state.seen.len()).filter(|&rank| is_missing(&state, rank));
            let Some(late) = missing().next() else {
                return Ok(state);
            };
            if let Some(error) = &state.over {
                return Err(error.clone());
            }
            let mut ended = missing().filter_map(|rank| Some((rank, state.gone[rank].clone()?)));
            if let Some((rank, reason)) = ended.next() {
                drop(ended);
                return Err(self.end(state, RankError::Gone { rank: rank as u32, reason }));
            }
            drop(ended);
            state = match deadline.left() {
                None => self.changed.wait(state).unwrap_or_else(PoisonError::into_inner),
                Some(left) if left.is_zero() => {
                    let (rank, what) = (late as u32, own.kind.to_string());
                    let after = deadline.limit.unwrap_or_default();
                    return Err(self.end(state, RankError::Stalled { rank, what, after }));
                }
                Some(left) => {
                    let waited = self.changed.wait_timeout(state, left);
                    waited.unwrap_or_else(PoisonError::into_inner).0
                }
            };
        }
    }

    /// Ends it for all ranks.
    fn end(&self, mut state: MutexGuard<'_, State>, error: RankError) -> RankError {
        let first = state.over.get_or_insert(error).clone();
        drop(state);
        self.changed.notify_all();
        first
    }
}

/// Until when is waited.
#[derive(Clone, Copy)]
struct Deadline {
    begin: Instant,
    limit: Option<Duration>,
}

impl Deadline {
    fn left(&self) -> Option<Duration> {
        self.limit.map(|limit| limit.saturating_sub(self.begin.elapsed()))
    }
}

impl Communicator for Memory {
    fn rank(&self) -> u32 {
        self.rank
    }

    fn ranks(&self) -> u32 {
        self.ranks
    }

    fn timeout(&self) -> Duration {
        self.timeout
    }

    fn exchange(
        &mut self,
        own: Message,
        limit: Option<Duration>,
    ) -> Result<Vec<Message>, RankError> {
        let (me, room) = (self.rank as usize, &*self.room);
        let at = (Deadline { begin: Instant::now(), limit }, &own);
        // The last exchange may not have been seen by all.
        let is_unseen =
            |state: &State, rank: usize| state.brought[me].is_some() && !state.seen[rank];
        let mut state = room.wait(room.lock(), at, is_unseen)?;
        // An exchange for which all have come is made, whatever happens next; no other one is.
        if let Some(error) = &state.over {
            return Err(error.clone());
        }
        state.brought[me] = Some(own.clone());
        room.changed.notify_all();
        let mut state = room.wait(state, at, |state, rank| state.brought[rank].is_none())?;
        let all = state.brought.iter().flatten().cloned().collect();
        state.seen[me] = true;
        if state.seen.iter().all(|&seen| seen) {
            state.seen.fill(false);
            state.brought.fill(None);
            room.changed.notify_all();
        }
        Ok(all)
    }

    fn watch(&mut self) -> Result<(), RankError> {
        let state = self.room.lock();
        if let Some(error) = &state.over {
            return Err(error.clone());
        }
        let mut gone = (0..).zip(&state.gone);
        let gone = gone.find_map(|(rank, reason)| Some((rank, reason.clone()?)));
        match gone {
            None => Ok(()),
            Some((rank, reason)) => Err(self.room.end(state, RankError::Gone { rank, reason })),
        }
    }

    fn abort(&mut self, reason: &str) {
        let error = RankError::Aborted { rank: self.rank, reason: reason.to_owned() };
        self.room.end(self.room.lock(), error);
    }
}

impl Drop for Memory {
    fn drop(&mut self) {
        let reason = match std::thread::panicking() {
            true => "its thread panicked",
            false => "it ended",
        };
        self.room.lock().gone[self.rank as usize] = Some(reason.to_owned());
        self.room.changed.notify_all();
    }
}
