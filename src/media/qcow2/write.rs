//! Places for what a host writes, and the order in which the file is told of them.
//!
//! ```text
//!   a cluster has no place ──► one behind the end of the file, with what the disk holds there already ──► in memory: it is there
//!   store: refcounts ──► sync ──► places of new blocks of them ──► sync ──► L1 and L2 entries ──► sync
//! ```
//! So the file says that something is somewhere only when that is durable, and counted. Cut off in between it is a sound file, in which
//! some clusters at the end may be counted and not used. Each sector of the disk is then what it was, or what was written, and what was
//! stored is there. Places are never given back, nor taken where one was free: whoever reads from one reads the disk.

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt,
    fs::File,
    io,
    os::unix::fs::FileExt,
    sync::Arc,
};

use super::{
    super::{FaultKind, Residence, bell::Unstored},
    chain::Chain,
    header::Head,
    worker::{Bell, read_at},
};
use crate::units::ByteLen;

/// Clusters behind the end of the file that are counted as used already, and passed over.
const USED_MAX: u64 = 1 << 16;
/// Of the file's own clusters, which are known by heart.
const METADATA_MAX: u64 = 1 << 20;
/// In the refcount table.
const PLACE: u64 = !0x1ff;

/// A file as far as a writer needs it.
pub(super) trait Disk: fmt::Debug + Send + Sync {
    /// Fills `to` as far as the file goes.
    fn get(&self, to: &mut [u8], at: u64) -> io::Result<usize>;

    fn put(&self, bytes: &[u8], at: u64) -> io::Result<()>;

    /// Makes it longer.
    fn grow(&self, len: u64) -> io::Result<()>;

    /// Makes durable all of this.
    fn sync(&self) -> io::Result<()>;
}

impl Disk for Arc<File> {
    fn get(&self, to: &mut [u8], at: u64) -> io::Result<usize> {
        read_at(self, to, at)
    }

    fn put(&self, bytes: &[u8], at: u64) -> io::Result<()> {
        self.write_all_at(bytes, at)
    }

    fn grow(&self, len: u64) -> io::Result<()> {
        // It may be longer than is known where file systems have no locks.
        if self.metadata()?.len() < len { self.set_len(len) } else { Ok(()) }
    }

    fn sync(&self) -> io::Result<()> {
        self.sync_data()
    }
}

/// A file whose writes may fail with what became of those before.
#[derive(Debug)]
pub(super) struct Telling {
    pub(super) disk: Box<dyn Disk>,
    pub(super) residence: Residence,
    pub(super) bell: Arc<Bell>,
}

impl Disk for Telling {
    fn get(&self, to: &mut [u8], at: u64) -> io::Result<usize> {
        self.disk.get(to, at)
    }

    fn put(&self, bytes: &[u8], at: u64) -> io::Result<()> {
        self.disk.put(bytes, at).inspect_err(|error| {
            self.bell.put_failed(self.residence, error);
        })
    }

    fn grow(&self, len: u64) -> io::Result<()> {
        self.disk.grow(len)
    }

    fn sync(&self) -> io::Result<()> {
        self.disk.sync()
    }
}

/// What is to be known to give places.
#[derive(Debug)]
pub(super) struct Writer {
    disk: Box<dyn Disk>,
    cluster_bits: u32,
    table_at: u64,
    /// Where blocks of refcounts are.
    table: Vec<u64>,
    /// Those of which something has changed.
    blocks: BTreeMap<u64, Block>,
    /// Of the table.
    changed: BTreeSet<u64>,
    /// A cluster that was taken, and could not be written to.
    spare: Option<u64>,
    /// The next cluster of the file that may be free.
    next: u64,
    end: u64,
    /// Clusters of the disk that will soon have a place: the file is made longer for all of them at once, because each time NFS
    /// sends all that was written first.
    ahead: u64,
}

#[derive(Debug)]
struct Block {
    at: u64,
    counts: Vec<u8>,
}

fn damaged() -> io::Error {
    io::Error::from_raw_os_error(libc::EUCLEAN)
}

