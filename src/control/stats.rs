//! The result of `stats`: what a drive has done, as it stands on the wire. Pure.
//!
//! Made on the server's thread from the copy that the function's thread gives away. A host decides how many opcodes and latencies
//! there are, so these come only for a drive that is asked for alone: the answer for all drives stays far below
//! [`OUTPUT_BYTES_MAX`](super::OUTPUT_BYTES_MAX), whatever a host does.

use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use crate::drive::statistics::Latency;
use crate::drive::{DriveIndex, DriveStatistics};

/// One drive in the result of `stats`. All numbers only grow while the daemon runs.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct DriveStats {
    /// Its number.
    pub drive: DriveIndex,
    /// Its name in the configuration.
    pub name: String,
    /// Since every number was zero: what rates are taken over.
    pub uptime_us: u64,
    /// Of the image, to the host.
    pub bytes_read: u64,
    /// Of the host, into the image.
    pub bytes_written: u64,
    /// That came to their CSW.
    pub commands: u64,
    /// Of these, that ended in CHECK CONDITION.
    pub check_conditions: u64,
    /// Of these, that ended in a phase error.
    pub phase_errors: u64,
    /// That did not come to a CSW; counted nowhere else.
    pub aborted: u64,
    /// Reads whose every byte was in memory when it was asked for.
    pub reads_from_memory: u64,
    /// Reads that waited for the storage.
    pub reads_from_storage: u64,
    /// From the CBW to the CSW.
    pub latency: Latencies,
    /// `commands` by operation code, where there were any. Of a drive that was asked for alone.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub opcodes: Option<Vec<OpcodeStats>>,
}

/// By what the command did with the image.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Latencies {
    /// Read from it.
    pub read: LatencyStats,
    /// Wrote to it.
    pub write: LatencyStats,
    /// Neither.
    pub other: LatencyStats,
}

/// How long commands took. Up to 1/16 too high; zero without commands.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct LatencyStats {
    /// How many.
    pub commands: u64,
    /// The median.
    pub p50_us: u64,
    /// One of a hundred took longer.
    pub p99_us: u64,
    /// The longest.
    pub max_us: u64,
    /// Up to how many microseconds, and how many commands, in ascending order. Of a drive that was asked for alone.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub buckets_us: Option<Vec<(u64, u64)>>,
}

/// Commands with one operation code.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct OpcodeStats {
    /// The operation code.
    pub opcode: u8,
    /// The standard's name; `None`: a command that we do not know.
    pub name: Option<String>,
    /// How many.
    pub commands: u64,
}

/// How much is told.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Detail {
    /// What is always of the same size.
    Brief,
    /// Opcodes and buckets too.
    Full,
}

/// The result of `stats`.
pub(super) fn result(drives: &[DriveStatistics], detail: Detail) -> Value {
    let stats: Vec<_> = drives.iter().map(|drive| DriveStats::new(drive, detail)).collect();
    json!({"drives": stats})
}

impl DriveStats {
    fn new(of: &DriveStatistics, detail: Detail) -> Self {
        let counted = &of.statistics;
        let full = detail == Detail::Full;
        Self {
            drive: of.drive,
            name: of.name.clone(),
            uptime_us: u64::try_from(of.uptime.as_micros()).unwrap_or(u64::MAX),
            bytes_read: counted.bytes_read,
            bytes_written: counted.bytes_written,
            commands: counted.commands(),
            check_conditions: counted.check_conditions,
            phase_errors: counted.phase_errors,
            aborted: counted.aborted,
            reads_from_memory: counted.reads_from_memory,
            reads_from_storage: counted.reads_from_storage,
            latency: Latencies {
                read: latency(&counted.read, full),
                write: latency(&counted.write, full),
                other: latency(&counted.other, full),
            },
            opcodes: full.then(|| {
                let stats = |(opcode, name, commands): (_, Option<&str>, _)| OpcodeStats {
                    opcode,
                    name: name.map(str::to_owned),
                    commands,
                };
                counted.opcodes(of.kind).map(stats).collect()
            }),
        }
    }
}

impl DriveStats {
    /// What there was between an earlier look and this one; `uptime_us` is the time between them.
    pub fn since(&self, earlier: &Self) -> Self {
        let before = |opcode| {
            let mut opcodes = earlier.opcodes.iter().flatten();
            opcodes.find(|of: &&OpcodeStats| of.opcode == opcode).map_or(0, |of| of.commands)
        };
        let opcodes = self.opcodes.as_ref().map(|opcodes| {
            let new = |of: &OpcodeStats| OpcodeStats {
                commands: of.commands.saturating_sub(before(of.opcode)),
                ..of.clone()
            };
            opcodes.iter().map(new).filter(|of| of.commands > 0).collect()
        });
        let (now, then) = (&self.latency, &earlier.latency);
        Self {
            drive: self.drive,
            name: self.name.clone(),
            uptime_us: self.uptime_us.saturating_sub(earlier.uptime_us),
            bytes_read: self.bytes_read.saturating_sub(earlier.bytes_read),
            bytes_written: self.bytes_written.saturating_sub(earlier.bytes_written),
            commands: self.commands.saturating_sub(earlier.commands),
            check_conditions: self.check_conditions.saturating_sub(earlier.check_conditions),
            phase_errors: self.phase_errors.saturating_sub(earlier.phase_errors),
            aborted: self.aborted.saturating_sub(earlier.aborted),
            reads_from_memory: self.reads_from_memory.saturating_sub(earlier.reads_from_memory),
            reads_from_storage: self.reads_from_storage.saturating_sub(earlier.reads_from_storage),
            latency: Latencies {
                read: now.read.since(&then.read),
                write: now.write.since(&then.write),
                other: now.other.since(&then.other),
            },
            opcodes,
        }
    }
}

