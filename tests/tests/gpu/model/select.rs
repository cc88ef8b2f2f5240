//! What a pass is asked, chosen on the device: the kernel that picks tokens against f64, and a model's answers against
//! those made of its own logits.

use deft_engine::cuda::CudaModel;
use deft_engine::cuda::ops::{ModelOps, Pick};
use deft_engine::{DraftToken, Select, Selected, TreeModel};
use deft_tests::gpu::{Gpu, say};
use deft_tests::inputs::normals;
use deft_tests::reference::{Drawn, log_softmax};
use deft_tests::watchdog::Watchdog;
use rand::RngExt;
use rand::rngs::SmallRng;

use super::ops::{Case, Verdict};
use super::walk::tokens;

const LOG_PROB_ERROR: f64 = 4e-5;
const TEMPERATURE: f32 = 0.8;

pub(super) fn cases<'a>(gpu: &'a Gpu, ops: &'a ModelOps) -> Vec<Case<'a>> {
    let vocabs = [1000, 33_003, 49_152, 128_256, 151_936];
    let case = |vocab| -> Case<'a> {
        (
            format!("pick_tokens vocab {vocab}"),
            Box::new(move |random| pick(gpu, ops, vocab, random)),
        )
    };
    vocabs.map(case).into()
}

/// Three rows, of which the first and the last draw and the one between, which has no softmax, is asked for tokens too.
fn pick(gpu: &Gpu, ops: &ModelOps, vocab: usize, random: &mut SmallRng) -> Verdict {
    const ASKS: usize = 100;
    let mut logits: Vec<f32> = normals(random.random(), 3 * vocab, 4.0);
    for value in logits.iter_mut().skip(5).step_by(11) {
        *value = f32::NEG_INFINITY;
    }
    logits[vocab + 1] = f32::NAN;
    let at: Vec<f32> = (0..2 * ASKS).map(|_| random.random()).collect();
    let given: Vec<u32> = (0..ASKS).map(|_| random.random_range(0..vocab as u32)).collect();
    let bits = |at: &[f32]| -> Vec<u32> { at.iter().map(|at| at.to_bits()).collect() };
    let asks = [bits(&at[..ASKS]), given.clone(), bits(&at[ASKS..]), given.clone()].concat();
    let (scale, count) = ((1.0 / TEMPERATURE).to_bits(), ASKS as u32);
    let records = [[0, 0, scale], [1, 1, 0], [2, 2, scale], [2, 3, 0]];
    let records = records.map(|[row, part, scale]| [row, part * count, count, scale]);
    let (device_logits, rows) = (gpu.upload(&logits), gpu.upload(records.as_flattened()));
    let (device_asks, ids) = (gpu.upload(&asks), gpu.unwritten::<u32>(4 * ASKS));
    let log_probs = gpu.unwritten::<f32>(4 * ASKS);
    let launch = Pick {
        logits: device_logits.pointer(),
        rows: rows.pointer(),
        asks: device_asks.pointer(),
        ids: ids.pointer(),
        log_probs: log_probs.pointer(),
        blocks: 4,
        vocab: vocab as u32,
    };
    // SAFETY: buffers of the documented shapes, the device's stream.
    unsafe { ops.pick_tokens(&launch, gpu.stream.raw()) }.unwrap();
    let (ids, log_probs) = (gpu.download(&ids), gpu.download(&log_probs));
    let mut verdict = Verdict::default();
    for (part, row) in [0, 1, 2, 2].into_iter().enumerate() {
        let row = &logits[row * vocab..][..vocab];
        let (drawn, softmax) = (Drawn::new(row, TEMPERATURE), log_softmax(row));
        for ask in part * ASKS..(part + 1) * ASKS {
            let id = ids[ask] as usize;
            let expected = softmax.get(id).copied().unwrap_or(f64::INFINITY);
            let found = f64::from(log_probs[ask]);
            verdict.compare(found, expected, LOG_PROB_ERROR, || format!("ask {ask}, token {id}"));
            if part % 2 == 1 {
                verdict.require(ids[ask] == asks[ask], || format!("ask {ask} became {id}"));
            } else {
                let far = drawn.distance(id, f32::from_bits(asks[ask]).into());
                verdict.compare(far, 0.0, 1.0, || format!("draw {ask} took {id}"));
            }
        }
    }
    verdict
}

