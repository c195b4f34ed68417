//! A whole function: an honest host's commands with any contents, what no honest host does, and media that come and go.
//!
//! Checked of every command of an honest host: it comes to a CSW with its tag (`host` sees to that), no byte passes what the host
//! expects, the residue is what was not moved, and a failed command has sense data. In the end the device answers as ever, rests,
//! has all its buffers back, and has not touched the medium that only reads.

use std::{fs::File, os::unix::fs::FileExt, sync::Arc};

use fastrand::Rng;
use nix::sys::memfd::{MFdFlags, memfd_create};
use ringdrive::{bot::StallPolicy, gadget::endpoints::Pipe, units::BlockSize};

use crate::{
    bus::Quirks,
    dut::{self, Parts},
    host::{Chaos, Expected, Outcome, Port, Script as Said, Stop},
    media::Faults,
    model::{Disk, SECTOR, bytes_of},
    script::{Command, Script},
    world::World,
};

const TEST_UNIT_READY: [u8; 6] = [0; 6];
const REQUEST_SENSE: [u8; 6] = [0x03, 0, 0, 0, 18, 0];
/// LUNs that have a unit.
const UNITS: u8 = 2;

struct Life<'a> {
    port: Port,
    disks: Vec<Disk>,
    script: Script<'a>,
}

pub fn play(input: &[u8]) {
    let mut script = Script(input);
    let (seed, setup) = (script.byte(), script.byte());
    let bit = |bit: u8| setup & 1 << bit != 0;
    let rate = |misbehaves| if misbehaves { 100 } else { 0 };
    let mut rng = Rng::with_seed(seed.into());
    let parts = Parts {
        quirks: Quirks { early_in: bit(0), clear_halt_interrupts: bit(1), refuse_every: 0 },
        faults: Faults {
            errors: rate(bit(2)),
            shorts: rate(bit(3)),
            full: rate(bit(4)),
            delay_max: 1 << 20,
            outages: 0,
            stuck: 0,
        },
        stall: if bit(5) { StallPolicy::Never } else { StallPolicy::Auto },
        block: if bit(6) { BlockSize::B4096 } else { BlockSize::B512 },
        blocks: [64, 8],
        // Of four.
        slow: if bit(7) { 4 } else { 0 },
        allocations_of: |call| {
            call();
            0
        },
    };
    let (world, disks) = dut::world(&mut rng, parts);
    let mut life = Life { port: Port::new(world), disks, script };
    life.port.connect();
    life.live();
    life.end();
}

