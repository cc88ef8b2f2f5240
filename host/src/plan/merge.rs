//! Which items write the output themselves, and how the others' partial results merge.

use kernels_gpu::abi::{MergeRow, NONE};

use super::PlanError;
use super::draft::Draft;
use super::program::PlanResidue;
use crate::tree::{ResidueRun, TreeView};

/// The merge tables of a plan.
#[derive(Debug, Default)]
pub(super) struct Merge {
    pub(super) rows: Vec<MergeRow>,
    pub(super) slots: Vec<u32>,
    pub(super) partial_slots: u32,
    /// With slots behind those of the items.
    pub(super) residues: Vec<PlanResidue>,
    /// Items that cover a query, as differences from the query before; then, summed up twice, by how
    /// much the queries before are covered.
    covered: Vec<u32>,
    /// Slots of a query; then where its next one goes.
    places: Vec<u32>,
}

impl Merge {
    /// Gives every item of `draft` that shares a query with another its partial slots, and lists for
    /// each such query its slots in the items' order, then those of residues; query `q` is row `query_order[q]` of the
    /// outputs. A query that no item covers gets an empty row.
    pub(super) fn fill(&mut self, draft: &mut Draft, view: &TreeView) -> Result<(), PlanError> {
        let row_order = &view.query_order[..];
        let queries = row_order.len() as u32;
        let in_order = (0..).zip(row_order).all(|(query, &row)| query == row);
        self.list_residues(view);
        self.count(draft, queries);
        self.rows.clear();
        self.slots.clear();
        let mut total = 0u64;
        for item in &mut draft.items {
            let (begin, end) = (item.queries.start as usize, item.queries.end as usize);
            let alone = self.covered[end] - self.covered[begin] == (end - begin) as u32;
            // Listed rows are the merge's to find: items write the outputs themselves in order only.
            let alone = alone && in_order;
            item.partial_slot = NONE;
            if !alone {
                item.partial_slot = total as u32;
                total += (end - begin) as u64;
                if total >= u64::from(NONE) {
                    return Err(too_many(total));
                }
                for count in &mut self.places[begin..end] {
                    *count += 1;
                }
            }
        }
        for residue in &mut self.residues {
            let (begin, end) = (residue.queries.start as usize, residue.queries.end as usize);
            residue.partial_slot = total as u32;
            total += (end - begin) as u64;
            if total >= u64::from(NONE) {
                return Err(too_many(total));
            }
            for count in &mut self.places[begin..end] {
                *count += 1;
            }
        }
        self.partial_slots = total as u32;
        let mut slot_begin = 0;
        for query in 0..queries {
            let place = &mut self.places[query as usize];
            let slot_count = std::mem::replace(place, slot_begin);
            let uncovered = self.covered[query as usize] == self.covered[query as usize + 1];
            if slot_count > 0 || uncovered {
                self.rows.push(MergeRow {
                    query,
                    slot_begin,
                    slot_count,
                    row: row_order[query as usize],
                });
            }
            slot_begin += slot_count;
        }
        self.slots.resize(slot_begin as usize, 0);
        let items = draft.items.iter().filter(|i| i.partial_slot != NONE);
        let items = items.map(|item| (item.partial_slot, &item.queries));
        let residues = self.residues.iter().map(|of| (of.partial_slot, &of.queries));
        for (slot, queries) in items.chain(residues) {
            let places = &mut self.places[queries.start as usize..queries.end as usize];
            for (slot, place) in (slot..).zip(places) {
                self.slots[*place as usize] = slot;
                *place += 1;
            }
        }
        Ok(())
    }

    /// Notes which queries see residues.
    fn list_residues(&mut self, view: &TreeView) {
        let of = |residue: &ResidueRun| PlanResidue {
            queries: view.runs[residue.run as usize].queries.clone(),
            partial_slot: NONE,
            index: residue.index,
        };
        self.residues.clear();
        self.residues.extend(view.residues.iter().map(of));
    }

    /// The most partial results that a row has; 0 if none is merged.
    pub(super) fn most_slots(&self) -> u32 {
        self.rows.iter().map(|row| row.slot_count).max().unwrap_or(0)
    }

    /// Sets `covered[q]` to the number of (item or residue, query) pairs with a query before `q`.
    fn count(&mut self, draft: &Draft, queries: u32) {
        let len = queries as usize + 1;
        self.covered.clear();
        self.covered.resize(len, 0);
        self.places.clear();
        self.places.resize(len, 0);
        let items = draft.items.iter().map(|item| &item.queries);
        for queries in items.chain(self.residues.iter().map(|of| &of.queries)) {
            let (begin, end) = (queries.start as usize, queries.end as usize);
            self.covered[begin] = self.covered[begin].wrapping_add(1);
            self.covered[end] = self.covered[end].wrapping_sub(1);
        }
        let (mut here, mut before) = (0u32, 0u32);
        for entry in &mut self.covered {
            here = here.wrapping_add(*entry);
            *entry = before;
            before = before.saturating_add(here);
        }
    }
}

fn too_many(slots: u64) -> PlanError {
    PlanError::TooLarge { words: slots, of: "partial slots", max: u64::from(NONE) - 1 }
}
