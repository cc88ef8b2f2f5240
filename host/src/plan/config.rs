//! What a planner is told.

use super::{CostModel, Grouping, PlanError};

/// Most rows an item may have, and most query heads a KV head.
pub(crate) const MAX_ROWS: u32 = u16::MAX as u32;
/// Most queries of a plan.
pub(crate) const MAX_QUERIES: u32 = u16::MAX as u32;
/// Most shares of a plan.
pub(crate) const MAX_SHARES: u32 = 1 << 16;

/// Which plans [`Grouping::Flatten`] makes, to take the best of them by the cost model.
#[non_exhaustive]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
#[cfg_attr(
    feature = "serde",
    derive(serde::Serialize, serde::Deserialize),
    serde(rename_all = "kebab-case")
)]
pub enum Candidates {
    /// All, those of other groupings too; some leave shares unused.
    #[default]
    All,
    /// Depth first in even shares, row tiles as wide as the cost model wants.
    Even,
    /// The same with row tiles as wide as `max_rows` allows.
    Wide,
    /// Row tiles as wide as `max_rows` allows, in even shares, each tile beginning with a share.
    Lanes,
    /// Row tiles as wide as `max_rows` allows, each whole, dealt to shares.
    Whole,
}

/// Fewest and most queries of a run of a draft that grows.
const LEAST_TILE: u32 = 16;
const MOST_TILE: u32 = 256;

/// How to plan, for which head shape and how many workers.
///
/// A plan made for one head dimension or element size is right for every other; only its balance is
/// tuned to them.
#[non_exhaustive]
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct PlanConfig {
    /// How queries and KV are grouped.
    pub grouping: Grouping,
    /// Query heads a KV head.
    pub group_size: u32,
    /// Elements of a head's query, key and value.
    pub head_dim: u32,
    /// Bytes of a stored K or V element.
    pub element_bytes: u32,
    /// Programs a KV head: how many workers share its work. See [`shares_for`]. A plan has more only where one would have
    /// more than 65,535 segments.
    pub shares: u32,
    /// Pages of a [`Grouping::NodeChunk`] item; 2 are the paper's 128 tokens (DeFT, section 3.3).
    pub chunk_pages: u32,
    /// Most rows (queries x `group_size`) of a work item; an item has at least one query all the same.
    pub max_rows: u32,
    /// Page ids that a growing run may add before the plan is stale.
    pub slack_pages: u32,
    /// What work costs.
    pub cost: CostModel,
    /// Which plans [`Grouping::Flatten`] makes. Where workers take one share after another, as threads do, it should be
    /// [`Candidates::Even`].
    pub candidates: Candidates,
}

impl PlanConfig {
    /// A configuration with 256 rows an item, 128-token chunks, room for two more pages a growing run,
    /// 16-bit elements and the H100's costs.
    pub const fn new(grouping: Grouping, group_size: u32, head_dim: u32, shares: u32) -> Self {
        Self {
            grouping,
            group_size,
            head_dim,
            element_bytes: 2,
            shares,
            chunk_pages: 2,
            max_rows: 256,
            slack_pages: 2,
            cost: CostModel::H100,
            candidates: Candidates::All,
        }
    }

    /// Queries that an item may hold.
    pub(super) fn max_queries(&self) -> u32 {
        match self.grouping {
            Grouping::PerQuery => 1,
            _ => (self.max_rows / self.group_size).max(1),
        }
    }

    /// Queries that neighbours should have pages in common for: those of an item, but for items of one query.
    pub(crate) fn tile_queries(&self) -> u32 {
        (self.max_rows / self.group_size).clamp(LEAST_TILE, MOST_TILE)
    }

    /// Whether every field is in its range.
    ///
    /// # Errors
    /// [`PlanError::OutOfRange`] or [`PlanError::BadCost`], naming the field.
    pub(crate) fn validate(&self) -> Result<(), PlanError> {
        let ranges = [
            ("group_size", self.group_size, 1, MAX_ROWS),
            ("head_dim", self.head_dim, 1, 1 << 16),
            ("element_bytes", self.element_bytes, 1, 8),
            ("shares", self.shares, 1, MAX_SHARES),
            ("chunk_pages", self.chunk_pages, 1, 1 << 20),
            ("max_rows", self.max_rows, 1, MAX_ROWS),
            ("slack_pages", self.slack_pages, 0, 1 << 10),
        ];
        for (name, value, min, max) in ranges {
            if !(min..=max).contains(&value) {
                return Err(PlanError::OutOfRange { name, value, min, max });
            }
        }
        for (name, value) in self.cost.constants() {
            if !(value > 0.0 && value.is_finite()) {
                return Err(PlanError::BadCost { name, value });
            }
        }
        Ok(())
    }
}

/// Shares a KV head that fill `sms` streaming multiprocessors: `sms / kv_heads`, at least one.
///
/// Not fewer where there are fewer pages: several row tiles can each have their shares of a page.
pub fn shares_for(sms: u32, kv_heads: u32) -> u32 {
    (sms / kv_heads.max(1)).max(1)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn shares_fill_the_device() {
        assert_eq!(shares_for(132, 8), 16);
        assert_eq!(shares_for(132, 4), 33);
        assert_eq!(shares_for(132, 256), 1);
        assert_eq!(shares_for(0, 0), 1);
    }

    #[test]
    fn a_number_out_of_range_is_named() {
        let good = PlanConfig::new(Grouping::Flatten, 4, 128, 16);
        assert_eq!(good.validate(), Ok(()));
        let zero = PlanConfig { group_size: 0, ..good };
        assert_eq!(
            zero.validate().unwrap_err().to_string(),
            "group_size is 0; it must be between 1 and 65535"
        );
        let mut endless = good;
        endless.cost.item_ns = f64::INFINITY;
        assert!(matches!(endless.validate(), Err(PlanError::BadCost { name: "item_ns", .. })));
    }
}
