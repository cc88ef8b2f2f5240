//! The paper's numbers beside ours, for docs/reproduction.md and the page.

use super::axis::{number, rounded};
use super::suites::{Paper, Printed, PrintedColumn, PrintedRow, title};
use super::table::{Table, or_dash};

/// A block of docs/reproduction.md: its name, what it shows, and the table.
pub(super) struct Block {
    pub(super) name: &'static str,
    pub(super) heading: &'static str,
    pub(super) table: Table,
}

/// All blocks; of what we have not run, no row.
pub(super) fn blocks(printed: &Printed, ours: &[Paper]) -> [Block; 5] {
    let both = Both { printed, ours };
    let block = |name, heading, table| Block {
        name,
        heading,
        table,
    };
    [
        block(
            "reproduction-attention",
            "Attention time: Tables 16 and 5",
            both.attention(),
        ),
        block("reproduction-io", "IO: Table 17", both.io()),
        block(
            "reproduction-strategies",
            "Split strategies: Table 6",
            both.strategies(),
        ),
        block(
            "reproduction-prompts",
            "Prompt lengths: Table 7",
            both.prompts(),
        ),
        block(
            "reproduction-models",
            "Other models: Tables 20 and 21",
            both.models(),
        ),
    ]
}

/// What the paper prints, and our run.
struct Both<'a> {
    printed: &'a Printed,
    ours: &'a [Paper],
}

/// A number of the paper, and our row of the same kind.
#[derive(Clone, Copy)]
struct Pair<'a> {
    column: &'a PrintedColumn,
    row: &'a PrintedRow,
    printed: f64,
    ours: &'a Paper,
}

impl Pair<'_> {
    /// The paper's number as printed, `mine`, and mine over theirs.
    fn beside(&self, mine: Option<f64>) -> [String; 3] {
        let ratio = mine.filter(|_| self.printed != 0.0);
        [
            number(self.printed),
            or_dash(mine, rounded),
            or_dash(ratio, |mine| rounded(mine / self.printed)),
        ]
    }
}

