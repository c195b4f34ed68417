//! The numbers of drives as a person reads them. Pure.

use std::cmp::Reverse;
use std::fmt::Write as _;

use crate::cli::show::{printable, table};
use crate::control::protocol::{DriveStats, LatencyStats};
use crate::units::ByteLen;

/// Commands that are shown by name; the rest is told as a number.
const COMMANDS_SHOWN: usize = 6;

/// All that there was since the daemon started.
pub(super) fn once(drives: &[DriveStats]) -> String {
    drives.iter().map(|drive| view(drive, Shown::Total)).collect::<Vec<_>>().join("\n")
}

/// The same, and what there was since the look before.
pub(super) fn live(now: &[DriveStats], before: Option<&[DriveStats]>) -> String {
    let views = now.iter().map(|drive| {
        let earlier = before.and_then(|before| before.iter().find(|earlier| earlier.drive == drive.drive));
        view(drive, Shown::Live(earlier.map(|earlier| drive.since(earlier)).as_ref()))
    });
    views.collect::<Vec<_>>().join("\n")
}

#[derive(Clone, Copy)]
enum Shown<'a> {
    /// The total alone.
    Total,
    /// What there was lately too; at the first look nobody knows.
    Live(Option<&'a DriveStats>),
}

fn view(total: &DriveStats, shown: Shown<'_>) -> String {
    let mut text = format!(
        "drive {}, {}, counted for {}\n",
        total.drive.0,
        printable(&total.name),
        long_time(total.uptime_us)
    );
    let tables = [traffic(total, shown), latencies(total, shown), commands(total, shown)];
    for line in tables.iter().flat_map(|table| table.lines()).chain(endings(total).lines()) {
        // Writing to a String cannot fail.
        let _ = writeln!(text, "  {}", line.trim_end());
    }
    text
}

fn dash() -> String {
    "-".to_owned()
}

fn traffic(total: &DriveStats, shown: Shown<'_>) -> String {
    let mut rows = vec![["", "READ", "WRITTEN", "COMMANDS"].map(str::to_owned)];
    if let Shown::Live(lately) = shown {
        let bytes = |of: fn(&DriveStats) -> u64| {
            lately.map_or_else(dash, |lately| format!("{}/s", ByteLen(per_second(of(lately), lately))))
        };
        let (read, written) = (bytes(|stats| stats.bytes_read), bytes(|stats| stats.bytes_written));
        let commands = lately.map_or_else(dash, |lately| rate(lately.commands, lately));
        rows.push(["now".to_owned(), read, written, commands]);
    }
    rows.push([
        "total".to_owned(),
        ByteLen(total.bytes_read).to_string(),
        ByteLen(total.bytes_written).to_string(),
        total.commands.to_string(),
    ]);
    table(&rows)
}

/// Of the classes that there ever were commands of.
fn latencies(total: &DriveStats, shown: Shown<'_>) -> String {
    type Class = fn(&DriveStats) -> &LatencyStats;
    let classes: [(&str, Class); 3] = [
        ("read", |stats| &stats.latency.read),
        ("write", |stats| &stats.latency.write),
        ("other", |stats| &stats.latency.other),
    ];
    let (title, source) = match shown {
        Shown::Total => ("LATENCY", Some(total)),
        Shown::Live(lately) => ("LATENCY NOW", lately),
    };
    let mut rows = vec![[title, "MEDIAN", "99 %", "MAX"].map(str::to_owned)];
    for (name, of) in classes {
        if of(total).commands == 0 {
            continue;
        }
        let known = source.map(of).filter(|latency| latency.commands > 0);
        let cell = |us: fn(&LatencyStats) -> u64| known.map_or_else(dash, |latency| short_time(us(latency)));
        rows.push([
            name.to_owned(),
            cell(|latency| latency.p50_us),
            cell(|latency| latency.p99_us),
            cell(|latency| latency.max_us),
        ]);
    }
    if rows.len() > 1 { table(&rows) } else { String::new() }
}

/// Most frequent first: lately, then ever.
fn commands(total: &DriveStats, shown: Shown<'_>) -> String {
    let lately = match shown {
        Shown::Total => None,
        Shown::Live(lately) => lately,
    };
    let lately_of = |opcode: u8| {
        let mut opcodes = lately?.opcodes.iter().flatten();
        opcodes.find(|of| of.opcode == opcode).map(|of| of.commands)
    };
    let mut opcodes: Vec<_> = total.opcodes.iter().flatten().collect();
    opcodes.sort_by_key(|of| Reverse((lately_of(of.opcode), of.commands)));
    let mut rows = vec![["COMMAND", "NOW", "TOTAL"].map(str::to_owned)];
    for of in opcodes.iter().take(COMMANDS_SHOWN) {
        let name = of.name.as_deref().map_or_else(|| format!("unknown, {:02x}h", of.opcode), printable);
        let now = lately.map_or_else(dash, |lately| rate(lately_of(of.opcode).unwrap_or(0), lately));
        rows.push([name, now, of.commands.to_string()]);
    }
    let more = match opcodes.len().saturating_sub(COMMANDS_SHOWN) {
        0 => String::new(),
        1 => "and 1 other\n".to_owned(),
        more => format!("and {more} others\n"),
    };
    match (rows.len(), shown) {
        (1, _) => String::new(),
        (_, Shown::Live(_)) => table(&rows) + &more,
        (_, Shown::Total) => {
            let rows: Vec<_> = rows.into_iter().map(|[name, _, total]| [name, total]).collect();
            table(&rows) + &more
        }
    }
}

