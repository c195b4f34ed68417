//! The process at the other end of the bus ends, and another one takes over: what a host may notice of it.

use ringdrive::drive::DriveStatistics;

use super::Checker;
use crate::{
    host::{Expected, Outcome},
    job::{Job, What},
    world::{End, World},
};

impl Checker {
    /// Whether the process has ended in the last command or after it.
    pub(super) fn is_unsettled(&self) -> bool {
        self.port.world.ended != self.settled
    }

    /// The process ends within a command, or before it.
    pub(super) fn survives(&mut self, job: &Job) -> Result<(), String> {
        let (name, end) =
            [("killed", End::Killed), ("killed at work", End::KilledAtWork), ("told to leave", End::Told)]
                [self.rng.usize(..3)];
        self.mark(name);
        let most = 1 << self.rng.u32(..10);
        let after = self.rng.u32(..most);
        self.note(|| format!("{name} after {after} handshakes"));
        self.port.die_after(after, end);
        let result = match self.rng.u8(..4) {
            0 => self.mismatched(job),
            1 => self.broken_off(job),
            _ => self.honest(job),
        };
        self.port.live_on();
        result.map_err(|why| format!("{why}; {name}"))?;
        self.finish_end();
        if self.rng.u8(..4) == 0 {
            // The host has nothing to say for some time.
            let until = self.port.world.now + self.rng.u64(..2_000_000_000);
            while self.port.world.now < until && self.port.world.step() {}
        }
        Ok(())
    }

    /// One that has begun to end has ended, and the next one serves.
    fn finish_end(&mut self) {
        let World { now, .. } = self.port.world;
        while self.port.world.is_ending() && self.port.world.now < now + 3_000_000_000 {
            if !self.port.world.step() {
                break;
            }
        }
        if self.port.world.is_ending() {
            self.port.world.end(End::Killed);
        }
        self.port.world.await_process();
    }

    /// Another process counts from zero.
    pub(super) fn believe_counted(&mut self) {
        self.counted_of = self.port.world.ended;
        for (lun, counted) in (0u8..).zip(&mut self.counted) {
            let World { device, now, .. } = &mut self.port.world;
            let told: DriveStatistics = device.statistics(*now, lun);
            counted.believe(&told);
        }
    }

    /// What holds of a command even if it was begun by one process and ended by another.
    pub(super) fn check_disturbed(&mut self, expected: Expected, outcome: &Outcome) -> Result<(), String> {
        let host = match expected {
            Expected::None => 0,
            Expected::In(len) | Expected::Out(len) => len,
        };
        match outcome.csw.residue {
            residue if residue > host => Err(format!("residue {residue} of {host}")),
            residue
                if outcome.csw.status == 0
                    && matches!(expected, Expected::In(_))
                    && outcome.data.len() < usize::try_from(host - residue).unwrap() =>
            {
                Err(format!("residue {residue} of {host} with {} received", outcome.data.len()))
            }
            _ => Ok(()),
        }
    }

    /// What a host does with a command that was aborted by the device.
    pub(super) fn try_again(&mut self, job: &Job, expected: Expected) -> Result<(), String> {
        match job.what {
            // Whether it has written is not known, so what it would find is not either.
            What::Compare { .. } => Ok(()),
            _ => self.judged(job, expected),
        }
    }
}
