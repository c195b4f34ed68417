//! Our side of the cable: the images, the daemon, and what is in the flash image at the end.

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use xshell::{Shell, cmd};

use super::files::FILES;
use super::host::wait_for;
use crate::vm::Speed;

/// The gadget's name in configfs.
pub(crate) const GADGET: &str = "ringdrive-demo";
const FLASH_SIZE: u64 = 64 * 1024 * 1024;
const START: Duration = Duration::from_secs(30);
const STOP: Duration = Duration::from_secs(15);

/// A new 64 MiB image with a FAT file system.
pub(crate) fn make_flash(shell: &Shell, image: &Path) -> Result<()> {
    File::create(image)?.set_len(FLASH_SIZE)?;
    cmd!(shell, "mkfs.vfat -n RINGDRIVE {image}").quiet().ignore_stdout().run()?;
    Ok(())
}

/// The flash image holds a sound file system with exactly the bytes of [`FILES`].
pub(crate) fn check_flash(shell: &Shell, image: &Path) -> Result<()> {
    let fsck = cmd!(shell, "fsck.vfat -n {image}").quiet().ignore_status().output()?;
    let said = String::from_utf8_lossy(&fsck.stdout);
    ensure!(fsck.status.success(), "fsck.vfat finds faults in the flash image:\n{said}");
    for file in &FILES {
        let path = format!("::/{}", file.path);
        let output = cmd!(shell, "mtype -i {image} {path}")
            .quiet()
            .output()
            .with_context(|| format!("the flash image has no {}", file.path))?;
        ensure!(
            output.stdout == file.content(),
            "{} in the flash image is not what the host wrote",
            file.path
        );
    }
    Ok(())
}

/// A running `ringdrived`; killed if the demo ends early.
pub(crate) struct Daemon {
    child: Child,
    socket: PathBuf,
    log: PathBuf,
}

impl Daemon {
    /// Starts the daemon and waits until it answers.
    pub(crate) fn start(shell: &Shell, dir: &Path, iso: &Path, flash: &Path, speed: Speed) -> Result<Self> {
        let (config, log, socket) =
            (dir.join("config.toml"), dir.join("ringdrived.log"), dir.join("control.sock"));
        fs::write(&config, configuration(&socket, iso, flash, speed))?;
        let output = File::create(&log)?;
        let child = Command::new("ringdrived")
            .arg("--config")
            .arg(&config)
            .stdin(Stdio::null())
            .stdout(output.try_clone()?)
            .stderr(output)
            .spawn()
            .context("cannot start ringdrived; is it built?")?;
        let mut daemon = Self { child, socket, log };
        wait_for("ringdrived to answer on its control socket", START, || {
            if let Some(status) = daemon.child.try_wait()? {
                bail!("ringdrived ended at once, {status}; it said:\n{}", daemon.log());
            }
            Ok(daemon.ask(shell, &["state", "--json"]).ok())
        })?;
        Ok(daemon)
    }

    /// Runs `ringdrive` with `arguments`; gives what it printed.
    pub(crate) fn ask(&self, shell: &Shell, arguments: &[&str]) -> Result<String> {
        let socket = &self.socket;
        Ok(cmd!(shell, "ringdrive --socket {socket} {arguments...}").quiet().ignore_stderr().read()?)
    }

    /// Asks the daemon to end, and sees that it took its gadget with it.
    pub(crate) fn shut_down(&mut self, shell: &Shell) -> Result<()> {
        self.ask(shell, &["shutdown"])?;
        let status = wait_for("ringdrived to end", STOP, || Ok(self.child.try_wait()?))?;
        ensure!(status.success(), "ringdrived ended with {status}");
        let left = Path::new("/sys/kernel/config/usb_gadget").join(GADGET);
        ensure!(!left.exists(), "ringdrived left its gadget behind: {}", left.display());
        Ok(())
    }

    /// What the daemon logged.
    pub(crate) fn log(&self) -> String {
        fs::read_to_string(&self.log).unwrap_or_default()
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        // Both fail when it has ended, which is as good.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn configuration(socket: &Path, iso: &Path, flash: &Path, speed: Speed) -> String {
    let speed = speed.name();
    let [socket, iso, flash] = [socket, iso, flash].map(|path| path.display().to_string());
    format!(
        "[control]\nsocket = {socket:?}\n\n\
         [gadget]\nname = {GADGET:?}\nmax_speed = {speed:?}\n\n\
         [[function]]\nname = \"usb0\"\n\n\
         [[function.drive]]\nname = \"cd\"\nkind = \"optical\"\nimage = {iso:?}\n\n\
         [[function.drive]]\nname = \"flash\"\nkind = \"disk\"\nimage = {flash:?}\nrw = true\n"
    )
}
