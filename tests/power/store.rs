//! A model of the kernel's page cache: what each sector of a file may hold after a power cut.
//!
//! ```text
//!   write submitted ──► may be stored ── completed ──► newest in memory ──┬─ written back at any time, in any order
//!                                                                         └─ a sync asked for after that completes ──► stored
//! ```
//! Of a sector the storage holds what it held when a sync last covered it, or anything that was written since, each sector
//! by itself. What could not be written back stays in memory and is lost: the kernel tells one sync of it, and later ones succeed
//! without it.

use std::rc::Rc;

use crate::model::SECTOR;

/// A sector's bytes.
pub type Bytes = Rc<[u8; SECTOR]>;

/// Cuts bytes into sectors.
pub fn sectors_of(bytes: &[u8]) -> Vec<Bytes> {
    bytes.chunks_exact(SECTOR).map(|sector| Rc::new(sector.try_into().unwrap())).collect()
}

/// Orders what was written to a file.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct Moment(u64);

struct Version {
    bytes: Bytes,
    since: Moment,
    /// It could not be written back, and nobody tries again.
    lost: bool,
}

/// What the storage surely holds or had held, then all that was written since; the last is in memory.
struct Sector(Vec<Version>);

/// A write under way: any of its sectors may be stored already.
struct UnderWay {
    id: u64,
    first: usize,
    sectors: Vec<Bytes>,
}

/// Where a write is once it has ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fate {
    InMemory,
    Stored,
    Lost,
}

/// One file.
#[derive(Default)]
pub struct Store {
    sectors: Vec<Sector>,
    under_way: Vec<UnderWay>,
    now: Moment,
    /// Something was lost of which nobody has heard.
    error: bool,
}

impl Store {
    /// A file whose bytes are all stored.
    pub fn new(bytes: &[u8]) -> Self {
        let stored = |bytes| Sector(vec![Version { bytes, since: Moment(0), lost: false }]);
        Self { sectors: sectors_of(bytes).into_iter().map(stored).collect(), ..Self::default() }
    }

    /// From now on.
    pub fn now(&self) -> Moment {
        self.now
    }

    /// Before the last write.
    pub fn before(&self) -> Moment {
        Moment(self.now.0.saturating_sub(1))
    }

    /// A write has begun. `id` is for its end.
    pub fn begin(&mut self, id: u64, first: usize, sectors: Vec<Bytes>) {
        self.under_way.push(UnderWay { id, first, sectors });
    }

    /// It has ended; its first `count` sectors are written.
    pub fn end(&mut self, id: u64, count: usize, fate: Fate) {
        let at = self.under_way.iter().position(|write| write.id == id).unwrap();
        let UnderWay { first, sectors, .. } = self.under_way.swap_remove(at);
        self.now.0 += 1;
        for (sector, bytes) in self.sectors[first..].iter_mut().zip(sectors).take(count) {
            sector.0.push(Version { bytes, since: self.now, lost: fate == Fate::Lost });
            if fate == Fate::Stored {
                sector.stored(self.now);
            }
        }
    }

    /// A sync that was asked for at `asked` has succeeded.
    pub fn synced(&mut self, asked: Moment) {
        self.sectors.iter_mut().for_each(|sector| sector.stored(asked));
    }

    /// What is in memory only, of the sectors that `which` picks, could not be written back.
    pub fn lose(&mut self, mut which: impl FnMut() -> bool) {
        for sector in self.sectors.iter_mut().filter(|sector| sector.0.len() > 1) {
            if which() {
                sector.0.iter_mut().skip(1).for_each(|version| version.lost = true);
                self.error = true;
            }
        }
    }

    /// Tells of what was lost, once.
    pub fn take_error(&mut self) -> bool {
        std::mem::take(&mut self.error)
    }

    /// Whether nothing is in memory only.
    pub fn is_stored(&self) -> bool {
        self.sectors.iter().all(|sector| sector.0.len() == 1)
    }

    /// What a sector may hold if the power is cut now: first what it holds if nothing survives that need not.
    pub fn may_hold(&self, sector: usize) -> impl Iterator<Item = &Bytes> {
        let begun = self
            .under_way
            .iter()
            .filter_map(move |write| write.sectors.get(sector.checked_sub(write.first)?));
        self.sectors[sector].0.iter().map(|version| &version.bytes).chain(begun)
    }
}

impl Sector {
    /// The newest version of that moment is stored, unless it was lost.
    fn stored(&mut self, asked: Moment) {
        // A durable write may have come in between.
        let Some(newest) = self.0.iter().rposition(|version| version.since <= asked) else { return };
        if !self.0[newest].lost {
            self.0.drain(..newest);
        }
    }
}
