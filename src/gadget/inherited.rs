//! Descriptors that this process was started with.

use std::{
    os::fd::{FromRawFd, OwnedFd, RawFd},
    sync::atomic::{AtomicBool, Ordering},
};

/// Takes the descriptors with these numbers, which a service manager has passed by the protocol of sd_listen_fds(3); those that are not
/// open are left out. To be called before anything else is opened, and once: the second time there are none.
pub fn inherited(numbers: impl IntoIterator<Item = (RawFd, String)>) -> Vec<(String, OwnedFd)> {
    static TAKEN: AtomicBool = AtomicBool::new(false);
    if TAKEN.swap(true, Ordering::SeqCst) {
        return Vec::new();
    }
    let mut taken = Vec::new();
    for (number, name) in numbers {
        // SAFETY: only looked at; a number that is not open is an error.
        let is_open = unsafe { libc::fcntl(number, libc::F_GETFD) } >= 0;
        if is_open && number > 2 {
            // SAFETY: it is open, the protocol says that it is for this process to own, and nobody else has taken it, because
            // this runs once, before anything else could have opened something under its number.
            taken.push((name, unsafe { OwnedFd::from_raw_fd(number) }));
        }
    }
    taken
}
