//! What trees of draft tokens cost beside one token, whole models end to end.

use anyhow::{Context, Result};

use crate::Block;
use crate::chart::{Chart, Line};
use crate::data::{Row, Suite, Table, number, or_dash, rounded, title};
use crate::pictures::STREAM_GB_PER_S;
use crate::trees::GROUPING;

/// Nodes of the drafts that are held against one token.
const NODES: [u32; 3] = [64, 128, 256];
const ONE: &str = "one-token";
const PROMPT: &str = "prompt";

/// The run of `deft-bench engine`.
pub(crate) struct Tokens(Suite);

impl Tokens {
    pub(crate) fn read() -> Result<Self> {
        Ok(Self(Suite::read("h100-engine.json")?))
    }

    /// Blocks of README.md and docs/performance.md, and the first of the page.
    pub(crate) fn blocks(&self) -> Result<Vec<Block>> {
        Ok(vec![
            ("tokens", self.charts()?),
            ("token-summary", self.summary()?),
            ("token-costs", self.costs()?.markdown()),
            ("prompts", self.prompts()?.markdown()),
            ("engine-tasks", self.tasks()?.markdown()),
        ])
    }

    /// The rows of one token, which say what models and contexts there are.
    fn ones(&self) -> impl Iterator<Item = &Row> {
        let rows = self.0.rows.iter();
        rows.filter(|row| row.text("task") == ONE && row.text("grouping") == GROUPING)
    }

    /// Milliseconds of a step of another task or grouping, of the same model and context.
    fn step_ms(&self, like: &Row, task: &str, grouping: &str) -> Result<f64> {
        self.row(like, task, grouping)?.get("step_ms")
    }

    fn row(&self, like: &Row, task: &str, grouping: &str) -> Result<&Row> {
        let same = |row: &&Row| {
            row.is_like(&like.0, &["model", "prompt_tokens"])
                && row.text("task") == task
                && row.text("grouping") == grouping
        };
        let found = self.0.rows.iter().find(same);
        found.with_context(|| format!("{task} {grouping} is missing beside {}", like.0))
    }

    fn charts(&self) -> Result<String> {
        let mut html = String::new();
        for model in self.0.distinct("model") {
            let mut lines = Vec::new();
            for one in self.ones().filter(|row| row.text("model") == model) {
                lines.extend(self.lines(one)?);
            }
            if lines.is_empty() {
                continue;
            }
            let caption = format!(
                "{model}: milliseconds a step by context; right: steps of one token that it costs"
            );
            let key = "ours: Flatten; deft: PerQuery; bound: reading the weights alone";
            html += &Chart { caption: &caption, bars: false, key, lines }.html();
        }
        Ok(html)
    }

    /// One token and the drafts at one context.
    fn lines(&self, one: &Row) -> Result<Vec<Line>> {
        let context = number(one.get("prompt_tokens")?);
        let alone = one.get("step_ms")?;
        let drafts = NODES.map(|nodes| (format!("speculative-{nodes}"), format!("{nodes} nodes")));
        let tasks = std::iter::once((ONE.to_owned(), "one token".to_owned())).chain(drafts);
        let line = |(task, name): (String, String)| {
            let [flat, each] = [GROUPING, "per-query"].map(|of| self.step_ms(one, &task, of));
            let flat = flat?;
            let values = [Some(flat), Some(each?), Some(weights_ms(one)?)];
            Ok(Line::new(format!("{context}: {name}"), values, format!("{:.2}x", flat / alone)))
        };
        tasks.map(line).collect()
    }

    /// What the smallest draft costs, in words.
    fn summary(&self) -> Result<String> {
        let mut ratios = Vec::new();
        for one in self.ones().filter(|one| one.text("model").contains("8b")) {
            let draft = self.step_ms(one, &format!("speculative-{}", NODES[0]), GROUPING)?;
            ratios.push((draft / one.get("step_ms")?, one.get("prompt_tokens")?));
        }
        let range = |of: fn(&(f64, f64)) -> f64| {
            let values = ratios.iter().map(of);
            values.fold((f64::INFINITY, 0.0_f64), |(low, high), x| (low.min(x), high.max(x)))
        };
        let ((low, high), (short, long)) = (range(|ratio| ratio.0), range(|ratio| ratio.1));
        Ok(format!(
            "A whole 8B model verifies a draft tree of {} nodes in {low:.2} to {high:.2} times the time of one token, at\n\
             contexts of {} to {} tokens (two models, one H100).\n",
            NODES[0],
            number(short),
            number(long),
        ))
    }

