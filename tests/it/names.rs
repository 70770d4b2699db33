//! Names that strangers chose: of tensors, nodes, values, files and whatever else a file can say, through every reader, every command and
//! every printed form. Text does nothing to a terminal and its lines end; JSON and TOML read back as the same names; pages are well formed.

mod places;

use crate::report::expect_well_formed;
use crate::support::model::{Tensor, file, file_with_metadata, tensors};
use crate::support::onnx::{Constant, Graph, Node};
use crate::support::{QTOOL, Random, Run, Workdir, finish};
use places::{Place, places};
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
pub(crate) fn chain(names: &[String]) -> Graph {
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
