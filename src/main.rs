//! The `qtool` program: arguments in, exit code out. Everything else is in the library.

mod cli;

use std::process::ExitCode;

#[global_allocator]
static ALLOCATOR: cli::memory::Allocator = cli::memory::Allocator;

/// What the loader calls first: the standard library itself may find no memory before it gets to `main`.
#[cfg(target_os = "linux")]
#[expect(unsafe_code, reason = "what is in this section is called")]
#[used]
// SAFETY: the section holds functions that take nothing and return nothing; the C library is ready by then, and no more is needed.
#[unsafe(link_section = ".init_array")]
static FIRST: extern "C" fn() = cli::memory::handle_aborts;

/// Bytes of stack for all that the program does, whatever `ulimit -s` says: models nest as deep as their limits allow.
const STACK: usize = 8 << 20;

fn main() -> ExitCode {
    cli::memory::handle_aborts();
    match std::thread::Builder::new().name("qtool".into()).stack_size(STACK).spawn(cli::main) {
        Ok(program) => program.join().unwrap_or(ExitCode::FAILURE),
        // Where there is no thread to be had, this one does.
        Err(_) => cli::main(),
    }
}
