//! The control pipe of one function: its own thread answers the class requests and turns events into the state of the bus.
//!
//! A thread, because an answer on ep0 blocks until the host has finished the control transfer (kernel.md §1.1).
//!
//! ```text
//!            ENABLE                      SETUP ff (Bulk-Only Reset)
//!  Disabled ────────► Enabled ─────────────────────────────► waits for the ticket, at most RESET_TIMEOUT
//!     ▲                 │  ▲                                   │ acknowledged: read of nothing = ACK
//!     └──── DISABLE ────┘  └── ENABLE again = a reset between  └ dropped or late: write = STALL
//! ```
//!
//! Invariants: a SETUP is answered exactly once, or was cancelled by the host (EIDRM), which is no error; the queue of the
//! kernel holds four events and merges them, so each event is told as what is true now, never as a count.

use std::{
    fs::File,
    io::{self, Read, Write},
    os::fd::AsFd,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU16, Ordering},
    },
    thread::{self, JoinHandle},
    time::Duration,
};

use crossbeam_channel::{Receiver, Sender, bounded};
use ffs_descriptors::{ClassRequest, EVENT_LEN, Event, SetupRequest, Speed};
use nix::{
    poll::{PollFd, PollFlags, PollTimeout, poll},
    sys::eventfd::EventFd,
};

use super::{functionfs, interrupt};

/// How long the drive has to make ready after a Bulk-Only Reset. A host gives a control transfer five seconds.
const RESET_TIMEOUT: Duration = Duration::from_secs(3);

const STACK: usize = 128 * 1024;

/// What happened on the bus; the latest is what is true now.
#[derive(Debug)]
pub enum BusEvent {
    /// The gadget has a controller.
    Bound,
    /// The gadget has lost its controller.
    Unbound,
    /// The host uses us. After `Enabled`, again: there was a reset in between, and all requests are gone.
    Enabled {
        /// The speed of the link.
        speed: Speed,
        /// wMaxPacketSize of the bulk endpoints at that speed, in bytes.
        max_packet: u16,
    },
    /// The host uses us, and does not know that another process did what is done so far: as [`BusEvent::Enabled`], but nothing is gone
    /// except the requests.
    TakenOver {
        /// The speed of the link.
        speed: Speed,
        /// wMaxPacketSize of the bulk endpoints at that speed, in bytes.
        max_packet: u16,
    },
    /// The host reset, disconnected or deconfigured us; all requests came back.
    Disabled,
    /// The bus is idle. Requests stay queued. Some controllers say this instead of `Disabled` when the cable is pulled.
    Suspended,
    /// The bus goes on.
    Resumed,
    /// Bulk-Only Mass Storage Reset (BOT 1.0 §3.1): make ready for the next CBW, then acknowledge.
    Reset(ResetTicket),
}

/// The host waits for this. Dropped: the request is stalled.
#[must_use = "a ticket that is dropped stalls the host's reset"]
#[derive(Debug)]
pub struct ResetTicket(Sender<()>);

impl ResetTicket {
    /// A ticket, and where its acknowledgement arrives.
    pub fn new() -> (Self, Receiver<()>) {
        let (ticket, acknowledged) = bounded(1);
        (Self(ticket), acknowledged)
    }

    /// Tells the host that the device is ready for the next CBW. Whether the ep0 thread still waited for it.
    pub fn acknowledge(self) -> bool {
        self.0.try_send(()).is_ok()
    }
}

/// ep0 of one function, not served yet.
#[derive(Debug)]
pub struct Ep0 {
    pub(super) name: String,
    pub(super) file: File,
    /// A second descriptor of the OUT endpoint, to ask for its packet size.
    pub(super) endpoint: File,
    pub(super) last_lun: u8,
    pub(super) max_packet: Arc<AtomicU16>,
    pub(super) stop: Arc<EventFd>,
    /// Another process has served it before.
    pub(super) adopted: bool,
}

