//! Engines: the values of small models, as ONNX Runtime calculates them (`fixtures/onnx/make_models.py`).

use qtool::calibration::array::{Array, Data};
use qtool::calibration::engine::{self, Engine, EngineChoice, Options};
use qtool::tensor::Dtype;
use qtool::{Error, Result};
use safetensors::SafeTensors;
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

/// Models that every engine runs.
const MODELS: [&str; 4] = ["branch", "kinds", "old", "windows"];

fn path(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("fixtures/onnx/engine").join(name)
}

/// The sample of a model and what ONNX Runtime made of it.
fn reference(name: &str) -> (Vec<(String, Array)>, BTreeMap<String, Array>) {
    let bytes = std::fs::read(path(&format!("{name}.safetensors"))).unwrap();
    let (mut sample, mut values) = (Vec::new(), BTreeMap::new());
    for (name, tensor) in SafeTensors::deserialize(&bytes).unwrap().tensors() {
        let chunks = |width: usize| tensor.data().chunks_exact(width);
        let (dtype, data) = match tensor.dtype() {
            safetensors::Dtype::F32 => (Dtype::F32, Data::Float(chunks(4).map(|c| f32::from_le_bytes(c.try_into().unwrap())).collect())),
            _ => (Dtype::I64, Data::Int(chunks(8).map(|c| i64::from_le_bytes(c.try_into().unwrap())).collect())),
        };
        let array = Array { dtype, shape: tensor.shape().to_vec(), data };
        match name.split_once('.').unwrap() {
            ("in", name) => sample.push((name.to_owned(), array)),
            (_, name) => drop(values.insert(name.to_owned(), array)),
        }
    }
    (sample, values)
}

fn open(name: &str, memory: u64) -> Box<dyn Engine> {
    let file = path(&format!("{name}.onnx"));
    engine::open(EngineChoice::Rten, &file, &Options { memory }).unwrap_or_else(|e| panic!("{name}: {e}"))
}

fn run_all(engine: &dyn Engine, sample: &[(String, Array)]) -> BTreeMap<String, Array> {
    let wanted = engine.values();
    let values = engine.run(sample, &wanted).unwrap();
    wanted.into_iter().zip(values).collect()
}

/// Integers must be equal; floats differ in how sums are ordered and functions approximated.
fn assert_close(what: &str, found: &Array, expected: &Array) {
    assert_eq!(found.shape, expected.shape, "{what}");
    match (&found.data, &expected.data) {
        (Data::Float(found), Data::Float(expected)) => {
            for (found, expected) in found.iter().zip(expected) {
                let near = (found - expected).abs() <= 1e-5 * (1.0 + expected.abs());
                assert!(near || found == expected, "{what}: expected {expected}, found {found}");
            }
        }
        (found, expected) => assert_eq!(found, expected, "{what}"),
    }
}

fn check_models(choice: EngineChoice, models: &[&str]) {
    for name in models {
        let engine = engine::open(choice, &path(&format!("{name}.onnx")), &Options::default()).unwrap_or_else(|e| panic!("{name}: {e}"));
        let (sample, expected) = reference(name);
        let found = run_all(engine.as_ref(), &sample);
        for (value, array) in &sample {
            assert_close(&format!("{name}: input {value}"), &found[value], array);
        }
        for (value, array) in &expected {
            assert_close(&format!("{name}: {value}"), &found[value], array);
        }
        assert_eq!(found.len(), sample.len() + expected.len(), "{name}: {:?}", found.keys());
    }
}

#[test]
fn every_value_is_what_onnx_runtime_calculates() {
    check_models(EngineChoice::Rten, &MODELS);
}

#[test]
fn values_do_not_depend_on_how_much_memory_there_is() {
    for name in MODELS {
        let (sample, _) = reference(name);
        let all = run_all(open(name, u64::MAX).as_ref(), &sample);
        for memory in [0, 64, 1024] {
            let engine = open(name, memory);
            // Twice: sizes are known the second time, and pieces are cut by them.
            for _ in 0..2 {
                assert_eq!(run_all(engine.as_ref(), &sample), all, "{name} in {memory} bytes");
            }
        }
    }
}

#[test]
fn threads_may_share_a_model() {
    let (sample, _) = reference("windows");
    let engine = open("windows", 1 << 20);
    let alone = run_all(engine.as_ref(), &sample);
    std::thread::scope(|scope| {
        let run = || (0..8).for_each(|_| assert_eq!(run_all(engine.as_ref(), &sample), alone));
        (0..4).for_each(|_| drop(scope.spawn(run)));
    });
}

