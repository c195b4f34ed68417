//! The daemon's configuration: TOML in, checked types out. Called once, by `ringdrived`, before anything is opened.
//!
//! What [`Config::parse`] lets through is right as far as a file alone can tell: names are unique and fit where they go,
//! lengths fit the INQUIRY fields, no key is unknown. Whether an image or a UDC exists is for the room that opens it.
//! `docs/configuration.md` lists every key; a test keeps it, the example beside it and this file the same.

mod area;
mod drive;
mod source;
mod url;

use std::fs::File;
use std::io::{self, Read};
use std::num::NonZeroU16;
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::time::Duration;

use serde::Deserialize;
use source::Source;
use toml::Spanned;

pub use self::url::CACHE_DEFAULT;
use self::{area::RawArea, drive::RawDrive, url::RawUrl};

use crate::{
    bot::StallPolicy,
    gadget::{EngineKind, Speed},
    media::{
        overlay::Place,
        qcow2::Manner,
        url::{CacheOptions, Secret},
    },
    schedule::Schedule,
    scsi::Kind,
    storage::Area,
    units::BlockSize,
};

/// Functions in one gadget. Each costs two endpoints, and device controllers rarely have more than fifteen.
pub const FUNCTIONS_MAX: usize = 8;
/// Drives in one function: a Bulk-Only Transport LUN has four bits (BOT 1.0 §5.1).
pub const DRIVES_PER_FUNCTION_MAX: usize = 16;
/// Where the control socket stands unless the file says otherwise.
pub const SOCKET_DEFAULT: &str = "/run/ringdrive/control.sock";
/// Where `ringdrived` looks for its file unless told otherwise.
pub const CONFIG_DEFAULT: &str = "/etc/ringdrive/ringdrived.toml";

const FILE_BYTES_MAX: u64 = 1 << 20;
const SERIAL_LEN_MAX: usize = 64;
/// `sun_path` holds 108 bytes, the last one NUL.
const SOCKET_PATH_LEN_MAX: usize = 107;

/// A checked configuration.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Config {
    /// The control socket.
    pub control: Control,
    /// The gadget that the functions live in.
    pub gadget: Gadget,
    /// Images behind URLs.
    pub url: CacheOptions,
    /// File servers to mount, at most [`crate::storage::AREAS_MAX`].
    pub areas: Vec<Area>,
    /// 1 to [`FUNCTIONS_MAX`] functions, each with 1 to [`DRIVES_PER_FUNCTION_MAX`] drives.
    pub functions: Vec<Function>,
}

/// `[control]`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Control {
    /// Absolute, short enough for a socket address.
    pub socket: PathBuf,
    /// Members may connect, beside root and the daemon's own user. Not looked up yet.
    pub group: Option<String>,
}

/// `[gadget]`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Gadget {
    /// We make the gadget and bind it.
    Own(OwnGadget),
    /// Somebody else composes a gadget with our `ffs.NAME` functions in it.
    Guest,
}

/// What the host sees of a gadget of ours.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct OwnGadget {
    /// Directory name under `usb_gadget/`.
    pub name: String,
    /// A name in `/sys/class/udc`; `None`: the first that no gadget has.
    pub udc: Option<String>,
    /// idVendor.
    pub vendor_id: NonZeroU16,
    /// idProduct.
    pub product_id: u16,
    /// bcdDevice, binary-coded decimal.
    pub device_release: u16,
    /// iManufacturer.
    pub manufacturer: String,
    /// iProduct.
    pub product: String,
    /// iSerialNumber; [`machine_serial`] where the file has none.
    pub serial: String,
    /// The highest speed to offer.
    pub max_speed: Speed,
    /// bMaxPower, in mA.
    pub max_power_ma: u16,
}

/// `[[function]]`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Function {
    /// The NAME of `ffs.NAME`.
    pub name: String,
    /// How endpoints are driven.
    pub engine: EngineKind,
    /// Whether the bulk-in endpoint may be halted.
    pub stall: StallPolicy,
    /// Where FunctionFS is mounted, or is to be; `None`: a place of our own.
    pub mount: Option<PathBuf>,
    /// Of the threads that move its bytes.
    pub schedule: Schedule,
    /// In LUN order.
    pub drives: Vec<Drive>,
}

/// What is inserted at start.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum StartImage {
    /// A file or a block device: absolute.
    Path(PathBuf),
    /// A URL that makes sense.
    Url(Secret),
}

