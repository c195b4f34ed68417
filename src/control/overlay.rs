//! What is asked of the overlay in a drive. Runs on a thread of its own, as `insert` does, because all of it may block.
//!
//! ```text
//!   export ──► copied while it stays in the drive; a write of the host meanwhile spoils it
//!   discard ──► taken out, nothing stored ──► begun anew ──► inserted again
//!   commit ──► ejected, all stored ──► written to its base ──► begun anew ──► inserted again
//! ```
//! So the host hears of another medium where its contents change, and none of it happens under a host that prevents removal,
//! unless by force.

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};

use serde_json::json;

use super::failure::{ErrorKind, Failure, with_sources};
use super::inbox::{Pending, Reply};
use super::insert::current_state;
use crate::drive::{DriveIndex, DriveState, Event, Handle, ImageState, Refusal, ReplyTo, Request};
use crate::media::compressed::{ExpandErrorKind, Expander};
use crate::media::overlay::{
    Base, Held, OverlayError, OverlayErrorKind, OverlayState, Overlays, Place, offline,
};
use crate::media::qcow2::{Manner, Qcow2};
use crate::media::{Access, Image, MediaError, Medium};
use crate::units::BlockSize;

/// Longer than any drive waits for its storage.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(60);
/// Time between two events about a copy.
const REPORT_EVERY: Duration = Duration::from_millis(250);

/// What is to become of what the host wrote.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Action {
    /// It is the base's.
    Commit,
    /// It is gone.
    Discard,
    /// With the base it is a file of its own.
    Export(PathBuf),
}

/// An `overlay` that has passed the server's checks.
#[derive(Debug)]
pub(super) struct Act {
    pub(super) function: Handle,
    pub(super) drive: DriveIndex,
    pub(super) lun: u8,
    pub(super) action: Action,
    pub(super) force: bool,
    pub(super) overlays: Arc<Overlays>,
}

/// Opens an image that nobody writes to, with an overlay.
pub(super) fn open(
    overlays: &Overlays,
    path: &Path,
    place: &Place,
    block_size: BlockSize,
    manner: Manner,
) -> Result<Box<dyn Medium>, Failure> {
    if !manner.raw && Expander::is_compressed(path) {
        let error = ExpandErrorKind::ReadOnly.to_string();
        return Err(Failure::from_message(ErrorKind::Overlay, &error));
    }
    let how = (Access::ReadOnly, block_size);
    let base: Base = match manner.container(path) {
        Some(container) => {
            let opened = Qcow2::open(path, container, how, manner, overlays.runtime_dir());
            Box::new(opened.map_err(|error| Failure::from(&error))?)
        }
        None => {
            let opened = Image::open(path, Access::ReadOnly, block_size);
            Box::new(opened.map_err(|error| Failure::from(&error))?)
        }
    };
    match overlays.open(base, path, place) {
        Ok(overlay) => Ok(Box::new(overlay)),
        Err(error) => Err(Failure::from(&error)),
    }
}

impl From<&MediaError> for Failure {
    fn from(error: &MediaError) -> Self {
        Self::from_message(ErrorKind::Image, &with_sources(error))
    }
}

impl From<&OverlayError> for Failure {
    fn from(error: &OverlayError) -> Self {
        Self::from_message(ErrorKind::Overlay, &with_sources(error))
    }
}

impl Act {
    /// Does it, and answers.
    pub(super) fn run(self, pending: Pending) {
        let result = self.act(&pending);
        pending.answer(result.map(Reply::Value));
    }

    fn act(&self, pending: &Pending) -> Result<serde_json::Value, Failure> {
        let state = current_state(&self.function, self.lun)?;
        let image = state.image.clone().ok_or_else(|| Failure::from(&Refusal::Empty))?;
        let none = || {
            let cause = format!("the image in drive {:?} has no overlay", state.name);
            Failure::new(ErrorKind::Overlay, cause, "insert it with one: `ringdrive insert … --overlay FILE`")
        };
        let overlay = image.overlay.clone().ok_or_else(none)?;
        let held = self.overlays.hold(Path::new(&overlay.file)).ok_or_else(none)?;
        let over_qcow2 = held.over_qcow2();
        let again = match &self.action {
            Action::Export(to) => {
                self.export(&state, &held, to, pending)?;
                return Ok(json!({"drive": self.drive, "file": to}));
            }
            Action::Discard => {
                self.take_out(|lun, force, reply| Request::Discard { lun, force, reply })?;
                let discarded = held.discard(self.overlays.runtime_dir());
                // With it the kernel frees what was in the file, which takes the longer the more that is. It needs nobody.
                let _ = thread::Builder::new().name("discarded".to_owned()).spawn(move || drop(held));
                discarded.map_err(|error| Failure::from(&error))
            }
            Action::Commit => self.commit(held, &overlay, pending),
        };
        // A temporary one that could not be committed would be an empty one now, over half of a commit.
        if overlay.temporary {
            again.clone()?;
        }
        // Also what could not be done leaves the drive as it was, where that goes.
        let inserted = self.insert_again(&state, &image, &overlay, over_qcow2);
        again?;
        Ok(json!({"drive": self.drive, "image": inserted?}))
    }

