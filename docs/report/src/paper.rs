//! The paper's numbers beside ours: blocks of docs/reproduction.md, and what the page shows of them.

use anyhow::Result;
use serde_json::Value;

use crate::data::{Row, Suite, Table, number, or_dash, rounded, title};

/// What tells a task from others.
const TASK: [&str; 3] = ["task", "model", "prompt_tokens"];
/// Attention time of Table 16, and bytes of K and V of Table 17.
pub(crate) const ATTENTION: (u64, &str) = (16, "attention_s");
pub(crate) const KV_IO: (u64, &str) = (17, "kv_tb");

/// What the paper prints, and our run.
pub(crate) struct Paper {
    pub(crate) printed: Suite,
    pub(crate) ours: Suite,
}

/// A block of docs/reproduction.md: its name, what it shows, and the table.
pub(crate) struct Block {
    pub(crate) name: &'static str,
    pub(crate) heading: &'static str,
    pub(crate) table: Table,
}

/// A number of the paper, and our row of the same kind.
#[derive(Clone, Copy)]
struct Pair<'a> {
    column: &'a Value,
    method: &'a str,
    printed: f64,
    ours: &'a Row,
}

impl Pair<'_> {
    /// The paper's number as printed, `mine`, and mine over theirs.
    fn beside(&self, mine: Option<f64>) -> [String; 3] {
        let ratio = mine.filter(|_| self.printed != 0.0);
        let ratio = or_dash(ratio, |mine| rounded(mine / self.printed));
        [number(self.printed), or_dash(mine, rounded), ratio]
    }

    fn column(&self, name: &str) -> String {
        self.column[name].as_str().unwrap_or_default().to_owned()
    }
}

impl Paper {
    pub(crate) fn read() -> Result<Self> {
        let printed = Suite::read("paper-a100.json")?;
        let ours = Suite::read("h100-paper.json")?;
        Ok(Self { printed, ours })
    }

    pub(crate) fn blocks(&self) -> [Block; 5] {
        let block = |name, heading, table| Block {
            name,
            heading,
            table,
        };
        let [attention, models] = [self.attention(), self.models()];
        [
            block(
                "reproduction-attention",
                "Attention time: Tables 16 and 5",
                attention,
            ),
            block("reproduction-io", "IO: Table 17", self.io()),
            block(
                "reproduction-strategies",
                "Split strategies: Table 6",
                self.strategies(),
            ),
            block(
                "reproduction-prompts",
                "Prompt lengths: Table 7",
                self.prompts(),
            ),
            block(
                "reproduction-models",
                "Other models: Tables 20 and 21",
                models,
            ),
        ]
    }

    fn tables(&self, (table, metric): (u64, &str)) -> impl Iterator<Item = &Value> {
        let tables = self.printed.all["tables"].as_array().into_iter().flatten();
        tables.filter(move |t| t["table"] == table && t["metric"] == metric)
    }

