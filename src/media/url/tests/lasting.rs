//! What stays on disk: after a crash, in too small a cache, for good.

use std::{
    fs, io,
    os::unix::fs::MetadataExt,
    path::PathBuf,
    sync::atomic::{AtomicU64, Ordering},
};

use super::{super::cache::Disk, *};

/// The cache directory as a power cut leaves it at its worst: of the data only what a record has spoken of.
fn crashed(rig: &Rig) -> Rig {
    let after = Rig::new();
    let (from, to) = (rig.dir.path().join("cache"), after.dir.path().join("cache"));
    fs::create_dir(&to).unwrap();
    let mut claimed = 0;
    for file in fs::read_dir(&from).unwrap() {
        let path = file.unwrap().path();
        let copy = to.join(path.file_name().unwrap());
        if path.extension().unwrap() != "record" {
            continue;
        }
        fs::copy(&path, &copy).unwrap();
        let record = record::RecordFile::load(fs::File::open(&copy).unwrap()).unwrap().1;
        let data = fs::File::create(copy.with_extension("data")).unwrap();
        let Some(record) = record else { continue };
        data.set_len(record.part.total).unwrap();
        let source = fs::File::open(path.with_extension("data")).unwrap();
        for chunk in 0..record.part.total.div_ceil(CHUNK) {
            if record.chunks[usize::try_from(chunk / 8).unwrap()] >> (chunk % 8) & 1 == 1 {
                let len = CHUNK.min(record.part.total - chunk * CHUNK);
                let mut bytes = vec![0; usize::try_from(len).unwrap()];
                source.read_exact_at(&mut bytes, chunk * CHUNK).unwrap();
                data.write_all_at(&bytes, chunk * CHUNK).unwrap();
                claimed += 1;
            }
        }
    }
    assert!(claimed > 0, "nothing was recorded");
    after
}

#[test]
fn after_a_crash_it_goes_on_where_it_was_and_ends_with_the_right_hash() {
    let server = Server::start(LEN);
    let rig = Rig::with(|options| options.rate = Some(1));
    let url = server.url("/x.iso");
    let inserted = rig.insert(&url).unwrap();
    for chunk in [3, 9, 17, 30] {
        inserted.check(chunk * CHUNK, 4 * CHUNK, 1).unwrap();
    }
    drop(inserted);
    // The keeper stores once more as it leaves; when it has, the URL is free.
    let inserted = rig.insert(&url).unwrap();
    let here = inserted.here();
    assert!(here > 16 * CHUNK, "{here}");
    let after = crashed(&rig);
    drop(inserted);
    let asked = server.asked();
    let digest = Digest::parse(&sha256(LEN, 1)).unwrap();
    let checksum = Some(Checksum::Known(digest));
    let inserted = after.insert_as(UrlOptions { checksum, ..wish(&url) }).unwrap();
    assert!(inserted.here() >= here, "{} of {here}", inserted.here());
    assert_eq!(after.await_complete(), Report::Complete { checked: true, kept: None });
    inserted.check_whole(1);
    // The first chunk came again, to see whether it is still the same.
    assert_eq!(server.asked() - asked, LEN - here + CHUNK);
}

#[test]
fn what_has_changed_while_nobody_looked_begins_anew() {
    let server = Server::start(LEN);
    let rig = Rig::new();
    let url = server.url("/x.iso");
    drop(rig.insert(&url).unwrap());
    server.change();
    let inserted = rig.insert(&url).unwrap();
    inserted.check_whole(2);
}

