//! Where buffers go: written wherever they belong, then hashed in the order of the file.
//!
//! Writing and hashing are roles that whoever comes by takes over, one thread each at a time: the kernel serializes
//! writes to one file anyway, so a thread that finds somebody writing leaves its buffer there and goes on computing.

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
    /// Whether a thread is writing.
    writing: bool,
    /// Filled buffers with their offsets.
    filled: Vec<(u64, Vec<u8>)>,
    /// Buffers that were written and wait for those before them to be hashed.
    written: BTreeMap<u64, Vec<u8>>,
    /// `None` while a thread is hashing.
    hasher: Option<blake3::Hasher>,
    /// Bytes that were hashed.
    hashed: u64,
    free: Vec<Vec<u8>>,
    abandoned: bool,
}

impl<'f> Sink<'f> {
    pub(super) fn new(file: &'f File, path: &'f Path, buffers: usize) -> Self {
        let state = State {
            writing: false,
            filled: Vec::new(),
            written: BTreeMap::new(),
            hasher: Some(blake3::Hasher::new()),
            hashed: 0,
            free: vec![Vec::new(); buffers],
            abandoned: false,
        };
        Sink { file, path, state: Mutex::new(state), freed: Condvar::new() }
    }

    /// A buffer, with what an earlier user left in it; waits until one is free.
    pub(super) fn acquire(&self) -> Vec<u8> {
        let mut state = self.freed.wait_while(self.lock(), |state| state.free.is_empty() && !state.abandoned).expect(UNPOISONED);
        state.free.pop().unwrap_or_default()
    }

    /// Gives a buffer back unused.
    pub(super) fn release(&self, buffer: Vec<u8>) {
        self.lock().free.push(buffer);
        self.freed.notify_one();
    }

    /// Lets everyone who waits for a buffer go on: the run has failed.
    pub(super) fn abandon(&self) {
        self.lock().abandoned = true;
        self.freed.notify_all();
    }

    /// Takes `buffer`, which belongs at `offset`, and any work on buffers that nobody else is doing.
    pub(super) fn submit(&self, offset: u64, buffer: Vec<u8>) -> Result<()> {
        let mut state = self.lock();
        state.filled.push((offset, buffer));
        if !state.writing {
            state.writing = true;
            state = self.write_filled(state)?;
            state.writing = false;
        }
        if let Some(hasher) = state.hasher.take() {
            self.hash_written(state, hasher);
        }
        Ok(())
    }

    fn write_filled<'s>(&'s self, mut state: MutexGuard<'s, State>) -> Result<MutexGuard<'s, State>> {
        while let Some((offset, buffer)) = state.filled.pop() {
            drop(state);
            self.file.write_all_at(&buffer, offset).map_err(|e| Error::io(self.path, "write", e))?;
            state = self.lock();
            state.written.insert(offset, buffer);
        }
        Ok(state)
    }

    fn hash_written<'s>(&'s self, mut state: MutexGuard<'s, State>, mut hasher: blake3::Hasher) {
        loop {
            let next = state.hashed;
            let Some(buffer) = state.written.remove(&next) else { break };
            drop(state);
            hasher.update(&buffer);
            state = self.lock();
            state.hashed += buffer.len() as u64;
            state.free.push(buffer);
            self.freed.notify_one();
        }
        state.hasher = Some(hasher);
    }

    pub(super) fn finish(self) -> blake3::Hash {
        let state = self.state.into_inner().expect(UNPOISONED);
        assert!(state.filled.is_empty() && state.written.is_empty(), "offsets of jobs have no gaps");
        state.hasher.expect("no thread is hashing any more").finalize()
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().expect(UNPOISONED)
    }
}

const UNPOISONED: &str = "no thread panics while it holds this lock";
