//! Outputs appear complete or not at all, with the permissions that are due, and nothing else appears.

use crate::support::{FIXTURE, QTOOL, Workdir, finish, model, wait};
use rustix::fs::{FlockOperation, flock};
use std::fs::{self, File};
use std::io::{Read, pipe};
use std::os::unix::fs::PermissionsExt;
use std::process::Stdio;
use std::time::Instant;

fn mode(dir: &Workdir, name: &str) -> u32 {
    fs::metadata(dir.path(name)).unwrap().permissions().mode() & 0o7777
}

#[test]
fn new_files_follow_the_umask_and_replaced_ones_keep_their_mode() {
    for (umask, file, folder) in [("022", 0o644, 0o755), ("077", 0o600, 0o700), ("002", 0o664, 0o775)] {
        let dir = Workdir::with_fixture();
        dir.write("m/model.safetensors", fs::read(FIXTURE).unwrap());
        dir.write("m/config.json", "{}");
        let run = |arguments: &str| dir.run_after(&format!("umask {umask}"), arguments.split(' ')).expect(0);
        run("quantize model.safetensors");
        run("quantize m");
        run("dequantize model.int8.safetensors");
        for name in
            ["model.int8.safetensors", "model.int8.json", "model.int8.float.safetensors", "m-int8/model.safetensors", "m-int8/qtool.json"]
        {
            assert_eq!(mode(&dir, name), file, "umask {umask}: {name} is {:o}", mode(&dir, name));
        }
        assert_eq!(mode(&dir, "m-int8"), folder, "umask {umask}");
        for name in ["model.int8.safetensors", "model.int8.json"] {
            fs::set_permissions(dir.path(name), fs::Permissions::from_mode(0o640)).unwrap();
        }
        run("quantize model.safetensors --force --weights uint8 -o model.int8.safetensors");
        for name in ["model.int8.safetensors", "model.int8.json"] {
            assert_eq!(mode(&dir, name), 0o640, "umask {umask}: {name}");
        }
        dir.expect_no_temporaries();
    }
}

#[test]
fn debris_of_a_dead_run_is_removed_and_nothing_else() {
    for command in ["quantize m --force", "quantize model.safetensors --force"] {
        let dir = Workdir::with_fixture();
        dir.write("m/model.safetensors", fs::read(FIXTURE).unwrap());
        dir.ok(command);
        dir.write(".qtool-deadbeef.tmp", "half a file");
        dir.write(".qtool-0badcafe.tmp/model.safetensors", "half a directory");
        dir.write(".qtool-notes", "the user's own");
        dir.write(".qtool-12345678.tmp", "somebody is writing this");
        let writer = File::open(dir.path(".qtool-12345678.tmp")).unwrap();
        flock(&writer, FlockOperation::LockExclusive).unwrap();
        dir.ok(command);
        assert!(!dir.exists(".qtool-deadbeef.tmp") && !dir.exists(".qtool-0badcafe.tmp"), "{command}: {:?}", dir.names());
        assert!(dir.exists(".qtool-notes") && dir.exists(".qtool-12345678.tmp"), "{command}: {:?}", dir.names());
    }
}

/// Of runs that write the same files at once, one whole set is there in the end.
#[test]
fn writers_of_one_output_do_not_mix() {
    let dir = Workdir::with_fixture();
    let start = |options: &str| {
        let mut command = dir.command(QTOOL);
        command.args(["quantize", "model.safetensors", "-o", "q.safetensors", "--durability", "none"]).args(options.split(' '));
        command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap()
    };
    let kinds = ["--weights int8", "--weights uint8", "--granularity per-tensor", "--weights int4 --asymmetric"];
    for _ in 0..12 {
        let children = kinds.map(|kind| start(&format!("{kind} --force")));
        for child in children {
            drop(wait(child, Instant::now(), "a writer with --force".into()).expect(0));
        }
        dir.ok("verify q.safetensors");
        assert_eq!(dir.names(), ["model.safetensors", "q.json", "q.safetensors"]);
    }
    for _ in 0..6 {
        for name in ["q.safetensors", "q.json"] {
            fs::remove_file(dir.path(name)).unwrap();
        }
        let codes = kinds.map(start).map(|child| wait(child, Instant::now(), "a writer".into()).status.code());
        assert_eq!(codes.iter().filter(|code| **code == Some(0)).count(), 1, "{codes:?}");
        assert_eq!(codes.iter().filter(|code| **code == Some(2)).count(), 3, "{codes:?}");
        dir.ok("verify q.safetensors");
    }
}

