//! The mover, with a log of what it was asked for and what came of it. After every entry of the log the power could be cut: so
//! after every entry what might be left on the storage is held against what the host was told.
//!
//! Operations take their time, end in any order, short, with an error, or late. Bytes move in an anonymous file for each image;
//! what of them is on stable storage is [`store`](crate::store)'s.

use std::{
    cell::RefCell,
    collections::HashMap,
    fs::File,
    io,
    ops::Range,
    os::unix::fs::{FileExt, MetadataExt},
    rc::Rc,
    sync::Arc,
};

use fastrand::Rng;
use nix::{
    fcntl::{FallocateFlags, fallocate},
    libc,
};
use ringdrive::{
    media::overlay::store::BlockFile,
    ring::{FileStat, MoveOp, Moved, Mover, OpTag, Wait, pool::Buf},
    units::{ByteLen, ByteOffset},
};

use crate::{
    model::SECTOR,
    overlaid::{self, Layout},
    promises::Promises,
    store::{Fate, Moment, Store, sectors_of},
};

/// A second, in virtual nanoseconds.
pub const SECOND: u64 = 1_000_000_000;

/// A mistake that the mover makes on purpose: the test must find each.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Bug {
    /// A sync is answered and not done.
    SyncLeftOut,
    /// A sync does not cover the last write before it.
    SyncTooEarly,
    /// A sync that failed is answered as if it had not.
    ErrorForgotten,
    /// FUA writes are as others.
    FuaIgnored,
    /// Holes are not written back by a sync.
    HoleLeftOut,
    /// An overlay's file says what is here before that is durable.
    MetadataFirst,
}

/// How often the medium misbehaves, in 1/1000 of operations.
#[derive(Clone, Copy, Debug, Default)]
pub struct Faults {
    pub errors: u32,
    pub shorts: u32,
    pub full: u32,
    /// Operations that take longer than any deadline.
    pub late: u32,
    /// Operations before which something cannot be written back.
    pub losses: u32,
    /// Longest delay of an operation, in virtual nanoseconds.
    pub delay_max: u64,
    pub bug: Option<Bug>,
}

impl Faults {
    pub fn any(rng: &mut Rng) -> Self {
        let mut rate = |of: u32| if rng.bool() { rng.u32(..of) } else { 0 };
        let (errors, shorts, full) = (rate(60), rate(200), rate(200));
        let (late, losses) = (rate(20), rate(300));
        Self { errors, shorts, full, late, losses, delay_max: 1 << rng.u32(10..30), bug: None }
    }
}

enum Op {
    Read { at: u64, part: Range<usize> },
    Write { at: u64, part: Range<usize>, durable: bool },
    Punch { at: u64, len: usize },
    Stat,
    Sync { asked: Moment },
}

struct Flight {
    id: u64,
    due: u64,
    tag: OpTag,
    file: Arc<File>,
    buf: Option<Buf>,
    op: Op,
}

struct State {
    rng: Rng,
    faults: Faults,
    now: u64,
    flights: Vec<Flight>,
    /// What has ended, and when the drive hears of it.
    ended: Vec<(u64, Moved)>,
    started: u64,
    /// By inode.
    stores: HashMap<u64, Store>,
    /// Of the disk in the file with this inode.
    promises: Option<(u64, Promises)>,
    /// Where that file is an overlay's.
    layout: Option<Rc<Layout>>,
    /// Something of an overlay was written since its last sync.
    metadata_written: bool,
    /// The first promise that a power cut would have broken.
    broken: Option<String>,
    misfortunes: u64,
    losses: u64,
    cuts: u64,
    trace: bool,
}

/// The world's end.
#[derive(Clone)]
pub struct Media(Rc<RefCell<State>>);

thread_local! {
    /// Of the life that this thread lives.
    static CURRENT: RefCell<Option<Media>> = const { RefCell::new(None) };
}

/// A file of which the worker of an overlay knows.
pub struct Logged<'a> {
    media: &'a Media,
    file: &'a File,
}

