//! Searches on a model without weights, as they are shown and reported.

use std::time::Duration;

use clap::Parser;
use deft::{Grouping, NodeKey};
use deft_engine::ranks::{Communicator, Launch};
use deft_engine::{ModelError, TreeModel};
use deft_search::{Answer, Cancel, Event, Limits, Stop, TreeSearch};

use crate::args::Args;
use crate::draw::Draw;
use crate::measure::{Measured, Timed};
use crate::method::with_method;
use crate::question::Question;
use crate::ranks::Ranks;
use crate::report::{Report, Run, write_json};
use crate::run::{Found, Search};
use crate::tree::Tree;

#[allow(dead_code, reason = "the library's tests use all of it")]
#[path = "../../../tests/searches/mock.rs"]
mod mock;

use mock::{AsciiCodec, HashModel, HashModelConfig};

const BEAM: &str = "--task digit-sort --search beam";
const METHODS: [&str; 5] = ["tot", "beam", "best-of-n", "few-shot", "speculative"];

/// Its attention takes a millisecond a leaf with shared prefixes, and two without.
impl Timed for HashModel {
    fn time_attention(
        &mut self,
        leaves: &[NodeKey],
        grouping: Grouping,
    ) -> Result<Duration, ModelError> {
        let each = if grouping == Grouping::PerQuery { 2 } else { 1 };
        Ok(Duration::from_millis(each * leaves.len() as u64))
    }
}

#[derive(Parser)]
struct Cli {
    #[command(flatten)]
    args: Args,
}

fn args(words: &str) -> Args {
    Cli::parse_from(std::iter::once("deft-search").chain(words.split_whitespace())).args
}

fn model() -> HashModel {
    HashModel::new(HashModelConfig::default()).unwrap()
}

/// Runs the search that `words` ask for; what it found, and the bytes that it read.
fn ended(
    words: &str,
    out: &mut dyn std::io::Write,
    cancel: Cancel,
) -> (anyhow::Result<Found>, u64) {
    let args = args(words);
    let question = Question::new(&args);
    let mut model = model();
    let search = Search {
        model: &mut model,
        codec: &AsciiCodec,
        prompt: &AsciiCodec.encode(&question.text()),
        question: &question,
        args: &args,
        cancel,
    };
    let found = search.run(out, None);
    assert_eq!(model.forest().node_count(), 0, "a search frees its nodes");
    (found, model.traffic().read)
}

/// What such a search printed, and what it found.
fn searched(words: &str) -> (String, Found) {
    let mut printed = Vec::new();
    let (found, _) = ended(words, &mut printed, Cancel::new());
    (String::from_utf8(printed).unwrap(), found.unwrap())
}

fn report(words: &str, found: &Found) -> Report {
    let question = Question::new(&args(words));
    let run = Run {
        model: "hash",
        device: "CPU",
        search: "a search",
        prompt: "a \"prompt\"\n",
        seed: 1,
        prompt_time: Duration::from_secs(1),
        search_time: Duration::from_secs(2),
        attention: found.attention,
        greedy: found.greedy.as_ref(),
    };
    let is_right = |answer: &Answer| question.is_right(&answer.text);
    Report::new(&run, &found.outcome, &is_right)
}

#[test]
fn every_event_is_a_plain_line_and_the_tree_comes_last() {
    for method in METHODS {
        let words = format!("--search {method} --task digit-sort --budget 300");
        let (printed, found) = searched(&words);
        assert!(!printed.contains('\u{1b}'), "{method}: no colours in a file");
        let (events, tree) = printed.split_once("\n\n").unwrap();
        for line in events.trim_start().lines() {
            let known = ["forked ", "scored ", "pruned ", "answer "];
            assert!(known.iter().any(|word| line.starts_with(word)), "{line}");
            let branch = line[7..].split_whitespace().next().unwrap();
            assert!(branch.parse::<u64>().is_ok(), "{line}");
        }
        assert!(events.contains("answer "), "{method}: {events}");
        assert_eq!(tree.matches("<- best").count(), 1, "{method}:\n{tree}");
        assert!(tree.lines().count() <= 60);
        assert!(!found.outcome.answers.is_empty());
        assert_eq!(printed, searched(&words).0, "the same seed, the same tree");
    }
}

