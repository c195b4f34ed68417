//! What is no image before it is whole. The usual programs make it; one that is not installed is skipped, and said so.

use std::fs;

use sha2::{Digest as _, Sha256};

use super::*;
use crate::media::{compressed::ExpandErrorKind, judge, qcow2::Qcow2ErrorKind};

impl Rig {
    fn open(&self, options: &UrlOptions) -> Result<Inserted<dyn Medium>, UrlError> {
        self.cache.open(options, &self.reporter, &|| true).map(inserted)
    }

    /// The name of the one image that there is room for.
    fn expanded(&self) -> std::ffi::OsString {
        let dir = self.dir.path().join("cache/expanded");
        let names: Vec<_> = fs::read_dir(dir).unwrap().map(|entry| entry.unwrap().file_name()).collect();
        assert_eq!(names.len(), 1, "{names:?}");
        names[0].clone()
    }

    fn failure(&self, url: &str) -> UrlErrorKind {
        self.open(&wish(url)).map(drop).unwrap_err().kind
    }
}

impl<M: Medium + ?Sized> Inserted<M> {
    fn must_be(&self, wanted: &[u8]) {
        let read = self.read(0, self.image.len().0).unwrap();
        assert!(read[..wanted.len()] == *wanted, "{}", self.image.name());
        assert!(read[wanted.len()..].iter().all(|byte| *byte == 0), "{}", self.image.name());
    }
}

/// Noise and zeroes, no whole blocks of a CD.
fn plain() -> Vec<u8> {
    let mut bytes = vec![0; 5 << 20 | 512];
    fastrand::Rng::with_seed(3).fill(&mut bytes[1 << 20..4 << 20]);
    bytes
}

fn compressed(program: &str) -> Option<Vec<u8>> {
    judge::compressed(program, &["-c"], &plain())
}

fn checksum(bytes: &[u8]) -> Option<Checksum> {
    let digits = Sha256::digest(bytes).iter().map(|byte| format!("{byte:02x}")).collect::<String>();
    Some(Checksum::Known(Digest::parse(&digits).unwrap()))
}

fn qcow2(options: &[&str]) -> Option<Vec<u8>> {
    let dir = tempfile::tempdir().unwrap();
    let path = |name: &str| dir.path().join(name).to_str().unwrap().to_owned();
    let (raw, disk) = (path("raw"), path("disk"));
    fs::write(&raw, plain()).unwrap();
    let args = ["convert", "-f", "raw", "-O", "qcow2"].iter().chain(options).copied();
    judge::must("qemu-img", &args.chain([&*raw, &*disk]).collect::<Vec<_>>()).then(|| fs::read(disk).unwrap())
}

#[test]
fn what_is_compressed_is_fetched_whole_and_expanded_once() {
    for program in ["gzip", "bzip2", "xz", "zstd"] {
        let Some(bytes) = compressed(program) else { continue };
        let rig = Rig::new();
        let server = Server::of(bytes);
        let url = server.url("/disk.img.packed?secret");
        let inserted = rig.open(&wish(&url)).unwrap();
        inserted.must_be(&plain());
        assert!(!inserted.image.writable());
        assert!(inserted.image.name().ends_with("/disk.img.packed?…"), "{}", inserted.image.name());
        rig.await_report(|report| matches!(report, Report::Progress { here: 1.., total: Some(1..) }));
        rig.await_complete();
        drop(inserted);
        // From now on nobody needs the server, but to hear which version it has.
        let sent = server.sent();
        rig.open(&wish(&url)).unwrap().must_be(&plain());
        assert!(server.sent() - sent <= CHUNK, "{program}: {} bytes", server.sent() - sent);
        server.be(Mood::Status(503));
        rig.open(&wish(&url)).unwrap().must_be(&plain());
    }
}

#[test]
fn another_version_is_expanded_anew_and_a_checksum_is_of_what_the_server_has() {
    let Some(bytes) = compressed("gzip") else { return };
    let checksum = checksum(&bytes);
    let rig = Rig::new();
    let server = Server::of(bytes);
    let options = UrlOptions { checksum, keep: true, ..wish(&server.url("/disk.img.gz")) };
    rig.open(&options).unwrap().must_be(&plain());
    assert!(matches!(rig.await_complete(), Report::Complete { checked: true, kept: Some(_) }));
    assert!(rig.dir.path().join("cache/kept/disk.img.gz").exists());
    let before = rig.expanded();
    server.change();
    rig.open(&options).unwrap().must_be(&plain());
    assert_ne!(rig.expanded(), before);
    let wrong = Some(Checksum::Known(Digest::parse(&"0".repeat(64)).unwrap()));
    let error = rig.open(&UrlOptions { checksum: wrong, ..options }).map(drop).unwrap_err();
    assert_eq!(error.kind, UrlErrorKind::Mismatch);
}

#[test]
fn what_was_expanded_of_other_bytes_is_not_what_a_checksum_is_of() {
    let mut other = plain();
    fastrand::Rng::with_seed(4).fill(&mut other[1 << 20..4 << 20]);
    let (Some(first), Some(second)) = (compressed("zstd"), judge::compressed("zstd", &["-c"], &other)) else {
        return;
    };
    let rig = Rig::new();
    let server = Server::of(first);
    let options = wish(&server.url("/disk.img.zst"));
    rig.open(&options).unwrap().must_be(&plain());
    server.become_of(second.clone());
    let options = UrlOptions { checksum: checksum(&second), ..options };
    // What is here is of the same version.
    assert_eq!(rig.open(&options).map(drop).unwrap_err().kind, UrlErrorKind::Mismatch);
    rig.open(&options).unwrap().must_be(&other);
}

