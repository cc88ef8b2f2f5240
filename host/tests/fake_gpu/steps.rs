//! Whole steps of a world.

use deft::attention::BackendError;
use deft::cuda::{Append, RawStream};
use deft::retain::Observe;
use deft::{
    Batch, CacheError, DraftNode, Kv, NodeKey, Out, RotaryTable, Step, StepGraph, StepOptions,
    StepRun,
};

use super::{GROUP, KV_HEADS, ROWS, Tensors, World, at, ones};

impl World {
    /// Runs a step as a graph.
    pub(crate) fn capture(
        &mut self,
        graph: &mut StepGraph,
        batch: &Batch,
    ) -> Result<StepRun, CacheError> {
        let (layers, table, stream) = (&self.layers, self.table.as_ref(), self.stream.raw());
        let observe = self.observe;
        self.cache.capture(graph, batch, |step| run(step, layers, (table, observe), stream))
    }

    /// Runs a step call by call.
    pub(crate) fn call(&mut self, batch: &Batch) -> Result<StepRun, CacheError> {
        self.capture(&mut StepGraph::new(), batch)
    }

    /// A whole step: new tokens, its run, the comparison.
    pub(crate) fn step(&mut self, graph: &mut StepGraph, batch: &Batch, context: &str) -> StepRun {
        let inputs = self.inputs(batch);
        self.upload(&inputs);
        let run = self.capture(graph, batch).unwrap();
        self.check(batch, &inputs, context);
        run
    }

    /// A whole step of more rows than the batch has, whose keys and values are written by launches of its own.
    pub(crate) fn padded_step(
        &mut self,
        graph: &mut StepGraph,
        batch: &Batch,
        rows: usize,
        context: &str,
    ) -> StepRun {
        let inputs = self.inputs(batch);
        self.upload(&inputs);
        // The launches are on the cache's stream.
        self.stream.synchronize().unwrap();
        let (layers, stream) = (&self.layers, self.stream.raw());
        let options = StepOptions { rows, events: None };
        let work = |step: &mut Step<'_>| run_padded(step, layers, rows, stream);
        let run = self.cache.capture_with(graph, batch, options, work).unwrap();
        self.check(batch, &inputs, context);
        run
    }

    /// A loop of decoding leaves, four at a time, that fork and are pruned, with drafts, chunks of prompts and growth over
    /// pages in between, all by one graph; how its steps of four rows ran.
    pub(crate) fn mixed_loop(&mut self, steps: u32, name: &str) -> Vec<StepRun> {
        let mut graph = StepGraph::new();
        let root = self.root();
        let prompt = self.cache.batch(&[(root, 70)]).unwrap();
        self.step(&mut graph, &prompt, "prompt");
        let mut leaves = self.fork(root, 4);
        let mut batch = self.cache.batch(&ones(&leaves)).unwrap();
        let mut runs = Vec::new();
        for step in 0..steps {
            let what = format!("{name}, step {step}");
            runs.push(self.step(&mut graph, &batch, &what));
            match step % 15 {
                5 => {
                    let parent = leaves.swap_remove(self.random(4));
                    self.cache.prune(leaves.remove(0)).unwrap();
                    leaves.extend(self.fork(parent, 2));
                }
                10 => runs.push(self.draft(&mut graph, leaves[0], &what)),
                14 => {
                    let other = self.root();
                    let mixed = [(leaves[1], 1), (other, 30), (leaves[3], 1)];
                    let mixed = self.cache.batch(&mixed).unwrap();
                    self.step(&mut graph, &mixed, &format!("{what}, a mixture"));
                    self.cache.prune(other).unwrap();
                }
                _ => {
                    self.cache.advance(&mut batch, 1).unwrap();
                    continue;
                }
            }
            batch = self.cache.batch(&ones(&leaves)).unwrap();
        }
        runs
    }

    /// Verifies a draft of four nodes and keeps a path of two.
    fn draft(&mut self, graph: &mut StepGraph, trunk: NodeKey, what: &str) -> StepRun {
        let (keys, drafted) = self.drafted(trunk);
        let run = self.step(graph, &drafted, &format!("{what}, its draft"));
        let path = [keys[0], keys[2]];
        self.cache.accept(trunk, &path).unwrap();
        self.joined(trunk, &path);
        run
    }

    /// A draft of four nodes of a token: `0`, below it `1` and `2`, below that `3`.
    pub(crate) fn drafted(&mut self, trunk: NodeKey) -> (Vec<NodeKey>, Batch) {
        let parents = [None, Some(0), Some(0), Some(2)];
        let draft = parents.map(|parent| DraftNode { parent, tokens: 1 });
        let keys = self.cache.insert_draft(trunk, &draft).unwrap();
        for (&key, parent) in keys.iter().zip(parents) {
            let parent = parent.map_or(trunk, |parent| keys[parent as usize]);
            self.insert(key, Some(parent));
        }
        let batch = self.cache.batch(&ones(&keys)).unwrap();
        (keys, batch)
    }
}

fn run(
    step: &mut Step<'_>,
    layers: &[Tensors],
    (table, observe): (Option<&RotaryTable>, Option<Observe>),
    stream: RawStream,
) -> Result<(), CacheError> {
    let rows = step.batch().rows();
    let width = layers[0].k.len() / ROWS;
    for (layer, tensors) in (0..).zip(layers) {
        let mut kv =
            Kv::new(at(&tensors.k, rows * width, stream), at(&tensors.v, rows * width, stream));
        kv.rope = table;
        step.append(layer, kv)?;
        attend(step, layer, tensors, stream)?;
        if let Some(observe) = observe {
            let q = at(&tensors.q, rows * GROUP * width, stream);
            let lse = at(&tensors.lse, rows * KV_HEADS * GROUP, stream);
            step.score(layer, observe, q, lse)?;
        }
    }
    Ok(())
}

fn run_padded(
    step: &mut Step<'_>,
    layers: &[Tensors],
    rows: usize,
    stream: RawStream,
) -> Result<(), CacheError> {
    for (layer, tensors) in (0..).zip(layers) {
        let gpu = step.gpu()?.expect("a GPU");
        let append = Append {
            targets: gpu.targets,
            count: rows as u32,
            k: tensors.k.pointer(),
            v: tensors.v.pointer(),
        };
        // SAFETY: the tensors have more rows, and live as long as the world and its graphs.
        let appended = unsafe { gpu.cache.append(layer, &append, gpu.stream) };
        appended.map_err(BackendError::from)?;
        attend(step, layer, tensors, stream)?;
    }
    Ok(())
}

fn attend(
    step: &mut Step<'_>,
    layer: u32,
    tensors: &Tensors,
    stream: RawStream,
) -> Result<(), CacheError> {
    let (rows, width) = (step.batch().rows(), tensors.q.len() / ROWS);
    let lse = at(&tensors.lse, rows * KV_HEADS * GROUP, stream);
    let out = Out::with_lse(at(&tensors.out, rows * width, stream), lse);
    step.attend(layer, at(&tensors.q, rows * width, stream), out)
}
