//! What was measured, as rows of the file and of the table.

use deft_engine::cuda::CudaModel;
use serde::Serialize;

use super::Shape;
use super::measure::Timing;
use super::tasks::Task;
use crate::report::STREAM_GB_PER_S;
use crate::stats::geometric_mean;

/// A task with one grouping.
#[derive(Clone, Debug, Serialize)]
pub(super) struct Row {
    pub(super) model: String,
    /// Layers of the model, and those whose weights are there: the others use them again.
    pub(super) layers: u32,
    pub(super) distinct_layers: u32,
    pub(super) dtype: &'static str,
    pub(super) task: String,
    pub(super) grouping: &'static str,
    pub(super) prompt_tokens: u32,
    /// Queries of a step; the mean where moments differ.
    pub(super) queries: f64,
    /// A step on the wall clock.
    pub(super) step_ms: f64,
    /// Its pass on the GPU.
    pub(super) pass_ms: f64,
    /// What the pass takes longer than without attention.
    pub(super) attention_ms: f64,
    /// What a step takes longer than its pass.
    pub(super) host_gap_ms: f64,
    /// Tokens that a step gives: a leaf each, or those of a draft that are accepted.
    pub(super) output_tokens: f64,
    pub(super) tokens_per_s: f64,
    pub(super) token_ms: f64,
    /// Of the pass.
    pub(super) attention_share: f64,
    /// K and V read in a step, as issued, in GB.
    pub(super) kv_gb: f64,
    /// Device memory of the model, pages and buffers, in GB.
    pub(super) memory_gb: f64,
    /// Weights that a pass of a rank reads, in GB.
    pub(super) weights_gb: f64,
    /// Ranks, each on a GPU of its own.
    pub(super) gpus: u32,
    /// What the pass takes longer than without the other ranks.
    pub(super) ranks_ms: f64,
    /// Of the pass.
    pub(super) ranks_share: f64,
    /// A sum over ranks of a pass's states, by itself.
    pub(super) all_reduce_us: f64,
    /// What a pass takes at least: the time to read a rank's weights, K and V, and two sums a layer.
    pub(super) bound_ms: f64,
}

impl Row {
    pub(super) fn new(
        (shape, model): (&Shape, &CudaModel),
        task: &Task,
        grouping: &'static str,
        timing: &Timing,
    ) -> Self {
        let (ranks, weights) = (model.weights().shard().ranks(), model.weights().pass_bytes());
        let sizes = (model.memory().total(), weights, ranks);
        let of = (shape, model.dtype().name(), stream_gb_per_s(model.stream().device().name()));
        Self::of(of, task, grouping, timing, sizes)
    }

