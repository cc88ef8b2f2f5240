//! Jinja as transformers has it: the functions, filters and methods that chat templates use, within limits.

use std::collections::BTreeSet;
use std::fmt::Write as _;
use std::io::{self, Write as _};

use minijinja::syntax::SyntaxConfig;
use minijinja::value::{Kwargs, Tuple, Value};
use minijinja::{Environment, Error, ErrorKind, Output, State, escape_formatter};
use serde_json::ser::{Formatter, PrettyFormatter, Serializer};

use super::{bounds, percent};

/// Most bytes of a template; those that models come with have some 30,000.
pub(super) const MAX_SOURCE: usize = 1 << 16;
/// Most operators of a template; the longest there are have a few hundred. Compiling takes time by the square of how
/// deep an expression nests.
const MAX_OPERATORS: usize = 2_000;
/// Instructions of a run, and 64 bytes of what it makes each; beside these, one for each byte of contents.
const FUEL: u64 = 1_000_000;
/// Most bytes of a list or a dictionary as text or JSON, and of all that is in one, beside contents.
const MAX_WRITTEN: usize = 1 << 20;
/// Stack for templates: parser, compiler and values nest once a byte in the worst case.
const STACK: usize = 256 << 20;
const NAME: &str = "chat";

/// A template that can be run.
#[derive(Debug)]
pub(super) struct Program(Environment<'static>);

impl Program {
    pub(super) fn new(source: &str) -> Result<Self, Error> {
        if source.len() > MAX_SOURCE {
            let what = format!("it has {} bytes; the limit is {MAX_SOURCE}", source.len());
            return Err(Error::new(ErrorKind::SyntaxError, what));
        }
        let operators = operators(source);
        if operators > MAX_OPERATORS {
            let what = format!("it has {operators} operators; the limit is {MAX_OPERATORS}");
            return Err(Error::new(ErrorKind::SyntaxError, what));
        }
        let source = bounds::measured(&percent::to_filters(&without_generation_marks(source)));
        on_a_deep_stack(|| {
            let mut environment = environment()?;
            environment.add_template_owned(NAME, source)?;
            Ok(Self(environment))
        })
    }

    /// What the template makes of `context`, in which contents take `bytes` bytes.
    pub(super) fn run(
        &self,
        context: impl Fn() -> Value + Sync,
        bytes: usize,
    ) -> Result<String, Error> {
        on_a_deep_stack(|| {
            let mut environment = self.0.clone();
            environment.set_fuel(Some(FUEL + bytes as u64));
            environment.add_filter(
                bounds::FILTER,
                move |state: &mut State<'_, '_>, value: Value, of_namespace: Option<bool>| {
                    let most = MAX_WRITTEN + 2 * bytes;
                    bounds::bounded(state, value, of_namespace == Some(true), most)
                },
            );
            environment.get_template(NAME)?.render(context())
        })
    }
}

/// Templates and their values may be nested as deep as they are long.
fn on_a_deep_stack<T: Send>(run: impl FnOnce() -> Result<T, Error> + Send) -> Result<T, Error> {
    let failed = |what: String| Error::new(ErrorKind::InvalidOperation, what);
    std::thread::scope(|scope| {
        let thread = std::thread::Builder::new().stack_size(STACK);
        let thread = thread.spawn_scoped(scope, run);
        let thread = thread.map_err(|error| failed(format!("no thread for it: {error}")))?;
        thread.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
    })
}

fn environment() -> Result<Environment<'static>, Error> {
    let mut environment = Environment::new();
    let mut syntax = SyntaxConfig::builder();
    // As transformers renders templates.
    syntax.trim_blocks(true).lstrip_blocks(true);
    environment.set_syntax(syntax.build()?);
    environment.set_unknown_method_callback(python_method);
    environment.set_formatter(write_value);
    environment.add_filter("tojson", to_json);
    environment.add_filter(
        percent::FILTER,
        |state: &mut State<'_, '_>, text: Value, values: Value| {
            let mut arguments = vec![text];
            match values.downcast_object_ref::<Tuple>() {
                Some(_) => arguments.extend(values.try_iter()?),
                None => arguments.push(values),
            }
            state.apply_filter("format", &arguments)
        },
    );
    environment.add_function("raise_exception", |message: String| {
        Err::<Value, _>(Error::new(ErrorKind::InvalidOperation, message))
    });
    environment.add_function("strftime_now", |pattern: String| {
        let mut text = String::new();
        match write!(text, "{}", chrono::Local::now().format(&pattern)) {
            Ok(()) => Ok(text),
            Err(_) => Err(Error::new(
                ErrorKind::InvalidOperation,
                format!("{pattern:?} is no format of a time"),
            )),
        }
    });
    Ok(environment)
}

/// Characters and words that nest expressions, wherever they are but in what begins and ends tags.
fn operators(source: &str) -> usize {
    let mut rest = source.to_owned();
    for delimiter in ["{%-", "{%+", "{%", "-%}", "+%}", "%}", "{{-", "-}}"] {
        rest = rest.replace(delimiter, " ");
    }
    let is_word = |c: char| c.is_alphanumeric() || c == '_';
    let words = rest.split(|c| !is_word(c));
    let words = words.filter(|word| ["and", "or", "not"].contains(word)).count();
    words + rest.matches(['+', '-', '~', '*', '/', '%']).count()
}