#[test]
fn branches_hold_the_tokens_of_the_answers_that_end_in_them() {
    for method in METHODS {
        let args = args(&format!("--search {method} --prompt x --tokens 12 --budget 400"));
        let question = Question::new(&args);
        let (mut tree, mut checked) = (Tree::default(), 0);
        let mut observer = |event: &Event<'_>| {
            tree.event(event, &|_| None);
            if let Event::Finished { branch, answer } = event {
                // The last token of an answer need not have been run.
                let path = tree.path(branch.index());
                assert!(answer.tokens.starts_with(&path), "{method}");
                assert!(path.len() + 1 >= answer.tokens.len(), "{method}");
                checked += 1;
            }
        };
        let mut model = model();
        with_method(&question, &args, |method| {
            TreeSearch::new(&mut model, &AsciiCodec)
                .observer(&mut observer)
                .run(&AsciiCodec.encode("some prompt"), method)
        })
        .unwrap();
        assert!(checked > 0, "{method}");
    }
}

#[test]
fn a_tree_fits_the_lines_there_are_and_colours_change_no_text() {
    let args = args("--task digit-sort --width 8");
    let question = Question::new(&args);
    let mut tree = Tree::default();
    let is_right = |answer: &Answer| question.is_right(&answer.text);
    let mut observer = |event: &Event<'_>| tree.event(event, &is_right);
    let mut model = model();
    let limits = Limits { tokens: 500, ..Limits::default() };
    let outcome = with_method(&question, &args, |method| {
        TreeSearch::new(&mut model, &AsciiCodec)
            .limits(limits)
            .observer(&mut observer)
            .run(&AsciiCodec.encode("x"), method)
    });
    tree.conclude(&outcome.unwrap().answers, &is_right);
    let draw = |colours, room| {
        let draw = Draw { codec: &AsciiCodec, colours, width: 40 };
        draw.lines(&tree, room)
    };
    let all = draw(false, usize::MAX);
    assert!(all.len() > 60, "{} lines", all.len());
    for room in [1, 2, 7, 20, 60] {
        let lines = draw(false, room);
        assert!((1..=room).contains(&lines.len()), "{} of {room}", lines.len());
        assert!(lines.iter().all(|line| line.chars().count() <= 40));
        let plain = |line: &String| console::strip_ansi_codes(line).into_owned();
        assert_eq!(draw(true, room).iter().map(plain).collect::<Vec<_>>(), lines);
    }
    // What was dropped is counted where it is not shown.
    let brief = draw(false, all.len() - 1).join("\n");
    assert!(brief.contains(" dropped"), "{brief}");
}

#[test]
fn a_beam_s_chain_is_one_line_with_what_was_dropped_on_the_way() {
    let args = args("--search beam --prompt x --width 3 --tokens 40 --budget 400");
    let question = Question::new(&args);
    let mut tree = Tree::default();
    let mut observer = |event: &Event<'_>| tree.event(event, &|_| None);
    let mut model = model();
    let outcome = with_method(&question, &args, |method| {
        TreeSearch::new(&mut model, &AsciiCodec)
            .observer(&mut observer)
            .run(&AsciiCodec.encode("some prompt"), method)
    })
    .unwrap();
    tree.conclude(&outcome.answers, &|_| None);
    let draw = Draw { codec: &AsciiCodec, colours: false, width: 60 };
    let brief = draw.lines(&tree, usize::MAX);
    // A line of the picture is a fork's child, an answer or the prompt: it is never the only one below another.
    assert!(brief.len() < 20, "{} lines:\n{}", brief.len(), brief.join("\n"));
    let indent =
        brief.iter().map(|line| line.chars().take_while(|c| "│├└─ ".contains(*c)).count()).max();
    assert!(indent.unwrap() < 30, "it does not drift away:\n{}", brief.join("\n"));
    assert!(brief.iter().any(|line| line.contains(" dropped")), "{}", brief.join("\n"));
    assert_eq!(brief.join("\n").matches("<- best").count(), 1);
}

#[test]
fn the_report_is_one_json_object_without_infinities() {
    for method in METHODS {
        let words = format!("--search {method} --task digit-sort --budget 300 --json");
        let (_, found) = searched(&words);
        let mut text = Vec::new();
        write_json(&report(&words, &found), &mut text).unwrap();
        let value: serde_json::Value = serde_json::from_slice(&text).unwrap();
        let stats = found.outcome.stats;
        assert_eq!(value["tokens"], stats.tokens);
        assert_eq!(value["tokens_per_second"], stats.tokens as f64 / 2.0);
        assert_eq!(value["attention"]["read_bytes"], stats.traffic.read);
        assert_eq!(value["attention"]["per_query_bytes"], stats.traffic.per_query);
        let answers = value["answers"].as_array().unwrap();
        assert_eq!(answers.len(), found.outcome.answers.len());
        for (entry, answer) in answers.iter().zip(&found.outcome.answers) {
            assert_eq!(entry["text"], answer.text);
            assert_eq!(entry["score"].is_null(), answer.score.is_infinite());
            assert!(entry["right"].is_boolean());
        }
        // A puzzle is decoded greedily too, to compare with.
        assert_eq!(value["greedy"].is_null(), method == "speculative");
    }
}

