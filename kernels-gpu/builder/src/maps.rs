//! Tensor maps among a launch's parameters.
//!
//! A kernel takes a map as `*const TensorMap`. Copies want its address, and the map has to be where nothing writes (PTX ISA,
//! "Tensors": a map is in the spaces `.param`, `.const` or `.global`). rustc has no way to say that a parameter's address is
//! taken, so it is done here: the parameter becomes the map's 128 bytes, and where the pointer was loaded, the parameter's
//! own address is taken (PTX ISA, "cvta": `.param`).

use anyhow::{Result, ensure};

use crate::record::{MAP_BYTES, Record};

/// `text`, the entry of `record`, with its pointers to maps replaced.
pub(crate) fn in_parameters(text: &str, record: &Record) -> Result<String> {
    let mut text = text.to_owned();
    for (index, parameter) in record.parameters.iter().enumerate() {
        if !parameter.is_map() {
            continue;
        }
        let entry = &record.entry;
        let name = format!("{entry}_param_{index}");
        let mut result = String::new();
        let (mut declared, mut addresses) = (0, Vec::new());
        for line in text.lines() {
            if !words(line).any(|word| word == name) {
                result += line;
            } else if line.trim_start().starts_with(".param .u64") {
                let comma = if line.ends_with(',') { "," } else { "" };
                result += &format!("\t.param .align 64 .b8 {name}[{MAP_BYTES}]{comma}");
                declared += 1;
            } else if let Some(register) = loaded(line, &name) {
                result += &format!("\tmov.b64 \t{register}, {name};\n");
                result += &format!("\tcvta.param.u64 \t{register}, {register};");
                addresses.push(register.to_owned());
            } else {
                anyhow::bail!(
                    "`{entry}` uses its tensor map otherwise than by copies: `{}`",
                    line.trim()
                );
            }
            result.push('\n');
        }
        ensure!(declared == 1, "`{entry}` declares its parameter {index} {declared} times");
        for line in result.lines().filter(|line| line.contains("cvta.to.global")) {
            let of_map = words(line).any(|word| addresses.iter().any(|address| address == word));
            ensure!(!of_map, "`{entry}` reads its tensor map: `{}`", line.trim());
        }
        text = result;
    }
    Ok(text)
}

/// The register that `line` loads parameter `name` to.
fn loaded<'a>(line: &'a str, name: &str) -> Option<&'a str> {
    let rest = line.trim().strip_prefix("ld.param.")?;
    let (_, rest) = rest.split_once(char::is_whitespace)?;
    let (register, from) = rest.trim().split_once(',')?;
    (from.trim() == format!("[{name}];")).then_some(register.trim())
}

fn words(line: &str) -> impl Iterator<Item = &str> {
    line.split(|c: char| !(c.is_ascii_alphanumeric() || "_$%".contains(c)))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::record::Parameter;

    const TEXT: &str = "\
.visible .entry f(
\t.param .u64 .ptr .align 1 f_param_0,
\t.param .u64 .ptr .align 1 f_param_1,
\t.param .u32 f_param_10
)
{
\tld.param.b64 \t%rd1, [f_param_0];
\tld.param.b64 \t%rd2, [f_param_1];
\tld.param.b32 \t%r1, [f_param_10];
\tcvta.to.global.u64 \t%rd3, %rd1;
\tprefetch.tensormap [%rd2];
}
";

    fn record() -> Record {
        let parameter = |name: &str, ty: &str| Parameter(name.to_owned(), ty.to_owned());
        let parameters = vec![parameter("q", "*const u16"), parameter("k", "*const TensorMap")];
        Record {
            entry: "f".to_owned(),
            family: "f".to_owned(),
            group: "f".to_owned(),
            threads: 32,
            min_blocks: 1,
            shared_bytes: 0,
            parameters,
        }
    }

    #[test]
    fn a_map_is_a_parameter_whose_address_is_taken() {
        let expected = TEXT
            .replace(".param .u64 .ptr .align 1 f_param_1,", ".param .align 64 .b8 f_param_1[128],")
            .replace(
                "ld.param.b64 \t%rd2, [f_param_1];",
                "mov.b64 \t%rd2, f_param_1;\n\tcvta.param.u64 \t%rd2, %rd2;",
            );
        assert_eq!(in_parameters(TEXT, &record()).unwrap(), expected);
    }

    #[test]
    fn a_map_that_is_read_as_memory_is_refused() {
        for (from, to) in [("%rd3, %rd1", "%rd3, %rd2"), ("[f_param_10]", "[f_param_1+8]")] {
            let refusal = in_parameters(&TEXT.replace(from, to), &record()).unwrap_err();
            assert!(refusal.to_string().contains("tensor map"), "{refusal}");
        }
    }
}
