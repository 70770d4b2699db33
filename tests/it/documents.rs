//! Bad and unusual recipes, sidecars, tables of ranges, statistics and configurations: each gets its verdict and one line that says
//! why, in a second of a processor and in 100 MiB of memory, and a refused one leaves nothing behind.
//!
//! The files are those of a small model with one change each, so that only what is tested is wrong. The corpus of models and
//! samples is in `corpus.rs` and `samples.rs`.

use crate::support::measure::alone;
use crate::support::model::{Tensor, file};
use crate::support::onnx::{Constant, Graph, Node};
use crate::support::{Random, Run, Workdir};
use serde_json::{Value, json};

/// A case: its name, what is changed, the exit code, a part of the message.
struct Case<C> {
    name: &'static str,
    change: C,
    exit: i32,
    message: &'static str,
}

fn case<C>(name: &'static str, change: C, exit: i32, message: &'static str) -> Case<C> {
    Case { name, change, exit, message }
}

/// Runs every case: `run` makes the directory and the run; `subject` is the file that messages must name.
fn judge<C>(cases: Vec<Case<C>>, at_least: usize, subject: &str, run: impl Fn(&C) -> (Workdir, Run)) {
    let mut wrong = Vec::new();
    assert!(cases.len() >= at_least, "{} cases", cases.len());
    for Case { name, change, exit, message } in &cases {
        let (dir, run) = run(change);
        let mut complain = |what: &str| wrong.push(format!("{name}: {what}: {run}\n"));
        if run.status.code() != Some(*exit) {
            complain(&format!("expected exit {exit}"));
        }
        if let Some(complaint) = run.usage.complaint() {
            complain(&complaint);
        }
        if *exit != 0 {
            let lines: Vec<&str> = run.stderr.lines().collect();
            let errors = lines.iter().filter(|line| line.starts_with("qtool: error: ")).count();
            let hints = lines.iter().filter(|line| line.starts_with("hint: ")).count();
            if errors != 1 || errors + hints != lines.len() || run.stderr.len() > 2000 || run.stderr.contains('\u{1b}') {
                complain("expected one line of error");
            }
            if !run.stderr.contains(message) || !run.stderr.contains(subject) {
                complain(&format!("expected {message:?} and {subject:?} in the message"));
            }
            let left: Vec<String> = dir.names().into_iter().filter(|name| name.starts_with("out") || name.contains(".qtool-")).collect();
            if !left.is_empty() {
                complain(&format!("left behind: {left:?}"));
            }
        }
    }
    assert!(wrong.is_empty(), "{} complaints\n{}", wrong.len(), wrong.join("\n"));
}

/// Two layers and a bias.
fn checkpoint() -> Vec<u8> {
    let mut random = Random(5);
    file(&[
        Tensor::weights("a.weight", &[16, 32], &mut random),
        Tensor::weights("b.weight", &[8, 16], &mut random),
        Tensor::f32("b.bias", &[8], &[0.5; 8]),
    ])
}

/// `y = relu(x w) v`.
fn graph() -> Vec<u8> {
    let floats =
        |name: &str| Constant::floats(name, &[16, 16], &(0..256).map(|i| ((i * 37 % 101) as f32 - 50.0) / 60.0).collect::<Vec<_>>());
    let graph = Graph {
        nodes: vec![
            Node::new("MatMul", &["x", "w"], "h", &[]),
            Node::new("Relu", &["h"], "r", &[]),
            Node::new("MatMul", &["r", "v"], "y", &[]),
        ],
        constants: vec![floats("w"), floats("v")],
        inputs: vec![("x".into(), vec![1, 16])],
        outputs: vec![("y".into(), vec![1, 16])],
    };
    graph.model(13)
}