/// The drive's end.
pub struct SimMover(Rc<RefCell<State>>);

fn inode_of(file: &File) -> u64 {
    file.metadata().unwrap().ino()
}

fn sector_at(at: u64) -> usize {
    usize::try_from(at).unwrap() / SECTOR
}

impl State {
    fn happens(&mut self, per_mille: u32) -> bool {
        self.rng.u32(..1000) < per_mille
    }

    fn store(&mut self, file: &File) -> &mut Store {
        self.stores.entry(inode_of(file)).or_insert_with(|| {
            let mut bytes = vec![0; usize::try_from(file.metadata().unwrap().len()).unwrap()];
            file.read_exact_at(&mut bytes, 0).unwrap();
            Store::new(&bytes)
        })
    }

    /// An entry of the log, after which the power may be cut.
    fn log(&mut self, entry: impl FnOnce() -> String) {
        if self.trace {
            println!("{:>14} ns      {}", self.now, entry());
        }
        self.cut();
    }

    fn cut(&mut self) {
        let Some((inode, promises)) = &self.promises else { return };
        self.cuts += 1;
        let store = self.stores.get(inode);
        self.broken = self.broken.take().or_else(|| promises.broken_by(store?, self.layout.as_deref()));
    }

    fn start(&mut self, tag: OpTag, file: &Arc<File>, buf: Option<Buf>, op: Op) -> Result<(), Option<Buf>> {
        // Full only while something is under way, whose end is the moment to try again.
        if !self.flights.is_empty() && self.happens(self.faults.full) {
            self.misfortunes += 1;
            return Err(buf);
        }
        self.started += 1;
        let id = self.started;
        let late = self.happens(self.faults.late);
        self.misfortunes += u64::from(late);
        let due = self.now
            + if late { self.rng.u64(SECOND..60 * SECOND) } else { self.rng.u64(..self.faults.delay_max) };
        match &op {
            Op::Write { at, part, .. } => {
                let sectors = sectors_of(&buf.as_ref().unwrap()[part.clone()]);
                self.store(file).begin(id, sector_at(*at), sectors);
            }
            Op::Punch { at, len } => self.store(file).begin(id, sector_at(*at), sectors_of(&vec![0; *len])),
            Op::Read { .. } | Op::Stat | Op::Sync { .. } => {}
        }
        self.log(|| format!("{id} asked: {op:?}"));
        self.flights.push(Flight { id, due, tag, file: file.clone(), buf, op });
        Ok(())
    }

    /// Something in memory cannot be written back, as the kernel finds out by itself.
    fn misfortune(&mut self, file: &File) {
        if self.happens(self.faults.losses) {
            let mut rng = self.rng.fork();
            self.store(file).lose(|| rng.bool());
            self.losses += 1;
            self.log(|| "something could not be written back".into());
        }
    }

    /// What a sync, or a durable write, says of what could not be written back.
    fn told_of_loss(&mut self, file: &File) -> Option<io::Error> {
        let told = self.store(file).take_error();
        (told && self.faults.bug != Some(Bug::ErrorForgotten)).then(|| self.error())
    }

    fn error(&mut self) -> io::Error {
        self.misfortunes += 1;
        io::Error::from_raw_os_error([libc::EIO, libc::ENOSPC, libc::ETIMEDOUT][self.rng.usize(..3)])
    }

