//! The two that are compared: a drive served by f_mass_storage, and one served by our daemon.

use std::fmt::Write as _;
use std::fs;
use std::io::{BufRead, BufReader, Write as _};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use nix::sys::signal::{Signal, kill};
use serde_json::{Value, json};
use xshell::Shell;

use super::Engine;
use super::meter::{self, Server};
use crate::daemon::Daemon;
use crate::sysfs::attribute;
use crate::vm::Speed;
use crate::wait::wait_for;

const GADGETS: &str = "/sys/kernel/config/usb_gadget";
const GADGET: &str = "bench";
/// Twelve digits, as Bulk-Only Transport wants them.
const SERIAL: &str = "0123456789BE";
const APPEAR: Duration = Duration::from_secs(60);
const FORGET: Duration = Duration::from_secs(30);

/// What a drive serves.
#[derive(Clone, Copy, Debug)]
pub(super) struct Medium<'a> {
    pub(super) image: &'a Path,
    pub(super) writable: bool,
    /// Whether an answer shorter than the host expects ends with a stall, as Bulk-Only Transport wants it.
    pub(super) stalls: bool,
}

/// Drives that the host sees; gone when dropped.
#[derive(Debug)]
pub(super) struct Served {
    by: By,
    /// The host's block devices.
    pub(super) disks: Vec<PathBuf>,
}

#[derive(Debug)]
enum By {
    Kernel(KernelGadget),
    Ours(Daemon),
}

impl Served {
    /// One drive of f_mass_storage.
    pub(super) fn by_kernel(shell: &Shell, medium: Medium<'_>, speed: Speed) -> Result<Self> {
        let gadget = KernelGadget::new(medium, speed)?;
        Self::appeared(shell, By::Kernel(gadget), 1, speed)
    }

