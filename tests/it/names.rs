//! Names that strangers chose: of tensors, nodes, values, files and whatever else a file can say, through every reader, every command and
//! every printed form. Text does nothing to a terminal and its lines end; JSON and TOML read back as the same names; pages are well formed.

use crate::limits::stored;
use crate::report::expect_well_formed;
use crate::support::model::{Tensor, file, file_with_metadata, tensors};
use crate::support::onnx::{Constant, Graph, Node, UINT8, bytes, number};
use crate::support::{QTOOL, Random, Run, Workdir, finish};
use qtool::error::escape;
use quick_xml::events::Event;
use serde_json::{Value, json};
use std::collections::BTreeSet;

/// Drives terminals in all ways there are, begins other lines, hides and turns text, and ends strings and elements of other formats.
const EVIL: &str = "\u{1b}[31mred\u{1b}]0;title\u{7}\u{9b}2J\u{8}\r\nqtool: error: forged\u{85}\u{2028}\u{202e}turned\u{2066}\u{200b}\
    \u{ad}\u{feff}\u{3164}\u{fe0f}\u{e0041}\t\u{7f}<b a='1'>&amp;]]>\"\\u202E\\'''\"\"\" é模";

/// Characters that must not be in what is printed.
fn is_unseen(c: char) -> bool {
    c.is_control() && c != '\n' || "\u{85}\u{2028}\u{202e}\u{2066}\u{200b}\u{ad}\u{feff}\u{3164}\u{fe0f}\u{e0041}".contains(c)
}

/// Longest line of text for people, in bytes, and of a cell of a table.
const LONGEST_LINE: usize = 8000;

fn long() -> String {
    EVIL.repeat(65536 / EVIL.len() + 1)
}

/// Names of tensors and values.
fn hostile() -> Vec<String> {
    let plain = ["../../etc/passwd", "/etc/passwd", "C:\\x", "re:(.*)", "name:x", "*", "{a,[b", "~/$(reboot)`x`", "'", "--help", " ", "é"];
    let nul = format!("a\0{EVIL}");
    plain.map(String::from).into_iter().chain([EVIL.into(), nul, long()]).collect()
}

/// Every text of a document, keys too.
fn texts(value: &Value) -> BTreeSet<String> {
    match value {
        Value::String(text) => [text.clone()].into(),
        Value::Array(values) => values.iter().flat_map(texts).collect(),
        Value::Object(members) => members.iter().flat_map(|(key, value)| texts(value).into_iter().chain([key.clone()])).collect(),
        _ => BTreeSet::new(),
    }
}

/// What is wrong with what a run printed.
fn complaints(run: &Run, is_document: bool) -> Vec<String> {
    let mut found = Vec::new();
    for (stream, text) in [("stdout", &run.stdout), ("stderr", &run.stderr)] {
        found.extend(text.chars().find(|c| is_unseen(*c)).map(|c| format!("{stream} has {c:?}")));
        let longest = text.lines().map(str::len).max().unwrap_or_default();
        if longest > LONGEST_LINE && !(is_document && stream == "stdout") {
            found.push(format!("{stream} has a line of {longest} bytes"));
        }
        if text.lines().any(|line| line.starts_with("qtool: error: forged")) {
            found.push(format!("{stream} has a forged line"));
        }
    }
    // What is wrong with the command line itself takes several lines.
    let errors = run.stderr.lines().filter(|line| line.starts_with("qtool: error: ") || line.starts_with("error: ")).count();
    if run.status.code().is_none_or(|code| (errors != 1) == (code != 0)) {
        found.push(format!("{errors} lines of error"));
    }
    found
}

/// Runs of one directory, and what is wrong with them.
struct Judge {
    dir: Workdir,
    runs: usize,
    wrong: Vec<String>,
}

impl Judge {
    fn new(dir: Workdir) -> Self {
        Judge { dir, runs: 0, wrong: Vec::new() }
    }

    fn complain(&mut self, run: &Run, what: impl std::fmt::Display) {
        self.wrong.push(format!("{what}: {}", run.to_string().escape_debug().to_string().replace("\\n", "\n")));
    }

    /// Runs a command, twice if it prints JSON too, whose texts have all of `names`.
    fn run(&mut self, arguments: &str, code: i32, names: &[String]) {
        let words: Vec<&str> = arguments.split(' ').collect();
        self.run_words(&words, code);
        let has_json = !["dequantize", "recipe"].contains(&words[0]) || words[1] == "check";
        if has_json {
            let out = words.iter().position(|word| *word == "-o").map(|place| place + 1);
            let json: Vec<String> =
                words.iter().enumerate().map(|(i, word)| if Some(i) == out { format!("j-{word}") } else { (*word).into() }).collect();
            let json: Vec<&str> = json.iter().map(String::as_str).chain(["--json"]).collect();
            let run = self.run_words(&json, code);
            match serde_json::from_str::<Value>(&run.stdout) {
                Err(error) => self.complain(&run, error),
                Ok(document) => {
                    let texts = texts(&document);
                    let missing: Vec<&String> = names.iter().filter(|name| !texts.iter().any(|text| text.ends_with(*name))).collect();
                    if !missing.is_empty() {
                        self.complain(&run, format!("JSON lacks {} names, {:.100?}", missing.len(), missing[0]));
                    }
                }
            }
        }
    }

    fn run_words(&mut self, words: &[&str], code: i32) -> Run {
        let run = self.dir.run(words);
        self.runs += 1;
        if run.status.code() != Some(code) {
            self.complain(&run, format!("expected exit code {code}"));
        }
        let is_document = words.contains(&"--json") || words.starts_with(&["recipe", "show"]);
        complaints(&run, is_document).into_iter().for_each(|what| self.complain(&run, what));
        run
    }

