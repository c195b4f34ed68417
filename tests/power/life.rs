//! A host's life with one disk: it writes, and asks in every way there is that what it wrote be durable.

use std::{fs::File, ops::Range};

use fastrand::Rng;
use ringdrive::drive::Refusal;

use crate::{
    dut::Answer,
    host::{Chaos, Expected, Port, Script, Stop},
    lives::Coverage,
    model::{Disk, bytes_of},
    overlaid::Layout,
    promises::Promises,
    world::{BusSignal, World},
};

/// What GOOD means for what is durable.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Promise {
    Nothing,
    /// What the command itself wrote.
    Written,
    /// All that was written before.
    All,
}

pub struct Life {
    port: Port,
    disk: Disk,
    rng: Rng,
    coverage: Coverage,
    /// Writes so far.
    writes: u64,
    /// The host has switched the write cache off, and nothing has switched it on since.
    write_through: bool,
    prevented: bool,
    trace: bool,
}

impl Life {
    pub fn new(port: Port, disk: Disk, rng: Rng, trace: bool) -> Self {
        let bytes = bytes_of(0, 0, disk.sectors(0, disk.blocks()).len());
        let World { media, device, .. } = &port.world;
        if disk.slow {
            let overlay = device.fetched.path();
            let layout = Layout::read(&overlay, &bytes);
            media.watch(&File::open(overlay).unwrap(), &bytes, Some(layout), trace);
        } else {
            media.watch(&disk.file, &bytes, None, trace);
        }
        Self {
            port,
            disk,
            rng,
            coverage: Coverage::new(),
            writes: 0,
            write_through: false,
            prevented: false,
            trace,
        }
    }

    /// A whole life of `turns` turns, which ends with the daemon.
    pub fn live(mut self, turns: usize) -> Result<Coverage, String> {
        self.port.connect();
        for turn in 0..turns {
            self.turn().map_err(|why| format!("turn {turn}: {why}"))?;
            self.check().map_err(|why| format!("turn {turn}: {why}"))?;
        }
        self.stop()?;
        self.check().map_err(|why| format!("at the end: {why}"))?;
        let media = &self.port.world.media;
        let (cuts, losses) = (media.cuts(), media.losses());
        self.coverage.insert("cut", cuts);
        self.coverage.insert("not written back", losses);
        Ok(self.coverage)
    }

    fn check(&self) -> Result<(), String> {
        self.port.world.media.broken().map_or(Ok(()), Err)
    }

    fn mark(&mut self, name: &'static str) {
        *self.coverage.entry(name).or_default() += 1;
    }

    fn note(&self, what: impl FnOnce() -> String) {
        if self.trace {
            println!("{:>14} ns  {}", self.port.world.now, what());
        }
    }

    /// The host learns something.
    fn tell(&self, what: impl FnOnce(&mut Promises)) {
        self.port.world.media.tell(what);
    }

    fn all_durable(&mut self, why: &'static str) {
        self.mark(why);
        self.note(|| format!("{why}: all is durable"));
        self.tell(|promises| promises.durable(promises.all()));
    }

    fn turn(&mut self) -> Result<(), String> {
        match self.rng.u8(..100) {
            0..50 => self.write(),
            50..70 => self.flush(),
            70..76 => self.switch_cache(),
            76..82 => self.lock(),
            82..87 => self.start_stop(),
            87..90 => self.client_ejects(),
            90..94 => self.suspend(),
            94..96 => self.vanish(),
            _ => {
                self.port.world.idle(50);
                Ok(())
            }
        }
    }