    fn finish(&mut self, mut flight: Flight) -> Moved {
        self.misfortune(&flight.file.clone());
        let fails = self.happens(self.faults.errors);
        let short = self.happens(self.faults.shorts);
        let mut stat = None;
        let Flight { id, ref file, .. } = flight;
        let (op, result) = match flight.op {
            Op::Stat => {
                stat = Some(stat_of(file));
                (MoveOp::Stat, Ok(0))
            }
            Op::Read { at, ref part } => {
                let len = if short { self.rng.usize(1..=part.len()) } else { part.len() };
                let read = file.read_at(&mut flight.buf.as_mut().unwrap()[part.start..][..len], at);
                (MoveOp::Read, if fails { Err(self.error()) } else { read })
            }
            Op::Write { at, ref part, durable } => {
                let sectors = part.len() / SECTOR;
                let some =
                    if fails || short { self.rng.usize(usize::from(!fails)..=sectors) } else { sectors };
                file.write_all_at(&flight.buf.as_ref().unwrap()[part.start..][..some * SECTOR], at).unwrap();
                (MoveOp::Write, self.written(id, file, some, durable, fails).map(|()| some * SECTOR))
            }
            Op::Punch { at, len } => {
                let some = if fails { self.rng.usize(..=len / SECTOR) } else { len / SECTOR };
                if some > 0 {
                    let flags = FallocateFlags::FALLOC_FL_PUNCH_HOLE | FallocateFlags::FALLOC_FL_KEEP_SIZE;
                    let len = i64::try_from(some * SECTOR).unwrap();
                    fallocate(&**file, flags, at.try_into().unwrap(), len).unwrap();
                }
                let left_out = self.faults.bug == Some(Bug::HoleLeftOut);
                self.store(file).end(id, some, if left_out { Fate::Lost } else { Fate::InMemory });
                (MoveOp::Punch, if fails { Err(self.error()) } else { Ok(0) })
            }
            Op::Sync { asked } => (MoveOp::Sync, self.synced(file, asked, fails).map(|()| 0)),
        };
        self.log(|| format!("{id} ended: {op:?} {result:?}"));
        Moved { tag: flight.tag, op, buf: flight.buf, result, stat }
    }

    /// A write has ended after so many sectors.
    fn written(&mut self, id: u64, file: &File, count: usize, durable: bool, fails: bool) -> io::Result<()> {
        let told = if durable { self.told_of_loss(file) } else { None };
        let stored = durable && !fails && told.is_none() && self.faults.bug != Some(Bug::FuaIgnored);
        self.store(file).end(id, count, if stored { Fate::Stored } else { Fate::InMemory });
        match told {
            Some(error) => Err(error),
            None if fails => Err(self.error()),
            None => Ok(()),
        }
    }

    fn synced(&mut self, file: &File, asked: Moment, fails: bool) -> io::Result<()> {
        if fails {
            self.store(file).lose(|| true);
            self.losses += 1;
        }
        if let Some(error) = self.told_of_loss(file) {
            return Err(error);
        }
        if fails && self.faults.bug != Some(Bug::ErrorForgotten) {
            return Err(self.error());
        }
        if self.faults.bug != Some(Bug::SyncLeftOut) {
            self.store(file).synced(asked);
        }
        Ok(())
    }
}

fn stat_of(file: &File) -> FileStat {
    let found = file.metadata().unwrap();
    let modified = (found.mtime(), found.mtime_nsec());
    let (len, named) = (ByteLen(found.len()), found.nlink() > 0);
    FileStat { device: found.dev(), inode: found.ino(), len, modified, named }
}

/// What the world and the device under test need.
impl Media {
    /// What was under way never ends. No process dies in this test; the simulation's do.
    pub fn die(&self) {
        self.0.borrow_mut().flights.clear();
    }

    /// The drive's end for the next process.
    pub fn successor(&self) -> SimMover {
        SimMover(self.0.clone())
    }

    pub fn new(rng: Rng, faults: Faults) -> (Self, SimMover) {
        let state = State {
            rng,
            faults,
            now: 0,
            flights: Vec::new(),
            ended: Vec::new(),
            started: 0,
            stores: HashMap::new(),
            promises: None,
            layout: None,
            metadata_written: false,
            broken: None,
            misfortunes: 0,
            losses: 0,
            cuts: 0,
            trace: false,
        };
        let state = Rc::new(RefCell::new(state));
        let media = Self(state.clone());
        CURRENT.set(Some(media.clone()));
        (media, SimMover(state))
    }

    pub fn current() -> Self {
        CURRENT.with_borrow(|media| media.clone().unwrap())
    }

