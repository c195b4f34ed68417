//! Servers that lie, break and die.

use super::*;

const FIRST: u64 = CHUNK;

/// An image of which only the first chunk is here, and nobody fills.
fn only_first(rig: &Rig, server: &Server) -> Inserted {
    let inserted = rig.insert(&server.url("/x.iso")).unwrap();
    inserted.check(0, FIRST, 1).unwrap();
    inserted
}

/// No filling: only what the host asks for is fetched.
fn lazy() -> Rig {
    Rig::with(|options| {
        options.rate = Some(1);
        options.connections = 2;
    })
}

/// Whatever becomes of the rest: no wrong byte, and what is here stays.
fn check_all_that_comes(inserted: &Inserted, version: u64) -> Vec<FaultKind> {
    let chunks = (0..LEN.next_multiple_of(2048)).step_by(CHUNK.try_into().unwrap());
    let len = inserted.image.len().0;
    chunks.filter_map(|at| inserted.check(at, CHUNK.min(len - at), version).err()).collect()
}

#[test]
fn a_server_without_ranges_is_refused_or_downloaded_whole() {
    let server = Server::start(LEN);
    let rig = Rig::new();
    for mood in [Mood::NoRanges, Mood::NoLength] {
        server.be(mood);
        assert_eq!(rig.refusal(&server.url("/x.iso")), UrlErrorKind::NoRanges);
        let download = UrlOptions { download: true, ..wish(&server.url("/x.iso")) };
        let inserted = rig.insert_as(download).unwrap();
        assert!(inserted.image.fetch_state().unwrap().complete);
        inserted.check_whole(1);
    }
    server.be(Mood::NoVersion);
    assert_eq!(rig.refusal(&server.url("/x.iso")), UrlErrorKind::NoVersion);
    let download = UrlOptions { download: true, ..wish(&server.url("/x.iso")) };
    rig.insert_as(download).unwrap().check_whole(1);
    let known = |report: &Report| matches!(report, Report::Progress { total: Some(LEN), .. });
    rig.await_report(known);
}

#[test]
fn a_download_that_nobody_waits_for_any_more_ends() {
    let server = Server::start(400 * CHUNK);
    let rig = Rig::with(|options| options.rate = Some(1 << 20));
    for mood in [Mood::Good, Mood::NoRanges] {
        server.be(mood);
        let download = UrlOptions { download: true, ..wish(&server.url("/x.iso")) };
        let until = Instant::now() + Duration::from_millis(100);
        let error = rig.cache.insert(&download, &rig.reporter, &|| Instant::now() < until).unwrap_err();
        assert_eq!(error.kind, UrlErrorKind::Cancelled);
    }
}

#[test]
fn a_whole_file_that_breaks_off_is_no_download() {
    let server = Server::start(LEN);
    let rig = Rig::new();
    server.be(Mood::NoEnd);
    let download = UrlOptions { download: true, ..wish(&server.url("/x.iso")) };
    assert_eq!(rig.insert_as(download).map(drop).unwrap_err().kind, UrlErrorKind::Truncated);
}

#[test]
fn a_lying_content_range_is_an_error_and_no_byte_of_it_is_served() {
    let server = Server::start(LEN);
    let rig = lazy();
    server.be(Mood::Lying(BLOCK));
    assert_eq!(rig.refusal(&server.url("/x.iso")), UrlErrorKind::WrongRange);
    server.be(Mood::Good);
    let inserted = only_first(&rig, &server);
    server.be(Mood::Lying(CHUNK));
    assert_eq!(inserted.check(30 * CHUNK, 2048, 1), Err(FaultKind::Io));
    let report = rig.await_report(|report| matches!(report, Report::Failed { .. }));
    assert!(format!("{report:?}").contains("not the range"), "{report:?}");
    assert!(check_all_that_comes(&inserted, 1).iter().all(|kind| *kind == FaultKind::Io));
    inserted.check(0, FIRST, 1).unwrap();
}

