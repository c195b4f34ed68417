//! A qcow2 file and those below it: where the bytes of the disk are, as far as what is in memory says.
//!
//! ```text
//!   find ──► L1 entry ──► L2 entry ──► File      in this file
//!              │            ├────────► Zero
//!              │            ├────────► packed ──► expanded already: File, else Missing
//!              └────────────┴────────► below: the same in the next file; under the last are zeroes
//!              page of a table is not in memory: Missing
//! ```
//! Tables are in memory by pages, as they are in the file; all of what they say is checked when it is used. Whoever has brought what was
//! missing asks again. Files do not change meanwhile, because they are locked against those who would write to them; what `write` changes
//! in tables of the first is noted here until it is in the file.

use std::{
    collections::{BTreeMap, HashMap, HashSet, VecDeque},
    fs::File,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
};

use parking_lot::Mutex;

use super::{
    super::{Extent, FaultKind, Image, Medium},
    header::Head,
};
use crate::units::{ByteLen, ByteOffset, ByteRange};

/// Bytes of a page. 16 KiB speak of 128 MiB of a disk with clusters of 64 KiB.
pub(super) const PAGE: u64 = 16 << 10;
/// Pages in memory: 4 MiB.
const PAGES_MAX: usize = 256;
/// Bytes of expanded clusters in memory, and files that they are in. At least the last such file is.
const EXPANDED_MAX: u64 = 16 << 20;
const GROUPS_MAX: usize = 32;

/// In L1 and L2 entries: where in the file.
pub(super) const PLACE: u64 = 0x00ff_ffff_ffff_fe00;
const PACKED: u64 = 1 << 62;
/// In L2 entries that are not extended.
const ZERO: u64 = 1;
/// In L1 and L2 entries: the refcount is one, so that it may be written there.
pub(super) const COPIED: u64 = 1 << 63;

/// One file.
#[derive(Debug)]
pub(super) enum Layer {
    Raw(Image),
    Qcow2(Table),
}

/// A qcow2 file.
#[derive(Debug)]
pub(super) struct Table {
    pub(super) image: Image,
    pub(super) head: Head,
    /// Bytes of the file. More, when something is written.
    pub(super) end: AtomicU64,
}

/// All of them, from the top.
#[derive(Debug)]
pub(super) struct Chain {
    pub(super) layers: Vec<Layer>,
    cache: Mutex<Cache>,
}

/// Where the bytes at the start of a range are.
#[derive(Clone, Debug)]
pub(super) enum Found {
    Here(Extent),
    Missing(Need),
}

/// What has to be in memory first.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) enum Need {
    /// [`PAGE`] bytes of the file of a layer, from this page on.
    Page { layer: usize, page: u64 },
    /// A cluster of the disk of a layer, which is packed in its file at these bytes.
    Cluster { layer: usize, cluster: u64, at: u64, len: u64 },
    /// A place that may be written to, for this cluster of the disk.
    Place { cluster: u64 },
}

/// Where a cluster of the disk may be written to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Slot {
    /// Here, from this byte of the file on.
    Here(u64),
    /// Nowhere yet. Where its L2 entry is, and a place that it has, but of which nothing has been written.
    None { entry: u64, reserved: Option<u64> },
    /// There is no L2 table. Where its L1 entry is.
    NoTable { entry: u64 },
    /// The table makes no sense.
    Damaged,
}

#[derive(Debug, Default)]
struct Cache {
    pages: HashMap<(usize, u64), Page>,
    /// Counts what was asked for.
    now: u64,
    /// Where an expanded cluster is.
    expanded: HashMap<(usize, u64), (Arc<File>, u64)>,
    /// Those of one file each, the oldest first.
    groups: VecDeque<Group>,
    /// Entries of the first layer, by where they are in the file, which does not say so yet.
    changes: BTreeMap<u64, u64>,
    /// Clusters of its file that no host may write to.
    metadata: HashSet<u64>,
}

#[derive(Debug)]
struct Page {
    bytes: Box<[u8]>,
    used: u64,
}

#[derive(Debug)]
struct Group {
    file: Arc<File>,
    len: u64,
    clusters: Vec<(usize, u64)>,
}

