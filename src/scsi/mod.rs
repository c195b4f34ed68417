//! The SCSI target without I/O: several units (LUNs), each a disk or an optical drive with removable media.
//!
//! Called by the drive, which feeds it CDBs in the order the host sent them and carries out what it answers. Nothing in here
//! knows USB, files or clocks.
//!
//! ```text
//!  cdb ──► Target::execute ──► Reply::Status      done, no data
//!                          ──► Reply::Data        done, response bytes for the host
//!                          ──► Reply::Media       the drive moves blocks ──► Target::complete   ──► Status
//!                          ──► Reply::Parameters  the drive reads a list ──► Target::parameters ──► Status
//!                                                                                               or Media again
//! ```
//!
//! Invariants:
//! - every command that the opcode table does not list is refused with INVALID COMMAND OPERATION CODE; the table is the
//!   only place that knows lengths, kinds and preconditions;
//! - a CHECK CONDITION leaves its sense data in the unit until the next command: Bulk-Only Transport has no autosense;
//! - a [`Pending`] is answered exactly once, by value;
//! - no byte past the allocation length is ever reported, and nothing is allocated for a command.
#![deny(clippy::as_conversions, clippy::indexing_slicing, clippy::arithmetic_side_effects)]

mod attention;
mod blocks;
mod cdb;
mod diagnostic;
mod format;
mod inquiry;
mod kept;
pub mod limits;
mod media_op;
mod mode;
mod mode_select;
mod opcodes;
mod optical;
mod pending;
mod provisioning;
mod removable;
mod report;
mod reservation;
mod response;
pub mod sense;
mod target;
mod unit;
mod vpd;

pub use kept::{KeptUnit, NotUnderstood};
pub use media_op::{Compound, MediaOp};
pub use opcodes::{Listed, listed, name_of, opcode_name};
pub use optical::{SECTOR_LEN, SectorPart};
pub use pending::{Pending, PendingParameters};
pub use provisioning::{LBA_STATUS_LEN, UnmapList, lba_status};
pub use sense::{FieldPointer, Sense, SenseKey};
pub use target::{LUNS_MAX, ListReply, PARAMETERS_LEN_MAX, RESPONSE_LEN_MAX, Reply, Status, Target};
pub use unit::{Identity, InvalidIdentity, Kind, Medium, Occupied, Unit};

#[cfg(test)]
mod tests;
