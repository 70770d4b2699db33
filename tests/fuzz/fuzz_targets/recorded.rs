//! Recorded inputs of layers of a checkpoint: statistics of them, and codes that are chosen by them.
#![no_main]

use libfuzzer_sys::{fuzz_mutator, fuzz_target};
use qtool::Silent;
use qtool::calibration::stats::Statistics;
use qtool::outputs::staging::Durability;
use qtool::pipeline::CalibrationRequest;
use qtool::pipeline::calibrate::{CalibrateRequest, calibrate};
use qtool_fuzz::files::Directory;
use qtool_fuzz::{check_error, fixed, framing, read_options, runs};
use std::sync::LazyLock;

static DIRECTORY: LazyLock<Directory> = LazyLock::new(|| {
    let directory = Directory::new("recorded");
    directory.write("model.safetensors", &fixed::checkpoint());
    directory
});

fuzz_mutator!(|data: &mut [u8], size: usize, max_size: usize, seed: u32| { framing::mutate_safetensors(data, size, max_size, seed) });

fuzz_target!(|data: &[u8]| {
    let samples = DIRECTORY.write("recorded.safetensors", data);
    let calibration = || CalibrationRequest {
        samples: vec![samples.clone()].into(),
        ignore_unused: data.len() % 2 == 0,
        ..CalibrationRequest::default()
    };
    let request = CalibrateRequest {
        model: DIRECTORY.path("model.safetensors"),
        calibration: calibration(),
        observer: "min-max".parse().expect("there is such an observer"),
        ranges_only: data.len() % 3 == 0,
        output: DIRECTORY.path("recorded.stats"),
        force: true,
        durability: Durability::None,
        read: read_options(),
        threads: 1,
    };
    match calibrate(&request, &Silent) {
        Err(error) => return check_error(&error, true),
        Ok(report) => {
            let read = Statistics::read(&report.output).expect("statistics that were written can be read");
            assert_eq!(read.samples(), report.samples);
        }
    }
    let mut request = runs::request(&DIRECTORY, &DIRECTORY.path("model.safetensors"));
    request.calibration = calibration();
    request.recipe.min_elements = 0;
    let rounding = ["gptq", "adaround", "nearest"][data.len() % 3];
    request.recipe.settings.rounding = rounding.parse().expect("there is such a rounding");
    runs::run(&DIRECTORY, request);
});
