//! What is known of a page beside its bytes.

/// What the loader says of a page that not every query of its item sees whole.
#[derive(Clone, Copy)]
pub(super) struct PartialPage {
    /// Tokens in it, 1 to 64; 0 says that the page is whole.
    pub(super) tokens: u32,
    /// Its segment, and its index within it in the upper half.
    pub(super) place: u32,
}
