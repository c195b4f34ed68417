//! SCSI commands that the model host issues, with what it knows about their outcome.

use fastrand::Rng;

use crate::model::{Disk, WriteId};

/// Bytes that the device moves if the command succeeds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Moves {
    None,
    In(u32),
    Out(u32),
    /// A response of at most this many bytes.
    UpTo(u32),
}

#[derive(Clone, Debug)]
pub enum What {
    Read {
        lba: usize,
        count: usize,
    },
    /// READ CD: these bytes of each sector of 2352.
    Sectors {
        lba: usize,
        count: usize,
        part: std::ops::Range<usize>,
    },
    Write {
        lba: usize,
        count: usize,
        id: WriteId,
        durable: bool,
    },
    Sync,
    /// A response whose bytes the check knows something about.
    Answer(fn(&[u8], &Disk) -> bool),
    /// No data, and must succeed on a ready unit.
    Quiet,
    /// Must fail with this sense key.
    Refused {
        key: u8,
    },
}

#[derive(Clone, Debug)]
pub struct Job {
    pub lun: u8,
    pub cdb: Vec<u8>,
    pub moves: Moves,
    pub what: What,
}

pub const REQUEST_SENSE: u8 = 0x03;
pub const INQUIRY: u8 = 0x12;
pub const REPORT_LUNS: u8 = 0xa0;

impl Job {
    pub fn new(lun: u8, cdb: impl Into<Vec<u8>>, moves: Moves, what: What) -> Self {
        Self { lun, cdb: cdb.into(), moves, what }
    }

    /// Bytes that the host gets of each block that it reads.
    pub fn stride(&self, block: usize) -> usize {
        if let What::Sectors { part, .. } = &self.what { part.len() } else { block }
    }

    pub fn test_unit_ready(lun: u8) -> Self {
        Self::new(lun, [0; 6], Moves::None, What::Quiet)
    }

    pub fn request_sense(lun: u8, len: u8) -> Self {
        let what = What::Answer(|data, _| data.is_empty() || data[0] & 0x7f == 0x70);
        Self::new(lun, [REQUEST_SENSE, 0, 0, 0, len, 0], Moves::UpTo(len.into()), what)
    }

    /// Whether a pending unit attention is reported instead of running it (SAM-5 §5.14).
    pub fn reports_unit_attention(&self) -> bool {
        ![REQUEST_SENSE, INQUIRY, REPORT_LUNS].contains(&self.cdb[0])
    }

    /// Any command for a unit of this kind; `id` is for what it writes.
    pub fn any(rng: &mut Rng, lun: u8, disk: &Disk, id: WriteId) -> Self {
        match rng.u8(..100) {
            0..7 if disk.block == 2048 => Self::read_cd(rng, lun, disk),
            0..35 => Self::read(rng, lun, disk),
            35..70 if disk.writable => Self::write(rng, lun, disk, id),
            35..70 => Self::refused_write(rng, lun),
            70..78 if disk.writable => Self::sync(rng, lun),
            70..93 => Self::about(rng, lun, disk),
            _ => Self::refused(rng, lun, disk),
        }
    }

    fn read(rng: &mut Rng, lun: u8, disk: &Disk) -> Self {
        let (lba, count, cdb) = Self::transfer(rng, disk, [0x08, 0x28, 0xa8, 0x88], false);
        let len = u32::try_from(count * disk.block).unwrap();
        let moves = if len == 0 { Moves::None } else { Moves::In(len) };
        Self::new(lun, cdb, moves, What::Read { lba, count })
    }

