//! When each node of a trace was there, and how many queries shared it.

use super::trace::{Op, Step, Trace};

/// Rows of a picture: nodes in depth-first order, children in the order in which they came.
#[derive(Clone, Debug)]
pub(crate) struct Timeline {
    pub(crate) rows: Vec<Row>,
    pub(crate) axis: Axis,
    /// Where the axis ends.
    pub(crate) end: u32,
}

/// What is drawn from left to right.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Axis {
    /// Decode steps, the first at 0.
    Steps,
    /// Tokens from the root's first: of trees that are there from the start.
    Tokens,
}

/// A node.
#[derive(Clone, Debug, Default)]
pub(crate) struct Row {
    pub(crate) node: u32,
    /// Row of the parent.
    pub(crate) parent: Option<usize>,
    pub(crate) spans: Vec<Span>,
    /// When it was pruned.
    pub(crate) pruned: Option<u32>,
    /// Whether it is a draft's: drafted anew in every step.
    pub(crate) draft: bool,
}

/// A part of a node's life, `from..to`, in which nothing changed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Span {
    pub(crate) from: u32,
    pub(crate) to: u32,
    /// Queries that see the node.
    pub(crate) queries: u32,
    /// Whether one of them is its own.
    pub(crate) asks: bool,
    /// Whether the node's token is accepted.
    pub(crate) accepted: bool,
}

impl Timeline {
    /// The timeline of `trace`.
    pub(crate) fn of(trace: &Trace) -> Self {
        let mut nodes = vec![Row::default(); trace.parents.len()];
        let (axis, end) = if trace.is_single_step() {
            (Axis::Tokens, by_tokens(trace, &mut nodes))
        } else {
            by_steps(trace, &mut nodes);
            (Axis::Steps, trace.steps.len() as u32)
        };
        let rows = depth_first(trace, nodes);
        Self { rows, axis, end }
    }

    /// Most queries that share a node.
    pub(crate) fn most_queries(&self) -> u32 {
        let spans = self.rows.iter().flat_map(|row| &row.spans);
        spans.map(|span| span.queries).max().unwrap_or(0)
    }
}

impl Row {
    /// Where it begins; `None` for a node that never was.
    pub(crate) fn begin(&self) -> Option<u32> {
        Some(self.spans.first()?.from)
    }

    pub(crate) fn end(&self) -> Option<u32> {
        Some(self.spans.last()?.to)
    }

    /// Adds a step, to the last span if nothing has changed.
    fn extend(&mut self, step: Span) {
        let kind = |span: &Span| (span.queries, span.asks, span.accepted);
        match self.spans.last_mut() {
            Some(last) if last.to == step.from && kind(last) == kind(&step) => last.to = step.to,
            _ => self.spans.push(step),
        }
    }
}

fn by_steps(trace: &Trace, nodes: &mut [Row]) {
    let mut alive = vec![false; nodes.len()];
    for (at, step) in (0..).zip(&trace.steps) {
        for op in &step.ops {
            match op {
                Op::Root { node, .. } => alive[*node as usize] = true,
                Op::Fork { children, .. } => {
                    children
                        .iter()
                        .for_each(|&child| alive[child as usize] = true);
                }
                Op::Draft { first, draft, .. } => {
                    for node in *first as usize..*first as usize + draft.len() {
                        alive[node] = true;
                        nodes[node].draft = true;
                    }
                }
                Op::Prune { node } => {
                    alive[*node as usize] = false;
                    nodes[*node as usize].pruned = Some(at);
                }
                Op::Grow { .. } => {}
            }
        }
        let queries = count_queries(trace, step);
        let accepted = step
            .accepted
            .as_ref()
            .map_or(&[][..], |accepted| &accepted.path);
        for (node, row) in nodes
            .iter_mut()
            .enumerate()
            .filter(|(node, _)| alive[*node])
        {
            let (queries, asks) = queries[node];
            row.extend(Span {
                from: at,
                to: at + 1,
                queries,
                asks,
                accepted: accepted.contains(&(node as u32)),
            });
        }
    }
}

/// Places every node where its tokens are; the longest path.
fn by_tokens(trace: &Trace, nodes: &mut [Row]) -> u32 {
    let step = &trace.steps[0];
    let mut tokens = vec![0; nodes.len()];
    for op in &step.ops {
        match op {
            Op::Root { node, tokens: t } => tokens[*node as usize] = *t,
            Op::Grow { nodes, tokens: t } => {
                nodes.iter().for_each(|&node| tokens[node as usize] += t);
            }
            Op::Draft { first, draft, .. } => {
                for (node, draft) in (*first..).zip(draft) {
                    tokens[node as usize] = draft.tokens;
                }
            }
            Op::Fork { .. } | Op::Prune { .. } => {}
        }
    }
    let queries = count_queries(trace, step);
    let mut ends = vec![0; nodes.len()];
    for (node, row) in nodes.iter_mut().enumerate() {
        let from = trace.parents[node].map_or(0, |parent| ends[parent as usize]);
        ends[node] = from + tokens[node];
        let (queries, asks) = queries[node];
        row.spans.push(Span {
            from,
            to: ends[node],
            queries,
            asks,
            accepted: false,
        });
    }
    ends.into_iter().max().unwrap_or(0)
}

