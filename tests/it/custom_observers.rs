//! Commands as observers: what they are given, what they may answer, and every way in which they fail.

use crate::onnx_quantize::small;
use crate::support::model::{self, Tensor};
use crate::support::{QTOOL, Random, Run, Workdir, wait};
use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;
use std::collections::BTreeMap;
use std::os::unix::process::ExitStatusExt;
use std::process::Stdio;
use std::time::{Duration, Instant};

const RUN: &str = "quantize model.safetensors --recipe recipe.toml --allow-commands --durability none";

/// Two weights, and a recipe whose observer `mine`, of all tensors, is a shell script.
fn with_script(script: &str) -> Workdir {
    let mut random = Random(5);
    let tensors = [Tensor::weights("first.weight", &[4, 600], &mut random), Tensor::weights("second.weight", &[8, 300], &mut random)];
    let dir = Workdir::with_model(&model::file(&tensors));
    write_script(&dir, script, "");
    dir
}

fn write_script(dir: &Workdir, script: &str, settings: &str) {
    dir.write("mine.sh", format!("{script}\n"));
    let observer = format!("[[observer]]\nname = \"mine\"\ncommand = [\"sh\", \"./mine.sh\", \"an argument\"]\n{settings}\n");
    dir.write("recipe.toml", format!("{observer}[default]\nobserver = \"mine\"\n[activations]\nobserver = \"mine\"\n"));
}

fn scales(sidecar: &Value, tensor: &str) -> Vec<f64> {
    sidecar["tensors"][tensor]["scale"].as_array().unwrap().iter().map(|scale| scale.as_f64().unwrap()).collect()
}

#[track_caller]
fn expect_close(found: &[f64], expected: &[f64]) {
    let is_close = |(a, b): (&f64, &f64)| (a - b).abs() <= b.abs() * 1e-6;
    assert!(found.len() == expected.len() && found.iter().zip(expected).all(is_close), "{found:?}, expected {expected:?}");
}

#[test]
fn answers_become_scales() {
    let dir = with_script("echo '{\"min\": -1.275, \"max\": 0.5}'");
    dir.ok(RUN);
    expect_close(&scales(&dir.json("model.int8.json"), "first.weight"), &[0.01; 4]);
    assert_eq!(dir.json("model.int8.json")["tensors"]["first.weight"]["observer"], "mine");
    // One for each channel; a range without 0 is widened.
    write_script(&dir, "echo '{\"min\": [-1, -2, 3, 4], \"max\": [2, 1, 4, 5]}'", "input = \"safetensors\"");
    let halves = |ends: &[f64]| ends.iter().map(|end| end / 127.5).collect::<Vec<_>>();
    dir.ok(&format!("{RUN} --force --include first"));
    expect_close(&scales(&dir.json("model.int8.json"), "first.weight"), &halves(&[2.0, 2.0, 4.0, 5.0]));
    dir.ok(&format!("{RUN} --force --include first --asymmetric"));
    let sidecar = dir.json("model.int8.json");
    expect_close(&scales(&sidecar, "first.weight"), &[3.0, 3.0, 4.0, 5.0].map(|extent| extent / 255.0));
    assert_eq!(sidecar["tensors"]["first.weight"]["zero_point"][3], -128);
    // Eight groups: two a row.
    write_script(&dir, "echo '{\"min\": 0, \"max\": [1, 2, 3, 4, 5, 6, 7, 8]}'", "");
    dir.ok(&format!("{RUN} --force --include first --granularity per-group:300"));
    let stored = model::tensors(&dir.read("model.int8.safetensors"));
    expect_close(&stored["first.weight.scale"].values(), &halves(&[1.0, 2.0, 3.0, 4.0, 5.0, 6.0, 7.0, 8.0]));
}

