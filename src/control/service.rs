//! What each method does. Runs on the server's thread and never blocks: what may is put on a thread of its own.

use std::io::{self, Read};
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::thread::{self, JoinHandle};

use parking_lot::Mutex;
use serde_json::{Value, json};

use super::failure::{ErrorKind, Failure};
use super::inbox::{Pending, Reply};
use super::insert::{Insert, Permit, Source};
use super::overlay::{Act, Action};
use super::protocol::{
    Call, Change, DriveRef, DriveReport, InsertParams, OverlayParams, PROTOCOL_VERSION, drive_result,
};
use super::server::{Daemon, FunctionHandle};
use super::stats::Detail;
use crate::drive::{DriveIndex, DriveState, DriveStatistics, Handle, Refusal, ReplyTo, Request, Setting};
use crate::media::overlay::Overlays;

/// The drives, their locks, and the daemon.
pub(super) struct Service {
    functions: Vec<Handle>,
    drives: Vec<Place>,
    daemon: Arc<dyn Daemon>,
    opening: Arc<AtomicUsize>,
    /// Set while the gadget is being plugged in again.
    replugging: Arc<AtomicBool>,
    replug: Option<JoinHandle<()>>,
}

/// Where a drive is, and who holds it.
struct Place {
    name: String,
    function: Handle,
    lun: u8,
    key: Option<String>,
}

impl Service {
    pub(super) fn new(functions: Vec<FunctionHandle>, daemon: Arc<dyn Daemon>) -> Self {
        let mut drives = Vec::new();
        for function in &functions {
            for (lun, name) in (0_u8..).zip(&function.drives) {
                let (name, function) = (name.clone(), function.handle.clone());
                drives.push(Place { name, function, lun, key: None });
            }
        }
        let functions = functions.into_iter().map(|function| function.handle).collect();
        Self { functions, drives, daemon, opening: Arc::default(), replugging: Arc::default(), replug: None }
    }

    /// Carries out a call that is about drives. The answer goes through `pending`, now or later.
    pub(super) fn call(&mut self, call: Call, descriptors: Vec<OwnedFd>, pending: Pending) {
        let done = match call {
            Call::State => {
                let request = |reply| Request::State { reply };
                return Gather::ask(&self.functions, pending, request, Reply::Drives);
            }
            Call::Stats(None) => {
                let request = |reply| Request::Stats { lun: None, reply };
                let reply = |drives| Reply::Stats(drives, Detail::Brief);
                return Gather::ask(&self.functions, pending, request, reply);
            }
            Call::Stats(Some(drive)) => match self.find(&drive) {
                Ok(at) => return self.stats(at, pending),
                Err(failure) => Err(failure),
            },
            Call::Insert(params) => match self.insert(params, descriptors) {
                Ok((insert, permit)) => return spawn(permit, pending, move |pending| insert.run(pending)),
                Err(failure) => Err(failure),
            },
            Call::Eject(params) => match self.unlocked(&params.drive, params.key.as_deref()) {
                Ok((drive, place)) => return eject(drive, place, params.force, pending),
                Err(failure) => Err(failure),
            },
            Call::Set(drive, key, change) => match self.unlocked(&drive, key.as_deref()) {
                Ok((drive, place)) => return set(drive, place, change, pending),
                Err(failure) => Err(failure),
            },
            Call::Overlay(params, action) => match self.overlay(&params, action) {
                Ok((act, permit)) => return spawn(permit, pending, move |pending| act.run(pending)),
                Err(failure) => Err(failure),
            },
            Call::Lock(params) => self.lock(&params.drive, params.key),
            Call::Unlock(params) => self.unlock(&params.drive, params.key.as_deref(), params.force),
            Call::Replug => return self.replug(pending),
            Call::Version => Ok(json!({"version": env!("CARGO_PKG_VERSION"), "protocol": PROTOCOL_VERSION})),
            // The connection's: the server answers them before it asks us.
            Call::Subscribe(_) | Call::Shutdown => Ok(json!({})),
        };
        pending.answer(done.map(Reply::Value));
    }

    pub(super) fn shutdown(&self) {
        self.daemon.shutdown();
    }

    /// Adds to the states what only the server and the daemon know.
    pub(super) fn report(&self, drives: Vec<DriveState>) -> Value {
        let locked = |state: &DriveState| {
            self.drives.get(usize::from(state.drive.0)).is_some_and(|place| place.key.is_some())
        };
        let awaited = self.daemon.awaited();
        let report = |drive: DriveState| {
            let waits = awaited.iter().find(|(waiting, _)| *waiting == drive.drive);
            let awaited = waits.map(|(_, awaited)| awaited.clone());
            DriveReport { locked: locked(&drive), drive, awaited }
        };
        let reports: Vec<_> = drives.into_iter().map(report).collect();
        json!({"drives": reports, "areas": self.daemon.areas()})
    }

