//! The host's side of Bulk-Only Transport: CBWs, data phases, CSWs, halts, resets, packet by packet.
//!
//! Bytes are built and read by hand here, so that a mistake in `src/bot` is not made twice.

use std::{cell::Cell, rc::Rc};

use ringdrive::{drive::Refusal, gadget::endpoints::Pipe};

use crate::{
    bus::{Bus, Handshake},
    dut::Answer,
    world::{BusSignal, End as Death, Nanos, World},
};

/// The data phase that the CBW announces.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Expected {
    None,
    In(u32),
    Out(u32),
}

/// Something a host does in the middle of whatever it was doing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Chaos {
    /// Gives up and performs reset recovery.
    ResetRecovery,
    BusReset,
    /// Unplugged for a while.
    Vanish,
}

/// Why a command did not come to its end.
#[derive(Debug)]
pub enum Stop {
    /// The host broke off.
    Chaos(Chaos),
    /// The device will never answer.
    Hung(&'static str),
    /// The device broke a rule.
    Bug(String),
}

/// What a host is at when it reads a CSW for the second time.
pub const AFTER_STALL: &str = "CSW after a stall";

/// How a transfer ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum End {
    Full,
    Short,
    Stall,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Csw {
    pub status: u8,
    pub residue: u32,
}

/// A command that came to its CSW.
#[derive(Debug)]
pub struct Outcome {
    pub data: Vec<u8>,
    pub data_end: End,
    pub csw: Csw,
    pub stalls: u32,
}

/// What to transmit for one command.
pub struct Script<'a> {
    pub lun: u8,
    pub cdb: &'a [u8],
    pub expected: Expected,
    /// The OUT bytes to send; fewer than expected where the host breaks its promise.
    pub out: &'a [u8],
    /// A needless CLEAR_FEATURE(HALT): before the data phase (0) or the CSW (1).
    pub odd_clear: Option<(u8, Pipe)>,
}

pub struct Port {
    pub world: World,
    tag: u32,
    /// Packets of the command at hand that went over the bus.
    packets: u32,
    /// Its data are, or may be, the end of another command.
    past: bool,
    /// Handshakes until something happens to the host.
    fuse: Option<(u32, Chaos)>,
    /// Handshakes until somebody takes the medium out of a unit by force.
    ejection: Option<(u32, u8)>,
    /// When it was asked for, and the answer.
    ejected: Option<(Nanos, Answer<Result<String, Refusal>>)>,
    /// Handshakes until the process at the other end ends, and how.
    death: Option<(u32, Death)>,
}

impl Port {
    pub fn new(world: World) -> Self {
        Self {
            world,
            tag: 0,
            packets: 0,
            past: false,
            fuse: None,
            ejection: None,
            ejected: None,
            death: None,
        }
    }

    /// Breaks off after this many handshakes.
    pub fn arm(&mut self, handshakes: u32, chaos: Chaos) {
        self.fuse = Some((handshakes, chaos));
    }

    pub fn disarm(&mut self) {
        self.fuse = None;
    }

    /// The process at the other end ends after this many handshakes.
    pub fn die_after(&mut self, handshakes: u32, death: Death) {
        self.death = Some((handshakes, death));
    }

    /// One that was to end later does not.
    pub fn live_on(&mut self) {
        self.death = None;
    }

    fn burn_death(&mut self) {
        match &mut self.death {
            Some((0, death)) => {
                let death = *death;
                self.death = None;
                self.world.end(death);
            }
            Some((left, _)) => *left -= 1,
            None => {}
        }
    }

    /// Has the medium of a unit taken out after this many handshakes.
    pub fn eject_after(&mut self, handshakes: u32, lun: u8) {
        self.ejection = Some((handshakes, lun));
    }

    /// How long it took to answer, and the answer to the ejection, asked for now if it has not been yet.
    pub fn ejected(&mut self) -> Option<(Nanos, Result<String, Refusal>)> {
        if let Some((_, lun)) = self.ejection {
            self.ejection = Some((0, lun));
            self.burn_ejection();
        }
        self.world.settle();
        let (asked, answer) = self.ejected.take()?;
        let (answered, result) = answer.take()?;
        Some((answered - asked, result))
    }

    fn burn_ejection(&mut self) {
        match &mut self.ejection {
            Some((0, lun)) => {
                let World { device, now, .. } = &mut self.world;
                self.ejected = Some((*now, device.eject(*now, *lun, true)));
                self.ejection = None;
            }
            Some((left, _)) => *left -= 1,
            None => {}
        }
    }