    /// A page holds every name as text.
    fn page(&self, name: &str, names: &[String]) {
        let html = String::from_utf8(self.dir.read(name)).unwrap();
        expect_well_formed(&html);
        assert!(!html.chars().any(is_unseen), "{name}");
        let entities = [("&", "&amp;"), ("<", "&lt;"), (">", "&gt;"), ("\"", "&quot;"), ("'", "&#x27;"), ("/", "&#x2f;")];
        for text in names.iter().filter(|name| name.len() < 160) {
            let shown = entities.iter().fold(escape(text), |text, (c, entity)| text.replace(c, entity));
            assert!(html.contains(&shown), "{name} lacks {shown}");
        }
    }

    /// Attributes of a JUnit file hold every name.
    fn junit(&self, name: &str, names: &[String]) {
        let text = String::from_utf8(self.dir.read(name)).unwrap();
        assert!(!text.chars().any(is_unseen), "{name}");
        let (mut reader, mut found) = (quick_xml::Reader::from_str(&text), BTreeSet::new());
        loop {
            match reader.read_event().unwrap() {
                Event::Eof => break,
                Event::Start(element) | Event::Empty(element) => {
                    for attribute in element.attributes() {
                        let attribute = attribute.unwrap();
                        found.insert(attribute.normalized_value(quick_xml::XmlVersion::Implicit1_0).unwrap().into_owned());
                    }
                }
                _ => {}
            }
        }
        for text in names {
            let shown = escape(text);
            assert!(found.iter().any(|value| value.starts_with(&shown)), "{name} lacks {shown:.100}");
        }
    }

    #[track_caller]
    fn done(self, at_least: usize) {
        assert!(self.wrong.is_empty(), "{} complaints\n{}", self.wrong.len(), self.wrong.join("\n\n"));
        assert!(self.runs >= at_least, "{} runs", self.runs);
    }
}

/// A recipe in TOML or JSON as a document.
fn recipe(text: &str) -> Value {
    if text.starts_with('{') { serde_json::from_str(text) } else { Ok(toml::from_str(text).unwrap()) }.unwrap()
}

#[test]
fn of_tensors_through_every_command() {
    let layers = hostile();
    let names: Vec<String> = layers.iter().map(|name| format!("{name}.weight")).collect();
    let mut random = Random(11);
    let mut all: Vec<Tensor> = names.iter().map(|name| Tensor::weights(name, &[8, 64], &mut random)).collect();
    all.extend(names.iter().map(|name| Tensor::f32(&format!("bias {name}"), &[2], &[0.5; 2])));
    let metadata: Value = names.iter().map(|name| (name.clone(), json!(name))).collect::<serde_json::Map<_, _>>().into();
    let mut judge = Judge::new(Workdir::new());
    judge.dir.write("m.safetensors", file_with_metadata(&all, &format!("\"__metadata__\":{metadata}")));
    let inputs: Vec<Tensor> = layers.iter().map(|name| Tensor::weights(name, &[4, 64], &mut random)).collect();
    judge.dir.write("s.safetensors", file(&inputs));

    judge.run("inspect m.safetensors", 0, &names);
    judge.run("inspect m.safetensors --report inspect.html --force", 0, &names);
    let quantize = "quantize m.safetensors --min-elements 0";
    judge.run(&format!("{quantize} --dry-run"), 0, &names);
    judge.run(&format!("{quantize} --verbose --force --min-sqnr 1 --report q.html --junit q.xml -o q.safetensors"), 0, &names);
    judge.run(&format!("{quantize} --granularity per-group:16 --asymmetric --verbose -o g.safetensors"), 0, &names);
    judge.run(&format!("{quantize} --min-sqnr 1000 --junit f.xml -o f.safetensors"), 3, &names);
    for quantized in ["q.safetensors", "g.safetensors"] {
        judge.run(&format!("verify {quantized} --junit v.xml"), 0, &[]);
        judge.run(&format!("inspect {quantized}"), 0, &names);
        judge.run(&format!("compare m.safetensors {quantized} --min-sqnr 1000 --junit c.xml --report c.html --force"), 3, &names);
        judge.run(&format!("dequantize {quantized}"), 0, &[]);
        judge.run(&format!("recipe show {}", quantized.replace("safetensors", "json")), 0, &[]);
        judge.run(&format!("recipe check {} m.safetensors", quantized.replace("safetensors", "json")), 0, &[]);
    }
    judge.run("calibrate m.safetensors --samples s.safetensors -o s.stats", 0, &[]);
    judge.run("merge s.stats -o t.stats", 0, &[]);
    judge.run("inspect t.stats", 0, &[]);
    judge.run(&format!("{quantize} --stats t.stats --rounding gptq --verbose -o u.safetensors"), 0, &names);
    judge.run(&format!("{quantize} --samples s.safetensors --rounding adaround --weights int4 -o a.safetensors"), 0, &names);
    for page in ["inspect.html", "q.html", "c.html"] {
        judge.page(page, &names);
    }
    for suite in ["q.xml", "f.xml", "c.xml"] {
        judge.junit(suite, &names);
    }
    let back = tensors(&judge.dir.read("q.float.safetensors"));
    assert!(all.iter().all(|tensor| back[&tensor.name].shape == tensor.shape) && back.len() == all.len());
    judge.done(40);
}