/// Queries at or below each node, and whether the node has one.
fn count_queries(trace: &Trace, step: &Step) -> Vec<(u32, bool)> {
    let mut counts = vec![(0, false); trace.parents.len()];
    for &query in &step.queries {
        counts[query as usize].1 = true;
        let mut next = Some(query);
        while let Some(node) = next {
            counts[node as usize].0 += 1;
            next = trace.parents[node as usize];
        }
    }
    counts
}

fn depth_first(trace: &Trace, mut nodes: Vec<Row>) -> Vec<Row> {
    let mut children = vec![Vec::new(); nodes.len()];
    let mut stack = Vec::new();
    for (node, parent) in (0u32..).zip(&trace.parents) {
        match parent {
            Some(parent) => children[*parent as usize].push(node),
            None => stack.push(node),
        }
    }
    for children in &mut children {
        children.sort_by_key(|&node| nodes[node as usize].begin());
    }
    stack.reverse();
    let mut rows = Vec::with_capacity(nodes.len());
    let mut row_of = vec![0; nodes.len()];
    while let Some(node) = stack.pop() {
        row_of[node as usize] = rows.len();
        rows.push(Row {
            node,
            parent: trace.parents[node as usize].map(|parent| row_of[parent as usize]),
            ..std::mem::take(&mut nodes[node as usize])
        });
        stack.extend(children[node as usize].iter().rev());
    }
    rows
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;
    use deft_workloads::{MedusaRun, ReasoningRun, StepWorkload};

    /// A prompt, two children of which the second branches again, and the first is pruned.
    pub(crate) fn small_run() -> Trace {
        let text = r#"[{"prompt_tokens": 5, "parents": [-1, 0, 0, 2, 2],
            "start": [0, 1, 1, 4, 4], "end": [0, 3, 2, 6, 5]}]"#;
        Trace::reasoning(&ReasoningRun::parse(text).unwrap()[0]).unwrap()
    }

    fn span(from: u32, to: u32, queries: u32, asks: bool) -> Span {
        Span {
            from,
            to,
            queries,
            asks,
            accepted: false,
        }
    }

    #[test]
    fn a_run_shows_when_nodes_grow_branch_and_go_and_who_shares_them() {
        let timeline = Timeline::of(&small_run());
        assert_eq!((timeline.axis, timeline.end), (Axis::Steps, 6));
        let rows = &timeline.rows;
        assert_eq!(
            rows.iter().map(|row| row.node).collect::<Vec<_>>(),
            [0, 1, 2, 3, 4]
        );
        assert_eq!(rows[3].parent, Some(2));
        assert_eq!(
            rows[0].spans,
            [
                span(0, 2, 2, false),
                span(2, 3, 1, false),
                span(3, 5, 2, false),
                span(5, 6, 1, false)
            ]
        );
        assert_eq!(rows[1].spans, [span(0, 3, 1, true)]);
        assert_eq!(rows[1].pruned, Some(3));
        // Between its own end and its children it is kept, though nobody asks.
        assert_eq!(
            rows[2].spans[..2],
            [span(0, 2, 1, true), span(2, 3, 0, false)]
        );
        assert_eq!((rows[2].pruned, rows[4].pruned), (None, Some(5)));
        assert_eq!(timeline.most_queries(), 2);
    }

    #[test]
    fn a_draft_is_one_row_a_node_and_shows_which_steps_accept_it() {
        let text = r#"{"3": {"parents": [-1, 0, 0], "accept_length": [[1, 2, 2]]}}"#;
        let run = &MedusaRun::parse(text).unwrap()[0];
        let rows = Timeline::of(&Trace::medusa(run)).rows;
        assert!(!rows[0].draft && rows[1..].iter().all(|row| row.draft));
        let accepted = |row: &Row| -> Vec<(u32, u32)> {
            let spans = row.spans.iter().filter(|span| span.accepted);
            spans.map(|span| (span.from, span.to)).collect()
        };
        let accepted: Vec<_> = rows.iter().map(accepted).collect();
        assert_eq!(accepted[..2], [vec![], vec![(0, 3)]]);
        // One of the two leaves ends the deepest path.
        assert_eq!(accepted[2..].concat(), [(1, 3)]);
    }

    #[test]
    fn trees_that_are_there_from_the_start_are_laid_out_by_tokens() {
        let text = r#"[{"name": "two", "num_q_heads": 2, "num_kv_heads": 1, "head_dim": 64, "dtype": "bf16",
            "trees": [{"parents": [-1, 0, 0], "lens": [9, 4, 2]}, {"parents": [-1], "lens": [20]}]}]"#;
        let workload = &StepWorkload::parse(text).unwrap()[0];
        let timeline = Timeline::of(&Trace::step(workload));
        let spans: Vec<Span> = timeline.rows.iter().map(|row| row.spans[0]).collect();
        assert_eq!(
            spans,
            [
                span(0, 9, 2, false),
                span(9, 13, 1, true),
                span(9, 11, 1, true),
                span(0, 20, 1, true)
            ]
        );
        assert_eq!((timeline.axis, timeline.end), (Axis::Tokens, 20));
    }
}
