//! What the user sees while a search runs: the tree, redrawn, on a terminal; a line for every event elsewhere.

use std::io::Write;
use std::time::{Duration, Instant};

use anyhow::Result;
use deft_search::{Answer, Cancel, Event, TextCodec};
use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};

use crate::draw::{Draw, one_line};
use crate::screen::Screen;
use crate::tree::{State, Tree};

/// Pause between two pictures.
const FRAME: Duration = Duration::from_millis(80);
/// Lines of a tree that stay on the screen or in a file.
const FINAL_LINES: usize = 60;
/// Characters of a text in a line of its own.
const TEXT: usize = 72;

/// Shows a search, and keeps its tree.
pub(crate) struct Show<'a> {
    codec: &'a dyn TextCodec,
    is_right: &'a dyn Fn(&Answer) -> Option<bool>,
    out: Box<dyn Write + 'a>,
    /// On a terminal only.
    picture: Option<Picture>,
    pub(crate) tree: Tree,
    /// Since the prompt was run.
    pub(crate) started: Option<Instant>,
    failed: Option<std::io::Error>,
    /// Of the search, which nobody watches any more once a line could not be written.
    cancel: Cancel,
}

struct Picture {
    bar: ProgressBar,
    screen: Screen,
    drawn: Instant,
}

impl<'a> Show<'a> {
    /// Lines go to `out`; on `screen`, if there is one, the tree is redrawn instead. Cancels the search if
    /// `out` cannot be written to.
    pub(crate) fn new(
        codec: &'a dyn TextCodec,
        is_right: &'a dyn Fn(&Answer) -> Option<bool>,
        out: Box<dyn Write + 'a>,
        screen: Option<Screen>,
        cancel: Cancel,
    ) -> Self {
        let picture = screen.map(|screen| {
            let target = ProgressDrawTarget::term(screen.term.clone(), 20);
            let style = ProgressStyle::with_template("{msg}");
            let style = style.expect("the template is constant and valid");
            Picture {
                bar: ProgressBar::with_draw_target(None, target).with_style(style),
                screen,
                drawn: Instant::now(),
            }
        });
        Self {
            codec,
            is_right,
            out,
            picture,
            tree: Tree::default(),
            started: None,
            failed: None,
            cancel,
        }
    }

    /// Takes an event of the search in.
    pub(crate) fn event(&mut self, event: &Event<'_>) {
        if let Event::Started { .. } = event {
            self.started = Some(Instant::now());
        }
        self.tree.event(event, self.is_right);
        match &mut self.picture {
            Some(picture) if picture.drawn.elapsed() >= FRAME => {
                let (height, width) = picture.screen.term.size();
                let draw = Draw {
                    codec: self.codec,
                    colours: picture.screen.colours,
                    width: usize::from(width),
                };
                let lines = draw.lines(&self.tree, usize::from(height).saturating_sub(4));
                picture.bar.set_message(lines.join("\n"));
                picture.bar.tick();
                picture.drawn = Instant::now();
            }
            Some(_) => {}
            None => {
                if let Some(line) = self.line(event) {
                    self.print(&line);
                }
            }
        }
    }

    /// The tree as it was in the end, with the best answer marked.
    ///
    /// # Errors
    /// If a line could not be written.
    pub(crate) fn finish(mut self, answers: &[Answer]) -> Result<()> {
        self.tree.conclude(answers, self.is_right);
        let picture = self.picture.as_ref();
        let width = picture.map(|picture| picture.screen.term.size().1);
        let colours = picture.is_some_and(|picture| picture.screen.colours);
        if let Some(picture) = picture {
            picture.bar.finish_and_clear();
        }
        let draw = Draw { codec: self.codec, colours, width: width.map_or(100, usize::from) };
        self.print("");
        for line in draw.lines(&self.tree, FINAL_LINES) {
            self.print(&line);
        }
        self.failed.map_or(Ok(()), |error| Err(error.into()))
    }

    fn print(&mut self, line: &str) {
        if self.failed.is_none() {
            self.failed = writeln!(self.out, "{line}").err();
            if self.failed.is_some() {
                self.cancel.cancel();
            }
        }
    }

    /// An event in a line, if it is worth one.
    fn line(&self, event: &Event<'_>) -> Option<String> {
        let (what, branch, detail) = match *event {
            Event::Forked { parent, children } => {
                let children = children.iter().map(|child| child.index().to_string());
                let children = children.collect::<Vec<_>>().join(" ");
                ("forked", parent, format!("into {children}"))
            }
            // What is wrong is pruned right away.
            Event::Scored { branch, score } if score.is_finite() => {
                ("scored", branch, format!("{score:.2}"))
            }
            Event::Pruned { branch, .. } => {
                let state = self.tree.branches[&branch.index()].state;
                let why = match state {
                    State::Lost => "lost",
                    State::Dead => "wrong",
                    State::Crowded => "no page",
                    _ => return None,
                };
                ("pruned", branch, why.to_owned())
            }
            Event::Finished { branch, answer } => {
                let verdict = match (self.is_right)(answer) {
                    Some(true) => "right".to_owned(),
                    Some(false) => "wrong".to_owned(),
                    None => format!("{:.2}", answer.score),
                };
                return Some(row("answer", branch.index(), &verdict, &answer.text));
            }
            _ => return None,
        };
        let text = self.codec.decode(&self.tree.path(branch.index()));
        Some(row(what, branch.index(), &detail, &text))
    }
}

/// What happened, to which branch, how, and the branch's text; of a long one the end.
fn row(what: &str, branch: u64, detail: &str, text: &str) -> String {
    let text = one_line(text.trim_start_matches(' '));
    let long = text.chars().count().saturating_sub(TEXT);
    let text: String = text.chars().skip(long).collect();
    let dots = if long > 0 { "…" } else { "" };
    format!("{what} {branch:>4}  {detail:<18} {dots}{text}").trim_end().to_owned()
}