    /// Runs a command; whether it got GOOD.
    fn command(&mut self, cdb: &[u8], out: &[u8]) -> Result<bool, String> {
        let broken_off = self.rng.u8(..20) == 0;
        if broken_off {
            let after = 1 << self.rng.u32(..9);
            let chaos = [Chaos::ResetRecovery, Chaos::BusReset, Chaos::Vanish][self.rng.usize(..3)];
            self.port.arm(self.rng.u32(..after), chaos);
        }
        let expected = match u32::try_from(out.len()).unwrap() {
            0 => Expected::None,
            len => Expected::Out(len),
        };
        let script = Script { lun: 0, cdb, expected, out, odd_clear: None };
        let result = self.port.command(&script);
        self.port.disarm();
        self.note(|| format!("{cdb:02x?} {expected:?} -> {:?}", result.as_ref().map(|outcome| outcome.csw)));
        match result {
            Ok(outcome) if outcome.csw.status == 0 => Ok(true),
            Ok(_) => self.ask_why().map(|()| false),
            Err(Stop::Chaos(chaos)) => self.recover(chaos).map(|()| false),
            Err(stop) => Err(format!("{stop:?} of {cdb:02x?}")),
        }
    }

    /// The host takes the sense data; where the storage does not answer, it waits until it does.
    fn ask_why(&mut self) -> Result<(), String> {
        let cdb = [3, 0, 0, 0, 18, 0];
        let script = Script { lun: 0, cdb: &cdb, expected: Expected::In(18), out: &[], odd_clear: None };
        let sense = self.port.command(&script).map_err(|stop| format!("{stop:?} of REQUEST SENSE"))?.data;
        self.note(|| format!("  sense {:x}/{:02x?}", sense[2], &sense[12..14]));
        match (sense[2] & 0xf, sense[12]) {
            (2, 4) => {
                self.mark("storage does not answer");
                if self.rng.bool() {
                    self.port.world.release();
                }
                self.port.world.settle();
            }
            (3, _) => self.mark("medium error"),
            (2, _) => self.mark("empty"),
            _ => {}
        }
        Ok(())
    }

    fn recover(&mut self, chaos: Chaos) -> Result<(), String> {
        self.mark("broken off");
        self.note(|| format!("{chaos:?}"));
        (self.write_through, self.prevented) = (false, false);
        let result = match chaos {
            Chaos::ResetRecovery => self.port.reset_recovery(),
            Chaos::BusReset | Chaos::Vanish => self.port.reconnect(chaos),
        };
        result.map_err(|stop| format!("{stop:?} after {chaos:?}"))
    }

    /// Blocks of the disk, and the sectors they are.
    fn range(&mut self) -> (usize, usize, Range<usize>) {
        let most = if self.rng.u8(..8) == 0 { self.disk.blocks() } else { 16 };
        let count = self.rng.usize(1..=most.min(self.disk.blocks()));
        let lba = self.rng.usize(..=self.disk.blocks() - count);
        (lba, count, self.disk.sectors(lba, count))
    }

    fn write(&mut self) -> Result<(), String> {
        let (lba, mut count, mut sectors) = self.range();
        self.writes += 1;
        let durable = self.rng.u8(..4) == 0;
        let fua = if durable { 8 } else { 0 };
        let kind = self.rng.u8(..12);
        if kind == 8 {
            count = count.min(8);
            sectors = self.disk.sectors(lba, count);
        }
        let bytes = bytes_of(self.writes, sectors.start, sectors.len());
        let lba64 = u64::try_from(lba).unwrap().to_be_bytes();
        let (lba32, count32) = (&lba64[4..], u32::try_from(count).unwrap().to_be_bytes());
        let long = |opcode: u8, flags: u8| [&[opcode, flags], &lba64[..], &count32, &[0, 0]].concat();
        let ten = |opcode: u8, flags: u8| [&[opcode, flags], lba32, &[0], &count32[2..], &[0]].concat();
        let zeroes = vec![0; bytes.len()];
        let block = &bytes[..self.disk.block];
        let promise = if durable { Promise::Written } else { Promise::Nothing };
        let (name, cdb, out, bytes, promise) = match kind {
            0..3 => ("WRITE(10)", ten(0x2a, fua), bytes.clone(), bytes, promise),
            3..5 => ("WRITE(16)", long(0x8a, fua), bytes.clone(), bytes, promise),
            5 => {
                let cdb = [&[0xaa, fua], lba32, &count32, &[0, 0]].concat();
                ("WRITE(12)", cdb, bytes.clone(), bytes, promise)
            }
            6 => ("WRITE AND VERIFY(10)", ten(0x2e, 0), bytes.clone(), bytes, Promise::Written),
            7 => ("WRITE AND VERIFY(16)", long(0x8e, 0), bytes.clone(), bytes, Promise::Written),
            8 => {
                let believed = self.port.world.media.tell(|promises| promises.believed(sectors.clone()));
                let count = u8::try_from(count).unwrap();
                let cdb = [&[0x89, fua], &lba64[..], &[0, 0, 0, count, 0, 0]].concat();
                ("COMPARE AND WRITE", cdb, [believed, bytes.clone()].concat(), bytes, promise)
            }
            9 => ("WRITE SAME", long(0x93, 0), block.to_vec(), block.repeat(count), Promise::Nothing),
            10 => ("WRITE SAME, UNMAP", long(0x93, 9), Vec::new(), zeroes, Promise::Nothing),
            _ => {
                let list = [&[0, 22, 0, 16, 0, 0, 0, 0][..], &lba64, &count32, &[0; 4]].concat();
                ("UNMAP", vec![0x42, 0, 0, 0, 0, 0, 0, 0, 24, 0], list, zeroes, Promise::Nothing)
            }
        };
        self.note(|| format!("{name}: write {} of sectors {sectors:?}", self.writes));
        self.tell(|promises| promises.sent(sectors.start, &bytes));
        if !self.command(&cdb, &out)? {
            return Ok(());
        }
        self.mark(name);
        self.tell(|promises| promises.written(sectors.clone()));
        if promise == Promise::Written || self.write_through {
            self.mark(if promise == Promise::Written { "durable write" } else { "write through" });
            self.tell(|promises| promises.durable(sectors));
        }
        Ok(())
    }

