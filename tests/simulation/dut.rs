//! The device under test: a real `drive::Function` with a writable disk and an optical drive, over the simulated bus and mover.

use std::{
    fs::File,
    io,
    os::{fd::OwnedFd, unix::fs::FileExt},
    path::PathBuf,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
        mpsc,
    },
    time::Duration,
};

use fastrand::Rng;
use nix::sys::memfd::{MFdFlags, memfd_create};
use ringdrive::{
    bot::StallPolicy,
    drive::{
        Clocks, DriveIndex, DriveOptions, DriveState, DriveStatistics, Function, FunctionOptions, Handover,
        Refusal, ReplyTo, Request,
    },
    gadget::{BusEvent, ResetTicket, Speed},
    media::{Access, Image, MediaErrorKind, SourceState},
    ring::{Moved, pool::Pool},
    scsi::{Identity, Kind},
    units::BlockSize,
};

use crate::{
    bus::{Bus, Quirks, SimEndpoints},
    media::{Faults, Media, SimMover},
    model::Disk,
    slow::Fetched,
    world::{BusSignal, Nanos, World},
};

/// How long an operation of the device may take.
pub const DEADLINE: Duration = Duration::from_secs(10);

/// Of the configuration, which stays the same.
const FINGERPRINT: u64 = 1;

pub struct Dut {
    /// `None` only in between two processes.
    function: Option<Function<SimEndpoints, SimMover>>,
    pools: Vec<Pool>,
    /// The time that the function is told.
    clock: Arc<AtomicU64>,
    /// Where slow media have their bytes from.
    pub fetched: Fetched,
    /// When it wants to be woken.
    pub deadline: Option<Nanos>,
    /// Resets whose ticket the function still holds, with the cell that tells the host.
    resets: Vec<(crossbeam_channel::Receiver<()>, std::rc::Rc<std::cell::Cell<bool>>)>,
    allocations_of: AllocationsOf,
    options: FunctionOptions,
    bus: Bus,
    media: Media,
    /// What outlives the process: the images, and the record.
    images: Vec<Kept>,
    record: File,
    /// The process ends in the middle of the next event.
    doomed: bool,
    /// It has been told to end.
    told: bool,
    has_fallen: bool,
    /// Allocations of the device so far, but for those at events of the bus and at requests.
    pub allocations: u64,
}

struct Kept {
    file: Arc<File>,
    block: usize,
    slow: bool,
}

/// Calls, and tells how often memory was allocated meanwhile.
pub type AllocationsOf = fn(&mut dyn FnMut()) -> u64;

impl Dut {
    /// What every event begins with.
    fn at(&mut self, now: Nanos) -> &mut Function<SimEndpoints, SimMover> {
        self.clock.store(now, Ordering::Relaxed);
        self.function.as_mut().unwrap()
    }

    /// A call on the data path.
    fn command(&mut self, now: Nanos, mut call: impl FnMut(&mut Function<SimEndpoints, SimMover>)) {
        self.clock.store(now, Ordering::Relaxed);
        let function = self.function.as_mut().unwrap();
        self.allocations += (self.allocations_of)(&mut || call(function));
    }

    /// What every event ends with, as in the real loop.
    fn after_event(&mut self, now: Nanos) {
        if std::mem::take(&mut self.doomed) {
            self.has_fallen = true;
            return;
        }
        self.command(now, Function::flush);
        if let Some(after) = self.at(now).timer() {
            let tick = now + u64::try_from(after.as_nanos()).unwrap();
            self.deadline = Some(self.deadline.map_or(tick, |at| at.min(tick)));
        }
        self.resets.retain(|(acknowledged, done)| {
            let waits = acknowledged.try_recv().is_err();
            done.set(!waits);
            waits
        });
    }

