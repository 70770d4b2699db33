//! Where outputs go: beside the input unless told otherwise, never over something by surprise.

use crate::support::Workdir;
use crate::support::model;
use rustix::fs::{CWD, FileType, Mode, mknodat};
use std::fs;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::time::Duration;

#[test]
fn an_existing_output_or_sidecar_is_replaced_only_by_force() {
    for existing in ["model.int8.safetensors", "model.int8.json"] {
        let dir = Workdir::with_fixture();
        dir.write(existing, "precious");
        let run = dir.fails("quantize model.safetensors", 2);
        assert!(run.stderr.contains(existing) && run.stderr.contains("--force"), "{run}");
        assert_eq!(dir.read(existing), b"precious");
        assert_eq!(dir.names().len(), 2, "{:?}", dir.names());
        if existing.ends_with(".json") {
            // A JSON file of somebody else that happens to have the sidecar's name.
            dir.fails("quantize model.safetensors --force", 2);
            assert_eq!(dir.read(existing), b"precious");
            std::fs::remove_file(dir.path(existing)).unwrap();
        }
        dir.ok("quantize model.safetensors --force");
        dir.ok("quantize model.safetensors --force");
        dir.ok("verify model.int8.json");
    }
    let dir = Workdir::with_fixture();
    dir.ok("quantize model.safetensors");
    dir.write("model.int8.float.safetensors", "precious");
    dir.fails("dequantize model.int8.safetensors", 2);
    assert_eq!(dir.read("model.int8.float.safetensors"), b"precious");
    dir.ok("dequantize model.int8.safetensors --force");
    dir.fails("compare model.safetensors model.int8.float.safetensors --min-sqnr 80", 3);
}

#[test]
fn what_is_quantized_already_is_not_quantized_again() {
    let dir = Workdir::with_fixture();
    dir.ok("quantize model.safetensors");
    let run = dir.fails("quantize model.int8.safetensors", 1);
    assert!(run.stderr.contains("output of qtool"), "{run}");
    dir.ok("quantize model.safetensors --in-place");
    let (weights, sidecar) = (dir.read("model.safetensors"), dir.read("model.json"));
    dir.fails("quantize model.safetensors --in-place", 1);
    assert!(dir.read("model.safetensors") == weights && dir.read("model.json") == sidecar);
    dir.ok("verify model.safetensors");
}

#[test]
fn codes_are_not_compared_as_if_they_were_the_float_model() {
    let dir = Workdir::with_fixture();
    dir.ok("quantize model.safetensors");
    dir.fails("compare model.int8.safetensors model.safetensors --min-sqnr 30", 2);
    dir.fails("compare model.int8.safetensors model.int8.safetensors --min-sqnr 30", 1);
}

#[test]
fn a_dangling_link_in_the_way_counts_as_existing() {
    let dir = Workdir::with_fixture();
    symlink("nowhere", dir.path("q.safetensors")).unwrap();
    dir.fails("quantize model.safetensors -o q.safetensors", 2);
    assert!(dir.path("q.safetensors").is_symlink() && !dir.exists("nowhere"));
}

#[test]
fn the_input_is_overwritten_only_in_place_however_it_is_spelled() {
    let dir = Workdir::with_fixture();
    let before = dir.read("model.safetensors");
    symlink("model.safetensors", dir.path("link.safetensors")).unwrap();
    fs::hard_link(dir.path("model.safetensors"), dir.path("hard.safetensors")).unwrap();
    fs::create_dir(dir.path("sub")).unwrap();
    let absolute = dir.path("model.safetensors").display().to_string();
    for output in
        ["model.safetensors", "./model.safetensors", "sub/../model.safetensors", "link.safetensors", "hard.safetensors", &absolute]
    {
        for force in ["", "--force"] {
            let run = dir.fails(&format!("quantize model.safetensors -o {output} {force}"), 2);
            assert!(run.stderr.contains("--in-place"), "{run}");
        }
    }
    let run = dir.fails("quantize model.safetensors -o q.safetensors --sidecar model.safetensors --force", 2);
    assert!(run.stderr.contains("sidecar"), "{run}");
    assert!(dir.read("model.safetensors") == before);
    assert_eq!(dir.names(), ["hard.safetensors", "link.safetensors", "model.safetensors", "sub"]);

    dir.ok("quantize model.safetensors --in-place");
    assert_eq!(model::tensors(&dir.read("model.safetensors"))["conv1.weight"].dtype, "I8");
    dir.ok("verify model.safetensors");
    assert!(dir.read("hard.safetensors") == before, "the old content under another name stays");
    assert_eq!(dir.names(), ["hard.safetensors", "link.safetensors", "model.json", "model.safetensors", "sub"]);
}

