//! `--limit`: every bound on what files may ask for, at its edge and over it.

use crate::support::Workdir;
use crate::support::model::{Tensor, file};
use crate::support::onnx::{Constant, Graph, Node};
use qtool::limits::{LIMITS, Limits};
use serde_json::json;

/// A file that asks for as much as `edge` of a bound, and the command that reads it.
struct Edge {
    limit: &'static str,
    edge: u64,
    command: &'static str,
    /// The exit code of a file that asks for more: 6, or 1 for what no framework makes.
    exit: i32,
}

/// `y = x w` twice, in two files of values, and an If around it: a model with a bit of everything.
fn directory() -> Workdir {
    let dir = Workdir::new();
    let weights = |name: &str| Tensor::f32(name, &[2, 3], &[0.5; 6]);
    dir.write("m.safetensors", file(&[weights("abcdefgh"), Tensor::f32("rank", &[1, 1, 1, 1, 1], &[0.5])]));
    let shard = |name: &str| file(&[weights(name)]);
    dir.write("d/a.safetensors", shard("a"));
    dir.write("d/b.safetensors", shard("b"));
    let index = json!({"metadata": {"total_size": 48}, "weight_map": {"a": "a.safetensors", "b": "b.safetensors"}}).to_string();
    dir.write("d/model.safetensors.index.json", &index);
    let graph = Graph {
        nodes: vec![
            Node::new("MatMul", &["x", "w"], "h", &[]),
            Node::new("Relu", &["h"], "r", &[]),
            Node::new("MatMul", &["r", "v"], "y", &[]),
        ],
        constants: vec![Constant::floats("w", &[4, 4], &[0.5; 16]), Constant::floats("v", &[4, 4], &[0.5; 16])],
        inputs: vec![("x".into(), vec![1, 4])],
        outputs: vec![("y".into(), vec![1, 4])],
    };
    dir.write("m.onnx", graph.model(13));
    let npy = b"\x93NUMPY\x01\x00\x3c\x00{'descr': '<f4', 'fortran_order': False, 'shape': (1, 4), }\n";
    dir.write("s.npy", [&npy[..], &[0; 16]].concat());
    dir
}

fn edges(dir: &Workdir) -> Vec<Edge> {
    let model = dir.read("m.safetensors");
    let header = u64::from_le_bytes(model[..8].try_into().unwrap());
    let calibrate = "calibrate m.onnx --samples s.npy -o s.stats --force";
    let edge = |limit, edge, command| Edge { limit, edge, command, exit: 6 };
    vec![
        edge("header-bytes", header, "inspect m.safetensors"),
        edge("header-bytes", dir.read("d/model.safetensors.index.json").len() as u64, "inspect d"),
        Edge { exit: 1, ..edge("rank", 5, "inspect m.safetensors") },
        edge("rank", 2, "inspect m.onnx"),
        edge("name-bytes", 8, "inspect m.safetensors"),
        edge("name-bytes", 6, "inspect m.onnx"),
        edge("elements", 6, "inspect m.safetensors"),
        edge("elements", 16, "inspect m.onnx"),
        edge("shards", 2, "inspect d"),
        edge("nodes", 3, "inspect m.onnx"),
        // Model, graph, value, type, tensor, shape, dimension.
        Edge { exit: 1, ..edge("nesting", 7, "inspect m.onnx") },
        edge("sample-bytes", 16, calibrate),
        edge("sample-rank", 2, calibrate),
        edge("npy-header-bytes", 60, calibrate),
    ]
}