    fn request<T: Send + 'static>(
        &mut self,
        now: Nanos,
        make: impl FnOnce(ReplyTo<T>) -> Request,
    ) -> Answer<T> {
        let (tx, rx) = mpsc::channel();
        let clock = self.clock.clone();
        // Who asked may not wait for it.
        let reply = ReplyTo::new(move |answer| drop(tx.send((clock.load(Ordering::Relaxed), answer))));
        self.at(now).request(make(reply));
        self.after_event(now);
        Answer(rx)
    }

    /// `None`: an operation on the same file that was never given up still holds its lock.
    pub fn insert(&mut self, now: Nanos, lun: u8, disk: &Disk) -> Option<Answer<Result<(), Refusal>>> {
        let image = image(&disk.file, disk.block)?;
        let image = if disk.slow { self.fetched.medium(image) } else { Box::new(image) };
        let (tx, rx) = mpsc::channel();
        let clock = self.clock.clone();
        let reply = ReplyTo::new(move |answer: Result<_, _>| {
            tx.send((clock.load(Ordering::Relaxed), answer.map(drop))).unwrap();
        });
        self.at(now).request(Request::Insert { lun, image, reply });
        self.after_event(now);
        Some(Answer(rx))
    }

    pub fn eject(&mut self, now: Nanos, lun: u8, force: bool) -> Answer<Result<String, Refusal>> {
        self.request(now, |reply| Request::Eject { lun, force, reply })
    }

    /// Ends the function, as the end of the daemon does.
    pub fn stop(&mut self, now: Nanos) -> Answer<Result<(), Refusal>> {
        self.request(now, |reply| Request::Stop { reply })
    }

    /// What a drive has counted; asking must not disturb it.
    pub fn statistics(&mut self, now: Nanos, lun: u8) -> DriveStatistics {
        let (tx, rx) = mpsc::channel();
        let reply = ReplyTo::new(move |told| tx.send(told).unwrap());
        self.at(now).request(Request::Stats { lun: Some(lun), reply });
        rx.try_recv().unwrap().pop().unwrap()
    }

    /// Whether the source of the medium in a drive answers, as the drive says.
    pub fn source(&mut self, now: Nanos, lun: u8) -> Option<SourceState> {
        let (tx, rx) = mpsc::channel();
        let reply = ReplyTo::new(move |told| tx.send(told).unwrap());
        self.at(now).request(Request::State { reply });
        let states: Vec<DriveState> = rx.try_recv().unwrap();
        Some(states.get(usize::from(lun))?.image.as_ref()?.source)
    }

    /// Buffers that are not in their pools.
    pub fn buffers_out(&self) -> usize {
        self.pools.iter().map(|pool| pool.count() - pool.available()).sum()
    }
}

/// When and what a request will be answered.
pub struct Answer<T>(mpsc::Receiver<(Nanos, T)>);

impl<T> Answer<T> {
    pub fn take(&self) -> Option<(Nanos, T)> {
        self.0.try_recv().ok()
    }
}

/// The end of a process, and the beginning of the next.
impl Dut {
    /// The process ends in the middle of what it does next: after it has queued requests, and before the kernel has them.
    pub fn doom(&mut self) {
        self.doomed = true;
    }

    /// Somebody tells it to end.
    pub fn leave(&mut self, now: Nanos) {
        let reply = ReplyTo::new(drop);
        self.told = true;
        self.at(now).request(Request::Leave { reply });
        self.after_event(now);
    }

    /// Whether it is about to end.
    pub fn is_ending(&self) -> bool {
        self.doomed || self.told
    }

    /// Whether it has ended.
    pub fn is_gone(&self) -> bool {
        self.has_fallen || self.function.as_ref().is_none_or(Function::stopped)
    }