#[test]
fn an_output_of_the_wrong_kind_is_wrong_usage() {
    let dir = Workdir::with_fixture();
    fs::create_dir(dir.path("folder")).unwrap();
    assert!(mknodat(CWD, dir.path("pipe"), FileType::Fifo, Mode::RUSR | Mode::WUSR, 0).is_ok());
    for output in ["folder", "folder/", "pipe", "/dev/null", "/dev/full", "/dev/stdout", "."] {
        let run = dir.fails(&format!("quantize model.safetensors -o {output} --force"), 2);
        assert!(run.elapsed < Duration::from_secs(3), "{run}");
    }
    fs::create_dir(dir.path("model")).unwrap();
    fs::rename(dir.path("model.safetensors"), dir.path("model/model.safetensors")).unwrap();
    dir.write("file", "precious");
    for output in ["file", "pipe", "/dev/null"] {
        dir.fails(&format!("quantize model -o {output} --force"), 2);
    }
    assert_eq!(dir.read("file"), b"precious");
    assert_eq!(dir.names(), ["file", "folder", "model", "model/model.safetensors", "pipe"]);
}

#[test]
fn an_output_directory_that_cannot_be_written_to_is_known_before_the_work() {
    let dir = Workdir::with_fixture();
    dir.write("file", "");
    let run = dir.fails("quantize model.safetensors -o none/q.safetensors", 4);
    assert!(run.stderr.contains("none") && run.stderr.to_lowercase().contains("no such file"), "{run}");
    assert!(run.elapsed < Duration::from_secs(1), "{run}");
    let run = dir.fails("quantize model.safetensors -o file/q.safetensors", if cfg!(target_os = "linux") { 2 } else { 4 });
    assert!(run.stderr.contains("directory"), "{run}");
    dir.fails("quantize none.safetensors", 4);
    assert_eq!(dir.names(), ["file", "model.safetensors"]);
    if !rustix::process::geteuid().is_root() {
        fs::create_dir(dir.path("closed")).unwrap();
        fs::set_permissions(dir.path("closed"), fs::Permissions::from_mode(0o555)).unwrap();
        let run = dir.fails("quantize model.safetensors -o closed/q.safetensors", 4);
        assert!(run.stderr.to_lowercase().contains("permission denied"), "{run}");
    }
}

#[test]
fn a_linked_output_keeps_its_link_and_replaces_the_target() {
    let dir = Workdir::with_fixture();
    dir.write("store/weights.safetensors", "old");
    symlink("store/weights.safetensors", dir.path("q.safetensors")).unwrap();
    dir.fails("quantize model.safetensors -o q.safetensors", 2);
    dir.ok("quantize model.safetensors -o q.safetensors --force");
    assert!(dir.path("q.safetensors").is_symlink());
    assert!(!dir.path("store/weights.safetensors").is_symlink());
    assert_eq!(model::tensors(&dir.read("store/weights.safetensors"))["conv1.weight"].dtype, "I8");
    assert_eq!(dir.names(), ["model.safetensors", "q.json", "q.safetensors", "store", "store/weights.safetensors"]);
    dir.ok("verify q.safetensors");
}

#[test]
fn names_and_tags_follow_what_was_asked_for() {
    let dir = Workdir::with_fixture();
    dir.ok("quantize model.safetensors --weights uint4");
    dir.ok("quantize model.safetensors -o weights --sidecar about.json");
    dir.ok("verify about.json");
    dir.ok("verify model.uint4.json");
    dir.ok("dequantize about.json -o from_sidecar.safetensors");
    dir.ok("dequantize model.uint4.safetensors");
    let expected = [
        "about.json",
        "from_sidecar.safetensors",
        "model.safetensors",
        "model.uint4.float.safetensors",
        "model.uint4.json",
        "model.uint4.safetensors",
        "weights",
    ];
    assert_eq!(dir.names(), expected);
}

#[test]
fn a_sidecar_of_another_output_is_not_replaced() {
    let dir = crate::onnx_quantize::small();
    std::fs::copy(crate::support::FIXTURE, dir.path("model.safetensors")).unwrap();
    dir.ok("quantize model.safetensors");
    let before = dir.read("model.int8.json");
    let run = dir.fails("quantize model.onnx --force", 2);
    assert!(run.stderr.contains("model.int8.json: sidecar: expected one of this output to replace"), "{}", run.stderr);
    assert!(dir.read("model.int8.json") == before && !dir.exists("model.int8.onnx"));
    dir.ok("quantize model.onnx --force --sidecar onnx.json");
    dir.ok("verify model.int8.safetensors");
    // What it was of is gone.
    std::fs::remove_file(dir.path("model.int8.safetensors")).unwrap();
    dir.ok("quantize model.onnx --force");
}

