//! Gadgets composed by hand in configfs: for the kernel's own functions, and for gadgets that `ringdrived` is a guest in.

use std::fs;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result};

use crate::wait::wait_until;

const GADGETS: &str = "/sys/kernel/config/usb_gadget";

/// A gadget; dropped, it is unbound and removed.
#[derive(Debug)]
pub struct Gadget {
    dir: PathBuf,
}

impl Gadget {
    /// A gadget with one configuration and no functions.
    ///
    /// # Errors
    /// configfs refused.
    pub fn new(name: &str, serial: &str) -> Result<Self> {
        let dir = Path::new(GADGETS).join(name);
        fs::create_dir(&dir).with_context(|| format!("cannot create {}", dir.display()))?;
        let gadget = Self { dir };
        gadget.set("idVendor", "0x1d6b")?;
        gadget.set("idProduct", "0x0104")?;
        fs::create_dir(gadget.dir.join("strings/0x409"))?;
        gadget.set("strings/0x409/serialnumber", serial)?;
        gadget.set("strings/0x409/manufacturer", "ringdrive")?;
        gadget.set("strings/0x409/product", "test gadget")?;
        fs::create_dir(gadget.dir.join("configs/c.1"))?;
        Ok(gadget)
    }

    /// Creates a function and gives its directory; [`Self::link`] then puts it into the configuration.
    ///
    /// # Errors
    /// configfs refused.
    pub fn create(&self, function: &str, attributes: &[(&str, &[u8])]) -> Result<PathBuf> {
        let dir = self.dir.join("functions").join(function);
        fs::create_dir(&dir).with_context(|| format!("cannot create {}", dir.display()))?;
        for (name, value) in attributes {
            write(&dir.join(name), value)?;
        }
        Ok(dir)
    }

    /// Puts a function into the configuration, after which most of its attributes are fixed.
    ///
    /// # Errors
    /// configfs refused.
    pub fn link(&self, function: &str) -> Result<()> {
        symlink(self.dir.join("functions").join(function), self.dir.join("configs/c.1").join(function))
            .with_context(|| format!("cannot link {function}"))
    }

    /// Plugs the gadget into its port.
    ///
    /// # Errors
    /// The port is taken, or a function is not ready.
    pub fn bind(&self, udc: &str) -> Result<()> {
        self.set("UDC", udc)
    }

    fn set(&self, attribute: &str, value: &str) -> Result<()> {
        write(&self.dir.join(attribute), value.as_bytes())
    }
}

impl Drop for Gadget {
    fn drop(&mut self) {
        remove(&self.dir);
    }
}

/// Writes an attribute of configfs.
///
/// # Errors
/// The kernel refused the value.
pub fn write(path: &Path, value: &[u8]) -> Result<()> {
    fs::write(path, value)
        .with_context(|| format!("cannot write {:?} to {}", String::from_utf8_lossy(value), path.display()))
}

/// Names of all gadgets there are.
#[must_use]
pub fn gadgets() -> Vec<String> {
    names(Path::new(GADGETS))
}

/// Removes what earlier tests left behind, so that one failure is one failure.
///
/// # Errors
/// Something could not be removed.
pub fn sweep() -> Result<()> {
    for name in gadgets() {
        eprintln!("removing gadget {name}, which an earlier test left behind");
        unmount_functions(&name);
        remove(&Path::new(GADGETS).join(name));
    }
    wait_until(Duration::from_secs(5), "all gadgets are removed", || gadgets().is_empty())
}

/// All mounts of FunctionFS: the function's name, and where.
#[must_use]
pub fn mounts() -> Vec<(String, PathBuf)> {
    let mounts = fs::read_to_string("/proc/mounts").unwrap_or_default();
    let mount = |line: &str| {
        let mut words = line.split(' ');
        let (name, target, kind) = (words.next()?, words.next()?, words.next()?);
        (kind == "functionfs").then(|| (name.to_owned(), target.into()))
    };
    mounts.lines().filter_map(mount).collect()
}

/// Names of what is in the directory where `ringdrived` mounts FunctionFS.
#[must_use]
pub fn mount_points() -> Vec<String> {
    names(&Path::new(ringdrive::gadget::RUNTIME_DIR).join("ffs"))
}

fn unmount_functions(gadget: &str) {
    for function in names(&Path::new(GADGETS).join(gadget).join("functions")) {
        let Some(name) = function.strip_prefix("ffs.") else { continue };
        for (_, target) in mounts().into_iter().filter(|(source, _)| source == name) {
            let _ = nix::mount::umount(&target);
        }
    }
}

/// Best effort, in the order that configfs demands.
fn remove(gadget: &Path) {
    // An empty write does not reach the attribute; a line does.
    let _ = fs::write(gadget.join("UDC"), "\n");
    let configuration = gadget.join("configs/c.1");
    for entry in names(&configuration) {
        let _ = fs::remove_file(configuration.join(entry));
    }
    for strings in [configuration.join("strings"), gadget.join("strings")] {
        for language in names(&strings) {
            let _ = fs::remove_dir(strings.join(language));
        }
    }
    let _ = fs::remove_dir(&configuration);
    let functions = gadget.join("functions");
    for function in names(&functions) {
        for lun in names(&functions.join(&function)) {
            let _ = fs::remove_dir(functions.join(&function).join(lun));
        }
        let _ = fs::remove_dir(functions.join(function));
    }
    let _ = fs::remove_dir(gadget);
}

fn names(dir: &Path) -> Vec<String> {
    let Ok(entries) = fs::read_dir(dir) else { return Vec::new() };
    entries.flatten().filter_map(|entry| entry.file_name().into_string().ok()).collect()
}
