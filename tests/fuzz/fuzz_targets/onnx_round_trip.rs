//! What is read of an ONNX model is written again: nothing is lost, and writing it twice changes nothing.
#![no_main]

use libfuzzer_sys::{fuzz_mutator, fuzz_target};
use qtool::fuzzing::onnx_round_trip;
use qtool_fuzz::protobuf;

fuzz_mutator!(|data: &mut [u8], size: usize, max_size: usize, seed: u32| { protobuf::mutate(data, size, max_size, seed) });

fuzz_target!(|data: &[u8]| {
    if let Some((shown, written)) = onnx_round_trip(data) {
        let (again, same) = onnx_round_trip(&written).expect("what was written can be read");
        assert_eq!(shown, again, "the model has changed");
        assert!(written == same, "writing it again gives other bytes");
        protobuf::expect_all_of(data, &written);
    }
});
