//! What the page says, section by section.

use anyhow::Result;

use crate::data::{Row, Suite, Table, geometric_mean, number, or_dash, rounded, title};
use crate::page::{Chart, Line, Section, listing};
use crate::paper::{self, Paper};
use crate::pictures::{self, STREAM_GB_PER_S, TFLOP_PER_S};
use crate::plans::LaidOut;
use crate::trees::{Comparison, GROUPING};

/// Numbers for the head of the page, and what each is.
pub(crate) fn tiles(comparison: &Comparison) -> Vec<(String, String)> {
    let added = comparison.added_us;
    let (over_deft, rows) = comparison.mean_over_deft(added);
    let shares = comparison.rows.iter().map(|row| row.floor_us / row.us);
    let less = comparison.rows.iter().filter_map(|row| {
        let issued = |name| {
            comparison
                .run
                .row(&row.workload, name)
                .ok()?
                .number("bytes_issued")
        };
        Some((1.0 - issued(GROUPING)? / issued("per-query")?) * 100.0)
    });
    let all = comparison.rows.len();
    [
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
    ]
    .into()
}

/// All sections.
pub(crate) fn sections(
    comparison: &Comparison,
    plans: [&LaidOut; 2],
    paper: &Paper,
) -> Result<Vec<Section>> {
    Ok(vec![
        times(comparison),
        held_out()?,
        roofs(comparison),
        bytes(comparison),
        balance(comparison, plans),
        scaling()?,
        papers(paper),
        engine()?,
        search()?,
        planning()?,
        processors()?,
    ])
}

/// Classes and meanings of a chart's values, from `class: meaning; class: meaning`.
fn key(items: &'static str) -> Vec<(&'static str, String)> {
    let items = items.split("; ").filter_map(|item| item.split_once(": "));
    items
        .map(|(class, meaning)| (class, meaning.to_owned()))
        .collect()
}

fn times(comparison: &Comparison) -> Section {
    let added = comparison.added_us;
    let line = |row: &crate::trees::Tree| Line {
        name: row.workload.clone(),
        values: vec![
            Some(row.us),
            Some(row.peer_us),
            row.deft_us,
            Some(row.floor_us),
        ],
        right: format!("{:.2}x ({:.2}x)", row.speedup(0.0), row.speedup(added)),
    };
    let chart = Chart {
        caption: "Microseconds a layer and decode step; right: times as fast as the best peer",
        bars: false,
        key: key(
            "ours: this library; peer: best peer of the row; deft: DeFT's own kernels; bound: bound of the hardware",
        ),
        lines: comparison.rows.iter().map(line).collect(),
    };
    let words = format!(
        "Attention of one layer in one decode step, {} trees, grouping Flatten. Each row is held against the fastest of 22 \
         existing kernels and compositions on that row. <strong>The peers were measured apart</strong>, through another \
         timing loop; what that loop measures more for the same kernel ({added:.1} us) is added to our times in the figures \
         in brackets. The planner's cost model was fitted on these same trees.",
        comparison.rows.len()
    );
    Section::new("trees", "Against the peers")
        .says(&words)
        .draws(&chart)
        .lists("All trees, microseconds", &comparison.table())
        .lists(
            "Groupings on the same kernels, microseconds",
            &comparison.groupings(),
        )
        .lists(
            "The kernels for GPUs before Hopper, on the same H100, microseconds",
            &comparison.ampere_table(),
        )
        .from(&comparison.run)
        .from(&comparison.peers)
        .from(&comparison.ampere)
}

/// The rows of `suite` with [`GROUPING`], each beside its like with PerQuery, as lines of a chart.
fn against_per_query(
    suite: &Suite,
    like: &[&str],
    field: &str,
    name: impl Fn(&Row) -> String,
) -> Vec<Line> {
    let rows = || suite.rows.iter();
    let line = |row: &Row| {
        let mut others = rows().filter(|other| other.is_like(&row.0, like));
        let each = others.find(|other| other.text("grouping") == "per-query");
        let each = each.and_then(|each| each.number(field));
        let own = row.number(field);
        let over = own.zip(each).map(|(own, each)| each / own);
        Line {
            name: name(row),
            values: vec![own, each, row.number("floor_us")],
            right: or_dash(over, |over| format!("{over:.2}x")),
        }
    };
    rows()
        .filter(|row| row.text("grouping") == GROUPING)
        .map(line)
        .collect()
}

fn flatten_and_per_query() -> Vec<(&'static str, String)> {
    key(
        "ours: Flatten; deft: PerQuery, a shared prefix is read once a query; bound: bound of the hardware",
    )
}

