//! Starting a search.

use super::{Answer, Cancel, Limits, Observer, Outcome, SearchError, SearchTree, Stop, TextCodec};
use deft_engine::TreeModel;

/// A way of growing a tree.
pub trait SearchMethod {
    /// Grows `tree` until it is through or [`SearchTree::stop`] says why it has to end; the answers, the best
    /// first. Branches that are left over are freed with the tree.
    ///
    /// # Errors
    /// [`SearchError`].
    fn search(&mut self, tree: &mut SearchTree<'_>) -> Result<Vec<Answer>, SearchError>;
}

/// A search over a model: what it may spend, who watches it and who may end it.
pub struct TreeSearch<'a> {
    model: &'a mut dyn TreeModel,
    codec: &'a dyn TextCodec,
    observer: Option<&'a mut dyn Observer>,
    limits: Limits,
    cancel: Cancel,
}

impl<'a> TreeSearch<'a> {
    /// A search without limits.
    pub fn new(model: &'a mut dyn TreeModel, codec: &'a dyn TextCodec) -> Self {
        Self { model, codec, observer: None, limits: Limits::default(), cancel: Cancel::new() }
    }

    /// Spends no more than `limits`.
    #[must_use]
    pub fn limits(mut self, limits: Limits) -> Self {
        self.limits = limits;
        self
    }

    /// Tells `observer` what happens.
    #[must_use]
    pub fn observer(mut self, observer: &'a mut dyn Observer) -> Self {
        self.observer = Some(observer);
        self
    }

    /// Ends when `cancel` says so.
    #[must_use]
    pub fn cancel(mut self, cancel: Cancel) -> Self {
        self.cancel = cancel;
        self
    }

    /// Runs `prompt` and grows a tree from it. Afterwards the model holds what it held before, whatever the
    /// result, a panic of the observer or the method included.
    ///
    /// # Errors
    /// [`SearchError`].
    pub fn run(
        self,
        prompt: &[u32],
        method: &mut dyn SearchMethod,
    ) -> Result<Outcome, SearchError> {
        let control = (self.limits, self.cancel);
        let mut tree = SearchTree::start(self.model, self.codec, self.observer, control, prompt)?;
        let answers = method.search(&mut tree)?;
        Ok(Outcome { answers, stop: tree.stop().unwrap_or(Stop::Finished), stats: tree.stats() })
    }
}
