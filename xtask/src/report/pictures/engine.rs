//! Where a step of a whole model goes, by grouping.

use std::fmt::Write;

use super::super::axis::{Scale, number, rounded};
use super::super::figure::{Figure, MARGIN, Sign, Size, n};
use super::super::paper::thousands;
use super::super::suites::{Engine, title};

/// Classes of a bar's parts: attention, gaps, the rest.
const PARTS: [&str; 3] = ["ours", "deft", "peer"];
const BAR: f64 = 13.0;
const ROW: f64 = 17.0;
const NAME: f64 = 22.0;
/// Room between columns, and below a model for its axis.
const GAP: f64 = 24.0;
const AXIS: f64 = 44.0;

/// Draws the shortest and the longest prompt of each task of `rows`, a column a model where there is room for two.
pub(in super::super) fn draw(rows: &[Engine], size: Size) -> Figure {
    let mut figure = Figure::new(
        "engine",
        "A whole model: where the time of a decode step goes",
        "Stacked bars of milliseconds a step, one for each grouping of each model and task, with its shortest and its longest \
         prompt: attention, gaps in which the GPU waits for the host, and the rest. The table below has the numbers and the \
         prompts between."
            .to_owned(),
        size,
    );
    figure.legend(&[
        (Sign::Box, PARTS[0], "attention"),
        (Sign::Box, PARTS[1], "gaps, the GPU waits for the host"),
        (Sign::Box, PARTS[2], "the rest of the model"),
    ]);
    let models = models(rows);
    let columns = if size.is_narrow() {
        1
    } else {
        models.len().clamp(1, 2)
    };
    let gaps = GAP * (columns - 1) as f64;
    let width = (size.width() - 2.0 * MARGIN - gaps) / columns as f64;
    let longest = rows.iter().map(|row| row.step_ms).fold(0.0, f64::max);
    for line in models.chunks(columns) {
        let top = figure.top + 4.0;
        let mut bottom = top;
        for (at, tasks) in line.iter().enumerate() {
            let left = MARGIN + at as f64 * (width + GAP);
            let column = Column {
                left,
                right: left + width,
                // One scale for all models, so that bars compare.
                scale: Scale::linear(longest, [left + 100.0, left + width - 94.0]),
            };
            bottom = bottom.max(column.draw(&mut figure, tasks, top));
        }
        figure.top = bottom + AXIS;
    }
    figure
}

/// Tasks of each model, with the rows that are drawn.
fn models(rows: &[Engine]) -> Vec<Vec<Vec<&Engine>>> {
    let models = groups(rows.iter().collect(), |row| &row.model);
    models
        .into_iter()
        .map(|rows| {
            let tasks = groups(rows, |row| &row.task);
            tasks.into_iter().map(shortest_and_longest).collect()
        })
        .collect()
}

/// `rows` by `key`, in the order in which keys appear.
fn groups(rows: Vec<&Engine>, key: impl Fn(&Engine) -> &str) -> Vec<Vec<&Engine>> {
    let mut groups: Vec<Vec<&Engine>> = Vec::new();
    for row in rows {
        match groups.iter_mut().find(|group| key(group[0]) == key(row)) {
            Some(group) => group.push(row),
            None => groups.push(vec![row]),
        }
    }
    groups
}

/// Those of a task's `rows` with its shortest prompt, and then those with its longest.
fn shortest_and_longest(mut rows: Vec<&Engine>) -> Vec<&Engine> {
    rows.sort_by_key(|row| row.prompt_tokens);
    let prompt = |row: Option<&&Engine>| row.and_then(|row| row.prompt_tokens);
    let drawn = [prompt(rows.first()), prompt(rows.last())];
    rows.retain(|row| drawn.contains(&row.prompt_tokens));
    rows
}

/// Where a model is drawn.
struct Column {
    left: f64,
    right: f64,
    scale: Scale,
}