fn held_out() -> Result<Section> {
    let suite = Suite::read("h100-held-out.json")?;
    let chart = Chart {
        caption: "Microseconds a layer and decode step; right: times as fast as PerQuery",
        bars: false,
        key: flatten_and_per_query(),
        lines: against_per_query(&suite, &["workload"], "median_us", |row| {
            row.text("workload").to_owned()
        }),
    };
    let fields = "workload: tree; grouping; median_us: us; floor_us: bound us; shares; max_rows: rows a tile";
    Ok(Section::new("held-out", "Trees that no constant was fitted on")
        .says(
            "Drawn by a rule before anything was run on them \
             (<a href=\"../../workloads/README.md\">workloads/README.md</a>); the peers have no times for these.",
        )
        .draws(&chart)
        .lists("All rows", &listing(&suite, fields))
        .from(&suite))
}

fn roofs(comparison: &Comparison) -> Section {
    let mut table =
        Table::new("tree | FLOP a byte | GB/s | of 3,088 | TFLOP/s | of 660 | best peer TFLOP/s");
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
    Section::new("roofline", "Under the roofs")
        .says(
            "A tree whose queries share much asks for many operations on each byte of KV. Left of the ridge memory sets the \
             pace, right of it the tensor cores. Bytes are those of unique KV, however often they are read again; operations \
             are those of both products.",
        )
        .shows(&pictures::roofline(comparison))
        .lists("Rates of all trees", &table)
        .from(&comparison.run)
}

fn bytes(comparison: &Comparison) -> Section {
    let mut table =
        Table::new("tree | unique KV MB | Flatten MB | PerQuery MB | less than PerQuery");
    let mut lines = Vec::new();
    for row in &comparison.rows {
        let issued = |name| {
            comparison
                .run
                .row(&row.workload, name)
                .ok()?
                .number("bytes_issued")
        };
        let [ours, each] = [GROUPING, "per-query"].map(|name| Some(issued(name)? * 1e-6));
        let less = ours
            .zip(each)
            .map(|(ours, each)| (1.0 - ours / each) * 100.0);
        let (unique, less) = (
            row.bytes_unique * 1e-6,
            or_dash(less, |less| format!("{less:.1} %")),
        );
        let [shown_ours, shown_each] = [ours, each].map(|mb| or_dash(mb, rounded));
        table.row([
            row.workload.clone(),
            rounded(unique),
            shown_ours,
            shown_each,
            less.clone(),
        ]);
        let values = vec![ours, each, Some(unique)];
        lines.push(Line {
            name: row.workload.clone(),
            values,
            right: less,
        });
    }
    let chart = Chart {
        caption: "MB a layer and step; right: less than PerQuery",
        bars: false,
        key: key(
            "ours: read by Flatten, partial results and queries included; deft: read by PerQuery; bound: unique KV",
        ),
        lines,
    };
    Section::new("io", "What is read")
        .says(
            "What blocks ask for, whether memory or L2 serves it: pages that several row tiles read count again, and so do \
             partial results that are merged. PerQuery on the same kernels reads a shared prefix once a query.",
        )
        .draws(&chart)
        .lists("Bytes of all trees", &table)
        .from(&comparison.run)
}

fn balance(comparison: &Comparison, plans: [&LaidOut; 2]) -> Section {
    let mut table = Table::new(
        "tree | grouping | last SM ends, us | mean of the SMs, us | last / mean | items | measured us",
    );
    plans.iter().for_each(|plan| plan.rows(&mut table));
    Section::new("schedule", "Who works when")
        .says(
            "The paper's flattening is about balance. With a tree node as the unit of work (Node), the SM with the longest node \
             works on when the others are through. Chunks of 128 tokens (NodeChunk) are even, but every one leaves partial \
             results of all its queries. Flatten cuts the flattened tree into as many even shares as there are SMs, wherever \
             the cuts fall. The plans are the planner's own, with the settings of the measured run; what each SM takes is the \
             planner's estimate, which leaves out the launch and what waits for the merge.",
        )
        .shows(&plans[0].schedule())
        .shows(&plans[1].schedule())
        .lists("The plans in numbers", &table)
        .says(
            "The second tree: a box's area is what its node costs if every query reads its whole path; tree attention reads \
             each box once, at the height of one query.",
        )
        .shows(&plans[1].tree())
        .from(&comparison.run)
}

