//! The two that are compared: a drive served by f_mass_storage, and one served by our daemon.

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use super::Engine;
use super::meter::{self, Server};
use crate::vm::Speed;

const GADGETS: &str = "/sys/kernel/config/usb_gadget";
const GADGET: &str = "bench";
/// Twelve digits, as Bulk-Only Transport wants them.
const SERIAL: &str = "0123456789BE";
const LOOK: Duration = Duration::from_millis(20);
const APPEAR: Duration = Duration::from_secs(60);
const STOP: Duration = Duration::from_secs(30);

/// A drive that the host sees; gone when dropped.
#[derive(Debug)]
pub(super) struct Served {
    by: By,
    /// The host's block device.
    pub(super) disk: PathBuf,
}

#[derive(Debug)]
enum By {
    Kernel(KernelGadget),
    Ours(Daemon),
}

impl Served {
    pub(super) fn by_kernel(image: &Path, writable: bool, speed: Speed) -> Result<Self> {
        let gadget = KernelGadget::new(image, writable, speed)?;
        Self::appeared(By::Kernel(gadget), speed)
    }

    pub(super) fn by_us(image: &Path, writable: bool, speed: Speed, engine: Engine) -> Result<Self> {
        let daemon = Daemon::start(image, writable, speed, engine)?;
        Self::appeared(By::Ours(daemon), speed)
    }

    fn appeared(mut by: By, speed: Speed) -> Result<Self> {
        let disk = wait_for("the host to find the drive", APPEAR, || {
            if let By::Ours(daemon) = &mut by {
                daemon.check()?;
            }
            find_disk(speed)
        })?;
        // The host would ask in between whether the medium is still there.
        fs::write(block(&disk).join("events_poll_msecs"), "0")?;
        Ok(Self { by, disk })
    }

    pub(super) fn server(&self) -> Result<Server> {
        match &self.by {
            By::Kernel(_) => Ok(Server::Thread(meter::kernel_thread()?)),
            By::Ours(daemon) => Ok(Server::Process(daemon.pid()?)),
        }
    }

    /// KiB; none for the kernel's.
    pub(super) fn peak_memory(&self) -> Result<Option<u64>> {
        match &self.by {
            By::Kernel(_) => Ok(None),
            By::Ours(daemon) => meter::peak_memory(daemon.pid()?).map(Some),
        }
    }

    /// Takes the drive away from the host.
    pub(super) fn stop(self) -> Result<()> {
        match self.by {
            By::Kernel(gadget) => drop(gadget),
            By::Ours(mut daemon) => daemon.stop()?,
        }
        wait_for("the host to forget the drive", STOP, || Ok((!self.disk.exists()).then_some(())))
    }
}

fn block(disk: &Path) -> PathBuf {
    Path::new("/sys/block").join(disk.file_name().unwrap_or_default())
}

fn attribute(dir: &Path, name: &str) -> String {
    fs::read_to_string(dir.join(name)).unwrap_or_default().trim().to_owned()
}

/// The disk whose USB device has our serial number, when the host knows its size.
fn find_disk(speed: Speed) -> Result<Option<PathBuf>> {
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
        return Ok(Some(disk));
    }
    Ok(None)
}

fn wait_for<T>(what: &str, limit: Duration, mut look: impl FnMut() -> Result<Option<T>>) -> Result<T> {
    let started = Instant::now();
    loop {
        if let Some(found) = look()? {
            return Ok(found);
        }
        if started.elapsed() > limit {
            bail!("waited {} s in vain for {what}", limit.as_secs());
        }
        thread::sleep(LOOK);
    }
}

/// f_mass_storage in a gadget of its own, by configfs.
#[derive(Debug)]
struct KernelGadget {
    dir: PathBuf,
}

impl KernelGadget {
    fn new(image: &Path, writable: bool, speed: Speed) -> Result<Self> {
        let dir = Path::new(GADGETS).join(GADGET);
        let gadget = Self { dir };
        gadget.compose(image, writable, speed).context("cannot make a gadget with f_mass_storage")?;
        Ok(gadget)
    }

    fn compose(&self, image: &Path, writable: bool, speed: Speed) -> Result<()> {
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

/// A running `ringdrived`.
#[derive(Debug)]
struct Daemon {
    child: Child,
    log: PathBuf,
}

impl Daemon {
    fn start(image: &Path, writable: bool, speed: Speed, engine: Engine) -> Result<Self> {
        let dir = std::env::temp_dir();
        let (config, log, socket) =
            (dir.join("bench.toml"), dir.join("ringdrived.log"), dir.join("control.sock"));
        let text = format!(
            "[control]\nsocket = {socket:?}\n\n\
             [gadget]\nname = {GADGET:?}\nserial = {SERIAL:?}\nmax_speed = {:?}\n\n\
             [[function]]\nname = \"usb0\"\nengine = {:?}\n\n\
             [[function.drive]]\nname = \"flash\"\nkind = \"disk\"\nimage = {image:?}\nrw = {writable}\n",
            speed.name(),
            engine.name(),
        );
        fs::write(&config, text)?;
        let output = File::create(&log)?;
        let child = Command::new("ringdrived")
            .arg("--config")
            .arg(&config)
            .stdin(Stdio::null())
            .stdout(output.try_clone()?)
            .stderr(output)
            .spawn()
            .context("cannot start ringdrived; is it built?")?;
        Ok(Self { child, log })
    }

    fn pid(&self) -> Result<Pid> {
        Ok(Pid::from_raw(i32::try_from(self.child.id())?))
    }

    fn check(&mut self) -> Result<()> {
        match self.child.try_wait()? {
            None => Ok(()),
            Some(status) => bail!("ringdrived ended, {status}; it said:\n{}", self.said()),
        }
    }

    fn said(&self) -> String {
        fs::read_to_string(&self.log).unwrap_or_default()
    }

    fn stop(&mut self) -> Result<()> {
        kill(self.pid()?, Signal::SIGTERM)?;
        let status = wait_for("ringdrived to end", STOP, || Ok(self.child.try_wait()?))?;
        ensure!(status.success(), "ringdrived ended with {status}; it said:\n{}", self.said());
        Ok(())
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        // Both fail when it has ended, which is as good.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