/// Names as patterns of a recipe, and as reasons, by options and by files: what is emitted and shown means the same names.
#[test]
fn of_recipes_in_every_form() {
    let names = hostile();
    let mut random = Random(12);
    let all: Vec<Tensor> = names.iter().map(|name| Tensor::weights(name, &[8, 64], &mut random)).collect();
    let mut judge = Judge::new(Workdir::new());
    judge.dir.write("m.safetensors", file(&all));
    let patterns: Vec<String> = names.iter().map(|name| format!("name:{name}")).collect();
    let rule = |pattern: &String| json!({"match": pattern, "op": pattern, "weights": "keep", "reason": pattern});
    let mut rules: Vec<Value> = patterns.iter().map(rule).collect();
    rules.extend(patterns.iter().map(|pattern| json!({"match": pattern, "weights": "keep", "reason": pattern})));
    let values: serde_json::Map<String, Value> = names.iter().map(|name| (name.clone(), json!("mse"))).collect();
    let document = json!({
        "exclude": patterns, "op_types": patterns, "rule": rules, "activations": {"observers": values},
        "observer": [{"name": "mine", "command": [EVIL]}],
    });
    judge.dir.write("r.json", document.to_string());
    // The reader takes the text as it is, whatever stands in it raw.
    judge.dir.write("raw.toml", format!("exclude = ['name:{0}', \"name:{0}\"]\n", "\u{202e}\u{9b}\u{200b}"));
    for (path, expected) in [("r.json", &document), ("raw.toml", &json!({"exclude": vec!["name:\u{202e}\u{9b}\u{200b}"; 2]}))] {
        for option in [&[][..], &["--json"]] {
            let words: Vec<&str> = ["recipe", "show", path].into_iter().chain(option.iter().copied()).collect();
            let run = judge.run_words(&words, 0);
            let shown = recipe(&run.stdout);
            for (key, value) in expected.as_object().unwrap().iter().filter(|(key, _)| *key != "activations") {
                if shown[key] != *value {
                    judge.complain(&run, format!("{key} differs"));
                }
            }
            if path == "r.json" && shown["activations"]["observers"] != document["activations"]["observers"] {
                judge.complain(&run, "activations.observers differs");
            }
        }
    }
    judge.run("recipe check r.json", 0, &[]);
    judge.run_words(&["recipe", "check", "r.json", "m.safetensors"], 2);
    judge.dir.write("k.json", json!({"exclude": patterns[1..], "rule": &rules[names.len()..=names.len()]}).to_string());
    judge.run("recipe check k.json m.safetensors", 0, &[]);
    judge.run("quantize m.safetensors --recipe k.json --min-elements 0 --dry-run", 0, &names);
    for emitted in ["e.toml", "e.json"] {
        judge.run_words(&["quantize", "m.safetensors", "--recipe", "k.json", "--emit-recipe", emitted, "--report", "q.html", "--force"], 0);
        let text = String::from_utf8(judge.dir.read(emitted)).unwrap();
        assert!(!text.chars().any(is_unseen), "{emitted}");
        assert_eq!(recipe(&text)["exclude"], json!(patterns[1..]), "{emitted}");
        assert_eq!(recipe(&text)["rule"][0]["reason"], json!(patterns[0]), "{emitted}");
    }
    // The page has the recipe in TOML's own escapes.
    judge.page("q.html", &names[..12]);
    for name in names.iter().filter(|name| !name.contains('\0')) {
        judge.run_words(&["quantize", "m.safetensors", "--force", "--dry-run", "--exclude", &format!("name:{name}")], 0);
        judge.run_words(&["quantize", "m.safetensors", "--dry-run", "--include", &format!("no {name}")], 2);
        judge.run_words(&["inspect", "m.safetensors", "--limit", name], 2);
        judge.run_words(&["recipe", "show", &format!("no {name}")], 4);
        judge.run_words(&["--", name], 2);
    }
    judge.done(60);
}

/// A chain of products whose weights, values and nodes have all `names`, from `x EVIL` to `y EVIL`.
fn chain(names: &[String]) -> Graph {
    let mut random = Random(13);
    let (input, output) = (format!("x{EVIL}"), format!("y{EVIL}"));
    let (mut nodes, mut constants, mut last) = (Vec::new(), Vec::new(), input.clone());
    for name in names {
        let weight = Tensor::weights(name, &[16, 16], &mut random);
        constants.push(Constant { bytes: weight.bytes, ..Constant::floats(name, &[16, 16], &[]) });
        let product = Node { name: format!("n{name}"), ..Node::new("MatMul", &[&last, name], &format!("m{name}"), &[]) };
        let relu = Node { name: format!("r{name}"), ..Node::new("Sigmoid", &[&product.output], &format!("a{name}"), &[]) };
        last = relu.output.clone();
        nodes.extend([product, relu]);
    }
    nodes.push(Node { name: format!("last {EVIL}"), ..Node::new("Softmax", &[&last], &output, &[]) });
    Graph { nodes, constants, inputs: vec![(input, vec![1, 16])], outputs: vec![(output, vec![1, 16])] }
}

#[test]
fn of_graphs_through_every_command() {
    let names = hostile();
    let mut judge = Judge::new(Workdir::new());
    judge.dir.write("m.onnx", chain(&names).model(17));
    let input = |i: usize| Tensor::weights(&format!("{i}.x{EVIL}"), &[1, 16], &mut Random(i as u64));
    judge.dir.write("s.safetensors", file(&(0..3).map(input).collect::<Vec<_>>()));
    judge.run("inspect m.onnx", 0, &names);
    judge.run("lint m.onnx", 0, &names);
    judge.run("lint m.onnx --verbose --target tensorrt", 0, &names);
    judge.run("analyze m.onnx --samples s.safetensors", 0, &names);
    judge.run("calibrate m.onnx --samples s.safetensors -o s.stats", 0, &[]);
    judge.run("merge s.stats -o t.stats", 0, &[]);
    let quantize = "quantize m.onnx --min-elements 0 --verbose --force";
    let forms = [
        ("d.onnx", ""),
        ("w.onnx", "--mode weight-only --weights int4 --granularity per-group:16"),
        ("q.onnx", "--samples s.safetensors --emit-recipe r.toml --report q.html --junit q.xml --min-sqnr *=-50"),
        ("o.onnx", "--stats t.stats --format qoperator --target ort-cpu-avx2"),
        ("f.onnx", "--fake-quant"),
    ];
    for (name, options) in forms {
        judge.run(format!("{quantize} {options} -o {name}").replace("  ", " ").trim(), 0, &names);
        let sidecar = name.replace("onnx", "json");
        judge.run(&format!("verify {name}"), 0, &[]);
        judge.run(&format!("lint {name} --verbose"), 0, &[]);
        judge.run(&format!("inspect {name}"), 0, &[]);
        judge.run(&format!("recipe show {sidecar}"), 0, &[]);
        judge.run(
            &format!("compare m.onnx {name} --samples s.safetensors --layers --min-sqnr *=1000 --junit c.xml --report c.html --force"),
            3,
            &[format!("y{EVIL}")],
        );
        judge.run(&format!("dequantize {name}"), if name == "f.onnx" { 1 } else { 0 }, &[]);
    }
    judge.page("q.html", &names);
    judge.page("c.html", &[format!("y{EVIL}")]);
    judge.junit("q.xml", &names);
    judge.junit("c.xml", &[format!("y{EVIL}")]);
    let ranges = judge.dir.json("q.json")["activations"].as_object().unwrap().clone();
    let ranges: serde_json::Map<_, _> = ranges.into_iter().map(|(name, record)| (name, json!([record["min"], record["max"]]))).collect();
    judge.dir.write("ranges.json", json!(ranges).to_string());
    judge.run(&format!("{quantize} --ranges ranges.json -o r.onnx"), 0, &names);
    judge.run(&format!("{quantize} --recipe r.toml --samples s.safetensors -o e.onnx"), 0, &names);
    judge.run(&format!("{quantize} --samples s.safetensors --min-sqnr 1000 -o n.onnx"), 3, &[format!("y{EVIL}")]);
    judge.done(78);
}

