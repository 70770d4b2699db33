//! Models in Hugging Face layout: shards stay shards, what goes with the weights goes along, links stay within.

use crate::support::model::{self, Tensor};
use crate::support::{FIXTURE, Run, Workdir};
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::symlink;

const INDEX: &str = "model.safetensors.index.json";
const SHARDS: [&str; 2] = ["model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"];

/// The trained model's tensors, in the order of the file.
fn trained() -> Vec<Tensor> {
    let content = fs::read(FIXTURE).unwrap();
    let mut tensors = model::tensors(&content);
    model::header_order(&content).iter().map(|name| tensors.remove(name).unwrap()).collect()
}

/// Writes the trained model in two shards as `m`, with companions.
fn sharded() -> Workdir {
    let dir = Workdir::new();
    let tensors = trained();
    let (first, second) = tensors.split_at(7);
    let mut weight_map = BTreeMap::new();
    for (shard, tensors) in SHARDS.iter().zip([first, second]) {
        dir.write(format!("m/{shard}"), model::file_with_metadata(tensors, r#""__metadata__":{"format":"pt","origin":"test"}"#));
        weight_map.extend(tensors.iter().map(|tensor| (tensor.name.clone(), *shard)));
    }
    let size: usize = tensors.iter().map(|tensor| tensor.bytes.len()).sum();
    dir.write(format!("m/{INDEX}"), json!({"metadata": {"total_size": size}, "weight_map": weight_map}).to_string());
    dir.write("m/config.json", r#"{"model_type": "vad"}"#);
    dir.write("m/onnx/config/vocab.txt", "a\nb\n");
    dir.write("m/pytorch_model.bin", "PK..");
    dir.write("m/.cache/lock", "");
    dir
}

/// All tensors of the shards of a directory, with the shard of each.
fn stored(dir: &Workdir, name: &str) -> BTreeMap<String, (Tensor, String)> {
    let mut found = BTreeMap::new();
    for shard in SHARDS {
        for (tensor, content) in model::tensors(&dir.read(format!("{name}/{shard}"))) {
            assert!(found.insert(tensor.clone(), (content, shard.to_owned())).is_none(), "{tensor} is in two shards");
        }
    }
    found
}

#[test]
fn a_sharded_model_keeps_shards_index_and_companions() {
    for options in ["", "--granularity per-group:64 --asymmetric", "--weights uint4 --granularity per-tensor"] {
        let dir = sharded();
        dir.ok(&format!("quantize m {options} -o q"));
        let expected = ["config.json", SHARDS[0], SHARDS[1], INDEX, "onnx", "onnx/config", "onnx/config/vocab.txt", "qtool.json"];
        assert_eq!(crate::support::names(&dir.path("q")), expected, "{options}");
        assert_eq!(dir.read("q/onnx/config/vocab.txt"), b"a\nb\n");
        let (index, tensors, source) = (dir.json(format!("q/{INDEX}")), stored(&dir, "q"), stored(&dir, "m"));
        let size: usize = tensors.values().map(|(tensor, _)| tensor.bytes.len()).sum();
        assert_eq!(index["metadata"]["total_size"], size, "{options}");
        let listed: BTreeMap<String, String> = serde_json::from_value(index["weight_map"].clone()).unwrap();
        let actual: BTreeMap<String, String> = tensors.iter().map(|(name, (_, shard))| (name.clone(), shard.clone())).collect();
        assert_eq!(listed, actual, "{options}");
        for (name, (tensor, shard)) in &source {
            assert_eq!(&tensors[name].1, shard, "{options}: {name} moved");
            if tensor.shape.len() < 2 {
                assert_eq!(&tensors[name].0, tensor, "{options}");
            }
        }
        assert_eq!(tensors.contains_key("conv1.weight.scale"), options.contains("group"), "{options}");
        let metadata = &model::header(&dir.read(format!("q/{}", SHARDS[0])))["__metadata__"];
        assert_eq!(metadata, &json!({"format": "pt", "origin": "test"}));
        dir.ok("verify q");
        dir.ok("verify q/qtool.json");
        dir.ok("compare m q --min-sqnr 3");
        check_way_back(&dir);
    }
}

/// `q` gives back the files of `m`: the same tensors in the same order and types, those that were kept bit for bit.
fn check_way_back(dir: &Workdir) {
    dir.ok("dequantize q");
    assert_eq!(dir.json(format!("q-float/{INDEX}")), dir.json(format!("m/{INDEX}")));
    assert_eq!(dir.read("q-float/config.json"), dir.read("m/config.json"));
    assert!(!dir.exists("q-float/qtool.json"));
    for shard in SHARDS {
        let (before, after) = (dir.read(format!("m/{shard}")), dir.read(format!("q-float/{shard}")));
        assert_eq!(model::header_order(&before), model::header_order(&after));
        assert_eq!(model::header(&before), model::header(&after), "names, types, shapes and places");
        let after = model::tensors(&after);
        for (name, tensor) in model::tensors(&before) {
            if tensor.shape.len() < 2 || tensor.shape == [1, 128, 1] {
                assert_eq!(after[&name], tensor);
            } else {
                assert_ne!(after[&name].bytes, tensor.bytes, "{name}");
            }
        }
    }
    dir.ok("compare m q-float --min-sqnr 3");
}

#[test]
fn a_directory_with_one_file_becomes_dir_int8() {
    let dir = Workdir::new();
    dir.write("m/model.safetensors", fs::read(FIXTURE).unwrap());
    dir.write("m/tokenizer.json", "{}");
    dir.ok("quantize m/");
    assert_eq!(crate::support::names(&dir.path("m-int8")), ["model.safetensors", "qtool.json", "tokenizer.json"]);
    dir.ok("verify m-int8");
    dir.ok("dequantize m-int8 -o back");
    assert_eq!(crate::support::names(&dir.path("back")), ["model.safetensors", "tokenizer.json"]);
    dir.ok("compare m back --min-sqnr 30");
    dir.ok("inspect m");
    // From within, the directory has no name to append to; it is found all the same.
    let run = crate::support::finish(dir.command(crate::support::QTOOL).current_dir(dir.path("m")).args(["quantize", ".", "--force"]));
    run.expect(0);
    dir.ok("verify m-int8");
    assert_eq!(dir.names().iter().filter(|name| !name.contains('/')).collect::<Vec<_>>(), ["back", "m", "m-int8"]);
}

#[test]
fn an_existing_directory_is_replaced_as_a_whole_and_only_by_force() {
    let dir = sharded();
    dir.write("m-int8/old.txt", "precious");
    let run = dir.fails("quantize m", 2);
    assert!(run.stderr.contains("--force"), "{run}");
    assert_eq!(crate::support::names(&dir.path("m-int8")), ["old.txt"]);
    // Even by force only what an earlier run may have written: not a directory of something else.
    dir.fails("quantize m --force", 2);
    assert_eq!(crate::support::names(&dir.path("m-int8")), ["old.txt"]);
    dir.fails("quantize m -o . --force", 2);
    std::fs::remove_file(dir.path("m-int8/old.txt")).unwrap();
    dir.ok("quantize m --force");
    dir.write("m/extra.txt", "of the model");
    dir.ok("quantize m --force");
    assert!(dir.exists("m-int8/extra.txt"));
    std::fs::remove_file(dir.path("m/extra.txt")).unwrap();
    dir.ok("quantize m --force");
    assert!(!dir.exists("m-int8/extra.txt") && dir.exists("m-int8/qtool.json"));
    dir.ok("verify m-int8");
    dir.expect_no_temporaries();
}

#[test]
fn a_directory_can_be_quantized_in_place() {
    let dir = sharded();
    for output in ["m", "./m", "m/../m"] {
        assert!(dir.fails(&format!("quantize m -o {output} --force"), 2).stderr.contains("--in-place"));
    }
    for lost in [".cache", "pytorch_model.bin"] {
        let run = dir.fails("quantize m --in-place", 2);
        assert!(run.stderr.contains(lost), "{run}");
        let path = dir.path(format!("m/{lost}"));
        if path.is_dir() { std::fs::remove_dir_all(path) } else { std::fs::remove_file(path) }.unwrap();
    }
    dir.ok("quantize m --in-place");
    dir.ok("verify m");
    assert_eq!(stored(&dir, "m")["conv1.weight"].0.dtype, "I8");
    assert!(dir.exists("m/config.json") && dir.exists("m/onnx/config/vocab.txt"));
    dir.expect_no_temporaries();
}

#[test]
fn a_failure_in_a_late_shard_leaves_nothing() {
    let dir = sharded();
    let mut tensors: Vec<Tensor> = model::tensors(&dir.read(format!("m/{}", SHARDS[1]))).into_values().collect();
    let last = tensors.iter_mut().rfind(|tensor| tensor.shape.len() > 1).unwrap();
    let end = last.bytes.len();
    last.bytes[end - 4..].copy_from_slice(&f32::NAN.to_le_bytes());
    dir.write(format!("m/{}", SHARDS[1]), model::file(&tensors));
    let run = dir.fails("quantize m", 1);
    assert!(run.stderr.contains(SHARDS[1]) && run.stderr.contains("NaN"), "{run}");
    assert!(!dir.exists("m-int8"));
    dir.expect_no_temporaries();
}

/// The layout of the Hugging Face cache: `snapshots/REVISION/FILE` links to `blobs/HASH`.
#[test]
fn links_of_the_hugging_face_cache_are_followed() {
    let dir = Workdir::new();
    dir.write("hub/blobs/abc", fs::read(FIXTURE).unwrap());
    dir.write("hub/blobs/def", "{}");
    fs::create_dir_all(dir.path("hub/snapshots/0123")).unwrap();
    symlink("../../blobs/abc", dir.path("hub/snapshots/0123/model.safetensors")).unwrap();
    symlink("../../blobs/def", dir.path("hub/snapshots/0123/config.json")).unwrap();
    dir.ok("quantize hub/snapshots/0123 -o q");
    assert_eq!(crate::support::names(&dir.path("q")), ["config.json", "model.safetensors", "qtool.json"]);
    assert!(!dir.path("q/config.json").is_symlink(), "the output stands on its own");
    dir.ok("verify q");
    // The blobs of another repository are outside.
    symlink("../../../hub/blobs/abc", dir.path("link")).unwrap();
    dir.write("other/snapshots/0/config.json", "{}");
    symlink("../../../hub/blobs/abc", dir.path("other/snapshots/0/model.safetensors")).unwrap();
    let run = dir.fails("quantize other/snapshots/0 -o q2", 1);
    assert!(run.stderr.contains("--follow-symlinks"), "{run}");
}

#[test]
fn a_link_that_leads_out_needs_consent() {
    let dir = sharded();
    fs::rename(dir.path(format!("m/{}", SHARDS[1])), dir.path("elsewhere.safetensors")).unwrap();
    symlink("../elsewhere.safetensors", dir.path(format!("m/{}", SHARDS[1]))).unwrap();
    dir.write("secret.txt", "secret");
    symlink("../secret.txt", dir.path("m/notes.txt")).unwrap();
    for command in ["quantize m", "inspect m", "compare m m"] {
        let run: Run = dir.fails(command, 1);
        assert!(run.stderr.contains(SHARDS[1]) && run.stderr.contains("hint: pass --follow-symlinks"), "{run}");
    }
    assert!(!dir.exists("m-int8"));
    dir.ok("quantize m --follow-symlinks");
    dir.ok("verify m-int8");
    assert!(!dir.path(format!("m-int8/{}", SHARDS[1])).is_symlink());
}

#[test]
fn what_the_sidecar_says_of_a_directory_names_every_file_but_itself() {
    let dir = sharded();
    dir.ok("quantize m");
    let sidecar: Value = dir.json("m-int8/qtool.json");
    let mut named: Vec<&str> = sidecar["output"]["files"].as_array().unwrap().iter().map(|file| file["name"].as_str().unwrap()).collect();
    named.sort_unstable();
    assert_eq!(named, ["config.json", SHARDS[0], SHARDS[1], INDEX, "onnx/config/vocab.txt"]);
    for file in sidecar["output"]["files"].as_array().unwrap() {
        let content = dir.read(format!("m-int8/{}", file["name"].as_str().unwrap()));
        assert_eq!(file["blake3"], blake3::hash(&content).to_hex().as_str(), "{file}");
        assert_eq!(file["bytes"], content.len(), "{file}");
    }
    let sources: Vec<&str> = sidecar["source"]["files"].as_array().unwrap().iter().map(|file| file["name"].as_str().unwrap()).collect();
    assert_eq!(sources, SHARDS);
}
