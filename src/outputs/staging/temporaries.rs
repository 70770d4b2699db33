//! Names of what is not finished: made, removed, and known to whoever ends the program on a signal.
//!
//! What ends the program must not come between a name and the list that has it, nor between the members of a set: names
//! change while [`settle`] is held, and [`remove_temporaries`] takes it for good.

use super::parent;
use rustix::fs::{AtFlags, CWD, FlockOperation, Mode, OFlags, RenameFlags};
use rustix::io::Errno;
use std::collections::BTreeSet;
use std::os::fd::OwnedFd;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

/// Temporary names that exist right now, and those of files and directories within them.
static NAMES: Mutex<BTreeSet<PathBuf>> = Mutex::new(BTreeSet::new());

/// Held while names change.
static SETTLED: Mutex<()> = Mutex::new(());

const PREFIX: &str = ".qtool-";
const SUFFIX: &str = ".tmp";
/// Hexadecimal digits between both.
const DIGITS: usize = 8;

/// How often a directory is removed that others may still be filling.
const REMOVALS: usize = 10;

fn names() -> MutexGuard<'static, BTreeSet<PathBuf>> {
    NAMES.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Keeps signals waiting while names change; to be held only for moments.
pub(super) fn settle() -> MutexGuard<'static, ()> {
    SETTLED.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Removes every temporary file and directory of this process: for signal handlers that are about to exit.
///
/// Of a set that is just being published all files appear or none. Afterwards threads that create, publish or remove outputs wait for
/// the end of the process, so that none of them takes what is gone for an error of its own.
pub fn remove_temporaries() {
    std::mem::forget(settle());
    let names = names();
    remove_all(&names, Path::new(""));
    std::mem::forget(names);
}

/// As [`remove_temporaries`], for a program that is aborted: may be called within a signal handler, allocates nothing, and gives up where this very thread is just changing
/// names. What it cannot remove is removed by the next run.
pub fn abandon_temporaries() {
    for _ in 0..ATTEMPTS {
        if let (Ok(settled), Ok(names)) = (SETTLED.try_lock(), NAMES.try_lock()) {
            remove_known(&names, Path::new(""));
            std::mem::forget((settled, names));
            return;
        }
        std::thread::sleep(PAUSE);
    }
}

/// How often, and how long apart, a thread that aborts looks whether others are done with names.
const ATTEMPTS: usize = 50;
const PAUSE: Duration = Duration::from_millis(10);

/// Removes what is known below `root`, members before their directories, and then what is not known.
fn remove_all(names: &BTreeSet<PathBuf>, root: &Path) {
    remove_known(names, root);
    names.iter().filter(|path| path.starts_with(root)).for_each(|path| remove_any(path));
}

fn remove_known(names: &BTreeSet<PathBuf>, root: &Path) {
    // A directory is no file and a file no directory, and what never came to be is neither.
    for path in names.iter().rev().filter(|path| path.starts_with(root)) {
        let _ = std::fs::remove_file(path).or_else(|_| std::fs::remove_dir(path));
    }
}

/// Removes a file or a directory with all that it holds.
fn remove_any(path: &Path) {
    // Best effort: what cannot be removed now is removed by the next run.
    if std::fs::remove_file(path).is_ok() {
        return;
    }
    for _ in 0..REMOVALS {
        if path.symlink_metadata().is_err() || std::fs::remove_dir_all(path).is_ok() {
            return;
        }
    }
}

/// A temporary name. What it stands for is removed when it is dropped, unless it was given away.
pub(super) struct Temporary {
    path: PathBuf,
    /// Keeps the lock that says that the maker lives.
    _lock: Option<OwnedFd>,
}

/// What was there before something got its name.
pub(super) enum Replaced {
    Nothing,
    /// It has a temporary name now.
    Kept(Temporary),
    /// It is gone: the file system has no way to keep it.
    Lost,
}

impl Temporary {
    /// Calls `make` with random names in `dir` until one is free. What it returns, if it is a lock, is held as long.
    pub(super) fn create(dir: &Path, make: impl Fn(&Path) -> Result<Option<OwnedFd>, Errno>) -> Result<Self, Errno> {
        let _settled = settle();
        Self::create_settled(dir, make)
    }

    /// As [`create`](Self::create), for who has settled already.
    pub(super) fn create_settled(dir: &Path, make: impl Fn(&Path) -> Result<Option<OwnedFd>, Errno>) -> Result<Self, Errno> {
        use std::hash::{BuildHasher, RandomState};
        for attempt in 0..100u32 {
            let path = dir.join(format!("{PREFIX}{:08x}{SUFFIX}", RandomState::new().hash_one(attempt) as u32));
            match make(&path) {
                Err(Errno::EXIST) => continue,
                Err(e) => return Err(e),
                Ok(lock) => {
                    names().insert(path.clone());
                    return Ok(Temporary { path, _lock: lock });
                }
            }
        }
        Err(Errno::EXIST)
    }

