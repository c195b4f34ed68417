//! Bulk-Only Transport and the SCSI target, with a drive that does at once whatever it is asked, or fails.

use ringdrive::{
    bot::{Bot, CSW_LEN, CommandStatus, DataPhase, Intent, Plan, StallPolicy},
    scsi::{
        Compound, Identity, Kind, LBA_STATUS_LEN, ListReply, MediaOp, Medium, PARAMETERS_LEN_MAX, Pending,
        RESPONSE_LEN_MAX, Reply, Status, Target, Unit, UnmapList, sense,
    },
    units::{BlockRange, BlockSize, Blocks},
};

use crate::{
    host::Expected,
    script::{Command, Script},
};

const DISK: Medium =
    Medium { blocks: Blocks(1 << 33), block_size: BlockSize::B512, write_protected: false, thin: true };
/// What stands in a response behind what the host gets.
const UNTOUCHED: u8 = 0xEE;

struct Rooms<'a> {
    bot: Bot,
    target: Target,
    response: Vec<u8>,
    script: Script<'a>,
    tag: u32,
}

pub fn play(input: &[u8]) {
    let mut script = Script(input);
    let setup = script.byte();
    let identity = || Identity::new("RINGDRV", "fuzz", "1", "12345678").unwrap();
    let mut units = [Kind::Disk, Kind::Optical, Kind::Optical].map(|kind| Unit::new(kind, identity()));
    units[0].insert(DISK);
    units[1].insert(disc(setup));
    let stall = if setup & 1 == 0 { StallPolicy::Auto } else { StallPolicy::Never };
    let target = Target::new(units.into());
    let mut rooms =
        Rooms { bot: Bot::new(stall), target, response: vec![UNTOUCHED; RESPONSE_LEN_MAX], script, tag: 0 };
    while let Some(step) = rooms.script.next() {
        rooms.step(step);
    }
}

/// A CD, a DVD of one or two layers, or a BD.
fn disc(choice: u8) -> Medium {
    let blocks = Blocks([300, 400_000, 4_000_000, 12_219_392][usize::from(choice >> 1 & 3)]);
    Medium { blocks, block_size: BlockSize::B2048, write_protected: true, thin: false }
}

