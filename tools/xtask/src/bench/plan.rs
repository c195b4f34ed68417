//! What is measured: links, sources, tests, their sizes, and the Bulk-Only limit that a test is held against.

use clap::ValueEnum;

use crate::vm::Speed;

pub(super) const KIB: u64 = 1024;
pub(super) const MIB: u64 = 1024 * KIB;

/// The image that every source holds.
pub(super) const IMAGE: u64 = 64 * MIB;

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

    /// How many runs that do not count come before a test. A connection's congestion window goes on growing from one run to the next.
    pub(super) fn rehearsals(self) -> u32 {
        if self == Self::Nfs { 2 } else { 0 }
    }

    /// How long all runs of a test take together, at least.
    pub(super) fn seconds(self, scale: Scale) -> f64 {
        match (self, scale) {
            (Self::Nfs, Scale::Full) => 10.0,
            (Self::Nfs, Scale::Short) => 6.0,
            (Self::Tmpfs | Self::Ext4, _) | (Self::Nfs, Scale::Quick) => 0.0,
        }
    }

    /// The tests that say something about this source.
    pub(crate) fn tests(self, speed: Speed, scale: Scale) -> Vec<Test> {
        let test = |pattern, kib| Test { pattern, block: kib * KIB };
        let mut tests = Vec::new();
        if self != Self::Nfs {
            tests.extend([4, 64].map(|kib| test(Pattern::Read, kib)));
        }
        tests.extend([120, 1024].map(|kib| test(Pattern::Read, kib)));
        if self == Self::Nfs {
            tests.push(test(Pattern::RandomRead, 64));
        } else {
            tests.extend([4, 120, 1024].map(|kib| test(Pattern::Write, kib)));
            tests.extend([Pattern::RandomRead, Pattern::RandomWrite].map(|pattern| test(pattern, 4)));
        }
        if scale == Scale::Short {
            tests.retain(|test| test.tells(self, speed));
        }
        tests
    }
}

/// How much is measured.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum Scale {
    /// All tests
    Full,
    /// All tests, a quarter of the bytes
    Quick,
    /// The tests that tell most, with all their bytes
    Short,
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

    /// Whether the short form has it: where a change of ours shows first, on each link and source.
    fn tells(self, source: Source, speed: Speed) -> bool {
        let kib = self.block / KIB;
        match (source, speed, self.pattern) {
            (Source::Tmpfs, Speed::High, Pattern::Read | Pattern::Write) => kib == 120,
            (_, Speed::High, _)
            | (Source::Tmpfs | Source::Ext4, _, Pattern::RandomRead | Pattern::RandomWrite) => false,
            (Source::Nfs, Speed::Super, _) => kib < 1024,
            (_, Speed::Super, Pattern::Read) => kib != 64,
            (_, Speed::Super, Pattern::Write) => kib != 120,
        }
    }

    /// How often a test counts, at least. What writes back meanwhile, and a network, have more chances to disturb.
    pub(super) fn repeats(self, source: Source, scale: Scale) -> usize {
        let written_back = source == Source::Ext4 && self.pattern == Pattern::Write && self.block == MIB;
        if scale == Scale::Full || source == Source::Nfs || written_back { 5 } else { 3 }
    }

    /// Bytes of the image that the test goes through, over and over: whole blocks.
    pub(super) fn span(self) -> u64 {
        IMAGE / self.block * self.block
    }

    /// Bytes to move. fio times in milliseconds, so that a fast test needs more. A cold one must not read anything twice, and
    /// a random one so little that it seldom meets what was read ahead for an earlier request.
    pub(super) fn amount(self, source: Source, speed: Speed, scale: Scale) -> u64 {
        let whole = match (source, self.pattern, speed) {
            (Source::Nfs, Pattern::RandomRead, _) => return 4 * MIB,
            (Source::Nfs, ..) => IMAGE,
            _ if self.block == 4 * KIB => 4 * MIB,
            (_, _, Speed::High) => IMAGE / 2,
            _ if self.block == MIB => 2 * IMAGE,
            (_, _, Speed::Super) => IMAGE,
        };
        let bytes = if scale == Scale::Quick { whole / 4 } else { whole };
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
    use super::{KIB, MIB, Pattern, Scale, Source, Test};
    use crate::vm::Speed;

    const SOURCES: [Source; 3] = [Source::Tmpfs, Source::Ext4, Source::Nfs];

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
        let names: Vec<String> =
            Source::Nfs.tests(Speed::High, Scale::Full).into_iter().map(Test::name).collect();
        assert_eq!(names, ["sequential read 120 KiB", "sequential read 1 MiB", "random read 64 KiB"]);
        assert_eq!(Test { pattern: Pattern::RandomWrite, block: 4 * KIB }.name(), "random write 4 KiB");
    }

    #[test]
    fn amounts_are_whole_blocks_and_cold_bytes_are_read_once() {
        for source in SOURCES {
            for test in source.tests(Speed::Super, Scale::Full) {
                for scale in [Scale::Full, Scale::Quick] {
                    let amount = test.amount(source, Speed::Super, scale);
                    assert_eq!(amount % test.block, 0, "{}", test.name());
                    assert!(amount >= 2 * MIB - test.block || scale == Scale::Quick, "{}", test.name());
                    assert!(source != Source::Nfs || amount <= test.span(), "{}", test.name());
                }
            }
        }
    }

    #[test]
    fn the_short_form_has_every_source_and_both_links_with_the_full_amounts() {
        for source in SOURCES {
            let (short, full) =
                (source.tests(Speed::Super, Scale::Short), source.tests(Speed::Super, Scale::Full));
            assert!(!short.is_empty() && short.len() < full.len(), "{}", source.name());
            for test in short {
                assert!(full.contains(&test), "{}", test.name());
                let amount = |scale| test.amount(source, Speed::Super, scale);
                assert_eq!(amount(Scale::Short), amount(Scale::Full), "{}", test.name());
            }
        }
        let names: Vec<String> =
            Source::Tmpfs.tests(Speed::High, Scale::Short).into_iter().map(Test::name).collect();
        assert_eq!(names, ["sequential read 120 KiB", "sequential write 120 KiB"]);
    }
}
