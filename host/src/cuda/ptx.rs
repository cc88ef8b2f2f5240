//! PTX text: which entries it has, and one entry cut out of it.
//!
//! The driver compiles a whole image at once, tens of variants of which a process uses two or three. PTX
//! is flat text (PTX ISA, "Directives": no nesting of entries), so an entry is cut out with everything
//! that is not an entry, and compiled alone when it is first used.

use std::collections::BTreeMap;
use std::ops::Range;

/// Where an entry lies in the text, and how it wants to be launched.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Entry {
    span: Range<usize>,
    /// Bytes of each parameter, in order.
    pub(super) parameters: Vec<u32>,
    /// Threads a block (`.maxntid`, or `.reqntid`), if the entry states it.
    pub(super) threads: Option<u32>,
    /// Dynamic shared memory a block in bytes (`// .shared_bytes`), if the entry states it.
    pub(super) shared_bytes: Option<u32>,
    /// Whether it waits by itself for the kernels it depends on (`griddepcontrol.wait`).
    pub(super) waits: bool,
}

/// The entries of a PTX text.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Index {
    pub(super) entries: BTreeMap<String, Entry>,
    /// The `.target`, without `sm_`: `90a`.
    pub(super) target: String,
}

const ENTRY: &str = ".visible .entry ";

impl Index {
    /// Reads `text`, or says what is wrong with it.
    pub(super) fn parse(text: &str) -> Result<Self, String> {
        let mut entries = BTreeMap::new();
        let mut target = None;
        let mut offset = 0;
        let mut open: Option<(String, usize)> = None;
        let mut depth = 0i32;
        for line in text.split_inclusive('\n') {
            let code = code_of(line);
            if let Some(rest) = code.trim_start().strip_prefix(".target sm_") {
                target = Some(rest.split([',', ' ']).next().unwrap_or("").trim().to_owned());
            }
            if open.is_none()
                && let Some(rest) = code.trim_start().strip_prefix(ENTRY)
            {
                let name = rest.split(['(', ' ']).next().unwrap_or("").trim();
                open = Some((name.to_owned(), offset));
            }
            offset += line.len();
            let before = depth;
            depth += braces(code);
            if before > 0
                && depth == 0
                && let Some((name, begin)) = open.take()
            {
                let header = text[begin..offset].split('{').next().unwrap_or("");
                let entry = Entry {
                    span: begin..offset,
                    waits: text[begin..offset].contains("griddepcontrol.wait"),
                    parameters: parameters(header).map_err(|e| format!("entry {name}: {e}"))?,
                    threads: threads(header).map_err(|e| format!("entry {name}: {e}"))?,
                    shared_bytes: shared_bytes(header).map_err(|e| format!("entry {name}: {e}"))?,
                };
                entries.insert(name, entry);
            }
        }
        if let Some((name, _)) = open {
            return Err(format!("entry {name} does not end"));
        }
        Ok(Self { entries, target: target.ok_or("no `.target sm_…` line")? })
    }

    /// `text` without all entries but `keep`.
    pub(super) fn extract(&self, text: &str, keep: &Entry) -> String {
        let mut spans: Vec<_> = self.entries.values().map(|entry| &entry.span).collect();
        spans.sort_by_key(|span| span.start);
        let mut alone = String::with_capacity(keep.span.len() + 4096);
        let mut from = 0;
        for span in spans {
            alone.push_str(&text[from..span.start]);
            if span == &keep.span {
                alone.push_str(&text[span.clone()]);
            }
            from = span.end;
        }
        alone.push_str(&text[from..]);
        alone
    }
}

fn code_of(line: &str) -> &str {
    line.split("//").next().unwrap_or("").trim_end()
}

fn braces(code: &str) -> i32 {
    code.bytes().fold(0, |depth, byte| match byte {
        b'{' => depth + 1,
        b'}' => depth - 1,
        _ => depth,
    })
}