    /// The process is gone, and its successor starts, but does not serve yet. The resets that nobody has acknowledged are left.
    pub fn die(&mut self, now: Nanos) -> Vec<std::rc::Rc<std::cell::Cell<bool>>> {
        // It ends without a word; what it would write as it gives its commands up is not written.
        let mut left = vec![0; usize::try_from(self.record.metadata().unwrap().len()).unwrap()];
        self.record.read_exact_at(&mut left, 0).unwrap();
        self.at(now).bus(BusEvent::Unbound);
        drop(self.function.take());
        self.record.write_all_at(&left, 0).unwrap();
        self.bus.die();
        self.media.die();
        (self.deadline, self.doomed, self.told, self.has_fallen) = (None, false, false, false);
        self.clock.store(now, Ordering::Relaxed);
        self.function = Some(function(
            self.options.clone(),
            self.bus.successor(),
            self.media.successor(),
            &self.clock,
            &mut self.pools,
        ));
        let waker = self.fetched.waker();
        let (handover, drives) = Handover::open(&self.record, FINGERPRINT).unwrap();
        let mut media: Vec<(u8, Box<dyn ringdrive::media::Medium>)> = Vec::new();
        for ((lun, kept), drive) in (0..).zip(&self.images).zip(&drives) {
            if drive.image.is_some() {
                let image = image(&kept.file, kept.block).unwrap();
                media.push((lun, if kept.slow { self.fetched.medium(image) } else { Box::new(image) }));
            }
        }
        let function = self.at(now);
        function.set_waker(waker);
        function.resume(handover, &drives, media, Box::new(drop));
        self.resets.drain(..).map(|(_, done)| done).collect()
    }

    /// It serves the host that its predecessor has served.
    pub fn take_over(&mut self, now: Nanos, max_packet: u16) {
        let speed = if max_packet == 1024 { Speed::Super } else { Speed::High };
        self.at(now).bus(BusEvent::TakenOver { speed, max_packet });
        self.after_event(now);
    }
}

impl Dut {
    pub fn signal(&mut self, now: Nanos, signal: BusSignal) {
        let event = match signal {
            BusSignal::Enabled { max_packet } => {
                let speed = if max_packet == 1024 { Speed::Super } else { Speed::High };
                BusEvent::Enabled { speed, max_packet }
            }
            BusSignal::Disabled => BusEvent::Disabled,
            BusSignal::Suspended => BusEvent::Suspended,
            BusSignal::Resumed => BusEvent::Resumed,
            BusSignal::Reset(done) => {
                let (ticket, acknowledged) = ResetTicket::new();
                self.resets.push((acknowledged, done));
                BusEvent::Reset(ticket)
            }
        };
        self.at(now).bus(event);
        self.after_event(now);
    }

    pub fn endpoints(&mut self, now: Nanos) {
        self.command(now, |function| {
            function.endpoints_ready();
        });
        self.after_event(now);
    }

    pub fn moved(&mut self, now: Nanos, moved: Moved) {
        let mut moved = Some(moved);
        self.command(now, |function| moved.take().into_iter().for_each(|moved| function.moved(moved)));
        self.after_event(now);
    }

    pub fn woken(&mut self, now: Nanos) {
        self.fetched.told();
        self.command(now, Function::woken);
        self.after_event(now);
    }

    pub fn wake(&mut self, now: Nanos) {
        self.deadline = None;
        self.command(now, Function::tick);
        self.after_event(now);
    }
}

fn image(file: &File, block: usize) -> Option<Image> {
    let fd = OwnedFd::from(file.try_clone().unwrap());
    let (access, size) = match block {
        512 => (Access::ReadWrite, BlockSize::B512),
        4096 => (Access::ReadWrite, BlockSize::B4096),
        _ => (Access::ReadOnly, BlockSize::B2048),
    };
    match Image::from_fd(fd, PathBuf::from("sim"), access, size) {
        Err(error) if error.kind == MediaErrorKind::InUse => None,
        image => Some(image.unwrap()),
    }
}

fn disk(blocks: usize, block: usize, writable: bool) -> Disk {
    let file = Arc::new(File::from(memfd_create("ringdrive-sim", MFdFlags::MFD_CLOEXEC).unwrap()));
    Disk::new(file, blocks, block, writable)
}