#[test]
fn recipes() {
    if !alone("documents::recipes") {
        return;
    }
    let deep_toml = format!("exclude = {}{}", "[".repeat(5000), "]".repeat(5000));
    let deep_json = format!("{{\"exclude\": {}{}}}", "[".repeat(5000), "]".repeat(5000));
    let many = "[[rule]]\nmatch = \"*\"\nweights = \"int4\"\n".repeat(5000);
    let long = format!("[[rule]]\nmatch = \"{}\"\nweights = \"keep\"\n", "x".repeat(100_000));
    let text = |text: &str| text.as_bytes().to_vec();
    let cases = vec![
        case("empty", text(""), 0, ""),
        case("empty object", text("{}"), 0, ""),
        case("byte order mark", text("\u{feff}min_elements = 0"), 0, ""),
        case("carriage returns", text("min_elements = 0\r\n[default]\r\nweights = \"uint8\"\r\n"), 0, ""),
        case("five thousand rules", text(&many), 0, ""),
        case("a long pattern", text(&long), 2, "size limit"),
        case("not UTF-8", b"min_elements = \xff".to_vec(), 2, "UTF-8"),
        case("zeros", vec![0; 4096], 2, ""),
        case("unknown field", text("min_element = 0"), 2, "line 1"),
        case("unknown section", text("[defaults]\nweights = \"int8\""), 2, "line 1"),
        case("field twice", text("min_elements = 0\nmin_elements = 1"), 2, "line 2"),
        case("field twice in JSON", text("{\"min_elements\": 0, \"min_elements\": 1}"), 2, "line 1"),
        case("half of a document", text("[default]\nweights = \"int"), 2, "line 2"),
        case("half of a JSON document", text("{\"default\": {\"weights\": \"int8\""), 2, "line 1"),
        case("two JSON documents", text("{}{}"), 2, "line 1"),
        case("unknown codes", text("[default]\nweights = \"int3\""), 2, "line 2"),
        case("unknown observer", text("[default]\nobserver = \"mean\""), 2, "line 2"),
        case("observer with a number out of range", text("[default]\nobserver = \"percentile:101\""), 2, ""),
        case("groups of nothing", text("[default]\ngranularity = \"per-group:0\""), 2, "line 2"),
        case("groups beyond 64 bits", text("[default]\ngranularity = \"per-group:99999999999999999999\""), 2, "line 2"),
        case("negative count", text("min_elements = -1"), 2, "line 1"),
        case("count beyond 64 bits", text("min_elements = 99999999999999999999"), 2, "line 1"),
        case("number for a text", text("[default]\nweights = 8"), 2, "line 2"),
        case("table for a list", text("[rule]\nmatch = \"*\""), 2, "line 1"),
        case("rule about nothing", text("[[rule]]\nweights = \"keep\""), 2, "line 1"),
        case("pattern that is no expression", text("[[rule]]\nmatch = \"re:(\"\nweights = \"keep\""), 2, "line 2"),
        case("expression of a gigabyte", text("[[rule]]\nmatch = \"re:(((a{100}){100}){100}){100}\"\nweights = \"keep\""), 2, "line 2"),
        case("both included and left out", text("include = [\"a*\"]\nexclude = [\"a*\"]"), 2, "exclude"),
        case(
            "command that was not allowed",
            text("[[observer]]\nname = \"mine\"\ncommand = [\"./x\"]\n[default]\nobserver = \"mine\""),
            2,
            "allow-commands",
        ),
        case("escapes", text("[[rule]]\nmatch = \"\\u001b[31mred\"\nweights = \"keep\""), 2, "\\u{1b}"),
        case("nested 5000 deep", text(&deep_toml), 2, ""),
        case("nested 5000 deep in JSON", text(&deep_json), 2, ""),
    ];
    judge(cases, 20, "recipe", |content: &Vec<u8>| {
        let dir = Workdir::with_model(&checkpoint());
        dir.write("recipe", content);
        let run = dir.run(["quantize", "model.safetensors", "--recipe", "recipe", "-o", "out.safetensors"]);
        (dir, run)
    });
}

