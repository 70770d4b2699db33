//! Whole runs on a directory of the fuzzer's: quantize, verify, back to float.

use crate::files::Directory;
use crate::{check_error, read_options};
use qtool::compare::compare;
use qtool::outputs::quantized::QuantizedModel;
use qtool::outputs::staging::Durability;
use qtool::pipeline::Destination;
use qtool::report::{QuantizeReport, TensorOutcome};
use qtool::verify::verify;
use qtool::{Prepared, Request, Silent};
use std::path::Path;

/// What outputs of runs are called, without extension.
const OUTPUT: &str = "out";

/// A request for the model with one thread, which replaces earlier outputs and does not wait for the disk.
pub fn request(directory: &Directory, model: &Path) -> Request {
    let mut request = Request::new(model);
    let extension = model.extension().map(|extension| extension.to_string_lossy().into_owned());
    let name = extension.map_or_else(|| OUTPUT.to_owned(), |extension| format!("{OUTPUT}.{extension}"));
    request.destination = destination(directory, &name);
    request.read = read_options();
    request.threads = 1;
    request.max_memory = 64 << 20;
    request
}

/// Where outputs of this name go.
pub fn destination(directory: &Directory, name: &str) -> Destination {
    Destination { output: Some(directory.path(name)), force: true, durability: Durability::None, ..Destination::default() }
}

/// Carries out a request. What was written is whole, can be read, has lost what the run says, and gives a float model again; what failed
/// left nothing.
pub fn run(directory: &Directory, request: Request) {
    let output = request.destination.output.clone().expect("requests of this module have one");
    let is_onnx = output.extension().is_some_and(|extension| extension == "onnx");
    let before = directory.names();
    let model = request.model.clone();
    let done = Prepared::new(request).and_then(|prepared| prepared.run(&Silent));
    let report = match done {
        Ok(report) => report,
        Err(error) => {
            check_error(&error, true);
            assert_eq!(directory.names(), before, "left behind by a run that failed: {error}");
            return;
        }
    };
    assert!(!directory.names().iter().any(|name| name.starts_with(".qtool-")), "temporaries are left: {:?}", directory.names());
    assert_eq!(report.output, output);
    let found = verify(&output, &read_options(), &Silent).expect("an output has a sidecar");
    assert!(found.findings.is_empty(), "{:?}", found.findings);
    let float = destination(directory, if is_onnx { "float.onnx" } else { "float.safetensors" });
    let has_quantized = is_onnx || QuantizedModel::open(&output, &read_options()).is_ok();
    if !is_onnx {
        check_losses(&model, &report);
    }
    if !output.is_dir() {
        match qtool::dequantize::dequantize(&output, &float, &read_options(), 1, &Silent) {
            Ok(path) => drop(qtool::formats::open(&path, &read_options()).expect("a float model that was written can be read")),
            Err(error) => assert!(is_onnx, "an output that gives no floats (quantized: {has_quantized}): {error}"),
        }
    }
    let names = directory.names();
    for name in names.iter().filter(|name| !before.contains(name)) {
        directory.remove(name);
    }
}

/// From here on, what f32 rounds is more than what codes lose.
const EXACT_DB: f64 = 100.0;

/// How far the run's own measure, which is added up in f32, may be off.
const TOLERANCE: f64 = 1e-3;

/// Makes sure that what is read back from an output differs from its model by what the run has measured, so that the codes and scales that
/// it measured with are those that it wrote.
fn check_losses(model: &Path, report: &QuantizeReport) {
    let compared = match compare(model, &report.output, &read_options(), 1) {
        Ok(compared) => compared,
        Err(error) => return check_error(&error, false),
    };
    for tensor in &report.tensors {
        let TensorOutcome::Quantize { error: Some(told), .. } = &tensor.outcome else { continue };
        if told.sqnr_db.is_none_or(|db| db > EXACT_DB) {
            continue;
        }
        let found = compared.tensors.iter().find(|found| found.name == tensor.name).expect("both have every tensor").difference.max_abs;
        assert!(
            (found - told.max_abs).abs() <= TOLERANCE * told.max_abs,
            "{}: lost {found}, but the run says {}",
            tensor.name,
            told.max_abs
        );
    }
}
