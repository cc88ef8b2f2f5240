//! What is asked: a puzzle with a checker, or the user's own prompt.

use deft_engine::{ChatTemplate, Message, Role, Tokenizer};
use deft_search::tasks::{Acrostic, Checker, DigitSort, DistinctSum, GameOf24, Problem, Task};
use deft_search::{Ending, MeanLogProb, Scorer, SearchError, TextCodec};

use crate::args::{Args, TaskArg};

/// Tokens of an answer to the user's own prompt, and of a thought in it.
const ANSWER_TOKENS: usize = 96;
const THOUGHT_TOKENS: usize = 32;
const LEVELS: usize = 4;

/// A question to the model.
pub(crate) enum Question {
    /// A puzzle, given as examples and the beginning of an answer.
    Puzzle(Box<dyn Problem>),
    /// The user's words.
    Own(String),
}

impl Question {
    pub(crate) fn new(args: &Args) -> Self {
        if let Some(prompt) = &args.prompt {
            return Self::Own(prompt.clone());
        }
        let task: &dyn Task = match args.task {
            TaskArg::Acrostic => &Acrostic::default(),
            TaskArg::DigitSort => &DigitSort::default(),
            TaskArg::DistinctSum => &DistinctSum::default(),
            TaskArg::GameOf24 => &GameOf24::default(),
        };
        Self::Puzzle(task.problem(args.seed))
    }

    /// All that `args` ask, in order.
    pub(crate) fn all(args: &Args) -> Vec<Self> {
        let then = args.then.iter().cloned().map(Self::Own);
        std::iter::once(Self::new(args)).chain(then).collect()
    }

    /// The prompt's text.
    pub(crate) fn text(&self) -> String {
        match self {
            Self::Puzzle(problem) => problem.prompt(),
            Self::Own(text) => text.clone(),
        }
    }

    /// The prompt's tokens. The user's words go through the model's chat template, if it has one.
    pub(crate) fn tokens(
        &self,
        tokenizer: &Tokenizer,
        template: Option<&str>,
    ) -> anyhow::Result<Vec<u32>> {
        if let (Self::Own(content), Some(template)) = (self, template) {
            let (role, template) = (Role::User, ChatTemplate::new(template)?);
            return Ok(template.encode(tokenizer, &[Message { role, content }])?);
        }
        let text = TextCodec::encode(tokenizer, &self.text()).map_err(SearchError::Encode)?;
        Ok(tokenizer.begin().into_iter().chain(text).collect())
    }

    /// When an answer is complete.
    pub(crate) fn ending(&self, args: &Args) -> Ending {
        let mut ending = match self {
            Self::Puzzle(problem) => problem.ending(),
            Self::Own(_) => Ending::at(ANSWER_TOKENS),
        };
        ending.tokens = args.tokens.map_or(ending.tokens, |tokens| tokens as usize);
        ending
    }

    /// When a thought is complete.
    pub(crate) fn thought(&self, args: &Args) -> Ending {
        let longest = self.ending(args).tokens;
        let mut thought = match self {
            Self::Puzzle(problem) => problem.thought(),
            Self::Own(_) => Ending::at(THOUGHT_TOKENS).or_text("\n"),
        };
        thought.tokens = thought.tokens.min(longest);
        thought
    }

    /// Levels of thoughts.
    pub(crate) fn levels(&self, args: &Args) -> usize {
        let usual = match self {
            Self::Puzzle(problem) => problem.thoughts(),
            Self::Own(_) => LEVELS,
        };
        args.depth.map_or(usual, usize::from)
    }

    /// Judges answers on the way.
    pub(crate) fn scorer(&self) -> Box<dyn Scorer + '_> {
        match self {
            Self::Puzzle(problem) => Box::new(Checker(&**problem)),
            Self::Own(_) => Box::new(MeanLogProb),
        }
    }

    /// Whether an answer is right, where that can be told.
    pub(crate) fn is_right(&self, text: &str) -> Option<bool> {
        let Self::Puzzle(problem) = self else {
            return None;
        };
        let answer = problem.extract(problem.ending().trim(text));
        Some(answer.is_some_and(|answer| problem.is_right(&answer)))
    }
}
