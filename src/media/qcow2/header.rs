//! The header of a qcow2 file (QEMU's docs/interop/qcow2.rst), checked. Pure.
//!
//! Snapshots are not looked at: they are other disks than the one that the header's L1 table is of. Who only reads has no use for
//! refcounts; where they are is said for those who write.

use super::error::Qcow2ErrorKind as Kind;

/// The first bytes of every qcow2 file.
pub(super) const MAGIC: &[u8] = b"QFI\xfb";
/// Bytes to read for [`Head::parse`]: all that it looks at, unless somebody put it far away for no reason.
pub(super) const LEN_MAX: usize = 64 << 10;

const DIRTY: u64 = 1;
const CORRUPT: u64 = 1 << 1;
const EXTERNAL_DATA: u64 = 1 << 2;
const COMPRESSION: u64 = 1 << 3;
const EXTENDED_L2: u64 = 1 << 4;

/// 16 bits a refcount, as QEMU makes them.
const REFCOUNT_ORDER: u64 = 4;
/// Of a refcount table, as in QEMU.
const REFCOUNT_TABLE_MAX: u64 = 8 << 20;

const CLUSTER_BITS_MIN: u32 = 9;
const CLUSTER_BITS_MAX: u32 = 21;
/// What extended L2 entries are for.
const CLUSTER_BITS_EXTENDED: u32 = 14;
/// Of an L1 table, as in QEMU.
const L1_LEN_MAX: u64 = 32 << 20;
const SIZE_MAX: u64 = 1 << 62;
const NAME_MAX: u64 = 1023;
const EXTENSION_BACKING_FORMAT: u64 = 0xe279_2aca;

/// How clusters are compressed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Packing {
    Deflate,
    Zstd,
}

/// What a header says of where the disk is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Head {
    pub(super) cluster_bits: u32,
    /// Bytes of the disk.
    pub(super) size: u64,
    pub(super) l1_at: u64,
    /// L2 entries are of 16 bytes and speak of 32nd parts of a cluster.
    pub(super) extended: bool,
    /// Clusters may be marked as zeroes.
    pub(super) zeroes: bool,
    pub(super) packing: Packing,
    pub(super) backing: Option<Backing>,
    /// Where the refcount table is, and its bytes; or why nothing may be written.
    pub(super) refcounts: Result<(u64, u64), &'static str>,
}

/// What a header says of the image below.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Backing {
    pub(super) name: Vec<u8>,
    pub(super) format: Option<Vec<u8>>,
}

/// The number of `len` bytes at `at`, or 0.
fn number(bytes: &[u8], at: usize, len: usize) -> u64 {
    let bytes = bytes.get(at..).and_then(|bytes| bytes.get(..len)).unwrap_or_default();
    bytes.iter().fold(0, |all, byte| all << 8 | u64::from(*byte))
}

fn narrow(number: u64) -> u32 {
    u32::try_from(number).unwrap_or(u32::MAX)
}

/// Somewhere in `bytes`.
fn slice(bytes: &[u8], at: u64, len: u64) -> Option<&[u8]> {
    bytes.get(usize::try_from(at).ok()?..)?.get(..usize::try_from(len).ok()?)
}

impl Head {
    /// Reads it from the first bytes of a file.
    pub(super) fn parse(bytes: &[u8]) -> Result<Self, Kind> {
        let version = narrow(number(bytes, 4, 4));
        let (header_len, features) = match version {
            2 => (72, 0),
            3 => (number(bytes, 100, 4), number(bytes, 72, 8)),
            other => return Err(Kind::Version(other)),
        };
        let packing = check_features(features, number(bytes, 104, 1))?;
        let extended = features & EXTENDED_L2 != 0;
        let cluster_bits = narrow(number(bytes, 20, 4));
        let least = if extended { CLUSTER_BITS_EXTENDED } else { CLUSTER_BITS_MIN };
        if !(least..=CLUSTER_BITS_MAX).contains(&cluster_bits) {
            return Err(Kind::Damaged("cluster size"));
        }
        if number(bytes, 32, 4) != 0 {
            return Err(Kind::Encrypted);
        }
        let is_long = version == 2 || header_len >= 104 && header_len.is_multiple_of(8);
        if !is_long || header_len > 1 << cluster_bits {
            return Err(Kind::Damaged("header's length"));
        }
        let head = Self {
            cluster_bits,
            size: number(bytes, 24, 8),
            l1_at: number(bytes, 40, 8),
            extended,
            zeroes: version == 3,
            packing,
            backing: backing(bytes, header_len, 1 << cluster_bits)?,
            refcounts: refcounts(bytes, version, features, cluster_bits),
        };
        head.check_l1(number(bytes, 36, 4))?;
        Ok(head)
    }

