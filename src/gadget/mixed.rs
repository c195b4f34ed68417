//! The engine `mixed`: IN as `aio`, OUT by a thread as `sync`. Called by the drive loop, from its thread only.
//!
//! For a process that may be killed, and whose successor needs what the host has sent by then. FunctionFS copies what an
//! asynchronous read has received only while the reader's memory has users (seen in 6.12.117), so a CBW that comes in the
//! tens of milliseconds from SIGKILL to the cancel of its read is acknowledged to the host and lost. A read(2) is cancelled at
//! once, and what it has received by then is copied before its thread ends.

use std::{
    fs::File,
    io,
    os::fd::BorrowedFd,
    sync::{Arc, atomic::AtomicU16},
};

use super::{
    aio::AioEngine,
    endpoints::{EndpointDone, Endpoints, Halted, Pipe, Refused, Tag, Wake},
    sync::Worker,
};
use crate::{ring::pool::Buf, schedule::Schedule};

/// The engine.
#[derive(Debug)]
pub struct MixedEngine {
    /// Of OUT it has nothing but the halts.
    aio: AioEngine,
    output: Worker,
}

impl MixedEngine {
    /// Takes the files of a bulk IN and a bulk OUT endpoint, opened read-write and non-blocking. `max_packet` is kept by the
    /// ep0 thread.
    ///
    /// # Errors
    /// As the engines `aio` and `sync`.
    pub fn new(
        schedule: Schedule,
        input: File,
        output: File,
        max_packet: Arc<AtomicU16>,
    ) -> io::Result<Self> {
        let reads = output.try_clone()?;
        let aio = AioEngine::new(input, output, max_packet)?;
        let output = Worker::start(Pipe::Out, schedule, reads, aio.ready())?;
        Ok(Self { aio, output })
    }
}

impl Endpoints for MixedEngine {
    fn send(&mut self, buf: Buf, len: usize, tag: Tag, wake: Wake) -> Result<(), Refused> {
        self.aio.send(buf, len, tag, wake)
    }

    /// Goes to the thread at once.
    fn receive(&mut self, buf: Buf, len: usize, tag: Tag) -> Result<(), Refused> {
        self.output.submit(buf, len, tag)
    }

    fn cancel(&mut self, pipe: Pipe) {
        match pipe {
            Pipe::In => self.aio.cancel(pipe),
            Pipe::Out => self.output.cancel(),
        }
    }

    fn halt(&mut self, pipe: Pipe) -> Halted {
        self.aio.halt(pipe)
    }

    fn clear_halt(&mut self, pipe: Pipe) {
        self.aio.clear_halt(pipe);
    }

    fn max_packet(&self) -> usize {
        self.aio.max_packet()
    }

    fn reap(&mut self) -> Option<EndpointDone> {
        self.aio.reap().or_else(|| self.output.take_done())
    }

    fn ready_fd(&self) -> Option<BorrowedFd<'_>> {
        self.aio.ready_fd()
    }

    fn flush(&mut self) {
        self.aio.flush();
    }
}

#[cfg(test)]
mod tests {
    use std::{io::Write, os::fd::OwnedFd, os::unix::net::UnixStream};

    use nix::poll::{PollFd, PollFlags, PollTimeout, poll};

    use super::*;
    use crate::ring::pool::Pool;

    #[test]
    fn both_pipes_tell_of_their_completions_at_one_descriptor() {
        let (_host_in, device_in) = UnixStream::pair().unwrap();
        let (mut host_out, device_out) = UnixStream::pair().unwrap();
        let file = |socket: UnixStream| File::from(OwnedFd::from(socket));
        let max_packet = Arc::new(AtomicU16::new(512));
        let mut engine =
            MixedEngine::new(Schedule::default(), file(device_in), file(device_out), max_packet).unwrap();
        let pool = Pool::new(4, 4096).unwrap();
        let next = |engine: &mut MixedEngine| loop {
            if let Some(done) = engine.reap() {
                return (done.pipe, done.tag.0, done.result);
            }
            let mut fds = [PollFd::new(engine.ready_fd().unwrap(), PollFlags::POLLIN)];
            assert_eq!(poll(&mut fds, PollTimeout::from(10_000u16)).unwrap(), 1, "a completion is lost");
        };
        engine.receive(pool.take().unwrap(), 512, Tag(1)).unwrap();
        host_out.write_all(&[1; 31]).unwrap();
        assert_eq!(next(&mut engine), (Pipe::Out, 1, Ok(31)));
        engine.send(pool.take().unwrap(), 13, Tag(2), Wake::Now).unwrap();
        engine.flush();
        assert_eq!(next(&mut engine), (Pipe::In, 2, Ok(13)));
        engine.receive(pool.take().unwrap(), 512, Tag(3)).unwrap();
        engine.cancel(Pipe::Out);
        let (pipe, tag, result) = next(&mut engine);
        assert!(pipe == Pipe::Out && tag == 3 && result.is_err(), "{result:?}");
        assert_eq!(pool.available(), pool.count());
    }
}
