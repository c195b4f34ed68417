//! What a successor must know of a function when this process is gone, however it went.
//!
//! A record and the buffer that CBWs are read into lie in memory that outlives the process where somebody else keeps its file. So a
//! CBW that the kernel has brought is never lost, and it takes no system call to say how far its command is. The transport's half
//! of the record is written by `pipes`, that of the drives by `function`, `requests` and `phases`, and all of it is read by
//! `takeover` in the successor.
//!
//! ```text
//!            the first request of a data phase          the CSW is queued           the next CBW read is queued
//!   Ready ─────────────────────────────────► Moving ───────────────────► Answered ──────────────► Posted ─┐
//!     ▲  ▲                                                                                               │
//!     │  └───────────────────────────── the CSW has gone to the host ────────────────────────────────────┘
//!     └── a reset                            Broken: an invalid CBW, until a reset
//! ```
//! In Ready and Posted, the CBW buffer holds a new command as soon as it is not blank: nothing was queued for it yet.
//!
//! Invariants: one thread writes, each step before what it is about goes to the kernel, and what a step means is written before the
//! step itself, so that a process that dies between two instructions leaves a record that is true. Nothing here allocates or
//! calls the kernel after the start.

use std::{
    fs::File,
    io,
    sync::atomic::{Ordering, compiler_fence},
};

use nix::{
    fcntl::{FcntlArg, SealFlag, fcntl},
    sys::memfd::{MFdFlags, memfd_create},
};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

use crate::{
    bot::{CBW_LEN, CSW_LEN, Expected},
    media::Identity,
    ring::pool::{Buf, Pool},
    scsi::{KeptUnit, Kind},
    units::ByteLen,
};

/// Changes whenever the meaning of a byte does.
const VERSION: u32 = 2;
const MAGIC: [u8; 8] = *b"ringdrv\0";
/// Most units of a function.
const UNITS_MAX: usize = 16;
/// Bytes of an image's name that are kept.
const NAME_MAX: usize = 424;
/// The record, then the CBW, each in a buffer of this length: whole packets of every size. Into the latter also go leftovers.
pub(super) const BUF_LEN: usize = 64 * 1024;
/// Packets of all sizes begin at multiples of this.
const PACKET_MIN: usize = 64;
const BUFFERS: usize = 2;
const _: () = assert!(size_of::<Record>() <= BUF_LEN);
/// Of a buffer for a CBW, what is made blank before it is read into.
const BLANK: [u8; CBW_LEN + 1] = [0; CBW_LEN + 1];

#[derive(FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
struct Record {
    magic: [u8; 8],
    version: u32,
    /// Bytes of this record, and how many of `drives` there are.
    len: u16,
    count: u16,
    /// Of the configuration that the gadget was made with.
    fingerprint: u64,
    stage: u8,
    /// What comes before the next CBW is left over from a data-out phase.
    draining: u8,
    last: Last,
    stall: u8,
    /// The CBW buffer holds nothing that is still to be done.
    void: u8,
    unused: [u8; 7],
    drives: [DriveRecord; UNITS_MAX],
}

/// The command whose CSW was queued last.
#[derive(Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub(super) struct Last {
    csw: [u8; CSW_LEN],
    data_in: u8,
    opcode: u8,
    lun: u8,
    /// The CSW stands behind a halt of IN, which came when the host had all the data.
    halted: u8,
    /// What the host was to transfer, in bytes.
    expected: [u8; 4],
}

/// What a CSW stands behind, where that is nothing that the kernel has.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Behind {
    Nothing,
    /// A halt of IN.
    Halt,
    /// Data that the host may still be sending, which nobody wants.
    LeftOvers,
}

#[derive(Clone, Copy, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
struct DriveRecord {
    /// 0 while it is being written.
    whole: u8,
    kind: u8,
    rw: u8,
    /// 0: none; 1: one that is read; 2: one that is written too; 3: one that cannot be had again.
    image: u8,
    lost: u8,
    first_read: u8,
    name_len: u16,
    number: u32,
    named: u32,
    device: u64,
    inode: u64,
    len: u64,
    modified: [i64; 2],
    unit: KeptUnit,
    name: [u8; NAME_MAX],
}

const READY: u8 = 0;
const MOVING: u8 = 1;
const ANSWERED: u8 = 2;
const POSTED: u8 = 3;
const BROKEN: u8 = 4;

/// The memory that outlives the process, with what is in it.
#[derive(Debug)]
pub struct Handover {
    record: Buf,
    /// Of which the CBW buffer is the other one.
    pool: Pool,
    /// Somebody keeps it for a successor.
    kept: bool,
}

