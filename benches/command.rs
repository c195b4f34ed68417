//! What one command costs, room by room: the transport, the opcode dispatch, the map of an image, the ring, and the whole loop
//! over an in-memory host.
//!
//! Compare runs of one machine only: `cargo bench --bench command`. `instructions` counts what repeats everywhere.

use std::{hint::black_box, sync::Arc};

use criterion::{BenchmarkId, Criterion, Throughput, criterion_group, criterion_main};
use host::{Loop, cbw, ten};
use ringdrive::{
    bot::{Bot, CommandStatus, Intent, StallPolicy},
    media::Medium as _,
    ring::{Completion, Mover as _, OpTag, Ring, RingOptions, Wait, pool::Pool},
    scsi::{RESPONSE_LEN_MAX, Reply},
    units::{ByteLen, ByteOffset, ByteRange},
};

mod host;

fn transport(c: &mut Criterion) {
    let cbw = cbw(65536, 0x80, &ten(0x28, 128));
    c.bench_function("bot: CBW to CSW", |b| {
        let mut bot = Bot::new(StallPolicy::Auto);
        b.iter(|| {
            let command = bot.receive_cbw(black_box(&cbw));
            let plan = bot.plan(Intent::In(65536));
            let ending = bot.finish(CommandStatus::Passed, 65536);
            bot.csw_sent();
            black_box((command, plan, ending))
        });
    });
}

fn dispatch(c: &mut Criterion) {
    let mut target = host::target();
    let mut response = vec![0; RESPONSE_LEN_MAX];
    let commands: [(&str, &[u8]); 4] = [
        ("scsi: TEST UNIT READY", &[0; 6]),
        ("scsi: INQUIRY", &[0x12, 0, 0, 0, 36, 0]),
        ("scsi: MODE SENSE(6), all pages", &[0x1a, 0, 0x3f, 0, 192, 0]),
        ("scsi: READ(10)", &ten(0x28, 128)),
    ];
    for (name, cdb) in commands {
        c.bench_function(name, |b| {
            b.iter(|| match target.execute(0, black_box(cdb), &mut response) {
                Reply::Media(op, pending) => {
                    black_box((op, target.complete(pending, Ok(()))));
                }
                Reply::Status(status) => drop(black_box(status)),
                Reply::Data { len } => drop(black_box(len)),
                Reply::Parameters { pending, .. } => target.abandon_parameters(pending),
            });
        });
    }
}

/// A range of a read as one extent, and the 1 MiB of the longest reads in requests of 64 KiB.
fn map(c: &mut Criterion) {
    let image = host::image();
    let range = |start, len| ByteRange::new(ByteOffset(start), ByteLen(len)).expect("a range");
    c.bench_function("media: map 4 KiB", |b| {
        b.iter(|| black_box(image.map(black_box(range(4096, 4096)))));
    });
    c.bench_function("media: map 1 MiB, 64 KiB each", |b| {
        b.iter(|| {
            let mut rest = black_box(range(0, 1 << 20));
            while !rest.is_empty() {
                let (piece, behind) = rest.split_at(ByteLen(64 * 1024));
                black_box(image.map(piece));
                rest = behind;
            }
        });
    });
}

/// A read to its completion: the kernel's part is most of it, so this tells what a round trip costs beside `read_now`.
fn ring(c: &mut Criterion) {
    let pool = Pool::new(2, 64 * 1024).expect("buffers");
    let file = Arc::new(host::file());
    let mut ring = Ring::<()>::new(&RingOptions::new(8, std::slice::from_ref(&pool))).expect("a ring");
    let mut group = c.benchmark_group("ring");
    for len in [4096, 64 * 1024] {
        group.throughput(Throughput::Bytes(ByteLen::from(len).0));
        group.bench_function(BenchmarkId::new("round trip", len), |b| {
            b.iter(|| {
                let buf = pool.take().expect("a buffer");
                assert!(ring.read(&file, ByteOffset(0), buf, 0..len, OpTag(0)).is_ok(), "the ring is full");
                loop {
                    if let Some(Completion::Moved(moved)) = ring.next() {
                        break assert_eq!(moved.result.ok(), Some(len));
                    }
                    ring.wait().expect("a completion");
                }
            });
        });
        group.bench_function(BenchmarkId::new("read_now", len), |b| {
            let mut buf = pool.take().expect("a buffer");
            let mut to = || ring.read_now(&file, ByteOffset(0), &mut buf[..len], Wait::ForMemory);
            b.iter(|| assert!(to(), "tmpfs is memory"));
        });
    }
    group.finish();
}

fn whole_loop(c: &mut Criterion) {
    let mut group = c.benchmark_group("loop");
    let mut run = Loop::new();
    group.bench_function("TEST UNIT READY", |b| b.iter(|| run.command(&cbw(0, 0, &[0; 6]), 0, &[])));
    for blocks in [8u16, 128, 1024] {
        let bytes = u32::from(blocks) * 512;
        let len = usize::from(blocks) * 512;
        group.throughput(Throughput::Bytes(bytes.into()));
        let read = cbw(bytes, 0x80, &ten(0x28, blocks));
        group.bench_function(format!("READ(10) {} KiB", len / 1024), |b| {
            b.iter(|| assert_eq!(run.command(&read, len, &[]), 0));
        });
        let (write, data) = (cbw(bytes, 0, &ten(0x2a, blocks)), vec![0x5a; len]);
        group.bench_function(format!("WRITE(10) {} KiB", len / 1024), |b| {
            b.iter(|| assert_eq!(run.command(&write, 0, &data), 0));
        });
    }
    group.finish();
}

criterion_group!(benches, transport, dispatch, map, ring, whole_loop);
criterion_main!(benches);
