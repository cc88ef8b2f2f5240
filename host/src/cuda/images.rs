//! PTX texts with an index of their entries: the embedded ones, and the user's own.

use std::borrow::Cow;

use kernels_gpu::Arch;
use sha2::{Digest, Sha256};

use super::CudaError;
use super::ptx::{Entry, Index};

/// A PTX text.
#[derive(Debug)]
pub(super) struct Image {
    /// Where it is from, for errors.
    pub(super) label: String,
    pub(super) text: Cow<'static, str>,
    pub(super) index: Index,
}

impl Image {
    /// Reads a text from outside.
    pub(super) fn new(label: String, text: Cow<'static, str>) -> Result<Self, CudaError> {
        match Index::parse(&text) {
            Ok(index) => Ok(Self { label, text, index }),
            Err(problem) => Err(CudaError::Image { image: label, problem }),
        }
    }

    /// The embedded image that has `entry` for `arch`, its hash checked.
    pub(super) fn embedded(entry: &str, arch: Arch) -> Result<Self, CudaError> {
        let name = arch.name();
        let image = kernels_gpu::ptx::image(entry, arch).ok_or_else(|| CudaError::NoSuchEntry {
            entry: entry.to_owned(),
            image: format!("the embedded PTX for {name}"),
            known: known(arch),
        })?;
        let label = format!("the embedded {name}/{}.ptx", image.group);
        check_hash(&label, image.ptx, image.sha256)?;
        Self::new(label, Cow::Borrowed(image.ptx))
    }

    pub(super) fn entry(&self, name: &str) -> Result<&Entry, CudaError> {
        self.index.entries.get(name).ok_or_else(|| CudaError::NoSuchEntry {
            entry: name.to_owned(),
            image: self.label.clone(),
            known: self.index.entries.keys().cloned().collect::<Vec<_>>().join(", "),
        })
    }
}

/// Dynamic shared memory of `entry`: what its PTX says, else what the embedded kernel of that name has.
pub(super) fn shared_bytes(entry: &str, ptx: &Entry, arch: Arch) -> u32 {
    ptx.shared_bytes
        .or_else(|| kernels_gpu::ptx::entry(entry, arch).map(|known| known.shared_bytes))
        .unwrap_or(0)
}

/// The architecture whose PTX a device runs: Hopper's only on Hopper, for `sm_90a` is not forward
/// compatible (PTX ISA, ".target").
pub(super) fn arch_of(capability: (i32, i32)) -> Arch {
    match capability {
        (9, 0) => Arch::Sm90a,
        _ => Arch::Sm80,
    }
}

fn known(arch: Arch) -> String {
    let images = kernels_gpu::ptx::IMAGES.iter();
    let names: Vec<_> = images
        .filter(|image| image.arch == arch.name())
        .flat_map(|image| image.entries.iter().map(|entry| entry.name))
        .collect();
    if names.is_empty() {
        return "none; `cargo xtask build-kernels` makes them".to_owned();
    }
    names.join(", ")
}

fn check_hash(label: &str, text: &str, expected: &str) -> Result<(), CudaError> {
    let found: String = Sha256::digest(text).iter().map(|byte| format!("{byte:02x}")).collect();
    if found == expected {
        return Ok(());
    }
    Err(CudaError::Image {
        image: label.to_owned(),
        problem: format!("its SHA-256 is {found}, the table of images says {expected}"),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hopper_gets_its_own_kernels_and_everybody_else_the_portable_ones() {
        assert_eq!(arch_of((9, 0)), Arch::Sm90a);
        for other in [(8, 0), (8, 9), (10, 0), (12, 0)] {
            assert_eq!(arch_of(other), Arch::Sm80);
        }
    }

    #[test]
    fn a_text_that_is_not_the_hashed_one_is_refused() {
        // FIPS 180-2, appendix B.1.
        let abc = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad";
        assert!(check_hash("image", "abc", abc).is_ok());
        let error = check_hash("image", "abd", abc).unwrap_err().to_string();
        assert!(error.contains(abc), "{error}");
    }

    #[test]
    fn every_embedded_image_is_what_its_row_says() {
        for image in kernels_gpu::ptx::IMAGES {
            check_hash(image.group, image.ptx, image.sha256).unwrap();
            let index = Index::parse(image.ptx).unwrap();
            assert_eq!(format!("sm_{}", index.target), image.arch);
            assert_eq!(index.entries.len(), image.entries.len());
            for row in image.entries {
                let entry = &index.entries[row.name];
                assert_eq!(entry.threads, Some(row.threads), "{}", row.name);
                assert_eq!(entry.shared_bytes, Some(row.shared_bytes), "{}", row.name);
                assert_eq!(entry.parameters, row.parameters, "{}", row.name);
            }
        }
    }

    #[test]
    fn an_unknown_kernel_is_named_with_those_there_are() {
        let error = Image::embedded("attend_f64_d77", Arch::Sm90a).unwrap_err();
        assert!(error.to_string().contains("attend_f64_d77"), "{error}");
    }
}