/// The running thread. Dropping it stops the thread and closes ep0; when the endpoints are closed too, the kernel unbinds
/// the gadget.
#[derive(Debug)]
pub struct Ep0Thread {
    thread: Option<JoinHandle<()>>,
    stop: Arc<EventFd>,
    is_out: Arc<AtomicBool>,
}

impl Ep0Thread {
    /// Whether the thread has ended, which it does by itself only when the control pipe is lost.
    pub fn has_ended(&self) -> bool {
        self.is_out.load(Ordering::Acquire)
    }
}

impl Ep0 {
    /// Starts the thread. `notify` is called on it: it must be quick, and must hand a [`BusEvent::Reset`] on.
    ///
    /// # Errors
    /// The kernel has no thread for us.
    pub fn start(self, notify: Box<dyn Fn(BusEvent) + Send>) -> io::Result<Ep0Thread> {
        let stop = Arc::clone(&self.stop);
        let is_out = Arc::new(AtomicBool::new(false));
        let out = Arc::clone(&is_out);
        // A thread's name has 15 characters.
        let name = format!("ep0-{:.11}", self.name);
        let thread = thread::Builder::new().name(name).stack_size(STACK).spawn(move || {
            if let Err(error) = interrupt::allow().and_then(|()| self.serve(&notify)) {
                tracing::error!(function = self.name, %error, "the control pipe is lost");
                notify(BusEvent::Unbound);
            }
            drop(self);
            out.store(true, Ordering::Release);
        })?;
        Ok(Ep0Thread { thread: Some(thread), stop, is_out })
    }

    fn serve(&self, notify: &dyn Fn(BusEvent)) -> io::Result<()> {
        if self.adopted {
            self.catch_up(notify)?;
        }
        loop {
            let wait = |fd| PollFd::new(fd, PollFlags::POLLIN);
            let mut fds = [wait(self.stop.as_fd()), wait(self.file.as_fd())];
            match poll(&mut fds, PollTimeout::NONE) {
                Err(nix::Error::EINTR) => continue,
                result => result?,
            };
            let [stop, _] = fds;
            if stop.any() == Some(true) {
                return Ok(());
            }
            self.take_event(notify)?;
        }
    }

    /// Whether the event says that what was before it means nothing any more.
    fn take_event(&self, notify: &dyn Fn(BusEvent)) -> io::Result<bool> {
        let mut anew = false;
        // One event a time: a SETUP must be the last that was read when it is answered.
        let mut bytes = [0; EVENT_LEN];
        let read = match (&self.file).read(&mut bytes) {
            Ok(read) => read,
            Err(error) if goes_on(&error) => return Ok(false),
            Err(error) => return Err(error),
        };
        for event in ffs_descriptors::events(bytes.get(..read).unwrap_or_default()) {
            match event {
                Ok(event) => {
                    anew |= matches!(event, Event::Bind | Event::Unbind | Event::Enable | Event::Disable);
                    self.handle(event, notify)?;
                }
                Err(error) => tracing::warn!(function = self.name, %error, "event not understood"),
            }
        }
        Ok(anew)
    }

    /// Tells what has happened since the last process ended and, if the host uses us as before, that.
    fn catch_up(&self, notify: &dyn Fn(BusEvent)) -> io::Result<()> {
        let speed = || {
            let found = functionfs::endpoint_speed(&self.endpoint);
            found.inspect(|(_, max_packet)| self.max_packet.store(*max_packet, Ordering::Release))
        };
        speed();
        let mut anew = false;
        loop {
            let mut fds = [PollFd::new(self.file.as_fd(), PollFlags::POLLIN | PollFlags::POLLOUT)];
            match poll(&mut fds, PollTimeout::ZERO) {
                Err(nix::Error::EINTR) => continue,
                result => result?,
            };
            let [ep0] = fds;
            let ready = ep0.revents().unwrap_or(PollFlags::empty());
            if ready.contains(PollFlags::POLLOUT) {
                self.end_setup(notify)?;
            } else if ready.contains(PollFlags::POLLIN) {
                anew |= self.take_event(notify)?;
            } else {
                break;
            }
        }
        if let Some((speed, max_packet)) = speed().filter(|_| !anew) {
            notify(BusEvent::TakenOver { speed, max_packet });
        }
        Ok(())
    }

