//! One run's world: a virtual clock, the bus, the medium and the device, and what happens next.
//!
//! Everything that could happen now happens in an order that the seed chooses; the clock moves only when nothing can.

use std::{cell::Cell, collections::VecDeque, fs::File, rc::Rc};

use crate::{
    bus::Bus,
    dut::Dut,
    media::{Media, SECOND},
};
use fastrand::Rng;

/// Virtual nanoseconds.
pub type Nanos = u64;

/// What ep0 tells the device.
pub enum BusSignal {
    Enabled {
        max_packet: u16,
    },
    Disabled,
    Suspended,
    Resumed,
    /// Bulk-Only Mass Storage Reset; the device sets the cell when it has done it.
    Reset(Rc<Cell<bool>>),
}

pub struct World {
    pub now: Nanos,
    pub rng: Rng,
    pub bus: Bus,
    pub media: Media,
    pub device: Dut,
    signals: VecDeque<BusSignal>,
    /// When the next process serves; there is none before.
    back_at: Option<Nanos>,
    /// Processes that have ended.
    pub ended: u64,
}

/// How a process ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum End {
    Killed,
    /// In the middle of what it does next.
    KilledAtWork,
    /// It is told to leave the host to another.
    Told,
}

enum Next {
    Back,
    Signal,
    Endpoints,
    Moved,
    Arrives,
    Woken,
    Wake,
}

impl World {
    pub fn new(rng: Rng, bus: Bus, media: Media, device: Dut) -> Self {
        Self { now: 0, rng, bus, media, device, signals: VecDeque::new(), back_at: None, ended: 0 }
    }

    pub fn signal(&mut self, signal: BusSignal) {
        self.signals.push_back(signal);
    }

    pub fn signals_pending(&self) -> bool {
        !self.signals.is_empty()
    }

    /// Lets one thing happen, later if nothing can happen now. `false`: nothing will ever happen unless the host does something.
    pub fn step(&mut self) -> bool {
        if self.step_now() {
            return true;
        }
        let due = [self.media.next_due(), self.device.fetched.next_due(), self.device.deadline, self.back_at];
        let later = due.into_iter().flatten().min();
        self.now = later.unwrap_or(self.now);
        later.is_some()
    }

    /// Lets one thing happen that can happen now, if there is one.
    fn step_now(&mut self) -> bool {
        self.media.at(self.now);
        self.device.fetched.at(self.now);
        let due = |at: Option<Nanos>| at.is_some_and(|at| at <= self.now);
        let is_there = self.back_at.is_none();
        let possible = [
            (due(self.back_at), Next::Back),
            (is_there && self.signals_pending(), Next::Signal),
            (self.bus.has_done(), Next::Endpoints),
            (due(self.media.next_due()), Next::Moved),
            (due(self.device.fetched.next_due()), Next::Arrives),
            (is_there && self.device.fetched.has_woken(), Next::Woken),
            (due(self.device.deadline), Next::Wake),
        ];
        let mut possible: Vec<Next> =
            possible.into_iter().filter_map(|(now, next)| now.then_some(next)).collect();
        if possible.is_empty() {
            return false;
        }
        match possible.swap_remove(self.rng.usize(..possible.len())) {
            Next::Back => {
                self.back_at = None;
                // One that only tells of sleep says nothing of whether the function is in use.
                let sleeps = |signal: &BusSignal| matches!(signal, BusSignal::Suspended | BusSignal::Resumed);
                if let Some(max_packet) = self.bus.max_packet().filter(|_| self.signals.iter().all(sleeps)) {
                    self.device.take_over(self.now, u16::try_from(max_packet).unwrap());
                }
            }
            Next::Signal => {
                let signal = self.signals.pop_front().unwrap();
                self.device.signal(self.now, signal);
            }
            Next::Endpoints => self.device.endpoints(self.now),
            Next::Moved => {
                let moved = self.media.complete(self.now).unwrap();
                self.device.moved(self.now, moved);
            }
            Next::Arrives => self.device.fetched.arrive(self.now),
            Next::Woken => self.device.woken(self.now),
            Next::Wake => self.device.wake(self.now),
        }
        self.bury();
        true
    }

    /// The process ends, now or soon, and another one takes over.
    pub fn end(&mut self, end: End) {
        if self.back_at.is_some() {
            return;
        }
        match end {
            End::Killed => self.fall(),
            End::KilledAtWork => self.device.doom(),
            End::Told => self.device.leave(self.now),
        }
        self.bury();
    }

    fn bury(&mut self) {
        if self.back_at.is_none() && self.device.is_gone() {
            self.fall();
        }
    }

    fn fall(&mut self) {
        self.ended += 1;
        for done in self.device.die(self.now) {
            self.signals.push_front(BusSignal::Reset(done));
        }
        self.back_at = Some(self.now + self.rng.u64(..400_000_000));
    }

    /// Whether a process is about to end.
    pub fn is_ending(&self) -> bool {
        self.back_at.is_none() && self.device.is_ending()
    }

    /// Until the next process serves, if there is none.
    pub fn await_process(&mut self) {
        while self.back_at.is_some() && self.step() {}
    }

    /// A few things may happen while the host is busy elsewhere for a moment.
    pub fn idle(&mut self, most: usize) {
        for _ in 0..self.rng.usize(..=most) {
            self.now += self.rng.u64(..20_000);
            self.step_now();
        }
    }

    /// Until the device has nothing left to do but to ask dead storage now and then. `false`: it never ends.
    pub fn settle(&mut self) -> bool {
        let end = self.now + 100 * SECOND;
        (0..100_000).any(|_| !self.step() || self.now >= end)
    }

    /// All storage answers again.
    pub fn release(&mut self) {
        self.media.at(self.now);
        self.device.fetched.at(self.now);
        self.media.release();
        self.device.fetched.release();
    }

    /// Operations on this file, and pieces of it, so far that took longer than any should.
    pub fn stuck(&self, file: &File) -> u64 {
        self.media.stuck(file) + self.device.fetched.stuck(file)
    }
}
