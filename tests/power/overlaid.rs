//! A disk that is an image below an overlay, in the place of the simulation's media that fetch: its worker works when the world lets it.
//!
//! What a power cut leaves of it is read as the qcow2 specification says ("Extended L2 Entries" of QEMU's interop/qcow2.txt), not as
//! our own code reads it.

use std::{
    cell::Cell,
    fs::{self, File},
    os::unix::fs::FileExt,
    path::{Path, PathBuf},
    rc::Rc,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
};

use fastrand::Rng;
use ringdrive::media::{
    Access, Image, Medium, Waker,
    overlay::{Overlays, Place},
};

use crate::{
    media::Media,
    model::SECTOR,
    store::{Bytes, Store, sectors_of},
    world::Nanos,
};

/// The world's end. Of the disks of a world, the one that is written to has an overlay.
pub struct Fetched {
    dir: tempfile::TempDir,
    overlays: Arc<Overlays>,
    rng: Cell<Rng>,
    /// When the worker does what waits for it.
    due: Cell<Option<Nanos>>,
    now: Nanos,
    delay_max: Nanos,
    woken: Arc<AtomicBool>,
}

impl Fetched {
    pub fn new(mut rng: Rng) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let overlays = Overlays::new(dir.path().join("temporary"), dir.path().join("run"));
        let delay_max = 1 << rng.u32(10..26);
        let (rng, due, woken) = (Cell::new(rng), Cell::new(None), Arc::default());
        Self { dir, overlays, rng, due, now: 0, delay_max, woken }
    }

    pub fn waker(&self) -> Waker {
        let woken = self.woken.clone();
        Waker::new(move || woken.store(true, Ordering::Relaxed))
    }

    pub fn medium(&self, image: Image) -> Box<dyn Medium> {
        if !image.writable() {
            return Box::new(image);
        }
        // The disk's own file is opened to be written to, which changes its times.
        let base = self.dir.path().join("base");
        if !base.exists() {
            let mut bytes = vec![0; image.len().to_usize()];
            image.kept().unwrap().0.read_exact_at(&mut bytes, 0).unwrap();
            fs::write(&base, bytes).unwrap();
        }
        let below = Image::open(&base, Access::ReadOnly, image.block_size()).unwrap();
        let place = Place::File(self.path());
        Box::new(self.overlays.open_idle(Box::new(below), &base, &place).unwrap())
    }

    pub fn path(&self) -> PathBuf {
        self.dir.path().join("overlay.qcow2")
    }

    pub fn next_due(&self) -> Option<Nanos> {
        let has_work = self.overlays.hold(&self.path()).is_some_and(|overlay| overlay.has_work());
        if !has_work {
            self.due.set(None);
        } else if self.due.get().is_none() {
            let mut rng = self.rng.take();
            self.due.set(Some(self.now + rng.u64(..self.delay_max)));
            self.rng.set(rng);
        }
        self.due.get()
    }

    pub fn arrive(&self, _: Nanos) {
        self.due.set(None);
        if let Some(overlay) = self.overlays.hold(&self.path()) {
            let media = Media::current();
            overlay.work(&media.logged(overlay.file()));
        }
    }

    pub fn at(&mut self, now: Nanos) {
        self.now = now;
    }

    pub fn release(&self) {}

    pub fn stuck(&self, _: &File) -> u64 {
        0
    }

    pub fn has_woken(&self) -> bool {
        self.woken.load(Ordering::Relaxed)
    }

    pub fn told(&self) {
        self.woken.store(false, Ordering::Relaxed);
    }
}

/// Where an overlay says what is here, and where that is.
pub struct Layout {
    cluster: usize,
    /// Of each cluster: where its L2 entry is, and its data.
    places: Vec<(usize, usize)>,
    /// What is where nothing is here.
    base: Vec<Bytes>,
}

impl Layout {
    /// Of the overlay in this file, over these bytes.
    pub fn read(path: &Path, base: &[u8]) -> Rc<Self> {
        let file = fs::read(path).unwrap();
        let word = |at: usize| u64::from_be_bytes(file[at..at + 8].try_into().unwrap());
        let offset = |at: usize| usize::try_from(word(at) & 0x00ff_ffff_ffff_fe00).unwrap();
        // cluster_bits and l1_table_offset of the header; bit 4 of the incompatible features: extended L2 entries.
        let cluster = 1 << u32::from_be_bytes(file[20..24].try_into().unwrap());
        let l1 = usize::try_from(word(40)).unwrap();
        assert_eq!((&file[..4], word(72) & 16), (&b"QFI\xfb"[..], 16), "no overlay");
        let of_table = cluster / 16;
        let place = |number: usize| {
            let entry = offset(l1 + number / of_table * 8) + number % of_table * 16;
            (entry, offset(entry))
        };
        let places = (0..base.len().div_ceil(cluster)).map(place).collect();
        Rc::new(Self { cluster, places, base: sectors_of(base) })
    }

    /// What a host may find in a sector if the power is cut now.
    pub fn may_hold<'a>(&'a self, store: &'a Store, sector: usize) -> impl Iterator<Item = &'a Bytes> {
        let (number, within) = (sector * SECTOR / self.cluster, sector * SECTOR % self.cluster);
        let (entry, data) = self.places[number];
        let bit = within / (self.cluster / 32);
        let is_here = move |bytes: &Bytes| {
            let at = entry % SECTOR + 8;
            let bits = u64::from_be_bytes(bytes[at..at + 8].try_into().unwrap());
            assert_eq!(bits >> 32, 0, "nothing is made zeroes by a bit");
            bits >> bit & 1 == 1
        };
        let any = |wanted: bool| store.may_hold(entry / SECTOR).any(|bytes| is_here(bytes) == wanted);
        let here = any(true).then(|| store.may_hold((data + within) / SECTOR));
        here.into_iter().flatten().chain(any(false).then(|| &self.base[sector]))
    }
}

/// Fills the sectors that `bytes` touches up with what is there.
pub fn whole_sectors(file: &File, bytes: &[u8], at: u64) -> (usize, Vec<u8>) {
    let at = usize::try_from(at).unwrap();
    let first = at / SECTOR;
    let mut whole = vec![0; (at + bytes.len()).div_ceil(SECTOR) * SECTOR - first * SECTOR];
    file.read_exact_at(&mut whole, u64::try_from(first * SECTOR).unwrap()).unwrap();
    whole[at - first * SECTOR..][..bytes.len()].copy_from_slice(bytes);
    (first, whole)
}
