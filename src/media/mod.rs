//! Where the bytes of an image are.
//!
//! A [`Medium`] does not read or write: it *maps* a run of bytes to an [`Extent`], and the ring is the only mover. The drive
//! loop calls [`Medium::map`] for each piece of a command and moves what it is told; sources and layers (overlay, fault
//! injection) are then only different answers to `map`.
//!
//! [`Image`] is the source that every machine has: a regular file or a block device. [`url`] has those behind web servers, and
//! [`compressed`] expands those that are compressed, and [`qcow2`] finds the disk in a qcow2 file. [`overlay`] is a layer that takes the host's writes away from its image. This
//! room knows nothing of SCSI: what cannot be had is a [`FaultKind`], and the drive turns it into sense data in one place.

mod bell;
pub mod compressed;
mod error;
mod extent;
mod fault;
mod image;
#[cfg(test)]
mod judge;
mod last_stores;
pub mod overlay;
pub mod qcow2;
pub mod url;

pub use self::{
    error::{MediaError, MediaErrorKind, MediaOp},
    extent::{Allocation, Extent, Medium, Residence, Standing, Store, Waker, Watch},
    fault::{FaultKind, SourceState},
    image::{Access, Identity, Image},
    last_stores::await_last_stores,
};