    /// A SETUP that the last process had read, and not answered; what it was is not known. To read stalls what the host wants to
    /// read, and accepts what it has sent: no class request but the reset does.
    fn end_setup(&self, notify: &dyn Fn(BusEvent)) -> io::Result<()> {
        match (&self.file).read(&mut []) {
            Ok(_) => {
                // It has been acknowledged before it is done; no request is queued that could come in its way.
                notify(BusEvent::Reset(ResetTicket::new().0));
                Ok(())
            }
            Err(error) if error.raw_os_error() == Some(libc::EL2HLT) || goes_on(&error) => Ok(()),
            Err(error) => Err(error),
        }
    }

    fn handle(&self, event: Event, notify: &dyn Fn(BusEvent)) -> io::Result<()> {
        match event {
            Event::Bind => notify(BusEvent::Bound),
            Event::Unbind => notify(BusEvent::Unbound),
            Event::Disable => notify(BusEvent::Disabled),
            Event::Suspend => notify(BusEvent::Suspended),
            Event::Resume => notify(BusEvent::Resumed),
            // Disabled again meanwhile: the DISABLE event is on its way.
            Event::Enable => {
                if let Some((speed, max_packet)) = functionfs::endpoint_speed(&self.endpoint) {
                    self.max_packet.store(max_packet, Ordering::Release);
                    notify(BusEvent::Enabled { speed, max_packet });
                }
            }
            Event::Setup(request) => return self.answer(&request, notify),
        }
        Ok(())
    }

    fn answer(&self, request: &SetupRequest, notify: &dyn Fn(BusEvent)) -> io::Result<()> {
        let answered = match request.class_request() {
            ClassRequest::GetMaxLun => (&self.file).write(&[self.last_lun]).map(drop),
            ClassRequest::Reset => {
                let (ticket, acknowledged) = ResetTicket::new();
                notify(BusEvent::Reset(ticket));
                match acknowledged.recv_timeout(RESET_TIMEOUT) {
                    Ok(()) => (&self.file).read(&mut []).map(drop),
                    Err(error) => {
                        tracing::warn!(function = self.name, %error, "a Bulk-Only Reset was not acknowledged");
                        self.stall(request)
                    }
                }
            }
            ClassRequest::Unknown => self.stall(request),
        };
        match answered {
            Err(error) if !goes_on(&error) => Err(error),
            _ => Ok(()),
        }
    }

    /// I/O against the direction of the data stage stalls the control pipe; the kernel says EL2HLT.
    fn stall(&self, request: &SetupRequest) -> io::Result<()> {
        let result = match request.is_in() {
            true => (&self.file).read(&mut []).map(drop),
            false => (&self.file).write(&[]).map(drop),
        };
        match result {
            Err(error) if error.raw_os_error() == Some(libc::EL2HLT) => Ok(()),
            result => result,
        }
    }
}

/// Whether ep0 can be served on after `error`: the host cancelled the SETUP (EIDRM), went away while it waited (ESHUTDOWN,
/// ECONNRESET), there is nothing to read after all, or somebody wants us to stop.
fn goes_on(error: &io::Error) -> bool {
    let known = [libc::EIDRM, libc::ESHUTDOWN, libc::ECONNRESET, libc::EAGAIN, libc::EINTR, libc::ESRCH];
    error.raw_os_error().is_some_and(|errno| known.contains(&errno))
}

impl Drop for Ep0Thread {
    fn drop(&mut self) {
        let _ = self.stop.write(1);
        if let Some(thread) = self.thread.take() {
            interrupt::kick(&thread, || self.is_out.load(Ordering::Acquire));
            let _ = thread.join();
        }
    }
}
