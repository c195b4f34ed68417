//! Linux USB gadgets: made in configfs, bound to a controller, served through FunctionFS.
//!
//! Called by the daemon at start ([`Gadget::create`]), by the drive loop ([`endpoints`], [`BusEvent`]) and by the control
//! socket (replug). Two placements: our own gadget, which we make and remove whole, and a function in a gadget that somebody
//! else composes, of which we only mount, describe and serve our `ffs.NAME`.
//!
//! Invariants: one daemon per gadget name (a lock file); nothing of another gadget is written; what [`Gadget::create`] made,
//! [`Gadget::teardown`] or drop removes, also after an error half way, unless it is left to a successor ([`Gadget::leave`]), which
//! takes it over with its open files ([`Gadget::adopt`]); a killed run of which nobody kept these is cleaned up by the next.
#![allow(unsafe_code)]

pub mod aio;
mod configfs;
pub mod endpoints;
mod engine;
mod ep0;
mod error;
mod functionfs;
mod inherited;
mod interrupt;
mod lock;
pub mod mixed;
pub mod sync;
mod udc;

use std::{
    path::{Path, PathBuf},
    sync::{Arc, atomic::AtomicU16},
    thread,
    time::{Duration, Instant},
};

use ffs_descriptors::InterfaceName;
use nix::sys::eventfd::{EfdFlags, EventFd};

pub use configfs::is_name;
pub use engine::{Engine, EngineKind};
pub use ep0::{BusEvent, Ep0, Ep0Thread, ResetTicket};
pub use error::GadgetError;
pub use ffs_descriptors::Speed;
pub use functionfs::KeptFiles;
pub use inherited::inherited;
pub use udc::{Udc, UdcState};

use configfs::Tree;
use functionfs::{FunctionFiles, Mount};
use lock::Lock;

use crate::schedule::Schedule;

/// How long the controller may take to let go of the bus in a replug.
const DETACH_TIMEOUT: Duration = Duration::from_secs(2);

/// How long a replugged gadget stays away, so that hubs and hosts see it go: a person's hand takes longer.
const UNPLUGGED_FOR: Duration = Duration::from_millis(300);

/// What a gadget is.
#[derive(Clone, Debug)]
pub struct GadgetOptions {
    /// Its directory in configfs. In guest mode: that of the gadget our functions are in.
    pub name: String,
    /// idVendor.
    pub vendor_id: u16,
    /// idProduct.
    pub product_id: u16,
    /// bcdDevice.
    pub device_release: u16,
    /// iManufacturer.
    pub manufacturer: String,
    /// iProduct.
    pub product: String,
    /// iSerialNumber.
    pub serial: String,
    /// The speed not to exceed.
    pub max_speed: Speed,
    /// bMaxPower, in mA.
    pub max_power_ma: u16,
    /// The controller; `None` for the first free one.
    pub udc: Option<String>,
    /// The functions, in the order of their interfaces.
    pub functions: Vec<FunctionOptions>,
    /// Where the lock file and the FunctionFS mounts are put: [`RUNTIME_DIR`] but for tests.
    pub runtime_dir: PathBuf,
}

impl GadgetOptions {
    fn mount_dir(&self, function: &FunctionOptions) -> PathBuf {
        function.mount.clone().unwrap_or_else(|| self.runtime_dir.join("ffs").join(&function.name))
    }
}

/// The usual [`GadgetOptions::runtime_dir`].
pub const RUNTIME_DIR: &str = "/run/ringdrive";

/// What a function is.
#[derive(Clone, Debug)]
pub struct FunctionOptions {
    /// NAME of `ffs.NAME`; unique on this machine.
    pub name: String,
    /// How its endpoints are driven.
    pub engine: EngineKind,
    /// Of the engine's threads, where it has any.
    pub schedule: Schedule,
    /// The answer to Get Max LUN: 0 to 15.
    pub last_lun: u8,
    /// iInterface.
    pub interface_name: String,
    /// Where to mount it; `None` for a directory below the runtime directory, or, in guest mode, where it is mounted already.
    pub mount: Option<PathBuf>,
}

/// What the kernel is told of each function of ours: a build that would tell it something else cannot take one over.
pub fn descriptors() -> Vec<u8> {
    ffs_descriptors::descriptors(ffs_descriptors::MaxBurst::MOST)
}

/// Whose gadget it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Placement {
    /// Ours: made, bound and removed by us.
    Own,
    /// Somebody else's: we serve functions in it. The kernel takes the whole gadget off the bus when the last file of one of its
    /// functions is closed, so when we end, the composer has to bind it again once we are back.
    Guest,
}

/// A gadget that exists. Dropping it takes it down.
#[derive(Debug)]
pub struct Gadget {
    name: String,
    tree: Option<Tree>,
    placement: Placement,
    wanted_udc: Option<String>,
    mounts: Vec<Mount>,
    stops: Vec<Arc<EventFd>>,
    /// Last: the name is ours until everything above is gone.
    _lock: Lock,
}

