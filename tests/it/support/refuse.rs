//! Runs as on a file system that can do less: a seccomp filter refuses what such file systems refuse, by the arguments of the call.
//!
//! As `tests/faults/without.py`, which has more to choose from.

use std::os::unix::process::CommandExt;
use std::process::Command;

/// What a file system cannot do.
#[derive(Clone, Copy)]
pub(crate) enum Missing {
    /// Files without a name: NFS, FUSE, FAT.
    UnnamedFiles,
    /// Names exchanged, or kept from being replaced: NFS, FUSE, FAT.
    Exchange,
    /// A second name for a file: FAT.
    Links,
}

impl Missing {
    /// Calls, the argument that tells and its bits (none: any), and the error.
    fn calls(self) -> Vec<(libc::c_long, u32, u32, i32)> {
        match self {
            Missing::UnnamedFiles => vec![
                #[cfg(target_arch = "x86_64")]
                (libc::SYS_open, 1, libc::O_TMPFILE as u32 & !libc::O_DIRECTORY as u32, libc::EOPNOTSUPP),
                (libc::SYS_openat, 2, libc::O_TMPFILE as u32 & !libc::O_DIRECTORY as u32, libc::EOPNOTSUPP),
            ],
            Missing::Exchange => vec![(libc::SYS_renameat2, 4, libc::RENAME_EXCHANGE | libc::RENAME_NOREPLACE, libc::EINVAL)],
            Missing::Links => vec![(libc::SYS_linkat, 0, 0, libc::EPERM)],
        }
    }
}

/// The program that the kernel runs for every call.
fn filter(missing: &[Missing]) -> Vec<libc::sock_filter> {
    const LOAD: u16 = (libc::BPF_LD | libc::BPF_W | libc::BPF_ABS) as u16;
    const EQUAL: u16 = (libc::BPF_JMP | libc::BPF_JEQ | libc::BPF_K) as u16;
    const ANY_BIT: u16 = (libc::BPF_JMP | libc::BPF_JSET | libc::BPF_K) as u16;
    const RETURN: u16 = (libc::BPF_RET | libc::BPF_K) as u16;
    let step = |code, jt, jf, k| libc::sock_filter { code, jt, jf, k };
    let mut steps = Vec::new();
    for (call, argument, bits, error) in missing.iter().flat_map(|what| what.calls()) {
        let refuse = step(RETURN, 0, 0, libc::SECCOMP_RET_ERRNO | error as u32);
        // The number of the call is at 0, its arguments at 16 in eight bytes each.
        steps.push(step(LOAD, 0, 0, 0));
        if bits == 0 {
            steps.extend([step(EQUAL, 0, 1, call as u32), refuse]);
        } else {
            let load = step(LOAD, 0, 0, 16 + 8 * argument);
            steps.extend([step(EQUAL, 0, 3, call as u32), load, step(ANY_BIT, 0, 1, bits), refuse]);
        }
    }
    steps.push(step(RETURN, 0, 0, libc::SECCOMP_RET_ALLOW));
    steps
}

/// Makes `command`, and what it starts, find these missing.
pub(crate) fn refuse<'c>(command: &'c mut Command, missing: &[Missing]) -> &'c mut Command {
    let mut steps = filter(missing);
    let set = move || {
        let program = libc::sock_fprog { len: steps.len() as u16, filter: steps.as_mut_ptr() };
        #[expect(unsafe_code, reason = "the standard library has no filters of calls")]
        // SAFETY: the kernel copies the steps, which live as long as the closure.
        let done = unsafe {
            libc::prctl(libc::PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) == 0
                && libc::prctl(libc::PR_SET_SECCOMP, libc::SECCOMP_MODE_FILTER, &raw const program) == 0
        };
        if done { Ok(()) } else { Err(std::io::Error::last_os_error()) }
    };
    if missing.is_empty() {
        return command;
    }
    #[expect(unsafe_code, reason = "what runs between fork and exec must be safe there")]
    // SAFETY: two system calls, and no allocation.
    unsafe {
        command.pre_exec(set)
    }
}
