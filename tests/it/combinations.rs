//! One hash over many ways to run the same thing: threads, instruction sets, memory, locale, environment, working directory.

use crate::calibrated::checkpoint;
use crate::onnx_quantize::small;
use crate::support::{FIXTURE, QTOOL, Workdir, finish};
use sha2::{Digest, Sha256};
use std::collections::BTreeSet;
use std::path::Path;
use std::process::Command;

const THREADS: [&str; 3] = ["1", "2", "7"];
const MEMORY: [&str; 3] = ["16MiB", "64MiB", "512MiB"];
const PATHS: [Option<&str>; 3] = [Some("scalar"), Some("avx2"), None];

/// What surrounds a run: a name and what it changes of the command.
type Surroundings = (&'static str, fn(&mut Command));

const SURROUNDINGS: [Surroundings; 6] = [
    ("plain", |_| {}),
    ("Turkish", |command| {
        command.env("LC_ALL", "tr_TR.UTF-8").env("LANG", "tr_TR.UTF-8").env("TZ", "Asia/Kathmandu");
    }),
    ("no environment", |command| {
        command.env_clear();
    }),
    ("commas", |command| {
        command.env("LC_NUMERIC", "de_DE.UTF-8").env("COLUMNS", "20").env("NO_COLOR", "1");
    }),
    ("elsewhere", |command| {
        command.current_dir("/");
    }),
    ("settings of others", |command| {
        let command = command.env("OMP_NUM_THREADS", "3").env("RAYON_NUM_THREADS", "5").env("RTEN_NUM_THREADS", "2");
        command.env("RUST_BACKTRACE", "1").env("RUST_LOG", "trace").env("TERM", "dumb");
    }),
];

/// The combinations: every pair of values of any two things is in one.
fn combinations() -> impl Iterator<Item = (usize, [usize; 4])> {
    let all = THREADS.len() * PATHS.len() * SURROUNDINGS.len();
    (0..all).map(|i| {
        let (threads, path, around) = (i % 3, i / 3 % 3, i / 9);
        (i, [threads, path, (threads + path + around) % 3, around])
    })
}

/// Runs `qtool quantize INPUT OPTIONS` in every combination. Returns the hashes of everything that was written.
fn hashes(dir: &Workdir, input: &str, options: &[&str], output: &str) -> BTreeSet<Vec<u8>> {
    let paths = |text: &str| text.strip_prefix('@').map_or_else(|| text.into(), |name| dir.path(name).into_os_string());
    let run = |(number, [threads, path, memory, around]): (usize, [usize; 4])| {
        let to = dir.path(format!("out-{number}"));
        std::fs::create_dir_all(&to).unwrap();
        let mut command = dir.command(QTOOL);
        SURROUNDINGS[around].1(&mut command);
        command.arg("quantize").arg(dir.path(input)).args(options.iter().copied().map(paths)).arg("-o").arg(to.join(output));
        command.args(["--threads", THREADS[threads], "--max-memory", MEMORY[memory], "--durability", "none", "--quiet"]);
        command.args(["--seed", "7"]);
        if let Some(path) = PATHS[path] {
            command.env("QTOOL_SIMD", path);
        }
        finish(&mut command).expect(0);
        let hash = hash_of(&to);
        std::fs::remove_dir_all(&to).unwrap();
        hash
    };
    combinations().map(run).collect()
}

/// A hash over the names and bytes of all files below a directory.
fn hash_of(dir: &Path) -> Vec<u8> {
    let mut hash = Sha256::new();
    for name in crate::support::names(dir) {
        let path = dir.join(&name);
        if path.is_file() {
            let bytes = std::fs::read(&path).unwrap();
            hash.update((name.len() as u64).to_le_bytes());
            hash.update(name.as_bytes());
            hash.update((bytes.len() as u64).to_le_bytes());
            hash.update(bytes);
        }
    }
    hash.finalize().to_vec()
}

#[track_caller]
fn check(dir: &Workdir, input: &str, options: &[&str], output: &str) {
    assert!(combinations().count() >= 50);
    let found = hashes(dir, input, options, output);
    assert_eq!(found.len(), 1, "{options:?}: as many outputs differ");
}

#[test]
fn weights_alone() {
    let dir = Workdir::new();
    std::fs::copy(FIXTURE, dir.path("model.safetensors")).unwrap();
    check(&dir, "model.safetensors", &[], "q.safetensors");
    check(&dir, "model.safetensors", &["--weights", "int4", "--granularity", "per-group:32", "--observer", "mse"], "q.safetensors");
}

#[test]
fn dynamic_and_weight_only_graphs() {
    let dir = small();
    check(&dir, "model.onnx", &[], "q.onnx");
    check(&dir, "model.onnx", &["--mode", "weight-only", "--weights", "int4", "--granularity", "per-group:16"], "q.onnx");
}

#[test]
fn static_graphs() {
    let dir = small();
    check(&dir, "model.onnx", &["--samples", "@samples", "--min-sqnr", "0", "--activation-observer", "entropy"], "q.onnx");
}

#[test]
fn static_graphs_with_layers_spared() {
    let dir = small();
    check(&dir, "model.onnx", &["--samples", "@samples", "--min-sqnr", "50"], "q.onnx");
}

#[test]
fn transforms_of_graphs() {
    let dir = small();
    let options = ["--samples", "@samples", "--min-sqnr", "0", "--transform", "bias-correction"];
    check(&dir, "model.onnx", &options, "q.onnx");
}

#[test]
fn gptq_of_checkpoints() {
    let dir = checkpoint();
    let form = ["--format", "compressed-tensors", "--mode", "weight-only", "--weights", "int4", "--granularity", "per-group:32"];
    check(&dir, "m", &[&form[..], &["--samples", "@s", "--rounding", "gptq"]].concat(), "q");
}

#[test]
fn learned_rounding_of_checkpoints() {
    let dir = checkpoint();
    let form = ["--format", "compressed-tensors", "--mode", "weight-only", "--weights", "int4"];
    check(&dir, "m", &[&form[..], &["--samples", "@s", "--observer", "mse", "--rounding", "adaround:8"]].concat(), "q");
}

#[test]
fn activations_of_checkpoints() {
    let dir = checkpoint();
    check(&dir, "m", &["--scheme", "w8a8-static", "--samples", "@s", "--activation-observer", "histogram"], "q");
}

#[test]
fn another_seed_is_noticed() {
    let dir = checkpoint();
    let found = ["0", "1"].map(|seed| {
        let options = "--format compressed-tensors --mode weight-only --weights int4 --samples s --rounding adaround:8";
        dir.ok(&format!("quantize m -o {seed} {options} --seed {seed}"));
        dir.read(format!("{seed}/model.safetensors"))
    });
    assert!(found[0] != found[1]);
}
