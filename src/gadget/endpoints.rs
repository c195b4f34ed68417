//! What an endpoint engine is: the two bulk pipes of one function, as the drive loop sees them.
//!
//! The `aio` and `sync` engines implement [`Endpoints`] over FunctionFS files; the simulation implements it over a model
//! host. The drive loop calls it from one thread only, because the order of submission is the order on the bus.
//!
//! Invariants: a buffer given to an engine comes back exactly once, in an [`EndpointDone`] or in a [`Refused`]; completions of
//! one pipe come in the order of submission; after [`Endpoints::cancel`] every request still queued comes back, as
//! [`TransferError::Cancelled`] or with its result if it was done before.

use std::os::fd::BorrowedFd;

use crate::ring::pool::Buf;

/// One of the two bulk pipes, named as USB does, from the host's side.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Pipe {
    /// Device to host.
    In,
    /// Host to device.
    Out,
}

/// What the drive loop called a request when it submitted it; handed back untouched.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Tag(pub u32);

/// A finished endpoint request, with its buffer.
#[derive(Debug)]
pub struct EndpointDone {
    /// The pipe it was queued on.
    pub pipe: Pipe,
    /// As given at submission.
    pub tag: Tag,
    /// The buffer given at submission.
    pub buf: Buf,
    /// Bytes moved, from the start of the buffer. Short on OUT: the host ended the transfer with a short packet.
    pub result: Result<usize, TransferError>,
}

/// Why an endpoint request did not move its bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum TransferError {
    /// We cancelled it.
    #[error("cancelled")]
    Cancelled,
    /// The host reset, disconnected or deconfigured us (ESHUTDOWN), or the endpoint is not enabled (EAGAIN at submission).
    #[error("endpoint disabled")]
    Disabled,
    /// The host sent more than the request could hold (EOVERFLOW).
    #[error("host sent more than was asked for")]
    Overflow,
    /// The host cleared a halt while the request was queued (EPIPE). Behind a halt of ours nothing is wrong: queue it again.
    #[error("interrupted by a cleared halt")]
    Interrupted,
    /// The kernel had no memory for it (ENOMEM), not even for a page at a time.
    #[error("the kernel has no memory for a request")]
    NoMemory,
    /// The kernel could not read our bytes (EFAULT): a mapped image was truncated.
    #[error("source bytes are gone")]
    Fault,
    /// Anything else, by errno.
    #[error("errno {0}")]
    Other(i32),
}

/// Whether the caller wants to be woken for a completion.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Wake {
    /// Yes: something waits for it.
    Now,
    /// No: it may be found by the next [`Endpoints::reap`], whatever that is for.
    Later,
}

/// A request that was not queued; the buffer comes back.
#[derive(Debug)]
pub struct Refused {
    /// The buffer given.
    pub buf: Buf,
    /// Why.
    pub error: TransferError,
}

/// What became of a request to halt an endpoint.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Halted {
    /// The endpoint answers STALL until the host clears it.
    Yes,
    /// The controller refuses while requests are queued or in its FIFO (EAGAIN): ask again after the next completion,
    /// or a little later.
    Busy,
    /// The endpoint is disabled; there is nobody to tell.
    Disabled,
}

/// The two bulk endpoints of one Bulk-Only function.
pub trait Endpoints {
    /// Queues the first `len` bytes of `buf` on the IN pipe. `len` 0 is a zero-length packet.
    ///
    /// # Errors
    /// The buffer and the reason, if the kernel did not take the request.
    fn send(&mut self, buf: Buf, len: usize, tag: Tag, wake: Wake) -> Result<(), Refused>;

    /// Queues a read of exactly `len` bytes (a multiple of the packet size) from the OUT pipe into the start of `buf`.
    ///
    /// # Errors
    /// As [`Endpoints::send`].
    fn receive(&mut self, buf: Buf, len: usize, tag: Tag) -> Result<(), Refused>;

    /// Cancels whatever is queued on `pipe`. Completions still come.
    fn cancel(&mut self, pipe: Pipe);

    /// Stalls `pipe`. To be called with nothing queued on it (dwc2 and dwc3 refuse otherwise; kernel.md §1.3).
    fn halt(&mut self, pipe: Pipe) -> Halted;

    /// Un-stalls `pipe`.
    fn clear_halt(&mut self, pipe: Pipe);

    /// wMaxPacketSize at the current speed; valid from ENABLE to DISABLE.
    fn max_packet(&self) -> usize;

    /// The next completion, if one is there. Never blocks.
    fn reap(&mut self) -> Option<EndpointDone>;

    /// Is signalled when [`Endpoints::reap`] has something that somebody is to be woken for. To be watched for edges: it may stay
    /// readable. `reap` until `None` after it fired.
    fn ready_fd(&self) -> Option<BorrowedFd<'_>>;

    /// Hands requests queued since the last call to the kernel in one system call, where the engine batches them.
    fn flush(&mut self);
}