    fn stats(&self, at: usize, pending: Pending) {
        let Some(place) = self.drives.get(at) else { return };
        let reply = ReplyTo::new(|drives: Vec<DriveStatistics>| {
            pending.answer(match drives.is_empty() {
                true => Err(Failure::from(&Refusal::Stopped)),
                false => Ok(Reply::Stats(drives, Detail::Full)),
            });
        });
        place.function.send(Request::Stats { lun: Some(place.lun), reply });
    }

    fn replug(&mut self, pending: Pending) {
        if self.replugging.swap(true, Ordering::Acquire) {
            let cause = "the gadget is being plugged in again already";
            return pending.answer(Err(Failure::new(ErrorKind::Busy, cause, "wait for it")));
        }
        self.join_replug();
        let (daemon, replugging) = (Arc::clone(&self.daemon), Arc::clone(&self.replugging));
        let thread = thread::Builder::new().name("control-replug".to_owned()).spawn(move || {
            let result = daemon.replug();
            replugging.store(false, Ordering::Release);
            pending.answer(match result {
                Ok(()) => Ok(Reply::Value(json!({}))),
                Err(message) => Err(Failure::from_message(ErrorKind::Replug, &message)),
            });
        });
        match thread {
            Ok(thread) => self.replug = Some(thread),
            // The closure is gone, and has answered as it went.
            Err(error) => {
                self.replugging.store(false, Ordering::Release);
                tracing::error!(%error, "cannot start a thread to plug the gadget in again");
            }
        }
    }

    fn join_replug(&mut self) {
        if let Some(thread) = self.replug.take()
            && thread.join().is_err()
        {
            tracing::error!("the thread that plugs the gadget in again has panicked");
        }
    }

    fn find(&self, drive: &DriveRef) -> Result<usize, Failure> {
        let found = match drive {
            DriveRef::Index(index) => usize::try_from(*index).ok().filter(|index| *index < self.drives.len()),
            DriveRef::Name(name) => self.drives.iter().position(|place| place.name == *name),
        };
        found.ok_or_else(|| {
            let names: Vec<_> = self
                .drives
                .iter()
                .enumerate()
                .map(|(index, place)| format!("{index} {:?}", place.name))
                .collect();
            let shown: String = drive.to_string().chars().take(64).collect();
            Failure::new(
                ErrorKind::NoSuchDrive,
                format!("there is no drive {shown}"),
                format!("the drives are {}", names.join(", ")),
            )
        })
    }

    /// The drive, if nobody else holds it.
    fn unlocked(&self, drive: &DriveRef, key: Option<&str>) -> Result<(DriveIndex, &Place), Failure> {
        let at = self.find(drive)?;
        let index = DriveIndex(u16::try_from(at).map_err(|_| Failure::from(&Refusal::Stopped))?);
        let place = self.drives.get(at).ok_or_else(|| Failure::from(&Refusal::Stopped))?;
        match &place.key {
            Some(held) if key != Some(held) => Err(locked(place)),
            _ => Ok((index, place)),
        }
    }

    fn insert(&self, params: InsertParams, descriptors: Vec<OwnedFd>) -> Result<(Insert, Permit), Failure> {
        let (overlay, manner) = (params.overlay()?, params.manner());
        if overlay.is_some() {
            self.overlays()?;
        }
        let source = Source::new(params.source()?, descriptors, self.daemon.cache())?;
        let (drive, place) = self.unlocked(&params.drive, params.key.as_deref())?;
        let InsertParams { kind, rw, .. } = params;
        let expander = self.daemon.expander().cloned();
        let insert = Insert {
            function: place.function.clone(),
            drive,
            lun: place.lun,
            source,
            kind,
            rw,
            overlay,
            overlays: self.daemon.overlays().cloned(),
            expander,
            manner,
        };
        Ok((insert, self.permit()?))
    }

    fn overlay(&self, params: &OverlayParams, action: Action) -> Result<(Act, Permit), Failure> {
        let (drive, place) = self.unlocked(&params.drive, params.key.as_deref())?;
        let (function, lun, force) = (place.function.clone(), place.lun, params.force);
        let act = Act { function, drive, lun, action, force, overlays: self.overlays()? };
        Ok((act, self.permit()?))
    }

    fn overlays(&self) -> Result<Arc<Overlays>, Failure> {
        self.daemon.overlays().cloned().ok_or_else(|| {
            Failure::new(ErrorKind::Overlay, "this daemon has no overlays", "insert the image without one")
        })
    }

    fn permit(&self) -> Result<Permit, Failure> {
        Permit::take(&self.opening).ok_or_else(|| {
            Failure::new(
                ErrorKind::Busy,
                "too many images are being opened; perhaps a file server does not answer",
                "try again later",
            )
        })
    }

