//! Small graphs, before and after.

use super::{PrepareOptions, prepare};
use crate::formats::onnx::proto::{Message, ModelProto};

/// Reads the model that the environment names, prepares it and writes it: for checks with other programs.
#[test]
#[ignore = "a tool: reads QTOOL_PREP_IN and writes QTOOL_PREP_OUT"]
fn prepare_a_file() {
    let [input, output] = ["QTOOL_PREP_IN", "QTOOL_PREP_OUT"].map(|name| std::env::var(name).unwrap());
    let mut model = ModelProto::parse(std::fs::read(input).unwrap().into()).unwrap();
    println!("{:#?}", prepare(&mut model, PrepareOptions::default()));
    std::fs::write(output, model.to_bytes().unwrap()).unwrap();
}
