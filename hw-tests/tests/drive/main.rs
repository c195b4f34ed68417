//! Drives end to end on a board: what the host sees of them, whoever serves.
//!
//! Each [`Case`] runs once for each backend that it is meant for, and is named after it: `aio` and `sync` are `ringdrived`
//! with that endpoint engine, `kernel` is `f_mass_storage`, against which the case itself is checked. Off a board all are
//! reported as ignored, with the reason.
//!
//! What is about the host, the transport or the link runs at both speeds; what is about images, servers and clients on
//! the virtual board only at super speed, because the link makes no difference to it and the time is better spent.

mod areas;
mod changed;
mod clients;
mod conformance;
mod disks;
mod durable;
mod eject;
mod enumeration;
mod events;
mod filesystem;
mod hang;
mod integrity;
mod killed;
mod lies;
mod network;
mod opcodes;
mod optical;
mod overlay;
mod qcow2;
mod refusals;
mod reset;
mod stats;
mod takeover;
mod thirteen;
mod tools;
mod trim;
mod unplug;
mod urls;

use std::process::ExitCode;

use anyhow::{Context, Result};
use hw_tests::board::Board;
use hw_tests::rig::Backend;
use libtest_mimic::{Arguments, Completion, Trial};

/// A test, and who must pass it.
pub(crate) struct Case {
    /// A sentence.
    pub(crate) name: &'static str,
    pub(crate) on: &'static [Backend],
    pub(crate) run: fn(&Board, Backend) -> Result<()>,
}

/// `ringdrived` with both engines, and the reference.
pub(crate) const ALL: &[Backend] = &[Backend::Kernel, Backend::Aio, Backend::Sync];
/// `ringdrived` with both engines.
pub(crate) const ENGINES: &[Backend] = &[Backend::Aio, Backend::Sync];
/// `ringdrived`, where the engine makes no difference.
pub(crate) const DAEMON: &[Backend] = &[Backend::Aio];
/// As [`DAEMON`], and the reference.
pub(crate) const DAEMON_AND_KERNEL: &[Backend] = &[Backend::Kernel, Backend::Aio];

fn main() -> ExitCode {
    let mut arguments = Arguments::from_args();
    // All use the one device port.
    arguments.test_threads = Some(1);
    let board = Board::find().and_then(|board| match board.prepare() {
        Ok(()) => Ok(board),
        Err(error) => Err(format!("{error:#}")),
    });
    let at_both: &[(&str, &[Case])] = &[
        ("enumeration", enumeration::CASES),
        ("integrity", integrity::CASES),
        ("optical", optical::CASES),
        ("disks", disks::CASES),
        ("durable", durable::CASES),
        ("filesystem", filesystem::CASES),
        ("thirteen", thirteen::CASES),
        ("reset", reset::CASES),
        ("eject", eject::CASES),
        ("unplug", unplug::CASES),
        ("events", events::CASES),
        ("stats", stats::CASES),
        ("killed", killed::CASES),
        ("tools", tools::CASES),
        ("opcodes", opcodes::CASES),
    ];
    let at_one: &[(&str, &[Case])] = &[
        ("conformance", conformance::CASES),
        ("trim", trim::CASES),
        ("clients", clients::CASES),
        ("refusals", refusals::CASES),
        ("takeover", takeover::CASES),
        ("overlay", overlay::CASES),
        ("qcow2", qcow2::CASES),
        ("hang", hang::CASES),
        ("areas", areas::CASES),
        ("urls", urls::CASES),
        ("lies", lies::CASES),
        ("network", network::CASES),
        ("changed", changed::CASES),
    ];
    let is_twin = board.as_ref().is_ok_and(Board::is_slower_twin);
    let groups = at_both.iter().chain(if is_twin { &[] } else { at_one });
    let mut trials = Vec::new();
    for (group, cases) in groups {
        for case in *cases {
            trials.extend(case.on.iter().map(|&backend| trial(group, case, backend, board.clone())));
        }
    }
    libtest_mimic::run(&arguments, trials).exit_code()
}

/// What an environment variable says, which makes a trial longer.
pub(crate) fn variable(name: &str, default: u64) -> Result<u64> {
    let Some(text) = std::env::var_os(name) else { return Ok(default) };
    let text = text.to_string_lossy();
    text.parse().with_context(|| format!("{name} is {text:?}, which is no number"))
}

fn trial(group: &str, case: &'static Case, backend: Backend, board: Result<Board, String>) -> Trial {
    let name = format!("{group}::{}::{}", case.name, backend.name());
    match board {
        Ok(board) => Trial::test(name, move || {
            (case.run)(&board, backend).map_err(|error| format!("{error:#}").into())
        }),
        Err(reason) => Trial::ignorable_test(name, move || Ok(Completion::ignored_with(reason))),
    }
}
