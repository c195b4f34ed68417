//! The thirteen cases of Bulk-Only Transport 1.0 §6.7, on the wire.

use anyhow::{Context, Result, ensure};
use hw_tests::board::Board;
use hw_tests::image;
use hw_tests::raw_bot::{Expects, INQUIRY, Performed, REQUEST_SENSE, RawBot, Status, TEST_UNIT_READY, rw10};
use hw_tests::rig::{Backend, Drive, Rig, Setup, Stall};

use crate::{ALL, Case};

pub(crate) const CASES: &[Case] = &[
    Case { name: "all_end_in_a_working_drive_that_may_stall", on: ALL, run: may_stall },
    Case { name: "all_end_in_a_working_drive_that_never_stalls", on: ALL, run: never_stalls },
];

/// Blocks of a drive under test; all of them noise.
const BLOCKS: u32 = 8192;
const BLOCK: usize = 512;

/// A drive of noise in raw hands.
pub(crate) struct Bench {
    pub(crate) bot: RawBot,
    pub(crate) rig: Rig,
    image: std::path::PathBuf,
    _scratch: hw_tests::board::Scratch,
}

impl Bench {
    pub(crate) fn start(board: &Board, backend: Backend, stall: Stall) -> Result<Self> {
        let scratch = board.scratch()?;
        let path = image::random(scratch.file("image"), 50, u64::from(BLOCKS) * 512 / image::MIB)?;
        let setup = Setup::of([Drive::disk().with(&path).writable()]).stalling(stall);
        let rig = Rig::start(board, backend, &setup)?;
        // The host's own driver is done with the drive, and has used up its unit attentions.
        rig.lun(0)?.read_at(0, 4096)?;
        Ok(Self { bot: RawBot::open(&rig.device)?, rig, image: path, _scratch: scratch })
    }

    /// Blocks as the image has them.
    pub(crate) fn blocks(&self, lba: u32, count: u16) -> Result<Vec<u8>> {
        image::peek(&self.image, u64::from(lba) * 512, usize::from(count) * BLOCK)
    }

    /// INQUIRY and a READ at `lba` come out right.
    pub(crate) fn must_work(&mut self, lba: u32) -> Result<()> {
        let inquiry = self.bot.perform(Expects::In(36), &INQUIRY, &[]).context("INQUIRY")?;
        ensure!(inquiry.csw.status == Status::Passed, "INQUIRY: {inquiry:02x?}");
        ensure!(inquiry.data.get(8..16) == Some(b"RINGTEST"), "INQUIRY: {inquiry:02x?}");
        let read = self.bot.perform(Expects::In(16 * 512), &rw10(false, lba, 16), &[]).context("READ(10)")?;
        ensure!(read.csw.status == Status::Passed && read.csw.residue == 0, "READ(10): {:?}", read.csw);
        ensure!(read.data == self.blocks(lba, 16)?, "READ(10) at {lba} gave other bytes than the image");
        Ok(())
    }
}

/// One of the thirteen: what the host expects, what the device intends, what must come of it.
struct Row {
    case: &'static str,
    expects: Expects,
    cdb: Vec<u8>,
    /// What the device sends, as blocks at [`LBA`].
    sends: u16,
    /// The IN pipe is halted where the policy allows it.
    halts: bool,
    status: Status,
    /// Not looked at after a phase error: the host is to ignore it (§6.7).
    residue: u32,
    /// How many blocks of what the host sends must be on the medium.
    writes: u16,
}

const LBA: u32 = 100;

