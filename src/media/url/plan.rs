//! Which chunks are fetched next, by whom. Without I/O and threads.
//!
//! What the host waits for comes first: the first thread does nothing else (where there is more than one), and a thread that fills in
//! the background has its run cut short where it would be too late. Filling goes on from where the host reads, around the end, to the
//! start.

use std::{collections::VecDeque, ops::Range, time::Duration};

use super::{CHUNK, chunks::Chunks};

/// Wishes that are remembered; older ones are forgotten, whoever still has them will ask again.
const WANTS_MAX: usize = 32;
/// A wanted chunk so few chunks ahead of a running request is left to it.
const NEAR: u64 = 4;
/// Least that is fetched at once for the host, whose next read is mostly the next.
const WANTED_RUN: u64 = 4;
/// Most that is fetched by one request.
const RUN_MAX: u64 = (8 << 20) / CHUNK;

/// Chunks that one thread fetches with one request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Run {
    pub(super) next: u64,
    pub(super) end: u64,
    /// The host waits for it.
    pub(super) wanted: bool,
}

/// How far a server is away, and how fast it is: smoothed.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Pace {
    latency: f64,
    /// Bytes a second of one connection.
    bandwidth: f64,
}

#[derive(Debug)]
pub(super) struct Plan {
    wants: VecDeque<Range<u64>>,
    running: Vec<Option<Run>>,
    pub(super) pace: Pace,
}

impl Plan {
    pub(super) fn new(threads: usize) -> Self {
        Self {
            wants: VecDeque::with_capacity(WANTS_MAX),
            running: vec![None; threads],
            pace: Pace::default(),
        }
    }

    /// The host wants these, first of all.
    pub(super) fn want(&mut self, chunks: Range<u64>) {
        self.leave_to_near(&chunks);
        if self.wants.contains(&chunks) {
            return;
        }
        if self.wants.len() == WANTS_MAX {
            self.wants.pop_front();
        }
        self.wants.push_back(chunks);
    }

    /// Whether a run will soon be at the first of these. From then on it is for the host, and no longer than that needs.
    fn leave_to_near(&mut self, chunks: &Range<u64>) -> bool {
        let first = chunks.start;
        let runs = self.running.iter_mut().flatten();
        let mut near = runs.filter(|run| (run.next..run.end).contains(&first) && first - run.next < NEAR);
        let Some(run) = near.next() else { return false };
        if !run.wanted {
            run.wanted = true;
            run.end = run.end.min(chunks.end.max(first + WANTED_RUN));
        }
        true
    }

    /// Whether the host waits for what thread `me` fetches.
    pub(super) fn is_wanted(&self, me: usize) -> bool {
        matches!(self.running.get(me), Some(Some(Run { wanted: true, .. })))
    }

    pub(super) fn has_wants(&self) -> bool {
        !self.wants.is_empty()
    }

    pub(super) fn is_idle(&self) -> bool {
        self.running.iter().all(Option::is_none)
    }

    /// Chunks that are under way.
    pub(super) fn under_way(&self) -> u64 {
        self.running.iter().flatten().map(|run| run.end.saturating_sub(run.next)).sum()
    }

    /// The next run of thread `me`. `fill`: what may be filled in the background, in that order; what is beyond the last chunk goes
    /// on at the first.
    pub(super) fn next(&mut self, me: usize, chunks: &Chunks, fill: Option<&Range<u64>>) -> Option<Run> {
        let run = self.wanted(chunks).or_else(|| {
            let first_is_free = me == 0 && self.running.len() > 1;
            if first_is_free || me > self.fillers() { None } else { self.filling(chunks, fill?) }
        });
        if let Some(place) = self.running.get_mut(me) {
            *place = run;
        }
        run
    }

