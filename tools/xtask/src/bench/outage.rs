//! A drive of a function of its own while the file server of another drive is gone: what its commands take then, and before.

use std::fs;
use std::path::Path;
use std::thread;
use std::time::Duration;

use anyhow::{Context, Result};
use serde_json::{Value, json};
use xshell::{Shell, cmd};

use super::image::{DELAY, Image};
use super::plan::{KIB, MIB, Pattern, Test};
use super::served::{Medium, Served};
use super::{Engine, OnBoardArgs, fio};
use crate::wait::wait_for;

const AMOUNT: u64 = 8 * MIB;
const TEST: Test = Test { pattern: Pattern::Read, block: 64 * KIB };
/// Longer than a deadline.
const PATIENCE: Duration = Duration::from_secs(60);
/// Where the host reads from the far drive: nothing of it is in memory.
const FAR: u64 = 8 * MIB;

/// The commands of a drive by how long they took: up to so many microseconds, so many commands.
type Buckets = Vec<(u64, u64)>;

/// Measures; prints a line for each engine. `far` is behind a file server.
pub(super) fn run(shell: &Shell, args: &OnBoardArgs, far: &Image) -> Result<()> {
    let path = Path::new("/run/bench-near");
    // Holes of tmpfs are read like bytes.
    fs::File::create(path)?.set_len(super::plan::IMAGE)?;
    for engine in args.engine.all() {
        let line = measure(shell, args, far, path, engine)
            .with_context(|| format!("beside a dead file server, {}", engine.name()))?;
        println!("{line}");
    }
    Ok(fs::remove_file(path)?)
}

fn measure(shell: &Shell, args: &OnBoardArgs, far: &Image, near: &Path, engine: Engine) -> Result<Value> {
    let medium = |image| Medium { image, writable: false, stalls: true };
    let (far_medium, near_medium) = (medium(&far.path), medium(near));
    let served = Served::by_us(shell, &[&[near_medium], &[far_medium]], args.speed, engine)?;
    far.settle()?;
    let server = served.server()?;
    let read = || fio::run(served.disk()?, server, TEST, AMOUNT).map(drop);
    read()?;
    let alone = p99(&served, read)?;
    cmd!(shell, "tc qdisc change dev lo root netem loss 100%").quiet().run()?;
    let source =
        || -> Result<Value> { Ok(served.ask("state", &json!({}))?["drives"][1]["image"]["source"].take()) };
    let far_disk = served.disks.get(1).context("the far drive")?;
    let (waiting, offline) = thread::scope(|scope| {
        // Fails, or is answered when the server is back: the host tries for minutes.
        let reader = scope.spawn(|| fio::read_block(far_disk, FAR));
        let waiting = p99(&served, read);
        let offline =
            wait_for("the far drive to be offline", PATIENCE, || Ok((source()? == "offline").then_some(())))
                .and_then(|()| p99(&served, read));
        cmd!(shell, "tc qdisc change dev lo root netem delay {DELAY} limit 100000 loss 0%").quiet().run()?;
        let answered = reader.join().map_err(|_| anyhow::anyhow!("the reader panicked"))?;
        answered.context("the host's read, once the server is back")?;
        Ok::<_, anyhow::Error>((waiting?, offline?))
    })?;
    served.stop()?;
    Ok(json!({
        "outage": true,
        "by": engine.name(),
        "alone_us": alone,
        "waiting_us": waiting,
        "offline_us": offline,
    }))
}

/// What one of a hundred reads of the near drive took at least, of those during `work`, in microseconds.
fn p99(served: &Served, work: impl Fn() -> Result<()>) -> Result<u64> {
    let before = reads(served)?;
    work()?;
    let mut during = reads(served)?;
    for (micros, count) in &mut during {
        let earlier = before.iter().find(|(of, _)| of == micros);
        *count -= earlier.map_or(0, |(_, count)| *count);
    }
    percentile_99(&during).context("the near drive has counted no read")
}

fn reads(served: &Served) -> Result<Buckets> {
    let stats = served.ask("stats", &json!({ "drive": 0 }))?;
    let buckets = stats.pointer("/drives/0/latency/read/buckets_us").context("no histogram")?;
    Ok(serde_json::from_value(buckets.clone())?)
}

fn percentile_99(buckets: &Buckets) -> Option<u64> {
    let all: u64 = buckets.iter().map(|(_, count)| count).sum();
    let mut left = all.checked_sub(all / 100).filter(|left| *left > 0)?;
    buckets.iter().find_map(|(micros, count)| {
        let reached = *count >= left;
        left = left.saturating_sub(*count);
        reached.then_some(*micros)
    })
}

/// A sentence for each engine, from what the board printed.
pub(super) fn sentences(lines: &[Value], link: &str) -> Vec<String> {
    let sentence = |line: &Value| {
        let number = |name: &str| line.get(name)?.as_u64();
        Some(format!(
            "Reads of 64 KiB from a drive of another function, {link}, {}, p99: {} µs; while a command waits for a dead file server \
             {} µs, while that is offline {} µs.",
            line["by"].as_str()?,
            number("alone_us")?,
            number("waiting_us")?,
            number("offline_us")?,
        ))
    };
    lines.iter().filter(|line| line["outage"] == true).filter_map(sentence).collect()
}

#[cfg(test)]
mod tests {
    use super::percentile_99;

    #[test]
    fn one_of_a_hundred_may_take_longer() {
        assert_eq!(percentile_99(&vec![]), None);
        assert_eq!(percentile_99(&vec![(5, 0)]), None);
        assert_eq!(percentile_99(&vec![(5, 1)]), Some(5));
        assert_eq!(percentile_99(&vec![(5, 99), (7, 1)]), Some(5));
        assert_eq!(percentile_99(&vec![(5, 98), (7, 1), (9, 1)]), Some(7));
        assert_eq!(percentile_99(&vec![(5, 198), (7, 1), (9, 1)]), Some(5));
    }
}