/// Bytes of each `.param` between the entry's parentheses: `.param .u64 .ptr .align 1 name`, or
/// `.param .align 4 .b8 name[16]`.
fn parameters(header: &str) -> Result<Vec<u32>, String> {
    let inside = header
        .split_once('(')
        .and_then(|(_, rest)| rest.split_once(')'))
        .map_or("", |(list, _)| list);
    inside
        .split(',')
        .map(str::trim)
        .filter(|parameter| !parameter.is_empty())
        .map(|parameter| {
            let bits = parameter
                .split_whitespace()
                .find_map(|word| match word.get(..2) {
                    Some(".u" | ".s" | ".b" | ".f") => word[2..].parse::<u32>().ok(),
                    _ => None,
                })
                .ok_or_else(|| format!("parameter `{parameter}` has no type"))?;
            let count = match parameter.split_once('[') {
                Some((_, rest)) => rest
                    .trim_end_matches(']')
                    .parse::<u32>()
                    .map_err(|e| format!("parameter `{parameter}`: {e}"))?,
                None => 1,
            };
            Ok(bits / 8 * count)
        })
        .collect()
}

fn threads(header: &str) -> Result<Option<u32>, String> {
    let Some((_, rest)) = header.split_once(".reqntid").or_else(|| header.split_once(".maxntid"))
    else {
        return Ok(None);
    };
    rest.lines()
        .next()
        .unwrap_or("")
        .split(',')
        .map(|number| number.trim().parse::<u32>())
        .product::<Result<u32, _>>()
        .map(Some)
        .map_err(|e| format!("its thread count: {e}"))
}

/// Shared memory as our build notes it behind the launch bounds; PTX has no directive for it.
fn shared_bytes(header: &str) -> Result<Option<u32>, String> {
    let Some((_, rest)) = header.split_once("// .shared_bytes ") else {
        return Ok(None);
    };
    let number = rest.lines().next().unwrap_or("").trim();
    let bytes = number.parse().map_err(|e| format!("its shared memory `{number}`: {e}"))?;
    Ok(Some(bytes))
}

#[cfg(test)]
mod tests {
    use super::*;

    const TEXT: &str = "\
//
// Generated by LLVM NVPTX Back-End
//
.version 8.3
.target sm_90a
.address_size 64
.extern .shared .align 1024 .b8 dyn_smem[];
\t// .globl\tattend                        // -- Begin function attend
.visible .entry attend(
\t.param .u64 .ptr .align 1 attend_param_0,
\t.param .u32 attend_param_1,
\t.param .f32 attend_param_2,
\t.param .align 4 .b8 attend_param_3[16]
)
.maxntid 256, 1, 1
.minnctapersm 1
// .shared_bytes 196864
{
\t// begin inline asm
\t{ .reg .pred p; } // }
\tgriddepcontrol.wait;
\tret;
}
                                        // -- End function
\t// .globl\tempty
.visible .entry empty()
{
\tret;
}
";

    #[test]
    fn entries_are_found_with_their_parameters_and_threads() {
        let index = Index::parse(TEXT).unwrap();
        assert_eq!(index.target, "90a");
        let attend = &index.entries["attend"];
        assert_eq!(attend.parameters, [8, 4, 4, 16]);
        assert_eq!(attend.threads, Some(256));
        assert_eq!(attend.shared_bytes, Some(196_864));
        let empty = &index.entries["empty"];
        assert_eq!(empty.parameters, [0u32; 0]);
        assert_eq!((empty.threads, empty.shared_bytes), (None, None));
        assert!(attend.waits && !empty.waits);
    }

    #[test]
    fn one_entry_is_cut_out_with_all_that_is_no_entry() {
        let index = Index::parse(TEXT).unwrap();
        for (keep, drop) in [("attend", "empty"), ("empty", "attend")] {
            let alone = index.extract(TEXT, &index.entries[keep]);
            assert!(alone.contains(&format!(".entry {keep}(")));
            assert!(!alone.contains(&format!(".entry {drop}(")));
            assert!(alone.contains("dyn_smem[]") && alone.contains(".target sm_90a"));
            let again = Index::parse(&alone).unwrap();
            assert_eq!(again.entries[keep].parameters, index.entries[keep].parameters);
        }
    }

    #[test]
    fn text_that_is_cut_off_is_refused_with_the_entry_named() {
        let cut = &TEXT[..TEXT.find("ret;").unwrap()];
        assert!(Index::parse(cut).unwrap_err().contains("attend"));
        assert!(Index::parse("").unwrap_err().contains(".target"));
    }
}