/// What an L2 entry says of a part of the disk.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Unit {
    /// From this byte of the file on.
    At(u64),
    Zero,
    Below,
    Packed {
        at: u64,
        len: u64,
    },
    Damaged,
}

enum Step {
    Found(Found),
    Below,
}

impl Layer {
    pub(super) fn image(&self) -> &Image {
        match self {
            Self::Raw(image) | Self::Qcow2(Table { image, .. }) => image,
        }
    }
}

impl Unit {
    /// Whether `next`, so many bytes later, goes on with it.
    fn goes_on(self, len: u64, next: Self) -> bool {
        match (self, next) {
            (Self::At(at), Self::At(next)) => at.checked_add(len) == Some(next),
            (Self::Zero, Self::Zero) | (Self::Below, Self::Below) => true,
            _ => false,
        }
    }
}

impl Chain {
    pub(super) fn new(layers: Vec<Layer>) -> Self {
        Self { layers, cache: Mutex::default() }
    }

    /// Where the bytes at the start of `range` are, which is on the disk and not empty, and for how many that holds: at least one.
    pub(super) fn find(&self, mut range: ByteRange) -> (Found, ByteLen) {
        let mut cache = self.cache.lock();
        cache.now += 1;
        for (n, layer) in self.layers.iter().enumerate() {
            let len = match layer {
                Layer::Raw(image) => image.len(),
                Layer::Qcow2(table) => ByteLen(table.head.size),
            };
            // Behind the end of a shorter one there are zeroes.
            let Some(left) = len.0.checked_sub(range.start().0).filter(|left| *left > 0) else { break };
            range = range.split_at(ByteLen(left)).0;
            let (step, len) = match layer {
                Layer::Raw(image) => {
                    let extent = image.map(range);
                    let len = extent.len();
                    (Step::Found(Found::Here(extent)), len)
                }
                Layer::Qcow2(table) => table.find(n, range, &mut cache),
            };
            range = range.split_at(len).0;
            if let Step::Found(found) = step {
                return (found, range.len());
            }
        }
        (Found::Here(Extent::Zero { len: range.len() }), range.len())
    }

    /// What was asked for as [`Need::Page`].
    pub(super) fn add_page(&self, layer: usize, page: u64, mut bytes: Box<[u8]>) {
        let mut cache = self.cache.lock();
        if layer == 0 {
            for (at, entry) in cache.changes.range(page * PAGE..(page + 1) * PAGE) {
                put(&mut bytes, at % PAGE, *entry);
            }
        }
        if cache.pages.len() >= PAGES_MAX {
            let oldest = cache.pages.iter().min_by_key(|(_, page)| page.used).map(|(key, _)| *key);
            oldest.and_then(|key| cache.pages.remove(&key));
        }
        let used = cache.now;
        cache.pages.insert((layer, page), Page { bytes, used });
    }

    /// What was asked for as [`Need::Cluster`] is in `file` at `at`, where all of a group are one behind the other.
    pub(super) fn add_expanded(&self, (layer, cluster): (usize, u64), file: &Arc<File>, at: u64, len: u64) {
        let mut cache = self.cache.lock();
        match cache.groups.back_mut().filter(|group| Arc::ptr_eq(&group.file, file)) {
            Some(group) => {
                group.len = at + len;
                group.clusters.push((layer, cluster));
            }
            None => {
                let (file, clusters) = (Arc::clone(file), vec![(layer, cluster)]);
                cache.groups.push_back(Group { file, len: at + len, clusters });
            }
        }
        cache.expanded.insert((layer, cluster), (Arc::clone(file), at));
        while cache.groups.len() > 1
            && (cache.groups.len() > GROUPS_MAX
                || cache.groups.iter().map(|group| group.len).sum::<u64>() > EXPANDED_MAX)
        {
            // Whoever still reads from it holds it.
            let Some(Group { file, clusters, .. }) = cache.groups.pop_front() else { break };
            for cluster in clusters {
                if cache.expanded.get(&cluster).is_some_and(|(of, _)| Arc::ptr_eq(of, &file)) {
                    cache.expanded.remove(&cluster);
                }
            }
        }
    }