/// A change of a JSON document: what is put at a place, or taken from it.
type Edit = fn(&mut Value);

fn remove(value: &mut Value, key: &str) {
    value.as_object_mut().unwrap().remove(key).expect("the key is there");
}

/// The directory of a quantized model `q.safetensors` of int8 per channel and int4 per group.
fn quantized() -> Workdir {
    let dir = Workdir::with_model(&checkpoint());
    dir.write("r.toml", "min_elements = 0\n[[rule]]\nmatch = \"a*\"\nweights = \"int4\"\ngranularity = \"per-group:8\"\n");
    dir.ok("quantize model.safetensors --recipe r.toml -o q.safetensors");
    dir
}

#[test]
fn sidecars() {
    if !alone("documents::sidecars") {
        return;
    }
    let cases: Vec<Case<Edit>> = vec![
        case("as it was", |_| {}, 0, ""),
        case("another format", |d| d["format"] = json!("sidecar"), 1, "qtool-sidecar"),
        case("another version", |d| d["version"] = json!(2), 1, "version 2"),
        case("a version that is no number", |d| d["version"] = json!("1"), 1, ""),
        case("no format", |d| remove(d, "format"), 1, "format"),
        case("no tensors", |d| remove(d, "tensors"), 1, "tensors"),
        case("a field more", |d| d["more"] = json!(0), 1, "more"),
        case("a list", |d| *d = json!([]), 1, ""),
        case("nothing", |d| *d = json!(null), 1, ""),
        case("a tensor that is not there", |d| d["tensors"]["c.weight"] = d["tensors"]["b.weight"].clone(), 1, "c.weight"),
        case("a kept tensor that is not there", |d| d["kept"]["c.bias"] = json!("rank 1"), 1, "c.bias"),
        case("a tensor that it does not know", |d| remove(&mut d["tensors"], "b.weight"), 1, "b.weight"),
        case("a tensor both kept and quantized", |d| d["kept"]["b.weight"] = json!("rank 1"), 1, "b.weight"),
        case("another shape", |d| d["tensors"]["b.weight"]["shape"] = json!([16, 8]), 1, "b.weight"),
        case("a shape beyond 64 bits", |d| d["tensors"]["b.weight"]["shape"] = json!([4_294_967_296u64, 4_294_967_296u64]), 1, "b.weight"),
        case("a shape without dimensions", |d| d["tensors"]["b.weight"]["shape"] = json!([]), 1, "b.weight"),
        case("a negative dimension", |d| d["tensors"]["b.weight"]["shape"] = json!([-8, 16]), 1, ""),
        case("other codes", |d| d["tensors"]["b.weight"]["dtype"] = json!("uint8"), 1, "b.weight"),
        case("codes of another width", |d| d["tensors"]["b.weight"]["dtype"] = json!("int4"), 1, "b.weight"),
        case("unknown codes", |d| d["tensors"]["b.weight"]["dtype"] = json!("int2"), 1, ""),
        case("an axis beyond the rank", |d| d["tensors"]["b.weight"]["axis"] = json!(2), 1, "b.weight"),
        case("a huge axis", |d| d["tensors"]["b.weight"]["axis"] = json!(u64::MAX), 1, "b.weight"),
        case("too few scales", |d| d["tensors"]["b.weight"]["scale"] = json!([0.5]), 1, "b.weight"),
        case("no scales", |d| d["tensors"]["b.weight"]["scale"] = json!([]), 1, "b.weight"),
        case("a scale of 0", |d| d["tensors"]["b.weight"]["scale"][3] = json!(0.0), 1, "b.weight"),
        case("a negative scale", |d| d["tensors"]["b.weight"]["scale"][3] = json!(-0.5), 1, "b.weight"),
        case("a scale beyond f32", |d| d["tensors"]["b.weight"]["scale"][3] = json!(1e300), 1, "too large for f32"),
        case("a zero point beyond the codes", |d| d["tensors"]["b.weight"]["zero_point"] = json!([1000]), 1, "b.weight"),
        case("scales in a tensor that is not there", |d| d["tensors"]["a.weight"]["scale"]["tensor"] = json!("s"), 1, "a.weight"),
        case("scales in the weights themselves", |d| d["tensors"]["a.weight"]["scale"]["tensor"] = json!("a.weight"), 1, "a.weight"),
        case("scales in another tensor's weights", |d| d["tensors"]["a.weight"]["scale"]["tensor"] = json!("b.weight"), 1, "a.weight"),
        case("groups of nothing", |d| d["tensors"]["a.weight"]["group_size"] = json!(0), 1, "a.weight"),
        case("groups of another size", |d| d["tensors"]["a.weight"]["group_size"] = json!(16), 1, "a.weight"),
        case("an unknown granularity", |d| d["tensors"]["a.weight"]["granularity"] = json!("per_block"), 1, "a.weight"),
        case("an unknown source type", |d| d["tensors"]["a.weight"]["source_dtype"] = json!("F31"), 1, "a.weight"),
        case("a source type that is no float", |d| d["tensors"]["a.weight"]["source_dtype"] = json!("I64"), 1, "a.weight"),
        case("a file elsewhere, which it does not open", |d| d["output"]["files"][0]["name"] = json!("../q.safetensors"), 0, ""),
    ];
    judge(cases, 20, "q.", |edit: &Edit| {
        let dir = quantized();
        let mut document = dir.json("q.json");
        edit(&mut document);
        dir.write("q.json", document.to_string());
        // Whatever it says, to verify it ends in order.
        let verified = dir.run(["verify", "q.safetensors"]);
        assert!(matches!(verified.status.code(), Some(0 | 1 | 3)) && verified.usage.complaint().is_none(), "{verified}");
        let run = dir.run(["dequantize", "q.safetensors", "-o", "out.safetensors"]);
        (dir, run)
    });
}