    /// Retries a packet until the device takes it or stalls.
    fn packet<T>(
        &mut self,
        during: &'static str,
        mut send: impl FnMut(&Bus) -> Handshake<T>,
    ) -> Result<Option<T>, Stop> {
        for _ in 0..20_000 {
            if let Some((left, chaos)) = &mut self.fuse {
                let chaos = *chaos;
                let Some(now) = left.checked_sub(1) else {
                    self.fuse = None;
                    return Err(Stop::Chaos(chaos));
                };
                *left = now;
            }
            self.burn_ejection();
            self.burn_death();
            self.world.idle(2);
            match send(&self.world.bus) {
                Handshake::Ack(done) => {
                    self.packets += 1;
                    return Ok(Some(done));
                }
                Handshake::Stall => return Ok(None),
                Handshake::Timeout => return Err(Stop::Bug(format!("no endpoint during {during}"))),
                Handshake::Nak if self.world.step() => {}
                Handshake::Nak => return Err(Stop::Hung(during)),
            }
        }
        Err(Stop::Hung(during))
    }

    fn max_packet(&self) -> usize {
        self.world.bus.max_packet().unwrap_or(512)
    }

    /// Sends `bytes`, as whole packets and a short one; no bytes are a zero-length packet.
    pub fn bulk_out(&mut self, during: &'static str, bytes: &[u8]) -> Result<End, Stop> {
        let max_packet = self.max_packet();
        let mut left = bytes;
        loop {
            let (packet, rest) = left.split_at(left.len().min(max_packet));
            if self.packet(during, |bus| bus.give_out(packet))?.is_none() {
                return Ok(End::Stall);
            }
            left = rest;
            if left.is_empty() {
                return Ok(if packet.len() < max_packet { End::Short } else { End::Full });
            }
        }
    }

    /// Takes at most `len` bytes.
    pub fn bulk_in(&mut self, during: &'static str, len: usize) -> Result<(Vec<u8>, End), Stop> {
        let max_packet = self.max_packet();
        let mut bytes = Vec::with_capacity(len);
        while bytes.len() < len {
            let Some(packet) = self.packet(during, Bus::take_in)? else {
                return Ok((bytes, End::Stall));
            };
            bytes.extend_from_slice(&packet);
            if bytes.len() > len {
                return Err(Stop::Bug(format!("{} bytes during {during}, host wants {len}", bytes.len())));
            }
            if packet.len() < max_packet {
                let end = if bytes.len() == len { End::Full } else { End::Short };
                return Ok((bytes, end));
            }
        }
        Ok((bytes, End::Full))
    }

    pub fn cbw(&mut self, lun: u8, cdb: &[u8], expected: Expected) -> Vec<u8> {
        self.tag = self.tag.wrapping_add(0x0101_0001);
        let (length, flags) = match expected {
            Expected::None => (0, if self.world.rng.bool() { 0x80 } else { 0 }),
            Expected::In(length) => (length, 0x80),
            Expected::Out(length) => (length, 0),
        };
        let mut cbw = b"USBC".to_vec();
        cbw.extend(self.tag.to_le_bytes());
        cbw.extend(length.to_le_bytes());
        cbw.extend([flags, lun, u8::try_from(cdb.len()).unwrap()]);
        cbw.extend(cdb);
        // What stands behind the command block means nothing.
        cbw.resize_with(31, || self.world.rng.u8(..));
        cbw
    }

    /// One command from CBW to CSW (BOT 1.0 figures 1 and 2).
    pub fn command(&mut self, script: &Script<'_>) -> Result<Outcome, Stop> {
        let cbw = self.cbw(script.lun, script.cdb, script.expected);
        (self.packets, self.past) = (0, false);
        if self.bulk_out("CBW", &cbw)? == End::Stall {
            return Err(Stop::Bug("OUT is halted where a CBW is due".into()));
        }
        let mut stalls = 0;
        self.odd_clear(script, 0);
        let (data, data_end) = match script.expected {
            Expected::None => (Vec::new(), End::Full),
            Expected::In(length) => self.bulk_in("data-in", usize::try_from(length).unwrap())?,
            Expected::Out(_) => (Vec::new(), self.bulk_out("data-out", script.out)?),
        };
        let is_foreign =
            data.len() == 13 && data.starts_with(b"USBS") && data[4..8] != self.tag.to_le_bytes();
        self.past = is_foreign || data.is_empty() && data_end == End::Short;
        if data_end == End::Stall {
            stalls += 1;
            let pipe = if matches!(script.expected, Expected::In(_)) { Pipe::In } else { Pipe::Out };
            self.world.idle(3);
            self.world.bus.clear_halt(pipe, false);
        }
        self.odd_clear(script, 1);
        // Answered at once, in the middle of a command too.
        let World { device, now, .. } = &mut self.world;
        device.statistics(*now, 0);
        let mut csw = self.bulk_in("CSW", 13)?;
        if csw.1 == End::Stall {
            stalls += 1;
            self.world.idle(3);
            self.world.bus.clear_halt(Pipe::In, false);
            csw = self.bulk_in(AFTER_STALL, 13)?;
            if csw.1 == End::Stall {
                // Nothing helps but a reset (§6.6.1).
                return Err(Stop::Hung(AFTER_STALL));
            }
        }
        // As Linux does it, for devices that end a data phase so.
        if self.world.ended > 0 && csw.0.is_empty() && csw.1 == End::Short {
            csw = self.bulk_in(AFTER_STALL, 13)?;
        }
        Ok(Outcome { data, data_end, csw: self.parse_csw(&csw.0)?, stalls })
    }

