use std::{collections::HashMap, io::Write, os::unix::fs::FileExt};

use nix::sys::eventfd::{EfdFlags, EventFd};
use proptest::prelude::*;

use super::*;

const AGES: Duration = Duration::from_secs(3600);

fn ring<U: Copy>(entries: u32, pools: &[Pool]) -> Ring<U> {
    Ring::new(&RingOptions::new(entries, pools)).unwrap()
}

fn file_of(len: u64) -> Arc<File> {
    let file = tempfile::tempfile().unwrap();
    file.set_len(len).unwrap();
    Arc::new(file)
}

fn next<U: Copy>(ring: &mut Ring<U>) -> Completion<U> {
    loop {
        match ring.next() {
            Some(completion) => return completion,
            None => ring.wait().unwrap(),
        }
    }
}

fn moved<U: Copy + std::fmt::Debug>(ring: &mut Ring<U>) -> Moved {
    match next(ring) {
        Completion::Moved(moved) => moved,
        other => panic!("{other:?}"),
    }
}

/// Everything that arrives within a moment; the moment's own timer is `last`.
fn heard(ring: &mut Ring<&'static str>) -> Vec<&'static str> {
    ring.timer(Duration::from_millis(30), "last").unwrap();
    let mut heard = Vec::new();
    loop {
        match next(ring) {
            Completion::Timer("last") => return heard,
            Completion::Timer(user) | Completion::Event(user) => heard.push(user),
            Completion::Moved(moved) => panic!("{moved:?}"),
        }
    }
}

fn eventfd() -> (EventFd, OwnedFd) {
    let event = EventFd::from_flags(EfdFlags::EFD_NONBLOCK | EfdFlags::EFD_CLOEXEC).unwrap();
    let watched = std::os::fd::AsFd::as_fd(&event).try_clone_to_owned().unwrap();
    (event, watched)
}

#[derive(Clone, Debug)]
enum Step {
    Read { at: u64, len: usize },
    Write { at: u64, len: usize, fill: u8, durable: bool },
    Punch { at: u64, len: usize },
    Sync,
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let (at, len) = (0u64..40_000, 0usize..=8192);
    let step = prop_oneof![
        (at.clone(), len.clone()).prop_map(|(at, len)| Step::Read { at, len }),
        (at.clone(), 1usize..=8192).prop_map(|(at, len)| Step::Punch { at, len }),
        (at, len, any::<u8>(), any::<bool>()).prop_map(|(at, len, fill, durable)| Step::Write {
            at,
            len,
            fill,
            durable
        }),
        Just(Step::Sync),
    ];
    proptest::collection::vec(step, 1..40)
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 48, failure_persistence: None, ..ProptestConfig::default() })]
    #[test]
    fn random_operations_do_what_pread_and_pwrite_do(steps in steps(), registered in any::<bool>()) {
        let pool = Pool::new(2, 8192).unwrap();
        let registered = if registered { std::slice::from_ref(&pool) } else { &[] };
        let mut ring = ring::<()>(4, registered);
        let (file, model) = (file_of(20_000), file_of(20_000));
        for (n, step) in (0..).zip(steps) {
            match step {
                Step::Read { at, len } => {
                    ring.read(&file, ByteOffset(at), pool.take().unwrap(), 0..len, OpTag(n)).unwrap();
                    let done = moved(&mut ring);
                    let mut expected = vec![0; len];
                    let read = model.read_at(&mut expected, at).unwrap();
                    prop_assert_eq!((done.tag, done.op, done.result.unwrap()), (OpTag(n), MoveOp::Read, read));
                    prop_assert_eq!(&done.buf.unwrap()[..read], &expected[..read]);
                }
                Step::Write { at, len, fill, durable } => {
                    let mut buf = pool.take().unwrap();
                    buf.iter_mut().zip(0u8..=255).for_each(|(byte, i)| *byte = fill ^ i);
                    model.write_all_at(&buf[..len], at).unwrap();
                    ring.write(&file, ByteOffset(at), buf, 0..len, durable, OpTag(n)).unwrap();
                    let done = moved(&mut ring);
                    prop_assert_eq!((done.tag, done.op, done.result.unwrap()), (OpTag(n), MoveOp::Write, len));
                    prop_assert!(done.buf.is_some());
                }
                Step::Punch { at, len } => {
                    // As many zeroes, but none behind the end.
                    let end = model.metadata().unwrap().len();
                    let zeroes = vec![0; len.min(usize::try_from(end.saturating_sub(at)).unwrap())];
                    model.write_all_at(&zeroes, at).unwrap();
                    prop_assert!(ring.punch(&file, ByteOffset(at), len.into(), OpTag(n)));
                    let done = moved(&mut ring);
                    prop_assert_eq!((done.tag, done.op, done.result.unwrap()), (OpTag(n), MoveOp::Punch, 0));
                    prop_assert!(done.buf.is_none());
                }
                Step::Sync => {
                    prop_assert!(ring.sync(&file, OpTag(n)));
                    let done = moved(&mut ring);
                    prop_assert_eq!((done.tag, done.op, done.result.unwrap()), (OpTag(n), MoveOp::Sync, 0));
                    prop_assert!(done.buf.is_none());
                }
            }
            prop_assert_eq!((ring.in_flight(), pool.available()), (0, 2));
        }
        let len = model.metadata().unwrap().len();
        prop_assert_eq!(file.metadata().unwrap().len(), len);
        let (mut got, mut expected) = (vec![0; 60_000], vec![0; 60_000]);
        prop_assert_eq!(file.read_at(&mut got, 0).unwrap(), model.read_at(&mut expected, 0).unwrap());
        prop_assert!(got == expected);
    }
}

