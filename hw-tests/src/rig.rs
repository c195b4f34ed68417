//! Drives that are served by a [`Backend`] and have been found again on the host.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};

use anyhow::{Context, Result, bail, ensure};

use crate::board::{Board, Scratch};
use crate::configfs::{self, Gadget};
use crate::daemon::{self, Daemon, Mode};
use crate::host::{Lun, UsbDevice};
use crate::kernel::Kernel;
use crate::keyboard;
use crate::store::Store;
use crate::wait::{ENUMERATION, wait_for};

/// Who serves the drives.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Backend {
    /// `ringdrived` with its `aio` endpoint engine.
    Aio,
    /// `ringdrived` with its `sync` endpoint engine.
    Sync,
    /// The kernel's `f_mass_storage`.
    Kernel,
}

impl Backend {
    /// As in configuration files and test names.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Aio => "aio",
            Self::Sync => "sync",
            Self::Kernel => "kernel",
        }
    }
}

/// What a drive is to the host.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// A flash disk, blocks of 512 bytes.
    Disk,
    /// A CD or DVD, blocks of 2048 bytes.
    Optical,
}

impl Kind {
    /// As in ringdrive's configuration.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Disk => "disk",
            Self::Optical => "optical",
        }
    }
}

/// When the drive may halt its IN endpoint.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stall {
    /// Where Bulk-Only Transport has it.
    Auto,
    /// Only on an invalid CBW.
    Never,
}

/// A drive to serve.
#[derive(Clone, Debug)]
pub struct Drive {
    /// By which the command line names it.
    pub name: &'static str,
    /// What it is to the host.
    pub kind: Kind,
    /// What is inserted at the start.
    pub image: Option<PathBuf>,
    /// Whether the host may write.
    pub rw: bool,
    /// Bytes in a block of a disk.
    pub block_size: u32,
    /// How long an operation on the image may take.
    pub deadline_ms: u32,
    /// INQUIRY: at most 8 characters.
    pub vendor: &'static str,
    /// INQUIRY: at most 16 characters.
    pub product: &'static str,
}

impl Drive {
    /// An empty read-only disk.
    #[must_use]
    pub fn disk() -> Self {
        let (vendor, product) = ("RINGTEST", "Test disk");
        Self {
            name: "disk",
            kind: Kind::Disk,
            image: None,
            rw: false,
            block_size: 512,
            deadline_ms: 10_000,
            vendor,
            product,
        }
    }

    /// An empty optical drive.
    #[must_use]
    pub fn optical() -> Self {
        Self { name: "cd", kind: Kind::Optical, product: "Test CD", ..Self::disk() }
    }

    /// With an image in it.
    #[must_use]
    pub fn with(self, image: &Path) -> Self {
        Self { image: Some(image.to_owned()), ..self }
    }

    /// That gives storage less time.
    #[must_use]
    pub fn deadline_ms(self, deadline_ms: u32) -> Self {
        Self { deadline_ms, ..self }
    }

    /// That the host may write to.
    #[must_use]
    pub fn writable(self) -> Self {
        Self { rw: true, ..self }
    }

    /// With a name of its own, which is also what INQUIRY says.
    #[must_use]
    pub fn named(self, name: &'static str) -> Self {
        Self { name, product: name, ..self }
    }
}

/// One USB function and its drives, which are its LUNs.
#[derive(Clone, Debug)]
pub struct Function {
    /// Of the function.
    pub name: &'static str,
    /// In the order of LUNs.
    pub drives: Vec<Drive>,
    /// When it may halt.
    pub stall: Stall,
}

/// All that one gadget serves.
#[derive(Clone, Debug)]
pub struct Setup {
    /// In the order of interfaces.
    pub functions: Vec<Function>,
    /// The gadget is composed by hand and has a keyboard before the functions; `ringdrived` is a guest in it.
    pub keyboard: bool,
    /// A store keeps the daemon's descriptors for the next one.
    pub kept: bool,
    /// Sections of `ringdrived`'s configuration beside those that follow from the above.
    pub sections: String,
}

impl Setup {
    /// One function.
    #[must_use]
    pub fn of(drives: impl Into<Vec<Drive>>) -> Self {
        Self::of_functions([Function { name: "usb0", drives: drives.into(), stall: Stall::Auto }])
    }

