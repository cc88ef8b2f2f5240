//! The blocks of docs/report/index.html: a chart, tables and where the numbers are from, section by section.

use anyhow::Result;

use crate::Block;
use crate::chart::{Chart, Line};
use crate::data::{Row, Suite, Table, escape, number, or_dash, rounded, title};
use crate::paper::{self, Paper};
use crate::pictures::{STREAM_GB_PER_S, TFLOP_PER_S};
use crate::trees::{Comparison, GROUPING};

const AGAINST: &str = "ours: Flatten; deft: PerQuery, a shared prefix is read once a query; bound: bound of the hardware";

/// All blocks, by the names of their sections.
pub(crate) fn blocks(comparison: &Comparison, paper: &Paper) -> Result<Vec<Block>> {
    Ok(vec![
        ("tiles", tiles(comparison)),
        ("times", times(comparison)),
        ("held-out", held_out()?),
        ("rates", rates(comparison)),
        ("scaling", scaling()?),
        ("paper", papers(paper)),
        ("engine", engine()?),
        ("search", search()?),
    ])
}

/// Where the numbers of `suite` are from.
fn from(suite: &Suite) -> String {
    let file = suite.file;
    let names = ["command", "device", "driver", "commit", "commit_date", "source", "method"];
    let said = names.into_iter().filter_map(|name| {
        let value = suite.all[name].as_str().filter(|value| !value.is_empty())?;
        Some(format!("; {}: <code>{}</code>", name.replace('_', " "), escape(value)))
    });
    let said: String = said.collect();
    format!("<p class=\"origin\"><a href=\"../benchmarks/{file}\">{file}</a>{said}</p>\n")
}

/// A table under the line `summary`.
fn under(summary: &str, table: &Table) -> String {
    let table = table.html();
    format!("<details><summary>{summary}</summary>\n{table}</details>\n")
}

/// All rows of a suite under the line `summary`: the fields `field: heading; field: heading` of each, numbers rounded.
/// A field without a heading is its own.
fn listing(summary: &str, suite: &Suite, fields: &str) -> String {
    let fields = fields.split("; ").map(|item| item.split_once(": ").unwrap_or((item, item)));
    let (names, headings): (Vec<&str>, Vec<&str>) = fields.unzip();
    let mut table = Table::new(&headings.join(" | "));
    for row in &suite.rows {
        let cell = |name: &&str| match row.0[*name].as_str() {
            Some(text) => title(text).to_owned(),
            None => or_dash(row.number(name), rounded),
        };
        table.row(names.iter().map(cell));
    }
    under(summary, &table) + &from(suite)
}

/// Rows with [`GROUPING`], each beside its like with PerQuery, as lines of a chart.
fn against_per_query(
    rows: &[&Row],
    like: &[&str],
    field: &str,
    name: impl Fn(&Row) -> String,
) -> Vec<Line> {
    let line = |row: &&Row| {
        let mut others = rows.iter().filter(|other| other.is_like(&row.0, like));
        let each = others.find(|other| other.text("grouping") == "per-query");
        let each = each.and_then(|each| each.number(field));
        let own = row.number(field);
        let over = own.zip(each).map(|(own, each)| each / own);
        let over = or_dash(over, |over| format!("{over:.2}x"));
        Line::new(name(row), [own, each, row.number("floor_us")], over)
    };
    let rows = rows.iter().filter(|row| row.text("grouping") == GROUPING);
    rows.map(line).collect()
}

/// Numbers for the head of the page, and what each is.
fn tiles(comparison: &Comparison) -> String {
    let (added, all) = (comparison.added_us, comparison.rows.len());
    let (over_deft, rows) = comparison.mean_over_deft(added);
    let shares = comparison.rows.iter().map(|row| row.floor_us / row.us);
    let less = issued(comparison).filter_map(|(_, [ours, each])| less(ours, each));
    let tiles = [
        (
            format!("{:.2}x", comparison.mean_speedup(added)),
            format!(
                "as fast as the best of 22 peers on each of {all} trees (geometric mean, {added:.1} us added to ours for the \
                 timing loops' difference)"
            ),
        ),
        (
            format!("{over_deft:.2}x"),
            format!("as fast as DeFT's own kernels ({rows} trees, the same way)"),
        ),
        (
            format!("{:.0} %", shares.fold(0.0, f64::max) * 100.0),
            "of the hardware's bound on the tree that comes closest to it".to_owned(),
        ),
        (
            format!("{:.1} %", less.fold(0.0, f64::max)),
            "less is read than if every query reads its own path, on the tree where that saves most".to_owned(),
        ),
    ];
    let tile = |(number, what): &(String, String)| {
        format!("<div class=\"tile\"><b>{number}</b><span>{what}</span></div>\n")
    };
    tiles.iter().map(tile).collect()
}

