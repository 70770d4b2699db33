//! What is read: the model's own files and those that were named, and nothing that a file or a link leads to beyond them.
//!
//! Two witnesses: the kernel tells of everything that is opened in a directory beside the model's (inotify), and, where strace(1) is
//! installed, of every name that the program opens.

use crate::support::model::{Tensor, file};
use crate::support::onnx::{Constant, Graph, Node};
use crate::support::{QTOOL, Random, Run, Workdir, finish};
use rustix::fs::inotify::{CreateFlags, Reader, WatchFlags, add_watch, init};
use rustix::fs::{CWD, FileType, Mode, mknodat};
use serde_json::{Value, json};
use std::fs;
use std::mem::MaybeUninit;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};

/// Directories that the system's libraries and the standard library open files of.
const SYSTEM: &[&str] = &["/lib", "/usr/lib", "/etc/ld.so", "/proc/self/", "/sys/fs/cgroup", "/sys/devices/system/cpu", "/dev/null"];

/// Runs `qtool` and tells what it opened in `outside`, and of all else what is in none of `allowed`; both are relative to the directory.
fn watched(dir: &Workdir, words: &[&str], allowed: &[&str]) -> (Run, Vec<String>) {
    let inotify = init(CreateFlags::NONBLOCK | CreateFlags::CLOEXEC).unwrap();
    for place in ["outside", "outside/d"] {
        add_watch(&inotify, dir.path(place), WatchFlags::OPEN | WatchFlags::ACCESS).unwrap();
    }
    let has_strace = std::process::Command::new("strace").arg("-V").output().is_ok_and(|output| output.status.success());
    let trace = tempfile::NamedTempFile::new().unwrap();
    let run = if has_strace {
        let mut command = dir.command("strace");
        command.args(["-f", "-qq", "-y", "-s", "9999", "-e", "trace=open,openat,openat2,creat", "-o"]).arg(trace.path());
        finish(command.arg(QTOOL).args(words))
    } else {
        eprintln!("strace is not here: only what is opened outside is watched");
        dir.run(words)
    };
    let mut buffer = [MaybeUninit::uninit(); 4096];
    let mut reader = Reader::new(&inotify, &mut buffer);
    let mut found = Vec::new();
    while let Ok(event) = reader.next() {
        found.push(format!("outside: {:?} {:?}", event.events(), event.file_name()));
    }
    let roots: Vec<PathBuf> = allowed.iter().map(|place| dir.path(place)).chain([dir.path("out")]).collect();
    for line in fs::read_to_string(trace.path()).unwrap().lines().filter(|line| line.contains("open") || line.contains("creat(")) {
        // `123 openat(AT_FDCWD</dir>, "name", FLAGS) = 3</dir/name>`; one that was not opened has no name at its end.
        let Some((_, opened)) = line.rsplit_once(") = ") else { continue };
        let Some(path) = opened.split_once('<').and_then(|(_, path)| path.strip_suffix('>')) else { continue };
        let path = Path::new(path);
        let is_system =
            SYSTEM.iter().any(|place| path.to_string_lossy().starts_with(place)) || path.to_string_lossy().starts_with("/proc/");
        let is_own = roots.iter().any(|root| path.starts_with(root)) || path == dir.path("");
        if !is_system && !is_own {
            found.push(line.to_owned());
        }
    }
    (run, found)
}

