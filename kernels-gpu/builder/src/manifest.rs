//! The table of generated PTX (`manifest.json`): what each file is made from and by what, how its kernels are launched,
//! and what they may cost.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

use anyhow::{Context, Result, ensure};
use device::Arch;
use serde::{Deserialize, Serialize};

use crate::budget::Budget;
use crate::ptx::{self, Group};
use crate::record::{Parameter, Record};
use crate::source::sha256;

/// File name of the table.
pub(crate) const MANIFEST: &str = "manifest.json";

/// All PTX files of a folder.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Manifest {
    /// The release of ptxas that the budgets were measured with.
    pub(crate) ptxas: String,
    /// Parameters by family: the function that entries are instances of.
    pub(crate) families: BTreeMap<String, Vec<Parameter>>,
    pub(crate) images: Vec<Image>,
}

/// One PTX file, by its path relative to the table.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Image {
    pub(crate) file: String,
    pub(crate) arch: String,
    pub(crate) group: String,
    pub(crate) rustc: String,
    /// SHA-256 over the sources and the compiler's flags.
    pub(crate) source: String,
    pub(crate) sha256: String,
    pub(crate) kernels: Vec<Kernel>,
}

/// An entry of it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Kernel {
    pub(crate) name: String,
    pub(crate) family: String,
    pub(crate) threads: u32,
    pub(crate) min_blocks: u32,
    pub(crate) shared_bytes: u32,
    /// Instructions that lanes execute together, `.sync` and `.aligned`.
    pub(crate) collective: u32,
    /// By GPU, as ptxas names it.
    pub(crate) budgets: BTreeMap<String, Budget>,
}

impl Manifest {
    /// The table in `folder`; empty if there is none yet.
    ///
    /// # Errors
    /// A file that is no such table.
    pub fn load(folder: &Path) -> Result<Self> {
        let path = folder.join(MANIFEST);
        if !path.is_file() {
            return Ok(Self::default());
        }
        let text = fs::read_to_string(&path)?;
        serde_json::from_str(&text).with_context(|| format!("cannot read {}", path.display()))
    }

    /// Compares the PTX in `folder` with the table's hashes and numbers of instructions that lanes execute together.
    ///
    /// # Errors
    /// The first difference.
    pub fn verify(&self, folder: &Path) -> Result<()> {
        for image in &self.images {
            let path = folder.join(&image.file);
            let text = fs::read_to_string(&path)
                .with_context(|| format!("cannot read {}", path.display()))?;
            let found = sha256(&text);
            ensure!(
                found == image.sha256,
                "{} has SHA-256 {found}, the table says {}",
                image.file,
                image.sha256
            );
            let found = ptx::collective(&text)?;
            for kernel in &image.kernels {
                let (name, told) = (&kernel.name, kernel.collective);
                let found = found.get(name).copied().unwrap_or_default();
                ensure!(
                    found == told,
                    "`{name}` of {} has {found} instructions that lanes execute together, the table says {told}",
                    image.file
                );
            }
        }
        Ok(())
    }

    /// Puts `groups`, made from sources of the hash `source`, in the place of what the table had for `arch`. Kernels
    /// keep their budgets.
    pub(crate) fn replace(
        &mut self,
        arch: Arch,
        rustc: &str,
        source: &str,
        groups: &BTreeMap<String, Group>,
    ) -> Result<()> {
        let (mut old, others): (Vec<_>, Vec<_>) =
            self.images.drain(..).partition(|image| image.arch == arch.name());
        self.images = others;
        let old: BTreeMap<String, Kernel> = old
            .drain(..)
            .flat_map(|image| image.kernels)
            .map(|kernel| (kernel.name.clone(), kernel))
            .collect();
        for (group, Group { ptx, records }) in groups {
            let collective = ptx::collective(ptx)?;
            let kernel = |record: &Record| Kernel {
                name: record.entry.clone(),
                family: record.family.clone(),
                threads: record.threads,
                min_blocks: record.min_blocks,
                shared_bytes: record.shared_bytes,
                collective: collective[&record.entry],
                budgets: old
                    .get(&record.entry)
                    .map_or_else(BTreeMap::new, |old| old.budgets.clone()),
            };
            self.images.push(Image {
                file: file_name(arch, group),
                arch: arch.name().to_owned(),
                group: group.clone(),
                rustc: rustc.to_owned(),
                source: source.to_owned(),
                sha256: sha256(ptx),
                kernels: records.iter().map(kernel).collect(),
            });
            for record in records {
                self.families.insert(record.family.clone(), record.parameters.clone());
            }
        }
        self.images.sort_by(|a, b| a.file.cmp(&b.file));
        let kernels = self.images.iter().flat_map(|image| &image.kernels);
        let used: Vec<_> = kernels.map(|kernel| &kernel.family).collect();
        self.families.retain(|family, _| used.contains(&family));
        Ok(())
    }

    /// Whether the table has the group as it is, with a budget for each kernel.
    pub(crate) fn holds(&self, arch: Arch, name: &str, group: &Group) -> bool {
        let file = file_name(arch, name);
        let hash = sha256(&group.ptx);
        let mut images = self.images.iter();
        images.any(|image| {
            let mut kernels = image.kernels.iter();
            image.file == file
                && image.sha256 == hash
                && kernels.all(|kernel| !kernel.budgets.is_empty())
        })
    }

