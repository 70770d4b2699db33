//! What a run took of the machine, as the kernel counts it.

use std::os::unix::process::ExitStatusExt;
use std::process::{Child, Command, ExitStatus};
use std::time::Duration;

/// What a process took until its end.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Usage {
    /// Time that its threads ran, in user and kernel mode; other processes do not count.
    pub cpu: Duration,
    /// Most memory that was resident at a time, in bytes: mapped files count, and also what the process that started it had
    /// resident then (see [`alone`]).
    pub peak: u64,
}

/// The end of a child, if it has ended, after which it is gone.
pub(crate) fn try_wait(child: &Child) -> Option<(ExitStatus, Usage)> {
    let (mut status, mut usage) = (0, std::mem::MaybeUninit::<libc::rusage>::zeroed());
    #[expect(unsafe_code, reason = "the standard library does not tell what a child took")]
    // SAFETY: both pointers are valid for writes of their types, and zeros are a valid `rusage`.
    let (pid, usage) = unsafe {
        let pid = libc::wait4(child.id().cast_signed(), &raw mut status, libc::WNOHANG, usage.as_mut_ptr());
        (pid, usage.assume_init())
    };
    assert!(pid >= 0, "{}", std::io::Error::last_os_error());
    let time = |time: libc::timeval| Duration::new(time.tv_sec as u64, time.tv_usec as u32 * 1000);
    let usage = Usage { cpu: time(usage.ru_utime) + time(usage.ru_stime), peak: usage.ru_maxrss as u64 * 1024 };
    (pid > 0).then(|| (ExitStatus::from_raw(status), usage))
}

/// Set in the process that [`alone`] starts.
const INNER: &str = "QTOOL_TEST_ALONE";

/// Runs the test `name` again in a process of its own, where no others run beside it, and whose memory is small; true there,
/// where the test is to go on.
///
/// # Panics
///
/// If the test fails there.
pub(crate) fn alone(name: &str) -> bool {
    if std::env::var_os(INNER).is_some() {
        return true;
    }
    let mut command = Command::new(std::env::current_exe().unwrap());
    let output = command.args(["--exact", name, "--nocapture", "--test-threads=1"]).env(INNER, "1").output().unwrap();
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    let (stdout, stderr) = (text(&output.stdout), text(&output.stderr));
    assert!(output.status.success() && stdout.contains("1 passed"), "{stdout}{stderr}");
    false
}

/// What every run on a bad file is held to.
pub(crate) const MOST: Usage = Usage {
    // A second for an optimized program; the one under test may not be.
    cpu: if cfg!(debug_assertions) { Duration::from_secs(3) } else { Duration::from_secs(1) },
    peak: 100 << 20,
};

/// Whether the program is built with AddressSanitizer, which takes memory of its own; its options are in the environment then.
pub(crate) fn is_sanitized() -> bool {
    std::env::var_os("ASAN_OPTIONS").is_some()
}

impl Usage {
    /// What is more than [`MOST`].
    pub(crate) fn complaint(&self) -> Option<String> {
        (!is_sanitized() && (self.cpu > MOST.cpu || self.peak > MOST.peak)).then(|| format!("expected at most {MOST:?}, took {self:?}"))
    }
}
