//! SCSI commands that the model host issues, with what it knows about their outcome.

use fastrand::Rng;

use crate::model::{Disk, SAME, WriteId, ZEROES};

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
    /// What the host sends is compared with the medium; and where `then` says so, a write follows.
    Compare {
        verdict: Verdict,
        then: Option<(usize, usize, WriteId, bool)>,
    },
    Sync,
    /// A sync that the host does not wait for.
    SyncSoon,
    /// A response whose bytes the check knows something about.
    Answer(fn(&[u8], &Disk) -> bool),
    /// No data, and must succeed on a ready unit.
    Quiet,
    /// Must fail with this sense key.
    Refused {
        key: u8,
    },
}

/// What a comparison must come to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    Same,
    /// This byte is the first that differs.
    Differs(usize),
    /// The host does not know what the medium holds.
    Unsure,
}

#[derive(Clone, Debug)]
pub struct Job {
    pub lun: u8,
    pub cdb: Vec<u8>,
    pub moves: Moves,
    pub what: What,
    /// What the host sends, where `what` does not say it.
    pub out: Option<Vec<u8>>,
}

pub const REQUEST_SENSE: u8 = 0x03;
pub const INQUIRY: u8 = 0x12;
pub const REPORT_LUNS: u8 = 0xa0;

impl Job {
    pub fn new(lun: u8, cdb: impl Into<Vec<u8>>, moves: Moves, what: What) -> Self {
        Self { lun, cdb: cdb.into(), moves, what, out: None }
    }

    /// Bytes that the host gets of each block that it reads.
    pub fn stride(&self, block: usize) -> usize {
        if let What::Sectors { part, .. } = &self.what { part.len() } else { block }
    }

    pub fn test_unit_ready(lun: u8) -> Self {
        Self::new(lun, [0; 6], Moves::None, What::Quiet)
    }

    pub fn request_sense(lun: u8, len: u8) -> Self {
        let what = What::Answer(|data, _| data.is_empty() || data[0] & 0x7e == 0x70);
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
            35..50 if disk.writable => Self::of_several_steps(rng, lun, disk, id),
            50..70 if disk.writable => Self::write(rng, lun, disk, id),
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
        let (lba, count, _) = Self::transfer_aside(rng, disk, [0; 4], false);
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
        let (lba, count, cdb) = Self::transfer_aside(rng, disk, [0x0a, 0x2a, 0xaa, 0x8a], durable);
        let durable = durable && cdb.len() > 6;
        let len = u32::try_from(count * disk.block).unwrap();
        let moves = if len == 0 { Moves::None } else { Moves::Out(len) };
        Self::new(lun, cdb, moves, What::Write { lba, count, id, durable })
    }

