//! What a policy sees.

use super::HeadCompaction;

/// The rows of one layer and KV head of a node, and what queries made of them. All lists are by row.
#[derive(Clone, Copy, Debug)]
pub struct HeadView<'a> {
    /// The layer, of those with keys of their own.
    pub layer: u32,
    /// The KV head.
    pub kv_head: u32,
    /// Each row's position: tokens before it on its path.
    pub positions: &'a [u32],
    /// What is added to each row's logit; 0 of a row that was never merged.
    pub biases: &'a [f32],
    /// Scores as [`Retention::observe`](super::Retention::observe) asks for them, as bits; empty if it asks for none.
    pub scores: &'a [u32],
    /// Keys, `[rows, head_dim]`; empty unless [`Retention::needs_keys`](super::Retention::needs_keys).
    pub keys: &'a [f32],
    /// How many tokens the last scored query sees, itself included: of all branches below the node that of the branch
    /// that has come least far.
    pub now: u32,
    /// Rows that the budget leaves this node.
    pub target: u32,
}

impl HeadView<'_> {
    /// Number of rows.
    pub fn rows(&self) -> usize {
        self.positions.len()
    }

    /// The score of a row that is a sum or a largest probability.
    pub fn score(&self, row: usize) -> f32 {
        f32::from_bits(self.scores[row])
    }

    /// The score of a row that is the `t` of the last query for which it was important; 0 for none.
    pub fn last(&self, row: usize) -> u32 {
        self.scores[row]
    }

    /// Whether a row is one of the `recent` newest tokens that the last scored query sees, or newer.
    pub fn is_recent(&self, row: usize, recent: u32) -> bool {
        self.now.saturating_sub(self.positions[row]) <= recent
    }

    /// Keeps the rows that `keep` says, as they are.
    pub fn keep(&self, keep: impl Fn(usize) -> bool) -> HeadCompaction {
        let mut head = HeadCompaction::default();
        for row in (0..self.rows()).filter(|&row| keep(row)) {
            head.push_kept(row as u32, self.biases[row]);
        }
        head
    }

    /// Keeps the newest rows, and of the others those with the largest `score`, [`Self::target`] in all; more if there
    /// are more new ones.
    pub fn keep_largest(&self, recent: u32, score: impl Fn(usize) -> f32) -> HeadCompaction {
        let (mut keep, mut others) = (vec![true; self.rows()], Vec::new());
        others.extend((0..self.rows()).filter(|&row| !self.is_recent(row, recent)));
        let room = (self.target as usize).saturating_sub(self.rows() - others.len());
        // Of equal ones the newer stay.
        others.sort_by(|&a, &b| score(b).total_cmp(&score(a)).then(b.cmp(&a)));
        for &row in others.iter().skip(room) {
            keep[row] = false;
        }
        self.keep(|row| keep[row])
    }
}