    fn export(&self, state: &DriveState, held: &Held, to: &Path, pending: &Pending) -> Result<(), Failure> {
        if state.prevented && !self.force {
            let cause = "the host has the drive in use, and may write to it while it is copied";
            return Err(Failure::new(
                ErrorKind::Prevented,
                cause,
                "eject it at the host, or use force: it fails if the host does write",
            ));
        }
        let mut progress = self.progress(to.display().to_string(), pending);
        let mut wanted = |done, total| progress(done, total) && pending.is_wanted();
        held.export(to, &mut wanted).map_err(|error| Failure::from(&error))
    }

    /// Goes on when nobody waits for it any more: half a commit is of no use.
    fn commit(&self, held: Held, overlay: &OverlayState, pending: &Pending) -> Result<(), Failure> {
        let path = Path::new(&overlay.file);
        if held.over_qcow2() {
            return Err(Failure::from_message(ErrorKind::Overlay, &OverlayErrorKind::OverQcow2.to_string()));
        }
        held.keep(true);
        let ejected = self.take_out(|lun, force, reply| Request::Eject { lun, force, reply });
        if ejected.is_err() {
            held.keep(false);
        }
        drop(held);
        ejected?;
        let mut progress = self.progress(overlay.file.clone(), pending);
        let committed = offline::commit(path, self.overlays.runtime_dir(), &mut progress);
        let is_done = committed.is_ok();
        let mut result = committed.map(drop).map_err(|error| Failure::from(&error));
        if overlay.temporary && is_done {
            let _ = fs::remove_file(path);
        } else if let (true, Err(failure)) = (overlay.temporary, &mut result) {
            // By its own name it would go with the next.
            let kept = path.with_extension("").with_extension("kept.qcow2");
            let kept = if fs::rename(path, &kept).is_ok() { kept } else { path.to_owned() };
            failure.cure.push_str(&format!("; what the host wrote is in {}", kept.display()));
        }
        result
    }

    fn progress(&self, to: String, pending: &Pending) -> impl FnMut(u64, u64) -> bool + use<> {
        let (events, drive, mut report_at) = (pending.events(), self.drive, Instant::now());
        move |done, total| {
            if report_at <= Instant::now() || done == total {
                events.publish(Event::Copying { drive, to: to.clone(), done, total });
                report_at = Instant::now() + REPORT_EVERY;
            }
            true
        }
    }

    fn take_out(
        &self,
        request: impl FnOnce(u8, bool, ReplyTo<Result<String, Refusal>>) -> Request,
    ) -> Result<(), Failure> {
        self.ask(|reply| request(self.lun, self.force, reply)).map(drop)
    }

    fn insert_again(
        &self,
        state: &DriveState,
        image: &ImageState,
        overlay: &OverlayState,
        over_qcow2: bool,
    ) -> Result<ImageState, Failure> {
        let place = match overlay.temporary {
            true => Place::Temporary,
            false => Place::File(PathBuf::from(&overlay.file)),
        };
        // It may still be there: what was to be done was refused.
        let now = current_state(&self.function, self.lun)?;
        if let Some(image) = now.image {
            return Ok(image);
        }
        // As it was when it was inserted.
        let manner = Manner { raw: !over_qcow2, backing: over_qcow2 };
        let image = open(&self.overlays, Path::new(&image.name), &place, state.block_size, manner)?;
        self.ask(|reply| Request::Insert { lun: self.lun, image, reply })
    }

    fn ask<T: Send + 'static>(
        &self,
        request: impl FnOnce(ReplyTo<Result<T, Refusal>>) -> Request,
    ) -> Result<T, Failure> {
        let (tx, rx) = crossbeam_channel::bounded(1);
        self.function.send(request(ReplyTo::new(move |result| {
            // Nobody waits any more: nothing to do.
            let _ = tx.send(result);
        })));
        let answer = rx.recv_timeout(ANSWER_TIMEOUT).map_err(|_| Failure::from(&Refusal::Stopped))?;
        answer.map_err(|refusal| Failure::from(&refusal))
    }
}
