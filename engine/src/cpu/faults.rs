//! Passes that fail on the way: nothing may have changed.

use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};

use deft::abi::{AppendTarget, TokenMove};
use deft::attention::cpu;
use deft::attention::{Attend, Backend, BackendError, Counters, PagedTokens};
use deft::cache::{CacheShape, Elements, ElementsMut};
use deft::{DType, Device, TreeCache};

use super::{CpuModel, CpuOptions};
use crate::{DraftToken, LlamaConfig, ModelError, RopeScaling, TreeModel, Weights};

/// A backend whose calls fail once there have been so many.
#[derive(Debug)]
struct Failing {
    inner: Box<dyn Backend>,
    calls: Arc<AtomicU32>,
}

impl Failing {
    fn count(&self) -> Result<(), BackendError> {
        let left = self
            .calls
            .fetch_update(Ordering::Relaxed, Ordering::Relaxed, |left| left.checked_sub(1));
        match left {
            Ok(_) => Ok(()),
            Err(_) => Err(BackendError::Device("injected".into())),
        }
    }
}

impl Backend for Failing {
    fn shape(&self) -> &CacheShape {
        self.inner.shape()
    }

    fn name(&self) -> String {
        "failing".to_owned()
    }

    fn shares(&self) -> u32 {
        2
    }

    fn append(
        &mut self,
        layer: u32,
        targets: &[AppendTarget],
        counters: Counters<'_>,
        k: Elements<'_>,
        v: Elements<'_>,
    ) -> Result<(), BackendError> {
        self.count()?;
        self.inner.append(layer, targets, counters, k, v)
    }

    fn copy(&mut self, moves: &[TokenMove]) -> Result<(), BackendError> {
        self.inner.copy(moves)
    }

    fn import(
        &mut self,
        paged: PagedTokens<'_>,
        foreign: [Elements<'_>; 2],
    ) -> Result<(), BackendError> {
        self.inner.import(paged, foreign)
    }

    fn export(
        &mut self,
        paged: PagedTokens<'_>,
        foreign: [ElementsMut<'_>; 2],
    ) -> Result<(), BackendError> {
        self.inner.export(paged, foreign)
    }

    fn attend(&mut self, call: Attend<'_>) -> Result<(), BackendError> {
        self.count()?;
        self.inner.attend(call)
    }
}

fn tiny() -> Weights {
    let config = LlamaConfig {
        layers: 2,
        hidden: 24,
        ffn: 32,
        q_heads: 2,
        kv_heads: 1,
        head_dim: 64,
        vocabulary: 40,
        context: 300,
        rms_eps: 1e-5,
        rope_theta: 10_000.0,
        rope_scaling: RopeScaling::None,
        tied_embeddings: true,
        variant: crate::config::Variant::LLAMA,
    };
    Weights::synthetic(config, 3).unwrap()
}

/// A model, and how many calls of its backend are left until they fail.
fn model() -> (CpuModel, Arc<AtomicU32>) {
    let options = CpuOptions { capacity_bytes: 8 << 20, ..CpuOptions::default() };
    let mut model = CpuModel::load(&tiny(), options, |_, _| {}).unwrap();
    let calls = Arc::new(AtomicU32::new(u32::MAX));
    let failing = calls.clone();
    model.cache = TreeCache::builder(&Device::cpu())
        .layers(2)
        .heads(2, 1, 64)
        .dtype(DType::F32)
        .capacity_bytes(8 << 20)
        .backend(|shape| {
            let inner = cpu::new(shape)?;
            let calls = failing;
            Ok(Box::new(Failing { inner, calls }) as Box<dyn Backend>)
        })
        .build()
        .unwrap();
    (model, calls)
}

fn observed(model: &CpuModel) -> (Vec<u32>, Vec<u32>, u32, usize) {
    let forest = model.forest();
    forest.debug_assert_invariants();
    (
        // Slots of nodes that came and went stay, with no tokens.
        forest.lengths().iter().copied().filter(|&length| length > 0).collect(),
        forest.tail_pages().iter().copied().filter(|&page| page != deft::abi::NONE).collect(),
        forest.pool().free(),
        forest.node_count(),
    )
}

/// Runs `call` with `begin` calls of the backend allowed, then one more, until it succeeds; how many that took.
fn fail_from<T>(
    begin: u32,
    model: &mut CpuModel,
    calls: &AtomicU32,
    mut call: impl FnMut(&mut CpuModel) -> Result<T, ModelError>,
) -> (T, u32) {
    for allowed in begin..=u32::MAX {
        let before = observed(model);
        calls.store(allowed, Ordering::Relaxed);
        let outcome = call(model);
        calls.store(u32::MAX, Ordering::Relaxed);
        match outcome {
            Ok(done) => return (done, allowed),
            Err(error) => {
                assert!(error.to_string().contains("injected"), "{error}");
                assert_eq!(observed(model), before, "after {allowed} calls");
            }
        }
    }
    unreachable!("it never succeeds")
}

#[test]
fn a_pass_that_fails_anywhere_changes_nothing() {
    let prompt: Vec<u32> = (0..64).map(|at| at % 40).collect();
    let draft = [None, Some(0), Some(0)].map(|parent| DraftToken { parent, token: 5 });
    // With failures everywhere, and with none: what comes out in the end is the same.
    let run = |fails: bool| {
        let (mut model, calls) = model();
        let (mut logits, mut all) = (Vec::new(), Vec::new());
        let begin = if fails { 0 } else { u32::MAX };
        let (root, count) =
            fail_from(begin, &mut model, &calls, |model| model.insert_prompt(&prompt, &mut logits));
        let mut least = count;
        all.extend_from_slice(&logits);
        let leaves = model.fork(root, 3).unwrap();
        // The first step takes pages, the second none.
        for token in [7, 8] {
            let (_, count) = fail_from(begin, &mut model, &calls, |model| {
                model.step(&leaves, &[token; 3], &mut logits)
            });
            least = least.min(count);
            all.extend_from_slice(&logits);
        }
        let (_, count) = fail_from(begin, &mut model, &calls, |model| {
            model.verify(leaves[1], &draft, &mut logits)
        });
        all.extend_from_slice(&logits);
        assert!(least.min(count) >= 4, "two calls a layer can fail");
        all
    };
    // A plan made anew may sum in another order.
    for (found, expected) in run(true).iter().zip(run(false)) {
        assert!((found - expected).abs() < 1e-4, "{found}, {expected}");
    }
}
