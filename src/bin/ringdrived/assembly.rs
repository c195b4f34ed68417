//! From a checked configuration to running functions, and back to nothing.
//!
//! Order matters. At the start every ep0 thread runs and every configured image is in its drive before the gadget is bound, so that
//! the host finds things as they are meant to be. At the end the gadget leaves the bus before the functions make their writes
//! durable, so that nothing more can be written.

use std::{
    path::{Path, PathBuf},
    sync::Arc,
    time::{Duration, Instant},
};

use anyhow::{Context, bail};
use crossbeam_channel::{RecvTimeoutError, bounded};
use ringdrive::{
    config::{self, Config, StartImage},
    drive::{
        DriveIndex, DriveOptions, Event, FunctionOptions, Handle, Handover, Keeper, KeptDrive, Refusal,
        ReplyTo, Request, block_size,
        thread::{FunctionThread, Keeping, Resumed},
    },
    gadget::{self, Ep0Thread, FunctionParts, Gadget, GadgetOptions, Placement, Speed},
    media::{
        Access, Image, Medium,
        compressed::{ExpandErrorKind, Expander},
        overlay::{Base, Overlays},
        qcow2::Qcow2,
        url::shown,
    },
    scsi::Identity,
};

use crate::{
    store::{self, Store},
    succession::{self, Succession},
};

/// How long the functions together may take to make durable what the host wrote.
const STOP_TIMEOUT: Duration = Duration::from_secs(4);
/// How often to look whether a thread has ended.
const LOOK_EVERY: Duration = Duration::from_millis(10);
/// How long a function may take to answer a request when nothing but we asks for anything.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(5);

/// A gadget with its functions at work.
pub(crate) struct Assembly {
    pub(crate) gadget: Arc<Gadget>,
    functions: Vec<Function>,
}

struct Function {
    name: String,
    thread: FunctionThread,
    drives: Vec<String>,
    /// Whether a drive has had an image before this process; by LUN.
    used: Vec<bool>,
    /// Dropped last, because with ep0 the kernel's side of the function goes.
    ep0: Ep0Thread,
}

/// An opened image, and where it goes.
pub(crate) struct Placed {
    function: usize,
    lun: u8,
    image: Box<dyn Medium>,
}

/// How it begins.
pub(crate) enum Begin {
    /// With a gadget made anew, and these images in its drives.
    Anew(Vec<Placed>),
    /// With what the last process has left.
    TakenOver(Vec<Succession>),
}

/// The state of a function that is taken over, and its drives.
type Left = (Handover, Resumed);

pub(crate) fn is_in_area(config: &Config, path: &Path) -> bool {
    config.areas.iter().any(|area| path.starts_with(&area.path))
}

/// The file that is in a drive at start.
pub(crate) fn path(drive: &config::Drive) -> Option<&Path> {
    match drive.image.as_ref()? {
        StartImage::Path(path) => Some(path),
        StartImage::Url(_) => None,
    }
}

/// What there may be between an image and its drive.
#[derive(Clone)]
pub(crate) struct Layers {
    pub(crate) overlays: Arc<Overlays>,
    pub(crate) expander: Arc<Expander>,
}

pub(crate) fn open(drive: &config::Drive, path: &Path, layers: &Layers) -> anyhow::Result<Box<dyn Medium>> {
    let writes = drive.rw && drive.overlay.is_none();
    let access = if writes { Access::ReadWrite } else { Access::ReadOnly };
    let context = || format!("drive {:?}: cannot open its configured image", drive.name);
    let how @ (_, block_size) = (access, block_size(drive.kind, drive.block_size));
    let manner = drive.manner;
    let image: Base = match manner.container(path) {
        Some(container) => {
            let opened = Qcow2::open(path, container, how, manner, layers.overlays.runtime_dir());
            Box::new(opened.with_context(context)?)
        }
        None if manner.raw => Box::new(Image::open(path, access, block_size).with_context(context)?),
        None if drive.overlay.is_some() && Expander::is_compressed(path) => {
            return Err(ExpandErrorKind::ReadOnly).with_context(context);
        }
        None => {
            let opened = layers.expander.open(path, access, block_size, &mut |_, _| true);
            Box::new(opened.with_context(context)?)
        }
    };
    Ok(match &drive.overlay {
        Some(place) => Box::new(layers.overlays.open(image, path, place).with_context(context)?),
        None => image,
    })
}

