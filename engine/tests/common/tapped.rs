//! A communicator that something happens at.

use std::fmt;
use std::time::Duration;

use deft_engine::ranks::{Communicator, Message, RankError};

/// A communicator that shows every message to `tap` before it goes out.
pub(crate) struct Tapped<F> {
    pub(crate) inner: Box<dyn Communicator>,
    pub(crate) tap: F,
}

impl<F> fmt::Debug for Tapped<F> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.inner.fmt(f)
    }
}

impl<F: FnMut(&Message) + Send> Communicator for Tapped<F> {
    fn rank(&self) -> u32 {
        self.inner.rank()
    }

    fn ranks(&self) -> u32 {
        self.inner.ranks()
    }

    fn timeout(&self) -> Duration {
        self.inner.timeout()
    }

    fn exchange(
        &mut self,
        own: Message,
        limit: Option<Duration>,
    ) -> Result<Vec<Message>, RankError> {
        (self.tap)(&own);
        self.inner.exchange(own, limit)
    }

    fn watch(&mut self) -> Result<(), RankError> {
        self.inner.watch()
    }

    fn abort(&mut self, reason: &str) {
        self.inner.abort(reason);
    }
}
