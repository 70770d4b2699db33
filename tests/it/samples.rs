//! Samples as NumPy, ONNX and safetensors write them, hostile ones, and the order in which they come.
//!
//! `fixtures/samples/make_samples.py` made the files; what it says of their values is repeated here.

use crate::support::measure::alone;
use crate::support::model::{Tensor, file};
use crate::support::onnx::{Constant, Graph, Node};
use crate::support::{Random, Workdir};
use flate2::Crc;
use flate2::read::DeflateDecoder;
use flate2::write::DeflateEncoder;
use qtool::calibration::array::{Array, Data};
use qtool::calibration::samples::{InputSpec, SampleLimits, Samples};
use qtool::calibration::stats::sample_hash;
use qtool::tensor::Dtype;
use qtool::{Error, Result};
use rustix::fs::{CWD, FileType, Mode, mknodat};
use serde::Deserialize;
use std::collections::BTreeMap;
use std::fs;
use std::io::{Read, Write};
use std::os::unix::fs::symlink;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};

const FIXTURES: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/fixtures/samples");

fn fixture(name: &str) -> PathBuf {
    Path::new(FIXTURES).join(name)
}

/// An input; a dimension of `-1` may vary.
fn input(name: &str, dtype: Dtype, shape: &[isize]) -> InputSpec {
    let shape = shape.iter().map(|dim| usize::try_from(*dim).ok()).collect();
    InputSpec { name: name.into(), dtype: Some(dtype), shape: Some(shape) }
}

fn untyped(name: &str) -> InputSpec {
    InputSpec { name: name.into(), dtype: None, shape: None }
}

fn open(path: &Path, inputs: &[InputSpec]) -> Result<Samples> {
    Samples::open(&[path.to_owned()], inputs, None, None, &SampleLimits::default())
}

/// Opens what is at `path` and reads every sample.
fn load(path: &Path, inputs: &[InputSpec]) -> Result<Vec<Vec<(String, Array)>>> {
    let samples = open(path, inputs)?;
    (0..samples.len()).map(|index| samples.load(index)).collect()
}

/// What is wrong with the samples at `path`.
#[track_caller]
fn refusal(path: &Path, inputs: &[InputSpec]) -> Error {
    match load(path, inputs) {
        Ok(samples) => panic!("{}: {} samples", path.display(), samples.len()),
        Err(error) => error,
    }
}

#[track_caller]
fn floats(array: &Array) -> &[f32] {
    array.floats().unwrap_or_else(|| panic!("{array:?}"))
}

const NUMPY_TYPES: &[(&str, Dtype)] = &[
    ("f2", Dtype::F16),
    ("f4", Dtype::F32),
    ("f8", Dtype::F64),
    ("i1", Dtype::I8),
    ("i2", Dtype::I16),
    ("i4", Dtype::I32),
    ("i8", Dtype::I64),
    ("u1", Dtype::U8),
    ("u2", Dtype::U16),
    ("u4", Dtype::U32),
    ("u8", Dtype::U64),
    ("b1", Dtype::Bool),
];

/// numpy.arange(6), less 3 where the type has a sign.
fn ramp(dtype: Dtype) -> Data {
    match dtype {
        Dtype::F16 | Dtype::BF16 | Dtype::F32 | Dtype::F64 => Data::Float((-3..3).map(|i| i as f32).collect()),
        Dtype::Bool => Data::Int((0..6).map(|i| i % 2).collect()),
        Dtype::U8 | Dtype::U16 | Dtype::U32 | Dtype::U64 => Data::Int((0..6).collect()),
        _ => Data::Int((-3..3).collect()),
    }
}

#[test]
fn numpy_arrays_of_every_type_and_order_are_read() {
    let turned = NUMPY_TYPES.iter().map(|(name, dtype)| (format!("{name}_turned"), *dtype));
    let all: Vec<(String, Dtype)> = NUMPY_TYPES.iter().map(|(name, dtype)| (name.to_string(), *dtype)).chain(turned).collect();
    for archive in ["numpy.npz", "numpy_deflated.npz"] {
        for inputs in [
            all.iter().map(|(name, _)| untyped(name)).collect::<Vec<_>>(),
            all.iter().rev().map(|(name, dtype)| input(name, *dtype, &[-1, 3])).collect(),
        ] {
            let samples = load(&fixture(archive), &inputs).unwrap();
            assert_eq!(samples.len(), 1);
            assert!(samples[0].iter().map(|(name, _)| name).eq(inputs.iter().map(|input| &input.name)));
            for (name, array) in &samples[0] {
                let dtype = all.iter().find(|(other, _)| other == name).unwrap().1;
                assert_eq!(array, &Array { dtype, shape: vec![2, 3], data: ramp(dtype) }, "{archive}: {name}");
            }
        }
    }
}

