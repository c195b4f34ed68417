//! The mover: real bytes in an anonymous file, moved after seeded delays in virtual time, out of order, short, or not at all.
//!
//! Keeps a log of what would survive a power cut: a block is durable once it was written durably, or once an fdatasync that
//! was asked for after the write has succeeded.

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
use nix::fcntl::{FallocateFlags, fallocate};
use ringdrive::{
    ring::{FileStat, MoveOp, Moved, Mover, OpTag, Wait, pool::Buf},
    units::{ByteLen, ByteOffset},
};

use crate::{bus::CAPACITY, model::SECTOR};

/// A second, in virtual nanoseconds.
pub const SECOND: u64 = 1_000_000_000;
/// Sectors of an image for which there is room from the start.
const SECTORS: usize = 512;
/// When an operation ends that does not.
const NEVER: u64 = u64::MAX;

/// How often the medium misbehaves, in 1/1000 of operations.
#[derive(Clone, Copy, Debug)]
pub struct Faults {
    pub errors: u32,
    pub shorts: u32,
    pub full: u32,
    /// Operations that take much longer than any deadline, or for ever.
    pub stuck: u32,
    /// Operations with which the storage of their file stops to answer for a while.
    pub outages: u32,
    /// Longest delay of an operation, in virtual nanoseconds.
    pub delay_max: u64,
}

impl Faults {
    pub fn any(rng: &mut Rng) -> Self {
        let mut rate = |of: u32| if rng.u8(..3) == 0 { rng.u32(..of) } else { 0 };
        let (errors, shorts, full) = (rate(80), rate(200), rate(200));
        let (stuck, outages) = (rate(20), rate(10));
        Self { errors, shorts, full, stuck, outages, delay_max: 1 << rng.u32(10..30) }
    }
}

enum Op {
    Read {
        at: u64,
        part: Range<usize>,
    },
    Write {
        at: u64,
        part: Range<usize>,
        durable: bool,
    },
    Punch {
        at: u64,
        len: usize,
    },
    Stat,
    /// What had been written when it was asked for.
    Sync {
        written: Vec<u32>,
    },
}

struct Flight {
    due: u64,
    tag: OpTag,
    file: Arc<File>,
    buf: Option<Buf>,
    op: Op,
    /// It takes longer than any should.
    stuck: bool,
}

/// Versions of each sector of one file: the newest, and the newest that is durable.
#[derive(Clone, Default)]
struct Log {
    written: Vec<u32>,
    durable: Vec<u32>,
    /// What was volatile when a sync failed. The kernel reports that once, forgets it, and later syncs succeed without it.
    forgotten: Vec<u32>,
    /// Or a write that was to be durable.
    sync_failed: bool,
}

struct State {
    rng: Rng,
    rates: Faults,
    now: u64,
    flights: Vec<Flight>,
    /// Of syncs that have ended, to be used again: the device's allocations are counted, and these are not its.
    spare: Vec<Vec<u32>>,
    /// By inode, because the drive opens images anew.
    logs: HashMap<u64, Log>,
    faults: u64,
    /// By inode, until when the storage answers nothing.
    down: HashMap<u64, u64>,
    /// By inode, operations that were held up, or ended as if they had been.
    stuck: HashMap<u64, u64>,
    /// Nothing is held up before then.
    calm_until: u64,
}

/// The world's end.
#[derive(Clone)]
pub struct Media(Rc<RefCell<State>>);

/// The drive's end.
pub struct SimMover(Rc<RefCell<State>>);

impl State {
    fn happens(&mut self, per_mille: u32) -> bool {
        self.rng.u32(..1000) < per_mille
    }

    /// The buffer comes back when the ring is full, as now and then it is.
    fn start(&mut self, tag: OpTag, file: &Arc<File>, buf: Option<Buf>, op: Op) -> Result<(), Option<Buf>> {
        // Full only while something is under way, whose end is the moment to try again.
        if !self.flights.is_empty() && self.happens(self.rates.full) {
            self.faults += 1;
            return Err(buf);
        }
        let mut due = self.now + self.rng.u64(..self.rates.delay_max);
        let inode = inode_of(file);
        if self.now >= self.calm_until && self.happens(self.rates.outages) {
            self.down.insert(inode, self.now + self.rng.u64(..40 * SECOND));
        }
        let mut stuck = false;
        if let Some(up) = self.down.get(&inode).copied().filter(|up| self.now < *up) {
            due = up + self.rng.u64(..self.rates.delay_max);
            stuck = true;
        } else if self.now >= self.calm_until && self.happens(self.rates.stuck) {
            due = if self.rng.bool() { NEVER } else { self.now + self.rng.u64(SECOND..60 * SECOND) };
            stuck = true;
        }
        *self.stuck.entry(inode).or_default() += u64::from(stuck);
        self.flights.push(Flight { due, tag, file: file.clone(), buf, op, stuck });
        Ok(())
    }

