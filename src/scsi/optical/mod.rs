//! Optical commands (MMC-6): one finished session with one data track.
//!
//! | file | what |
//! |---|---|
//! | `profile` | what a medium is taken for |
//! | `configuration` | GET CONFIGURATION |
//! | `disc` | disc and track information, the mechanism, the buffer |
//! | `structure` | READ DISC STRUCTURE |
//! | `toc` | READ TOC/PMA/ATIP |
//! | `read_cd`, `sector` | READ CD and what belongs to it; the bytes of a whole CD sector |
//! | `sub_channel` | READ SUB-CHANNEL and READ HEADER, which name a position |
//! | `performance` | GET PERFORMANCE, SET CD SPEED, SET STREAMING |
//! | `pages` | mode pages that only optical units have |
//! | `events` | GET EVENT STATUS NOTIFICATION |

mod configuration;
mod disc;
mod events;
mod msf;
pub(super) mod pages;
mod performance;
mod profile;
mod read_cd;
mod sector;
mod structure;
mod sub_channel;
mod toc;

pub(super) use configuration::get_configuration;
pub(super) use disc::{
    mechanism_status, read_buffer_capacity, read_disc_information, read_track_information, seek,
};
pub(super) use events::get_event_status;
pub(super) use performance::{accept_streaming, get_performance, set_cd_speed, set_streaming};
pub(super) use read_cd::{read_cd, read_cd_msf};
pub use sector::{SECTOR_LEN, SectorPart};
pub(super) use structure::read_disc_structure;
pub(super) use sub_channel::{read_header, read_sub_channel};
pub(super) use toc::read_toc;
