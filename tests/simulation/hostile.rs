//! The hostile half of the model host: what no host should do, and what somebody does behind its back.

use ringdrive::{gadget::endpoints::Pipe, media::SourceState};

use super::Checker;
use crate::{
    host::{AFTER_STALL, Chaos, End, Expected, Script, Stop},
    job::{Job, Moves, What},
    media::SECOND,
    world::World,
};

impl Checker {
    /// The host sends something that is no CBW; nothing but a reset may help (§6.6.1).
    pub(super) fn invalid_cbw(&mut self) -> Result<(), String> {
        self.mark("invalid CBW");
        let mut bytes = self.port.cbw(0, &[0; 6], Expected::None);
        match self.rng.u8(..5) {
            0 => bytes.truncate(self.rng.usize(..31)),
            1 => bytes.resize(self.rng.usize(32..1500), 0),
            2 => bytes[self.rng.usize(..4)] ^= 1 << self.rng.u8(..8),
            3 => bytes[12] |= 1 << self.rng.u8(..7),
            _ => bytes[14] = [0, 17, 255][self.rng.usize(..3)],
        }
        self.note(|| format!("invalid CBW of {} bytes {:02x?}", bytes.len(), &bytes[..bytes.len().min(31)]));
        let result = self.until_reset(&bytes).and_then(|()| self.port.reset_recovery());
        self.connected();
        result.map_err(|stop| format!("{stop:?} after an invalid CBW {bytes:02x?}"))
    }

    fn until_reset(&mut self, bytes: &[u8]) -> Result<(), Stop> {
        match self.port.bulk_out("invalid CBW", bytes) {
            Ok(_) | Err(Stop::Hung(_)) => {}
            Err(stop) => return Err(stop),
        }
        match self.port.bulk_in("halt after an invalid CBW", 13)? {
            (_, End::Stall) => {}
            (data, _) => return Err(Stop::Bug(format!("data instead of a halt: {data:02x?}"))),
        }
        for _ in 0..self.rng.usize(..3) {
            let pipe = if self.rng.bool() { Pipe::In } else { Pipe::Out };
            self.port.world.bus.clear_halt(pipe, false);
            let cbw = self.port.cbw(0, &[0; 6], Expected::None);
            match self.port.bulk_out("CBW before reset", &cbw) {
                Ok(_) | Err(Stop::Hung(_)) => {}
                Err(stop) => return Err(stop),
            }
            match self.port.bulk_in("CSW before reset", 13) {
                Ok((_, End::Stall)) | Err(Stop::Hung(_)) => {}
                other => return Err(Stop::Bug(format!("an answer before the reset: {other:?}"))),
            }
        }
        Ok(())
    }

    /// The host promises more OUT bytes than it sends.
    pub(super) fn short_out(&mut self, job: &Job) -> Result<(), String> {
        let expected = self.expectation(job);
        let Expected::Out(len) = expected else { return self.honest(job) };
        self.mark("short data-out");
        let out = self.out_bytes(job, expected);
        let sent = self.rng.usize(..usize::try_from(len).unwrap());
        let script = Script { lun: job.lun, cdb: &job.cdb, expected, out: &out[..sent], odd_clear: None };
        let ended = !sent.is_multiple_of(self.port.world.bus.max_packet().unwrap()) || sent == 0;
        let result = self.command(&script);
        self.note(|| format!("{sent} of {len} bytes for {:02x?} -> {result:?}", job.cdb));
        match result {
            Ok(outcome) if outcome.csw.status == 0 && outcome.csw.residue == 0 => {
                Err(format!("passed without residue, but {sent} of {len} bytes were sent"))
            }
            // A write that is short by whole packets may wait for the rest for ever; a halt asks for a reset as well.
            Err(Stop::Hung(during)) if !ended || during == AFTER_STALL => {
                self.recover(job, Chaos::ResetRecovery)
            }
            Ok(_) => self.recover(job, Chaos::ResetRecovery),
            Err(stop) => Err(format!("{stop:?} after {sent} of {len} bytes of {job:?}")),
        }
    }