/// `model` and what must not be looked at, `outside`, in which there is everything that a model may have.
fn places() -> Workdir {
    let dir = Workdir::new();
    let values: Vec<u8> = vec![0x3d; 16 * 16 * 4];
    for place in ["outside", "outside/d", "model/sub"] {
        dir.write(format!("{place}/secret"), &values);
        dir.write(format!("{place}/secret.safetensors"), file(&[Tensor::weights("w", &[8, 64], &mut Random(5))]));
        dir.write(format!("{place}/config.json"), "{}");
        dir.write(format!("{place}/input_0.pb"), "");
        dir.write(format!("{place}/qtool.json"), r#"{"format": "qtool-sidecar"}"#);
    }
    symlink("../outside", dir.path("model/d")).unwrap();
    symlink("../outside/secret", dir.path("model/link")).unwrap();
    symlink("sub/hop", dir.path("model/hops")).unwrap();
    symlink("../../outside/secret", dir.path("model/sub/hop")).unwrap();
    symlink(dir.path("outside/secret"), dir.path("model/absolute")).unwrap();
    symlink("loop", dir.path("model/loop")).unwrap();
    symlink("/proc/self/fd/0", dir.path("model/fd")).unwrap();
    symlink("/proc/self/root", dir.path("model/root")).unwrap();
    symlink("/dev/zero", dir.path("model/device")).unwrap();
    mknodat(CWD, dir.path("model/fifo"), FileType::Fifo, Mode::RWXU, 0).unwrap();
    dir
}

/// Names by which a file may mean another that it must not have.
fn names(dir: &Workdir) -> Vec<String> {
    let outside = dir.path("outside/secret").display().to_string();
    let relative = [
        "../outside/secret",
        "./../outside/secret",
        "sub/../../outside/secret",
        "a/../../outside/secret",
        "sub/../link",
        "link",
        "hops",
        "absolute",
        "d/secret",
        "d/d/secret",
        "d",
        "loop",
        "loop/secret",
        "fd",
        "device",
        "fifo",
        "sub",
        ".",
        "..",
        "/",
        "/dev/stdin",
        "/proc/self/fd/0",
        "/proc/self/cwd/outside/secret",
        "secret\0",
        "\0",
        "link\0.bin",
        "..\\outside\\secret",
        "~/secret",
        "$HOME",
    ];
    relative
        .map(String::from)
        .into_iter()
        .chain([format!("root{outside}"), format!("file://{outside}"), outside, "x".repeat(65536)])
        .collect()
}

fn graph(location: Option<&str>) -> Vec<u8> {
    let weight = Constant { location: location.map(str::to_owned), ..Constant::floats("w", &[16, 16], &[0.5; 256]) };
    let nodes = vec![Node::new("MatMul", &["x", "w"], "y", &[])];
    Graph { nodes, constants: vec![weight], inputs: vec![("x".into(), vec![1, 16])], outputs: vec![("y".into(), vec![1, 16])] }.model(17)
}

/// Runs that must be refused without a look outside.
#[track_caller]
fn refused(dir: &Workdir, what: &str, commands: &[&str], allowed: &[&str]) {
    for command in commands {
        let (run, found) = watched(dir, &command.split(' ').collect::<Vec<_>>(), allowed);
        assert!(matches!(run.status.code(), Some(1 | 3 | 4)), "{what}: {run}");
        assert!(found.is_empty(), "{what}: {found:#?} {run}");
        assert!(!dir.exists("out") || crate::support::names(&dir.path("out")).is_empty(), "{what}");
        assert!(run.stderr.len() < 2500, "{what}: {run}");
    }
}

#[test]
fn values_of_graphs() {
    let dir = places();
    for name in names(&dir) {
        dir.write("model/m.onnx", graph(Some(&name)));
        let all: &[&str] = if ["link", "../outside/secret"].contains(&name.as_str()) {
            &["inspect model/m.onnx", "quantize model/m.onnx -o out/q.onnx", "lint model/m.onnx", "dequantize model/m.onnx -o out/q.onnx"]
        } else {
            &["quantize model/m.onnx -o out/q.onnx"]
        };
        refused(&dir, &format!("{name:.80}"), all, &["model"]);
    }
}

#[test]
fn shards() {
    let dir = places();
    for name in names(&dir).into_iter().flat_map(|name| [name.clone(), format!("{name}.safetensors")]) {
        dir.write("model/model.safetensors.index.json", json!({"weight_map": {"w": name}}).to_string());
        let all: &[&str] =
            if name == "link" { &["inspect model", "quantize model -o out", "compare model model"] } else { &["inspect model"] };
        refused(&dir, &format!("{name:.80}"), all, &["model"]);
    }
    fs::remove_file(dir.path("model/model.safetensors.index.json")).unwrap();
    for (link, target) in
        [("model.safetensors", "../outside/secret.safetensors"), ("model.safetensors.index.json", "../outside/qtool.json")]
    {
        symlink(target, dir.path(format!("model/{link}"))).unwrap();
        refused(&dir, link, &["inspect model", "quantize model -o out", "compare model model"], &["model"]);
        fs::remove_file(dir.path(format!("model/{link}"))).unwrap();
    }
}

/// A model that is named by a link is read where it lies, with what lies beside it there.
#[test]
fn a_link_to_the_model_is_followed_and_no_further() {
    let dir = places();
    dir.write("model/m.onnx", graph(Some("sub/secret")));
    dir.write("named/other", "");
    symlink("../model/m.onnx", dir.path("named/m.onnx")).unwrap();
    let (run, found) =
        watched(&dir, &["quantize", "named/m.onnx", "--min-elements", "0", "-o", "q.onnx"], &["model", "named", "q.onnx", "q.json", ""]);
    assert!(run.status.success() && found.is_empty(), "{found:#?} {run}");
    dir.write("model/m.onnx", graph(Some("link")));
    refused(&dir, "named by a link", &["inspect named/m.onnx"], &["model", "named"]);
    symlink("model", dir.path("by-link")).unwrap();
    dir.write("model/model.safetensors", file(&[Tensor::weights("w", &[32, 64], &mut Random(5))]));
    let (run, found) = watched(&dir, &["inspect", "by-link"], &["model"]);
    assert!(run.status.success() && found.is_empty(), "{found:#?} {run}");
}

/// What goes along with a model, or tells of it, is left behind or refused where it leads out.
#[test]
fn companions_and_configurations() {
    let dir = places();
    dir.write("model/model.safetensors", file(&[Tensor::weights("w", &[32, 64], &mut Random(5))]));
    symlink("../outside/config.json", dir.path("model/config.json")).unwrap();
    symlink("../outside/qtool.json", dir.path("model/qtool.json")).unwrap();
    fs::remove_file(dir.path("model/sub/qtool.json")).unwrap();
    symlink("../../outside/qtool.json", dir.path("model/sub/qtool.json")).unwrap();
    refused(&dir, "config.json", &["quantize model --scheme w8a8 -o out"], &["model"]);
    refused(&dir, "qtool.json", &["verify model", "dequantize model -o out", "compare model model"], &["model"]);
    let (run, found) = watched(&dir, &["quantize", "model", "-o", "out"], &["model", ""]);
    assert!(run.status.success() && found.is_empty(), "{found:#?} {run}");
    let names = crate::support::names(&dir.path("out"));
    assert!(
        names.iter().all(|name| ["model.safetensors", "qtool.json", "sub"].contains(&name.as_str()) || name.starts_with("sub/")),
        "{names:?}"
    );
    assert!(!names.contains(&"sub/qtool.json".to_owned()));
}

#[test]
fn files_of_sidecars() {
    let dir = places();
    dir.write("m.safetensors", file(&[Tensor::weights("w", &[32, 64], &mut Random(5))]));
    dir.ok("quantize m.safetensors -o model/q.safetensors");
    let good = dir.read("model/q.json");
    for name in names(&dir) {
        let mut sidecar: Value = serde_json::from_slice(&good).unwrap();
        sidecar["output"]["files"][0]["name"] = json!(name);
        sidecar.as_object_mut().unwrap().remove("blake3");
        dir.write("model/q.json", sidecar.to_string());
        refused(&dir, &format!("{name:.80}"), &["verify model/q.json", "dequantize model/q.json -o out/f.safetensors"], &["model"]);
    }
    // A file that is named may lie elsewhere; what is found by its name may not.
    dir.write("model/q.json", &good);
    fs::rename(dir.path("model/q.safetensors"), dir.path("outside/q.safetensors")).unwrap();
    symlink("../outside/q.safetensors", dir.path("model/q.safetensors")).unwrap();
    refused(&dir, "weights", &["verify model/q.json", "dequantize model/q.json -o out/f.safetensors"], &["model"]);
    dir.ok("verify model/q.safetensors");
    dir.ok("verify --follow-symlinks model/q.json");
    dir.ok("dequantize --follow-symlinks model/q.json -o f.safetensors");
    fs::rename(dir.path("model/q.json"), dir.path("outside/q.json")).unwrap();
    symlink("../outside/q.json", dir.path("model/q.json")).unwrap();
    for command in
        ["verify model/q.safetensors", "dequantize model/q.safetensors -o g.safetensors", "compare m.safetensors model/q.safetensors"]
    {
        let run = dir.fails(command, 1);
        assert!(run.stderr.contains("hint: pass --follow-symlinks"), "{run}");
        dir.ok(&format!("{command} --follow-symlinks"));
    }
}

#[test]
fn samples() {
    let dir = places();
    dir.write("model/m.onnx", graph(None));
    let npy = [&b"\x93NUMPY\x01\x00\x3c\x00{'descr': '<f4', 'fortran_order': False, 'shape': (1, 16), }"[..], b"\n", &[0; 64]].concat();
    let calibrate = "calibrate model/m.onnx --samples s -o out/s.stats";
    for (link, target) in [
        ("x.npy", "../outside/secret"),
        ("y.npy", "loop.npy"),
        ("z.npy", "/dev/zero"),
        ("test_data_set_0", "../outside/d"),
        ("data", "../outside"),
        ("test_data_set_1/input_0.pb", "../../outside/input_0.pb"),
    ] {
        let _ = fs::remove_dir_all(dir.path("s"));
        dir.write("s/a.npy", &npy);
        fs::create_dir_all(dir.path(format!("s/{link}")).parent().unwrap()).unwrap();
        symlink(target, dir.path(format!("s/{link}"))).unwrap();
        refused(&dir, link, &[calibrate], &["model", "s"]);
    }
    for kind in [FileType::Fifo, FileType::Socket] {
        fs::remove_dir_all(dir.path("s")).unwrap();
        fs::create_dir(dir.path("s")).unwrap();
        mknodat(CWD, dir.path("s/x.npy"), kind, Mode::RWXU, 0).unwrap();
        refused(&dir, "no file", &[calibrate], &["model", "s"]);
    }
}

/// A FIFO in a file's place is not even opened: whoever waits at its other end would be let go.
#[test]
fn what_is_no_file_is_not_opened() {
    let dir = places();
    dir.write("model/m.onnx", graph(Some("fifo")));
    for place in ["model/model.safetensors", "model/q.safetensors", "model/s.npy"] {
        mknodat(CWD, dir.path(place), FileType::Fifo, Mode::RWXU, 0).unwrap();
    }
    let inotify = init(CreateFlags::NONBLOCK | CreateFlags::CLOEXEC).unwrap();
    for place in ["fifo", "model.safetensors", "q.safetensors", "s.npy"] {
        add_watch(&inotify, dir.path(format!("model/{place}")), WatchFlags::OPEN).unwrap();
    }
    for command in [
        "inspect model/m.onnx",
        "inspect model",
        "inspect model/q.safetensors",
        "quantize model/q.safetensors",
        "inspect model/fifo",
        "calibrate model/m.onnx --samples model/s.npy -o s.stats",
        "merge model/s.npy -o t.stats",
    ] {
        dir.fails(command, 1);
    }
    let mut buffer = [MaybeUninit::uninit(); 4096];
    assert!(Reader::new(&inotify, &mut buffer).next().is_err(), "one was opened");
}
