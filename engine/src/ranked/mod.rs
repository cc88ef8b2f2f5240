//! One model of several ranks: rank 0 says what is done, the others do the same.
//!
//! Before each operation all ranks meet: rank 0 brings the operation, and every rank a hash of its history, in which are
//! all operations, their outcomes and the forest. Ranks whose hashes differ end the run with an error that says so.

mod history;
mod operation;

use std::sync::Arc;
use std::time::Duration;

use deft::tree::TokenForest;
use deft::{NodeKey, PrefixStats};

use self::history::History;
use self::operation::Operation;
use crate::grown::{Grown, GrownToken};
use crate::ranks::threads::Threads;
use crate::ranks::{Communicator, Kind, Memory, RankError};
use crate::select::{Select, Selected};
use crate::tree_model::{DraftToken, ModelError, Traffic, TreeModel};

/// How long ranks wait for one another to have their weights.
pub const START: Duration = Duration::from_secs(1800);

/// Rank 0 of a model of several ranks, as a [`TreeModel`]: every call is run on all ranks.
///
/// An error between ranks, or a rank that dies or hangs, ends the run: the call fails with [`ModelError::Ranks`], as does
/// every later one. Dropping it ends the others, and waits for those that are threads, 10 s at most.
#[derive(Debug)]
pub struct Ranked<M: TreeModel> {
    model: M,
    ranks: Box<dyn Communicator>,
    history: History,
    over: Option<RankError>,
    /// The other ranks, where these are threads. Last: they end once they hear of this rank's end.
    threads: Threads,
}

impl<M: TreeModel> Ranked<M> {
    /// Rank 0 with its model. The others [`follow`]; `ranks` is for this alone, the models have communicators of their
    /// own.
    ///
    /// # Errors
    /// [`RankError`]: not all ranks come within [`START`].
    pub fn lead(model: M, mut ranks: Box<dyn Communicator>) -> Result<Self, RankError> {
        ranks.barrier(START)?;
        Ok(Self { model, ranks, history: History::new(), over: None, threads: Threads::default() })
    }

    /// All ranks as threads of this process; `make` makes the model of a rank, on its thread, with the communicator that
    /// it is given.
    ///
    /// # Errors
    /// Those of `make`; [`RankError::Aborted`] says what another rank's was.
    pub fn in_threads<E>(
        ranks: u32,
        timeout: Duration,
        make: impl Fn(Box<dyn Communicator>) -> Result<M, E> + Send + Sync + 'static,
    ) -> Result<Self, E>
    where
        E: From<RankError> + std::fmt::Display,
    {
        let mut pairs: Vec<_> =
            Memory::new(ranks, timeout)?.into_iter().zip(Memory::new(ranks, timeout)?).collect();
        let others = pairs.split_off(1);
        let make = Arc::new(make);
        let spawn = |(mut control, data): (Memory, Memory)| {
            let make = make.clone();
            std::thread::spawn(move || match make(Box::new(data)) {
                // How it ends is told to the others by its communicators.
                Ok(model) => drop(follow(model, Box::new(control))),
                Err(error) => control.abort(&error.to_string()),
            })
        };
        let threads = Threads(others.into_iter().map(spawn).collect());
        let (mut control, data) = pairs.pop().expect("there is a rank 0");
        let model = make(Box::new(data)).inspect_err(|error| control.abort(&error.to_string()))?;
        let mut lead = Self::lead(model, Box::new(control))?;
        lead.threads = threads;
        Ok(lead)
    }

    /// Rank 0's model.
    pub fn model(&self) -> &M {
        &self.model
    }

    /// The same, for what is of this rank alone: an operation on the tree that the others do not see ends the run.
    pub fn model_mut(&mut self) -> &mut M {
        &mut self.model
    }

    /// Ranks that there are.
    pub fn ranks(&self) -> u32 {
        self.ranks.ranks()
    }

    /// Has all ranks run `operation`; `run` does it here.
    fn everywhere<T>(
        &mut self,
        operation: Operation,
        run: impl FnOnce(&mut M) -> Result<T, ModelError>,
    ) -> Result<T, ModelError> {
        if let Some(error) = &self.over {
            return Err(error.clone().into());
        }
        let words = operation.write(self.model.forest());
        let outcome = match announce(&mut *self.ranks, &self.history, &words) {
            Ok(()) => run(&mut self.model),
            Err(error) => Err(error.into()),
        };
        self.history.ran(&words, outcome.is_ok(), self.model.forest());
        if let Err(ModelError::Ranks(error)) = &outcome {
            self.ranks.abort(&error.to_string());
            self.over = Some(error.clone());
        }
        outcome
    }
}

impl<M: TreeModel> Drop for Ranked<M> {
    fn drop(&mut self) {
        let end = Operation::End.write(self.model.forest());
        // Whoever does not hear it hears that this rank is gone.
        let _ = announce(&mut *self.ranks, &self.history, &end);
    }
}

/// Tells the other ranks of an operation, and hears how their histories are.
fn announce(
    ranks: &mut dyn Communicator,
    history: &History,
    words: &[u64],
) -> Result<(), RankError> {
    let all = [&[history.hash()], words].concat();
    let bytes: Arc<[u8]> = all.iter().flat_map(|word| word.to_le_bytes()).collect();
    let limit = ranks.timeout();
    let messages = ranks.collect(Kind::Operation, bytes, Some(limit))?;
    history.check(messages.iter().map(|message| hash_of(&message.bytes)))
}

/// What a message of an operation begins with.
fn hash_of(bytes: &[u8]) -> u64 {
    bytes.first_chunk().map_or(0, |&hash| u64::from_le_bytes(hash))
}

