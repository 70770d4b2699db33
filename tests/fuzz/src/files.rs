//! Files for functions that take paths: in memory, in a directory of the process's own.

use std::fs;
use std::path::{Path, PathBuf};

/// A directory that is removed with the process's end, if it ends well.
pub struct Directory(PathBuf);

impl Directory {
    /// In `/dev/shm` if there is such a file system, where writing takes microseconds.
    pub fn new(target: &str) -> Self {
        let shared = Path::new("/dev/shm");
        let root = if shared.is_dir() { shared.to_owned() } else { std::env::temp_dir() };
        let path = root.join(format!("qtool-fuzz-{target}-{}", std::process::id()));
        fs::create_dir_all(&path).expect("a directory can be made");
        Directory(path)
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.0.join(name)
    }

    /// Writes a file and returns its path.
    pub fn write(&self, name: &str, content: &[u8]) -> PathBuf {
        let path = self.path(name);
        if let Some(parent) = path.parent().filter(|parent| *parent != self.0) {
            fs::create_dir_all(parent).expect("a directory can be made");
        }
        fs::write(&path, content).expect("a file can be written");
        path
    }

    /// Removes everything of this name.
    pub fn remove(&self, name: &str) {
        let path = self.path(name);
        let _ = if path.is_dir() { fs::remove_dir_all(path) } else { fs::remove_file(path) };
    }

    /// The names of what there is, sorted.
    pub fn names(&self) -> Vec<String> {
        let entries = fs::read_dir(&self.0).expect("the directory can be listed");
        let mut names: Vec<String> = entries.flatten().map(|entry| entry.file_name().to_string_lossy().into_owned()).collect();
        names.sort();
        names
    }
}

impl Drop for Directory {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}
