//! The system calls of Linux AIO, and its completion ring in memory. nix has no AIO that a foreign file can be used with.
//!
//! Called by [`super::AioEngine`] only, which keeps every control block and buffer where it is until its event came.

use std::{
    io,
    os::fd::RawFd,
    ptr,
    sync::atomic::{AtomicU32, Ordering, fence},
};

/// struct iocb of linux/aio_abi.h.
#[derive(Clone, Copy, Debug, Default)]
#[repr(C)]
pub(super) struct Iocb {
    data: u64,
    /// aio_key and aio_rw_flags, whose order depends on the machine's; both stay 0.
    key_and_flags: [u32; 2],
    opcode: u16,
    priority: i16,
    fd: u32,
    buf: u64,
    len: u64,
    offset: i64,
    reserved: u64,
    flags: u32,
    event_fd: u32,
}

/// struct io_event.
#[derive(Clone, Copy, Debug, Default)]
#[repr(C)]
struct Event {
    data: u64,
    object: u64,
    result: i64,
    result2: i64,
}

/// The head of the completion ring, which the kernel maps at the address that is the context's id.
#[repr(C)]
struct RingHead {
    id: u32,
    len: u32,
    head: AtomicU32,
    tail: AtomicU32,
    magic: u32,
    compat_features: u32,
    incompat_features: u32,
    header_len: u32,
}

const _: () = assert!(size_of::<Iocb>() == 64);
const _: () = assert!(size_of::<Event>() == 32);
const _: () = assert!(size_of::<RingHead>() == 32);

const RING_MAGIC: u32 = 0xa10a_10a1;
const FLAG_EVENT_FD: u32 = 1;

/// IOCB_CMD_*.
#[derive(Clone, Copy, Debug)]
pub(super) enum Command {
    Read,
    Write,
}

impl Iocb {
    /// A request for `bytes`, whose event carries `user` and signals `event_fd`.
    pub(super) fn new(
        command: Command,
        fd: RawFd,
        bytes: &mut [u8],
        event_fd: Option<RawFd>,
        user: usize,
    ) -> Self {
        let opcode = match command {
            Command::Read => 0,
            Command::Write => 1,
        };
        Self {
            data: widen(user),
            opcode,
            fd: fd.unsigned_abs(),
            buf: widen(bytes.as_mut_ptr().addr()),
            len: widen(bytes.len()),
            flags: if event_fd.is_some() { FLAG_EVENT_FD } else { 0 },
            event_fd: event_fd.map_or(0, RawFd::unsigned_abs),
            ..Self::default()
        }
    }
}

fn widen(value: usize) -> u64 {
    // No machine has wider addresses.
    u64::try_from(value).unwrap_or(u64::MAX)
}

/// An AIO context.
#[derive(Debug)]
pub(super) struct Context {
    id: libc::c_ulong,
    /// Null where the ring in memory is of a kind that we do not know.
    ring: *mut RingHead,
}

// SAFETY: a context belongs to the process, not to a thread, and `&mut self` guards our end of the ring.
unsafe impl Send for Context {}

impl Context {
    pub(super) fn new(requests: usize) -> io::Result<Self> {
        let mut id: libc::c_ulong = 0;
        // SAFETY: io_setup writes the id, which must be 0 before.
        let failed = unsafe { libc::syscall(libc::SYS_io_setup, requests, &raw mut id) };
        if failed != 0 {
            return Err(io::Error::last_os_error());
        }
        let head = ptr::with_exposed_provenance_mut::<RingHead>(usize::try_from(id).unwrap_or_default());
        // SAFETY: the id is the address at which the kernel mapped the ring into this process, readable and writable, until
        // io_destroy; these fields do not change.
        let known = unsafe {
            (*head).magic == RING_MAGIC
                && (*head).incompat_features == 0
                && usize::try_from((*head).header_len) == Ok(size_of::<RingHead>())
        };
        Ok(Self { id, ring: if known { head } else { ptr::null_mut() } })
    }

