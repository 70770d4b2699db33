//! The corpus of bad (and unusual) inputs: every case has its verdict, exit code and a message of one line that names the
//! file, in a second of a processor and in 100 MiB of memory, with nothing written.
//!
//! `fixtures/corpus/corpus.json` holds the files as pieces and the expected verdicts; `fixtures/corpus/pack.py` made it.
//! Cases of formats that are not read yet must be refused in the same orderly way.

#[path = "../../fixtures/corpus/unpack.rs"]
mod unpack;

use crate::support::measure::{alone, is_sanitized};
use crate::support::{Run, Workdir};
use std::ffi::{OsStr, OsString};
use std::fs;
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::Path;
use unpack::{Case, Corpus, corpus, unhex};

/// Ceiling of anonymous memory, 100 MiB in the unit of `ulimit -d`. File pages do not count.
const MEMORY: &str = "ulimit -d 102400";

impl Case {
    /// The path of the input, relative to the directory of the test.
    fn input(&self) -> OsString {
        match (&self.file, &self.file_hex) {
            (Some(file), _) => file.into(),
            (None, Some(hex)) => OsString::from_vec(unhex(hex)),
            (None, None) => panic!("{}: no file", self.id),
        }
    }

    /// A directory with the files of the case, and an empty one named `out` for its outputs.
    fn unpack(&self, corpus: &Corpus) -> Workdir {
        let dir = Workdir::new();
        dir.write("out/.keep", "");
        fs::remove_file(dir.path("out/.keep")).unwrap();
        let input = self.input();
        if self.file.is_none() {
            corpus.files["base/ok.safetensors"].create(&dir.path(Path::new(&input)));
        }
        // What a model refers to lies beside it.
        let input = if self.is_onnx() { Path::new(&input).parent().unwrap().into() } else { input };
        let below = |path: &str| path.as_bytes().strip_prefix(input.as_bytes()).is_some_and(|rest| rest.is_empty() || rest[0] == b'/');
        // What lies beside a model's directory matters where its index leads there.
        let beside = |path: &str| self.class == "index" && path == "idx/outside.safetensors";
        for (path, content) in corpus.files.iter().filter(|(path, _)| below(path) || beside(path)) {
            content.create(&dir.path(path));
        }
        dir
    }

    /// The program's arguments, the input and `out` in their places.
    fn arguments(&self) -> Vec<OsString> {
        let place = |argument: &String| match argument.as_str() {
            "{file}" => self.input(),
            "{out}" => self.output().into(),
            other => other.replace("{out}", "out").into(),
        };
        self.invoke.iter().map(place).collect()
    }

    fn output(&self) -> &'static str {
        match self.class.as_str() {
            "index" => "out/model",
            _ if self.is_onnx() => "out/model.onnx",
            _ => "out/model.safetensors",
        }
    }

    fn is_onnx(&self) -> bool {
        self.class.starts_with("onnx/")
    }

    /// The input's own name, as messages show it.
    fn shown_name(&self) -> String {
        Path::new(&self.input()).file_name().unwrap().to_string_lossy().into_owned()
    }

    fn is_read(&self) -> bool {
        !self.class.starts_with("sample/")
    }

    /// A file without permissions is readable to root all the same.
    fn is_moot(&self) -> bool {
        self.id == "fs_unreadable" && rustix::process::geteuid().is_root()
    }
}

fn run(dir: &Workdir, arguments: &[OsString]) -> Run {
    dir.run_after(if is_sanitized() { "true" } else { MEMORY }, arguments)
}