    /// Several functions.
    #[must_use]
    pub fn of_functions(functions: impl Into<Vec<Function>>) -> Self {
        Self { functions: functions.into(), keyboard: false, kept: false, sections: String::new() }
    }

    /// The same in a gadget that has a keyboard too.
    #[must_use]
    pub fn beside_keyboard(self) -> Self {
        Self { keyboard: true, ..self }
    }

    /// The same with a store that keeps the daemon's descriptors for the next one.
    #[must_use]
    pub fn kept(self) -> Self {
        Self { kept: true, ..self }
    }

    /// The same with these sections in `ringdrived`'s configuration.
    #[must_use]
    pub fn configured(self, sections: impl Into<String>) -> Self {
        Self { sections: sections.into(), ..self }
    }

    /// The same with another stall policy.
    #[must_use]
    pub fn stalling(mut self, stall: Stall) -> Self {
        self.functions.iter_mut().for_each(|function| function.stall = stall);
        self
    }

    /// Where a drive is on the bus: interface and LUN.
    fn place(&self, drive: usize) -> Option<(usize, u8)> {
        let places = self.functions.iter().enumerate().flat_map(|(interface, function)| {
            (0..=u8::MAX).take(function.drives.len()).map(move |lun| (interface, lun))
        });
        places.into_iter().nth(drive).map(|(function, lun)| (function + usize::from(self.keyboard), lun))
    }
}

#[derive(Debug)]
enum Server {
    Kernel(Kernel),
    Daemon(Daemon),
}

/// A running gadget and the host's view of it.
#[derive(Debug)]
pub struct Rig {
    /// The device as the host enumerated it.
    pub device: UsbDevice,
    /// The keyboard's function in configfs, where there is one.
    pub keyboard: Option<PathBuf>,
    setup: Setup,
    server: Server,
    // After the server: a gadget of ours lives longer than the functions in it.
    gadget: Option<Gadget>,
    _scratch: Scratch,
}

impl Rig {
    /// Serves `setup`, and waits until the host has enumerated it at the board's speed.
    ///
    /// # Errors
    /// The backend or the host did not get there; the message has the daemon's log.
    pub fn start(board: &Board, backend: Backend, setup: &Setup) -> Result<Self> {
        configfs::sweep()?;
        let scratch = board.scratch()?;
        let serial = new_serial();
        let stem = scratch.file("daemon");
        let store = setup.kept.then(|| Store::start(scratch.file("notify"), "ringdrived")).transpose()?;
        let gadget = match backend {
            Backend::Aio | Backend::Sync if !setup.keyboard => None,
            _ => Some(Gadget::new("composed", &serial)?),
        };
        let keyboard = match &gadget {
            Some(gadget) if setup.keyboard => {
                let function = gadget.create("hid.keyboard", &keyboard::ATTRIBUTES)?;
                gadget.link("hid.keyboard")?;
                Some(function)
            }
            _ => None,
        };
        let server = match (backend, &gadget) {
            (Backend::Kernel, Some(gadget)) => Server::Kernel(Kernel::add_to(gadget, setup)?),
            (_, Some(gadget)) => Server::Daemon(Self::guest(board, backend, setup, gadget, &stem, store)?),
            (_, None) => Server::Daemon(Daemon::serve_keeping(board, backend, setup, &serial, &stem, store)?),
        };
        if let Some(gadget) = &gadget {
            gadget.bind(&board.udc)?;
        }
        let device = UsbDevice::await_serial(&serial)?;
        ensure!(
            device.speed() == board.speed.mbits(),
            "enumerated at {} Mbit/s, not {}",
            device.speed(),
            board.speed.mbits()
        );
        Ok(Self { device, keyboard, setup: setup.clone(), server, gadget, _scratch: scratch })
    }

    fn guest(
        board: &Board,
        backend: Backend,
        setup: &Setup,
        gadget: &Gadget,
        stem: &Path,
        store: Option<Arc<Store>>,
    ) -> Result<Daemon> {
        let mut directories = Vec::new();
        for function in &setup.functions {
            let name = format!("ffs.{}", function.name);
            directories.push(gadget.create(&name, &[])?);
            gadget.link(&name)?;
        }
        let socket = stem.with_extension("sock");
        let config = daemon::config(board, backend, Mode::Guest, setup, "", &socket);
        let daemon = Daemon::start_keeping(&config, stem, store)?;
        directories.iter().try_for_each(|function| daemon::await_ready(function))?;
        Ok(daemon)
    }

