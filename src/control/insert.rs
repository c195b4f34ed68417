//! Inserting: the one request that may block, because opening a file on a server that is gone does. Runs on a thread of its
//! own, whose number is bounded; the server's thread and the functions' threads never wait for it.

use std::fs::File;
use std::os::fd::OwnedFd;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use serde_json::json;

use super::OPENING_MAX;
use super::failure::{ErrorKind, Failure, with_sources};
use super::inbox::{EventSink, Pending, Reply};
use super::overlay;
use super::protocol::ImageSource;
use super::source::UrlSource;
use crate::drive::{DriveIndex, DriveState, Event, Handle, Refusal, ReplyTo, Request};
use crate::media::compressed::{Expander, OpenError};
use crate::media::overlay::{Overlays, Place};
use crate::media::qcow2::{Container, Manner, Qcow2, Qcow2Error};
use crate::media::url::{Cache, Report, Reporter, UrlOptions, shown};
use crate::media::{Access, Image, Medium};
use crate::scsi::Kind;
use crate::units::BlockSize;

/// How long a function's thread may take to say what its drives are. It answers between two commands of the host.
const STATE_TIMEOUT: Duration = Duration::from_secs(5);
/// Time between two events about an image that is being expanded.
const REPORT_EVERY: Duration = Duration::from_millis(250);

/// The right to one thread that may block.
#[derive(Debug)]
pub(super) struct Permit(Arc<AtomicUsize>);

impl Permit {
    /// `None` where [`OPENING_MAX`] are taken.
    pub(super) fn take(taken: &Arc<AtomicUsize>) -> Option<Self> {
        let permit = Self(Arc::clone(taken));
        let before = taken.fetch_add(1, Ordering::Relaxed);
        // Otherwise dropped here, which gives it back.
        (before < OPENING_MAX).then_some(permit)
    }
}

impl Drop for Permit {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

/// An `insert` that has passed the server's checks.
#[derive(Debug)]
pub(super) struct Insert {
    pub(super) function: Handle,
    pub(super) drive: DriveIndex,
    pub(super) lun: u8,
    pub(super) source: Source,
    pub(super) kind: Option<Kind>,
    pub(super) rw: Option<bool>,
    pub(super) overlay: Option<Place>,
    pub(super) overlays: Option<Arc<Overlays>>,
    pub(super) expander: Option<Arc<Expander>>,
    pub(super) manner: Manner,
}

/// An image that is not opened yet.
#[derive(Debug)]
pub(super) enum Source {
    Path(String),
    Descriptor { descriptor: OwnedFd, name: String },
    Url { source: UrlSource, cache: Arc<Cache> },
}

impl Source {
    /// What it is, if it is a file that holds a disk and is none.
    fn container(&self, manner: Manner) -> Option<Container> {
        match self {
            Self::Path(path) => manner.container(Path::new(path)),
            Self::Descriptor { .. } if manner.raw => None,
            Self::Descriptor { descriptor, .. } => Container::of(&File::from(descriptor.try_clone().ok()?)),
            Self::Url { .. } => None,
        }
    }