    /// Drives of ours, for each function its own.
    pub(super) fn by_us(
        shell: &Shell,
        functions: &[&[Medium<'_>]],
        speed: Speed,
        engine: Engine,
    ) -> Result<Self> {
        Self::by_us_with(shell, "", functions, speed, engine)
    }

    /// The same with these sections in the configuration besides.
    pub(super) fn by_us_with(
        shell: &Shell,
        sections: &str,
        functions: &[&[Medium<'_>]],
        speed: Speed,
        engine: Engine,
    ) -> Result<Self> {
        let dir = std::env::temp_dir();
        let text = sections.to_owned() + &configuration(&dir, functions, speed, engine)?;
        let daemon = Daemon::start(&dir, &text)?;
        let drives = functions.iter().map(|drives| drives.len()).sum();
        Self::appeared(shell, By::Ours(daemon), drives, speed)
    }

    fn appeared(shell: &Shell, mut by: By, drives: usize, speed: Speed) -> Result<Self> {
        let disks = wait_for("the host to find the drives", APPEAR, || {
            if let By::Ours(daemon) = &mut by {
                daemon.check()?;
            }
            let disks = find_disks(speed)?;
            Ok((disks.len() == drives).then_some(disks))
        })?;
        for disk in &disks {
            // The host would ask in between whether the medium is still there.
            fs::write(block(disk).join("events_poll_msecs"), "0")?;
        }
        for thread in meter::threads("usb-storage")? {
            super::fio::host_first(shell, thread)?;
        }
        Ok(Self { by, disks })
    }

    /// The first drive, as the host knows it.
    pub(super) fn disk(&self) -> Result<&Path> {
        self.disks.first().map(PathBuf::as_path).context("no drive is served")
    }

    pub(super) fn server(&self) -> Result<Server> {
        match &self.by {
            By::Kernel(_) => {
                let thread = meter::threads("file-storage")?.first().copied();
                thread.map(Server::Thread).context("f_mass_storage has no thread `file-storage`")
            }
            By::Ours(daemon) => Ok(Server::Process(daemon.pid()?)),
        }
    }

    /// Asks ours at its control socket, without a program between that must start first.
    pub(super) fn ask(&self, method: &str, params: &Value) -> Result<Value> {
        let mut socket = UnixStream::connect(control_socket(&std::env::temp_dir()))?;
        let request = json!({ "jsonrpc": "2.0", "id": 1, "method": method, "params": params });
        socket.write_all(format!("{request}\n").as_bytes())?;
        let mut line = String::new();
        BufReader::new(socket).read_line(&mut line)?;
        let mut answer: Value = serde_json::from_str(&line)?;
        let result = answer.get_mut("result").map(Value::take);
        result.with_context(|| format!("{method} was answered with {answer}"))
    }

    /// KiB; none for the kernel's.
    pub(super) fn peak_memory(&self) -> Result<Option<u64>> {
        match &self.by {
            By::Kernel(_) => Ok(None),
            By::Ours(daemon) => meter::peak_memory(daemon.pid()?).map(Some),
        }
    }

    /// Takes the drives away from the host.
    pub(super) fn stop(self) -> Result<()> {
        match self.by {
            By::Kernel(gadget) => drop(gadget),
            By::Ours(mut daemon) => {
                kill(daemon.pid()?, Signal::SIGTERM)?;
                daemon.ended()?;
            }
        }
        wait_for("the host to forget the drives", FORGET, || {
            Ok((!self.disks.iter().any(|disk| disk.exists())).then_some(()))
        })
    }
}

fn configuration(dir: &Path, functions: &[&[Medium<'_>]], speed: Speed, engine: Engine) -> Result<String> {
    let (socket, speed, engine) = (control_socket(dir), speed.name(), engine.name());
    let mut text = format!(
        "[control]\nsocket = {socket:?}\n\n\
         [gadget]\nname = {GADGET:?}\nserial = {SERIAL:?}\nmax_speed = {speed:?}\n"
    );
    for (index, drives) in functions.iter().enumerate() {
        let stall = if drives.iter().all(|drive| drive.stalls) { "auto" } else { "never" };
        write!(text, "\n[[function]]\nname = \"usb{index}\"\nengine = {engine:?}\nstall = {stall:?}\n")?;
        for (number, Medium { image, writable, .. }) in drives.iter().enumerate() {
            write!(
                text,
                "\n[[function.drive]]\nname = \"flash{index}-{number}\"\nkind = \"disk\"\nimage = {image:?}\nrw = {writable}\n"
            )?;
        }
    }
    Ok(text)
}

fn control_socket(dir: &Path) -> PathBuf {
    dir.join("control.sock")
}

fn block(disk: &Path) -> PathBuf {
    Path::new("/sys/block").join(disk.file_name().unwrap_or_default())
}

/// The disks whose USB device has our serial number, and whose size the host knows, in the order of its interfaces.
fn find_disks(speed: Speed) -> Result<Vec<PathBuf>> {
    let mut disks = Vec::new();
    for entry in fs::read_dir("/sys/block")?.flatten() {
        let Ok(device) = fs::canonicalize(entry.path().join("device")) else { continue };
        let Some(usb) = device.ancestors().find(|dir| dir.join("idVendor").exists()) else { continue };
        let disk = Path::new("/dev").join(entry.file_name());
        if attribute(usb, "serial") != SERIAL || attribute(&entry.path(), "size") == "0" || !disk.exists() {
            continue;
        }
        let link = attribute(usb, "speed");
        let wanted = if speed == Speed::Super { "5000" } else { "480" };
        ensure!(link == wanted, "the link runs at {link} Mbit/s instead of {wanted}");
        disks.push((device, disk));
    }
    disks.sort_unstable();
    Ok(disks.into_iter().map(|(_, disk)| disk).collect())
}

/// f_mass_storage in a gadget of its own, by configfs.
#[derive(Debug)]
struct KernelGadget {
    dir: PathBuf,
}

impl KernelGadget {
    fn new(medium: Medium<'_>, speed: Speed) -> Result<Self> {
        let dir = Path::new(GADGETS).join(GADGET);
        let gadget = Self { dir };
        gadget.compose(medium, speed).context("cannot make a gadget with f_mass_storage")?;
        Ok(gadget)
    }

    fn compose(&self, Medium { image, writable, stalls }: Medium<'_>, speed: Speed) -> Result<()> {
        let dir = &self.dir;
        let (function, configuration) = (dir.join("functions/mass_storage.0"), dir.join("configs/c.1"));
        fs::create_dir(dir)?;
        fs::create_dir(dir.join("strings/0x409"))?;
        fs::create_dir(&function)?;
        fs::create_dir(&configuration)?;
        let path = image.to_str().context("an image with a strange name")?;
        let speed = if speed == Speed::Super { "super-speed" } else { "high-speed" };
        let settings = [
            ("idVendor", "0x1d6b"),
            ("idProduct", "0x0104"),
            ("max_speed", speed),
            ("strings/0x409/serialnumber", SERIAL),
            ("functions/mass_storage.0/stall", if stalls { "1" } else { "0" }),
            ("functions/mass_storage.0/lun.0/removable", "1"),
            ("functions/mass_storage.0/lun.0/ro", if writable { "0" } else { "1" }),
            ("functions/mass_storage.0/lun.0/file", path),
        ];
        for (name, value) in settings {
            fs::write(dir.join(name), value).with_context(|| format!("{name} = {value}"))?;
        }
        std::os::unix::fs::symlink(&function, configuration.join("mass_storage.0"))?;
        let udc = fs::read_dir("/sys/class/udc")?.flatten().next().context("no USB device port")?;
        fs::write(dir.join("UDC"), udc.file_name().as_encoded_bytes())?;
        Ok(())
    }
}

impl Drop for KernelGadget {
    fn drop(&mut self) {
        // Each fails where composing had not come so far.
        let _ = fs::write(self.dir.join("UDC"), "\n");
        let _ = fs::remove_file(self.dir.join("configs/c.1/mass_storage.0"));
        for part in ["configs/c.1", "functions/mass_storage.0", "strings/0x409", ""] {
            let _ = fs::remove_dir(self.dir.join(part));
        }
    }
}
