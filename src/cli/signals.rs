//! INT, TERM and HUP remove what is half done and then kill the program as they would have; SIGBUS, which a truncated
//! input raises, becomes the exit code for a changed input.

use qtool::outputs::staging::remove_temporaries;
use signal_hook::consts::{SIGBUS, SIGHUP, SIGINT, SIGTERM, SIGXFSZ};
use signal_hook::iterator::Signals;
use signal_hook::low_level::{emulate_default_handler, exit};
use std::sync::Arc;
use std::sync::atomic::AtomicBool;

/// [`qtool::Error::Changed`]'s exit code.
const CHANGED: i32 = 5;

/// Starts the thread that waits for signals.
///
/// The handlers only wake it. A thread that touched a lost page meets SIGBUS again and again until the process is gone,
/// which this thread sees to at once.
pub(super) fn install() {
    // Writing past RLIMIT_FSIZE is an error of the write, not a reason to die.
    let ignored = signal_hook::flag::register(SIGXFSZ, Arc::new(AtomicBool::new(false)));
    reset_sigbus();
    let waiting = Signals::new([SIGINT, SIGTERM, SIGHUP, SIGBUS]);
    let (Ok(_), Ok(mut signals)) = (ignored, waiting) else {
        // Without handlers the defaults hold, which are safe: nothing half done has its final name.
        return;
    };
    let wait = move || {
        for signal in &mut signals {
            remove_temporaries();
            if signal == SIGBUS {
                eprintln!("qtool: error: an input file: expected it to stay unchanged during the run, found it truncated");
                exit(CHANGED);
            }
            let _ = emulate_default_handler(signal);
        }
    };
    // As above: not being able to start a thread leaves the defaults.
    let _ = std::thread::Builder::new().name("signals".into()).stack_size(64 << 10).spawn(wait);
}

/// Takes back the standard library's handler of SIGBUS. It runs before ours, and where it recognizes no stack overflow
/// it restores the default, so that a thread that meets the lost page again would kill the program before it can exit.
fn reset_sigbus() {
    #[expect(unsafe_code, reason = "the disposition of a signal is set by an unsafe function")]
    // SAFETY: the default disposition runs no code. Stack overflows raise SIGSEGV on every system we build for but macOS,
    // where the message that names them is lost.
    unsafe {
        libc::signal(SIGBUS, libc::SIG_DFL);
    }
}
