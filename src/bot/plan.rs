//! The thirteen cases (BOT 1.0 §6.7): what becomes of a data phase when host and device disagree about it.
//!
//! | host \ device | Dn | Di | Do |
//! |---|---|---|---|
//! | Hn | 1: no data | 2: phase error | 3: phase error |
//! | Hi | 4: nothing sent | 5 `>`, 6 `=`: D sent; 7 `<`: H sent, phase error | 8: nothing sent, phase error |
//! | Ho | 9: H dropped | 10: H dropped, phase error | 11 `>`, 12 `=`: D kept; 13 `<`: H dropped, phase error |
//!
//! OUT data that nobody wants is received and dropped instead of stalling OUT: §6.7.3 allows both, and a halt on OUT races
//! with data that is on its way on every controller.

use super::wire::Expected;

/// What the device would move for a command, in bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Intent {
    /// Dn.
    None,
    /// Di: device to host. `In(0)` is `None`.
    In(u64),
    /// Do: host to device. `Out(0)` is `None`.
    Out(u64),
}

/// The data phase to perform.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DataPhase {
    /// Straight to the CSW.
    None,
    /// Send this, then end the phase as [`Ending`](super::Ending) says.
    In {
        /// Bytes; at most what the host expects.
        send: u32,
    },
    /// Read exactly `receive` bytes.
    Out {
        /// Bytes that the host is going to send.
        receive: u32,
        /// Only this many belong to the command, from the start; the rest is dropped.
        keep: u32,
    },
}

/// How a command goes on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Plan {
    /// The data phase to perform.
    pub phase: DataPhase,
    /// `false`: phase error; the command must not take effect.
    pub execute: bool,
}

/// The data phase, and whether the CSW says phase error. Case 7 executes (its first H bytes are sent) and still is one.
pub(super) fn thirteen_cases(expected: Expected, intent: Intent) -> (Plan, PhaseError) {
    use PhaseError::{No, Yes};
    let run = |phase, error| (Plan { phase, execute: true }, error);
    let refuse = |phase| (Plan { phase, execute: false }, Yes);
    let fits = |device: u64, host: u32| u32::try_from(device).ok().filter(|device| *device <= host);
    let drop_all = |host| DataPhase::Out { receive: host, keep: 0 };
    match (expected, intent) {
        (Expected::None, Intent::None | Intent::In(0) | Intent::Out(0)) => run(DataPhase::None, No), // 1
        (Expected::None, Intent::In(_) | Intent::Out(_)) => refuse(DataPhase::None),                 // 2, 3
        (Expected::In(_), Intent::None | Intent::Out(0)) => run(DataPhase::In { send: 0 }, No),      // 4
        (Expected::In(host), Intent::In(device)) => match fits(device, host) {
            Some(device) => run(DataPhase::In { send: device }, No), // 4, 5, 6
            None => run(DataPhase::In { send: host }, Yes),          // 7
        },
        (Expected::In(_), Intent::Out(_)) => refuse(DataPhase::In { send: 0 }), // 8
        (Expected::Out(host), Intent::None | Intent::In(0)) => run(drop_all(host), No), // 9
        (Expected::Out(host), Intent::In(_)) => refuse(drop_all(host)),         // 10
        (Expected::Out(host), Intent::Out(device)) => match fits(device, host) {
            Some(device) => run(DataPhase::Out { receive: host, keep: device }, No), // 9, 11, 12
            None => refuse(drop_all(host)),                                          // 13
        },
    }
}

/// Whether the CSW must say phase error.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum PhaseError {
    No,
    Yes,
}