#[test]
fn force_replaces_nothing_that_is_read_and_nothing_of_another_kind() {
    let dir = crate::onnx_quantize::small();
    dir.write("model.safetensors", Workdir::with_fixture().read("model.safetensors"));
    dir.write("notes.txt", "precious");
    dir.write("sample.npz", dir.read("samples/0.npz"));
    dir.ok("quantize model.safetensors -o q.safetensors");
    dir.ok("calibrate model.onnx --samples samples -o a.stats");
    dir.ok("calibrate model.onnx --samples sample.npz -o b.stats");
    dir.write("rules.toml", "[default]\nobserver = \"mse\"\n");
    dir.write("notes.md", "of qtool-statistics");
    dir.write("config.json", " {\"mine\": 1}");
    let files =
        ["config.json", "rules.toml", "notes.md", "model.safetensors", "model.onnx", "notes.txt", "sample.npz", "q.json", "a.stats"];
    let before = files.map(|name| dir.read(name));
    for mistake in [
        "quantize model.safetensors -o r.safetensors --emit-recipe model.safetensors --force",
        "quantize model.safetensors -o r.safetensors --emit-recipe notes.txt --force",
        "quantize model.safetensors -o r.safetensors --emit-recipe q.json --force",
        "quantize model.onnx --samples sample.npz -o sample.npz --force",
        "quantize model.onnx --stats a.stats -o a.stats --force",
        "quantize model.safetensors -o config.json --sidecar new.json --force",
        "quantize model.onnx -o config.json --sidecar new.json --force",
        "dequantize q.safetensors -o config.json --force",
        "calibrate model.onnx --samples samples -o model.onnx --force",
        "calibrate model.onnx --samples samples -o notes.txt --force",
        "calibrate model.onnx --samples samples -o notes.md --force",
        "merge a.stats b.stats -o a.stats --force",
        "dequantize q.safetensors -o q.json --force",
        "quantize model.safetensors -o new.safetensors --emit-recipe new.json --force",
        "quantize model.safetensors -o new.toml --emit-recipe new.toml",
        "quantize model.safetensors -o new.safetensors --emit-recipe new.html --report new.html --force",
        "quantize model.safetensors --recipe rules.toml -o rules.toml --force",
        // A name that promises another format could not be read again.
        "quantize model.safetensors -o r.onnx",
        "quantize model.onnx -o r.safetensors",
    ] {
        dir.fails(mistake, 2);
        assert!(files.map(|name| dir.read(name)) == before && !dir.exists("r.onnx") && !dir.exists("r.safetensors"), "{mistake}");
        assert!(dir.names().iter().all(|name| !name.starts_with("new")), "{mistake}: {:?}", dir.names());
    }
    dir.ok("quantize model.safetensors -o r.safetensors --emit-recipe r.toml");
    dir.ok("quantize model.safetensors -o r.safetensors --emit-recipe r.toml --force");
    dir.ok("calibrate model.onnx --samples samples -o b.stats --force");
}

#[test]
fn a_run_is_done_again_from_the_sidecar_that_it_replaces() {
    let dir = Workdir::with_fixture();
    dir.ok("quantize model.safetensors --weights int4 -o q.safetensors");
    let before = (dir.read("q.safetensors"), dir.read("q.json"));
    dir.ok("quantize model.safetensors --recipe q.json -o q.safetensors --force");
    assert!((dir.read("q.safetensors"), dir.read("q.json")) == before);
    // The sidecar has the request besides from then on.
    dir.ok("quantize model.safetensors --recipe ./q.json -o q.safetensors --if-changed");
    let run = dir.ok("quantize model.safetensors --recipe q.json -o q.safetensors --if-changed");
    assert!(run.stdout.contains("unchanged") && dir.read("q.safetensors") == before.0, "{run}");
    dir.fails("quantize model.safetensors --recipe q.json -o q.json --force", 2);

    let dir = crate::calibrated::checkpoint();
    dir.ok("quantize m --scheme w8a16 -o out");
    let before = dir.read("out/qtool.json");
    dir.ok("quantize m --recipe out/qtool.json -o out --force");
    assert!(dir.read("out/qtool.json") == before);
    dir.write("out/rules.toml", "[default]\nobserver = \"mse\"\n");
    dir.fails("quantize m --recipe out/rules.toml -o out --force", 2);
    assert!(dir.exists("out/rules.toml"));
}

#[test]
fn a_directory_with_samples_in_it_is_not_replaced() {
    let dir = crate::calibrated::checkpoint();
    dir.ok("quantize m --scheme w8a16 -o out");
    dir.write("out/s.safetensors", dir.read("s/0.safetensors"));
    let run = dir.fails("quantize m --scheme w4a16 --rounding gptq --samples out/s.safetensors -o out --force", 2);
    assert!(run.stderr.contains("found out/s.safetensors"), "{run}");
    assert!(dir.exists("out/s.safetensors"));
}

#[test]
fn a_directory_with_files_of_somebody_else_is_not_replaced() {
    let dir = crate::calibrated::checkpoint();
    dir.write("m/tokenizer.json", "{}");
    dir.write("m/more/words.txt", "words");
    dir.ok("quantize m --scheme w8a16 -o out --if-changed");
    dir.ok("quantize m --scheme w8a8 -o out --force");
    for mine in ["out/notes.md", "out/more/results.json"] {
        dir.write(mine, "precious");
        for options in ["--force", "--if-changed"] {
            let run = dir.fails(&format!("quantize m --scheme w4a16 -o out {options}"), 2);
            assert!(run.stderr.contains("expected only files that its sidecar lists") && run.stderr.contains(mine), "{run}");
        }
        std::fs::remove_file(dir.path(mine)).unwrap();
    }
    dir.ok("quantize m --scheme w4a16 -o out --force");
}