impl Column {
    /// Draws a model from `top` down to the bottom that it returns.
    fn draw(&self, figure: &mut Figure, tasks: &[Vec<&Engine>], top: f64) -> f64 {
        let rows: usize = tasks.iter().map(Vec::len).sum();
        let heads = top + NAME;
        let bottom = heads + tasks.len() as f64 * NAME + rows as f64 * ROW;
        self.scale.draw_x(figure, [heads, bottom]);
        figure.text("strong", self.left, top + 14.0, &tasks[0][0].model);
        let mut y = heads;
        // One path a colour keeps the page small.
        let mut bars = PARTS.map(|class| (class, String::new()));
        for task in tasks {
            figure.text("", self.left, y + 16.0, &task[0].task);
            y += NAME;
            for row in task {
                self.bar(figure, row, y, &mut bars);
                y += ROW;
            }
        }
        for (class, path) in bars.iter().filter(|(_, path)| !path.is_empty()) {
            figure.path(class, path);
        }
        let middle = (self.scale.at(0.0) + self.right - 94.0) / 2.0;
        figure.text("small middle", middle, bottom + 32.0, "milliseconds a step");
        bottom
    }

    /// Writes what a bar says, and adds its parts to the paths of their colours.
    fn bar(&self, figure: &mut Figure, row: &Engine, y: f64, bars: &mut [(&str, String); 3]) {
        let mut name = title(&row.grouping).to_owned();
        if let Some(tokens) = row.prompt_tokens {
            name = name + " " + &thousands(tokens);
        }
        figure.text("small end", self.scale.at(0.0) - 6.0, y + 11.0, &name);
        let [attention, gap] = [row.attention_ms, row.host_gap_ms].map(|ms| ms.unwrap_or(0.0));
        let mut from = 0.0;
        let parts = [attention, gap, row.step_ms - attention - gap];
        for ((_, path), ms) in bars.iter_mut().zip(parts) {
            let [left, right] = [from, from + ms].map(|ms| self.scale.at(ms));
            let width = n(right - left);
            // Less would not be seen, and there are many bars.
            if width > 0.0 {
                let _ = write!(path, "M{} {}h{width}v{BAR}h-{width}z", n(left), n(y));
            }
            from += ms;
        }
        let label = match row.tokens_per_s {
            Some(rate) => format!("{} tokens/s", number(rate.round())),
            None => format!("{} ms", rounded(row.step_ms)),
        };
        figure.text("small end", self.right, y + 11.0, &label);
    }
}

/// Two groupings of one model for tests.
#[cfg(test)]
pub(in super::super) fn example() -> Vec<Engine> {
    [("flatten", 12.0, 3.0), ("per-query", 20.0, 11.0)]
        .map(|(grouping, step_ms, attention_ms)| Engine {
            model: "a-model-7b".to_owned(),
            task: "few-shot-50".to_owned(),
            grouping: grouping.to_owned(),
            prompt_tokens: Some(4000),
            queries: Some(50.0),
            step_ms,
            attention_ms: Some(attention_ms),
            host_gap_ms: None,
            tokens_per_s: Some(50.0 * 1e3 / step_ms),
            memory_gb: Some(17.5),
            attention_share: Some(attention_ms / step_ms),
        })
        .into()
}

#[cfg(test)]
mod tests {
    use super::super::check;
    use super::*;

    #[test]
    fn a_bar_is_made_of_its_parts() {
        for size in Size::BOTH {
            let svg = draw(&example(), size).inline();
            check(&svg);
            // Nobody measured gaps: the legend's sign is the only one.
            assert_eq!(svg.matches("class=\"deft\"").count(), 1);
            for class in ["ours", "peer"] {
                let path = svg.split(&format!("<path class=\"{class}\" d=\"")).nth(1);
                let path = path.unwrap().split('"').next().unwrap();
                assert_eq!(path.matches('z').count(), 2, "{path}");
            }
        }
    }

    #[test]
    fn prompts_between_the_shortest_and_the_longest_are_not_drawn() {
        let rows: Vec<Engine> = ["b-model", "a-model"]
            .iter()
            .flat_map(|model| [20_000, 5000, 1000].map(|tokens| (model, tokens)))
            .flat_map(|(model, tokens)| {
                example().into_iter().map(move |row| Engine {
                    model: (*model).to_owned(),
                    prompt_tokens: Some(tokens),
                    ..row
                })
            })
            .collect();
        for size in Size::BOTH {
            let svg = draw(&rows, size).inline();
            check(&svg);
            let shown = [" 1k", " 5k", " 20k"].map(|prompt| svg.matches(prompt).count());
            assert_eq!(shown, [4, 0, 4]);
            assert!(svg.find("b-model") < svg.find("a-model"), "{svg}");
        }
    }
}
