//! The engine over pipes and plain files, which AIO serves too; endpoints themselves are tested on the virtual board.

use std::{
    fs::OpenOptions,
    io::{Read, Write},
    os::fd::OwnedFd,
};

use nix::{
    fcntl::OFlag,
    poll::{PollFd, PollFlags, PollTimeout, poll},
};

use super::*;
use crate::ring::pool::Pool;

/// An engine whose IN is a pipe to the reader given, and whose OUT is a pipe from the writer given.
fn over_pipes() -> (AioEngine, File, File, Pool) {
    let pipe = || nix::unistd::pipe2(OFlag::O_NONBLOCK | OFlag::O_CLOEXEC).unwrap();
    let file = |fd: OwnedFd| File::from(fd);
    let (host_in, device_in) = pipe();
    let (device_out, host_out) = pipe();
    let engine = AioEngine::new(file(device_in), file(device_out), Arc::new(AtomicU16::new(512))).unwrap();
    (engine, file(host_in), file(host_out), Pool::new(64, 4096).unwrap())
}

fn filled(pool: &Pool, bytes: &[u8]) -> Buf {
    let mut buf = pool.take().unwrap();
    buf[..bytes.len()].copy_from_slice(bytes);
    buf
}

fn is_readable(engine: &AioEngine) -> bool {
    let mut fds = [PollFd::new(engine.ready_fd().unwrap(), PollFlags::POLLIN)];
    poll(&mut fds, PollTimeout::ZERO).unwrap() == 1
}

fn all(engine: &mut AioEngine) -> Vec<(Pipe, u32, Result<usize, TransferError>)> {
    std::iter::from_fn(|| engine.reap()).map(|done| (done.pipe, done.tag.0, done.result)).collect()
}

#[test]
fn a_batch_moves_in_the_order_of_submission_and_gives_every_buffer_back() {
    let (mut engine, mut host_in, mut host_out, pool) = over_pipes();
    host_out.write_all(&[7; 31]).unwrap();
    engine.send(filled(&pool, b"data"), 4, Tag(1), Wake::Now).unwrap();
    engine.send(filled(&pool, b"csw"), 3, Tag(2), Wake::Now).unwrap();
    engine.receive(pool.take().unwrap(), 512, Tag(3)).unwrap();
    assert!(engine.reap().is_none(), "nothing goes to the kernel before flush");
    engine.flush();
    assert!(is_readable(&engine));
    assert_eq!(all(&mut engine), [(Pipe::In, 1, Ok(4)), (Pipe::In, 2, Ok(3)), (Pipe::Out, 3, Ok(31))]);
    let mut seen = [0; 16];
    assert_eq!(host_in.read(&mut seen).unwrap(), 7);
    assert_eq!(&seen[..7], b"datacsw");
    assert_eq!(pool.available(), pool.count());
}

#[test]
fn a_request_that_wakes_nobody_is_found_by_the_next_reap() {
    let (mut engine, _host_in, mut host_out, pool) = over_pipes();
    engine.send(filled(&pool, b"csw"), 3, Tag(1), Wake::Later).unwrap();
    engine.flush();
    assert!(!is_readable(&engine));
    engine.receive(pool.take().unwrap(), 512, Tag(2)).unwrap();
    host_out.write_all(&[7; 31]).unwrap();
    engine.flush();
    assert!(is_readable(&engine));
    assert_eq!(all(&mut engine), [(Pipe::In, 1, Ok(3)), (Pipe::Out, 2, Ok(31))]);
}

#[test]
fn events_come_by_io_getevents_where_the_ring_is_not_known() {
    let (mut engine, _host_in, _host_out, pool) = over_pipes();
    engine.context.forget_ring();
    for tag in 0..5 {
        engine.send(filled(&pool, b"x"), 1, Tag(tag), Wake::Now).unwrap();
    }
    engine.flush();
    assert_eq!(all(&mut engine).len(), 5);
}

#[test]
fn the_ring_goes_round_many_times() {
    let (mut engine, mut host_in, _host_out, pool) = over_pipes();
    for tag in 0..1000 {
        engine.send(filled(&pool, b"0123456789"), 10, Tag(tag), Wake::Now).unwrap();
        engine.flush();
        assert_eq!(all(&mut engine), [(Pipe::In, tag, Ok(10))]);
        host_in.read_exact(&mut [0; 10]).unwrap();
    }
}