/// What a world is made of.
pub struct Parts {
    pub quirks: Quirks,
    pub faults: Faults,
    pub stall: StallPolicy,
    /// Bytes in a block of the disk.
    pub block: BlockSize,
    /// Blocks of the disk, and of the optical medium.
    pub blocks: [usize; 2],
    /// Of four media, those whose bytes have to be fetched.
    pub slow: u8,
    pub allocations_of: AllocationsOf,
}

impl Parts {
    /// Any of them, and nobody counts allocations.
    pub fn any(rng: &mut Rng, stall: StallPolicy) -> Self {
        let (quirks, faults) = (Quirks::any(rng), Faults::any(rng));
        Self {
            quirks,
            faults,
            stall,
            block: if rng.u8(..4) == 0 { BlockSize::B4096 } else { BlockSize::B512 },
            blocks: [1 << rng.u32(4..12), 1 << rng.u32(2..9)],
            slow: 1,
            allocations_of: |call| {
                call();
                0
            },
        }
    }
}

/// A whole world around a function whose drives hold media.
pub fn world(rng: &mut Rng, parts: Parts) -> (World, Vec<Disk>) {
    let Parts { quirks, faults, stall, block, blocks: [flash, cd], slow, allocations_of } = parts;
    let (bus, endpoints) = Bus::new(quirks);
    let (media, mover) = Media::new(rng.fork(), faults);
    let flash = disk(flash, usize::try_from(block.bytes()).unwrap(), true);
    let mut disks = vec![flash, disk(cd, 2048, false)];
    for disk in &mut disks {
        disk.slow = rng.u8(..4) < slow;
    }
    let drive = |kind, name: &str| DriveOptions {
        name: name.into(),
        kind,
        identity: Identity::new("sim", name, "1", name).unwrap(),
        rw: kind == Kind::Disk,
        block_size: block,
        deadline: DEADLINE,
    };
    let options = FunctionOptions {
        name: "sim".into(),
        first: DriveIndex(0),
        stall,
        drives: vec![drive(Kind::Disk, "flash"), drive(Kind::Optical, "cd")],
    };
    let mut pools = Vec::new();
    let clock = Arc::new(AtomicU64::new(0));
    let mut function = function(options.clone(), endpoints, mover, &clock, &mut pools);
    let fetched = Fetched::new(rng.fork());
    function.set_waker(fetched.waker());
    let (mut handover, record) = Handover::create().unwrap();
    handover.begin(FINGERPRINT, options.drives.len());
    function.keep_in(handover, Box::new(drop));
    let kept = |disk: &Disk| Kept { file: disk.file.clone(), block: disk.block, slow: disk.slow };
    let mut dut = Dut {
        function: Some(function),
        pools,
        clock,
        fetched,
        deadline: None,
        resets: Vec::new(),
        allocations_of,
        options,
        bus: bus.clone(),
        media: media.clone(),
        images: disks.iter().map(kept).collect(),
        record,
        doomed: false,
        told: false,
        has_fallen: false,
        allocations: 0,
    };
    for (lun, disk) in (0..).zip(&disks) {
        dut.insert(0, lun, disk).unwrap().take().unwrap().1.unwrap();
    }
    (World::new(rng.fork(), bus, media, dut), disks)
}

fn function(
    options: FunctionOptions,
    endpoints: SimEndpoints,
    mover: SimMover,
    clock: &Arc<AtomicU64>,
    pools: &mut Vec<Pool>,
) -> Function<SimEndpoints, SimMover> {
    let with_pools = |given: &[Pool]| {
        *pools = given.to_vec();
        Ok::<_, io::Error>(mover)
    };
    let now = clock.clone();
    let now = move || Duration::from_nanos(now.load(Ordering::Relaxed));
    let clocks = Clocks { exact: Box::new(now.clone()), coarse: Box::new(now) };
    Function::new(options, endpoints, with_pools, Box::new(|_| {}), clocks).unwrap()
}
