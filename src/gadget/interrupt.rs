//! Taking a thread of ours out of a system call: a real-time signal with a handler that does nothing.
//!
//! A signal that comes just before the system call is lost on it, so whoever interrupts repeats until the thread is out.

use std::{
    io, mem,
    os::unix::thread::JoinHandleExt,
    ptr,
    sync::OnceLock,
    thread::{self, JoinHandle},
    time::Duration,
};

extern "C" fn do_nothing(_signal: libc::c_int) {}

/// Ours among the real-time signals; the C library keeps the lowest for itself and SIGRTMIN knows it.
fn signal() -> libc::c_int {
    libc::SIGRTMIN() + 7
}

/// Makes the calling thread one that [`kick`] can take out of a system call.
pub(super) fn allow() -> io::Result<()> {
    static HANDLER: OnceLock<Result<(), i32>> = OnceLock::new();
    let installed = HANDLER.get_or_init(|| {
        // SAFETY: all-zero bytes are a valid sigaction: no flags (so no SA_RESTART) and an empty mask.
        let mut action: libc::sigaction = unsafe { mem::zeroed() };
        action.sa_sigaction = do_nothing as extern "C" fn(libc::c_int) as libc::sighandler_t;
        // SAFETY: `action` is initialised, and its handler touches nothing, so it is safe at any point of any thread.
        match unsafe { libc::sigaction(signal(), &raw const action, ptr::null_mut()) } {
            0 => Ok(()),
            _ => Err(io::Error::last_os_error().raw_os_error().unwrap_or(libc::EINVAL)),
        }
    });
    installed.map_err(io::Error::from_raw_os_error)?;
    // The process may have blocked all signals for a thread of its own to take.
    // SAFETY: `set` is initialised by sigemptyset before it is used; only this thread's mask changes.
    let failed = unsafe {
        let mut set: libc::sigset_t = mem::zeroed();
        libc::sigemptyset(&raw mut set);
        libc::sigaddset(&raw mut set, signal());
        libc::pthread_sigmask(libc::SIG_UNBLOCK, &raw const set, ptr::null_mut())
    };
    if failed == 0 { Ok(()) } else { Err(io::Error::from_raw_os_error(failed)) }
}

/// Interrupts `thread`, again and again, until `is_out` says that it has left. The thread must have called [`allow`].
pub(super) fn kick<T>(thread: &JoinHandle<T>, is_out: impl Fn() -> bool) {
    while !is_out() && !thread.is_finished() {
        // SAFETY: the thread has not been joined, because its handle is borrowed, so its pthread_t is valid.
        unsafe { libc::pthread_kill(thread.as_pthread_t(), signal()) };
        // Time for the controller to give the request back, which takes some microseconds.
        thread::sleep(Duration::from_micros(50));
    }
}