fn times(comparison: &Comparison) -> String {
    let added = comparison.added_us;
    let line = |row: &crate::trees::Tree| {
        let values = [Some(row.us), Some(row.peer_us), row.deft_us, Some(row.floor_us)];
        let speedups = format!("{:.2}x ({:.2}x)", row.speedup(0.0), row.speedup(added));
        Line::new(&row.workload, values, speedups)
    };
    let chart = Chart {
        caption: "Microseconds a layer and decode step; right: times as fast as the best peer",
        bars: false,
        key: "ours: this library; peer: best peer of the row; deft: DeFT's own kernels; bound: bound of the hardware",
        lines: comparison.rows.iter().map(line).collect(),
    };
    [
        chart.html(),
        under("All trees, microseconds", &comparison.table()),
        under("Groupings on the same kernels, microseconds", &comparison.groupings()),
        under(
            "The kernels for GPUs before Hopper, on the same H100, microseconds",
            &comparison.ampere_table(),
        ),
        from(&comparison.run) + &from(&comparison.peers) + &from(&comparison.ampere),
    ]
    .concat()
}

fn held_out() -> Result<String> {
    let suite = Suite::read("h100-held-out.json")?;
    let rows: Vec<&Row> = suite.rows.iter().collect();
    let name = |row: &Row| row.text("workload").to_owned();
    let chart = Chart {
        caption: "Microseconds a layer and decode step; right: times as fast as PerQuery",
        bars: false,
        key: AGAINST,
        lines: against_per_query(&rows, &["workload"], "median_us", name),
    };
    let fields = "workload: tree; grouping; median_us: us; floor_us: bound us; shares; max_rows: rows a tile";
    Ok(chart.html() + &listing("All rows", &suite, fields))
}

fn rates(comparison: &Comparison) -> String {
    let head = "tree | FLOP a byte | GB/s | of 3,088 | TFLOP/s | of 660 | best peer TFLOP/s";
    let mut table = Table::new(head);
    for row in &comparison.rows {
        let (bytes, flops) = (row.bytes_unique / row.us * 1e-3, row.tflops(row.us));
        table.row([
            row.workload.clone(),
            rounded(row.intensity()),
            rounded(bytes),
            format!("{:.0} %", bytes / STREAM_GB_PER_S * 100.0),
            rounded(flops),
            format!("{:.0} %", flops / TFLOP_PER_S * 100.0),
            rounded(row.tflops(row.peer_us)),
        ]);
    }
    under("Rates of all trees", &table) + &from(&comparison.run)
}

/// Bytes that [`GROUPING`] and PerQuery read, tree by tree.
fn issued(
    comparison: &Comparison,
) -> impl Iterator<Item = (&crate::trees::Tree, [Option<f64>; 2])> {
    comparison.rows.iter().map(|row| {
        let bytes = |name| {
            let row = comparison.run.row(&row.workload, name).ok()?;
            row.number("bytes_issued")
        };
        (row, [GROUPING, "per-query"].map(bytes))
    })
}

/// How much less `ours` is than `each`, in percent.
fn less(ours: Option<f64>, each: Option<f64>) -> Option<f64> {
    Some((1.0 - ours? / each?) * 100.0)
}

fn scaling() -> Result<String> {
    let suite = Suite::read("h100-scaling.json")?;
    let mut html = String::new();
    for (what, caption) in [
        ("queries", "Microseconds by queries; right: times as fast as PerQuery"),
        ("context", "Microseconds by tokens of context"),
        ("trees", "Microseconds by trees"),
    ] {
        let name = |row: &Row| or_dash(row.number(what), number) + " " + what;
        let rows = suite.having("workload", what);
        let lines = against_per_query(&rows, &[what], "median_us", name);
        html += &Chart { caption, bars: false, key: AGAINST, lines }.html();
    }
    let fields = "workload: varied; queries; context; trees; grouping; median_us: us; floor_us: bound us; bytes_unique: unique bytes; bytes_issued: bytes read";
    Ok(html + &listing("All rows", &suite, fields))
}