    /// The host clears a halt that is none, or takes a halt away before it has seen it. Whatever it gets for it, it recovers.
    pub(super) fn odd_clear_within(&mut self, job: &Job) -> Result<(), String> {
        self.mark("clear halt within a command");
        let expected = self.expectation(job);
        let out = self.out_bytes(job, expected);
        let pipe = if self.rng.bool() { Pipe::In } else { Pipe::Out };
        let odd_clear = Some((self.rng.u8(..2), pipe));
        let script = Script { lun: job.lun, cdb: &job.cdb, expected, out: &out, odd_clear };
        let result = self.command(&script);
        self.note(|| format!("clear {odd_clear:?} within {:02x?} -> {result:?}", job.cdb));
        self.recover(job, Chaos::ResetRecovery)
    }

    /// Somebody takes the medium out under the host's hands, and puts it back.
    pub(super) fn change_medium(&mut self, job: &Job) -> Result<(), String> {
        let (unit, lun) = (job.lun, usize::from(job.lun));
        if lun >= self.disks.len() {
            return self.honest(job);
        }
        self.mark("ejected");
        self.note(|| format!("eject and insert of unit {lun}"));
        let faults = self.port.world.media.faults();
        let World { device, now, .. } = &mut self.port.world;
        // Nothing is stored of what is taken out by force while its source does not answer.
        let offline = device.source(*now, unit).is_some_and(|source| source != SourceState::Online);
        self.attentions[lun] += 2;
        self.port.eject_after(self.rng.u32(..60), unit);
        self.going = true;
        let result = self.honest(job);
        self.going = false;
        result?;
        match self.port.ejected() {
            Some((..SECOND, Ok(_))) => {}
            other => return Err(format!("forced eject: {other:?}")),
        }
        let held_up = self.stuck(unit) > 0;
        if held_up
            || offline
            || self.port.world.media.faults() > faults
            || self.port.world.media.has_lost(&self.disks[lun].file)
        {
            // By force means: even if it could not be stored.
            self.port.world.media.forget_volatile(&self.disks[lun].file);
        }
        for _ in 0..4 {
            let what = What::Refused { key: 2 };
            let job = match self.rng.bool() {
                true => Job::new(unit, [0; 6], Moves::None, what),
                false => Job::new(unit, [0x28, 0, 0, 0, 0, 0, 0, 0, 1, 0], Moves::None, what),
            };
            self.honest(&job)?;
        }
        self.mark("not ready");
        let World { device, now, .. } = &mut self.port.world;
        let inserted = match device.insert(*now, unit, &self.disks[lun]) {
            Some(inserted) => inserted,
            None if !held_up => return Err("the image is in use by nobody".into()),
            None => {
                self.mark("insert waits for a late write");
                self.port.world.release();
                self.port.world.settle();
                let World { device, now, .. } = &mut self.port.world;
                device
                    .insert(*now, unit, &self.disks[lun])
                    .ok_or("the image is in use though nothing is late")?
            }
        };
        if !self.port.world.settle() {
            return Err("the device never comes to rest after an insert".into());
        }
        self.attentions[lun] += 2;
        match inserted.take() {
            Some((_, Ok(()))) => Ok(()),
            other => Err(format!("insert: {other:?}")),
        }
    }

    /// A command was cut short: the disk holds old or new; then the host sets things right.
    pub(super) fn recover(&mut self, job: &Job, chaos: Chaos) -> Result<(), String> {
        self.note(|| format!("{chaos:?}"));
        self.perhaps_written(job);
        self.mark(match chaos {
            Chaos::ResetRecovery => "reset recovery",
            Chaos::BusReset => "bus reset",
            Chaos::Vanish => "unplugged",
        });
        self.connected();
        let result = match chaos {
            Chaos::ResetRecovery => self.port.reset_recovery(),
            Chaos::BusReset | Chaos::Vanish => self.port.reconnect(chaos),
        };
        result.map_err(|stop| format!("{stop:?} after {chaos:?} of {job:?}"))?;
        if self.disturbed {
            self.believe_counted();
        }
        self.check_all_counted()
    }

    /// A write that did not come to its end: old or new.
    pub(super) fn perhaps_written(&mut self, job: &Job) {
        let (What::Write { lba, count, id, .. } | What::Compare { then: Some((lba, count, id, _)), .. }) =
            job.what
        else {
            return;
        };
        let disk = &mut self.disks[usize::from(job.lun)];
        disk.perhaps_written(id, disk.sectors(lba, count));
    }
}
