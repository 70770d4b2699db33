//! ONNX models whose values lie in other files: where those may lie, and what becomes of them.

use crate::support::Workdir;
use std::fs;
use std::os::unix::fs::symlink;

/// `y = MatMul(x, w)`, with `w` as 4 by 8 floats in `weights.bin`. The corpus of bad inputs begins from the same model.
const MODEL: &[u8] = b"\x08\x08:f\n\x11\n\x01x\n\x01w\x12\x01y\"\x06MatMul\x12\x01g*$\n\x02\x04\x08\x10\x01B\x01w\
    j\x17\n\x08location\x12\x0bweights.binp\x01Z\x13\n\x01x\x12\x0e\n\x0c\x08\x01\x12\x08\n\x02\x08\x01\n\x02\x08\x04\
    b\x13\n\x01y\x12\x0e\n\x0c\x08\x01\x12\x08\n\x02\x08\x01\n\x02\x08\x08B\x02\x10\x11";

fn weights() -> Vec<u8> {
    (0..32u8).flat_map(|i| (f32::from(i) / 8.0 - 2.0).to_le_bytes()).collect()
}

fn model() -> Workdir {
    let dir = Workdir::new();
    dir.write("model.onnx", MODEL);
    dir.write("weights.bin", weights());
    dir
}

#[test]
fn a_missing_data_file_is_named_with_what_needs_it() {
    let dir = model();
    fs::remove_file(dir.path("weights.bin")).unwrap();
    for arguments in ["inspect model.onnx", "quantize model.onnx -o out.onnx"] {
        let run = dir.fails(arguments, 4);
        assert!(run.stderr.contains("weights.bin: open: ") && run.stderr.contains("model.onnx keeps values of tensor \"w\""), "{run}");
    }
    assert!(!dir.exists("out.onnx"));
}

/// As `huggingface_hub` downloads: every file of a snapshot is a link into a store of files named by their content.
#[test]
fn a_snapshot_of_the_hugging_face_cache_is_read() {
    let dir = Workdir::new();
    dir.write("models--a--b/blobs/0a1b", MODEL);
    dir.write("models--a--b/blobs/2c3d", weights());
    let snapshot = dir.path("models--a--b/snapshots/e4f5");
    fs::create_dir_all(&snapshot).unwrap();
    symlink("../../blobs/0a1b", snapshot.join("model.onnx")).unwrap();
    symlink("../../blobs/2c3d", snapshot.join("weights.bin")).unwrap();
    dir.ok("quantize models--a--b/snapshots/e4f5/model.onnx -o out.onnx");

    let plain = model();
    plain.ok("quantize model.onnx -o out.onnx");
    assert_eq!(dir.read("out.onnx"), plain.read("out.onnx"));
    let files = |dir: &Workdir| dir.json("out.json")["source"]["files"].clone();
    assert_eq!(files(&dir), files(&plain));
    let names: Vec<_> = files(&dir).as_array().unwrap().iter().map(|file| file["name"].as_str().unwrap().to_owned()).collect();
    assert_eq!(names, ["model.onnx", "weights.bin"]);

    // Many repositories have their models in a directory of the snapshot.
    fs::create_dir(snapshot.join("onnx")).unwrap();
    symlink("../../../blobs/0a1b", snapshot.join("onnx/model.onnx")).unwrap();
    symlink("../../../blobs/2c3d", snapshot.join("onnx/weights.bin")).unwrap();
    dir.ok("quantize models--a--b/snapshots/e4f5/onnx/model.onnx -o inner.onnx");
    assert_eq!(dir.read("inner.onnx"), plain.read("out.onnx"));
}

#[test]
fn links_out_of_the_directory_need_trust() {
    let dir = Workdir::new();
    dir.write("model/model.onnx", MODEL);
    dir.write("elsewhere/secret", weights());
    symlink("../elsewhere/secret", dir.path("model/weights.bin")).unwrap();
    let run = dir.fails("inspect model/model.onnx", 1);
    assert!(run.stderr.contains("leads out") && run.stderr.contains("--follow-symlinks"), "{run}");
    dir.ok("inspect --follow-symlinks model/model.onnx");
}

#[test]
fn data_files_are_inputs_that_no_output_replaces() {
    let dir = model();
    for arguments in ["quantize model.onnx -o weights.bin --force", "quantize model.onnx -o out.onnx --sidecar weights.bin --force"] {
        dir.fails(arguments, 2);
        assert_eq!(dir.read("weights.bin"), weights());
    }
    assert_eq!(dir.names(), ["model.onnx", "weights.bin"]);
}
