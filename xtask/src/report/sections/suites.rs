//! What the other suites measured.

use super::super::axis::{number, rounded};
use super::super::figure::Sign;
use super::super::page::Section;
use super::super::pictures::{engine, io, plans, scaling};
use super::super::suites::{Paper, Plan, title};
use super::super::table::{Table, or_dash};
use super::super::trees::{GROUPING, geometric_mean};
use super::super::{Data, paper};

/// Those that there are data for.
pub(super) fn sections(data: &Data) -> Vec<Section> {
    let all = [
        scale(data),
        papers(data),
        models(data),
        planning(data),
        processors(data),
    ];
    all.into_iter().flatten().collect()
}

fn scale(data: &Data) -> Option<Section> {
    let suite = data.scaling.as_ref()?;
    let mut section = Section::new("scaling", "How it scales")
        .says("One thing is varied at a time; the curves' distance to the dashed line is what is left to gain.")
        .shows(|size| scaling::draw(&suite.rows, size));
    for (name, axis) in scaling::PANELS {
        let mut table = Table::new([
            axis,
            "grouping",
            "us",
            "bound us",
            "of bound",
            "unique MB",
            "read MB",
        ]);
        for row in suite.rows.iter().filter(|row| row.workload == name) {
            table.row([
                number(row.varied().into()),
                title(&row.grouping).to_owned(),
                rounded(row.median_us),
                rounded(row.floor_us),
                format!("{:.0} %", row.floor_us / row.median_us * 100.0),
                rounded(row.bytes_unique as f64 * 1e-6),
                rounded(row.bytes_issued as f64 * 1e-6),
            ]);
        }
        section = section.lists(format!("By {axis}"), table);
    }
    Some(section.from(&suite.origin))
}

fn papers(data: &Data) -> Option<Section> {
    let suite = data.paper.as_ref()?;
    let mut section = Section::new("paper", "The paper's tasks").says(
        "The paper counts K and V at the width of the query heads and leaves out partial results of split KV; what plans of \
         ours issue has the KV heads' width and counts all. Its times are of an A100, ours of the device named below: a ratio \
         is ours over theirs. <a href=\"../reproduction.md\">docs/reproduction.md</a> says why they differ. The pictures show \
         what the paper's Tables 16 and 17 have, the tables below all that we ran.",
    );
    for chart in [
        attention_of_tasks(data, &suite.rows),
        io_of_tasks(data, &suite.rows),
    ] {
        if !chart.lines.is_empty() {
            section = section.shows(|size| io::draw(chart.words, &chart.marks, &chart.lines, size));
        }
    }
    for block in paper::blocks(&data.printed.rows, &suite.rows) {
        section = section.lists(block.heading, block.table);
    }
    let mut models: Vec<&str> = Vec::new();
    for row in &suite.rows {
        if !models.contains(&row.model.as_str()) {
            models.push(&row.model);
        }
    }
    for model in models {
        let heading = format!("All rows of our run with {model}");
        section = section.lists(heading, paper::runs(&suite.rows, model));
    }
    Some(section.from(&suite.origin).from(&data.printed.origin))
}

/// Marks on lines, to be drawn.
struct Chart {
    words: io::Words<'static>,
    marks: Vec<io::Mark>,
    lines: Vec<io::Line>,
}

fn attention_of_tasks(data: &Data, rows: &[Paper]) -> Chart {
    let line = |flatten: &Paper, each: &Paper| {
        let printed =
            |method| paper::printed(&data.printed.rows, paper::ATTENTION, flatten, method);
        Some(io::Line {
            name: paper::task(flatten),
            values: vec![
                printed("radix"),
                printed("deft-flatten"),
                each.attention_s,
                Some(flatten.attention_s?),
            ],
            right: or_dash(flatten.speedup_over_per_query, |over| format!("{over:.2}x")),
        })
    };
    Chart {
        words: io::Words {
            name: "paper-attention",
            title: "Attention of whole tasks: printed (A100), and ours",
            description: "For each task marks on a logarithmic line of seconds: what the paper prints for Radix and \
                          DeFT-Flatten on an A100, and PerQuery and Flatten here. The table below has the numbers.",
            axis: "seconds a task, all steps and layers",
            right: "ours, over PerQuery",
        },
        marks: vec![
            mark(Sign::Diamond, "deft-ring", "printed: Radix"),
            mark(Sign::Dot, "ours-ring", "printed: DeFT-Flatten"),
            mark(Sign::Diamond, "deft", "ours: PerQuery"),
            mark(Sign::Dot, "ours", "ours: Flatten"),
        ],
        lines: pairs(data, paper::ATTENTION, rows)
            .filter_map(|(flatten, each)| line(flatten, each))
            .collect(),
    }
}

