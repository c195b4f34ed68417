//! Web servers that lie, break off and dawdle: each is the error that docs/urls.md has, and no wrong byte reaches the host.

use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use hw_tests::board::{Board, Scratch};
use hw_tests::host::Lun;
use hw_tests::image;
use hw_tests::liar::{Liar, Mood};
use hw_tests::rig::{Backend, Drive, Rig, Setup};
use hw_tests::scsi::{self, Data};
use hw_tests::wait::wait_until;

use crate::{Case, DAEMON};

pub(crate) const CASES: &[Case] = &[
    Case { name: "what_a_lying_web_server_is_refused_for", on: DAEMON, run: refused },
    Case {
        name: "a_web_server_that_begins_to_lie_gives_the_host_no_wrong_byte",
        on: DAEMON,
        run: begins_to_lie,
    },
];

const LEN: u64 = 8 << 20;
/// Of what is fetched at once.
const CHUNK: u64 = 128 * 1024;
const BLOCK: usize = 2048;
/// In one command.
const BLOCKS: u8 = 8;
/// Shorter than the host waits.
const DEADLINE_MS: u32 = 4000;
const BACK: Duration = Duration::from_secs(30);

/// An empty optical drive whose images are fetched where the host reads, and nowhere else.
fn start(board: &Board, backend: Backend, scratch: &Scratch) -> Result<(Rig, Lun)> {
    let cache = scratch.file("cache");
    let section = format!("[url]\ncache = {cache:?}\nrate_limit_kib = 1\n");
    let drive = Drive::optical().deadline_ms(DEADLINE_MS);
    let rig = Rig::start(board, backend, &Setup::of([drive]).configured(section))?;
    let lun = rig.lun(0)?;
    scsi::drain_attentions(&lun)?;
    Ok((rig, lun))
}

fn refused(board: &Board, backend: Backend) -> Result<()> {
    let scratch = board.scratch()?;
    let liar = Liar::start(LEN)?;
    let (mut rig, _) = start(board, backend, &scratch)?;
    for (mood, says) in [
        (Mood::NoRanges, "sends no byte ranges"),
        (Mood::WrongRange, "not the range that was asked for"),
        (Mood::Truncated, "broke the connection in the middle"),
        (Mood::InTrouble, "answered with status 500"),
        (Mood::Drip, "did not answer in time"),
        (Mood::Circle, "redirects in a circle"),
    ] {
        liar.be(mood);
        let said = rig.daemon()?.try_cli(&["insert", "cd", &liar.url("x.iso")])?;
        ensure!(said.status == 1 && said.text.contains(says), "{mood:?}: {} {}", said.status, said.text);
        ensure!(rig.state()?["drives"][0]["image"].is_null(), "{mood:?}: inserted all the same");
    }
    rig.stop()
}

/// What the host got for one read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Got {
    Right,
    NotReady,
    MediumError,
}

/// Reads some blocks and looks at each.
fn read(lun: &Lun, at: u64) -> Result<Got> {
    let [a, b, c, d] = u32::try_from(at / 2048)?.to_be_bytes();
    let cdb = [0x28, 0, a, b, c, d, 0, 0, BLOCKS, 0];
    let len = usize::from(BLOCKS) * BLOCK;
    let outcome = scsi::command(lun, &cdb, Data::In(len))?;
    if outcome.has_sense("Not Ready", "becoming ready") {
        return Ok(Got::NotReady);
    }
    if outcome.has_sense("Medium Error", "") {
        return Ok(Got::MediumError);
    }
    ensure!(outcome.good(), "a read at {at}: {}", outcome.text);
    // A changed mood must not come between: asked again, for its bytes.
    let bytes = scsi::data_in(lun, &cdb, len)?;
    ensure!(bytes.len() == len, "{} bytes of a read at {at}", bytes.len());
    image::versions_in(&bytes, at, &[1])?;
    Ok(Got::Right)
}

fn begins_to_lie(board: &Board, backend: Backend) -> Result<()> {
    for (mood, expected) in [
        (Mood::NoRanges, Got::MediumError),
        (Mood::WrongRange, Got::MediumError),
        (Mood::Good(2), Got::MediumError),
        (Mood::Truncated, Got::NotReady),
        (Mood::InTrouble, Got::NotReady),
        (Mood::Drip, Got::NotReady),
    ] {
        lies(board, backend, mood, expected).with_context(|| format!("{mood:?}"))?;
    }
    Ok(())
}

fn lies(board: &Board, backend: Backend, mood: Mood, expected: Got) -> Result<()> {
    let scratch = board.scratch()?;
    let liar = Liar::start(LEN)?;
    let (mut rig, lun) = start(board, backend, &scratch)?;
    rig.daemon()?.cli(&["insert", "cd", &liar.url("x.iso")])?;
    scsi::drain_attentions(&lun)?;
    for at in [0, 20 * CHUNK] {
        ensure!(read(&lun, at)? == Got::Right, "no bytes at {at} while the server is honest");
    }
    liar.be(mood);
    // What is here is right, what is not is an error, until the server is honest again.
    for at in [30 * CHUNK, 40 * CHUNK] {
        let got = read(&lun, at)?;
        ensure!(got == expected, "the host got {got:?} at {at}");
        for at in [0, 20 * CHUNK] {
            ensure!(read(&lun, at)? == Got::Right, "what was here at {at} has gone");
        }
    }
    if mood == Mood::Good(2) {
        let state = rig.state()?;
        ensure!(state["drives"][0]["image"]["source"] == "changed", "{state}");
    }
    if expected == Got::NotReady {
        liar.be(Mood::Good(1));
        let right = || read(&lun, 30 * CHUNK).is_ok_and(|got| got == Got::Right);
        wait_until(BACK, "the drive reads on when the server is honest again", right)?;
    }
    if rig.state()?["drives"][0]["image"].is_null() {
        bail!("the image has gone from the drive");
    }
    rig.stop()
}