fn scaling() -> Result<Section> {
    let suite = Suite::read("h100-scaling.json")?;
    let mut section = Section::new("scaling", "How it scales").says(
        "One thing is varied at a time; the distance to the red line is what is left to gain.",
    );
    for (what, caption) in [
        (
            "queries",
            "Microseconds by queries; right: times as fast as PerQuery",
        ),
        ("context", "Microseconds by tokens of context"),
        ("trees", "Microseconds by trees"),
    ] {
        let rows = suite
            .rows
            .iter()
            .filter(|row| row.text("workload") == what)
            .cloned()
            .collect();
        let part = Suite {
            file: suite.file,
            all: suite.all.clone(),
            rows,
        };
        let name = |row: &Row| or_dash(row.number(what), number) + " " + what;
        let lines = against_per_query(&part, &[what], "median_us", name);
        section = section.draws(&Chart {
            caption,
            bars: false,
            key: flatten_and_per_query(),
            lines,
        });
    }
    let fields = "workload: varied; queries; context; trees; grouping; median_us: us; floor_us: bound us; bytes_unique: unique bytes; bytes_issued: bytes read";
    Ok(section
        .lists("All rows", &listing(&suite, fields))
        .from(&suite))
}

fn papers(paper: &Paper) -> Section {
    let attention = paper.drawn(paper::ATTENTION).map(|(flatten, each)| Line {
        name: paper::task(flatten),
        values: vec![
            paper.printed(paper::ATTENTION, flatten, "radix"),
            paper.printed(paper::ATTENTION, flatten, "deft-flatten"),
            each.number("attention_s"),
            flatten.number("attention_s"),
        ],
        right: paper::over_per_query(flatten),
    });
    let attention = Chart {
        caption: "Attention of whole tasks, seconds, all steps and layers; right: ours, over PerQuery",
        bars: false,
        key: key(
            "deft ring: printed (A100): Radix; ours ring: printed (A100): DeFT-Flatten; deft: ours: PerQuery; ours: ours: Flatten",
        ),
        lines: attention.collect(),
    };
    let io = paper.drawn(paper::KV_IO).map(|(flatten, each)| {
        let [own, per_query] = [flatten, each].map(|row| row.number("kv_tb"));
        let less = own
            .zip(per_query)
            .map(|(own, each)| (1.0 - own / each) * 100.0);
        let issued = flatten.number("kv_issued_tb");
        let partial = flatten.number("partial_issued_tb").unwrap_or(0.0);
        Line {
            name: paper::task(flatten),
            values: vec![
                paper.printed(paper::KV_IO, flatten, "radix"),
                per_query,
                paper.printed(paper::KV_IO, flatten, "deft-flatten"),
                own,
                issued.map(|kv| kv + partial),
            ],
            right: or_dash(less, |less| format!("{less:.1} %")),
        }
    });
    let io = Chart {
        caption: "KV cache IO of whole tasks, TB: printed, recomputed, issued; right: less than PerQuery (paper's count)",
        bars: false,
        key: key(
            "deft ring: printed: Radix; deft: PerQuery, the paper's count; ours ring: printed: DeFT-Flatten; ours: Flatten, the paper's count; bound: Flatten as issued, partial results included",
        ),
        lines: io.collect(),
    };
    let mut section = Section::new("paper", "The paper's tasks").says(
        "The paper counts K and V at the width of the query heads and leaves out partial results of split KV; what plans of \
         ours issue has the KV heads' width and counts all. Its times are of an A100, ours of the device named below: a ratio \
         is ours over theirs. <a href=\"../reproduction.md\">docs/reproduction.md</a> says why they differ. The pictures show \
         what the paper's Tables 16 and 17 have, the tables all that we ran.",
    );
    section = section.draws(&attention).draws(&io);
    for block in paper.blocks() {
        section = section.lists(block.heading, &block.table);
    }
    section
        .lists("All rows of our run", &paper.runs())
        .from(&paper.ours)
        .from(&paper.printed)
}

fn engine() -> Result<Section> {
    let suite = Suite::read("h100-engine.json")?;
    let fields = "model; task; prompt_tokens: prompt; queries; grouping; step_ms: step ms; attention_ms: attention ms; host_gap_ms: host gap ms; attention_share: attention's share; tokens_per_s: tokens/s; memory_gb: memory GB";
    let mut section = Section::new("engine", "Whole models").says(
        "A model decodes over a tree: all layers, sampling and the tree's upkeep. Groupings differ in attention alone.",
    );
    let mut models: Vec<&str> = Vec::new();
    for row in &suite.rows {
        if !models.contains(&row.text("model")) {
            models.push(row.text("model"));
        }
    }
    for model in models {
        let rows = suite
            .rows
            .iter()
            .filter(|row| row.text("model") == model)
            .cloned()
            .collect();
        let part = Suite {
            file: suite.file,
            all: suite.all.clone(),
            rows,
        };
        let chart = Chart {
            caption: "Milliseconds a decode step; right: times as fast as PerQuery",
            bars: true,
            key: key("ours: Flatten; deft: PerQuery"),
            lines: against_per_query(&part, &["task", "prompt_tokens"], "step_ms", paper::task),
        };
        section = section
            .says(&format!("<strong>{model}</strong>"))
            .draws(&chart);
    }
    Ok(section
        .lists("All rows", &listing(&suite, fields))
        .from(&suite))
}

