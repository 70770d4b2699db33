//! Where memory ends: a run that cannot have more is an error with an exit code, and leaves nothing half done behind.
//!
//! Buffers are bounded (`--max-memory`), so this takes a limit such as `ulimit -v`, or a machine without overcommitment. The standard library
//! says how much was asked for and then aborts; the signal of that is where the program ends in its own way.

use qtool::outputs::staging::abandon_temporaries;
use std::alloc::{GlobalAlloc, Layout, System};
use std::os::fd::BorrowedFd;
use std::sync::atomic::{AtomicBool, Ordering};

/// [`qtool::Error::Limit`]'s exit code.
const LIMIT: i32 = 6;

const MESSAGE: &[u8] = b"qtool: error: memory: expected more for this run, found none left\n\
hint: --threads 1 and a smaller --max-memory take less; `ulimit -v` shows the limit\n";

/// Whether the system had no memory to give.
static EXHAUSTED: AtomicBool = AtomicBool::new(false);

/// The system's allocator, which remembers that it returned nothing.
pub(crate) struct Allocator;

#[expect(unsafe_code, reason = "an allocator is unsafe by its nature")]
// SAFETY: everything is left to the system's allocator, and what it returns is passed on.
unsafe impl GlobalAlloc for Allocator {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        // SAFETY: the caller keeps the contract.
        remember(unsafe { System.alloc(layout) })
    }

    unsafe fn alloc_zeroed(&self, layout: Layout) -> *mut u8 {
        // SAFETY: the caller keeps the contract.
        remember(unsafe { System.alloc_zeroed(layout) })
    }

    unsafe fn realloc(&self, memory: *mut u8, layout: Layout, size: usize) -> *mut u8 {
        // SAFETY: the caller keeps the contract.
        remember(unsafe { System.realloc(memory, layout, size) })
    }

    unsafe fn dealloc(&self, memory: *mut u8, layout: Layout) {
        // SAFETY: the caller keeps the contract.
        unsafe { System.dealloc(memory, layout) }
    }
}

fn remember(memory: *mut u8) -> *mut u8 {
    if memory.is_null() {
        EXHAUSTED.store(true, Ordering::Relaxed);
    }
    memory
}

/// Makes an abort remove what is half done, and one for lack of memory end with an error.
pub(super) fn handle_aborts() {
    #[expect(unsafe_code, reason = "a signal handler must not do what is not safe within one")]
    // SAFETY: the handler allocates nothing, waits for no lock, and calls only `unlink`, `rmdir`, `nanosleep`, `write` and `_exit`.
    let _ = unsafe { signal_hook::low_level::register(signal_hook::consts::SIGABRT, aborted) };
}

fn aborted() {
    abandon_temporaries();
    if EXHAUSTED.load(Ordering::Relaxed) {
        #[expect(unsafe_code, reason = "standard error is borrowed by its number")]
        // SAFETY: if nobody has it open, the write fails, which is of no consequence.
        let stderr = unsafe { BorrowedFd::borrow_raw(2) };
        let _ = rustix::io::write(stderr, MESSAGE);
        signal_hook::low_level::exit(LIMIT);
    }
}