/// What serves one function: all its open files.
#[derive(Debug)]
pub struct FunctionParts {
    /// NAME of `ffs.NAME`.
    pub name: String,
    /// The bulk endpoints, for the drive loop.
    pub endpoints: Engine,
    /// The control pipe, to be started.
    pub ep0: Ep0,
    /// The files of both, to be kept for a successor, or dropped.
    pub kept: KeptFiles,
}

impl Gadget {
    /// Makes the gadget (own) or finds it (guest), and opens its functions, ready to be served. It is not on the bus before
    /// [`Gadget::bind`]; start every [`Ep0`] before that.
    ///
    /// # Errors
    /// Each with cause and cure; nothing is left behind.
    pub fn create(
        options: &GadgetOptions,
        placement: Placement,
    ) -> Result<(Self, Vec<FunctionParts>), GadgetError> {
        configfs::checked_name(&options.name)?;
        let lock = Lock::take(&options.runtime_dir, &options.name)?;
        let tree = match placement {
            Placement::Own => {
                let tree = Tree::new(Path::new(configfs::USB_GADGET), &options.name)?;
                // Before anything is made: no controller, no gadget.
                tree.clean_left_over(&options.name)?;
                Udc::choose(Path::new(udc::UDC_CLASS), options.udc.as_deref())?;
                Some(tree)
            }
            // In a container the composer's configfs may be out of sight.
            Placement::Guest => {
                Tree::new(Path::new(configfs::USB_GADGET), &options.name).ok().filter(Tree::exists)
            }
        };
        let mut gadget = Self {
            name: options.name.clone(),
            tree,
            placement,
            wanted_udc: options.udc.clone(),
            mounts: Vec::new(),
            stops: Vec::new(),
            _lock: lock,
        };
        if let (Placement::Own, Some(tree)) = (placement, &gadget.tree) {
            tree.create(options)?;
        }
        let parts: Result<Vec<_>, GadgetError> =
            options.functions.iter().map(|function| gadget.open(options, function)).collect();
        // An error drops `gadget`, which removes what was made.
        parts.map(|parts| (gadget, parts))
    }

    /// Takes over a gadget that is on the bus, from a process that is gone: with the open files of its functions, in their order.
    ///
    /// # Errors
    /// [`GadgetError::NotThere`] where there is nothing to take over any more; the files are then closed, and what is left of the gadget
    /// stays for [`Gadget::create`] to clean up.
    pub fn adopt(
        options: &GadgetOptions,
        placement: Placement,
        kept: Vec<KeptFiles>,
    ) -> Result<(Self, Vec<FunctionParts>), GadgetError> {
        configfs::checked_name(&options.name)?;
        let not_there = || GadgetError::NotThere { name: options.name.clone() };
        let lock = Lock::take(&options.runtime_dir, &options.name)?;
        let tree = Tree::new(Path::new(configfs::USB_GADGET), &options.name).ok().filter(Tree::exists);
        let is_bound = tree.as_ref().is_some_and(|tree| tree.bound_to().is_some());
        if placement == Placement::Own && !is_bound {
            return Err(not_there());
        }
        let mut mounts = Vec::new();
        let mut files = Vec::new();
        for (function, kept) in options.functions.iter().zip(kept) {
            let adopted = FunctionFiles::adopt(kept);
            let dir = options.mount_dir(function);
            if adopted.is_stale(&function.name).map_err(GadgetError::io("look at", &dir))? {
                return Err(not_there());
            }
            mounts.push(Mount::adopt(&function.name, &dir, function.mount.is_none()));
            files.push(adopted);
        }
        let mut gadget = Self {
            name: options.name.clone(),
            tree,
            placement,
            wanted_udc: options.udc.clone(),
            mounts,
            stops: Vec::new(),
            _lock: lock,
        };
        let parts = options.functions.iter().zip(files).map(|(function, files)| {
            let dir = options.mount_dir(function);
            gadget.serve(function, &dir, files, true)
        });
        let parts: Result<Vec<_>, GadgetError> = parts.collect();
        parts.map(|parts| (gadget, parts))
    }

    fn open(
        &mut self,
        options: &GadgetOptions,
        function: &FunctionOptions,
    ) -> Result<FunctionParts, GadgetError> {
        let name = configfs::checked_name(&function.name)?.to_owned();
        let interface = InterfaceName::new(&function.interface_name)?;
        let dir = options.mount_dir(function);
        let mount = match self.placement {
            Placement::Own => Mount::new(&name, &dir, function.mount.is_none())?,
            Placement::Guest => Mount::find_or_new(&name, &dir, function.mount.is_none())?,
        };
        let files = FunctionFiles::open(mount.dir(), &name, &interface)?;
        self.mounts.push(mount);
        self.serve(function, &dir, files, false)
    }

