//! The thread of an overlay: copies what a write covers in part, and makes durable what was written, when the drive asks and every
//! few seconds by itself (`bell`).

use std::{
    io,
    ops::Range,
    os::unix::fs::FileExt,
    sync::Arc,
    thread::{self, JoinHandle},
    time::Duration,
};

use super::{
    super::{
        Extent, FaultKind,
        bell::{self, Task, Unstored, Work},
    },
    Shared,
    store::BlockFile,
};
use crate::units::{ByteLen, ByteRange};

/// How often a base that fetches is asked again if it wakes nobody.
const ASK_AGAIN: Duration = Duration::from_secs(1);

/// A subcluster of which a write covers a part: the rest is to be copied first.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Torn(u64);

impl Task for Torn {
    type Key = u64;
    // A write waits for it.
    const STORES_FIRST: bool = false;
    const MOST: usize = 64;
}

pub(super) type Bell = bell::Bell<Torn>;

/// Has `torn` copied. Whether anything of `touched` is still to be.
pub(super) fn copies(bell: &Bell, torn: [Option<u64>; 2], touched: &Range<u64>) -> Result<bool, FaultKind> {
    bell.queue(|queue| {
        if let Some(kind) = queue.failure(|at| touched.contains(at)) {
            return Err(kind);
        }
        let all = torn.into_iter().flatten().all(|at| queue.push(Torn(at)));
        Ok(!all || queue.iter().any(|Torn(at)| touched.contains(at)))
    })
}

/// Starts the worker. It holds the overlay until it ends.
pub(super) fn start(shared: &Arc<Shared>) -> io::Result<JoinHandle<()>> {
    let shared = Arc::clone(shared);
    thread::Builder::new().name("overlay".into()).spawn(move || {
        loop {
            match shared.bell.next() {
                Work::Do(torn) => copy(&shared, &*shared.file, torn),
                // Nobody syncs what goes with the eject.
                Work::Flush if shared.passes() => store(&shared, &*shared.file),
                Work::Flush => {
                    let file = Arc::clone(&shared.file);
                    shared.bell.flush(move || file.sync_data());
                }
                Work::Store => store(&shared, &*shared.file),
                Work::End => return,
            }
        }
    })
}

/// The next thing that the worker would do now, if there is one.
pub(super) fn step(shared: &Shared, file: &impl BlockFile) {
    match shared.bell.work() {
        Some(Work::Do(torn)) => copy(shared, file, torn),
        Some(Work::Flush | Work::Store) => store(shared, file),
        Some(Work::End) | None => {}
    }
}

fn store(shared: &Shared, file: &impl BlockFile) {
    let make_durable = || {
        shared.make_durable(file).inspect_err(|_| shared.forget_unstored())?;
        Ok(())
    };
    if let Some(Unstored::Lost(error) | Unstored::NotYet(error)) = shared.bell.store(make_durable) {
        // A flush may have been told of it.
        shared.forget_unstored();
        tracing::error!(overlay = %shared.path.display(), %error,
            "what the host wrote could not be stored and may be lost");
    }
}

/// Copies a subcluster from the base, whole.
fn copy(shared: &Shared, file: &impl BlockFile, Torn(at): Torn) {
    let copied = shared.store.subcluster(at).map_or(Ok(()), |range| {
        let mut bytes = vec![0; range.len().to_usize()];
        read(&|range| shared.base.map(range), &shared.bell, range, &mut bytes)?;
        let place = shared.store.geometry().data(range.start());
        file.put(&bytes, place.0).map_err(|error| shared.put_failed(&error))?;
        shared.written(range).map(drop)
    });
    shared.bell.done(copied.err().map(|kind| (at, kind)));
}

/// Reads what `map` says is at `range`; waits for what is fetched.
pub(super) fn read(
    map: &dyn Fn(ByteRange) -> Extent,
    bell: &Bell,
    mut range: ByteRange,
    mut to: &mut [u8],
) -> Result<(), FaultKind> {
    while !range.is_empty() {
        // Before it is asked for: what comes then is news.
        let seen = bell.news();
        let extent = map(range);
        let len = extent.len().min(range.len());
        if matches!(extent, Extent::Pending { .. }) {
            if !bell.wait(seen, ASK_AGAIN) {
                return Err(FaultKind::Ejected);
            }
            continue;
        }
        let (here, rest) = std::mem::take(&mut to).split_at_mut_checked(len.to_usize()).unwrap_or_default();
        match extent {
            Extent::File { file, offset, .. } => {
                file.read_exact_at(here, offset.0).map_err(|error| match error.kind() {
                    io::ErrorKind::UnexpectedEof => FaultKind::Truncated,
                    _ => FaultKind::from(&error),
                })?
            }
            Extent::Zero { .. } | Extent::Pending { .. } => here.fill(0),
            Extent::Fault { kind, .. } => return Err(kind),
        }
        if len == ByteLen(0) {
            return Err(FaultKind::OutOfRange);
        }
        (range, to) = (range.split_at(len).1, rest);
    }
    Ok(())
}
