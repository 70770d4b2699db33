//! What strangers' files do to the reader, and that what it reads is written back whole.

#[path = "../../../fixtures/corpus/unpack.rs"]
mod unpack;

use super::*;
use std::fs;
use std::time::{Duration, Instant};
use unpack::{Case, Corpus, corpus};

/// Models of the corpus, good and bad.
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

fn open_path(path: &Path) -> Result<OnnxFile> {
    open(MappedFile::open(path)?, &ReadOptions::default())
}

/// A model that uses nearly every field there is; `make_fixture.py` beside it made it.
fn every_field() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("fixtures/onnx/every_field.onnx")
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
        let (found, message) = match open_path(&path) {
            Ok(_) => (0, String::new()),
            Err(error) => (i32::from(error.exit_code()), error.to_string()),
        };
        // Git LFS pointers are told before a format is chosen.
        let missing = case.message.iter().find(|part| exit != 0 && !message.to_lowercase().contains(*part));
        if found != exit || missing.is_some_and(|part| part != "git-lfs") || message.len() > 2000 {
            wrong.push(format!("{}: expected exit {exit} and {:?}, found {found}: {message}", case.id, case.message));
        }
    }
    assert!(count >= 79, "{count} cases");
    assert!(wrong.is_empty(), "{} complaints\n{}", wrong.len(), wrong.join("\n"));
}

/// What is read is written again: the same bytes, but for the order of fields, and the same model when it is read again.
#[test]
fn nothing_is_lost() {
    let corpus = corpus();
    let mut paths = vec![every_field()];
    let good: Vec<_> = models(&corpus).filter(|case| case.exit == Some(0)).map(|case| unpack(&corpus, case)).collect();
    paths.extend(good.iter().map(|(_, path)| path.clone()));
    assert!(paths.len() > 10);
    for path in paths {
        let original = fs::read(&path).unwrap();
        let model = ModelProto::parse(original.clone().into()).unwrap();
        let written = model.to_bytes().unwrap();
        let sorted = |mut bytes: Vec<u8>| {
            bytes.sort_unstable();
            bytes
        };
        // The corpus packs some fields that onnx does not pack.
        assert!(path != every_field() || sorted(original) == sorted(written.clone()));
        let again = ModelProto::parse(written.clone().into()).unwrap();
        assert_eq!(format!("{model:?}"), format!("{again:?}"), "{}", path.display());
        assert!(again.to_bytes().unwrap() == written, "{}", path.display());

        let checked = open_path(&path).unwrap();
        assert_eq!(checked.has_external_data, checked.files.len() > 1, "{}", path.display());
        let dir = tempfile::tempdir().unwrap();
        let inlined = dir.path().join("model.onnx");
        fs::write(&inlined, checked.proto.to_bytes().unwrap()).unwrap();
        let inlined = open_path(&inlined).unwrap();
        assert_eq!(format!("{:?}", checked.proto), format!("{:?}", inlined.proto), "{}", path.display());
        assert!(!inlined.has_external_data);
    }
}

/// Of a text that is there twice the last one counts: an empty one before it leaves no trace.
#[test]
fn a_text_that_was_empty_first_is_written_once() {
    let written = |bytes: &[u8]| {
        let model = ModelProto::parse(bytes.to_vec().into()).unwrap();
        (format!("{model:?}"), model.to_bytes().unwrap())
    };
    // Field 7 is the graph, and field 2 of that its name.
    let (shown, bytes) = written(&[0x3a, 5, 0x12, 0, 0x12, 1, b'a']);
    assert_eq!(bytes, [0x3a, 3, 0x12, 1, b'a']);
    assert_eq!(written(&bytes).0, shown);
    assert_eq!(written(&[0x3a, 5, 0x12, 1, b'a', 0x12, 0]).1, [0x3a, 2, 0x12, 0]);
}

/// Whatever a byte is changed to and wherever the file ends, there is a verdict, soon, and what is accepted can be written.
#[test]
fn damaged_models_get_a_verdict() {
    let corpus = corpus();
    let mut unpacked: Vec<_> = models(&corpus).map(|case| unpack(&corpus, case)).collect();
    unpacked.push((tempfile::tempdir().unwrap(), every_field()));
    let (mut accepted, mut refused) = (0, 0);
    for (_, path) in unpacked.iter().filter(|(_, path)| path.metadata().unwrap().len() < 2500) {
        let file = Arc::new(MappedFile::open(path).unwrap());
        let original = file.bytes();
        let mut judge = |bytes: Vec<u8>| {
            let start = Instant::now();
            match read(file.clone(), bytes.into(), &ReadOptions::default()) {
                Ok(read) => {
                    accepted += 1;
                    assert!(ModelProto::parse(read.proto.to_bytes().unwrap().into()).is_ok());
                }
                Err(error) => {
                    refused += 1;
                    assert!(matches!(error.exit_code(), 1 | 4 | 6) && error.to_string().len() < 2000, "{error}");
                }
            }
            assert!(start.elapsed() < Duration::from_secs(1), "{}", path.display());
        };
        for at in 0..original.len() {
            judge(original[..at].to_vec());
            for change in [0x01, 0x02, 0x04, 0x08, 0x10, 0x20, 0x40, 0x80, 0xff] {
                let mut bytes = original.to_vec();
                bytes[at] ^= change;
                judge(bytes);
            }
            let inserted = [&original[..at], &[0x0a], &original[at..]].concat();
            judge(inserted);
        }
    }
    assert!(accepted > 1000 && refused > 10_000, "{accepted} accepted, {refused} refused");
}
