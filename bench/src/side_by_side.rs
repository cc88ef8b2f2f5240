//! `deft-bench peers DIR`: other kernels on the same trees, beside ours, in one run.

use std::io::{BufRead, BufReader, Write};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use anyhow::{Context, Result, bail, ensure};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use crate::document::Document;
use crate::{say, trees};

/// A row whose relative L2 error is above this is wrong, as for our own rows.
const MOST_REL_L2: f64 = 5e-3;

/// Times other kernels beside ours: every program in a folder, on the same trees, in the same kind of loop.
///
/// First ours are checked and timed as by `trees`, whose options there are here as well. Then each `*.py` of DIR that
/// does not begin with `_` is run by Python, and gets a workload a line. bench/peers/README.md has the protocol and
/// bench/peers/trees has examples. A peer may skip a workload. What it got wrong is not shown as a time, one that does not
/// keep to the protocol is left out, and the program then ends with status 1.
#[derive(Debug, clap::Args)]
#[group(id = "peers")]
pub(crate) struct Args {
    /// The folder with the peers.
    #[arg(value_name = "DIR")]
    dir: PathBuf,
    /// Python, with what the peers import.
    #[arg(long, default_value = "python3", value_name = "PROGRAM")]
    python: PathBuf,
    #[command(flatten)]
    trees: trees::Args,
}

/// What one kernel, ours or a peer's, took on one workload.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(crate) struct Row {
    workload: String,
    peer: String,
    median_us: Option<f64>,
    p20_us: Option<f64>,
    p80_us: Option<f64>,
    /// Against attention in a higher precision, relative L2.
    max_rel_l2: Option<f64>,
    /// Why it has no time.
    skipped: Option<String>,
}

/// The line with which a peer begins.
#[derive(Debug, Deserialize)]
struct Hello {
    peer: String,
    /// Versions, settings.
    about: String,
    empty_graph_us: Option<f64>,
}

/// The line with which it answers a workload.
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct Answer {
    workload: String,
    median_us: Option<f64>,
    p20_us: Option<f64>,
    p80_us: Option<f64>,
    max_rel_l2: Option<f64>,
    skipped: Option<String>,
}

/// Runs the command; the number of rows that are wrong.
pub(crate) fn run(args: &Args) -> Result<usize> {
    let programs = programs(&args.dir)?;
    let (ours, mut wrong) = trees::measure(&args.trees, None)?;
    let asked: Vec<Value> =
        args.trees.read_workloads()?.into_iter().map(|(value, _)| value).collect();
    let rows = ours.rows.iter().map(|row| Row {
        workload: row.workload.clone(),
        peer: format!("deft {}", row.plans()),
        median_us: Some(row.median_us),
        p20_us: Some(row.p20_us),
        p80_us: Some(row.p80_us),
        max_rel_l2: Some(row.max_rel_l2),
        skipped: None,
    });
    let mut document =
        Document { suite: "peers".to_owned(), rows: rows.collect(), ..ours.without_rows() };
    for program in &programs {
        match ask(args, program, &asked) {
            Ok((about, rows)) => {
                wrong += rows.iter().filter(|row| row.is_wrong()).count();
                document.kernels.push(about);
                document.rows.extend(rows);
            }
            // Something that it imports is not there, most often: the others may run all the same.
            Err(error) => {
                say(&format!("left out: {error:#}"));
                wrong += 1;
            }
        }
        document.write(args.trees.json.as_deref())?;
    }
    say(&table(&document.rows));
    Ok(wrong)
}

/// The peers of `dir`, by name.
fn programs(dir: &Path) -> Result<Vec<PathBuf>> {
    let entries =
        std::fs::read_dir(dir).with_context(|| format!("cannot read {}", dir.display()))?;
    let mut programs = Vec::new();
    for entry in entries {
        let path = entry?.path();
        let name = path.file_name().unwrap_or_default().to_string_lossy();
        if name.ends_with(".py") && !name.starts_with('_') {
            programs.push(path);
        }
    }
    programs.sort();
    ensure!(!programs.is_empty(), "{} has no peer: no *.py", dir.display());
    Ok(programs)
}

