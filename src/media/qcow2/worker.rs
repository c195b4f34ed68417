//! The thread of a qcow2 image: brings tables into memory, expands clusters that are packed, finds places for what is written, and makes
//! it durable, when the drive asks and every few seconds by itself (`bell`).

use std::{
    fs::File,
    io::{self, Read},
    os::unix::fs::FileExt,
    sync::Arc,
    thread::{self, JoinHandle},
};

use nix::sys::memfd::{MFdFlags, memfd_create};

use super::{
    super::{
        Extent, FaultKind,
        bell::{self, Task, Unstored, Work},
        compressed::zstd,
    },
    Shared,
    chain::{COPIED, Found, Layer, Need, PAGE, Slot},
    header::Packing,
    write::Writer,
};
use crate::units::{ByteLen, ByteOffset, ByteRange};

/// Pages that are brought for one range. It goes on when it is asked for again, so that no range needs more than there is room for.
const PAGES_A_RANGE: usize = 64;
/// Bytes that are expanded for one range, or one cluster: a small part of what is kept.
const EXPANDED_A_RANGE: u64 = 1 << 20;
/// Of a cluster of 2 MiB, compressed by QEMU, and more.
const WINDOW_MAX: u64 = 8 << 20;
/// Entries that the file is not told of yet, before it is told without being asked; and at which no other is made before that.
const CHANGES_MANY: usize = 16 << 10;
const CHANGES_MAX: usize = 4 * CHANGES_MANY;

/// A range of the disk.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Want {
    /// To be read.
    Bytes(ByteRange),
    /// To be written.
    Places(ByteRange),
}

impl Task for Want {
    type Key = Need;
    // What a stream would read next may be among them.
    const STORES_FIRST: bool = true;
    const MOST: usize = 16;
}

pub(super) type Bell = bell::Bell<Want>;

/// Has all that is wanted brought, of which `need` is the first.
///
/// # Errors
/// That has just been tried.
pub(super) fn want(bell: &Bell, want: Want, need: Need) -> Result<(), FaultKind> {
    bell.queue(|queue| match queue.failure(|failed| *failed == need) {
        Some(kind) => Err(kind),
        None => {
            queue.push(want);
            Ok(())
        }
    })
}

/// Starts the worker. It holds the image until it ends.
pub(super) fn start(shared: &Arc<Shared>) -> io::Result<JoinHandle<()>> {
    let shared = Arc::clone(shared);
    thread::Builder::new().name("qcow2".to_owned()).spawn(move || {
        loop {
            match shared.bell.next() {
                Work::Do(Want::Bytes(range)) => bring(&shared, range),
                Work::Do(Want::Places(range)) => make_places(&shared, range),
                Work::Flush => {
                    let file = shared.images().next().map(|image| Arc::clone(image.file()));
                    shared.bell.flush(move || file.map_or(Ok(()), |file| file.sync_data()));
                }
                Work::Store => store(&shared),
                Work::End => return,
            }
        }
    })
}

fn bring(shared: &Shared, range: ByteRange) {
    let mut walk = Walk::new(shared);
    let failed = walk.all(range, EXPANDED_A_RANGE).err();
    shared.bell.done(failed);
    // Expanding takes longer than reading: meanwhile, what comes next.
    let ahead = EXPANDED_A_RANGE - walk.expanded.min(EXPANDED_A_RANGE);
    let ahead = ByteRange::new(range.end(), ByteLen(ahead).min(shared.left(range.end())));
    if let Some(ahead) = ahead.filter(|_| walk.expanded > 0 && failed.is_none() && shared.bell.is_idle()) {
        // Whoever wants it hears of it.
        let _ = walk.all(ahead, ahead.len().0);
    }
}

fn make_places(shared: &Shared, range: ByteRange) {
    let failed = shared.writer.as_ref().and_then(|writer| {
        let bits = shared.chain.cluster_bits();
        let first = range.start().0 >> bits;
        // What the file will never be told of would be kept in memory for ever.
        if let Some(error) = shared.bell.lost() {
            return Some((Need::Place { cluster: first }, fail_with(error)));
        }
        let (mut writer, mut walk) = (writer.lock(), Walk::new(shared));
        let mut clusters = first..=range.end().0.saturating_sub(1) >> bits;
        writer.expect(walk.without_place(clusters.clone()));
        clusters.find_map(|cluster| {
            let failed = walk.make_place(&mut writer, cluster).err();
            failed.map(|kind| (Need::Place { cluster }, kind))
        })
    });
    match shared.chain.changes_len() {
        CHANGES_MAX.. => store(shared),
        CHANGES_MANY.. => shared.bell.hurry(),
        _ => {}
    }
    shared.bell.done(failed);
}

