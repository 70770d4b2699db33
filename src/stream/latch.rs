//! A gate that opens once a number of jobs are done, whether they succeeded or not.

use std::sync::{Condvar, Mutex};

/// Opens after `count` [`Latch::guard`]s were dropped.
pub(crate) struct Latch {
    left: Mutex<usize>,
    open: Condvar,
}

impl Latch {
    pub(crate) fn new(count: usize) -> Self {
        Latch { left: Mutex::new(count), open: Condvar::new() }
    }

    /// Counts as done when dropped, so that a failing or panicking job cannot leave others waiting.
    pub(crate) fn guard(&self) -> LatchGuard<'_> {
        LatchGuard(self)
    }

    /// Waits until the latch is open.
    pub(crate) fn wait(&self) {
        let left = self.left.lock().expect("the lock is never held across a panic");
        drop(self.open.wait_while(left, |left| *left > 0).expect("the lock is never held across a panic"));
    }
}

pub(crate) struct LatchGuard<'a>(&'a Latch);

impl Drop for LatchGuard<'_> {
    fn drop(&mut self) {
        let mut left = self.0.left.lock().expect("the lock is never held across a panic");
        *left = left.saturating_sub(1);
        if *left == 0 {
            self.0.open.notify_all();
        }
    }
}