#[test]
fn bounds_hold_at_their_edges() {
    let dir = directory();
    let edges = edges(&dir);
    for Edge { limit, edge, command, exit } in &edges {
        dir.ok(&format!("{command} --limit {limit}={edge}"));
        let run = dir.run(format!("{command} --limit {limit}={}", edge - 1).split(' ')).expect(*exit);
        run.expect_one_error();
        assert!(run.stderr.contains(&format!("expected at most {}", edge - 1)) || *limit == "nesting", "{run}");
        assert!(run.stderr.contains(&format!("hint: --limit {limit}=VALUE raises it")), "{run}");
    }
    // Those whose edge is tested elsewhere: members of archives below, memory of graphs where it is counted.
    let tested: Vec<&str> = edges.iter().map(|edge| edge.limit).chain(["npz-members", "graph-bytes"]).collect();
    let untested: Vec<&str> = LIMITS.iter().map(|entry| entry.name).filter(|name| !tested.contains(name)).collect();
    assert!(untested.is_empty(), "{untested:?}");
}

#[test]
fn memory_of_graphs_is_bounded() {
    let dir = directory();
    dir.ok("inspect m.onnx --limit graph-bytes=64KiB");
    // The least that it can do with is found by halving, and one byte less is refused.
    let refused =
        |bytes: u64| dir.run(["inspect", "m.onnx", "--quiet", "--limit", &format!("graph-bytes={bytes}")]).status.code() == Some(6);
    let (mut low, mut high) = (0, 64 << 10);
    while low + 1 < high {
        let middle = (low + high) / 2;
        *if refused(middle) { &mut low } else { &mut high } = middle;
    }
    assert!(high > 100 && refused(high - 1) && !refused(high), "{high}");
}

#[test]
fn members_of_archives_are_bounded() {
    let dir = directory();
    // Stored members, as numpy.savez writes them: the model takes one of them only, so one archive has too many names either way.
    let npy = dir.read("s.npy");
    dir.write("s.npz", stored(&[("x.npy", &npy)]));
    dir.write("t.npz", stored(&[("x.npy", &npy), ("z.npy", &npy)]));
    dir.ok("calibrate m.onnx --samples s.npz -o s.stats --limit npz-members=1");
    let run = dir.fails("calibrate m.onnx --samples t.npz -o t.stats --limit npz-members=1", 6);
    assert!(run.stderr.contains("limit of members: expected at most 1, found 2"), "{run}");
    let run = dir.fails("calibrate m.onnx --samples t.npz -o t.stats --limit npz-members=2", 1);
    assert!(run.stderr.contains("found \"z\" as well"), "{run}");
}

/// An archive of stored members.
pub(crate) fn stored(members: &[(&str, &[u8])]) -> Vec<u8> {
    let (mut out, mut directory) = (Vec::new(), Vec::new());
    for (name, content) in members {
        let mut crc = flate2::Crc::new();
        crc.update(content);
        let mut common = vec![20, 0, 0, 0, 0, 0, 0, 0, 0, 0];
        [crc.sum(), content.len() as u32, content.len() as u32].iter().for_each(|field| common.extend(field.to_le_bytes()));
        common.extend((name.len() as u16).to_le_bytes());
        common.extend([0, 0]);
        directory.extend([&b"PK\x01\x02\x14\x00"[..], &common, &[0; 10], &(out.len() as u32).to_le_bytes(), name.as_bytes()].concat());
        out.extend([&b"PK\x03\x04"[..], &common, name.as_bytes(), content].concat());
    }
    let (start, size, count) = (out.len() as u32, directory.len() as u32, members.len() as u16);
    let sizes = [size.to_le_bytes(), start.to_le_bytes()].concat();
    [out, directory, b"PK\x05\x06\0\0\0\0".to_vec(), [count.to_le_bytes(), count.to_le_bytes()].concat(), sizes, vec![0, 0]].concat()
}

#[test]
fn help_names_every_bound_with_its_default() {
    let dir = Workdir::new();
    let default = Limits::default();
    for command in ["quantize", "calibrate", "inspect", "verify", "dequantize", "compare", "analyze"] {
        let help = dir.ok(&format!("{command} --help")).stdout;
        for entry in LIMITS {
            let name = help.split_whitespace().any(|word| word == entry.name);
            assert!(name && help.contains(&format!("default: {}", entry.get(&default))), "{command} {}: {help}", entry.name);
        }
    }
}