fn io_of_tasks(data: &Data, rows: &[Paper]) -> Chart {
    let line = |flatten: &Paper, each: &Paper| {
        let printed = |method| paper::printed(&data.printed.rows, paper::KV_IO, flatten, method);
        let issued = flatten.kv_issued_tb? + flatten.partial_issued_tb.unwrap_or(0.0);
        let less = (1.0 - flatten.kv_tb? / each.kv_tb?) * 100.0;
        Some(io::Line {
            name: paper::task(flatten),
            values: vec![
                printed("radix"),
                each.kv_tb,
                printed("deft-flatten"),
                flatten.kv_tb,
                Some(issued),
            ],
            right: format!("{less:.1} %"),
        })
    };
    Chart {
        words: io::Words {
            name: "paper-io",
            title: "KV cache IO of whole tasks: printed, recomputed, issued",
            description: "For each task marks on a logarithmic line of terabytes: what the paper prints for Radix and \
                          DeFT-Flatten, what the same count gives here, and what our plans issue. The table below has the \
                          numbers.",
            axis: "TB a task, all steps and layers",
            right: "less (paper's count)",
        },
        marks: vec![
            mark(Sign::Diamond, "deft-ring", "printed: Radix"),
            mark(Sign::Triangle, "deft", "PerQuery, the paper's count"),
            mark(Sign::Dot, "ours-ring", "printed: DeFT-Flatten"),
            mark(Sign::Triangle, "ours", "Flatten, the paper's count"),
            mark(
                Sign::Tick,
                "bound",
                "Flatten as issued, partial results included",
            ),
        ],
        lines: pairs(data, paper::KV_IO, rows)
            .filter_map(|(flatten, each)| line(flatten, each))
            .collect(),
    }
}

fn mark(sign: Sign, class: &'static str, label: &'static str) -> io::Mark {
    io::Mark { sign, class, label }
}

/// Flatten and PerQuery of each task that a table of the paper has; all prompts and models would be too many to draw.
fn pairs<'a>(
    data: &Data,
    table: (u32, &str),
    rows: &'a [Paper],
) -> impl Iterator<Item = (&'a Paper, &'a Paper)> {
    let flatten = rows.iter().filter(move |row| {
        row.grouping == GROUPING
            && paper::printed(&data.printed.rows, table, row, "deft-flatten").is_some()
    });
    flatten.filter_map(|ours| {
        let same = |row: &&Paper| {
            row.task == ours.task
                && row.model == ours.model
                && row.prompt_tokens == ours.prompt_tokens
        };
        let each = rows
            .iter()
            .filter(same)
            .find(|row| row.grouping == "per-query")?;
        Some((ours, each))
    })
}

