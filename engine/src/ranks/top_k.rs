//! The best entries of rows whose logits lie on several ranks: each says its own best and the logarithm of its part of
//! the softmax's sum, and every rank merges what all say.

use std::ops::Range;

use super::{Communicator, Kind, RankError};
use crate::select::{Selected, before, log_sum_exp, most_likely};

/// The `ks[i]` best entries of each row, of which every rank brings `logits`, `[rows, entries]` of those in `own`; the
/// answers of all ranks are the same bits.
///
/// # Errors
/// [`RankError`].
pub(crate) fn best_of_all(
    ranks: &mut dyn Communicator,
    (logits, own): (&[f32], Range<u32>),
    ks: &[usize],
) -> Result<Vec<Selected>, RankError> {
    let mut said = Vec::new();
    for (row, &k) in logits.chunks_exact(own.len()).zip(ks) {
        let ids = most_likely(row, k);
        said.extend((ids.len() as u32).to_le_bytes());
        said.extend(log_sum(row).to_le_bytes());
        for id in ids {
            said.extend((own.start + id).to_le_bytes());
            said.extend(row[id as usize].to_le_bytes());
        }
    }
    let limit = ranks.timeout();
    let all = ranks.collect(Kind::AllGather, said.into(), Some(limit))?;
    let mut all: Vec<_> = all.iter().map(|message| Reader(&message.bytes)).collect();
    ks.iter().map(|&k| merged(&mut all, k)).collect()
}

/// The next row's answer, of what all ranks say.
fn merged(all: &mut [Reader<'_>], k: usize) -> Result<Selected, RankError> {
    let (mut entries, mut sums) = (Vec::new(), Vec::new());
    for (rank, said) in (0..).zip(all) {
        let part = said.row(&mut entries);
        let cut = || RankError::differs(rank, "a shorter ranking", "its own");
        sums.push(part.ok_or_else(cut)?);
    }
    entries.sort_unstable_by(|&a, &b| before(a, b));
    entries.truncate(k);
    let largest = sums.iter().copied().fold(f64::NEG_INFINITY, f64::max);
    let sum: f64 = sums.iter().map(|sum| (sum - largest).exp()).sum();
    let log_sum = largest + sum.ln();
    let log_prob = |&(logit, _): &(f32, u32)| match log_sum.is_finite() {
        true => f64::from(logit) - log_sum,
        false => f64::NAN,
    };
    let log_probs = entries.iter().map(log_prob).collect();
    Ok(Selected::Tokens { ids: entries.into_iter().map(|(_, id)| id).collect(), log_probs })
}

/// As [`log_sum_exp`], but -inf for entries that are nothing else: others of the row may be more.
fn log_sum(row: &[f32]) -> f64 {
    match row.iter().all(|&logit| logit == f32::NEG_INFINITY) {
        true => f64::NEG_INFINITY,
        false => log_sum_exp(row),
    }
}

/// What a rank says.
struct Reader<'a>(&'a [u8]);

impl Reader<'_> {
    fn take<const N: usize>(&mut self) -> Option<[u8; N]> {
        let (&taken, rest) = self.0.split_first_chunk()?;
        self.0 = rest;
        Some(taken)
    }

    /// Adds the next row's best to `entries`; its part of the sum.
    fn row(&mut self, entries: &mut Vec<(f32, u32)>) -> Option<f64> {
        let count = u32::from_le_bytes(self.take()?);
        let log_sum = f64::from_le_bytes(self.take()?);
        for _ in 0..count {
            let id = u32::from_le_bytes(self.take()?);
            entries.push((f32::from_le_bytes(self.take()?), id));
        }
        Some(log_sum)
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::ranks::Memory;
    use crate::select::Select;

    const TIMEOUT: Duration = Duration::from_secs(60);

    /// What ranks answer that have rows of `vocabulary` entries between them.
    fn answers(ranks: u32, rows: &[f32], vocabulary: usize, ks: &[usize]) -> Vec<Vec<Selected>> {
        let at = |rank: u32| vocabulary * rank as usize / ranks as usize;
        let work = |mut room: Memory| {
            let own = at(room.rank())..at(room.rank() + 1);
            let part = rows.chunks_exact(vocabulary).flat_map(|row| &row[own.clone()]);
            let part: Vec<f32> = part.copied().collect();
            let own = own.start as u32..own.end as u32;
            best_of_all(&mut room, (&part, own), ks).unwrap()
        };
        std::thread::scope(|scope| {
            let rooms = Memory::new(ranks, TIMEOUT).unwrap().into_iter();
            let threads: Vec<_> = rooms.map(|room| scope.spawn(move || work(room))).collect();
            threads.into_iter().map(|thread| thread.join().unwrap()).collect()
        })
    }

    #[test]
    fn any_number_of_ranks_answers_as_one_that_has_all_logits() {
        let (nan, no) = (f32::NAN, f32::NEG_INFINITY);
        let mut rows: Vec<f32> = (0..5 * 41).map(|i| ((i * 37 % 23) as f32).sin()).collect();
        // Equal ones on all ranks; and none, none but one, one that is no number, and one that is too large.
        rows[..41].fill(-0.0);
        rows[20] = 0.0;
        rows[41..82].fill(no);
        rows[82..123].fill(no);
        rows[100] = 3.0;
        rows[130] = nan;
        let ks = [41, 3, 2, 7, 1];
        for ranks in [1, 2, 3, 4, 8] {
            let found = answers(ranks, &rows, 41, &ks);
            assert!(found.iter().all(|rank| format!("{rank:?}") == format!("{:?}", found[0])));
            for ((found, row), k) in found[0].iter().zip(rows.chunks(41)).zip(ks) {
                let right = Select::Top { k }.answer(row);
                let (
                    Selected::Tokens { ids, log_probs },
                    Selected::Tokens { ids: right, log_probs: expected },
                ) = (found, &right)
                else {
                    unreachable!("tokens were asked for")
                };
                assert_eq!(ids, right, "{ranks} ranks");
                for (found, expected) in log_probs.iter().zip(expected) {
                    let same = found == expected || found.is_nan() && expected.is_nan();
                    assert!(same || (found - expected).abs() < 1e-12, "{found} {expected}");
                }
            }
        }
    }

    #[test]
    fn a_ranking_that_is_cut_is_no_ranking() {
        let mut said = vec![1, 0, 0, 0];
        said.extend(0.5_f64.to_le_bytes());
        said.extend([7, 0, 0, 0]);
        let error = merged(&mut [Reader(&said)], 1).unwrap_err().to_string();
        assert_eq!(error, "rank 0 is at a shorter ranking, rank 0 at its own");
    }
}