impl<'a> Both<'a> {
    /// Numbers of a table that we have a row for, task by task.
    fn pairs(&self, table: u32, metric: &str) -> Vec<Pair<'a>> {
        let tables = self.printed.tables.iter();
        let mut pairs = Vec::new();
        for table in tables.filter(|t| t.table == table && t.metric == metric) {
            for (at, column) in table.columns.iter().enumerate() {
                for row in &table.rows {
                    let printed = row.values.get(at).copied().flatten();
                    let mine = self.ours.iter().find(|mine| is_same(mine, column, row));
                    if let (Some(printed), Some(ours)) = (printed, mine) {
                        pairs.push(Pair {
                            column,
                            row,
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
        let mut table = Table::new([
            "task",
            "method",
            "paper s",
            "ours s",
            "ratio",
            "paper, over Radix",
            "ours, over PerQuery",
        ]);
        let speedups = self.pairs(5, "attention_speedup_over_radix");
        for pair in self.pairs(ATTENTION.0, ATTENTION.1) {
            if pair.ours.attention_s.is_none() {
                continue;
            }
            let same = |other: &&Pair<'_>| {
                other.column.task == pair.column.task && other.row.method == pair.row.method
            };
            let speedup = speedups.iter().find(same);
            let [printed, ours, ratio] = pair.beside(pair.ours.attention_s);
            table.row([
                pair.column.task.clone(),
                pair.row.method.clone(),
                printed,
                ours,
                ratio,
                or_dash(speedup, |speedup| format!("{:.2}x", speedup.printed)),
                over_per_query(pair.ours),
            ]);
        }
        table
    }

    fn io(&self) -> Table {
        let mut table = Table::new([
            "task",
            "method",
            "paper TB",
            "recomputed TB",
            "ratio",
            "K and V issued TB",
            "partial results issued TB",
        ]);
        for pair in self.pairs(KV_IO.0, KV_IO.1) {
            let [printed, ours, ratio] = pair.beside(pair.ours.kv_tb);
            table.row([
                pair.column.task.clone(),
                pair.row.method.clone(),
                printed,
                ours,
                ratio,
                or_dash(pair.ours.kv_issued_tb, rounded),
                or_dash(pair.ours.partial_issued_tb, rounded),
            ]);
        }
        table
    }

    fn strategies(&self) -> Table {
        let mut table = Table::new(["task", "strategy", "paper s", "ours s", "ratio"]);
        let pairs = self.pairs(ATTENTION.0, ATTENTION.1);
        let strategies = pairs
            .iter()
            .filter(|pair| pair.row.method.starts_with("deft-"));
        for pair in strategies.filter(|pair| pair.ours.attention_s.is_some()) {
            let [printed, ours, ratio] = pair.beside(pair.ours.attention_s);
            table.row([
                pair.column.task.clone(),
                strategy(pair.ours),
                printed,
                ours,
                ratio,
            ]);
            if pair.ours.grouping != "node-chunk" {
                continue;
            }
            for other in self
                .ours
                .iter()
                .filter(|row| is_other_chunk(row, pair.ours))
            {
                let ours = or_dash(other.attention_s, rounded);
                let none = || "-".to_owned();
                table.row([
                    pair.column.task.clone(),
                    strategy(other),
                    none(),
                    ours,
                    none(),
                ]);
            }
        }
        table
    }

    fn prompts(&self) -> Table {
        let mut table = Table::new([
            "task",
            "prompt",
            "paper, over Radix",
            "ours, over PerQuery",
            "ratio",
        ]);
        for pair in self.pairs(7, "attention_speedup_over_radix") {
            let [printed, ours, ratio] = pair.beside(pair.ours.speedup_over_per_query);
            let prompt = prompt(pair.column.prompt_tokens);
            table.row([pair.column.task.clone(), prompt, printed, ours, ratio]);
        }
        table
    }

    fn models(&self) -> Table {
        let mut table = Table::new([
            "model",
            "task",
            "method",
            "paper s",
            "ours s",
            "ratio",
            "ours, over PerQuery",
        ]);
        for pair in [20, 21]
            .iter()
            .flat_map(|&table| self.pairs(table, "attention_s"))
        {
            let [printed, ours, ratio] = pair.beside(pair.ours.attention_s);
            table.row([
                pair.column.model.clone(),
                pair.column.task.clone(),
                pair.row.method.clone(),
                printed,
                ours,
                ratio,
                over_per_query(pair.ours),
            ]);
        }
        table
    }
}

/// Whether `mine` is of the task of a column.
fn is_task(mine: &Paper, column: &PrintedColumn) -> bool {
    mine.task == column.task
        && mine.model == column.model
        && mine.prompt_tokens == column.prompt_tokens
}

/// Whether `mine` is what the paper has in a cell. Its chunks have 128 tokens, two pages.
fn is_same(mine: &Paper, column: &PrintedColumn, row: &PrintedRow) -> bool {
    is_task(mine, column)
        && row.grouping.as_deref() == Some(&mine.grouping)
        && mine.chunk_pages.is_none_or(|pages| pages == 2)
}

/// Whether two rows differ in the size of their chunks alone.
fn is_other_chunk(row: &Paper, ours: &Paper) -> bool {
    row.task == ours.task
        && row.model == ours.model
        && row.prompt_tokens == ours.prompt_tokens
        && row.grouping == ours.grouping
        && row.chunk_pages != ours.chunk_pages
}

fn over_per_query(row: &Paper) -> String {
    or_dash(row.speedup_over_per_query, |value| format!("{value:.2}x"))
}

/// A grouping with the size of its chunks.
fn strategy(row: &Paper) -> String {
    let tokens = row
        .chunk_pages
        .map(|pages| format!(", {} tokens", 64 * pages));
    title(&row.grouping).to_owned() + &tokens.unwrap_or_default()
}

/// A table of the paper, and what of it is looked at.
pub(super) const ATTENTION: (u32, &str) = (16, "attention_s");
pub(super) const KV_IO: (u32, &str) = (17, "kv_tb");

/// What a table of the paper prints of `method` for what `ours` is a run of.
pub(super) fn printed(
    printed: &Printed,
    (table, metric): (u32, &str),
    ours: &Paper,
    method: &str,
) -> Option<f64> {
    let tables = printed.tables.iter();
    let mut tables = tables.filter(|t| t.table == table && t.metric == metric);
    tables.find_map(|table| {
        let row = table.rows.iter().find(|row| row.method == method)?;
        let at = table
            .columns
            .iter()
            .position(|column| is_task(ours, column))?;
        row.values.get(at).copied().flatten()
    })
}

/// A task, and its prompt where that was chosen.
pub(super) fn task(row: &Paper) -> String {
    let prompt = row
        .prompt_tokens
        .map(|tokens| format!(" {}", thousands(tokens)));
    row.task.clone() + &prompt.unwrap_or_default()
}

/// A number of tokens in thousands.
pub(super) fn thousands(tokens: u32) -> String {
    number(f64::from(tokens) / 1e3) + "k"
}

/// A prompt's tokens.
fn prompt(tokens: Option<u32>) -> String {
    tokens.map_or("recorded".to_owned(), |tokens| rounded(tokens.into()))
}

/// All of our run with `model`.
pub(super) fn runs(ours: &[Paper], model: &str) -> Table {
    let mut table = Table::new([
        "task, prompt",
        "grouping",
        "attention s",
        "over PerQuery",
        "paper's count TB: KV + partial",
        "issued TB: KV + partial",
    ]);
    let sum = |kv, partial| format!("{} + {}", or_dash(kv, rounded), or_dash(partial, rounded));
    for row in ours.iter().filter(|row| row.model == model) {
        table.row([
            task(row),
            strategy(row),
            or_dash(row.attention_s, rounded),
            over_per_query(row),
            sum(row.kv_tb, row.partial_tb),
            sum(row.kv_issued_tb, row.partial_issued_tb),
        ]);
    }
    table
}

/// The model of the paper's main tables.
#[cfg(test)]
const MODEL: &str = "llama3-8b";

/// What the paper prints, and a run of few-shot-50, for tests.
#[cfg(test)]
pub(super) fn example() -> (Printed, Vec<Paper>) {
    let text = super::sources::read("docs/benchmarks/paper-a100.json").unwrap();
    let row = |grouping: &str, chunk_pages, attention_s, kv_tb, speedup| Paper {
        task: "few-shot-50".to_owned(),
        model: MODEL.to_owned(),
        prompt_tokens: Some(4000),
        grouping: grouping.to_owned(),
        chunk_pages,
        attention_s: Some(attention_s),
        kv_tb: Some(kv_tb),
        partial_tb: Some(0.0),
        kv_issued_tb: Some(kv_tb / 2.0),
        partial_issued_tb: Some(0.1),
        speedup_over_per_query: Some(speedup),
    };
    let rows = vec![
        row("flatten", None, 0.4, 2.94, 3.4),
        row("per-query", None, 1.36, 44.05, 1.0),
        row("node-chunk", Some(2), 0.8, 2.94, 1.7),
        row("node-chunk", Some(8), 0.9, 2.94, 1.5),
    ];
    (serde_json::from_str(&text).unwrap(), rows)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn text(printed: &Printed, ours: &[Paper]) -> String {
        let blocks = blocks(printed, ours);
        blocks.iter().map(|block| block.table.markdown()).collect()
    }

    #[test]
    fn the_papers_number_stands_beside_ours_of_the_same_task_model_and_prompt() {
        let (printed, mut ours) = example();
        let shown = text(&printed, &ours);
        for row in [
            "| few-shot-50 | deft-flatten | 5.87 | 0.4 | 0.068 | 1.70x | 3.40x |",
            "| few-shot-50 | radix | 9.96 | 1.36 | 0.137 | - | 1.00x |",
            "| few-shot-50 | deft-flatten | 2.94 | 2.94 | 1.00 | 1.47 | 0.1 |",
        ] {
            assert!(shown.contains(row), "{shown}");
        }
        for row in &mut ours {
            row.prompt_tokens = Some(8000);
        }
        assert!(!text(&printed, &ours).contains("few-shot-50"));
    }

    #[test]
    fn chunks_of_another_size_than_the_papers_stand_alone() {
        let (printed, ours) = example();
        let shown = text(&printed, &ours);
        for row in [
            "| few-shot-50 | NodeChunk, 128 tokens | 13.45 | 0.8 | 0.059 |",
            "| few-shot-50 | NodeChunk, 512 tokens | - | 0.9 | - |",
        ] {
            assert!(shown.contains(row), "{shown}");
        }
    }

    #[test]
    fn other_models_and_prompts_have_tables_of_their_own() {
        let (printed, mut ours) = example();
        for (row, task) in ours.iter_mut().zip(["few-shot-30", "few-shot-30"]) {
            row.task = task.to_owned();
            row.model = "codellama-7b".to_owned();
        }
        let mut longer = ours[0].clone();
        (longer.task, longer.model) = ("sorting".to_owned(), MODEL.to_owned());
        longer.prompt_tokens = Some(8000);
        ours.push(longer);
        let shown = text(&printed, &ours);
        let model = "| codellama-7b | few-shot-30 | deft-flatten | 8.24 | 0.4 | 0.049 | 3.40x |";
        assert!(shown.contains(model), "{shown}");
        assert!(
            shown.contains("| sorting | 8,000 | 1.97 | 3.40 | 1.73 |"),
            "{shown}"
        );
    }
}
