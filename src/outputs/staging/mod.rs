//! Outputs appear complete or not at all: written under no name or a temporary one, then given their own.
//!
//! A file is created with `O_TMPFILE` in the directory it belongs to, which leaves nothing behind whatever happens;
//! where the file system has no such files, under a short random name. A directory is built under such a name. Both
//! are locked (`flock`) as long as their maker lives, so that a later run can tell debris from work in progress and
//! remove it. Publishing happens under a lock on the parent directory: of two runs that write the same set of
//! files, one whole set wins. What is replaced keeps a temporary name until the whole set is in place and, unless asked
//! otherwise, on the disk; if something fails before that, it gets its own name back.

mod temporaries;

pub(crate) use temporaries::remember_member;
pub use temporaries::{abandon_temporaries, remove_temporaries};

use crate::error::{Error, Result, show_path};
use rustix::fs::{AtFlags, CWD, FallocateFlags, FlockOperation, Mode, OFlags};
use rustix::io::Errno;
use std::cell::Cell;
use std::collections::BTreeSet;
use std::fs::{File, Metadata};
use std::io;
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::fs::FileExt;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::MutexGuard;
use temporaries::{Replaced, Temporary, remove_debris, settle};

/// How carefully outputs are made to last.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Durability {
    /// `fsync` of every file and directory before success is reported.
    Fsync,
    /// Left to the kernel.
    None,
}

/// An output file under construction.
pub(crate) struct StagedFile {
    file: File,
    /// Where it will appear.
    path: PathBuf,
    /// `None` while it has no name at all.
    temporary: Option<Temporary>,
}

impl StagedFile {
    /// A new file of `len` bytes that will appear at `path`. The space is allocated now, so that a full disk is known
    /// before the work is done.
    pub(crate) fn create(path: &Path, len: u64) -> Result<Self> {
        // What a symbolic link points to is replaced, not the link.
        let path = resolve(path);
        let dir = parent(&path);
        let create = |e: Errno| Error::io(&path, "create", e);
        let mode = Mode::from_raw_mode(0o666);
        let (file, temporary) = match rustix::fs::open(dir, OFlags::TMPFILE | OFlags::RDWR | OFlags::CLOEXEC, mode) {
            Ok(fd) => (fd, None),
            Err(Errno::OPNOTSUPP | Errno::ISDIR | Errno::NOENT | Errno::INVAL) => {
                let _parent = LockedDir::open(dir)?;
                remove_debris(dir);
                let made = Cell::new(None);
                let temporary = Temporary::create(dir, |name| {
                    let fd = rustix::fs::open(name, OFlags::CREATE | OFlags::EXCL | OFlags::RDWR | OFlags::CLOEXEC, mode)?;
                    let _ = rustix::fs::flock(&fd, FlockOperation::NonBlockingLockExclusive);
                    made.set(Some(fd));
                    Ok(None)
                })
                .map_err(create)?;
                (made.take().expect("what was created is open"), Some(temporary))
            }
            Err(e) => return Err(create(e)),
        };
        let file = File::from(file);
        preallocate(&file, len).map_err(|e| Error::io(&path, "allocate", e))?;
        Ok(StagedFile { file, path, temporary })
    }

    pub(crate) fn file(&self) -> &File {
        &self.file
    }

    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    /// Gives the file a name in a directory under construction beside its place, so that it can be opened; it goes from there to its own.
    pub(crate) fn show(&mut self, path: PathBuf) -> Result<()> {
        let failed = |e: Errno| Error::io(&path, "create", e);
        let _settled = settle();
        match self.temporary.take() {
            None => link_open(&self.file, &path).map_err(failed)?,
            Some(temporary) => drop(temporary.publish(&path, false).map_err(failed)?),
        }
        self.temporary = Some(Temporary::of_existing(path));
        Ok(())
    }

    /// Gives the file its name. The caller holds the lock of its directory, and has settled.
    fn publish(self, replace: bool) -> Result<Published> {
        let StagedFile { file, path, temporary } = self;
        let failed = |e: Errno| match e {
            Errno::EXIST => already_exists(&path),
            e => Error::io(&path, "publish", e),
        };
        if let Ok(existing) = path.metadata() {
            let _ = file.set_permissions(existing.permissions());
        }
        let identity = identity(&file.metadata().map_err(|e| Error::io(&path, "publish", e))?);
        let link = |to: &Path| link_open(&file, to);
        let old = match temporary {
            None if !replace => link(&path).map(|()| Replaced::Nothing),
            None => Temporary::create_settled(parent(&path), |name| link(name).map(|()| None))
                .and_then(|temporary| temporary.publish(&path, replace)),
            Some(temporary) => temporary.publish(&path, replace),
        };
        Ok(Published { old: old.map_err(failed)?, identity, path })
    }
}

/// Gives an open file that has no name one.
fn link_open(file: &File, to: &Path) -> Result<(), Errno> {
    let unnamed = format!("/proc/self/fd/{}", file.as_raw_fd());
    rustix::fs::linkat(CWD, unnamed.as_str(), CWD, to, AtFlags::SYMLINK_FOLLOW)
}

