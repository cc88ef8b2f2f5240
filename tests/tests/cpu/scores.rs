//! The score pass of the CPU against its definition.

use deft::attention::{AttentionParams, Backend, Counters, Reduce, Score, cpu};
use deft::cache::KvElement;
use deft::plan::{Grouping, HeadShape, Plan, PlanConfig, Planner};
use deft::tree::TreeView;
use deft_tests::problem::{GROUPINGS, Problem, heads};
use deft_tests::views;
use half::{bf16, f16};

fn plan(view: &TreeView, heads: HeadShape, grouping: Grouping, cut: (u32, u32)) -> Plan {
    let mut config = PlanConfig::new(grouping, heads.group_size(), heads.head_dim, cut.0);
    config.max_rows = cut.1;
    Planner::new(config).unwrap().plan(view).unwrap()
}

fn check<T: KvElement>(view: TreeView, heads: HeadShape, params: AttentionParams, seed: u64) {
    let problem = Problem::<T>::new(view, heads, params, seed);
    let mut backend = cpu::new(problem.shape(2)).unwrap();
    problem.store(&mut *backend, 1);
    for grouping in GROUPINGS {
        for cut in [(1, 256), (16, 7)] {
            let plan = plan(&problem.view, heads, grouping, cut);
            for every in [u32::MAX, 3] {
                let visible = problem.visible(|row| row % every == every - 1);
                let context = format!("seed {seed}, {grouping:?}, {cut:?}, {} {heads:?}", T::DTYPE);
                problem.check_scores(&mut *backend, 1, &plan, &visible, &context);
            }
        }
    }
}

#[test]
fn scores_of_random_trees_agree_with_the_definition_under_every_grouping() {
    let shapes = [heads(4, 1, 64), heads(8, 2, 128), heads(3, 3, 64), heads(1, 1, 256)];
    for (seed, heads) in (0..).zip(shapes) {
        let plain = AttentionParams::new(heads.head_dim);
        check::<bf16>(views::random(seed, 24), heads, plain, seed);
        check::<f16>(views::random(seed + 10, 12), heads, plain, seed);
        let capped = AttentionParams { soft_cap: Some(5.0), ..plain };
        check::<f32>(views::random(seed + 20, 40), heads, capped, seed);
    }
}

/// A problem of one tree with its backend and plan.
struct Case {
    problem: Problem<f32>,
    backend: Box<dyn Backend>,
    plan: Plan,
    lse: Vec<f32>,
}

impl Case {
    fn new() -> Self {
        let shape = heads(4, 2, 64);
        let problem =
            Problem::<f32>::new(views::star(70, 30, 3), shape, AttentionParams::new(64), 9);
        let mut backend = cpu::new(problem.shape(1)).unwrap();
        problem.store(&mut *backend, 0);
        let plan = plan(&problem.view, shape, Grouping::Flatten, (8, 64));
        let lse = problem.attend(&mut *backend, 0, &plan).lse;
        Self { problem, backend, plan, lse }
    }

    fn score(&mut self, reduce: Reduce, visible: &[u32]) -> Vec<u32> {
        let call = Score {
            layer: 0,
            plan: &self.plan,
            counters: Counters { lengths: &self.problem.lengths, ..Counters::default() },
            q: f32::elements(&self.problem.inputs.q),
            lse: f32::elements(&self.lse),
            visible,
            reduce,
            params: self.problem.inputs.params,
        };
        self.backend.score(call).unwrap();
        self.read()
    }

    fn read(&mut self) -> Vec<u32> {
        let cells: Vec<u32> = (0..self.backend.shape().pages * 2).collect();
        let mut scores = vec![0; cells.len() * 64];
        self.backend.read_scores(0, &cells, &mut scores).unwrap();
        scores
    }
}

#[test]
fn a_second_pass_adds_to_sums_and_leaves_largest_ones_as_they_are() {
    for reduce in [Reduce::Sum, Reduce::Max, Reduce::Last] {
        let mut case = Case::new();
        let visible = case.problem.visible(|_| false);
        let once = case.score(reduce, &visible);
        let twice = case.score(reduce, &visible);
        for (&once, &twice) in once.iter().zip(&twice) {
            match reduce {
                Reduce::Sum => assert_eq!(f32::from_bits(once) * 2.0, f32::from_bits(twice)),
                _ => assert_eq!(once, twice),
            }
        }
        assert!(once.iter().any(|&score| score != 0));
    }
}

#[test]
fn the_union_over_passes_of_parts_of_the_queries_is_one_pass_of_all() {
    for reduce in [Reduce::Max, Reduce::Last] {
        let mut case = Case::new();
        let visible = case.problem.visible(|_| false);
        let whole = case.score(reduce, &visible);
        let mut parts = Case::new();
        let part = |odd: u32| parts.problem.visible(|row| row % 2 == odd);
        let [even, odd] = [part(1), part(0)];
        assert_ne!(parts.score(reduce, &even), whole);
        assert_eq!(parts.score(reduce, &odd), whole);
    }
}

#[test]
fn queries_left_out_or_without_a_finite_lse_change_nothing() {
    let mut case = Case::new();
    let none = vec![0; case.problem.view.queries as usize];
    assert!(case.score(Reduce::Sum, &none).iter().all(|&score| score == 0));
    let visible = case.problem.visible(|_| false);
    for lse in [f32::NAN, f32::NEG_INFINITY, f32::INFINITY] {
        case.lse.fill(lse);
        assert!(case.score(Reduce::Sum, &visible).iter().all(|&score| score == 0));
    }
}

#[test]
fn cells_are_cleared_by_page_and_written_as_they_are_given() {
    let mut case = Case::new();
    let visible = case.problem.visible(|_| false);
    let before = case.score(Reduce::Sum, &visible);
    case.backend.clear_scores(&[1]).unwrap();
    let mut right = before.clone();
    right[2 * 64..4 * 64].fill(0);
    assert_eq!(case.read(), right);
    assert_ne!(right, before);
    let scores: Vec<u32> = (0..64).collect();
    case.backend.write_scores(0, &[5], &scores).unwrap();
    right[5 * 64..6 * 64].copy_from_slice(&scores);
    assert_eq!(case.read(), right);
}

#[test]
fn wrong_arguments_are_named_and_change_nothing() {
    let mut case = Case::new();
    let visible = case.problem.visible(|_| false);
    let q = case.problem.inputs.q.clone();
    let call = |q: &[f32], lse: &[f32], visible: &[u32], case: &mut Case| {
        let call = Score {
            layer: 0,
            plan: &case.plan,
            counters: Counters { lengths: &case.problem.lengths, ..Counters::default() },
            q: f32::elements(q),
            lse: f32::elements(lse),
            visible,
            reduce: Reduce::Sum,
            params: case.problem.inputs.params,
        };
        case.backend.score(call).unwrap_err().to_string()
    };
    let lse = case.lse.clone();
    for (error, name) in [
        (call(&q[1..], &lse, &visible, &mut case), "q "),
        (call(&q, &lse[1..], &visible, &mut case), "lse "),
        (call(&q, &lse, &visible[1..], &mut case), "visible "),
    ] {
        assert!(error.starts_with(name), "{error}");
    }
    let error = case.backend.clear_scores(&[9999]).unwrap_err().to_string();
    assert!(error.contains("9999"), "{error}");
    let error = case.backend.write_scores(0, &[0], &[1]).unwrap_err().to_string();
    assert!(error.starts_with("scores"), "{error}");
    assert!(case.read().iter().all(|&score| score == 0));
}