    /// As `transfer`, after which reads may go on where they were: with what has just been written, too.
    fn transfer_aside(rng: &mut Rng, disk: &Disk, opcodes: [u8; 4], fua: bool) -> (usize, usize, Vec<u8>) {
        let next = disk.next.get();
        let transfer = Self::transfer(rng, disk, opcodes, fua);
        disk.next.set(next);
        disk.stream.set(0);
        transfer
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
        let lba = match rng.u8(..8) {
            // As a stream goes on.
            4.. if disk.next.get() + count <= disk.blocks() => disk.next.get(),
            0 => disk.blocks() - count,
            1 => rng.usize(..=(disk.blocks() - count).min(16)),
            _ => rng.usize(..=disk.blocks() - count),
        };
        let goes_on = lba == disk.next.get() && count > 0;
        disk.stream.set(if goes_on { disk.stream.get() + 1 } else { 0 });
        disk.next.set(lba + count);
        let flags = if fua { 8 } else { 0 };
        let [six, ten, twelve, sixteen] = opcodes;
        let (lba32, count32) = (u32::try_from(lba).unwrap(), u32::try_from(count).unwrap());
        let cdb = match rng.u8(..4) {
            0 if disk.writable && (1..=256).contains(&count) => {
                let [_, high, mid, low] = lba32.to_be_bytes();
                vec![six, high, mid, low, u8::try_from(count % 256).unwrap(), 0]
            }
            1 => [&[twelve, flags], &lba32.to_be_bytes()[..], &count32.to_be_bytes(), &[0, 0]].concat(),
            2 if disk.writable => {
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

    fn of_several_steps(rng: &mut Rng, lun: u8, disk: &Disk, id: WriteId) -> Self {
        match rng.u8(..10) {
            0..2 => Self::compare_and_write(rng, lun, disk, id),
            2..4 => Self::verify(rng, lun, disk),
            4..6 => Self::write_same(rng, lun, disk, id),
            6..8 => Self::unmap(rng, lun, disk),
            _ => {
                let (lba, count, cdb) = Self::transfer_aside(rng, disk, [0x00, 0x2e, 0xae, 0x8e], false);
                if cdb.len() == 6 {
                    return Self::sync(rng, lun);
                }
                let len = u32::try_from(count * disk.block).unwrap();
                let moves = if len == 0 { Moves::None } else { Moves::Out(len) };
                Self::new(lun, cdb, moves, What::Write { lba, count, id, durable: len > 0 })
            }
        }
    }

    /// Blocks of the disk that a 16-byte CDB names.
    fn long_range(rng: &mut Rng, disk: &Disk, count_max: usize) -> (usize, usize, [u8; 8], [u8; 4]) {
        let count = rng.usize(1..=count_max.min(disk.blocks()));
        let lba = match disk.next.get() {
            // Where a stream goes on.
            next if rng.bool() && next + count <= disk.blocks() => next,
            _ => rng.usize(..=disk.blocks() - count),
        };
        let lba64 = u64::try_from(lba).unwrap().to_be_bytes();
        (lba, count, lba64, u32::try_from(count).unwrap().to_be_bytes())
    }

    /// The host compares with what it believes, or with one byte of it changed; `block` is sent where one stands for all.
    fn comparison(rng: &mut Rng, disk: &Disk, lba: usize, count: usize, each: bool) -> (Vec<u8>, Verdict) {
        let (believed, certain) = disk.believed(disk.sectors(lba, count));
        let mut sent = if each { believed[..disk.block].to_vec() } else { believed.clone() };
        if rng.bool() {
            let at = rng.usize(..sent.len());
            sent[at] ^= 1 << rng.u8(..8);
        }
        let verdict = match believed.iter().zip(sent.iter().cycle()).position(|(disk, host)| disk != host) {
            _ if !certain => Verdict::Unsure,
            None => Verdict::Same,
            Some(at) => Verdict::Differs(at),
        };
        (sent, verdict)
    }

    fn compare_and_write(rng: &mut Rng, lun: u8, disk: &Disk, id: WriteId) -> Self {
        let (lba, count, lba64, _) = Self::long_range(rng, disk, 8);
        let durable = rng.bool();
        let flags = if durable { 8 } else { 0 };
        let cdb = [&[0x89, flags], &lba64[..], &[0, 0, 0, u8::try_from(count).unwrap(), 0, 0]].concat();
        let (mut out, verdict) = Self::comparison(rng, disk, lba, count, false);
        let sectors = disk.sectors(lba, count);
        out.extend(crate::model::bytes_of(id, sectors.start, sectors.len()));
        let moves = Moves::Out(u32::try_from(out.len()).unwrap());
        let what = What::Compare { verdict, then: Some((lba, count, id, durable)) };
        Self { out: Some(out), ..Self::new(lun, cdb, moves, what) }
    }

    fn verify(rng: &mut Rng, lun: u8, disk: &Disk) -> Self {
        let each = rng.bool();
        let most = if rng.bool() { 8 } else { 300 };
        let (lba, count, lba64, count32) = Self::long_range(rng, disk, most);
        let flags = if each { 6 } else { 2 };
        let cdb = [&[0x8f, flags], &lba64[..], &count32, &[0, 0]].concat();
        let (out, verdict) = Self::comparison(rng, disk, lba, count, each);
        let moves = Moves::Out(u32::try_from(out.len()).unwrap());
        Self { out: Some(out), ..Self::new(lun, cdb, moves, What::Compare { verdict, then: None }) }
    }

    fn write_same(rng: &mut Rng, lun: u8, disk: &Disk, id: WriteId) -> Self {
        let (lba, count, lba64, count32) = Self::long_range(rng, disk, disk.blocks());
        let (unmap, no_data, zeroes) = (rng.bool(), rng.u8(..4) == 0, rng.bool());
        let flags = if unmap { 8 } else { 0 } | u8::from(no_data);
        let cdb = [&[0x93, flags], &lba64[..], &count32, &[0, 0]].concat();
        let id = if no_data || zeroes { ZEROES } else { id | SAME };
        let block = Moves::Out(u32::try_from(disk.block).unwrap());
        let moves = if no_data { Moves::None } else { block };
        Self::new(lun, cdb, moves, What::Write { lba, count, id, durable: false })
    }

    /// A range in three descriptors, of which one or two may be empty.
    fn unmap(rng: &mut Rng, lun: u8, disk: &Disk) -> Self {
        let (lba, count, ..) = Self::long_range(rng, disk, disk.blocks());
        let first = rng.usize(..=count);
        let mut out = vec![0, 54, 0, 48, 0, 0, 0, 0];
        for (lba, count) in [(lba + first, count - first), (0, 0), (lba, first)] {
            out.extend(u64::try_from(lba).unwrap().to_be_bytes());
            out.extend(u32::try_from(count).unwrap().to_be_bytes());
            out.extend([0; 4]);
        }
        let moves = Moves::Out(u32::try_from(out.len()).unwrap());
        let what = What::Write { lba, count, id: ZEROES, durable: false };
        Self { out: Some(out), ..Self::new(lun, [0x42, 0, 0, 0, 0, 0, 0, 0, 56, 0], moves, what) }
    }

    /// MODE SELECT(6) with the caching page, write cache off or on. Off, nothing may be left volatile, now and after each write.
    fn switch_cache(rng: &mut Rng, lun: u8) -> Self {
        let on = rng.u8(..4) == 0;
        let mut list = vec![0; 4 + 20];
        list[4..7].copy_from_slice(&[0x08, 0x12, if on { 0x04 } else { 0 }]);
        let what = if on { What::Quiet } else { What::Sync };
        let job = Self::new(lun, [0x15, 0x10, 0, 0, 24, 0], Moves::Out(24), what);
        Self { out: Some(list), ..job }
    }

    fn sync(rng: &mut Rng, lun: u8) -> Self {
        if rng.u8(..4) == 0 {
            return Self::switch_cache(rng, lun);
        }
        if rng.u8(..4) == 0 {
            // IMMED promises nothing.
            return Self::new(lun, [0x35, 2, 0, 0, 0, 0, 0, 0, 0, 0], Moves::None, What::SyncSoon);
        }
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
        match rng.u8(..13) {
            11 if disk.writable => Self::lba_status(rng, lun, disk),
            12 if disk.writable => {
                let count = rng.u8(..=u8::try_from(disk.blocks().min(100)).unwrap());
                Self::new(lun, [0x34, 0, 0, 0, 0, 0, 0, 0, count, 0], Moves::None, What::Quiet)
            }
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
            3 if disk.writable => {
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
            7 => {
                let prevent = rng.u8(..2);
                // Whoever may take the medium takes all that was written.
                let what = if prevent == 0 && disk.writable { What::Sync } else { What::Quiet };
                Self::new(lun, [0x1e, 0, 0, 0, prevent, 0], Moves::None, what)
            }
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

    /// What is told to be deallocated holds zeroes.
    fn lba_status(rng: &mut Rng, lun: u8, disk: &Disk) -> Self {
        let lba = u64::try_from(rng.usize(..disk.blocks())).unwrap().to_be_bytes();
        let cdb = [&[0x9e, 0x12], &lba[..], &[0, 0, 0, 24, 0, 0]].concat();
        let check: fn(&[u8], &Disk) -> bool = |data, disk| {
            let start = usize::try_from(u64::from_be_bytes(data[8..16].try_into().unwrap())).unwrap();
            let count = usize::try_from(u32::from_be_bytes(data[16..20].try_into().unwrap())).unwrap();
            let fits = count > 0 && start + count <= disk.blocks();
            fits && match data[20] {
                0 => true,
                1 => disk.may_be_zeroes(disk.sectors(start, count)),
                _ => false,
            }
        };
        Self::new(lun, cdb, Moves::In(24), What::Answer(check))
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