/// Files of models in directories.
#[test]
fn of_files_in_directories() {
    let shards = [format!("{}.safetensors", EVIL.replace(['/', '\\', '\0'], "")), "-o".into(), "*".into(), "~".into()];
    let companions: Vec<String> = shards.iter().map(|name| format!("c{name}")).collect();
    let mut judge = Judge::new(Workdir::new());
    let mut random = Random(14);
    let mut map = serde_json::Map::new();
    for name in &shards {
        judge.dir.write(format!("m/{name}"), file(&[Tensor::weights(&format!("w{name}"), &[8, 64], &mut random)]));
        judge.dir.write(format!("m/c{name}"), "text");
        judge.dir.write(format!("m/.hidden{name}"), "text");
        map.insert(format!("w{name}"), json!(name));
    }
    judge.dir.write("m/model.safetensors.index.json", json!({"weight_map": map}).to_string());
    judge.run("inspect m", 0, &[]);
    judge.run("quantize m --min-elements 0 --verbose --report q.html --force -o q", 0, &[format!(".hidden{}", shards[0])]);
    judge.run("verify q --junit v.xml", 0, &[&shards[..], &companions].concat());
    judge.junit("v.xml", &[&shards[..], &companions].concat());
    judge.run("compare m q --min-sqnr 1000", 3, &[]);
    judge.run("dequantize q -o back", 0, &[]);
    judge.dir.write(format!("q/{}", shards[0]), "broken");
    judge.dir.write(format!("q/{}", companions[0]), "broken");
    judge.run("verify q --junit v.xml", 3, &[]);
    judge.run("dequantize q -o again", 1, &[]);
    // A file that a shell's pattern may bring.
    for name in [EVIL.replace(['/', '\0'], ""), format!("--{}", EVIL.replace(['/', '\0'], "")), long()] {
        judge.run_words(&["inspect", &name], if name.starts_with('-') { 2 } else { 4 });
        judge.run_words(&["quantize", "m", "-o", "q2", &name], 2);
    }
    judge.done(18);
}

/// A file with `name` where a reader looks, and the run that is refused or at least says the name.
struct Place {
    what: &'static str,
    write: fn(&Workdir, &str),
    command: &'static str,
}

/// A safetensors file whose header is this text.
fn header(text: &str) -> Vec<u8> {
    [&(text.len() as u64).to_le_bytes()[..], text.as_bytes()].concat()
}

/// A small graph, to be changed.
fn graph() -> Graph {
    let mut graph = chain(&["w".into()]);
    graph.nodes.insert(0, Node::new("Identity", &["x"], &graph.inputs[0].0, &[]));
    graph.inputs = vec![("x".into(), vec![1, 16])];
    graph
}

fn write_graph(dir: &Workdir, change: impl FnOnce(&mut Graph)) {
    let mut graph = graph();
    change(&mut graph);
    dir.write("m.onnx", graph.model(17));
}

fn npy(header: &str) -> Vec<u8> {
    [b"\x93NUMPY\x01\x00", &(header.len() as u16).to_le_bytes()[..], header.as_bytes(), &[0; 64]].concat()
}

/// The output of a small checkpoint, with its sidecar changed.
fn write_quantized(dir: &Workdir, change: impl FnOnce(&mut Value)) {
    dir.write("m.safetensors", file(&[Tensor::weights("w", &[8, 64], &mut Random(5))]));
    dir.ok("quantize m.safetensors --min-elements 0 -o q.safetensors --force");
    let mut sidecar = dir.json("q.json");
    change(&mut sidecar);
    dir.write("q.json", sidecar.to_string());
}

fn write_form(dir: &Workdir, change: impl FnOnce(&mut Value)) {
    dir.write("m/model.safetensors", file(&[Tensor::weights("w.weight", &[8, 64], &mut Random(5))]));
    dir.write("m/config.json", "{}");
    dir.ok("quantize m --scheme w8a16 --min-elements 0 -o q --force");
    std::fs::remove_file(dir.path("q/qtool.json")).unwrap();
    let mut config = dir.json("q/config.json");
    change(&mut config);
    dir.write("q/config.json", config.to_string());
}