fn papers(paper: &Paper) -> String {
    let attention = paper.drawn(paper::ATTENTION).map(|(flatten, each)| {
        let values = [
            paper.printed(paper::ATTENTION, flatten, "radix"),
            paper.printed(paper::ATTENTION, flatten, "deft-flatten"),
            each.number("attention_s"),
            flatten.number("attention_s"),
        ];
        Line::new(paper::task(flatten), values, paper::over_per_query(flatten))
    });
    let attention = Chart {
        caption: "Attention of whole tasks, seconds, all steps and layers; right: ours, over PerQuery",
        bars: false,
        key: "deft ring: printed (A100): Radix; ours ring: printed (A100): DeFT-Flatten; deft: ours: PerQuery; ours: ours: Flatten",
        lines: attention.collect(),
    };
    let io = paper.drawn(paper::KV_IO).map(|(flatten, each)| {
        let [own, per_query] = [flatten, each].map(|row| row.number("kv_tb"));
        let partial = flatten.number("partial_issued_tb").unwrap_or(0.0);
        let values = [
            paper.printed(paper::KV_IO, flatten, "radix"),
            per_query,
            paper.printed(paper::KV_IO, flatten, "deft-flatten"),
            own,
            flatten.number("kv_issued_tb").map(|kv| kv + partial),
        ];
        let less = or_dash(less(own, per_query), |less| format!("{less:.1} %"));
        Line::new(paper::task(flatten), values, less)
    });
    let io = Chart {
        caption: "KV cache IO of whole tasks, TB: printed, recomputed, issued; right: less than PerQuery (paper's count)",
        bars: false,
        key: "deft ring: printed: Radix; deft: PerQuery, the paper's count; ours ring: printed: DeFT-Flatten; ours: Flatten, the paper's count; bound: Flatten as issued, partial results included",
        lines: io.collect(),
    };
    let tables = paper::BLOCKS.iter().map(|block| under(block.heading, &paper.table(block)));
    let tables: String = tables.collect();
    let fields = "model; task; prompt_tokens: prompt; grouping; chunk_pages: pages a chunk; attention_s: attention s; speedup_over_per_query: over PerQuery; kv_tb: KV TB, paper's count; partial_tb: partial TB, paper's count; kv_issued_tb: KV issued TB; partial_issued_tb: partial issued TB";
    let runs = listing("All rows of our run", &paper.ours, fields);
    attention.html() + &io.html() + &tables + &runs + &from(&paper.printed)
}

fn engine() -> Result<String> {
    let suite = Suite::read("h100-engine.json")?;
    let mut html = String::new();
    for model in suite.distinct("model") {
        let of_model = suite.having("model", model);
        let of_paper = |row: &&Row| row.number("prompt_tokens").is_some_and(|n| n % 1000.0 == 0.0);
        let rows: Vec<&Row> = of_model.into_iter().filter(of_paper).collect();
        if rows.is_empty() {
            continue;
        }
        let caption =
            format!("{model}: milliseconds a decode step; right: times as fast as PerQuery");
        let chart = Chart {
            caption: &caption,
            bars: true,
            key: "ours: Flatten; deft: PerQuery",
            lines: against_per_query(&rows, &["task", "prompt_tokens"], "step_ms", paper::task),
        };
        html += &chart.html();
    }
    let fields = "model; task; prompt_tokens: prompt; queries; grouping; step_ms: step ms; attention_ms: attention ms; host_gap_ms: host gap ms; attention_share: attention's share; tokens_per_s: tokens/s; memory_gb: memory GB";
    Ok(html + &listing("All rows", &suite, fields))
}

fn search() -> Result<String> {
    let fields = "task; method; problems; right; covered; tokens; steps; kv_read_bytes: KV bytes read; kv_per_query_bytes: bytes with PerQuery";
    let suite = Suite::read("h100-search.json")?;
    let line = |row: &Row| {
        let share = |name| Some(100.0 * row.number(name)? / row.number("problems")?);
        let right = or_dash(share("right"), |right| format!("{right:.1} %"));
        Line::new(row.text("method"), [share("right"), share("covered")], right)
    };
    let chart = Chart {
        caption: "Percent of the problems, on an H100",
        bars: true,
        key: "ours: right; peer: covered",
        lines: suite.rows.iter().map(line).collect(),
    };
    let mut html = chart.html() + &listing("On an H100", &suite, fields);
    for (file, summary) in
        [("cpu-search.json", "On a CPU"), ("cpu-search-others.json", "Other tasks, on a CPU")]
    {
        html += &listing(summary, &Suite::read(file)?, fields);
    }
    Ok(html)
}