impl Writer {
    /// Of a file of `end` bytes, whose L2 tables are at `l2`. Tells `chain` which clusters are the file's own.
    ///
    /// # Errors
    /// Why nothing can be written, or what reading has failed with.
    pub(super) fn new(
        disk: Box<dyn Disk>,
        head: &Head,
        (end, l2): (u64, Vec<u64>),
        chain: &Chain,
    ) -> io::Result<Result<Self, &'static str>> {
        let (table_at, table_len) = match head.refcounts {
            Ok(refcounts) => refcounts,
            Err(obstacle) => return Ok(Err(obstacle)),
        };
        let mut bytes = vec![0; ByteLen(table_len).to_usize()];
        if disk.get(&mut bytes, table_at)? < bytes.len() {
            return Ok(Err("its refcount table makes no sense"));
        }
        let table: Vec<u64> =
            bytes.as_chunks().0.iter().map(|entry| u64::from_be_bytes(*entry) & PLACE).collect();
        let cluster = head.cluster();
        let next = end.div_ceil(cluster);
        let blocks = table.iter().filter(|at| **at != 0);
        if blocks.clone().any(|at| !at.is_multiple_of(cluster) || *at >= end) {
            return Ok(Err("its refcount table makes no sense"));
        }
        // All of the disk, its L2 tables, and what counts them.
        let counted = ByteLen::from(table.len()).0.saturating_mul(cluster / 2);
        let wanted = head.size.div_ceil(cluster) + head.l1_entries();
        if counted.saturating_sub(next) < wanted + wanted / (cluster / 2) + 2 {
            return Ok(Err("its refcount table has no room for all of the disk"));
        }
        let clusters = |at: u64, len: u64| at / cluster..(at + len).div_ceil(cluster);
        let own = clusters(head.l1_at, head.l1_entries() * 8).chain(clusters(table_at, table_len));
        if ByteLen::from(table.len()).0 + head.l1_entries() > METADATA_MAX {
            return Ok(Err("it has too many tables"));
        }
        let own = own.chain(blocks.copied().chain(l2).map(|at| at / cluster)).chain([0]);
        chain.add_metadata(own);
        let (blocks, changed) = (BTreeMap::new(), BTreeSet::new());
        let cluster_bits = head.cluster_bits;
        let (spare, ahead) = (None, 0);
        let mut writer =
            Self { disk, cluster_bits, table_at, table, blocks, changed, spare, next, end, ahead };
        // What is written behind the end of a file is to be read there: of all that there are places for, bytes are in it.
        writer.lengthen(end.next_multiple_of(cluster), chain)?;
        Ok(Ok(writer))
    }

    fn cluster(&self) -> u64 {
        1 << self.cluster_bits
    }

    /// So many clusters of the disk are about to be given places.
    pub(super) fn expect(&mut self, clusters: u64) {
        self.ahead = clusters;
    }

    /// A cluster of the file that was not used and is counted now, with these bytes in it, where zeroes may be a hole. Where it is.
    pub(super) fn place(&mut self, chain: &Chain, bytes: &[u8], may_be_hole: bool) -> io::Result<u64> {
        // A table is not among those that are expected.
        self.ahead = self.ahead.saturating_sub(may_be_hole.into());
        let (at, is_new) = match self.spare.take() {
            Some(at) => (at, false),
            None => (self.take(chain)?, true),
        };
        // One that is new reads as zeroes.
        let is_hole = is_new && may_be_hole && bytes.iter().all(|byte| *byte == 0);
        let filled = if is_hole { Ok(()) } else { self.fill(at, bytes) };
        match filled {
            Ok(()) => Ok(at),
            Err(error) => {
                self.spare = Some(at);
                Err(error)
            }
        }
    }

    /// A new L2 table. What the file has no room for is to be known before the host is told that it was written, so that it is no hole.
    pub(super) fn place_table(&mut self, chain: &Chain) -> io::Result<u64> {
        let zeroes = vec![0; ByteLen(self.cluster()).to_usize()];
        let at = self.place(chain, &zeroes, false)?;
        // It may have been one that could not be filled.
        chain.forget(at);
        Ok(at)
    }

    /// A cluster of the file that was not used, is counted now, and reads as zeroes. Where it is.
    fn take(&mut self, chain: &Chain) -> io::Result<u64> {
        let per_block = self.cluster() / 2;
        let last = self.next + USED_MAX;
        while self.next < last {
            let (cluster, at) = (self.next, self.next << self.cluster_bits);
            let (index, within) = (cluster / per_block, ByteLen(cluster % per_block * 2).to_usize());
            let too_far = || io::Error::from_raw_os_error(libc::EFBIG);
            let block_at = *self.table.get(ByteLen(index).to_usize()).ok_or_else(too_far)?;
            if block_at == 0 {
                // It counts itself.
                self.lengthen(at + self.cluster(), chain)?;
                let counts = vec![0; ByteLen(self.cluster()).to_usize()];
                // No hole, either.
                self.disk.put(&counts, at)?;
                self.blocks.insert(index, Block { at, counts });
                self.changed.insert(index);
                if let Some(entry) = self.table.get_mut(ByteLen(index).to_usize()) {
                    *entry = at;
                }
                chain.add_metadata([cluster]);
            } else if self.count(index, block_at, within)? != [0; 2] {
                self.next += 1;
                continue;
            } else {
                self.lengthen(at + self.cluster(), chain)?;
            }
            self.next += 1;
            let counts = self.blocks.get_mut(&index).and_then(|block| block.counts.get_mut(within..));
            let count = counts.and_then(|counts| counts.first_chunk_mut()).ok_or_else(damaged)?;
            *count = 1_u16.to_be_bytes();
            if block_at != 0 {
                return Ok(at);
            }
        }
        Err(io::Error::from_raw_os_error(libc::EFBIG))
    }

    fn count(&mut self, index: u64, at: u64, within: usize) -> io::Result<[u8; 2]> {
        if !self.blocks.contains_key(&index) {
            let mut counts = vec![0; ByteLen(self.cluster()).to_usize()];
            self.disk.get(&mut counts, at)?;
            self.blocks.insert(index, Block { at, counts });
        }
        let counts = self.blocks.get(&index).and_then(|block| block.counts.get(within..));
        counts.and_then(|counts| counts.first_chunk()).copied().ok_or_else(damaged)
    }

    fn lengthen(&mut self, end: u64, chain: &Chain) -> io::Result<()> {
        if end > self.end {
            let end = end + (self.ahead << self.cluster_bits);
            self.disk.grow(end)?;
            self.end = end;
            chain.grow(end);
        }
        Ok(())
    }

    /// These are the bytes of a cluster of the file.
    pub(super) fn fill(&self, at: u64, bytes: &[u8]) -> io::Result<()> {
        self.disk.put(bytes, at)
    }

    /// Makes durable all that was written.
    pub(super) fn store(&mut self, chain: &Chain) -> Result<(), Unstored> {
        let changes = chain.changes();
        for Block { at, counts } in self.blocks.values() {
            self.disk.put(counts, *at).map_err(unstored)?;
        }
        self.disk.sync()?;
        if !self.changed.is_empty() {
            for index in &self.changed {
                let at = self.table.get(ByteLen(*index).to_usize()).copied().unwrap_or(0);
                self.disk.put(&at.to_be_bytes(), self.table_at + index * 8).map_err(unstored)?;
            }
            self.disk.sync()?;
            self.changed.clear();
        }
        if !changes.is_empty() {
            for (at, bytes) in runs(&changes) {
                self.disk.put(&bytes, at).map_err(unstored)?;
            }
            self.disk.sync()?;
        }
        // They are in the file now.
        self.blocks.clear();
        chain.told(&changes);
        Ok(())
    }
}

/// What the file has no room for stays in memory.
fn unstored(error: io::Error) -> Unstored {
    match FaultKind::from(&error) {
        FaultKind::NoSpace | FaultKind::Quota => Unstored::NotYet(error),
        _ => Unstored::Lost(error),
    }
}

/// Entries that are one behind the other, together.
fn runs(changes: &[(u64, u64)]) -> Vec<(u64, Vec<u8>)> {
    let mut runs: Vec<(u64, Vec<u8>)> = Vec::new();
    for (at, entry) in changes {
        match runs.last_mut().filter(|(start, bytes)| start + ByteLen::from(bytes.len()).0 == *at) {
            Some((_, bytes)) => bytes.extend(entry.to_be_bytes()),
            None => runs.push((*at, entry.to_be_bytes().to_vec())),
        }
    }
    runs
}