/// What is wrong with a run that was to end with `exit`; nothing if it did as it should.
fn complaints(case: &Case, dir: &Workdir, run: &Run, exit: i32, messages: &[String]) -> Vec<String> {
    let mut wrong = Vec::new();
    if run.status.code() != Some(exit) {
        wrong.push(format!("expected exit {exit}"));
    }
    wrong.extend(run.usage.complaint());
    let lower = run.stderr.to_lowercase();
    if let Some(part) = messages.iter().find(|part| !lower.contains(&part.to_lowercase())) {
        wrong.push(format!("expected {part:?} in the message"));
    }
    let output = format!("{}{}", run.stdout, run.stderr);
    let forbidden = case.must_not_output_hex.as_deref().map(unhex);
    if forbidden.is_some_and(|bytes| output.as_bytes().windows(bytes.len()).any(|window| window == bytes)) {
        wrong.push("output: raw escape sequence".into());
    }
    if exit != 0 {
        let errors = run.stderr.lines().filter(|line| line.starts_with("qtool: error: ")).count();
        let hints = run.stderr.lines().filter(|line| line.starts_with("hint: ")).count();
        if errors != 1 || errors + hints != run.stderr.lines().count() {
            wrong.push("expected one line of error".into());
        }
        if !run.stderr.contains(&case.shown_name()) {
            wrong.push("expected the file's name".into());
        }
        if run.stderr.len() > 2000 {
            wrong.push("message: too long".into());
        }
        let written = dir.names().into_iter().filter(|name| name.starts_with("out/") || name.contains(".qtool-")).collect::<Vec<_>>();
        if !written.is_empty() {
            wrong.push(format!("written: {written:?}"));
        }
    }
    wrong.iter().map(|wrong| format!("{}: {wrong}: {run}\n", case.id)).collect()
}

fn expect_none(complaints: Vec<String>) {
    assert!(complaints.is_empty(), "{} complaints\n{}", complaints.len(), complaints.join("\n"));
}

#[test]
fn every_case_gets_its_verdict() {
    if !alone("corpus::every_case_gets_its_verdict") {
        return;
    }
    let corpus = corpus();
    let mut wrong = Vec::new();
    let cases = corpus.cases.iter().filter(|case| case.is_read() && !case.is_moot());
    let mut count = 0;
    for case in cases {
        count += 1;
        let dir = case.unpack(&corpus);
        let run = run(&dir, &case.arguments());
        wrong.extend(complaints(case, &dir, &run, case.exit.unwrap(), &case.message));
        // What `verify` compares is in safetensors files; it does not read ONNX outputs.
        if case.exit == Some(0) && case.invoke[0] == "quantize" {
            let output = case.arguments().pop().unwrap();
            let verified = dir.run([OsStr::new("verify"), &output]);
            if verified.status.code() != Some(0) {
                wrong.push(format!("{}: output does not verify: {verified}", case.id));
            }
        }
    }
    assert!(count >= 228, "{count} cases");
    expect_none(wrong);
}

/// A file that cannot be inspected cannot be quantized either, for the same reason.
#[test]
fn quantize_refuses_what_inspect_refuses() {
    if !alone("corpus::quantize_refuses_what_inspect_refuses") {
        return;
    }
    let corpus = corpus();
    let mut wrong = Vec::new();
    let refused = |case: &&Case| case.is_read() && !case.is_moot() && case.exit != Some(0) && case.invoke[0] == "inspect";
    for case in corpus.cases.iter().filter(refused) {
        let dir = case.unpack(&corpus);
        let arguments = ["quantize".into(), case.input(), "-o".into(), case.output().into()];
        let run = run(&dir, &arguments);
        wrong.extend(complaints(case, &dir, &run, case.exit.unwrap(), &case.message));
    }
    expect_none(wrong);
}

/// Files of other formats, whole or broken, are bad input and nothing worse.
#[test]
fn files_of_other_formats_are_refused() {
    if !alone("corpus::files_of_other_formats_are_refused") {
        return;
    }
    let corpus = corpus();
    let mut wrong = Vec::new();
    // One of the samples is a model.
    for case in corpus.cases.iter().filter(|case| !case.is_read() && case.id != "pb_is_model") {
        let dir = case.unpack(&corpus);
        let run = run(&dir, &["quantize".into(), case.input(), "-o".into(), "out/model".into()]);
        wrong.extend(complaints(case, &dir, &run, 1, &[]));
    }
    expect_none(wrong);
}