    /// The host's view of a drive, once the host has it.
    ///
    /// # Errors
    /// The host did not set it up.
    pub fn lun(&self, drive: usize) -> Result<Lun> {
        let (interface, lun) =
            self.setup.place(drive).with_context(|| format!("there is no drive {drive}"))?;
        self.device.await_lun(interface, lun)
    }

    /// Inserts an image.
    ///
    /// # Errors
    /// The backend refused.
    pub fn insert(&self, drive: usize, image: &Path) -> Result<()> {
        match &self.server {
            Server::Kernel(kernel) => kernel.insert(drive, image),
            Server::Daemon(daemon) => daemon.insert(drive, image),
        }
    }

    /// Ejects politely.
    ///
    /// # Errors
    /// The host prevents removal.
    pub fn eject(&self, drive: usize) -> Result<()> {
        match &self.server {
            Server::Kernel(kernel) => kernel.eject(drive),
            Server::Daemon(daemon) => daemon.eject(drive),
        }
    }

    /// Ejects politely, once the host's own programs have closed the drive.
    ///
    /// # Errors
    /// They never close it.
    pub fn eject_when_closed(&self, drive: usize) -> Result<()> {
        let allowed = wait_for(ENUMERATION, "the host allows removal", || self.eject(drive).ok());
        // The last refusal tells more.
        allowed.or_else(|_| self.eject(drive))
    }

    /// Ejects whatever the host says.
    ///
    /// # Errors
    /// The backend refused.
    pub fn force_eject(&self, drive: usize) -> Result<()> {
        match &self.server {
            Server::Kernel(kernel) => kernel.force_eject(drive),
            Server::Daemon(daemon) => daemon.force_eject(drive),
        }
    }

    /// What the daemon says of its drives.
    ///
    /// # Errors
    /// The kernel serves, or the daemon does not answer.
    pub fn state(&self) -> Result<serde_json::Value> {
        match &self.server {
            Server::Daemon(daemon) => daemon.state(),
            Server::Kernel(_) => bail!("the kernel serves; there is no daemon"),
        }
    }

    /// The daemon that serves.
    ///
    /// # Errors
    /// The kernel serves.
    pub fn daemon(&mut self) -> Result<&mut Daemon> {
        match &mut self.server {
            Server::Daemon(daemon) => Ok(daemon),
            Server::Kernel(_) => bail!("the kernel serves; there is no daemon"),
        }
    }

    /// Ends the service and checks that nothing of it is left.
    ///
    /// # Errors
    /// Something is left, or the daemon ended badly.
    pub fn stop(self) -> Result<()> {
        match self.server {
            Server::Kernel(kernel) => drop(kernel),
            Server::Daemon(daemon) if self.setup.kept => daemon.shut_down()?,
            Server::Daemon(daemon) => daemon.stop()?,
        }
        drop(self.gadget);
        let left = configfs::gadgets();
        ensure!(left.is_empty(), "gadgets are left in configfs: {left:?}");
        Ok(())
    }
}

/// A serial number that no earlier gadget of this run had.
#[must_use]
pub fn new_serial() -> String {
    static NEXT: AtomicU32 = AtomicU32::new(1);
    format!("RINGTEST{:06}", NEXT.fetch_add(1, Ordering::Relaxed))
}

#[cfg(test)]
mod tests {
    use super::{Drive, Function, Setup, Stall};

    #[test]
    fn drives_are_numbered_across_functions_and_luns() {
        let function = |name, drives| Function { name, drives, stall: Stall::Auto };
        let setup = Setup::of_functions([
            function("a", vec![Drive::disk(), Drive::optical()]),
            function("b", vec![Drive::disk()]),
        ]);
        let places = |setup: &Setup| (0..4).map(|drive| setup.place(drive)).collect::<Vec<_>>();
        assert_eq!(places(&setup), [Some((0, 0)), Some((0, 1)), Some((1, 0)), None]);
        assert_eq!(places(&setup.beside_keyboard()), [Some((1, 0)), Some((1, 1)), Some((2, 0)), None]);
    }
}
