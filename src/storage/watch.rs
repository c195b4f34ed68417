//! What becomes of an area: the states of the room's page, and the thread that goes through them.

use std::{fmt, time::Duration};

use super::{News, Stop};

/// What mounts: the kernel, or a test.
pub(super) trait Mounter {
    type Error: fmt::Display;
    /// Mounts, with an end to it.
    fn mount(&mut self, stop: &Stop) -> Result<(), Self::Error>;
    /// Whether what was mounted is there and answers, with an end to it.
    fn look(&mut self, stop: &Stop) -> Look;
    /// Takes it away. Never waits for a server.
    fn unmount(&mut self);
}

/// What a look has found.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Look {
    Serving,
    /// It is mounted, and its server does not answer. The kernel goes on asking.
    Silent(String),
    /// It is not mounted any more, or of no use.
    Lost(String),
}

/// What is told of an area.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Condition {
    Connecting,
    Mounted,
    Failed { cause: String },
}

/// How long to wait between tries.
#[derive(Clone, Copy, Debug)]
pub(super) struct Pace {
    /// Between two looks.
    look: Duration,
    /// After the first try that failed; doubled with each.
    first: Duration,
    /// At most.
    most: Duration,
}

impl Default for Pace {
    fn default() -> Self {
        let seconds = Duration::from_secs;
        Self { look: seconds(2), first: seconds(1), most: seconds(30) }
    }
}

/// The states, without a thread and a clock.
#[derive(Debug)]
struct Watch {
    condition: Condition,
    is_mounted: bool,
    failures: u32,
    pace: Pace,
}

impl Watch {
    fn new(pace: Pace) -> Self {
        Self { condition: Condition::Connecting, is_mounted: false, failures: 0, pace }
    }

    /// Takes in what a try to mount came to; gives what to tell, and how long to wait.
    fn tried(&mut self, result: Result<(), String>) -> (Option<News>, Duration) {
        match result {
            Ok(()) => {
                self.is_mounted = true;
                self.failures = 0;
                (self.serves(), self.pace.look)
            }
            Err(cause) => {
                let doubled = self.pace.first.saturating_mul(1 << self.failures.min(16));
                self.failures = self.failures.saturating_add(1);
                (self.fails(cause), doubled.min(self.pace.most))
            }
        }
    }

    /// As [`Watch::tried`], of a look.
    fn looked(&mut self, look: Look) -> (Option<News>, Duration) {
        match look {
            Look::Serving => (self.serves(), self.pace.look),
            Look::Silent(cause) => (self.fails(cause), self.pace.look),
            Look::Lost(cause) => {
                self.is_mounted = false;
                // The server may well be there.
                (self.fails(cause), Duration::ZERO)
            }
        }
    }

    fn serves(&mut self) -> Option<News> {
        let news = self.condition != Condition::Mounted;
        self.condition = Condition::Mounted;
        news.then_some(News::Mounted)
    }

    /// One event for each time that it fails, however often it is tried then and for whatever causes.
    fn fails(&mut self, cause: String) -> Option<News> {
        let news = !matches!(self.condition, Condition::Failed { .. });
        self.condition = Condition::Failed { cause: cause.clone() };
        news.then_some(News::Lost { cause })
    }
}

/// The thread of an area, until `stop`. `tell` gets the condition after each step, and news where there are some.
pub(super) fn run(
    mut mounter: impl Mounter,
    stop: &Stop,
    pace: Pace,
    tell: impl Fn(&Condition, Option<News>),
) {
    let mut watch = Watch::new(pace);
    let mut wait = Duration::ZERO;
    while !stop.within(wait) {
        let (news, next) = if watch.is_mounted {
            watch.looked(mounter.look(stop))
        } else {
            watch.tried(mounter.mount(stop).map_err(|error| error.to_string()))
        };
        // What the end has broken off is no news.
        if stop.within(Duration::ZERO) {
            break;
        }
        tell(&watch.condition, news);
        wait = next;
    }
    mounter.unmount();
}

#[cfg(test)]
mod tests {
    use std::thread;

    use crossbeam_channel::{Receiver, Sender, bounded, unbounded};

    use super::*;
    use crate::storage::Awaited;

    const PATIENCE: Duration = Duration::from_secs(20);

    #[derive(Debug, PartialEq, Eq)]
    enum Asked {
        Mount,
        Look,
        Unmount,
    }

    enum Answer {
        Mount(Result<(), &'static str>),
        Look(Look),
        /// Comes never.
        Hangs,
    }

    /// Does as the test says, step by step.
    struct Fake {
        asked: Sender<Asked>,
        answers: Receiver<Answer>,
    }

    impl Fake {
        /// What the test says; `None`: the end comes first.
        fn ask(&self, asked: Asked, stop: &Stop) -> Option<Answer> {
            self.asked.send(asked).unwrap();
            match stop.wait_for(&self.answers, PATIENCE) {
                Awaited::Done(Answer::Hangs) => {
                    assert!(stop.within(PATIENCE), "no end comes");
                    None
                }
                Awaited::Done(answer) => Some(answer),
                Awaited::Stopped => None,
                Awaited::Dead | Awaited::Late => panic!("no answer"),
            }
        }
    }

    impl Mounter for Fake {
        type Error = String;

        fn mount(&mut self, stop: &Stop) -> Result<(), String> {
            match self.ask(Asked::Mount, stop) {
                Some(Answer::Mount(result)) => result.map_err(str::to_owned),
                None => Err("stopped".into()),
                Some(_) => panic!("another step was expected"),
            }
        }