#[test]
fn a_file_that_changes_mid_way_is_never_mixed() {
    for mood in [Mood::Good, Mood::IgnoresIfRange, Mood::NoRanges] {
        let server = Server::start(LEN);
        let rig = lazy();
        let inserted = only_first(&rig, &server);
        inserted.check(5 * CHUNK, CHUNK, 1).unwrap();
        server.be(mood);
        server.change();
        assert_eq!(inserted.check(20 * CHUNK, 2048, 1), Err(FaultKind::Stale));
        let report = rig.await_report(|report| matches!(report, Report::Changed { .. }));
        assert!(format!("{report:?}").contains("has changed"), "{report:?}");
        let faults = check_all_that_comes(&inserted, 1);
        assert!(!faults.is_empty() && faults.iter().all(|kind| *kind == FaultKind::Stale), "{faults:?}");
        assert_eq!(inserted.image.source_state(), SourceState::Changed);
        // Inserted again it is the new one, all of it.
        drop(inserted);
        server.be(Mood::Good);
        rig.insert(&server.url("/x.iso")).unwrap().check_whole(2);
    }
}

#[test]
fn a_server_that_changes_while_its_image_is_filled_leaves_nothing_mixed() {
    for seed in 0..5 {
        let server = Server::start(LEN);
        let rig = Rig::new();
        let inserted = rig.insert(&server.url("/x.iso")).unwrap();
        let mut random = fastrand::Rng::with_seed(seed);
        for step in 0..20 {
            if step == 3 {
                server.change();
            }
            let at = random.u64(0..LEN / 2048) * 2048;
            assert!(matches!(inserted.check(at, 2048, 1), Ok(()) | Err(FaultKind::Stale)));
        }
    }
}

#[test]
fn bodies_that_break_off_are_asked_for_again() {
    let server = Server::start(LEN);
    let rig = Rig::new();
    server.be(Mood::Truncating(CHUNK + CHUNK / 2));
    let inserted = rig.insert(&server.url("/x.iso")).unwrap();
    rig.await_complete();
    inserted.check_whole(1);
}

#[test]
fn errors_of_the_server_are_told_and_its_return_is_noticed() {
    let server = Server::start(LEN);
    let rig = lazy();
    for (mood, kind) in [
        (Mood::Status(500), UrlErrorKind::Status(500)),
        (Mood::Status(403), UrlErrorKind::Denied(403)),
        (Mood::Status(404), UrlErrorKind::Missing(404)),
        (Mood::Status(416), UrlErrorKind::Empty),
        (Mood::Babble, UrlErrorKind::Unreachable),
    ] {
        server.be(mood);
        assert_eq!(rig.refusal(&server.url("/x.iso")), kind);
    }
    server.be(Mood::Good);
    let inserted = only_first(&rig, &server);
    let moods = [Mood::Status(500), Mood::Status(429), Mood::Silent, Mood::Truncating(10)];
    for (mood, at) in moods.into_iter().zip((8 * CHUNK..).step_by(8 << 17)) {
        server.be(mood);
        server.hang_up();
        assert!(matches!(inserted.check(at, 2048, 1), Err(FaultKind::Unreachable | FaultKind::TimedOut)));
        rig.await_report(|report| matches!(report, Report::Offline { .. }));
        assert_eq!(inserted.image.source_state(), SourceState::Offline);
        inserted.check(0, FIRST, 1).unwrap();
        server.be(Mood::Good);
        server.hang_up();
        rig.await_report(|report| *report == Report::Online);
        inserted.check(at, 2048, 1).unwrap();
    }
}

#[test]
fn a_server_that_drips_is_not_waited_for() {
    let server = Server::start(LEN);
    let rig = lazy();
    for mood in [Mood::DripHead, Mood::DripBody, Mood::Silent] {
        server.be(mood);
        let begun = Instant::now();
        assert_eq!(rig.refusal(&server.url("/x.iso")), UrlErrorKind::TimedOut);
        assert!(begun.elapsed() < SHORT.chunk + SHORT.answer, "{:?}", begun.elapsed());
    }
    server.be(Mood::Good);
    let inserted = only_first(&rig, &server);
    server.be(Mood::DripBody);
    assert_eq!(inserted.check(30 * CHUNK, 2048, 1), Err(FaultKind::TimedOut));
}

