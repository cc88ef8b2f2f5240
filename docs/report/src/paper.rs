//! The paper's numbers beside ours: blocks of docs/reproduction.md, and what the page shows of them.

use anyhow::Result;
use serde_json::Value;

use crate::data::{Row, Suite, Table, number, or_dash, rounded, title};

/// What tells a task from others.
const TASK: [&str; 3] = ["task", "model", "prompt_tokens"];
/// Attention time of Table 16, and bytes of K and V of Table 17.
pub(crate) const ATTENTION: (u64, &str) = (16, "attention_s");
pub(crate) const KV_IO: (u64, &str) = (17, "kv_tb");

const SPEEDUP: &str = "attention_speedup_over_radix";

/// What the paper prints, and our run.
pub(crate) struct Paper {
    pub(crate) printed: Suite,
    pub(crate) ours: Suite,
}

/// A block of docs/reproduction.md: a table of pairs.
pub(crate) struct Block {
    pub(crate) name: &'static str,
    pub(crate) heading: &'static str,
    /// The paper's tables, and our field for their numbers.
    tables: &'static [(u64, &'static str)],
    field: &'static str,
    columns: &'static str,
}

pub(crate) const BLOCKS: [Block; 5] = [
    Block {
        name: "reproduction-attention",
        heading: "Attention time: Tables 16 and 5",
        tables: &[ATTENTION],
        field: "attention_s",
        columns: "task | method | paper s | ours s | ratio | paper, over Radix | ours, over PerQuery",
    },
    Block {
        name: "reproduction-io",
        heading: "IO: Table 17",
        tables: &[KV_IO],
        field: "kv_tb",
        columns: "task | method | paper TB | recomputed TB | ratio | K and V issued TB | partial results issued TB",
    },
    Block {
        name: "reproduction-strategies",
        heading: "Split strategies: Table 6",
        tables: &[ATTENTION],
        field: "attention_s",
        columns: "task | strategy | paper s | ours s | ratio",
    },
    Block {
        name: "reproduction-prompts",
        heading: "Prompt lengths: Table 7",
        tables: &[(7, SPEEDUP)],
        field: "speedup_over_per_query",
        columns: "task | prompt | paper, over Radix | ours, over PerQuery | ratio",
    },
    Block {
        name: "reproduction-models",
        heading: "Other models: Tables 20 and 21",
        tables: &[(20, "attention_s"), (21, "attention_s")],
        field: "attention_s",
        columns: "model | task | method | paper s | ours s | ratio | ours, over PerQuery",
    },
];

/// A number of the paper, if it has one, and our row of the same kind.
#[derive(Clone, Copy)]
struct Pair<'a> {
    column: &'a Value,
    method: &'a str,
    printed: Option<f64>,
    ours: &'a Row,
}

impl Paper {
    pub(crate) fn read() -> Result<Self> {
        let printed = Suite::read("paper-a100.json")?;
        let ours = Suite::read("h100-paper.json")?;
        Ok(Self { printed, ours })
    }

    pub(crate) fn blocks(&self) -> Vec<crate::Block> {
        let block = |block: &Block| (block.name, self.table(block).markdown());
        BLOCKS.iter().map(block).collect()
    }

    pub(crate) fn table(&self, block: &Block) -> Table {
        let mut table = Table::new(block.columns);
        for pair in block.tables.iter().flat_map(|&table| self.pairs(table)) {
            // Not all that we counted was timed.
            if pair.ours.number(block.field).is_none() {
                continue;
            }
            let pairs = match block.columns.contains("strategy") {
                false => vec![pair],
                true if pair.method.starts_with("deft-") => self.with_other_chunks(pair),
                true => continue,
            };
            for pair in pairs {
                let cell = |column| self.cell(block, column, &pair);
                table.row(block.columns.split(" | ").map(cell));
            }
        }
        table
    }

    fn cell(&self, block: &Block, column: &str, pair: &Pair<'_>) -> String {
        let shown = |name| or_dash(pair.ours.number(name), rounded);
        let mine = pair.ours.number(block.field);
        match column {
            "task" | "model" => pair.column[column].as_str().unwrap_or_default().to_owned(),
            "method" => pair.method.to_owned(),
            "strategy" => strategy(pair.ours),
            "prompt" => {
                let prompt = pair.column["prompt_tokens"].as_f64();
                prompt.map_or("recorded".to_owned(), rounded)
            }
            "ratio" => {
                let printed = pair.printed.filter(|printed| *printed != 0.0);
                or_dash(mine.zip(printed), |(mine, printed)| rounded(mine / printed))
            }
            "K and V issued TB" => shown("kv_issued_tb"),
            "partial results issued TB" => shown("partial_issued_tb"),
            "paper, over Radix" => {
                let mut pairs = block.tables.iter().chain(&[(5, SPEEDUP)]);
                let printed = pairs.find_map(|&table| {
                    let table = (table.1 == SPEEDUP).then_some(table)?;
                    self.printed(table, pair.ours, pair.method)
                });
                or_dash(printed, |value| format!("{value:.2}x"))
            }
            "ours, over PerQuery" => over_per_query(pair.ours),
            _ if column.starts_with("paper") => or_dash(pair.printed, number),
            _ => or_dash(mine, rounded),
        }
    }

    /// The pair, and our runs of its kind with chunks of sizes that the paper has not.
    fn with_other_chunks<'a>(&'a self, pair: Pair<'a>) -> Vec<Pair<'a>> {
        let rows = self.ours.having("grouping", "node-chunk").into_iter();
        let is_like = |row: &&Row| row.is_like(&pair.ours.0, &[&TASK[..], &["grouping"]].concat());
        let others =
            rows.filter(is_like).filter(|row| !row.is_like(&pair.ours.0, &["chunk_pages"]));
        let other = |ours| Pair { printed: None, ours, ..pair };
        [pair].into_iter().chain(others.map(other)).collect()
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
                    let printed = row["values"][at].as_f64();
                    if let (Some(_), Some(ours)) = (printed, mine) {
                        let method = row["method"].as_str().unwrap_or_default();
                        pairs.push(Pair { column, method, printed, ours });
                    }
                }
            }
        }
        pairs
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
    let prompt = prompt.map_or(String::new(), |tokens| format!(" {}k", number(tokens / 1e3)));
    row.text("task").to_owned() + &prompt
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shown(ours: &str) -> String {
        let printed = Suite::read("paper-a100.json").unwrap();
        let ours = Suite::parse("ours.json", ours).unwrap();
        let blocks = Paper { printed, ours }.blocks();
        blocks.into_iter().map(|(_, table)| table).collect()
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
        let other = RUN.replace("few-shot-50", "few-shot-30").replace("llama3-8b", "codellama-7b");
        let row = "| codellama-7b | few-shot-30 | deft-flatten | 8.24 | 0.4 | 0.049 | 3.40x |";
        assert!(shown(&other).contains(row));
        let longer = RUN.replace("few-shot-50", "sorting").replace("4000", "8000");
        assert!(shown(&longer).contains("| sorting | 8,000 | 1.97x | 3.40x | 1.73 |"));
    }
}
