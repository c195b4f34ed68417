//! Every operation code that there is: those that a drive lists are carried out, all others are refused.

use std::collections::BTreeSet;
use std::path::Path;

use anyhow::{Context, Result, ensure};
use hw_tests::board::Board;
use hw_tests::host::Lun;
use hw_tests::image::{self, MIB};
use hw_tests::rig::{Backend, Drive, Rig, Setup};
use hw_tests::scsi::{self, Data};
use ringdrive::scsi::{Kind, Listed, listed};

use crate::{Case, DAEMON};

pub(crate) const CASES: &[Case] = &[
    Case { name: "the_host_is_told_of_the_commands_in_the_table", on: DAEMON, run: told },
    Case { name: "every_listed_command_is_carried_out", on: DAEMON, run: carried_out },
    Case { name: "every_unlisted_command_is_refused", on: DAEMON, run: refused },
];

/// A disk and a CD, each with a medium.
fn both(board: &Board, backend: Backend, check: fn(&Lun, Kind, &Path) -> Result<Vec<String>>) -> Result<()> {
    let scratch = board.scratch()?;
    let flash = image::blank(scratch.file("flash"), 8 * MIB)?;
    let cd = image::random(scratch.file("cd"), 3, 1)?;
    let zeroes = image::blank(scratch.file("zeroes"), 4096)?;
    let drives = [Drive::disk().with(&flash).writable(), Drive::optical().with(&cd)];
    let rig = Rig::start(board, backend, &Setup::of(drives))?;
    let mut faults = Vec::new();
    for (drive, kind) in [Kind::Disk, Kind::Optical].into_iter().enumerate() {
        let lun = rig.lun(drive)?;
        scsi::drain_attentions(&lun)?;
        faults.extend(check(&lun, kind, &zeroes)?.into_iter().map(|fault| format!("{kind:?}: {fault}")));
    }
    ensure!(faults.is_empty(), "{} faults:\n{}", faults.len(), faults.join("\n"));
    rig.stop()
}

/// REPORT SUPPORTED OPERATION CODES (SPC-4 §6.35).
fn report(options: u8, opcode: u8, action: u8) -> [u8; 12] {
    [0xa3, 0x0c, options, opcode, 0, action, 0, 0, 0x20, 0, 0, 0]
}

fn told(board: &Board, backend: Backend) -> Result<()> {
    both(board, backend, |lun, kind, _| {
        let all = scsi::data_in(lun, &report(0, 0, 0), 8192)?;
        let descriptors = all.get(4..).context("no list")?.chunks_exact(8);
        let told: BTreeSet<_> = descriptors
            .map(|row| (row[0], (row[5] & 1 != 0).then_some(row[3]), usize::from(row[7])))
            .collect();
        let table: BTreeSet<_> =
            listed(kind).map(|row| (row.opcode, row.service_action, row.usage.len())).collect();
        ensure!(told == table, "told {told:02x?}\ntable {table:02x?}");
        for row in listed(kind) {
            let options = if row.service_action.is_some() { 2 } else { 1 };
            let one =
                scsi::data_in(lun, &report(options, row.opcode, row.service_action.unwrap_or(0)), 8192)?;
            let [_, support, len @ ..] = one.as_slice() else { anyhow::bail!("{}: {one:02x?}", row.name) };
            ensure!(support & 7 == 3, "{} has support {support:02x}", row.name);
            ensure!(len[..2] == [0, u8::try_from(row.usage.len())?], "{}: {one:02x?}", row.name);
            ensure!(len[2..] == *row.usage, "{}: {one:02x?} instead of {:02x?}", row.name, row.usage);
        }
        Ok(Vec::new())
    })
}

/// The command with nothing to move, or as little as it can, and what it must come to if not GOOD.
fn gentle<'a>(row: &Listed, kind: Kind, zeroes: &'a Path) -> (Vec<u8>, Data<'a>, Option<&'static str>) {
    let mut cdb = vec![0; row.usage.len()];
    cdb[0] = row.opcode;
    cdb[1] = row.service_action.unwrap_or(0);
    let block = if kind == Kind::Disk { 512 } else { 2048 };
    let protected = (kind == Kind::Optical).then_some("Write protected");
    match row.opcode {
        0x08 | 0x0a | 0x1b => cdb[4] = 1,
        // PF, which is all that there is.
        0x15 | 0x55 => cdb[1] = 0x10,
        0x1a | 0x5a => cdb[2] = 0x3f,
        // A type of reservation; the list is refused for its length.
        0x5f => {
            cdb[2] = 1;
            return (cdb, Data::None, Some("Parameter list length error"));
        }
        0x41 => cdb[8] = 1,
        0x93 => cdb[13] = 1,
        0x25 => return (cdb, Data::In(8), None),
        // POLLED.
        0x4a => cdb[1] = 1,
        // The header, which is there without any descriptor.
        0xac => return (cdb, Data::In(8), None),
        // Of a DVD, which the CD is not.
        0xad => return (cdb, Data::None, Some("incompatible format")),
        // From 00:02:00 to 00:02:00.
        0xb9 => (cdb[4], cdb[7]) = (2, 2),
        _ => {}
    }
    match row.opcode {
        0x08 => (cdb, Data::In(block), None),
        0x0a | 0x41 | 0x93 => (cdb, Data::Out(zeroes, block), protected),
        _ => (cdb, Data::None, None),
    }
}

fn carried_out(board: &Board, backend: Backend) -> Result<()> {
    both(board, backend, |lun, kind, zeroes| {
        let mut faults = Vec::new();
        for row in listed(kind) {
            let (cdb, data, refusal) = gentle(&row, kind, zeroes);
            let outcome = scsi::command(lun, &cdb, data)?;
            let as_it_should = match refusal {
                None => outcome.good(),
                Some(words) => !outcome.good() && outcome.text.contains(words),
            };
            if !as_it_should {
                faults.push(format!("{} {cdb:02x?}: {}", row.name, outcome.text));
            }
        }
        Ok(faults)
    })
}

/// By the group code in the operation code (SPC-4 §4.2.5.1); of those that have none, something plausible.
fn cdb_len(opcode: u8) -> usize {
    match opcode >> 5 {
        0 => 6,
        1 | 2 => 10,
        5 => 12,
        _ => 16,
    }
}

fn refused(board: &Board, backend: Backend) -> Result<()> {
    both(board, backend, |lun, kind, _| {
        let mut faults = Vec::new();
        for opcode in 0..=u8::MAX {
            let mut actions = listed(kind).filter(|row| row.opcode == opcode).peekable();
            let mut cdb = vec![0; cdb_len(opcode)];
            cdb[0] = opcode;
            let words = match actions.peek().map(|row| row.service_action) {
                None => "Invalid command operation code",
                Some(None) => continue,
                // The highest, which no standard has given a meaning to.
                Some(Some(_)) => {
                    cdb[1] = 0x1f;
                    "Invalid field in cdb"
                }
            };
            let outcome = scsi::command(lun, &cdb, Data::None)?;
            if !outcome.has_sense("Illegal Request", words) {
                faults.push(format!("{cdb:02x?}: {}", outcome.text));
            }
        }
        Ok(faults)
    })
}
