//! The thread of a function: one io_uring loop that tells [`Function`] what happened.
//!
//! ```text
//!   ep0 thread ── bus events ──┐
//!   control ───── requests ────┼─► ring ─► Function ─► endpoints (AIO), ring (image I/O)
//!   endpoint completions ──────┘     ▲                    │
//!                 image operations ──┴────────────────────┘
//! ```
//! Started by the daemon, once for each function. It ends after a [`Request::Stop`](super::Request::Stop).

use std::{
    io,
    os::fd::AsFd,
    sync::Arc,
    thread::{self, JoinHandle},
    time::{Duration, Instant},
};

use crossbeam_channel::{Receiver, Sender, bounded};
use nix::{
    sys::eventfd::{EfdFlags, EventFd},
    time::{ClockId, clock_gettime},
};

use crate::{
    gadget::{BusEvent, endpoints::Endpoints},
    media::{Medium, Waker},
    ring::{Completion, OpKey, Ring, RingError, RingOptions},
    schedule::{Schedule, ScheduleError},
};

use super::{
    KeptDrive,
    command::{Handle, Inbox},
    function::{EventSink, Function, FunctionOptions},
    handover::Handover,
    statistics::Clocks,
    takeover::Keeper,
};

/// Operations in flight on one ring: hints, the watches and timers.
const RING_ENTRIES: u32 = 64;
/// And for each drive as many as it may have, twice over.
const DRIVE_ENTRIES: u32 = 16;
/// Bus events that may wait; the ep0 thread waits when they are more.
const BUS_EVENTS_MAX: usize = 16;

