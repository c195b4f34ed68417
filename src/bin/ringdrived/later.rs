//! Images of the configuration that are inserted when they can be had: those in areas when these are mounted for the first time, those
//! behind URLs when their servers answer. Neither the start of the daemon nor anybody else waits for them.
//!
//! ```text
//!   awaited ──► fetched as `insert` does ──► inserted
//!    ▲   │                │ refused
//!    └───┼── pause ◄──────┘
//!        └──► given up: another image has come into the drive
//! ```

use std::{
    path::{Path, PathBuf},
    sync::Arc,
    thread,
    time::{Duration, Instant},
};

use parking_lot::{Condvar, Mutex};
use ringdrive::{
    config::{self, Config, StartImage},
    control::{self, EventSink, protocol::Awaited},
    drive::{DriveIndex, Event, Handle, block_size},
    media::url::{Cache, Secret, UrlOptions, shown},
};

use crate::assembly::{self, Assembly, Layers};

/// Pauses between two tries, as of an area.
const PAUSE_MIN: Duration = Duration::from_secs(1);
const PAUSE_MAX: Duration = Duration::from_secs(30);
/// Where what the server has is no image: all of it is fetched to find that out.
const PAUSE_CONTENTS: Duration = Duration::from_secs(600);

/// A configured image in an area, which is mounted when its server answers.
pub(crate) struct InArea {
    drive: config::Drive,
    path: PathBuf,
    handle: Handle,
    lun: u8,
}

impl InArea {
    pub(crate) fn all(assembly: &Assembly, config: &Config) -> Mutex<Vec<Self>> {
        let in_area = |(_, drive, handle, lun): (DriveIndex, &config::Drive, &Handle, u8)| {
            let path = assembly::path(drive).filter(|path| assembly::is_in_area(config, path))?.to_owned();
            Some(Self { drive: drive.clone(), path, handle: handle.clone(), lun })
        };
        Mutex::new(assembly.unused_drives(config).filter_map(in_area).collect())
    }

    /// Inserts those below `dir`, each once, on a thread of their own: the server may be gone again.
    pub(crate) fn insert_all_below(all: &Mutex<Vec<Self>>, dir: &Path, layers: &Layers) {
        let here: Vec<_> = all.lock().extract_if(.., |later| later.path.starts_with(dir)).collect();
        if here.is_empty() {
            return;
        }
        let layers = layers.clone();
        let insert_all = move || {
            for Self { drive, path, handle, lun } in here {
                let opened = assembly::open(&drive, &path, &layers);
                let inserted = opened.and_then(|image| assembly::insert(&handle, lun, image));
                if let Err(error) = inserted {
                    let error = control::with_sources(error.as_ref());
                    tracing::warn!(drive = drive.name, error, "the configured image is not inserted");
                }
            }
        };
        if let Err(error) = thread::Builder::new().name("area-images".into()).spawn(insert_all) {
            tracing::error!(%error, "cannot start a thread to insert the images of an area");
        }
    }
}

/// The drives that wait for their image from a URL.
#[derive(Debug, Default)]
pub(crate) struct Waiting {
    drives: Mutex<Vec<(DriveIndex, Awaited)>>,
    fewer: Condvar,
}

/// An image behind a URL, and where it goes.
struct BehindUrl {
    drive: DriveIndex,
    name: String,
    handle: Handle,
    lun: u8,
    options: UrlOptions,
}

impl Waiting {
    /// Starts to fetch all; waits for none.
    pub(crate) fn start(
        self: &Arc<Self>,
        assembly: &Assembly,
        config: &Config,
        cache: &Arc<Cache>,
        events: &EventSink,
    ) {
        for (drive, options, handle, lun) in assembly.unused_drives(config) {
            let Some(StartImage::Url(url)) = &options.image else { continue };
            let image = BehindUrl {
                drive,
                name: options.name.clone(),
                handle: handle.clone(),
                lun,
                options: url_options(url, options),
            };
            self.drives.lock().push((drive, Awaited { image: shown(&url.0), cause: None }));
            let (waiting, cache, events) = (Arc::clone(self), Arc::clone(cache), events.clone());
            let insert = move || waiting.insert(&image, &cache, &events);
            if let Err(error) = thread::Builder::new().name(format!("image-{}", options.name)).spawn(insert) {
                tracing::error!(%error, "cannot start a thread to insert a configured image");
                self.forget(drive);
            }
        }
    }

    pub(crate) fn report(&self) -> Vec<(DriveIndex, Awaited)> {
        self.drives.lock().clone()
    }

    /// A drive that has got an image waits no more, whoever has inserted which. Does not block.
    pub(crate) fn notice(&self, event: &Event) {
        if let Event::Inserted { drive, .. } = event {
            self.forget(*drive);
        }
    }

    fn forget(&self, drive: DriveIndex) {
        self.drives.lock().retain(|(other, _)| *other != drive);
        self.fewer.notify_all();
    }

    fn awaits(&self, drive: DriveIndex) -> bool {
        self.drives.lock().iter().any(|(other, _)| *other == drive)
    }

    fn insert(&self, image: &BehindUrl, cache: &Arc<Cache>, events: &EventSink) {
        let shown = shown(&image.options.url.0);
        let reporter = events.reporter(image.drive, shown.clone());
        let mut pause = PAUSE_MIN;
        while self.awaits(image.drive) {
            match cache.open(&image.options, &reporter, &|| self.awaits(image.drive)) {
                Ok(_) if !self.awaits(image.drive) => return,
                Ok(medium) => {
                    if let Err(error) = assembly::insert(&image.handle, image.lun, medium) {
                        let error = control::with_sources(error.as_ref());
                        tracing::warn!(drive = image.name, error, "the configured image is not inserted");
                    }
                    return self.forget(image.drive);
                }
                Err(error) => {
                    if error.kind.is_of_contents() {
                        pause = PAUSE_CONTENTS;
                    }
                    let cause = control::with_sources(&error);
                    if self.is_first_failure(image.drive, &cause) {
                        let (drive, name) = (image.drive, &image.name);
                        tracing::warn!(drive = name, cause, "the configured image is not to be had yet");
                        events.publish(Event::SourceOffline { drive, image: shown.clone(), cause });
                    }
                }
            }
            self.pause(image.drive, pause);
            pause = (pause * 2).min(PAUSE_MAX);
        }
    }

    fn is_first_failure(&self, drive: DriveIndex, cause: &str) -> bool {
        let mut drives = self.drives.lock();
        let awaited = drives.iter_mut().find(|(other, _)| *other == drive);
        awaited.is_some_and(|(_, awaited)| awaited.cause.replace(cause.to_owned()).is_none())
    }

    /// Sleeps, unless the drive waits no more.
    fn pause(&self, drive: DriveIndex, pause: Duration) {
        let until = Instant::now() + pause;
        let mut drives = self.drives.lock();
        while drives.iter().any(|(other, _)| *other == drive) {
            if self.fewer.wait_until(&mut drives, until).timed_out() {
                return;
            }
        }
    }
}

fn url_options(url: &Secret, drive: &config::Drive) -> UrlOptions {
    UrlOptions {
        url: url.clone(),
        checksum: None,
        keep: false,
        download: false,
        raw: drive.manner.raw,
        credentials: None,
        block_size: block_size(drive.kind, drive.block_size),
    }
}
