//! Why a gadget could not be made, served or taken down: each error tells the cause and what to do about it.

use std::{io, path::PathBuf};

/// An infrastructure error of this room. Never a transfer's: those are [`super::endpoints::TransferError`].
#[derive(Debug, thiserror::Error)]
pub enum GadgetError {
    /// configfs is not mounted, or libcomposite is not loaded.
    #[error(
        "there is no {path}: the kernel's gadget support is not loaded, or configfs is not mounted; try \
         `modprobe libcomposite` and `mount -t configfs none /sys/kernel/config`"
    )]
    NoConfigfs {
        /// Where gadgets should be.
        path: PathBuf,
    },
    /// The kernel has no FunctionFS.
    #[error(
        "the kernel does not know FunctionFS; try `modprobe usb_f_fs`, or a kernel with CONFIG_USB_CONFIGFS_F_FS"
    )]
    NoFunctionFs,
    /// No USB device controller at all.
    #[error(
        "this machine has no USB device port that Linux can drive ({path} is empty); load the driver of its controller \
         (dwc2, dwc3, …) and set the port to device or OTG mode (on a Raspberry Pi: `dtoverlay=dwc2` in config.txt)"
    )]
    NoUdc {
        /// Where controllers are listed.
        path: PathBuf,
    },
    /// The controller that was asked for is not there.
    #[error("there is no USB device controller {wanted}; this machine has: {}", present.join(", "))]
    UnknownUdc {
        /// As configured.
        wanted: String,
        /// As listed by the kernel.
        present: Vec<String>,
    },
    /// The controller belongs to another gadget.
    #[error(
        "the USB device controller {udc} is in use by {holder}; stop that gadget, choose another controller, or serve as a \
         function of that gadget (mode = \"guest\")"
    )]
    UdcBusy {
        /// The controller.
        udc: String,
        /// Who has it, as far as the kernel tells.
        holder: String,
    },
    /// A live daemon has this gadget.
    #[error(
        "the gadget {name} is served by another ringdrived ({holder}); stop that one first, or use another name"
    )]
    InUse {
        /// The gadget.
        name: String,
        /// "process N", or that it is not known.
        holder: String,
    },
    /// A gadget of this name exists and is not one of ours.
    #[error(
        "the gadget {name} exists and has the function {function}, which ringdrive never makes; choose another name, or serve \
         as a function of that gadget (mode = \"guest\")"
    )]
    NotOurs {
        /// The gadget.
        name: String,
        /// What gave it away.
        function: String,
    },
    /// A name that cannot be a directory in configfs.
    #[error("{name:?} cannot be the name of a gadget or function: use 1 to 40 letters, digits, '-' and '_'")]
    Name {
        /// As given.
        name: String,
    },
    /// Not allowed to.
    #[error("no permission to {action} {path}; run as root, or give the service that right")]
    Permission {
        /// What was tried.
        action: &'static str,
        /// On what.
        path: PathBuf,
        /// The kernel's word.
        source: io::Error,
    },
    /// In guest mode: the composer has not made the function.
    #[error(
        "there is no FunctionFS function {name}; make functions/ffs.{name} in the gadget before starting ringdrived"
    )]
    NoFunction {
        /// NAME of `ffs.NAME`.
        name: String,
    },
    /// Somebody else serves this function.
    #[error(
        "the function {name} is already served by another process (its ep0 takes no descriptors); stop that one first"
    )]
    FunctionTaken {
        /// NAME of `ffs.NAME`.
        name: String,
    },
    /// Another gadget has a FunctionFS instance of this name.
    #[error(
        "another gadget has a FunctionFS function {name}, and these names are unique on a machine; choose another"
    )]
    FunctionName {
        /// NAME of `ffs.NAME`.
        name: String,
    },
    /// The interface's name does not fit.
    #[error(transparent)]
    InterfaceName(#[from] ffs_descriptors::InterfaceNameError),
    /// replug of a gadget that is not ours.
    #[error(
        "replug would take the whole gadget {name} off the bus, with the functions of others; it is not ours: ask its composer \
         to unbind and bind it"
    )]
    GuestReplug {
        /// The gadget.
        name: String,
    },
    /// What a predecessor has left is of no use.
    #[error("the gadget {name} that the last process served is off the bus, or was made anew since")]
    NotThere {
        /// The gadget, or the function.
        name: String,
    },
    /// Anything else, with what was tried.
    #[error("cannot {action} {path}: {source}; `dmesg` may tell more")]
    Io {
        /// What was tried.
        action: &'static str,
        /// On what.
        path: PathBuf,
        /// The kernel's word.
        source: io::Error,
    },
}

impl GadgetError {
    /// For `map_err`: `action` on `path` failed.
    pub(super) fn io<E: Into<io::Error>>(
        action: &'static str,
        path: impl Into<PathBuf>,
    ) -> impl FnOnce(E) -> Self {
        let path = path.into();
        move |error| {
            let source = error.into();
            match source.kind() {
                io::ErrorKind::PermissionDenied => Self::Permission { action, path, source },
                _ => Self::Io { action, path, source },
            }
        }
    }
}
