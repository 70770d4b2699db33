//! `docs/SECURITY.md` lists every use of `unsafe`.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

/// Where a block or function that is unsafe begins, in code.
const MARK: &str = "unsafe_code";

fn sources(dir: &Path, found: &mut Vec<PathBuf>) {
    for entry in fs::read_dir(dir).unwrap().flatten() {
        let path = entry.path();
        if path.is_dir() {
            sources(&path, found);
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            found.push(path);
        }
    }
}

#[test]
fn every_use_of_unsafe_is_listed_with_its_reason() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let mut files = Vec::new();
    sources(&root.join("src"), &mut files);
    // The lint denies the rest: each use has an exception of its own, which says why.
    let manifest = fs::read_to_string(root.join("Cargo.toml")).unwrap();
    assert!(manifest.contains("unsafe_code = \"deny\""));
    let mut uses = BTreeMap::new();
    for file in files {
        let text = fs::read_to_string(&file).unwrap();
        let count = text.lines().filter(|line| line.contains(MARK) && line.contains("reason = ")).count();
        assert_eq!(text.matches(MARK).count(), count, "{}: an exception without a reason", file.display());
        if count > 0 {
            uses.insert(file.strip_prefix(root).unwrap().display().to_string(), count);
        }
    }
    let document = fs::read_to_string(root.join("docs/SECURITY.md")).unwrap();
    let mut listed = BTreeMap::new();
    for line in document.lines().filter(|line| line.starts_with("| `src/")) {
        *listed.entry(line.split('`').nth(1).unwrap().to_owned()).or_insert(0) += 1;
    }
    assert_eq!(listed, uses, "rows of docs/SECURITY.md, exceptions in src/");
}