impl Life<'_> {
    fn live(&mut self) {
        while let Some(step) = self.script.next() {
            match step {
                0..=199 => self.honest(),
                200..=209 => self.short_out(),
                210..=219 => self.odd_clear(),
                220..=229 => self.raw(),
                230..=234 => self.recover(Chaos::ResetRecovery),
                235..=239 => self.recover(if step & 1 == 0 { Chaos::BusReset } else { Chaos::Vanish }),
                240..=247 => self.broken_off(step),
                248..=251 => self.eject(),
                252.. => self.insert(),
            }
        }
    }

    fn command(
        &mut self,
        command: &Command,
        out: &[u8],
        odd_clear: Option<(u8, Pipe)>,
    ) -> Result<Outcome, Stop> {
        let Command { lun, expected, ref cdb } = *command;
        self.port.command(&Said { lun, cdb, expected, out, odd_clear })
    }

    /// A command that any host could send, to its end.
    fn honest(&mut self) {
        let command = self.script.command();
        let out = self.script.data_out(command.expected);
        match self.command(&command, &out, None) {
            Ok(outcome) => self.judge(&command, &outcome),
            Err(Stop::Chaos(chaos)) => self.recover(chaos),
            Err(stop) => panic!("{stop:?} at {command:02x?}"),
        }
    }

    fn judge(&mut self, command: &Command, outcome: &Outcome) {
        let Outcome { data, csw, .. } = outcome;
        let expected = match command.expected {
            Expected::None => 0,
            Expected::In(length) | Expected::Out(length) => length,
        };
        assert!(csw.residue <= expected, "{command:02x?} came to {outcome:?}");
        if matches!(command.expected, Expected::In(_)) {
            let moved = u32::try_from(data.len()).unwrap();
            assert_eq!(csw.residue, expected - moved, "{command:02x?} came to {csw:?}");
        }
        match csw.status {
            0 => {}
            1 => self.ask_for_sense(command),
            _ => self.recover(Chaos::ResetRecovery),
        }
    }

    fn ask_for_sense(&mut self, failed: &Command) {
        let command = Command { lun: failed.lun, expected: Expected::In(18), cdb: REQUEST_SENSE.to_vec() };
        match self.command(&command, &[], None) {
            Ok(outcome) => {
                assert_eq!((outcome.csw.status, outcome.csw.residue), (0, 0), "of {failed:02x?}");
                let key = outcome.data[2] & 0x0F;
                assert!(key != 0 || command.lun >= UNITS, "{failed:02x?} failed without a reason");
            }
            Err(Stop::Chaos(chaos)) => self.recover(chaos),
            Err(stop) => panic!("{stop:?} at the sense data of {failed:02x?}"),
        }
    }

    /// The host promises more than it sends.
    fn short_out(&mut self) {
        let command = self.script.command();
        let out = self.script.data_out(command.expected);
        let sent = usize::from(self.script.word()).min(out.len());
        self.lenient(&command, &out[..sent], None);
    }

    /// The host clears a halt that may be none.
    fn odd_clear(&mut self) {
        let command = self.script.command();
        let out = self.script.data_out(command.expected);
        let when = self.script.byte();
        let pipe = if when & 2 == 0 { Pipe::In } else { Pipe::Out };
        self.lenient(&command, &out, Some((when & 1, pipe)));
    }

    /// A command that may hang, because the host does not keep its part.
    fn lenient(&mut self, command: &Command, out: &[u8], odd_clear: Option<(u8, Pipe)>) {
        let chaos = match self.command(command, out, odd_clear) {
            Err(Stop::Chaos(chaos)) => chaos,
            _ => Chaos::ResetRecovery,
        };
        self.recover(chaos);
    }

    /// Any bytes where a CBW is due.
    fn raw(&mut self) {
        let len = usize::from(self.script.word() % 1600);
        let mut bytes = self.script.bytes(len).to_vec();
        bytes.resize(len, 0);
        let mut chaos = Chaos::ResetRecovery;
        for result in
            [self.port.bulk_out("any bytes", &bytes).err(), self.port.bulk_in("any answer", 1 << 16).err()]
        {
            match result {
                None | Some(Stop::Hung(_)) => {}
                Some(Stop::Chaos(other)) => chaos = other,
                Some(Stop::Bug(why)) => panic!("{why} after {bytes:02x?}"),
            }
        }
        self.recover(chaos);
    }

    /// The host will break off somewhere in the next commands.
    fn broken_off(&mut self, step: u8) {
        let chaos = [Chaos::ResetRecovery, Chaos::BusReset, Chaos::Vanish][usize::from(step % 3)];
        self.port.arm(self.script.byte().into(), chaos);
    }

    fn recover(&mut self, chaos: Chaos) {
        let recovered = match chaos {
            Chaos::ResetRecovery => self.port.reset_recovery(),
            Chaos::BusReset | Chaos::Vanish => self.port.reconnect(chaos),
        };
        recovered.unwrap_or_else(|stop| panic!("{stop:?} in {chaos:?}"));
    }

    fn eject(&mut self) {
        let how = self.script.byte();
        if how & 2 != 0 {
            return self.port.eject_after((how >> 2).into(), how & 1);
        }
        let World { device, now, .. } = &mut self.port.world;
        device.eject(*now, how & 1, how & 4 != 0);
    }

    fn insert(&mut self) {
        let lun = self.script.byte() & 1;
        // The one that was there may be there still, and locked.
        let Disk { block, writable, .. } = self.disks[usize::from(lun)];
        let file = File::from(memfd_create("ringdrive-fuzz", MFdFlags::MFD_CLOEXEC).unwrap());
        let disk = Disk::new(Arc::new(file), 32, block, writable);
        let World { device, now, .. } = &mut self.port.world;
        device.insert(*now, lun, &disk);
    }

    /// After whatever the host did.
    fn end(mut self) {
        self.recover(Chaos::ResetRecovery);
        for lun in 0..=UNITS {
            let command = Command { lun, expected: Expected::None, cdb: TEST_UNIT_READY.to_vec() };
            let outcome = self.command(&command, &[], None).unwrap();
            self.judge(&command, &outcome);
        }
        self.port.disconnect();
        assert!(self.port.world.settle(), "the device never comes to rest");
        assert_eq!(self.port.world.device.buffers_out(), 0, "buffers are lost");
        let optical = &self.disks[1];
        let len = optical.blocks() * optical.block;
        let mut bytes = vec![0; len];
        optical.file.read_exact_at(&mut bytes, 0).unwrap();
        assert!(bytes == bytes_of(0, 0, len / SECTOR), "somebody wrote to the disc");
    }
}