#[test]
fn many_at_once_each_come_back_with_their_own_tag_buffer_and_bytes() {
    let (one, other) = (Pool::new(32, 4096).unwrap(), Pool::new(32, 4096).unwrap());
    let mut ring = ring::<()>(64, &[one.clone(), other.clone()]);
    if nix::unistd::geteuid().is_root() {
        assert!(ring.is_registered(&one) && ring.is_registered(&other));
    }
    let file = file_of(0);
    for n in 0..64u8 {
        let mut buf = if n % 2 == 0 { &one } else { &other }.take().unwrap();
        buf.fill(n);
        ring.write(&file, ByteOffset(u64::from(n) * 4096), buf, 0..4096, false, OpTag(u32::from(n))).unwrap();
    }
    let bufs: HashMap<u32, Buf> = (0..64)
        .map(|_| moved(&mut ring))
        .map(|done| {
            assert_eq!(done.result.unwrap(), 4096);
            (done.tag.0, done.buf.unwrap())
        })
        .collect();
    for (tag, mut buf) in bufs {
        assert!(buf.iter().all(|byte| u32::from(*byte) == tag), "the buffer of another operation came back");
        buf.fill(0xee);
        // Each reads what its neighbour wrote.
        ring.read(&file, ByteOffset(u64::from((tag + 1) % 64) * 4096), buf, 0..4096, OpTag(tag)).unwrap();
    }
    for _ in 0..64 {
        let done = moved(&mut ring);
        assert!(done.buf.unwrap().iter().all(|byte| u32::from(*byte) == (done.tag.0 + 1) % 64));
    }
}

#[test]
fn a_full_ring_gives_the_buffer_back_and_has_room_again_after_a_completion() {
    let pool = Pool::new(2, 4096).unwrap();
    let mut ring = ring(2, &[]);
    let file = file_of(4096);
    let first = ring.timer(AGES, "first").unwrap();
    ring.timer(AGES, "second").unwrap();
    let mut buf = pool.take().unwrap();
    buf.fill(7);
    let buf = ring.read(&file, ByteOffset(0), buf, 0..4096, OpTag(0)).unwrap_err();
    assert!(buf.iter().all(|byte| *byte == 7));
    let buf = ring.write(&file, ByteOffset(0), buf, 0..4096, false, OpTag(0)).unwrap_err();
    assert!(!ring.sync(&file, OpTag(0)));
    assert!(matches!(ring.timer(AGES, "third"), Err(RingError::Full)));
    assert!(matches!(ring.watch(eventfd().1, "watch"), Err(RingError::Full)));
    ring.cancel(first);
    while ring.in_flight() == 2 {
        ring.wait().unwrap();
        assert!(ring.next().is_none(), "a cancelled timer was heard");
    }
    ring.read(&file, ByteOffset(0), buf, 0..4096, OpTag(1)).unwrap();
    assert!(moved(&mut ring).buf.unwrap().iter().all(|byte| *byte == 0));
}

