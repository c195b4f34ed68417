//! `ringdrived`: serves the drives of one configuration until it is told to stop.

mod assembly;
mod later;
mod store;
mod succession;

use std::{io::IsTerminal, os::fd::AsFd, process::ExitCode, sync::Arc, time::Duration};

use anyhow::Context;
use assembly::{Assembly, Begin, Layers};
use clap::Parser;
use later::{InArea, Waiting};
use nix::{
    poll::{PollFd, PollFlags, PollTimeout, poll},
    sys::{
        eventfd::{EfdFlags, EventFd},
        signal::{SigSet, Signal},
        signalfd::{SfdFlags, SignalFd},
    },
};
use ringdrive::{
    cli::DaemonArgs,
    config::Config,
    control::{self, Daemon, EventSink, FunctionHandle, Server, protocol::Awaited},
    drive::{DriveIndex, Event},
    gadget::{Gadget, RUNTIME_DIR},
    media::{self, overlay::Overlays, url::Cache},
    storage::{self, Area, AreaReport, Areas, News, Reconnect},
};
use store::Store;
use tracing_subscriber::EnvFilter;

/// How often to look whether a function's thread has died, which it tells nobody.
const LOOK_AFTER_THREADS: Duration = Duration::from_secs(1);
/// How long the stores of images that only we can store may take, at the end: with all else less than a service manager waits.
const LAST_STORES: Duration = Duration::from_secs(8);

fn main() -> ExitCode {
    let args = DaemonArgs::parse();
    if args.mount_area {
        return storage::mount_for_parent();
    }
    let (has_store, left) = store::find();
    let filter = EnvFilter::try_from_default_env().unwrap_or_else(|_| EnvFilter::new("info"));
    tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(std::io::stderr)
        .with_ansi(std::io::stderr().is_terminal())
        .with_target(false)
        .init();
    match run(&args, has_store, left) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("ringdrived: {}", control::with_sources(error.as_ref()));
            ExitCode::FAILURE
        }
    }
}

fn run(args: &DaemonArgs, has_store: bool, left: store::Left) -> anyhow::Result<()> {
    let config = Config::load(&args.config)?;
    if args.check {
        println!("{}: no mistakes found", args.config.display());
        return Ok(());
    }
    let cache = Cache::new(config.url.clone());
    let overlays = Overlays::new(config.url.dir.clone(), RUNTIME_DIR.into());
    let layers = Layers { overlays, expander: Arc::clone(cache.expander()) };
    // Before any thread starts, so that all of them leave these signals to the loop below.
    let mut signals = SigSet::empty();
    signals.add(Signal::SIGINT);
    signals.add(Signal::SIGTERM);
    signals.thread_block().context("cannot block signals")?;
    let begin = begin(&config, &layers, left, &signals)?;
    let store = has_store.then(Store::start).transpose().context("cannot start a thread")?;
    let flags = SfdFlags::SFD_CLOEXEC | SfdFlags::SFD_NONBLOCK;
    let signals = SignalFd::with_flags(&signals, flags).context("cannot make a signalfd")?;

    let server = Server::bind(&config.control)?;
    let events = server.events();
    let waiting = Arc::new(Waiting::default());
    let reconnect = Reconnect::start().context("cannot start a thread for file servers")?;
    let tell = tell(events.clone(), Arc::clone(&waiting), Arc::new(reconnect));
    let assembly = Assembly::new(&config, begin, &layers, store.as_ref(), tell)?;
    waiting.start(&assembly, &config, &cache, &events);
    let areas = Arc::new(start_areas(&config, &assembly, &layers, events)?);
    let flags = EfdFlags::EFD_CLOEXEC | EfdFlags::EFD_NONBLOCK;
    let shutdown = Arc::new(EventFd::from_flags(flags).context("cannot make an eventfd")?);
    let whole = Whole {
        gadget: Arc::clone(&assembly.gadget),
        shutdown: Arc::clone(&shutdown),
        cache,
        layers,
        areas: Arc::clone(&areas),
        waiting,
    };
    let functions = assembly
        .functions()
        .map(|(handle, drives)| FunctionHandle { handle: handle.clone(), drives: drives.to_vec() })
        .collect();
    let control =
        server.start(functions, Arc::new(whole)).context("cannot start the control socket's thread")?;
    assembly.gadget.bind()?;
    tracing::info!(gadget = assembly.gadget.name(), socket = %config.control.socket.display(), "ready");
    notify(sd_notify::NotifyState::Ready);

    let ended = wait(&signals, &shutdown, &assembly);
    notify(sd_notify::NotifyState::Stopping);
    leave_at_second(signals);
    let leaves =
        store.is_some() && ended.as_ref().map_or(true, |ended| *ended == Ended::Signal(Signal::SIGTERM));
    let stopped = stop(control, assembly, leaves);
    if leaves {
        // Images in them are kept.
        std::mem::forget(areas);
    } else {
        // After what was written to images in them; the control thread, which held them too, has ended.
        drop(areas);
    }
    match (ended, stopped) {
        (Err(ended), Err(stopped)) => Err(ended.context(stopped.to_string())),
        (ended, stopped) => ended.map(drop).and(stopped),
    }
}