    /// SYNCHRONIZE CACHE, of the whole disk or of a range, with and without IMMED, which promises nothing.
    fn flush(&mut self) -> Result<(), String> {
        let (lba, count, mut sectors) = self.range();
        let (whole, soon, long) = (self.rng.bool(), self.rng.u8(..4) == 0, self.rng.bool());
        let (lba, count) = if whole { (0, 0) } else { (lba, count) };
        if whole {
            sectors = self.disk.sectors(0, self.disk.blocks());
        }
        let flags = if soon { 2 } else { 0 };
        let lba = u64::try_from(lba).unwrap().to_be_bytes();
        let count = u32::try_from(count).unwrap().to_be_bytes();
        let cdb = match long {
            false => [&[0x35, flags], &lba[4..], &[0], &count[2..], &[0]].concat(),
            true => [&[0x91, flags], &lba[..], &count, &[0, 0]].concat(),
        };
        if !self.command(&cdb, &[])? {
            return Ok(());
        }
        self.mark(match (soon, whole) {
            (true, _) => "SYNCHRONIZE CACHE, IMMED",
            (false, true) => "SYNCHRONIZE CACHE",
            (false, false) => "SYNCHRONIZE CACHE of a range",
        });
        if !soon {
            self.tell(|promises| promises.durable(sectors));
            return Ok(());
        }
        // While that goes on.
        match self.rng.u8(..4) {
            0 => self.flush(),
            1 => self.write(),
            2 => self.client_ejects(),
            _ => Ok(()),
        }
    }

    /// MODE SELECT(6) with the caching page.
    fn switch_cache(&mut self) -> Result<(), String> {
        let on = self.rng.u8(..3) == 0;
        let mut list = vec![0; 24];
        list[4..7].copy_from_slice(&[0x08, 0x12, if on { 0x04 } else { 0 }]);
        if !self.command(&[0x15, 0x10, 0, 0, 24, 0], &list)? {
            // Whether it is off now, the host does not know.
            self.write_through = false;
            return Ok(());
        }
        self.write_through = !on;
        if !on {
            self.all_durable("write cache off");
        }
        Ok(())
    }

    /// PREVENT ALLOW MEDIUM REMOVAL; what was written is durable once removal is allowed.
    fn lock(&mut self) -> Result<(), String> {
        let prevent = !self.prevented;
        if self.command(&[0x1e, 0, 0, 0, u8::from(prevent), 0], &[])? {
            self.prevented = prevent;
            if !prevent {
                self.all_durable("removal allowed");
            }
        }
        Ok(())
    }