/// What `program` says of itself, and its row of each workload.
fn ask(args: &Args, program: &Path, workloads: &[Value]) -> Result<(String, Vec<Row>)> {
    let named = || program.display().to_string();
    let mut command = Command::new(&args.python);
    command.arg(program).env("PYTHONDONTWRITEBYTECODE", "1");
    command.stdin(Stdio::piped()).stdout(Stdio::piped());
    let mut peer =
        Running(command.spawn().with_context(|| {
            format!("cannot run {} {}", args.python.display(), program.display())
        })?);
    let mut requests = peer.0.stdin.take().context("a pipe was asked for")?;
    let mut lines = BufReader::new(peer.0.stdout.take().context("a pipe was asked for")?).lines();
    let hello: Hello = read(&mut lines).with_context(named)?;
    let empty =
        hello.empty_graph_us.map_or(String::new(), |us| format!("; empty graph {us:.2} us"));
    let about = format!("{}: {}{empty}", hello.peer, hello.about);
    say(&about);
    let mut rows = Vec::new();
    for workload in workloads {
        let request = json!({
            "workload": workload,
            "warmup": args.trees.warmup,
            "iterations": args.trees.iterations,
            "checked": args.trees.checked,
        });
        // A peer that ended says why where its answer is read.
        let sent = writeln!(requests, "{request}").and_then(|()| requests.flush());
        let name = workload["name"].as_str().unwrap_or_default();
        let answer: Answer =
            read(&mut lines).with_context(|| format!("{}, workload {name}", program.display()))?;
        sent.with_context(named)?;
        ensure!(
            answer.workload == name,
            "{} answered {} when asked for {name}",
            program.display(),
            answer.workload
        );
        let row = Row::of(hello.peer.clone(), answer).with_context(named)?;
        say(&row.line());
        rows.push(row);
    }
    drop(requests);
    let status = peer.0.wait()?;
    ensure!(status.success(), "{} ended with {status}", program.display());
    Ok((about, rows))
}

/// A program that does not outlive its caller.
struct Running(Child);

