//! What may be done to the terminal.

use std::ffi::OsString;

use console::Term;

/// A terminal on which a tree can be redrawn.
pub(crate) struct Screen {
    pub(crate) term: Term,
    pub(crate) colours: bool,
}

impl Screen {
    /// `term` as a screen, by the variables `TERM` and `NO_COLOR`; `None` if lines have to do.
    pub(crate) fn new(term: Term) -> Option<Self> {
        let (redraws, colours) = abilities(term.is_term(), |name| std::env::var_os(name));
        redraws.then_some(Self { term, colours })
    }
}

/// Whether a tree can be redrawn, and whether in colours.
fn abilities(is_term: bool, variable: impl Fn(&str) -> Option<OsString>) -> (bool, bool) {
    let is_dumb = variable("TERM").is_some_and(|term| term == "dumb");
    let redraws = is_term && !is_dumb;
    // As <https://no-color.org> has it: any value but the empty one.
    let is_plain = variable("NO_COLOR").is_some_and(|value| !value.is_empty());
    (redraws, redraws && !is_plain)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_color_and_dumb_terminals_are_plain() {
        let of = |is_term, set: &[(&str, &str)]| {
            let value = |name: &str| set.iter().find(|(key, _)| *key == name);
            abilities(is_term, |name| Some(value(name)?.1.into()))
        };
        assert_eq!(of(true, &[("TERM", "xterm")]), (true, true));
        assert_eq!(of(true, &[("NO_COLOR", "1")]), (true, false));
        assert_eq!(of(true, &[("NO_COLOR", "")]), (true, true));
        assert_eq!(of(true, &[("TERM", "dumb")]), (false, false));
        assert_eq!(of(false, &[]), (false, false));
    }
}
