//! A workload as what it does to a forest, one decode step after the other.

use anyhow::Result;
use deft::cache::DType;
use deft::plan::HeadShape;
use deft::tree::DraftNode;
use deft_workloads::{MedusaRun, ReasoningRun, StepTree, StepWorkload};

/// Tokens of the few-shot prompt, branches of it and steps that they grow (DeFT, section 4.1).
const FEW_SHOT: (u32, u32, u32) = (4000, 50, 400);
/// Prompt of the draft trees: about what the paper has (DeFT, section 4.1).
const MEDUSA_PROMPT: u32 = 1000;

/// What happens to a forest, step by step.
#[derive(Clone, Debug)]
pub(crate) struct Trace {
    pub(crate) heads: HeadShape,
    pub(crate) dtype: DType,
    /// Parent of each node, which precedes it.
    pub(crate) parents: Vec<Option<u32>>,
    pub(crate) steps: Vec<Step>,
}

/// A decode step.
#[derive(Clone, Debug, Default)]
pub(crate) struct Step {
    /// What is done to the forest first, in order.
    pub(crate) ops: Vec<Op>,
    /// The nodes that ask then.
    pub(crate) queries: Vec<u32>,
    /// Draft nodes, each the parent of the next, whose tokens join the trunk in the end.
    pub(crate) accepted: Option<Accepted>,
}

/// The end of a draft.
#[derive(Clone, Debug)]
pub(crate) struct Accepted {
    pub(crate) trunk: u32,
    pub(crate) path: Vec<u32>,
}

/// A change of the forest.
#[derive(Clone, Debug)]
pub(crate) enum Op {
    /// A new tree.
    Root { node: u32, tokens: u32 },
    /// New children, empty.
    Fork { parent: u32, children: Vec<u32> },
    /// A draft of the nodes from `first` on.
    Draft {
        trunk: u32,
        first: u32,
        draft: Vec<DraftNode>,
    },
    /// So many tokens more on each of `nodes`.
    Grow { nodes: Vec<u32>, tokens: u32 },
    /// A node without children goes.
    Prune { node: u32 },
}

impl Trace {
    fn llama(parents: Vec<Option<u32>>, steps: Vec<Step>) -> Self {
        Self {
            heads: HeadShape::LLAMA3_8B,
            dtype: DType::Bf16,
            parents,
            steps,
        }
    }

    /// A recorded run, as it branched and was pruned.
    pub(crate) fn reasoning(run: &ReasoningRun) -> Result<Self> {
        let mut replay = run.replay()?;
        let mut steps = Vec::with_capacity(run.steps() as usize);
        while let Some(change) = replay.advance()? {
            let mut ops = Vec::new();
            if steps.is_empty() {
                let tokens = run.prompt_tokens();
                ops.push(Op::Root { node: 0, tokens });
            }
            ops.extend(change.pruned.into_iter().map(|node| Op::Prune { node }));
            let parent = |node: &u32| run.parents()[*node as usize];
            for children in change.born.chunk_by(|a, b| parent(a) == parent(b)) {
                ops.push(Op::Fork {
                    parent: parent(&children[0]).unwrap_or(0),
                    children: children.to_vec(),
                });
            }
            let queries = replay.growing().to_vec();
            if !queries.is_empty() {
                let nodes = queries.clone();
                ops.push(Op::Grow { nodes, tokens: 1 });
            }
            steps.push(Step {
                ops,
                queries,
                accepted: None,
            });
        }
        Ok(Self::llama(run.parents().to_vec(), steps))
    }

    /// A long prompt and many branches that all grow to the end.
    pub(crate) fn few_shot() -> Self {
        let (prompt, width, steps) = FEW_SHOT;
        let branches: Vec<u32> = (1..=width).collect();
        let mut grow = vec![
            Step {
                ops: vec![Op::Grow {
                    nodes: branches.clone(),
                    tokens: 1
                }],
                queries: branches.clone(),
                accepted: None,
            };
            steps as usize
        ];
        let root = Op::Root {
            node: 0,
            tokens: prompt,
        };
        let fork = Op::Fork {
            parent: 0,
            children: branches,
        };
        grow[0].ops.splice(0..0, [root, fork]);
        let mut parents = vec![Some(0); width as usize + 1];
        parents[0] = None;
        Self::llama(parents, grow)
    }

