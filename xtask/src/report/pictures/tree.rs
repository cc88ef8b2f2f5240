//! A tree drawn so that area is bytes: as wide as a node's tokens, as high as the queries that share it.

use deft::tree::TreeView;

use super::super::axis::{Scale, number};
use super::super::figure::{Figure, MARGIN, Sign, Size};
use super::super::laid_out::LaidOut;
use crate::style;

const HEIGHT: f64 = 360.0;

/// Draws the tree of `laid_out`.
pub(in super::super) fn draw(laid_out: &LaidOut, size: Size) -> Figure {
    let view = &laid_out.view;
    let ends = ends(view);
    let longest = ends.iter().copied().max().unwrap_or(1);
    let tokens: u64 = view.runs.iter().map(|run| u64::from(run.tokens)).sum();
    let seen: u64 = view
        .runs
        .iter()
        .map(|run| u64::from(run.tokens) * run.queries.len() as u64)
        .sum();
    let mut figure = Figure::new(
        "tree",
        &format!("A tree of {} nodes: who shares what", view.runs.len()),
        format!(
            "Each box is a node of {}: as wide as its tokens, as high as the number of queries that share it, from {} at the \
             left to 1 at the right. All boxes together are the {} tokens that PerQuery reads; the tree holds {}.",
            laid_out.workload.name,
            view.queries,
            number(seen as f64),
            number(tokens as f64),
        ),
        size,
    );
    let shades = style::shades(view.queries);
    let mut legend = vec![(Sign::None, "", "queries that share a node:")];
    legend.extend(
        shades
            .iter()
            .map(|(class, range)| (Sign::Box, class.as_str(), range.as_str())),
    );
    figure.legend(&legend);
    figure.text("small", MARGIN, figure.top + 4.0, "query");
    let top = figure.top + 14.0;
    let bottom = top + HEIGHT;
    let xs = [MARGIN + 30.0, size.width() - MARGIN];
    let x = Scale::linear(f64::from(longest), xs);
    let y = Scale::linear(f64::from(view.queries), [top, bottom]);
    x.draw_x(&mut figure, [top, bottom]);
    y.draw_y(&mut figure, xs);
    for (run, &end) in view.runs.iter().zip(&ends) {
        let [left, right] = [end - run.tokens, end].map(|token| x.at(f64::from(token)));
        let [above, below] =
            [run.queries.start, run.queries.end].map(|query| y.at(f64::from(query)));
        let sharers = run.queries.len() as u32;
        let height = (below - above - 0.8).max(0.8);
        figure.rect(
            &style::shade(sharers),
            [left + 0.4, above + 0.4],
            [(right - left - 0.8).max(0.8), height],
        );
    }
    figure.text(
        "small middle",
        (xs[0] + xs[1]) / 2.0,
        bottom + 32.0,
        "position in the context (tokens)",
    );
    figure.top = bottom + 54.0;
    figure.note(&format!(
        "The area is what PerQuery reads: {} tokens a KV head. Read once, the tree is {}.",
        number(seen as f64),
        number(tokens as f64),
    ));
    figure
}

/// Where each run ends, in tokens from the beginning of its context.
fn ends(view: &TreeView) -> Vec<u32> {
    let mut ends: Vec<u32> = Vec::with_capacity(view.runs.len());
    for run in &view.runs {
        let from = run.parent.map_or(0, |parent| ends[parent as usize]);
        ends.push(from + run.tokens);
    }
    ends
}

#[cfg(test)]
mod tests {
    use super::super::super::laid_out::{self, TREE};
    use super::super::check;
    use super::*;

    #[test]
    fn every_node_has_a_box_in_the_colour_of_its_sharers() {
        let laid_out = laid_out::example(TREE);
        for size in Size::BOTH {
            let svg = draw(&laid_out, size).inline();
            check(&svg);
            // 64 leaves and one root; one of each colour is the legend's.
            assert_eq!(svg.matches("class=\"q0\"").count(), 64 + 1);
            assert_eq!(svg.matches("class=\"q6\"").count(), 1 + 1);
        }
    }
}