fn rows() -> Vec<Row> {
    use Expects::{In, Nothing, Out};
    use Status::{Failed, Passed, PhaseError};
    let tur = || TEST_UNIT_READY.to_vec();
    let read = |blocks| rw10(false, LBA, blocks).to_vec();
    let write = |blocks| rw10(true, LBA, blocks).to_vec();
    let row = |case, expects, cdb, sends, halts, status, residue, writes| Row {
        case,
        expects,
        cdb,
        sends,
        halts,
        status,
        residue,
        writes,
    };
    vec![
        row("1: Hn = Dn", Nothing, tur(), 0, false, Passed, 0, 0),
        row("2: Hn < Di", Nothing, read(1), 0, false, PhaseError, 0, 0),
        row("3: Hn < Do", Nothing, write(1), 0, false, PhaseError, 0, 0),
        row("4: Hi > Dn", In(512), tur(), 0, true, Passed, 512, 0),
        row("5: Hi > Di", In(2048), read(2), 2, true, Passed, 1024, 0),
        row("5: Hi > Di, end within a packet", In(4096), read(3), 3, true, Passed, 2560, 0),
        row(
            "5: Hi > Di, nothing as it fails",
            In(512),
            rw10(false, BLOCKS, 1).to_vec(),
            0,
            true,
            Failed,
            512,
            0,
        ),
        row("6: Hi = Di", In(32768), read(64), 64, false, Passed, 0, 0),
        row("7: Hi < Di", In(1024), read(4), 2, false, PhaseError, 0, 0),
        row("8: Hi <> Do", In(512), write(1), 0, true, PhaseError, 0, 0),
        row("9: Ho > Dn", Out(512), tur(), 0, false, Passed, 512, 0),
        row("10: Ho <> Di", Out(512), read(1), 0, false, PhaseError, 0, 0),
        row("11: Ho > Do", Out(2048), write(2), 0, false, Passed, 1024, 2),
        row(
            "11: Ho > Do, nothing as it fails",
            Out(512),
            rw10(true, BLOCKS, 1).to_vec(),
            0,
            false,
            Failed,
            512,
            0,
        ),
        row("12: Ho = Do", Out(32768), write(64), 0, false, Passed, 0, 64),
        row("13: Ho < Do", Out(1024), write(4), 0, false, PhaseError, 0, 0),
    ]
}

fn may_stall(board: &Board, backend: Backend) -> Result<()> {
    thirteen(board, backend, Stall::Auto)
}

fn never_stalls(board: &Board, backend: Backend) -> Result<()> {
    thirteen(board, backend, Stall::Never)
}

fn thirteen(board: &Board, backend: Backend, stall: Stall) -> Result<()> {
    let mut bench = Bench::start(board, backend, stall)?;
    for (seed, row) in (1000..).zip(rows()) {
        one(&mut bench, &row, stall, seed, backend).with_context(|| format!("case {}", row.case))?;
    }
    drop(bench.bot);
    bench.rig.stop()
}

fn one(bench: &mut Bench, row: &Row, stall: Stall, seed: u64, backend: Backend) -> Result<()> {
    let before = bench.blocks(LBA, 64)?;
    let out = if let Expects::Out(len) = row.expects { usize::try_from(len)? } else { 0 };
    let sent = image::noise(seed, out);
    let Performed { data, halted, csw } = bench.bot.perform(row.expects, &row.cdb, &sent)?;
    ensure!(csw.status == row.status, "{csw:?}, not {:?}", row.status);
    ensure!(
        csw.status == Status::PhaseError || csw.residue == row.residue,
        "{csw:?}, not residue {}",
        row.residue
    );
    ensure!(data == bench.blocks(LBA, row.sends)?, "{} bytes of data, not those of the image", data.len());
    ensure!(
        halted == (row.halts && stall == Stall::Auto),
        "the IN pipe was {}halted",
        if halted { "" } else { "not " }
    );
    if csw.status == Status::Failed {
        let sense = bench.bot.perform(Expects::In(18), &REQUEST_SENSE, &[])?.data;
        // ILLEGAL REQUEST, LOGICAL BLOCK ADDRESS OUT OF RANGE
        let got = (sense.get(2).copied(), sense.get(12).copied(), sense.get(13).copied());
        ensure!(got == (Some(5), Some(0x21), Some(0)), "sense data {sense:02x?}");
    }
    if csw.status == Status::PhaseError {
        bench.bot.recover()?;
    }
    bench.must_work(2000)?;
    // The kernel writes what it gets in case 13, although the command fails.
    let written = if backend == Backend::Kernel && row.case.starts_with("13") { 2 } else { row.writes };
    let (mut wanted, written) = (before, usize::from(written) * BLOCK);
    wanted[..written].copy_from_slice(&sent[..written]);
    ensure!(bench.blocks(LBA, 64)? == wanted, "the medium is not as the case demands");
    Ok(())
}