    /// READ CD of data sectors, with the parts that the standard's table allows (MMC-6).
    fn read_cd(rng: &mut Rng, lun: u8, disk: &Disk) -> Self {
        let (lba, count, _) = Self::transfer(rng, disk, [0; 4], false);
        let (channels, part) =
            [(0xf8, 0..2352), (0x18, 16..2352), (0x30, 12..2064), (0x20, 12..16), (0x10, 16..2064)]
                [rng.usize(..5)]
            .clone();
        let len = u32::try_from(count * part.len()).unwrap();
        let moves = if len == 0 { Moves::None } else { Moves::In(len) };
        let start = u32::try_from(lba).unwrap().to_be_bytes();
        let blocks = u32::try_from(count).unwrap().to_be_bytes();
        let cdb = [&[0xbe, 0], &start[..], &blocks[1..], &[channels, 0, 0]].concat();
        Self::new(lun, cdb, moves, What::Sectors { lba, count, part })
    }

    fn write(rng: &mut Rng, lun: u8, disk: &Disk, id: WriteId) -> Self {
        let durable = rng.u8(..4) == 0;
        let (lba, count, cdb) = Self::transfer(rng, disk, [0x0a, 0x2a, 0xaa, 0x8a], durable);
        let durable = durable && cdb.len() > 6;
        let len = u32::try_from(count * disk.block).unwrap();
        let moves = if len == 0 { Moves::None } else { Moves::Out(len) };
        Self::new(lun, cdb, moves, What::Write { lba, count, id, durable })
    }

    /// A range and a CDB for it; `opcodes` of 6, 10, 12 and 16 bytes. Optical units know 10 and 12 only (MMC-6).
    fn transfer(rng: &mut Rng, disk: &Disk, opcodes: [u8; 4], fua: bool) -> (usize, usize, Vec<u8>) {
        let size = match rng.u8(..100) {
            0..4 => 0,
            4..60 => rng.usize(1..=8),
            60..90 => rng.usize(1..=128),
            _ => rng.usize(1..=disk.blocks()),
        };
        let count = size.min(disk.blocks());
        let lba = match rng.u8(..4) {
            0 => disk.blocks() - count,
            1 => rng.usize(..=(disk.blocks() - count).min(16)),
            _ => rng.usize(..=disk.blocks() - count),
        };
        let flags = if fua { 8 } else { 0 };
        let [six, ten, twelve, sixteen] = opcodes;
        let (lba32, count32) = (u32::try_from(lba).unwrap(), u32::try_from(count).unwrap());
        let cdb = match rng.u8(..4) {
            0 if disk.block == 512 && (1..=256).contains(&count) => {
                let [_, high, mid, low] = lba32.to_be_bytes();
                vec![six, high, mid, low, u8::try_from(count % 256).unwrap(), 0]
            }
            1 => [&[twelve, flags], &lba32.to_be_bytes()[..], &count32.to_be_bytes(), &[0, 0]].concat(),
            2 if disk.block == 512 => {
                let lba = u64::from(lba32).to_be_bytes();
                [&[sixteen, flags], &lba[..], &count32.to_be_bytes(), &[0, 0]].concat()
            }
            _ => {
                let count = u16::try_from(count).unwrap();
                [&[ten, flags], &lba32.to_be_bytes()[..], &[0], &count.to_be_bytes(), &[0]].concat()
            }
        };
        (lba, count, cdb)
    }

    fn sync(rng: &mut Rng, lun: u8) -> Self {
        let mut cdb = vec![0x35; 10];
        cdb[1..].fill(0);
        if rng.bool() {
            cdb = vec![0; 16];
            cdb[0] = 0x91;
        }
        Self::new(lun, cdb, Moves::None, What::Sync)
    }

