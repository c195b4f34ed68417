//! The layout of an overlay file: qcow2, version 3, with extended L2 entries (QEMU's docs/interop/qcow2.rst). Pure.
//!
//! | from | what |
//! |---|---|
//! | cluster 0 | the header, an extension of our own ([`Mark`]), the name of the base |
//! | then | L1 table, L2 tables, refcount table, refcount blocks, each in whole clusters |
//! | [`Geometry::data`] | the guest's clusters, in order: the bytes at `n` of the disk are at `data + n` |
//!
//! All of this is laid out when the file is made, so that each cluster has its place and a refcount of 1 for good. What changes
//! later are the bits of the L2 entries that say which 32nd parts of a cluster (*subclusters*) are here: all others are the base's.
//! So there is no order of writes in which the file is not a sound qcow2 file.

use zerocopy::{
    FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned,
    byteorder::{BE, I64, U32, U64},
};

use super::error::Foreign;
use crate::units::{ByteLen, ByteOffset};

/// Subclusters in a cluster; a bit each.
pub(super) const SUBCLUSTERS: u64 = 32;
/// Bytes of an L2 entry.
pub(super) const ENTRY: u64 = 16;

const MAGIC: [u8; 4] = *b"QFI\xfb";
const VERSION: u32 = 3;
/// Incompatible feature bit 4.
const EXTENDED_L2: u64 = 1 << 4;
/// 16 bits a refcount.
const REFCOUNT_ORDER: u32 = 4;
const REFCOUNT_LEN: u64 = 2;
/// "The refcount is one", in L1 and L2 entries.
const COPIED: u64 = 1 << 63;
const EXTENSION_BACKING_FORMAT: u32 = 0xe279_2aca;
/// What the base is, and the length of that word.
const RAW: ([u8; 8], u32) = (*b"raw\0\0\0\0\0", 3);
const QCOW2: ([u8; 8], u32) = (*b"qcow2\0\0\0", 5);
/// "RDOV". Who does not know an extension passes over it.
const EXTENSION_MARK: u32 = 0x5244_4f56;
/// Longest name of a base that qcow2 has room for.
pub(super) const NAME_MAX: usize = 1023;

/// Extended L2 entries need clusters of 16 KiB, whose subclusters are blocks of 512 bytes; QEMU takes no more than 2 MiB.
const CLUSTER_BITS_MIN: u32 = 14;
const CLUSTER_BITS_MAX: u32 = 21;
/// Clusters are larger where L2 tables would be.
const L2_LEN_WANTED: u64 = 32 << 20;
/// And at 2 MiB a cluster, this is 32 TiB.
const L2_LEN_MAX: u64 = 256 << 20;

#[derive(FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
struct Header {
    magic: [u8; 4],
    version: U32<BE>,
    backing_file_offset: U64<BE>,
    backing_file_size: U32<BE>,
    cluster_bits: U32<BE>,
    size: U64<BE>,
    crypt_method: U32<BE>,
    l1_size: U32<BE>,
    l1_table_offset: U64<BE>,
    refcount_table_offset: U64<BE>,
    refcount_table_clusters: U32<BE>,
    nb_snapshots: U32<BE>,
    snapshots_offset: U64<BE>,
    incompatible_features: U64<BE>,
    compatible_features: U64<BE>,
    autoclear_features: U64<BE>,
    refcount_order: U32<BE>,
    header_length: U32<BE>,
}
const HEADER_LEN: usize = 104;
const _: () = assert!(size_of::<Header>() == HEADER_LEN);

#[derive(FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
struct Extensions {
    format: [U32<BE>; 2],
    format_name: [u8; 8],
    mark: [U32<BE>; 2],
    mark_value: MarkBytes,
    end: [U32<BE>; 2],
}

#[derive(FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned, Clone, Copy)]
#[repr(C)]
struct MarkBytes {
    base_len: U64<BE>,
    base_modified: [I64<BE>; 2],
    id: [u8; 16],
    committing: U64<BE>,
}
const MARK_LEN: u32 = 48;
const _: () = assert!(size_of::<MarkBytes>() == 48);

