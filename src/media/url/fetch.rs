//! The threads behind an image: those that fetch chunks, and the one that keeps the record of them.
//!
//! None of them is ever waited for. They end soon after [`Shared::close`], by which their requests break off. The keeper leaves the
//! files to others as soon as nobody can write to them any more, also when a thread still waits for a connection.

use std::{
    io,
    os::unix::fs::FileExt,
    sync::Arc,
    thread,
    time::{Duration, Instant},
};

use super::{
    CHUNK,
    checksum::Digest,
    error::{UrlError, UrlErrorKind},
    plan::Run,
    record::Record,
    shared::{Outcome, Shared},
};

/// How often the record is stored: this much is fetched again after a crash.
const STORE_EVERY: Duration = Duration::from_secs(5);
/// When reads are still under way in all that could make room.
const ROOM_PAUSE: Duration = Duration::from_millis(10);

/// What is done once all is here.
#[derive(Clone, Debug, Default)]
pub(super) struct Finish {
    pub(super) digest: Option<Digest>,
    pub(super) keep: bool,
}

/// Starts the threads.
pub(super) fn start(shared: &Arc<Shared>, finish: Finish) -> io::Result<()> {
    for me in 0..shared.entry.options().connections.max(1) {
        let shared = Arc::clone(shared);
        thread::Builder::new().name(format!("fetch-{me}")).spawn(move || fetch(&shared, me))?;
    }
    let shared = Arc::clone(shared);
    thread::Builder::new().name("fetch-keeper".into()).spawn(move || keep(&shared, &finish))?;
    Ok(())
}

fn fetch(shared: &Shared, me: usize) {
    let Ok(len) = usize::try_from(CHUNK) else { return };
    let mut buffer = vec![0; len];
    while let Some(run) = shared.next_run(me) {
        let result = match shared.make_room(Some(me)) {
            // Wishes stay until they are fulfilled.
            Ok(0) => {
                shared.pause(ROOM_PAUSE);
                Ok(())
            }
            Ok(room) => {
                let end = run.end.min(run.next + room);
                fetch_run(shared, me, Run { end, ..run }, &mut buffer)
            }
            Err(error) => Err(error),
        };
        shared.ended(me, result);
    }
}

fn fetch_run(shared: &Shared, me: usize, run: Run, buffer: &mut [u8]) -> Result<(), UrlError> {
    let total = shared.part.total;
    let begun = Instant::now();
    let mut bytes = shared.client.part(&(run.next * CHUNK..(run.end * CHUNK).min(total)), &shared.part)?;
    let latency = begun.elapsed();
    let (begun, mut chunk) = (Instant::now(), run.next);
    while shared.goes_on(me) {
        let at = chunk * CHUNK;
        let Some(piece) = usize::try_from(CHUNK.min(total - at)).ok().and_then(|len| buffer.get_mut(..len))
        else {
            break;
        };
        bytes.read_exact(piece)?;
        let Some(writing) = shared.writing() else { break };
        if let Err(error) = shared.chunks.file().write_all_at(piece, at) {
            // A part of it may be there, in the way of others.
            if shared.chunks.is_absent(chunk) {
                let _ = shared.entry.punch(chunk);
            }
            return Err(shared.entry.error(error));
        }
        shared.arrived(me, chunk);
        drop(writing);
        chunk += 1;
        let limiter = shared.entry.limiter();
        limiter.charge(CHUNK);
        // What the host waits for is not held back; what is filled later pays for it.
        if let Some(wait) = limiter.wait(Instant::now()) {
            shared.pause_filling(me, wait);
        }
    }
    if chunk > run.next {
        shared.lock().plan.pace.measured(latency, (chunk - run.next) * CHUNK, begun.elapsed());
    }
    // Otherwise the connection closes.
    if chunk == run.end {
        bytes.ends();
    }
    Ok(())
}

/// Stores the record from time to time, and finishes the image when all of it is here.
fn keep(shared: &Shared, finish: &Finish) {
    let mut next = Instant::now() + STORE_EVERY;
    loop {
        let mut state = shared.lock();
        while !state.closing && !shared.is_complete(&state) && Instant::now() < next {
            shared.wait_to_keep(&mut state, next);
        }
        let (closing, complete) = (state.closing, shared.is_complete(&state));
        let dirty = std::mem::take(&mut state.dirty);
        drop(state);
        if closing {
            shared.seal();
        }
        if (dirty || closing)
            && let Err(error) = store(shared)
        {
            // The next sync would not be told of it.
            shared.entry.discard();
            shared.break_off(&error);
        }
        if closing {
            return shared.entry.leave();
        }
        if complete && !shared.is_broken() {
            self::finish(shared, finish);
        } else if let Err(error) = shared.make_room(None) {
            // Whoever fetches the next chunk tells.
            tracing::debug!(%error, "no room on the disk");
        }
        next = Instant::now() + STORE_EVERY;
    }
}

/// First what is here, as of now; then its durability; then the claim.
fn store(shared: &Shared) -> Result<(), UrlError> {
    let chunks = shared.chunks.bits();
    shared.chunks.file().sync_data().map_err(|error| shared.entry.error(error))?;
    let record = Record { key: shared.entry.key(), part: shared.part.clone(), chunks };
    // Without a record there is just nothing to go on from.
    if let Err(error) = shared.entry.store(&record) {
        tracing::warn!(%error, url = %shared.client.address(), "cannot store what has been fetched of an image");
    }
    Ok(())
}

fn finish(shared: &Shared, finish: &Finish) {
    if let Some(wanted) = &finish.digest {
        let closing = || shared.lock().closing;
        match Digest::of_file(shared.chunks.file(), shared.part.total, closing) {
            Ok(Some(found)) if found == *wanted => {}
            Ok(Some(found)) => {
                shared.entry.discard();
                shared.break_off(
                    &UrlErrorKind::Mismatch
                        .because(shared.client.address(), format!("SHA-256 is {found}, not {wanted}")),
                );
                return;
            }
            // Nobody wants to know any more.
            Ok(None) => return,
            Err(error) => return shared.break_off(&shared.entry.error(error)),
        }
    }
    let kept = finish.keep.then(|| shared.entry.keep(&shared.client.address().file_name()));
    match kept.transpose() {
        Ok(kept) => shared.complete(finish.digest.is_some(), kept),
        Err(error) => {
            tracing::warn!(%error, url = %shared.client.address(), "cannot keep an image");
            shared.complete(finish.digest.is_some(), None);
        }
    }
}

impl Shared {
    fn goes_on(&self, me: usize) -> bool {
        let state = self.lock();
        !state.closing && state.plan.goes_on(me)
    }

    fn is_complete(&self, state: &super::shared::State) -> bool {
        state.here == self.chunks.count() && state.outcome == Outcome::None
    }
}
