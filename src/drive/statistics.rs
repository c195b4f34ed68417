//! What a drive has done, in numbers: bytes, commands by opcode, how they ended and how long they took.
//!
//! [`Statistics`] is plain data; `Function::count`, called when a CSW is queued and when a command is abandoned, is the one place
//! that changes it. While a command is open, its `Tally` in `function::Open` collects what will be counted, so that a command is
//! counted whole, once, or not at all:
//!
//! ```text
//!   CBW ──► Tally ──┬── CSW queued ─────────────► completed: opcode, bytes, outcome, latency
//!                   └── reset, unplugged, broken ► aborted, and nothing else
//! ```
//! Recording neither allocates nor fails. Nothing is ever reset: who wants a rate takes the difference of two looks.

use std::{fmt, time::Duration};

use hdrhistogram::Histogram;

use crate::{
    gadget::endpoints::Endpoints,
    ring::Mover,
    scsi::{self, Kind},
};

use super::function::Function;

/// The time since some moment of its own; never goes back.
pub type Clock = Box<dyn Fn() -> Duration + Send>;

/// The function's sense of time. The two need not agree.
pub struct Clocks {
    /// For what is told of commands: asked twice a command. At the start of the function it is zero.
    pub exact: Clock,
    /// For deadlines: asked for every operation, so it must cost next to nothing, and may be some milliseconds late.
    pub coarse: Clock,
}

/// What is longer counts as this. A host gives a command up after 30 s, or 60.
const LATENCY_MAX_US: u64 = 60_000_000;
/// One digit is a bucket of at most 1/16 of its value, and 3 KiB a histogram.
const LATENCY_DIGITS: u8 = 1;

/// What the command did with the image.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Transfer {
    /// Nothing that the host sees: no image, refused before it, or VERIFY.
    None,
    /// It read from it.
    Read {
        /// Bytes for the host.
        bytes: u32,
        /// Whether every byte was in memory when it was asked for; `None` where not every byte could be had.
        in_memory: Option<bool>,
    },
    /// It wrote to it.
    Write {
        /// Bytes stored.
        bytes: u32,
    },
}

/// What the CSW said (BOT 1.0 §5.3).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// 00h.
    Passed,
    /// 01h: CHECK CONDITION.
    Failed,
    /// 02h.
    PhaseError,
}

/// How a command ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum End {
    /// With a CSW.
    Completed {
        /// Its operation code.
        opcode: u8,
        /// What the CSW said.
        outcome: Outcome,
        /// What it did with the image.
        transfer: Transfer,
        /// From the CBW to the CSW.
        took: Duration,
    },
    /// Without one: the host reset or has gone, or the transfer failed.
    Aborted,
}

/// The open command, as far as it will be counted.
#[derive(Clone, Copy, Debug)]
pub(super) struct Tally {
    pub(super) opcode: u8,
    pub(super) outcome: Outcome,
    pub(super) transfer: Transfer,
    /// When its CBW came.
    since: Duration,
}

/// How long commands of one class took, from the CBW to the CSW.
#[derive(Clone)]
pub struct Latency(Histogram<u64>);

/// One drive's numbers since its function started.
#[derive(Clone, Debug)]
pub struct Statistics {
    /// Of the image, to the host, in completed commands.
    pub bytes_read: u64,
    /// Of the host, into the image, in completed commands.
    pub bytes_written: u64,
    /// Completed commands whose CSW said CHECK CONDITION.
    pub check_conditions: u64,
    /// Completed commands whose CSW said phase error.
    pub phase_errors: u64,
    /// Commands that never came to a CSW.
    pub aborted: u64,
    /// Reads whose every byte was in memory when it was asked for.
    pub reads_from_memory: u64,
    /// Reads that had to wait for the storage.
    pub reads_from_storage: u64,
    /// Of commands that read from the image.
    pub read: Latency,
    /// Of commands that wrote to it.
    pub write: Latency,
    /// Of all other commands, those that were refused among them.
    pub other: Latency,
    opcodes: [u64; 256],
}

impl Tally {
    /// The host, or the image, moved so many bytes.
    pub(super) fn moved(&mut self, moved: u32) {
        match &mut self.transfer {
            Transfer::None => {}
            Transfer::Read { bytes, .. } | Transfer::Write { bytes } => *bytes = moved,
        }
    }

    /// Where the bytes of a read came from.
    pub(super) fn had_all(&mut self, immediate: bool) {
        if let Transfer::Read { in_memory, .. } = &mut self.transfer {
            *in_memory = Some(immediate);
        }
    }
}

