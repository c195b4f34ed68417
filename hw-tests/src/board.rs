//! The board that the tests run on: its device port, the link's speed, and a place for images.

use std::env;
use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result};
use tempfile::TempDir;

use crate::tool;

/// How fast the host should find the link.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Speed {
    /// 480 Mbit/s.
    High,
    /// 5 Gbit/s.
    Super,
}

impl Speed {
    /// As in ringdrive's configuration, and in the `RINGDRIVE_SPEED` that names it here.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::High => "high",
            Self::Super => "super",
        }
    }

    /// As in the `speed` attribute of a USB device in sysfs, in Mbit/s.
    #[must_use]
    pub fn mbits(self) -> &'static str {
        match self {
            Self::High => "480",
            Self::Super => "5000",
        }
    }

    /// Of a bulk endpoint, in bytes.
    #[must_use]
    pub fn bulk_packet(self) -> usize {
        match self {
            Self::High => 512,
            Self::Super => 1024,
        }
    }
}

/// A board, made ready for tests.
#[derive(Clone, Debug)]
pub struct Board {
    /// Name of the device port, as in `/sys/class/udc`.
    pub udc: String,
    /// The speed that the port was set up for.
    pub speed: Speed,
}

impl Board {
    /// Whether all tests run at another speed besides, on as good a board: what the link makes no difference to need not run here.
    #[must_use]
    pub fn is_slower_twin(&self) -> bool {
        self.speed == Speed::High && env::var_os("RINGDRIVE_BOARD").is_some_and(|board| board == "virtual")
    }

    /// Finds the board that this process runs on; the error is the reason why there is none.
    ///
    /// # Errors
    /// Not on a board. The reason is what skipped tests report.
    pub fn find() -> Result<Self, String> {
        let cure = "run this with `cargo xtask vm`";
        if env::var_os("RINGDRIVE_BOARD").is_none() {
            return Err(format!("not on a board (RINGDRIVE_BOARD is not set); {cure}"));
        }
        let speed = match env::var("RINGDRIVE_SPEED").as_deref() {
            Ok("high") => Speed::High,
            Ok("super") => Speed::Super,
            other => return Err(format!("RINGDRIVE_SPEED is {other:?}, not high or super; {cure}")),
        };
        if !nix::unistd::geteuid().is_root() {
            return Err(format!("composing gadgets needs root; {cure}"));
        }
        let udc = fs::read_dir("/sys/class/udc")
            .ok()
            .and_then(|mut entries| entries.next()?.ok())
            .and_then(|entry| entry.file_name().into_string().ok())
            .ok_or(format!("no USB device port in /sys/class/udc; {cure}"))?;
        Ok(Self { udc, speed })
    }

    /// Leaves the host's side of the drives to the tests alone.
    ///
    /// The host looks at a new drive at once, where it would wait a second for the drive's motor. And nothing else opens
    /// drives or polls them, which would prevent removal and use up unit attentions: not udev, not the kernel.
    ///
    /// # Errors
    /// usb-storage is not loaded.
    pub fn prepare(&self) -> Result<()> {
        fs::write("/sys/module/usb_storage/parameters/delay_use", "0")
            .context("the host has no usb-storage module; load it with modprobe")?;
        fs::write("/sys/module/block/parameters/events_dfl_poll_msecs", "0")?;
        // Without udev there is nothing to stop.
        let _ = tool::try_run("udevadm", ["control", "--stop-exec-queue"]);
        Ok(())
    }

    /// The device port is dummy_hcd's.
    ///
    /// It takes an IN transfer of up to 64 bytes into a queue of its own and calls it done; neither side can get it back.
    #[must_use]
    pub fn is_dummy(&self) -> bool {
        self.udc.starts_with("dummy_udc")
    }

    /// The gadget bound to the port, if any.
    #[must_use]
    pub fn bound(&self) -> Option<String> {
        let name = fs::read_to_string(Path::new("/sys/class/udc").join(&self.udc).join("function")).ok()?;
        Some(name.trim().to_owned()).filter(|name| !name.is_empty())
    }

    /// A directory for images, removed with what is returned.
    ///
    /// # Errors
    /// No room in `TMPDIR`.
    pub fn scratch(&self) -> Result<Scratch> {
        Ok(Scratch(tempfile::tempdir().context("no scratch directory; check TMPDIR")?))
    }

    /// Seconds of `fio` per run, from `RINGDRIVE_FIO_SECONDS`, else 60.
    #[must_use]
    pub fn fio_seconds(&self) -> Duration {
        let seconds = env::var("RINGDRIVE_FIO_SECONDS").ok().and_then(|value| value.parse().ok());
        Duration::from_secs(seconds.unwrap_or(60))
    }
}

/// A directory that goes away with this.
#[derive(Debug)]
pub struct Scratch(TempDir);

impl Scratch {
    /// A path in it.
    #[must_use]
    pub fn file(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }
}