    /// Submits the control blocks of `which`, in order. Gives how many the kernel took, at least one, or the errno with which
    /// it refused the first.
    pub(super) fn submit(&self, iocbs: &mut [Iocb], which: &[usize]) -> Result<usize, i32> {
        let mut pointers = [ptr::null_mut::<Iocb>(); super::REQUESTS_MAX];
        let mut count = 0usize;
        let base = iocbs.as_mut_ptr();
        for (pointer, &index) in pointers.iter_mut().zip(which) {
            assert!(index < iocbs.len(), "a slot without a control block");
            // SAFETY: just checked that it stays inside `iocbs`.
            *pointer = unsafe { base.add(index) };
            count += 1;
        }
        loop {
            // SAFETY: the first `count` pointers are to control blocks that the caller keeps in place, as it does their buffers
            // and files, until their events came or the context is destroyed.
            let taken = unsafe { libc::syscall(libc::SYS_io_submit, self.id, count, pointers.as_mut_ptr()) };
            match usize::try_from(taken) {
                Ok(0) => return Err(libc::EAGAIN),
                Ok(taken) => return Ok(taken),
                Err(_) => match io::Error::last_os_error().raw_os_error() {
                    Some(libc::EINTR) => {}
                    errno => return Err(errno.unwrap_or(libc::EIO)),
                },
            }
        }
    }

    /// Asks the kernel to cancel. The event comes in any case; that the request is done already is no error.
    pub(super) fn cancel(&self, iocb: &Iocb) {
        let mut event = Event::default();
        // SAFETY: `iocb` is a control block that was submitted to this context, at the same address; `event` can be written.
        unsafe { libc::syscall(libc::SYS_io_cancel, self.id, ptr::from_ref(iocb), &raw mut event) };
    }

    /// The next event: the request's `user`, and bytes moved or a negative errno. From memory, where the kernel allows it.
    pub(super) fn next_event(&mut self) -> Option<(usize, i64)> {
        let event = match ptr::NonNull::new(self.ring) {
            None => self.get_event()?,
            Some(ring) => {
                let head_of = ring.as_ptr();
                // SAFETY: the ring is mapped until io_destroy (see `new`); head and tail are shared with the kernel and only
                // touched as atomics.
                let (len, head, tail) = unsafe { ((*head_of).len, &(*head_of).head, &(*head_of).tail) };
                let at = head.load(Ordering::Relaxed);
                if at == tail.load(Ordering::Acquire) || at >= len {
                    return None;
                }
                // The kernel writes events before the tail, with a barrier between.
                fence(Ordering::Acquire);
                // SAFETY: `at` < `len`, so the event is inside the ring, behind its head; the kernel has written it, and does not
                // write it again before `head` has passed it.
                let event = unsafe {
                    let first = head_of.add(1).cast::<Event>();
                    first.add(usize::try_from(at).unwrap_or_default()).read()
                };
                head.store((at + 1) % len, Ordering::Release);
                event
            }
        };
        Some((usize::try_from(event.data).unwrap_or(usize::MAX), event.result))
    }

    fn get_event(&self) -> Option<Event> {
        let mut event = Event::default();
        let mut now = libc::timespec { tv_sec: 0, tv_nsec: 0 };
        // SAFETY: the kernel writes at most one event to `event`, and does not wait.
        let got =
            unsafe { libc::syscall(libc::SYS_io_getevents, self.id, 0, 1, &raw mut event, &raw mut now) };
        (got == 1).then_some(event)
    }

    /// As if the ring in memory were of an unknown kind.
    #[cfg(test)]
    pub(super) fn forget_ring(&mut self) {
        self.ring = ptr::null_mut();
    }

    /// Cancels all requests, waits for them, and ends the context. Whether the kernel did.
    pub(super) fn destroy(&mut self) -> bool {
        self.ring = ptr::null_mut();
        // SAFETY: the ring is not looked at again.
        unsafe { libc::syscall(libc::SYS_io_destroy, self.id) == 0 }
    }
}
