//! The operations that the ring holds: whose each is, how long it may take, and whether anybody still waits for it.
//!
//! ```text
//!   start ──► Awaited ── done ──► (to whom it is for)
//!                │  └── its command was broken off ──► Abandoned ── done ──► (nobody)
//!                │                                         │
//!                └──────────── past its deadline ──────────┴──► Late ── done ──► (nobody)
//! ```
//! An operation cannot be taken back: until the kernel is done with it, its buffer is the ring's. So each has a slot here, and its
//! tag has a generation: what comes back late is never taken for an operation of a later command. Of each drive only so many
//! may be under way, dead ones counted, that a window is left for every other drive of the function.

use std::{fs::File, ops::Range, sync::Arc, time::Duration};

use crate::{
    media::Medium,
    ring::{MoveOp, Moved, Mover, OpTag, Wait, pool::Buf},
    units::{ByteLen, ByteOffset},
};

use super::statistics::Clock;

/// Operations of one drive that hold a buffer: a window.
pub(super) const BUFFERS_PER_DRIVE: usize = 4;
/// Operations of one drive that hold none: syncs, holes, looks at the file.
const OTHERS_PER_DRIVE: usize = 4;
/// Bits of a tag that say which slot it is; the rest are its generation.
const SLOT_BITS: u32 = 8;

/// Who an operation is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Owner {
    /// The command at hand.
    Command,
    /// A command that may come.
    Ahead,
    /// A request of a client.
    Settle,
    /// A command that did not wait for it.
    Flush,
    /// Nobody: to see what the source is.
    Probe,
}

/// What an operation is done for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Purpose {
    pub(super) owner: Owner,
    pub(super) lun: u8,
    /// Which of the images that were inserted.
    pub(super) image: u32,
    /// How much had been written to it.
    pub(super) written: u32,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Interest {
    Awaited,
    Abandoned,
    Late,
}

/// An operation that the ring holds, or held.
#[derive(Clone, Copy, Debug)]
pub(super) struct Flight {
    pub(super) purpose: Purpose,
    pub(super) interest: Interest,
    pub(super) op: MoveOp,
    /// What its owner calls it.
    pub(super) tag: OpTag,
    /// It ends only when its bytes are durable.
    pub(super) durable: bool,
    since: Duration,
}

#[derive(Clone, Copy, Debug, Default)]
struct Slot {
    generation: u32,
    flight: Option<Flight>,
}

/// A [`Mover`] with its operations.
pub(super) struct Flights<M> {
    mover: M,
    clock: Clock,
    slots: Box<[Slot]>,
    under_way: usize,
}

/// A [`Mover`] for one purpose.
pub(super) struct On<'a, M> {
    flights: &'a mut Flights<M>,
    purpose: Purpose,
    /// The last that was started.
    pub(super) last: OpTag,
}

impl Flight {
    fn holds_buffer(&self) -> bool {
        matches!(self.op, MoveOp::Read | MoveOp::Write)
    }

    /// Whether it may change the image whenever it ends.
    fn changes(&self) -> bool {
        matches!(self.op, MoveOp::Write | MoveOp::Punch)
    }

    fn is_late(&self) -> bool {
        self.interest == Interest::Late
    }

    /// Whether it has a deadline that it has not passed.
    fn is_timed(&self) -> bool {
        !self.is_late() && self.purpose.owner != Owner::Probe
    }
}

impl<M> Flights<M> {
    pub(super) fn new(mover: M, clock: Clock, drives: usize) -> Self {
        let slots = (BUFFERS_PER_DRIVE + OTHERS_PER_DRIVE) * drives.clamp(1, 16);
        Self { mover, clock, slots: vec![Slot::default(); slots].into(), under_way: 0 }
    }

    pub(super) fn inner(&mut self) -> &mut M {
        &mut self.mover
    }

    pub(super) fn now(&self) -> Duration {
        (self.clock)()
    }