#[test]
fn commands_are_given_the_values_and_what_they_are_of() {
    let script = "cat > $QTOOL_TENSOR.npy; env | grep ^QTOOL_ | sort > $QTOOL_TENSOR.env; echo $1 >> $QTOOL_TENSOR.env\n\
        echo '{\"min\": -1, \"max\": 1}'";
    let dir = with_script(script);
    dir.ok(&format!("{RUN} --granularity per-channel --axis 1"));
    let environment = String::from_utf8(dir.read("second.weight.env")).unwrap();
    let expected = "QTOOL_AXIS=1\nQTOOL_CODES=int8\nQTOOL_GRANULARITY=per-channel\nQTOOL_GROUPS=300\nQTOOL_SUBJECT=weight\n\
        QTOOL_SYMMETRIC=true\nQTOOL_TENSOR=second.weight\nan argument\n";
    assert_eq!(environment, expected);
    let given = dir.read("second.weight.npy");
    let stored = &model::tensors(&dir.read("model.safetensors"))["second.weight"];
    assert!(
        given.starts_with(b"\x93NUMPY\x01\x00") && given.ends_with(&stored.bytes) && (given.len() - stored.bytes.len()).is_multiple_of(64)
    );
    assert!(String::from_utf8_lossy(&given[..128]).contains("'shape': (8, 300)"));
    write_script(&dir, script, "input = \"safetensors\"");
    dir.ok(&format!("{RUN} --force"));
    assert_eq!(model::tensors(&dir.read("second.weight.npy"))["tensor"].bytes, stored.bytes);
}

#[test]
fn commands_run_only_when_that_is_allowed() {
    let dir = with_script("echo ran >> log; echo '{\"min\": -1, \"max\": 1}'");
    let before = dir.names();
    let run = dir.fails(&RUN.replace("--allow-commands", ""), 2);
    assert!(run.stderr.contains("`sh ./mine.sh an argument`") && run.stderr.contains("hint: --allow-commands"), "{run}");
    dir.ok(&RUN.replace("--allow-commands", "--dry-run"));
    assert_eq!(dir.names(), before);
    dir.ok(RUN);
    let first = [dir.read("model.int8.safetensors"), dir.read("model.int8.json")];
    std::fs::rename(dir.path("model.int8.json"), dir.path("as-recipe.json")).unwrap();
    std::fs::remove_file(dir.path("log")).unwrap();
    let again = "quantize model.safetensors --force --recipe as-recipe.json --durability none";
    dir.fails(again, 2);
    assert!(!dir.exists("log"));
    dir.ok(&format!("{again} --allow-commands"));
    assert!(first == [dir.read("model.int8.safetensors"), dir.read("model.int8.json")]);
}

#[test]
fn names_are_known_in_options_and_commands_are_found_from_the_recipe() {
    let dir = with_script("");
    dir.write("there/recipe.toml", "[[observer]]\nname = \"other\"\ncommand = [\"./run\"]\n");
    // Written by another process, or a test that forks meanwhile would keep it open: busy files cannot be run.
    let write =
        "echo '#!/bin/sh' > there/run; echo 'pwd > pwd; echo \"{\\\"min\\\": -3, \\\"max\\\": 0}\"' >> there/run; chmod +x there/run";
    assert!(dir.command("sh").args(["-c", write]).status().unwrap().success());
    let options = "quantize model.safetensors --force --recipe there/recipe.toml --allow-commands --observer";
    dir.ok(&format!("{options} other --granularity per-tensor"));
    expect_close(&scales(&dir.json("model.int8.json"), "second.weight"), &[3.0 / 127.5]);
    assert!(dir.exists("there/pwd"));
    for (observer, expected) in [("othr", "other"), ("other:3", "no number")] {
        let run = dir.fails(&format!("{options} {observer}"), 2);
        assert!(run.stderr.contains(expected), "{run}");
    }
}