/// What the base was, and what is being done with the overlay.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Mark {
    /// Bytes of the base.
    pub(super) base_len: ByteLen,
    /// When it was last changed: seconds and nanoseconds since 1970; zeroes where nobody knows.
    pub(super) base_modified: (i64, i64),
    /// Of no other overlay.
    pub(super) id: [u8; 16],
    /// Its bytes are being written to the base, or somebody began to.
    pub(super) committing: bool,
}

/// All that is in the first cluster.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Head {
    pub(super) geometry: Geometry,
    pub(super) base: Vec<u8>,
    /// The base is the disk in a qcow2 file, and not a raw image.
    pub(super) over_qcow2: bool,
    pub(super) mark: Mark,
}

/// Where everything is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Geometry {
    cluster_bits: u32,
    /// Bytes of the disk.
    len: u64,
    l2_tables: u64,
    refcount_table_clusters: u64,
    refcount_blocks: u64,
}

impl Geometry {
    /// For a disk of `len` bytes; `None` where it is empty or too large.
    pub(super) fn new(len: ByteLen) -> Option<Self> {
        (CLUSTER_BITS_MIN..=CLUSTER_BITS_MAX)
            .filter_map(|bits| Self::with(len, bits))
            .find(|geometry| {
                geometry.cluster_bits == CLUSTER_BITS_MAX || geometry.clusters() * ENTRY <= L2_LEN_WANTED
            })
            .filter(|geometry| geometry.clusters() * ENTRY <= L2_LEN_MAX)
    }

    pub(super) fn with(ByteLen(len): ByteLen, cluster_bits: u32) -> Option<Self> {
        if len == 0 || len > i64::MAX.unsigned_abs() / 2 {
            return None;
        }
        let cluster = 1_u64 << cluster_bits;
        let l2_tables = len.div_ceil(cluster).div_ceil(cluster / ENTRY);
        let mut new = Self { cluster_bits, len, l2_tables, refcount_table_clusters: 1, refcount_blocks: 1 };
        // The blocks count themselves, so there may have to be more of them: until it fits.
        loop {
            let blocks = new.all_clusters().div_ceil(cluster / REFCOUNT_LEN);
            let table = (blocks * 8).div_ceil(cluster);
            if (blocks, table) == (new.refcount_blocks, new.refcount_table_clusters) {
                return Some(new);
            }
            (new.refcount_blocks, new.refcount_table_clusters) = (blocks, table);
        }
    }

    /// Bytes of a cluster.
    pub(super) fn cluster(&self) -> u64 {
        1 << self.cluster_bits
    }

    /// Bytes of a subcluster: what is here or is not.
    pub(super) fn subcluster(&self) -> u64 {
        self.cluster() / SUBCLUSTERS
    }

    /// Clusters of the disk.
    pub(super) fn clusters(&self) -> u64 {
        self.len.div_ceil(self.cluster())
    }

    /// Bytes of the disk.
    pub(super) fn len(&self) -> ByteLen {
        ByteLen(self.len)
    }

    /// The place in the file of the byte at `at` of the disk.
    pub(super) fn data(&self, ByteOffset(at): ByteOffset) -> ByteOffset {
        ByteOffset(self.metadata() * self.cluster() + at)
    }

    /// Bytes of the file.
    pub(super) fn file_len(&self) -> u64 {
        self.all_clusters() * self.cluster()
    }

    /// The place of a cluster's L2 entry.
    pub(super) fn entry(&self, cluster: u64) -> u64 {
        self.l2() + cluster * ENTRY
    }

    fn l1_clusters(&self) -> u64 {
        (self.l2_tables * 8).div_ceil(self.cluster())
    }

    fn l1(&self) -> u64 {
        self.cluster()
    }

    fn l2(&self) -> u64 {
        self.l1() + self.l1_clusters() * self.cluster()
    }