fn search() -> Result<Section> {
    let mut section = Section::new("search", "Search with a language model").says(
        "How often a small model's answer is right, by search method, on tasks whose answers a program checks. Covered: some \
         candidate was right.",
    );
    let fields = "task; method; problems; right; covered; tokens; steps; kv_read_bytes: KV bytes read; kv_per_query_bytes: bytes with PerQuery";
    for (file, summary) in [
        ("h100-search.json", "On an H100"),
        ("cpu-search.json", "On a CPU"),
        ("cpu-search-others.json", "Other tasks, on a CPU"),
    ] {
        let suite = Suite::read(file)?;
        if file.starts_with("h100") {
            let share = |row: &Row, name| Some(100.0 * row.number(name)? / row.number("problems")?);
            let line = |row: &Row| Line {
                name: row.text("method").to_owned(),
                values: vec![share(row, "right"), share(row, "covered")],
                right: or_dash(share(row, "right"), |right| format!("{right:.1} %")),
            };
            section = section.draws(&Chart {
                caption: "Percent of the problems, on an H100",
                bars: true,
                key: key("ours: right; peer: covered"),
                lines: suite.rows.iter().map(line).collect(),
            });
        }
        section = section
            .lists(summary, &listing(&suite, fields))
            .from(&suite);
    }
    Ok(section)
}

fn planning() -> Result<Section> {
    let suite = Suite::read("cpu-plan.json")?;
    let fields = "tree; nodes; queries; change; grouping; median_us: us";
    let is_plan = |row: &&Row| row.text("change") == "plan" && row.text("grouping") == GROUPING;
    let line = |row: &Row| Line {
        name: format!(
            "{}, {} nodes",
            row.text("tree"),
            or_dash(row.number("nodes"), number)
        ),
        values: vec![row.number("median_us")],
        right: or_dash(row.number("median_us"), |us| rounded(us) + " us"),
    };
    let chart = Chart {
        caption: "A new plan of Flatten, microseconds",
        bars: false,
        key: key("ours: a new plan"),
        lines: suite.rows.iter().filter(is_plan).map(line).collect(),
    };
    Ok(Section::new("planning", "Planning on the host")
        .says("A plan is made on one core, between steps, only when the tree's shape changes; a page's edge patches it.")
        .draws(&chart)
        .lists("Views, plans and patches", &listing(&suite, fields))
        .from(&suite))
}

fn processors() -> Result<Section> {
    let suite = Suite::read("cpu-ratios.json")?;
    let is_flatten = |row: &&Row| row.text("grouping") == GROUPING;
    let ratio =
        |workload: &str, name: &str| suite.row(workload, name).ok()?.number("ratio_to_per_query");
    let flatten = || {
        suite
            .rows
            .iter()
            .filter(is_flatten)
            .map(|row| row.text("workload"))
    };
    let line = |workload: &str| Line {
        name: workload.to_owned(),
        values: ["node", "node-chunk", GROUPING]
            .map(|name| ratio(workload, name))
            .into(),
        right: or_dash(ratio(workload, GROUPING), |ratio| format!("{ratio:.2}x")),
    };
    let chart = Chart {
        caption: "Times as fast as PerQuery, within one run; right: Flatten",
        bars: false,
        key: ["node", "node-chunk", GROUPING]
            .iter()
            .zip(["deft", "peer", "ours"])
            .map(|(name, class)| (class, title(name).to_owned()))
            .collect(),
        lines: flatten().map(line).collect(),
    };
    let mean = geometric_mean(flatten().filter_map(|workload| ratio(workload, GROUPING)));
    let fields = "workload; grouping; ratio_to_per_query: over PerQuery";
    Ok(Section::new("cpu", "On the CPU")
        .says(&format!(
            "The CPU backend runs the same plans. Only ratios within one run are compared: Flatten is {mean:.2} times as fast \
             as PerQuery (geometric mean)."
        ))
        .draws(&chart)
        .lists("All workloads", &listing(&suite, fields))
        .from(&suite))
}
