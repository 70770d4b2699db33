//! Files mapped into memory for reading: the one module of this crate that maps.
//!
//! A mapping costs no memory of the process's own and no copy; pages that were read can be dropped by the kernel at
//! any time. Its price: if someone truncates the file meanwhile, the next access to the lost part raises SIGBUS. The
//! program turns that into an orderly exit ([`Error::Changed`]'s code); a library user who maps files that others
//! truncate must do the same.

use crate::error::{Error, Result};
use bytes::Bytes;
use rustix::fs::OFlags;
use std::fs::{File, FileType, Metadata};
use std::os::unix::fs::{FileTypeExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// A file mapped for reading, and what it looked like when it was.
pub(crate) struct MappedFile {
    path: PathBuf,
    map: memmap2::Mmap,
    identity: Identity,
}

/// What tells whether a file is still the one that was opened, unchanged.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) struct Identity {
    device: u64,
    inode: u64,
    size: u64,
    modified: (i64, i64),
}

impl MappedFile {
    /// Maps the regular file at `path`; the descriptor is closed again, so any number of files can be mapped.
    ///
    /// # Errors
    ///
    /// [`Error::Io`] if it cannot be opened, [`Error::Malformed`] if it is not a regular file.
    pub(crate) fn open(path: &Path) -> Result<Self> {
        let io = |e: std::io::Error| Error::io(path, "open", e);
        let check = |metadata: &Metadata| match metadata.is_file() {
            true => Ok(()),
            false => Err(Error::malformed(path, format!("kind: expected a regular file, found {}", kind_name(metadata.file_type())))),
        };
        // Before it is opened, as that alone can do something to a device or to who waits at a FIFO.
        check(&std::fs::metadata(path).map_err(io)?)?;
        // Not blocking, so that a FIFO without a writer cannot stall the run.
        let flags = (OFlags::NONBLOCK | OFlags::NOCTTY).bits().cast_signed();
        let file = File::options().read(true).custom_flags(flags).open(path).map_err(io)?;
        let metadata = file.metadata().map_err(io)?;
        check(&metadata)?;
        #[expect(unsafe_code, reason = "mapping a file is unsafe by its nature")]
        // SAFETY: the mapping is read-only and private to this value. Its bytes are only ever read as integers or
        // floats, which any bit pattern is valid for; if another process writes to the file meanwhile, values may be
        // old or new, which `check_unchanged` reports before any output is published. Truncation raises SIGBUS, as the
        // module's documentation says.
        let map = unsafe { memmap2::Mmap::map(&file) }.map_err(|e| Error::io(path, "map", e))?;
        Ok(MappedFile { path: path.to_owned(), map, identity: Identity::of(&metadata) })
    }

    /// Where it was opened.
    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    /// The whole content.
    pub(crate) fn bytes(&self) -> &[u8] {
        &self.map
    }

    /// The whole content, as bytes that keep the map alive.
    pub(crate) fn to_bytes(self: &Arc<Self>) -> Bytes {
        Bytes::from_owner(Shared(self.clone()))
    }

    /// Whether the file at the path is still the one that was opened, with size and modification time as then.
    ///
    /// # Errors
    ///
    /// [`Error::Changed`] with what happened.
    pub(crate) fn check_unchanged(&self) -> Result<()> {
        self.identity.check(&self.path)
    }
}

impl Identity {
    pub(crate) fn of(metadata: &Metadata) -> Self {
        let modified = (metadata.mtime(), metadata.mtime_nsec());
        Identity { device: metadata.dev(), inode: metadata.ino(), size: metadata.size(), modified }
    }

    /// Whether it is that of the file at `path`.
    ///
    /// # Errors
    ///
    /// [`Error::Changed`] with what happened.
    pub(crate) fn check(self, path: &Path) -> Result<()> {
        let changed = |found| Err(Error::Changed { path: path.to_owned(), found });
        let Ok(metadata) = path.metadata() else {
            return changed("gone");
        };
        let now = Identity::of(&metadata);
        match self {
            then if then == now => Ok(()),
            then if (then.device, then.inode) != (now.device, now.inode) => changed("replaced by another file"),
            then if then.size > now.size => changed("truncated"),
            then if then.size < now.size => changed("grown"),
            _ => changed("modified"),
        }
    }
}

struct Shared(Arc<MappedFile>);

impl AsRef<[u8]> for Shared {
    fn as_ref(&self) -> &[u8] {
        self.0.bytes()
    }
}

fn kind_name(kind: FileType) -> &'static str {
    match kind {
        kind if kind.is_dir() => "a directory",
        kind if kind.is_fifo() => "a FIFO",
        kind if kind.is_socket() => "a socket",
        kind if kind.is_char_device() || kind.is_block_device() => "a device",
        _ => "something else",
    }
}