/// Whether the drive held the image behind a URL that its configuration has.
fn held_its_url(drive: &config::Drive, kept: &KeptDrive) -> bool {
    match (&drive.image, &kept.image) {
        (Some(StartImage::Url(url)), Some(image)) => shown(&url.0) == image.name,
        _ => false,
    }
}

/// Opens the images of the configuration, but for those in areas and behind URLs. To be called while a signal still ends the process: a file server
/// may not answer.
pub(crate) fn open_images(config: &Config, layers: &Layers) -> anyhow::Result<Vec<Placed>> {
    let mut images = Vec::new();
    for (function, options) in config.functions.iter().enumerate() {
        for (lun, drive) in (0u8..).zip(&options.drives) {
            let Some(path) = path(drive).filter(|path| !is_in_area(config, path)) else {
                continue;
            };
            images.push(Placed { function, lun, image: open(drive, path, layers)? });
        }
    }
    Ok(images)
}

impl Assembly {
    /// Makes everything up to the bus, or takes it over: gadget, threads, drives with their images.
    pub(crate) fn new(
        config: &Config,
        begin: Begin,
        layers: &Layers,
        store: Option<&Store>,
        events: impl Fn(Event) + Clone + Send + 'static,
    ) -> anyhow::Result<Self> {
        for function in &config.functions {
            function.schedule.check().with_context(|| format!("function {:?}", function.name))?;
        }
        match begin {
            Begin::Anew(images) => Self::make(config, images, store, events),
            Begin::TakenOver(successions) => {
                let (mut files, mut resumed) = (Vec::new(), Vec::new());
                for Succession { files: of_function, handover, drives, media } in successions {
                    files.push(of_function);
                    resumed.push((handover, (drives, media)));
                }
                let (options, placement) = gadget_options(config, store.is_some());
                match Gadget::adopt(&options, placement, files) {
                    Ok((gadget, parts)) => Self::take_over(config, gadget, parts, resumed, store, events),
                    Err(error) => {
                        tracing::warn!(%error, "starting anew");
                        drop(resumed);
                        store::forget_all();
                        Self::make(config, open_images(config, layers)?, store, events)
                    }
                }
            }
        }
    }

    fn make(
        config: &Config,
        images: Vec<Placed>,
        store: Option<&Store>,
        events: impl Fn(Event) + Clone + Send + 'static,
    ) -> anyhow::Result<Self> {
        let (options, placement) = gadget_options(config, store.is_some());
        let (gadget, parts) = Gadget::create(&options, placement)?;
        let mut assembly = Self { gadget: Arc::new(gadget), functions: Vec::new() };
        let mut first = DriveIndex(0);
        for (function, parts) in config.functions.iter().zip(parts) {
            let keep = |store| {
                let kept = succession::keep_function(store, config, function, &parts.kept);
                kept.map(|(handover, keeper)| Keeping { handover, resumed: None, keeper })
            };
            let keeping = store.map(keep).transpose().context("cannot make memory for a successor")?;
            assembly.functions.push(start(function, first, parts, events.clone(), keeping)?);
            first.0 += u16::try_from(function.drives.len())?;
        }
        for Placed { function, lun, image } in images {
            if let Some(function) = assembly.functions.get(function) {
                insert(&function.thread.handle, lun, image)?;
            }
        }
        Ok(assembly)
    }

    fn take_over(
        config: &Config,
        gadget: Gadget,
        parts: Vec<FunctionParts>,
        resumed: Vec<Left>,
        store: Option<&Store>,
        events: impl Fn(Event) + Clone + Send + 'static,
    ) -> anyhow::Result<Self> {
        let mut assembly = Self { gadget: Arc::new(gadget), functions: Vec::new() };
        let mut first = DriveIndex(0);
        for ((function, parts), (handover, resumed)) in config.functions.iter().zip(parts).zip(resumed) {
            let keeper = store.map_or_else(|| Box::new(drop) as Keeper, |store| store.keeper(&function.name));
            // What was behind a URL is taken over only where it was expanded into a file; else it is fetched again.
            let is_used = |((lun, drive), kept): ((u8, _), &KeptDrive)| {
                let is_here = resumed.1.iter().any(|(other, _)| *other == lun);
                kept.number > 0 && (is_here || !held_its_url(drive, kept))
            };
            let used = (0..).zip(&function.drives).zip(&resumed.0).map(is_used).collect();
            let keeping = Keeping { handover, resumed: Some(resumed), keeper };
            let started = start(function, first, parts, events.clone(), Some(keeping))?;
            assembly.functions.push(Function { used, ..started });
            first.0 += u16::try_from(function.drives.len())?;
        }
        tracing::info!(gadget = assembly.gadget.name(), "taken over from the last process");
        Ok(assembly)
    }