impl Drop for Running {
    fn drop(&mut self) {
        // It may have ended by itself, as it should.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// The next line that is JSON's; what else a peer's libraries print is passed on.
fn read<T: for<'a> Deserialize<'a>>(
    lines: &mut impl Iterator<Item = std::io::Result<String>>,
) -> Result<T> {
    for line in lines {
        let line = line?;
        if line.starts_with('{') {
            return serde_json::from_str(&line).with_context(|| format!("not as agreed: {line}"));
        }
        say(&line);
    }
    bail!("it ended without an answer")
}

impl Row {
    fn of(peer: String, answer: Answer) -> Result<Self> {
        let positive = |us: f64| us > 0.0 && us.is_finite();
        let wrong = answer.max_rel_l2.filter(|error| error.is_nan() || error.abs() > MOST_REL_L2);
        ensure!(
            answer.skipped.is_some() || answer.median_us.is_some_and(positive),
            "workload {}: neither `median_us`, a time, nor `skipped`",
            answer.workload
        );
        let time = |us: Option<f64>| us.filter(|_| wrong.is_none() && answer.skipped.is_none());
        Ok(Self {
            workload: answer.workload,
            peer,
            median_us: time(answer.median_us),
            p20_us: time(answer.p20_us),
            p80_us: time(answer.p80_us),
            max_rel_l2: answer.max_rel_l2,
            skipped: wrong
                .map(|error| format!("{WRONG}: relative L2 error {error:.1e}"))
                .or(answer.skipped),
        })
    }

    fn is_wrong(&self) -> bool {
        self.skipped.as_ref().is_some_and(|why| why.starts_with(WRONG))
    }

    fn line(&self) -> String {
        let time = match (self.median_us, &self.skipped) {
            (Some(us), _) => format!("{us:9.2}"),
            (None, why) => format!("{:>9} {}", "-", why.as_deref().unwrap_or_default()),
        };
        format!("{:26} {:24} {time}", self.workload, self.peer)
    }
}

/// What a row that is wrong begins its reason with.
const WRONG: &str = "WRONG";

/// A line a workload, a column a kernel, microseconds.
fn table(rows: &[Row]) -> String {
    let mut peers: Vec<&str> = Vec::new();
    let mut workloads: Vec<&str> = Vec::new();
    for row in rows {
        for (names, name) in [(&mut peers, &row.peer), (&mut workloads, &row.workload)] {
            if !names.contains(&name.as_str()) {
                names.push(name);
            }
        }
    }
    let columns = peers.iter().map(|peer| format!(" {peer:>20}"));
    let mut text = format!("\n{:26}{}\n", "us", columns.collect::<String>());
    for workload in workloads {
        text += &format!("{workload:26}");
        for peer in &peers {
            let mut rows = rows.iter();
            let row = rows.find(|row| row.workload == workload && row.peer == *peer);
            let us = row.and_then(|row| row.median_us);
            text += &us.map_or(format!(" {:>20}", "-"), |us| format!(" {us:20.2}"));
        }
        text += "\n";
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A folder with one peer of these lines, after the protocol's greeting and loop.
    fn folder(name: &str, answer: &str) -> PathBuf {
        let dir = std::env::temp_dir().join(format!("deft-peers-{}-{name}", std::process::id()));
        std::fs::create_dir_all(&dir).unwrap();
        let program = format!(
            "import json, sys\n\
             print('a library says hello')\n\
             print(json.dumps({{'peer': 'toy', 'about': 'counts tokens'}}), flush=True)\n\
             for line in sys.stdin:\n    \
                 asked = json.loads(line)\n    \
                 work = asked['workload']\n    \
                 tokens = sum(sum(tree['lens']) for tree in work['trees'])\n    \
                 print(json.dumps({answer}), flush=True)\n"
        );
        std::fs::write(dir.join("toy.py"), program).unwrap();
        std::fs::write(dir.join("_helper.py"), "raise SystemExit(1)\n").unwrap();
        dir
    }

    fn arguments(dir: &Path, json: Option<&Path>) -> Args {
        let mut words = vec!["deft-bench", "peers", dir.to_str().unwrap()];
        words.extend(["--filter", "qwen05_tot", "--device", "cpu", "--iterations", "1"]);
        words.extend(["--warmup", "0", "--checked", "1"]);
        if let Some(path) = json {
            words.extend(["--json", path.to_str().unwrap()]);
        }
        let crate::Command::Peers(args) = crate::parse(&words).command else { unreachable!() };
        args
    }

    /// Rows that are wrong in a run with one peer.
    fn wrong(dir: &Path, json: Option<&Path>) -> usize {
        let wrong = run(&arguments(dir, json)).unwrap();
        std::fs::remove_dir_all(dir).unwrap();
        wrong
    }

    #[test]
    fn a_peer_is_given_each_workload_and_its_times_stand_beside_ours() {
        let answer = "{'workload': work['name'], 'median_us': tokens / asked['iterations'], 'max_rel_l2': 1e-3}";
        let path = std::env::temp_dir().join(format!("deft-peers-{}.json", std::process::id()));
        assert_eq!(wrong(&folder("right", answer), Some(&path)), 0);
        let text = std::fs::read_to_string(&path).unwrap();
        std::fs::remove_file(&path).unwrap();
        let document: Document<Row> = serde_json::from_str(&text).unwrap();
        let peers: Vec<&str> = document.rows.iter().map(|row| row.peer.as_str()).collect();
        assert_eq!(peers, ["deft even", "toy"]);
        let workloads = deft_workloads::StepWorkload::parse(trees::WORKLOADS).unwrap();
        let known = workloads.iter().find(|known| known.name == "qwen05_tot").unwrap();
        let tokens: u32 = known.trees().iter().flat_map(|tree| tree.tokens()).sum();
        assert_eq!(document.rows[1].median_us, Some(f64::from(tokens)));
        assert!(document.rows[0].median_us.unwrap() > 0.0);
        let table = table(&document.rows);
        assert!(table.contains("qwen05_tot") && table.contains(&format!("{tokens}.00")), "{table}");
    }

    #[test]
    fn a_peer_that_is_wrong_has_no_time_and_one_that_skips_says_why() {
        let answer = "{'workload': work['name'], 'median_us': 1.0, 'max_rel_l2': float('1e-2')}";
        assert_eq!(wrong(&folder("wrong", answer), None), 1);
        let row = Row::of(
            "toy".to_owned(),
            serde_json::from_str(r#"{"workload": "a", "median_us": 1.0, "max_rel_l2": 1e-2}"#)
                .unwrap(),
        );
        assert_eq!(row.unwrap().median_us, None);
        let answer = "{'workload': work['name'], 'skipped': 'no such head dimension'}";
        assert_eq!(wrong(&folder("skips", answer), None), 0);
    }

    #[test]
    fn a_peer_that_does_not_keep_to_the_protocol_is_named_with_what_it_said() {
        let error = |name, answer| {
            let dir = folder(name, answer);
            let args = arguments(&dir, None);
            let asked = vec![json!({ "name": "qwen05_tot", "trees": [] })];
            let error = ask(&args, &dir.join("toy.py"), &asked).unwrap_err();
            assert_eq!(wrong(&dir, None), 1, "the others run all the same");
            format!("{error:#}")
        };
        let text = error("other", "{'workload': 'another', 'median_us': 1.0}");
        assert!(text.contains("toy.py answered another when asked for qwen05_tot"), "{text}");
        let text = error("empty", "{'workload': work['name']}");
        assert!(text.contains("neither `median_us`"), "{text}");
        let text = error("ends", "sys.exit(3)");
        assert!(text.contains("toy.py") && text.contains("ended without an answer"), "{text}");
        let text = error("words", "{'workload': work['name'], 'median_us': 'fast'}");
        assert!(text.contains("not as agreed"), "{text}");
    }

    #[test]
    fn a_folder_without_peers_is_refused() {
        let error = programs(&std::env::temp_dir().join("no such folder")).unwrap_err();
        assert!(error.to_string().contains("no such folder"));
    }
}
