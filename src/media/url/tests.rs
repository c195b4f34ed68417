//! Against a server that does all that servers do wrong. Every byte that comes out is compared with the byte that belongs there.

mod faults;
mod lasting;
mod packed;
mod security;
mod server;

use std::{
    os::unix::fs::FileExt,
    path::Path,
    sync::Arc,
    time::{Duration, Instant},
};

use crossbeam_channel::{Receiver, unbounded};

use self::server::{BLOCK, Mood, Server, content, sha256};
use super::*;
use crate::units::{ByteOffset, ByteRange};

/// In which what must happen happens, or the test has failed.
const PATIENCE: Duration = Duration::from_secs(20);

/// So short that a test of it is short.
const SHORT: Patience = Patience {
    connect: Duration::from_millis(500),
    answer: Duration::from_millis(1_500),
    chunk: Duration::from_millis(2_000),
    retry: (Duration::from_millis(10), Duration::from_millis(50)),
};

struct Rig {
    dir: tempfile::TempDir,
    cache: Arc<Cache>,
    reporter: Reporter,
    reports: Receiver<Report>,
}

impl Rig {
    fn new() -> Self {
        Self::with(|_| {})
    }

    fn with(change: impl FnOnce(&mut CacheOptions)) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let mut options = options(&dir.path().join("cache"));
        change(&mut options);
        let (tell, reports) = unbounded();
        let reporter = Reporter::new(move |report| drop(tell.send(report)));
        Self { dir, cache: Cache::new(options), reporter, reports }
    }

    fn insert(&self, url: &str) -> Result<Inserted, UrlError> {
        self.insert_as(wish(url))
    }

    fn insert_as(&self, options: UrlOptions) -> Result<Inserted, UrlError> {
        Ok(inserted(Box::new(self.cache.insert(&options, &self.reporter, &|| true)?)))
    }

    fn refusal(&self, url: &str) -> UrlErrorKind {
        self.insert(url).map(drop).unwrap_err().kind
    }

    fn await_report(&self, is: impl Fn(&Report) -> bool) -> Report {
        let until = Instant::now() + PATIENCE;
        loop {
            let report = self.reports.recv_deadline(until).expect("the report does not come");
            if is(&report) {
                return report;
            }
        }
    }

    fn await_complete(&self) -> Report {
        self.await_report(|report| matches!(report, Report::Complete { .. }))
    }
}

fn options(dir: &Path) -> CacheOptions {
    CacheOptions {
        dir: dir.to_owned(),
        limit: 64 << 20,
        rate: None,
        connections: 3,
        credentials: None,
        ca_file: None,
        proxy: None,
        patience: SHORT,
    }
}

fn wish(url: &str) -> UrlOptions {
    UrlOptions {
        url: Secret(url.to_owned()),
        checksum: None,
        keep: false,
        download: false,
        raw: false,
        credentials: None,
        block_size: BlockSize::B2048,
    }
}

struct Inserted<M: ?Sized = UrlImage> {
    image: Box<M>,
    woken: Receiver<()>,
}

fn inserted<M: Medium + ?Sized>(mut image: Box<M>) -> Inserted<M> {
    let (wake, woken) = unbounded();
    image.set_waker(Waker::new(move || wake.send(()).unwrap_or_default()));
    Inserted { image, woken }
}

impl<M: Medium + ?Sized> Inserted<M> {
    /// As a drive reads.
    fn read(&self, at: u64, len: u64) -> Result<Vec<u8>, FaultKind> {
        let mut bytes = vec![0; usize::try_from(len).unwrap()];
        let (mut done, until) = (0, Instant::now() + PATIENCE);
        while done < len {
            let range = ByteRange::new(ByteOffset(at + done), ByteLen(len - done)).unwrap();
            let extent = self.image.map(range);
            let mapped = extent.len().0;
            assert!((1..=len - done).contains(&mapped), "{extent:?} of {range:?}");
            let to = usize::try_from(done).unwrap()..usize::try_from(done + mapped).unwrap();
            match extent {
                Extent::File { file, offset, .. } => {
                    assert!(self.image.is_qcow2() || offset.0 == at + done, "{offset:?}, not {}", at + done);
                    file.read_exact_at(&mut bytes[to], offset.0).unwrap();
                    done += mapped;
                }
                Extent::Zero { .. } => done += mapped,
                Extent::Pending { .. } => {
                    self.woken.recv_deadline(until).expect("nobody wakes the drive");
                }
                Extent::Fault { kind, .. } => return Err(kind),
            }
        }
        Ok(bytes)
    }
}

