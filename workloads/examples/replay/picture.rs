//! The tree over time as an SVG: a bar a node, depth first, over decode steps; light and dark.

use std::fmt::Write;

use deft_workloads::{ReasoningRun, ReasoningStep};

const WIDTH: f64 = 1000.0;
const LEFT: f64 = 64.0;
const RIGHT: f64 = 24.0;
/// Title, size and two lines of legend are above the bars; ticks and the axis' name below.
const TOP: f64 = 112.0;
const BOTTOM: f64 = 56.0;
/// Height of all bars together, as far as a bar's own limits allow.
const BARS: f64 = 900.0;
/// Least height of a row that has its number written beside it.
const LABELLED: f64 = 8.5;
/// Least numbers of queries of the colours `q0` and on.
const SHADES: [u32; 7] = [1, 2, 4, 8, 16, 32, 64];
/// Colours, the signs for a node that is pruned, one that is there at the end and a step that was sampled, and what all
/// of them mean.
const LEGEND: &str = r##"<style>
:root{--ground:#fff;--ink:#1f2328;--soft:#59636e;--grid:#d1d9e0;--gone:#cf222e;--idle:#b6bec7;--mark:#c2570c;
--q0:#a8ddd0;--q1:#6cc4c4;--q2:#3f9fcf;--q3:#3a72c0;--q4:#4a4aa8;--q5:#5b2a86;--q6:#3c1053}
@media(prefers-color-scheme:dark){:root{--ground:#0d1117;--ink:#e6edf3;--soft:#9198a1;--grid:#30363d;--gone:#ff7b72;
--idle:#4b535d;--mark:#f0883e;--q0:#1f5a54;--q1:#2b7d84;--q2:#3a9bc8;--q3:#6cb1f5;--q4:#a5b8ff;--q5:#d0b3ff;--q6:#ffd1f0}}
text{font:12px system-ui,sans-serif;fill:var(--ink)}.title{font-size:15px;font-weight:600}.number{font-size:8px}
.end{text-anchor:end}.middle{text-anchor:middle}.grid,.link{stroke:var(--grid);fill:none}.link{stroke:var(--soft)}
.gone{stroke:var(--gone);stroke-width:1.5;fill:none}.open{fill:var(--soft)}.idle{fill:var(--idle)}
.sampled{fill:var(--mark)}.ground{fill:var(--ground)}.q0{fill:var(--q0)}.q1{fill:var(--q1)}.q2{fill:var(--q2)}
.q3{fill:var(--q3)}.q4{fill:var(--q4)}.q5{fill:var(--q5)}.q6{fill:var(--q6)}</style>
<defs><path id="gone" d="M-3-3l6 6m-6 0l6-6"/><path id="open" d="M1-3l5 3-5 3z"/><path id="sampled" d="M0 0l3 7h-6z"/></defs>
<rect class="ground" width="100%" height="100%"/>
<text x="64" y="68">queries that share a node:</text>
<rect class="q0" x="240" y="59" width="20" height="9"/><text x="266" y="68">1</text>
<rect class="q1" x="320" y="59" width="20" height="9"/><text x="346" y="68">2–3</text>
<rect class="q2" x="400" y="59" width="20" height="9"/><text x="426" y="68">4–7</text>
<rect class="q3" x="480" y="59" width="20" height="9"/><text x="506" y="68">8–15</text>
<rect class="q4" x="560" y="59" width="20" height="9"/><text x="586" y="68">16–31</text>
<rect class="q5" x="640" y="59" width="20" height="9"/><text x="666" y="68">32–63</text>
<rect class="q6" x="720" y="59" width="20" height="9"/><text x="746" y="68">more</text>
<rect class="idle" x="800" y="62" width="20" height="4"/><text x="826" y="68">none, but kept</text>
<rect class="open" x="64" y="81" width="20" height="9"/><text x="90" y="90">grows and asks</text>
<rect class="open" x="204" y="84" width="20" height="4"/><text x="230" y="90">read by those below</text>
<use class="gone" href="#gone" x="364" y="86"/><text x="374" y="90">pruned</text>
<use class="open" href="#open" x="432" y="86"/><text x="448" y="90">there at the end</text>
<use class="sampled" href="#sampled" x="564" y="82"/><text x="574" y="90">attention run and checked</text>
"##;

/// A run as it has been so far.
pub(crate) struct Picture<'a> {
    run: &'a ReasoningRun,
    /// By node.
    rows: Vec<Row>,
    svg: String,
}

/// A node's life.
#[derive(Clone, Default)]
struct Row {
    spans: Vec<Span>,
    alive: bool,
    pruned: Option<u32>,
}

/// A part of a node's life in which nothing changed: steps `from..to`, the first 0.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Span {
    from: u32,
    to: u32,
    /// Queries that see the node.
    queries: u32,
    /// Whether one of them is its own.
    asks: bool,
}

impl<'a> Picture<'a> {
    pub(crate) fn new(run: &'a ReasoningRun) -> Self {
        let mut rows = vec![Row::default(); run.parents().len()];
        rows[0].alive = true;
        let svg = String::new();
        Self { run, rows, svg }
    }

    /// Adds a step in which `growing` asked.
    pub(crate) fn step(&mut self, change: &ReasoningStep, growing: &[u32]) {
        let at = change.step - 1;
        for &node in &change.pruned {
            self.rows[node as usize].alive = false;
            self.rows[node as usize].pruned = Some(at);
        }
        for &node in &change.born {
            self.rows[node as usize].alive = true;
        }
        let mut queries = vec![0; self.rows.len()];
        for &query in growing {
            let mut next = Some(query);
            while let Some(node) = next {
                queries[node as usize] += 1;
                next = self.run.parents()[node as usize];
            }
        }
        for (node, row) in (0..).zip(&mut self.rows).filter(|(_, row)| row.alive) {
            row.extend(Span {
                from: at,
                to: at + 1,
                queries: queries[node as usize],
                asks: growing.contains(&node),
            });
        }
    }

    /// The picture, with a sign at every step of `sampled`, counted from 1.
    pub(crate) fn draw(mut self, title: &str, sampled: &[u32]) -> String {
        let rows = std::mem::take(&mut self.rows);
        let row_height = (BARS / rows.len() as f64).clamp(4.0, 20.0);
        let bottom = TOP + rows.len() as f64 * row_height;
        let end = self.run.steps().max(1);
        let x = |at: u32| LEFT + f64::from(at) / f64::from(end) * (WIDTH - LEFT - RIGHT);
        let mut y = vec![0.0; rows.len()];
        for (at, node) in depth_first(self.run).into_iter().enumerate() {
            y[node as usize] = TOP + (at as f64 + 0.5) * row_height;
        }
        self.head(title, (bottom + BOTTOM).ceil());
        for tick in (0..=end).step_by(tick_step(end) as usize) {
            self.path("grid", &format!("M{:.1} {TOP}V{bottom:.1}", x(tick)));
            self.text("middle", (x(tick), bottom + 24.0), &tick.to_string());
        }
        let middle = ((LEFT + WIDTH - RIGHT) / 2.0, bottom + 44.0);
        self.text("middle", middle, "decode step");
        for (node, row) in rows.iter().enumerate() {
            let parent = self.run.parents()[node];
            if let (Some(parent), Some(first)) = (parent, row.spans.first()) {
                let line =
                    format!("M{:.1} {:.1}V{:.1}", x(first.from), y[parent as usize], y[node]);
                self.path("link", &line);
            }
        }
        for (node, row) in rows.iter().enumerate() {
            let y = y[node];
            let _ = write!(self.svg, "<g><title>{}</title>", row.tooltip(node));
            if row_height >= LABELLED || node == 0 {
                self.text("number end", (LEFT - 8.0, y + 3.0), &node.to_string());
            }
            for span in &row.spans {
                let height = (row_height * if span.asks { 0.75 } else { 0.3 }).min(12.0);
                let [left, right] = [x(span.from), x(span.to)];
                let place = [left, y - height / 2.0, right - left, height];
                self.rect(&shade(span.queries), place);
            }
            match row.pruned {
                Some(pruned) => self.sign("gone", x(pruned), y),
                None if row.alive => self.sign("open", x(end), y),
                None => {}
            }
            self.svg += "</g>\n";
        }
        for &step in sampled {
            self.sign("sampled", x(step), bottom);
        }
        self.svg + "</svg>\n"
    }

    fn head(&mut self, title: &str, height: f64) {
        let title = escape(title);
        let _ = write!(
            self.svg,
            "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {WIDTH} {height}\" role=\"img\" \
             aria-labelledby=\"t d\">\n<title id=\"t\">{title}</title>\n<desc id=\"d\">Each bar is a node of the tree, \
             from its first decode step to its last; other colours mean that more queries share it.</desc>\n{LEGEND}"
        );
        self.text("title", (LEFT, 26.0), &title);
        let (nodes, steps) = (self.run.parents().len(), self.run.steps());
        let prompt = self.run.prompt_tokens();
        let size = format!("{nodes} nodes, {steps} decode steps, a prompt of {prompt} tokens");
        self.text("", (LEFT, 46.0), &size);
    }

    fn text(&mut self, class: &str, (x, y): (f64, f64), text: &str) {
        let place = format!("x=\"{x:.1}\" y=\"{y:.1}\"");
        let _ = writeln!(self.svg, "<text class=\"{class}\" {place}>{text}</text>");
    }

    fn rect(&mut self, class: &str, [x, y, width, height]: [f64; 4]) {
        let _ = writeln!(
            self.svg,
            "<rect class=\"{class}\" x=\"{x:.1}\" y=\"{y:.1}\" width=\"{width:.1}\" height=\"{height:.1}\"/>"
        );
    }

    fn path(&mut self, class: &str, line: &str) {
        let _ = writeln!(self.svg, "<path class=\"{class}\" d=\"{line}\"/>");
    }

    /// One of the signs of [`LEGEND`].
    fn sign(&mut self, name: &str, x: f64, y: f64) {
        let _ = writeln!(
            self.svg,
            "<use class=\"{name}\" href=\"#{name}\" x=\"{x:.1}\" y=\"{y:.1}\"/>"
        );
    }
}

impl Row {
    /// Adds a step, to the last span if nothing has changed.
    fn extend(&mut self, step: Span) {
        match self.spans.last_mut() {
            Some(last) if (last.queries, last.asks) == (step.queries, step.asks) => {
                last.to = step.to;
            }
            _ => self.spans.push(step),
        }
    }

    fn tooltip(&self, node: usize) -> String {
        let most = self.spans.iter().map(|span| span.queries).max();
        let begin = self.spans.first().map_or(0, |span| span.from + 1);
        let end = self.spans.last().map_or(0, |span| span.to);
        let (most, gone) = (most.unwrap_or(0), self.pruned.map_or("", |_| ", pruned"));
        format!("node {node}: decode step {begin} to {end}, most queries {most}{gone}")
    }
}

/// Nodes with their children after them, in the order in which those came.
fn depth_first(run: &ReasoningRun) -> Vec<u32> {
    let mut children = vec![Vec::new(); run.parents().len()];
    for (node, parent) in (0u32..).zip(run.parents()) {
        if let Some(parent) = parent {
            children[*parent as usize].push(node);
        }
    }
    let (mut stack, mut order) = (vec![0], Vec::new());
    while let Some(node) = stack.pop() {
        order.push(node);
        let below = &mut children[node as usize];
        below.sort_by_key(|&node| run.steps_of(node).0);
        stack.extend(below.iter().rev());
    }
    order
}

/// The colour of something that so many queries read.
fn shade(queries: u32) -> String {
    let shade = SHADES.iter().rposition(|&from| from <= queries);
    shade.map_or("idle".to_owned(), |shade| format!("q{shade}"))
}

/// So that an axis has at most ten ticks, at round numbers.
fn tick_step(end: u32) -> u32 {
    let steps = (0..9).flat_map(|power| [1, 2, 5].map(|digit| digit * 10u32.pow(power)));
    let mut steps = steps.filter(|step| end / step <= 10);
    steps.next().unwrap_or(u32::MAX)
}

fn escape(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;")
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A prompt, two children of which the second branches again, and the first is pruned.
    fn small_run() -> ReasoningRun {
        let text = r#"[{"prompt_tokens": 5, "parents": [-1, 0, 0, 2, 2],
            "start": [0, 1, 1, 4, 4], "end": [0, 3, 2, 6, 5]}]"#;
        ReasoningRun::parse(text).unwrap().remove(0)
    }

    fn picture(run: &ReasoningRun) -> Picture<'_> {
        let (mut picture, mut replay) = (Picture::new(run), run.replay().unwrap());
        while let Some(change) = replay.advance().unwrap() {
            picture.step(&change, replay.growing());
        }
        picture
    }

    #[test]
    fn spans_say_when_nodes_grow_branch_and_go_and_who_shares_them() {
        let run = small_run();
        let rows = picture(&run).rows;
        let spans = |node: usize| -> Vec<(u32, u32, u32, bool)> {
            let spans = rows[node].spans.iter();
            spans.map(|s| (s.from, s.to, s.queries, s.asks)).collect()
        };
        assert_eq!(depth_first(&run), [0, 1, 2, 3, 4]);
        let root = [(0, 2, 2, false), (2, 3, 1, false), (3, 5, 2, false), (5, 6, 1, false)];
        assert_eq!(spans(0), root);
        assert_eq!((spans(1), rows[1].pruned), (vec![(0, 3, 1, true)], Some(3)));
        // Between its own end and its children it is kept, though nobody asks.
        assert_eq!(spans(2)[..2], [(0, 2, 1, true), (2, 3, 0, false)]);
        assert_eq!((rows[2].pruned, rows[4].pruned), (None, Some(5)));
    }

    #[test]
    fn the_picture_is_well_formed_and_nothing_is_outside_of_it() {
        let svg = picture(&small_run()).draw("a <run> & more", &[1, 6]);
        let document = roxmltree::Document::parse(&svg).unwrap();
        let nodes = || document.descendants();
        let count = |class| nodes().filter(|n| n.attribute("class") == Some(class)).count();
        // One in the legend, and: two pruned nodes; two sampled steps.
        assert_eq!((count("gone"), count("sampled")), (1 + 2, 1 + 2));
        assert!(svg.contains("<title>node 4: decode step 4 to 5, most queries 1, pruned</title>"));
        for node in nodes() {
            // The ground's size is in percent.
            let number = |name| {
                let text = node.attribute(name).filter(|text| !text.ends_with('%'));
                text.map_or(0.0, |text| text.parse().unwrap())
            };
            assert!(number("x") + number("width") <= WIDTH, "{node:?}");
            assert!(number("y") + number("height") <= TOP + 5.0 * 20.0 + BOTTOM, "{node:?}");
        }
    }

    #[test]
    fn axes_have_at_most_ten_ticks() {
        let steps = [1, 10, 11, 401, 2375, 7398].map(tick_step);
        assert_eq!(steps, [1, 1, 2, 50, 500, 1000]);
    }
}