    pub(super) fn on(&mut self, purpose: Purpose) -> On<'_, M> {
        On { flights: self, purpose, last: OpTag(0) }
    }

    /// Takes an operation that has ended off the books; `None` if it is none of ours.
    pub(super) fn land(&mut self, tag: OpTag) -> Option<Flight> {
        let slot = self.slot(tag)?;
        let flight = slot.flight.take();
        slot.generation = slot.generation.wrapping_add(1);
        self.under_way = self.under_way.saturating_sub(1);
        flight
    }

    /// An operation that was brought ahead is the command's from now on, as its first.
    pub(super) fn adopt(&mut self, tag: OpTag) {
        if let Some(flight) = self.slot(tag).and_then(|slot| slot.flight.as_mut()) {
            flight.purpose.owner = Owner::Command;
            flight.tag = OpTag(0);
        }
    }

    /// The command at hand waits for nothing more.
    pub(super) fn give_up(&mut self, interest: Interest) {
        for flight in self.all_mut() {
            if flight.purpose.owner == Owner::Command && flight.interest == Interest::Awaited {
                flight.interest = interest;
            }
        }
    }

    /// What was for this image is for nobody.
    pub(super) fn forget(&mut self, lun: u8) {
        for flight in self.all_mut().filter(|flight| flight.purpose.lun == lun && !flight.is_late()) {
            flight.interest = Interest::Late;
        }
    }

    /// Whether something of a command that was broken off may still end in time.
    pub(super) fn is_busy(&self, lun: u8) -> bool {
        self.under_way > 0
            && self.all().any(|flight| {
                flight.purpose.lun == lun
                    && flight.purpose.owner == Owner::Command
                    && flight.interest == Interest::Abandoned
            })
    }

    /// Whether the drive may have another operation that holds no buffer.
    pub(super) fn has_place(&self, lun: u8) -> bool {
        self.held(lun, false) < OTHERS_PER_DRIVE
    }

    /// Whether a sync of this drive is under way.
    pub(super) fn syncs(&self, lun: u8) -> bool {
        self.under_way > 0 && self.all().any(|flight| flight.purpose.lun == lun && flight.op == MoveOp::Sync)
    }

    /// Operations of this image that are past their deadline, and whether one of them may change it.
    pub(super) fn late(&self, lun: u8, image: u32) -> (usize, bool) {
        let late = || {
            self.all().filter(|flight| {
                flight.is_late() && flight.purpose.lun == lun && flight.purpose.image == image
            })
        };
        (late().count(), late().any(Flight::changes))
    }

    /// Whether anything of this image is under way.
    pub(super) fn holds(&self, lun: u8, image: u32) -> bool {
        self.all().any(|flight| flight.purpose.lun == lun && flight.purpose.image == image)
    }

    /// Whether the buffers that this drive may have in the ring are all there.
    pub(super) fn is_full(&self, lun: u8) -> bool {
        self.held(lun, true) >= BUFFERS_PER_DRIVE
    }

    /// Whether the command at hand has something under way.
    pub(super) fn serves_command(&self) -> bool {
        self.under_way > 0
            && self
                .all()
                .any(|flight| flight.purpose.owner == Owner::Command && flight.interest == Interest::Awaited)
    }

    /// The next operation that has passed its deadline. It is late from now on.
    pub(super) fn overdue(&mut self, now: Duration, deadline: impl Fn(u8) -> Duration) -> Option<Flight> {
        if self.under_way == 0 {
            return None;
        }
        let is_overdue = |flight: &&mut Flight| {
            flight.is_timed() && now.saturating_sub(flight.since) >= deadline(flight.purpose.lun)
        };
        let flight = self.all_mut().find(is_overdue)?;
        let was = *flight;
        flight.interest = Interest::Late;
        Some(was)
    }

    /// How long until the next of them does.
    pub(super) fn next_overdue(&self, deadline: impl Fn(u8) -> Duration) -> Option<Duration> {
        if self.under_way == 0 {
            return None;
        }
        let now = self.now();
        let left = |flight: &Flight| (flight.since + deadline(flight.purpose.lun)).saturating_sub(now);
        self.all().filter(|flight| flight.is_timed()).map(left).min()
    }

    fn all(&self) -> impl Iterator<Item = &Flight> {
        self.slots.iter().filter_map(|slot| slot.flight.as_ref())
    }

    fn all_mut(&mut self) -> impl Iterator<Item = &mut Flight> {
        self.slots.iter_mut().filter_map(|slot| slot.flight.as_mut())
    }

    fn slot(&mut self, OpTag(tag): OpTag) -> Option<&mut Slot> {
        let index = ByteLen::from(tag & ((1 << SLOT_BITS) - 1)).to_usize();
        let slot = self.slots.get_mut(index)?;
        (slot.flight.is_some() && slot.generation << SLOT_BITS == tag & !((1 << SLOT_BITS) - 1))
            .then_some(slot)
    }

    fn held(&self, lun: u8, buffers: bool) -> usize {
        self.all().filter(|flight| flight.purpose.lun == lun && flight.holds_buffer() == buffers).count()
    }

    /// A place for an operation; `None`: the drive has all that it may have.
    fn book(&mut self, op: MoveOp, purpose: Purpose, tag: OpTag) -> Option<OpTag> {
        let since = self.now();
        let flight = Flight { purpose, interest: Interest::Awaited, op, tag, durable: false, since };
        let buffers = flight.holds_buffer();
        let most = if buffers { BUFFERS_PER_DRIVE } else { OTHERS_PER_DRIVE };
        if self.held(purpose.lun, buffers) >= most {
            return None;
        }
        let (index, slot) = (0..).zip(self.slots.iter_mut()).find(|(_, slot)| slot.flight.is_none())?;
        slot.flight = Some(flight);
        self.under_way += 1;
        Some(OpTag(slot.generation << SLOT_BITS | index))
    }

    /// Starts what takes no buffer.
    fn start(
        &mut self,
        op: MoveOp,
        purpose: Purpose,
        tag: OpTag,
        start: impl FnOnce(&mut M, OpTag) -> bool,
    ) -> bool {
        let Some(booked) = self.book(op, purpose, tag) else { return false };
        let started = start(&mut self.mover, booked);
        if !started {
            self.land(booked);
        }
        started
    }
}