impl Inserted {
    /// Reads, and compares with what that version has there.
    fn check(&self, at: u64, len: u64, version: u64) -> Result<(), FaultKind> {
        let read = self.read(at, len)?;
        let stored = self.image.stored().0;
        let mut wanted = content(at, (at + len).min(stored), version);
        wanted.resize(read.len(), 0);
        for (number, (read, wanted)) in read.chunks(512).zip(wanted.chunks(512)).enumerate() {
            assert!(read == wanted, "block {number} from {at} on: {:?}", read.get(..16));
        }
        Ok(())
    }

    fn check_whole(&self, version: u64) {
        let len = self.image.len().0;
        (0..len).step_by(1 << 18).for_each(|at| self.check(at, (len - at).min(1 << 18), version).unwrap());
    }

    fn here(&self) -> u64 {
        self.image.fetch_state().unwrap().here
    }
}

/// Not whole chunks, and not whole blocks of a CD.
const LEN: u64 = 40 * CHUNK + 3 * BLOCK + 100;

#[test]
fn a_host_reads_at_random_what_is_being_fetched_and_the_image_becomes_whole() {
    let server = Server::start(LEN);
    let rig = Rig::new();
    let digest = Digest::parse(&sha256(LEN, 1)).unwrap();
    let checksum = Some(Checksum::Known(digest));
    let inserted = rig.insert_as(UrlOptions { checksum, ..wish(&server.url("/x.iso")) }).unwrap();
    assert_eq!(inserted.image.len().0, LEN.next_multiple_of(2048));
    let mut random = fastrand::Rng::with_seed(7);
    for _ in 0..300 {
        let at = random.u64(0..inserted.image.len().0 / 2048) * 2048;
        let len = random.u64(1..=64) * 2048;
        inserted.check(at, len.min(inserted.image.len().0 - at), 1).unwrap();
    }
    assert_eq!(rig.await_complete(), Report::Complete { checked: true, kept: None });
    let state = inserted.image.fetch_state().unwrap();
    assert_eq!((state.here, state.complete), (LEN, true));
    assert_eq!(inserted.image.source_state(), SourceState::Online);
    inserted.check_whole(1);
    // Hardly anything twice: a run that is cut short has sent a little in vain.
    assert!(server.sent() < LEN * 2, "{} bytes were sent of {LEN}", server.sent());
    let beyond = ByteRange::new(ByteOffset(inserted.image.len().0), ByteLen(1)).unwrap();
    assert!(matches!(inserted.image.map(beyond), Extent::Fault { kind: FaultKind::OutOfRange, .. }));
}

#[test]
fn the_first_block_is_there_when_the_insert_is_and_the_host_overtakes_the_filling() {
    let server = Server::start(400 * CHUNK);
    let rig = Rig::with(|options| options.rate = Some(1 << 20));
    let begun = Instant::now();
    let inserted = rig.insert(&server.url("/x.iso")).unwrap();
    inserted.check(0, 2048, 1).unwrap();
    assert!(begun.elapsed() < Duration::from_millis(300), "{:?}", begun.elapsed());
    // At 1 MiB/s the filling would be here in half a minute.
    let begun = Instant::now();
    inserted.check(300 * CHUNK, 4 * CHUNK, 1).unwrap();
    assert!(begun.elapsed() < Duration::from_secs(1), "{:?}", begun.elapsed());
    assert!(inserted.here() < 100 * CHUNK);
}

#[test]
fn names_with_spaces_percent_signs_unicode_and_a_long_query_reach_the_server() {
    let server = Server::start(CHUNK);
    let rig = Rig::new();
    let query = "s".repeat(4_000);
    for (asked, wanted) in [
        ("/a b/100%/Ü.iso".to_owned(), "/a%20b/100%25/%C3%9C.iso".to_owned()),
        (format!("/x?X-Amz-Signature={query}"), format!("/x?X-Amz-Signature={query}")),
        (format!("/{}", "n".repeat(255)), format!("/{}", "n".repeat(255))),
    ] {
        let inserted = rig.insert(&server.url(&asked)).unwrap();
        inserted.check_whole(1);
        assert_eq!(server.seen().last().unwrap().target, wanted);
        assert!(!inserted.image.name().contains("sss"), "{}", inserted.image.name());
    }
}

#[test]
fn a_url_is_in_one_drive_at_a_time_and_leaves_it_at_once() {
    let server = Server::start(LEN);
    let rig = Rig::new();
    let url = server.url("/x.iso");
    let inserted = rig.insert(&url).unwrap();
    assert_eq!(rig.refusal(&url), UrlErrorKind::InUse);
    let other = rig.insert(&server.url("/y.iso")).unwrap();
    server.be(Mood::Silent);
    server.hang_up();
    // Its threads wait for a server that says nothing.
    let begun = Instant::now();
    drop(inserted);
    assert!(begun.elapsed() < Duration::from_millis(100), "{:?}", begun.elapsed());
    server.be(Mood::Good);
    drop(rig.insert(&url).unwrap());
    other.check_whole(1);
}