    pub fn logged<'a>(&'a self, file: &'a File) -> Logged<'a> {
        Logged { media: self, file }
    }

    /// An operation of whose end the drive hears at `now`.
    pub fn complete(&self, now: u64) -> Option<Moved> {
        let mut state = self.0.borrow_mut();
        let heard = state.ended.iter().position(|(at, _)| *at <= now)?;
        Some(state.ended.swap_remove(heard).1)
    }

    /// When something ends, or the drive hears of it.
    pub fn next_due(&self) -> Option<u64> {
        let state = self.0.borrow();
        let ended = state.ended.iter().map(|(at, _)| *at);
        state.flights.iter().map(|flight| flight.due).chain(ended).min()
    }

    /// Ends what is due, in any order. The drive may hear of it in another.
    pub fn at(&self, now: u64) {
        let mut state = self.0.borrow_mut();
        state.now = now;
        loop {
            let due: Vec<usize> = (0..state.flights.len()).filter(|i| state.flights[*i].due <= now).collect();
            if due.is_empty() {
                return;
            }
            let which = due[state.rng.usize(..due.len())];
            let flight = state.flights.swap_remove(which);
            let moved = state.finish(flight);
            let delay = 1 + state.faults.delay_max / 4;
            let heard = if state.rng.bool() { now } else { now + state.rng.u64(..delay) };
            state.ended.push((heard, moved));
        }
    }

    /// What is late ends.
    pub fn release(&self) {
        let mut state = self.0.borrow_mut();
        let soon = state.now + state.faults.delay_max;
        state.flights.iter_mut().for_each(|flight| flight.due = flight.due.min(soon));
    }

    pub fn stuck(&self, _: &File) -> u64 {
        self.0.borrow().misfortunes
    }
}

/// What the host's life needs.
impl Media {
    /// Holds what becomes of a disk in this file, which holds these bytes, against what the host is told from now on.
    pub fn watch(&self, file: &File, bytes: &[u8], layout: Option<Rc<Layout>>, trace: bool) {
        let mut state = self.0.borrow_mut();
        (state.trace, state.layout) = (trace, layout);
        state.store(file);
        state.promises = Some((inode_of(file), Promises::new(bytes)));
    }

    /// The host learns something; the power may be cut right then.
    pub fn tell<T>(&self, what: impl FnOnce(&mut Promises) -> T) -> T {
        let mut state = self.0.borrow_mut();
        let told = what(&mut state.promises.as_mut().unwrap().1);
        state.cut();
        told
    }

    /// The first promise that a power cut would have broken.
    pub fn broken(&self) -> Option<String> {
        self.0.borrow().broken.clone()
    }

    /// Errors, refusals and delays so far.
    pub fn misfortunes(&self) -> u64 {
        self.0.borrow().misfortunes
    }

    /// How often something could not be written back so far.
    pub fn losses(&self) -> u64 {
        self.0.borrow().losses
    }

    pub fn cuts(&self) -> u64 {
        self.0.borrow().cuts
    }

    /// Whether a power cut would cost the disk nothing at all.
    pub fn is_stored(&self) -> bool {
        let state = self.0.borrow();
        let watched = state.promises.as_ref().and_then(|(inode, _)| state.stores.get(inode));
        watched.is_some_and(Store::is_stored)
    }

    /// Whether an operation on the disk is under way.
    pub fn is_busy(&self) -> bool {
        let state = self.0.borrow();
        let watched =
            |file: &File| state.promises.as_ref().is_some_and(|(inode, _)| *inode == inode_of(file));
        state.flights.iter().any(|flight| watched(&flight.file))
    }
}

