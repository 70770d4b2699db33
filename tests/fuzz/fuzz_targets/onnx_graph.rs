//! ONNX graphs and recipes drawn from the fuzzer's bytes: whole runs, with ranges of activations for static ones.
#![no_main]

use arbitrary::Unstructured;
use libfuzzer_sys::{Corpus, fuzz_target};
use qtool::Recipe;
use qtool_fuzz::files::Directory;
use qtool_fuzz::{models, runs};
use std::sync::LazyLock;

static DIRECTORY: LazyLock<Directory> = LazyLock::new(|| Directory::new("onnx_graph"));

fuzz_target!(|data: &[u8]| -> Corpus {
    let mut u = Unstructured::new(data);
    let Ok(recipe) = models::recipe(&mut u) else { return Corpus::Reject };
    let is_static = u.ratio(1, 2).unwrap_or(false);
    let form = u.int_in_range(0..=5).unwrap_or(0);
    let Ok((model, names)) = models::onnx(&mut u) else { return Corpus::Reject };
    let Ok(recipe) = serde_json::from_value::<Recipe>(recipe) else { panic!("a recipe that is none") };
    let path = DIRECTORY.write("model.onnx", &model);
    let mut request = runs::request(&DIRECTORY, &path);
    request.recipe = recipe;
    if is_static {
        let lines: String = names.iter().map(|name| format!("{name}: 3c010a14\n")).collect();
        request.calibration.ranges = Some(DIRECTORY.write("ranges.cache", format!("TRT-8501-EntropyCalibration2\n{lines}").as_bytes()));
    }
    if form < 2 {
        let name = ["qoperator", "fake-quant"][form];
        request.form = qtool::outputs::OUTPUTS.iter().copied().find(|form| form.name() == name);
    }
    runs::run(&DIRECTORY, request);
    Corpus::Keep
});
