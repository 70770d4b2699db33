//! Single operators, before and after.

use super::raise_opset;
use crate::formats::onnx::proto::{Message, ModelProto};

/// Reads the model that the environment names, raises it and writes it: for checks with other programs.
#[test]
#[ignore = "a tool: reads QTOOL_PREP_IN, raises to QTOOL_PREP_TO and writes QTOOL_PREP_OUT"]
fn raise_a_file() {
    let [input, output, to] = ["QTOOL_PREP_IN", "QTOOL_PREP_OUT", "QTOOL_PREP_TO"].map(|name| std::env::var(name).unwrap());
    let mut model = ModelProto::parse(std::fs::read(input).unwrap().into()).unwrap();
    match raise_opset(&mut model, to.parse().unwrap()) {
        Ok(()) => std::fs::write(output, model.to_bytes().unwrap()).unwrap(),
        Err(error) => println!("refused: {error}"),
    }
}
