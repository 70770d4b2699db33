//! Outputs appear complete or not at all: written under no name or a temporary one, then given their own.
//!
//! A file is created with `O_TMPFILE` in the directory it belongs to, which leaves nothing behind whatever happens;
//! where the file system has no such files, under a short random name. A directory is built under such a name. Both
//! are locked (`flock`) as long as their maker lives, so that a later run can tell debris from work in progress and
//! remove it. Publishing happens under a lock on the parent directory: of two runs that write the same set of
//! files, one whole set wins.

use crate::error::{Error, Result, show_path};
use rustix::fs::{AtFlags, CWD, FallocateFlags, FlockOperation, Mode, OFlags, RenameFlags};
use rustix::io::Errno;
use std::collections::BTreeSet;
use std::fs::File;
use std::io;
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::fs::FileExt;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::Mutex;

/// Temporary names that exist right now, for [`remove_temporaries`].
static TEMPORARIES: Mutex<BTreeSet<PathBuf>> = Mutex::new(BTreeSet::new());

const PREFIX: &str = ".qtool-";
const SUFFIX: &str = ".tmp";
/// Hexadecimal digits between both.
const DIGITS: usize = 8;

/// Removes every temporary file and directory of this process: for signal handlers that are about to exit.
pub fn remove_temporaries() {
    let temporaries = TEMPORARIES.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
    temporaries.iter().for_each(|path| remove_any(path));
}

/// How often a directory is removed that others may still be filling.
const REMOVALS: usize = 10;

fn remove_any(path: &Path) {
    // Best effort: what cannot be removed now is removed by the next run.
    if std::fs::remove_file(path).is_ok() {
        return;
    }
    for _ in 0..REMOVALS {
        if std::fs::remove_dir_all(path).is_ok() || !path.exists() {
            return;
        }
    }
}

/// A temporary name that is removed when dropped, unless it was given away.
struct Temporary {
    path: PathBuf,
    kept: bool,
    /// Keeps the lock that says that the maker lives.
    _lock: Option<OwnedFd>,
}

impl Temporary {
    fn register(path: PathBuf, lock: Option<OwnedFd>) -> Self {
        TEMPORARIES.lock().expect("never poisoned").insert(path.clone());
        Temporary { path, kept: false, _lock: lock }
    }

    /// Gives what it names its final name by `rename`. A signal that comes meanwhile waits, so that what has just been
    /// published, or what the temporary name stands for after an exchange, is never taken for something half done.
    fn publish(mut self, rename: impl FnOnce(&Path) -> Result<(), Errno>) -> Result<PathBuf, Errno> {
        let mut temporaries = TEMPORARIES.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        rename(&self.path)?;
        temporaries.remove(&self.path);
        self.kept = true;
        Ok(self.path.clone())
    }
}

impl Drop for Temporary {
    fn drop(&mut self) {
        if self.kept {
            return;
        }
        remove_any(&self.path);
        TEMPORARIES.lock().unwrap_or_else(std::sync::PoisonError::into_inner).remove(&self.path);
    }
}

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
                let _parent = lock_dir(dir);
                remove_debris(dir);
                let (temporary, fd) = with_free_name(dir, |name| {
                    let fd = rustix::fs::open(name, OFlags::CREATE | OFlags::EXCL | OFlags::RDWR | OFlags::CLOEXEC, mode)?;
                    let _ = rustix::fs::flock(&fd, FlockOperation::NonBlockingLockExclusive);
                    Ok(fd)
                })
                .map_err(create)?;
                (fd, Some(Temporary::register(temporary, None)))
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
        match self.temporary.take() {
            None => link_open(&self.file, &path).map_err(failed)?,
            Some(temporary) => drop(temporary.publish(|name| rename(name, &path, false)).map_err(failed)?),
        }
        self.temporary = Some(Temporary::register(path, None));
        Ok(())
    }

    /// Gives the file its name. The caller holds the lock of its directory.
    fn publish(self, replace: bool) -> Result<()> {
        let StagedFile { file, path, temporary } = self;
        let failed = |e: Errno| match e {
            Errno::EXIST => already_exists(&path),
            e => Error::io(&path, "publish", e),
        };
        if let Ok(existing) = path.metadata() {
            let _ = file.set_permissions(existing.permissions());
        }
        let link = |to: &Path| link_open(&file, to);
        let temporary = match temporary {
            Some(temporary) => temporary,
            None if !replace => return link(&path).map_err(failed),
            None => {
                let (name, ()) = with_free_name(parent(&path), link).map_err(failed)?;
                Temporary::register(name, None)
            }
        };
        temporary.publish(|name| rename(name, &path, replace)).map_err(failed)?;
        Ok(())
    }
}

