//! The 14 trees: times, rates, bytes, plans.

use super::super::axis::{number, rounded};
use super::super::figure::Sign;
use super::super::page::Section;
use super::super::pictures::{bars, io, roofline, schedule, tree};
use super::super::suites::title;
use super::super::table::{Table, or_dash};
use super::super::trees::{GROUPING, Row};
use super::super::{Data, text};

/// All of them.
pub(super) fn sections(data: &Data) -> Vec<Section> {
    vec![
        times(data),
        under_roofs(data),
        bytes(data),
        balance(data),
        sharing(data),
    ]
}

fn times(data: &Data) -> Section {
    let comparison = &data.comparison;
    Section::new("trees", "Against the peers")
        .says(format!(
            "Attention of one layer in one decode step, {} trees, grouping Flatten. Each row is held against the fastest of 22 \
             existing kernels and compositions on that row. <strong>The peers were measured apart</strong>, through another \
             timing loop; what that loop measures more for the same kernel is added to our times in the lighter bars and the \
             figures in brackets.",
            comparison.rows.len()
        ))
        .says("The planner's cost model was fitted on these same trees.")
        .shows(|size| bars::draw(comparison, size))
        .lists("All trees, microseconds", text::comparison_table(comparison))
        .lists("Groupings on the same kernels, microseconds", text::groupings_table(comparison))
        .lists(
            "The kernels for GPUs before Hopper, on the same H100, microseconds",
            data.ampere.table(),
        )
        .from(&comparison.ours)
        .from(&comparison.peers)
        .from(&data.ampere.origin)
}

fn under_roofs(data: &Data) -> Section {
    let comparison = &data.comparison;
    let mut table = Table::new([
        "tree",
        "FLOP a byte",
        "GB/s",
        "of 3,088",
        "TFLOP/s",
        "of 660",
        "best peer GB/s",
        "best peer TFLOP/s",
    ]);
    for row in &comparison.rows {
        let (bytes, flops) = (row.gb_per_s(row.ours_us), row.tflops(row.ours_us));
        table.row([
            row.workload.clone(),
            rounded(row.intensity()),
            rounded(bytes),
            format!("{:.0} %", bytes / roofline::STREAM_GB_PER_S * 100.0),
            rounded(flops),
            format!("{:.0} %", flops / roofline::TFLOP_PER_S * 100.0),
            rounded(row.gb_per_s(row.peer_us)),
            rounded(row.tflops(row.peer_us)),
        ]);
    }
    Section::new("roofline", "Under the roofs")
        .says(
            "A tree whose queries share much asks for many operations on each byte of KV. Left of the ridge memory sets the \
             pace, right of it the tensor cores. Bytes are those of unique KV, however often they are read again; operations \
             are those of both products.",
        )
        .shows(|size| roofline::draw(comparison, size))
        .lists("Rates of all trees", table)
        .from(&comparison.ours)
        .from(&comparison.peers)
}

/// How much less Flatten reads than PerQuery, in percent.
pub(super) fn reduction(row: &Row) -> Option<f64> {
    let [ours, each] =
        [GROUPING, "per-query"].map(|name| row.with(name).map(|row| row.bytes_issued as f64));
    Some((1.0 - ours? / each?) * 100.0)
}

