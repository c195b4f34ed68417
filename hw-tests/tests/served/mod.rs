//! A gadget of one Bulk-Only function, served by ringdrive's gadget room without a drive behind it, and its host.
#![allow(dead_code, reason = "each test binary uses a part")]

use std::{
    fs,
    path::{Path, PathBuf},
    sync::mpsc::{self, Receiver},
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail, ensure};
use nusb::{Device, Interface, InterfaceInfo, MaybeFuture};
use ringdrive::gadget::{
    BusEvent, Engine, EngineKind, Ep0Thread, FunctionOptions, FunctionParts, Gadget, GadgetOptions,
    Placement, Speed,
};
use ringdrive::schedule::Schedule;

pub(crate) const NAME: &str = "ringdrive-hwtest";
pub(crate) const FUNCTION: &str = "rdhwtest";
pub(crate) const LAST_LUN: u8 = 3;
const VENDOR: u16 = 0x1d6b;
const PRODUCT: u16 = 0xfffe;

/// Longer than anything takes on a slow, busy virtual board.
pub(crate) const PATIENCE: Duration = Duration::from_secs(20);

/// Why the tests cannot run here, if so.
pub(crate) fn missing() -> Option<&'static str> {
    match std::env::var_os("RINGDRIVE_BOARD") {
        Some(_) => None,
        None => Some("not on a board; run with `cargo xtask vm -- …`"),
    }
}

pub(crate) fn gadget_dir() -> PathBuf {
    Path::new("/sys/kernel/config/usb_gadget").join(NAME)
}

pub(crate) fn runtime_dir() -> PathBuf {
    PathBuf::from("/run/ringdrive-hwtest")
}

pub(crate) fn mount_dir() -> PathBuf {
    runtime_dir().join("ffs").join(FUNCTION)
}

pub(crate) fn options(engine: EngineKind) -> GadgetOptions {
    GadgetOptions {
        name: NAME.to_owned(),
        vendor_id: VENDOR,
        product_id: PRODUCT,
        device_release: 0x0100,
        manufacturer: "ringdrive".to_owned(),
        product: "endpoint tests".to_owned(),
        serial: "0123456789AB".to_owned(),
        max_speed: Speed::Super,
        max_power_ma: 250,
        udc: None,
        functions: vec![FunctionOptions {
            name: FUNCTION.to_owned(),
            engine,
            schedule: Schedule::default(),
            last_lun: LAST_LUN,
            interface_name: "Bulk-Only".to_owned(),
            mount: None,
        }],
        runtime_dir: runtime_dir(),
    }
}

/// The device's side.
pub(crate) struct Served {
    pub(crate) events: Receiver<BusEvent>,
    pub(crate) ep0: Ep0Thread,
    pub(crate) engine: Engine,
    pub(crate) gadget: Gadget,
}

impl Served {
    /// Made and on the bus.
    pub(crate) fn start(kind: EngineKind) -> Result<Self> {
        leave_to_us()?;
        let (gadget, parts) = Gadget::create(&options(kind), Placement::Own)?;
        let served = Self::of(gadget, parts)?;
        served.gadget.bind()?;
        Ok(served)
    }

    /// Its control pipe answered.
    pub(crate) fn of(gadget: Gadget, parts: Vec<FunctionParts>) -> Result<Self> {
        let parts = parts.into_iter().next().context("no function")?;
        let (notify, events) = mpsc::channel();
        let ep0 = parts.ep0.start(Box::new(move |event| {
            let _ = notify.send(event);
        }))?;
        Ok(Self { events, ep0, engine: parts.endpoints, gadget })
    }

    /// As [`Served::start`], with the host ready to talk.
    pub(crate) fn enabled(kind: EngineKind) -> Result<(Self, Host)> {
        let served = Self::start(kind)?;
        let host = Host::find()?;
        served.await_enabled()?;
        Ok((served, host))
    }

    /// The speed and packet size of the ENABLE that comes last before a pause.
    pub(crate) fn await_enabled(&self) -> Result<(Speed, u16)> {
        self.event("ENABLE", |event| match event {
            BusEvent::Enabled { speed, max_packet } => Some((speed, max_packet)),
            _ => None,
        })
    }

    /// The first event that `wanted` takes; what comes before is dropped.
    pub(crate) fn event<T>(&self, what: &str, wanted: impl Fn(BusEvent) -> Option<T>) -> Result<T> {
        let deadline = Instant::now() + PATIENCE;
        loop {
            let left = deadline.saturating_duration_since(Instant::now());
            let event = self.events.recv_timeout(left).with_context(|| format!("no {what} from ep0"))?;
            if let Some(found) = wanted(event) {
                return Ok(found);
            }
        }
    }
}

/// The host's usb-storage keeps its hands off our test device.
fn leave_to_us() -> Result<()> {
    let quirks = "/sys/module/usb_storage/parameters/quirks";
    if Path::new(quirks).exists() {
        fs::write(quirks, format!("{VENDOR:04x}:{PRODUCT:04x}:i"))?;
    }
    Ok(())
}

/// The host's side.
pub(crate) struct Host {
    pub(crate) sysfs: PathBuf,
    pub(crate) device: Device,
    pub(crate) interface: Interface,
}

impl Host {
    /// Waits until the host has configured our device, and claims its interface.
    pub(crate) fn find() -> Result<Self> {
        Self::find_with(|_| true)
    }

    /// As [`Host::find`], of the interfaces the first that is `wanted`.
    pub(crate) fn find_with(wanted: impl Fn(&InterfaceInfo) -> bool) -> Result<Self> {
        let deadline = Instant::now() + PATIENCE;
        let (info, number) = loop {
            let mut all = nusb::list_devices().wait()?;
            let ours = all.find(|found| (found.vendor_id(), found.product_id()) == (VENDOR, PRODUCT));
            if let Some(info) = ours {
                let number =
                    info.interfaces().find(|found| wanted(found)).map(InterfaceInfo::interface_number);
                if let Some(number) = number {
                    break (info, number);
                }
            }
            ensure!(Instant::now() < deadline, "the host has not found the device");
            thread::sleep(Duration::from_millis(20));
        };
        let device = info.open().wait().context("opening the device")?;
        let interface = device.detach_and_claim_interface(number).wait().context("claiming its interface")?;
        Ok(Self { sysfs: info.sysfs_path().to_owned(), device, interface })
    }

    pub(crate) fn attribute(&self, below: &str) -> Result<String> {
        let path = self.sysfs.join(below);
        Ok(fs::read_to_string(&path).with_context(|| path.display().to_string())?.trim().to_owned())
    }
}

/// Waits until `so`, polling: for what the kernel tells nobody.
pub(crate) fn eventually(what: &str, within: Duration, so: impl Fn() -> bool) -> Result<()> {
    let deadline = Instant::now() + within;
    while !so() {
        if Instant::now() > deadline {
            bail!("not within {within:?}: {what}");
        }
        thread::sleep(Duration::from_millis(10));
    }
    Ok(())
}

/// Whether the gadget has a controller.
pub(crate) fn is_bound() -> bool {
    fs::read_to_string(gadget_dir().join("UDC")).is_ok_and(|udc| !udc.trim().is_empty())
}

/// Whether a FunctionFS instance of ours is mounted.
pub(crate) fn is_mounted() -> bool {
    fs::read_to_string("/proc/self/mountinfo")
        .is_ok_and(|table| table.contains(&format!("functionfs {FUNCTION}")))
}
