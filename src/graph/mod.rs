//! ONNX graphs: who produces and who consumes each value, what is constant, and edits that keep nodes in order.

pub(crate) mod activations;
pub(crate) mod biases;
pub(crate) mod bodies;
pub(crate) mod channels;
pub(crate) mod edits;
pub(crate) mod facts;
pub(crate) mod folds;
pub(crate) mod given;
pub(crate) mod index;
pub(crate) mod lower;
pub(crate) mod names;
pub(crate) mod onnx_model;
pub(crate) mod ops;
pub(crate) mod pairs;
pub(crate) mod prepare;
pub(crate) mod scopes;
pub(crate) mod sort;
pub(crate) mod sweep;
pub(crate) mod version;
pub(crate) mod weights;