fn places() -> Vec<Place> {
    let place = |what, command, write| Place { what, write, command };
    vec![
        place("type of a tensor", "inspect m.safetensors", |dir, name| {
            dir.write("m.safetensors", header(&json!({"w": {"dtype": name, "shape": [], "data_offsets": [0, 0]}}).to_string()));
        }),
        place("tensor with a bad entry", "quantize m.safetensors", |dir, name| {
            dir.write("m.safetensors", header(&json!({ name: {name: 1} }).to_string()));
        }),
        place("tensor twice", "inspect m.safetensors", |dir, name| {
            dir.write("m.safetensors", header(&format!("{{{0}:1,{0}:1}}", json!(name))));
        }),
        place("metadata", "inspect m.safetensors", |dir, name| {
            dir.write("m.safetensors", header(&json!({"__metadata__": {name: 1}}).to_string()));
        }),
        place("tensor that is NaN", "quantize m.safetensors", |dir, name| {
            dir.write("m.safetensors", file(&[Tensor::f32(name, &[32, 32], &[f32::NAN; 1024])]));
        }),
        place("taken name", "quantize m.safetensors", |dir, name| {
            let tensor = |name: &str| Tensor::f32(name, &[32, 32], &[0.5; 1024]);
            dir.write("m.safetensors", file(&[tensor(name), tensor(&format!("{name}.scale"))]));
        }),
        place("shard", "inspect m", |dir, name| {
            dir.write("m/model.safetensors.index.json", json!({"weight_map": {"w": format!("../{name}")}}).to_string());
        }),
        place("shard that is missing", "inspect m", |dir, name| {
            dir.write("m/model.safetensors.index.json", json!({"weight_map": {"w": name}}).to_string());
        }),
        place("tensor of an index", "inspect m", |dir, name| {
            dir.write("m/model.safetensors.index.json", json!({"weight_map": {name: "s"}}).to_string());
            dir.write("m/s", file(&[Tensor::f32("w", &[1], &[1.0])]));
        }),
        place("tensor of a shard", "inspect m", |dir, name| {
            dir.write("m/model.safetensors.index.json", json!({"weight_map": {"w": "s"}}).to_string());
            dir.write("m/s", file(&[Tensor::f32(name, &[1], &[1.0])]));
        }),
        place("shard that is no name", "inspect m", |dir, name| {
            dir.write("m/model.safetensors.index.json", json!({"weight_map": {"w": [name], name: 1}}).to_string());
        }),
        place("operator", "inspect m.onnx", |dir, name| {
            write_graph(dir, |graph| graph.nodes[1].op = name.to_owned().leak());
        }),
        place("operator of another domain", "lint m.onnx --verbose", |dir, name| {
            write_graph(dir, |graph| (graph.nodes[2].op, graph.nodes[2].domain) = (name.to_owned().leak(), name.to_owned()));
        }),
        place("operator that the engine lacks", "calibrate m.onnx --samples s.safetensors -o c.stats", |dir, name| {
            write_graph(dir, |graph| (graph.nodes[2].op, graph.nodes[2].domain) = (name.to_owned().leak(), name.to_owned()));
            dir.write("s.safetensors", file(&[Tensor::f32("x", &[1, 16], &[0.5; 16])]));
        }),
        place("weight of another operator", "quantize m.onnx --min-elements 0 --dry-run", |dir, name| {
            write_graph(dir, |graph| (graph.nodes[1].op, graph.nodes[1].domain) = (name.to_owned().leak(), name.to_owned()));
        }),
        place("input that nothing makes", "inspect m.onnx", |dir, name| {
            write_graph(dir, |graph| graph.nodes[1].inputs[0] = name.to_owned());
        }),
        place("value that two make", "inspect m.onnx", |dir, name| {
            write_graph(dir, |graph| graph.nodes.iter_mut().for_each(|node| node.output = name.to_owned()));
        }),
        place("node", "quantize m.onnx", |dir, name| {
            write_graph(dir, |graph| (graph.nodes[1].name, graph.nodes[1].inputs) = (name.to_owned(), vec![]));
        }),
        place("value of a type of its own", "quantize m.onnx", |dir, name| {
            write_graph(dir, |graph| (graph.constants[0].name, graph.constants[0].kind) = (name.to_owned(), 99));
        }),
        place("external data", "inspect m.onnx", |dir, name| {
            write_graph(dir, |graph| graph.constants[0].location = Some(format!("../{name}")));
        }),
        place("external data that is missing", "quantize m.onnx", |dir, name| {
            write_graph(dir, |graph| graph.constants[0].location = Some(name.replace(['/', '\\', '\0'], "")));
        }),
        place("member of an archive", "calibrate m.onnx --samples s.npz -o c.stats", |dir, name| {
            write_graph(dir, |_| {});
            let name: String = name.chars().take(8000).collect();
            dir.write("s.npz", stored(&[(&format!("{name}.npy"), &npy("{'descr': '<f4', 'fortran_order': False, 'shape': (1, 16), }\n"))]));
        }),
        place("array of an archive", "calibrate m.onnx --samples s.npz -o c.stats", |dir, name| {
            write_graph(dir, |_| {});
            dir.write("s.npz", stored(&[("x.npy", &npy(&format!("{{'descr': '{:.9000}'", name)))]));
        }),
        place("header of an array", "calibrate m.onnx --samples s.npy -o c.stats", |dir, name| {
            write_graph(dir, |_| {});
            dir.write("s.npy", npy(&format!("{{'descr': {:.9000}, 'fortran_order': False, 'shape': (1, 16), }}\n", json!(name))));
        }),
        place("protocol buffer", "calibrate m.onnx --samples s -o c.stats", |dir, name| {
            write_graph(dir, |_| {});
            let values = [0u8; 64];
            let tensor = [number(1, 1), number(1, 16), number(2, 1), bytes(8, name.as_bytes()), bytes(9, &values)].concat();
            dir.write("s/test_data_set_0/input_0.pb", tensor);
        }),
        place("recorded input", "calibrate m.onnx --samples s.safetensors -o c.stats", |dir, name| {
            write_graph(dir, |_| {});
            dir.write("s.safetensors", file(&[Tensor::f32(name, &[1, 16], &[0.5; 16])]));
        }),
        place("recorded input of no layer", "quantize m.safetensors --samples s.safetensors --rounding gptq", |dir, name| {
            dir.write("m.safetensors", file(&[Tensor::weights("w", &[8, 64], &mut Random(5))]));
            dir.write("s.safetensors", file(&[Tensor::f32(name, &[1, 64], &[0.5; 64])]));
        }),
        place("file of samples", "calibrate m.onnx --samples s -o c.stats", |dir, name| {
            write_graph(dir, |_| {});
            let name: String = name.replace(['/', '\0'], "").chars().take(100).collect();
            dir.write(format!("s/{name}.npy"), "no array");
            dir.write(format!("s/{name}"), "no sample");
        }),
        place("statistics", "merge s.stats -o t.stats", |dir, name| {
            dir.write(
                "s.stats",
                file_with_metadata(&[Tensor::f32(name, &[1], &[0.5])], &format!("\"__metadata__\":{}", json!({"qtool": name}))),
            );
        }),
        place("statistics of another format", "quantize m.safetensors --stats s.stats", |dir, name| {
            dir.write("m.safetensors", file(&[Tensor::weights("w", &[8, 64], &mut Random(5))]));
            let document = json!({"format": name, name: name}).to_string();
            dir.write("s.stats", file_with_metadata(&[], &format!("\"__metadata__\":{}", json!({"qtool": document}))));
        }),
        place("table of ranges", "quantize m.onnx --ranges r.json", |dir, name| {
            write_graph(dir, |_| {});
            dir.write("r.json", json!({name: [0, 1], format!("{name}x"): [name]}).to_string());
        }),
        place("table of other values", "quantize m.onnx --ranges r.json", |dir, name| {
            write_graph(dir, |_| {});
            dir.write("r.json", json!({ name: [0, 1] }).to_string());
        }),
        place("cache of ranges", "quantize m.onnx --ranges r.cache", |dir, name| {
            write_graph(dir, |_| {});
            dir.write("r.cache", format!("TRT-8501-EntropyCalibration2\n{name}: 3c010a14\n"));
        }),
        place("field of a recipe", "recipe show r.json", |dir, name| dir.write("r.json", json!({ name: 1 }).to_string())),
        place("field of a recipe in TOML", "recipe check r.toml", |dir, name| {
            dir.write("r.toml", format!("{} = 1", json!(name.replace('\u{7f}', ""))));
        }),
        place("text that is no recipe", "recipe check r.toml", |dir, name| dir.write("r.toml", name)),
        place("codes of a recipe", "recipe check r.json", |dir, name| {
            dir.write("r.json", json!({"default": {"weights": name}}).to_string())
        }),
        place("observer of a recipe", "recipe check r.json", |dir, name| {
            dir.write("r.json", json!({"default": {"observer": name}}).to_string())
        }),
        place("number of an observer", "recipe check r.json", |dir, name| {
            dir.write("r.json", json!({"default": {"observer": format!("mse:{name}")}}).to_string());
        }),
        place("name of an observer", "recipe check r.json", |dir, name| {
            dir.write("r.json", json!({"observer": [{"name": name, "command": ["true"]}]}).to_string());
        }),
        place("command of a recipe", "quantize m.safetensors --recipe r.json --min-elements 0", |dir, name| {
            dir.write("m.safetensors", file(&[Tensor::weights("w", &[8, 64], &mut Random(5))]));
            let word = name.replace('\0', "");
            dir.write("r.json", json!({"observer": [{"name": "mine", "command": [word]}], "default": {"observer": "mine"}}).to_string());
        }),
        place("expression", "recipe show r.json", |dir, name| dir.write("r.json", json!({"exclude": [format!("re:({name}")]}).to_string())),
        place("both included and excluded", "recipe show r.json", |dir, name| {
            dir.write("r.json", json!({"exclude": [format!("name:{name}")], "include": [format!("name:{name}")]}).to_string());
        }),
        place("layer of a recipe", "recipe show r.json", |dir, name| {
            dir.write("r.json", json!({"layer": [{"match": format!("name:{name}"), "op": name, "input": 1}]}).to_string());
        }),
        place("layer that is not there", "recipe check r.json m.safetensors", |dir, name| {
            dir.write("m.safetensors", file(&[Tensor::weights("w", &[8, 64], &mut Random(5))]));
            dir.write("r.json", json!({"layer": [{"match": format!("name:{name}"), "axis": 1}]}).to_string());
        }),
        place("fake quantizer", "quantize m.safetensors --recipe r.json", |dir, name| {
            dir.write("m.safetensors", file(&[Tensor::weights("w", &[8, 64], &mut Random(5))]));
            dir.write("r.json", json!({"fake_quantizer": [{"name": name, "weight": name}]}).to_string());
        }),
        place("transform", "quantize m.safetensors --recipe r.json", |dir, name| {
            dir.write("m.safetensors", file(&[Tensor::weights("w", &[8, 64], &mut Random(5))]));
            dir.write("r.json", json!({"transforms": [name]}).to_string());
        }),
        place("file of a sidecar", "verify q.safetensors", |dir, name| {
            write_quantized(dir, |sidecar| sidecar["output"]["files"][0]["name"] = json!(name));
        }),
        place("file of a sidecar elsewhere", "verify q.json", |dir, name| {
            write_quantized(dir, |sidecar| sidecar["output"]["files"][0]["name"] = json!(format!("../{name}")));
        }),
        place("hash of a sidecar", "verify q.json", |dir, name| {
            write_quantized(dir, |sidecar| sidecar["output"]["files"][0]["blake3"] = json!(name));
        }),
        place("tensor of a sidecar", "dequantize q.safetensors", |dir, name| {
            write_quantized(dir, |sidecar| sidecar["tensors"] = json!({ name: sidecar["tensors"]["w"] }));
        }),
        place("scale of a sidecar", "dequantize q.safetensors", |dir, name| {
            write_quantized(dir, |sidecar| sidecar["tensors"]["w"]["scale"] = json!({ "tensor": name }));
        }),
        place("codes of a sidecar", "compare m.safetensors q.safetensors", |dir, name| {
            write_quantized(dir, |sidecar| sidecar["tensors"]["w"]["dtype"] = json!(name));
        }),
        place("form of a sidecar", "dequantize q.safetensors", |dir, name| {
            write_quantized(dir, |sidecar| sidecar["output"]["form"] = json!(name));
        }),
        place("format of a sidecar", "verify q.json", |dir, name| write_quantized(dir, |sidecar| sidecar["format"] = json!(name))),
        place("field of a sidecar", "dequantize q.json", |dir, name| write_quantized(dir, |sidecar| sidecar[name] = json!(name))),
        place("method of a configuration", "dequantize q -o back", |dir, name| {
            write_form(dir, |config| config["quantization_config"]["quant_method"] = json!(name));
        }),
        place("format of a configuration", "dequantize q -o back", |dir, name| {
            write_form(dir, |config| config["quantization_config"]["format"] = json!(name));
        }),
        place("group of a configuration", "dequantize q -o back", |dir, name| {
            write_form(dir, |config| {
                config["quantization_config"]["config_groups"] = json!({name: {"weights": {"type": name}, "targets": [name]}})
            });
        }),
        place("scale of nothing", "dequantize q -o back", |dir, name| {
            write_form(dir, |_| {});
            let mut all: Vec<Tensor> = tensors(&dir.read("q/model.safetensors")).into_values().collect();
            all.push(Tensor::f32(&format!("{name}.weight_scale"), &[8, 1], &[0.5; 8]));
            all.push(Tensor::new(&format!("{name}.weight"), "I8", &[4, 2], vec![1; 8]));
            dir.write("q/model.safetensors", file(&all));
        }),
        place("ignored layers", "quantize m --scheme w8a8 -o q", |dir, name| {
            dir.write("m/model.safetensors", file(&[Tensor::weights("w.weight", &[8, 64], &mut Random(5))]));
            dir.write("m/config.json", json!({"quantization_config": {"quant_method": name}, "model_type": name}).to_string());
        }),
        place("codes of a graph", "dequantize m.onnx", |dir, name| {
            write_graph(dir, |graph| {
                graph.constants = vec![Constant::codes(name, UINT8, &[16, 16], &[3; 256]), Constant::floats("s", &[], &[f32::NAN])];
                graph.nodes[0] = Node::new("Identity", &["x"], name, &[]);
                graph.nodes.insert(1, Node { name: name.into(), ..Node::new("DequantizeLinear", &[name, "s"], "w", &[]) });
            });
        }),
    ]
}