    /// log2 of the bytes of a cluster of the first layer.
    pub(super) fn cluster_bits(&self) -> u32 {
        self.table().map_or(0, |table| table.head.cluster_bits)
    }

    fn table(&self) -> Option<&Table> {
        match self.layers.first() {
            Some(Layer::Qcow2(table)) => Some(table),
            _ => None,
        }
    }

    /// Where a cluster of the first layer may be written to.
    pub(super) fn slot(&self, cluster: u64) -> Result<Slot, Need> {
        let mut cache = self.cache.lock();
        cache.now += 1;
        self.table().map_or(Ok(Slot::Damaged), |table| table.slot(cluster, &mut cache))
    }

    /// Where the bytes at the start of `range` may be written to, and how many of them.
    pub(super) fn place(&self, range: ByteRange) -> Result<(Slot, ByteLen), Need> {
        let Some(table) = self.table() else { return Ok((Slot::Damaged, range.len())) };
        let mut cache = self.cache.lock();
        cache.now += 1;
        let (start, bits) = (range.start().0, table.head.cluster_bits);
        let first = table.slot(start >> bits, &mut cache)?;
        let mut end = ((start >> bits) + 1) << bits;
        if let Slot::Here(place) = first {
            let next = |end: u64| Slot::Here(place + (end - ((start >> bits) << bits)));
            while end < range.end().0 && table.slot(end >> bits, &mut cache) == Ok(next(end)) {
                end += table.head.cluster();
            }
        }
        let len = ByteLen(end.min(range.end().0) - start);
        Ok(match first {
            Slot::Here(place) => (Slot::Here(place + start % table.head.cluster()), len),
            other => (other, len),
        })
    }

    /// Clusters of the file that are the file's own from now on.
    pub(super) fn add_metadata(&self, clusters: impl IntoIterator<Item = u64>) {
        self.cache.lock().metadata.extend(clusters);
    }

    /// The entry at `at` of the first layer's file is this now, which the file is to be told later.
    pub(super) fn change(&self, at: u64, entry: u64) {
        let mut cache = self.cache.lock();
        cache.changes.insert(at, entry);
        if let Some(page) = cache.pages.get_mut(&(0, at / PAGE)) {
            put(&mut page.bytes, at % PAGE, entry);
        }
    }

    /// The file of the first layer is of so many bytes now: what was read of its old end is no longer so.
    pub(super) fn grow(&self, end: u64) {
        let Some(table) = self.table() else { return };
        let mut cache = self.cache.lock();
        let old = table.end.fetch_max(end, Ordering::SeqCst);
        cache.pages.retain(|(layer, page), _| *layer != 0 || (page + 1) * PAGE <= old);
    }

    /// The cluster at `at` of the first layer's file was written to as a table.
    pub(super) fn forget(&self, at: u64) {
        let pages = at / PAGE..(at + (1 << self.cluster_bits())).div_ceil(PAGE);
        self.cache.lock().pages.retain(|(layer, page), _| *layer != 0 || !pages.contains(page));
    }

    /// What the file does not say yet.
    pub(super) fn changes(&self) -> Vec<(u64, u64)> {
        self.cache.lock().changes.iter().map(|(at, entry)| (*at, *entry)).collect()
    }

    /// How much that is.
    pub(super) fn changes_len(&self) -> usize {
        self.cache.lock().changes.len()
    }

    /// It does now.
    pub(super) fn told(&self, changes: &[(u64, u64)]) {
        let mut cache = self.cache.lock();
        for (at, entry) in changes {
            if cache.changes.get(at) == Some(entry) {
                cache.changes.remove(at);
            }
        }
    }

    /// Bytes that are held in memory, by kind.
    #[cfg(test)]
    pub(super) fn held(&self) -> (u64, u64) {
        let cache = self.cache.lock();
        let pages = cache.pages.values().map(|page| ByteLen::from(page.bytes.len()).0).sum();
        (pages, cache.groups.iter().map(|group| group.len).sum())
    }
}

