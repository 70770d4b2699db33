//! The examples of `docs/ci.md`: every command of the YAML files runs, and the makefile makes what it should and nothing else.

use crate::support::{QTOOL, Run, Workdir, finish};
use std::collections::BTreeMap;
use std::fs;
use std::path::Path;
use std::process::Command;
use std::time::SystemTime;

fn example(name: &str) -> String {
    fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join("docs/examples").join(name)).unwrap()
}

/// `models/NAME.onnx` for each name, `samples` and `recipe.toml`, as the examples expect them.
fn project(names: &[&str]) -> Workdir {
    let dir = Workdir::new();
    let from = Path::new(env!("CARGO_MANIFEST_DIR")).join("fixtures/onnx/small");
    for name in names {
        dir.write(format!("models/{name}.onnx"), fs::read(from.join("small.onnx")).unwrap());
    }
    for i in 0..6 {
        dir.write(format!("samples/{i}.npz"), fs::read(from.join(format!("{i}.npz"))).unwrap());
    }
    dir.write("recipe.toml", example("recipe.toml"));
    dir
}

/// A command that finds the program under test as `qtool`.
fn with_qtool(dir: &Workdir, program: &str) -> Command {
    let mut command = dir.command(program);
    let path = std::env::var_os("PATH").unwrap_or_default();
    let dirs = std::iter::once(Path::new(QTOOL).parent().unwrap().to_owned()).chain(std::env::split_paths(&path));
    command.env("PATH", std::env::join_paths(dirs).unwrap()).env_remove("MAKEFLAGS").env_remove("QTOOL");
    command
}

/// The commands of a YAML file that can run here: `run:` lines and items of lists.
fn commands(text: &str) -> Vec<&str> {
    fn of_line(line: &str) -> &str {
        let line = line.trim();
        let line = line.strip_prefix("- ").unwrap_or(line);
        line.strip_prefix("run: ").unwrap_or(line).trim()
    }
    // The others of these files are comments and keys, and how qtool is installed.
    text.lines().map(of_line).filter(|line| line.starts_with("qtool ") || line.starts_with("mkdir ")).collect()
}

#[test]
fn commands_of_the_yaml_files_run() {
    for name in ["github-actions.yml", "gitlab-ci.yml"] {
        let dir = project(&["model"]);
        let text = example(name);
        let commands = commands(&text);
        let verbs: Vec<&str> = commands.iter().filter_map(|command| command.split(' ').nth(1)).collect();
        assert_eq!(verbs, ["-p", "quantize", "verify", "compare"], "{name}");
        for command in &commands {
            finish(with_qtool(&dir, "sh").args(["-c", command])).expect(0);
        }
        for junit in ["quantize", "verify", "compare"] {
            let junit = String::from_utf8(dir.read(format!("build/{junit}.xml"))).unwrap();
            assert!(junit.contains("failures=\"0\" errors=\"0\" skipped=\"0\"") && junit.contains("<testcase "), "{name}: {junit}");
        }
        // The next run finds what this one left, as from a cache.
        let again = finish(with_qtool(&dir, "sh").args(["-c", commands[1]])).expect(0);
        assert!(again.stdout.starts_with("unchanged: build/model.onnx"), "{name}: {again}");
    }
}

/// A project with the makefile in it, if there is GNU Make.
fn makefile(names: &[&str]) -> Option<Workdir> {
    let dir = project(names);
    let is_gnu = |run: Run| run.stdout.starts_with("GNU Make");
    let made = Command::new("make").arg("--version").output().is_ok() && is_gnu(finish(dir.command("make").arg("--version")));
    if !made {
        eprintln!("skipped: expected GNU Make as `make`, found none");
        return None;
    }
    dir.write("Makefile", example("Makefile"));
    Some(dir)
}

fn make(dir: &Workdir, arguments: &[&str]) -> Run {
    finish(with_qtool(dir, "make").args(arguments))
}

/// Name, time and content of every file in `build`.
fn built(dir: &Workdir) -> BTreeMap<String, (SystemTime, Vec<u8>)> {
    let names = dir.names().into_iter().filter(|name| name.starts_with("build/"));
    let state = |name: String| {
        let time = dir.path(&name).metadata().unwrap().modified().unwrap();
        (name.clone(), (time, dir.read(&name)))
    };
    names.map(state).collect()
}

/// Makes a file or directory newer than all that was made: tests must not wait for clocks.
fn touch(dir: &Workdir, name: &str) {
    let newest = built(dir).values().map(|(time, _)| *time).max().unwrap();
    let later = newest + std::time::Duration::from_secs(1);
    fs::File::open(dir.path(name)).unwrap().set_modified(later).unwrap();
}

/// Makes all that was made old, so that whatever is made again is newer.
fn age(dir: &Workdir) {
    let long_ago = SystemTime::now() - std::time::Duration::from_secs(1000);
    for name in dir.names() {
        let path = dir.path(&name);
        // What is made from others stays newer than these.
        let seconds = if name.ends_with(".checked") {
            200
        } else if name.starts_with("build/") {
            100
        } else {
            0
        };
        fs::File::open(path).unwrap().set_modified(long_ago + std::time::Duration::from_secs(seconds)).unwrap();
    }
}