/// Why a function's thread could not start, or had to end.
#[derive(Debug, thiserror::Error)]
pub enum ThreadError {
    /// Buffers, an eventfd, or the thread itself.
    #[error(
        "cannot get the memory, descriptors or thread that a function needs; try to raise the limits of the service"
    )]
    Resources(#[from] io::Error),
    /// The ring.
    #[error(transparent)]
    Ring(#[from] RingError),
    /// Its scheduling.
    #[error(transparent)]
    Schedule(#[from] ScheduleError),
}

/// A running function.
#[derive(Debug)]
pub struct FunctionThread {
    /// The way to it.
    pub handle: Handle,
    /// Ends with the thread; why, if not by request.
    pub join: JoinHandle<Result<(), ThreadError>>,
    bus: Sender<BusEvent>,
    bus_wake: Arc<EventFd>,
}

/// The drives that a predecessor has left, by LUN, and their images that could be had again.
pub type Resumed = (Vec<KeptDrive>, Vec<(u8, Box<dyn Medium>)>);

/// What is kept for a successor, and what a predecessor has kept.
pub struct Keeping {
    /// Where the function keeps its state.
    pub handover: Handover,
    /// What a predecessor has left in it; `None`: it is new.
    pub resumed: Option<Resumed>,
    /// Told which images are to be kept.
    pub keeper: Keeper,
}

/// What woke the loop.
#[derive(Clone, Copy, Debug)]
enum Wake {
    Endpoints,
    Requests,
    Bus,
    Timer,
}

impl FunctionThread {
    /// Starts the thread, scheduled by `schedule`, and waits until it is ready for bus events. Without `keeping` all ends with it.
    ///
    /// # Errors
    /// What the thread could not get.
    pub fn start<E: Endpoints + Send + 'static>(
        options: FunctionOptions,
        schedule: Schedule,
        endpoints: E,
        events: EventSink,
        keeping: Option<Keeping>,
    ) -> Result<Self, ThreadError> {
        let (handle, inbox) = Handle::pair()?;
        let (bus, bus_events) = bounded(BUS_EVENTS_MAX);
        let flags = EfdFlags::EFD_CLOEXEC | EfdFlags::EFD_NONBLOCK;
        let bus_wake = Arc::new(EventFd::from_flags(flags).map_err(io::Error::from)?);
        let (ready, started) = bounded(1);
        let sources = Sources { inbox, bus_events, bus_wake: Arc::clone(&bus_wake) };
        let join = thread::Builder::new().name(format!("drive-{}", options.name)).spawn(move || {
            schedule.apply()?;
            let mut running = Loop::new(options, endpoints, sources, events)?;
            running.keep(keeping);
            // Nobody waits any more if `start` is gone.
            let _ = ready.send(());
            running.run().inspect_err(|error| tracing::error!(%error, "a function has failed"))
        })?;
        match started.recv() {
            Ok(()) => Ok(Self { handle, join, bus, bus_wake }),
            Err(_) => match join.join() {
                Ok(Err(error)) => Err(error),
                _ => Err(io::Error::other("the thread ended as it started").into()),
            },
        }
    }

    /// What the ep0 thread calls with each bus event. An event that finds the thread gone is dropped.
    pub fn bus(&self) -> impl Fn(BusEvent) + Send + use<> {
        let (bus, wake) = (self.bus.clone(), Arc::clone(&self.bus_wake));
        move |event| {
            if bus.send(event).is_ok() {
                // A full counter is a wake-up that nobody has taken yet.
                let _ = wake.write(1);
            }
        }
    }
}

struct Sources {
    inbox: Inbox,
    bus_events: Receiver<BusEvent>,
    bus_wake: Arc<EventFd>,
}

struct Loop<E> {
    function: Function<E, Ring<Wake>>,
    sources: Sources,
    /// The timer that runs, and its length.
    timer: Option<(OpKey, Duration)>,
}

impl<E: Endpoints> Loop<E> {
    fn new(
        options: FunctionOptions,
        endpoints: E,
        sources: Sources,
        events: EventSink,
    ) -> Result<Self, ThreadError> {
        let drives = u32::try_from(options.drives.len()).unwrap_or(u32::MAX);
        let entries = RING_ENTRIES.saturating_add(DRIVE_ENTRIES.saturating_mul(drives));
        let ring = |pools: &[_]| Ok::<_, ThreadError>(Ring::new(&RingOptions::new(entries, pools))?);
        let started = Instant::now();
        let clocks = Clocks { exact: Box::new(move || started.elapsed()), coarse: Box::new(coarse) };
        let mut function = Function::new(options, endpoints, ring, events, clocks)?;
        let wake = Arc::clone(sources.inbox.wake());
        function.set_waker(Waker::new(move || {
            // A full counter is a wake-up that nobody has taken yet.
            let _ = wake.write(1);
        }));
        let endpoints = function.endpoints().ready_fd().map(|fd| fd.try_clone_to_owned()).transpose()?;
        let ring = function.mover();
        if let Some(fd) = endpoints {
            ring.watch(fd, Wake::Endpoints)?;
        }
        ring.watch(sources.inbox.wake().as_fd().try_clone_to_owned()?, Wake::Requests)?;
        ring.watch(sources.bus_wake.as_fd().try_clone_to_owned()?, Wake::Bus)?;
        Ok(Self { function, sources, timer: None })
    }

    fn keep(&mut self, keeping: Option<Keeping>) {
        let Some(Keeping { handover, resumed, keeper }) = keeping else { return };
        match resumed {
            Some((drives, media)) => self.function.resume(handover, &drives, media, keeper),
            None => self.function.keep_in(handover, keeper),
        }
    }

    fn run(&mut self) -> Result<(), ThreadError> {
        while !self.function.stopped() {
            self.function.flush();
            // Completions that are there already need no wake-up.
            if self.function.endpoints_ready() {
                continue;
            }
            self.set_timer()?;
            self.function.mover().wait()?;
            while let Some(completion) = self.function.mover().next() {
                self.dispatch(completion);
            }
        }
        Ok(())
    }

    /// Keeps a timer running that is no longer than what the function asks for. One that is left over costs a tick.
    fn set_timer(&mut self) -> Result<(), RingError> {
        let Some(after) = self.function.timer() else { return Ok(()) };
        let ring = self.function.mover();
        match self.timer {
            Some((_, running)) if running <= after => return Ok(()),
            Some((key, _)) => ring.cancel(key),
            None => {}
        }
        self.timer = Some((ring.timer(after, Wake::Timer)?, after));
        Ok(())
    }

    fn dispatch(&mut self, completion: Completion<Wake>) {
        match completion {
            Completion::Moved(moved) => self.function.moved(moved),
            // Taken at the top of the loop.
            Completion::Event(Wake::Endpoints) => {}
            Completion::Event(Wake::Requests) => {
                let _ = self.sources.inbox.wake().read();
                while let Some(request) = self.sources.inbox.take() {
                    self.function.request(request);
                }
                // Media use the same way.
                self.function.woken();
            }
            Completion::Event(Wake::Bus) => {
                let _ = self.sources.bus_wake.read();
                while let Ok(event) = self.sources.bus_events.try_recv() {
                    self.function.bus(event);
                }
            }
            Completion::Timer(_) | Completion::Event(Wake::Timer) => {
                self.timer = None;
                self.function.tick();
            }
        }
    }
}

/// The kernel's tick, which costs no look at a device.
fn coarse() -> Duration {
    clock_gettime(ClockId::CLOCK_MONOTONIC_COARSE).map_or(Duration::ZERO, Duration::from)
}

#[cfg(test)]
mod tests;