#[test]
fn an_image_larger_than_the_cache_streams_to_its_end_and_the_cache_keeps_its_limit() {
    const LIMIT: u64 = 20 * CHUNK;
    let server = Server::start(LEN * 4);
    let rig = Rig::with(|options| options.limit = LIMIT);
    let inserted = rig.insert(&server.url("/x.iso")).unwrap();
    let used = || {
        let files = fs::read_dir(rig.dir.path().join("cache")).unwrap();
        files.map(|file| file.unwrap().metadata().unwrap().blocks() * 512).sum::<u64>()
    };
    let mut most = 0;
    let len = inserted.image.len().0;
    for at in (0..len).step_by(64 * 1024) {
        inserted.check(at, (len - at).min(64 * 1024), 1).unwrap();
        most = most.max(used());
    }
    let mut random = fastrand::Rng::with_seed(3);
    for _ in 0..200 {
        let at = random.u64(0..LEN / 2048) * 2048;
        inserted.check(at, 2048, 1).unwrap();
        most = most.max(used());
    }
    // The chunks that are being written, and the record, come on top.
    assert!(most <= LIMIT + 8 * CHUNK, "{} KiB", most / 1024);
    assert!(!inserted.image.fetch_state().unwrap().complete);
    // A crash finds nothing that is not there.
    let records: Vec<PathBuf> = fs::read_dir(rig.dir.path().join("cache"))
        .unwrap()
        .map(|file| file.unwrap().path())
        .filter(|path| path.extension().unwrap() == "record")
        .collect();
    assert!(records.iter().all(|path| fs::metadata(path).unwrap().len() == 0));
    drop(inserted);
    drop(rig.insert(&server.url("/x.iso")).unwrap());
}

#[test]
fn others_fill_the_disk_and_the_image_makes_do_with_what_is_left() {
    const TOTAL: u64 = 64 * CHUNK;
    static OTHERS: AtomicU64 = AtomicU64::new(0);
    fn used(dir: &Path) -> u64 {
        let files = fs::read_dir(dir).unwrap();
        files.map(|file| file.unwrap().metadata().unwrap().blocks() * 512).sum()
    }
    fn disk(dir: &Path) -> io::Result<Disk> {
        let free = TOTAL.saturating_sub(used(dir) + OTHERS.load(Ordering::Relaxed));
        Ok(Disk { total: TOTAL, free })
    }
    let server = Server::start(LEN * 4);
    let mut rig = Rig::new();
    rig.cache = Cache::on(options(&rig.dir.path().join("cache")), disk);
    let inserted = rig.insert(&server.url("/x.iso")).unwrap();
    let len = inserted.image.len().0;
    for at in (0..len).step_by(256 * 1024) {
        // A quarter of the image each with a disk that is theirs by none, half, three quarters, and full.
        let theirs = [0, TOTAL / 2, TOTAL * 3 / 4, TOTAL];
        OTHERS.store(theirs[usize::try_from(at * 4 / len).unwrap()], Ordering::Relaxed);
        inserted.check(at, (len - at).min(256 * 1024), 1).unwrap();
    }
    // With the least that streaming needs, and what is being written.
    let used = used(&rig.dir.path().join("cache"));
    assert!(used <= 24 * CHUNK, "{} KiB", used / 1024);
    drop(inserted);
    OTHERS.store(0, Ordering::Relaxed);
    // What is to be whole waits for room.
    let small = Server::start(40 * CHUNK);
    let slow = CacheOptions { rate: Some(8 * CHUNK), ..options(&rig.dir.path().join("cache")) };
    rig.cache = Cache::on(slow, disk);
    let kept = rig.insert_as(UrlOptions { keep: true, ..wish(&small.url("/y.iso")) }).unwrap();
    OTHERS.store(TOTAL, Ordering::Relaxed);
    rig.await_report(|report| matches!(report, Report::Offline { cause } if cause.contains("no room")));
    assert_eq!(kept.check(39 * CHUNK, 2048, 1), Err(FaultKind::CacheFull));
    kept.check(0, 2048, 1).unwrap();
    OTHERS.store(0, Ordering::Relaxed);
    rig.await_report(|report| *report == Report::Online);
    // But nobody waits for a download that does.
    let download = UrlOptions { download: true, ..wish(&small.url("/z.iso")) };
    let fill = || {
        OTHERS.store(TOTAL, Ordering::Relaxed);
        true
    };
    let refused = rig.cache.insert(&download, &rig.reporter, &fill).unwrap_err();
    assert_eq!(refused.kind, UrlErrorKind::NoSpace);
    drop(kept);
}

