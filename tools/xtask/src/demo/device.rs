//! Our side of the cable: the images, the daemon, and what is in the flash image at the end.

use std::fs::File;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use xshell::{Shell, cmd};

use super::files::FILES;
use crate::daemon::Daemon;
use crate::vm::Speed;
use crate::wait::wait_for;

/// The gadget's name in configfs.
pub(crate) const GADGET: &str = "ringdrive-demo";
const FLASH_SIZE: u64 = 64 * 1024 * 1024;
const START: Duration = Duration::from_secs(30);

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

/// The daemon, and where it is asked.
pub(crate) struct Serving {
    daemon: Daemon,
    socket: PathBuf,
}

impl Serving {
    /// Starts the daemon and waits until it answers.
    pub(crate) fn start(shell: &Shell, dir: &Path, iso: &Path, flash: &Path, speed: Speed) -> Result<Self> {
        let socket = dir.join("control.sock");
        let daemon = Daemon::start(dir, &configuration(&socket, iso, flash, speed))?;
        let mut serving = Self { daemon, socket };
        wait_for("ringdrived to answer on its control socket", START, || {
            serving.daemon.check()?;
            Ok(serving.ask(shell, &["state", "--json"]).ok())
        })?;
        Ok(serving)
    }

    /// Runs `ringdrive` with `arguments`; gives what it printed.
    pub(crate) fn ask(&self, shell: &Shell, arguments: &[&str]) -> Result<String> {
        let socket = &self.socket;
        Ok(cmd!(shell, "ringdrive --socket {socket} {arguments...}").quiet().ignore_stderr().read()?)
    }

    /// Asks the daemon to end, and sees that it took its gadget with it.
    pub(crate) fn shut_down(&mut self, shell: &Shell) -> Result<()> {
        self.ask(shell, &["shutdown"])?;
        self.daemon.ended()?;
        let left = Path::new("/sys/kernel/config/usb_gadget").join(GADGET);
        ensure!(!left.exists(), "ringdrived left its gadget behind: {}", left.display());
        Ok(())
    }

    /// What the daemon logged.
    pub(crate) fn log(&self) -> String {
        self.daemon.said()
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