/// How commands ended where they did not end well, and where reads came from.
fn endings(total: &DriveStats) -> String {
    let mut text = format!(
        "{} check conditions, {} phase errors, {} aborted\n",
        total.check_conditions, total.phase_errors, total.aborted
    );
    let (memory, storage) = (total.reads_from_memory, total.reads_from_storage);
    if let Some(percent) = memory.saturating_mul(100).checked_div(memory.saturating_add(storage)) {
        let _ = writeln!(text, "{percent} % of reads from memory, {storage} waited for the storage");
    }
    text
}

/// So many in the time that `of` spans, as so many a second.
fn per_second(count: u64, of: &DriveStats) -> u64 {
    let count = u128::from(count) * 1_000_000 / u128::from(of.uptime_us.max(1));
    u64::try_from(count).unwrap_or(u64::MAX)
}

/// Few are told with a tenth.
fn rate(count: u64, of: &DriveStats) -> String {
    match per_second(count.saturating_mul(10), of) {
        0 => "0/s".to_owned(),
        tenths @ 1..100 => format!("{}.{}/s", tenths / 10, tenths % 10),
        tenths => format!("{}/s", tenths / 10),
    }
}

fn short_time(us: u64) -> String {
    match us {
        0..1_000 => format!("{us} µs"),
        1_000..1_000_000 => format!("{}.{} ms", us / 1_000, us % 1_000 / 100),
        _ => format!("{}.{} s", us / 1_000_000, us % 1_000_000 / 100_000),
    }
}

fn long_time(us: u64) -> String {
    match us / 1_000_000 {
        seconds @ 0..60 => format!("{seconds} s"),
        seconds @ 60..3_600 => format!("{} min {} s", seconds / 60, seconds % 60),
        seconds @ 3_600..86_400 => format!("{} h {} min", seconds / 3_600, seconds % 3_600 / 60),
        seconds => format!("{} d {} h", seconds / 86_400, seconds % 86_400 / 3_600),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_are_told_in_the_unit_that_a_person_would_use() {
        let shown = [0, 999, 1_000, 999_999, 1_000_000, 60_000_000].map(short_time);
        assert_eq!(shown, ["0 µs", "999 µs", "1.0 ms", "999.9 ms", "1.0 s", "60.0 s"]);
        let seconds = [0, 59, 61, 3_600, 86_399, 90_000].map(|seconds| long_time(seconds * 1_000_000));
        assert_eq!(seconds, ["0 s", "59 s", "1 min 1 s", "1 h 0 min", "23 h 59 min", "1 d 1 h"]);
        // No number from the other side of a socket is too large.
        assert!(long_time(u64::MAX).ends_with(" h"));
    }

    fn stats(uptime_us: u64, opcodes: &[(u8, u64)]) -> DriveStats {
        let opcodes: Vec<_> = opcodes
            .iter()
            .map(|(opcode, commands)| serde_json::json!({"opcode": opcode, "name": null, "commands": commands}))
            .collect();
        let idle = serde_json::json!({"commands": 0, "p50_us": 0, "p99_us": 0, "max_us": 0});
        serde_json::from_value(serde_json::json!({
            "drive": 0, "name": "cd\u{1b}", "uptime_us": uptime_us, "bytes_read": u64::MAX, "bytes_written": 0,
            "commands": u64::MAX, "check_conditions": 0, "phase_errors": 0, "aborted": 0,
            "reads_from_memory": u64::MAX, "reads_from_storage": u64::MAX,
            "latency": {"read": idle, "write": idle, "other": idle}, "opcodes": opcodes,
        }))
        .unwrap()
    }

    #[test]
    fn rates_are_of_the_time_between_two_looks() {
        let half_a_second = stats(500_000, &[]);
        let rates = [0, 1, 4, 5, 499].map(|count| rate(count, &half_a_second));
        assert_eq!(rates, ["0/s", "2.0/s", "8.0/s", "10/s", "998/s"]);
        assert_eq!(rate(1, &stats(3_000_000, &[])), "0.3/s");
        assert_eq!(rate(5, &stats(0, &[])).chars().last(), Some('s'), "two looks at once divide by nothing");
    }

    #[test]
    fn the_commands_of_the_moment_come_first_and_the_rest_is_a_number() {
        let before = stats(0, &[(1, 100), (2, 90), (3, 80), (4, 70), (5, 60), (6, 50), (7, 40), (8, 30)]);
        let now =
            stats(1_000_000, &[(1, 100), (2, 90), (3, 80), (4, 70), (5, 60), (6, 50), (7, 40), (8, 31)]);
        let view = live(std::slice::from_ref(&now), Some(std::slice::from_ref(&before)));
        let shown: Vec<_> = view.lines().filter(|line| line.contains("unknown")).collect();
        assert_eq!(shown.len(), COMMANDS_SHOWN);
        assert_eq!(shown[0], "  unknown, 08h  1.0/s  31");
        assert_eq!(shown[1], "  unknown, 01h  0/s    100");
        assert!(view.contains("and 2 others"), "{view}");
    }

    #[test]
    fn neither_names_nor_numbers_of_a_strange_daemon_do_harm() {
        let view = once(&[stats(u64::MAX, &[(1, u64::MAX)])]);
        assert!(!view.contains('\x1b') && view.contains("cd\\u{1b}"), "{view}");
    }
}