#[test]
fn bounds_that_are_none_are_wrong_usage() {
    let dir = directory();
    for (value, part) in [
        ("rank", "NAME=VALUE"),
        ("ranks=3", "did you mean \"rank\"?"),
        ("rank=many", "expected a number"),
        ("rank=-1", "expected a number"),
        ("header-bytes=1XB", "expected a size"),
        ("nesting=100000", "expected at most 500"),
    ] {
        let run = dir.run(["inspect", "m.safetensors", "--limit", value]).expect(2);
        assert!(run.stderr.contains(part), "{run}");
    }
    // Later ones win.
    dir.ok("inspect m.safetensors --limit rank=1 --limit rank=5");
}

/// Documents have sizes of their own, which nothing raises: at the edge they are read, a byte more is refused.
#[test]
fn documents_are_bounded() {
    let dir = directory();
    dir.write("c/model.safetensors", dir.read("m.safetensors"));
    dir.ok("quantize m.safetensors --min-elements 0 -o q.safetensors");
    let sidecar = String::from_utf8(dir.read("q.json")).unwrap();
    let ranges = r#"{"x": [-1, 2], "r": [0, 3]}"#;
    for (name, start, edge, command) in [
        ("r.json", "{}", 256 << 20, "recipe check r.json"),
        ("r.toml", "# empty\n", 256 << 20, "recipe check r.toml"),
        ("q.json", &sidecar, 256 << 20, "verify q.safetensors"),
        ("t.json", ranges, 256 << 20, "quantize m.onnx --ranges t.json --min-elements 0 --dry-run"),
        ("c/config.json", "{}", 16 << 20, "quantize c --scheme w8a16 --dry-run"),
    ] {
        let mut content = start.as_bytes().to_vec();
        content.resize(edge, b' ');
        dir.write(name, &content);
        // A sidecar with more behind it is not as it was written, but read.
        dir.run(command.split(' ')).expect(if name == "q.json" { 3 } else { 0 });
        content.push(b' ');
        dir.write(name, &content);
        let run = dir.fails(command, 6);
        assert!(run.stderr.contains(&format!("expected at most {edge}, found {}", edge + 1)), "{run}");
        std::fs::remove_file(dir.path(name)).unwrap();
    }
}

#[test]
fn json_nests_no_deeper_than_it_may() {
    let dir = directory();
    dir.write("c/model.safetensors", dir.read("m.safetensors"));
    let nested = |depth: usize| format!("{}{}", "[".repeat(depth), "]".repeat(depth));
    // Within the document and what it says of quantization, which is looked into.
    let config = |depth: usize| format!(r#"{{"quantization_config": {{"quant_method": "other", "x": {}}}}}"#, nested(depth));
    for depth in [125, 126, 127, 128, 100_000] {
        // Too deep to be read is not the same as not there.
        dir.write("c/config.json", config(depth));
        let run = dir.fails("quantize c --scheme w8a16 --dry-run", 1);
        assert!(run.stderr.contains("the model is quantized already"), "{run}");
        dir.write("t.json", format!(r#"{{"x": {}}}"#, nested(depth)));
        dir.fails("quantize m.onnx --ranges t.json --dry-run", 1);
        dir.write("r.json", format!(r#"{{"activations": {}}}"#, nested(depth)));
        dir.fails("recipe check r.json", 2);
    }
    // Without a sidecar the configuration tells the form, if it can be read.
    dir.write("c/config.json", "{}");
    dir.ok("quantize c --scheme w8a16 --min-elements 0 -o q");
    std::fs::remove_file(dir.path("q/qtool.json")).unwrap();
    let config = String::from_utf8(dir.read("q/config.json")).unwrap();
    for (depth, exit) in [(126, 0), (127, 4)] {
        let nested = format!("\"quant_method\": \"compressed-tensors\", \"x\": {}", nested(depth));
        dir.write("q/config.json", config.replace("\"quant_method\": \"compressed-tensors\"", &nested));
        dir.run(["dequantize", "q", "-o", &format!("back-{depth}")]).expect(exit);
    }
}
