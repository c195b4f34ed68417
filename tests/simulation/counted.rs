//! What the model host knows that each drive must have counted, whatever happened to it.
//!
//! A command that came to its CSW is known exactly. One that was broken off has either come to its CSW all the same, has been
//! aborted, or was never seen by the device; which of them only the device knows, but it must be one, and nothing else.

use std::collections::BTreeMap;

use ringdrive::drive::{DriveStatistics, Statistics};

use crate::{
    host::{Expected, Outcome},
    world::Nanos,
};

/// What both sides count.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
struct Counts {
    opcodes: BTreeMap<u8, u64>,
    bytes_read: u64,
    bytes_written: u64,
    check_conditions: u64,
    phase_errors: u64,
    aborted: u64,
}

/// The numbers of one drive, as the host knows them.
#[derive(Default)]
pub struct Counted {
    known: Counts,
    unsure: Option<BrokenOff>,
    /// Reads that brought all they were asked for.
    whole_reads: u64,
    /// The longest that a command took as the host saw it.
    slowest: Nanos,
}

/// A command that was broken off.
struct BrokenOff {
    opcode: u8,
    expected: Expected,
    /// The device surely knew of it.
    seen: bool,
}

/// What became of a command that was broken off.
pub enum Became {
    Completed,
    Aborted,
    Unseen,
}

impl Counts {
    fn of(drive: &DriveStatistics) -> Self {
        let statistics = &drive.statistics;
        Self {
            opcodes: statistics.opcodes(drive.kind).map(|(opcode, _, commands)| (opcode, commands)).collect(),
            bytes_read: statistics.bytes_read,
            bytes_written: statistics.bytes_written,
            check_conditions: statistics.check_conditions,
            phase_errors: statistics.phase_errors,
            aborted: statistics.aborted,
        }
    }

    fn commands(&self) -> u64 {
        self.opcodes.values().sum()
    }
}

/// READ, WRITE and WRITE AND VERIFY of all lengths (SBC-3).
fn reads_and_writes(opcode: u8) -> (bool, bool) {
    let (reads, writes) = ([0x08, 0x28, 0xa8, 0x88, 0xbe], [0x0a, 0x2a, 0xaa, 0x8a, 0x2e, 0xae, 0x8e]);
    (reads.contains(&opcode), writes.contains(&opcode))
}

impl Counted {
    /// Another process counts from zero, and what was under way may be counted by it or not.
    pub fn believe(&mut self, drive: &DriveStatistics) {
        self.known = Counts::of(drive);
        self.unsure = None;
        self.whole_reads = 0;
        let Statistics { read, write, other, .. } = &drive.statistics;
        let slowest_us = [read, write, other].iter().map(|class| class.max_us()).max().unwrap();
        self.slowest = self.slowest.max(slowest_us * 1000 + 1000);
    }

    /// A command came to its CSW.
    pub fn completed(&mut self, opcode: u8, expected: Expected, outcome: &Outcome, took: Nanos) {
        self.slowest = self.slowest.max(took);
        *self.known.opcodes.entry(opcode).or_default() += 1;
        self.known.check_conditions += u64::from(outcome.csw.status == 1);
        self.known.phase_errors += u64::from(outcome.csw.status == 2);
        match (reads_and_writes(opcode), expected) {
            ((true, _), Expected::In(_)) => {
                self.known.bytes_read += u64::try_from(outcome.data.len()).unwrap();
                self.whole_reads += u64::from(outcome.csw.status == 0 && !outcome.data.is_empty());
            }
            ((_, true), Expected::Out(len)) => {
                self.known.bytes_written += u64::from(len - outcome.csw.residue)
            }
            _ => {}
        }
    }

    /// A command did not come to its CSW, as far as the host knows.
    pub fn broken_off(&mut self, opcode: u8, expected: Expected, seen: bool, took: Nanos) {
        self.slowest = self.slowest.max(took);
        self.unsure = Some(BrokenOff { opcode, expected, seen });
    }

    /// Compares with what the drive says; says what became of the command that was broken off before, if one was.
    pub fn check(&mut self, now: Nanos, drive: &DriveStatistics) -> Result<Option<Became>, String> {
        let told = Counts::of(drive);
        let became = match self.unsure.take() {
            Some(command) => Some(self.resolve(&told, &command)?),
            None => None,
        };
        if told != self.known {
            return Err(format!("counted {told:?}, but it was {:?}", self.known));
        }
        let Statistics { read, write, other, reads_from_memory, reads_from_storage, .. } = &drive.statistics;
        let whole = reads_from_memory + reads_from_storage;
        let classes = [read, write, other];
        let timed: u64 = classes.iter().map(|class| class.commands()).sum();
        let slowest_us = classes.iter().map(|class| class.max_us()).max().unwrap();
        match () {
            () if u128::from(now / 1000) != drive.uptime.as_micros() => {
                Err(format!("up for {:?} at {now} ns", drive.uptime))
            }
            () if timed != told.commands() => {
                Err(format!("{timed} latencies of {} commands", told.commands()))
            }
            () if slowest_us > self.slowest / 1000 * 17 / 16 => {
                Err(format!("a command of {slowest_us} us, but the host never waited {} ns", self.slowest))
            }
            () if whole < self.whole_reads || whole > read.commands() => {
                Err(format!("{whole} whole reads, not {} to {}", self.whole_reads, read.commands()))
            }
            () => Ok(became),
        }
    }

    /// Believes the device which of the three it was, if it was one.
    fn resolve(&mut self, told: &Counts, command: &BrokenOff) -> Result<Became, String> {
        let BrokenOff { opcode, expected, seen } = *command;
        if *told == self.known && !seen {
            return Ok(Became::Unseen);
        }
        let mut aborted = self.known.clone();
        aborted.aborted += 1;
        if *told == aborted {
            self.known = aborted;
            return Ok(Became::Aborted);
        }
        let (read, written) = match (reads_and_writes(opcode), expected) {
            ((true, _), Expected::In(len)) => (len, 0),
            ((_, true), Expected::Out(len)) => (0, len),
            _ => (0, 0),
        };
        let mut completed = self.known.clone();
        *completed.opcodes.entry(opcode).or_default() += 1;
        let grown = |told: u64, known: u64, most: u32| (known..=known + u64::from(most)).contains(&told);
        let possible = grown(told.bytes_read, completed.bytes_read, read)
            && grown(told.bytes_written, completed.bytes_written, written)
            && grown(
                told.check_conditions + told.phase_errors,
                completed.check_conditions + completed.phase_errors,
                1,
            );
        completed.bytes_read = told.bytes_read;
        completed.bytes_written = told.bytes_written;
        completed.check_conditions = told.check_conditions;
        completed.phase_errors = told.phase_errors;
        if !possible || *told != completed {
            return Err(format!(
                "counted {told:?} after {:?} and a command {opcode:02x} {expected:?} that was broken off",
                self.known
            ));
        }
        self.known = completed;
        Ok(Became::Completed)
    }
}