/// With what the last process has left, if that is to be had; else with images that are opened while a signal still ends the process.
fn begin(config: &Config, layers: &Layers, left: store::Left, signals: &SigSet) -> anyhow::Result<Begin> {
    if let Some(successions) = succession::find(config, layers, left) {
        return Ok(Begin::TakenOver(successions));
    }
    signals.thread_unblock().context("cannot unblock signals")?;
    let images = assembly::open_images(config, layers)?;
    signals.thread_block().context("cannot block signals")?;
    Ok(Begin::Anew(images))
}

/// Who hears of what drives tell: clients, and whoever waits for it here.
fn tell(
    events: EventSink,
    waiting: Arc<Waiting>,
    reconnect: Arc<Reconnect>,
) -> impl Fn(Event) + Clone + Send + 'static {
    move |event| {
        waiting.notice(&event);
        if matches!(event, Event::SourceOffline { .. }) {
            reconnect.wake();
        }
        events.publish(event);
    }
}

/// What the end of this process was asked by.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Ended {
    Signal(Signal),
    Client,
}

/// Mounts the areas, and inserts the images of the configuration that lie in them as soon as they are there.
fn start_areas(
    config: &Config,
    assembly: &Assembly,
    layers: &Layers,
    events: EventSink,
) -> anyhow::Result<Areas> {
    let layers = layers.clone();
    let later = Arc::new(InArea::all(assembly, config));
    let tell = move |area: &Area, news: News| {
        let name = area.name.clone();
        match news {
            News::Mounted => {
                let (source, path) = (area.source.to_string(), area.path.display().to_string());
                tracing::info!(area = name, source, path, "mounted");
                events.publish(Event::AreaMounted { area: name, source, path });
                InArea::insert_all_below(&later, &area.path, &layers);
            }
            News::Lost { cause } => {
                tracing::warn!(area = name, cause, "an area cannot be used");
                events.publish(Event::AreaLost { area: name, cause });
            }
        }
    };
    Areas::start(config.areas.clone(), tell).context("cannot start the threads of the areas")
}

/// Whoever asks twice does not want to wait for storage that does not answer; the kernel takes the gadget off the bus.
fn leave_at_second(signals: SignalFd) {
    let watch = move || {
        let mut fds = [PollFd::new(signals.as_fd(), PollFlags::POLLIN)];
        if poll(&mut fds, PollTimeout::NONE).is_ok() {
            eprintln!("ringdrived: ended by a second signal; what was written last may be lost");
            std::process::exit(1);
        }
    };
    // Without a thread the first signal has to do.
    let _ = std::thread::Builder::new().name("signals".into()).spawn(watch);
}

/// Until a signal, a client, or the death of a function's thread ends it.
fn wait(signals: &SignalFd, shutdown: &EventFd, assembly: &Assembly) -> anyhow::Result<Ended> {
    let timeout = PollTimeout::try_from(LOOK_AFTER_THREADS).unwrap_or(PollTimeout::MAX);
    loop {
        let mut fds = [signals.as_fd(), shutdown.as_fd()].map(|fd| PollFd::new(fd, PollFlags::POLLIN));
        match poll(&mut fds, timeout) {
            Ok(0) | Err(nix::Error::EINTR) => {}
            Ok(_) => {
                // Taken, so that a second one is seen.
                let signal = signals.read_signal().ok().flatten();
                let signal =
                    signal.and_then(|info| Signal::try_from(i32::try_from(info.ssi_signo).ok()?).ok());
                return Ok(signal.map_or(Ended::Client, Ended::Signal));
            }
            Err(error) => return Err(error).context("cannot wait for signals"),
        }
        if let Some(name) = assembly.ended() {
            anyhow::bail!("the function {name:?} has failed; see the log above");
        }
    }
}

/// Without `leaves` nothing is left to a successor, and nothing that was kept for one may keep the gadget.
fn stop(control: control::Running, assembly: Assembly, leaves: bool) -> anyhow::Result<()> {
    tracing::info!(leaves, "stopping");
    // Its thread holds the gadget, which the assembly must be the last to hold.
    control.stop();
    let stopped = if leaves {
        assembly.leave()
    } else {
        store::forget_all();
        assembly.stop()
    };
    if !media::await_last_stores(LAST_STORES) {
        tracing::error!("what a host wrote last to a qcow2 image could not be stored in time and is lost");
    }
    stopped
}

/// A service manager that does not listen is no reason not to serve.
fn notify(state: sd_notify::NotifyState<'_>) {
    if let Err(error) = sd_notify::notify(&[state]) {
        tracing::debug!(%error, "nobody to notify");
    }
}

/// What the control socket may ask of all functions at once.
struct Whole {
    gadget: Arc<Gadget>,
    shutdown: Arc<EventFd>,
    cache: Arc<Cache>,
    layers: Layers,
    areas: Arc<Areas>,
    waiting: Arc<Waiting>,
}

impl Daemon for Whole {
    fn replug(&self) -> Result<(), String> {
        self.gadget.replug().map_err(|error| error.to_string())
    }

    fn shutdown(&self) {
        // A full counter is a shutdown that is under way already.
        let _ = self.shutdown.write(1);
    }

    fn cache(&self) -> Option<&Arc<Cache>> {
        Some(&self.cache)
    }

    fn overlays(&self) -> Option<&Arc<Overlays>> {
        Some(&self.layers.overlays)
    }

    fn areas(&self) -> Vec<AreaReport> {
        self.areas.report()
    }

    fn awaited(&self) -> Vec<(DriveIndex, Awaited)> {
        self.waiting.report()
    }
}
