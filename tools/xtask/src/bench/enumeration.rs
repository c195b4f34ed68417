//! From the plug to a disk that the host can use, by the kernel's log of the board, whose times are microseconds.
//!
//! The clock starts when the host notices the device, and stops when it has looked for partitions and says that the disk is
//! attached. What a server does before it binds the port is not counted.

use std::fs::{File, OpenOptions};
use std::io::{ErrorKind, Read, Seek, SeekFrom};
use std::os::unix::fs::OpenOptionsExt;

use anyhow::{Context, Result, ensure};
use nix::fcntl::OFlag;
use serde_json::{Value, json};
use xshell::Shell;

use super::plan::float;
use super::served::{Medium, Served};
use super::{Engine, OnBoardArgs};

/// Times may repeat to 1 % only; a tick of the link's 125 µs is far below.
const WITHIN: f64 = 1.02;

/// The best of so many counts.
const REPEATS: usize = 3;

/// A record is shorter than this.
const RECORD: usize = 8192;

/// Measures the kernel's and ours; prints a line each.
pub(super) fn run(shell: &Shell, args: &OnBoardArgs, medium: Medium<'_>) -> Result<()> {
    // Both would wait a second for the drive's motor.
    std::fs::write("/sys/module/usb_storage/parameters/delay_use", "0")?;
    measure("kernel", || Served::by_kernel(shell, medium, args.speed))?;
    for engine in args.engine.all() {
        measure(engine.name(), || Served::by_us(shell, &[&[medium]], args.speed, engine))?;
    }
    Ok(())
}

fn measure(by: &str, serve: impl Fn() -> Result<Served>) -> Result<()> {
    let mut best = u64::MAX;
    for _ in 0..REPEATS {
        let log = Log::from_now()?;
        let served = serve()?;
        let took = took(&log.since()?).with_context(|| format!("the enumeration of a drive by {by}"))?;
        best = best.min(took);
        served.stop()?;
    }
    println!("{}", json!({ "enumeration_us": best, "by": by }));
    Ok(())
}

/// The kernel's log from some point on.
struct Log(File);

impl Log {
    fn from_now() -> Result<Self> {
        let flags = OFlag::O_NONBLOCK.bits();
        let mut log = OpenOptions::new().read(true).custom_flags(flags).open("/dev/kmsg")?;
        log.seek(SeekFrom::End(0))?;
        Ok(Self(log))
    }

    fn since(mut self) -> Result<Vec<String>> {
        let (mut records, mut buffer) = (Vec::new(), [0; RECORD]);
        loop {
            match self.0.read(&mut buffer) {
                Ok(read) => {
                    records
                        .push(String::from_utf8_lossy(buffer.get(..read).unwrap_or_default()).into_owned());
                }
                Err(error) if error.kind() == ErrorKind::WouldBlock => return Ok(records),
                Err(error) => return Err(error).context("cannot read the kernel's log"),
            }
        }
    }
}

/// Microseconds between the two records, which are `priority,number,microseconds,flags;text`.
fn took(records: &[String]) -> Result<u64> {
    let at = |is: fn(&str) -> bool| {
        let record = records.iter().filter_map(|record| record.split_once(';')).find(|(_, text)| is(text));
        let (head, _) = record.with_context(|| format!("the kernel did not tell of it: {records:?}"))?;
        let time = head.split(',').nth(2).context("a record without a time")?;
        Ok::<u64, anyhow::Error>(time.parse()?)
    };
    let noticed = at(|text| text.contains(": new ") && text.contains(" USB device number "))?;
    let usable = at(|text| text.contains("Attached SCSI"))?;
    usable.checked_sub(noticed).context("the disk was attached before the device was noticed")
}

/// A sentence for each engine, from what the board printed.
///
/// # Errors
/// Ours takes longer than the kernel's.
pub(super) fn sentences(lines: &[Value], link: &str, engines: &[Engine]) -> Result<Vec<String>> {
    let by = |name: &str| {
        let line = lines.iter().find(|line| line["by"] == name && line["enumeration_us"].is_u64());
        let micros = line.and_then(|line| line["enumeration_us"].as_u64());
        micros.map(float).with_context(|| format!("the board did not tell of an enumeration by {name}"))
    };
    let kernel = by("kernel")?;
    let sentence = |engine: &Engine| {
        let ours = by(engine.name())?;
        let sentence = format!(
            "From connect to a usable disk, {link}: kernel {:.1} ms, ours ({}) {:.1} ms.",
            kernel / 1e3,
            engine.name(),
            ours / 1e3
        );
        ensure!(ours <= kernel * WITHIN, "ours takes longer to be usable. {sentence}");
        Ok(sentence)
    };
    engines.iter().map(sentence).collect()
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::{Engine, sentences, took};

    #[test]
    fn time_is_from_the_connection_to_the_attached_disk() {
        let log = [
            "6,100,1000000,-;usb 1-1: new high-speed USB device number 2 using dummy_hcd\n SUBSYSTEM=usb\n",
            "6,101,1100000,-;usb-storage 1-1:1.0: USB Mass Storage device detected\n",
            "5,102,1250000,-;sd 0:0:0:0: [sda] Attached SCSI removable disk\n",
        ]
        .map(str::to_owned);
        assert_eq!(took(&log).unwrap(), 250_000);
        assert!(took(log.get(..2).unwrap_or_default()).is_err());
    }

    #[test]
    fn ours_must_not_take_longer_than_the_kernels() {
        let lines = |ours: u64| {
            [
                json!({ "enumeration_us": 100_000, "by": "kernel" }),
                json!({ "peak_memory_kib": 1, "by": "aio" }),
                json!({ "enumeration_us": ours, "by": "aio" }),
            ]
        };
        let good = sentences(&lines(101_000), "hs", &[Engine::Aio]).unwrap();
        assert_eq!(good, ["From connect to a usable disk, hs: kernel 100.0 ms, ours (aio) 101.0 ms."]);
        assert!(sentences(&lines(103_000), "hs", &[Engine::Aio]).is_err());
        assert!(sentences(&lines(90_000), "hs", &[Engine::Sync]).is_err());
    }
}