/// `[[function.drive]]`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Drive {
    /// Unique among all drives; never only digits, because a number is an index.
    pub name: String,
    /// What the drive is to the host.
    pub kind: Kind,
    /// Inserted at start.
    pub image: Option<StartImage>,
    /// Whether the host may write to images inserted without a word about it. Never true of an optical drive.
    pub rw: bool,
    /// Where the host's writes go, if not into the image.
    pub overlay: Option<Place>,
    /// How the image's file is taken.
    pub manner: Manner,
    /// Bytes in a block while it is a disk: 512 or 4096.
    pub block_size: BlockSize,
    /// How long an operation on the image may take before its command is given up: 1 to 25 seconds.
    pub deadline: Duration,
    /// INQUIRY T10 vendor identification: at most 8 printable ASCII characters.
    pub vendor: String,
    /// INQUIRY product identification: at most 16.
    pub product: String,
    /// INQUIRY product revision level: at most 4.
    pub revision: String,
    /// Unit serial number (VPD page 80h); derived from the gadget's where the file has none.
    pub serial: String,
}

/// Why there is no configuration.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// The file cannot be read.
    #[error(
        "cannot read the configuration {path}; try `ringdrived --config FILE` with a file that you may read"
    )]
    Read {
        /// The file.
        path: PathBuf,
        /// What the kernel said.
        source: io::Error,
    },
    /// The file is longer than any configuration.
    #[error(
        "the configuration {path} is longer than 1 MiB; try another file, this one is not a configuration"
    )]
    TooLong {
        /// The file.
        path: PathBuf,
    },
    /// A mistake in the text.
    #[error("{origin}:{line}:{column}: {cause}; {cure}")]
    Invalid {
        /// File name, or what stands for it.
        origin: String,
        /// From 1.
        line: usize,
        /// In characters, from 1.
        column: usize,
        /// What is wrong.
        cause: String,
        /// What to write instead.
        cure: String,
    },
}

impl Config {
    /// Reads and checks `path`.
    ///
    /// # Errors
    /// [`ConfigError::Read`] or [`ConfigError::TooLong`] about the file, [`ConfigError::Invalid`] about its first mistake.
    pub fn load(path: &Path) -> Result<Self, ConfigError> {
        let read_error = |source| ConfigError::Read { path: path.to_owned(), source };
        let mut text = String::new();
        let file = File::open(path).map_err(read_error)?;
        file.take(FILE_BYTES_MAX + 1).read_to_string(&mut text).map_err(read_error)?;
        if u64::try_from(text.len()).is_ok_and(|len| len > FILE_BYTES_MAX) {
            return Err(ConfigError::TooLong { path: path.to_owned() });
        }
        Self::parse(&text, &path.display().to_string())
    }

    /// Checks `text`; `origin` names it in errors.
    ///
    /// # Errors
    /// [`ConfigError::Invalid`] about the first mistake.
    pub fn parse(text: &str, origin: &str) -> Result<Self, ConfigError> {
        let source = Source { text, origin };
        let raw: RawConfig = toml::from_str(text).map_err(|error| source.syntax(&error))?;
        let control = raw.control.check(&source)?;
        let gadget = raw.gadget.check(&source)?;
        let url = raw.url.check(&source)?;
        let areas = area::check_areas(raw.area, &source)?;
        let serial = match &gadget {
            Gadget::Own(own) => own.serial.clone(),
            Gadget::Guest => machine_serial(),
        };
        let functions = match raw.function {
            None => vec![default_function(&serial)],
            Some(raw) => check_functions(raw, &source, &serial)?,
        };
        Ok(Self { control, gadget, url, areas, functions })
    }
}

/// Twelve hexadecimal digits, as BOT 1.0 §4.1.1 asks, that stay with this machine: a digest of `/etc/machine-id`, which
/// itself is not for strangers.
pub fn machine_serial() -> String {
    let id = std::fs::read("/etc/machine-id").unwrap_or_default();
    let digest = digest(b"ringdrive".iter().chain(&id).copied());
    format!("{:012X}", digest >> 16)
}

/// FNV-1a: stable over releases, which the standard library's hasher does not promise.
pub fn digest(bytes: impl Iterator<Item = u8>) -> u64 {
    bytes
        .fold(0xcbf2_9ce4_8422_2325_u64, |hash, byte| (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3))
}

