//! A rank's part of a model.

use std::ops::Range;

use deft::cache::{CacheShape, DType};

use super::RankError;
use crate::config::LlamaConfig;

/// Columns of `down` that stay together, largest first: blocks of quantised weights are of 256 or 32 elements, products on
/// a GPU of chunks of 8.
const FFN_UNITS: [u32; 3] = [256, 32, 8];

/// A rank's part of a model: query heads with the KV heads that they read, columns of the feed-forward part, and entries
/// of the vocabulary. Norms and the embedding are everybody's.
///
/// Parts are as even as can be. With fewer KV heads than ranks several ranks have the same KV head, and its query heads
/// between them.
#[derive(Clone, Debug, PartialEq)]
pub struct Shard {
    rank: u32,
    ranks: u32,
    whole: LlamaConfig,
    q_heads: Range<u32>,
    kv_heads: Range<u32>,
    ffn: Range<u32>,
    vocabulary: Range<u32>,
}

/// Part `index` of `parts` of `0..count`.
fn even(count: u32, index: u32, parts: u32) -> Range<u32> {
    let at = |index: u32| (u64::from(count) * u64::from(index) / u64::from(parts)) as u32;
    at(index)..at(index + 1)
}

/// Query heads and KV heads of a rank.
fn heads(config: &LlamaConfig, rank: u32, ranks: u32) -> [Range<u32>; 2] {
    let group = config.q_heads / config.kv_heads;
    if ranks <= config.kv_heads {
        let kv = even(config.kv_heads, rank, ranks);
        return [kv.start * group..kv.end * group, kv];
    }
    // The ranks of a KV head are those between two ends.
    let of_head = |head: u32| even(ranks, head, config.kv_heads);
    let head = (0..config.kv_heads).find(|&head| of_head(head).contains(&rank)).unwrap_or(0);
    let its = of_head(head);
    let q = even(group, rank - its.start, its.len() as u32);
    [head * group + q.start..head * group + q.end, head..head + 1]
}

impl Shard {
    /// Part `rank` of `ranks` of a model.
    ///
    /// # Errors
    /// [`RankError::Argument`]: there is no such rank, or there are more ranks than query heads, units of the
    /// feed-forward part or entries of the vocabulary.
    pub fn new(whole: &LlamaConfig, rank: u32, ranks: u32) -> Result<Self, RankError> {
        if rank >= ranks {
            let expected = format!("below the number of ranks, {ranks}");
            return Err(RankError::argument("rank", rank, expected));
        }
        let fits = |unit: &u32| whole.ffn.is_multiple_of(*unit) && whole.ffn / unit >= ranks;
        let unit = FFN_UNITS.into_iter().find(fits).unwrap_or(8);
        for (count, of) in [
            (whole.q_heads, "query heads"),
            (whole.ffn / unit, "eights of the feed-forward part"),
            (whole.vocabulary, "entries of the vocabulary"),
        ] {
            if ranks > count {
                let expected = format!("at most {count}, the model's {of}");
                return Err(RankError::argument("ranks", ranks, expected));
            }
        }
        let [q_heads, kv_heads] = heads(whole, rank, ranks);
        let units = even(whole.ffn / unit, rank, ranks);
        Ok(Self {
            rank,
            ranks,
            whole: whole.clone(),
            q_heads,
            kv_heads,
            ffn: units.start * unit..units.end * unit,
            vocabulary: even(whole.vocabulary, rank, ranks),
        })
    }

    /// All of a model.
    pub(crate) fn all(whole: &LlamaConfig) -> Self {
        Self {
            rank: 0,
            ranks: 1,
            whole: whole.clone(),
            q_heads: 0..whole.q_heads,
            kv_heads: 0..whole.kv_heads,
            ffn: 0..whole.ffn,
            vocabulary: 0..whole.vocabulary,
        }
    }

    /// The rank.
    pub fn rank(&self) -> u32 {
        self.rank
    }

    /// Ranks that there are.
    pub fn ranks(&self) -> u32 {
        self.ranks
    }

    /// The whole model's shape.
    pub fn whole(&self) -> &LlamaConfig {
        &self.whole
    }

    /// The shape of what this rank computes: its heads and its columns of the feed-forward part. States, the embedding
    /// and the vocabulary are the model's.
    pub fn config(&self) -> LlamaConfig {
        LlamaConfig {
            q_heads: self.q_heads.len() as u32,
            kv_heads: self.kv_heads.len() as u32,
            ffn: self.ffn.len() as u32,
            ..self.whole.clone()
        }
    }

    /// Its query heads.
    pub fn q_heads(&self) -> Range<u32> {
        self.q_heads.clone()
    }

    /// Its KV heads.
    pub fn kv_heads(&self) -> Range<u32> {
        self.kv_heads.clone()
    }

