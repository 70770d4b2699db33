//! What the tests share: a directory of their own, the program and what it did, models made on the spot.

pub(crate) mod measure;
pub(crate) mod model;
pub(crate) mod onnx;
#[cfg(target_os = "linux")]
pub(crate) mod refuse;

use measure::Usage;
use serde_json::Value;
use std::ffi::OsStr;
use std::fs;
use std::io::Read;
use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

/// The trained model in `fixtures`.
pub(crate) const FIXTURE: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/fixtures/silero_vad_16k.safetensors");

/// The program under test.
pub(crate) const QTOOL: &str = env!("CARGO_BIN_EXE_qtool");

/// What begins the names of temporaries.
const TEMPORARY: &str = ".qtool-";

/// Longer than any run of the tests takes; a program that hangs is killed then.
const PATIENCE: Duration = Duration::from_secs(20);

/// As many times longer it takes with AddressSanitizer.
const SANITIZED: u32 = 10;

/// A temporary directory in which the program is run.
pub(crate) struct Workdir(tempfile::TempDir);

impl Workdir {
    pub(crate) fn new() -> Self {
        Workdir(tempfile::Builder::new().prefix("it-").tempdir().expect("a temporary directory can be made"))
    }

    /// With a copy of the trained model as `model.safetensors`.
    pub(crate) fn with_fixture() -> Self {
        let dir = Workdir::new();
        fs::copy(FIXTURE, dir.path("model.safetensors")).unwrap();
        dir
    }

    /// With `content` as `model.safetensors`.
    pub(crate) fn with_model(content: &[u8]) -> Self {
        let dir = Workdir::new();
        dir.write("model.safetensors", content);
        dir
    }

    pub(crate) fn path(&self, name: impl AsRef<Path>) -> PathBuf {
        self.0.path().join(name)
    }

    pub(crate) fn write(&self, name: impl AsRef<Path>, content: impl AsRef<[u8]>) {
        let path = self.path(name);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, content).unwrap();
    }

    pub(crate) fn read(&self, name: impl AsRef<Path>) -> Vec<u8> {
        let path = self.path(name);
        fs::read(&path).unwrap_or_else(|e| panic!("{}: {e}", path.display()))
    }

    pub(crate) fn json(&self, name: impl AsRef<Path>) -> Value {
        serde_json::from_slice(&self.read(name)).unwrap()
    }

    pub(crate) fn exists(&self, name: impl AsRef<Path>) -> bool {
        self.path(name).symlink_metadata().is_ok()
    }

    /// Every name below the directory, hidden ones too, sorted.
    pub(crate) fn names(&self) -> Vec<String> {
        names(self.0.path())
    }

    /// The program, to be run here, as users without settings of their own do.
    pub(crate) fn command(&self, program: impl AsRef<OsStr>) -> Command {
        let mut command = Command::new(program);
        command.current_dir(self.0.path()).env_remove("QTOOL_SIMD").stdin(Stdio::null());
        command
    }

    /// Runs the program with `arguments`.
    pub(crate) fn run<A: AsRef<OsStr>>(&self, arguments: impl IntoIterator<Item = A>) -> Run {
        finish(self.command(QTOOL).args(arguments))
    }

    /// Runs the program with `arguments`, separated by spaces, and expects it to succeed.
    pub(crate) fn ok(&self, arguments: &str) -> Run {
        self.run(arguments.split_whitespace()).expect(0)
    }

    /// Runs the program with `arguments`, separated by spaces, and expects the exit code of an error.
    pub(crate) fn fails(&self, arguments: &str, code: i32) -> Run {
        let run = self.run(arguments.split_whitespace()).expect(code);
        run.expect_one_error();
        run
    }

    /// Runs `qtool ARGUMENTS` in a shell after `setup`, such as a `ulimit`.
    pub(crate) fn run_after<A: AsRef<OsStr>>(&self, setup: &str, arguments: impl IntoIterator<Item = A>) -> Run {
        finish(self.command("sh").arg("-c").arg(format!("{setup} && exec \"$0\" \"$@\"")).arg(QTOOL).args(arguments))
    }

    /// Nothing of this name pattern is left behind.
    pub(crate) fn expect_no_temporaries(&self) {
        let left: Vec<_> = self.names().into_iter().filter(|name| name.contains(TEMPORARY)).collect();
        assert!(left.is_empty(), "left behind: {left:?}");
    }
}