fn default_function(serial: &str) -> Function {
    Function {
        name: "usb0".to_owned(),
        engine: EngineKind::default(),
        stall: StallPolicy::default(),
        mount: None,
        schedule: Schedule::default(),
        drives: vec![
            Drive::usual("cd", Kind::Optical, serial, 0),
            Drive::usual("flash", Kind::Disk, serial, 1),
        ],
    }
}

// The file as it is written. A key is here, in docs/configuration.md and in docs/ringdrived.toml, or nowhere.

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct RawConfig {
    #[serde(default)]
    control: RawControl,
    #[serde(default)]
    gadget: RawGadget,
    #[serde(default)]
    url: RawUrl,
    #[serde(default)]
    area: Vec<Spanned<RawArea>>,
    function: Option<Vec<Spanned<RawFunction>>>,
}

#[derive(Deserialize, Default)]
#[serde(deny_unknown_fields)]
struct RawControl {
    socket: Option<Spanned<String>>,
    group: Option<Spanned<String>>,
}

#[derive(Clone, Copy, Deserialize, Default, PartialEq, Eq)]
#[serde(rename_all = "lowercase")]
enum Mode {
    #[default]
    Own,
    Guest,
}

#[derive(Deserialize, Default)]
#[serde(deny_unknown_fields)]
struct RawGadget {
    #[serde(default)]
    mode: Mode,
    name: Option<Spanned<String>>,
    udc: Option<Spanned<String>>,
    vendor_id: Option<Spanned<u16>>,
    product_id: Option<Spanned<u16>>,
    device_release: Option<Spanned<u16>>,
    manufacturer: Option<Spanned<String>>,
    product: Option<Spanned<String>>,
    serial: Option<Spanned<String>>,
    max_speed: Option<Spanned<Speed>>,
    max_power_ma: Option<Spanned<u16>>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct RawFunction {
    name: Spanned<String>,
    #[serde(default)]
    engine: EngineKind,
    #[serde(default)]
    stall: StallPolicy,
    mount: Option<Spanned<String>>,
    realtime_priority: Option<Spanned<u8>>,
    cpus: Option<Spanned<Vec<usize>>>,
    #[serde(default)]
    drive: Vec<Spanned<RawDrive>>,
}

impl RawControl {
    fn check(self, source: &Source<'_>) -> Result<Control, ConfigError> {
        let socket = match self.socket {
            None => PathBuf::from(SOCKET_DEFAULT),
            Some(value) => {
                let span = value.span();
                let path = source.absolute(value, "socket")?;
                if path.as_os_str().len() > SOCKET_PATH_LEN_MAX {
                    return Err(source.invalid(
                        span,
                        format!("the socket's path is longer than the {SOCKET_PATH_LEN_MAX} bytes of a socket address"),
                        format!("try a shorter one, such as {SOCKET_DEFAULT}"),
                    ));
                }
                path
            }
        };
        let group = self.group.map(|value| source.name(value, "group")).transpose()?;
        Ok(Control { socket, group })
    }
}

impl RawGadget {
    fn check(self, source: &Source<'_>) -> Result<Gadget, ConfigError> {
        if self.mode == Mode::Guest {
            return self.check_guest(source);
        }
        let string = |value: Option<Spanned<String>>, key, default: &str| {
            value.map_or_else(|| Ok(default.to_owned()), |value| source.usb_string(value, key))
        };
        let vendor_id = match self.vendor_id {
            None => NonZeroU16::MIN.saturating_add(0x1d6a),
            Some(value) => NonZeroU16::new(*value.get_ref()).ok_or_else(|| {
                source.invalid(value.span(), "vendor_id is 0", "try 0x1d6b, the Linux Foundation's")
            })?,
        };
        if let Some(value) = &self.device_release
            && (0..4).any(|digit| (value.get_ref() >> (digit * 4)) & 0xf > 9)
        {
            return Err(source.invalid(
                value.span(),
                "device_release is not binary-coded decimal",
                "write it in hexadecimal with digits 0 to 9 only: 0x0100 is release 1.00",
            ));
        }
        if let Some(value) = &self.max_power_ma
            && !(2..=500).contains(value.get_ref())
        {
            return Err(source.invalid(value.span(), "max_power_ma is not within 2 and 500", "try 250"));
        }
        Ok(Gadget::Own(OwnGadget {
            name: self.name.map_or_else(
                || Ok("ringdrive".to_owned()),
                |value| source.gadget_name(value, "gadget's name"),
            )?,
            udc: self.udc.map(|value| source.udc(value)).transpose()?,
            vendor_id,
            product_id: self.product_id.map_or(0x0104, Spanned::into_inner),
            device_release: self.device_release.map_or(0x0100, Spanned::into_inner),
            manufacturer: string(self.manufacturer, "manufacturer", "ringdrive")?,
            product: string(self.product, "product", "Virtual USB drives")?,
            serial: string(self.serial, "serial", &machine_serial())?,
            max_speed: self.max_speed.map_or(Speed::Super, Spanned::into_inner),
            max_power_ma: self.max_power_ma.map_or(250, Spanned::into_inner),
        }))
    }