fn models(data: &Data) -> Option<Section> {
    let suite = data.engine.as_ref()?;
    let mut table = Table::new([
        "model",
        "task",
        "prompt",
        "queries",
        "grouping",
        "step ms",
        "attention ms",
        "host gap ms",
        "attention",
        "tokens/s",
        "memory GB",
    ]);
    for row in &suite.rows {
        let figure = |value: Option<f64>| or_dash(value, rounded);
        table.row([
            row.model.clone(),
            row.task.clone(),
            or_dash(row.prompt_tokens, |tokens| number(tokens.into())),
            or_dash(row.queries, |queries| {
                number((queries * 10.0).round() / 10.0)
            }),
            title(&row.grouping).to_owned(),
            rounded(row.step_ms),
            figure(row.attention_ms),
            figure(row.host_gap_ms),
            or_dash(row.attention_share, |share| {
                format!("{:.0} %", share * 100.0)
            }),
            or_dash(row.tokens_per_s, |rate| number(rate.round())),
            figure(row.memory_gb),
        ]);
    }
    let section = Section::new("engine", "Whole models")
        .says("A model decodes over a tree: all layers, sampling and the tree's upkeep. Groupings differ in attention alone.")
        .shows(|size| engine::draw(&suite.rows, size))
        .lists("All rows", table);
    Some(section.from(&suite.origin))
}

fn planning(data: &Data) -> Option<Section> {
    let suite = data.plan.as_ref()?;
    let tree = &suite.rows.first()?.tree;
    let mut table = Table::new(["tree", "nodes", "queries", "change", "grouping", "us"]);
    // Patches are about the same for all groupings.
    let is_shown = |row: &&Plan| {
        row.change == "plan" || row.grouping.as_deref().is_none_or(|name| name == GROUPING)
    };
    for row in suite.rows.iter().filter(is_shown) {
        table.row([
            row.tree.clone(),
            number(row.nodes.into()),
            number(row.queries.into()),
            row.change.clone(),
            or_dash(row.grouping.as_deref(), |name| title(name).to_owned()),
            rounded(row.median_us),
        ]);
    }
    let section = Section::new("planning", "Planning on the host")
        .says("A plan is made on one core, between steps, only when the tree's shape changes; a page's edge patches it.")
        .shows(|size| plans::draw(&suite.rows, tree, size))
        .lists("Views, plans of all groupings, and patches of Flatten", table);
    Some(section.from(&suite.origin))
}

fn processors(data: &Data) -> Option<Section> {
    let suite = data.cpu.as_ref()?;
    let mut workloads: Vec<&str> = suite.rows.iter().map(|row| row.workload.as_str()).collect();
    workloads.dedup();
    let groupings = ["node", "node-chunk", GROUPING];
    let find = |workload: &str, grouping: &str| {
        let mut rows = suite.rows.iter().filter(|row| row.workload == workload);
        rows.find(|row| row.grouping == grouping)
            .map(|row| row.ratio_to_per_query)
    };
    let mut table = Table::new(["workload", "Node", "NodeChunk", "Flatten"]);
    let mut lines = Vec::new();
    for workload in workloads {
        let ratios = groupings.map(|grouping| find(workload, grouping));
        let shown = ratios.map(|ratio| or_dash(ratio, |ratio| format!("{ratio:.2}x")));
        table.row([&[workload.to_owned()], &shown[..]].concat());
        lines.push(io::Line {
            name: workload.to_owned(),
            values: ratios.to_vec(),
            right: shown[2].clone(),
        });
    }
    let marks = [
        mark(Sign::Diamond, "deft", "Node"),
        mark(Sign::Triangle, "peer", "NodeChunk"),
        mark(Sign::Dot, "ours", "Flatten"),
    ];
    let words = io::Words {
        name: "cpu",
        title: "On the CPU: times as fast as PerQuery",
        description: "For each workload marks on a logarithmic line: PerQuery's processor time over that of Node, NodeChunk and \
                      Flatten. The table below has the numbers.",
        axis: "times as fast as PerQuery, within one run",
        right: "Flatten",
    };
    let mean = geometric_mean(
        suite
            .rows
            .iter()
            .filter(|row| row.grouping == GROUPING)
            .map(|row| row.ratio_to_per_query),
    );
    let section = Section::new("cpu", "On the CPU")
        .says(format!(
            "The CPU backend runs the same plans. Only ratios within one run are compared: Flatten is {mean:.2} times as fast as \
             PerQuery (geometric mean)."
        ))
        .shows(|size| io::draw(words, &marks, &lines, size))
        .lists("All workloads", table);
    Some(section.from(&suite.origin))
}
