//! One file a picture. Each draws for a desk or a phone, and nothing outside its edges.

pub(super) mod bars;
pub(super) mod engine;
pub(super) mod io;
pub(super) mod plans;
pub(super) mod roofline;
pub(super) mod scaling;
pub(super) mod schedule;
pub(super) mod tree;

/// Gives picture text to tests: well-formed, inside its edges, and no text upon another.
#[cfg(test)]
pub(super) fn check(svg: &str) {
    use super::figure;
    use crate::style;

    let document = roxmltree::Document::parse(svg).unwrap();
    let root = document.root_element();
    let edges: Vec<f64> = root
        .attribute("viewBox")
        .unwrap()
        .split(' ')
        .map(|word| word.parse().unwrap())
        .collect();
    let number = |node: &roxmltree::Node<'_, '_>, name| {
        node.attribute(name)
            .map_or(0.0, |text| text.parse::<f64>().unwrap())
    };
    let mut boxes: Vec<([f64; 4], String)> = Vec::new();
    for node in root.descendants().filter(|node| node.is_element()) {
        let [x, y] = [number(&node, "x"), number(&node, "y")];
        let (right, bottom) = (x + number(&node, "width"), y + number(&node, "height"));
        assert!(
            x >= 0.0 && y >= 0.0 && right <= edges[2] + 0.1 && bottom <= edges[3] + 0.1,
            "{node:?}"
        );
        if node.tag_name().name() != "text" {
            continue;
        }
        let text = node.text().unwrap().trim().to_owned();
        let class = node.attribute("class").unwrap_or_default();
        let scale = if class.contains("title") {
            figure::TITLE
        } else {
            0.9
        };
        let width = style::text_width(&text) * scale;
        let left = match class {
            _ if class.contains("end") => x - width,
            _ if class.contains("middle") => x - width / 2.0,
            _ => x,
        };
        assert!(
            left >= -1.0 && left + width <= edges[2] + 1.0,
            "{text:?} leaves the picture"
        );
        let area = [left, y - 8.0, left + width, y + 1.0];
        for (other, said) in &boxes {
            let apart = area[0] >= other[2]
                || other[0] >= area[2]
                || area[1] >= other[3]
                || other[1] >= area[3];
            assert!(apart, "{text:?} lies upon {said:?}");
        }
        boxes.push((area, text));
    }
    assert!(boxes.len() > 3, "hardly a word in the picture");
}
