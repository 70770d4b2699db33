//! `--ranges`: ranges of activations from files of other tools.

use crate::onnx_quantize::small;
use crate::support::{Run, Workdir};
use serde_json::{Map, Value, json};

/// Every value of the small model that static quantization needs, with its range on the samples.
fn observed(dir: &Workdir) -> Map<String, Value> {
    dir.ok("quantize model.onnx --samples samples --min-sqnr 0 -o observed.onnx");
    let sidecar = dir.json("observed.json");
    sidecar["activations"].as_object().unwrap().clone()
}

/// Ranges of these values as pairs.
fn pairs(activations: &Map<String, Value>) -> Map<String, Value> {
    activations.iter().map(|(name, record)| (name.clone(), json!([record["min"], record["max"]]))).collect()
}

#[test]
fn ranges_of_a_file_make_the_model_that_samples_make() {
    let dir = small();
    let activations = observed(&dir);
    let plain = pairs(&activations);
    let array = |value: &Value| json!({"CLS": "numpy.array", "dtype": "float32", "data": value});
    let tensor = |pair: &Value| json!({"CLS": "TensorData", "lowest": array(&pair[0]), "highest": array(&json!([pair[1]])), "hist": array(&json!([1, 2]))});
    let data: Map<String, Value> = plain.iter().map(|(name, pair)| (name.clone(), tensor(pair))).collect();
    let method = json!({"CLS": "CalibrationMethod", "value": "CalibrationMethod.MinMax"});
    let wrapped = json!({"CLS": "TensorsData", "data": data, "calibration_method": method, "smooth_quant": false});
    for (name, table) in [("plain", json!(plain)), ("data", json!(data)), ("wrapped", wrapped)] {
        dir.write(format!("{name}.table"), table.to_string());
        for mode in ["", "--mode static"] {
            dir.ok(&format!("quantize model.onnx --ranges {name}.table {mode} --min-sqnr 0 -o given.onnx --force"));
            assert_eq!(dir.read("given.onnx"), dir.read("observed.onnx"), "{name}");
        }
        dir.ok("verify given.onnx");
        let sidecar = dir.json("given.json");
        crate::schema::expect_valid(&sidecar, name);
        assert_eq!(sidecar["recipe"]["mode"], "static");
        let file = dir.read(format!("{name}.table"));
        let hash = blake3::hash(&file).to_hex().to_string();
        let expected = json!({"ranges": {"blake3": hash, "bytes": file.len(), "name": format!("{name}.table")}});
        assert_eq!(sidecar["calibration"], expected);
        for (value, record) in sidecar["activations"].as_object().unwrap() {
            assert_eq!((&record["observer"], &record["scale"]), (&json!("given"), &activations[value]["scale"]), "{value}");
        }
        dir.ok(&format!("quantize model.onnx --recipe given.json --ranges {name}.table -o again.onnx --force"));
        assert_eq!(
            (dir.read("again.onnx"), dir.json("again.json")["activations"].clone()),
            (dir.read("given.onnx"), sidecar["activations"].clone())
        );
    }
}

#[test]
fn a_cache_of_tensorrt_is_taken_over_to_the_bit() {
    let dir = small();
    let names: Vec<String> = observed(&dir).keys().cloned().collect();
    let scale = |i: usize| f32::from_bits(0x3c01_0a14 + 7919 * i as u32);
    let lines: Vec<String> = names.iter().enumerate().map(|(i, name)| format!("{name}: {:x}\n", scale(i).to_bits())).collect();
    dir.write("cache", format!("TRT-8501-EntropyCalibration2\n{}", lines.concat()));
    dir.ok("quantize model.onnx --ranges cache --target tensorrt -o q.onnx");
    let symmetric = dir.json("q.json")["activations"].clone();
    dir.ok("quantize model.onnx --ranges cache -o u.onnx");
    let asymmetric = dir.json("u.json")["activations"].clone();
    for (i, name) in names.iter().enumerate() {
        // What only moves values has the parameters of what it moves.
        let i = if name == "pool" { i + 1 } else { i };
        assert!(name != "pool" || names[i] == "relu1");
        let record = &symmetric[name];
        assert_eq!((record["scale"].as_f64().unwrap() as f32, &record["zero_point"]), (scale(i), &json!(0)), "{name}");
        assert_eq!(record["max"].as_f64().unwrap() as f32, 127.0 * scale(i), "{name}");
        assert_eq!(asymmetric[name]["min"].as_f64().unwrap() as f32, -127.0 * scale(i), "{name}");
        assert!((127..=128).contains(&asymmetric[name]["zero_point"].as_i64().unwrap()), "{name}");
    }
}

