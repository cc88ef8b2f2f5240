//! The collectives, over an exchange of messages.

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use super::RankError;

/// How long a rank waits for the others in a collective, unless it was told otherwise.
pub const TIMEOUT: Duration = Duration::from_secs(30);

/// What ranks come together for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Kind {
    /// A sum over ranks.
    AllReduce,
    /// Every rank's part, in the order of ranks.
    AllGather,
    /// One rank's message.
    Broadcast,
    /// Nothing but being there.
    Barrier,
    /// An operation on the model, from rank 0.
    Operation,
}

impl Kind {
    const ALL: [Self; 5] =
        [Self::AllReduce, Self::AllGather, Self::Broadcast, Self::Barrier, Self::Operation];

    pub(super) fn from_code(code: u8) -> Option<Self> {
        Self::ALL.into_iter().find(|&kind| kind as u8 == code)
    }
}

impl fmt::Display for Kind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::AllReduce => "an all-reduce",
            Self::AllGather => "an all-gather",
            Self::Broadcast => "a broadcast",
            Self::Barrier => "a barrier",
            Self::Operation => "the next operation",
        })
    }
}

/// What a rank brings to an exchange.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Message {
    /// What for.
    pub kind: Kind,
    /// What it brings.
    pub bytes: Arc<[u8]>,
}

/// A rank among others: what it says to all, and hears from all.
///
/// All ranks call the same methods in the same order. A rank that dies or does not come ends the others' call with an
/// error that names it. Sums are made in the order of ranks by every rank for itself, so they are the same bits on all
/// ranks and in every run.
pub trait Communicator: fmt::Debug + Send {
    /// This rank, below [`Communicator::ranks`].
    fn rank(&self) -> u32;

    /// Ranks that there are.
    fn ranks(&self) -> u32;

    /// How long collectives wait for a rank.
    fn timeout(&self) -> Duration;

    /// Brings `own`, waits for the others at most `limit`, or for as long as it takes, and gives what every rank brought,
    /// in their order.
    ///
    /// # Errors
    /// [`RankError`]: a rank died, hangs or ended the run; from then on the same at every call.
    fn exchange(
        &mut self,
        own: Message,
        limit: Option<Duration>,
    ) -> Result<Vec<Message>, RankError>;

    /// Whether the others are there as far as can be told without them.
    ///
    /// # Errors
    /// What has ended the run.
    fn watch(&mut self) -> Result<(), RankError>;

    /// Ends the run: the others' calls fail with `reason`.
    fn abort(&mut self, reason: &str);

    /// As [`Communicator::exchange`] of a collective: all ranks are at the same one.
    ///
    /// # Errors
    /// [`RankError`].
    fn collect(
        &mut self,
        kind: Kind,
        bytes: Arc<[u8]>,
        limit: Option<Duration>,
    ) -> Result<Vec<Message>, RankError> {
        let all = self.exchange(Message { kind, bytes }, limit)?;
        let first = all[0].kind;
        match (0..).zip(&all).find(|(_, message)| message.kind != first) {
            None => Ok(all),
            Some((rank, message)) => {
                Err(RankError::differs(rank, message.kind.to_string(), first.to_string()))
            }
        }
    }

    /// `values` becomes the sum over ranks.
    ///
    /// # Errors
    /// [`RankError`]; then `values` are as they were.
    fn all_reduce(&mut self, values: &mut [f32]) -> Result<(), RankError> {
        if self.ranks() == 1 {
            return Ok(());
        }
        let limit = self.timeout();
        let parts = self.collect(Kind::AllReduce, bytes_of(values), Some(limit))?;
        same_sizes(Kind::AllReduce, &parts)?;
        for (rank, part) in parts.iter().enumerate() {
            for (sum, part) in values.iter_mut().zip(floats(&part.bytes)) {
                *sum = if rank == 0 { part } else { *sum + part };
            }
        }
        Ok(())
    }

    /// Every rank's `own`, one after the other; they may be of different lengths.
    ///
    /// # Errors
    /// [`RankError`].
    fn all_gather(&mut self, own: &[f32]) -> Result<Vec<Vec<f32>>, RankError> {
        let limit = self.timeout();
        let parts = self.collect(Kind::AllGather, bytes_of(own), Some(limit))?;
        Ok(parts.iter().map(|part| floats(&part.bytes).collect()).collect())
    }

    /// The bytes of rank `root`; what the others give does not count.
    ///
    /// # Errors
    /// [`RankError`].
    fn broadcast(&mut self, root: u32, bytes: &[u8]) -> Result<Arc<[u8]>, RankError> {
        if root >= self.ranks() {
            let expected = format!("below the number of ranks, {}", self.ranks());
            return Err(RankError::argument("root", root, expected));
        }
        let own = if self.rank() == root { bytes } else { &[] };
        let limit = self.timeout();
        let mut all = self.collect(Kind::Broadcast, own.into(), Some(limit))?;
        Ok(all.swap_remove(root as usize).bytes)
    }

    /// Waits until all ranks are here, at most `limit`.
    ///
    /// # Errors
    /// [`RankError`].
    fn barrier(&mut self, limit: Duration) -> Result<(), RankError> {
        self.collect(Kind::Barrier, Arc::new([]), Some(limit)).map(|_| ())
    }
}

fn bytes_of(values: &[f32]) -> Arc<[u8]> {
    values.iter().flat_map(|value| value.to_le_bytes()).collect()
}

fn floats(bytes: &[u8]) -> impl Iterator<Item = f32> + '_ {
    bytes.as_chunks().0.iter().map(|&value| f32::from_le_bytes(value))
}

fn same_sizes(kind: Kind, parts: &[Message]) -> Result<(), RankError> {
    let said = |message: &Message| format!("{kind} of {} bytes", message.bytes.len());
    let size = parts[0].bytes.len();
    match (0..).zip(parts).find(|(_, part)| part.bytes.len() != size) {
        None => Ok(()),
        Some((rank, part)) => Err(RankError::differs(rank, said(part), said(&parts[0]))),
    }
}
