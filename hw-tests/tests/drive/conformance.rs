//! libiscsi's conformance suite, which takes a SCSI generic device as well: an independent reading of SPC-4 and SBC-3.
//!
//! It runs family by family, each in a process of its own. No test may fail, and every test that skips itself must be in
//! [`SKIPS`], with what the suite says and why that is as it should be.

use std::collections::BTreeSet;

use anyhow::{Context, Result, ensure};
use hw_tests::board::Board;
use hw_tests::host::Lun;
use hw_tests::image::{self, MIB};
use hw_tests::rig::{Backend, Drive, Rig, Setup};
use hw_tests::tool;

use crate::{Case, DAEMON};

pub(crate) const CASES: &[Case] = &[
    Case { name: "libiscsi_finds_no_fault_in_a_disk", on: DAEMON, run: with_small_blocks },
    Case {
        name: "libiscsi_finds_no_fault_in_a_disk_of_4096_byte_blocks",
        on: DAEMON,
        run: with_large_blocks,
    },
    Case {
        name: "every_test_of_libiscsi_is_run_or_left_out_for_a_reason",
        on: DAEMON,
        run: all_accounted_for,
    },
];

/// Families about data, which run for both block sizes.
const DATA: &[&str] = &[
    "CompareAndWrite",
    "GetLBAStatus",
    "Mandatory",
    "Prefetch10",
    "Prefetch16",
    "Read6",
    "Read10",
    "Read12",
    "Read16",
    "ReadCapacity10",
    "ReadCapacity16",
    "Unmap",
    "Verify10",
    "Verify12",
    "Verify16",
    "Write10",
    "Write12",
    "Write16",
    "WriteAtomic16",
    "WriteSame10",
    "WriteSame16",
    "WriteVerify10",
    "WriteVerify12",
    "WriteVerify16",
];

/// The other families, and tests of families that do not run whole.
const OTHERS: &[&str] = &[
    "ExtendedCopy",
    "Inquiry",
    "ModeSense6",
    "OrWrite",
    "PreventAllow.Simple",
    "PreventAllow.Logout",
    "PrinReadKeys",
    "PrinReportCapabilities",
    "PrinServiceactionRange",
    "ProutClear",
    "ProutPreempt",
    "ProutReserve",
    "ReadDefectData10",
    "ReadDefectData12",
    "ReadOnly",
    "ReceiveCopyResults",
    "ReportSupportedOpcodes",
    "Reserve6",
    "StartStopUnit.NoLoej",
    "StartStopUnit.PwrCnd",
    "TestUnitReady",
];

/// What does not run, and why.
const LEFT_OUT: &[(&str, &str)] = &[
    (
        "NoMedia",
        "ejects and loads again, but an image that the host ejects is let go: only our side can insert it",
    ),
    ("PreventAllow.Eject", "as NoMedia"),
    ("PreventAllow.ITNexusLoss", "ends a session of iSCSI"),
    ("PreventAllow.WarmReset", "a task management function of iSCSI"),
    ("PreventAllow.ColdReset", "a task management function of iSCSI"),
    ("PreventAllow.LUNReset", "a task management function of iSCSI"),
    ("PreventAllow.2ITNexuses", "Bulk-Only Transport has one initiator"),
    ("StartStopUnit.Simple", "as NoMedia"),
    ("iSCSI", "iSCSI"),
    ("ProutRegister", "waits for the status RESERVATION CONFLICT, which Bulk-Only Transport cannot carry"),
    ("Sanitize", "not a command of ours, and OverwriteReserved crashes on anything but iSCSI"),
    ("MultipathIO", "Bulk-Only Transport has one path"),
];

/// What the suite says when a test skips itself, and why it may.
const SKIPS: &[(&str, &str)] = &[
    ("LBPPB < 2", "a physical block is a logical block"),
    (
        "not write-protected",
        "the disk is writable; disks::a_read_only_disk_refuses_writes is about the other",
    ),
    ("only supported for iSCSI", "the transport is not iSCSI"),
    ("iSCSI", "the transport is not iSCSI"),
    ("multipath", "Bulk-Only Transport has one path"),
    ("does not support 0-blocks", "WSNZ: WRITE SAME of no blocks is refused"),
    ("ORWRITE", "not a command of ours: no host sends it"),
    ("WRITE_ATOMIC_16", "not a command of ours: SBC-4"),
    ("WRITEATOMIC16", "not a command of ours: SBC-4"),
    ("RECEIVE_COPY_RESULTS", "not a command of ours: one drive cannot see another"),
    ("RECEIVECOPYRESULT", "as RECEIVE_COPY_RESULTS"),
    ("EXTENDEDCOPY", "as RECEIVE_COPY_RESULTS"),
    ("READDEFECTDATA", "not a command of ours: an image has no defects to list"),
    ("protection", "no protection information, so nothing to check"),
];