#[test]
fn what_cannot_be_kept_or_checked_in_so_small_a_cache_is_refused() {
    let server = Server::start(LEN);
    let rig = Rig::with(|options| options.limit = 20 * CHUNK);
    let url = server.url("/x.iso");
    let refusal = |options| rig.insert_as(options).map(drop).unwrap_err().kind;
    let checksum = Digest::parse(&"0".repeat(64)).map(Checksum::Known);
    assert_eq!(refusal(UrlOptions { checksum, ..wish(&url) }), UrlErrorKind::TooLargeToCheck);
    assert_eq!(refusal(UrlOptions { keep: true, ..wish(&url) }), UrlErrorKind::TooLarge);
    assert_eq!(refusal(UrlOptions { download: true, ..wish(&url) }), UrlErrorKind::TooLarge);
    server.be(Mood::NoRanges);
    assert_eq!(refusal(UrlOptions { download: true, ..wish(&url) }), UrlErrorKind::TooLarge);
    let rig = Rig::with(|options| options.limit = 4 * CHUNK);
    server.be(Mood::Good);
    assert_eq!(rig.refusal(&url), UrlErrorKind::NoSpace);
}

#[test]
fn images_that_nobody_uses_make_room_the_oldest_first() {
    let server = Server::start(20 * CHUNK);
    let rig = Rig::with(|options| options.limit = 50 * CHUNK);
    let asked = |name: &str| {
        let before = server.asked();
        rig.insert(&server.url(name)).unwrap().check_whole(1);
        server.asked() - before
    };
    assert!(asked("/1") >= 20 * CHUNK && asked("/2") >= 20 * CHUNK);
    assert_eq!(asked("/1"), CHUNK, "it is in the cache");
    assert!(asked("/3") >= 20 * CHUNK);
    assert_eq!(asked("/1"), CHUNK, "used after the second one");
    assert!(asked("/2") >= 20 * CHUNK, "it had to go");
}

#[test]
fn a_kept_image_is_a_file_like_any_other() {
    let server = Server::start(LEN);
    let rig = Rig::new();
    let options =
        UrlOptions { keep: true, checksum: Some(Checksum::Beside), ..wish(&server.url("/d/a b.iso")) };
    let mut paths = Vec::new();
    for _ in 0..2 {
        let inserted = rig.insert_as(options.clone()).unwrap();
        let Report::Complete { checked: true, kept: Some(path) } = rig.await_complete() else { panic!() };
        assert_eq!(inserted.image.fetch_state().unwrap().kept.as_ref(), Some(&path));
        inserted.check_whole(1);
        assert_eq!(fs::read(&path).unwrap(), content(0, LEN, 1));
        paths.push(path);
    }
    assert!(paths[0].ends_with("/kept/a b.iso") && paths[1].ends_with("/kept/a b.iso.1"), "{paths:?}");
}

#[test]
fn a_wrong_checksum_is_told_and_nothing_more_is_served() {
    let server = Server::start(LEN);
    let rig = Rig::new();
    let checksum = Digest::parse(&sha256(LEN, 2)).map(Checksum::Known);
    let options = UrlOptions { checksum, keep: true, ..wish(&server.url("/a b.iso")) };
    let inserted = rig.insert_as(options.clone()).unwrap();
    let report = rig.await_report(|report| !matches!(report, Report::Progress { .. }));
    let Report::Failed { cause } = report else { panic!("{report:?}") };
    assert!(cause.contains("checksum") && cause.contains(&sha256(LEN, 1)), "{cause}");
    assert_eq!(inserted.check(0, 2048, 1), Err(FaultKind::Damaged));
    let error = rig.insert_as(UrlOptions { download: true, ..options });
    assert_eq!(error.map(drop).unwrap_err().kind, UrlErrorKind::InUse);
    drop(inserted);
    assert!(!rig.dir.path().join("cache/kept").exists());
    // From a download nothing is inserted at all.
    let checksum = Digest::parse(&sha256(LEN, 2)).map(Checksum::Known);
    let options = UrlOptions { checksum, download: true, ..wish(&server.url("/a b.iso")) };
    assert_eq!(rig.insert_as(options).map(drop).unwrap_err().kind, UrlErrorKind::Mismatch);
    let options = UrlOptions { checksum: Some(Checksum::Beside), ..wish(&server.url("/other.iso")) };
    assert_eq!(rig.insert_as(options).map(drop).unwrap_err().kind, UrlErrorKind::NoSums);
}
