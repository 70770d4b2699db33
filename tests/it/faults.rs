//! Faults while an output is written: the program is killed at a call, or the call fails. `tests/faults` has the long run of it, with every
//! call and every form of output.
//!
//! strace makes the faults; where it cannot be used, these tests say so and are skipped.

use crate::support::refuse::{Missing, refuse};
use crate::support::{FIXTURE, QTOOL, Run, Workdir, finish, names};
use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::FileExt;
use std::os::unix::process::ExitStatusExt;

/// Content by name; directories have none.
type State = BTreeMap<String, Option<Vec<u8>>>;

/// An output that is replaced: the directory, what it held before and what it will hold.
struct Scene {
    dir: Workdir,
    command: &'static str,
    output: &'static str,
    old: State,
    new: State,
    /// What the file system cannot do.
    missing: &'static [Missing],
}

#[derive(Debug, PartialEq)]
enum Found {
    Old,
    New,
    /// Each member is whole, but not all are of one side.
    Mixed,
    /// A member is neither old nor new.
    Torn,
}

const FILE: (&str, &str) = ("quantize model.safetensors -o q.safetensors --force --quiet --threads 1", "q.safetensors");
const DIRECTORY: (&str, &str) = ("quantize m -o q --force --quiet --threads 1", "q");

/// File systems such as ext4, NFS, and one in between.
const FILE_SYSTEMS: [&[Missing]; 3] = [&[], &[Missing::UnnamedFiles, Missing::Exchange], &[Missing::Exchange]];
const FAT: &[Missing] = &[Missing::UnnamedFiles, Missing::Exchange, Missing::Links];

impl Scene {
    fn new(form: (&'static str, &'static str)) -> Self {
        Self::on(&[], form)
    }

    fn on(missing: &'static [Missing], (command, output): (&'static str, &'static str)) -> Self {
        let dir = Workdir::new();
        dir.write("model.safetensors", fs::read(FIXTURE).unwrap());
        dir.write("m/model.safetensors", fs::read(FIXTURE).unwrap());
        dir.write("m/sub/tokenizer.json", "{}");
        let mut scene = Scene { dir, command, output, old: State::new(), new: State::new(), missing };
        scene.new = scene.after(&[]);
        scene.old = scene.after(&["--weights", "uint8"]);
        assert!(scene.new != scene.old);
        scene
    }

    fn after(&self, options: &[&str]) -> State {
        self.dir.run(self.command.split(' ').chain(options.iter().copied())).expect(0);
        self.dir.expect_no_temporaries();
        self.state().0
    }

    /// What is there but temporaries, and these.
    fn state(&self) -> (State, Vec<String>) {
        let (debris, names): (Vec<_>, Vec<_>) = names(&self.dir.path("")).into_iter().partition(|name| name.starts_with(".qtool-"));
        (names.into_iter().map(|name| (name.clone(), fs::read(self.dir.path(name)).ok())).collect(), debris)
    }

    fn judge(&self, found: &State) -> Found {
        if *found == self.old {
            return Found::Old;
        }
        if *found == self.new {
            return Found::New;
        }
        let is_whole =
            |(name, content): (&String, &Option<Vec<u8>>)| [&self.old, &self.new].iter().any(|side| side.get(name) == Some(content));
        if found.iter().all(is_whole) && self.old.keys().all(|name| found.contains_key(name)) { Found::Mixed } else { Found::Torn }
    }

    /// Puts the old output back.
    fn reset(&self) {
        self.dir.run(self.command.split(' ').chain(["--weights", "uint8"])).expect(0);
        assert_eq!(self.judge(&self.state().0), Found::Old);
        self.dir.expect_no_temporaries();
    }

    /// A run with `fault`, such as `signal=KILL:when=2`, at `call`.
    fn run_with(&self, call: &str, fault: &str) -> Run {
        self.run_with_faults(&[(call, fault)])
    }

    fn run_with_faults(&self, faults: &[(&str, &str)]) -> Run {
        let mut command = self.dir.command("strace");
        let calls: Vec<_> = faults.iter().map(|(call, _)| *call).collect();
        command.args(["-f", "-qq", "-o", "/dev/null", "-e", &format!("trace={}", calls.join(","))]);
        for (call, fault) in faults {
            command.args(["-e", &format!("inject={call}:{fault}")]);
        }
        finish(refuse(command.arg(QTOOL).args(self.command.split(' ')), self.missing))
    }
}

