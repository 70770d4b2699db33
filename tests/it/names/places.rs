//! Where files of every kind can say a name.

use super::chain;
use crate::limits::stored;
use crate::support::model::{Tensor, file, file_with_metadata, tensors};
use crate::support::onnx::{Constant, Graph, Node, UINT8, bytes, number};
use crate::support::{Random, Workdir};
use serde_json::{Value, json};

/// A file with `name` where a reader looks, and the run that is refused or at least says the name.
pub(super) struct Place {
    pub what: &'static str,
    pub write: fn(&Workdir, &str),
    pub command: &'static str,
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

pub(super) fn places() -> Vec<Place> {
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