#[test]
fn of_whatever_files_say() {
    let places = places();
    let (mut wrong, mut named) = (Vec::new(), 0);
    for Place { what, write, command } in &places {
        for name in [EVIL.to_owned(), format!("a\0{EVIL}"), long()] {
            let dir = Workdir::new();
            write(&dir, &name);
            let run = dir.run(command.split(' '));
            if !matches!(run.status.code(), Some(0..=4 | 6)) {
                wrong.push(format!("{what}: {run}"));
            }
            named += usize::from(run.stdout.contains("\\u{1b}[31m") || run.stderr.contains("\\u{1b}[31m"));
            wrong.extend(complaints(&run, false).into_iter().map(|found| format!("{what}: {found}: {:?}", run.to_string())));
        }
    }
    assert!(wrong.is_empty(), "{} complaints\n{}", wrong.len(), wrong.join("\n"));
    assert!(places.len() >= 55 && named >= places.len(), "{named} runs of {} places show the name", places.len());
}

/// On a terminal, where there are bars and colours, nothing else is added to what is printed.
#[test]
fn on_a_terminal() {
    let dir = Workdir::new();
    dir.write("m.safetensors", file(&[Tensor::weights(EVIL, &[64, 640], &mut Random(5))]));
    let command = format!("{QTOOL} quantize m.safetensors --verbose --min-sqnr 1000");
    let run = finish(dir.command("script").args(["-qec", &command, "typescript"]).env("TERM", "xterm"));
    if run.status.code() == Some(127) {
        eprintln!("there is no script(1) here");
        return;
    }
    assert!(run.stdout.contains("\\u{1b}[31mred"), "{run}");
    assert!(!run.stdout.contains("\u{1b}[31mred") && !run.stdout.contains("\u{202e}") && !run.stdout.contains("\u{1b}]0;"), "{run}");
}