#[test]
fn errors_of_an_operation_come_with_its_buffer() {
    let pool = Pool::new(1, 4096).unwrap();
    let mut ring = ring::<()>(1, std::slice::from_ref(&pool));
    for (path, errno) in [("/dev/full", libc::ENOSPC), ("/proc/self/exe", libc::EBADF)] {
        let file = Arc::new(File::options().read(true).write(path == "/dev/full").open(path).unwrap());
        ring.write(&file, ByteOffset(0), pool.take().unwrap(), 0..512, false, OpTag(9)).unwrap();
        let done = moved(&mut ring);
        assert_eq!(done.result.unwrap_err().raw_os_error(), Some(errno), "{path}");
        assert!(done.buf.is_some());
    }
}

#[test]
fn the_largest_offset_is_not_taken_for_the_position_of_the_file() {
    let pool = Pool::new(1, 4096).unwrap();
    let mut ring = ring::<()>(1, &[]);
    let file = file_of(4096);
    for at in [u64::MAX, u64::MAX - 1, 1 << 63] {
        ring.read(&file, ByteOffset(at), pool.take().unwrap(), 0..512, OpTag(0)).unwrap();
        assert!(!matches!(moved(&mut ring).result, Ok(1..)), "read something at {at}");
    }
}

#[test]
fn dropping_the_ring_finishes_what_was_started_and_returns_every_buffer() {
    let pool = Pool::new(16, 65536).unwrap();
    let file = file_of(0);
    let mut ring = ring(64, std::slice::from_ref(&pool));
    ring.timer(AGES, "timer").unwrap();
    let cancelled = ring.timer(AGES, "cancelled").unwrap();
    ring.watch(eventfd().1, "watch").unwrap();
    ring.cancel(cancelled);
    for n in 0..16u8 {
        let mut buf = pool.take().unwrap();
        buf.fill(n + 1);
        ring.write(&file, ByteOffset(u64::from(n) * 65536), buf, 0..65536, n % 2 == 0, OpTag(0)).unwrap();
    }
    let before = Instant::now();
    drop(ring);
    assert!(before.elapsed() < Duration::from_millis(1900), "a timer or a watch was waited for");
    assert_eq!(pool.available(), 16);
    let mut bytes = vec![0; 16 * 65536];
    file.read_exact_at(&mut bytes, 0).unwrap();
    assert!(bytes.chunks(65536).zip(1u8..).all(|(chunk, n)| chunk.iter().all(|byte| *byte == n)));
}

#[test]
fn a_stuck_operation_bounds_the_drop_and_its_buffer_is_never_reused() {
    let pool = Pool::new(2, 4096).unwrap();
    let (reader, mut writer) = io::pipe().unwrap();
    let file = Arc::new(File::from(OwnedFd::from(reader)));
    let drain = Duration::from_millis(20);
    let mut ring =
        Ring::<()>::new(&RingOptions { entries: 4, pools: std::slice::from_ref(&pool), drain }).unwrap();
    ring.read(&file, ByteOffset(0), pool.take().unwrap(), 0..4096, OpTag(0)).unwrap();
    ring.submit().unwrap();
    drop(ring);
    let rest = pool.take().unwrap();
    assert!(pool.take().is_none(), "a buffer that the kernel may write to was handed out");
    writer.write_all(&[0xff; 4096]).unwrap();
    assert!(rest.iter().all(|byte| *byte == 0));
}

#[test]
fn a_watched_descriptor_is_heard_every_time() {
    let (event, watched) = eventfd();
    let mut ring = ring(4, &[]);
    ring.watch(watched, "event").unwrap();
    for _ in 0..100 {
        event.write(1).unwrap();
        assert!(matches!(next(&mut ring), Completion::Event("event")));
        assert_eq!(event.read().unwrap(), 1);
    }
    assert_eq!((heard(&mut ring), ring.in_flight()), (vec![], 1));
}