#[test]
fn a_reader_who_has_seen_enough_is_no_error() {
    let dir = Workdir::new();
    let tensors: Vec<_> = (0..3000).map(|i| model::Tensor::f32(&format!("layer.{i}.weight"), &[1], &[0.5])).collect();
    dir.write("model.safetensors", model::file(&tensors));
    for arguments in ["inspect model.safetensors", "inspect model.safetensors --json", "quantize model.safetensors --dry-run --json"] {
        let (mut reader, writer) = pipe().unwrap();
        let mut command = dir.command(QTOOL);
        let child = command.args(arguments.split(' ')).stdout(writer).stderr(Stdio::piped()).spawn().unwrap();
        // The command holds the other end of the pipe.
        drop(command);
        reader.read_exact(&mut [0; 100]).unwrap();
        drop(reader);
        let run = wait(child, Instant::now(), arguments.into()).expect(0);
        assert!(run.stderr.is_empty(), "{run}");
    }
}

#[test]
fn a_full_standard_output_is_an_error() {
    let dir = Workdir::with_fixture();
    for arguments in ["inspect model.safetensors", "quantize model.safetensors", "--help", "completions bash", "man"] {
        let full = File::options().write(true).open("/dev/full").unwrap();
        let child = dir.command(QTOOL).args(arguments.split(' ')).stdout(full).stderr(Stdio::piped()).spawn().unwrap();
        let run = wait(child, Instant::now(), arguments.into()).expect(4);
        run.expect_one_error();
        assert!(run.stderr.contains("standard output"), "{run}");
    }
    // What was written before the report is whole.
    dir.ok("verify model.int8.safetensors");
}

#[test]
fn a_limit_on_file_sizes_is_an_error_not_a_signal() {
    let dir = Workdir::with_fixture();
    dir.write("m/model.safetensors", fs::read(FIXTURE).unwrap());
    dir.ok("quantize model.safetensors -o old.safetensors");
    let before = dir.names();
    for arguments in
        ["quantize model.safetensors", "quantize m", "quantize model.safetensors -o old.safetensors --force", "dequantize old.safetensors"]
    {
        // 64 blocks are at most 64 KiB, less than any of the outputs.
        let run = dir.run_after("ulimit -f 64", arguments.split(' ')).expect(4);
        run.expect_one_error();
        assert!(run.stderr.to_lowercase().contains("too large"), "{run}");
        assert_eq!(dir.names(), before, "{run}");
    }
    dir.ok("verify old.safetensors");
}

#[test]
fn few_file_descriptors_and_a_small_stack_suffice() {
    let dir = Workdir::new();
    let mut weight_map = serde_json::Map::new();
    for i in 0..64 {
        let shard = format!("shard-{i:03}.safetensors");
        dir.write(format!("m/{shard}"), model::file(&[model::Tensor::f32(&format!("{i}.weight"), &[32, 32], &[0.5; 1024])]));
        weight_map.insert(format!("{i}.weight"), shard.into());
    }
    dir.write("m/model.safetensors.index.json", serde_json::json!({"weight_map": weight_map}).to_string());
    dir.run_after("ulimit -n 16 && ulimit -s 256", ["quantize", "m"]).expect(0);
    dir.run_after("ulimit -n 16 && ulimit -s 256", ["verify", "m-int8"]).expect(0);
}

/// With standard streams closed there is nobody to report to, and no file is mistaken for them.
#[test]
fn closed_standard_streams_do_no_harm() {
    let dir = Workdir::with_fixture();
    let mut command = dir.command("sh");
    command.args(["-c", "exec \"$0\" quantize model.safetensors --quiet <&- >&- 2>&-", QTOOL]);
    drop(finish(&mut command).expect(0));
    dir.ok("verify model.int8.safetensors");
    let header = model::header(&dir.read("model.int8.safetensors"));
    assert!(header.contains_key("conv1.weight"));
}