impl Cache {
    /// The bytes of the file of `layer` from `at` on, to the end of the page.
    fn bytes(&mut self, layer: usize, at: u64) -> Result<&[u8], Need> {
        let (page, now) = (at / PAGE, self.now);
        let Some(held) = self.pages.get_mut(&(layer, page)) else {
            return Err(Need::Page { layer, page });
        };
        held.used = now;
        Ok(held.bytes.get(ByteLen(at % PAGE).to_usize()..).unwrap_or_default())
    }
}

/// Writes a number, where there is room for it.
fn put(bytes: &mut [u8], at: u64, number: u64) {
    if let Some(place) = bytes.get_mut(ByteLen(at).to_usize()..).and_then(|bytes| bytes.first_chunk_mut()) {
        *place = number.to_be_bytes();
    }
}

/// The number at the start of `bytes`; `None` where they end before it does.
fn number(bytes: &[u8]) -> Option<u64> {
    bytes.first_chunk().map(|bytes| u64::from_be_bytes(*bytes))
}

impl Table {
    fn find(&self, layer: usize, range: ByteRange, cache: &mut Cache) -> (Step, ByteLen) {
        let head = &self.head;
        let (start, span) = (range.start().0, head.span());
        let in_span = ByteLen(span - start % span).min(range.len());
        let fault = |kind, len| (Step::Found(Found::Here(Extent::Fault { kind, len })), len);
        let missing = |need| (Step::Found(Found::Missing(need)), in_span);
        let l2 = match cache.bytes(layer, head.l1_at + start / span * 8).map(number) {
            Ok(Some(entry)) => entry & PLACE,
            Ok(None) => return fault(FaultKind::Truncated, in_span),
            Err(need) => return missing(need),
        };
        if l2 == 0 {
            return (Step::Below, in_span);
        }
        if !l2.is_multiple_of(head.cluster()) {
            return fault(FaultKind::Damaged, in_span);
        }
        let index = (start % span) >> head.cluster_bits;
        let (unit, len) = match cache.bytes(layer, l2 + index * head.entry()) {
            Ok(entries) => self.run(entries, head.l2_entries() - index, range.split_at(in_span).0),
            Err(need) => return missing(need),
        };
        match unit {
            None => fault(FaultKind::Truncated, len),
            Some(Unit::Damaged) => fault(FaultKind::Damaged, len),
            Some(Unit::Below) => (Step::Below, len),
            Some(Unit::Zero) => (Step::Found(Found::Here(Extent::Zero { len })), len),
            Some(Unit::At(at)) => {
                let extent = self.stored(at, start, len);
                let len = extent.len();
                (Step::Found(Found::Here(extent)), len)
            }
            Some(Unit::Packed { at, len: packed }) => {
                let cluster = start >> head.cluster_bits;
                let Some((file, place)) = cache.expanded.get(&(layer, cluster)) else {
                    return missing(Need::Cluster { layer, cluster, at, len: packed });
                };
                let offset = ByteOffset(place + start % head.cluster());
                (Step::Found(Found::Here(Extent::File { file: Arc::clone(file), offset, len })), len)
            }
        }
    }

    fn slot(&self, cluster: u64, cache: &mut Cache) -> Result<Slot, Need> {
        let head = &self.head;
        let start = cluster << head.cluster_bits;
        if start >= head.size {
            return Ok(Slot::Damaged);
        }
        let entry = head.l1_at + start / head.span() * 8;
        let Some(word) = number(cache.bytes(0, entry)?) else { return Ok(Slot::Damaged) };
        let l2 = word & PLACE;
        if l2 == 0 {
            return Ok(Slot::NoTable { entry });
        }
        if word & COPIED == 0 || !self.is_whole(l2) {
            return Ok(Slot::Damaged);
        }
        let entry = l2 + ((start % head.span()) >> head.cluster_bits) * head.entry();
        let Some(word) = number(cache.bytes(0, entry)?) else { return Ok(Slot::Damaged) };
        let place = word & PLACE;
        Ok(match (place, word & ZERO != 0) {
            _ if word & PACKED != 0 => Slot::None { entry, reserved: None },
            (0, _) => Slot::None { entry, reserved: None },
            _ if word & COPIED == 0 || !self.is_whole(place) => Slot::Damaged,
            _ if cache.metadata.contains(&(place >> head.cluster_bits)) => Slot::Damaged,
            (_, true) => Slot::None { entry, reserved: Some(place) },
            (_, false) => Slot::Here(place),
        })
    }

