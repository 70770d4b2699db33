//! Commands that run, each in a process group of its own, so that what it started ends with it.

use rustix::process::{Pid, Signal, WaitId, WaitIdOptions, kill_process_group, waitid};
use std::collections::BTreeSet;
use std::io;
use std::os::unix::process::CommandExt;
use std::process::{Child, Command, ExitStatus};
use std::sync::{Mutex, MutexGuard, PoisonError};

/// Groups that run right now.
static RUNNING: Mutex<BTreeSet<i32>> = Mutex::new(BTreeSet::new());

fn running() -> MutexGuard<'static, BTreeSet<i32>> {
    RUNNING.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Kills every command that runs, with what it started, and lets no other start: for signal handlers that are about to end
/// this process.
#[doc(hidden)]
pub fn kill_commands() {
    let running = running();
    for group in running.iter().filter_map(|pid| Pid::from_raw(*pid)) {
        let _ = kill_process_group(group, Signal::KILL);
    }
    // Whoever is about to start one waits for the end.
    std::mem::forget(running);
}

/// A command that runs. Its group is killed when this is dropped.
pub(super) struct Group {
    pub(super) child: Child,
    is_over: bool,
}

impl Group {
    /// Starts `command`.
    pub(super) fn start(command: &mut Command) -> io::Result<Self> {
        let mut running = running();
        let child = command.process_group(0).spawn()?;
        running.insert(Pid::from_child(&child).as_raw_pid());
        Ok(Group { child, is_over: false })
    }

    /// Whether the command has ended. What it started may go on.
    pub(super) fn has_exited(&self) -> bool {
        // It is only looked at: until it is waited for, its number stands for no other group.
        let options = WaitIdOptions::EXITED | WaitIdOptions::NOHANG | WaitIdOptions::NOWAIT;
        !matches!(waitid(WaitId::Pid(Pid::from_child(&self.child)), options), Ok(None))
    }

    /// Ends all of the group, and says how the command ended.
    pub(super) fn end(mut self) -> io::Result<ExitStatus> {
        self.kill()
    }

    fn kill(&mut self) -> io::Result<ExitStatus> {
        self.is_over = true;
        let group = Pid::from_child(&self.child);
        let _ = kill_process_group(group, Signal::KILL);
        running().remove(&group.as_raw_pid());
        self.child.wait()
    }
}

impl Drop for Group {
    fn drop(&mut self) {
        if !self.is_over {
            let _ = self.kill();
        }
    }
}