/// A member of a set that has its name, which can be taken back until the whole set has.
struct Published {
    path: PathBuf,
    identity: (u64, u64),
    /// What it replaced, which is removed when this is dropped.
    old: Replaced,
}

impl Published {
    /// Puts back what was there before; says what could not be put back.
    fn take_back(self) -> Option<String> {
        let Published { path, identity: ours, old } = self;
        let old = match old {
            Replaced::Kept(old) => old,
            Replaced::Lost => return Some(format!("{} is new: this file system could not keep the old one", show_path(&path))),
            Replaced::Nothing => {
                // What somebody else has put there meanwhile stays.
                if path.symlink_metadata().is_ok_and(|found| identity(&found) == ours) {
                    let _ = std::fs::remove_file(&path).or_else(|_| std::fs::remove_dir_all(&path));
                }
                return None;
            }
        };
        old.restore(&path).err().map(|old| {
            let hint = format!("{} could not be put back: {} has its content", show_path(&path), show_path(old.path()));
            old.give_away();
            hint
        })
    }
}

/// Puts back everything that was published, last first, after `error`.
fn take_back(published: Vec<Published>, error: Error, _settled: MutexGuard<'_, ()>) -> Error {
    let hints: Vec<String> = published.into_iter().rev().filter_map(Published::take_back).collect();
    if hints.is_empty() { error } else { error.with_hint(hints.join("; ")) }
}

fn identity(metadata: &Metadata) -> (u64, u64) {
    (metadata.dev(), metadata.ino())
}

/// An output directory under construction.
pub(crate) struct StagedDir {
    temporary: Temporary,
    path: PathBuf,
}

impl StagedDir {
    /// A new directory that will appear at `path`.
    pub(crate) fn create(path: &Path) -> Result<Self> {
        let path = resolve(path);
        let dir = parent(&path);
        let _parent = LockedDir::open(dir)?;
        remove_debris(dir);
        let temporary = Temporary::create(dir, |name| {
            rustix::fs::mkdir(name, Mode::from_raw_mode(0o777))?;
            let opened = rustix::fs::open(name, OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty());
            let fd = opened.inspect_err(|_| {
                let _ = std::fs::remove_dir(name);
            })?;
            let _ = rustix::fs::flock(&fd, FlockOperation::NonBlockingLockExclusive);
            Ok(Some(fd))
        });
        Ok(StagedDir { temporary: temporary.map_err(|e| Error::io(&path, "create", e))?, path })
    }

    /// Where it is being built.
    pub(crate) fn building(&self) -> &Path {
        self.temporary.path()
    }

    /// Gives the directory its name; one that was there is removed if `replace`.
    pub(crate) fn publish(self, replace: bool, durability: Durability) -> Result<()> {
        let StagedDir { temporary, path } = self;
        let parent = LockedDir::open(parent(&path))?;
        let failed = |e: Errno| match e {
            Errno::EXIST | Errno::NOTEMPTY => already_exists(&path),
            // Without an exchange of names the old directory would be without its own for a moment, and lost to a kill then.
            e @ (Errno::INVAL | Errno::NOSYS | Errno::OPNOTSUPP) if replace => Error::io(&path, "replace", e)
                .with_hint("this file system cannot exchange the names of two directories; `-o` with a new name writes a new one"),
            e => Error::io(&path, "publish", e),
        };
        let identity = identity(&temporary.path().metadata().map_err(|e| Error::io(&path, "publish", e))?);
        let settled = settle();
        let old = temporary.publish(&path, replace).map_err(failed)?;
        let published = vec![Published { path, identity, old }];
        drop(settled);
        match parent.sync(durability) {
            // The old directory goes, now that the new one is sure to stay.
            Ok(()) => Ok(()),
            Err(error) => Err(take_back(published, error, settle())),
        }
    }
}

/// A new file of `len` allocated bytes in a directory under construction.
pub(crate) fn create_allocated(path: &Path, len: u64) -> Result<File> {
    remember_member(path);
    let file = File::options().read(true).write(true).create_new(true).open(path).map_err(|e| Error::io(path, "create", e))?;
    preallocate(&file, len).map_err(|e| Error::io(path, "allocate", e))?;
    Ok(file)
}

/// Makes the contents of files last before they appear.
pub(crate) fn sync_files(files: &[StagedFile], durability: Durability) -> Result<()> {
    match durability {
        Durability::None => Ok(()),
        Durability::Fsync => files.iter().try_for_each(|staged| staged.file.sync_all().map_err(|e| Error::io(&staged.path, "fsync", e))),
    }
}