/// Whether faults can be made here.
fn can_trace(dir: &Workdir) -> bool {
    let probe = dir.command("strace").args(["-f", "-o", "/dev/null", "-e", "inject=sync:error=EIO:when=1", "true"]).output();
    let can = probe.is_ok_and(|done| done.status.success());
    if !can {
        eprintln!("skipped: strace cannot be used here");
    }
    can
}

#[test]
fn killed_at_a_call_it_leaves_the_old_output_or_the_new_one() {
    for (missing, form) in [(FILE_SYSTEMS[0], FILE), (FILE_SYSTEMS[0], DIRECTORY), (FILE_SYSTEMS[1], FILE)] {
        let scene = Scene::on(missing, form);
        if !can_trace(&scene.dir) {
            return;
        }
        let mut landed = 0;
        for call in ["fallocate", "pwrite64", "fsync", "linkat", "renameat2", "mkdir", "mkdirat", "unlink", "unlinkat"] {
            for n in 1..=3 {
                let run = scene.run_with(call, &format!("signal=KILL:when={n}"));
                if run.status.signal() != Some(9) {
                    scene.reset();
                    break;
                }
                landed += 1;
                match scene.judge(&scene.state().0) {
                    Found::Old | Found::New => drop(scene.dir.ok(&format!("verify {}", scene.output))),
                    Found::Mixed => drop(scene.dir.fails(&format!("verify {}", scene.output), 3)),
                    Found::Torn => panic!("{call} {n}: {run}"),
                }
                // The next run removes what is left.
                scene.reset();
            }
        }
        assert!(landed >= 10, "{}: {landed} kills landed", scene.output);
    }
}

#[test]
fn a_call_that_fails_leaves_the_old_output_and_nothing_else() {
    for (missing, form) in FILE_SYSTEMS.map(|missing| (missing, FILE)).into_iter().chain([(FILE_SYSTEMS[0], DIRECTORY)]) {
        let scene = Scene::on(missing, form);
        if !can_trace(&scene.dir) {
            return;
        }
        let mut failed = 0;
        for (call, error) in [
            ("fallocate", "ENOSPC"),
            ("pwrite64", "EDQUOT"),
            ("fsync", "EIO"),
            ("linkat", "EIO"),
            ("renameat2", "ENOSPC"),
            ("renameat", "ENOSPC"),
            ("mkdir", "EDQUOT"),
            ("mkdirat", "EDQUOT"),
        ] {
            for when in ["1", "2", "3", "4", "5", "1+", "2+", "3+"] {
                let run = scene.run_with(call, &format!("error={error}:when={when}"));
                let (found, debris) = scene.state();
                match run.status.code() {
                    Some(0) => assert_eq!(scene.judge(&found), Found::New, "{error} at {call} {when}: {run}"),
                    Some(4) => {
                        failed += 1;
                        run.expect_one_error();
                        assert_eq!(scene.judge(&found), Found::Old, "{error} at {call} {when}: {run}");
                    }
                    _ => panic!("{error} at {call} {when}: {run}"),
                }
                assert!(debris.is_empty(), "{error} at {call} {when} left {debris:?}: {run}");
                scene.reset();
            }
        }
        assert!(failed >= 20, "{}: {failed} runs failed", scene.output);
    }
}

/// What the tests above take for granted: a writer without staging would not pass.
#[test]
fn a_writer_in_place_would_be_caught() {
    let scene = Scene::new(FILE);
    assert_eq!(scene.judge(&scene.state().0), Found::Old);
    let half = scene.dir.read("q.safetensors").len() / 2;
    let mut state = scene.new.clone();
    state.get_mut("q.safetensors").unwrap().as_mut().unwrap().truncate(half);
    assert_eq!(scene.judge(&state), Found::Torn);
    let mut state = scene.old.clone();
    state.insert("q.safetensors".into(), scene.new["q.safetensors"].clone());
    assert_eq!(scene.judge(&state), Found::Mixed);
    state.remove("q.json");
    assert_eq!(scene.judge(&state), Found::Torn);
}

