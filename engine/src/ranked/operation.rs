//! What rank 0 tells the others to do, as words.

use deft::NodeKey;
use deft::tree::TokenForest;

use crate::grown::GrownToken;
use crate::select::Select;
use crate::tree_model::{DraftToken, ModelError, TreeModel};

/// A call of a [`TreeModel`]. Keys are those of rank 0's forest.
#[derive(Clone, Debug, PartialEq)]
pub(super) enum Operation {
    MakeRoom {
        pages: u32,
    },
    Prompt {
        tokens: Vec<u32>,
    },
    Fork {
        node: NodeKey,
        n: usize,
    },
    Step {
        leaves: Vec<NodeKey>,
        tokens: Vec<u32>,
        select: Option<Vec<Select>>,
    },
    Verify {
        trunk: NodeKey,
        draft: Vec<DraftToken>,
        select: Option<Vec<Select>>,
    },
    Accept {
        trunk: NodeKey,
        path: Vec<NodeKey>,
    },
    MergeChain {
        node: NodeKey,
    },
    Prune {
        node: NodeKey,
    },
    Grow {
        trunk: NodeKey,
        grown: Vec<GrownToken>,
        k: usize,
    },
    PruneDraft {
        leaves: Vec<NodeKey>,
    },
    GatherDraft {
        trunk: NodeKey,
    },
    /// There is nothing more to do.
    End,
}

impl Operation {
    /// Runs it on another rank's model, whose results are rank 0's too.
    pub(super) fn run(&self, model: &mut dyn TreeModel) -> Result<(), ModelError> {
        let own = |model: &dyn TreeModel, key| model.forest().same_node(key);
        let all = |model: &dyn TreeModel, keys: &[NodeKey]| -> Vec<NodeKey> {
            keys.iter().map(|&key| own(model, key)).collect()
        };
        let mut logits = Vec::new();
        match self {
            Self::MakeRoom { pages } => model.make_room(*pages).map(|_| ()),
            Self::Prompt { tokens } => model.insert_prompt(tokens, &mut logits).map(|_| ()),
            Self::Fork { node, n } => model.fork(own(model, *node), *n).map(|_| ()),
            Self::Step { leaves, tokens, select: None } => {
                model.step(&all(model, leaves), tokens, &mut logits)
            }
            Self::Step { leaves, tokens, select: Some(select) } => {
                model.step_select(&all(model, leaves), tokens, select).map(|_| ())
            }
            Self::Verify { trunk, draft, select: None } => {
                model.verify(own(model, *trunk), draft, &mut logits).map(|_| ())
            }
            Self::Verify { trunk, draft, select: Some(select) } => {
                model.verify_select(own(model, *trunk), draft, select).map(|_| ())
            }
            Self::Accept { trunk, path } => model.accept(own(model, *trunk), &all(model, path)),
            Self::MergeChain { node } => model.merge_chain(own(model, *node)),
            Self::Prune { node } => model.prune(own(model, *node)).map(|_| ()),
            Self::Grow { trunk, grown, k } => {
                let token =
                    |one: &GrownToken| GrownToken { parent: own(model, one.parent), ..*one };
                let grown: Vec<GrownToken> = grown.iter().map(token).collect();
                model.grow_draft(own(model, *trunk), &grown, *k).map(|_| ())
            }
            Self::PruneDraft { leaves } => model.prune_draft(&all(model, leaves)).map(|_| ()),
            Self::GatherDraft { trunk } => model.gather_draft(own(model, *trunk)),
            Self::End => Ok(()),
        }
    }