#[test]
fn values_are_handed_out_once_for_each_time_they_are_wanted() {
    let (sample, expected) = reference("windows");
    let engine = open("windows", 0);
    let wanted = ["y", "x", "relu", "y", "w"].map(str::to_owned);
    let mut seen = Vec::new();
    engine
        .for_each_value(&sample, &wanted, &mut |index, array| {
            if let Some(expected) = expected.get(&wanted[index]) {
                assert_close(&wanted[index], array, expected);
            }
            seen.push(index);
            Ok(())
        })
        .unwrap();
    seen.sort_unstable();
    assert_eq!(seen, [0, 1, 2, 3, 4]);
    assert_eq!(engine.run(&sample, &wanted).unwrap()[4].shape, [4, 3, 3, 3], "a weight");
    assert!(engine.has("w") && engine.has("relu") && !engine.has("nothing"));
}

#[test]
fn an_error_of_the_caller_ends_the_run() {
    let (sample, _) = reference("windows");
    let wanted = ["relu", "y"].map(str::to_owned);
    let mut calls = 0;
    let result = open("windows", 0).for_each_value(&sample, &wanted, &mut |_, _| {
        calls += 1;
        Err(Error::Check("enough".into()))
    });
    assert_eq!((result.unwrap_err().to_string().as_str(), calls), ("enough", 1));
}

#[test]
fn what_the_engine_cannot_run_is_named() {
    let load = |name: &str| engine::open(EngineChoice::Rten, &path(name), &Options::default()).map(|_| ()).unwrap_err();
    let unknown = load("unknown.onnx");
    assert!(unknown.to_string().contains("unknown.onnx: node \"the_norm\" (LRN): LRN operator not supported"), "{unknown}");
    assert!(unknown.hint().unwrap().contains("ORT_DYLIB_PATH"));
    let wide = load("wide.onnx");
    assert!(wide.to_string().contains("constant \"offset\": expected integers of 32 bits"), "{wide}");
    assert!(wide.hint().unwrap().contains("ORT_DYLIB_PATH"));
}

#[test]
fn samples_that_are_not_the_models_are_refused() {
    let (sample, _) = reference("kinds");
    let engine = open("kinds", 1 << 20);
    #[expect(clippy::type_complexity, reason = "a list of named arrays")]
    let run = |change: &dyn Fn(&mut Vec<(String, Array)>)| -> Result<Vec<Array>> {
        let mut sample = sample.clone();
        change(&mut sample);
        engine.run(&sample, &["rows".to_owned()])
    };
    let position = |name: &str| sample.iter().position(|(other, _)| other == name).unwrap();
    let ids = position("ids");
    type Change<'a> = &'a dyn Fn(&mut Vec<(String, Array)>);
    let cases: [(Change<'_>, &str); 7] = [
        (&|sample| drop(sample.remove(ids)), "input \"ids\": expected a value, found none"),
        (&|sample| sample[ids].0 = "other".into(), "input \"other\": expected one of "),
        (&|sample| sample.push(sample[ids].clone()), "found it twice"),
        (&|sample| sample[ids].1.data = Data::Float(vec![0.0; 4]), "input \"ids\": dtype: expected int64"),
        (&|sample| sample[ids].1.shape = vec![5], "input \"ids\": shape"),
        (&|sample| sample[ids].1.data = Data::Int(vec![1 << 40, 0, 0, 0]), "found 1099511627776"),
        (
            &|sample| {
                sample[ids].1.shape = vec![2];
                sample[ids].1.data = Data::Int(vec![0, 0]);
            },
            "expected dim 0 to have size 4 but got 2",
        ),
    ];
    for (change, expected) in cases {
        let error = run(change).unwrap_err().to_string();
        assert!(error.contains("kinds.onnx: ") && error.contains(expected), "{error}");
    }
    let error = engine.run(&sample, &["nothing".to_owned()]).unwrap_err().to_string();
    assert!(error.contains("value \"nothing\": expected one of the main graph's values, found none"), "{error}");
}

#[test]
fn nonsense_is_an_error() {
    let bytes = std::fs::read(path("windows.onnx")).unwrap();
    let load = |bytes: Vec<u8>| engine::load(EngineChoice::Rten, Path::new("model"), bytes, &Options::default());
    assert!(load(bytes.clone()).is_ok());
    assert!(load(Vec::new()).is_err());
    for len in (0..bytes.len()).step_by(37) {
        if let Err(error) = load(bytes[..len].to_vec()) {
            assert_eq!(error.exit_code(), 1, "{error}");
        }
    }
}

/// Runs where ORT_DYLIB_PATH names a library: `cargo test --features ort`.
#[cfg(feature = "ort")]
#[test]
fn onnx_runtime_agrees_with_itself() {
    if std::env::var_os("ORT_DYLIB_PATH").is_none() {
        eprintln!("skipped: ORT_DYLIB_PATH is not set");
        return;
    }
    check_models(EngineChoice::Ort, &[&MODELS[..], &["unknown", "wide"]].concat());
    let (sample, _) = reference("windows");
    let run = |memory: u64| run_all(engine::open(EngineChoice::Ort, &path("windows.onnx"), &Options { memory }).unwrap().as_ref(), &sample);
    assert_eq!(run(0), run(u64::MAX));
}