#[test]
fn failures_name_the_tensor_and_leave_nothing() {
    let cases = [
        ("exit 3", "exit status 0, found 3"),
        ("kill -9 $$", "signal 9"),
        ("echo; printf 'one\\ntwo\\033[31m\\nthree\\n\\nfour\\n' >&2; exit 1", "standard error ends: two\\u{1b}[31m | three | four"),
        ("", "found nothing"),
        ("cat", "found"),
        ("echo '{\"min\": NaN, \"max\": 1}'", "finite numbers only"),
        ("echo '{\"min\": 2, \"max\": 1}'", "expected min up to max"),
        ("echo '{\"min\": [0, 0], \"max\": 1}'; echo careful >&2", "expected one number, or 4, found 2; standard error ends: careful"),
        ("echo '{\"min\": 0, \"max\": 1} and more'", "trailing"),
        ("head -c 70000000 /dev/zero", "at most 67108864 bytes"),
        ("yes error >&2", "expected an answer within 1.5 s, found none; standard error ends: error | error | error"),
        ("sleep 100", "expected an answer within 1.5 s"),
        ("exec >&- 2>&-; sleep 100", "expected an answer within 1.5 s"),
        ("sleep 100 & echo $! > pid; wait", "expected an answer within 1.5 s"),
    ];
    for (script, expected) in cases {
        let dir = with_script("");
        // Time enough for slow machines where time is not what is tested.
        let timeout = if expected.contains("1.5 s") { "timeout = 1.5" } else { "timeout = 15" };
        write_script(&dir, script, timeout);
        let run = dir.fails(&format!("{RUN} --threads 1"), 1);
        let is_named = run.stderr.contains("tensor \"first.weight\": observer \"mine\": ");
        assert!(is_named && run.stderr.contains(expected), "{script}: {run}");
        assert!(!dir.exists("model.int8.safetensors") && !dir.exists("model.int8.json"), "{script}");
        dir.expect_no_temporaries();
        if dir.exists("pid") {
            expect_gone(&dir);
        }
    }
    let dir = with_script("");
    for (program, expected) in [("./missing", "No such file"), ("./mine.sh", "ermission denied"), ("no-such-program-anywhere", "No such")] {
        dir.write("recipe.toml", format!("[[observer]]\nname = \"mine\"\ncommand = [\"{program}\"]\n[default]\nobserver = \"mine\"\n"));
        let run = dir.fails(RUN, 1);
        assert!(run.stderr.contains("first.weight") && run.stderr.contains(expected) && run.stderr.contains(program), "{run}");
    }
}

/// The process whose number is in the file `pid` has ended, or does soon.
#[track_caller]
fn expect_gone(dir: &Workdir) {
    let pid: i32 = String::from_utf8(dir.read("pid")).unwrap().trim().parse().unwrap();
    let started = Instant::now();
    let is_alive = || match std::fs::read_to_string(format!("/proc/{pid}/stat")) {
        Ok(stat) => !stat.rsplit(')').next().unwrap().trim_start().starts_with('Z'),
        Err(_) => false,
    };
    while is_alive() {
        assert!(started.elapsed() < Duration::from_secs(5), "process {pid} goes on");
        std::thread::sleep(Duration::from_millis(10));
    }
}

#[test]
fn commands_may_read_and_write_in_any_order() {
    // Each tensor is larger than a pipe holds, and so is what is written.
    let mut random = Random(9);
    let tensors = [Tensor::weights("large.weight", &[512, 512], &mut random)];
    let answer = "echo '{\"min\": -1, \"max\": 1}'";
    for script in [
        format!("head -c 3000000 /dev/zero >&2; head -c 3000000 /dev/zero | tr '\\0' ' '; {answer}; cat > /dev/null"),
        format!("{answer}; exec <&- >&-; sleep 0.05"),
        format!("head -c 10 > /dev/null; {answer}"),
        // What goes on behind it does not keep anyone waiting.
        format!("sleep 100 & echo $! > pid; {answer}"),
    ] {
        let dir = Workdir::with_model(&model::file(&tensors));
        write_script(&dir, &script, "timeout = 15");
        let run = dir.ok(RUN);
        assert!(run.elapsed < Duration::from_secs(10), "{script}: {run}");
        if dir.exists("pid") {
            expect_gone(&dir);
        }
    }
}

