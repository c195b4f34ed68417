//! Optical commands (MMC-6): one finished session with one data track.

mod configuration;
mod disc;
mod events;
mod toc;

pub(super) use configuration::get_configuration;
pub(super) use disc::{mechanism_status, read_cd, read_disc_information, read_track_information};
pub(super) use events::get_event_status;
pub(super) use toc::read_toc;