    fn costs(&self) -> Result<Table> {
        let mut table = Table::new(
            "model | context | weights alone | one token | 64 nodes | 128 nodes | 256 nodes | 64 nodes, PerQuery | \
             256 nodes, PerQuery | host's gap, 64 nodes",
        );
        for one in self.ones() {
            let alone = one.get("step_ms")?;
            let mut cells = vec![
                one.text("model").to_owned(),
                number(one.get("prompt_tokens")?),
                format!("{:.2}", weights_ms(one)?),
                format!("{alone:.2}"),
            ];
            for nodes in NODES {
                let ms = self.step_ms(one, &format!("speculative-{nodes}"), GROUPING)?;
                cells.push(format!("{ms:.2} ({:.2}x)", ms / alone));
            }
            for nodes in [64, 256] {
                let ms = self.step_ms(one, &format!("speculative-{nodes}"), "per-query")?;
                cells.push(format!("{ms:.2}"));
            }
            let draft = self.row(one, "speculative-64", GROUPING)?;
            let gap = draft.get("host_gap_ms")? / draft.get("step_ms")?;
            cells.push(format!("{:.1} %", 100.0 * gap));
            table.row(cells);
        }
        Ok(table)
    }

    fn prompts(&self) -> Result<Table> {
        let mut table = Table::new("model | prompt | ms | tokens/s | attention's share");
        for row in self.0.rows.iter().filter(|row| row.text("task") == PROMPT) {
            table.row([
                row.text("model").to_owned(),
                number(row.get("prompt_tokens")?),
                rounded(row.get("step_ms")?),
                number(row.get("tokens_per_s")?.round()),
                format!("{:.0} %", 100.0 * row.get("attention_share")?),
            ]);
        }
        Ok(table)
    }

    /// The paper's tasks at the shortest and the longest prompt.
    fn tasks(&self) -> Result<Table> {
        let mut table = Table::new(
            "model | task | prompt | Flatten | PerQuery | PerQuery over Flatten | attention's share, Flatten | PerQuery",
        );
        let shown = [
            "few-shot-20",
            "few-shot-50",
            "sorting",
            "document",
            "speculative-64",
            "speculative-256",
        ];
        let is_shown = |row: &&Row| {
            let prompt = row.number("prompt_tokens");
            shown.contains(&row.text("task"))
                && [Some(1000.0), Some(20_000.0)].contains(&prompt)
                && row.text("grouping") == GROUPING
        };
        for row in self.0.rows.iter().filter(is_shown) {
            let each = self.row(row, row.text("task"), "per-query")?;
            let share = |row: &Row| {
                or_dash(row.number("attention_share"), |share| format!("{:.0} %", 100.0 * share))
            };
            let [flat, slow] = [row.get("step_ms")?, each.get("step_ms")?];
            table.row([
                row.text("model").to_owned(),
                title(row.text("task")).to_owned(),
                number(row.get("prompt_tokens")?),
                format!("{flat:.2}"),
                format!("{slow:.2}"),
                format!("{:.2}x", slow / flat),
                share(row),
                share(each),
            ]);
        }
        Ok(table)
    }
}

/// The time in which the memory gives a pass's weights.
fn weights_ms(row: &Row) -> Result<f64> {
    Ok(row.get("weights_gb")? / STREAM_GB_PER_S * 1e3)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn drafts_are_held_against_one_token_of_the_same_model_and_context() {
        let row = |task: &str, grouping: &str, ms: f64| {
            format!(
                r#"{{"model": "m-8b", "task": "{task}", "grouping": "{grouping}", "prompt_tokens": 1024, "step_ms": {ms},
                "host_gap_ms": 0.1, "weights_gb": 3.088}}"#
            )
        };
        let tasks = [
            ("one-token", 2.0),
            ("speculative-64", 2.5),
            ("speculative-128", 3.0),
            ("speculative-256", 5.0),
        ];
        let rows = tasks.map(|(task, ms)| {
            [row(task, "flatten", ms), row(task, "per-query", 4.0 * ms)].join(",")
        });
        let text = format!(r#"{{"rows": [{}]}}"#, rows.join(","));
        let tokens = Tokens(Suite::parse("x.json", &text).unwrap());
        let table = tokens.costs().unwrap().markdown();
        let line = "| m-8b | 1,024 | 1.00 | 2.00 | 2.50 (1.25x) | 3.00 (1.50x) | 5.00 (2.50x) | 10.00 | 20.00 | 4.0 % |";
        assert!(table.contains(line), "{table}");
        assert!(tokens.charts().unwrap().contains("1,024: 128 nodes"));
        assert!(tokens.summary().unwrap().contains("64 nodes in 1.25 to 1.25 times the time"));
        let without = text.replace("\"task\": \"speculative-128\"", "\"task\": \"other\"");
        assert!(Tokens(Suite::parse("x.json", &without).unwrap()).costs().is_err());
    }
}
