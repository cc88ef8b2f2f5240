//! A plan in device memory, at addresses that never change.
//!
//! Everything a launch bakes in (grid, strides, counts) follows from the [`PlanCapacity`], not from the
//! plan, so a captured graph serves every plan that fits. Unused shares hold an empty program, unused
//! merge rows name no query. The host keeps the image it uploaded and copies only what has changed.

use std::ops::Range;

use kernels_gpu::abi::{MergeRow, NONE};

use super::{CudaDevice, CudaError, DeviceBuffer, PlanCapacity, Stream};
use crate::format::KvFormat;
use crate::plan::Plan;

/// What device memory holds, as the host lays it out.
#[derive(Clone, Debug, PartialEq, Eq)]
struct PlanImage {
    /// `[formats][shares][stride_words]`: the programs of each launch.
    words: Vec<u32>,
    masks: Vec<u64>,
    merge_rows: Vec<MergeRow>,
    merge_slots: Vec<u32>,
}

impl PlanImage {
    /// The image of no plan.
    fn empty(capacity: &PlanCapacity) -> Self {
        let no_row = MergeRow { query: NONE, ..MergeRow::default() };
        Self {
            words: vec![0; capacity.words()],
            masks: vec![0; capacity.masks],
            merge_rows: vec![no_row; capacity.merge_rows],
            merge_slots: vec![0; capacity.merge_slots],
        }
    }

    /// Takes over the words `dirty` of `plan`, which is otherwise the one laid out here, and adds their places
    /// to `changes`. Each range lies within one share.
    fn patch(
        &mut self,
        capacity: &PlanCapacity,
        plan: &Plan,
        dirty: &[Range<u32>],
        changes: &mut Changes,
    ) {
        let stride = plan.stride();
        for range in dirty.iter().filter(|range| !range.is_empty()) {
            let share = range.start / stride;
            if plan.has_formats() {
                self.set_share(capacity, plan, share, changes);
                continue;
            }
            let first = capacity.place_of(KvFormat::Native).unwrap_or(0) * capacity.words_of_one();
            let begin = first + (share * capacity.stride_words + range.start % stride) as usize;
            let place = begin..begin + range.len();
            let words = &plan.words()[range.start as usize..range.end as usize];
            self.words[place.clone()].copy_from_slice(words);
            changes.words.push(place);
        }
    }

    /// Lays `plan` out and adds what changed to `changes`.
    fn set(&mut self, capacity: &PlanCapacity, plan: &Plan, changes: &mut Changes) {
        for share in 0..capacity.shares {
            self.set_share(capacity, plan, share, changes);
        }
        overwrite(&mut self.masks, 0, plan.masks(), &mut changes.masks);
        let slots = plan.merge_slots();
        overwrite(&mut self.merge_slots, 0, slots, &mut changes.merge_slots);
        let rows = plan.merge_rows();
        overwrite(&mut self.merge_rows, 0, rows, &mut changes.merge_rows);
        let no_row = MergeRow { query: NONE, ..MergeRow::default() };
        let rest = vec![no_row; capacity.merge_rows - rows.len()];
        let used = rows.len();
        overwrite(&mut self.merge_rows, used, &rest, &mut changes.merge_rows);
    }
}

impl PlanImage {
    /// Lays the programs of one share out.
    fn set_share(
        &mut self,
        capacity: &PlanCapacity,
        plan: &Plan,
        share: u32,
        changes: &mut Changes,
    ) {
        for (of, &format) in capacity.formats.iter().enumerate() {
            let begin = of * capacity.words_of_one() + (share * capacity.stride_words) as usize;
            let pages = plan.launches().iter().find(|pages| pages.format == format);
            let program = match pages.filter(|_| share < plan.shares()) {
                // Word 0 of a header is its item count: 0 makes an empty program.
                None => vec![0; 4],
                Some(&pages) if plan.has_formats() => plan.share(share).of_launch(pages),
                Some(_) => {
                    let program = &plan.words()[(share * plan.stride()) as usize..];
                    program[..program[2] as usize].to_vec()
                }
            };
            overwrite(&mut self.words, begin, &program, &mut changes.words);
        }
    }
}

/// Ranges of each part of the image that are not on the device yet.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
struct Changes {
    words: Vec<Range<usize>>,
    masks: Vec<Range<usize>>,
    merge_rows: Vec<Range<usize>>,
    merge_slots: Vec<Range<usize>>,
}

