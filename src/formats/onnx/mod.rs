//! ONNX models: <https://onnx.ai>.

pub(crate) mod proto;
pub(crate) mod wire;