    fn lock(&mut self, drive: &DriveRef, key: Option<String>) -> Result<Value, Failure> {
        let (index, _) = self.unlocked(drive, key.as_deref())?;
        let key = match key {
            Some(key) => key,
            None => new_key().map_err(|error| {
                Failure::new(ErrorKind::Busy, format!("cannot make a key: {error}"), "choose one: give `key`")
            })?,
        };
        if let Some(place) = self.drives.get_mut(usize::from(index.0)) {
            place.key = Some(key.clone());
        }
        Ok(json!({"drive": index, "key": key}))
    }

    fn unlock(&mut self, drive: &DriveRef, key: Option<&str>, force: bool) -> Result<Value, Failure> {
        let at = self.find(drive)?;
        let Some(place) = self.drives.get_mut(at) else { return Err(Failure::from(&Refusal::Stopped)) };
        match &place.key {
            None => Err(Failure::new(
                ErrorKind::NotLocked,
                format!("drive {:?} is not locked", place.name),
                "there is nothing to do",
            )),
            Some(held) if !force && key != Some(held) => Err(locked(place)),
            Some(_) => {
                place.key = None;
                Ok(json!({"drive": at}))
            }
        }
    }
}

impl Drop for Service {
    /// Whoever ends the server takes the gadget down next: nobody may hold it any more.
    fn drop(&mut self) {
        self.join_replug();
    }
}

fn locked(place: &Place) -> Failure {
    Failure::new(
        ErrorKind::Locked,
        format!("drive {:?} is locked", place.name),
        "give the `key` that lock returned, or unlock it by force",
    )
}

/// A key by which one client tells itself from others: against mistakes, not against malice.
fn new_key() -> io::Result<String> {
    let mut bytes = [0; 8];
    std::fs::File::open("/dev/urandom")?.read_exact(&mut bytes)?;
    Ok(format!("{:016x}", u64::from_le_bytes(bytes)))
}

fn eject(drive: DriveIndex, place: &Place, force: bool, pending: Pending) {
    let reply = ReplyTo::new(move |result: Result<String, Refusal>| {
        pending.answer(match result {
            Ok(image) => Ok(Reply::Value(json!({"drive": drive, "image": image}))),
            Err(refusal) => Err(Failure::from(&refusal)),
        });
    });
    place.function.send(Request::Eject { lun: place.lun, force, reply });
}

fn set(drive: DriveIndex, place: &Place, change: Change, pending: Pending) {
    let setting = match change {
        Change::ReadWrite(rw) => Setting::ReadWrite(rw),
        Change::Kind(kind) => Setting::Kind(kind),
        Change::Stall(stall) => Setting::Stall(stall),
    };
    let reply = ReplyTo::new(move |result: Result<(), Refusal>| {
        pending.answer(match result {
            Ok(()) => Ok(Reply::Value(drive_result(drive))),
            Err(refusal) => Err(Failure::from(&refusal)),
        });
    });
    place.function.send(Request::Set { lun: place.lun, setting, reply });
}

/// Does `work`, which may block, on a thread of its own.
fn spawn(permit: Permit, pending: Pending, work: impl FnOnce(Pending) + Send + 'static) {
    let thread = thread::Builder::new().name("control-open".to_owned());
    let spawned = thread.spawn(move || {
        work(pending);
        drop(permit);
    });
    // The closure, and with it the request, is gone; dropping it has answered.
    if let Err(error) = spawned {
        tracing::error!(%error, "cannot start a thread to open an image");
    }
}

/// The answers of all functions to one question about all drives.
struct Gather<T> {
    parts: Vec<Option<Vec<T>>>,
    missing: usize,
    pending: Option<Pending>,
    reply: fn(Vec<T>) -> Reply,
}

impl<T: Send + 'static> Gather<T> {
    /// Asks all functions; answers once they have.
    fn ask(
        functions: &[Handle],
        pending: Pending,
        request: impl Fn(ReplyTo<Vec<T>>) -> Request,
        reply: fn(Vec<T>) -> Reply,
    ) {
        let parts = functions.iter().map(|_| None).collect();
        let gather = Self { parts, missing: functions.len(), pending: Some(pending), reply };
        let gather = Arc::new(Mutex::new(gather));
        for (part, function) in functions.iter().enumerate() {
            let gather = Arc::clone(&gather);
            function.send(request(ReplyTo::new(move |drives| gather.lock().put(part, drives))));
        }
    }

    fn put(&mut self, part: usize, drives: Vec<T>) {
        if let Some(place @ None) = self.parts.get_mut(part) {
            *place = Some(drives);
            self.missing -= 1;
        }
        if self.missing == 0
            && let Some(pending) = self.pending.take()
        {
            pending.answer(Ok((self.reply)(self.parts.drain(..).flatten().flatten().collect())));
        }
    }
}
