//! Invalid CBWs, and Bulk-Only Mass Storage Reset in each phase: no stale byte comes through.

use anyhow::{Context, Result, ensure};
use hw_tests::board::Board;
use hw_tests::image;
use hw_tests::raw_bot::{Expects, SILENCE, TEST_UNIT_READY, Transfer, rw10};
use hw_tests::rig::{Backend, Stall};

use crate::thirteen::Bench;
use crate::{ALL, Case};

pub(crate) const CASES: &[Case] = &[
    Case { name: "an_invalid_cbw_halts_the_pipes_until_reset_recovery", on: ALL, run: invalid_cbw },
    Case { name: "a_reset_in_any_phase_leaves_no_stale_data", on: ALL, run: any_phase },
];

fn invalid_cbw(board: &Board, backend: Backend) -> Result<()> {
    let mut bench = Bench::start(board, backend, Stall::Auto)?;
    let valid = bench.bot.cbw(Expects::Nothing, &TEST_UNIT_READY);
    let mut unsigned = valid;
    unsigned[3] = b'S';
    let long = [&valid[..], &[0]].concat();
    let rows: [(&str, &[u8]); 6] = [
        ("30 bytes", &valid[..30]),
        ("32 bytes", &long),
        ("a wrong signature", &unsigned),
        ("31 bytes of noise", &image::noise(70, 31)),
        ("a packet of noise", &image::noise(71, bench.bot.packet())),
        ("one byte", &valid[..1]),
    ];
    for (lba, (what, bytes)) in (3000..).step_by(20).zip(rows) {
        one_invalid(&mut bench, bytes, backend).with_context(|| format!("a CBW of {what}"))?;
        bench.must_work(lba).with_context(|| format!("after a CBW of {what}"))?;
    }
    drop(bench.bot);
    bench.rig.stop()
}

/// BOT 1.0 §6.6.1: both pipes stay halted, or at least dead, until reset recovery.
fn one_invalid(bench: &mut Bench, bytes: &[u8], backend: Backend) -> Result<()> {
    let bot = &mut bench.bot;
    ensure!(bot.send(bytes)? == Transfer::Done(Vec::new()), "it was not taken");
    ensure!(matches!(bot.receive(13)?, Transfer::Stall(_)), "the IN pipe is not halted");
    // The kernel takes what comes on the OUT pipe and drops it.
    if backend != Backend::Kernel {
        ensure!(matches!(bot.send(&[0; 31])?, Transfer::Stall(_)), "the OUT pipe is not halted");
    }
    bot.clear_in()?;
    bot.clear_out()?;
    let cbw = bot.cbw(Expects::Nothing, &TEST_UNIT_READY);
    bot.send_within(&cbw, SILENCE)?;
    let answer = bot.receive_within(13, SILENCE)?;
    ensure!(!matches!(answer, Transfer::Done(_)), "answered before the reset: {answer:02x?}");
    bot.recover()
}

/// Where the host gives up.
#[derive(Clone, Copy, Debug)]
enum Phase {
    Idle,
    BeforeDataIn,
    AmidDataIn,
    /// The CSW is queued behind the data.
    BeforeLastPacketIn,
    BeforeCsw,
    BeforeDataOut,
    AmidDataOut,
    Halted,
    Invalid,
}

const PHASES: [Phase; 9] = [
    Phase::Idle,
    Phase::BeforeDataIn,
    Phase::AmidDataIn,
    Phase::BeforeLastPacketIn,
    Phase::BeforeCsw,
    Phase::BeforeDataOut,
    Phase::AmidDataOut,
    Phase::Halted,
    Phase::Invalid,
];

const BLOCKS: u16 = 256;
const BYTES: u32 = 256 * 512;

fn any_phase(board: &Board, backend: Backend) -> Result<()> {
    let mut bench = Bench::start(board, backend, Stall::Auto)?;
    for round in 0..2 {
        for (lba, phase) in (4000..).step_by(20).zip(PHASES) {
            // A CSW with no data before it is in dummy_hcd's own queue, and comes in any case.
            if matches!(phase, Phase::BeforeCsw | Phase::Halted) && board.is_dummy() {
                continue;
            }
            go_to(&mut bench, phase).with_context(|| format!("round {round}, on the way to {phase:?}"))?;
            bench.bot.recover().with_context(|| format!("round {round}, reset in {phase:?}"))?;
            bench.must_work(lba).with_context(|| format!("round {round}, after a reset in {phase:?}"))?;
        }
    }
    drop(bench.bot);
    bench.rig.stop()
}

fn go_to(bench: &mut Bench, phase: Phase) -> Result<()> {
    let bot = &mut bench.bot;
    let half = usize::try_from(BYTES / 2)?;
    let read = rw10(false, 10, BLOCKS);
    // Where no check looks: an abandoned write may be there in part.
    let write = rw10(true, 5000, BLOCKS);
    match phase {
        Phase::Idle => {}
        Phase::BeforeDataIn => bot.begin(Expects::In(BYTES), &read)?,
        Phase::AmidDataIn => {
            bot.begin(Expects::In(BYTES), &read)?;
            ensure!(matches!(bot.receive(half)?, Transfer::Done(_)), "no first half");
        }
        Phase::BeforeLastPacketIn => {
            let all_but_one = half * 2 - bot.packet();
            bot.begin(Expects::In(BYTES), &read)?;
            ensure!(matches!(bot.receive(all_but_one)?, Transfer::Done(_)), "no data");
        }
        Phase::BeforeCsw => {
            bot.begin(Expects::In(BYTES), &read)?;
            ensure!(matches!(bot.receive(half * 2)?, Transfer::Done(_)), "no data");
        }
        Phase::BeforeDataOut => bot.begin(Expects::Out(BYTES), &write)?,
        Phase::AmidDataOut => {
            bot.begin(Expects::Out(BYTES), &write)?;
            ensure!(
                matches!(bot.send(&vec![0x5a; half])?, Transfer::Done(_)),
                "the first half was not taken"
            );
        }
        Phase::Halted => {
            bot.begin(Expects::In(512), &TEST_UNIT_READY)?;
            let mut got = bot.receive(512)?;
            if got == Transfer::Done(Vec::new()) {
                got = bot.receive(512)?;
            }
            ensure!(matches!(got, Transfer::Stall(_)), "the IN pipe is not halted: {got:?}");
        }
        Phase::Invalid => {
            ensure!(matches!(bot.send(b"USBC")?, Transfer::Done(_)), "an invalid CBW was not taken");
        }
    }
    Ok(())
}