/// Fields of a message that have a length.
fn fields(mut message: &[u8]) -> Vec<(u64, &[u8])> {
    fn varint(message: &mut &[u8]) -> u64 {
        let len = message.iter().position(|byte| byte & 0x80 == 0).unwrap() + 1;
        let value = message[..len].iter().rev().fold(0, |value, byte| value << 7 | u64::from(byte & 0x7f));
        *message = &message[len..];
        value
    }
    let mut found = Vec::new();
    while !message.is_empty() {
        let tag = varint(&mut message);
        let len = match tag & 7 {
            0 => (varint(&mut message), 0).1,
            1 => 8,
            2 => varint(&mut message) as usize,
            _ => 4,
        };
        if tag & 7 == 2 {
            found.push((tag >> 3, &message[..len]));
        }
        message = &message[len..];
    }
    found
}

/// Names of all nodes, values and constants of a graph.
fn names_of(model: &[u8]) -> BTreeSet<String> {
    let text = |bytes: &[u8]| String::from_utf8(bytes.to_vec()).unwrap();
    let graph = fields(model).into_iter().find(|(field, _)| *field == 7).unwrap().1;
    let of = |(field, part): (u64, &[u8])| {
        let named: &[u64] = match field {
            1 => &[1, 2, 3],
            5 => &[8],
            _ => &[],
        };
        let parts = if named.is_empty() { vec![] } else { fields(part) };
        parts.into_iter().filter(|(field, _)| named.contains(field)).map(|(_, name)| text(name)).collect::<Vec<_>>()
    };
    fields(graph).into_iter().flat_map(of).collect()
}