#[test]
fn a_dead_server_is_an_answer_within_a_second_and_what_is_here_goes_on() {
    let server = Server::start(LEN);
    let rig = lazy();
    let url = server.url("/x.iso");
    let inserted = only_first(&rig, &server);
    inserted.check(5 * CHUNK, CHUNK, 1).unwrap();
    let at = server.stop();
    let begun = Instant::now();
    assert_eq!(inserted.check(30 * CHUNK, 2048, 1), Err(FaultKind::Unreachable));
    assert!(begun.elapsed() < Duration::from_secs(1), "{:?}", begun.elapsed());
    inserted.check(5 * CHUNK, CHUNK, 1).unwrap();
    drop(inserted);
    // What is in the cache is inserted without it; what is not is refused.
    let begun = Instant::now();
    let inserted = rig.insert(&url).unwrap();
    assert_eq!(rig.refusal(&url.replace("/x", "/y")), UrlErrorKind::Unreachable);
    assert!(begun.elapsed() < Duration::from_secs(2), "{:?}", begun.elapsed());
    inserted.check(5 * CHUNK, CHUNK, 1).unwrap();
    assert_eq!(inserted.check(30 * CHUNK, 2048, 1), Err(FaultKind::Unreachable));
    let _server = Server::start_at(at, LEN, None);
    rig.await_report(|report| *report == Report::Online);
    inserted.check(30 * CHUNK, 2048, 1).unwrap();
}

/// A listener whose backlog is full: connections are neither taken nor refused.
fn black_hole() -> (std::net::TcpListener, Vec<std::net::TcpStream>) {
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let (address, soon) = (listener.local_addr().unwrap(), Duration::from_millis(50));
    let filling: Vec<_> =
        (0..400).map_while(|_| std::net::TcpStream::connect_timeout(&address, soon).ok()).collect();
    assert!(filling.len() < 400, "the backlog has no end");
    (listener, filling)
}

#[test]
fn an_image_whose_threads_wait_for_a_connection_leaves_its_files_at_once() {
    let (hole, _full) = black_hole();
    let server = Server::start(LEN);
    // From now on it leads into the hole, for longer than anybody here waits.
    let rig = Rig::with(|options| {
        options.patience.connect = PATIENCE;
        options.patience.answer = PATIENCE;
        options.rate = Some(1 << 20);
    });
    let url = server.url("/x.iso");
    let inserted = rig.insert(&url).unwrap();
    server.be(Mood::Redirect(format!("http://{}/x.iso", hole.local_addr().unwrap())));
    let far = ByteRange::new(ByteOffset(30 * CHUNK), ByteLen(2048)).unwrap();
    let seen = server.seen().len();
    assert!(matches!(inserted.image.map(far), Extent::Pending { .. }));
    let until = Instant::now() + PATIENCE;
    while server.seen().len() == seen {
        assert!(Instant::now() < until, "it asks no more");
        std::thread::yield_now();
    }
    drop(inserted);
    server.be(Mood::Good);
    let begun = Instant::now();
    rig.insert(&url).unwrap().check_whole(1);
    assert!(begun.elapsed() < PATIENCE / 2, "{:?}", begun.elapsed());
}

#[test]
fn an_address_that_swallows_packets_is_given_up_soon() {
    let (hole, _full) = black_hole();
    let address = hole.local_addr().unwrap();
    let begun = Instant::now();
    assert_eq!(Rig::new().refusal(&format!("http://{address}/x")), UrlErrorKind::TimedOut);
    assert!(begun.elapsed() < Duration::from_secs(1), "{:?}", begun.elapsed());
}