#[test]
fn the_table_names_the_answer_and_both_ways_to_read() {
    let words = "--task digit-sort --budget 200";
    let (_, found) = searched(words);
    let mut text = Vec::new();
    report(words, &found).table(&mut text).unwrap();
    let text = String::from_utf8(text).unwrap();
    for part in ["best answer", "(wrong)", "greedy", "tokens/s", "a query at a time"] {
        assert!(text.contains(part), "{part}:\n{text}");
    }
}

#[test]
fn every_second_pass_is_measured_both_ways() {
    let (_, found) = searched("--task digit-sort --budget 100");
    let time = found.attention;
    assert_eq!(time.passes, found.outcome.stats.steps.div_ceil(2));
    assert!(time.shared > Duration::ZERO);
    assert_eq!(time.per_query, 2 * time.shared);
}

#[test]
fn measuring_changes_nothing() {
    let args = args("--task digit-sort");
    let question = Question::new(&args);
    let run = |model: &mut dyn TreeModel| {
        let limits = Limits { tokens: 200, ..Limits::default() };
        let mut outcome = with_method(&question, &args, |method| {
            let search = TreeSearch::new(model, &AsciiCodec).limits(limits);
            search.run(&AsciiCodec.encode("x"), method)
        })
        .unwrap();
        outcome.stats.elapsed = Duration::ZERO;
        outcome
    };
    assert_eq!(run(&mut Measured::new(&mut model())), run(&mut model()));
}

/// Takes so many writes, and then nobody reads any more.
struct ClosedPipe(usize);

impl std::io::Write for ClosedPipe {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        self.0 = self.0.checked_sub(1).ok_or(std::io::ErrorKind::BrokenPipe)?;
        Ok(bytes.len())
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

#[test]
fn a_closed_pipe_ends_the_search_at_once() {
    let (whole, all) = ended(BEAM, &mut Vec::new(), Cancel::new());
    assert_eq!(whole.unwrap().outcome.stop, Stop::Finished);
    let (failed, read) = ended(BEAM, &mut ClosedPipe(2), Cancel::new());
    let error = failed.err().expect("the third line was not written");
    assert!(crate::is_closed_pipe(&error), "{error:#}");
    assert!(read < all / 2, "{read} bytes read of {all}");
}

#[test]
fn a_cancelled_search_is_reported_as_such() {
    let cancel = Cancel::new();
    cancel.cancel();
    let (found, _) = ended(BEAM, &mut Vec::new(), cancel);
    let found = found.unwrap();
    assert!(found.greedy.is_none(), "nor is anything else run");
    let mut json = Vec::new();
    write_json(&report(BEAM, &found), &mut json).unwrap();
    let json = String::from_utf8(json).unwrap();
    assert!(json.contains("\"stop\": \"cancelled\""), "{json}");
}

/// What a model of these ranks finds, by its answers.
fn found_by(ranks: &Ranks) -> Option<Vec<String>> {
    let make = |_: Box<dyn Communicator>| Ok(model());
    let mut model = ranks.model(make).unwrap()?;
    let args = args("--task digit-sort --search tot");
    let question = Question::new(&args);
    let prompt = AsciiCodec.encode(&question.text());
    let search = Search {
        model: &mut *model,
        codec: &AsciiCodec,
        prompt: &prompt,
        question: &question,
        args: &args,
        cancel: Cancel::new(),
    };
    let found = search.run(&mut std::io::sink(), None).unwrap();
    Some(found.outcome.answers.into_iter().map(|answer| answer.text).collect())
}

#[test]
fn ranks_search_as_one_does_and_one_of_them_speaks() {
    let one = found_by(&Ranks::Threads(1)).unwrap();
    assert!(!one.is_empty());
    assert_eq!(found_by(&Ranks::Threads(3)).as_ref(), Some(&one));
    // Below the ports that the system hands out by itself: nobody is given it between here and the ranks.
    let is_free = |port: &u16| std::net::TcpListener::bind(("127.0.0.1", *port)).is_ok();
    let free = (20_000..30_000).find(is_free).unwrap();
    let process = |rank| {
        let address = format!("127.0.0.1:{free}");
        Ranks::Process(Launch { rank, ranks: 2, local: rank, address })
    };
    let [first, second] = std::thread::scope(|scope| {
        [0, 1]
            .map(|rank| scope.spawn(move || found_by(&process(rank))))
            .map(|thread| thread.join().unwrap())
    });
    assert_eq!((first, second), (Some(one), None));
}