/// A model that has the names already which qtool would give.
#[test]
fn that_are_taken_in_graphs() {
    let dir = Workdir::new();
    let plain = || {
        let mut graph = chain(&["w".into(), "v".into()]);
        graph.nodes.insert(0, Node::new("Identity", &["x"], &graph.inputs[0].0, &[]));
        graph.inputs = vec![("x".into(), vec![1, 16])];
        graph
    };
    dir.write("m.onnx", plain().model(17));
    dir.write("s.safetensors", file(&(0..4).map(|i| Tensor::weights(&format!("{i}.x"), &[1, 16], &mut Random(i))).collect::<Vec<_>>()));
    for options in [
        "",
        "--mode weight-only --weights int4 --granularity per-group:8 --asymmetric",
        "--samples s.safetensors",
        "--samples s.safetensors --format qoperator",
    ] {
        dir.ok(&format!("quantize m.onnx {options} --min-elements 0 --min-sqnr 0 -o first.onnx --force"));
        let taken: Vec<String> = names_of(&dir.read("first.onnx")).difference(&names_of(&dir.read("m.onnx"))).cloned().collect();
        assert!(taken.len() >= 4, "{taken:?}");
        let mut graph = plain();
        for (i, name) in taken.iter().enumerate() {
            // As a value, or as a constant; and as the name of a node.
            let node = match i % 2 {
                0 => Node::new("Identity", &["x"], name, &[]),
                _ => {
                    graph.constants.push(Constant::floats(name, &[1, 16], &[0.5; 16]));
                    Node::new("Add", &["x", name], &format!("sum {i}"), &[])
                }
            };
            graph.outputs.push((node.output.clone(), vec![1, 16]));
            graph.nodes.push(Node { name: taken[taken.len() - 1 - i].clone(), ..node });
        }
        dir.write("taken.onnx", graph.model(17));
        dir.ok(&format!("quantize taken.onnx {options} --min-elements 0 --min-sqnr 0 -o q.onnx --force"));
        dir.ok("verify q.onnx");
        dir.ok("inspect q.onnx");
        dir.ok("compare taken.onnx q.onnx --samples s.safetensors --min-sqnr 12");
        dir.ok("dequantize q.onnx -o f.onnx --force");
        dir.ok("compare taken.onnx f.onnx --samples s.safetensors --min-sqnr 12");
    }
}

#[test]
fn that_are_taken_in_checkpoints() {
    let dir = Workdir::new();
    let mut random = Random(15);
    let plain = [Tensor::weights("a.weight", &[8, 64], &mut random), Tensor::weights("b.weight", &[8, 64], &mut random)];
    dir.write("m/config.json", "{}");
    for options in
        ["", "--granularity per-group:16 --asymmetric", "--scheme w4a16-asym --granularity per-group:32", "--scheme w8a16", "--fake-quant"]
    {
        let quantize = format!("quantize m --min-elements 0 --force -o q {options}");
        let quantize = quantize.trim();
        dir.write("m/model.safetensors", file(&plain));
        dir.ok(quantize);
        let stored = tensors(&dir.read("q/model.safetensors"));
        let made = stored.keys().filter(|name| plain.iter().all(|tensor| tensor.name != **name));
        let others =
            ["a.scale", "a.weight.scale", "a.weight_scale", "a.weight_g_idx", "a", "a.weight.weight", "a.input_scale"].map(String::from);
        for name in made.cloned().chain(others) {
            for shape in [&[8usize, 64][..], &[8], &[8, 1]] {
                let more = Tensor::f32(&name, shape, &vec![0.5; shape.iter().product()]);
                let all = [&plain[..], &[more]].concat();
                dir.write("m/model.safetensors", file(&all));
                let run = dir.run(quantize.split(' '));
                if run.status.code() == Some(1) {
                    run.expect_one_error();
                    assert!(run.stderr.contains(&name), "{options} {name}: {run}");
                    continue;
                }
                run.expect(0);
                dir.ok("verify q");
                let _ = std::fs::remove_dir_all(dir.path("back"));
                dir.ok("dequantize q -o back");
                let back = tensors(&dir.read("back/model.safetensors"));
                assert!(back.keys().eq(all.iter().map(|tensor| &tensor.name).collect::<BTreeSet<_>>()), "{options} {name}");
                assert!(all.iter().all(|tensor| back[&tensor.name].shape == tensor.shape), "{options} {name}");
            }
        }
    }
}

/// A shard called as a file that qtool would write, or that goes along.
#[test]
fn that_are_taken_in_directories() {
    for shard in
        ["config.json", "qtool.json", "model.safetensors", "model.safetensors.index.json", "tokenizer.json", ".hidden", "pytorch_model.bin"]
    {
        for options in ["", "--scheme w8a16", "--fake-quant", "--granularity per-group:16"] {
            let dir = Workdir::new();
            dir.write("m/config.json", "{}");
            dir.write(format!("m/{shard}"), file(&[Tensor::weights("a.weight", &[8, 64], &mut Random(5))]));
            dir.write("m/model.safetensors.index.json", json!({"weight_map": {"a.weight": shard}}).to_string());
            let run = dir.run(format!("quantize m {options} --min-elements 0 -o q").split(' ').filter(|word| !word.is_empty()));
            if run.status.code() == Some(0) {
                dir.ok("verify q");
                dir.ok("dequantize q -o back");
                assert_eq!(tensors(&dir.read(format!("back/{shard}")))["a.weight"].shape, [8, 64], "{shard} {options}");
            } else {
                run.expect_one_error();
                assert!(matches!(run.status.code(), Some(1 | 2)) && run.stderr.contains(shard), "{shard} {options}: {run}");
                assert!(!dir.exists("q"), "{shard} {options}");
            }
        }
    }
}