/// Every name below `dir`, hidden ones too, sorted. Links are not followed.
pub(crate) fn names(dir: &Path) -> Vec<String> {
    let (mut found, mut pending) = (Vec::new(), vec![dir.to_owned()]);
    while let Some(at) = pending.pop() {
        for entry in fs::read_dir(&at).into_iter().flatten().flatten() {
            if entry.file_type().unwrap().is_dir() {
                pending.push(entry.path());
            }
            found.push(entry.path().strip_prefix(dir).unwrap().to_string_lossy().into_owned());
        }
    }
    found.sort();
    found
}

/// What a run did.
pub(crate) struct Run {
    pub status: ExitStatus,
    pub stdout: String,
    pub stderr: String,
    pub elapsed: Duration,
    pub usage: Usage,
    what: String,
}

impl Run {
    /// The exit code, whatever the run was about, with everything it printed in the failure.
    #[track_caller]
    pub(crate) fn expect(self, code: i32) -> Self {
        assert_eq!(self.status.code(), Some(code), "{self}");
        self
    }

    /// One line that begins `qtool: error: `, and nothing else but hints.
    #[track_caller]
    pub(crate) fn expect_one_error(&self) {
        let errors = self.stderr.lines().filter(|line| line.starts_with("qtool: error: ")).count();
        let others: Vec<_> =
            self.stderr.lines().filter(|line| !line.starts_with("qtool: error: ") && !line.starts_with("hint: ")).collect();
        assert!(errors == 1 && others.is_empty(), "{self}");
    }

    /// Standard output as JSON.
    #[track_caller]
    pub(crate) fn json(&self) -> Value {
        serde_json::from_str(&self.stdout).unwrap_or_else(|e| panic!("{e}: {self}"))
    }
}

impl std::fmt::Display for Run {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Run { status, stdout, stderr, elapsed, usage, what } = self;
        let signal = status.signal();
        let stdout: String = stdout.chars().take(2000).collect();
        let stderr: String = stderr.chars().take(2000).collect();
        write!(f, "{what}\n{status} (signal {signal:?}) after {elapsed:?}, {usage:?}\nstdout: {stdout}\nstderr: {stderr}")
    }
}

/// Runs `command` to its end, or kills it when that takes too long.
pub(crate) fn finish(command: &mut Command) -> Run {
    let started = Instant::now();
    let what = format!("{command:?}").chars().take(500).collect();
    let child = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().expect("the program starts");
    wait(child, started, what)
}

/// Waits for a child whose output is piped.
pub(crate) fn wait(mut child: Child, started: Instant, what: String) -> Run {
    fn collect(mut stream: impl Read + Send + 'static) -> std::thread::JoinHandle<String> {
        std::thread::spawn(move || {
            let mut bytes = Vec::new();
            stream.read_to_end(&mut bytes).expect("a pipe can be read");
            String::from_utf8_lossy(&bytes).into_owned()
        })
    }
    let stdout = child.stdout.take().map(collect);
    let stderr = child.stderr.take().map(collect);
    let patience = if measure::is_sanitized() { PATIENCE * SANITIZED } else { PATIENCE };
    let mut pause = Duration::from_micros(200);
    let (status, usage) = loop {
        match measure::try_wait(&child) {
            Some(done) => break done,
            None if started.elapsed() > patience => {
                let _ = child.kill();
                std::thread::sleep(pause);
            }
            None => std::thread::sleep(pause),
        }
        pause = (pause * 2).min(Duration::from_millis(5));
    };
    let elapsed = started.elapsed();
    let text = |thread: Option<std::thread::JoinHandle<String>>| thread.map(|t| t.join().unwrap()).unwrap_or_default();
    Run { status, stdout: text(stdout), stderr: text(stderr), elapsed, usage, what }
}

/// Evenly distributed pseudorandom numbers (SplitMix64), the same at every run.
pub(crate) struct Random(pub u64);

impl Random {
    pub(crate) fn bits(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let z = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    pub(crate) fn below(&mut self, limit: usize) -> usize {
        (self.bits() % limit as u64) as usize
    }

    /// Roughly normal, as weights are: the sum of four uniform numbers, with variance 1.
    pub(crate) fn normal(&mut self) -> f32 {
        let bits = self.bits();
        let sum: i64 = (0..4).map(|i| i64::from((bits >> (16 * i)) as u16)).sum();
        (sum - 2 * 65535) as f32 * (1.0 / 37837.0)
    }
}