    fn serve(
        &mut self,
        function: &FunctionOptions,
        dir: &Path,
        files: FunctionFiles,
        adopted: bool,
    ) -> Result<FunctionParts, GadgetError> {
        let name = function.name.clone();
        let max_packet = Arc::new(AtomicU16::new(Speed::Full.bulk_max_packet()));
        let no_resource = |what| GadgetError::io::<std::io::Error>(what, dir);
        let flags = EfdFlags::EFD_NONBLOCK | EfdFlags::EFD_CLOEXEC;
        let stop = EventFd::from_flags(flags).map_err(|errno| no_resource("watch")(errno.into()))?;
        let stop = Arc::new(stop);
        self.stops.push(Arc::clone(&stop));
        let endpoint = files.output.try_clone().map_err(no_resource("serve"))?;
        let kept = files.kept().map_err(no_resource("serve"))?;
        let ep0 = Ep0 {
            name: name.clone(),
            file: files.ep0,
            endpoint,
            last_lun: function.last_lun.min(15),
            max_packet: Arc::clone(&max_packet),
            stop,
            adopted,
        };
        let endpoints =
            Engine::new(function.engine, function.schedule, files.input, files.output, max_packet)
                .map_err(no_resource("start the endpoint engine of"))?;
        Ok(FunctionParts { name, endpoints, ep0, kept })
    }

    /// Puts our own gadget on the bus. In guest mode the composer does that, and this does nothing.
    ///
    /// # Errors
    /// No controller, or it is in use.
    pub fn bind(&self) -> Result<(), GadgetError> {
        let Some(tree) = self.own_tree() else { return Ok(()) };
        if tree.bound_to().is_some() {
            return Ok(());
        }
        tree.bind(&Udc::choose(Path::new(udc::UDC_CLASS), self.wanted_udc.as_deref())?)
    }

    /// Takes our own gadget off the bus; requests in flight come back as disabled. In guest mode this does nothing.
    ///
    /// # Errors
    /// The kernel's, with the path.
    pub fn unbind(&self) -> Result<(), GadgetError> {
        self.own_tree().map_or(Ok(()), Tree::unbind)
    }

    /// Unplugs and plugs our own gadget, so that the host looks at it anew. Blocks for some tenths of a second.
    ///
    /// # Errors
    /// In guest mode always; else as [`Gadget::bind`].
    pub fn replug(&self) -> Result<(), GadgetError> {
        let Some(tree) = self.own_tree() else {
            return Err(GadgetError::GuestReplug { name: self.name.clone() });
        };
        let udc = self.udc();
        tree.unbind()?;
        let deadline = Instant::now() + DETACH_TIMEOUT;
        let is_gone = || udc.as_ref().is_none_or(|udc| udc.state() == UdcState::NotAttached);
        while !is_gone() && Instant::now() < deadline {
            thread::sleep(Duration::from_millis(10));
        }
        thread::sleep(UNPLUGGED_FOR);
        match &udc {
            Some(udc) => tree.bind(udc),
            None => self.bind(),
        }
    }

    /// The controller that has the gadget now.
    pub fn udc(&self) -> Option<Udc> {
        let name = self.tree.as_ref()?.bound_to()?;
        Udc::list().into_iter().find(|udc| udc.name() == name)
    }

    /// Its name in configfs.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Whose gadget it is.
    pub fn placement(&self) -> Placement {
        self.placement
    }

    /// Off the bus, ep0 threads told to stop, unmounted, removed from configfs. Dropping does the same, and logs the error.
    ///
    /// # Errors
    /// The first thing that could not be removed; the next start under this name tries again.
    pub fn teardown(mut self) -> Result<(), GadgetError> {
        self.take_down()
    }

    /// Leaves it on the bus as it is, for a successor that has its files; ep0 threads are told to stop.
    pub fn leave(mut self) {
        for stop in self.stops.drain(..) {
            let _ = stop.write(1);
        }
        self.mounts.drain(..).for_each(Mount::leave);
        // Without it, drop has nothing to remove.
        self.tree = None;
    }

    fn own_tree(&self) -> Option<&Tree> {
        self.tree.as_ref().filter(|_| self.placement == Placement::Own)
    }

    fn take_down(&mut self) -> Result<(), GadgetError> {
        let unbound = self.unbind();
        for stop in self.stops.drain(..) {
            let _ = stop.write(1);
        }
        self.mounts.clear();
        let tree = self.tree.take().filter(|_| self.placement == Placement::Own);
        unbound.and(tree.map_or(Ok(()), |tree| tree.remove()))
    }
}

impl Drop for Gadget {
    fn drop(&mut self) {
        if let Err(error) = self.take_down() {
            tracing::error!(gadget = self.name, %error, "the gadget could not be removed");
        }
    }
}
