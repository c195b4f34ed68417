//! A worker that has no medium.

use super::*;

impl Task for u8 {
    type Key = u8;
    const STORES_FIRST: bool = true;
    const MOST: usize = 4;
}

const SOON: Duration = Duration::from_secs(20);

/// A flush that ends with this when it is told to.
fn flush(bell: &Arc<Bell<u8>>) -> crossbeam_channel::Sender<io::Result<()>> {
    let (end, ended) = crossbeam_channel::bounded::<io::Result<()>>(1);
    bell.flush(move || ended.recv_timeout(SOON).unwrap());
    end
}

#[test]
fn a_task_does_not_wait_for_what_is_flushed_before_a_store_that_is_due() {
    let bell: Arc<Bell<u8>> = Arc::default();
    bell.hurry();
    assert!(matches!(bell.next(), Work::Flush));
    let end = flush(&bell);
    assert!(bell.work().is_none());
    bell.queue(|queue| queue.push(7));
    assert!(matches!(bell.next(), Work::Do(7)));
    bell.done(None);
    end.send(Ok(())).unwrap();
    assert!(matches!(bell.next(), Work::Store));
    assert!(bell.store(|| Ok(())).is_none());
    assert!(bell.work().is_none());
}

#[test]
fn a_store_that_was_asked_for_tells_what_a_flush_was_told() {
    let bell: Arc<Bell<u8>> = Arc::default();
    bell.hurry();
    let end = flush(&bell);
    bell.begin(5);
    assert!(matches!(bell.next(), Work::Store));
    end.send(Err(error_of(libc::EIO))).unwrap();
    // Its own sync would not be told, because the other was.
    let told = bell.store(|| panic!("the file is told of what is lost"));
    assert!(matches!(told, Some(Unstored::Lost(_))), "{told:?}");
    let (ticket, result) = Store::next(&*bell).unwrap();
    assert_eq!((ticket, result.unwrap_err().raw_os_error()), (5, Some(libc::EIO)));
    assert!(bell.has_lost() && bell.store(|| Ok(())).is_none());
}

#[test]
fn news_between_the_question_and_the_wait_is_not_waited_for() {
    let bell: Arc<Bell<u8>> = Arc::default();
    let (seen, began) = (bell.news(), Instant::now());
    bell.wake();
    assert!(bell.wait(seen, SOON));
    assert!(began.elapsed() < SOON);
}

#[test]
fn what_a_flush_is_told_at_the_end_is_said() {
    let bell: Arc<Bell<u8>> = Arc::default();
    let end = flush(&bell);
    assert!(!bell.close(true), "nobody waits for it");
    assert!(bell.work().is_none());
    end.send(Err(error_of(libc::EIO))).unwrap();
    assert!(matches!(bell.next(), Work::Store));
    assert!(matches!(bell.store(|| Ok(())), Some(Unstored::Lost(_))));
    assert!(matches!(bell.next(), Work::End));
}

#[test]
fn at_the_end_there_is_no_other_time_for_a_store() {
    let bell: Arc<Bell<u8>> = Arc::default();
    bell.written();
    assert!(!bell.close(true));
    assert!(matches!(bell.next(), Work::Store));
    let failed = bell.store(|| Err(Unstored::NotYet(error_of(libc::ENOSPC))));
    assert!(matches!(failed, Some(Unstored::Lost(_))), "{failed:?}");
    assert!(matches!(bell.next(), Work::End));
}

#[test]
fn a_store_that_has_lost_nothing_is_tried_again() {
    let bell: Arc<Bell<u8>> = Arc::default();
    bell.begin(5);
    let failed = bell.store(|| Err(Unstored::NotYet(error_of(libc::ENOSPC))));
    assert!(matches!(failed, Some(Unstored::NotYet(_))), "{failed:?}");
    assert!(Store::next(&*bell).is_some_and(|(_, result)| result.is_err()) && !bell.has_lost());
    assert!(bell.state.lock().due.is_some());
    bell.begin(6);
    assert!(bell.store(|| Ok(())).is_none());
    assert!(Store::next(&*bell).is_some_and(|(_, result)| result.is_ok()));
}
