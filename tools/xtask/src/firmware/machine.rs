//! The second machine: a PC of QEMU's that has our drives behind one USB controller, and nothing else to boot from.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::json;

use super::image::{Images, MEMTEST, MESSAGE};
use super::plan::{Combination, Controller, Firmware, Medium};
use super::qmp::Qmp;
use super::screen;
use crate::wait::wait_for;

/// From the start of QEMU until it has our drives.
const PLUGGED: Duration = Duration::from_secs(60);

/// From reset until the booted program shows itself; ten times what it takes on an idle machine.
const BOOTED: Duration = Duration::from_secs(300);

/// Firmware, as Debian's packages have it. OVMF wants a writable copy of its variables.
const OVMF: [&str; 2] = ["/usr/share/OVMF/OVMF_CODE_4M.fd", "/usr/share/OVMF/OVMF_VARS_4M.fd"];

/// What SeaBIOS logs when it is done with the machine and looks for something to boot.
const BOOTS: &str = "enter handle_19";

/// Of the firmware's log, in an error.
const LAST_LINES: usize = 30;

/// A VGA card's text memory, as the processor sees it.
const TEXT_AT: u32 = 0xb_8000;

/// A running machine; ended when dropped.
#[derive(Debug)]
pub(super) struct Machine<'a> {
    child: Child,
    qmp: Qmp,
    firmware: Firmware,
    /// Bytes that came over the serial port before the reset.
    before_reset: usize,
    images: &'a Images,
    dir: &'a Path,
}