    /// Whether there is a cluster at `place` of the file.
    fn is_whole(&self, place: u64) -> bool {
        let end = self.end.load(Ordering::SeqCst);
        place.is_multiple_of(self.head.cluster()) && place + self.head.cluster() <= end
    }

    /// What `entries` say of the start of `range`, and of how much of it: the first of them is that of its first cluster. `None` where
    /// there is none.
    fn run(&self, entries: &[u8], most: u64, range: ByteRange) -> (Option<Unit>, ByteLen) {
        let (start, end) = (range.start().0, range.end().0);
        let (mut at, mut first) = (start, None);
        let entry_len = ByteLen(self.head.entry()).to_usize();
        for entry in entries.chunks_exact(entry_len).take(ByteLen(most).to_usize()) {
            let cluster_end = (at / self.head.cluster() + 1) << self.head.cluster_bits;
            while at < cluster_end.min(end) {
                let unit = self.unit(entry, at);
                match first {
                    Some(first) if !Unit::goes_on(first, at - start, unit) => {
                        return (Some(first), ByteLen(at - start));
                    }
                    Some(_) => {}
                    None => first = Some(unit),
                }
                // A packed one is a whole cluster.
                let step =
                    if matches!(unit, Unit::Packed { .. }) { self.head.cluster() } else { self.head.unit() };
                at = (at / step + 1) * step;
            }
            if at >= end {
                break;
            }
        }
        let len = if first.is_some() { at.min(end) - start } else { end - start };
        (first, ByteLen(len))
    }

    fn unit(&self, entry: &[u8], at: u64) -> Unit {
        let head = &self.head;
        let Some(word) = number(entry) else { return Unit::Damaged };
        let bits = entry.get(8..).and_then(number).unwrap_or(0);
        if word & PACKED != 0 {
            return if bits == 0 { packed(word, head.cluster_bits) } else { Unit::Damaged };
        }
        let place = word & PLACE;
        if !place.is_multiple_of(head.cluster()) {
            return Unit::Damaged;
        }
        let (is_here, is_zero) = match head.extended {
            true => {
                let n = at % head.cluster() / head.unit();
                (bits >> n & 1 == 1, bits >> (n + 32) & 1 == 1)
            }
            false => (place != 0, head.zeroes && word & ZERO != 0),
        };
        match (is_here, is_zero) {
            (true, true) if head.extended => Unit::Damaged,
            (_, true) => Unit::Zero,
            (true, false) if place == 0 => Unit::Damaged,
            (true, false) => Unit::At(place + at % head.cluster()),
            (false, false) => Unit::Below,
        }
    }

    /// Bytes at `at` of the file, which are those at `start` of the disk. A cluster in which the file ends is filled up with zeroes, as
    /// QEMU has it; one behind its end is not there.
    fn stored(&self, at: u64, start: u64, len: ByteLen) -> Extent {
        let (file_len, cluster) = (self.end.load(Ordering::SeqCst), self.head.cluster());
        if at < file_len {
            let len = len.min(ByteLen(file_len - at));
            return Extent::File { file: Arc::clone(self.image.file()), offset: ByteOffset(at), len };
        }
        let len = len.min(ByteLen(cluster - start % cluster));
        if at - start % cluster < file_len {
            return Extent::Zero { len };
        }
        Extent::Fault { kind: FaultKind::Truncated, len }
    }
}

/// An offset, and how many blocks of 512 bytes more than the one in which it is.
fn packed(word: u64, cluster_bits: u32) -> Unit {
    let bits = 62 - (cluster_bits - 8);
    let at = word & ((1 << bits) - 1);
    let blocks = (word & (PACKED - 1)) >> bits;
    Unit::Packed { at, len: (blocks + 1) * 512 - at % 512 }
}