    fn of(
        (shape, dtype, gb_per_s): (&Shape, &'static str, f64),
        task: &Task,
        grouping: &'static str,
        timing: &Timing,
        (memory, weights, gpus): (u64, u64, u32),
    ) -> Self {
        let ranks_ms = timing.pass_ms - timing.without_ranks_ms;
        let bytes = weights as f64 + timing.kv_bytes / f64::from(gpus);
        let sums = f64::from(2 * shape.config.layers) * timing.all_reduce_us;
        let attention_ms = timing.pass_ms - timing.without_attention_ms;
        Self {
            model: shape.name.to_owned(),
            layers: shape.config.layers,
            distinct_layers: shape.distinct_layers,
            dtype,
            task: task.name.clone(),
            grouping,
            prompt_tokens: task.prompt_tokens,
            queries: timing.queries,
            step_ms: timing.step_ms,
            pass_ms: timing.pass_ms,
            attention_ms,
            host_gap_ms: timing.step_ms - timing.pass_ms,
            output_tokens: timing.output_tokens,
            tokens_per_s: timing.output_tokens / timing.step_ms * 1e3,
            token_ms: timing.step_ms / timing.output_tokens,
            attention_share: attention_ms / timing.pass_ms,
            kv_gb: timing.kv_bytes / 1e9,
            memory_gb: memory as f64 / 1e9,
            weights_gb: weights as f64 / 1e9,
            gpus,
            ranks_ms,
            ranks_share: ranks_ms / timing.pass_ms,
            all_reduce_us: timing.all_reduce_us,
            bound_ms: bytes / gb_per_s / 1e6 + sums / 1e3,
        }
    }

    pub(super) fn line(&self) -> String {
        format!(
            "{:14} {:16} {:>6} {:10} {:7.1} {:8.3} {:8.3} {:8.3} {:5.1} % {:7.3} {:5.1} % {:9.1} {:8.2} {:7.1} {:4} {:8.3} {:7.1} {:8.3}",
            self.model,
            self.task,
            self.prompt_tokens,
            self.grouping,
            self.queries,
            self.step_ms,
            self.pass_ms,
            self.attention_ms,
            100.0 * self.attention_share,
            self.host_gap_ms,
            100.0 * self.host_gap_ms / self.step_ms,
            self.tokens_per_s,
            self.kv_gb,
            self.memory_gb,
            self.gpus,
            self.ranks_ms,
            self.all_reduce_us,
            self.bound_ms,
        )
    }
}

/// GB/s at which a device streams pages: measured on an H100, and that times the datasheets' 4.8 to 3.35 TB/s on an H200.
fn stream_gb_per_s(device: &str) -> f64 {
    if device.contains("H200") { STREAM_GB_PER_S * 4.8 / 3.35 } else { STREAM_GB_PER_S }
}

/// The table's head.
pub(super) const HEADER: &str = "model          task             prompt grouping   queries  step ms  pass ms  attn ms of pass  gap ms of step  tokens/s    KV GB  mem GB gpus ranks ms  sum us bound ms";

/// Per-query's time of a step over Flatten's, by model and task: the prompts' speedups, and their mean.
pub(super) fn summary(rows: &[Row]) -> String {
    let mut text = String::from("step time of per-query over flatten, by prompt length:\n");
    let mut tasks: Vec<[&str; 2]> = Vec::new();
    for row in rows {
        let task = [&*row.model, &*row.task];
        if !tasks.contains(&task) {
            tasks.push(task);
        }
    }
    for [model, task] in tasks {
        let of = |grouping| {
            let rows = rows.iter();
            rows.filter(move |row| {
                row.model == model && row.task == task && row.grouping == grouping
            })
        };
        let pairs = of("flatten").filter_map(|flat| {
            let other = of("per-query").find(|row| row.prompt_tokens == flat.prompt_tokens)?;
            Some((flat.prompt_tokens, other.step_ms / flat.step_ms))
        });
        let (prompts, speedups): (Vec<u32>, Vec<f64>) = pairs.unzip();
        let Some(mean) = geometric_mean(&speedups) else {
            continue;
        };
        let each = prompts.iter().zip(&speedups);
        let each: Vec<String> =
            each.map(|(prompt, speedup)| format!("{prompt}: {speedup:.2}")).collect();
        text += &format!("{model:14} {task:16} {mean:.2}  ({})\n", each.join(", "));
    }
    let gaps = rows.iter().map(|row| row.host_gap_ms / row.step_ms);
    let largest = gaps.fold(0.0, f64::max);
    text + &format!("largest host gap: {:.1} % of a step\n", 100.0 * largest)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::engine::tasks::Work;

    fn row(grouping: &'static str, prompt: u32, step_ms: f64) -> Row {
        let timing = Timing {
            step_ms,
            pass_ms: 0.9 * step_ms,
            kv_bytes: 2e9,
            output_tokens: 8.0,
            queries: 8.0,
            without_attention_ms: 0.6 * step_ms,
            without_ranks_ms: 0.7 * step_ms,
            all_reduce_us: 10.0,
        };
        let shape = &crate::engine::shapes(true, (&[], 2))[0];
        let task = Task { name: "t".to_owned(), prompt_tokens: prompt, work: Work::Prompt };
        Row::of(
            (shape, "bf16", 3_088.0),
            &task,
            grouping,
            &timing,
            (3_000_000_000, 1_500_000_000, 2),
        )
    }

    #[test]
    fn a_row_splits_a_step_into_attention_the_rest_and_the_gap() {
        let row = row("flatten", 1000, 10.0);
        let near = |a: f64, b: f64| (a - b).abs() < 1e-9;
        assert!(near(row.attention_ms, 3.0) && near(row.host_gap_ms, 1.0));
        assert!(near(row.attention_share, 1.0 / 3.0) && near(row.tokens_per_s, 800.0));
        assert!(near(row.token_ms, 1.25) && near(row.memory_gb, 3.0));
        assert!(near(row.ranks_ms, 2.0) && near(row.ranks_share, 2.0 / 9.0));
        // 1.5 GB of weights and half of 2 GB of K and V; 64 sums of 10 us.
        assert!(near(row.bound_ms, 2.5 / 3.088 + 0.64));
    }

    #[test]
    fn the_summary_holds_equal_prompts_against_each_other() {
        let rows = [
            row("flatten", 1000, 10.0),
            row("per-query", 1000, 20.0),
            row("flatten", 20_000, 10.0),
            row("per-query", 20_000, 80.0),
        ];
        let summary = summary(&rows);
        assert!(summary.contains("4.00  (1000: 2.00, 20000: 8.00)"), "{summary}");
        assert!(summary.contains("largest host gap: 10.0 %"), "{summary}");
    }
}