impl Rooms<'_> {
    fn step(&mut self, step: u8) {
        match step {
            0..=229 => {
                let command = self.script.command();
                self.command(&command, step & 1 == 0);
            }
            230..=234 => {
                let any = self.script.bytes(usize::from(step) - 200);
                if self.bot.receive_cbw(any).is_ok() {
                    self.bot.plan(Intent::None);
                    self.bot.finish(CommandStatus::Failed, 0);
                    self.bot.csw_sent();
                } else {
                    assert!(self.bot.receive_cbw(&self.cbw(0, 0, &[0; 6])).is_err(), "a reset is due");
                    self.bot.reset();
                }
            }
            235..=238 => {
                self.bot.reset();
                self.target.bus_reset();
            }
            239..=242 => self.change(Unit::request_eject),
            243..=246 => self.change(Unit::remove),
            247..=250 => self.change(|unit| unit.set_write_protected(step & 1 == 0)),
            251.. => {
                let medium = disc(self.script.byte());
                self.change(|unit| unit.insert(if unit.kind() == Kind::Disk { DISK } else { medium }));
            }
        }
    }

    fn change<T>(&mut self, change: impl FnOnce(&mut Unit) -> T) {
        let lun = self.script.byte() % 3;
        change(self.target.unit_mut(lun).unwrap());
    }

    fn cbw(&self, length: u32, flags: u8, cdb: &[u8]) -> [u8; 31] {
        let mut cbw = [0; 31];
        cbw[..4].copy_from_slice(b"USBC");
        cbw[4..8].copy_from_slice(&self.tag.to_le_bytes());
        cbw[8..12].copy_from_slice(&length.to_le_bytes());
        cbw[12] = flags;
        cbw[14] = u8::try_from(cdb.len()).unwrap();
        cbw[15..15 + cdb.len()].copy_from_slice(cdb);
        cbw
    }

    /// A command from CBW to CSW; the drive does its part, or cannot.
    fn command(&mut self, command: &Command, works: bool) {
        let (expected, flags) = match command.expected {
            Expected::None => (0, 0),
            Expected::In(length) => (length, 0x80),
            Expected::Out(length) => (length, 0),
        };
        self.tag = self.tag.wrapping_add(1);
        let mut cbw = self.cbw(expected, flags, &command.cdb);
        cbw[13] = command.lun;
        let opened = self.bot.receive_cbw(&cbw).unwrap();
        assert_eq!(*opened.cdb, *command.cdb);
        self.response.fill(UNTOUCHED);
        let reply = self.target.execute(command.lun, &opened.cdb, &mut self.response);
        let (status, moved) = self.carry_out(command, reply, works);
        if status == CommandStatus::Failed
            && let Some(unit) = self.target.unit(command.lun)
        {
            assert!(unit.last_sense().is_some(), "{command:02x?} failed without a reason");
        }
        let csw = self.bot.finish(status, moved).csw;
        self.bot.csw_sent();
        let word = |at: usize| u32::from_le_bytes(csw[at..at + 4].try_into().unwrap());
        assert!(csw.len() == CSW_LEN && csw[..4] == *b"USBS" && csw[12] <= 2, "{command:02x?}: {csw:02x?}");
        assert_eq!((word(4), word(8)), (self.tag, expected - moved), "{command:02x?}");
    }

    fn carry_out(&mut self, command: &Command, reply: Reply, works: bool) -> (CommandStatus, u32) {
        match reply {
            Reply::Status(status) => (of(status), moved(self.bot.plan(Intent::None))),
            Reply::Data { len } => {
                assert!((1..=RESPONSE_LEN_MAX).contains(&len), "{command:02x?}: {len} bytes");
                (CommandStatus::Passed, moved(self.bot.plan(Intent::In(len.try_into().unwrap()))))
            }
            Reply::Parameters { len, pending } => {
                assert!((1..=PARAMETERS_LEN_MAX).contains(&len), "{command:02x?}: {len} bytes");
                let plan = self.bot.plan(Intent::Out(len.into()));
                if !matches!(plan, Plan { phase: DataPhase::Out { .. }, execute: true }) {
                    self.target.abandon_parameters(pending);
                    // The CSW says phase error.
                    return (CommandStatus::Passed, moved(plan));
                }
                let list = self.script.data_out(command.expected);
                let list = &list[..list.len().min(len.try_into().unwrap())];
                let status = match self.target.parameters(pending, list) {
                    ListReply::Status(status) => of(status),
                    ListReply::Media(op, pending) => {
                        self.check(command, op);
                        self.done(pending, works)
                    }
                };
                (status, moved(plan))
            }
            Reply::Media(op, pending) => {
                self.check(command, op);
                let plan = self.bot.plan(self.intent(command.lun, op));
                if !plan.execute {
                    self.target.abandon(pending);
                    return (CommandStatus::Passed, moved(plan));
                }
                if let MediaOp::Compound(Compound::Unmap { list_len, .. }) = op {
                    self.unmap(command, list_len);
                }
                (self.done(pending, works), moved(plan))
            }
        }
    }

    fn done(&mut self, pending: Pending, works: bool) -> CommandStatus {
        let result = if works { Ok(()) } else { Err(sense::INTERNAL_TARGET_FAILURE) };
        of(self.target.complete(pending, result))
    }

    fn medium(&self, lun: u8) -> Medium {
        *self.target.unit(lun).unwrap().medium().unwrap()
    }

    fn intent(&self, lun: u8, op: MediaOp) -> Intent {
        let bytes = |range: BlockRange| {
            self.medium(lun).block_size.byte_range(range).map_or(u64::MAX, |range| range.len().0)
        };
        match op {
            MediaOp::Read(range) => Intent::In(bytes(range)),
            MediaOp::ReadSectors { range, part } => Intent::In(range.count().0 * u64::from(part.len())),
            MediaOp::Write { range, .. } => Intent::Out(bytes(range)),
            MediaOp::Compound(op) => Intent::Out(op.data_out(self.medium(lun).block_size).unwrap()),
            MediaOp::LbaStatus { len, .. } => Intent::In(len.into()),
            MediaOp::Verify(_)
            | MediaOp::Prefetch(_)
            | MediaOp::Flush
            | MediaOp::FlushSoon
            | MediaOp::Load
            | MediaOp::Unload => Intent::None,
        }
    }

    /// The drive is never asked for what the medium has not.
    fn check(&self, command: &Command, op: MediaOp) {
        let fits = |range: BlockRange| range.count().0 > 0 && range.fits(self.medium(command.lun).blocks);
        let good = match op {
            MediaOp::Read(range)
            | MediaOp::Write { range, .. }
            | MediaOp::Verify(range)
            | MediaOp::Prefetch(range) => fits(range),
            MediaOp::ReadSectors { range, part } => fits(range) && !part.is_empty(),
            MediaOp::Compound(op) => op.range().is_none_or(fits),
            MediaOp::LbaStatus { start, len } => {
                start.0 < self.medium(command.lun).blocks.0 && (1..=LBA_STATUS_LEN).contains(&len)
            }
            MediaOp::Flush | MediaOp::FlushSoon | MediaOp::Load | MediaOp::Unload => true,
        };
        assert!(good, "{command:02x?} asks for {op:?}");
        let writes =
            matches!(op, MediaOp::Write { .. }) || matches!(op, MediaOp::Compound(op) if !op.only_reads());
        assert!(!writes || !self.medium(command.lun).write_protected, "{command:02x?} is let write: {op:?}");
    }

    /// The ranges of a list that is taken are on the medium.
    fn unmap(&mut self, command: &Command, list_len: u16) {
        let list = self.script.data_out(command.expected);
        let list = &list[..list.len().min(list_len.into())];
        let medium = self.medium(command.lun);
        let Ok(checked) = UnmapList::check(list, &medium) else { return };
        for index in 0..checked.len() {
            let range = checked.range(list, index).unwrap();
            assert!(range.fits(medium.blocks), "{command:02x?} unmaps {range:?}");
        }
    }
}

fn of(status: Status) -> CommandStatus {
    match status {
        Status::Good => CommandStatus::Passed,
        Status::CheckCondition => CommandStatus::Failed,
    }
}

/// What the host gets, or gives for the command.
fn moved(plan: Plan) -> u32 {
    match plan.phase {
        DataPhase::None => 0,
        DataPhase::In { send } => send,
        DataPhase::Out { keep, .. } => keep,
    }
}