#[test]
fn tables_of_ranges() {
    if !alone("documents::tables_of_ranges") {
        return;
    }
    let deep = "[".repeat(100_000);
    let many: String = (0..50_000).map(|i| format!("v{i}: 3c010a14\n")).collect();
    let good = "x: 3c010a14\nr: 3c010a14\n";
    let cache = |lines: &str| format!("TRT-8501-EntropyCalibration2\n{lines}");
    let cases = vec![
        case("a cache", cache(good), 0, ""),
        case("pairs", r#"{"x": [-1, 2], "r": [0, 3.5]}"#.into(), 0, ""),
        case("values that the model does not have", cache(&format!("{good}{many}")), 0, ""),
        case("ranges that do not hold 0", r#"{"x": [1, 2], "r": [-3, -2]}"#.into(), 0, ""),
        case("ranges without extent", r#"{"x": [0, 0], "r": [2, 2]}"#.into(), 0, ""),
        case("tiny ranges", r#"{"x": [0, 1e-45], "r": [-1e-45, 0]}"#.into(), 0, ""),
        case("the widest ranges", r#"{"x": [-3e38, 3e38], "r": [-3e38, 3e38]}"#.into(), 0, ""),
        case("nothing", String::new(), 1, ""),
        case("an empty table", "{}".into(), 1, ""),
        case("another format", "x,-1,2\n".into(), 1, "expected"),
        case("a list", "[1, 2]".into(), 1, "expected"),
        case("a missing value", cache("x: 3c010a14\n"), 1, "\"r\""),
        case("a value twice", cache(&format!("{good}x: 3c010a15\n")), 1, "\"x\""),
        case("a value twice in JSON", r#"{"x": [-1, 2], "x": [-1, 3], "r": [0, 1]}"#.into(), 1, "\"x\""),
        case("no colon", cache("x 3c010a14\n"), 1, "line 2"),
        case("nine digits", cache("x: 03c010a14\n"), 1, "line 2"),
        case("no digits", cache("x: \n"), 1, "line 2"),
        case("a sign", cache("x: +3c010a1\n"), 1, "line 2"),
        case("a scale that is NaN", cache("x: 7fc00000\n"), 1, "line 2"),
        case("an infinite scale", cache("x: 7f800000\n"), 1, "line 2"),
        case("a negative scale", cache("x: bc010a14\n"), 1, "line 2"),
        case("a scale whose range is infinite", cache("x: 7f7fffff\nr: 3c010a14\n"), 1, ""),
        case("turned ends", r#"{"x": [2, -1], "r": [0, 1]}"#.into(), 1, "\"x\""),
        case("pairs and what follows them", r#"{"x": [-1, 2, [3, 4]], "r": [0, 1]}"#.into(), 0, ""),
        case("one number", r#"{"x": [1], "r": [0, 1]}"#.into(), 1, "\"x\""),
        case("texts", r#"{"x": ["-1", "2"], "r": [0, 1]}"#.into(), 1, "\"x\""),
        case("NaN", r#"{"x": [NaN, 2], "r": [0, 1]}"#.into(), 1, ""),
        case("numbers beyond f32", r#"{"x": [-1e300, 2], "r": [0, 1]}"#.into(), 1, "\"x\""),
        case("half of a document", r#"{"x": [-1, 2], "r": ["#.into(), 1, ""),
        case("two documents", r#"{"x": [-1, 2], "r": [0, 1]}{}"#.into(), 1, ""),
        case("nested 100000 deep", format!("{{\"x\": {deep}"), 1, ""),
        case("escapes", cache("\u{1b}[31mred\n"), 1, "line 2"),
    ];
    judge(cases, 20, "table", |content: &String| {
        let dir = Workdir::new();
        dir.write("model.onnx", graph());
        dir.write("table", content);
        let run = dir.run(["quantize", "model.onnx", "--ranges", "table", "--min-elements", "0", "-o", "out.onnx"]);
        (dir, run)
    });
}

/// A change of a file of statistics: of its metadata and of its tensors.
type StatsEdit = fn(&mut Value, &mut Vec<Tensor>);

fn tensor<'t>(tensors: &'t mut [Tensor], name: &str) -> &'t mut Tensor {
    tensors.iter_mut().find(|tensor| tensor.name == name).expect("the tensor is there")
}

#[test]
fn statistics() {
    if !alone("documents::statistics") {
        return;
    }
    let cases: Vec<Case<StatsEdit>> = vec![
        case("as they were", |_, _| {}, 0, ""),
        case("another format", |d, _| d["format"] = json!("statistics"), 1, "format"),
        case("another version", |d, _| d["version"] = json!(9), 1, "version"),
        case("a field more", |d, _| d["more"] = json!(0), 1, "more"),
        case("no model", |d, _| remove(d, "model"), 1, "model"),
        case("a model's hash that is none", |d, _| d["model"]["blake3"] = json!("00"), 1, "model"),
        case("another number of bits", |d, _| d["bin_mantissa_bits"] = json!(u32::MAX), 1, "bits"),
        case("a list", |d, _| *d = json!([]), 1, "metadata"),
        case("no samples", |_, t| t.retain(|tensor| tensor.name != "samples"), 1, "samples"),
        case("samples of another width", |_, t| *tensor(t, "samples") = Tensor::new("samples", "U8", &[1, 31], vec![0; 31]), 1, "samples"),
        case("a section that is missing", |_, t| t.retain(|tensor| tensor.name != "x.bins"), 1, "\"x\""),
        case("a section of another type", |_, t| *tensor(t, "x.extent") = Tensor::new("x.extent", "F64", &[2], vec![0; 16]), 1, "x.extent"),
        case(
            "a section of other dimensions",
            |_, t| *tensor(t, "x.extent") = Tensor::f32("x.extent", &[1, 2], &[-1.0, 1.0]),
            1,
            "x.extent",
        ),
        case("an unknown section", |_, t| t.push(Tensor::f32("x.mean", &[1], &[0.0])), 1, "x.mean"),
        case("a tensor of no value", |_, t| t.push(Tensor::f32("stray", &[1], &[0.0])), 1, "stray"),
        case("NaN", |_, t| tensor(t, "x.extent").bytes[..4].copy_from_slice(&f32::NAN.to_le_bytes()), 1, "x.extent"),
        case("turned ends", |_, t| tensor(t, "x.extent").bytes.rotate_left(4), 1, "x.extent"),
        case(
            "counts beyond 64 bits",
            |_, t| {
                let bins = tensor(t, "x.counts").shape[0];
                *tensor(t, "x.counts") = Tensor::new("x.counts", "U64", &[bins], vec![0xff; 8 * bins]);
            },
            1,
            "\"x.counts\"",
        ),
        case("totals beyond 64 bits", |_, t| tensor(t, "x.totals").bytes.fill(0xff), 1, "\"x."),
        case("bins that fall", |_, t| tensor(t, "x.bins").bytes.reverse(), 1, "x.bins"),
    ];
    judge(cases, 15, "a.stats", |edit: &StatsEdit| {
        let dir = Workdir::new();
        dir.write("model.onnx", graph());
        dir.write("samples.safetensors", file(&[Tensor::f32("x", &[1, 16], &(0..16).map(|i| i as f32 / 4.0 - 1.5).collect::<Vec<_>>())]));
        dir.ok("calibrate model.onnx --samples samples.safetensors -o good.stats");
        dir.write("a.stats", edited(&dir.read("good.stats"), edit));
        let run = dir.run(["merge", "a.stats", "-o", "out.stats"]);
        if run.status.code() == Some(0) {
            assert!(dir.read("out.stats") == dir.read("good.stats"), "{run}");
            return (dir, run);
        }
        let used = dir.run(["quantize", "model.onnx", "--stats", "a.stats", "-o", "out.onnx"]);
        assert!(used.status.code() == run.status.code() && used.stderr == run.stderr, "{run} {used}");
        (dir, run)
    });
}

/// The file with its parts changed and a seal that holds.
fn edited(bytes: &[u8], edit: &StatsEdit) -> Vec<u8> {
    const KEY: &[u8] = br#"\"blake3\":\""#;
    let header = crate::support::model::header(bytes);
    let mut document: Value = serde_json::from_str(header["__metadata__"]["qtool"].as_str().unwrap()).unwrap();
    let stored = crate::support::model::tensors(bytes);
    let order = crate::support::model::header_order(bytes);
    let mut tensors: Vec<Tensor> = order.iter().map(|name| stored[name].clone()).collect();
    edit(&mut document, &mut tensors);
    let metadata = format!("\"__metadata__\":{}", json!({"qtool": document.to_string()}));
    let mut bytes = crate::support::model::file_with_metadata(&tensors, &metadata);
    if let Some(place) = bytes.windows(KEY.len()).position(|window| window == KEY).map(|place| place + KEY.len()) {
        bytes[place..place + 64].fill(b'0');
        let seal = blake3::hash(&bytes).to_hex();
        bytes[place..place + 64].copy_from_slice(seal.as_bytes());
    }
    bytes
}

/// A change of a directory in the form of compressed-tensors: of its `config.json` and of its tensors.
type FormEdit = fn(&mut Value, &mut Vec<Tensor>);

fn group(config: &mut Value) -> &mut Value {
    &mut config["quantization_config"]["config_groups"]["group_0"]
}

#[test]
fn compressed_tensors() {
    if !alone("documents::compressed_tensors") {
        return;
    }
    let cases: Vec<Case<FormEdit>> = vec![
        case("as it was", |_, _| {}, 0, ""),
        case("without groups", |c, _| remove(&mut c["quantization_config"], "config_groups"), 0, ""),
        case("of another method", |c, _| c["quantization_config"]["quant_method"] = json!("gptq"), 4, ""),
        case("no longer quantized", |c, _| remove(c, "quantization_config"), 4, ""),
        case("a list", |c, _| *c = json!([]), 4, ""),
        case("no scales", |_, t| t.retain(|tensor| tensor.name != "a.weight_scale"), 1, "a.weight"),
        case("no codes", |_, t| t.retain(|tensor| tensor.name != "a.weight_packed"), 1, "a.weight"),
        case("no shape", |_, t| t.retain(|tensor| tensor.name != "a.weight_shape"), 1, "a.weight"),
        case("a negative shape", |_, t| tensor(t, "a.weight_shape").bytes.fill(0xff), 1, "a.weight"),
        case(
            "a shape beyond 64 bits",
            |_, t| {
                let shape = [1i64 << 33, 1 << 33].iter().flat_map(|dim| dim.to_le_bytes()).collect();
                *tensor(t, "a.weight_shape") = Tensor::new("a.weight_shape", "I64", &[2], shape);
            },
            1,
            "a.weight",
        ),
        case(
            "a shape of three",
            |_, t| *tensor(t, "a.weight_shape") = Tensor::new("a.weight_shape", "I64", &[3], vec![1; 24]),
            1,
            "a.weight",
        ),
        case("a shape of nothing", |_, t| tensor(t, "a.weight_shape").bytes.fill(0), 1, "a.weight"),
        case(
            "fewer words",
            |_, t| {
                let packed = tensor(t, "a.weight_packed");
                let rows = packed.shape[0];
                *packed = Tensor::new("a.weight_packed", "I32", &[rows, 1], vec![7; 4 * rows]);
            },
            1,
            "a.weight",
        ),
        case("codes that are floats", |_, t| tensor(t, "a.weight_packed").dtype = "F32".into(), 1, "a.weight"),
        case("scales that are integers", |_, t| tensor(t, "a.weight_scale").dtype = "I32".into(), 1, "a.weight"),
        case("a scale that is NaN", |_, t| tensor(t, "a.weight_scale").bytes[..4].copy_from_slice(&f32::NAN.to_le_bytes()), 1, "a.weight"),
        case("a scale of 0", |_, t| tensor(t, "a.weight_scale").bytes[..4].fill(0), 1, "a.weight"),
        case(
            "scales of fewer channels",
            |_, t| {
                *tensor(t, "a.weight_scale") = Tensor::f32("a.weight_scale", &[1, 1], &[0.5]);
            },
            1,
            "a.weight",
        ),
        case("an index of groups", |_, t| t.push(Tensor::new("a.weight_g_idx", "I32", &[32], vec![0; 128])), 1, "a.weight"),
        case("codes of a layer twice", |_, t| t.push(Tensor::new("a.weight", "I8", &[16, 32], vec![0; 512])), 1, "a.weight"),
        case("another activation in the groups", |c, _| group(c)["input_activations"] = json!({"num_bits": 99}), 0, ""),
    ];
    judge(cases, 15, "q", |edit: &FormEdit| {
        let dir = Workdir::new();
        dir.write("m/config.json", r#"{"model_type": "llama"}"#);
        dir.write("m/model.safetensors", checkpoint());
        dir.ok("quantize m --scheme w4a16 --granularity per-group:8 --min-elements 0 -o q");
        // Without the sidecar it is as others write it.
        std::fs::remove_file(dir.path("q/qtool.json")).unwrap();
        let mut config = dir.json("q/config.json");
        let bytes = dir.read("q/model.safetensors");
        let stored = crate::support::model::tensors(&bytes);
        let mut tensors: Vec<Tensor> = crate::support::model::header_order(&bytes).iter().map(|name| stored[name].clone()).collect();
        edit(&mut config, &mut tensors);
        dir.write("q/config.json", config.to_string());
        dir.write("q/model.safetensors", file(&tensors));
        let run = dir.run(["dequantize", "q", "-o", "out"]);
        (dir, run)
    });
}
