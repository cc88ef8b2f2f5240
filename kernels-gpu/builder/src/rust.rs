//! The table as Rust source (`kernels.rs`), for the host to include: the PTX, and a record of arguments a kernel.

use anyhow::Result;

use crate::manifest::{Image, Kernel, Manifest};
use crate::ptx::HEADER;
use crate::record::Parameter;

/// File name of the source.
pub(crate) const RUST: &str = "kernels.rs";

const TYPES: &str = "
/// One PTX module.
#[derive(Clone, Copy, Debug)]
pub struct Image {
    /// What it is compiled for, as in `.target`.
    pub arch: &'static str,
    /// Its kernels' group; file `<arch>/<group>.ptx`.
    pub group: &'static str,
    /// Its entry points.
    pub entries: &'static [Entry],
    /// SHA-256 of `ptx`, hexadecimal.
    pub sha256: &'static str,
    /// The PTX text.
    pub ptx: &'static str,
}

/// How a kernel is launched.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Entry {
    /// Its symbol.
    pub name: &'static str,
    /// Most threads of a block.
    pub threads: u32,
    /// Dynamic shared memory of a block, in bytes.
    pub shared_bytes: u32,
    /// Bytes of each parameter, in order.
    pub parameters: &'static [u32],
}

/// A kernel's arguments by name. Addresses are of device memory.
pub trait Arguments {
    /// Bytes of each, in the kernel's order.
    const BYTES: &'static [u32];

    /// The bits of each, in the kernel's order, zero-extended.
    fn bits(&self) -> impl AsRef<[u64]>;
}
";

/// The group of kernels that tests launch, argument by argument: there are no records of them.
const TESTS: &str = "selftest";

/// The source for `manifest`.
pub(crate) fn source(manifest: &Manifest) -> Result<String> {
    let mut text = HEADER.to_owned() + TYPES;
    text += "\n/// All modules.\npub const IMAGES: &[Image] = &[\n";
    for image in &manifest.images {
        text += &module(manifest, image)?;
    }
    text += "];\n";
    for (family, parameters) in &manifest.families {
        let images = manifest.images.iter();
        let launched = images.filter(|image| image.group != TESTS);
        let mut names: Vec<_> = launched
            .flat_map(|image| &image.kernels)
            .filter(|kernel| kernel.family == *family)
            .map(|kernel| format!("`{}`", kernel.name))
            .collect();
        names.sort();
        names.dedup();
        if !names.is_empty() {
            text += &arguments(&names.join(", "), family, parameters)?;
        }
    }
    Ok(text)
}

fn module(manifest: &Manifest, image: &Image) -> Result<String> {
    let entry = |kernel: &Kernel| {
        let parameters = manifest.families[&kernel.family].iter();
        let bytes = parameters
            .map(Parameter::bytes)
            .collect::<Result<Vec<u32>>>()?;
        Ok(format!(
            "            Entry {{ name: {:?}, threads: {}, shared_bytes: {}, parameters: &{bytes:?} }},\n",
            kernel.name, kernel.threads, kernel.shared_bytes,
        ))
    };
    let entries: String = image.kernels.iter().map(entry).collect::<Result<_>>()?;
    Ok(format!(
        "    Image {{\n        arch: {:?},\n        group: {:?},\n        entries: &[\n{entries}        ],\n        \
         sha256: {:?},\n        ptx: include_str!({:?}),\n    }},\n",
        image.arch, image.group, image.sha256, image.file,
    ))
}

fn arguments(names: &str, family: &str, parameters: &[Parameter]) -> Result<String> {
    let (mut fields, mut bytes, mut bits) = (String::new(), Vec::new(), Vec::new());
    for parameter @ Parameter(name, source) in parameters {
        let ty = parameter.host_type()?;
        fields += &format!("    /// `{source}`.\n    pub {name}: {ty},\n");
        bytes.push(parameter.bytes()?.to_string());
        bits.push(match ty {
            "u64" => format!("self.{name}"),
            "u32" => format!("self.{name} as u64"),
            "f32" => format!("self.{name}.to_bits() as u64"),
            "f64" => format!("self.{name}.to_bits()"),
            "i32" => format!("self.{name} as u32 as u64"),
            _ => format!("self.{name} as u64"),
        });
    }
    let record = camel_case(family);
    Ok(format!(
        "\n/// Arguments of {names}.\n#[derive(Clone, Copy, Debug, Default, PartialEq)]\npub struct {record} {{\n{fields}}}\n\n\
         impl Arguments for {record} {{\n    const BYTES: &'static [u32] = &[{}];\n\n    \
         fn bits(&self) -> impl AsRef<[u64]> {{\n        [{}]\n    }}\n}}\n",
        bytes.join(", "),
        bits.join(", ")
    ))
}

/// `rms_norm` as `RmsNorm`.
fn camel_case(name: &str) -> String {
    name.split('_')
        .map(|word| {
            let (first, rest) = word.split_at(word.len().min(1));
            first.to_uppercase() + rest
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::manifest::tests::manifest;

    #[test]
    fn a_host_gets_a_record_with_the_kernels_parameters_by_name() {
        let text = source(&manifest()).unwrap();
        for part in [
            "/// Arguments of `f_d64`.",
            "pub struct F {\n    /// `*mut u32`.\n    pub out: u64,\n    /// `f32`.\n    pub scale: f32,\n}",
            "const BYTES: &'static [u32] = &[8, 4];",
            "[self.out, self.scale.to_bits() as u64]",
            "Entry { name: \"f_d64\", threads: 64, shared_bytes: 0, parameters: &[8, 4] }",
            "ptx: include_str!(\"sm_90a/g.ptx\")",
        ] {
            assert!(text.contains(part), "{part} in {text}");
        }
    }

    #[test]
    fn families_become_type_names() {
        assert_eq!(camel_case("rms_norm"), "RmsNorm");
        assert_eq!(camel_case("fill_f32"), "FillF32");
    }
}
