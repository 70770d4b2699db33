//! Where memory ends: a run that cannot have more is an error with an exit code, and leaves nothing half done behind.
//!
//! Buffers are bounded (`--max-memory`), so this takes a limit such as `ulimit -v`, or a machine without overcommitment. The allocator, whom
//! nobody has asked whether it can do without, ends the program where it finds nothing left. The standard library would print what was asked
//! for, for which it may need memory, and a lock that who asks may hold. What others make of a lack of memory, a panic or an abort, ends in the
//! same way.

use qtool::calibration::engine::catches_panics;
use qtool::outputs::staging::abandon_temporaries;
use std::alloc::{GlobalAlloc, Layout, System};
use std::os::fd::BorrowedFd;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

/// [`qtool::Error::Limit`]'s exit code.
const LIMIT: i32 = 6;

const MESSAGE: &[u8] = b"qtool: error: memory: expected more for this run, found none left\n\
hint: --threads 1 and a smaller --max-memory take less; `ulimit -v` shows the limit\n";

/// Bytes up to which nobody asks for memory who can do without it. More than that (`try_reserve`) can be refused.
const NEEDED: usize = 16 << 20;

/// Bytes that the C library asks the system for when it needs any.
const PROBE: usize = 1 << 20;

/// Whether the system had no memory to give.
static EXHAUSTED: AtomicBool = AtomicBool::new(false);

/// Whether the program is about to end for lack of memory.
static ENDING: AtomicBool = AtomicBool::new(false);

/// How long a thread that finds no memory leaves it to another one, which did before, to end the program.
const PATIENCE: Duration = Duration::from_secs(1);

/// The system's allocator, with an end to the program where it has nothing.
pub(crate) struct Allocator;

#[expect(unsafe_code, reason = "an allocator is unsafe by its nature")]
// SAFETY: everything is left to the system's allocator, and what it returns is passed on.
unsafe impl GlobalAlloc for Allocator {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        // SAFETY: the caller keeps the contract.
        given(unsafe { System.alloc(layout) }, layout.size())
    }

    unsafe fn alloc_zeroed(&self, layout: Layout) -> *mut u8 {
        // SAFETY: the caller keeps the contract.
        given(unsafe { System.alloc_zeroed(layout) }, layout.size())
    }

    unsafe fn realloc(&self, memory: *mut u8, layout: Layout, size: usize) -> *mut u8 {
        // SAFETY: the caller keeps the contract.
        given(unsafe { System.realloc(memory, layout, size) }, size)
    }

    unsafe fn dealloc(&self, memory: *mut u8, layout: Layout) {
        // SAFETY: the caller keeps the contract.
        unsafe { System.dealloc(memory, layout) }
    }
}

/// What the system gave for a request of `size` bytes.
#[inline]
fn given(memory: *mut u8, size: usize) -> *mut u8 {
    if memory.is_null() { nothing(size) } else { memory }
}

#[cold]
fn nothing(size: usize) -> *mut u8 {
    EXHAUSTED.store(true, Ordering::Relaxed);
    if size <= NEEDED {
        end();
    }
    std::ptr::null_mut()
}

/// Makes an abort remove what is half done, and one for lack of memory end with an error; allocates nothing.
pub(crate) extern "C" fn handle_aborts() {
    extern "C" fn aborted(_signal: libc::c_int) {
        if is_exhausted() {
            end();
        }
        abandon_temporaries();
    }
    let handler = aborted as extern "C" fn(libc::c_int) as libc::sighandler_t;
    #[expect(unsafe_code, reason = "a signal handler must not do what is not safe within one")]
    // SAFETY: the handler allocates nothing, waits for no lock, and calls only `mmap`, `munmap`, `unlink`, `rmdir`, `nanosleep`, `write` and
    // `_exit`. When it returns, the abort goes on.
    unsafe {
        libc::signal(libc::SIGABRT, handler);
    }
}

/// Makes a panic for lack of memory end with an error: threads are given stacks by the system, not by the allocator. Those that become
/// errors are not printed besides.
pub(super) fn handle_panics() {
    let others = std::panic::take_hook();
    std::panic::set_hook(Box::new(move |panic| {
        if is_exhausted() {
            end();
        }
        // An error says what it was.
        if !catches_panics() {
            others(panic);
        }
    }));
}

/// Whether there was no memory, or there is none now: not all of it is asked for through the allocator above.
fn is_exhausted() -> bool {
    #[expect(unsafe_code, reason = "memory is mapped by an unsafe function")]
    // SAFETY: the mapping is new, nobody uses it, and it goes at once.
    let is_left = || unsafe {
        let (access, kind) = (libc::PROT_READ | libc::PROT_WRITE, libc::MAP_PRIVATE | libc::MAP_ANONYMOUS);
        let memory = libc::mmap(std::ptr::null_mut(), PROBE, access, kind, -1, 0);
        memory != libc::MAP_FAILED && libc::munmap(memory, PROBE) == 0
    };
    EXHAUSTED.load(Ordering::Relaxed) || !is_left()
}

/// Ends the program for lack of memory; allocates nothing.
fn end() -> ! {
    if ENDING.swap(true, Ordering::Relaxed) {
        // Another thread is at it; or this very one, which has needed memory for that.
        std::thread::sleep(PATIENCE);
    } else {
        abandon_temporaries();
        #[expect(unsafe_code, reason = "standard error is borrowed by its number")]
        // SAFETY: if nobody has it open, the write fails, which is of no consequence.
        let stderr = unsafe { BorrowedFd::borrow_raw(2) };
        let _ = rustix::io::write(stderr, MESSAGE);
    }
    signal_hook::low_level::exit(LIMIT);
}
