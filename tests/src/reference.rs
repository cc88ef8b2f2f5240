//! Definitions in f64: of attention, and of the operations between a model's matrix products.

pub use deft::attention::reference as attention;
pub use deft::reference as model;