    fn wanted(&mut self, chunks: &Chunks) -> Option<Run> {
        self.wants.retain_mut(|want| {
            want.start = (want.start..want.end).find(|chunk| !chunks.is_here(*chunk)).unwrap_or(want.end);
            !want.is_empty()
        });
        for at in 0..self.wants.len() {
            let want = self.wants.get(at)?.clone();
            let first = want.start;
            // Soon here, or just leaving; the rest is looked at again then.
            if self.leave_to_near(&want) || !chunks.is_absent(first) {
                continue;
            }
            match self.running.iter_mut().flatten().find(|run| (run.next..run.end).contains(&first)) {
                Some(run) if run.wanted => continue,
                Some(run) => run.end = first,
                None => {}
            }
            let end = want.end.max(first + WANTED_RUN).min(first + RUN_MAX);
            return Some(Run { wanted: true, ..self.free(chunks, first, end) });
        }
        None
    }

    fn filling(&self, chunks: &Chunks, fill: &Range<u64>) -> Option<Run> {
        let count = chunks.count();
        let is_free = |chunk: &u64| {
            chunks.is_absent(*chunk) && !self.runs().any(|run| (run.next..run.end).contains(chunk))
        };
        let first = fill.clone().map(|at| at % count).find(is_free)?;
        let end = if first >= fill.start { fill.end.min(count) } else { fill.start };
        Some(self.free(chunks, first, end.min(first + self.pace.run())))
    }

    /// As much from `first` on as nobody has or fetches.
    fn free(&self, chunks: &Chunks, first: u64, end: u64) -> Run {
        let ahead = self.runs().map(|run| run.next).filter(|next| *next > first).min().unwrap_or(u64::MAX);
        let end = end.min(ahead).min(chunks.count());
        let end = (first..end).find(|chunk| !chunks.is_absent(*chunk)).unwrap_or(end);
        Run { next: first, end, wanted: false }
    }

    fn runs(&self) -> impl Iterator<Item = &Run> {
        self.running.iter().flatten()
    }

    /// How many threads fill: more only where a request of the greatest length is still short against the way there and back.
    fn fillers(&self) -> usize {
        let most = self.running.len().saturating_sub(1);
        (1 + self.pace.requests_under_way()).min(most)
    }

    /// Chunks that thread `me` has before it.
    pub(super) fn ahead(&self, me: usize) -> u64 {
        self.running.get(me).copied().flatten().map_or(0, |run| run.end.saturating_sub(run.next))
    }

    /// There is room only for the next `len` of them.
    pub(super) fn shorten(&mut self, me: usize, len: u64) {
        if let Some(Some(run)) = self.running.get_mut(me) {
            run.end = run.end.min(run.next + len);
        }
    }

    /// What thread `me` still has to do of its run. A background run ends early when the host waits and no thread is free.
    pub(super) fn goes_on(&self, me: usize) -> bool {
        let Some(Some(run)) = self.running.get(me) else { return false };
        let in_the_way = !run.wanted && self.has_wants() && self.running.iter().all(Option::is_some);
        run.next < run.end && !in_the_way
    }

    /// A chunk has arrived.
    pub(super) fn advance(&mut self, me: usize) {
        if let Some(Some(run)) = self.running.get_mut(me) {
            run.next += 1;
        }
    }

    /// The run has ended, whole or not.
    pub(super) fn end(&mut self, me: usize) {
        if let Some(place) = self.running.get_mut(me) {
            *place = None;
        }
    }
}

impl Pace {
    pub(super) fn measured(&mut self, latency: Duration, bytes: u64, taken: Duration) {
        // Bytes of one run: exact in a float.
        let bytes = u32::try_from(bytes).map_or(f64::from(u32::MAX), f64::from);
        let smooth =
            |old: &mut f64, new: f64| *old = if *old == 0.0 { new } else { *old * 0.75 + new * 0.25 };
        smooth(&mut self.latency, latency.as_secs_f64());
        smooth(&mut self.bandwidth, bytes / taken.as_secs_f64().max(0.000_1));
    }

    /// Chunks that take eight times as long to come as the first byte does, so that little time is lost between two requests.
    fn whole(&self) -> u64 {
        // Nothing is known yet: a short one, to learn.
        let bytes = (8.0 * self.latency * self.bandwidth).clamp(1.0, 1e15);
        // Positive and far below 2^53.
        #[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss)]
        let bytes = bytes as u64;
        bytes.div_ceil(CHUNK).max(WANTED_RUN)
    }

