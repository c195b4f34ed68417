//! What the benches share: a host and a mover in memory around a real function, and CBWs.

#![allow(dead_code, unreachable_pub)]

use std::{
    collections::VecDeque,
    fs::File,
    io,
    ops::Range,
    os::{fd::OwnedFd, unix::fs::FileExt},
    path::PathBuf,
    sync::Arc,
    time::Duration,
};

use nix::sys::memfd::{MFdFlags, memfd_create};
use ringdrive::{
    bot::StallPolicy,
    drive::{Clocks, DriveIndex, DriveOptions, Function, FunctionOptions, ReplyTo, Request},
    gadget::{BusEvent, Speed},
    media::{Access, Image},
    ring::{
        MoveOp, Moved, Mover, OpTag, Wait,
        pool::{Buf, Pool},
    },
    scsi::{Identity, Kind, Medium, Target, Unit},
    units::{BlockSize, Blocks, ByteLen, ByteOffset},
};

use bus::{Bus, Handshake, Quirks, SimEndpoints};

#[path = "../../tests/simulation/bus.rs"]
#[allow(dead_code, unreachable_pub, clippy::unwrap_used)]
mod bus;

const MAX_PACKET: u16 = 1024;
const BLOCKS: u32 = 2048;

/// Moves at once; its completions wait for the loop.
pub struct Immediate(VecDeque<Moved>);

impl Immediate {
    fn done(&mut self, tag: OpTag, op: MoveOp, buf: Option<Buf>, result: io::Result<usize>) {
        self.0.push_back(Moved { tag, op, buf, result, stat: None });
    }
}

impl Mover for Immediate {
    fn read_now(&mut self, file: &Arc<File>, at: ByteOffset, to: &mut [u8], _wait: Wait) -> bool {
        file.read_exact_at(to, at.0).is_ok()
    }

    fn will_read(&mut self, _file: &Arc<File>, _at: ByteOffset, _len: ByteLen) {}

    fn read(
        &mut self,
        file: &Arc<File>,
        at: ByteOffset,
        mut buf: Buf,
        part: Range<usize>,
        tag: OpTag,
    ) -> Result<(), Buf> {
        let result = file.read_at(&mut buf[part], at.0);
        self.done(tag, MoveOp::Read, Some(buf), result);
        Ok(())
    }

    fn write(
        &mut self,
        file: &Arc<File>,
        at: ByteOffset,
        buf: Buf,
        part: Range<usize>,
        _durable: bool,
        tag: OpTag,
    ) -> Result<(), Buf> {
        let result = file.write_at(&buf[part], at.0);
        self.done(tag, MoveOp::Write, Some(buf), result);
        Ok(())
    }

    fn sync(&mut self, _file: &Arc<File>, tag: OpTag) -> bool {
        self.done(tag, MoveOp::Sync, None, Ok(0));
        true
    }

    fn stat(&mut self, _file: &Arc<File>, tag: OpTag) -> bool {
        self.done(tag, MoveOp::Stat, None, Ok(0));
        true
    }

    fn punch(&mut self, _file: &Arc<File>, _at: ByteOffset, _len: ByteLen, tag: OpTag) -> bool {
        self.done(tag, MoveOp::Punch, None, Ok(0));
        true
    }
}

pub fn identity() -> Identity {
    Identity::new("bench", "disk", "1", "1").expect("valid strings")
}

pub fn cbw(length: u32, flags: u8, cdb: &[u8]) -> [u8; 31] {
    let mut cbw = [0; 31];
    cbw[..4].copy_from_slice(b"USBC");
    cbw[8..12].copy_from_slice(&length.to_le_bytes());
    cbw[12] = flags;
    cbw[14] = u8::try_from(cdb.len()).expect("a CDB is short");
    cbw[15..15 + cdb.len()].copy_from_slice(cdb);
    cbw
}

