//! What is measured: links, sources, tests, their sizes, and the Bulk-Only limit that a test is held against.

use clap::ValueEnum;

use crate::vm::Speed;

pub(super) const KIB: u64 = 1024;
pub(super) const MIB: u64 = 1024 * KIB;

/// The image that every source holds; tests use its first half.
pub(super) const IMAGE: u64 = 64 * MIB;
const SPAN: u64 = 32 * MIB;

/// A tick of the link, and what it carries at each speed (see `setup/link.rs`).
const TICK_SECONDS: f64 = 125e-6;
const HIGH_TICK: u64 = 6_656;
const SUPER_TICK: u64 = 57_500;

/// The largest command of Linux's usb-storage at each speed.
const HIGH_COMMAND: u64 = 120 * KIB;
const SUPER_COMMAND: u64 = MIB;

/// Where the image is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum Source {
    /// In memory
    Tmpfs,
    /// On ext4, on a disk in memory; the page cache is warm
    Ext4,
    /// On NFSv3 with 5 ms each way; the page cache is cold
    Nfs,
}

impl Source {
    /// As on the command line and in the JSON rows.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Tmpfs => "tmpfs",
            Self::Ext4 => "ext4",
            Self::Nfs => "nfs",
        }
    }

    /// Whether the host may write.
    pub(crate) fn writable(self) -> bool {
        self != Self::Nfs
    }

    /// The tests that say something about this source.
    pub(crate) fn tests(self) -> Vec<Test> {
        let test = |pattern, kib| Test { pattern, block: kib * KIB };
        if self == Self::Nfs {
            return vec![test(Pattern::Read, 120), test(Pattern::Read, 1024), test(Pattern::RandomRead, 64)];
        }
        let reads = [4, 64, 120, 1024].map(|kib| test(Pattern::Read, kib));
        let writes = [4, 120, 1024].map(|kib| test(Pattern::Write, kib));
        let random = [test(Pattern::RandomRead, 4), test(Pattern::RandomWrite, 4)];
        reads.into_iter().chain(writes).chain(random).collect()
    }
}

/// What the host does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Pattern {
    Read,
    Write,
    RandomRead,
    RandomWrite,
}

impl Pattern {
    /// fio's `rw=`.
    pub(super) fn fio(self) -> &'static str {
        match self {
            Self::Read => "read",
            Self::Write => "write",
            Self::RandomRead => "randread",
            Self::RandomWrite => "randwrite",
        }
    }

    pub(super) fn is_write(self) -> bool {
        matches!(self, Self::Write | Self::RandomWrite)
    }

    fn words(self) -> &'static str {
        match self {
            Self::Read => "sequential read",
            Self::Write => "sequential write",
            Self::RandomRead => "random read",
            Self::RandomWrite => "random write",
        }
    }
}

/// One test.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Test {
    pub(super) pattern: Pattern,
    /// Bytes of one request of the host.
    pub(super) block: u64,
}

impl Test {
    /// As in the table and in the JSON rows.
    pub(crate) fn name(self) -> String {
        let size = if self.block < MIB {
            format!("{} KiB", self.block / KIB)
        } else {
            format!("{} MiB", self.block / MIB)
        };
        format!("{} {size}", self.pattern.words())
    }

    /// Bytes of the image that the test goes through, over and over: whole blocks.
    pub(super) fn span(self) -> u64 {
        SPAN / self.block * self.block
    }

    /// Bytes to move. fio times in milliseconds, so that a fast test needs more; a cold one must not read anything twice.
    pub(super) fn amount(self, source: Source, speed: Speed, quick: bool) -> u64 {
        let whole = match (source, self.block, speed) {
            (Source::Nfs, 65_536, _) => 8 * MIB,
            (_, 4_096, _) => 4 * MIB,
            (Source::Nfs, ..) | (_, _, Speed::High) => SPAN,
            (_, _, Speed::Super) => 2 * SPAN,
        };
        let bytes = if quick { whole / 4 } else { whole };
        bytes / self.block * self.block
    }

    /// The megabytes per second that Bulk-Only Transport allows on this link: CBW, data and CSW one after the other, each
    /// taking whole ticks, and nobody needing any time.
    pub(crate) fn limit(self, speed: Speed) -> f64 {
        let (tick, largest) = match speed {
            Speed::High => (HIGH_TICK, HIGH_COMMAND),
            Speed::Super => (SUPER_TICK, SUPER_COMMAND),
        };
        let command_ticks = |bytes: u64| 2 + bytes.div_ceil(tick);
        let (whole, rest) = (self.block / largest, self.block % largest);
        let ticks = whole * command_ticks(largest) + if rest > 0 { command_ticks(rest) } else { 0 };
        float(self.block) / (float(ticks) * TICK_SECONDS) / 1e6
    }
}

/// Exact for anything measured here.
#[expect(clippy::cast_precision_loss, reason = "bytes and nanoseconds of one test are far below 2^52")]
pub(super) fn float(number: u64) -> f64 {
    number as f64
}

#[cfg(test)]
mod tests {
    use super::{KIB, MIB, Pattern, Source, Test};
    use crate::vm::Speed;

    #[test]
    fn the_limit_counts_whole_ticks_and_the_hosts_splitting() {
        let limit = |kib: u64, speed| Test { pattern: Pattern::Read, block: kib * KIB }.limit(speed);
        // One tick each for CBW, data and CSW.
        assert!((limit(4, Speed::High) - 4096.0 / 375.0).abs() < 1e-9);
        assert!((limit(4, Speed::Super) - limit(4, Speed::High)).abs() < 1e-9);
        // 18.5 ticks of data are 19; 1 MiB is eight commands of 120 KiB and one of 64 KiB with 10 ticks.
        assert!((limit(120, Speed::High) - 122_880.0 / 2625.0).abs() < 1e-9);
        assert!((limit(1024, Speed::High) - 1_048_576.0 / (180.0 * 125.0)).abs() < 1e-9);
        assert!((limit(1024, Speed::Super) - 1_048_576.0 / (21.0 * 125.0)).abs() < 1e-9);
    }

    #[test]
    fn names_are_those_of_the_table() {
        let names: Vec<String> = Source::Nfs.tests().into_iter().map(Test::name).collect();
        assert_eq!(names, ["sequential read 120 KiB", "sequential read 1 MiB", "random read 64 KiB"]);
        assert_eq!(Test { pattern: Pattern::RandomWrite, block: 4 * KIB }.name(), "random write 4 KiB");
    }

    #[test]
    fn amounts_are_whole_blocks_and_cold_bytes_are_read_once() {
        for source in [Source::Tmpfs, Source::Ext4, Source::Nfs] {
            for test in source.tests() {
                for quick in [false, true] {
                    let amount = test.amount(source, Speed::Super, quick);
                    assert_eq!(amount % test.block, 0, "{}", test.name());
                    assert!(amount >= 2 * MIB || quick, "{}", test.name());
                    assert!(source != Source::Nfs || amount <= test.span(), "{}", test.name());
                }
            }
        }
    }
}