/// Writes `new` to `image[begin..]` and notes the runs that differed.
pub(super) fn overwrite<T: Copy + PartialEq>(
    image: &mut [T],
    begin: usize,
    new: &[T],
    changed: &mut Vec<Range<usize>>,
) {
    const RUN: usize = 64;
    let old = &mut image[begin..begin + new.len()];
    for (run, (old, new)) in old.chunks_mut(RUN).zip(new.chunks(RUN)).enumerate() {
        if old != new {
            old.copy_from_slice(new);
            let first = begin + run * RUN;
            changed.push(first..first + new.len());
        }
    }
}

/// A plan's arrays in device memory.
#[derive(Debug)]
pub(super) struct PlanImages {
    capacity: PlanCapacity,
    image: PlanImage,
    /// Parts of the image that are not on the device yet.
    pending: Changes,
    pub(super) words: DeviceBuffer<u32>,
    pub(super) masks: DeviceBuffer<u64>,
    pub(super) merge_rows: DeviceBuffer<MergeRow>,
    pub(super) merge_slots: DeviceBuffer<u32>,
}

impl PlanImages {
    /// Sets room aside on `device`; every share is empty.
    pub(super) fn new(device: &CudaDevice, capacity: PlanCapacity) -> Result<Self, CudaError> {
        let image = PlanImage::empty(&capacity);
        Ok(Self {
            words: DeviceBuffer::from_slice(device, "plan words", &image.words)?,
            masks: DeviceBuffer::from_slice(device, "plan masks", &image.masks)?,
            merge_rows: DeviceBuffer::from_slice(device, "merge rows", &image.merge_rows)?,
            merge_slots: DeviceBuffer::from_slice(device, "merge slots", &image.merge_slots)?,
            image,
            pending: Changes::default(),
            capacity,
        })
    }

    /// Puts `plan` there; returns the bytes copied. What the driver refuses to copy is copied by the next call.
    pub(super) fn update(&mut self, plan: &Plan, stream: &Stream) -> Result<usize, CudaError> {
        self.image.set(&self.capacity, plan, &mut self.pending);
        self.copy(stream)
    }

    /// Copies the words `dirty` of a plan that was put here and then patched; returns the bytes copied.
    pub(super) fn patch(
        &mut self,
        plan: &Plan,
        dirty: &[Range<u32>],
        stream: &Stream,
    ) -> Result<usize, CudaError> {
        self.image.patch(&self.capacity, plan, dirty, &mut self.pending);
        self.copy(stream)
    }

    fn copy(&mut self, stream: &Stream) -> Result<usize, CudaError> {
        let (image, pending) = (&self.image, &mut self.pending);
        let mut bytes = 0;
        bytes += self.words.copy_ranges(&image.words, &mut pending.words, stream)?;
        bytes += self.masks.copy_ranges(&image.masks, &mut pending.masks, stream)?;
        bytes += self.merge_rows.copy_ranges(&image.merge_rows, &mut pending.merge_rows, stream)?;
        bytes +=
            self.merge_slots.copy_ranges(&image.merge_slots, &mut pending.merge_slots, stream)?;
        Ok(bytes)
    }