/// Steps and drafts that are asked, beside the same ones with all logits; how many answers are wrong.
pub(super) fn check(model: &mut CudaModel, watchdog: &Watchdog) -> usize {
    watchdog.now("asking passes for more than logits");
    let vocabulary = model.vocabulary();
    let draw = |temperature| Select::Draw { temperature, at: vec![0.0, 0.25, 0.75, 0.999] };
    let select = [
        Select::Top { k: 3 },
        Select::Logits,
        draw(0.7),
        Select::Top { k: 64 },
        Select::Of(vec![0, vocabulary as u32 - 1, 5]),
        Select::Top { k: 65 },
        draw(1.5),
    ];
    let root = model.insert_prompt(&tokens(7, 70, vocabulary as u32), &mut Vec::new()).unwrap();
    let mut wrong = 0;
    // As they are, captured, replayed; and one whose requests rank nothing.
    for (round, select) in [&select[..], &select, &select, &select[4..]].into_iter().enumerate() {
        let leaves = model.fork(root, 2 * select.len()).unwrap();
        let (plain, asked) = leaves.split_at(select.len());
        let tokens = tokens(8, select.len(), vocabulary as u32);
        let mut logits = Vec::new();
        model.step(plain, &tokens, &mut logits).unwrap();
        let answers = model.step_select(asked, &tokens, select).unwrap();
        wrong += differ(&format!("step {round}"), select, &logits, &answers);
        let draft = |token| DraftToken { parent: None, token };
        let draft: Vec<DraftToken> = tokens.iter().copied().map(draft).collect();
        model.verify(plain[0], &draft, &mut logits).unwrap();
        model.accept(plain[0], &[]).unwrap();
        let (keys, answers) = model.verify_select(asked[0], &draft, select).unwrap();
        model.accept(asked[0], &keys[..1]).unwrap();
        wrong += differ(&format!("draft {round}"), select, &logits, &answers);
    }
    let leaf = model.fork(root, 1).unwrap();
    let refused = model.step_select(&leaf, &[1], &[Select::Top { k: vocabulary + 1 }]);
    let error = refused.unwrap_err().to_string();
    assert!(error.contains(&format!("between 1 and {vocabulary}")), "{error}");
    assert_eq!(model.forest().length(leaf[0]).unwrap(), 0);
    model.prune(root).unwrap();
    if wrong == 0 {
        say("  answers of passes that were asked agree with those of their logits");
    }
    wrong
}

/// Answers that are not those of the logits.
fn differ(what: &str, select: &[Select], logits: &[f32], answers: &[Selected]) -> usize {
    let vocabulary = logits.len() / select.len();
    let rows = logits.chunks_exact(vocabulary);
    let agree = |select: &Select, row: &[f32], answer: &Selected| match (select, answer) {
        (Select::Draw { temperature, at }, Selected::Tokens { ids, log_probs }) => {
            let drawn = Drawn::new(row, *temperature);
            let near = |(&id, &at): (&u32, &f64)| drawn.distance(id as usize, at) <= 1.0;
            ids.len() == at.len() && ids.iter().zip(at).all(near) && close(row, ids, log_probs)
        }
        (select, Selected::Tokens { ids, log_probs }) => {
            let Selected::Tokens { ids: expected, .. } = select.answer(row) else { return false };
            *ids == expected && close(row, ids, log_probs)
        }
        (select, answer) => *answer == select.answer(row),
    };
    let all = select.iter().zip(rows).zip(answers).enumerate();
    let wrong = all.filter(|(row, ((select, logits), answer))| {
        let agree = agree(select, logits, answer);
        if !agree {
            say(&format!("  WRONG: {what}, row {row}: {select:?} was answered {answer:?}"));
        }
        !agree
    });
    wrong.count() + usize::from(answers.len() != select.len())
}

/// Whether the log-probabilities of `ids` are those of the row.
fn close(row: &[f32], ids: &[u32], log_probs: &[f64]) -> bool {
    let softmax = log_softmax(row);
    let near = |(&id, found): (&u32, &f64)| (softmax[id as usize] - found).abs() < LOG_PROB_ERROR;
    ids.len() == log_probs.len() && ids.iter().zip(log_probs).all(near)
}