    /// START STOP UNIT: stop, with and without NO_FLUSH, which promises nothing; stand by; eject.
    fn start_stop(&mut self) -> Result<(), String> {
        let (name, last, promise) = [
            ("stopped", 0x00, Promise::All),
            ("stopped, NO_FLUSH", 0x04, Promise::Nothing),
            ("stands by", 0x30, Promise::All),
            ("ejected by the host", 0x02, Promise::All),
        ][self.rng.usize(..4)];
        if !self.command(&[0x1b, 0, 0, 0, last, 0], &[])? {
            return Ok(());
        }
        match promise {
            Promise::All => self.all_durable(name),
            _ => self.mark(name),
        }
        if last == 0x02 { self.insert() } else { Ok(()) }
    }

    fn client_ejects(&mut self) -> Result<(), String> {
        let force = self.rng.u8(..4) == 0;
        let World { device, now, .. } = &mut self.port.world;
        let answer = device.eject(*now, 0, force);
        match self.answer(&answer)? {
            Ok(_) if force => self.mark("ejected by force"),
            Ok(_) => self.all_durable("ejected by a client"),
            Err(refusal) => {
                self.note(|| format!("eject refused: {refusal}"));
                return Ok(());
            }
        }
        self.insert()
    }

    /// What a client is answered, as soon as it is.
    fn answer<T>(&mut self, answer: &Answer<Result<T, Refusal>>) -> Result<Result<T, Refusal>, String> {
        for _ in 0..100_000 {
            match answer.take() {
                Some((_, told)) => return Ok(told),
                None if self.port.world.step() => {}
                None => break,
            }
        }
        Err("a client is never answered".into())
    }

    fn insert(&mut self) -> Result<(), String> {
        self.prevented = false;
        let media = &self.port.world.media;
        if (media.misfortunes(), media.losses()) != (0, 0) {
            // The drive does not remember what the old one lost.
            self.tell(Promises::other_medium);
        }
        // An overlay is not to be had twice either.
        if self.disk.slow && self.port.world.media.is_busy() {
            self.port.world.release();
            self.port.world.settle();
        }
        let World { device, now, .. } = &mut self.port.world;
        let inserted = match device.insert(*now, 0, &self.disk) {
            Some(inserted) => inserted,
            // Something late still holds its lock.
            None => {
                self.port.world.release();
                self.port.world.settle();
                let World { device, now, .. } = &mut self.port.world;
                device.insert(*now, 0, &self.disk).ok_or("the image is in use though nothing is late")?
            }
        };
        self.answer(&inserted)?.map_err(|refusal| format!("insert: {refusal}"))
    }

    /// The host puts the bus to sleep, and is told nothing; but what it wrote is stored when nothing hinders it.
    fn suspend(&mut self) -> Result<(), String> {
        self.port.world.signal(BusSignal::Suspended);
        self.must_be_stored_soon("suspended")?;
        self.port.world.signal(BusSignal::Resumed);
        self.port.world.idle(5);
        Ok(())
    }

    /// The host is unplugged for a while.
    fn vanish(&mut self) -> Result<(), String> {
        (self.write_through, self.prevented) = (false, false);
        self.port.disconnect();
        self.must_be_stored_soon("unplugged")?;
        self.port.connect();
        Ok(())
    }

    fn must_be_stored_soon(&mut self, why: &'static str) -> Result<(), String> {
        self.port.world.settle();
        let media = &self.port.world.media;
        if (media.misfortunes(), media.losses()) != (0, 0) {
            return Ok(());
        }
        if !media.is_stored() {
            return Err(format!("{why}, and what was written is not stored"));
        }
        self.all_durable(why);
        Ok(())
    }

    fn stop(&mut self) -> Result<(), String> {
        let World { device, now, .. } = &mut self.port.world;
        let answer = device.stop(*now);
        match self.answer(&answer)? {
            Ok(()) => self.all_durable("daemon stopped"),
            Err(refusal) => self.note(|| format!("stopped: {refusal}")),
        }
        Ok(())
    }
}