/// Gives an open file that has no name one.
fn link_open(file: &File, to: &Path) -> Result<(), Errno> {
    let unnamed = format!("/proc/self/fd/{}", file.as_raw_fd());
    rustix::fs::linkat(CWD, unnamed.as_str(), CWD, to, AtFlags::SYMLINK_FOLLOW)
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
        let _parent = lock_dir(dir);
        remove_debris(dir);
        let (name, lock) = with_free_name(dir, |name| {
            rustix::fs::mkdir(name, Mode::from_raw_mode(0o777))?;
            let fd = rustix::fs::open(name, OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty())?;
            let _ = rustix::fs::flock(&fd, FlockOperation::NonBlockingLockExclusive);
            Ok(fd)
        })
        .map_err(|e| Error::io(&path, "create", e))?;
        Ok(StagedDir { temporary: Temporary::register(name, Some(lock)), path })
    }

    /// Where it is being built.
    pub(crate) fn building(&self) -> &Path {
        &self.temporary.path
    }

    /// Gives the directory its name; one that was there is removed if `replace`.
    pub(crate) fn publish(self, replace: bool, durability: Durability) -> Result<()> {
        let StagedDir { temporary, path } = self;
        let _parent = lock_dir(parent(&path));
        let failed = |e: Errno| match e {
            Errno::EXIST | Errno::NOTEMPTY => already_exists(&path),
            e => Error::io(&path, "publish", e),
        };
        if replace && path.exists() {
            // The old directory takes the temporary name, and goes once the new one is sure to stay.
            let exchange = |name: &Path| rustix::fs::renameat_with(CWD, name, CWD, &path, RenameFlags::EXCHANGE);
            let old = temporary.publish(exchange).map_err(failed)?;
            sync_dir(parent(&path), durability)?;
            remove_any(&old);
            return Ok(());
        }
        temporary.publish(|name| rename(name, &path, false)).map_err(failed)?;
        sync_dir(parent(&path), durability)
    }
}

/// A new file of `len` allocated bytes in a directory under construction.
pub(crate) fn create_allocated(path: &Path, len: u64) -> Result<File> {
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

/// Publishes files of one set in order, all of them or an error; they may be in different directories.
pub(crate) fn publish_files(files: Vec<StagedFile>, replace: bool, durability: Durability) -> Result<()> {
    let dirs: BTreeSet<PathBuf> = files.iter().map(|staged| parent(&staged.path).to_owned()).collect();
    let _locks: Vec<Option<OwnedFd>> = dirs.iter().map(|dir| lock_dir(dir)).collect();
    if let Some(staged) = files.iter().find(|staged| !replace && staged.path.symlink_metadata().is_ok()) {
        return Err(already_exists(&staged.path));
    }
    if replace {
        // A run that was killed while it replaced a file may have left the new one under its temporary name.
        dirs.iter().for_each(|dir| remove_debris(dir));
    }
    for staged in files {
        staged.publish(replace)?;
    }
    dirs.iter().try_for_each(|dir| sync_dir(dir, durability))
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
    sync_dir(dir, durability)
}

fn sync_dir(dir: &Path, durability: Durability) -> Result<()> {
    match durability {
        Durability::None => Ok(()),
        Durability::Fsync => File::open(dir).and_then(|dir| dir.sync_all()).map_err(|e| Error::io(dir, "fsync", e)),
    }
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
pub(crate) fn resolve(path: &Path) -> PathBuf {
    let beside = || Some(parent(path).canonicalize().ok()?.join(path.file_name()?));
    path.canonicalize().ok().or_else(beside).unwrap_or_else(|| path.to_owned())
}

/// Holds others off while names change. File systems without locks are used without.
fn lock_dir(dir: &Path) -> Option<OwnedFd> {
    let fd = rustix::fs::open(dir, OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty()).ok()?;
    rustix::fs::flock(&fd, FlockOperation::LockExclusive).ok()?;
    Some(fd)
}

/// Removes temporaries of `dir` whose maker is gone: nobody holds their lock.
fn remove_debris(dir: &Path) {
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

/// Calls `make` with fresh random names in `dir` until one is free.
fn with_free_name<T>(dir: &Path, make: impl Fn(&Path) -> Result<T, Errno>) -> Result<(PathBuf, T), Errno> {
    use std::hash::{BuildHasher, RandomState};
    for attempt in 0..100u32 {
        let name = dir.join(format!("{PREFIX}{:08x}{SUFFIX}", RandomState::new().hash_one(attempt) as u32));
        match make(&name) {
            Err(Errno::EXIST) => continue,
            Err(e) => return Err(e),
            Ok(made) => return Ok((name, made)),
        }
    }
    Err(Errno::EXIST)
}

/// Renames, atomically refusing to replace anything unless `replace`.
fn rename(from: &Path, to: &Path, replace: bool) -> Result<(), Errno> {
    if replace {
        return rustix::fs::renameat(CWD, from, CWD, to);
    }
    match rustix::fs::renameat_with(CWD, from, CWD, to, RenameFlags::NOREPLACE) {
        // File systems that cannot refuse: the lock on the directory keeps other runs of this program away.
        Err(Errno::INVAL | Errno::NOSYS) if to.symlink_metadata().is_err() => rustix::fs::renameat(CWD, from, CWD, to),
        other => other,
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