#[test]
fn what_was_readable_before_the_watch_is_heard_too() {
    let (event, watched) = eventfd();
    event.write(1).unwrap();
    let mut ring = ring(4, &[]);
    ring.watch(watched, "event").unwrap();
    assert!(matches!(next(&mut ring), Completion::Event("event")));
}

#[test]
fn a_watch_that_overflows_the_completion_queue_goes_on() {
    let (event, watched) = eventfd();
    let mut ring = ring(2, &[]);
    ring.watch(watched, "event").unwrap();
    ring.submit().unwrap();
    let room = ring.uring.0.params().cq_entries();
    for _ in 0..room + 4 {
        event.write(1).unwrap();
        ring.let_completions_in().unwrap();
    }
    let heard_first = heard(&mut ring).len();
    assert!(heard_first >= usize::try_from(room).unwrap(), "{heard_first}");
    event.read().unwrap();
    for _ in 0..3 {
        event.write(1).unwrap();
        assert_eq!(heard(&mut ring), ["event"]);
        event.read().unwrap();
    }
}

#[test]
fn a_watched_pipe_whose_writer_is_gone_does_not_keep_the_loop_awake() {
    let (reader, writer) = io::pipe().unwrap();
    let mut ring = ring(4, &[]);
    ring.watch(reader.into(), "pipe").unwrap();
    drop(writer);
    let events = heard(&mut ring);
    assert!(!events.is_empty() && events.len() < 4, "{events:?}");
}

#[test]
fn a_cancelled_watch_is_silent_even_when_it_had_fired() {
    let (event, watched) = eventfd();
    let mut ring = ring(4, &[]);
    let key = ring.watch(watched, "event").unwrap();
    event.write(1).unwrap();
    ring.wait().unwrap();
    ring.cancel(key);
    event.write(1).unwrap();
    assert_eq!((heard(&mut ring), ring.in_flight()), (vec![], 0));
}

#[test]
fn timers_fire_in_the_order_of_their_times() {
    let mut ring = ring(8, &[]);
    let start = Instant::now();
    for ms in [30, 10, 20, 0] {
        ring.timer(Duration::from_millis(ms), ms).unwrap();
    }
    for expected in [0, 10, 20, 30] {
        let Completion::Timer(ms) = next(&mut ring) else { panic!() };
        assert_eq!(ms, expected);
        assert!(start.elapsed() >= Duration::from_millis(ms), "too early");
    }
    assert_eq!(ring.in_flight(), 0);
}

#[test]
fn a_stale_key_does_not_cancel_the_next_timer_in_its_slot() {
    let mut ring = ring(1, &[]);
    let old = ring.timer(Duration::ZERO, "old").unwrap();
    assert!(matches!(next(&mut ring), Completion::Timer("old")));
    let new = ring.timer(Duration::from_millis(5), "new").unwrap();
    assert_eq!(old.0.index(), new.0.index());
    ring.cancel(old);
    ring.cancel(old);
    assert!(matches!(next(&mut ring), Completion::Timer("new")));
}

#[test]
fn cancelling_more_often_than_the_ring_has_entries_leaks_no_slot() {
    let mut ring = ring(2, &[]);
    for _ in 0..200 {
        let key = loop {
            match ring.timer(AGES, "timer") {
                Ok(key) => break key,
                Err(_) => {
                    ring.wait().unwrap();
                    assert!(ring.next().is_none());
                }
            }
        };
        ring.cancel(key);
    }
    while ring.in_flight() > 0 {
        ring.wait().unwrap();
        assert!(ring.next().is_none());
    }
}