/// What has no second name cannot be put back, but what is new stays: there was nothing left of the first member.
#[test]
fn without_a_way_back_an_error_between_two_names_leaves_files_that_verify_refuses() {
    let scene = Scene::on(FAT, FILE);
    if !can_trace(&scene.dir) {
        return;
    }
    let run = scene.run_with("renameat", "error=EIO:when=2").expect(4);
    run.expect_one_error();
    assert!(run.stderr.contains("q.safetensors is new"), "{run}");
    assert_eq!(scene.judge(&scene.state().0), Found::Mixed);
    scene.dir.expect_no_temporaries();
    scene.dir.fails("verify q.safetensors", 3);
    scene.reset();
    scene.run_with("renameat", "error=EIO:when=3").expect(0);
    assert_eq!(scene.judge(&scene.state().0), Found::New);
}

/// Without an exchange a directory would have no name for a moment, and a kill then would leave it to the next run to remove.
#[test]
fn a_directory_whose_name_cannot_be_exchanged_stays() {
    let scene = Scene::on(&[Missing::Exchange], DIRECTORY);
    let run = finish(refuse(scene.dir.command(QTOOL).args(DIRECTORY.0.split(' ')), scene.missing)).expect(4);
    run.expect_one_error();
    assert!(run.stderr.contains("hint: this file system cannot exchange the names of two directories"), "{run}");
    assert_eq!(scene.judge(&scene.state().0), Found::Old);
    scene.dir.expect_no_temporaries();
}

/// The thread that changes names is held up, so that the one that ends the program comes first if it does not wait.
#[test]
fn a_signal_while_names_change_leaves_one_side_and_no_temporaries() {
    const SIGNAL: &str = "signal=TERM:delay_exit=200000";
    let at = |call, n| (call, format!("{SIGNAL}:when={n}"));
    // Names of a set, one after the other; those that go back as the directory cannot be synced; and a directory that is just made.
    let failed_sync = ("fsync", "error=EIO:when=3".to_owned());
    let cases = [
        (FILE_SYSTEMS[0], FILE, vec![at("renameat2", 1)], Found::New),
        (FILE_SYSTEMS[0], FILE, vec![at("renameat2", 2)], Found::New),
        (FILE_SYSTEMS[0], FILE, vec![at("linkat", 2)], Found::New),
        (FILE_SYSTEMS[0], FILE, vec![failed_sync.clone(), at("renameat2", 3)], Found::Old),
        (FILE_SYSTEMS[0], FILE, vec![failed_sync, at("renameat2", 4)], Found::Old),
        (FILE_SYSTEMS[1], FILE, vec![at("renameat", 1)], Found::New),
        (FILE_SYSTEMS[1], FILE, vec![at("linkat", 2)], Found::New),
        (FILE_SYSTEMS[0], DIRECTORY, vec![at("mkdirat", 1)], Found::Old),
        (FILE_SYSTEMS[0], DIRECTORY, vec![at("renameat2", 1)], Found::New),
    ];
    for (missing, form, faults, expected) in cases {
        let scene = Scene::on(missing, form);
        if !can_trace(&scene.dir) {
            return;
        }
        let run = scene.run_with_faults(&faults.iter().map(|(call, fault)| (*call, fault.as_str())).collect::<Vec<_>>());
        assert_eq!(run.status.signal(), Some(15), "{faults:?}: {run}");
        assert_eq!(scene.judge(&scene.state().0), expected, "{faults:?}: {run}");
        scene.dir.expect_no_temporaries();
    }
}

/// Memory can end anywhere: before `main`, while arguments are read, in the loops, or while somebody prints what went wrong.
#[test]
fn memory_that_ends_is_an_error_wherever_it_does() {
    let scene = Scene::new(FILE);
    let (mut began, mut refused) = (false, 0);
    for limit in (20 << 10..40 << 10).step_by(256) {
        let mut command = scene.dir.command("sh");
        command.args(["-c", &format!("ulimit -v {limit} && exec \"$0\" \"$@\""), QTOOL]).args(scene.command.split(' '));
        let run = finish(command.env("RUST_BACKTRACE", "1"));
        let (found, debris) = scene.state();
        match run.status.code() {
            // The loader needs some, too, and is killed or exits with 127 without it.
            None if !began && run.status.signal() == Some(11) => continue,
            Some(127) if !began && run.stderr.contains("shared librar") => continue,
            Some(0) => assert_eq!(scene.judge(&found), Found::New, "{limit}: {run}"),
            Some(4 | 6) => {
                refused += 1;
                assert!(run.stderr.contains("qtool: error: "), "{limit}: {run}");
                assert_eq!(scene.judge(&found), Found::Old, "{limit}: {run}");
            }
            _ => panic!("{limit}: {run}"),
        }
        began = true;
        assert!(debris.is_empty(), "{limit}: {debris:?}");
        if run.status.success() {
            scene.reset();
        }
    }
    assert!(began && refused > 0, "{refused} runs were refused");
}