    /// As words, for [`Operation::read`]. A key that is of another forest than `own` becomes one of no node on any rank.
    pub(super) fn write(&self, own: &TokenForest) -> Vec<u64> {
        let mut out = Writer { words: Vec::new(), own };
        match self {
            Self::MakeRoom { pages } => out.all([0, (*pages).into()]),
            Self::Prompt { tokens } => {
                out.all([1]);
                out.list(tokens, |out, &token| out.all([token.into()]));
            }
            Self::Fork { node, n } => {
                out.all([2, *n as u64]);
                out.key(*node);
            }
            Self::Step { leaves, tokens, select } => {
                out.all([3]);
                out.keys(leaves);
                out.list(tokens, |out, &token| out.all([token.into()]));
                out.select(select.as_deref());
            }
            Self::Verify { trunk, draft, select } => {
                out.all([4]);
                out.key(*trunk);
                out.list(draft, |out, node| {
                    let parent = node.parent.map_or(u64::MAX, u64::from);
                    out.all([parent, node.token.into()]);
                });
                out.select(select.as_deref());
            }
            Self::Accept { trunk, path } => {
                out.all([5]);
                out.key(*trunk);
                out.keys(path);
            }
            Self::MergeChain { node } => {
                out.all([6]);
                out.key(*node);
            }
            Self::Prune { node } => {
                out.all([7]);
                out.key(*node);
            }
            Self::End => out.all([8]),
            Self::Grow { trunk, grown, k } => {
                out.all([9, *k as u64]);
                out.key(*trunk);
                out.list(grown, |out, one| {
                    out.key(one.parent);
                    out.all([one.token.into(), one.score.to_bits()]);
                });
            }
            Self::PruneDraft { leaves } => {
                out.all([10]);
                out.keys(leaves);
            }
            Self::GatherDraft { trunk } => {
                out.all([11]);
                out.key(*trunk);
            }
        }
        out.words
    }

    /// The operation of these words; `None` for words of none.
    pub(super) fn read(words: &[u64]) -> Option<Self> {
        let mut from = Reader(words);
        let operation = match from.word()? {
            0 => Self::MakeRoom { pages: from.short()? },
            1 => Self::Prompt { tokens: from.list(Reader::short)? },
            2 => Self::Fork { n: from.word()? as usize, node: from.key()? },
            3 => Self::Step {
                leaves: from.list(Reader::key)?,
                tokens: from.list(Reader::short)?,
                select: from.select()?,
            },
            4 => Self::Verify {
                trunk: from.key()?,
                draft: from.list(|from| {
                    let parent = u32::try_from(from.word()?).ok();
                    Some(DraftToken { parent, token: from.short()? })
                })?,
                select: from.select()?,
            },
            5 => Self::Accept { trunk: from.key()?, path: from.list(Reader::key)? },
            6 => Self::MergeChain { node: from.key()? },
            7 => Self::Prune { node: from.key()? },
            8 => Self::End,
            9 => Self::Grow {
                k: from.word()? as usize,
                trunk: from.key()?,
                grown: from.list(|from| {
                    let (parent, token) = (from.key()?, from.short()?);
                    let score = f64::from_bits(from.word()?);
                    Some(GrownToken { parent, token, score })
                })?,
            },
            10 => Self::PruneDraft { leaves: from.list(Reader::key)? },
            11 => Self::GatherDraft { trunk: from.key()? },
            _ => return None,
        };
        from.0.is_empty().then_some(operation)
    }
}

struct Writer<'a> {
    words: Vec<u64>,
    own: &'a TokenForest,
}

impl Writer<'_> {
    fn all<const N: usize>(&mut self, words: [u64; N]) {
        self.words.extend(words);
    }

    fn list<T>(&mut self, items: &[T], mut write: impl FnMut(&mut Self, &T)) {
        self.all([items.len() as u64]);
        items.iter().for_each(|item| write(self, item));
    }

    fn key(&mut self, key: NodeKey) {
        let is_own = self.own.same_node(key) == key;
        self.all([if is_own { key } else { NodeKey::default() }.to_bits()]);
    }

    fn keys(&mut self, keys: &[NodeKey]) {
        self.list(keys, |out, &key| out.key(key));
    }

    fn select(&mut self, select: Option<&[Select]>) {
        self.all([select.is_some().into()]);
        let Some(select) = select else { return };
        self.list(select, |out, select| match select {
            Select::Logits => out.all([0]),
            Select::Top { k } => out.all([1, *k as u64]),
            Select::Draw { temperature, at } => {
                out.all([2, temperature.to_bits().into()]);
                out.list(at, |out, at| out.all([at.to_bits()]));
            }
            Select::Of(tokens) => {
                out.all([3]);
                out.list(tokens, |out, &token| out.all([token.into()]));
            }
        });
    }
}

