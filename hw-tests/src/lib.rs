//! Fixtures for tests that need a USB device port and the USB host it is plugged into.
//!
//! On the *virtual board* (`cargo xtask vm`) both ends are in one machine, so a test sees both: it serves images on the
//! device port and looks at them from the host. The pieces, from the board up:
//!
//! - [`board`]: is there a device port, and which; what is reported when there is none
//! - [`wait`], [`tool`]: bounded waiting, programs of the host
//! - [`image`]: images with known bytes
//! - [`host`], [`scsi`], [`raw_bot`], [`keyboard`]: what the host sees, by sysfs, SCSI commands, raw USB transfers, input events
//! - [`configfs`], [`kernel`], [`daemon`]: who serves: a gadget composed by hand, the kernel's `f_mass_storage`, `ringdrived`; its
//!   control [`socket`]
//! - [`store`]: keeps descriptors for the next daemon, as systemd does
//! - [`usbmon`]: the transfers between host and device
//! - [`nfs`], [`samba`]: file servers on the board, and a network that can be cut; [`liar`]: a web server that lies
//! - [`cdrom`]: what Linux makes of an optical drive
//! - [`rig`]: a set of drives served by one [`rig::Backend`] and found again on the host; what most tests start from
//!
//! The kernel's function is the foreign reference: a test that runs against it too shows that the test is right.

pub mod board;
pub mod cdrom;
pub mod configfs;
pub mod daemon;
pub mod host;
pub mod image;
pub mod kernel;
pub mod keyboard;
pub mod liar;
pub mod nfs;
pub mod raw_bot;
pub mod rig;
pub mod samba;
pub mod scsi;
pub mod socket;
pub mod store;
pub mod tool;
pub mod usbmon;
pub mod wait;
