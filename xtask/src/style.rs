//! Colours and fonts of every picture and of the report's page, light and dark, in one place.

/// Colours as variables. Whoever reads on dark ground gets the second set.
const COLOURS: &str = "\
:root{--ground:#fff;--panel:#f6f8fa;--ink:#1f2328;--soft:#59636e;--grid:#d1d9e0;--ours:#0969da;--peer:#9aa4ae;\
--deft:#c2570c;--other:#8250df;--bound:#cf222e;--fixed:#b6bec7;--partial:#d4a72c;\
--q0:#a8ddd0;--q1:#6cc4c4;--q2:#3f9fcf;--q3:#3a72c0;--q4:#4a4aa8;--q5:#5b2a86;--q6:#3c1053}\
@media(prefers-color-scheme:dark){:root{--ground:#0d1117;--panel:#161b22;--ink:#e6edf3;--soft:#9198a1;\
--grid:#30363d;--ours:#4493f8;--peer:#7d8590;--deft:#f0883e;--other:#ab7df8;--bound:#ff7b72;--fixed:#4b535d;\
--partial:#e3b341;--q0:#1f5a54;--q1:#2b7d84;--q2:#3a9bc8;--q3:#6cb1f5;--q4:#a5b8ff;--q5:#d0b3ff;--q6:#ffd1f0}}";

/// Classes of a picture's parts.
const PARTS: &str = "\
.fig text{font:12px system-ui,-apple-system,'Segoe UI',Helvetica,Arial,sans-serif;fill:var(--ink)}\
.fig .title{font-size:15px;font-weight:600}.fig .strong{font-weight:600}.fig .small{font-size:11px;fill:var(--soft)}\
.fig .mono{font-family:ui-monospace,SFMono-Regular,Menlo,Consolas,monospace;font-size:11.5px}\
.fig .end{text-anchor:end}.fig .middle{text-anchor:middle}.fig .ground{fill:var(--ground)}\
.fig .grid{stroke:var(--grid);fill:none}.fig .axis{stroke:var(--soft);fill:none}\
.fig .link{stroke:var(--peer);fill:none}.fig .edge{stroke:var(--ground);stroke-width:1}\
.fig .ours{fill:var(--ours)}.fig .added{fill:var(--ours);opacity:.4}.fig .peer{fill:var(--peer)}\
.fig .deft{fill:var(--deft)}.fig .other{fill:var(--other)}.fig .fixed{color:var(--fixed);fill:currentColor}\
.fig .partial{color:var(--partial);fill:currentColor}.fig .inside{fill:var(--ground)}\
.fig .bound{stroke:var(--bound);stroke-width:2;fill:none}\
.fig .bound-dash{stroke:var(--bound);stroke-width:1.5;stroke-dasharray:5 4;fill:none}\
.fig .ours-line{stroke:var(--ours);stroke-width:2;fill:none}.fig .deft-line{stroke:var(--deft);stroke-width:2;fill:none}\
.fig .peer-ring{stroke:var(--peer);stroke-width:1.5;fill:var(--ground)}\
.fig .ours-ring{stroke:var(--ours);stroke-width:1.5;fill:none}.fig .deft-ring{stroke:var(--deft);stroke-width:1.5;fill:none}\
.fig .q0{color:var(--q0);fill:currentColor}.fig .q1{color:var(--q1);fill:currentColor}.fig .q2{color:var(--q2);fill:currentColor}.fig .q3{color:var(--q3);fill:currentColor}.fig .q4{color:var(--q4);fill:currentColor}\
.fig .q5{color:var(--q5);fill:currentColor}.fig .q6{color:var(--q6);fill:currentColor}\
.fig .bar{fill:none;stroke:currentColor;stroke-width:8}";

/// Least numbers of queries of the colours `q0` and on.
const SHADES: [u32; 7] = [1, 2, 4, 8, 16, 32, 64];

/// For a picture by itself.
pub(crate) fn picture() -> String {
    [COLOURS, PARTS].concat()
}

/// For the page with the pictures in it.
pub(crate) fn page() -> String {
    [COLOURS, PARTS, include_str!("page.css")].concat()
}

/// The class of something that `sharers` queries read.
pub(crate) fn shade(sharers: u32) -> String {
    let shade = SHADES.iter().rposition(|&from| from <= sharers);
    format!("q{}", shade.unwrap_or(0))
}

/// The classes of [`shade`] up to `most` sharers, and how many sharers each stands for.
pub(crate) fn shades(most: u32) -> Vec<(String, String)> {
    let used = SHADES.iter().enumerate().filter(|&(_, &from)| from <= most);
    used.map(|(i, &from)| {
        let to = SHADES.get(i + 1).map_or(most, |next| (next - 1).min(most));
        let range = if to == from {
            from.to_string()
        } else {
            format!("{from}–{to}")
        };
        (shade(from), range)
    })
    .collect()
}

/// About the width of `text` in the pictures' font at 12 px; no browser is asked.
pub(crate) fn text_width(text: &str) -> f64 {
    6.3 * text.chars().count() as f64
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_colour_has_a_dark_variant() {
        let (light, dark) = COLOURS.split_once("@media").unwrap();
        let names = |text: &str| -> Vec<String> {
            let parts = text.split("--").skip(1);
            parts
                .filter_map(|part| Some(part.split_once(':')?.0.to_owned()))
                .collect()
        };
        assert_eq!(names(light), names(dark));
        for name in names(light) {
            let used = [PARTS, include_str!("page.css")]
                .concat()
                .contains(&format!("var(--{name})"));
            assert!(used, "{name} is used nowhere");
        }
    }

    #[test]
    fn shades_cover_every_number_of_sharers_once() {
        let ranges: Vec<String> = shades(20).into_iter().map(|(_, range)| range).collect();
        assert_eq!(ranges, ["1", "2–3", "4–7", "8–15", "16–20"]);
        assert_eq!(
            (shade(7), shade(8), shade(900)),
            ("q2".into(), "q3".into(), "q6".into())
        );
    }
}