    /// Refuses what only whoever composes the gadget can decide, lest somebody waits for an effect.
    fn check_guest(self, source: &Source<'_>) -> Result<Gadget, ConfigError> {
        fn at<T>(key: &'static str, value: Option<&Spanned<T>>) -> Option<(&'static str, Range<usize>)> {
            value.map(|value| (key, value.span()))
        }
        let idle = [
            at("name", self.name.as_ref()),
            at("udc", self.udc.as_ref()),
            at("vendor_id", self.vendor_id.as_ref()),
            at("product_id", self.product_id.as_ref()),
            at("device_release", self.device_release.as_ref()),
            at("manufacturer", self.manufacturer.as_ref()),
            at("product", self.product.as_ref()),
            at("serial", self.serial.as_ref()),
            at("max_speed", self.max_speed.as_ref()),
            at("max_power_ma", self.max_power_ma.as_ref()),
        ];
        match idle.into_iter().flatten().min_by_key(|(_, span)| span.start) {
            None => Ok(Gadget::Guest),
            Some((key, span)) => Err(source.invalid(
                span,
                format!("{key} has no effect on a gadget that somebody else composes"),
                "remove it, or set mode = \"own\"",
            )),
        }
    }
}

fn check_functions(
    raw: Vec<Spanned<RawFunction>>,
    source: &Source<'_>,
    serial: &str,
) -> Result<Vec<Function>, ConfigError> {
    let mut functions: Vec<Function> = Vec::new();
    let mut drives = 0_usize;
    for function in raw {
        let span = function.span();
        let RawFunction { name, engine, stall, mount, realtime_priority, cpus, drive } =
            function.into_inner();
        if functions.len() == FUNCTIONS_MAX {
            return Err(source.invalid(
                span,
                format!("more than {FUNCTIONS_MAX} functions"),
                "give a function several drives instead: they share its two endpoints",
            ));
        }
        let name_span = name.span();
        let name = source.gadget_name(name, "function's name")?;
        if functions.iter().any(|function| function.name == name) {
            return Err(source.invalid(
                name_span,
                format!("two functions are named {name:?}"),
                "give each its own name",
            ));
        }
        if drive.is_empty() {
            return Err(source.invalid(
                span,
                format!("function {name:?} has no drive"),
                "add a [[function.drive]] below it",
            ));
        }
        let mount = mount.map(|value| source.absolute(value, "mount")).transpose()?;
        let schedule = source.schedule(realtime_priority.as_ref(), cpus.as_ref())?;
        let mut function = Function { name, engine, stall, mount, schedule, drives: Vec::new() };
        for drive in drive {
            if function.drives.len() == DRIVES_PER_FUNCTION_MAX {
                return Err(source.invalid(
                    drive.span(),
                    format!("more than {DRIVES_PER_FUNCTION_MAX} drives in function {:?}", function.name),
                    "put the rest into another [[function]]",
                ));
            }
            let (name_span, drive) = drive.into_inner().check(source, serial, drives)?;
            let mut others = functions.iter().flat_map(|function| &function.drives).chain(&function.drives);
            if others.any(|other| other.name == drive.name) {
                return Err(source.invalid(
                    name_span,
                    format!("two drives are named {:?}", drive.name),
                    "give each its own name; names are shared by all functions",
                ));
            }
            function.drives.push(drive);
            drives += 1;
        }
        functions.push(function);
    }
    if functions.is_empty() {
        return Err(source.invalid(
            0..0,
            "the list of functions is empty",
            "remove `function = []` to get the usual two drives",
        ));
    }
    Ok(functions)
}

#[cfg(test)]
mod tests;