#[test]
fn two_drives_have_the_same_image_and_both_go_on() {
    let Some(bytes) = compressed("gzip") else { return };
    let rig = Rig::new();
    let server = Server::of(bytes);
    let options = wish(&server.url("/disk.img.gz"));
    let (first, second) = (rig.open(&options).unwrap(), rig.open(&options).unwrap());
    for drive in [first, second] {
        drive.must_be(&plain());
        assert_eq!(drive.image.look(), Ok(crate::media::Standing::Same));
    }
}

#[test]
fn whoever_waits_for_the_whole_of_it_hears_that_its_server_is_gone() {
    let Some(bytes) = compressed("gzip") else { return };
    let rig = Rig::with(|options| options.rate = Some(1_000_000));
    let server = Server::of(bytes);
    let options = wish(&server.url("/disk.img.gz"));
    let until = Instant::now() + Duration::from_secs(1);
    let gone = rig.cache.open(&options, &rig.reporter, &|| Instant::now() < until);
    assert_eq!(gone.unwrap_err().kind, UrlErrorKind::Cancelled);
    server.be(Mood::Status(503));
    assert_eq!(rig.open(&options).map(drop).unwrap_err().kind, UrlErrorKind::Status(503));
    server.be(Mood::Good);
    let sent = server.sent();
    rig.open(&options).unwrap().must_be(&plain());
    assert!(server.sent() - sent < 3 << 20, "it began anew: {} bytes", server.sent() - sent);
}

#[test]
fn a_server_without_ranges_or_versions_is_downloaded_from_and_never_taken_for_what_it_had() {
    let Some(bytes) = compressed("gzip") else { return };
    for mood in [Mood::NoRanges, Mood::NoLength, Mood::NoVersion] {
        let rig = Rig::new();
        let server = Server::of(bytes.clone());
        server.be(mood.clone());
        let options = UrlOptions { download: true, ..wish(&server.url("/disk.img.gz")) };
        rig.open(&options).unwrap().must_be(&plain());
        let before = rig.expanded();
        rig.open(&options).unwrap().must_be(&plain());
        assert_ne!(rig.expanded(), before, "{mood:?}");
    }
}

#[test]
fn a_qcow2_file_is_the_disk_in_it_and_its_cache_file_stays_while_that_is_used() {
    for options in [&[][..], &["-c"]] {
        let Some(bytes) = qcow2(options) else { return };
        let rig = Rig::new();
        let server = Server::of(bytes);
        let url = server.url("/disk.qcow2");
        let inserted = rig.open(&wish(&url)).unwrap();
        inserted.must_be(&plain());
        assert!(inserted.image.is_qcow2() && !inserted.image.writable());
        assert_eq!(inserted.image.name(), url);
        assert!(inserted.image.look().is_ok());
        assert_eq!(rig.failure(&url), UrlErrorKind::InUse);
        drop(inserted);
        rig.open(&wish(&url)).unwrap().must_be(&plain());
    }
}

#[test]
fn raw_shows_the_bytes_as_they_are_at_once() {
    let Some(bytes) = compressed("gzip") else { return };
    let rig = Rig::new();
    let server = Server::of(bytes.clone());
    let inserted = rig.open(&UrlOptions { raw: true, ..wish(&server.url("/disk.img.gz")) }).unwrap();
    inserted.must_be(&bytes);
    assert!(inserted.image.fetch_state().is_some());
}

#[test]
fn what_cannot_be_unpacked_is_told_with_its_cure() {
    let Some(bytes) = compressed("gzip") else { return };
    let rig = Rig::new();
    let mut damaged = bytes.clone();
    damaged[300_000..300_100].fill(7);
    let cut = bytes[..bytes.len() - 10].to_vec();
    for (bytes, wanted) in [
        (damaged, UrlErrorKind::Expand(ExpandErrorKind::Corrupt)),
        (cut, UrlErrorKind::Expand(ExpandErrorKind::Truncated)),
    ] {
        let (server, len) = (Server::of(bytes.clone()), u64::try_from(bytes.len()).unwrap());
        let url = server.url("/disk");
        assert_eq!(rig.failure(&url), wanted);
        // Another copy may be a better one.
        let sent = server.sent();
        assert_eq!(rig.failure(&url), wanted);
        assert!(server.sent() - sent >= len, "{wanted}: the same bytes again");
    }
    let mut vmdk = b"KDMV".to_vec();
    vmdk.resize(16 << 20, 0);
    let server = Server::of(vmdk);
    assert_eq!(rig.failure(&server.url("/disk")), UrlErrorKind::Qcow2(Qcow2ErrorKind::Container("VMDK")));
    assert!(server.sent() < 8 << 20, "it was fetched in vain");
    let small = Rig::with(|options| options.limit = 20 * CHUNK);
    for bytes in [Some(bytes), qcow2(&[])].into_iter().flatten() {
        let server = Server::of(bytes);
        assert_eq!(small.failure(&server.url("/disk")), UrlErrorKind::TooLargeToUnpack);
    }
}

#[test]
fn whoever_gives_up_while_it_is_fetched_ends_that() {
    let Some(bytes) = compressed("gzip") else { return };
    let rig = Rig::with(|options| options.rate = Some(100_000));
    let server = Server::of(bytes);
    let until = Instant::now() + Duration::from_millis(300);
    let gone = rig.cache.open(&wish(&server.url("/disk")), &rig.reporter, &|| Instant::now() < until);
    assert_eq!(gone.unwrap_err().kind, UrlErrorKind::Cancelled);
    assert!(until.elapsed() < Duration::from_secs(5));
}
