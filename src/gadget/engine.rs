//! The choice between the endpoint engines, made once per function in the configuration.

use std::{
    fs::File,
    io,
    os::fd::BorrowedFd,
    sync::{Arc, atomic::AtomicU16},
};

use serde::Deserialize;

use super::{
    aio::AioEngine,
    endpoints::{EndpointDone, Endpoints, Halted, Pipe, Refused, Tag, TransferError, Wake},
    mixed::MixedEngine,
    sync::SyncEngine,
};
use crate::{ring::pool::Buf, schedule::Schedule};

/// Most requests that one function has queued, both pipes together.
pub(super) const REQUESTS_MAX: usize = 64;

/// The smallest piece of a request that lack of kernel memory makes us fall back to: one page.
const PIECE_MIN: usize = 4096;

/// The kernel has no memory for a piece of this size: that of the next ones, unless none is smaller.
pub(super) fn smaller_piece(piece: usize) -> Option<usize> {
    let smaller = (piece > PIECE_MIN).then(|| (piece / 2).next_multiple_of(PIECE_MIN))?;
    tracing::warn!(smaller, "the kernel lacks memory for endpoint requests; using smaller ones");
    Some(smaller)
}

/// How a function's endpoints are driven.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum EngineKind {
    /// Linux AIO: many requests in flight. The default; why not io_uring: `docs/decisions/0001-endpoints-by-aio.md`.
    #[default]
    Aio,
    /// One thread per endpoint, one request at a time: for kernels on which asynchronous endpoint writes leak.
    Sync,
    /// To the host as `Aio`, from it as `Sync`: what `Aio` is where a successor may need what the host has sent.
    #[serde(skip)]
    Mixed,
}

impl EngineKind {
    /// The same for a process whose successor takes over what it has received.
    #[must_use]
    pub fn outlived(self) -> Self {
        match self {
            Self::Aio | Self::Mixed => Self::Mixed,
            Self::Sync => Self::Sync,
        }
    }
}

/// The engine of one function.
#[derive(Debug)]
pub enum Engine {
    /// Linux AIO.
    Aio(AioEngine),
    /// One thread per endpoint.
    Sync(SyncEngine),
    /// Linux AIO to the host, a thread from it.
    Mixed(MixedEngine),
}

impl Engine {
    /// An engine over the files of a bulk IN and a bulk OUT endpoint, opened read-write and non-blocking.
    pub(super) fn new(
        kind: EngineKind,
        schedule: Schedule,
        input: File,
        output: File,
        max_packet: Arc<AtomicU16>,
    ) -> io::Result<Self> {
        Ok(match kind {
            EngineKind::Aio => Self::Aio(AioEngine::new(input, output, max_packet)?),
            EngineKind::Sync => Self::Sync(SyncEngine::new(schedule, input, output, max_packet)?),
            EngineKind::Mixed => Self::Mixed(MixedEngine::new(schedule, input, output, max_packet)?),
        })
    }
}

impl Endpoints for Engine {
    fn send(&mut self, buf: Buf, len: usize, tag: Tag, wake: Wake) -> Result<(), Refused> {
        match self {
            Self::Aio(engine) => engine.send(buf, len, tag, wake),
            Self::Sync(engine) => engine.send(buf, len, tag, wake),
            Self::Mixed(engine) => engine.send(buf, len, tag, wake),
        }
    }

    fn receive(&mut self, buf: Buf, len: usize, tag: Tag) -> Result<(), Refused> {
        match self {
            Self::Aio(engine) => engine.receive(buf, len, tag),
            Self::Sync(engine) => engine.receive(buf, len, tag),
            Self::Mixed(engine) => engine.receive(buf, len, tag),
        }
    }

    fn cancel(&mut self, pipe: Pipe) {
        match self {
            Self::Aio(engine) => engine.cancel(pipe),
            Self::Sync(engine) => engine.cancel(pipe),
            Self::Mixed(engine) => engine.cancel(pipe),
        }
    }

    fn halt(&mut self, pipe: Pipe) -> Halted {
        match self {
            Self::Aio(engine) => engine.halt(pipe),
            Self::Sync(engine) => engine.halt(pipe),
            Self::Mixed(engine) => engine.halt(pipe),
        }
    }

    fn clear_halt(&mut self, pipe: Pipe) {
        match self {
            Self::Aio(engine) => engine.clear_halt(pipe),
            Self::Sync(engine) => engine.clear_halt(pipe),
            Self::Mixed(engine) => engine.clear_halt(pipe),
        }
    }

    fn max_packet(&self) -> usize {
        match self {
            Self::Aio(engine) => engine.max_packet(),
            Self::Sync(engine) => engine.max_packet(),
            Self::Mixed(engine) => engine.max_packet(),
        }
    }

    fn reap(&mut self) -> Option<EndpointDone> {
        match self {
            Self::Aio(engine) => engine.reap(),
            Self::Sync(engine) => engine.reap(),
            Self::Mixed(engine) => engine.reap(),
        }
    }

    fn ready_fd(&self) -> Option<BorrowedFd<'_>> {
        match self {
            Self::Aio(engine) => engine.ready_fd(),
            Self::Sync(engine) => engine.ready_fd(),
            Self::Mixed(engine) => engine.ready_fd(),
        }
    }

    fn flush(&mut self) {
        match self {
            Self::Aio(engine) => engine.flush(),
            Self::Sync(engine) => engine.flush(),
            Self::Mixed(engine) => engine.flush(),
        }
    }
}

/// The meaning of an errno that an endpoint request ended with.
pub(super) fn transfer_error(errno: i32) -> TransferError {
    match errno {
        libc::ECONNRESET | libc::EINTR | libc::ECANCELED => TransferError::Cancelled,
        // EAGAIN: not enabled. ENODEV: unbound.
        libc::ESHUTDOWN | libc::EAGAIN | libc::ENODEV => TransferError::Disabled,
        libc::EOVERFLOW => TransferError::Overflow,
        // dwc3 gives these back after the host's CLEAR_FEATURE (kernel.md §1.3, §8).
        libc::EPIPE | libc::EINPROGRESS => TransferError::Interrupted,
        libc::ENOMEM => TransferError::NoMemory,
        libc::EFAULT => TransferError::Fault,
        other => TransferError::Other(other),
    }
}

/// The two endpoint files, and what can be done to them at once.
#[derive(Debug)]
pub(super) struct EndpointFiles {
    pub(super) input: File,
    pub(super) output: File,
}

impl EndpointFiles {
    pub(super) fn of(&self, pipe: Pipe) -> &File {
        match pipe {
            Pipe::In => &self.input,
            Pipe::Out => &self.output,
        }
    }

    /// I/O in the wrong direction halts; FunctionFS says EBADMSG when it has (kernel.md §1.3).
    pub(super) fn halt(&self, pipe: Pipe) -> Halted {
        let file = self.of(pipe);
        let result = match pipe {
            Pipe::In => nix::unistd::read(file, &mut []),
            Pipe::Out => nix::unistd::write(file, &[]),
        };
        match result {
            Err(nix::Error::EBADMSG) => Halted::Yes,
            // Refused by the controller, or the endpoint is disabled: only the latter has no descriptor.
            Err(nix::Error::EAGAIN) if super::functionfs::endpoint_speed(file).is_some() => Halted::Busy,
            _ => Halted::Disabled,
        }
    }

    pub(super) fn clear_halt(&self, pipe: Pipe) {
        if let Err(error) = super::functionfs::clear_halt(self.of(pipe)) {
            tracing::debug!(?pipe, %error, "clearing a halt");
        }
    }
}
