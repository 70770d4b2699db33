//! Raises the version of the standard operators that a model uses.

mod ir;

pub(crate) use ir::raise_ir;