/// Runs what rank 0 runs on another rank's `model`, until that ends. Between operations it waits for as long as it takes;
/// within one no longer than the communicators' timeouts.
///
/// # Errors
/// [`ModelError::Ranks`]: another rank has died, hangs or has another history, or this one has.
pub fn follow<M: TreeModel>(
    mut model: M,
    mut ranks: Box<dyn Communicator>,
) -> Result<(), ModelError> {
    ranks.barrier(START)?;
    let mut history = History::new();
    loop {
        let own = Arc::from(history.hash().to_le_bytes());
        let messages = ranks.collect(Kind::Operation, own, None)?;
        history.check(messages.iter().map(|message| hash_of(&message.bytes)))?;
        let words: Vec<u64> =
            messages[0].bytes.as_chunks().0.iter().map(|&word| u64::from_le_bytes(word)).collect();
        let words = words.get(1..).unwrap_or_default();
        let Some(operation) = Operation::read(words) else {
            let error = RankError::Gone { rank: 0, reason: "it says what is no operation".into() };
            ranks.abort(&error.to_string());
            return Err(error.into());
        };
        if operation == Operation::End {
            return Ok(());
        }
        let outcome = operation.run(&mut model);
        history.ran(words, outcome.is_ok(), model.forest());
        // What fails here alone shows in the history.
        if let Err(ModelError::Ranks(error)) = outcome {
            ranks.abort(&error.to_string());
            return Err(error.into());
        }
    }
}

impl<M: TreeModel> TreeModel for Ranked<M> {
    fn vocabulary(&self) -> usize {
        self.model.vocabulary()
    }

    fn context(&self) -> usize {
        self.model.context()
    }

    fn forest(&self) -> &TokenForest {
        self.model.forest()
    }

    fn traffic(&self) -> Traffic {
        self.model.traffic()
    }

    fn prefix_stats(&self) -> PrefixStats {
        self.model.prefix_stats()
    }

    fn make_room(&mut self, pages: u32) -> Result<u32, ModelError> {
        self.everywhere(Operation::MakeRoom { pages }, |model| model.make_room(pages))
    }

    fn insert_prompt(
        &mut self,
        tokens: &[u32],
        logits: &mut Vec<f32>,
    ) -> Result<NodeKey, ModelError> {
        let operation = Operation::Prompt { tokens: tokens.to_vec() };
        self.everywhere(operation, |model| model.insert_prompt(tokens, logits))
    }

    fn fork(&mut self, node: NodeKey, n: usize) -> Result<Vec<NodeKey>, ModelError> {
        self.everywhere(Operation::Fork { node, n }, |model| model.fork(node, n))
    }

    fn step(
        &mut self,
        leaves: &[NodeKey],
        tokens: &[u32],
        logits: &mut Vec<f32>,
    ) -> Result<(), ModelError> {
        let operation =
            Operation::Step { leaves: leaves.to_vec(), tokens: tokens.to_vec(), select: None };
        self.everywhere(operation, |model| model.step(leaves, tokens, logits))
    }

    fn step_select(
        &mut self,
        leaves: &[NodeKey],
        tokens: &[u32],
        select: &[Select],
    ) -> Result<Vec<Selected>, ModelError> {
        let operation = Operation::Step {
            leaves: leaves.to_vec(),
            tokens: tokens.to_vec(),
            select: Some(select.to_vec()),
        };
        self.everywhere(operation, |model| model.step_select(leaves, tokens, select))
    }

    fn verify(
        &mut self,
        trunk: NodeKey,
        draft: &[DraftToken],
        logits: &mut Vec<f32>,
    ) -> Result<Vec<NodeKey>, ModelError> {
        let operation = Operation::Verify { trunk, draft: draft.to_vec(), select: None };
        self.everywhere(operation, |model| model.verify(trunk, draft, logits))
    }

    fn verify_select(
        &mut self,
        trunk: NodeKey,
        draft: &[DraftToken],
        select: &[Select],
    ) -> Result<(Vec<NodeKey>, Vec<Selected>), ModelError> {
        let operation =
            Operation::Verify { trunk, draft: draft.to_vec(), select: Some(select.to_vec()) };
        self.everywhere(operation, |model| model.verify_select(trunk, draft, select))
    }

    fn accept(&mut self, trunk: NodeKey, path: &[NodeKey]) -> Result<(), ModelError> {
        let operation = Operation::Accept { trunk, path: path.to_vec() };
        self.everywhere(operation, |model| model.accept(trunk, path))
    }

    fn grows_drafts(&self) -> bool {
        self.model.grows_drafts()
    }

    fn grow_draft(
        &mut self,
        trunk: NodeKey,
        grown: &[GrownToken],
        k: usize,
    ) -> Result<Grown, ModelError> {
        let operation = Operation::Grow { trunk, grown: grown.to_vec(), k };
        self.everywhere(operation, |model| model.grow_draft(trunk, grown, k))
    }

    fn prune_draft(&mut self, leaves: &[NodeKey]) -> Result<u32, ModelError> {
        let operation = Operation::PruneDraft { leaves: leaves.to_vec() };
        self.everywhere(operation, |model| model.prune_draft(leaves))
    }

    fn gather_draft(&mut self, trunk: NodeKey) -> Result<(), ModelError> {
        self.everywhere(Operation::GatherDraft { trunk }, |model| model.gather_draft(trunk))
    }

    fn merge_chain(&mut self, node: NodeKey) -> Result<(), ModelError> {
        self.everywhere(Operation::MergeChain { node }, |model| model.merge_chain(node))
    }

    fn prune(&mut self, node: NodeKey) -> Result<u32, ModelError> {
        self.everywhere(Operation::Prune { node }, |model| model.prune(node))
    }
}
