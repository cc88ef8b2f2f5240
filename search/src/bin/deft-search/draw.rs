//! A tree as lines of text.

use console::Style;
use deft_search::TextCodec;

use crate::tree::{Branch, Leaf, State, Tree};

/// How lines are drawn.
pub(crate) struct Draw<'a> {
    pub(crate) codec: &'a dyn TextCodec,
    pub(crate) colours: bool,
    /// Columns.
    pub(crate) width: usize,
}

/// Tokens that an answer is shown with beside those that were not run.
const TAIL: usize = 4;

/// Branches that each go on in one only.
struct Chain {
    /// The last of them.
    end: u64,
    /// Of all of them.
    tokens: Vec<u32>,
    /// Siblings on the way that were dropped and are not shown.
    dropped: usize,
}

/// What there is below a branch.
enum Item<'a> {
    Branch(u64),
    Answer(&'a Leaf),
    /// So many that were dropped and have nothing below them.
    Dropped(usize),
}

impl Draw<'_> {
    /// The tree from branch 0 on. If that is more than `room` lines, or drifts off to the right, dropped branches are
    /// counted instead of shown, and then the first lines are left out.
    pub(crate) fn lines(&self, tree: &Tree, room: usize) -> Vec<String> {
        let all = self.draw(tree, false);
        if all.len() <= room && !self.drifts(&all) {
            return all;
        }
        let mut lines = self.draw(tree, true);
        if lines.len() > room {
            let above = lines.len() + 1 - room.max(1);
            lines.drain(..above);
            let note = format!("... {above} lines above");
            lines.insert(0, self.style().dim().apply_to(note).to_string());
        }
        lines
    }

    /// Whether a line begins past the middle.
    fn drifts(&self, lines: &[String]) -> bool {
        lines.iter().any(|line| {
            let plain = console::strip_ansi_codes(line);
            let stem = plain.chars().take_while(|c| "│├└─ ".contains(*c));
            stem.count() > self.width / 2
        })
    }

    fn draw(&self, tree: &Tree, brief: bool) -> Vec<String> {
        let mut lines = Vec::new();
        if tree.branches.contains_key(&0) {
            self.branch(tree, 0, ("", ""), brief, &mut lines);
        }
        lines
    }

    /// A branch and all below it; `stem` is what its first line and the lines after it begin with.
    fn branch(
        &self,
        tree: &Tree,
        index: u64,
        stem: (&str, &str),
        brief: bool,
        lines: &mut Vec<String>,
    ) {
        let chain = self.chain(tree, index, brief);
        let branch = &tree.branches[&chain.end];
        lines.push(self.line(stem.0, &self.describe(index, branch, &chain)));
        let items = self.items(tree, branch, brief);
        for (at, item) in items.iter().enumerate() {
            let (first, rest) = match at + 1 == items.len() {
                true => ("└─ ", "   "),
                false => ("├─ ", "│  "),
            };
            let (first, rest) = (format!("{}{first}", stem.1), format!("{}{rest}", stem.1));
            match item {
                Item::Branch(child) => self.branch(tree, *child, (&first, &rest), brief, lines),
                Item::Answer(leaf) => {
                    let text = self
                        .text(leaf.tokens.get(leaf.run.saturating_sub(TAIL)..).unwrap_or_default());
                    let text = format!("… {text}");
                    lines.push(self.line(&first, &self.answer(leaf, &text)));
                }
                Item::Dropped(count) => {
                    let note = self.style().red().dim().apply_to(format!("× {count} dropped"));
                    lines.push(self.line(&first, &note.to_string()));
                }
            }
        }
    }

    /// The branches from `index` on that each go on in one only, as one.
    fn chain(&self, tree: &Tree, index: u64, brief: bool) -> Chain {
        let mut chain =
            Chain { end: index, tokens: tree.branches[&index].tokens.clone(), dropped: 0 };
        // The prompt has a line of its own.
        if index == 0 {
            return chain;
        }
        loop {
            let branch = &tree.branches[&chain.end];
            let dropped = |child: &&u64| brief && tree.is_dropped(**child);
            let (gone, shown): (Vec<&u64>, Vec<&u64>) = branch.children.iter().partition(dropped);
            let [next] = shown[..] else { break };
            if !branch.answers.is_empty() {
                break;
            }
            chain.end = *next;
            chain.tokens.extend(&tree.branches[next].tokens);
            chain.dropped += gone.into_iter().map(|&child| tree.ends(child)).sum::<usize>();
        }
        chain
    }

    fn items<'t>(&self, tree: &Tree, branch: &'t Branch, brief: bool) -> Vec<Item<'t>> {
        let (dropped, shown): (Vec<u64>, Vec<u64>) =
            branch.children.iter().partition(|&&child| brief && tree.is_dropped(child));
        let mut items: Vec<Item<'_>> = shown.into_iter().map(Item::Branch).collect();
        if inline_answer(branch).is_none() {
            items.extend(branch.answers.iter().map(Item::Answer));
        }
        if !dropped.is_empty() {
            let ends = dropped.into_iter().map(|child| tree.ends(child));
            items.push(Item::Dropped(ends.sum()));
        }
        items
    }

    /// The line of a chain from `index` on, which ends in `branch`.
    fn describe(&self, index: u64, branch: &Branch, chain: &Chain) -> String {
        let text = match chain.tokens.as_slice() {
            [] if index == 0 => "prompt".to_owned(),
            tokens => self.end_of(&self.text(tokens)),
        };
        let dropped = match chain.dropped {
            0 => String::new(),
            count => self.style().red().dim().apply_to(format!("  × {count} dropped")).to_string(),
        };
        format!("{}{dropped}", self.describe_end(branch, &text))
    }

    /// Of a text that is longer than half a line the end, where it grows.
    fn end_of(&self, text: &str) -> String {
        let (all, most) = (text.chars().count(), (self.width / 2).max(1));
        match all.checked_sub(most) {
            None | Some(0) => text.to_owned(),
            Some(more) => format!("…{}", text.chars().skip(more).collect::<String>()),
        }
    }

    fn describe_end(&self, branch: &Branch, text: &str) -> String {
        if let Some(leaf) = inline_answer(branch) {
            let rest = self.codec.decode(leaf.tokens.get(leaf.run..).unwrap_or_default());
            return self.answer(leaf, &format!("{text}{}", one_line(&rest)));
        }
        let score = branch.score.filter(|score| score.is_finite());
        let score = score.map_or(String::new(), |score| format!("  {score:.2}"));
        let style = self.style();
        let yellow = style.clone().yellow().apply_to(&score);
        match branch.state {
            State::Alive => {
                let text = style.green().bold().apply_to(format!("● {text}"));
                format!("{text}{yellow}")
            }
            State::Inner => format!("{text}{yellow}"),
            State::Done => style.dim().apply_to(format!("○ {text}{score}")).to_string(),
            State::Lost => self.dropped(text, &score, "lost"),
            State::Dead => self.dropped(text, &score, "wrong"),
            State::Crowded => self.dropped(text, &score, "no page"),
        }
    }

    fn dropped(&self, text: &str, score: &str, why: &str) -> String {
        let style = self.style().red().dim();
        style.apply_to(format!("× {text}{score}  {why}")).to_string()
    }

    fn answer(&self, leaf: &Leaf, text: &str) -> String {
        let verdict = match leaf.right {
            Some(true) => "  right",
            Some(false) => "  wrong",
            None => "",
        };
        let score = match leaf.score.is_finite() {
            true => format!("  {:.2}", leaf.score),
            false => String::new(),
        };
        let best = if leaf.best { "  <- best" } else { "" };
        let style = match (leaf.best, leaf.right) {
            (true, _) => self.style().cyan().bold(),
            (false, Some(false)) => self.style().red(),
            (false, _) => self.style().cyan(),
        };
        let mark = if leaf.right == Some(false) { '×' } else { '✓' };
        style.apply_to(format!("{mark} {text}{score}{verdict}{best}")).to_string()
    }

    /// Tokens as text on one line.
    pub(crate) fn text(&self, tokens: &[u32]) -> String {
        one_line(self.codec.decode(tokens).trim_start_matches(' '))
    }

    fn line(&self, stem: &str, what: &str) -> String {
        let stem = self.style().dim().apply_to(stem);
        let line = format!("{stem}{what}");
        console::truncate_str(&line, self.width, "…").into_owned()
    }

    fn style(&self) -> Style {
        Style::new().force_styling(self.colours)
    }
}

/// A text with its line ends, and other control characters, made visible.
pub(crate) fn one_line(text: &str) -> String {
    let visible = |character: char| match character {
        '\n' => '⏎',
        character if character.is_control() => '·',
        character => character,
    };
    text.chars().map(visible).collect()
}

/// The answer that a branch is, if it is nothing else.
fn inline_answer(branch: &Branch) -> Option<&Leaf> {
    match branch.answers.as_slice() {
        [leaf] if branch.children.is_empty() && !leaf.outgrown => Some(leaf),
        _ => None,
    }
}
