//! What the test files share: random forests, inputs and comparisons.