    /// Joins what the request says with the descriptors that came with it.
    pub(super) fn new(
        source: ImageSource,
        mut descriptors: Vec<OwnedFd>,
        cache: Option<&Arc<Cache>>,
    ) -> Result<Self, Failure> {
        match (source, descriptors.len()) {
            (ImageSource::Path(path), _) => Ok(Self::Path(path)),
            (ImageSource::Url(source), _) => match cache {
                Some(cache) => Ok(Self::Url { source, cache: Arc::clone(cache) }),
                None => Err(Failure::new(
                    ErrorKind::Url,
                    "this daemon fetches no images from URLs",
                    "download it, and insert the file",
                )),
            },
            (ImageSource::Descriptor { name }, 1) => match descriptors.pop() {
                Some(descriptor) => Ok(Self::Descriptor { descriptor, name }),
                None => Err(no_descriptor()),
            },
            (ImageSource::Descriptor { .. }, 0) => Err(no_descriptor()),
            (ImageSource::Descriptor { .. }, _) => Err(Failure::new(
                ErrorKind::Descriptor,
                "several file descriptors came with the request",
                "send exactly one",
            )),
        }
    }
}

fn no_descriptor() -> Failure {
    Failure::new(
        ErrorKind::Descriptor,
        "no file descriptor came with the request",
        "send one with SCM_RIGHTS in the sendmsg that sends the line",
    )
}

impl Insert {
    /// Opens the image and hands it to the function; may block for as long as a file server does.
    pub(super) fn run(self, pending: Pending) {
        let (function, drive, lun) = (self.function.clone(), self.drive, self.lun);
        let opened = current_state(&function, lun).and_then(|state| self.open(&state, &pending));
        match opened {
            Err(failure) => pending.answer(Err(failure)),
            // An image that appears long after its client gave up would surprise somebody.
            Ok(_) if !pending.is_wanted() => {}
            Ok(image) => function.send(Request::Insert {
                lun,
                image,
                reply: ReplyTo::new(move |result: Result<_, Refusal>| {
                    pending.answer(match result {
                        Ok(image) => Ok(Reply::Value(json!({"drive": drive, "image": image}))),
                        Err(refusal) => Err(Failure::from(&refusal)),
                    });
                }),
            }),
        }
    }
}

impl Insert {
    fn open(self, state: &DriveState, pending: &Pending) -> Result<Box<dyn Medium>, Failure> {
        let Self { source, kind, overlay, overlays, expander, manner, .. } = self;
        let rw = if overlay.is_some() { Some(true) } else { self.rw };
        let (access, block_size) = (check(state, kind, rw)?, state.block_size);
        // An overlay looks for itself what it is over.
        let looks = overlays.is_some() && overlay.is_none();
        let container = if looks { source.container(manner) } else { None };
        let how = (access, block_size);
        match (source, overlays, container) {
            (Source::Path(path), Some(overlays), _) if let Some(place) = &overlay => {
                overlay::open(&overlays, Path::new(&path), place, block_size, manner)
            }
            (Source::Path(path), Some(overlays), Some(container)) => {
                open_qcow2(Path::new(&path), container, how, rw, manner, &overlays)
            }
            (Source::Descriptor { descriptor, name }, _, Some(container)) => {
                let how = (read_only_if(true, access, rw), block_size);
                boxed(Qcow2::from_fd(descriptor, name.into(), container, how))
            }
            (Source::Path(path), ..) if let Some(expander) = expander.filter(|_| !manner.raw) => {
                open_path(state, path, rw, how, &expander, pending)
            }
            (Source::Path(path), ..) => boxed(Image::open(Path::new(&path), access, block_size)),
            (Source::Descriptor { descriptor, name }, ..) => {
                boxed(Image::from_fd(descriptor, name.into(), access, block_size))
            }
            (Source::Url { source, cache }, ..) => open_url(state, source, &cache, rw, pending),
        }
    }
}

/// One that cannot be written to is read-only also in a drive whose images are writable, unless somebody asks for more.
fn open_qcow2(
    path: &Path,
    container: Container,
    (access, block_size): (Access, BlockSize),
    rw: Option<bool>,
    manner: Manner,
    overlays: &Overlays,
) -> Result<Box<dyn Medium>, Failure> {
    let open = |access| Qcow2::open(path, container, (access, block_size), manner, overlays.runtime_dir());
    boxed(match open(access) {
        Err(error) if rw != Some(true) && error.is_about_writing() => open(Access::ReadOnly),
        opened => opened,
    })
}

/// What is never written to is read-only also in a drive whose images are writable, unless somebody asks for more.
fn read_only_if(never: bool, access: Access, rw: Option<bool>) -> Access {
    if never && rw != Some(true) { Access::ReadOnly } else { access }
}

pub(super) fn current_state(function: &Handle, lun: u8) -> Result<DriveState, Failure> {
    let (tx, rx) = crossbeam_channel::bounded(1);
    function.send(Request::State {
        reply: ReplyTo::new(move |drives| {
            // Nobody waits any more: nothing to do.
            let _ = tx.send(drives);
        }),
    });
    rx.recv_timeout(STATE_TIMEOUT)
        .ok()
        .and_then(|drives: Vec<DriveState>| drives.into_iter().find(|state| state.lun == lun))
        .ok_or_else(|| Failure::from(&Refusal::Stopped))
}

/// What can be refused without opening is; the drive checks again, because it may change meanwhile.
fn check(state: &DriveState, kind: Option<Kind>, rw: Option<bool>) -> Result<Access, Failure> {
    if let Some(wanted) = kind
        && wanted != state.kind
    {
        return Err(Failure::new(
            ErrorKind::WrongKind,
            format!("drive {:?} is not of that kind", state.name),
            "insert into a drive that is, or change the kind of this one with set",
        ));
    }
    if let Some(image) = &state.image {
        return Err(Failure::from(&Refusal::Occupied(image.name.clone())));
    }
    match state.kind {
        Kind::Optical if rw == Some(true) => Err(Failure::from(&Refusal::Optical)),
        Kind::Disk if rw.unwrap_or(state.rw) => Ok(Access::ReadWrite),
        Kind::Disk | Kind::Optical => Ok(Access::ReadOnly),
    }
}

fn boxed<E>(opened: Result<impl Medium + 'static, E>) -> Result<Box<dyn Medium>, Failure>
where
    for<'a> Failure: From<&'a E>,
{
    match opened {
        Ok(image) => Ok(Box::new(image)),
        Err(error) => Err(Failure::from(&error)),
    }
}

impl From<&Qcow2Error> for Failure {
    fn from(error: &Qcow2Error) -> Self {
        Self::from_message(ErrorKind::Image, &with_sources(error))
    }
}

fn open_path(
    state: &DriveState,
    path: String,
    rw: Option<bool>,
    (access, block_size): (Access, BlockSize),
    expander: &Expander,
    pending: &Pending,
) -> Result<Box<dyn Medium>, Failure> {
    let access = read_only_if(Expander::is_compressed(Path::new(&path)), access, rw);
    let (events, drive, mut report_at) = (pending.events(), state.drive, Instant::now());
    let name = path.clone();
    let mut progress = |here, total| {
        if report_at <= Instant::now() {
            events.publish(Event::Fetching { drive, image: name.clone(), here, total: Some(total) });
            report_at = Instant::now() + REPORT_EVERY;
        }
        pending.is_wanted()
    };
    match expander.open(Path::new(&path), access, block_size, &mut progress) {
        Ok(image) => Ok(Box::new(image)),
        Err(error) => {
            let error: &dyn std::error::Error = match &error {
                OpenError::Expand(error) => error,
                OpenError::Image(error) => error,
            };
            Err(Failure::from_message(ErrorKind::Image, &with_sources(error)))
        }
    }
}

/// An image behind a URL is read-only, also in a drive whose images are writable by default.
fn open_url(
    state: &DriveState,
    source: UrlSource,
    cache: &Arc<Cache>,
    rw: Option<bool>,
    pending: &Pending,
) -> Result<Box<dyn Medium>, Failure> {
    if rw == Some(true) {
        let cause = "an image behind a URL cannot be written to";
        return Err(Failure::new(
            ErrorKind::Url,
            cause,
            "insert it read-only, or a file that may be written to",
        ));
    }
    let UrlSource { url, checksum, keep, download, raw, credentials } = source;
    let (name, block_size) = (shown(&url.0), state.block_size);
    let options = UrlOptions { url, checksum, keep, download, raw, credentials, block_size };
    let reporter = pending.events().reporter(state.drive, name);
    let opened = cache.open(&options, &reporter, &|| pending.is_wanted());
    opened.map_err(|error| Failure::from_message(ErrorKind::Url, &with_sources(&error)))
}

impl EventSink {
    /// Tells what becomes of the image behind a URL that is, or will be, in `drive`.
    pub fn reporter(&self, drive: DriveIndex, image: String) -> Reporter {
        let events = self.clone();
        Reporter::new(move |report| events.publish(event(drive, image.clone(), report)))
    }
}

fn event(drive: DriveIndex, image: String, report: Report) -> Event {
    match report {
        Report::Progress { here, total } => Event::Fetching { drive, image, here, total },
        Report::Complete { checked, kept } => Event::Fetched { drive, image, checked, kept },
        Report::Online => Event::SourceOnline { drive, image },
        Report::Offline { cause } => Event::SourceOffline { drive, image, cause },
        Report::Changed { cause } => Event::SourceChanged { drive, image, cause },
        Report::Failed { cause } => Event::SourceFailed { drive, image, cause },
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_more_threads_block_than_may_and_places_come_back() {
        let taken = Arc::default();
        let permits: Vec<_> = (0..OPENING_MAX).map(|_| Permit::take(&taken).unwrap()).collect();
        assert!(Permit::take(&taken).is_none());
        assert!(Permit::take(&taken).is_none());
        drop(permits);
        assert_eq!((0..OPENING_MAX * 2).filter_map(|_| Permit::take(&taken)).count(), OPENING_MAX * 2);
        assert_eq!(taken.load(Ordering::Relaxed), 0);
    }
}