    fn run(&self) -> u64 {
        self.whole().min(RUN_MAX)
    }

    fn requests_under_way(&self) -> usize {
        usize::try_from(self.whole() / RUN_MAX).unwrap_or(usize::MAX)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn chunks(count: u64, here: &[u8]) -> Chunks {
        Chunks::new(&tempfile::tempfile().unwrap(), count * CHUNK, here).unwrap()
    }

    fn run(next: u64, end: u64, wanted: bool) -> Option<Run> {
        Some(Run { next, end, wanted })
    }

    #[test]
    fn what_the_host_wants_is_fetched_first_and_a_far_run_is_cut_short() {
        let chunks = chunks(100, &[]);
        let all = 0..100;
        let mut plan = Plan::new(2);
        plan.pace.measured(Duration::from_secs(1), 4_000_000, Duration::from_secs(1));
        assert_eq!(plan.next(0, &chunks, Some(&all)), None, "the first thread waits for the host");
        assert_eq!(plan.next(1, &chunks, Some(&all)), run(0, 64, false));
        assert!(!plan.is_wanted(1));
        plan.want(40..41);
        assert_eq!(plan.next(0, &chunks, Some(&all)), run(40, 44, true));
        assert_eq!(plan.under_way(), 40 + 4);
        plan.want(2..4);
        assert!(plan.is_wanted(1), "soon here, by whom it is fetched already");
        assert_eq!(plan.under_way(), 6 + 4);
        (0..6).for_each(|chunk| chunks.arrived(chunk));
        plan.want(42..43);
        plan.end(1);
        assert_eq!(plan.next(1, &chunks, Some(&(90..100))), run(90, 100, false), "another is at it");
    }

    #[test]
    fn filling_goes_around_the_end_and_leaves_what_is_here() {
        let chunks = chunks(16, &[0b0000_1001, 0b1000_0000]);
        let mut plan = Plan::new(1);
        assert_eq!(plan.next(0, &chunks, Some(&(13..29))), run(13, 15, false));
        (13..15).for_each(|chunk| chunks.arrived(chunk));
        plan.end(0);
        assert_eq!(plan.next(0, &chunks, Some(&(13..29))), run(1, 3, false));
        plan.end(0);
        (0..13).for_each(|chunk| chunks.arrived(chunk));
        assert_eq!(plan.next(0, &chunks, Some(&(13..29))), None);
    }

    #[test]
    fn a_single_thread_leaves_filling_when_the_host_waits() {
        let chunks = chunks(16, &[]);
        let mut plan = Plan::new(1);
        assert!(plan.next(0, &chunks, Some(&(0..16))).is_some());
        assert!(plan.goes_on(0));
        plan.want(9..10);
        assert!(!plan.goes_on(0));
        plan.end(0);
        assert_eq!(plan.next(0, &chunks, Some(&(0..16))), run(9, 13, true));
        assert!(plan.goes_on(0));
    }

    #[test]
    fn wishes_are_bounded() {
        let mut plan = Plan::new(1);
        (0..1_000).for_each(|chunk| plan.want(chunk..chunk + 1));
        assert_eq!(plan.wants.len(), WANTS_MAX);
        assert_eq!(plan.wants.back(), Some(&(999..1_000)));
    }

    #[test]
    fn the_further_and_faster_a_server_the_longer_and_the_more_the_requests() {
        let pace = |latency: u64, bandwidth: u64| {
            let mut pace = Pace::default();
            pace.measured(Duration::from_millis(latency), bandwidth, Duration::from_secs(1));
            (pace.run(), pace.requests_under_way())
        };
        assert_eq!(pace(1, 1_000_000), (WANTED_RUN, 0));
        assert_eq!(pace(20, 10_000_000), (13, 0));
        assert_eq!(pace(200, 10_000_000), (RUN_MAX, 1));
        assert_eq!(pace(200, 100_000_000), (RUN_MAX, 19));
    }
}