#[test]
fn a_refused_request_takes_those_behind_it_on_its_pipe_along_and_leaves_the_other_pipe() {
    let (mut engine, mut host_in, mut host_out, pool) = over_pipes();
    // A pipe holds 64 KiB; its reader stands still.
    for tag in 0..16 {
        engine.send(pool.take().unwrap(), 4096, Tag(tag), Wake::Now).unwrap();
    }
    engine.flush();
    assert!(all(&mut engine).iter().all(|(_, _, result)| *result == Ok(4096)));
    host_out.write_all(b"ok").unwrap();
    engine.send(pool.take().unwrap(), 4096, Tag(20), Wake::Now).unwrap();
    engine.send(pool.take().unwrap(), 4096, Tag(21), Wake::Now).unwrap();
    engine.receive(pool.take().unwrap(), 512, Tag(22)).unwrap();
    engine.flush();
    engine.send(pool.take().unwrap(), 13, Tag(23), Wake::Now).unwrap();
    engine.flush();
    assert!(is_readable(&engine));
    let refused = [
        (Pipe::In, 20, Err(TransferError::Disabled)),
        (Pipe::In, 21, Err(TransferError::Cancelled)),
        (Pipe::In, 23, Err(TransferError::Cancelled)),
        (Pipe::Out, 22, Ok(2)),
    ];
    assert_eq!(all(&mut engine), refused);
    assert_eq!(pool.available(), pool.count());
    host_in.read_exact(&mut [0; 8192]).unwrap();
    engine.send(pool.take().unwrap(), 13, Tag(24), Wake::Now).unwrap();
    engine.flush();
    assert_eq!(all(&mut engine), [(Pipe::In, 24, Ok(13))]);
}

#[test]
fn pieces_of_a_request_are_one_request_and_nothing_goes_between_them() {
    let (mut engine, mut host_in, mut host_out, pool) = over_pipes();
    engine.piece_max = 4;
    host_out.write_all(b"0123456789").unwrap();
    engine.send(filled(&pool, b"0123456789"), 10, Tag(1), Wake::Later).unwrap();
    engine.send(filled(&pool, b"csw"), 3, Tag(2), Wake::Later).unwrap();
    engine.receive(pool.take().unwrap(), 16, Tag(3)).unwrap();
    engine.flush();
    assert_eq!(all(&mut engine), [(Pipe::In, 1, Ok(10)), (Pipe::In, 2, Ok(3)), (Pipe::Out, 3, Ok(10))]);
    let mut seen = [0; 16];
    assert_eq!(host_in.read(&mut seen).unwrap(), 13);
    assert_eq!(&seen[..13], b"0123456789csw");
    assert_eq!(pool.available(), pool.count());
}

#[test]
fn cancelling_gives_back_what_was_not_flushed() {
    let (mut engine, mut host_in, _host_out, pool) = over_pipes();
    engine.send(filled(&pool, b"x"), 1, Tag(1), Wake::Now).unwrap();
    engine.receive(pool.take().unwrap(), 512, Tag(2)).unwrap();
    engine.cancel(Pipe::In);
    assert!(is_readable(&engine));
    assert_eq!(all(&mut engine), [(Pipe::In, 1, Err(TransferError::Cancelled))]);
    engine.cancel(Pipe::Out);
    engine.flush();
    assert_eq!(all(&mut engine), [(Pipe::Out, 2, Err(TransferError::Cancelled))]);
    assert!(host_in.read(&mut [0; 1]).is_err(), "nothing was sent");
}

#[test]
fn a_full_engine_and_a_length_beyond_the_buffer_are_refused_with_the_buffer() {
    let (mut engine, _host_in, _host_out, pool) = over_pipes();
    let many = Pool::new(64, 1).unwrap();
    let refused = engine.send(pool.take().unwrap(), 4097, Tag(0), Wake::Now).unwrap_err();
    assert_eq!(refused.error, TransferError::Other(libc::EINVAL));
    for tag in 0..64 {
        engine.receive(many.take().unwrap(), 1, Tag(tag)).unwrap();
    }
    let refused = engine.receive(pool.take().unwrap(), 1, Tag(64)).unwrap_err();
    assert_eq!(refused.error, TransferError::Other(libc::ENOBUFS));
    engine.cancel(Pipe::Out);
    assert_eq!(all(&mut engine).len(), 64);
    engine.send(refused.buf, 0, Tag(65), Wake::Now).unwrap();
}

#[test]
fn dropping_the_engine_gives_all_buffers_back() {
    let (mut engine, _host_in, _host_out, pool) = over_pipes();
    engine.send(filled(&pool, b"x"), 1, Tag(1), Wake::Now).unwrap();
    engine.flush();
    engine.send(filled(&pool, b"y"), 1, Tag(2), Wake::Now).unwrap();
    drop(engine);
    assert_eq!(pool.available(), pool.count());
}

#[test]
fn a_plain_file_is_no_endpoint_and_says_so() {
    let dir = tempfile::tempdir().unwrap();
    let open = |name| {
        let mut options = OpenOptions::new();
        options.read(true).write(true).create(true).truncate(false).open(dir.path().join(name)).unwrap()
    };
    let mut engine = AioEngine::new(open("in"), open("out"), Arc::new(AtomicU16::new(64))).unwrap();
    assert_eq!(engine.halt(Pipe::In), Halted::Disabled);
    assert_eq!(engine.halt(Pipe::Out), Halted::Disabled);
    assert_eq!(engine.max_packet(), 64);
}