#[test]
fn signals_end_commands_too() {
    let dir = with_script("echo $$ > unfinished; mv unfinished pid; sleep 100");
    let before = dir.names();
    let started = Instant::now();
    let mut command = dir.command(QTOOL);
    let child = command.args(RUN.split(' ')).args(["--threads", "1"]).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    while !dir.exists("pid") {
        assert!(started.elapsed() < Duration::from_secs(10), "the command starts");
        std::thread::sleep(Duration::from_millis(5));
    }
    kill_process(Pid::from_child(&child), Signal::TERM).unwrap();
    let run: Run = wait(child, started, RUN.into());
    assert_eq!(run.status.signal(), Some(15), "{run}");
    expect_gone(&dir);
    std::fs::remove_file(dir.path("pid")).unwrap();
    assert_eq!(dir.names(), before);
}

#[test]
fn the_number_of_threads_makes_no_difference() {
    // The first answers last.
    let dir = with_script("case $QTOOL_TENSOR in first*) sleep 0.3;; esac; echo \"{\\\"min\\\": -$QTOOL_GROUPS, \\\"max\\\": 0}\"");
    let written: Vec<_> = ["1", "2", "7"]
        .iter()
        .map(|threads| {
            dir.ok(&format!("{RUN} --force --threads {threads}"));
            [dir.read("model.int8.safetensors"), dir.read("model.int8.json")]
        })
        .collect();
    assert!(written.windows(2).all(|pair| pair[0] == pair[1]));
}

#[test]
fn activations_are_given_in_ascending_order_and_each_tensor_once() {
    let dir = small();
    let count = "od -An -v -t f4 | tr -s ' ' '\\n' | grep -c . ";
    let script = format!(
        "dd bs=1 count=128 of=/dev/null 2> /dev/null; echo \"$QTOOL_SUBJECT $QTOOL_TENSOR $({count})\" | tr '/' '_' >> log\n\
         echo '{{\"min\": -2.5, \"max\": 2.6}}'"
    );
    write_script(&dir, &script, "");
    let run = "quantize model.onnx --recipe recipe.toml --allow-commands --samples samples --force --threads 1";
    dir.ok(run);
    let sidecar = dir.json("model.int8.json");
    let activations = sidecar["activations"].as_object().unwrap();
    assert!(activations.values().filter(|value| value["observer"] == "mine" && value["max"] == 2.6).count() >= 3, "{activations:?}");
    let log = String::from_utf8(dir.read("log")).unwrap();
    let mut asked: BTreeMap<&str, Vec<&str>> = BTreeMap::new();
    for line in log.lines() {
        let (question, values) = line.rsplit_once(' ').unwrap();
        assert!(values.parse::<u64>().unwrap() > 0, "{line}");
        asked.entry(question).or_default().push(values);
    }
    assert!(asked.keys().any(|question| question.starts_with("activation ")), "{log}");
    assert!(asked.keys().any(|question| question.starts_with("weight ")), "{log}");
    assert!(asked.values().all(|values| values.len() == 1), "{log}");
    write_script(&dir, "case $QTOOL_SUBJECT in weight) echo '{\"min\": -1, \"max\": 1}';; *) echo no >&2; exit 4;; esac", "");
    let failed = dir.fails(run, 1);
    let analyze = "analyze model.onnx --recipe recipe.toml --samples samples";
    let refused = dir.fails(analyze, 2);
    assert!(refused.stderr.contains("--allow-commands"), "{refused}");
    let asked = dir.fails(&format!("{analyze} --allow-commands"), 1);
    assert!(asked.stderr.contains("found 4; standard error ends: no"), "{asked}");
    assert!(failed.stderr.contains("value \"") && failed.stderr.contains("found 4; standard error ends: no"), "{failed}");
}
