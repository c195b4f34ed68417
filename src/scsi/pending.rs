//! Tokens for commands that wait for the drive. Each must be handed back; one that is dropped has lost a command.

use super::reservation::Action;

/// A command waits for the medium. Hand it to [`super::Target::complete`] or [`super::Target::abandon`].
///
/// # Panics
/// Dropping it panics where debug assertions are on, and is logged as an error elsewhere.
#[must_use = "the host waits for the answer of this command"]
#[derive(Debug)]
pub struct Pending {
    pub(super) lun: u8,
    pub(super) effect: Effect,
    bomb: Bomb,
}

/// A command waits for its parameter list. Hand it to [`super::Target::parameters`] or
/// [`super::Target::abandon_parameters`].
///
/// # Panics
/// As [`Pending`].
#[must_use = "the host waits for the answer of this command"]
#[derive(Debug)]
pub struct PendingParameters {
    pub(super) lun: u8,
    pub(super) list: List,
    bomb: Bomb,
}

/// What a completed command does to its unit.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Effect {
    /// Nothing.
    None,
    /// The medium leaves, the tray opens.
    Unload,
    /// The tray closes; without a medium the unit is not ready.
    Load,
}

/// Which parameter list is awaited.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum List {
    /// MODE SELECT(6).
    ModeSelect6,
    /// MODE SELECT(10).
    ModeSelect10,
    /// FORMAT UNIT.
    Format {
        /// Whether its header is the long one.
        long: bool,
    },
    /// PERSISTENT RESERVE OUT.
    Reservation(Action),
    /// SET STREAMING.
    Streaming,
}

impl Pending {
    pub(super) fn new(lun: u8, effect: Effect) -> Self {
        Self { lun, effect, bomb: Bomb { lun, armed: true } }
    }

    pub(super) fn disarm(mut self) {
        self.bomb.armed = false;
    }
}

impl PendingParameters {
    pub(super) fn new(lun: u8, list: List) -> Self {
        Self { lun, list, bomb: Bomb { lun, armed: true } }
    }

    pub(super) fn disarm(mut self) {
        self.bomb.armed = false;
    }
}

#[derive(Debug)]
struct Bomb {
    lun: u8,
    armed: bool,
}

impl Drop for Bomb {
    fn drop(&mut self) {
        if !self.armed {
            return;
        }
        if cfg!(debug_assertions) && !std::thread::panicking() {
            panic!("a command of LUN {} was dropped unanswered", self.lun);
        }
        tracing::error!(lun = self.lun, "a command was dropped unanswered");
    }
}
