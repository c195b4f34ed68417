//! Coverage-guided fuzzing: bytes become a host's script, and whatever it says, the device keeps to the rules.
//!
//! | file | what |
//! |---|---|
//! | `function` | a whole `drive::Function` over the simulation's bus and mover |
//! | `rooms` | Bulk-Only Transport and the SCSI target alone, many times as fast |
//! | `script` | how bytes become commands |
//!
//! `cargo xtask fuzz` looks for new scripts with libFuzzer. `cargo test` replays those that were kept, below `__fuzz__`, and
//! plays some random ones.

// A test binary has no outside that could reach its items.
#![allow(unreachable_pub)]
// What clippy.toml allows in unit tests.
#![allow(clippy::unwrap_used)]

#[path = "../tests/simulation/bus.rs"]
#[allow(dead_code)]
mod bus;
#[path = "../tests/simulation/dut.rs"]
#[allow(dead_code)]
mod dut;
mod function;
#[path = "../tests/simulation/host.rs"]
#[allow(dead_code)]
mod host;
#[path = "../tests/simulation/media.rs"]
#[allow(dead_code)]
mod media;
#[path = "../tests/simulation/model.rs"]
#[allow(dead_code)]
mod model;
mod rooms;
mod script;
#[path = "../tests/simulation/slow.rs"]
#[allow(dead_code)]
mod slow;
#[path = "../tests/simulation/world.rs"]
#[allow(dead_code)]
mod world;

use std::time::Duration;

/// What `cargo test` adds to the kept scripts.
const RANDOM_TIME: Duration = Duration::from_secs(3);
const RANDOM_SCRIPTS: usize = 2000;
/// Longer scripts find nothing that a short one does not.
const SCRIPT_LEN_MAX: usize = 2048;

#[test]
fn whole_function() {
    bolero::check!()
        .with_iterations(RANDOM_SCRIPTS)
        .with_test_time(RANDOM_TIME)
        .with_max_len(SCRIPT_LEN_MAX)
        .for_each(function::play);
}

#[test]
fn transport_and_target() {
    bolero::check!()
        .with_iterations(RANDOM_SCRIPTS)
        .with_test_time(RANDOM_TIME)
        .with_max_len(SCRIPT_LEN_MAX)
        .for_each(rooms::play);
}