    /// The compiler of the first image; all are made by one unless they were built one by one.
    pub(crate) fn rustc(&self) -> Option<&str> {
        self.images.first().map(|image| image.rustc.as_str())
    }

    /// The table as text, a line a kernel.
    pub(crate) fn to_json(&self) -> String {
        let families = self.families.iter();
        let families: Vec<_> = families
            .map(|(name, parameters)| format!("    {}: {}", json(name), json(parameters)))
            .collect();
        let images: Vec<_> = self
            .images
            .iter()
            .map(|image| {
                let kernels: Vec<_> = image
                    .kernels
                    .iter()
                    .map(|kernel| format!("        {}", json(kernel)))
                    .collect();
                format!(
                    "    {{\n      \"file\": {},\n      \"arch\": {},\n      \"group\": {},\n      \
                     \"rustc\": {},\n      \"source\": {},\n      \"sha256\": {},\n      \
                     \"kernels\": [\n{}\n      ]\n    }}",
                    json(&image.file),
                    json(&image.arch),
                    json(&image.group),
                    json(&image.rustc),
                    json(&image.source),
                    json(&image.sha256),
                    kernels.join(",\n")
                )
            })
            .collect();
        format!(
            "{{\n  \"ptxas\": {},\n  \"families\": {{\n{}\n  }},\n  \"images\": [\n{}\n  ]\n}}\n",
            json(&self.ptxas),
            families.join(",\n"),
            images.join(",\n")
        )
    }
}

/// `value` on one line.
fn json(value: &impl Serialize) -> String {
    serde_json::to_string(value).expect("the table is plain data")
}

/// Where a group's PTX is, relative to the table.
pub(crate) fn file_name(arch: Arch, group: &str) -> String {
    format!("{}/{group}.ptx", arch.name())
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;

    /// A group `g` of one kernel, `f_d64`, whose text holds `body`.
    pub(crate) fn groups(body: &str) -> BTreeMap<String, Group> {
        let source = format!(
            ".version 8.3\n.target sm_90a\n.address_size 64\n.visible .entry f_d64()\n{{\n{body}\n}}\n\
             // .kernel {{\"entry\":\"f_d64\",\"family\":\"f\",\"group\":\"g\",\"threads\":64,\"min_blocks\":1,\
             \"shared_bytes\":0,\"parameters\":[[\"out\",\"*mut u32\"],[\"scale\",\"f32\"]]}}\n"
        );
        ptx::split(&source, Arch::Sm90a).unwrap()
    }

    pub(crate) fn manifest() -> Manifest {
        let mut manifest = Manifest::default();
        let groups = groups("bar.sync 0;");
        manifest.replace(Arch::Sm90a, "rustc 1", "s", &groups).unwrap();
        manifest.replace(Arch::Sm80, "rustc 1", "s", &groups).unwrap();
        manifest
    }

    #[test]
    fn replacing_an_architecture_leaves_the_others_and_the_budgets() {
        let mut manifest = manifest();
        let budget = Budget { instructions: 10, registers: 8 };
        manifest.images[1].kernels[0].budgets.insert("sm_90a".to_owned(), budget);
        manifest.replace(Arch::Sm90a, "rustc 2", "s", &groups("ret;")).unwrap();
        let files: Vec<&str> = manifest.images.iter().map(|image| &*image.file).collect();
        assert_eq!(files, ["sm_80/g.ptx", "sm_90a/g.ptx"]);
        assert_eq!(manifest.images[1].rustc, "rustc 2");
        assert_eq!(manifest.images[1].kernels[0].budgets["sm_90a"], budget);
        assert_ne!(manifest.images[1].sha256, manifest.images[0].sha256);
        let counts = [0, 1].map(|image| manifest.images[image].kernels[0].collective);
        assert_eq!(counts, [1, 0]);
    }

    #[test]
    fn the_json_reads_back_as_the_same_table() {
        let manifest = manifest();
        let read: Manifest = serde_json::from_str(&manifest.to_json()).unwrap();
        assert_eq!(read, manifest);
    }

    #[test]
    fn ptx_that_is_not_what_the_table_says_is_told_by_file() {
        let folder = std::env::temp_dir().join(format!("deft-manifest-{}", std::process::id()));
        fs::create_dir_all(folder.join("sm_90a")).unwrap();
        let mut manifest = manifest();
        manifest.images.remove(0);
        fs::write(folder.join("sm_90a/g.ptx"), &groups("bar.sync 0;")["g"].ptx).unwrap();
        let good = manifest.verify(&folder);
        let mut other_count = manifest.clone();
        other_count.images[0].kernels[0].collective += 1;
        let miscounted = other_count.verify(&folder);
        fs::write(folder.join("sm_90a/g.ptx"), "other").unwrap();
        let other = manifest.verify(&folder);
        fs::remove_dir_all(&folder).unwrap();
        good.unwrap();
        let miscounted = miscounted.unwrap_err().to_string();
        assert!(miscounted.contains("`f_d64` of sm_90a/g.ptx has 1 instructions"), "{miscounted}");
        assert!(other.unwrap_err().to_string().contains("sm_90a/g.ptx has SHA-256"));
    }
}