/// READ(10) or WRITE(10) of `blocks` blocks from block 8 on.
pub fn ten(opcode: u8, blocks: u16) -> [u8; 10] {
    let [high, low] = blocks.to_be_bytes();
    [opcode, 0, 0, 0, 0, 8, 0, high, low, 0]
}

/// An anonymous file of 1 MiB.
pub fn file() -> File {
    let file = File::from(memfd_create("ringdrive-bench", MFdFlags::MFD_CLOEXEC).expect("memfd"));
    file.set_len(u64::from(BLOCKS) * 512).expect("space");
    // Its pages are there from now on.
    file.write_all_at(&vec![0x5a; 1 << 20], 0).expect("space");
    file
}

/// A writable image of 1 MiB.
pub fn image() -> Image {
    let fd = OwnedFd::from(file());
    Image::from_fd(fd, PathBuf::from("b"), Access::ReadWrite, BlockSize::B512).expect("an image")
}

/// A disk of 1 MiB that has reported its unit attentions.
pub fn target() -> Target {
    let mut unit = Unit::new(Kind::Disk, identity());
    let blocks = Blocks(BLOCKS.into());
    unit.insert(Medium { blocks, block_size: BlockSize::B512, write_protected: false, thin: false });
    Target::new(vec![unit])
}

/// A function with a 1 MiB disk, enabled, and its host.
pub struct Loop {
    bus: Bus,
    function: Function<SimEndpoints, Immediate>,
}

impl Loop {
    pub fn new() -> Self {
        let quirks = Quirks { early_in: false, clear_halt_interrupts: false, refuse_every: 0 };
        let (bus, endpoints) = Bus::new(quirks);
        let drive = DriveOptions {
            name: "flash".into(),
            kind: Kind::Disk,
            identity: identity(),
            rw: true,
            block_size: BlockSize::B512,
            deadline: Duration::from_secs(10),
        };
        let options = FunctionOptions {
            name: "bench".into(),
            first: DriveIndex(0),
            stall: StallPolicy::Auto,
            drives: vec![drive],
        };
        let mover = |_: &[Pool]| Ok::<_, io::Error>(Immediate(VecDeque::new()));
        let clocks = Clocks { exact: Box::new(|| Duration::ZERO), coarse: Box::new(|| Duration::ZERO) };
        let mut function =
            Function::new(options, endpoints, mover, Box::new(|_| {}), clocks).expect("buffers");
        let image = Box::new(image());
        function.request(Request::Insert { lun: 0, image, reply: ReplyTo::new(drop) });
        bus.enable(MAX_PACKET.into());
        function.bus(BusEvent::Enabled { speed: Speed::Super, max_packet: MAX_PACKET });
        let mut new = Self { bus, function };
        // Unit attentions: reset and medium.
        for _ in 0..4 {
            new.command(&cbw(0, 0, &[0; 6]), 0, &[]);
        }
        assert_eq!(new.command(&cbw(0, 0, &[0; 6]), 0, &[]), 0, "the unit is not ready");
        new
    }

    fn turn(&mut self) {
        self.function.flush();
        while let Some(moved) = self.function.mover().0.pop_front() {
            self.function.moved(moved);
        }
        self.function.endpoints_ready();
        self.function.flush();
    }

    fn give(&mut self, packet: &[u8]) {
        while self.bus.give_out(packet) != Handshake::Ack(()) {
            self.turn();
        }
        self.turn();
    }

    fn take(&mut self) -> Vec<u8> {
        loop {
            if let Handshake::Ack(packet) = self.bus.take_in() {
                return packet;
            }
            self.turn();
        }
    }

    /// One command; its status.
    pub fn command(&mut self, cbw: &[u8], data_in: usize, data_out: &[u8]) -> u8 {
        self.give(cbw);
        for packet in data_out.chunks(MAX_PACKET.into()) {
            self.give(packet);
        }
        let mut received = 0;
        while received < data_in {
            received += self.take().len();
        }
        let csw = self.take();
        self.turn();
        csw[12]
    }
}