    /// For what has its name already. The caller has settled.
    pub(super) fn of_existing(path: PathBuf) -> Self {
        names().insert(path.clone());
        Temporary { path, _lock: None }
    }

    pub(super) fn path(&self) -> &Path {
        &self.path
    }

    /// Puts what it names at `path`, and returns what became of what was there before. The caller has settled.
    pub(super) fn publish(self, path: &Path, replace: bool) -> Result<Replaced, Errno> {
        if replace {
            // Names of a file and a directory can be exchanged, too, but nobody has asked for that.
            let is_dir = |path: &Path| path.symlink_metadata().map(|metadata| metadata.is_dir());
            match (is_dir(&self.path), is_dir(path)) {
                (Ok(false), Ok(true)) => return Err(Errno::ISDIR),
                (Ok(true), Ok(false)) => return Err(Errno::NOTDIR),
                _ => {}
            }
            match rustix::fs::renameat_with(CWD, &self.path, CWD, path, RenameFlags::EXCHANGE) {
                Ok(()) => {
                    self.forget_members();
                    return Ok(Replaced::Kept(self));
                }
                Err(Errno::NOENT) => {}
                // File systems that cannot exchange: a second name keeps the old file.
                Err(Errno::INVAL | Errno::NOSYS | Errno::OPNOTSUPP) if !path.is_dir() => {
                    let link = |name: &Path| rustix::fs::linkat(CWD, path, CWD, name, AtFlags::empty()).map(|()| None);
                    let old = match Temporary::create_settled(parent(path), link) {
                        Ok(old) => Replaced::Kept(old),
                        Err(Errno::NOENT) => Replaced::Nothing,
                        // Nor can they give a second name, or not to this file.
                        Err(Errno::PERM | Errno::MLINK | Errno::NOSYS | Errno::OPNOTSUPP) => Replaced::Lost,
                        Err(e) => return Err(e),
                    };
                    rustix::fs::renameat(CWD, &self.path, CWD, path)?;
                    self.give_away();
                    return Ok(old);
                }
                Err(e) => return Err(e),
            }
        }
        match rustix::fs::renameat_with(CWD, &self.path, CWD, path, RenameFlags::NOREPLACE) {
            // File systems that cannot refuse: the lock on the directory keeps other runs of this program away.
            Err(Errno::INVAL | Errno::NOSYS) if path.symlink_metadata().is_err() => rustix::fs::renameat(CWD, &self.path, CWD, path)?,
            other => other?,
        }
        self.give_away();
        Ok(Replaced::Nothing)
    }

    /// Puts what it names back to `path`, where something else is now that goes. The caller has settled.
    pub(super) fn restore(self, path: &Path) -> Result<(), Temporary> {
        let exchanged = rustix::fs::renameat_with(CWD, &self.path, CWD, path, RenameFlags::EXCHANGE);
        let relink = || std::fs::remove_file(path).and_then(|()| std::fs::hard_link(&self.path, path));
        match exchanged.or_else(|_| rustix::fs::renameat(CWD, &self.path, CWD, path)) {
            Ok(()) => Ok(()),
            Err(_) if relink().is_ok() => Ok(()),
            Err(_) => Err(self),
        }
    }

    /// Leaves what it names there.
    pub(super) fn give_away(mut self) {
        self.forget_members();
        names().remove(&self.path);
        self.path.clear();
    }

    fn forget_members(&self) {
        names().retain(|path| path == &self.path || !path.starts_with(&self.path));
    }
}

impl Drop for Temporary {
    fn drop(&mut self) {
        if self.path.as_os_str().is_empty() {
            return;
        }
        let members: BTreeSet<PathBuf> = names().iter().filter(|path| path.starts_with(&self.path)).cloned().collect();
        // Not holding the list, so that who ends the program can help.
        remove_all(&members, &self.path);
        self.forget_members();
        names().remove(&self.path);
    }
}

/// Remembers a file or a directory that is about to be made within a temporary directory: it is removed even where the directory cannot
/// be listed.
pub(crate) fn remember_member(path: &Path) {
    names().insert(path.to_owned());
}

/// Removes temporaries of `dir` whose maker is gone: nobody holds their lock.
pub(super) fn remove_debris(dir: &Path) {
    for entry in std::fs::read_dir(dir).into_iter().flatten().flatten() {
        let name = entry.file_name();
        let name = name.to_string_lossy();
        let digits = name.strip_prefix(PREFIX).and_then(|name| name.strip_suffix(SUFFIX)).unwrap_or_default();
        let is_ours = digits.len() == DIGITS && digits.bytes().all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f'));
        let is_owned = entry.metadata().is_ok_and(|metadata| metadata.uid() == rustix::process::geteuid().as_raw());
        if !(is_ours && is_owned) {
            continue;
        }
        let Ok(fd) = rustix::fs::open(entry.path(), OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::CLOEXEC, Mode::empty())
        else {
            continue;
        };
        if rustix::fs::flock(&fd, FlockOperation::NonBlockingLockExclusive).is_ok() {
            remove_any(&entry.path());
        }
    }
}
