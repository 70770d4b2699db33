//! INT, TERM and HUP remove what is half done and then kill the program as they would have; SIGBUS, which a truncated
//! input raises, becomes the exit code for a changed input.

use qtool::observers::custom::kill_commands;
use qtool::outputs::staging::remove_temporaries;
use signal_hook::consts::{SIGBUS, SIGHUP, SIGINT, SIGTERM, SIGXFSZ};
use signal_hook::iterator::Signals;
use signal_hook::low_level::{emulate_default_handler, exit};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

/// [`qtool::Error::Changed`]'s exit code.
const CHANGED: i32 = 5;

/// Whether a signal is about to end the program.
static ENDING: AtomicBool = AtomicBool::new(false);

/// If a signal is about to end the program, waits until it has: whatever else comes to an end meanwhile is its doing, and the status is to
/// be the signal's.
pub(super) fn yield_to() {
    while ENDING.load(Ordering::SeqCst) {
        std::thread::park();
    }
}

/// Starts the thread that waits for signals.
///
/// The handlers only wake it. A thread that touched a lost page meets SIGBUS again and again until the process is gone,
/// which this thread sees to at once.
pub(super) fn install() {
    // Writing past RLIMIT_FSIZE is an error of the write, not a reason to die.
    let ignored = signal_hook::flag::register(SIGXFSZ, Arc::new(AtomicBool::new(false)));
    reset_sigbus();
    // What the parent ignores (`nohup`, background jobs of scripts) stays ignored.
    let handled: Vec<i32> = [SIGINT, SIGTERM, SIGHUP, SIGBUS].into_iter().filter(|signal| !is_ignored(*signal)).collect();
    let waiting = Signals::new(&handled);
    let (Ok(_), Ok(mut signals)) = (ignored, waiting) else {
        // Without handlers the defaults hold, which are safe: nothing half done has its final name.
        return;
    };
    let wait = move || {
        for signal in &mut signals {
            ENDING.store(true, Ordering::SeqCst);
            kill_commands();
            remove_temporaries();
            if signal == SIGBUS {
                eprintln!("qtool: error: an input file: expected it to stay unchanged during the run, found it truncated");
                exit(CHANGED);
            }
            let _ = emulate_default_handler(signal);
        }
    };
    let thread = std::thread::Builder::new().name("signals".into()).stack_size(64 << 10).spawn(wait);
    if thread.is_err() {
        // Nobody would hear of the signals: back to the defaults.
        handled.into_iter().for_each(set_default);
    }
}

/// Whether a signal is ignored, as the parent process left it.
fn is_ignored(signal: i32) -> bool {
    #[expect(unsafe_code, reason = "the disposition of a signal is read by an unsafe function")]
    // SAFETY: with no new action the call only writes the old one to `action`, which is large enough for it, and zeroes
    // are a valid value of it.
    unsafe {
        let mut action: libc::sigaction = std::mem::zeroed();
        libc::sigaction(signal, std::ptr::null(), &mut action) == 0 && action.sa_sigaction == libc::SIG_IGN
    }
}

/// Lets a signal do what it does by default.
fn set_default(signal: i32) {
    #[expect(unsafe_code, reason = "the disposition of a signal is set by an unsafe function")]
    // SAFETY: the default disposition runs no code.
    unsafe {
        libc::signal(signal, libc::SIG_DFL);
    }
}

/// Takes back the standard library's handler of SIGBUS. It runs before ours, and where it recognizes no stack overflow
/// it restores the default, so that a thread that meets the lost page again would kill the program before it can exit.
fn reset_sigbus() {
    // Stack overflows raise SIGSEGV on every system we build for but macOS, where the message that names them is lost.
    set_default(SIGBUS);
}