fn bytes(data: &Data) -> Section {
    let comparison = &data.comparison;
    let marks = [
        io::Mark {
            sign: Sign::Tick,
            class: "bound",
            label: "unique KV",
        },
        io::Mark {
            sign: Sign::Dot,
            class: "ours",
            label: "read by Flatten, partial results and queries included",
        },
        io::Mark {
            sign: Sign::Diamond,
            class: "deft",
            label: "read by PerQuery",
        },
    ];
    let mut table = Table::new([
        "tree",
        "unique KV MB",
        "Flatten MB",
        "to unique",
        "PerQuery MB",
        "less than PerQuery",
    ]);
    let mut lines = Vec::new();
    for row in &comparison.rows {
        let mb = |bytes: u64| bytes as f64 * 1e-6;
        let [ours, each] =
            [GROUPING, "per-query"].map(|name| row.with(name).map(|row| mb(row.bytes_issued)));
        let unique = mb(row.bytes_unique);
        let less = reduction(row).map(|less| format!("{less:.1} %"));
        lines.push(io::Line {
            name: row.workload.clone(),
            values: vec![Some(unique), ours, each],
            right: less.clone().unwrap_or_default(),
        });
        table.row([
            row.workload.clone(),
            rounded(unique),
            or_dash(ours, rounded),
            or_dash(ours, |ours| format!("{:.2}x", ours / unique)),
            or_dash(each, rounded),
            or_dash(less, |less| less),
        ]);
    }
    let words = io::Words {
        name: "io",
        title: "Bytes that one layer's attention asks for",
        description: "For each tree three marks on a logarithmic line of megabytes: the KV that there is, what Flatten reads, and \
                      what PerQuery reads. The table below has the numbers.",
        axis: "MB a layer and step",
        right: "less than PerQuery",
    };
    Section::new("io", "What is read")
        .says(
            "What blocks ask for, whether memory or L2 serves it: pages that several row tiles read count again, and so do partial \
             results that are merged. PerQuery on the same kernels reads a shared prefix once a query.",
        )
        .shows(|size| io::draw(words, &marks, &lines, size))
        .lists("Bytes of all trees", table)
        .from(&comparison.ours)
}

fn balance(data: &Data) -> Section {
    let mut table = Table::new([
        "tree",
        "grouping",
        "last SM ends, us",
        "mean of the SMs, us",
        "last / mean",
        "items",
        "measured us",
    ]);
    for laid_out in [&data.star, &data.tree] {
        for schedule in &laid_out.schedules {
            let [end, mean] = [schedule.end_ns(), schedule.mean_ns()].map(|ns| ns * 1e-3);
            table.row([
                laid_out.workload.name.clone(),
                title(schedule.grouping).to_owned(),
                format!("{end:.1}"),
                format!("{mean:.1}"),
                format!("{:.2}x", end / mean),
                schedule.items().to_string(),
                format!("{:.1}", schedule.measured_us),
            ]);
        }
    }
    Section::new("schedule", "Who works when")
        .says(
            "The paper's flattening is about balance. With a tree node as the unit of work (Node), the SM with the longest node \
             works on when the others are through. Chunks of 128 tokens (NodeChunk) are even, but every one leaves partial \
             results of all its queries. Flatten cuts the flattened tree into as many even shares as there are SMs, wherever \
             the cuts fall.",
        )
        .says(
            "The plans are the planner's own, with the settings of the measured run; what each SM takes is the planner's \
             estimate. It leaves out the launch and what waits for the \
             merge; the measured times, beside it, have all.",
        )
        .shows(|size| schedule::draw(&data.star, size))
        .shows(|size| schedule::draw(&data.tree, size))
        .lists("The plans in numbers", table)
        .from(&data.comparison.ours)
}

fn sharing(data: &Data) -> Section {
    let laid_out = &data.tree;
    let mut table = Table::new(["shared by", "nodes", "tokens", "tokens that PerQuery reads"]);
    let mut sharers: Vec<u32> = laid_out
        .view
        .runs
        .iter()
        .map(|run| run.queries.len() as u32)
        .collect();
    sharers.sort_unstable();
    sharers.dedup();
    for &by in sharers.iter().rev() {
        let runs = || {
            laid_out
                .view
                .runs
                .iter()
                .filter(|run| run.queries.len() as u32 == by)
        };
        let tokens: u64 = runs().map(|run| u64::from(run.tokens)).sum();
        table.row([
            by.to_string(),
            runs().count().to_string(),
            number(tokens as f64),
            number((tokens * u64::from(by)) as f64),
        ]);
    }
    let mut section = Section::new("tree", "Who shares what")
        .says(
            "The second tree of the plans above. A box's area is what its node costs if every query reads its whole path; tree attention \
             reads each box once, at the height of one query.",
        )
        .shows(|size| tree::draw(laid_out, size))
        .lists("Nodes by the number of queries that share them", table);
    section.words.push(
        "The shape is from <a href=\"../../workloads/trees.json\">workloads/trees.json</a>."
            .to_owned(),
    );
    section
}
