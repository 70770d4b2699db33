//! The program from the outside: a module for each command or promise. Nothing but the built `qtool` is needed.

mod budget;
mod calibrated;
mod compressed_tensors;
mod corpus;
mod custom_observers;
mod destination;
mod determinism;
mod directory;
mod engine;
mod fake_quant;
mod golden;
mod interruption;
mod library;
mod onnx_compare;
mod onnx_quantize;
mod onnx_reading;
mod options;
mod quantize;
mod samples;
mod schema;
mod selection;
mod stats;
mod support;
mod values;
mod verify;
mod writing;
