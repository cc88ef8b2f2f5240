//! ggml's numbers for types of tensors.

use crate::weights::Format;

/// A type's number, its name, and how it is read if it can be.
const ALL: [(u32, &str, Option<Format>); 34] = [
    (0, "F32", Some(Format::F32)),
    (1, "F16", Some(Format::F16)),
    (2, "Q4_0", Some(Format::Q4_0)),
    (3, "Q4_1", Some(Format::Q4_1)),
    (6, "Q5_0", Some(Format::Q5_0)),
    (7, "Q5_1", Some(Format::Q5_1)),
    (8, "Q8_0", Some(Format::Q8_0)),
    (9, "Q8_1", None),
    (10, "Q2_K", None),
    (11, "Q3_K", None),
    (12, "Q4_K", Some(Format::Q4K)),
    (13, "Q5_K", Some(Format::Q5K)),
    (14, "Q6_K", Some(Format::Q6K)),
    (15, "Q8_K", None),
    (16, "IQ2_XXS", None),
    (17, "IQ2_XS", None),
    (18, "IQ3_XXS", None),
    (19, "IQ1_S", None),
    (20, "IQ4_NL", None),
    (21, "IQ3_S", None),
    (22, "IQ2_S", None),
    (23, "IQ4_XS", None),
    (24, "I8", None),
    (25, "I16", None),
    (26, "I32", None),
    (27, "I64", None),
    (28, "F64", None),
    (29, "IQ1_M", None),
    (30, "BF16", Some(Format::Bf16)),
    (34, "TQ1_0", None),
    (35, "TQ2_0", None),
    (39, "MXFP4", None),
    (40, "NVFP4", None),
    (41, "Q1_0", None),
];

/// How tensors of this type are read.
pub(super) fn format(kind: u32) -> Option<Format> {
    ALL.iter().find(|row| row.0 == kind)?.2
}

/// What a type is called.
pub(super) fn name(kind: u32) -> String {
    let found = ALL.iter().find(|row| row.0 == kind);
    found.map_or_else(|| format!("number {kind}"), |row| row.1.to_owned())
}

/// Names of the types that can be read.
pub(super) fn readable() -> String {
    let names = ALL.iter().filter(|row| row.2.is_some()).map(|row| row.1);
    names.collect::<Vec<_>>().join(", ")
}
