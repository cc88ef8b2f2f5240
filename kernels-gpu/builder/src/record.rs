//! What `#[kernel]` says of an entry point, read from the PTX.

use anyhow::{Context, Result, bail};
use serde::{Deserialize, Serialize};

/// Begins the comment that holds a record.
const MARK: &str = "// .kernel ";

/// An entry point: how it is launched, and its parameters.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
pub(crate) struct Record {
    pub(crate) entry: String,
    /// The function that it is an instance of.
    pub(crate) family: String,
    pub(crate) group: String,
    pub(crate) threads: u32,
    pub(crate) min_blocks: u32,
    pub(crate) shared_bytes: u32,
    pub(crate) parameters: Vec<Parameter>,
}

/// A parameter's name, and its type in the kernel's source.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Parameter(pub(crate) String, pub(crate) String);

impl Record {
    /// All records of a PTX text, in order.
    pub(crate) fn read_all(ptx: &str) -> Result<Vec<Self>> {
        ptx.lines()
            .filter_map(|line| line.trim_start().strip_prefix(MARK))
            .map(|text| serde_json::from_str(text).with_context(|| format!("cannot read `{text}`")))
            .collect()
    }
}

/// The source's type of a parameter that is a tensor map.
const MAP: &str = "*const TensorMap";
/// Bytes of a tensor map.
pub(crate) const MAP_BYTES: u32 = 128;

impl Parameter {
    /// Whether the launch brings a tensor map, not its address.
    pub(crate) fn is_map(&self) -> bool {
        self.1 == MAP
    }

    /// The type with which a host passes it: an address is a `u64`.
    pub(crate) fn host_type(&self) -> Result<&str> {
        match self.1.as_str() {
            MAP => Ok("[u64; 16]"),
            pointer if pointer.starts_with('*') => Ok("u64"),
            number @ ("u32" | "i32" | "f32" | "u64" | "i64" | "f64") => Ok(number),
            other => bail!("parameter `{}` is of type `{other}`", self.0),
        }
    }

    /// How many bytes it has.
    pub(crate) fn bytes(&self) -> Result<u32> {
        match self.host_type()? {
            _ if self.is_map() => Ok(MAP_BYTES),
            number => Ok(if number.ends_with("64") { 8 } else { 4 }),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn records_are_found_among_other_lines() {
        let ptx = r#"
.version 8.3
// Start of file scope inline assembly
// .kernel {"entry":"f_d64","family":"f","group":"g","threads":96,"min_blocks":2,"shared_bytes":1024,"parameters":[["out","*mut u32"],["n","u32"]]}
.visible .entry f_d64()
"#;
        let records = Record::read_all(ptx).unwrap();
        assert_eq!(records.len(), 1);
        assert_eq!((&*records[0].entry, records[0].threads), ("f_d64", 96));
        let types: Vec<_> =
            records[0].parameters.iter().map(|each| each.host_type().unwrap()).collect();
        assert_eq!(types, ["u64", "u32"]);
        assert!(Record::read_all("// .kernel {").is_err());
    }
}