impl LatencyStats {
    /// Of the commands between two looks, as far as both have buckets.
    fn since(&self, earlier: &Self) -> Self {
        let before = |upper| {
            let mut buckets = earlier.buckets_us.iter().flatten();
            buckets.find(|(of, _)| *of == upper).map_or(0, |(_, commands)| *commands)
        };
        let new = |(upper, commands): &(u64, u64)| (*upper, commands.saturating_sub(before(*upper)));
        let buckets: Vec<_> =
            self.buckets_us.iter().flatten().map(new).filter(|(_, commands)| *commands > 0).collect();
        let commands = self.commands.saturating_sub(earlier.commands);
        // The bucket in which the command stands that so many of a hundred are not slower than.
        let percentile = |percent: u64| {
            let rank = commands.saturating_mul(percent).div_ceil(100);
            let mut seen = 0_u64;
            let found = buckets.iter().find(|(_, commands)| {
                seen = seen.saturating_add(*commands);
                seen >= rank
            });
            found.map_or(0, |(upper, _)| *upper)
        };
        Self {
            commands,
            p50_us: percentile(50),
            p99_us: percentile(99),
            max_us: buckets.last().map_or(0, |(upper, _)| *upper),
            buckets_us: Some(buckets),
        }
    }
}

fn latency(of: &Latency, full: bool) -> LatencyStats {
    LatencyStats {
        commands: of.commands(),
        p50_us: of.percentile_us(50.0),
        p99_us: of.percentile_us(99.0),
        max_us: of.max_us(),
        buckets_us: full.then(|| of.buckets_us().collect()),
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::config::{DRIVES_PER_FUNCTION_MAX, FUNCTIONS_MAX};
    use crate::control::OUTPUT_BYTES_MAX;
    use crate::drive::Statistics;
    use crate::drive::statistics::{End, Outcome, Transfer};
    use crate::scsi::Kind;

    /// Every opcode, and latencies in every bucket.
    fn busiest() -> DriveStatistics {
        let mut statistics = Statistics::new();
        let transfers = [
            Transfer::Read { bytes: u32::MAX, in_memory: Some(true) },
            Transfer::Write { bytes: u32::MAX },
            Transfer::None,
        ];
        let latencies_us = std::iter::successors(Some(0_u64), |us| Some(us + 1 + us / 32));
        for took in latencies_us.take_while(|us| *us < 60_000_000).map(Duration::from_micros) {
            for (opcode, transfer) in (0..=u8::MAX).flat_map(|opcode| transfers.map(|way| (opcode, way))) {
                statistics.count(End::Completed { opcode, outcome: Outcome::Failed, transfer, took });
            }
        }
        let name = "n".repeat(32);
        let kind = Kind::Disk;
        DriveStatistics { drive: DriveIndex(u16::MAX), name, kind, uptime: Duration::MAX, statistics }
    }

    #[test]
    fn answers_stay_within_what_a_client_may_leave_unread_whatever_the_host_did() {
        let len = |detail| serde_json::to_vec(&DriveStats::new(&busiest(), detail)).unwrap().len();
        let drives = FUNCTIONS_MAX * DRIVES_PER_FUNCTION_MAX;
        assert!(len(Detail::Brief) * drives < OUTPUT_BYTES_MAX / 4, "{} bytes a drive", len(Detail::Brief));
        assert!(len(Detail::Full) < OUTPUT_BYTES_MAX / 16, "{} bytes", len(Detail::Full));
    }

    #[test]
    fn every_command_is_in_one_bucket_and_has_one_opcode() {
        let stats = DriveStats::new(&busiest(), Detail::Full);
        let Latencies { read, write, other } = &stats.latency;
        let buckets = [read, write, other].map(|class| class.buckets_us.clone().unwrap());
        let in_buckets: u64 = buckets.iter().flatten().map(|(_, commands)| commands).sum();
        let by_opcode: u64 = stats.opcodes.iter().flatten().map(|of| of.commands).sum();
        assert_eq!((in_buckets, by_opcode), (stats.commands, stats.commands));
        assert!(buckets.iter().all(|buckets| buckets.is_sorted()), "{buckets:?}");
    }
}