fn store(shared: &Shared) {
    let make_durable = || match &shared.writer {
        Some(writer) => writer.lock().store(&shared.chain),
        None => Ok(()),
    };
    match shared.bell.store(make_durable) {
        None => {}
        Some(Unstored::Lost(error)) => {
            tracing::error!(image = %shared.name(), %error, "what the host wrote could not be stored and may be lost");
        }
        Some(Unstored::NotYet(error)) => {
            tracing::warn!(image = %shared.name(), %error, "what the host wrote cannot be stored yet; it is tried again");
        }
    }
}

/// What is brought for a range. Clusters that are expanded for it are in one file, in memory, for as long as somebody holds it.
struct Walk<'a> {
    shared: &'a Shared,
    group: Option<Arc<File>>,
    /// Bytes in it.
    expanded: u64,
}

impl<'a> Walk<'a> {
    fn new(shared: &'a Shared) -> Self {
        Self { shared, group: None, expanded: 0 }
    }

    /// How many of these need a new place, up to one whose table cannot be read.
    fn without_place(&mut self, clusters: impl Iterator<Item = u64>) -> u64 {
        let chain = &self.shared.chain;
        let mut count = 0;
        for cluster in clusters {
            let slot = match chain.slot(cluster) {
                Err(need) if self.bring(need).is_ok() => chain.slot(cluster),
                Err(_) => break,
                slot => slot,
            };
            let needs = matches!(slot, Ok(Slot::NoTable { .. } | Slot::None { reserved: None, .. }));
            count += u64::from(needs);
        }
        count
    }

    /// Finds a place for a cluster of the disk, and puts there what is in it.
    fn make_place(&mut self, writer: &mut Writer, cluster: u64) -> Result<(), FaultKind> {
        let chain = &self.shared.chain;
        loop {
            match chain.slot(cluster) {
                Err(need) => self.bring(need)?,
                Ok(Slot::Here(_)) => return Ok(()),
                Ok(Slot::Damaged) => return Err(FaultKind::Damaged),
                Ok(Slot::NoTable { entry }) => {
                    let table = writer.place_table(chain).map_err(fail_with)?;
                    chain.add_metadata([table >> chain.cluster_bits()]);
                    chain.change(entry, table | COPIED);
                }
                Ok(Slot::None { entry, reserved }) => {
                    let old = self.read_cluster(cluster)?;
                    let at = match reserved {
                        Some(at) => writer.fill(at, &old).map(|()| at),
                        None => writer.place(chain, &old, true),
                    };
                    chain.change(entry, at.map_err(fail_with)? | COPIED);
                    return Ok(());
                }
            }
        }
    }

    /// What a host would read there, and zeroes behind the end of the disk.
    fn read_cluster(&mut self, cluster: u64) -> Result<Vec<u8>, FaultKind> {
        let bits = self.shared.chain.cluster_bits();
        let start = ByteOffset(cluster << bits);
        let len = ByteLen(1 << bits).min(self.shared.left(start));
        let mut bytes = vec![0; ByteLen(1 << bits).to_usize()];
        let mut range = ByteRange::new(start, len).ok_or(FaultKind::OutOfRange)?;
        let mut to = bytes.as_mut_slice();
        while !range.is_empty() {
            let (extent, len) = match self.shared.chain.find(range) {
                (Found::Missing(need), _) => {
                    self.bring(need)?;
                    continue;
                }
                (Found::Here(extent), len) => (extent, len),
            };
            let (here, rest) =
                std::mem::take(&mut to).split_at_mut_checked(len.to_usize()).unwrap_or_default();
            match extent {
                Extent::File { file, offset, .. } => {
                    file.read_exact_at(here, offset.0).map_err(fail_with)?;
                }
                Extent::Fault { kind, .. } => return Err(kind),
                Extent::Zero { .. } | Extent::Pending { .. } => {}
            }
            (range, to) = (range.split_at(len).1, rest);
        }
        Ok(bytes)
    }

