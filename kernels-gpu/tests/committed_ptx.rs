//! The committed PTX against its table.

use std::path::Path;

use ptx_builder::Manifest;

/// Hashes, entries, and how many instructions of each a warp must reach together: a compiler that moved or copied one
/// would show here.
#[test]
fn committed_ptx_is_what_its_manifest_says() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("ptx");
    let manifest = Manifest::load(&folder).unwrap();
    assert_ne!(manifest, Manifest::default(), "there is a manifest");
    manifest.verify(&folder).unwrap();
}