#[test]
fn signals_do_not_end_the_wait() {
    use std::sync::atomic::{AtomicBool, AtomicU32, Ordering::SeqCst};
    static CAUGHT: AtomicU32 = AtomicU32::new(0);
    extern "C" fn count(_: libc::c_int) {
        CAUGHT.fetch_add(1, SeqCst);
    }
    use nix::sys::signal::{SaFlags, SigAction, SigHandler, SigSet, Signal, sigaction};
    let action = SigAction::new(SigHandler::Handler(count), SaFlags::empty(), SigSet::empty());
    // SAFETY: the handler only counts, and nothing else in this process uses SIGUSR2.
    unsafe { sigaction(Signal::SIGUSR2, &action) }.unwrap();
    // SAFETY: always succeeds.
    let waiting = unsafe { libc::pthread_self() };
    let done = AtomicBool::new(false);
    let mut ring = ring(2, &[]);
    ring.timer(Duration::from_millis(50), ()).unwrap();
    std::thread::scope(|scope| {
        scope.spawn(|| {
            while !done.load(SeqCst) {
                // SAFETY: the waiting thread lives until `done`, and joins this one before it ends.
                assert_eq!(unsafe { libc::pthread_kill(waiting, libc::SIGUSR2) }, 0);
                std::thread::yield_now();
            }
        });
        // Nothing may panic before the other thread is told to end.
        let waited = loop {
            match ring.wait() {
                Ok(()) if ring.next().is_none() => {}
                waited => break waited,
            }
        };
        drop(ring);
        done.store(true, SeqCst);
        waited.unwrap();
    });
    assert!(CAUGHT.load(SeqCst) > 0);
}

#[test]
fn odd_sizes_are_clamped_to_what_works() {
    for entries in [0, 1, 3, 5000, u32::MAX] {
        let mut ring = ring(entries, &[]);
        ring.timer(Duration::ZERO, ()).unwrap();
        assert!(matches!(next(&mut ring), Completion::Timer(())));
    }
}

#[test]
fn the_ring_for_older_kernels_does_the_same() {
    let (best, plain) = builders(8);
    for (builder, single) in [(best, true), (plain, false)] {
        let uring = builder.build(8).unwrap();
        assert_eq!(uring.params().is_setup_single_issuer(), single);
        assert!(!uring.params().is_setup_sqpoll());
        let pool = Pool::new(1, 4096).unwrap();
        let (event, watched) = eventfd();
        let mut ring = Ring::over(uring, &RingOptions::new(8, std::slice::from_ref(&pool))).unwrap();
        ring.watch(watched, "event").unwrap();
        for _ in 0..3 {
            event.write(1).unwrap();
            assert!(matches!(next(&mut ring), Completion::Event("event")));
            event.read().unwrap();
        }
        ring.read(&file_of(100), ByteOffset(0), pool.take().unwrap(), 0..4096, OpTag(1)).unwrap();
        assert_eq!(moved(&mut ring).result.unwrap(), 100);
        assert_eq!(heard(&mut ring), Vec::<&str>::new());
    }
}

#[test]
fn hints_are_heard_by_nobody_and_give_their_places_back() {
    let pool = Pool::new(1, 4096).unwrap();
    let mut ring = ring::<()>(4, std::slice::from_ref(&pool));
    let file = file_of(1 << 20);
    for hint in 0..4 {
        ring.will_read(&file, ByteOffset(hint * 4096), ByteLen(4096));
    }
    assert!(
        ring.read(&file, ByteOffset(0), pool.take().unwrap(), 0..512, OpTag(1)).is_err(),
        "all places are taken"
    );
    ring.will_read(&file, ByteOffset(0), ByteLen(4096));
    while ring.in_flight() > 0 {
        ring.wait().unwrap();
        assert!(ring.next().is_none());
    }
    ring.read(&file, ByteOffset(0), pool.take().unwrap(), 0..512, OpTag(2)).unwrap();
    assert_eq!(moved(&mut ring).tag, OpTag(2));
}

#[test]
fn bytes_are_read_now_only_if_all_of_them_are_there() {
    let mut ring = ring::<()>(4, &[]);
    let mut file = tempfile::tempfile().unwrap();
    file.write_all(&[7; 8192]).unwrap();
    let file = Arc::new(file);
    let mut to = [0; 4096];
    assert!(ring.read_now(&file, ByteOffset(4096), &mut to, Wait::ForMemory));
    assert_eq!(to, [7; 4096]);
    assert!(!ring.read_now(&file, ByteOffset(4097), &mut to, Wait::ForMemory), "the file ends in the middle");
    assert!(!ring.read_now(&file, ByteOffset(u64::MAX), &mut to, Wait::Never));
}
