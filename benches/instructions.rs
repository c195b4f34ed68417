//! How many instructions the pure rooms take for one command, under Valgrind: the same on every machine of one architecture.
//!
//! `cargo xtask instructions` runs it and compares with the counts kept in `instructions.json`. Each benchmark is one call in the
//! state that a running device is in; the kernel's work is not counted.

#![allow(missing_docs, reason = "gungraun's macros make public items")]

use std::hint::black_box;

use gungraun::{LibraryBenchmarkConfig, library_benchmark, library_benchmark_group, main};
use host::{Loop, cbw, ten};
use ringdrive::{
    bot::{Bot, CommandStatus, Intent, StallPolicy},
    media::{Extent, Image, Medium as _},
    scsi::{RESPONSE_LEN_MAX, Reply, Target},
    units::{ByteLen, ByteOffset, ByteRange},
};

mod host;

/// The C library takes other copy loops on other processors.
const PLAIN_COPIES: &str = "glibc.cpu.hwcaps=-AVX512F,-AVX512VL,-AVX2,-AVX2_Usable,-ERMS,-FSRM";

fn bot() -> (Bot, [u8; 31]) {
    (Bot::new(StallPolicy::Auto), cbw(65536, 0x80, &ten(0x28, 128)))
}

#[library_benchmark(setup = bot)]
fn cbw_to_csw((mut bot, cbw): (Bot, [u8; 31])) -> Bot {
    let command = bot.receive_cbw(black_box(&cbw));
    let plan = bot.plan(Intent::In(65536));
    let ending = bot.finish(CommandStatus::Passed, 65536);
    bot.csw_sent();
    let _ = black_box((command, plan, ending));
    bot
}

fn target(cdb: &[u8]) -> (Target, Vec<u8>, Vec<u8>) {
    let (mut target, mut response) = (host::target(), vec![0; RESPONSE_LEN_MAX]);
    // Unit attentions are reported first.
    for _ in 0..4 {
        execute(&mut target, &[0; 6], &mut response);
    }
    (target, cdb.to_vec(), response)
}

fn execute(target: &mut Target, cdb: &[u8], response: &mut [u8]) {
    match target.execute(0, black_box(cdb), response) {
        Reply::Media(op, pending) => {
            black_box((op, target.complete(pending, Ok(()))));
        }
        Reply::Status(status) => drop(black_box(status)),
        Reply::Data { len } => drop(black_box(len)),
        Reply::Parameters { pending, .. } => target.abandon_parameters(pending),
    }
}

#[library_benchmark(setup = target)]
#[bench::test_unit_ready(&[0; 6])]
#[bench::inquiry(&[0x12, 0, 0, 0, 36, 0])]
#[bench::read_10(&ten(0x28, 128))]
fn dispatch((mut target, cdb, mut response): (Target, Vec<u8>, Vec<u8>)) -> (Target, Vec<u8>, Vec<u8>) {
    execute(&mut target, &cdb, &mut response);
    (target, cdb, response)
}

fn range() -> (Image, ByteRange) {
    (host::image(), ByteRange::new(ByteOffset(4096), ByteLen(4096)).expect("a range"))
}

#[library_benchmark(setup = range)]
fn map((image, range): (Image, ByteRange)) -> (Image, Extent) {
    let extent = image.map(black_box(range));
    (image, extent)
}

fn running(cbw: [u8; 31], len: usize) -> (Loop, [u8; 31], usize) {
    let mut run = Loop::new();
    for _ in 0..8 {
        run.command(&cbw, len, &[]);
    }
    (run, cbw, len)
}

#[library_benchmark(setup = running)]
#[bench::test_unit_ready(cbw(0, 0, &[0; 6]), 0)]
#[bench::read_4_kib(cbw(4096, 0x80, &ten(0x28, 8)), 4096)]
fn whole_loop((mut run, cbw, len): (Loop, [u8; 31], usize)) -> Loop {
    assert_eq!(run.command(&cbw, len, &[]), 0);
    run
}

library_benchmark_group!(name = rooms, benchmarks = [cbw_to_csw, dispatch, map, whole_loop]);
main!(
    config = LibraryBenchmarkConfig::default().env("GLIBC_TUNABLES", PLAIN_COPIES),
    library_benchmark_groups = rooms
);
