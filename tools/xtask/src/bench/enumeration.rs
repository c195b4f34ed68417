//! From the plug to a disk that the host can use, by the kernel's log of the board, whose times are microseconds.
//!
//! The clock starts when the host notices the device, and stops when it has looked for partitions and says that the disk is
//! attached. What a server does before it binds the port is not counted.

use std::fs::{File, OpenOptions};
use std::io::{ErrorKind, Read, Seek, SeekFrom};
use std::os::unix::fs::OpenOptionsExt;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use nix::fcntl::OFlag;
use serde_json::{Value, json};
use xshell::Shell;

use super::image::Image;
use super::plan::float;
use super::served::{Medium, Served};
use super::{Engine, OnBoardArgs};
use crate::wait::wait_for;

/// Ours may take so much longer: a host asks whoever has more than 36 bytes of INQUIRY data a second time, and a daemon that was
/// just started runs all its code for the first time. A stall that is waited for takes 100 ms.
const ALLOWANCE_US: f64 = 4000.0;

/// Far longer than an enumeration takes.
const ATTACHED: Duration = Duration::from_secs(30);

/// The best of so many counts.
const REPEATS: usize = 5;

/// A record is shorter than this.
const RECORD: usize = 8192;

/// Measures the kernel's and ours; prints a line each.
pub(super) fn run(shell: &Shell, args: &OnBoardArgs, medium: Medium<'_>, image: &Image) -> Result<()> {
    // Both would wait a second for the drive's motor.
    std::fs::write("/sys/module/usb_storage/parameters/delay_use", "0")?;
    for stalls in [true, false] {
        let medium = Medium { stalls, ..medium };
        // On NFS our lock has the cache dropped: the kernel's, too, must not have it.
        let cold = |serve: &dyn Fn() -> Result<Served>| image.settle().and_then(|()| serve());
        measure("kernel", stalls, || cold(&|| Served::by_kernel(shell, medium, args.speed)))?;
        for engine in args.engine.all() {
            let serve = || Served::by_us(shell, &[&[medium]], args.speed, engine);
            measure(engine.name(), stalls, || cold(&serve))?;
        }
    }
    Ok(())
}

fn measure(by: &str, stalls: bool, serve: impl Fn() -> Result<Served>) -> Result<()> {
    let mut best = u64::MAX;
    for _ in 0..REPEATS {
        let mut log = Log::from_now()?;
        let served = serve()?;
        // The disk is there before its partitions are, and a stall of the kernel's costs 100 ms.
        let took = wait_for("the disk to be attached", ATTACHED, || took(log.until_now()?))
            .with_context(|| format!("the enumeration of a drive by {by}"))?;
        best = best.min(took);
        served.stop()?;
    }
    println!("{}", json!({ "enumeration_us": best, "by": by, "stalls": stalls }));
    Ok(())
}

/// The kernel's log from some point on.
struct Log {
    file: File,
    records: Vec<String>,
}

impl Log {
    fn from_now() -> Result<Self> {
        let flags = OFlag::O_NONBLOCK.bits();
        let mut file = OpenOptions::new().read(true).custom_flags(flags).open("/dev/kmsg")?;
        file.seek(SeekFrom::End(0))?;
        Ok(Self { file, records: Vec::new() })
    }

    fn until_now(&mut self) -> Result<&[String]> {
        let mut buffer = [0; RECORD];
        loop {
            match self.file.read(&mut buffer) {
                Ok(read) => {
                    let record = String::from_utf8_lossy(buffer.get(..read).unwrap_or_default());
                    self.records.push(record.into_owned());
                }
                Err(error) if error.kind() == ErrorKind::WouldBlock => return Ok(&self.records),
                Err(error) => return Err(error).context("cannot read the kernel's log"),
            }
        }
    }
}

/// Microseconds between the two records, which are `priority,number,microseconds,flags;text`, once both are there.
fn took(records: &[String]) -> Result<Option<u64>> {
    let at = |is: fn(&str) -> bool| {
        let mut split = records.iter().filter_map(|record| record.split_once(';'));
        let Some((head, _)) = split.find(|(_, text)| is(text)) else { return Ok(None) };
        let time = head.split(',').nth(2).context("a record without a time")?;
        Ok::<Option<u64>, anyhow::Error>(Some(time.parse()?))
    };
    let noticed = at(|text| text.contains(": new ") && text.contains(" USB device number "))?;
    let usable = at(|text| text.contains("Attached SCSI"))?;
    let Some((noticed, usable)) = noticed.zip(usable) else { return Ok(None) };
    usable.checked_sub(noticed).context("the disk was attached before the device was noticed").map(Some)
}

/// A sentence for each engine, from what the board printed.
///
/// # Errors
/// Ours takes longer than the kernel's.
pub(super) fn sentences(lines: &[Value], link: &str, engines: &[Engine]) -> Result<Vec<String>> {
    let by = |name: &str, stalls: bool| {
        let line = lines.iter().find(|line| line["by"] == name && line["stalls"] == stalls);
        let micros = line.and_then(|line| line["enumeration_us"].as_u64());
        micros.map(float).with_context(|| format!("the board did not tell of an enumeration by {name}"))
    };
    let sentence = |(engine, stalls): (&Engine, bool)| {
        let (kernel, ours) = (by("kernel", stalls)?, by(engine.name(), stalls)?);
        let sentence = format!(
            "From connect to a usable disk, {link}, {} stalls: kernel {:.1} ms, ours ({}) {:.1} ms.",
            if stalls { "with" } else { "without" },
            kernel / 1e3,
            engine.name(),
            ours / 1e3
        );
        ensure!(ours <= kernel + ALLOWANCE_US, "ours takes longer to be usable. {sentence}");
        Ok(sentence)
    };
    engines.iter().flat_map(|engine| [(engine, true), (engine, false)]).map(sentence).collect()
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
        assert_eq!(took(&log).unwrap(), Some(250_000));
        assert_eq!(took(log.get(..2).unwrap_or_default()).unwrap(), None);
    }

    #[test]
    fn ours_must_not_take_much_longer_than_the_kernels() {
        let lines = |ours: u64| {
            [
                json!({ "enumeration_us": 200_000, "by": "kernel", "stalls": true }),
                json!({ "enumeration_us": 100_000, "by": "aio", "stalls": true }),
                json!({ "enumeration_us": 100_000, "by": "kernel", "stalls": false }),
                json!({ "peak_memory_kib": 1, "by": "aio" }),
                json!({ "enumeration_us": ours, "by": "aio", "stalls": false }),
            ]
        };
        let good = sentences(&lines(101_000), "hs", &[Engine::Aio]).unwrap();
        assert_eq!(
            good,
            [
                "From connect to a usable disk, hs, with stalls: kernel 200.0 ms, ours (aio) 100.0 ms.",
                "From connect to a usable disk, hs, without stalls: kernel 100.0 ms, ours (aio) 101.0 ms."
            ]
        );
        assert!(sentences(&lines(105_000), "hs", &[Engine::Aio]).is_err());
        assert!(sentences(&lines(90_000), "hs", &[Engine::Sync]).is_err());
    }
}
