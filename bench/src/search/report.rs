//! A row: in the file, and in the table on screen.

use deft_search::tasks::{Evaluation, Method, Setting};
use serde::{Deserialize, Serialize};

/// One task with one method.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(crate) struct Row {
    /// `NAME:SIZE`.
    pub(crate) task: String,
    pub(crate) method: String,
    /// Seeds of the problems, tokens a problem, how tokens are drawn.
    pub(crate) setting: String,
    pub(crate) problems: u64,
    pub(crate) right: u64,
    pub(crate) covered: u64,
    pub(crate) tokens: u64,
    pub(crate) steps: u64,
    pub(crate) kv_read_bytes: u64,
    pub(crate) kv_per_query_bytes: u64,
}

pub(super) const FOOTER: &str = "right: the first answer, and its standard error; covered: any answer; \
     tokens, steps: a problem; sharing: KV that queries one by one would read over KV read";

impl Row {
    pub(super) fn new(task: &str, method: Method, setting: &Setting, found: &Evaluation) -> Self {
        let problems = &setting.problems;
        Self {
            task: task.to_owned(),
            method: method.to_string(),
            setting: format!(
                "problems {} to {}, {} tokens, temperature {}, seed {}",
                problems.start,
                problems.end - 1,
                setting.tokens,
                setting.sampler.temperature,
                setting.seed
            ),
            problems: found.problems,
            right: found.right,
            covered: found.covered,
            tokens: found.tokens,
            steps: found.steps,
            kv_read_bytes: found.read,
            kv_per_query_bytes: found.per_query,
        }
    }

    /// The standard error of the share of problems that are right: that of a binomial's.
    fn standard_error(&self) -> f64 {
        let share = self.share(self.right);
        (share * (1.0 - share) / self.problems.max(1) as f64).sqrt()
    }

    fn share(&self, count: u64) -> f64 {
        count as f64 / self.problems.max(1) as f64
    }

    pub(super) fn line(&self) -> String {
        format!(
            "{:16} {:36} {:4.0}% +-{:3.0}% {:7.0}% {:8.1} {:7.1} {:7.2}x",
            self.task,
            self.method,
            100.0 * self.share(self.right),
            100.0 * self.standard_error(),
            100.0 * self.share(self.covered),
            self.share(self.tokens),
            self.share(self.steps),
            self.kv_per_query_bytes as f64 / self.kv_read_bytes.max(1) as f64,
        )
    }
}

/// The table's head.
pub(super) const HEADER: &str = "task             method                                     right  covered   tokens   steps  sharing";

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_row_is_in_shares_and_means_a_problem() {
        let row = Row {
            task: "acrostic:3".to_owned(),
            method: "greedy".to_owned(),
            setting: String::new(),
            problems: 100,
            right: 20,
            covered: 30,
            tokens: 1000,
            steps: 550,
            kv_read_bytes: 10,
            kv_per_query_bytes: 25,
        };
        assert!((row.standard_error() - 0.04).abs() < 1e-12);
        let words: Vec<_> = row.line().split_whitespace().map(str::to_owned).collect();
        let expected = ["acrostic:3", "greedy", "20%", "+-", "4%", "30%", "10.0", "5.5", "2.50x"];
        assert_eq!(words, expected);
    }
}