    fn log(&mut self, file: &File) -> &mut Log {
        let metadata = file.metadata().unwrap();
        let sectors = usize::try_from(metadata.len()).unwrap().div_ceil(SECTOR);
        let log = self.logs.entry(metadata.ino()).or_default();
        log.written.resize(sectors, 0);
        log.durable.resize(sectors, 0);
        log.forgotten.resize(sectors, 0);
        log
    }

    fn error_of(&mut self, flight: &Flight) -> io::Error {
        self.faults += 1;
        let errno = [nix::libc::ETIMEDOUT, nix::libc::EIO, nix::libc::ENOSPC, nix::libc::ESTALE];
        // To ask a file that is gone what it is would tell that for good.
        let kinds = if matches!(flight.op, Op::Stat) { 2 } else { 4 };
        let errno = errno[self.rng.usize(..kinds)];
        // Who does not say what the file is does not answer, whatever the error.
        let silent = u64::from(errno == nix::libc::ETIMEDOUT || matches!(flight.op, Op::Stat));
        *self.stuck.entry(inode_of(&flight.file)).or_default() += silent;
        io::Error::from_raw_os_error(errno)
    }

    fn finish(&mut self, mut flight: Flight) -> Moved {
        let fails = self.happens(self.rates.errors);
        let short = self.happens(self.rates.shorts);
        let error = fails.then(|| self.error_of(&flight));
        let mut stat = None;
        let (op, result) = match flight.op {
            Op::Stat => {
                stat = error.is_none().then(|| stat_of(&flight.file));
                (MoveOp::Stat, error.map_or(Ok(0), Err))
            }
            Op::Read { at, part } => {
                let len = if short { self.rng.usize(1..=part.len()) } else { part.len() };
                let buf = flight.buf.as_mut().unwrap();
                let read = flight.file.read_at(&mut buf[part.start..][..len], at);
                (MoveOp::Read, error.map_or(read, Err))
            }
            Op::Write { at, part, durable } => {
                let len = part.len();
                // An interrupted write leaves whole sectors.
                let sectors = len / SECTOR;
                let some = if short || fails { self.rng.usize(..=sectors) * SECTOR } else { len };
                let some = if fails { some } else { some.max(SECTOR.min(len)) };
                let buf = flight.buf.as_ref().unwrap();
                flight.file.write_all_at(&buf[part.start..][..some], at).unwrap();
                let first = usize::try_from(at).unwrap() / SECTOR;
                let log = self.log(&flight.file);
                // The kernel may have told by it of what was written before.
                log.sync_failed |= durable && fails;
                for sector in first..(first + some.div_ceil(SECTOR)) {
                    log.written[sector] += 1;
                    if durable && !fails {
                        log.durable[sector] = log.written[sector];
                    }
                }
                (MoveOp::Write, error.map_or(Ok(some), Err))
            }
            Op::Punch { at, len } => {
                // An interrupted one leaves whole sectors, too.
                let some = if fails { self.rng.usize(..=len / SECTOR) * SECTOR } else { len };
                if some > 0 {
                    let flags = FallocateFlags::FALLOC_FL_PUNCH_HOLE | FallocateFlags::FALLOC_FL_KEEP_SIZE;
                    fallocate(&*flight.file, flags, at.try_into().unwrap(), some.try_into().unwrap())
                        .unwrap();
                }
                let first = usize::try_from(at).unwrap() / SECTOR;
                let log = self.log(&flight.file);
                log.written[first..first + some / SECTOR].iter_mut().for_each(|version| *version += 1);
                (MoveOp::Punch, error.map_or(Ok(0), Err))
            }
            Op::Sync { written } => {
                let Log { written: now, durable, forgotten, sync_failed } = self.log(&flight.file);
                if fails {
                    forgotten.clone_from(now);
                    *sync_failed = true;
                } else {
                    let sectors = durable.iter_mut().zip(&written).zip(forgotten);
                    for ((durable, written), _) in sectors.filter(|((_, written), lost)| **written > **lost) {
                        *durable = (*written).max(*durable);
                    }
                }
                self.spare.push(written);
                (MoveOp::Sync, error.map_or(Ok(0), Err))
            }
        };
        Moved { tag: flight.tag, op, buf: flight.buf, result, stat }
    }
}

fn inode_of(file: &File) -> u64 {
    file.metadata().unwrap().ino()
}

fn stat_of(file: &File) -> FileStat {
    let found = file.metadata().unwrap();
    let modified = (found.mtime(), found.mtime_nsec());
    let (len, named) = (ByteLen(found.len()), found.nlink() > 0);
    FileStat { device: found.dev(), inode: found.ino(), len, modified, named }
}

impl Media {
    pub fn new(rng: Rng, rates: Faults) -> (Self, SimMover) {
        let state = State {
            rng,
            rates,
            now: 0,
            flights: Vec::with_capacity(CAPACITY),
            // Syncs that were broken off are under way beside new ones.
            spare: (0..CAPACITY).map(|_| Vec::with_capacity(SECTORS)).collect(),
            logs: HashMap::new(),
            faults: 0,
            down: HashMap::new(),
            stuck: HashMap::new(),
            calm_until: 0,
        };
        let state = Rc::new(RefCell::new(state));
        (Self(state.clone()), SimMover(state))
    }