    fn bring(&mut self, need: Need) -> Result<(), FaultKind> {
        match need {
            Need::Page { layer, page } => self.page(layer, page),
            Need::Cluster { layer, cluster, at, len } => self.cluster((layer, cluster), at, len),
            Need::Place { .. } => Ok(()),
        }
    }

    /// Brings what there is room for.
    fn all(&mut self, mut range: ByteRange, expand: u64) -> Result<(), (Need, FaultKind)> {
        let (mut pages, from) = (0, self.expanded);
        while !range.is_empty() {
            let need = match self.shared.chain.find(range) {
                (Found::Here(_), len) => {
                    range = range.split_at(len).1;
                    continue;
                }
                (Found::Missing(need), _) => need,
            };
            match need {
                Need::Page { .. } if pages == PAGES_A_RANGE => break,
                Need::Cluster { .. } if self.expanded - from >= expand => break,
                Need::Page { .. } => pages += 1,
                Need::Cluster { .. } | Need::Place { .. } => {}
            }
            self.bring(need).map_err(|kind| (need, kind))?;
        }
        Ok(())
    }

    fn layer(&self, layer: usize) -> Result<&Layer, FaultKind> {
        self.shared.chain.layers.get(layer).ok_or(FaultKind::Damaged)
    }

    fn page(&self, layer: usize, page: u64) -> Result<(), FaultKind> {
        let mut bytes = vec![0; ByteLen(PAGE).to_usize()];
        let file = self.layer(layer)?.image().file();
        let read = read_at(file, &mut bytes, page.saturating_mul(PAGE)).map_err(fail_with)?;
        bytes.truncate(read);
        self.shared.chain.add_page(layer, page, bytes.into());
        Ok(())
    }

    fn cluster(&mut self, cluster: (usize, u64), at: u64, len: u64) -> Result<(), FaultKind> {
        let Layer::Qcow2(table) = self.layer(cluster.0)? else { return Err(FaultKind::Damaged) };
        let mut packed = vec![0; ByteLen(len).to_usize()];
        // The end of the last block may not be there.
        let read = read_at(table.image.file(), &mut packed, at).map_err(fail_with)?;
        packed.truncate(read);
        let mut plain = vec![0; ByteLen(table.head.cluster()).to_usize()];
        expand(&packed, table.head.packing, &mut plain).ok_or(FaultKind::Damaged)?;
        let file = match &self.group {
            Some(file) => Arc::clone(file),
            None => Arc::new(in_memory().map_err(|_| FaultKind::NoMemory)?),
        };
        file.write_all_at(&plain, self.expanded).map_err(|_| FaultKind::NoMemory)?;
        self.shared.chain.add_expanded(cluster, &file, self.expanded, table.head.cluster());
        self.expanded += table.head.cluster();
        self.group = Some(file);
        Ok(())
    }
}

fn fail_with(error: io::Error) -> FaultKind {
    FaultKind::from(&error)
}

fn in_memory() -> io::Result<File> {
    Ok(File::from(memfd_create("qcow2", MFdFlags::MFD_CLOEXEC)?))
}

/// Fills `to` as far as the file goes.
pub(super) fn read_at(file: &File, to: &mut [u8], at: u64) -> io::Result<usize> {
    let mut filled = 0;
    while let Some(rest) = to.get_mut(filled..).filter(|rest| !rest.is_empty()) {
        match file.read_at(rest, at + ByteLen::from(filled).0) {
            Ok(0) => break,
            Ok(read) => filled += read,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    Ok(filled)
}

/// Fills `plain`; what is behind in `packed` is of no interest.
fn expand(packed: &[u8], packing: Packing, plain: &mut [u8]) -> Option<()> {
    match packing {
        Packing::Deflate => {
            let mut inflate = flate2::Decompress::new(false);
            inflate.decompress(packed, plain, flate2::FlushDecompress::Finish).ok()?;
            (inflate.total_out() == ByteLen::from(plain.len()).0).then_some(())
        }
        Packing::Zstd => zstd(packed, WINDOW_MAX).read_exact(plain).ok(),
    }
}