impl BlockFile for Logged<'_> {
    fn get(&self, to: &mut [u8], at: u64) -> io::Result<()> {
        self.file.read_exact_at(to, at)
    }

    fn put(&self, bytes: &[u8], at: u64) -> io::Result<()> {
        let (first, whole) = overlaid::whole_sectors(self.file, bytes, at);
        let state = &mut *self.media.0.borrow_mut();
        state.metadata_written = true;
        state.started += 1;
        let (id, sectors) = (state.started, sectors_of(&whole));
        let count = sectors.len();
        state.store(self.file).begin(id, first, sectors);
        state.log(|| format!("{id} of the overlay's worker: write {:?}", first..first + count));
        let fails = state.happens(state.faults.errors);
        let count = if fails { state.rng.usize(..=count) } else { count };
        self.file.write_all_at(&whole[..count * SECTOR], u64::try_from(first * SECTOR).unwrap())?;
        state.store(self.file).end(id, count, Fate::InMemory);
        state.log(|| format!("{id} ended after {count} sectors"));
        if fails { Err(state.error()) } else { Ok(()) }
    }

    fn sync(&self) -> io::Result<()> {
        let state = &mut *self.media.0.borrow_mut();
        let is_first = !std::mem::take(&mut state.metadata_written);
        if is_first && state.faults.bug == Some(Bug::MetadataFirst) {
            return Ok(());
        }
        state.misfortune(self.file);
        let (asked, fails) = (state.store(self.file).now(), state.happens(state.faults.errors));
        let synced = state.synced(self.file, asked, fails);
        state.log(|| format!("the overlay's worker: sync {synced:?}"));
        synced
    }
}

impl std::fmt::Debug for Op {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let sectors = |at: u64, len: usize| sector_at(at)..sector_at(at) + len / SECTOR;
        match self {
            Self::Read { at, part } => write!(f, "read {:?}", sectors(*at, part.len())),
            Self::Write { at, part, durable: true } => {
                write!(f, "durable write {:?}", sectors(*at, part.len()))
            }
            Self::Write { at, part, .. } => write!(f, "write {:?}", sectors(*at, part.len())),
            Self::Punch { at, len } => write!(f, "punch {:?}", sectors(*at, *len)),
            Self::Stat => write!(f, "stat"),
            Self::Sync { asked } => write!(f, "sync of {asked:?}"),
        }
    }
}

impl Mover for SimMover {
    fn read_now(&mut self, file: &Arc<File>, at: ByteOffset, to: &mut [u8], _wait: Wait) -> bool {
        self.0.borrow_mut().rng.bool() && file.read_exact_at(to, at.0).is_ok()
    }

    fn will_read(&mut self, _file: &Arc<File>, _at: ByteOffset, _len: ByteLen) {}

    fn read(
        &mut self,
        file: &Arc<File>,
        at: ByteOffset,
        buf: Buf,
        part: Range<usize>,
        tag: OpTag,
    ) -> Result<(), Buf> {
        self.0.borrow_mut().start(tag, file, Some(buf), Op::Read { at: at.0, part }).map_err(Option::unwrap)
    }

    fn write(
        &mut self,
        file: &Arc<File>,
        at: ByteOffset,
        buf: Buf,
        part: Range<usize>,
        durable: bool,
        tag: OpTag,
    ) -> Result<(), Buf> {
        let op = Op::Write { at: at.0, part, durable };
        self.0.borrow_mut().start(tag, file, Some(buf), op).map_err(Option::unwrap)
    }

    fn punch(&mut self, file: &Arc<File>, at: ByteOffset, len: ByteLen, tag: OpTag) -> bool {
        self.0.borrow_mut().start(tag, file, None, Op::Punch { at: at.0, len: len.to_usize() }).is_ok()
    }

    fn stat(&mut self, file: &Arc<File>, tag: OpTag) -> bool {
        self.0.borrow_mut().start(tag, file, None, Op::Stat).is_ok()
    }

    fn sync(&mut self, file: &Arc<File>, tag: OpTag) -> bool {
        let mut state = self.0.borrow_mut();
        let early = state.faults.bug == Some(Bug::SyncTooEarly);
        let store = state.store(file);
        let asked = if early { store.before() } else { store.now() };
        state.start(tag, file, None, Op::Sync { asked }).is_ok()
    }
}
