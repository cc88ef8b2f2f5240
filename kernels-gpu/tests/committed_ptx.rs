//! The committed PTX against its table.

use std::path::Path;

use ptx_builder::Manifest;

/// A file that was edited by hand, or that another build left behind, would show here.
#[test]
fn committed_ptx_is_what_its_manifest_says() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("ptx");
    let manifest = Manifest::load(&folder).unwrap();
    assert_ne!(manifest, Manifest::default(), "there is a manifest");
    manifest.verify(&folder).unwrap();
}