fn with_small_blocks(board: &Board, backend: Backend) -> Result<()> {
    suite(board, backend, 512, &[DATA, OTHERS].concat())
}

fn with_large_blocks(board: &Board, backend: Backend) -> Result<()> {
    suite(board, backend, 4096, DATA)
}

fn suite(board: &Board, backend: Backend, block_size: u32, families: &[&str]) -> Result<()> {
    let scratch = board.scratch()?;
    let path = image::blank(scratch.file("image"), 64 * MIB)?;
    let drive = Drive { block_size, ..Drive::disk().with(&path).writable() };
    let rig = Rig::start(board, backend, &Setup::of([drive]))?;
    let lun = rig.lun(0)?;
    // The suite moves up to 257 blocks at once; usb-storage splits what the page cache asks for, but refuses what a program does.
    std::fs::write(lun.sysfs.join("max_sectors"), "4096")
        .context("the host does not let us send more at once")?;
    let (mut faults, mut skipped) = (Vec::new(), BTreeSet::new());
    for family in families {
        let report = run(&lun, family)?;
        if !report.passed {
            faults.push(format!("{family}:\n{}", report.text));
        }
        for (test, words) in report.skips {
            match SKIPS.iter().find(|(said, _)| words.contains(said)) {
                Some((_, reason)) => drop(skipped.insert(format!("{family} {test}: {reason}"))),
                None => {
                    faults.push(format!("{family} {test} is skipped for no reason that we know: {words}"))
                }
            }
        }
    }
    for line in &skipped {
        eprintln!("skipped: {line}");
    }
    ensure!(faults.is_empty(), "{} faults:\n{}", faults.len(), faults.join("\n"));
    rig.stop()
}

/// What a run of the suite came to.
struct Report {
    passed: bool,
    /// Test, and what it said.
    skips: Vec<(String, String)>,
    text: String,
}

fn run(lun: &Lun, family: &str) -> Result<Report> {
    let pattern = format!("--test=ALL.{family}");
    let sg = lun.sg.display().to_string();
    let args = ["--dataloss", "--allow-sanitize", "--verbose", &pattern, &sg];
    Ok(report(tool::try_run("iscsi-test-cu", args)?.text))
}

fn report(text: String) -> Report {
    let (mut test, mut skips) = (None, Vec::new());
    for line in text.lines().map(str::trim) {
        if let Some(name) = line.strip_prefix("Test: ") {
            test = name.split_whitespace().next();
        }
        // On the same line, if that is all that the test says.
        if let (Some((_, words)), Some(test)) = (line.split_once("[SKIPPED]"), test) {
            skips.push((test.to_owned(), words.trim().to_owned()));
        }
    }
    // Total, ran, passed, failed, inactive. A suite that died has no summary.
    let row = |name: &str| -> Option<Vec<u32>> {
        let line = text.lines().rev().find_map(|line| line.trim().strip_prefix(name))?;
        Some(line.split_whitespace().map_while(|word| word.parse().ok()).collect())
    };
    let passed = matches!(row("tests").as_deref(), Some([total, ran, passed, 0, ..]) if *total > 0 && total == ran && ran == passed)
        && matches!(row("asserts").as_deref(), Some([_, _, _, 0, ..]));
    Report { passed, skips, text }
}

/// A newer suite may have more tests than we know.
fn all_accounted_for(_: &Board, _: Backend) -> Result<()> {
    let list = tool::run("iscsi-test-cu", ["--list"])?;
    let tests: Vec<&str> = list
        .lines()
        .filter_map(|line| line.trim().strip_prefix("ALL."))
        .filter(|name| name.contains('.'))
        .collect();
    ensure!(tests.len() > 100, "iscsi-test-cu lists {} tests", tests.len());
    let is_of = |test: &str, name: &str| {
        test.strip_prefix(name)
            .is_some_and(|rest| rest.is_empty() || rest.starts_with('.') || name == "iSCSI")
    };
    let known: Vec<&str> =
        DATA.iter().chain(OTHERS).copied().chain(LEFT_OUT.iter().map(|(name, _)| *name)).collect();
    let unknown: Vec<_> = tests.iter().filter(|test| !known.iter().any(|name| is_of(test, name))).collect();
    ensure!(unknown.is_empty(), "neither run nor left out: {unknown:?}");
    let gone = known.iter().find(|name| !tests.iter().any(|test| is_of(test, name)));
    gone.is_none().then_some(()).with_context(|| format!("the suite has no {gone:?}"))
}
