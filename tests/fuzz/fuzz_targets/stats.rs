//! Files of statistics, sealed again after each change: what is read is written as the same, and can be merged and used.
#![no_main]

use libfuzzer_sys::{fuzz_mutator, fuzz_target};
use qtool::calibration::stats::{Statistics, merge};
use qtool::observers::{OBSERVERS, ObserverChoice, Target};
use qtool::quant::params::ParamRule;
use qtool::quant::scheme::{CodeType, Convention};
use qtool::tensor::Dtype;
use qtool_fuzz::choose::{Choose, store};
use qtool_fuzz::files::Directory;
use qtool_fuzz::{check_error, framing};
use std::sync::LazyLock;

static DIRECTORY: LazyLock<Directory> = LazyLock::new(|| Directory::new("stats"));

fuzz_mutator!(|data: &mut [u8], size: usize, max_size: usize, seed: u32| {
    let mut choose = Choose::new(seed);
    let mut made = framing::mutated_safetensors(&data[..size], max_size, &mut choose);
    if !choose.once_in(10) {
        framing::seal(&mut made);
    }
    store(&made, data, max_size)
});

fuzz_target!(|data: &[u8]| {
    let read = || Statistics::read(&DIRECTORY.write("a.stats", data));
    let statistics = match read() {
        Ok(statistics) => statistics,
        Err(error) => return check_error(&error, false),
    };
    let written = statistics.to_bytes();
    let again = Statistics::read(&DIRECTORY.write("b.stats", &written)).expect("statistics that were written can be read");
    assert!(again.to_bytes() == written, "writing them again gives other bytes");
    // That alone would not notice what is lost the first time.
    assert!(again.model == statistics.model && again.samples_hash() == statistics.samples_hash());
    assert!(again.activations.keys().eq(statistics.activations.keys()));
    let rule = ParamRule::new(Convention::Ort, CodeType::Uint8, false, Dtype::F32);
    for (name, stats) in &statistics.activations {
        let extent = stats.extent();
        for observer in OBSERVERS.iter().filter(|observer| observer.name != "moving-average" && observer.name != "output-mse") {
            let choice = ObserverChoice::new(&observer.name.parse().expect("a name of the table")).expect("an observer of the table");
            let target = Target { rule, single_batch: false };
            if let Ok(range) = stats.range(&choice, &target) {
                assert!(again.activations[name].range(&choice, &target).is_ok_and(|other| other == range), "{}", observer.name);
                assert!(range.min.is_finite() && range.max.is_finite(), "{}: {range:?} of {extent:?}", observer.name);
                let params = rule.choose_params(range);
                assert!(params.scale.is_finite() && params.scale > 0.0, "{}: {params:?} of {range:?}", observer.name);
            }
        }
    }
    // The same samples in both is an error, or there are none.
    if let Err(error) = merge(vec![statistics, again]) {
        check_error(&error, true);
    }
});