struct Reader<'a>(&'a [u64]);

impl Reader<'_> {
    fn word(&mut self) -> Option<u64> {
        let (&word, rest) = self.0.split_first()?;
        self.0 = rest;
        Some(word)
    }

    fn short(&mut self) -> Option<u32> {
        self.word()?.try_into().ok()
    }

    fn key(&mut self) -> Option<NodeKey> {
        self.word().map(NodeKey::from_bits)
    }

    fn list<T>(&mut self, mut read: impl FnMut(&mut Self) -> Option<T>) -> Option<Vec<T>> {
        let count = self.word()?;
        (0..count).map(|_| read(self)).collect()
    }

    fn select(&mut self) -> Option<Option<Vec<Select>>> {
        if self.word()? == 0 {
            return Some(None);
        }
        let one = |from: &mut Self| {
            Some(match from.word()? {
                0 => Select::Logits,
                1 => Select::Top { k: from.word()? as usize },
                2 => Select::Draw {
                    temperature: f32::from_bits(from.short()?),
                    at: from.list(|from| from.word().map(f64::from_bits))?,
                },
                3 => Select::Of(from.list(Self::short)?),
                _ => return None,
            })
        };
        self.list(one).map(Some)
    }
}

#[cfg(test)]
mod tests {
    use deft::cache::PagePool;

    use super::*;

    #[test]
    fn operations_come_back_from_their_words_and_cut_ones_do_not() {
        let forest = TokenForest::new(PagePool::new(1).unwrap());
        let key = |bits| forest.same_node(NodeKey::from_bits(bits));
        let select = vec![
            Select::Logits,
            Select::Top { k: 5 },
            Select::Draw { temperature: 0.7, at: vec![0.1, 1.0 - f64::EPSILON / 2.0] },
            Select::Of(vec![1, u32::MAX]),
        ];
        let draft = [None, Some(0)].map(|parent| DraftToken { parent, token: 9 }).to_vec();
        let (leaves, tokens) = (vec![key(1 << 40), key(7)], vec![3, 4]);
        let operations = [
            Operation::MakeRoom { pages: 3 },
            Operation::Prompt { tokens: vec![] },
            Operation::Prompt { tokens: vec![1, 2, 3] },
            Operation::Fork { node: key(9), n: 2 },
            Operation::Step { leaves: leaves.clone(), tokens: tokens.clone(), select: None },
            Operation::Step { leaves, tokens, select: Some(select.clone()) },
            Operation::Verify { trunk: key(2), draft: draft.clone(), select: None },
            Operation::Verify { trunk: key(2), draft, select: Some(select) },
            Operation::Accept { trunk: key(2), path: vec![key(3)] },
            Operation::MergeChain { node: key(4) },
            Operation::Prune { node: key(u64::MAX) },
            Operation::Grow {
                trunk: key(2),
                grown: vec![GrownToken { parent: key(2), token: 5, score: -0.25 }],
                k: 8,
            },
            Operation::PruneDraft { leaves: vec![key(3)] },
            Operation::GatherDraft { trunk: key(2) },
            Operation::End,
        ];
        for operation in operations {
            let words = operation.write(&forest);
            assert_eq!(Operation::read(&words).as_ref(), Some(&operation));
            for cut in 0..words.len() {
                assert_ne!(Operation::read(&words[..cut]), Some(operation.clone()));
            }
            assert_eq!(Operation::read(&[&words[..], &[0]].concat()), None);
        }
        let other = TokenForest::new(PagePool::new(1).unwrap());
        let foreign = Operation::Prune { node: other.same_node(key(7)) };
        let none = Operation::Prune { node: NodeKey::default() };
        assert_eq!(Operation::read(&foreign.write(&forest)), Some(none));
        assert_eq!(Operation::read(&[99]), None);
        assert_eq!(Operation::read(&[1, u64::MAX]), None);
    }
}