/// A change at a time that is sure to be in the middle: before values are read, or while the output waits for the disk.
#[test]
fn an_input_that_changes_before_the_end_is_noticed() {
    let [file, directory] = [FILE, DIRECTORY].map(Scene::new);
    if !can_trace(&file.dir) {
        return;
    }
    let original = file.dir.read("model.safetensors");
    let with_nans = [&original[..original.len() - 1000], &[0xff; 1000]].concat();
    let half = original[..original.len() / 2].to_vec();
    let changes: [(&Scene, &str, &str, Vec<u8>, &str); 6] = [
        (&file, "fallocate", "model.safetensors", with_nans, "modified"),
        (&file, "fallocate", "model.safetensors", half.clone(), "truncated"),
        (&file, "fsync", "model.safetensors", half, "truncated"),
        (&file, "fsync", "model.safetensors", [&original[..], b"x"].concat(), "grown"),
        (&directory, "fallocate", "m/sub/tokenizer.json", b"[]".into(), "modified"),
        (&directory, "fsync", "m/sub/tokenizer.json", b"{} ".into(), "grown"),
    ];
    for (scene, call, name, content, what) in changes {
        let (path, before) = (scene.dir.path(name), scene.dir.read(name));
        std::thread::scope(|scope| {
            let changing = scope.spawn(|| {
                std::thread::sleep(std::time::Duration::from_millis(700));
                // Not through an empty file, which would be a truncation.
                let file = fs::File::options().write(true).open(&path).unwrap();
                file.write_all_at(&content, 0).unwrap();
                file.set_len(content.len() as u64).unwrap();
            });
            let run = scene.run_with(call, "delay_enter=1500000:when=1").expect(5);
            assert!(run.stderr.contains(what), "{name} at {call}: {run}");
            run.expect_one_error();
            changing.join().unwrap();
        });
        fs::write(&path, &before).unwrap();
        assert_eq!(scene.judge(&scene.state().0), Found::Old, "{name} at {call}");
        scene.dir.expect_no_temporaries();
    }
}

/// Names are exchanged to replace a file: never with a directory, which would then be removed.
#[test]
fn a_directory_that_takes_the_name_meanwhile_stays() {
    let scene = Scene::new(FILE);
    if !can_trace(&scene.dir) {
        return;
    }
    std::thread::scope(|scope| {
        let taking = scope.spawn(|| {
            std::thread::sleep(std::time::Duration::from_millis(700));
            fs::remove_file(scene.dir.path("q.safetensors")).unwrap();
            scene.dir.write("q.safetensors/notes", "precious");
        });
        scene.run_with("fsync", "delay_enter=1500000:when=1").expect(4).expect_one_error();
        taking.join().unwrap();
    });
    assert_eq!(scene.dir.read("q.safetensors/notes"), b"precious");
    scene.dir.expect_no_temporaries();
}

#[test]
fn tight_limits_end_in_documented_errors_and_leave_nothing() {
    let scene = Scene::new(DIRECTORY);
    for limit in ["-n 4", "-n 5", "-n 6", "-n 7", "-n 8", "-s 64", "-s 128", "-f 0", "-f 16"] {
        let run = scene.dir.run_after(&format!("ulimit {limit}"), scene.command.split(' '));
        let (found, debris) = scene.state();
        match run.status.code() {
            Some(0) => assert_eq!(scene.judge(&found), Found::New, "{limit}: {run}"),
            // The loader itself opens files.
            Some(127) if run.stderr.contains("shared librar") => {}
            Some(4) => assert_eq!(scene.judge(&found), Found::Old, "{limit}: {run}"),
            _ => panic!("{limit}: {run}"),
        }
        assert!(debris.is_empty(), "{limit}: {debris:?}");
        scene.reset();
    }
}
