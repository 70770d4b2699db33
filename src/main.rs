//! The `qtool` program: arguments in, exit code out. Everything else is in the library.

mod cli;

use std::process::ExitCode;

#[global_allocator]
static ALLOCATOR: cli::memory::Allocator = cli::memory::Allocator;

/// Bytes of stack for all that the program does, whatever `ulimit -s` says: models nest as deep as their limits allow.
const STACK: usize = 8 << 20;

fn main() -> ExitCode {
    match std::thread::Builder::new().name("qtool".into()).stack_size(STACK).spawn(cli::main) {
        Ok(program) => program.join().unwrap_or(ExitCode::FAILURE),
        // Where there is no thread to be had, this one does.
        Err(_) => cli::main(),
    }
}
