//! A device that is told only what a GPU is told, and must know at every step what a new plan would say.

use super::*;
use deft::DraftNode;
use deft::abi::APPEND_LIVE;
use deft::cache::PagePool;
use deft::plan::Grouping;

/// Counters, plan words and inputs, as kernels would see them.
#[derive(Default)]
struct MockDevice {
    lengths: Vec<u32>,
    tail_pages: Vec<u32>,
    words: Vec<u32>,
    targets: Vec<u32>,
}

impl MockDevice {
    fn load(&mut self, schedule: &Schedule, change: &Change) {
        match change {
            Change::Nothing => {}
            Change::Pages => {
                for range in schedule.dirty() {
                    let range = range.start as usize..range.end as usize;
                    self.words[range.clone()].copy_from_slice(&schedule.plan().words()[range]);
                }
            }
            Change::Everything => {
                self.words = schedule.plan().words().to_vec();
                self.targets = schedule.targets().to_vec();
            }
        }
    }

    /// What the pass does to counters, and where its tokens went: `page * 64 + token`.
    fn run(&mut self, before: &[u32], tail_pages: &[u32]) -> Vec<u32> {
        self.lengths = before.to_vec();
        self.tail_pages = tail_pages.to_vec();
        let mut places = Vec::new();
        for &target in &self.targets {
            if target & APPEND_LIVE == 0 {
                places.push(target);
                continue;
            }
            let slot = (target & !APPEND_LIVE) as usize;
            self.lengths[slot] += 1;
            places.push(self.tail_pages[slot] * 64 + (self.lengths[slot] - 1) % 64);
        }
        places
    }
}

struct Loop {
    forest: TokenForest,
    schedule: Schedule,
    device: MockDevice,
    changes: [u32; 3],
}

impl Loop {
    fn new(grouping: Grouping) -> Self {
        Self {
            forest: TokenForest::new(PagePool::new(256).unwrap()),
            schedule: Schedule::new(PlanConfig::new(grouping, 3, 64, 7)).unwrap(),
            device: MockDevice::default(),
            changes: [0; 3],
        }
    }

    fn pass(&mut self, nodes: &[NodeKey], before: &[u32]) {
        let change = self.schedule.update(&self.forest, nodes).unwrap();
        self.changes[match change {
            Change::Nothing => 0,
            Change::Pages => 1,
            Change::Everything => 2,
        }] += 1;
        self.device.load(&self.schedule, &change);
        let places = self.device.run(before, self.forest.tail_pages());
        assert_eq!(self.device.lengths, self.forest.lengths());
        assert_eq!(self.device.words, self.schedule.plan().words());
        self.check_rows(nodes, &places);
    }

    /// Every row's token lies where the forest has its node's newest, at its path's end; the plan reads what a new one
    /// would.
    fn check_rows(&self, nodes: &[NodeKey], places: &[u32]) {
        let mut positions = Vec::new();
        self.schedule.positions(&self.forest, &mut positions).unwrap();
        assert_eq!([places.len(), positions.len()], [nodes.len(); 2]);
        for (row, &node) in nodes.iter().enumerate() {
            let (length, mut place) = (self.forest.length(node).unwrap(), Vec::new());
            self.forest.append_targets(node, length - 1..length, &mut place).unwrap();
            assert_eq!([places[row]], place[..]);
            let path = self.forest.context_length(node).unwrap();
            assert_eq!(u64::from(positions[row]), path - 1);
        }
        let mut fresh = Schedule::new(*self.schedule.planner.config()).unwrap();
        fresh.update(&self.forest, nodes).unwrap();
        let read = |schedule: &Schedule| {
            let lengths = self.forest.lengths();
            let shares = 0..schedule.plan().shares();
            let items = shares.flat_map(|share| schedule.plan().share(share).items());
            let tokens = items.flat_map(|item| {
                item.segments.iter().map(|segment| {
                    let length = lengths.get(segment.length_slot as usize);
                    let seen = segment.visible_end() - segment.visible_begin();
                    u64::from(segment.tokens_at(length.copied().unwrap_or(0)) * seen)
                })
            });
            tokens.sum::<u64>()
        };
        assert_eq!(read(&self.schedule), read(&fresh));
    }

    fn step(&mut self, leaves: &[NodeKey]) {
        let before = self.forest.lengths().to_vec();
        self.forest.extend(leaves, 1).unwrap();
        self.pass(leaves, &before);
    }
}

#[test]
fn a_device_that_gets_only_changes_keeps_up_with_growth_forks_and_prunes() {
    for grouping in [Grouping::Flatten, Grouping::PerQuery] {
        let mut run = Loop::new(grouping);
        let root = run.forest.insert_root(200).unwrap();
        // Not depth first, so that rows have another order than leaves.
        let mut leaves = run.forest.fork(root, 4).unwrap();
        leaves.reverse();
        for _ in 0..150 {
            run.step(&leaves);
        }
        let [nothing, pages, everything] = run.changes;
        assert!(nothing > 140 && pages >= 1 && everything <= 3, "{:?}", run.changes);
        let inner = leaves.remove(1);
        leaves.extend(run.forest.fork(inner, 3).unwrap());
        for _ in 0..70 {
            run.step(&leaves);
        }
        run.forest.prune(leaves.pop().unwrap()).unwrap();
        run.step(&leaves);
        // Other leaves of the same tree.
        run.step(&leaves[..2]);
        run.step(&leaves);
        assert!(run.changes[2] >= everything + 4, "{:?}", run.changes);
    }
}

#[test]
fn drafts_and_prompts_go_where_the_forest_put_them() {
    let mut run = Loop::new(Grouping::Flatten);
    let trunk = run.forest.insert_root(0).unwrap();
    for tokens in [100, 64, 1, 30] {
        let begin = run.forest.length(trunk).unwrap();
        run.forest.extend(&[trunk], tokens).unwrap();
        run.schedule.plan_prompt(&run.forest, trunk, tokens).unwrap();
        let (mut positions, mut places) = (Vec::new(), Vec::new());
        run.schedule.positions(&run.forest, &mut positions).unwrap();
        assert!(positions.into_iter().eq(begin..begin + tokens));
        run.forest.append_targets(trunk, begin..begin + tokens, &mut places).unwrap();
        run.device.lengths = run.forest.lengths().to_vec();
        run.device.load(&run.schedule, &Change::Everything);
        let lengths = run.device.lengths.clone();
        assert_eq!(run.device.run(&lengths, run.forest.tail_pages()), places);
    }
    assert_eq!(run.forest.length(trunk).unwrap(), 195);
    let draft =
        [None, Some(0), Some(0), None, Some(1)].map(|parent| DraftNode { parent, tokens: 1 });
    let nodes = run.forest.insert_draft(trunk, &draft).unwrap();
    let before = run.forest.lengths().to_vec();
    run.pass(&nodes, &before);
    run.forest.accept(trunk, &nodes[..2]).unwrap();
    for _ in 0..3 {
        run.step(&[trunk]);
    }
    assert_eq!(run.changes[0], 2, "growth after the draft");
}

#[test]
fn a_plan_that_was_refused_is_not_taken_for_a_good_one() {
    let mut run = Loop::new(Grouping::Flatten);
    let root = run.forest.insert_root(10).unwrap();
    let leaves = run.forest.fork(root, 2).unwrap();
    run.step(&leaves);
    let gone = leaves[1];
    run.forest.prune(gone).unwrap();
    assert!(run.schedule.update(&run.forest, &leaves).is_err());
    assert_eq!(run.schedule.update(&run.forest, &leaves[..1]).unwrap(), Change::Everything);
}