    fn refcount_table(&self) -> u64 {
        self.l2() + self.l2_tables * self.cluster()
    }

    fn refcounts(&self) -> u64 {
        self.refcount_table() + self.refcount_table_clusters * self.cluster()
    }

    fn metadata(&self) -> u64 {
        self.refcounts() / self.cluster() + self.refcount_blocks
    }

    fn all_clusters(&self) -> u64 {
        self.metadata() + self.clusters()
    }

    /// The L2 entries of the clusters from `first` on, with these bits.
    pub(super) fn entries(&self, first: u64, bits: impl Iterator<Item = u32>) -> Vec<u8> {
        let mut bytes = Vec::with_capacity(bits.size_hint().0.saturating_mul(ByteLen(ENTRY).to_usize()));
        for (cluster, bits) in (first..).zip(bits) {
            let place = self.data(ByteOffset(cluster * self.cluster())).0;
            bytes.extend_from_slice(&(place | COPIED).to_be_bytes());
            bytes.extend_from_slice(&u64::from(bits).to_be_bytes());
        }
        bytes
    }

    /// The bits of the L2 entries of the clusters from `first` on.
    pub(super) fn bits(&self, first: u64, entries: &[u8]) -> Result<Vec<u32>, Foreign> {
        let entries = <[[U64<BE>; 2]]>::ref_from_bytes(entries).map_err(|_| Foreign::Layout)?;
        let bits = |(cluster, [place, bits]): (u64, &[U64<BE>; 2])| {
            let expected = self.data(ByteOffset(cluster * self.cluster())).0 | COPIED;
            let bits = u32::try_from(bits.get()).ok().filter(|_| place.get() == expected);
            bits.ok_or(Foreign::Layout)
        };
        (first..).zip(entries).map(bits).collect()
    }

    /// The L1 table, refcount table and refcount blocks, and where each is to be written.
    pub(super) fn tables(&self) -> [(u64, Vec<u8>); 3] {
        let places = |from: u64, count: u64, flag: u64| -> Vec<u8> {
            (0..count).flat_map(|n| ((from + n * self.cluster()) | flag).to_be_bytes()).collect()
        };
        let ones = 1_u16.to_be_bytes();
        let refcounts = (0..self.all_clusters()).flat_map(|_| ones).collect();
        [
            (self.l1(), places(self.l2(), self.l2_tables, COPIED)),
            (self.refcount_table(), places(self.refcounts(), self.refcount_blocks, 0)),
            (self.refcounts(), refcounts),
        ]
    }
}

impl Head {
    /// As it stands at the start of the file.
    pub(super) fn to_bytes(&self) -> Vec<u8> {
        let Self { geometry, base, over_qcow2, mark } = self;
        let (format_name, format_len) = if *over_qcow2 { QCOW2 } else { RAW };
        let name_at = HEADER_LEN + size_of::<Extensions>();
        let narrow = |value: u64| U32::new(u32::try_from(value).unwrap_or(u32::MAX));
        let header = Header {
            magic: MAGIC,
            version: U32::new(VERSION),
            backing_file_offset: U64::new(ByteLen::from(name_at).0),
            backing_file_size: narrow(ByteLen::from(base.len()).0),
            cluster_bits: U32::new(geometry.cluster_bits),
            size: U64::new(geometry.len),
            crypt_method: U32::ZERO,
            l1_size: narrow(geometry.l2_tables),
            l1_table_offset: U64::new(geometry.l1()),
            refcount_table_offset: U64::new(geometry.refcount_table()),
            refcount_table_clusters: narrow(geometry.refcount_table_clusters),
            nb_snapshots: U32::ZERO,
            snapshots_offset: U64::ZERO,
            incompatible_features: U64::new(EXTENDED_L2),
            compatible_features: U64::ZERO,
            autoclear_features: U64::ZERO,
            refcount_order: U32::new(REFCOUNT_ORDER),
            header_length: narrow(ByteLen::from(HEADER_LEN).0),
        };
        let extensions = Extensions {
            format: [U32::new(EXTENSION_BACKING_FORMAT), U32::new(format_len)],
            format_name,
            mark: [U32::new(EXTENSION_MARK), U32::new(MARK_LEN)],
            mark_value: MarkBytes {
                base_len: U64::new(mark.base_len.0),
                base_modified: [I64::new(mark.base_modified.0), I64::new(mark.base_modified.1)],
                id: mark.id,
                committing: U64::new(mark.committing.into()),
            },
            end: [U32::ZERO; 2],
        };
        [header.as_bytes(), extensions.as_bytes(), base].concat()
    }