    /// The way to each function, and the names of its drives by LUN.
    pub(crate) fn functions(&self) -> impl Iterator<Item = (&Handle, &[String])> {
        self.functions.iter().map(|function| (&function.thread.handle, function.drives.as_slice()))
    }

    /// The drives that have had no image yet, as the configuration has them, and the way to them.
    pub(crate) fn unused_drives<'a>(
        &'a self,
        config: &'a Config,
    ) -> impl Iterator<Item = (DriveIndex, &'a config::Drive, &'a Handle, u8)> {
        let drives = config.functions.iter().zip(&self.functions).flat_map(|(options, function)| {
            let used = function.used.iter().copied().chain(std::iter::repeat(false));
            let drives = (0u8..).zip(&options.drives).zip(used);
            drives.map(|((lun, drive), used)| (drive, &function.thread.handle, lun, used))
        });
        let numbered = (0u16..).zip(drives);
        let unused = numbered.filter(|(_, (.., used))| !used);
        unused.map(|(index, (drive, handle, lun, _))| (DriveIndex(index), drive, handle, lun))
    }

    /// The name of a function of which a thread has ended, which it must not.
    pub(crate) fn ended(&self) -> Option<&str> {
        let has_ended = |function: &&Function| function.thread.join.is_finished() || function.ep0.has_ended();
        let ended = self.functions.iter().find(has_ended)?;
        Some(&ended.name)
    }

    /// Leaves the host to a successor, which has the files of the functions and their state.
    pub(crate) fn leave(self) -> anyhow::Result<()> {
        let Self { gadget, functions } = self;
        // The kernel has what is not stored yet, or an image that is stored now (`await_last_stores`).
        for late in end(functions, |reply| Request::Leave { reply }) {
            tracing::warn!(late, "left as it is");
        }
        if let Some(gadget) = Arc::into_inner(gadget) {
            gadget.leave();
        }
        Ok(())
    }

    /// Off the bus, everything durable, everything removed. Bounded: a storage that does not answer is left behind and told.
    pub(crate) fn stop(self) -> anyhow::Result<()> {
        let Self { gadget, functions } = self;
        let mut lost = Vec::new();
        lost.extend(gadget.unbind().err().map(|error| error.to_string()));
        lost.extend(end(functions, |reply| Request::Stop { reply }));
        if let Some(gadget) = Arc::into_inner(gadget) {
            lost.extend(gadget.teardown().err().map(|error| error.to_string()));
        }
        if lost.is_empty() { Ok(()) } else { bail!(lost.join("; ")) }
    }
}

/// Ends all functions; says what went wrong with it.
fn end(functions: Vec<Function>, request: impl Fn(ReplyTo<Result<(), Refusal>>) -> Request) -> Vec<String> {
    let mut lost = Vec::new();
    let mut answered = true;
    let deadline = Instant::now() + STOP_TIMEOUT;
    let (tell, answers) = bounded::<(String, Result<(), Refusal>)>(functions.len());
    for function in &functions {
        let (tell, name) = (tell.clone(), function.name.clone());
        let reply = ReplyTo::new(move |result| drop(tell.try_send((name, result))));
        function.thread.handle.send(request(reply));
    }
    drop(tell);
    for _ in &functions {
        match answers.recv_deadline(deadline) {
            Ok((_, Ok(()))) => {}
            Ok((name, Err(refusal))) => lost.push(format!("function {name:?}: {refusal}")),
            Err(RecvTimeoutError::Timeout) => {
                answered = false;
                lost.push(
                    "the storage of an image does not answer; what was written last may be lost".into(),
                );
                break;
            }
            Err(RecvTimeoutError::Disconnected) => break,
        }
    }
    // A thread that waits for a storage is left to the end of the process.
    let has_ended = |function: &Function| {
        while !function.thread.join.is_finished() && Instant::now() < deadline {
            std::thread::sleep(LOOK_EVERY);
        }
        function.thread.join.is_finished()
    };
    for function in functions.into_iter().filter(|function| answered && has_ended(function)) {
        match function.thread.join.join() {
            Ok(Ok(())) => {}
            Ok(Err(error)) => lost.push(format!("function {:?}: {error}", function.name)),
            Err(_) => lost.push(format!("function {:?}: its thread panicked", function.name)),
        }
    }
    lost
}