/// Why what a predecessor has left cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum HandoverError {
    /// It is no file of the right kind, or cannot be mapped.
    #[error("its memory cannot be used")]
    Memory(#[from] io::Error),
    /// Another version has left it.
    #[error("another version of ringdrived has left it")]
    Version,
    /// The configuration of the gadget or of its functions is another one now.
    #[error("the configuration has changed in what the host sees of the gadget")]
    Configuration,
    /// Nonsense, or half of a change.
    #[error("its state of a drive is not whole")]
    Torn,
}

/// What a drive was.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct KeptDrive {
    /// What the host saw.
    pub kind: Kind,
    /// Whether images were inserted writable by default.
    pub rw: bool,
    /// How many images it has had; the number of the one in it.
    pub number: u32,
    /// What was in it.
    pub image: Option<KeptImage>,
    pub(super) unit: KeptUnit,
}

/// An image that was in a drive.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct KeptImage {
    /// What people call it; the beginning of it, if that is long.
    pub name: String,
    /// Whether the host may write to it.
    pub writable: bool,
    /// What its file was; `None` where nobody but its process could have it.
    pub identity: Option<Identity>,
    /// A sync of it has failed.
    pub(super) lost: bool,
    /// The host has read from it.
    pub(super) first_read: bool,
}

/// What is left to do for the host.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Unfinished {
    /// Nothing: it has its last CSW.
    Nothing,
    /// This came, and nothing was done for it.
    Unbegun([u8; CBW_LEN]),
    /// The data phase of this was under way, or was over.
    Begun([u8; CBW_LEN]),
    /// The CSW of this was queued; perhaps the host has it.
    Answered(Last),
    /// Both pipes are to be halted.
    Broken,
}

impl Last {
    pub(super) fn new(csw: [u8; CSW_LEN], expected: Expected, opcode: u8, lun: u8) -> Self {
        let data_in = u8::from(matches!(expected, Expected::In(_)));
        Self { csw, data_in, opcode, lun, halted: 0, expected: expected.len().to_ne_bytes() }
    }

    pub(super) fn csw(&self) -> [u8; CSW_LEN] {
        self.csw
    }

    /// The same with another CSW, perhaps behind a halt.
    pub(super) fn again(self, csw: [u8; CSW_LEN], halted: bool) -> Self {
        Self { csw, halted: u8::from(halted), ..self }
    }

    /// Whether it stands behind a halt.
    pub(super) fn halted(&self) -> bool {
        self.halted != 0
    }

    /// The bytes that the host expected for it, if it did.
    pub(super) fn data_in(&self) -> Option<u32> {
        (self.data_in != 0).then_some(u32::from_ne_bytes(self.expected))
    }

    pub(super) fn opcode(&self) -> u8 {
        self.opcode
    }

    pub(super) fn lun(&self) -> u8 {
        self.lun
    }
}

/// Puts a CBW that came behind something else to the front of `buf`, where a successor looks for it; whether there is one. What is
/// behind it is blank.
pub(super) fn to_front(buf: &mut [u8]) -> bool {
    let is_cbw = |at: &usize| {
        let (cbw, rest) = buf.get(*at..).and_then(|from| from.split_at_checked(CBW_LEN)).unwrap_or_default();
        cbw.starts_with(b"USBC") && rest.iter().all(|byte| *byte == 0)
    };
    let found = (0..buf.len()).step_by(PACKET_MIN).rfind(is_cbw);
    if let Some(at) = found {
        buf.copy_within(at..at + CBW_LEN, 0);
    }
    in_order();
    found.is_some()
}

/// Keeps the compiler from moving a store over another one: what the dead have stored is seen in the order of the program.
fn in_order() {
    compiler_fence(Ordering::SeqCst);
}

impl Handover {
    /// One that nobody else keeps: it ends with the process.
    ///
    /// # Errors
    /// That of mmap(2).
    pub fn private() -> io::Result<Self> {
        Self::over(Pool::new(BUFFERS, BUF_LEN)?, false)
    }

    /// One in a file, for somebody to keep.
    ///
    /// # Errors
    /// Those of memfd_create(2), ftruncate(2), fcntl(2) and mmap(2).
    pub fn create() -> io::Result<(Self, File)> {
        let flags = MFdFlags::MFD_CLOEXEC | MFdFlags::MFD_ALLOW_SEALING;
        let file = File::from(memfd_create("ringdrive-handover", flags)?);
        file.set_len(u64::try_from(BUFFERS * BUF_LEN).unwrap_or(u64::MAX))?;
        fcntl(&file, FcntlArg::F_ADD_SEALS(SealFlag::F_SEAL_SHRINK | SealFlag::F_SEAL_GROW))?;
        let this = Self::over(Pool::shared(&file, BUFFERS, BUF_LEN)?, true)?;
        Ok((this, file))
    }