impl<M: Mover> On<'_, M> {
    /// Makes durable what was written to a medium: by a sync of its file, or by itself. `false`: no room.
    #[must_use]
    pub(super) fn store(&mut self, image: &dyn Medium, tag: OpTag) -> bool {
        match (image.own_store(), image.file_for_sync()) {
            (Some(store), Some(_)) => {
                self.flights.start(MoveOp::Sync, self.purpose, tag, |_, OpTag(ticket)| {
                    store.begin(ticket);
                    true
                })
            }
            (None, Some(file)) => self.sync(file, tag),
            (_, None) => false,
        }
    }
}

impl<M: Mover> Mover for On<'_, M> {
    fn read(
        &mut self,
        file: &Arc<File>,
        at: ByteOffset,
        buf: Buf,
        part: Range<usize>,
        tag: OpTag,
    ) -> Result<(), Buf> {
        let Some(booked) = self.flights.book(MoveOp::Read, self.purpose, tag) else { return Err(buf) };
        self.last = booked;
        self.flights.mover.read(file, at, buf, part, booked).inspect_err(|_| {
            self.flights.land(booked);
        })
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
        let Some(booked) = self.flights.book(MoveOp::Write, self.purpose, tag) else { return Err(buf) };
        if let Some(flight) = self.flights.slot(booked).and_then(|slot| slot.flight.as_mut()) {
            flight.durable = durable;
        }
        self.flights.mover.write(file, at, buf, part, durable, booked).inspect_err(|_| {
            self.flights.land(booked);
        })
    }

    fn read_now(&mut self, file: &Arc<File>, at: ByteOffset, to: &mut [u8], wait: Wait) -> bool {
        self.flights.mover.read_now(file, at, to, wait)
    }

    fn will_read(&mut self, file: &Arc<File>, at: ByteOffset, len: ByteLen) {
        self.flights.mover.will_read(file, at, len);
    }

    fn sync(&mut self, file: &Arc<File>, tag: OpTag) -> bool {
        self.flights.start(MoveOp::Sync, self.purpose, tag, |mover, tag| mover.sync(file, tag))
    }

    fn punch(&mut self, file: &Arc<File>, at: ByteOffset, len: ByteLen, tag: OpTag) -> bool {
        self.flights.start(MoveOp::Punch, self.purpose, tag, |mover, tag| mover.punch(file, at, len, tag))
    }

    fn stat(&mut self, file: &Arc<File>, tag: OpTag) -> bool {
        self.flights.start(MoveOp::Stat, self.purpose, tag, |mover, tag| mover.stat(file, tag))
    }
}