    fn check_l1(&self, entries: u64) -> Result<(), Kind> {
        match self.size {
            0 => return Err(Kind::Empty),
            size if size >= SIZE_MAX => return Err(Kind::TooLarge),
            _ => {}
        }
        let is_whole = self.l1_at != 0 && self.l1_at.is_multiple_of(self.cluster());
        if !is_whole || entries * 8 > L1_LEN_MAX || entries < self.l1_entries() {
            return Err(Kind::Damaged("L1 table"));
        }
        // Otherwise its end has no number.
        if self.l1_at >= SIZE_MAX { Err(Kind::Truncated) } else { Ok(()) }
    }

    /// Bytes of a cluster.
    pub(super) fn cluster(&self) -> u64 {
        1 << self.cluster_bits
    }

    /// Bytes of an L2 entry.
    pub(super) fn entry(&self) -> u64 {
        if self.extended { 16 } else { 8 }
    }

    /// Bytes of the disk that an L2 entry has something of its own to say about.
    pub(super) fn unit(&self) -> u64 {
        if self.extended { self.cluster() / 32 } else { self.cluster() }
    }

    /// Entries in an L2 table, which is a cluster.
    pub(super) fn l2_entries(&self) -> u64 {
        self.cluster() / self.entry()
    }

    /// Bytes of the disk that an L2 table speaks of.
    pub(super) fn span(&self) -> u64 {
        self.l2_entries() << self.cluster_bits
    }

    /// Entries of the L1 table that the disk needs.
    pub(super) fn l1_entries(&self) -> u64 {
        self.size.div_ceil(self.span())
    }
}

fn check_features(features: u64, compression: u64) -> Result<Packing, Kind> {
    if features & CORRUPT != 0 {
        return Err(Kind::Corrupt);
    }
    if features & EXTERNAL_DATA != 0 {
        return Err(Kind::ExternalData);
    }
    // Dirty means that the refcounts may be wrong.
    match features & !(DIRTY | COMPRESSION | EXTENDED_L2) {
        0 => {}
        unknown => return Err(Kind::Features(unknown)),
    }
    match compression {
        _ if features & COMPRESSION == 0 => Ok(Packing::Deflate),
        0 => Ok(Packing::Deflate),
        1 => Ok(Packing::Zstd),
        other => Err(Kind::Compression(u8::try_from(other).unwrap_or(u8::MAX))),
    }
}

fn refcounts(
    bytes: &[u8],
    version: u32,
    features: u64,
    cluster_bits: u32,
) -> Result<(u64, u64), &'static str> {
    let (at, len) = (number(bytes, 48, 8), number(bytes, 56, 4) << cluster_bits);
    let is_sound = at != 0 && at.is_multiple_of(1 << cluster_bits) && at < SIZE_MAX;
    match version {
        2 => Err("it is of version 2"),
        _ if features & DIRTY != 0 => Err("its refcounts may be wrong"),
        _ if features & EXTENDED_L2 != 0 => Err("it has extended L2 entries"),
        _ if number(bytes, 60, 4) != 0 => Err("it has snapshots"),
        _ if number(bytes, 88, 8) != 0 => Err("it has bitmaps, or the like"),
        _ if number(bytes, 96, 4) != REFCOUNT_ORDER => Err("its refcounts are not of 16 bits"),
        _ if !is_sound || len == 0 || len > REFCOUNT_TABLE_MAX => Err("its refcount table makes no sense"),
        _ => Ok((at, len)),
    }
}

fn backing(bytes: &[u8], header_len: u64, cluster: u64) -> Result<Option<Backing>, Kind> {
    let (at, len) = (number(bytes, 8, 8), number(bytes, 16, 4));
    if at == 0 {
        return Ok(None);
    }
    let name = slice(bytes, at, len).filter(|_| (1..=NAME_MAX).contains(&len) && at < cluster);
    let name = name.ok_or(Kind::Damaged("backing file's name"))?.to_vec();
    let mut extension = header_len;
    // Each is of 8 bytes at least, so that this ends.
    while let Some(kind) = slice(bytes, extension, 8).filter(|_| extension < at.min(cluster)) {
        let (kind, len) = (number(kind, 0, 4), number(kind, 4, 4));
        let value = slice(bytes, extension + 8, len);
        match (kind, value) {
            (0, _) | (_, None) => break,
            (EXTENSION_BACKING_FORMAT, Some(format)) => {
                return Ok(Some(Backing { name, format: Some(format.to_vec()) }));
            }
            _ => extension += 8 + len.next_multiple_of(8),
        }
    }
    Ok(Some(Backing { name, format: None }))
}