    /// A draft tree in every step, of which as many tokens are accepted as in the first recorded run.
    pub(crate) fn medusa(run: &MedusaRun) -> Self {
        let draft = run.draft();
        let below_trunk = |parent: &Option<u32>| Some(parent.map_or(0, |parent| parent + 1));
        let parents = run.parents().iter().map(below_trunk);
        let parents: Vec<_> = std::iter::once(None).chain(parents).collect();
        let lengths = run.accepted().first().into_iter().flatten();
        let mut steps: Vec<Step> = lengths
            .map(|&length| Step {
                ops: vec![Op::Draft {
                    trunk: 0,
                    first: 1,
                    draft: draft.clone(),
                }],
                queries: (1..=run.size()).collect(),
                accepted: Some(Accepted {
                    trunk: 0,
                    path: run.accepted_path(length).iter().map(|n| n + 1).collect(),
                }),
            })
            .collect();
        if let Some(first) = steps.first_mut() {
            let tokens = MEDUSA_PROMPT;
            first.ops.insert(0, Op::Root { node: 0, tokens });
        }
        Self::llama(parents, steps)
    }

    /// Trees as they are in one step, with the heads and the type that they were given for.
    pub(crate) fn step(workload: &StepWorkload) -> Self {
        let mut trace = Self {
            heads: workload.heads,
            dtype: workload.dtype,
            parents: Vec::new(),
            steps: vec![Step::default()],
        };
        for tree in workload.trees() {
            let first = trace.parents.len() as u32;
            let parents = tree.parents().iter();
            trace.parents.extend(parents.map(|p| p.map(|p| p + first)));
            let step = &mut trace.steps[0];
            grow_tree(first, tree, &mut step.ops);
            step.queries
                .extend(tree.queries().iter().map(|q| q + first));
        }
        trace
    }

    /// Whether everything is there from the start: time then shows nothing.
    pub(crate) fn is_single_step(&self) -> bool {
        self.steps.len() == 1
    }

    /// Most pages of `page_tokens` tokens in use at any time.
    pub(crate) fn most_pages(&self, page_tokens: u32) -> u64 {
        let pages = |tokens: u32| u64::from(tokens.div_ceil(page_tokens));
        let mut tokens = vec![0; self.parents.len()];
        let (mut live, mut most) = (0, 0);
        for step in &self.steps {
            let mut draft_pages = 0;
            for op in &step.ops {
                match op {
                    Op::Root { node, tokens: t } => {
                        tokens[*node as usize] = *t;
                        live += pages(*t);
                    }
                    Op::Grow { nodes, tokens: t } => {
                        for &node in nodes {
                            let length = &mut tokens[node as usize];
                            live += pages(*length + t) - pages(*length);
                            *length += t;
                        }
                    }
                    Op::Prune { node } => live -= pages(tokens[*node as usize]),
                    Op::Draft { draft, .. } => {
                        draft_pages += pages(draft.iter().map(|node| node.tokens).sum());
                    }
                    Op::Fork { .. } => {}
                }
            }
            if let Some(Accepted { trunk, path }) = &step.accepted {
                let length = &mut tokens[*trunk as usize];
                let longer = *length + path.len() as u32;
                live += pages(longer) - pages(*length);
                *length = longer;
            }
            most = most.max(live + draft_pages);
        }
        most
    }

    /// Tokens of all nodes together: prompts, and whatever was kept when it was new.
    pub(crate) fn tokens(&self) -> u64 {
        let ops = self.steps.iter().flat_map(|step| &step.ops);
        let grown: u64 = ops
            .map(|op| match op {
                Op::Root { tokens, .. } => u64::from(*tokens),
                Op::Grow { nodes, tokens } => nodes.len() as u64 * u64::from(*tokens),
                Op::Draft { draft, .. } => draft.iter().map(|node| u64::from(node.tokens)).sum(),
                Op::Fork { .. } | Op::Prune { .. } => 0,
            })
            .sum();
        grown
    }
}

/// A draft below its root if that is how the tree asks, else branch by branch.
fn grow_tree(first: u32, tree: &StepTree, ops: &mut Vec<Op>) {
    let (parents, tokens) = (tree.parents(), tree.tokens());
    ops.push(Op::Root {
        node: first,
        tokens: tokens[0],
    });
    if tree.is_draft() {
        let nodes = parents.iter().zip(tokens).skip(1);
        let draft = nodes.map(|(parent, &tokens)| DraftNode {
            parent: parent.and_then(|parent| parent.checked_sub(1)),
            tokens,
        });
        ops.push(Op::Draft {
            trunk: first,
            first: first + 1,
            draft: draft.collect(),
        });
        return;
    }
    let mut children = vec![Vec::new(); parents.len()];
    for (node, parent) in (first..).zip(parents) {
        if let Some(parent) = parent {
            children[*parent as usize].push(node);
        }
    }
    for ((node, &tokens), children) in (first..).zip(tokens).zip(children) {
        if node > first && tokens > 0 {
            let nodes = vec![node];
            ops.push(Op::Grow { nodes, tokens });
        }
        if !children.is_empty() {
            ops.push(Op::Fork {
                parent: node,
                children,
            });
        }
    }
}