    pub(super) fn capacity(&self) -> &PlanCapacity {
        &self.capacity
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cache::PagePool;
    use crate::plan::{Grouping, Patch, PlanConfig, Planner};
    use crate::tree::{NodeKey, TokenForest};

    fn forest() -> (TokenForest, Vec<NodeKey>) {
        let mut forest = TokenForest::new(PagePool::new(256).unwrap());
        let root = forest.insert_root(2000).unwrap();
        let leaves = forest.fork(root, 6).unwrap();
        forest.extend(&leaves, 90).unwrap();
        (forest, leaves)
    }

    fn plan(forest: &TokenForest, nodes: &[NodeKey], shares: u32) -> Plan {
        let config = PlanConfig::new(Grouping::Flatten, 4, 128, shares);
        let mut planner = Planner::new(config).unwrap();
        planner.plan(&forest.view(nodes).unwrap()).unwrap()
    }

    fn apply(device: &mut PlanImage, image: &PlanImage, changes: &Changes) {
        for range in &changes.words {
            device.words[range.clone()].copy_from_slice(&image.words[range.clone()]);
        }
        for range in &changes.masks {
            device.masks[range.clone()].copy_from_slice(&image.masks[range.clone()]);
        }
        for range in &changes.merge_rows {
            device.merge_rows[range.clone()].copy_from_slice(&image.merge_rows[range.clone()]);
        }
        for range in &changes.merge_slots {
            device.merge_slots[range.clone()].copy_from_slice(&image.merge_slots[range.clone()]);
        }
    }

    #[test]
    fn a_plan_is_laid_out_at_the_strides_of_the_room() {
        let (forest, leaves) = forest();
        let plan = plan(&forest, &leaves, 5);
        let mut capacity = PlanCapacity::of(&plan).scaled(2);
        capacity.shares = 7;
        let mut image = PlanImage::empty(&capacity);
        image.set(&capacity, &plan, &mut Changes::default());
        let stride = capacity.stride_words as usize;
        for share in 0..5 {
            let from = &plan.words()[(share * plan.stride()) as usize..];
            let words = from[2] as usize;
            assert_eq!(&image.words[share as usize * stride..][..words], &from[..words]);
        }
        for share in 5..7 {
            assert_eq!(image.words[share * stride], 0, "an unused share has no items");
        }
        let rows = plan.merge_rows().len();
        assert!(rows > 0);
        assert_eq!(&image.merge_rows[..rows], plan.merge_rows());
        assert!(image.merge_rows[rows..].iter().all(|row| row.query == NONE));
    }

    #[test]
    fn the_ranges_reported_bring_the_device_up_to_date() {
        let (mut forest, mut leaves) = forest();
        let first = plan(&forest, &leaves, 5);
        let capacity = PlanCapacity::of(&first).scaled(2);
        let mut image = PlanImage::empty(&capacity);
        let mut device = image.clone();
        for step in 0..4 {
            let plan = plan(&forest, &leaves, 5);
            let mut changes = Changes::default();
            image.set(&capacity, &plan, &mut changes);
            apply(&mut device, &image, &changes);
            assert_eq!(device, image, "step {step}");
            let mut again = Changes::default();
            image.set(&capacity, &plan, &mut again);
            assert_eq!(again, Changes::default());
            match step {
                0 => drop(forest.extend(&leaves, 70).unwrap()),
                1 => forest.prune(leaves.pop().unwrap()).map(drop).unwrap(),
                _ => leaves = forest.fork(leaves[0], 2).unwrap(),
            }
            forest.extend(&leaves, 1).unwrap();
        }
    }

    #[test]
    fn a_page_more_is_a_small_copy() {
        let (mut forest, leaves) = forest();
        let capacity = PlanCapacity::of(&plan(&forest, &leaves, 5)).scaled(2);
        let mut image = PlanImage::empty(&capacity);
        let mut changes = Changes::default();
        image.set(&capacity, &plan(&forest, &leaves, 5), &mut changes);
        forest.append(leaves[5], 64).unwrap();
        changes = Changes::default();
        image.set(&capacity, &plan(&forest, &leaves, 5), &mut changes);
        let copied: usize = changes.words.iter().map(Range::len).sum();
        let all: usize = plan(&forest, &leaves, 5).words().len();
        assert!(copied > 0 && copied < all, "{copied} of {all} words");
    }

    #[test]
    fn a_patch_brings_the_image_to_where_an_update_would() {
        let (mut forest, leaves) = forest();
        let mut plan = plan(&forest, &leaves, 5);
        let mut capacity = PlanCapacity::of(&plan).scaled(2);
        capacity.shares = 6;
        let mut image = PlanImage::empty(&capacity);
        image.set(&capacity, &plan, &mut Changes::default());
        let mut device = image.clone();
        let cursor = forest.growth_cursor();
        forest.append(leaves[2], 64).unwrap();
        let mut dirty = Vec::new();
        let growth = forest.growth_since(cursor).unwrap();
        assert_eq!(plan.patch(growth, &mut dirty), Patch::Patched);
        let mut changes = Changes::default();
        image.patch(&capacity, &plan, &dirty, &mut changes);
        let copied: usize = changes.words.iter().map(Range::len).sum();
        assert!(copied > 0 && copied < 200, "{copied} words for one page");
        apply(&mut device, &image, &changes);
        let mut expected = PlanImage::empty(&capacity);
        expected.set(&capacity, &plan, &mut Changes::default());
        assert_eq!(device, expected);
    }
}