/// An operation that has ended, as its owner knows it.
pub(super) fn as_known(done: Moved, flight: &Flight) -> Moved {
    Moved { tag: flight.tag, ..done }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A ring that takes everything and ends nothing.
    struct Nowhere(Vec<OpTag>);

    impl Mover for Nowhere {
        fn read(
            &mut self,
            _: &Arc<File>,
            _: ByteOffset,
            _: Buf,
            _: Range<usize>,
            _: OpTag,
        ) -> Result<(), Buf> {
            Ok(())
        }

        fn write(
            &mut self,
            _: &Arc<File>,
            _: ByteOffset,
            _: Buf,
            _: Range<usize>,
            _: bool,
            _: OpTag,
        ) -> Result<(), Buf> {
            Ok(())
        }

        fn read_now(&mut self, _: &Arc<File>, _: ByteOffset, _: &mut [u8], _: Wait) -> bool {
            false
        }

        fn will_read(&mut self, _: &Arc<File>, _: ByteOffset, _: ByteLen) {}

        fn sync(&mut self, _: &Arc<File>, tag: OpTag) -> bool {
            self.0.push(tag);
            true
        }

        fn punch(&mut self, _: &Arc<File>, _: ByteOffset, _: ByteLen, _: OpTag) -> bool {
            false
        }

        fn stat(&mut self, _: &Arc<File>, _: OpTag) -> bool {
            false
        }
    }

    fn flights() -> (Flights<Nowhere>, Arc<File>) {
        let file = Arc::new(tempfile::tempfile().unwrap());
        (Flights::new(Nowhere(Vec::new()), Box::new(|| Duration::from_secs(60)), 2), file)
    }

    fn purpose(lun: u8) -> Purpose {
        Purpose { owner: Owner::Command, lun, image: 1, written: 0 }
    }

    #[test]
    fn what_comes_back_twice_or_under_the_tag_of_another_is_nobodys() {
        let (mut flights, file) = flights();
        for round in 0..1000 {
            assert!(flights.on(purpose(0)).sync(&file, OpTag(round)));
            let tag = *flights.inner().0.last().unwrap();
            assert_eq!(flights.land(tag).map(|flight| flight.tag), Some(OpTag(round)));
            assert!(flights.land(tag).is_none() && flights.land(OpTag(u32::MAX)).is_none());
        }
        let tags = &flights.inner().0;
        assert!((1..tags.len()).all(|n| !tags[..n].contains(&tags[n])), "a tag was used twice");
    }

    #[test]
    fn a_drive_whose_operations_never_end_leaves_room_for_the_other() {
        let (mut flights, file) = flights();
        let taken = (0..100).filter(|_| flights.on(purpose(0)).sync(&file, OpTag(0))).count();
        assert_eq!(taken, OTHERS_PER_DRIVE);
        assert!(flights.on(purpose(1)).sync(&file, OpTag(0)));
        let late =
            std::iter::from_fn(|| flights.overdue(Duration::from_secs(70), |_| Duration::from_secs(10)));
        assert_eq!(late.count(), OTHERS_PER_DRIVE + 1);
        assert_eq!(flights.late(0, 1), (OTHERS_PER_DRIVE, false));
        assert!(!flights.on(purpose(0)).sync(&file, OpTag(0)), "what is late still counts");
    }
}