/// Publishes files of one set in order, all of them or, with an error, none; they may be in different directories.
pub(crate) fn publish_files(files: Vec<StagedFile>, replace: bool, durability: Durability) -> Result<()> {
    let dirs: BTreeSet<PathBuf> = files.iter().map(|staged| parent(&staged.path).to_owned()).collect();
    let dirs: Vec<LockedDir> = dirs.iter().map(|dir| LockedDir::open(dir)).collect::<Result<_>>()?;
    if let Some(staged) = files.iter().find(|staged| !replace && staged.path.symlink_metadata().is_ok()) {
        return Err(already_exists(&staged.path));
    }
    if replace {
        // A run that was killed while it replaced a file may have left the old or the new one under a temporary name.
        dirs.iter().for_each(|dir| remove_debris(&dir.path));
    }
    let settled = settle();
    let mut published = Vec::with_capacity(files.len());
    for staged in files {
        match staged.publish(replace) {
            Ok(member) => published.push(member),
            Err(error) => return Err(take_back(published, error, settled)),
        }
    }
    drop(settled);
    match dirs.iter().try_for_each(|dir| dir.sync(durability)) {
        Ok(()) => Ok(()),
        Err(error) => Err(take_back(published, error, settle())),
    }
}

/// Writes one file that appears whole, or not at all.
pub(crate) fn write_file(path: &Path, content: &[u8], replace: bool, durability: Durability) -> Result<()> {
    let staged = StagedFile::create(path, content.len() as u64)?;
    staged.file().write_all_at(content, 0).map_err(|e| Error::io(path, "write", e))?;
    let files = vec![staged];
    sync_files(&files, durability)?;
    publish_files(files, replace, durability)
}

/// Whether one file can be written later: to know before the work rather than after it.
pub(crate) fn check_free(path: &Path, replace: bool) -> Result<()> {
    if !replace && path.symlink_metadata().is_ok() {
        return Err(already_exists(path));
    }
    let dir = parent(path);
    dir.metadata().map_err(|e| Error::io(dir, "open output directory", e)).map(drop)
}

/// Makes the files of a directory under construction last.
pub(crate) fn sync_tree(dir: &Path, durability: Durability) -> Result<()> {
    if durability == Durability::None {
        return Ok(());
    }
    let entries = std::fs::read_dir(dir).map_err(|e| Error::io(dir, "list", e))?;
    for entry in entries {
        let path = entry.map_err(|e| Error::io(dir, "list", e))?.path();
        if path.is_dir() {
            sync_tree(&path, durability)?;
        } else {
            File::open(&path).and_then(|file| file.sync_all()).map_err(|e| Error::io(&path, "fsync", e))?;
        }
    }
    File::open(dir).and_then(|dir| dir.sync_all()).map_err(|e| Error::io(dir, "fsync", e))
}

/// The error for what is replaced only by its own kind; `expected` says which that is.
pub(crate) fn not_replaceable(path: &Path, what: &str, expected: &str, hint: &str) -> Error {
    let message = format!("{}: {what}: expected {expected} to replace, found something else", show_path(path));
    Error::Usage(message).with_hint(hint)
}

/// The error for an output that is in the way.
pub(crate) fn already_exists(path: &Path) -> Error {
    Error::Usage(format!("{}: expected no such file yet, found one already", show_path(path)))
        .with_hint("--force replaces it; another name writes elsewhere")
}

/// The directory of `path`; `.` for a bare name.
pub(crate) fn parent(path: &Path) -> &Path {
    match path.parent() {
        Some(dir) if !dir.as_os_str().is_empty() => dir,
        _ => Path::new("."),
    }
}

/// `path` without links, whether or not it exists: one spelling for a directory, or it would be locked twice.
pub fn resolve(path: &Path) -> PathBuf {
    let beside = || Some(parent(path).canonicalize().ok()?.join(path.file_name()?));
    path.canonicalize().ok().or_else(beside).unwrap_or_else(|| path.to_owned())
}

/// A directory that others are held off while names in it change. File systems without locks are used without.
struct LockedDir {
    path: PathBuf,
    fd: OwnedFd,
}

impl LockedDir {
    fn open(dir: &Path) -> Result<Self> {
        let opened = rustix::fs::open(dir, OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty());
        let fd = opened.map_err(|e| Error::io(dir, "open output directory", e))?;
        loop {
            match rustix::fs::flock(&fd, FlockOperation::LockExclusive) {
                Ok(()) | Err(Errno::NOLCK | Errno::OPNOTSUPP | Errno::NOSYS | Errno::INVAL | Errno::BADF) => break,
                Err(Errno::INTR) => {}
                Err(e) => return Err(Error::io(dir, "lock output directory", e)),
            }
        }
        Ok(LockedDir { path: dir.to_owned(), fd })
    }

    /// Makes names in it last.
    fn sync(&self, durability: Durability) -> Result<()> {
        match durability {
            Durability::None => Ok(()),
            Durability::Fsync => match rustix::fs::fsync(&self.fd) {
                // Some file systems cannot, and need not.
                Err(Errno::INVAL) => Ok(()),
                other => other.map_err(|e| Error::io(&self.path, "fsync", e)),
            },
        }
    }
}

fn preallocate(file: &File, len: u64) -> io::Result<()> {
    if len == 0 {
        return Ok(());
    }
    loop {
        match rustix::fs::fallocate(file, FallocateFlags::empty(), 0, len) {
            Err(Errno::INTR) => continue,
            Err(Errno::OPNOTSUPP | Errno::NOSYS) => return file.set_len(len),
            other => return other.map_err(io::Error::from),
        }
    }
}