        fn look(&mut self, stop: &Stop) -> Look {
            match self.ask(Asked::Look, stop) {
                Some(Answer::Look(look)) => look,
                None => Look::Serving,
                Some(_) => panic!("another step was expected"),
            }
        }

        fn unmount(&mut self) {
            self.asked.send(Asked::Unmount).unwrap();
        }
    }

    /// A thread of an area and both of its ends.
    struct Play {
        asked: Receiver<Asked>,
        answers: Sender<Answer>,
        told: Receiver<(Condition, Option<News>)>,
        stop: Option<Sender<()>>,
        thread: thread::JoinHandle<()>,
    }

    impl Play {
        fn start() -> Self {
            let (asked_tx, asked) = unbounded();
            let (answers, answers_rx) = unbounded();
            let (told_tx, told) = unbounded();
            let (stop, stopped) = bounded(0);
            let ms = Duration::from_millis;
            let pace = Pace { look: ms(1), first: ms(1), most: ms(4) };
            let mounter = Fake { asked: asked_tx, answers: answers_rx };
            let thread = thread::spawn(move || {
                run(mounter, &Stop(stopped), pace, |condition, news| {
                    told_tx.send((condition.clone(), news)).unwrap();
                });
            });
            Self { asked, answers, told, stop: Some(stop), thread }
        }

        /// The area asks for this, gets that; what it tells.
        fn step(&self, asked: &Asked, answer: Answer) -> (Condition, Option<News>) {
            assert_eq!(self.asked.recv_timeout(PATIENCE).unwrap(), *asked);
            self.answers.send(answer).unwrap();
            self.told.recv_timeout(PATIENCE).unwrap()
        }

        fn mount(&self, result: Result<(), &'static str>) -> (Condition, Option<News>) {
            self.step(&Asked::Mount, Answer::Mount(result))
        }

        fn look(&self, look: Look) -> (Condition, Option<News>) {
            self.step(&Asked::Look, Answer::Look(look))
        }

        /// Nothing but the unmounting comes after the end.
        fn stop(mut self) {
            drop(self.stop.take());
            self.thread.join().unwrap();
            assert_eq!(self.asked.try_iter().last(), Some(Asked::Unmount));
            assert_eq!(self.told.try_iter().count(), 0);
        }
    }

    fn failed(cause: &str) -> Condition {
        Condition::Failed { cause: cause.to_owned() }
    }

    fn lost(cause: &str) -> Option<News> {
        Some(News::Lost { cause: cause.to_owned() })
    }

    #[test]
    fn a_dead_server_is_told_once_and_tried_until_it_lives() {
        let play = Play::start();
        assert_eq!(play.mount(Err("dead")), (failed("dead"), lost("dead")));
        for _ in 0..9 {
            assert_eq!(play.mount(Err("dead")), (failed("dead"), None));
        }
        assert_eq!(play.mount(Err("wrong share")), (failed("wrong share"), None));
        assert_eq!(play.mount(Ok(())), (Condition::Mounted, Some(News::Mounted)));
        assert_eq!(play.look(Look::Serving), (Condition::Mounted, None));
        play.stop();
    }

    #[test]
    fn what_is_lost_is_mounted_again() {
        let play = Play::start();
        play.mount(Ok(()));
        assert_eq!(play.look(Look::Lost("stale".into())), (failed("stale"), lost("stale")));
        assert_eq!(play.mount(Err("dead")), (failed("dead"), None));
        assert_eq!(play.mount(Ok(())), (Condition::Mounted, Some(News::Mounted)));
        assert_eq!(play.look(Look::Lost("gone".into())), (failed("gone"), lost("gone")));
        assert_eq!(play.mount(Ok(())), (Condition::Mounted, Some(News::Mounted)));
        play.stop();
    }

    #[test]
    fn a_silent_server_is_told_and_not_mounted_a_second_time() {
        let play = Play::start();
        play.mount(Ok(()));
        assert_eq!(play.look(Look::Silent("a".into())), (failed("a"), lost("a")));
        assert_eq!(play.look(Look::Silent("b".into())), (failed("b"), None));
        assert_eq!(play.look(Look::Serving), (Condition::Mounted, Some(News::Mounted)));
        play.stop();
    }

    #[test]
    fn the_end_comes_through_a_mount_and_a_look_that_hang() {
        for mounted in [false, true] {
            let play = Play::start();
            let asked = if mounted {
                play.mount(Ok(()));
                Asked::Look
            } else {
                Asked::Mount
            };
            assert_eq!(play.asked.recv_timeout(PATIENCE).unwrap(), asked);
            play.answers.send(Answer::Hangs).unwrap();
            play.stop();
        }
    }

    #[test]
    fn tries_become_rare_but_never_end_and_begin_anew_after_a_success() {
        let mut watch = Watch::new(Pace::default());
        let waits = |n: usize, watch: &mut Watch| -> Vec<u64> {
            (0..n).map(|_| watch.tried(Err(String::new())).1.as_secs()).collect()
        };
        assert_eq!(waits(7, &mut watch), [1, 2, 4, 8, 16, 30, 30]);
        assert_eq!(waits(100, &mut watch).iter().max(), Some(&30));
        watch.tried(Ok(()));
        assert_eq!(watch.looked(Look::Lost(String::new())).1, Duration::ZERO);
        assert_eq!(waits(2, &mut watch), [1, 2]);
    }
}