    /// Ends one operation that is due at `now`, any of them.
    pub fn complete(&self, now: u64) -> Option<Moved> {
        let mut state = self.0.borrow_mut();
        let due: Vec<usize> = (0..state.flights.len()).filter(|i| state.flights[*i].due <= now).collect();
        if due.is_empty() {
            return None;
        }
        let which = due[state.rng.usize(..due.len())];
        let flight = state.flights.swap_remove(which);
        Some(state.finish(flight))
    }

    /// The process that asked for all of them is gone: each is done, or never begun.
    pub fn die(&self) {
        let mut state = self.0.borrow_mut();
        while let Some(flight) = state.flights.pop() {
            // Nobody hears that a sync has failed, so whoever comes next does (errseq_t).
            if !matches!(flight.op, Op::Sync { .. }) && state.rng.bool() {
                drop(state.finish(flight));
            }
        }
    }

    /// The drive's end for the next process.
    pub fn successor(&self) -> SimMover {
        SimMover(self.0.clone())
    }

    /// When the next operation ends.
    pub fn next_due(&self) -> Option<u64> {
        self.0.borrow().flights.iter().map(|flight| flight.due).filter(|due| *due < NEVER).min()
    }

    pub fn at(&self, now: u64) {
        self.0.borrow_mut().now = now;
    }

    /// All storage answers again, for a while.
    pub fn release(&self) {
        let mut state = self.0.borrow_mut();
        let State { flights, down, now, rates, calm_until, .. } = &mut *state;
        down.clear();
        *calm_until = *now + 20 * SECOND;
        flights.iter_mut().for_each(|flight| flight.due = flight.due.min(*now + rates.delay_max));
    }

    /// Whether an operation on this file is under way that takes longer than any should.
    pub fn is_stuck(&self, file: &File) -> bool {
        let inode = inode_of(file);
        self.0.borrow().flights.iter().any(|flight| flight.stuck && inode_of(&flight.file) == inode)
    }

    /// Operations on this file so far that took longer than any should.
    pub fn stuck(&self, file: &File) -> u64 {
        self.0.borrow().stuck.get(&inode_of(file)).copied().unwrap_or(0)
    }

    /// Longest delay of an operation that is not stuck.
    pub fn delay_max(&self) -> u64 {
        self.0.borrow().rates.delay_max
    }

    /// Errors and refusals so far.
    pub fn faults(&self) -> u64 {
        self.0.borrow().faults
    }

    /// What is volatile now is lost for good: nobody promises it any more.
    pub fn forget_volatile(&self, file: &File) {
        let mut state = self.0.borrow_mut();
        let log = state.log(file);
        log.durable.clone_from(&log.written);
        log.forgotten.fill(0);
        log.sync_failed = false;
    }

    /// Whether a sync of this file has failed, so that none may be believed any more.
    pub fn has_lost(&self, file: &File) -> bool {
        self.0.borrow_mut().log(file).sync_failed
    }

    /// Sectors of `range` whose newest bytes would not survive a power cut.
    pub fn volatile(&self, file: &File, range: std::ops::Range<usize>) -> Vec<usize> {
        let mut state = self.0.borrow_mut();
        let log = state.log(file);
        range.filter(|sector| log.durable[*sector] < log.written[*sector]).collect()
    }
}

impl Mover for SimMover {
    /// Now and then all of it is in memory.
    fn read_now(&mut self, file: &Arc<File>, at: ByteOffset, to: &mut [u8], _wait: Wait) -> bool {
        let mut state = self.0.borrow_mut();
        let down = !state.down.is_empty();
        state.rng.bool() && !down && file.read_exact_at(to, at.0).is_ok()
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
        assert!(!part.is_empty() && part.end <= buf.len(), "read of {part:?}");
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
        assert!(!part.is_empty() && part.end <= buf.len(), "write of {part:?}");
        let mut state = self.0.borrow_mut();
        state.start(tag, file, Some(buf), Op::Write { at: at.0, part, durable }).map_err(Option::unwrap)
    }

    fn punch(&mut self, file: &Arc<File>, at: ByteOffset, len: ByteLen, tag: OpTag) -> bool {
        assert!(len.0 > 0, "an empty hole");
        self.0.borrow_mut().start(tag, file, None, Op::Punch { at: at.0, len: len.to_usize() }).is_ok()
    }

    fn stat(&mut self, file: &Arc<File>, tag: OpTag) -> bool {
        self.0.borrow_mut().start(tag, file, None, Op::Stat).is_ok()
    }

    fn sync(&mut self, file: &Arc<File>, tag: OpTag) -> bool {
        let mut state = self.0.borrow_mut();
        let mut written = state.spare.pop().unwrap_or_default();
        written.clone_from(&state.log(file).written);
        state.start(tag, file, None, Op::Sync { written }).is_ok()
    }
}