#[test]
fn values_that_a_file_lacks_are_named_or_observed_and_others_noted() {
    let dir = small();
    let activations = observed(&dir);
    let mut table = pairs(&activations);
    let lacking = table.keys().next().unwrap().clone();
    let another = table.keys().nth(1).unwrap().clone();
    table.remove(&lacking);
    let both = [lacking.clone(), another.clone()].map(|name| format!("{name:?}")).join(", ");
    let of_another = table.remove(&another).unwrap();
    dir.write("table.json", json!(table).to_string());
    let run = dir.fails("quantize model.onnx --ranges table.json -o q.onnx", 1);
    let expected = format!("table.json: ranges: expected one for each of {} values, found none of {both}", activations.len());
    assert!(run.stderr.contains(&expected) && run.stderr.contains("hint: --samples PATH"), "{run}");
    table.insert(another, of_another);
    let doubled = table.values_mut().next().unwrap();
    *doubled = json!([2.0 * doubled[0].as_f64().unwrap(), 2.0 * doubled[1].as_f64().unwrap()]);
    table.insert("of another model".into(), json!([0, 1]));
    dir.write("table.json", json!(table).to_string());
    let before = dir.names();
    let run = dir.fails("quantize model.onnx --ranges table.json -o q.onnx", 1);
    let expected = format!("found none of {lacking:?}");
    assert!(run.stderr.contains(&expected) && run.stderr.contains("hint: --samples PATH"), "{run}");
    assert_eq!(dir.names(), before);
    let run = dir.ok("quantize model.onnx --ranges table.json --samples samples --min-sqnr 0 -o q.onnx");
    assert!(run.stdout.contains(r#"note: table.json: the model has no values of these names: "of another model""#), "{run}");
    let sidecar = dir.json("q.json");
    crate::schema::expect_valid(&sidecar, "both");
    assert_eq!((&sidecar["calibration"]["samples"], &sidecar["calibration"]["ranges"]["name"]), (&json!(6), &json!("table.json")));
    assert_eq!(sidecar["activations"][&lacking], activations[&lacking]);
    let others: Vec<&String> = activations.keys().filter(|name| **name != lacking).collect();
    assert!(others.iter().all(|name| sidecar["activations"][name.as_str()]["observer"] == "given"));
    assert_eq!(
        sidecar["activations"][others[0]]["max"].as_f64().unwrap() as f32,
        2.0 * activations[others[0]]["max"].as_f64().unwrap() as f32
    );
}

#[test]
fn files_with_mistakes_are_refused_with_the_place() {
    let dir = small();
    let cases: &[(&str, &str)] = &[
        ("", "expected a calibration cache of TensorRT or a calibration table of ONNX Runtime, found \"\""),
        ("x 1.5\ny 2.5\n", "found \"x 1.5\""),
        ("{}", "expected one range or more, found none"),
        ("TRT-8501-MinMax\n", "expected one range or more, found none"),
        (r#"{"x": [NaN, 1]}"#, r#"entry "x": expected a finite number, found NaN at line 1 column"#),
        (r#"{"x": [0, Infinity]}"#, r#"entry "x": expected a finite number, found Infinity at line 1"#),
        (r#"{"x": [-Infinity, 0]}"#, r#"entry "x": expected a finite number, found -Infinity at line 1"#),
        (r#"{"x": [0, 1e39]}"#, r#"entry "x": expected a range of finite f32 numbers, found 0 to 1"#),
        (r#"{"x": [2, 1]}"#, r#"entry "x": expected a smallest value that is not above the largest, found 2 and 1"#),
        (r#"{"x": [0, 1], "y": [0, 1], "x": [0, 1]}"#, r#"entry "x": expected one range a value, found a second for "x""#),
        (r#"{"x": [0]}"#, r#"entry "x": invalid length 1, expected [smallest, largest]"#),
        (r#"{"x": 1.5}"#, r#"entry "x": invalid type: floating point `1.5`, expected [smallest, largest]"#),
        (r#"{"x": ["0", 1]}"#, r#"entry "x": invalid type: string "0", expected a number"#),
        (r#"{"x": {"lowest": 0}}"#, r#"entry "x": missing field `highest`"#),
        (r#"{"x": {"lowest": 0, "lowest": 0, "highest": 1}}"#, r#"entry "x": expected one lowest, found a second"#),
        (r#"{"x": {"lowest": [0, 1, 2], "highest": 1}}"#, r#"entry "x": expected one number, found 3"#),
        (r#"{"x": {"lowest": {"CLS": "numpy.array"}, "highest": 1}}"#, r#"entry "x": missing field `data`"#),
        (r#"{"CLS": "TensorsData"}"#, "expected a member \"data\", found none"),
        (r#"{"CLS": "TensorsData", "data": {"x": [0, 1]}, "data": {}}"#, "expected one member \"data\", found a second"),
        (r#"{"x": [0, 1]} {}"#, "trailing characters at line 1 column 15"),
        (r#"{"x": [0, 1],"#, "EOF while parsing"),
        ("TRT-8501-MinMax\nx: 3c010a14\ny 3c010a14\n", "line 3: expected NAME: and up to eight hexadecimal digits, found \"y 3c010a14\""),
        ("TRT-8501-MinMax\nx: 3c010a141\n", "line 2: expected NAME:"),
        ("TRT-8501-MinMax\nx: +c010a14\n", "line 2: expected NAME:"),
        ("TRT-8501-MinMax\nx: 7fc00000\n", "line 2: expected a finite scale of at least 0, found 7fc00000, which is NaN"),
        ("TRT-8501-MinMax\nx: 7f800000\n", "line 2: expected a finite scale of at least 0, found 7f800000, which is inf"),
        ("TRT-8501-MinMax\nx: bc010a14\n", "line 2: expected a finite scale of at least 0, found bc010a14, which is -0.0078"),
        ("TRT-8501-MinMax\nx: 7f7fffff\n", "line 2: expected a range of finite f32 numbers, found -4"),
        ("TRT-8501-MinMax\nx: 3c010a14\n\nx: 3c010a14\n", "line 4: expected one range a value, found a second for \"x\""),
    ];
    let refused = |content: &[u8]| -> Run {
        dir.write("table", content);
        let before = dir.names();
        let run = dir.fails("quantize model.onnx --ranges table -o q.onnx", 1);
        assert_eq!(dir.names(), before);
        assert!(run.stderr.starts_with("qtool: error: table: ranges: "), "{run}");
        run
    };
    for (content, expected) in cases {
        let run = refused(content.as_bytes());
        assert!(run.stderr.contains(expected), "{content:?}: {run}");
    }
    assert!(refused(b"{\"x\xff\"").stderr.contains("expected text in UTF-8, found other bytes from 3 on"));
    let deep = format!("{{\"x\": {}", "[".repeat(100_000));
    assert!(refused(deep.as_bytes()).stderr.contains("recursion limit"));
}

#[test]
fn ranges_are_for_static_onnx_models_and_files_of_bounded_size() {
    let dir = small();
    dir.write("table", r#"{"x": [0, 1]}"#);
    dir.fails("quantize model.onnx --ranges none.json", 4);
    for options in ["--mode weight-only", "--mode dynamic", "--fake-quant"] {
        let run = dir.fails(&format!("quantize model.onnx --ranges table {options} -o q.onnx"), 2);
        assert!(run.stderr.contains("--ranges: expected layers that run in integers with known ranges"), "{run}");
    }
    let run = dir.fails("quantize model.onnx --ranges table --transform smooth-quant -o q.onnx", 2);
    assert!(run.stderr.contains("expected samples or statistics, found neither"), "{run}");
    std::fs::File::create(dir.path("large")).unwrap().set_len((256 << 20) + 1).unwrap();
    let run = dir.fails("quantize model.onnx --ranges large -o q.onnx", 6);
    assert!(run.stderr.contains("bytes of ranges"), "{run}");
    std::fs::copy(crate::support::FIXTURE, dir.path("model.safetensors")).unwrap();
    let run = dir.fails("quantize model.safetensors --ranges table", 2);
    assert!(run.stderr.contains("--ranges: expected an ONNX model, found another"), "{run}");
}