    /// Whether the device had read the CBW of the last command before it was broken off: it moved something behind it.
    pub fn was_seen(&self) -> bool {
        self.packets > 1
    }

    /// Whether what the device sent for the last command may have been the end of another one: its CSW, or the empty packet before it.
    pub fn read_the_past(&self) -> bool {
        self.past
    }

    fn odd_clear(&mut self, script: &Script<'_>, when: u8) {
        if let Some((at, pipe)) = script.odd_clear
            && at == when
        {
            self.world.idle(6);
            self.world.bus.clear_halt(pipe, false);
        }
    }

    fn parse_csw(&self, bytes: &[u8]) -> Result<Csw, Stop> {
        let bad = |why: &str| Err(Stop::Bug(format!("CSW {why}: {bytes:02x?}")));
        let Ok(bytes) = <&[u8; 13]>::try_from(bytes) else { return bad("of a wrong length") };
        let word = |at: usize| u32::from_le_bytes(bytes[at..at + 4].try_into().unwrap());
        match () {
            () if bytes[..4] != *b"USBS" => bad("without its signature"),
            () if word(4) != self.tag => bad("with another command's tag"),
            () if bytes[12] > 2 => bad("with a reserved status"),
            () => Ok(Csw { status: bytes[12], residue: word(8) }),
        }
    }

    /// Bulk-Only Mass Storage Reset, then both halts cleared (§5.3.4), in either order.
    pub fn reset_recovery(&mut self) -> Result<(), Stop> {
        self.disarm();
        let done = Rc::new(Cell::new(false));
        self.world.signal(BusSignal::Reset(done.clone()));
        for _ in 0..100_000 {
            if done.get() || !self.world.step() {
                break;
            }
        }
        if !done.get() {
            return Err(Stop::Bug("a Bulk-Only Reset was never acknowledged".into()));
        }
        let mut pipes = [Pipe::In, Pipe::Out];
        self.world.rng.shuffle(&mut pipes);
        for pipe in pipes {
            self.world.idle(3);
            self.world.bus.clear_halt(pipe, true);
        }
        self.nothing_stale()
    }

    /// After a reset the IN pipe has nothing to say.
    fn nothing_stale(&mut self) -> Result<(), Stop> {
        if self.world.rng.u8(..4) > 0 {
            return Ok(());
        }
        if !self.world.settle() {
            return Err(Stop::Bug("the device never comes to rest after a reset".into()));
        }
        match self.world.bus.take_in() {
            Handshake::Nak => Ok(()),
            other => Err(Stop::Bug(format!("after a reset IN answers {other:02x?}"))),
        }
    }

    /// The bus goes down; comes up again with a packet size of a random speed.
    pub fn reconnect(&mut self, chaos: Chaos) -> Result<(), Stop> {
        self.disarm();
        self.disconnect();
        if chaos == Chaos::Vanish && !self.world.settle() {
            return Err(Stop::Bug("the device never comes to rest without a host".into()));
        }
        self.world.idle(10);
        // Enumeration takes tens of milliseconds, so what ended with the old connection is dealt with before the new one.
        while self.world.bus.has_done() || self.world.signals_pending() {
            self.world.step();
        }
        self.connect();
        self.nothing_stale()
    }

    pub fn disconnect(&mut self) {
        self.world.bus.disable();
        self.world.signal(BusSignal::Disabled);
    }

    /// Enumeration takes milliseconds, so the device hears of it before the first CBW.
    pub fn connect(&mut self) {
        let max_packet = if self.world.rng.bool() { 512 } else { 1024 };
        self.world.bus.enable(max_packet.into());
        self.world.signal(BusSignal::Enabled { max_packet });
        while self.world.signals_pending() {
            self.world.step();
        }
    }
}
