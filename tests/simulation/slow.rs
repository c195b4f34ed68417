//! A medium whose bytes have to be fetched: a file, of which a piece is there some time after somebody asked for it.

use std::{
    collections::HashMap,
    fs::File,
    os::unix::fs::MetadataExt,
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, Ordering},
    },
};

use fastrand::Rng;
use ringdrive::{
    media::{Allocation, Extent, Identity, Image, Medium, Residence, Waker, Watch},
    units::{BlockSize, ByteLen, ByteOffset, ByteRange},
};

use crate::{media::SECOND, world::Nanos};

/// What is fetched at once; a multiple of every block and packet.
const PIECE: u64 = 8192;

#[derive(Clone, Copy, PartialEq, Eq)]
enum Piece {
    Elsewhere,
    Coming(Nanos),
    Here,
}

struct State {
    now: Nanos,
    rng: Rng,
    /// Longest time that a piece takes.
    delay_max: Nanos,
    /// Of a thousand pieces, those that take much longer, or for ever.
    stuck: u32,
    /// None does before then.
    calm_until: Nanos,
    /// How many did, by inode.
    were_stuck: HashMap<u64, u64>,
    /// Of each medium that was made.
    media: Vec<(Vec<Piece>, Waker)>,
}

/// The world's end.
#[derive(Clone)]
pub struct Fetched {
    state: Arc<Mutex<State>>,
    /// A medium has called its waker, and the device does not know yet.
    woken: Arc<AtomicBool>,
}

/// The drive's end.
#[derive(Debug)]
struct SlowMedium {
    image: Image,
    fetched: Fetched,
    index: usize,
}

impl std::fmt::Debug for Fetched {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Fetched")
    }
}

impl Fetched {
    pub fn new(mut rng: Rng) -> Self {
        let delay_max = 1 << rng.u32(10..30);
        let stuck = if rng.u8(..2) == 0 { rng.u32(..30) } else { 0 };
        let (were_stuck, media) = (HashMap::new(), Vec::new());
        let state = State { now: 0, rng, delay_max, stuck, calm_until: 0, were_stuck, media };
        Self { state: Arc::new(Mutex::new(state)), woken: Arc::new(AtomicBool::new(false)) }
    }

    /// What the device gives to its media.
    pub fn waker(&self) -> Waker {
        let woken = self.woken.clone();
        Waker::new(move || woken.store(true, Ordering::Relaxed))
    }

    /// A medium over `image` of which nothing is here.
    pub fn medium(&self, image: Image) -> Box<dyn Medium> {
        let pieces = usize::try_from(image.len().0.div_ceil(PIECE)).unwrap();
        let mut state = self.state.lock().unwrap();
        state.media.push((vec![Piece::Elsewhere; pieces], Waker::default()));
        let index = state.media.len() - 1;
        Box::new(SlowMedium { image, fetched: self.clone(), index })
    }

    /// When the next piece arrives.
    pub fn next_due(&self) -> Option<Nanos> {
        let state = self.state.lock().unwrap();
        let pieces = state.media.iter().flat_map(|(pieces, _)| pieces);
        let due = |piece: &Piece| match piece {
            Piece::Coming(due) if *due < Nanos::MAX => Some(*due),
            _ => None,
        };
        pieces.filter_map(due).min()
    }

    /// One piece that is due arrives.
    pub fn arrive(&self, now: Nanos) {
        let mut state = self.state.lock().unwrap();
        for (pieces, waker) in &mut state.media {
            let due = |piece: &&mut Piece| matches!(piece, Piece::Coming(due) if *due <= now);
            if let Some(piece) = pieces.iter_mut().find(due) {
                *piece = Piece::Here;
                return waker.wake();
            }
        }
    }

    pub fn at(&self, now: Nanos) {
        self.state.lock().unwrap().now = now;
    }

    /// What is coming comes now, and what is asked for soon comes in time.
    pub fn release(&self) {
        let mut state = self.state.lock().unwrap();
        let State { now, calm_until, media, .. } = &mut *state;
        *calm_until = *now + 20 * SECOND;
        for piece in media.iter_mut().flat_map(|(pieces, _)| pieces) {
            if let Piece::Coming(due) = piece {
                *due = (*due).min(*now);
            }
        }
    }

    /// Pieces of this file so far that took longer than any should.
    pub fn stuck(&self, file: &File) -> u64 {
        let inode = file.metadata().unwrap().ino();
        self.state.lock().unwrap().were_stuck.get(&inode).copied().unwrap_or(0)
    }

    /// Whether the device is to be told that a medium has woken it; asked once.
    pub fn has_woken(&self) -> bool {
        self.woken.load(Ordering::Relaxed)
    }

    pub fn told(&self) {
        self.woken.store(false, Ordering::Relaxed);
    }
}

impl Medium for SlowMedium {
    fn name(&self) -> String {
        self.image.name()
    }

    fn block_size(&self) -> BlockSize {
        self.image.block_size()
    }

    fn len(&self) -> ByteLen {
        self.image.len()
    }

    fn map(&self, range: ByteRange) -> Extent {
        let mut state = self.fetched.state.lock().unwrap();
        let State { now, rng, delay_max, stuck, calm_until, were_stuck, media } = &mut *state;
        let inode = self.image.identity().inode;
        let (pieces, _) = &mut media[self.index];
        let numbers = range.start().0 / PIECE..range.end().0.div_ceil(PIECE).min(pieces.len() as u64);
        let mut here = 0;
        for number in numbers.clone() {
            let piece = &mut pieces[usize::try_from(number).unwrap()];
            match piece {
                Piece::Here if here == number - numbers.start => here += 1,
                Piece::Here | Piece::Coming(_) => {}
                Piece::Elsewhere => {
                    let is_stuck = rng.u32(..1000) < *stuck && *now >= *calm_until;
                    *were_stuck.entry(inode).or_default() += u64::from(is_stuck);
                    let late = if rng.bool() { Nanos::MAX } else { *now + rng.u64(SECOND..60 * SECOND) };
                    let due = if is_stuck { late } else { *now + rng.u64(..*delay_max) };
                    *piece = Piece::Coming(due);
                }
            }
        }
        let left = range.start().0 % PIECE;
        // Where it can be written, it is one extent.
        let all = here == numbers.end.saturating_sub(numbers.start);
        if !numbers.is_empty() && (here == 0 || self.image.writable() && !all) {
            return Extent::Pending { len: ByteLen(PIECE - left).min(range.len()) };
        }
        self.image.map(range.split_at(ByteLen((here * PIECE).saturating_sub(left))).0)
    }

    fn set_waker(&mut self, waker: Waker) {
        self.fetched.state.lock().unwrap().media[self.index].1 = waker;
    }

    fn writable(&self) -> bool {
        self.image.writable()
    }

    fn residence(&self) -> Residence {
        Residence::Local
    }

    fn watch(&self) -> Watch<'_> {
        self.image.file_for_sync().map_or(Watch::Look, Watch::Ask)
    }

    fn thin(&self) -> bool {
        self.image.thin()
    }

    fn allocation(&self, at: ByteOffset) -> Allocation {
        self.image.allocation(at)
    }

    fn file_for_sync(&self) -> Option<&Arc<File>> {
        self.image.file_for_sync()
    }

    fn kept(&self) -> Option<(&Arc<File>, Identity)> {
        self.image.kept()
    }
}