    /// Numbers of a table that we have a row for, task by task. The paper's chunks have 128 tokens, two pages.
    fn pairs(&self, table: (u64, &str)) -> Vec<Pair<'_>> {
        let mut pairs = Vec::new();
        for table in self.tables(table) {
            for (at, column) in list(&table["columns"]).enumerate() {
                for row in list(&table["rows"]) {
                    let mine = self.ours.rows.iter().find(|mine| {
                        let chunk = &mine.0["chunk_pages"];
                        let is_task =
                            mine.is_like(column, &TASK) && mine.is_like(row, &["grouping"]);
                        is_task && (chunk.is_null() || chunk == 2)
                    });
                    if let (Some(printed), Some(ours)) = (row["values"][at].as_f64(), mine) {
                        let method = row["method"].as_str().unwrap_or_default();
                        pairs.push(Pair {
                            column,
                            method,
                            printed,
                            ours,
                        });
                    }
                }
            }
        }
        pairs
    }

    fn attention(&self) -> Table {
        let mut table = Table::new(
            "task | method | paper s | ours s | ratio | paper, over Radix | ours, over PerQuery",
        );
        let speedups = self.pairs((5, "attention_speedup_over_radix"));
        for pair in self.timed(ATTENTION) {
            let mut same = speedups.iter();
            let same =
                same.find(|o| o.column["task"] == pair.column["task"] && o.method == pair.method);
            let [printed, ours, ratio] = pair.beside(pair.ours.number("attention_s"));
            table.row([
                pair.column("task"),
                pair.method.to_owned(),
                printed,
                ours,
                ratio,
                or_dash(same, |speedup| format!("{:.2}x", speedup.printed)),
                over_per_query(pair.ours),
            ]);
        }
        table
    }

    /// Pairs whose attention we timed.
    fn timed(&self, table: (u64, &str)) -> impl Iterator<Item = Pair<'_>> {
        let pairs = self.pairs(table).into_iter();
        pairs.filter(|pair| pair.ours.number("attention_s").is_some())
    }

    fn io(&self) -> Table {
        let mut table = Table::new(
            "task | method | paper TB | recomputed TB | ratio | K and V issued TB | partial results issued TB",
        );
        for pair in self.pairs(KV_IO) {
            let [printed, ours, ratio] = pair.beside(pair.ours.number("kv_tb"));
            table.row([
                pair.column("task"),
                pair.method.to_owned(),
                printed,
                ours,
                ratio,
                or_dash(pair.ours.number("kv_issued_tb"), rounded),
                or_dash(pair.ours.number("partial_issued_tb"), rounded),
            ]);
        }
        table
    }

    fn strategies(&self) -> Table {
        let mut table = Table::new("task | strategy | paper s | ours s | ratio");
        for pair in self
            .timed(ATTENTION)
            .filter(|pair| pair.method.starts_with("deft-"))
        {
            let [printed, ours, ratio] = pair.beside(pair.ours.number("attention_s"));
            table.row([
                pair.column("task"),
                strategy(pair.ours),
                printed,
                ours,
                ratio,
            ]);
            let is_other = |row: &&Row| {
                pair.ours.text("grouping") == "node-chunk"
                    && row.is_like(
                        &pair.ours.0,
                        &["task", "model", "prompt_tokens", "grouping"],
                    )
                    && !row.is_like(&pair.ours.0, &["chunk_pages"])
            };
            for other in self.ours.rows.iter().filter(is_other) {
                let ours = or_dash(other.number("attention_s"), rounded);
                let dash = "-".to_owned();
                table.row([
                    pair.column("task"),
                    strategy(other),
                    dash.clone(),
                    ours,
                    dash,
                ]);
            }
        }
        table
    }

    fn prompts(&self) -> Table {
        let head = "task | prompt | paper, over Radix | ours, over PerQuery | ratio";
        let mut table = Table::new(head);
        for pair in self.pairs((7, "attention_speedup_over_radix")) {
            let [printed, ours, ratio] = pair.beside(pair.ours.number("speedup_over_per_query"));
            let prompt = pair.column["prompt_tokens"].as_f64();
            let prompt = prompt.map_or("recorded".to_owned(), rounded);
            table.row([pair.column("task"), prompt, printed, ours, ratio]);
        }
        table
    }

    fn models(&self) -> Table {
        let head = "model | task | method | paper s | ours s | ratio | ours, over PerQuery";
        let mut table = Table::new(head);
        for pair in [20, 21]
            .iter()
            .flat_map(|&table| self.pairs((table, "attention_s")))
        {
            let [printed, ours, ratio] = pair.beside(pair.ours.number("attention_s"));
            let method = pair.method.to_owned();
            let over = over_per_query(pair.ours);
            table.row([
                pair.column("model"),
                pair.column("task"),
                method,
                printed,
                ours,
                ratio,
                over,
            ]);
        }
        table
    }

    /// What a table of the paper prints of `method` for what `ours` is a run of.
    pub(crate) fn printed(&self, table: (u64, &str), ours: &Row, method: &str) -> Option<f64> {
        self.tables(table).find_map(|table| {
            let row = list(&table["rows"]).find(|row| row["method"] == method)?;
            let at = list(&table["columns"]).position(|column| ours.is_like(column, &TASK))?;
            row["values"][at].as_f64()
        })
    }

    /// Flatten and PerQuery of each task that a table of the paper has.
    pub(crate) fn drawn(&self, table: (u64, &'static str)) -> impl Iterator<Item = (&Row, &Row)> {
        let rows = || self.ours.rows.iter();
        let flatten = rows().filter(move |row| {
            row.text("grouping") == "flatten" && self.printed(table, row, "deft-flatten").is_some()
        });
        flatten.filter_map(move |ours| {
            let mut same = rows().filter(|row| row.is_like(&ours.0, &TASK));
            Some((ours, same.find(|row| row.text("grouping") == "per-query")?))
        })
    }

    /// All of our run.
    pub(crate) fn runs(&self) -> Table {
        let mut table = Table::new(
            "model | task, prompt | grouping | attention s | over PerQuery | paper's count TB: KV + partial | issued TB: KV + partial",
        );
        for row in &self.ours.rows {
            let shown = |name| or_dash(row.number(name), rounded);
            table.row([
                row.text("model").to_owned(),
                task(row),
                strategy(row),
                shown("attention_s"),
                over_per_query(row),
                format!("{} + {}", shown("kv_tb"), shown("partial_tb")),
                format!("{} + {}", shown("kv_issued_tb"), shown("partial_issued_tb")),
            ]);
        }
        table
    }
}