    /// What a predecessor with the same configuration has left in a file, and its drives, by LUN.
    ///
    /// # Errors
    /// [`HandoverError`].
    pub fn open(file: &File, fingerprint: u64) -> Result<(Self, Vec<KeptDrive>), HandoverError> {
        let seals = fcntl(file, FcntlArg::F_GET_SEALS).map_err(io::Error::from)?;
        if !SealFlag::from_bits_retain(seals).contains(SealFlag::F_SEAL_SHRINK) {
            return Err(HandoverError::Memory(io::ErrorKind::InvalidInput.into()));
        }
        let mut this = Self::over(Pool::shared(file, BUFFERS, BUF_LEN)?, true)?;
        let record = this.record();
        let len = usize::from(record.len);
        if record.magic != MAGIC || record.version != VERSION || len != size_of::<Record>() {
            return Err(HandoverError::Version);
        }
        if record.fingerprint != fingerprint {
            return Err(HandoverError::Configuration);
        }
        let drives = record.drives.iter().take(usize::from(record.count)).map(DriveRecord::parse);
        let drives = drives.collect::<Option<_>>().ok_or(HandoverError::Torn)?;
        Ok((this, drives))
    }

    fn over(pool: Pool, kept: bool) -> io::Result<Self> {
        let record = pool.take().ok_or(io::ErrorKind::OutOfMemory)?;
        Ok(Self { record, pool, kept })
    }

    /// Whether what the drives are is worth writing down: there may be a successor.
    pub(super) fn is_kept(&self) -> bool {
        self.kept
    }

    fn record(&mut self) -> &mut Record {
        let bytes = self.record.first_chunk_mut::<{ size_of::<Record>() }>();
        let bytes = bytes.map(|bytes| &mut bytes[..]).unwrap_or_default();
        // Its length and its alignment, a page, are right by construction.
        Record::mut_from_bytes(bytes).unwrap_or_else(|_| unreachable!("a buffer holds a record"))
    }

    /// Begins a new record, of so many drives.
    pub fn begin(&mut self, fingerprint: u64, count: usize) {
        let record = self.record();
        record.as_mut_bytes().fill(0);
        record.version = VERSION;
        record.len = u16::try_from(size_of::<Record>()).unwrap_or(0);
        record.count = u16::try_from(count.min(UNITS_MAX)).unwrap_or(0);
        record.fingerprint = fingerprint;
        in_order();
        // Last: without it all of it means nothing.
        record.magic = MAGIC;
    }

    /// The buffer for the next CBW, made blank; `None` while the last one is in use.
    pub(super) fn cbw_buf(&mut self) -> Option<Buf> {
        let mut buf = self.pool.take()?;
        if self.is_draining() {
            // Where in it the CBW will be is not known.
            buf.fill(0);
        } else if let Some(head) = buf.first_chunk_mut() {
            *head = BLANK;
        }
        in_order();
        let record = self.record();
        record.void = 0;
        // Behind a reset nothing is left to answer.
        record.stage = if matches!(record.stage, ANSWERED | POSTED) { POSTED } else { READY };
        in_order();
        Some(buf)
    }

    /// A request of a data phase is about to be queued, or the command is about to be begun a second time.
    pub(super) fn moving(&mut self) {
        self.record().stage = MOVING;
        in_order();
    }

    /// A CSW is about to be queued.
    pub(super) fn answered(&mut self, last: Last, behind: Behind) {
        let record = self.record();
        record.last = last.again(last.csw, behind == Behind::Halt);
        record.draining = u8::from(behind == Behind::LeftOvers);
        in_order();
        record.stage = ANSWERED;
        in_order();
    }

    /// A CSW is about to be queued once more, while the next CBW is being read already.
    pub(super) fn answered_again(&mut self, last: Last) {
        self.record().last = last;
        in_order();
    }

    /// The host has the CSW that was queued last.
    pub(super) fn taken(&mut self) {
        let record = self.record();
        if record.stage == POSTED {
            record.stage = READY;
        }
    }

    /// A CBW has come: nothing is left over any more.
    pub(super) fn drained(&mut self) {
        self.record().draining = 0;
    }

    pub(super) fn is_draining(&mut self) -> bool {
        self.record().draining != 0
    }

    /// A reset: the host has forgotten whatever it was about.
    pub(super) fn reset(&mut self) {
        let record = self.record();
        record.draining = 0;
        record.void = 1;
        in_order();
        record.stage = READY;
        in_order();
    }

    /// Nothing but a reset helps.
    pub(super) fn broken(&mut self) {
        self.record().stage = BROKEN;
        in_order();
    }

