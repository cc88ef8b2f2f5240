//! Speculative decoding with draft trees.

use std::collections::VecDeque;

use rand::RngExt;
use rand::rngs::ChaCha8Rng;

use super::sampler::leaf_stream;
use super::{
    Answer, BranchId, Drafter, Ending, Finish, Sampler, SearchError, SearchMethod, SearchTree,
};
use deft_engine::{DraftToken, Select};

/// One answer, of which several tokens may come out of a pass: a drafted tree is run at once and the path
/// that the sampler would have taken is kept.
///
/// The answer is the one that the same sampler and seed give without drafts; greedy decoding at temperature
/// 0. An arithmetic that depends on the number of tokens in a pass can change close decisions.
pub struct Speculative<'a> {
    /// Where drafts come from; `None` for a token a pass.
    pub drafter: Option<&'a mut dyn Drafter>,
    /// How tokens are drawn.
    pub sampler: Sampler,
    /// When the answer is complete.
    pub ending: Ending,
    /// The random numbers are those of path `[0]`.
    pub seed: u64,
}

impl Speculative<'static> {
    /// Greedy decoding without drafts.
    pub fn greedy(ending: Ending) -> Self {
        Self { drafter: None, sampler: Sampler::GREEDY, ending, seed: 0 }
    }
}

/// The answer as it grows.
struct Chosen {
    tokens: Vec<u32>,
    log_prob: f64,
    finish: Option<Finish>,
    rng: ChaCha8Rng,
    /// Its numbers that are next.
    ahead: VecDeque<f64>,
}

impl Chosen {
    /// The numbers of the next `count` draws.
    fn look_ahead(&mut self, count: usize) -> &VecDeque<f64> {
        while self.ahead.len() < count {
            self.ahead.push_back(self.rng.random());
        }
        &self.ahead
    }
}

impl SearchMethod for Speculative<'_> {
    fn search(&mut self, tree: &mut SearchTree<'_>) -> Result<Vec<Answer>, SearchError> {
        SearchError::at_least_one("ending.tokens", self.ending.tokens)?;
        self.sampler.check()?;
        let (sampler, ending) = (self.sampler, self.ending.clone());
        let (codec, longest, root) = (tree.codec(), tree.longest_answer(), tree.root());
        let rng = leaf_stream(self.seed, &[0]);
        let mut chosen =
            Chosen { tokens: Vec::new(), log_prob: 0.0, finish: None, rng, ahead: VecDeque::new() };
        let choose = |chosen: &mut Chosen, row: &super::Row| {
            let at = chosen.look_ahead(1)[0];
            chosen.ahead.pop_front();
            let token = row.drawn(at).unwrap_or_else(|| sampler.weigh(row).at(at));
            chosen.log_prob += row.log_prob(token);
            if codec.is_end(token) {
                chosen.finish = Some(Finish::EndToken);
                return None;
            }
            chosen.tokens.push(token);
            chosen.finish = ending.finish(codec, &chosen.tokens);
            if chosen.tokens.len() >= longest {
                chosen.finish.get_or_insert(Finish::Length);
            }
            chosen.finish.is_none().then_some(token)
        };
        let first = tree.branch(root)?.row().clone();
        let mut next = choose(&mut chosen, &first);
        while let Some(token) = next {
            let left = self.ending.tokens.min(longest) - chosen.tokens.len();
            let draft = self.draft(tree, root, token, left)?;
            let select = self.select(&draft, &mut chosen, tree.model().vocabulary());
            next =
                tree.follow_select(root, &draft, &select, &mut |row| choose(&mut chosen, row))?;
        }
        let answer = self.answer(tree, chosen)?;
        tree.announce(root, &answer);
        Ok(vec![answer])
    }
}

impl Speculative<'_> {
    /// What is asked of each drafted token: those of one depth are drawn with the same number.
    fn select(&self, draft: &[DraftToken], chosen: &mut Chosen, vocabulary: usize) -> Vec<Select> {
        let mut depths = Vec::with_capacity(draft.len());
        for one in draft {
            depths.push(one.parent.map_or(0, |parent| depths[parent as usize] + 1));
        }
        let deepest = depths.iter().copied().max().unwrap_or(0);
        let ahead = chosen.look_ahead(deepest + 1);
        depths.iter().map(|&depth: &usize| self.sampler.select(ahead[depth], vocabulary)).collect()
    }

    /// `token` and what may follow it. Of the `left` tokens that the answer may still get the last is not
    /// run, so one less is drafted in depth.
    fn draft(
        &mut self,
        tree: &SearchTree<'_>,
        root: BranchId,
        token: u32,
        left: usize,
    ) -> Result<Vec<DraftToken>, SearchError> {
        let mut draft = vec![DraftToken { parent: None, token }];
        let Some(drafter) = &mut self.drafter else {
            return Ok(draft);
        };
        let context = tree.prompt().iter().chain(tree.branch(root)?.tokens());
        let context: Vec<u32> = context.copied().chain([token]).collect();
        let room = usize::try_from(tree.tokens_left()).unwrap_or(usize::MAX);
        let mut depth = vec![0usize];
        let mut place = Vec::new();
        for guess in drafter.draft(&context, room.saturating_sub(1)) {
            // What lies too deep is left out, and with it all below.
            let parent = match guess.parent {
                None => Some(0),
                Some(parent) => *place.get(parent as usize).ok_or_else(|| {
                    let value = format!("{parent} for guess {}", place.len());
                    let limit = "a guess before it";
                    SearchError::Argument { name: "parent of a draft", value, limit }
                })?,
            };
            let parent = parent.filter(|&parent: &usize| depth[parent] + 1 < left);
            place.push(parent.map(|parent| {
                depth.push(depth[parent] + 1);
                draft.push(DraftToken { parent: Some(parent as u32), token: guess.token });
                draft.len() - 1
            }));
        }
        Ok(draft)
    }

    fn answer(&self, tree: &SearchTree<'_>, chosen: Chosen) -> Result<Answer, SearchError> {
        let branch = tree.branch(tree.root())?;
        let mut answer = Answer {
            text: String::new(),
            tokens: chosen.tokens,
            log_prob: chosen.log_prob,
            score: 0.0,
            solved: false,
            finish: chosen.finish.unwrap_or(Finish::Interrupted),
        };
        if answer.finish == Finish::Interrupted {
            answer.tokens = branch.tokens().to_vec();
            answer.log_prob = branch.log_prob();
        }
        let text = tree.codec().decode(&answer.tokens);
        answer.text = self.ending.trim(&text).to_owned();
        answer.score = answer.mean_log_prob();
        Ok(answer)
    }
}
