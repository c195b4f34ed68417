//! The engine over pipes and stream sockets; endpoints themselves are tested on the virtual board.

use std::{
    io::{Read, Write},
    os::fd::OwnedFd,
    os::unix::net::UnixStream,
    time::Duration,
};

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};

use super::*;
use crate::ring::pool::Pool;

/// An engine whose endpoints block as real ones do: IN is a socket to the first host end, OUT one from the second.
fn over_sockets() -> (SyncEngine, UnixStream, UnixStream, Pool) {
    let (host_in, device_in) = UnixStream::pair().unwrap();
    let (host_out, device_out) = UnixStream::pair().unwrap();
    let file = |socket: UnixStream| File::from(OwnedFd::from(socket));
    let max_packet = Arc::new(AtomicU16::new(512));
    let engine = SyncEngine::new(Schedule::default(), file(device_in), file(device_out), max_packet).unwrap();
    (engine, host_in, host_out, Pool::new(64, 4096).unwrap())
}

/// The next completion, awaited at the ready descriptor.
fn next(engine: &mut SyncEngine) -> (Pipe, u32, Result<usize, TransferError>) {
    loop {
        if let Some(done) = engine.reap() {
            return (done.pipe, done.tag.0, done.result);
        }
        let mut fds = [PollFd::new(engine.ready_fd().unwrap(), PollFlags::POLLIN)];
        assert_eq!(poll(&mut fds, PollTimeout::from(10_000u16)).unwrap(), 1, "a completion is lost");
    }
}

#[test]
fn both_pipes_move_at_the_same_time() {
    let (mut engine, mut host_in, mut host_out, pool) = over_sockets();
    engine.receive(pool.take().unwrap(), 512, Tag(1)).unwrap();
    let mut buf = pool.take().unwrap();
    buf[..3].copy_from_slice(b"csw");
    engine.send(buf, 3, Tag(2), Wake::Now).unwrap();
    assert_eq!(next(&mut engine), (Pipe::In, 2, Ok(3)));
    let mut seen = [0; 3];
    host_in.read_exact(&mut seen).unwrap();
    assert_eq!(&seen, b"csw");
    host_out.write_all(&[1; 31]).unwrap();
    assert_eq!(next(&mut engine), (Pipe::Out, 1, Ok(31)));
    assert!(engine.reap().is_none());
    assert_eq!(pool.available(), pool.count());
}

#[test]
fn a_cancel_interrupts_the_request_under_way_and_the_ones_behind_it() {
    let (mut engine, _host_in, mut host_out, pool) = over_sockets();
    for round in 0..200 {
        for tag in 0..3 {
            engine.receive(pool.take().unwrap(), 512, Tag(tag)).unwrap();
        }
        // At every point of the thread's way into the system call.
        if round % 2 == 0 {
            thread::sleep(Duration::from_micros(round));
        }
        engine.cancel(Pipe::Out);
        for tag in 0..3 {
            assert_eq!(next(&mut engine), (Pipe::Out, tag, Err(TransferError::Cancelled)));
        }
    }
    host_out.write_all(b"cbw").unwrap();
    engine.receive(pool.take().unwrap(), 512, Tag(9)).unwrap();
    assert_eq!(next(&mut engine), (Pipe::Out, 9, Ok(3)), "a cancelled read has eaten nothing");
}

#[test]
fn nothing_is_sent_behind_a_failure_that_the_caller_has_not_seen() {
    let (mut engine, host_in, _host_out, pool) = over_sockets();
    drop(host_in);
    // The first fails with EPIPE; what is behind it must not go, even if it is submitted after the failure.
    for tag in 0..3 {
        engine.send(pool.take().unwrap(), 13, Tag(tag), Wake::Now).unwrap();
    }
    assert_eq!(next(&mut engine), (Pipe::In, 0, Err(TransferError::Interrupted)));
    assert_eq!(next(&mut engine), (Pipe::In, 1, Err(TransferError::Cancelled)));
    assert_eq!(next(&mut engine), (Pipe::In, 2, Err(TransferError::Cancelled)));
    engine.send(pool.take().unwrap(), 13, Tag(3), Wake::Now).unwrap();
    assert_eq!(next(&mut engine), (Pipe::In, 3, Err(TransferError::Interrupted)), "tried again after that");
}

#[test]
fn a_full_queue_and_a_length_beyond_the_buffer_are_refused_with_the_buffer() {
    let (mut engine, _host_in, _host_out, pool) = over_sockets();
    let refused = engine.send(pool.take().unwrap(), 4097, Tag(0), Wake::Now).unwrap_err();
    assert_eq!(refused.error, TransferError::Other(libc::EINVAL));
    for tag in 0..32 {
        engine.receive(pool.take().unwrap(), 512, Tag(tag)).unwrap();
    }
    let refused = engine.receive(refused.buf, 512, Tag(32)).unwrap_err();
    assert_eq!(refused.error, TransferError::Other(libc::ENOBUFS));
}

#[test]
fn dropping_the_engine_ends_a_blocked_request_and_gives_all_buffers_back() {
    let (mut engine, _host_in, _host_out, pool) = over_sockets();
    for tag in 0..4 {
        engine.receive(pool.take().unwrap(), 512, Tag(tag)).unwrap();
    }
    drop(engine);
    assert_eq!(pool.available(), pool.count());
}