    /// What the predecessor has left to do.
    pub(super) fn unfinished(&mut self) -> Unfinished {
        let is_draining = self.is_draining();
        let found = self.pool.take().and_then(|mut buf| {
            let is_there = if is_draining { to_front(&mut buf) } else { !buf.starts_with(&[0; CBW_LEN]) };
            Some((*buf.first_chunk()?, is_there))
        });
        let (cbw, is_there) = found.unwrap_or(([0; CBW_LEN], false));
        let Record { stage, last, void, .. } = self.record();
        let is_new = is_there && *void == 0;
        match *stage {
            READY | POSTED if is_new => Unfinished::Unbegun(cbw),
            READY => Unfinished::Nothing,
            MOVING => Unfinished::Begun(cbw),
            ANSWERED | POSTED => Unfinished::Answered(*last),
            _ => Unfinished::Broken,
        }
    }

    pub(super) fn set_stall(&mut self, never: bool) {
        self.record().stall = u8::from(never);
    }

    /// Whether IN was never to be halted.
    pub(super) fn never_stalls(&mut self) -> bool {
        self.record().stall != 0
    }

    /// What scsi knows of a unit, if that is news.
    pub(super) fn keep_unit(&mut self, lun: u8, unit: KeptUnit) {
        if let Some(kept) = self.record().drives.get_mut(usize::from(lun))
            && kept.unit != unit
        {
            kept.change(|kept| kept.unit = unit);
        }
    }

    /// A sync of the image in a drive has failed.
    pub(super) fn keep_lost(&mut self, lun: u8) {
        if let Some(kept) = self.record().drives.get_mut(usize::from(lun)) {
            kept.lost = 1;
        }
    }

    /// The host has read from the image in a drive.
    pub(super) fn keep_first_read(&mut self, lun: u8) {
        if let Some(kept) = self.record().drives.get_mut(usize::from(lun)) {
            kept.first_read = 1;
        }
    }

    /// All that is to be known of a drive.
    pub(super) fn keep_drive(&mut self, lun: u8, drive: &KeptDrive) {
        if let Some(kept) = self.record().drives.get_mut(usize::from(lun)) {
            kept.change(|kept| *kept = DriveRecord::of(drive));
        }
    }
}

impl DriveRecord {
    /// A change that is seen as a whole or makes the record useless.
    fn change(&mut self, change: impl FnOnce(&mut Self)) {
        self.whole = 0;
        in_order();
        change(self);
        self.whole = 0;
        in_order();
        self.whole = 1;
        in_order();
    }

    fn of(drive: &KeptDrive) -> Self {
        let KeptDrive { kind, rw, number, image, unit } = drive;
        let mut this = Self {
            whole: 0,
            kind: match kind {
                Kind::Disk => 1,
                Kind::Optical => 2,
            },
            rw: u8::from(*rw),
            image: 0,
            lost: 0,
            first_read: 0,
            name_len: 0,
            number: *number,
            named: 0,
            device: 0,
            inode: 0,
            len: 0,
            modified: [0; 2],
            unit: *unit,
            name: [0; NAME_MAX],
        };
        let Some(KeptImage { name, writable, identity, lost, first_read }) = image else { return this };
        (this.lost, this.first_read) = (u8::from(*lost), u8::from(*first_read));
        this.image = match identity {
            Some(identity) => {
                this.device = identity.device;
                this.inode = identity.inode;
                this.len = identity.len.0;
                this.modified = identity.modified.into();
                this.named = u32::from(identity.named);
                1 + u8::from(*writable)
            }
            None => 3,
        };
        let end = (0..=NAME_MAX.min(name.len())).rev().find(|end| name.is_char_boundary(*end)).unwrap_or(0);
        this.name.iter_mut().zip(name.bytes().take(end)).for_each(|(to, byte)| *to = byte);
        this.name_len = u16::try_from(end).unwrap_or(0);
        this
    }

    fn parse(&self) -> Option<KeptDrive> {
        let kind = match (self.whole, self.kind) {
            (1, 1) => Kind::Disk,
            (1, 2) => Kind::Optical,
            _ => return None,
        };
        let name = || Some(str::from_utf8(self.name.get(..usize::from(self.name_len))?).ok()?.to_owned());
        let identity = Identity {
            device: self.device,
            inode: self.inode,
            len: ByteLen(self.len),
            modified: self.modified.into(),
            named: self.named != 0,
        };
        let image = match self.image {
            0 => None,
            image @ 1..=3 => Some(KeptImage {
                name: name()?,
                writable: image == 2,
                identity: (image < 3).then_some(identity),
                lost: self.lost != 0,
                first_read: self.first_read != 0,
            }),
            _ => return None,
        };
        Some(KeptDrive { kind, rw: self.rw != 0, number: self.number, image, unit: self.unit })
    }
}

#[cfg(test)]
mod tests;