fn list(value: &Value) -> impl Iterator<Item = &Value> {
    value.as_array().into_iter().flatten()
}

pub(crate) fn over_per_query(row: &Row) -> String {
    let over = row.number("speedup_over_per_query");
    or_dash(over, |value| format!("{value:.2}x"))
}

/// A grouping with the size of its chunks.
fn strategy(row: &Row) -> String {
    let pages = row.number("chunk_pages");
    let tokens = pages.map_or(String::new(), |pages| format!(", {} tokens", 64.0 * pages));
    title(row.text("grouping")).to_owned() + &tokens
}

/// A task, and its prompt where that was chosen.
pub(crate) fn task(row: &Row) -> String {
    let prompt = row.number("prompt_tokens");
    let prompt = prompt.map_or(String::new(), |tokens| {
        format!(" {}k", number(tokens / 1e3))
    });
    row.text("task").to_owned() + &prompt
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shown(ours: &str) -> String {
        let printed = Suite::read("paper-a100.json").unwrap();
        let ours = Suite::parse("ours.json", ours).unwrap();
        let blocks = Paper { printed, ours }.blocks();
        blocks.iter().map(|block| block.table.markdown()).collect()
    }

    const RUN: &str = r#"{"rows": [
        {"task": "few-shot-50", "model": "llama3-8b", "prompt_tokens": 4000, "grouping": "flatten", "chunk_pages": null,
         "attention_s": 0.4, "kv_tb": 2.94, "kv_issued_tb": 1.47, "partial_issued_tb": 0.1, "speedup_over_per_query": 3.4},
        {"task": "few-shot-50", "model": "llama3-8b", "prompt_tokens": 4000, "grouping": "node-chunk", "chunk_pages": 2,
         "attention_s": 0.8},
        {"task": "few-shot-50", "model": "llama3-8b", "prompt_tokens": 4000, "grouping": "node-chunk", "chunk_pages": 8,
         "attention_s": 0.9}]}"#;

    #[test]
    fn the_papers_number_stands_beside_ours_of_the_same_task_model_and_prompt() {
        let tables = shown(RUN);
        for row in [
            "| few-shot-50 | deft-flatten | 5.87 | 0.4 | 0.068 | 1.70x | 3.40x |",
            "| few-shot-50 | deft-flatten | 2.94 | 2.94 | 1.00 | 1.47 | 0.1 |",
            "| few-shot-50 | NodeChunk, 128 tokens | 13.45 | 0.8 | 0.059 |",
            "| few-shot-50 | NodeChunk, 512 tokens | - | 0.9 | - |",
        ] {
            assert!(tables.contains(row), "{tables}");
        }
        assert!(!shown(&RUN.replace("4000", "8001")).contains("few-shot-50"));
    }

    #[test]
    fn other_models_and_prompts_have_tables_of_their_own() {
        let other = RUN
            .replace("few-shot-50", "few-shot-30")
            .replace("llama3-8b", "codellama-7b");
        let row = "| codellama-7b | few-shot-30 | deft-flatten | 8.24 | 0.4 | 0.049 | 3.40x |";
        assert!(shown(&other).contains(row));
        let longer = RUN
            .replace("few-shot-50", "sorting")
            .replace("4000", "8000");
        assert!(shown(&longer).contains("| sorting | 8,000 | 1.97 | 3.40 | 1.73 |"));
    }
}
