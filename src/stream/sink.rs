//! Where buffers go: written at once, wherever they belong, and hashed in the order of the file.

use crate::error::{Error, Result};
use std::collections::BTreeMap;
use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::sync::{Condvar, Mutex, MutexGuard};

pub(super) struct Sink<'f> {
    file: &'f File,
    path: &'f Path,
    state: Mutex<State>,
    freed: Condvar,
}

struct State {
    /// `None` while a thread is hashing.
    hasher: Option<blake3::Hasher>,
    /// Bytes that were hashed.
    hashed: u64,
    /// Buffers that were written and wait for those before them.
    waiting: BTreeMap<u64, Vec<u8>>,
    free: Vec<Vec<u8>>,
    abandoned: bool,
}

impl<'f> Sink<'f> {
    pub(super) fn new(file: &'f File, path: &'f Path, buffers: usize) -> Self {
        let free = vec![Vec::new(); buffers];
        let state = State { hasher: Some(blake3::Hasher::new()), hashed: 0, waiting: BTreeMap::new(), free, abandoned: false };
        Sink { file, path, state: Mutex::new(state), freed: Condvar::new() }
    }

    /// An empty buffer; waits until one is free.
    pub(super) fn acquire(&self) -> Vec<u8> {
        let mut state = self.freed.wait_while(self.lock(), |state| state.free.is_empty() && !state.abandoned).expect(UNPOISONED);
        state.free.pop().unwrap_or_default()
    }

    /// Gives a buffer back unused.
    pub(super) fn release(&self, mut buffer: Vec<u8>) {
        buffer.clear();
        self.lock().free.push(buffer);
        self.freed.notify_one();
    }

    /// Lets everyone who waits for a buffer go on: the run has failed.
    pub(super) fn abandon(&self) {
        self.lock().abandoned = true;
        self.freed.notify_all();
    }

    /// Writes `buffer` at `offset`, then hashes whatever is next in the file's order.
    pub(super) fn submit(&self, offset: u64, buffer: Vec<u8>) -> Result<()> {
        self.file.write_all_at(&buffer, offset).map_err(|e| Error::io(self.path, "write", e))?;
        let mut state = self.lock();
        state.waiting.insert(offset, buffer);
        let Some(mut hasher) = state.hasher.take() else {
            // The thread that is hashing comes to this buffer in its turn.
            return Ok(());
        };
        while let Some(buffer) = {
            let next = state.hashed;
            state.waiting.remove(&next)
        } {
            drop(state);
            hasher.update(&buffer);
            state = self.lock();
            state.hashed += buffer.len() as u64;
            let mut buffer = buffer;
            buffer.clear();
            state.free.push(buffer);
            self.freed.notify_one();
        }
        state.hasher = Some(hasher);
        Ok(())
    }

    pub(super) fn finish(self) -> blake3::Hash {
        let state = self.state.into_inner().expect(UNPOISONED);
        assert!(state.waiting.is_empty(), "offsets of jobs have no gaps");
        state.hasher.expect("no thread is hashing any more").finalize()
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().expect(UNPOISONED)
    }
}

const UNPOISONED: &str = "no thread panics while it holds this lock";