impl Machine<'_> {
    /// Boots from the drives that arrive on `socket`; gives the time from reset until the booted program shows itself.
    pub(super) fn boot(
        combination: &Combination,
        socket: &Path,
        images: &Images,
        dir: &Path,
    ) -> Result<Duration> {
        fs::create_dir(dir)?;
        let mut machine = Machine::start(combination, socket, images, dir)?;
        machine.plugged()?;
        machine.posted()?;
        machine.before_reset = machine.serial().len();
        machine.qmp.command("system_reset", &json!({}))?;
        let started = Instant::now();
        let booted = wait_for("the booted program to show itself", BOOTED, || {
            Ok(machine.shows(combination)?.then(|| started.elapsed()))
        });
        booted.with_context(|| machine.last_words())
    }

    /// Starts a machine, which does not have the drives yet: QEMU's usb-redir only speaks while a machine runs.
    fn start<'a>(
        combination: &Combination,
        socket: &Path,
        images: &'a Images,
        dir: &'a Path,
    ) -> Result<Machine<'a>> {
        let control = dir.join("qmp");
        let mut qemu = Command::new("timeout");
        // If we are killed, it still ends.
        qemu.arg("--kill-after=5").arg((PLUGGED + BOOTED).as_secs().to_string()).arg("qemu-system-x86_64");
        qemu.args(["-nodefaults", "-display", "none", "-vga", "std", "-m", "256"]);
        qemu.arg("-qmp").arg(with_path("unix:", &control, ",server=on,wait=off"));
        qemu.arg("-serial").arg(with_path("file:", &serial_file(dir), ""));
        // SeaBIOS tells there what it does.
        qemu.arg("-chardev").arg(with_path("file,id=log,path=", &log_file(dir), ""));
        qemu.args(["-device", "isa-debugcon,iobase=0x402,chardev=log"]);
        if combination.firmware == Firmware::Ovmf {
            let variables = dir.join("variables");
            fs::copy(OVMF[1], &variables).with_context(|| format!("cannot copy {}", OVMF[1]))?;
            qemu.args(["-machine", "q35", "-drive"]);
            qemu.arg(format!("if=pflash,format=raw,readonly=on,file={}", OVMF[0]));
            qemu.arg("-drive").arg(with_path("if=pflash,format=raw,file=", &variables, ""));
        }
        let controller = match combination.controller {
            Controller::Ehci => "usb-ehci,id=usb",
            Controller::Xhci => "qemu-xhci,id=usb",
        };
        qemu.args(["-device", controller, "-chardev"]);
        qemu.arg(with_path("socket,id=cable,path=", socket, ""));
        qemu.args(["-device", "usb-redir,chardev=cable,bus=usb.0"]);
        qemu.stdin(Stdio::null()).stdout(Stdio::null()).stderr(fs::File::create(dir.join("errors"))?);
        let mut child = qemu.spawn().context("cannot start QEMU; run `cargo xtask setup`")?;
        let connected = wait_for("QEMU to listen", PLUGGED, || {
            if let Some(status) = child.try_wait()? {
                let said = fs::read_to_string(dir.join("errors")).unwrap_or_default();
                bail!("QEMU ended, {status}; it said: {said}");
            }
            Ok(Qmp::connect(&control).ok())
        });
        match connected {
            Ok(qmp) => {
                Ok(Machine { child, qmp, firmware: combination.firmware, before_reset: 0, images, dir })
            }
            Err(error) => {
                end(&mut child);
                Err(error)
            }
        }
    }

    /// Waits until the drives are plugged in. A redirected device without a connection has the lowest speed.
    fn plugged(&mut self) -> Result<()> {
        let arguments = json!({ "command-line": "info usb" });
        wait_for("the drives to arrive over usbredir", PLUGGED, || {
            let said = self.qmp.command("human-monitor-command", &arguments)?;
            let said = said.as_str().unwrap_or_default();
            Ok(["Speed 480 Mb/s", "Speed 5000 Mb/s"].iter().any(|speed| said.contains(speed)).then_some(()))
        })
    }

    /// Waits until SeaBIOS begins to boot: reset while it moves itself around in memory, it may hang.
    fn posted(&self) -> Result<()> {
        if self.firmware == Firmware::Ovmf {
            return Ok(());
        }
        wait_for("SeaBIOS to come to booting", PLUGGED, || Ok(self.log().contains(BOOTS).then_some(())))
    }

    /// Whether what was inserted runs.
    fn shows(&mut self, combination: &Combination) -> Result<bool> {
        match (combination.firmware, combination.medium) {
            (Firmware::SeaBios, Medium::Flash) => Ok(self.serial().contains(MESSAGE)),
            _ => Ok(self.screen()?.contains(MEMTEST)),
        }
    }

    /// The text on the screen: a BIOS leaves the card in text mode, UEFI gives a frame of pixels.
    fn screen(&mut self) -> Result<String> {
        let file = self.dir.join("screen");
        match self.firmware {
            Firmware::SeaBios => {
                let arguments = json!({ "val": TEXT_AT, "size": screen::TEXT_BYTES, "filename": file });
                self.qmp.command("pmemsave", &arguments)?;
                Ok(screen::of_text_memory(&fs::read(file)?))
            }
            Firmware::Ovmf => {
                self.qmp.command("screendump", &json!({ "filename": file }))?;
                screen::of_picture(&fs::read(file)?, &self.images.font)
            }
        }
    }

    /// What came over the serial port since the reset.
    fn serial(&self) -> String {
        let bytes = fs::read(serial_file(self.dir)).unwrap_or_default();
        String::from_utf8_lossy(bytes.get(self.before_reset..).unwrap_or_default()).into_owned()
    }

    fn log(&self) -> String {
        String::from_utf8_lossy(&fs::read(log_file(self.dir)).unwrap_or_default()).into_owned()
    }

    fn last_words(&mut self) -> String {
        let screen = self.screen().unwrap_or_else(|error| format!("cannot be read: {error:#}"));
        let log = self.log();
        let log: Vec<&str> = log.lines().rev().take(LAST_LINES).collect();
        let log = log.into_iter().rev().collect::<Vec<_>>().join("\n");
        format!(
            "the firmware's log:\n{log}\nthe serial port:\n{}\nthe screen:\n{}\n",
            self.serial().trim(),
            screen.trim()
        )
    }
}

impl Drop for Machine<'_> {
    fn drop(&mut self) {
        end(&mut self.child);
    }
}

/// `timeout` passes the signal on to QEMU.
fn end(child: &mut Child) {
    if let Ok(pid) = i32::try_from(child.id()) {
        let _ = kill(Pid::from_raw(pid), Signal::SIGTERM);
    }
    let _ = child.wait();
}

fn log_file(dir: &Path) -> PathBuf {
    dir.join("log")
}

fn serial_file(dir: &Path) -> PathBuf {
    dir.join("serial")
}

/// QEMU takes a comma in a value twice.
fn with_path(before: &str, path: &Path, after: &str) -> String {
    format!("{before}{}{after}", path.display().to_string().replace(',', ",,"))
}