/// `{% generation %}` and its end mark what a model said, for training: here a block like any other.
fn without_generation_marks(source: &str) -> String {
    let mut out = String::with_capacity(source.len());
    let mut rest = source;
    while let Some(at) = rest.find("{%") {
        let (before, tag) = rest.split_at(at);
        let end = tag.find("%}").unwrap_or(tag.len());
        let sign = |c| c == '-' || c == '+';
        let word = tag[2..end].trim_matches(sign).trim();
        out.push_str(before);
        let instead = match word {
            "generation" => "if true",
            "endgeneration" => "endif",
            _ => word,
        };
        out.push_str(&tag[..end].replace(word, instead));
        rest = &tag[end..];
    }
    out + rest
}

/// Quoted texts in the tags of a template.
pub(super) fn constants(source: &str) -> BTreeSet<String> {
    let mut all = BTreeSet::new();
    let mut rest = source;
    while let Some(at) = rest.find(['{']) {
        rest = &rest[at + 1..];
        let Some(inside) = rest.strip_prefix(['{', '%']) else {
            continue;
        };
        rest = inside;
        while let Some(at) = rest.find(['\'', '"', '}']) {
            let (quote, after) = (rest.as_bytes()[at], &rest[at + 1..]);
            rest = after;
            if quote == b'}' {
                break;
            }
            let Some(end) = after.find(char::from(quote)) else {
                break;
            };
            all.insert(after[..end].to_owned());
            rest = &after[end + 1..];
        }
    }
    all.remove("");
    all
}

/// Methods of Python's strings, lists and dictionaries.
fn python_method(
    state: &mut State<'_, '_>,
    value: &Value,
    method: &str,
    arguments: &[Value],
) -> Result<Value, Error> {
    // Widths ask for memory by themselves.
    let digits = |text: &str| text.split(|c: char| !c.is_ascii_digit()).map(str::len).max();
    if method == "format" && value.as_str().and_then(digits) > Some(5) {
        let what = "format: a number of more than 5 digits in the format";
        return Err(Error::new(ErrorKind::InvalidOperation, what));
    }
    minijinja_contrib::pycompat::unknown_method_callback(state, value, method, arguments)
}

/// Writes a value, of lists and dictionaries only so much: what shares its parts can be many times as large written.
fn write_value(
    out: &mut Output<'_>,
    state: &mut State<'_, '_>,
    value: &Value,
) -> Result<(), Error> {
    if value.as_object().is_none() {
        return escape_formatter(out, state, value);
    }
    let mut text = Limited(Vec::new());
    write!(text, "{value}").map_err(|error| {
        Error::new(ErrorKind::InvalidOperation, format!("a value as text: {error}"))
    })?;
    Ok(out.write_str(&String::from_utf8_lossy(&text.0))?)
}

/// As Python's `json.dumps` writes it, without escaping what is not ASCII.
fn to_json(value: &Value, options: Kwargs) -> Result<String, Error> {
    let indent: Option<usize> = options.get("indent")?;
    // As transformers has it where nothing is said.
    if options.get::<Option<bool>>("ensure_ascii")? == Some(true) {
        let what = "tojson: ensure_ascii=true is not known";
        return Err(Error::new(ErrorKind::InvalidOperation, what));
    }
    options.assert_all_used()?;
    let mut out = Limited(Vec::new());
    let spaces = " ".repeat(indent.unwrap_or(0).min(64));
    let written = match indent {
        None => write_json(value, &mut out, Spaced),
        Some(_) => write_json(value, &mut out, PrettyFormatter::with_indent(spaces.as_bytes())),
    };
    let failed = |error| Error::new(ErrorKind::InvalidOperation, format!("tojson: {error}"));
    written.map_err(failed)?;
    Ok(String::from_utf8_lossy(&out.0).into_owned())
}

fn write_json(value: &Value, out: &mut Limited, style: impl Formatter) -> serde_json::Result<()> {
    serde::Serialize::serialize(value, &mut Serializer::with_formatter(out, style))
}

/// Text up to a limit.
struct Limited(Vec<u8>);

impl io::Write for Limited {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        if self.0.len() + bytes.len() > MAX_WRITTEN {
            let what = format!("more than {MAX_WRITTEN} bytes");
            return Err(io::Error::other(what));
        }
        self.0.extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// A space after commas and colons.
struct Spaced;

impl Formatter for Spaced {
    fn begin_array_value<W: ?Sized + io::Write>(
        &mut self,
        out: &mut W,
        first: bool,
    ) -> io::Result<()> {
        out.write_all(if first { b"" } else { b", " })
    }

    fn begin_object_key<W: ?Sized + io::Write>(
        &mut self,
        out: &mut W,
        first: bool,
    ) -> io::Result<()> {
        out.write_all(if first { b"" } else { b", " })
    }

    fn begin_object_value<W: ?Sized + io::Write>(&mut self, out: &mut W) -> io::Result<()> {
        out.write_all(b": ")
    }
}