#[test]
fn the_first_axis_counts_samples_if_it_is_one_more() {
    for name in ["rows.npy", "rows_turned.npy"] {
        let samples = load(&fixture(name), &[input("x", Dtype::F32, &[2, 3])]).unwrap();
        let whole = load(&fixture(name), &[input("x", Dtype::F32, &[-1, 2, 3])]).unwrap();
        assert_eq!((samples.len(), whole.len()), (5, 1));
        assert_eq!(floats(&whole[0][0].1), (0..30).map(|i| i as f32).collect::<Vec<_>>(), "{name}");
        for (i, sample) in samples.iter().enumerate() {
            assert_eq!(sample[0].1.shape, [2, 3]);
            assert_eq!(floats(&sample[0].1), &floats(&whole[0][0].1)[6 * i..][..6], "{name}: {i}");
        }
        // Without a shape there is nothing to tell by.
        assert_eq!(load(&fixture(name), &[untyped("x")]).unwrap().len(), 1);
        let error = refusal(&fixture(name), &[input("x", Dtype::F32, &[2, 4])]);
        assert!(error.to_string().ends_with("shape: expected [2, 4], found [5, 2, 3]"), "{error}");
        let error = refusal(&fixture(name), &[input("x", Dtype::I64, &[2, 3])]);
        assert!(error.to_string().contains("dtype: expected I64, found F"), "{error}");
        let error = refusal(&fixture(name), &[untyped("x"), untyped("y")]);
        assert!(error.to_string().ends_with(r#"inputs: expected "x", "y", found one array without a name"#), "{error}");
    }
    assert_eq!(floats(&load(&fixture("scalar.npy"), &[input("x", Dtype::F32, &[])]).unwrap()[0][0].1), [1.5]);
}

#[test]
fn arrays_that_are_no_numbers_are_refused() {
    for (name, part) in [
        ("objects", "Python objects (\"|O\"), a pickle, which is never loaded"),
        ("structure", "a structure of several fields"),
        ("texts", "texts (\"<U3\")"),
        ("bytes", "texts (\"|S3\")"),
        ("complex", "complex numbers (\"<c8\")"),
        ("dates", "dates or times (\"<M8[s]\")"),
        ("bfloat16", "raw bytes (\"<V2\")"),
    ] {
        let error = refusal(&fixture(&format!("refused/{name}.npy")), &[untyped("x")]);
        assert!(error.to_string().contains(&format!("dtype: expected integers, floats or booleans, found {part}")), "{error}");
        assert!(error.hint().is_some() && error.exit_code() == 1, "{error}");
    }
}

#[test]
fn safetensors_hold_one_sample_or_many() {
    let inputs = [input("x", Dtype::F32, &[-1, 3]), input("ids", Dtype::I64, &[-1, 3])];
    let named = load(&fixture("named.safetensors"), &inputs).unwrap();
    assert_eq!(named.len(), 1);
    assert_eq!(named[0][0].1, Array { dtype: Dtype::F32, shape: vec![2, 3], data: ramp(Dtype::F32) });
    assert_eq!(named[0][1].1, Array { dtype: Dtype::I64, shape: vec![2, 3], data: ramp(Dtype::I64) });
    let indexed = load(&fixture("indexed.safetensors"), &inputs).unwrap();
    let first = |sample: &Vec<(String, Array)>| floats(&sample[0].1)[0];
    assert_eq!(indexed.iter().map(first).collect::<Vec<_>>(), [-3.0, -1.0, 7.0], "in the order of numbers, not of texts");
    let error = refusal(&fixture("indexed.safetensors"), &[inputs[0].clone(), untyped("idx")]);
    assert!(error.to_string().contains(r#"inputs of sample 0: expected "x" F32 [?, 3], "idx", found "ids""#), "{error}");

    let dir = Workdir::new();
    let x = |name: &str, value: f32| Tensor::f32(name, &[1], &[value]);
    let cases: [(&[Tensor], std::result::Result<usize, &str>); 8] = [
        (&[], Err("found no samples: there is no tensor")),
        (&[x("0.x", 1.0), x("1.x", 1.0)], Ok(2)),
        (&[x("0.x", 1.0), x("00.x", 1.0)], Err(r#"inputs of sample 0: expected every name once, found "x" twice"#)),
        (&[x("0.x", 1.0), x("x", 1.0)], Err(r#"expected "x" F32 [1], found "0.x" as well"#)),
        (&[x("0.x", 1.0), x("+1.x", 1.0)], Err(r#"found "0.x", "+1.x""#)),
        (
            &[x("0.x", 1.0), x("1.x", f32::NAN)],
            Err(r#"tensor "x": sample 1: values: expected finite numbers in the range of F32, found NaN at index 0"#),
        ),
        (&[x("99999999999999999999.x", 1.0)], Err(r#"found "99999999999999999999.x""#)),
        (&[x("y", 1.0)], Err(r#"inputs: expected "x" F32 [1], found "y""#)),
    ];
    for (tensors, expected) in cases {
        dir.write("a.safetensors", file(tensors));
        match (load(&dir.path("a.safetensors"), &[input("x", Dtype::F32, &[1])]), expected) {
            (Ok(samples), Ok(count)) => assert_eq!(samples.len(), count),
            (Err(error), Err(part)) => assert!(error.to_string().contains(part), "{error}"),
            (found, expected) => panic!("expected {expected:?}, found {found:?}"),
        }
    }
}

#[test]
fn onnx_test_data_finds_its_inputs_by_name_or_number() {
    let inputs = [input("ids", Dtype::I64, &[-1, 3]), input("x", Dtype::F32, &[-1, 3])];
    for path in ["test_data", "test_data/test_data_set_0", "test_data/test_data_set_1"] {
        let samples = load(&fixture(path), &inputs).unwrap();
        assert_eq!(samples.len(), if path == "test_data" { 2 } else { 1 });
        for sample in samples {
            assert_eq!(sample[0].1, Array { dtype: Dtype::I64, shape: vec![2, 3], data: ramp(Dtype::I64) });
            assert_eq!(sample[1].1, Array { dtype: Dtype::F32, shape: vec![2, 3], data: ramp(Dtype::F32) });
        }
    }
    for (inputs, part) in [
        (&inputs[..1], "expected \"ids\" I64 [?, 3], found 2 files named input_N.pb"),
        (&[inputs[0].clone(), inputs[1].clone(), untyped("z")], "found no \"z\""),
        (&[inputs[1].clone(), inputs[0].clone()], "expected every name once, found \"ids\" twice"),
    ] {
        let error = refusal(&fixture("test_data/test_data_set_0"), inputs);
        assert!(error.to_string().contains(part), "{error}");
    }
    let error = refusal(&fixture("test_data/test_data_set_1/input_0.pb"), &inputs);
    assert!(error.to_string().ends_with("found no \"ids\""), "{error}");
}

#[test]
fn onnx_values_are_read_from_the_field_of_their_type() {
    let mut count = 0;
    for entry in fs::read_dir(fixture("typed")).unwrap() {
        let path = entry.unwrap().path();
        let samples = load(&path, &[untyped("x")]).unwrap();
        let array = &samples[0][0].1;
        let expected = match array.dtype {
            Dtype::F32 | Dtype::F64 | Dtype::F16 | Dtype::BF16 => Data::Float((0..6).map(|i| i as f32).collect()),
            Dtype::Bool => ramp(Dtype::Bool),
            _ => Data::Int((0..6).collect()),
        };
        assert_eq!((&array.data, &array.shape[..]), (&expected, &[2, 3][..]), "{}", path.display());
        count += 1;
    }
    assert_eq!(count, 13);
    let error = refusal(&fixture("typed/float.pb"), &[input("y", Dtype::F32, &[2, 3])]);
    assert_eq!(error.hint(), Some(r#"did you mean "y"? Rename "x" to it"#), "{error}");
}

/// A `.npy` file of floats.
fn npy(shape: &str, values: &[f32]) -> Vec<u8> {
    let header = format!("{{'descr': '<f4', 'fortran_order': False, 'shape': {shape}, }}\n");
    let mut bytes = b"\x93NUMPY\x01\x00".to_vec();
    bytes.extend((header.len() as u16).to_le_bytes());
    bytes.extend(header.as_bytes());
    bytes.extend(values.iter().flat_map(|value| value.to_le_bytes()));
    bytes
}

/// An archive of these members; with sizes of 64 bits if `wide`.
fn zip(members: &[(&str, &[u8])], deflated: bool, wide: bool) -> Vec<u8> {
    let (mut out, mut directory) = (Vec::new(), Vec::new());
    for (name, content) in members {
        let mut crc = Crc::new();
        crc.update(content);
        let mut encoder = DeflateEncoder::new(Vec::new(), flate2::Compression::fast());
        encoder.write_all(content).unwrap();
        let data = if deflated { encoder.finish().unwrap() } else { content.to_vec() };
        let sizes = [content.len() as u64, data.len() as u64, out.len() as u64];
        let narrow = sizes.map(|size| if wide { u32::MAX } else { size as u32 }.to_le_bytes());
        let extra: Vec<u8> = match wide {
            true => [1u16, 24].iter().flat_map(|n| n.to_le_bytes()).chain(sizes.iter().flat_map(|n| n.to_le_bytes())).collect(),
            false => vec![],
        };
        let method = if deflated { 8u16 } else { 0 };
        let common = |header: &mut Vec<u8>| {
            header.extend([20, 0, 0, 0]);
            header.extend(method.to_le_bytes());
            header.extend([0; 4]);
            header.extend(crc.sum().to_le_bytes());
            header.extend(narrow[1]);
            header.extend(narrow[0]);
            header.extend((name.len() as u16).to_le_bytes());
        };
        directory.extend(b"PK\x01\x02\x14\x00");
        common(&mut directory);
        directory.extend((extra.len() as u16).to_le_bytes());
        directory.extend([0; 10]);
        directory.extend(narrow[2]);
        directory.extend(name.as_bytes());
        directory.extend(extra);
        out.extend(b"PK\x03\x04");
        common(&mut out);
        out.extend([0, 0]);
        out.extend(name.as_bytes());
        out.extend(data);
    }
    let (count, size, start) = (members.len() as u64, directory.len() as u64, out.len() as u64);
    out.extend(directory);
    if wide {
        let end64 = out.len() as u64;
        out.extend(b"PK\x06\x06");
        out.extend(44u64.to_le_bytes());
        out.extend([45, 0, 45, 0, 0, 0, 0, 0, 0, 0, 0, 0]);
        [count, count, size, start].iter().for_each(|n| out.extend(n.to_le_bytes()));
        out.extend(b"PK\x06\x07\0\0\0\0");
        out.extend(end64.to_le_bytes());
        out.extend(1u32.to_le_bytes());
    }
    out.extend(b"PK\x05\x06\0\0\0\0");
    match wide {
        true => out.extend([255; 12]),
        false => {
            out.extend([count as u16, count as u16].iter().flat_map(|n| n.to_le_bytes()));
            out.extend([size as u32, start as u32].iter().flat_map(|n| n.to_le_bytes()));
        }
    }
    out.extend([0, 0]);
    out
}

#[test]
fn archives_with_sizes_of_64_bits_are_read() {
    let dir = Workdir::new();
    let x = npy("(1, 4)", &[1.0, 2.0, 3.0, 4.0]);
    for deflated in [false, true] {
        for wide in [false, true] {
            dir.write("a.npz", zip(&[("y.npy", &x), ("x", &x)], deflated, wide));
            let samples = load(&dir.path("a.npz"), &[untyped("x"), untyped("y")]).unwrap();
            assert!(samples[0].iter().all(|(_, array)| floats(array) == [1.0, 2.0, 3.0, 4.0]));
        }
    }
}

#[test]
fn archives_that_contradict_themselves_are_refused() {
    let dir = Workdir::new();
    let x = npy("(1, 4)", &[1.0, 2.0, 3.0, 4.0]);
    let good = zip(&[("x.npy", &x)], true, false);
    let edited = |at: usize, to: &[u8]| {
        let mut bytes = good.clone();
        bytes[at..at + to.len()].copy_from_slice(to);
        bytes
    };
    let (central, end) = (good.len() - 22 - 46 - 5, good.len() - 22);
    let cases = [
        (zip(&[("x.npy", &x), ("x", &x)], false, false), "expected every name once, found \"x\" twice"),
        (zip(&[("x.npy", &x), ("data.pkl", b"x")], false, false), "found a pickle"),
        (zip(&[("x.npy", &x[..20])], false, false), "npy header: expected 60 bytes as its length says, found 10"),
        ([&good[..], b"more"].concat(), "expected an end record, found none"),
        (edited(end + 8, &[2, 0, 2, 0]), "expected another entry of the central directory, found none"),
        (edited(end + 8, &[1, 0, 2, 0]), "found a part of an archive in several"),
        (edited(end + 16, &[255, 255, 255, 0]), "central directory within the file"),
        (edited(central + 42, &[9, 0, 0, 0]), "expected its header and data where the central directory says"),
        (edited(central + 20, &[255, 255, 0, 0]), "expected its header and data where the central directory says"),
        (edited(central + 24, &[9, 0, 0, 0]), "npy header: expected at least 10 bytes, found 9"),
        (edited(central + 24, &[0, 1, 0, 0]), "trailing bytes after the array"),
        (edited(central + 16, &[0, 0, 0, 0]), "CRC: expected 00000000"),
        (edited(central + 46, b"y"), "expected its header and data where the central directory says"),
        (edited(central + 10, &[93, 0]), "compression: expected a stored or deflated member, found Zstandard (93)"),
    ];
    for (bytes, part) in cases {
        dir.write("a.npz", bytes);
        let error = refusal(&dir.path("a.npz"), &[untyped("x")]);
        assert!(error.to_string().contains(part), "{part}: {error}");
        assert_eq!(error.exit_code(), 1, "{error}");
    }
}

#[test]
fn limits_are_errors_of_their_own() {
    let dir = Workdir::new();
    dir.write("a.npy", npy("(1, 4)", &[1.0; 4]));
    let rows = npy("(2, 4)", &[1.0; 8]);
    dir.write("a.npz", zip(&[("x.npy", &rows), ("y.npy", &rows)], true, false));
    dir.write("rank.npy", npy("(1,1,1)", &[1.0]));
    dir.write("a.safetensors", file(&[Tensor::f32("x", &[1, 1, 1], &[1.0])]));
    let default = SampleLimits::default();
    let x = || vec![untyped("x")];
    let cases = [
        ("a.npy", x(), SampleLimits { max_sample_bytes: 16, ..default }, ""),
        (
            "a.npy",
            x(),
            SampleLimits { max_sample_bytes: 15, ..default },
            "limit of bytes of a sample in memory: expected at most 15, found 16",
        ),
        ("a.npy", x(), SampleLimits { max_header_bytes: 20, ..default }, "npy header: limit of bytes: expected at most 20, found 60"),
        (
            "a.npz",
            vec![untyped("x"), untyped("y")],
            SampleLimits { max_sample_bytes: 63, ..default },
            "in memory: expected at most 63, found 64",
        ),
        (
            "a.npz",
            vec![untyped("x"), untyped("y")],
            SampleLimits { max_members: 1, ..default },
            "limit of members: expected at most 1, found 2",
        ),
        ("rank.npy", x(), SampleLimits { max_rank: 2, ..default }, "limit of dimensions: expected at most 2, found 3"),
        ("a.safetensors", x(), SampleLimits { max_rank: 2, ..default }, "limit of dimensions: expected at most 2, found 3"),
    ];
    for (name, inputs, limits, part) in cases {
        match Samples::open(&[dir.path(name)], &inputs, None, None, &limits) {
            Ok(_) => assert_eq!(part, "", "{name}"),
            Err(error) => {
                assert!(!part.is_empty() && error.to_string().ends_with(part), "{error}");
                assert_eq!(error.exit_code(), 6, "{error}");
            }
        }
    }
    // Each of several samples is measured, not the file.
    let limits = SampleLimits { max_sample_bytes: 24, ..default };
    let inputs = [input("x", Dtype::F32, &[2, 3])];
    assert_eq!(Samples::open(&[fixture("rows.npy")], &inputs, None, None, &limits).unwrap().len(), 5);
}

/// The value of each sample of `x [1]`, and where it is from.
fn order(samples: &Samples) -> Vec<(f32, String)> {
    let one = |index| (floats(&samples.load(index).unwrap()[0].1)[0], samples.describe(index));
    (0..samples.len()).map(one).collect()
}

#[test]
fn samples_come_in_the_order_of_paths_and_names() {
    let dir = Workdir::new();
    let x = |value: f32| npy("(1,)", &[value]);
    dir.write("d/10.npz", zip(&[("x.npy", &x(10.0))], true, false));
    dir.write("d/9.NPY", npy("(3, 1)", &[90.0, 91.0, 92.0]));
    dir.write("d/B.npy", x(66.0));
    dir.write("d/a.safetensors", file(&[Tensor::f32("5.x", &[1], &[5.0]), Tensor::f32("4.x", &[1], &[4.0])]));
    dir.write("d/.hidden.npy", x(0.0));
    dir.write("d/labels.txt", "");
    dir.write("d/sub/1.npy", x(0.0));
    dir.write("z.npy", x(1.0));
    let inputs = [input("x", Dtype::F32, &[1])];
    let paths = [dir.path("z.npy"), dir.path("d")];
    let open = |limit, part| Samples::open(&paths, &inputs, limit, part, &SampleLimits::default());
    let all = open(None, None).unwrap();
    let found = order(&all);
    let values: Vec<f32> = found.iter().map(|(value, _)| *value).collect();
    assert_eq!(values, [1.0, 10.0, 90.0, 91.0, 92.0, 66.0, 4.0, 5.0]);
    let described: Vec<&str> = found.iter().map(|(_, place)| place.rsplit('/').next().unwrap()).collect();
    let expected = [
        "z.npy",
        "10.npz",
        "9.NPY: sample 0",
        "9.NPY: sample 1",
        "9.NPY: sample 2",
        "B.npy",
        "a.safetensors: sample 0",
        "a.safetensors: sample 1",
    ];
    assert_eq!(described, expected);
    let skipped: Vec<_> = all.skipped().iter().map(|path| path.file_name().unwrap()).collect();
    assert_eq!(skipped, ["labels.txt", "sub"]);
    // In any order, too.
    let reversed: Vec<f32> = (0..all.len()).rev().map(|index| floats(&all.load(index).unwrap()[0].1)[0]).collect();
    assert!(reversed.iter().rev().eq(&values));

    for limit in [1, 3, 8, 9] {
        let limited = open(Some(limit), None).unwrap();
        assert_eq!(order(&limited).len(), limit.min(8));
        let mut parts: Vec<Vec<(f32, String)>> =
            (0..3).filter_map(|index| open(Some(limit), Some((index, 3))).ok()).map(|part| order(&part)).collect();
        // Dealt in turn.
        let mut together = Vec::new();
        for turn in 0..limit {
            let part = turn % 3;
            if parts.get(part).is_some_and(|part| !part.is_empty()) {
                together.push(parts[part].remove(0));
            }
        }
        let plain = |found: Vec<(f32, String)>| found.into_iter().map(|(value, _)| value).collect::<Vec<_>>();
        assert_eq!(plain(together), plain(order(&limited)));
    }
    for (limit, part, message) in [
        (Some(0), None, "expected a limit of at least 1"),
        (None, Some((3, 3)), "expected an index below the number of parts, 3, found 3"),
        (None, Some((0, 0)), "expected an index below the number of parts, 0, found 0"),
        (Some(2), Some((2, 3)), "expected at least one sample in part 2 of 3, found 2 in all"),
    ] {
        let error = open(limit, part).map(|samples| samples.len()).unwrap_err();
        assert!(error.to_string().contains(message) && error.exit_code() == 2, "{error}");
    }
}

#[test]
fn a_directory_without_samples_is_an_error() {
    let dir = Workdir::new();
    fs::create_dir(dir.path("d")).unwrap();
    let error = refusal(&dir.path("d"), &[untyped("x")]);
    assert!(error.to_string().ends_with("found no samples: an empty directory"), "{error}");
    for name in ["1.txt", "2.txt", "3.txt", "4.txt", "5.txt"] {
        dir.write(format!("d/{name}"), "");
    }
    let error = refusal(&dir.path("d"), &[untyped("x")]);
    assert!(error.to_string().ends_with(r#"found no samples: only "1.txt", "2.txt", "3.txt" and 2 more"#), "{error}");
    fs::create_dir(dir.path("test_data_set_0")).unwrap();
    let error = refusal(&dir.path("test_data_set_0"), &[untyped("x")]);
    assert!(error.to_string().ends_with("found no samples: there is no input_0.pb"), "{error}");
    assert_eq!(refusal(&dir.path("gone"), &[untyped("x")]).exit_code(), 4);
    dir.write("a.txt", "text");
    let error = refusal(&dir.path("a.txt"), &[untyped("x")]);
    assert!(error.to_string().contains("expected samples (.npz, .npy, .safetensors, .pb"), "{error}");
}

#[test]
fn links_that_lead_out_of_a_directory_and_fifos_are_refused() {
    let dir = Workdir::new();
    dir.write("outside.npy", npy("(1,)", &[1.0]));
    dir.write("d/real/keep.txt", "");
    dir.write("d/0.npy", npy("(1,)", &[0.0]));
    symlink("0.npy", dir.path("d/1.npy")).unwrap();
    let x = [untyped("x")];
    assert_eq!(load(&dir.path("d"), &x).unwrap().len(), 2);
    symlink("../outside.npy", dir.path("d/2.npy")).unwrap();
    let error = refusal(&dir.path("d"), &x);
    assert!(error.to_string().contains("d/2.npy: symbolic link: expected a target within the directory of samples"), "{error}");
    // Named by the user, it is theirs to know.
    assert_eq!(load(&dir.path("d/2.npy"), &x).unwrap().len(), 1);
    fs::remove_file(dir.path("d/2.npy")).unwrap();
    symlink("nowhere.npy", dir.path("d/2.npy")).unwrap();
    assert_eq!(refusal(&dir.path("d"), &x).exit_code(), 4);
    fs::remove_file(dir.path("d/2.npy")).unwrap();
    mknodat(CWD, dir.path("d/2.npy"), FileType::Fifo, Mode::RUSR | Mode::WUSR, 0).unwrap();
    let error = refusal(&dir.path("d"), &x);
    assert!(error.to_string().ends_with("expected a regular file, found a FIFO"), "{error}");

    dir.write("test_data_set_0/.keep", "");
    symlink(fixture("typed/float.pb"), dir.path("test_data_set_0/input_0.pb")).unwrap();
    let error = refusal(&dir.path("test_data_set_0"), &x);
    assert!(error.to_string().contains("symbolic link: expected a target within"), "{error}");
    // The layout of the Hugging Face cache.
    dir.write("datasets--me/blobs/0123", npy("(1,)", &[1.0]));
    dir.write("datasets--me/snapshots/main/.keep", "");
    symlink("../../blobs/0123", dir.path("datasets--me/snapshots/main/a.npy")).unwrap();
    assert_eq!(load(&dir.path("datasets--me/snapshots/main"), &x).unwrap().len(), 1);
}

#[test]
fn a_file_that_changes_between_the_look_and_the_reading_is_noticed() {
    let dir = Workdir::new();
    dir.write("d/0.npy", npy("(1,)", &[0.0]));
    dir.write("d/1.npy", npy("(1,)", &[1.0]));
    let samples = open(&dir.path("d"), &[untyped("x")]).unwrap();
    samples.load(0).unwrap();
    dir.write("d/1.npy", npy("(2,)", &[1.0, 1.0]));
    assert_eq!(samples.load(1).unwrap_err().exit_code(), 5);
    dir.write("d/0.npy", npy("(2,)", &[1.0, 1.0]));
    assert_eq!(samples.load(0).unwrap_err().exit_code(), 5);
    fs::remove_file(dir.path("d/1.npy")).unwrap();
    assert!([4, 5].contains(&samples.load(1).unwrap_err().exit_code()));
}

#[test]
fn the_hash_is_of_what_the_model_is_given() {
    let dir = Workdir::new();
    let hash = |path: &Path, inputs: &[InputSpec]| -> Vec<String> {
        let samples = open(path, inputs).unwrap();
        let of_sample =
            |index| sample_hash(samples.load(index).unwrap().iter().map(|(name, array)| (name.as_str(), array))).to_hex().to_string();
        (0..samples.len()).map(of_sample).collect()
    };
    let x = [input("x", Dtype::F32, &[-1, 4])];
    let values = [1.0, 2.0, 3.0, 4.0];
    dir.write("a.npy", npy("(1, 4)", &values));
    dir.write("b.npz", zip(&[("x.npy", &npy("(1, 4)", &values))], true, false));
    dir.write("c.safetensors", file(&[Tensor::f32("x", &[1, 4], &values)]));
    let expected = hash(&dir.path("a.npy"), &x);
    assert_eq!(expected.len(), 1);
    assert_eq!(expected, hash(&dir.path("b.npz"), &x));
    assert_eq!(expected, hash(&dir.path("c.safetensors"), &x));
    // Content, shape, name, type and number all count.
    let mut others =
        vec![hash(&dir.path("a.npy"), &[input("y", Dtype::F32, &[-1, 4])]), hash(&dir.path("a.npy"), &[input("x", Dtype::F16, &[-1, 4])])];
    dir.write("a.npy", npy("(1, 4)", &[1.0, 2.0, 3.0, 5.0]));
    others.push(hash(&dir.path("a.npy"), &x));
    dir.write("a.npy", npy("(1, 2, 2)", &values));
    others.push(hash(&dir.path("a.npy"), &[untyped("x")]));
    dir.write("a.npy", npy("(2, 4)", &[values, values].concat()));
    others.push(hash(&dir.path("a.npy"), &x));
    others.push(hash(&dir.path("a.npy"), &[input("x", Dtype::F32, &[4])]));
    others.push(expected);
    let distinct: std::collections::BTreeSet<_> = others.iter().collect();
    assert_eq!(distinct.len(), others.len());
}

/// Whatever the bytes, a reader answers.
#[test]
fn files_with_wrong_bytes_never_panic() {
    let dir = Workdir::new();
    let small = zip(&[("x.npy", &npy("(1, 4)", &[1.0; 4])), ("y.npy", &npy("(2,)", &[2.0; 2]))], true, true);
    dir.write("wide.npz", small);
    let files = [
        "numpy_deflated.npz",
        "rows.npy",
        "rows_turned.npy",
        "indexed.safetensors",
        "named.safetensors",
        "typed/bfloat16.pb",
        "typed/uint64.pb",
    ];
    let files = files.map(fixture).into_iter().chain([dir.path("wide.npz"), fixture("test_data/test_data_set_0/input_0.pb")]);
    let inputs: [Vec<InputSpec>; 4] =
        [vec![untyped("x")], vec![input("x", Dtype::F32, &[2, 3])], vec![untyped("x"), untyped("ids")], vec![untyped("x"), untyped("y")]];
    let mut random = Random(7);
    for path in files {
        let original = fs::read(&path).unwrap();
        let target = dir.path(format!("mutant.{}", path.extension().unwrap().to_string_lossy()));
        for round in 0..200 {
            let mut bytes = original.clone();
            match round % 4 {
                0 => bytes.truncate(random.below(bytes.len())),
                // Near the front are headers, near the end the directory of an archive.
                1 => bytes[random.below(original.len().min(160))] = random.bits() as u8,
                2 => {
                    let at = bytes.len() - 1 - random.below(original.len().min(160));
                    bytes[at] = [0, 1, 0x7f, 0x80, 0xff][random.below(5)];
                }
                _ => (0..1 + random.below(8)).for_each(|_| bytes[random.below(original.len())] ^= 1 << random.below(8)),
            }
            fs::write(&target, &bytes).unwrap();
            for inputs in &inputs {
                let result = catch_unwind(AssertUnwindSafe(|| load(&target, inputs).map(|samples| samples.len())));
                let text: String = bytes.iter().take(2000).map(|b| format!("{b:02x}")).collect();
                let answer = result.unwrap_or_else(|_| panic!("{}: {text}", path.display()));
                assert!(answer.is_ok() || [1, 6].contains(&answer.unwrap_err().exit_code()), "{}: {text}", path.display());
            }
        }
    }
}

#[derive(Deserialize)]
struct Corpus {
    cases: Vec<Case>,
    /// Files by name, deflated, in hexadecimal digits.
    deflated: BTreeMap<String, String>,
}

#[derive(Deserialize)]
struct Case {
    id: String,
    file: String,
    exit: u8,
    message: Vec<String>,
}

impl Case {
    fn content(&self, corpus: &Corpus) -> Vec<u8> {
        let Some(hex) = corpus.deflated.get(&self.file) else {
            assert_eq!(self.id, "npz_many_5k");
            let member = npy("(1, 1)", &[1.0]);
            let names: Vec<String> = (0..5000).map(|i| format!("m{i:05}.npy")).collect();
            return zip(&names.iter().map(|name| (name.as_str(), &member[..])).collect::<Vec<_>>(), false, false);
        };
        let bytes: Vec<u8> = (0..hex.len()).step_by(2).map(|i| u8::from_str_radix(&hex[i..i + 2], 16).unwrap()).collect();
        let mut content = Vec::new();
        DeflateDecoder::new(&bytes[..]).read_to_end(&mut content).unwrap();
        content
    }

    /// Inputs of a model that the file, were it good, is a sample of: `x` of the corpus's own model unless it says otherwise.
    fn inputs(&self) -> Vec<InputSpec> {
        let x = |name: &str| input(name, Dtype::F32, &[1, 4]);
        match self.id.as_str() {
            "npz_ok_deflated" => vec![x("x"), x("y")],
            "npz_member_dotdot" => vec![x("../../x")],
            "npz_many_5k" => (0..5000).map(|i| input(&format!("m{i:05}"), Dtype::F32, &[1, 1])).collect(),
            "npy_ok_scalar" => vec![input("x", Dtype::F32, &[])],
            _ => vec![x("x")],
        }
    }
}

/// Every sample file of the corpus gets its verdict from the library.
#[test]
fn corpus() {
    let corpus: Corpus = serde_json::from_str(include_str!("../../fixtures/samples/corpus.json")).unwrap();
    let dir = Workdir::new();
    let mut wrong = Vec::new();
    for case in &corpus.cases {
        dir.write(&case.file, case.content(&corpus));
        let inputs = case.inputs();
        let result = load(&dir.path(&case.file), &inputs);
        let (exit, message) = match result {
            Ok(samples) => (0, format!("{} samples", samples.len())),
            Err(error) => (error.exit_code(), error.to_string()),
        };
        let lower = message.to_lowercase();
        let has_file = exit == 0 || message.contains(Path::new(&case.file).file_name().unwrap().to_str().unwrap());
        let is_good = exit == case.exit && case.message.iter().all(|part| lower.contains(part)) && has_file && !message.contains('\n');
        if !is_good || message.len() > 1000 {
            wrong.push(format!("{}: expected {} {:?}, found {exit}: {message}", case.id, case.exit, case.message));
        }
    }
    assert!(corpus.cases.len() >= 50 && wrong.is_empty(), "{} cases, wrong:\n{}", corpus.cases.len(), wrong.join("\n"));
}

/// A model that takes inputs of these names and dimensions and multiplies each by weights.
fn model_of(inputs: &[InputSpec]) -> Vec<u8> {
    let mut graph = Graph::default();
    for input in inputs {
        let name = &input.name;
        let dims: Vec<u64> = input.shape.iter().flatten().map(|dim| dim.unwrap_or(1) as u64).collect();
        let rows = dims.last().copied().unwrap_or(1);
        let weight = format!("{name}_weight");
        graph.constants.push(Constant::floats(&weight, &[rows, 1], &vec![0.5; rows as usize]));
        // A scalar is no factor of a product.
        let factor = if dims.is_empty() { format!("{name}_row") } else { name.clone() };
        if dims.is_empty() {
            graph.constants.push(Constant::floats(&format!("{name}_one"), &[1, 1], &[1.0]));
            graph.nodes.push(Node::new("Mul", &[name, &format!("{name}_one")], &factor, &[]));
        }
        let output = format!("{name}_product");
        graph.nodes.push(Node::new("MatMul", &[&factor, &weight], &output, &[]));
        graph.outputs.push((output, vec![1, 1]));
        graph.inputs.push((name.clone(), dims));
    }
    graph.model(13)
}

/// And the same from the program, in a second of a processor and in 100 MiB of memory, with nothing written of what is bad.
#[test]
fn corpus_of_the_program() {
    if !alone("samples::corpus_of_the_program") {
        return;
    }
    let corpus: Corpus = serde_json::from_str(include_str!("../../fixtures/samples/corpus.json")).unwrap();
    let mut wrong = Vec::new();
    for case in &corpus.cases {
        let dir = Workdir::new();
        dir.write(&case.file, case.content(&corpus));
        dir.write("model.onnx", model_of(&case.inputs()));
        let run = dir.run(["calibrate", "model.onnx", "--samples", &case.file, "-o", "out.stats"]);
        let lower = run.stderr.to_lowercase();
        let is_good = run.status.code() == Some(i32::from(case.exit)) && case.message.iter().all(|part| lower.contains(part));
        let is_clean = case.exit == 0 || !dir.exists("out.stats") && run.stderr.contains(case.file.rsplit('/').next().unwrap());
        if !is_good || !is_clean || run.usage.complaint().is_some() {
            wrong.push(format!("{}: expected {} {:?} {:?}: {run}", case.id, case.exit, case.message, run.usage.complaint()));
        }
        if case.exit != 0 && run.status.code() == Some(i32::from(case.exit)) {
            run.expect_one_error();
        }
    }
    assert!(corpus.cases.len() >= 50 && wrong.is_empty(), "{} cases, wrong:\n{}", corpus.cases.len(), wrong.join("\n"));
}
