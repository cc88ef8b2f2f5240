//! The table as Rust source (`kernels.rs`), for the host to include: the PTX, and a record of arguments a kernel. The
//! types, and the macro that makes a record, are the including module's.

use anyhow::Result;

use crate::manifest::{Image, Kernel, Manifest};
use crate::ptx::HEADER;
use crate::record::Parameter;

/// File name of the source.
pub(crate) const RUST: &str = "kernels.rs";

/// The group of kernels that tests launch, argument by argument: there are no records of them.
const TESTS: &str = "selftest";

/// The source for `manifest`.
pub(crate) fn source(manifest: &Manifest) -> Result<String> {
    let mut text = HEADER.to_owned();
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
        let bytes = parameters.map(Parameter::bytes).collect::<Result<Vec<u32>>>()?;
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
    let mut fields = String::new();
    for parameter @ Parameter(name, source) in parameters {
        let ty = parameter.host_type()?;
        fields += &format!("    {name}: {ty} = \"`{source}`\",\n");
    }
    Ok(format!(
        "\narguments! {{ \"Arguments of {names}.\"\n{} {{\n{fields}}} }}\n",
        camel_case(family)
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
            "arguments! { \"Arguments of `f_d64`.\"\nF {\n    out: u64 = \"`*mut u32`\",\n    scale: f32 = \"`f32`\",\n} }",
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
