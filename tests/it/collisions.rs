//! Models that have the names already which qtool would give: another is given, or the model is refused.

use crate::names::chain;
use crate::support::model::{Tensor, file, tensors};
use crate::support::onnx::{Constant, Node};
use crate::support::{Random, Workdir};
use serde_json::json;
use std::collections::BTreeSet;

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

#[test]
fn names_in_graphs() {
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
fn names_in_checkpoints() {
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
                    assert!(run.stderr.contains(&name) && !run.stderr.contains("/proc/"), "{options} {name}: {run}");
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
fn names_in_directories() {
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