#[test]
fn make_makes_all_models_at_once_and_nothing_twice() {
    let Some(dir) = makefile(&["a", "b", "c"]) else { return };
    let run = make(&dir, &["-j3", "all", "check"]).expect(0);
    assert_eq!(run.stdout.matches("qtool quantize").count(), 3, "{run}");
    let expected: Vec<String> = ["a", "b", "c"]
        .iter()
        .flat_map(|name| ["checked", "json", "junit.xml", "onnx"].map(|kind| format!("build/{name}.{kind}")))
        .collect();
    assert_eq!(built(&dir).into_keys().collect::<Vec<_>>(), expected);
    for name in ["a", "b", "c"] {
        dir.ok(&format!("verify build/{name}.onnx"));
    }
    age(&dir);
    let before = built(&dir);
    for goal in ["all", "check"] {
        let run = make(&dir, &["-j3", goal]).expect(0);
        assert!(run.stdout.contains("Nothing to be done") && make(&dir, &["-q", goal]).status.success(), "{run}");
    }
    assert!(built(&dir) == before);
}

#[test]
fn make_makes_again_what_changed() {
    let Some(dir) = makefile(&["a", "b"]) else { return };
    make(&dir, &["check"]).expect(0);
    let ran = |goal: &str| make(&dir, &[goal]).expect(0).stdout.matches("qtool quantize").count();
    let original = built(&dir);
    // A newer file with the same content: qtool is asked, and nothing is written.
    for (name, count) in [("models/a.onnx", 1), ("recipe.toml", 2), ("samples/3.npz", 2), ("samples", 2), ("Makefile", 2)] {
        age(&dir);
        touch(&dir, name);
        assert_eq!(ran("check"), count, "{name}");
        assert!(built(&dir).iter().all(|(file, (_, content))| original[file].1 == *content), "{name}");
        age(&dir);
        assert_eq!(ran("check"), 0, "{name}");
    }
    // Other content.
    let model = |name: &str| dir.read(format!("build/{name}.onnx"));
    let before = (model("a"), model("b"));
    dir.write("recipe.toml", "[default]\nweights = \"int8\"\ngranularity = \"per-tensor\"\n");
    touch(&dir, "recipe.toml");
    assert_eq!(ran("all"), 2);
    assert!(model("a") != before.0 && model("b") != before.1);
    let before = model("a");
    age(&dir);
    fs::remove_file(dir.path("samples/0.npz")).unwrap();
    touch(&dir, "samples");
    assert_eq!(ran("all"), 2);
    assert!(model("a") != before && dir.json("build/a.json")["calibration"]["samples"] == 5);
    age(&dir);
    fs::remove_file(dir.path("build/a.json")).unwrap();
    assert_eq!(ran("check"), 1);
    dir.ok("verify build/a.onnx");
}

#[test]
fn a_failure_leaves_no_target_half_made_and_is_tried_again() {
    let Some(dir) = makefile(&["a", "b"]) else { return };
    make(&dir, &["check"]).expect(0);
    let gate = |makefile: &str, db: &str| {
        makefile.replace(
            "--recipe recipe.toml --samples samples --min-sqnr 20",
            &format!("--recipe recipe.toml --samples samples --min-sqnr {db}"),
        )
    };
    let before = built(&dir);
    // No output can keep that much.
    dir.write("Makefile", gate(&example("Makefile"), "200"));
    touch(&dir, "Makefile");
    for (arguments, failures) in
        [(&["-j2", "-k", "check"][..], 2), (&["-j2", "-k", "check"], 2), (&[], 1), (&["build/a.json"], 1), (&["-k"], 2)]
    {
        let run = make(&dir, arguments).expect(2);
        assert_eq!(run.stderr.matches("gates fail, so nothing is written").count(), failures, "{run}");
        assert!(built(&dir) == before, "{arguments:?}: {run}");
    }
    dir.write("Makefile", example("Makefile"));
    touch(&dir, "Makefile");
    make(&dir, &["-j2", "check"]).expect(0);

    // A check that fails has a JUnit file and no stamp.
    dir.write("Makefile", example("Makefile").replace("--min-top1 0.95", "--min-top1 0.95 --max-abs 0"));
    touch(&dir, "Makefile");
    make(&dir, &["-j2", "-k", "check"]).expect(2);
    let stale = dir.path("build/a.checked").metadata().unwrap().modified().unwrap();
    assert!(stale < dir.path("Makefile").metadata().unwrap().modified().unwrap());
    let junit = String::from_utf8(dir.read("build/a.junit.xml")).unwrap();
    assert!(junit.contains("failures=\"1\"") && junit.contains("expected at most 0, found"), "{junit}");
    make(&dir, &["check"]).expect(2);

    // A model that cannot be read, from the start.
    let dir = makefile(&["a", "b"]).unwrap();
    dir.write("models/b.onnx", "no model");
    make(&dir, &["-j2", "-k"]).expect(2);
    assert_eq!(built(&dir).into_keys().collect::<Vec<_>>(), ["build/a.json", "build/a.onnx"]);
}