    /// Bytes to read of a file for [`Head::parse`].
    pub(super) const LEN_MAX: usize = HEADER_LEN + size_of::<Extensions>() + NAME_MAX;

    /// Reads it from the first bytes of a file.
    pub(super) fn parse(bytes: &[u8]) -> Result<Self, Foreign> {
        let (header, rest) = Header::ref_from_prefix(bytes).map_err(|_| Foreign::NoQcow2)?;
        if header.magic != MAGIC {
            return Err(Foreign::NoQcow2);
        }
        let (extensions, rest) = Extensions::ref_from_prefix(rest).map_err(|_| Foreign::Layout)?;
        let mark = extensions.mark_value;
        let bits = header.cluster_bits.get();
        let geometry = (CLUSTER_BITS_MIN..=CLUSTER_BITS_MAX)
            .contains(&bits)
            .then(|| Geometry::with(ByteLen(header.size.get()), bits))
            .flatten()
            .filter(|geometry| geometry.clusters() * ENTRY <= L2_LEN_MAX)
            .ok_or(Foreign::Layout)?;
        let name_len = ByteLen::from(header.backing_file_size.get()).to_usize();
        let head = Self {
            geometry,
            base: rest.get(..name_len.min(NAME_MAX)).ok_or(Foreign::Layout)?.to_vec(),
            over_qcow2: extensions.format_name == QCOW2.0,
            mark: Mark {
                base_len: ByteLen(mark.base_len.get()),
                base_modified: (mark.base_modified[0].get(), mark.base_modified[1].get()),
                id: mark.id,
                committing: mark.committing.get() != 0,
            },
        };
        // Whatever else there may be in a qcow2 file, is not in ours.
        if bytes.starts_with(&head.to_bytes()) { Ok(head) } else { Err(Foreign::Layout) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const KIB: u64 = 1024;

    #[test]
    fn small_disks_have_subclusters_of_a_block_and_large_ones_small_tables() {
        for (len, subcluster) in
            [(512, 512), (2_200_000_000, 512), (8_500_000_000, 512), (64 << 30, KIB), (3 << 40, 64 * KIB)]
        {
            let geometry = Geometry::new(ByteLen(len)).unwrap();
            assert_eq!(geometry.subcluster(), subcluster, "of {len} bytes");
            assert!(geometry.metadata() * geometry.cluster() < 64 << 20, "of {len} bytes");
        }
        assert_eq!(Geometry::new(ByteLen(0)), None);
        assert_eq!(Geometry::new(ByteLen(u64::MAX)), None);
    }

    #[test]
    fn a_head_is_read_as_it_was_written_and_no_other_is() {
        let mark =
            Mark { base_len: ByteLen(5), base_modified: (-1, 999_999_999), id: [7; 16], committing: true };
        let geometry = Geometry::new(ByteLen(1 << 30)).unwrap();
        let head = Head { geometry, base: b"/b".to_vec(), over_qcow2: true, mark };
        let bytes = head.to_bytes();
        assert_eq!(Head::parse(&bytes), Ok(head));
        for at in 0..bytes.len() {
            assert!(Head::parse(&bytes[..at]).is_err(), "cut at {at}");
            let mut other = bytes.clone();
            other[at] ^= 0x80;
            // Another name, mark or length is another overlay, but never a panic.
            let _ = Head::parse(&other);
        }
    }
}
