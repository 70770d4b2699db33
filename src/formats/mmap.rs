//! Files mapped into memory for reading: the one module of this crate that maps.
//!
//! A mapping costs no memory of the process's own and no copy; pages that were read can be dropped by the kernel at
//! any time. Its price: if someone truncates the file meanwhile, the next access to the lost part raises SIGBUS. The
//! program turns that into an orderly exit ([`Error::Changed`]'s code); a library user who maps files that others
//! truncate must do the same.

use crate::error::{Error, Result};
use rustix::fs::{AtFlags, CWD, FileType, Mode, OFlags};
use std::fs::File;
use std::path::{Path, PathBuf};

/// A file mapped for reading, and what it looked like when it was.
pub(crate) struct MappedFile {
    path: PathBuf,
    map: memmap2::Mmap,
    identity: Identity,
}

/// What tells whether a file is still the one that was opened, unchanged.
#[derive(Clone, Copy, PartialEq, Eq)]
struct Identity {
    device: u64,
    inode: u64,
    size: i64,
    modified: (i64, u64),
}

impl MappedFile {
    /// Maps the regular file at `path`; the descriptor is closed again, so any number of files can be mapped.
    ///
    /// # Errors
    ///
    /// [`Error::Io`] if it cannot be opened, [`Error::Malformed`] if it is not a regular file.
    pub(crate) fn open(path: &Path) -> Result<Self> {
        let io = |e: rustix::io::Errno| Error::io(path, "open", e);
        // Not blocking, so that a FIFO without a writer cannot stall the run.
        let file =
            rustix::fs::open(path, OFlags::RDONLY | OFlags::NONBLOCK | OFlags::CLOEXEC | OFlags::NOCTTY, Mode::empty()).map_err(io)?;
        let stat = rustix::fs::fstat(&file).map_err(io)?;
        let kind = FileType::from_raw_mode(stat.st_mode);
        if kind != FileType::RegularFile {
            return Err(Error::malformed(path, format!("kind: expected a regular file, found {}", kind_name(kind))));
        }
        let file = File::from(file);
        #[expect(unsafe_code, reason = "mapping a file is unsafe by its nature")]
        // SAFETY: the mapping is read-only and private to this value. Its bytes are only ever read as integers or
        // floats, which any bit pattern is valid for; if another process writes to the file meanwhile, values may be
        // old or new, which `check_unchanged` reports before any output is published. Truncation raises SIGBUS, as the
        // module's documentation says.
        let map = unsafe { memmap2::Mmap::map(&file) }.map_err(|e| Error::io(path, "map", e))?;
        Ok(MappedFile { path: path.to_owned(), map, identity: identity(&stat) })
    }

    /// Where it was opened.
    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    /// The whole content.
    pub(crate) fn bytes(&self) -> &[u8] {
        &self.map
    }

    /// Whether the file at the path is still the one that was opened, with size and modification time as then.
    ///
    /// # Errors
    ///
    /// [`Error::Changed`] with what happened.
    pub(crate) fn check_unchanged(&self) -> Result<()> {
        let changed = |found| Err(Error::Changed { path: self.path.clone(), found });
        let Ok(stat) = rustix::fs::statat(CWD, &self.path, AtFlags::empty()) else {
            return changed("gone");
        };
        let now = identity(&stat);
        match self.identity {
            then if then == now => Ok(()),
            then if (then.device, then.inode) != (now.device, now.inode) => changed("replaced by another file"),
            then if then.size > now.size => changed("truncated"),
            then if then.size < now.size => changed("grown"),
            _ => changed("modified"),
        }
    }
}

fn identity(stat: &rustix::fs::Stat) -> Identity {
    Identity {
        device: stat.st_dev as u64,
        inode: stat.st_ino as u64,
        size: stat.st_size as i64,
        modified: (stat.st_mtime as i64, stat.st_mtime_nsec as u64),
    }
}

fn kind_name(kind: FileType) -> &'static str {
    match kind {
        FileType::Directory => "a directory",
        FileType::Fifo => "a FIFO",
        FileType::Socket => "a socket",
        FileType::CharacterDevice | FileType::BlockDevice => "a device",
        _ => "something else",
    }
}
