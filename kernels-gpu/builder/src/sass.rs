//! Machine code: what ptxas made of a kernel, beyond what it reports.

use std::collections::BTreeMap;

use anyhow::{Result, ensure};

use crate::ptx;

/// The machine code of one entry, counted.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Code {
    /// Instructions, less the padding after the last.
    pub(crate) instructions: u32,
    /// Waits for `wgmma`.
    wgmma_waits: u32,
    /// The first instruction that reads or writes local memory.
    local: Option<String>,
}

/// `wgmma.wait_group`s of a PTX text, by entry.
pub(crate) fn waits_asked(text: &str) -> Result<BTreeMap<String, u32>> {
    let items = ptx::parse(text)?.items.into_iter();
    let count = |item: ptx::Item| {
        let waits = item.text.matches("wgmma.wait_group").count();
        (item.name, waits as u32)
    };
    Ok(items.map(count).collect())
}

/// Counts what `nvdisasm --print-code` prints, by entry.
pub(crate) fn read(text: &str) -> BTreeMap<String, Code> {
    let mut entries: BTreeMap<String, Code> = BTreeMap::new();
    let mut entry: Option<&mut Code> = None;
    let mut padding = 0;
    for line in text.lines() {
        if let Some(name) = line.strip_prefix(".text.").and_then(|rest| rest.strip_suffix(':')) {
            entry = Some(entries.entry(name.to_owned()).or_default());
            padding = 0;
        }
        let (Some(code), Some(instruction)) = (entry.as_deref_mut(), instruction(line)) else {
            continue;
        };
        let mut words = instruction.split_whitespace();
        let opcode = words.find(|word| !word.starts_with('@')).unwrap_or_default();
        let name = opcode.split('.').next().unwrap_or_default();
        padding += 1;
        if name != "NOP" {
            code.instructions += padding;
            padding = 0;
        }
        code.wgmma_waits += u32::from(opcode.starts_with("WARPGROUP.DEPBAR"));
        if matches!(name, "LDL" | "STL") && code.local.is_none() {
            code.local = Some(instruction.to_owned());
        }
    }
    entries
}

/// The instruction of a line, such as `/*0010*/  @P0 BRA ...;`.
fn instruction(line: &str) -> Option<&str> {
    let (_, rest) = line.trim_start().strip_prefix("/*")?.split_once("*/")?;
    Some(rest.trim().trim_end_matches(';').trim_end()).filter(|text| !text.is_empty())
}

impl Code {
    /// Refuses what costs a kernel its speed without a word from ptxas. `asked` is what its PTX has of waits.
    ///
    /// `wgmma` is serialised by a wait after each product, so there must be no more waits than the PTX has.
    pub(crate) fn check(&self, entry: &str, target: &str, asked: u32) -> Result<()> {
        if let Some(local) = &self.local {
            anyhow::bail!("`{entry}` on {target} uses local memory: `{local}`");
        }
        ensure!(
            self.wgmma_waits <= asked,
            "`{entry}` on {target} waits for wgmma {} times, its PTX {}: ptxas serialised products",
            self.wgmma_waits,
            asked
        );
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SASS: &str = "\
//--------------------- .text.first     --------------------------
\t.section\t.text.first,\"ax\",@progbits
first:
.text.first:
        /*0000*/                   LDC R1, c[0x0][0x28] ;
.L_x_1:
        /*0010*/                   NOP ;
        /*0020*/              @!P0 WARPGROUP.DEPBAR.LE gsb0, 0x0 ;
        /*0030*/                   BRA `(.L_x_1) ;
        /*0040*/                   NOP ;
        /*0050*/                   NOP ;
.text.second:
        /*0000*/               @P1 STL.64 [R1+0x8], R2 ;
        /*0010*/                   EXIT ;
";

    #[test]
    fn instructions_are_counted_by_entry_without_the_padding() {
        let code = read(SASS);
        assert_eq!(code["first"].instructions, 4);
        assert_eq!(code["second"].instructions, 2);
    }

    #[test]
    fn local_memory_is_refused_with_the_instruction() {
        let error = read(SASS)["second"].check("second", "sm_90a", 0);
        let error = error.unwrap_err().to_string();
        assert!(error.contains("second") && error.contains("STL.64 [R1+0x8], R2"), "{error}");
    }

    #[test]
    fn a_wait_for_wgmma_that_nobody_asked_for_is_refused() {
        let code = &read(SASS)["first"];
        let ptx =
            ".version 8.3\n.visible .entry first()\n{\n\t{ wgmma.wait_group.sync.aligned 0; }\n}\n";
        let asked = waits_asked(ptx).unwrap()["first"];
        assert!(code.check("first", "sm_90a", asked).is_ok());
        let error = code.check("first", "sm_90a", asked - 1).unwrap_err().to_string();
        assert!(error.contains("1 times, its PTX 0"), "{error}");
    }
}