    /// Its columns of the feed-forward part.
    pub fn ffn(&self) -> Range<u32> {
        self.ffn.clone()
    }

    /// Its entries of the vocabulary, of which it computes logits.
    pub fn vocabulary(&self) -> Range<u32> {
        self.vocabulary.clone()
    }

    /// Where each rank's entries of the vocabulary begin, and the end of the last one's.
    #[cfg(feature = "cuda")]
    pub(crate) fn vocabulary_ends(&self) -> Vec<u32> {
        (0..=self.ranks).map(|rank| self.vocabulary_of(rank).start).collect()
    }

    /// Bytes of this rank's pages where no rank's take more than `budget`: there are as many pages on all.
    pub(crate) fn page_budget(&self, budget: u64, dtype: DType) -> u64 {
        let shape = |kv_heads| {
            let LlamaConfig { layers, head_dim, .. } = self.whole;
            CacheShape { layers, kv_heads, head_dim, dtype, pages: 1 }.page_bytes()
        };
        let most = self.whole.kv_heads.div_ceil(self.ranks);
        match (self.ranks, budget / shape(most)) {
            (1, _) | (_, 0) => budget,
            (_, pages) => pages * shape(self.kv_heads.len() as u32),
        }
    }

    /// The entries of the vocabulary of a rank.
    pub(crate) fn vocabulary_of(&self, rank: u32) -> Range<u32> {
        even(self.whole.vocabulary, rank, self.ranks)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn all(config: &LlamaConfig, ranks: u32) -> Vec<Shard> {
        (0..ranks).map(|rank| Shard::new(config, rank, ranks).unwrap()).collect()
    }

    #[test]
    fn every_query_head_column_and_entry_has_one_rank_that_has_its_kv_head_too() {
        let models =
            [LlamaConfig::smollm2_135m(), LlamaConfig::llama3_8b(), LlamaConfig::codellama_34b()];
        for config in models {
            let group = config.q_heads / config.kv_heads;
            for ranks in 1..=9 {
                let shards = all(&config, ranks);
                let (mut q, mut ffn, mut vocabulary) = (0, 0, 0);
                for shard in &shards {
                    assert_eq!(shard.q_heads.start, q);
                    assert_eq!(shard.ffn.start, ffn);
                    assert_eq!(shard.vocabulary.start, vocabulary);
                    assert_eq!(shard.vocabulary, shard.vocabulary_of(shard.rank));
                    (q, ffn, vocabulary) = (shard.q_heads.end, shard.ffn.end, shard.vocabulary.end);
                    for head in shard.q_heads() {
                        assert!(shard.kv_heads.contains(&(head / group)), "{shard:?}");
                    }
                    let local = shard.config();
                    local.validate().unwrap();
                    // The same query heads a KV head within a rank.
                    assert!(local.kv_heads == 1 || local.q_heads / local.kv_heads == group);
                    assert!(local.ffn.is_multiple_of(32));
                }
                assert_eq!((q, ffn, vocabulary), (config.q_heads, config.ffn, config.vocabulary));
                let heads = shards.iter().map(|shard| shard.q_heads.len());
                let most = heads.clone().max().unwrap() as u32;
                assert!(most <= config.q_heads.div_ceil(ranks).next_multiple_of(group), "{ranks}");
            }
        }
    }

    #[test]
    fn the_only_rank_has_all() {
        let config = LlamaConfig::llama3_8b();
        assert_eq!(Shard::new(&config, 0, 1).unwrap(), Shard::all(&config));
        assert_eq!(Shard::all(&config).config(), config);
    }

    #[test]
    fn kv_heads_are_replicated_where_there_are_more_ranks() {
        let config = LlamaConfig { q_heads: 32, kv_heads: 2, ..LlamaConfig::llama3_8b() };
        let shards = all(&config, 8);
        let kv: Vec<_> = shards.iter().map(|shard| shard.kv_heads().start).collect();
        assert_eq!(kv, [0, 0, 0, 0, 1, 1, 1, 1]);
        assert!(shards.iter().all(|shard| shard.config().q_heads == 4));
    }

    #[test]
    fn more_ranks_than_parts_are_refused_with_the_limit() {
        let config = LlamaConfig::smollm2_135m();
        let error = |rank, ranks| Shard::new(&config, rank, ranks).unwrap_err().to_string();
        assert_eq!(error(0, 10), "ranks is 10; it must be at most 9, the model's query heads");
        assert_eq!(error(2, 2), "rank is 2; it must be below the number of ranks, 2");
        let narrow = LlamaConfig { ffn: 16, ..config.clone() };
        let error = Shard::new(&narrow, 0, 3).unwrap_err().to_string();
        assert_eq!(
            error,
            "ranks is 3; it must be at most 2, the model's eights of the feed-forward part"
        );
    }
}