impl Latency {
    fn new() -> Self {
        // The three numbers are constants that it takes, as every test that makes a drive shows.
        Self(Histogram::new_with_bounds(1, LATENCY_MAX_US, LATENCY_DIGITS).expect("constant bounds"))
    }

    fn record(&mut self, took: Duration) {
        self.0.saturating_record(u64::try_from(took.as_micros()).unwrap_or(u64::MAX));
    }

    /// How many commands.
    pub fn commands(&self) -> u64 {
        self.0.len()
    }

    /// So many of a hundred commands took no longer, in microseconds; up to 1/16 too high. Zero without commands.
    pub fn percentile_us(&self, percentile: f64) -> u64 {
        self.0.value_at_percentile(percentile)
    }

    /// The longest, in microseconds; up to 1/16 too high. Zero without commands.
    pub fn max_us(&self) -> u64 {
        self.0.max()
    }

    /// Each bucket that is not empty: up to how many microseconds, and how many commands.
    pub fn buckets_us(&self) -> impl Iterator<Item = (u64, u64)> {
        self.0
            .iter_recorded()
            .map(|bucket| (self.0.highest_equivalent(bucket.value_iterated_to()), bucket.count_at_value()))
    }
}

impl fmt::Debug for Latency {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_list().entries(self.buckets_us()).finish()
    }
}

impl Default for Statistics {
    fn default() -> Self {
        Self::new()
    }
}

impl Statistics {
    /// All zero.
    pub fn new() -> Self {
        Self {
            bytes_read: 0,
            bytes_written: 0,
            check_conditions: 0,
            phase_errors: 0,
            aborted: 0,
            reads_from_memory: 0,
            reads_from_storage: 0,
            read: Latency::new(),
            write: Latency::new(),
            other: Latency::new(),
            opcodes: [0; 256],
        }
    }

    /// Completed commands.
    pub fn commands(&self) -> u64 {
        self.opcodes.iter().sum()
    }

    /// Completed commands by operation code, those that there were; with the standard's name, if a drive of this kind
    /// knows the command.
    pub fn opcodes(&self, kind: Kind) -> impl Iterator<Item = (u8, Option<&'static str>, u64)> {
        let seen = (0..=u8::MAX).zip(self.opcodes).filter(|(_, commands)| *commands > 0);
        seen.map(move |(opcode, commands)| (opcode, scsi::opcode_name(opcode, kind), commands))
    }

    /// Counts a command that has ended.
    pub fn count(&mut self, end: End) {
        let End::Completed { opcode, outcome, transfer, took } = end else {
            self.aborted += 1;
            return;
        };
        if let Some(commands) = self.opcodes.get_mut(usize::from(opcode)) {
            *commands += 1;
        }
        match outcome {
            Outcome::Passed => {}
            Outcome::Failed => self.check_conditions += 1,
            Outcome::PhaseError => self.phase_errors += 1,
        }
        match transfer {
            Transfer::None => self.other.record(took),
            Transfer::Read { bytes, in_memory } => {
                self.bytes_read += u64::from(bytes);
                self.reads_from_memory += u64::from(in_memory == Some(true));
                self.reads_from_storage += u64::from(in_memory == Some(false));
                self.read.record(took);
            }
            Transfer::Write { bytes } => {
                self.bytes_written += u64::from(bytes);
                self.write.record(took);
            }
        }
    }
}

impl<E: Endpoints, M: Mover> Function<E, M> {
    /// A CBW has come.
    pub(super) fn tally(&self, opcode: u8) -> Tally {
        Tally { opcode, outcome: Outcome::Passed, transfer: Transfer::None, since: (self.clock)() }
    }

    /// The CSW of the open command is queued.
    pub(super) fn count_completed(&mut self) {
        let Some(Tally { opcode, outcome, transfer, since }) = self.open.tally.take() else { return };
        let took = (self.clock)().saturating_sub(since);
        self.count(End::Completed { opcode, outcome, transfer, took });
    }

    /// The command at hand, if there is one, will never come to a CSW.
    pub(super) fn count_aborted(&mut self) {
        if self.open.tally.take().is_some() {
            self.count(End::Aborted);
        }
    }

