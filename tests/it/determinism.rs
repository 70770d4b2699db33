//! The same run writes the same bytes, whatever the machine has: threads, instruction sets, memory.

use crate::support::model::{self, Tensor};
use crate::support::{QTOOL, Random, Workdir, finish};
use qtool::observers::OBSERVERS;

/// Threads, instruction set and memory of the runs that are compared; the first is the plainest.
const MACHINES: &[(&str, Option<&str>, &str)] = &[
    ("1", Some("scalar"), "512MiB"),
    ("1", None, "16MiB"),
    ("2", Some("avx2"), "512MiB"),
    ("2", None, "16MiB"),
    ("8", Some("scalar"), "16MiB"),
    ("8", None, "512MiB"),
    ("64", Some("avx2"), "16MiB"),
    ("64", None, "512MiB"),
];

/// About 20 MB: rows that do and do not fit pieces of 2^18 elements, one longer than the longest that is dealt with
/// at once (2^20), odd lengths everywhere.
fn large() -> Vec<u8> {
    let mut random = Random(11);
    let shapes: [(&str, &[usize]); 5] = [
        ("matrix", &[1031, 2053]),
        ("long_rows", &[3, 300_001]),
        ("row", &[1, 1_300_001]),
        ("conv", &[129, 65, 3, 3]),
        ("inner", &[257, 513, 5]),
    ];
    let mut tensors: Vec<Tensor> = shapes.iter().map(|(name, shape)| Tensor::weights(name, shape, &mut random)).collect();
    let half = (0..513 * 777).flat_map(|_| (random.normal() * 0.02).to_le_bytes()[2..].to_vec()).collect();
    tensors.push(Tensor::new("half", "BF16", &[513, 777], half));
    tensors.push(Tensor::new("ids", "I64", &[1001], vec![3; 8008]));
    model::file(&tensors)
}

/// Some pieces, for methods that take their time.
fn small() -> Vec<u8> {
    let mut random = Random(12);
    let tensors = [
        Tensor::weights("matrix", &[31, 10_007], &mut random),
        Tensor::weights("conv", &[33, 17, 23, 23], &mut random),
        Tensor::weights("row", &[1, 270_001], &mut random),
    ];
    model::file(&tensors)
}

fn run_on(dir: &Workdir, (threads, simd, memory): (&str, Option<&str>, &str), options: &str) -> [Vec<u8>; 2] {
    let mut command = dir.command(QTOOL);
    command.args(["quantize", "model.safetensors", "-o", "q.safetensors", "--force", "--durability", "none", "--quiet"]);
    command.args(["--threads", threads, "--max-memory", memory]).args(options.split_whitespace());
    if let Some(simd) = simd {
        command.env("QTOOL_SIMD", simd);
    }
    finish(&mut command).expect(0);
    [dir.read("q.safetensors"), dir.read("q.json")]
}

/// Runs on all machines, and gives the bytes that all of them wrote.
fn check(dir: &Workdir, options: &str) -> [Vec<u8>; 2] {
    let first = run_on(dir, MACHINES[0], options);
    for machine in &MACHINES[1..] {
        let other = run_on(dir, *machine, options);
        assert!(other[0] == first[0], "{options}: weights differ on {machine:?}");
        assert!(other[1] == first[1], "{options}: sidecar differs on {machine:?}");
    }
    first
}

#[test]
fn every_granularity_writes_the_same_bytes_on_any_machine() {
    let dir = Workdir::with_model(&large());
    let options = [
        "--granularity per-channel",
        "--granularity per-channel --axis 1 --asymmetric",
        "--granularity per-channel --axis -1 --weights int4",
        "--granularity per-tensor --weights uint8 --convention ort",
        "--granularity per-group:32 --asymmetric",
        "--granularity per-group:7 --weights uint4",
    ];
    let mut written: Vec<_> = options.iter().map(|options| check(&dir, options)).collect();
    written.sort();
    written.dedup();
    assert_eq!(written.len(), options.len(), "options make a difference");
}

#[test]
fn every_observer_writes_the_same_bytes_on_any_machine() {
    let dir = Workdir::with_model(&small());
    for entry in OBSERVERS {
        // Its time grows with the square of the number of bins.
        let number = if entry.name == "entropy" { ":128" } else { "" };
        for granularity in ["per-channel --exclude conv", "per-channel --axis 1 --exclude matrix --exclude row", "per-tensor"] {
            check(&dir, &format!("--observer {}{number} --granularity {granularity}", entry.name));
        }
    }
}

#[test]
fn what_surrounds_a_run_leaves_no_trace_in_its_bytes() {
    let dir = Workdir::with_fixture();
    let plain = run_on(&dir, MACHINES[0], "");
    let mut command = dir.command(QTOOL);
    std::fs::create_dir(dir.path("elsewhere")).unwrap();
    command.current_dir(dir.path("elsewhere")).env("LC_ALL", "tr_TR.UTF-8").env("TZ", "Asia/Tokyo").env("NO_COLOR", "1");
    let model = dir.path("model.safetensors");
    finish(command.arg("quantize").arg(&model).args(["-o", "q.safetensors", "--seed", "0", "--json"])).expect(0);
    assert!(dir.read("elsewhere/q.safetensors") == plain[0] && dir.read("elsewhere/q.json") == plain[1]);
    // Back to float, too.
    let floats = |threads: &str| {
        dir.ok(&format!("dequantize q.safetensors -o back.safetensors --force --threads {threads}"));
        dir.read("back.safetensors")
    };
    assert!(floats("1") == floats("8"));
}
