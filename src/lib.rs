//! ringdrive makes a Linux board's USB device port appear as USB drives.
//!
//! The way of a byte: [`gadget`] brings a CBW from the host, [`bot`] opens a command, [`scsi`] says what it means, [`media`]
//! says where the bytes are, [`ring`] moves them, and [`drive`] joins the five. [`control`] is how people talk to it.
//! Each room knows only what `docs/architecture.md` allows.

pub mod bot;
pub mod cli;
pub mod config;
pub mod control;
pub mod drive;
pub mod gadget;
pub mod media;
mod mounts;
pub mod ring;
pub mod schedule;
pub mod scsi;
pub mod storage;
pub mod units;