    /// The one place where the end of a command is counted. What is for a LUN without a drive is counted nowhere.
    fn count(&mut self, end: End) {
        if let Some(drive) = self.drive_mut(self.open.lun) {
            drive.statistics.count(end);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn completed(opcode: u8, transfer: Transfer, took_us: u64) -> End {
        End::Completed { opcode, outcome: Outcome::Passed, transfer, took: Duration::from_micros(took_us) }
    }

    #[test]
    fn a_drives_numbers_take_no_more_than_16_kib() {
        let new = Statistics::new();
        let buckets: usize =
            [&new.read, &new.write, &new.other].map(|latency| latency.0.distinct_values()).iter().sum();
        let bytes = size_of::<Statistics>() + buckets * size_of::<u64>();
        assert!(bytes <= 16 * 1024, "{bytes} bytes");
    }

    #[test]
    fn latencies_of_any_length_are_counted_and_no_memory_is_added() {
        let mut latency = Latency::new();
        let room = latency.0.distinct_values();
        let any = [Duration::ZERO, Duration::from_nanos(1), Duration::from_secs(60), Duration::MAX];
        any.iter().for_each(|took| latency.record(*took));
        assert_eq!((latency.commands(), latency.0.distinct_values()), (4, room));
        let counted: u64 = latency.buckets_us().map(|(_, commands)| commands).sum();
        assert_eq!(counted, 4);
    }

    #[test]
    fn a_latency_is_told_at_most_a_sixteenth_too_high_and_never_too_low() {
        for took_us in (0..26).flat_map(|bit| [(1 << bit) - 1, 1 << bit, (1 << bit) * 5 / 4]) {
            if took_us > LATENCY_MAX_US {
                continue;
            }
            let mut latency = Latency::new();
            latency.record(Duration::from_micros(took_us));
            let [(upper, 1)] = latency.buckets_us().collect::<Vec<_>>()[..] else { panic!("one bucket") };
            assert!((took_us..=took_us + took_us / 16).contains(&upper), "{took_us} us is told as {upper}");
            assert_eq!((latency.max_us(), latency.percentile_us(50.0)), (upper, upper));
        }
    }

    #[test]
    fn the_median_and_the_99th_of_a_hundred_are_the_50th_and_the_99th() {
        let mut latency = Latency::new();
        // Within 1..=31 each bucket is one microsecond.
        (0..50).for_each(|_| latency.record(Duration::from_micros(3)));
        (0..49).for_each(|_| latency.record(Duration::from_micros(7)));
        latency.record(Duration::from_micros(31));
        assert_eq!([50.0, 99.0].map(|p| latency.percentile_us(p)), [3, 7]);
        assert_eq!(latency.max_us(), 31);
        assert_eq!(latency.buckets_us().collect::<Vec<_>>(), [(3, 50), (7, 49), (31, 1)]);
    }

    #[test]
    fn nothing_was_slow_where_nothing_was_done() {
        let latency = Latency::new();
        assert_eq!((latency.commands(), latency.percentile_us(99.0), latency.max_us()), (0, 0, 0));
    }

    #[test]
    fn each_command_is_counted_in_its_class_and_by_its_opcode() {
        let mut statistics = Statistics::new();
        statistics.count(completed(0x28, Transfer::Read { bytes: 512, in_memory: Some(true) }, 10));
        statistics.count(completed(0x28, Transfer::Read { bytes: 1024, in_memory: Some(false) }, 10));
        statistics.count(completed(0x28, Transfer::Read { bytes: 5, in_memory: None }, 10));
        statistics.count(completed(0x2a, Transfer::Write { bytes: 4096 }, 10));
        statistics.count(completed(0x42, Transfer::None, 10));
        statistics.count(completed(0xff, Transfer::None, 10));
        statistics.count(End::Aborted);
        assert_eq!((statistics.bytes_read, statistics.bytes_written), (1541, 4096));
        assert_eq!((statistics.reads_from_memory, statistics.reads_from_storage), (1, 1));
        let [read, write, other] =
            [&statistics.read, &statistics.write, &statistics.other].map(Latency::commands);
        assert_eq!((read, write, other, statistics.aborted), (3, 1, 2, 1));
        assert_eq!(
            statistics.opcodes(Kind::Disk).collect::<Vec<_>>(),
            [
                (0x28, Some("READ(10)"), 3),
                (0x2a, Some("WRITE(10)"), 1),
                (0x42, Some("UNMAP"), 1),
                (0xff, None, 1)
            ]
        );
        assert!(statistics.opcodes(Kind::Optical).any(|of| of == (0x42, Some("READ SUB-CHANNEL"), 1)));
        assert_eq!(statistics.commands(), 6, "an aborted command is none of the completed");
    }

    #[test]
    fn what_the_csw_said_is_counted_once() {
        let mut statistics = Statistics::new();
        for outcome in [Outcome::Passed, Outcome::Failed, Outcome::Failed, Outcome::PhaseError] {
            let took = Duration::ZERO;
            statistics.count(End::Completed { opcode: 0, outcome, transfer: Transfer::None, took });
        }
        assert_eq!((statistics.check_conditions, statistics.phase_errors), (2, 1));
    }
}