    /// What a host asks about a unit.
    fn about(rng: &mut Rng, lun: u8, disk: &Disk) -> Self {
        let len = [rng.u8(1..), 36, 192, 255][rng.usize(..4)];
        let answer =
            |cdb: Vec<u8>, len: u32, check| Self::new(lun, cdb, Moves::UpTo(len), What::Answer(check));
        match rng.u8(..11) {
            0 => Self::test_unit_ready(lun),
            1 => {
                let check: fn(&[u8], &Disk) -> bool =
                    |data, disk| data[0] == if disk.block == 2048 { 5 } else { 0 };
                answer(vec![INQUIRY, 0, 0, 0, len, 0], len.into(), check)
            }
            2 => Self::new(
                lun,
                [0x25, 0, 0, 0, 0, 0, 0, 0, 0, 0],
                Moves::In(8),
                What::Answer(|data, disk| {
                    let last = u32::try_from(disk.blocks() - 1).unwrap().to_be_bytes();
                    let want = [last, u32::try_from(disk.block).unwrap().to_be_bytes()].concat();
                    want.starts_with(data)
                }),
            ),
            3 if disk.block == 512 => {
                let cdb = vec![0x9e, 0x10, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, len, 0, 0];
                answer(cdb, len.into(), |data, disk| {
                    let last = u64::try_from(disk.blocks() - 1).unwrap().to_be_bytes();
                    last.iter().zip(data).all(|(want, got)| want == got)
                })
            }
            4 => answer(vec![0x1a, 0, 0x3f, 0, len, 0], len.into(), |data, disk| {
                // WP means something on disks only (MMC-6 reserves the byte).
                disk.block == 2048 || data.get(2).is_none_or(|flags| (flags & 0x80 == 0) == disk.writable)
            }),
            5 => {
                let len = rng.u16(8..600);
                let [high, low] = len.to_be_bytes();
                answer(vec![0x5a, 0, 0x3f, 0, 0, 0, 0, high, low, 0], len.into(), |data, _| data.len() >= 8)
            }
            6 => Self::request_sense(lun, len),
            7 => Self::new(lun, [0x1e, 0, 0, 0, rng.u8(..2), 0], Moves::None, What::Quiet),
            8 => {
                let count = rng.u8(..=u8::try_from(disk.blocks().min(100)).unwrap());
                Self::new(lun, [0x2f, 0, 0, 0, 0, 0, 0, 0, count, 0], Moves::None, What::Quiet)
            }
            9 => answer(
                vec![REPORT_LUNS, 0, 0, 0, 0, 0, 0, 0, 1, len, 0, 0],
                256 + u32::from(len),
                |data, _| data[..3] == [0; 3] && data[3] == 16,
            ),
            10 if disk.block == 2048 => {
                answer(vec![0x43, 0, 0, 0, 0, 0, 0, 0, len, 0], len.into(), |data, _| !data.is_empty())
            }
            _ => Self::new(
                lun,
                [INQUIRY, 0, 0, 0, 36, 0],
                Moves::In(36),
                What::Answer(|data, _| data.len() == 36),
            ),
        }
    }

    /// Commands that a ready unit must refuse as ILLEGAL REQUEST.
    fn refused(rng: &mut Rng, lun: u8, disk: &Disk) -> Self {
        let beyond = u32::try_from(disk.blocks()).unwrap() + rng.u32(..3);
        let lba = if rng.bool() { beyond } else { u32::MAX }.to_be_bytes();
        let cdb = match rng.u8(..5) {
            0 => [&[0x28, 0], &lba[..], &[0, 0, 2, 0]].concat(),
            1 => [&[0xa8, 0], &lba[..], &[0xff, 0xff, 0xff, 0xff, 0, 0]].concat(),
            2 => vec![0xec; 1 + rng.usize(..16)],
            3 => vec![0x28],
            _ => return Self::missing_unit(rng),
        };
        Self::new(lun, cdb, Moves::None, What::Refused { key: 5 })
    }

    /// LUNs 2 to 15 do not exist.
    fn missing_unit(rng: &mut Rng) -> Self {
        Self::new(rng.u8(2..16), [0; 6], Moves::None, What::Refused { key: 5 })
    }

    /// DATA PROTECT or ILLEGAL REQUEST, as the unit is a disk or optical.
    fn refused_write(rng: &mut Rng, lun: u8) -> Self {
        let opcode = if rng.bool() { 0x2a } else { 0xaa };
        let mut cdb = vec![0; if opcode == 0x2a { 10 } else { 12 }];
        cdb[0] = opcode;
        cdb[8] = 1;
        Self::new(lun, cdb, Moves::None, What::Refused { key: 7 })
    }
}
