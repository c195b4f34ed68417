//! Stores that go on after their image has left its drive: of what is in our memory, and not in the kernel. `bell` counts them, and who
//! ends the process waits for them.

use std::time::{Duration, Instant};

use parking_lot::{Condvar, Mutex};

/// How many there are, in this process.
static COUNT: Mutex<usize> = Mutex::new(0);
static ENDED: Condvar = Condvar::new();

/// One of them, until it is dropped.
#[derive(Debug)]
pub(super) struct LastStore(());

impl LastStore {
    pub(super) fn new() -> Self {
        *COUNT.lock() += 1;
        Self(())
    }
}

impl Drop for LastStore {
    fn drop(&mut self) {
        *COUNT.lock() -= 1;
        ENDED.notify_all();
    }
}

/// Waits until what hosts wrote to images that have left their drives is stored, not longer than that. Whether it is.
pub fn await_last_stores(most: Duration) -> bool {
    let until = Instant::now() + most;
    let mut count = COUNT.lock();
    while *count > 0 {
        if ENDED.wait_until(&mut count, until).timed_out() {
            return *count == 0;
        }
    }
    true
}
