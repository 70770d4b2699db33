//! Streams a file into existence, piece by piece, on several threads: memory stays bounded by the pieces in flight.
//!
//! Jobs are taken in order. Each fills one buffer; the buffer is written at its place in the file and then hashed
//! when its turn comes, by whichever thread is there, so that a buffer is hashed while it is still in cache and the
//! hash is that of the file from its first byte to its last. A job may wait for jobs before it, never for later ones.

mod custom;
mod latch;
pub(crate) mod observe;
pub(crate) mod quantize;
mod sink;

pub(crate) use latch::Latch;

use crate::error::{Error, Result};
use sink::Sink;
use std::fs::File;
use std::path::Path;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

/// Told how much of the work was done, as a run goes on, from any thread.
pub trait Progress: Sync {
    /// The work is `total` bytes in all.
    fn begin(&self, total: u64);

    /// Before that, or instead of it, `total` samples are run.
    fn begin_samples(&self, total: u64);

    /// Before that, `total` variants of the model are measured.
    fn begin_measurements(&self, total: u64);

    /// So many more bytes (or samples, or variants) are done.
    fn advance(&self, count: u64);
}

/// Reports nothing.
pub struct Silent;

impl Progress for Silent {
    fn begin(&self, _total: u64) {}

    fn begin_samples(&self, _total: u64) {}

    fn begin_measurements(&self, _total: u64) {}

    fn advance(&self, _count: u64) {}
}

/// Reusable buffers of one thread.
#[derive(Default)]
pub(crate) struct Scratch {
    /// For values of quantized tensors.
    pub dequantize: crate::outputs::quantized::DequantizeScratch,
    /// For values as f32.
    pub values: Vec<f32>,
}

/// Work in pieces that a [`run`] distributes.
pub(crate) trait Jobs: Sync {
    /// Number of jobs.
    fn len(&self) -> usize;

    /// Where in the file the bytes of a job begin, or `None` if it produces none. Offsets rise without gaps.
    fn offset(&self, job: usize) -> Option<u64>;

    /// Does a job: `bytes`, which comes with the content of an earlier one, is to hold its bytes and nothing else.
    fn run(&self, job: usize, bytes: &mut Vec<u8>, scratch: &mut Scratch) -> Result<()>;

    /// How much of the input a job dealt with, in bytes.
    fn weight(&self, job: usize) -> u64;
}

/// Writes `header` to the empty `file`, then the bytes of all jobs, which `threads` threads do; returns the hash of the
/// whole file.
///
/// # Errors
///
/// That of the first job in order which failed; or [`Error::Io`] naming `path`.
pub(crate) fn run(
    jobs: &dyn Jobs,
    file: &File,
    path: &Path,
    header: &[u8],
    threads: usize,
    progress: &dyn Progress,
) -> Result<blake3::Hash> {
    let threads = threads.min(jobs.len()).max(1);
    let sink = Sink::new(file, path, BUFFERS_PER_THREAD * threads);
    sink.submit(0, header.to_vec())?;
    let next = AtomicUsize::new(0);
    let failed = AtomicBool::new(false);
    let failures: Mutex<Vec<(usize, Error)>> = Mutex::new(Vec::new());
    let work = || {
        let mut scratch = Scratch::default();
        // The buffer comes before the job: whoever holds the earliest unfinished job can always finish it.
        while !failed.load(Ordering::Relaxed) {
            let mut buffer = sink.acquire();
            let job = next.fetch_add(1, Ordering::Relaxed);
            if job >= jobs.len() {
                sink.release(buffer);
                break;
            }
            let panicking = Abandon { sink: &sink, failed: &failed };
            let done = jobs.run(job, &mut buffer, &mut scratch).and_then(|()| match jobs.offset(job) {
                Some(offset) => sink.submit(offset, buffer),
                None => {
                    sink.release(buffer);
                    Ok(())
                }
            });
            std::mem::forget(panicking);
            match done {
                Ok(()) => progress.advance(jobs.weight(job)),
                Err(error) => {
                    failed.store(true, Ordering::Relaxed);
                    failures.lock().expect("no thread panics while it holds this lock").push((job, error));
                    sink.abandon();
                }
            }
        }
    };
    on_threads(threads, &work);
    let failures = failures.into_inner().expect("no thread panics while it holds this lock");
    match failures.into_iter().min_by_key(|(job, _)| *job) {
        Some((_, error)) => Err(error),
        None => Ok(sink.finish()),
    }
}

/// Lets the other threads end if a job panics: dropped only then.
struct Abandon<'a> {
    sink: &'a Sink<'a>,
    failed: &'a AtomicBool,
}

impl Drop for Abandon<'_> {
    fn drop(&mut self) {
        self.failed.store(true, Ordering::Relaxed);
        self.sink.abandon();
    }
}

/// One being filled, others written and waiting to be hashed.
const BUFFERS_PER_THREAD: usize = 4;

/// `work(0), work(1), …` in order, done on `threads` threads.
pub(crate) fn map<T: Send>(count: usize, threads: usize, work: impl Fn(usize) -> T + Sync) -> Vec<T> {
    let next = AtomicUsize::new(0);
    let done: Mutex<Vec<(usize, T)>> = Mutex::new(Vec::with_capacity(count));
    let run = || {
        loop {
            let index = next.fetch_add(1, Ordering::Relaxed);
            if index >= count {
                break;
            }
            let result = work(index);
            done.lock().expect("no thread panics while it holds this lock").push((index, result));
        }
    };
    on_threads(threads.min(count), &run);
    let mut done = done.into_inner().expect("no thread panics while it holds this lock");
    done.sort_by_key(|(index, _)| *index);
    done.into_iter().map(|(_, result)| result).collect()
}

/// `work` of every item, on `threads` threads, in any order.
pub(crate) fn for_each_on_threads<T: Send>(items: impl Iterator<Item = T> + Send, threads: usize, work: impl Fn(T) + Sync) {
    let items = Mutex::new(items);
    let run = || {
        loop {
            let item = items.lock().expect("no thread panics while it holds this lock").next();
            let Some(item) = item else { break };
            work(item);
        }
    };
    on_threads(threads, &run);
}

/// Runs `work` on this thread and up to `threads - 1` others; with fewer, where the system gives no more.
fn on_threads(threads: usize, work: &(impl Fn() + Sync)) {
    std::thread::scope(|scope| {
        for _ in 1..threads {
            if std::thread::Builder::new().spawn_scoped(scope, work).is_err() {
                break;
            }
        }
        work();
    });
}

#[cfg(test)]
mod tests {
    use super::*;

    struct Panicking;

    impl Jobs for Panicking {
        fn len(&self) -> usize {
            64
        }

        fn offset(&self, job: usize) -> Option<u64> {
            Some(job as u64)
        }

        fn run(&self, job: usize, bytes: &mut Vec<u8>, _scratch: &mut Scratch) -> Result<()> {
            assert!(job != 3, "a bug");
            bytes.resize(1, 0);
            Ok(())
        }

        fn weight(&self, _job: usize) -> u64 {
            0
        }
    }

    #[test]
    fn a_job_that_panics_does_not_leave_the_others_waiting() {
        for threads in 1..4 {
            let file = tempfile::tempfile().unwrap();
            let run = || run(&Panicking, &file, Path::new("test"), b"", threads, &Silent);
            let done = std::panic::catch_unwind(std::panic::AssertUnwindSafe(run));
            assert!(done.is_err(), "{threads} threads");
        }
    }
}
