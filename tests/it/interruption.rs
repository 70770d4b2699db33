//! What happens in the middle of a run: signals end it without a trace, inputs that change make it fail.
//!
//! Each attempt lets the run get going and then interferes at a random time; every attempt must end well, and enough of
//! them must have met a run that was still at work.

use crate::support::{QTOOL, Random, Run, Workdir, wait};
use rustix::process::{Pid, Signal, kill_process};
use std::fs::{self, File};
use std::io::{Seek, SeekFrom, Write};
use std::os::unix::process::ExitStatusExt;
use std::path::Path;
use std::process::Stdio;
use std::time::{Duration, Instant};

/// Values of the large tensor: a quarter of a GiB, of which the file system stores nothing.
const VALUES: u64 = 1 << 26;

/// A model of zeros that takes long enough to meet in the middle, at `path`.
fn create_large(path: &Path) {
    let header = format!(r#"{{"w":{{"dtype":"F32","shape":[4096,{}],"data_offsets":[0,{}]}}}}"#, VALUES / 4096, VALUES * 4);
    let mut file = File::create(path).unwrap();
    file.write_all(&(header.len() as u64).to_le_bytes()).unwrap();
    file.write_all(header.as_bytes()).unwrap();
    file.set_len(8 + header.len() as u64 + VALUES * 4).unwrap();
}

/// Starts a run on one thread, and interferes after a random part of a quarter of a second.
fn interfere(dir: &Workdir, arguments: &str, random: &mut Random, act: impl FnOnce(Pid)) -> Run {
    let started = Instant::now();
    let mut command = dir.command(QTOOL);
    command.args(arguments.split(' ')).args(["--threads", "1", "--durability", "none", "--quiet"]).env("QTOOL_SIMD", "scalar");
    let child = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    std::thread::sleep(Duration::from_millis(5 + random.below(250) as u64));
    act(Pid::from_child(&child));
    wait(child, started, arguments.into())
}

/// Whether whoever started the tests ignores a signal (`nohup`, background jobs of scripts): what they start ignores it, too.
fn is_ignored(signal: Signal) -> bool {
    let status = fs::read_to_string("/proc/self/status").unwrap_or_default();
    let mask = status.lines().find_map(|line| line.strip_prefix("SigIgn:"));
    let mask = mask.and_then(|mask| u64::from_str_radix(mask.trim(), 16).ok()).unwrap_or_default();
    mask >> (signal.as_raw() - 1) & 1 == 1
}

#[test]
fn signals_end_a_run_as_they_should_and_leave_nothing() {
    let dir = Workdir::new();
    fs::create_dir(dir.path("m")).unwrap();
    create_large(&dir.path("m/model.safetensors"));
    dir.write("m/config.json", "{}");
    let before = dir.names();
    let mut random = Random(21);
    for signal in [Signal::INT, Signal::TERM, Signal::HUP].into_iter().filter(|signal| !is_ignored(*signal)) {
        for (arguments, output) in [("quantize m", "m-int8"), ("quantize m/model.safetensors -o q.safetensors", "q.safetensors")] {
            let mut met = 0;
            for _ in 0..30 {
                let run = interfere(&dir, arguments, &mut random, |pid| {
                    // The run may be over already.
                    let _ = kill_process(pid, signal);
                });
                if run.status.signal() == Some(signal.as_raw()) {
                    met += 1;
                    assert_eq!(dir.names(), before, "{run}");
                } else {
                    let run = run.expect(0);
                    assert!(dir.exists(output), "{run}");
                    dir.ok(&format!("verify {output} --quiet"));
                    let _ = fs::remove_dir_all(dir.path("m-int8"));
                    for name in ["q.safetensors", "q.json"] {
                        let _ = fs::remove_file(dir.path(name));
                    }
                }
                if met == 4 {
                    break;
                }
            }
            assert!(met >= 2, "{signal:?} {arguments}: met {met} runs");
        }
    }
}

#[test]
fn an_output_that_was_there_survives_signals_and_kill() {
    let dir = Workdir::with_fixture();
    dir.ok("quantize model.safetensors -o q.safetensors");
    let old = [dir.read("q.safetensors"), dir.read("q.json")];
    create_large(&dir.path("large.safetensors"));
    let mut random = Random(22);
    let mut met = 0;
    for attempt in 0..12 {
        let signal = if attempt % 2 == 0 { Signal::KILL } else { Signal::TERM };
        let run = interfere(&dir, "quantize large.safetensors -o q.safetensors --force", &mut random, |pid| {
            let _ = kill_process(pid, signal);
        });
        dir.ok("verify q.safetensors --quiet");
        if run.status.signal() == Some(signal.as_raw()) {
            met += 1;
            assert!([dir.read("q.safetensors"), dir.read("q.json")] == old, "{run}");
        } else {
            drop(run.expect(0));
            dir.ok("quantize model.safetensors -o q.safetensors --force");
        }
    }
    assert!(met >= 3, "met {met} runs");
    // Whatever a killed run may have left, the next one cleans up.
    dir.ok("quantize model.safetensors -o q.safetensors --force");
    dir.expect_no_temporaries();
}

/// What may happen to an input while it is read.
type Change = fn(&Path);

fn change_a_byte(path: &Path) {
    let mut file = File::options().write(true).open(path).unwrap();
    file.seek(SeekFrom::End(-100)).unwrap();
    file.write_all(&[0]).unwrap();
}

fn resize(path: &Path, len: impl FnOnce(u64) -> u64) {
    let file = File::options().write(true).open(path).unwrap();
    let old = file.metadata().unwrap().len();
    file.set_len(len(old)).unwrap();
}

/// Whether a run ended while it opened its input or read the header, which takes as long as a busy machine likes.
fn is_of_header(run: &Run) -> bool {
    run.stderr.contains("header") || run.stderr.contains(": open: ")
}

#[test]
fn an_input_that_changes_is_an_error_of_its_own_and_nothing_is_written() {
    let changes: [(&str, Change); 6] = [
        ("modified", change_a_byte),
        ("truncated to nothing", |path| resize(path, |_| 0)),
        ("truncated by half", |path| resize(path, |len| len / 2)),
        ("grown", |path| resize(path, |len| len + 1)),
        ("replaced", |path| {
            create_large(&path.with_extension("new"));
            fs::rename(path.with_extension("new"), path).unwrap();
        }),
        ("gone", |path| fs::remove_file(path).unwrap()),
    ];
    let mut random = Random(23);
    for (what, change) in changes {
        let mut met = 0;
        for _ in 0..30 {
            let dir = Workdir::new();
            let input = dir.path("large.safetensors");
            create_large(&input);
            let run = interfere(&dir, "quantize large.safetensors -o q.safetensors", &mut random, |_| change(&input));
            let after: Vec<_> = dir.names().into_iter().filter(|name| name != "large.safetensors").collect();
            match run.status.code() {
                Some(5) => {
                    met += 1;
                    run.expect_one_error();
                    assert!(after.is_empty(), "{what}: {after:?}: {run}");
                }
                Some(0) => assert_eq!(after, ["q.json", "q.safetensors"], "{what}: {run}"),
                // Before the header was read, a changed input is just another input.
                Some(1 | 4) if run.elapsed < Duration::from_millis(60) || is_of_header(&run) => assert!(after.is_empty(), "{what}: {run}"),
                _ => panic!("{what}: {run}"),
            }
            if met == 3 {
                break;
            }
        }
        assert!(met >= 2, "{what}: met {met} runs");
    }
}