fn start(
    function: &config::Function,
    first: DriveIndex,
    parts: FunctionParts,
    events: impl Fn(Event) + Send + 'static,
    keeping: Option<Keeping>,
) -> anyhow::Result<Function> {
    let drives = function.drives.iter().map(drive_options).collect::<anyhow::Result<Vec<_>>>()?;
    let options = FunctionOptions { name: function.name.clone(), first, stall: function.stall, drives };
    let context = || format!("cannot start the function {:?}", function.name);
    let thread =
        FunctionThread::start(options, function.schedule, parts.endpoints, Box::new(events), keeping)
            .with_context(context)?;
    let ep0 = parts.ep0.start(Box::new(thread.bus())).with_context(context)?;
    let drives = function.drives.iter().map(|drive| drive.name.clone()).collect();
    Ok(Function { name: function.name.clone(), thread, drives, used: Vec::new(), ep0 })
}

pub(crate) fn insert(handle: &Handle, lun: u8, image: Box<dyn Medium>) -> anyhow::Result<()> {
    let (tell, answer) = bounded(1);
    let reply = ReplyTo::new(move |result| drop(tell.send(result)));
    handle.send(Request::Insert { lun, image, reply });
    answer.recv_timeout(ANSWER_TIMEOUT).context("the function does not answer")??;
    Ok(())
}

fn drive_options(drive: &config::Drive) -> anyhow::Result<DriveOptions> {
    let identity = Identity::new(&drive.vendor, &drive.product, &drive.revision, &drive.serial)
        .with_context(|| format!("drive {:?}", drive.name))?;
    let config::Drive { name, kind, rw, block_size, deadline, .. } = drive;
    Ok(DriveOptions {
        name: name.clone(),
        kind: *kind,
        identity,
        rw: *rw,
        block_size: *block_size,
        deadline: *deadline,
    })
}

fn gadget_options(config: &Config, outlived: bool) -> (GadgetOptions, Placement) {
    let functions = config
        .functions
        .iter()
        .map(|function| gadget::FunctionOptions {
            name: function.name.clone(),
            engine: if outlived { function.engine.outlived() } else { function.engine },
            schedule: function.schedule,
            last_lun: u8::try_from(function.drives.len().saturating_sub(1)).unwrap_or(u8::MAX),
            interface_name: "ringdrive".into(),
            mount: function.mount.clone(),
        })
        .collect();
    let runtime_dir = PathBuf::from(gadget::RUNTIME_DIR);
    match &config.gadget {
        config::Gadget::Own(own) => {
            let options = GadgetOptions {
                name: own.name.clone(),
                vendor_id: own.vendor_id.get(),
                product_id: own.product_id,
                device_release: own.device_release,
                manufacturer: own.manufacturer.clone(),
                product: own.product.clone(),
                serial: own.serial.clone(),
                max_speed: own.max_speed,
                max_power_ma: own.max_power_ma,
                udc: own.udc.clone(),
                functions,
                runtime_dir,
            };
            (options, Placement::Own)
        }
        config::Gadget::Guest => {
            // What the host sees of the gadget is its composer's; the first function's name is unique on this machine.
            let name = config.functions.first().map_or("ringdrive", |function| &function.name);
            let options = GadgetOptions {
                name: format!("guest-{name}"),
                vendor_id: 0,
                product_id: 0,
                device_release: 0,
                manufacturer: String::new(),
                product: String::new(),
                serial: String::new(),
                max_speed: Speed::Super,
                max_power_ma: 0,
                udc: None,
                functions,
                runtime_dir,
            };
            (options, Placement::Guest)
        }
    }
}
