//! Seeded simulation: a model host, honest and hostile, a faulty medium and a virtual clock around a real `drive::Function`.
//!
//! Each seed is one life of a device on a bus. A failure prints its seed; `RINGDRIVE_SEED=N cargo test --test simulation` runs
//! that life again and prints every command of it, and what the device says. `RINGDRIVE_SEEDS=N` sets how many are run.
//!
//! | file | what |
//! |---|---|
//! | `bus` | the pipes, packet by packet; the quirks of controllers |
//! | `media` | the mover: delays, disorder, short and failed operations, what is durable |
//! | `slow` | media whose bytes have to be fetched |
//! | `world` | the clock, and what happens next |
//! | `dut` | the device under test |
//! | `host` | Bulk-Only Transport from the host's side |
//! | `job`, `model` | SCSI commands, and what the disk must hold |
//! | `counted` | what the drives must have counted |
//! | `checker` | the host's life, and whether the answers were right |
//! | `deaths` | the process at the other end is killed, or told to end, and another one takes over |
//! | `storage` | what the host knows of storage that does not answer |
//! | `lives` | many seeds, and what all of them together must meet |
//! | `hostile` | the parts of that life that no honest host has |

// A test binary has no outside that could reach its items.
#![allow(unreachable_pub)]
// What clippy.toml allows in unit tests.
#![allow(clippy::unwrap_used)]

use std::panic::{AssertUnwindSafe, catch_unwind};

use checker::Checker;
use dut::Parts;
use fastrand::Rng;
use lives::{Coverage, live_all};
use ringdrive::bot::StallPolicy;

mod bus;
mod checker;
mod counted;
mod dut;
mod host;
mod job;
mod lives;
mod media;
mod model;
mod slow;
mod world;

/// Lives with a process that ends now and then.
const MORTALS: u64 = 1_000;
const SEEDS: u64 = 10_000;
/// Commands and other happenings in one life.
const TURNS: usize = 60;

/// What a batch of lives must have met to prove anything.
const MUST_HAPPEN: &[&str] = &[
    "FUA write",
    "READ CD",
    "broken off unseen",
    "bus reset",
    "case 1",
    "case 10",
    "case 11",
    "case 12",
    "case 13",
    "case 2",
    "case 3",
    "case 4",
    "case 5",
    "case 6",
    "case 7",
    "case 8",
    "case 9",
    "compared",
    "compared and written",
    "deferred error",
    "clear halt between commands",
    "clear halt within a command",
    "counted as aborted",
    "counted though broken off",
    "ejected",
    "honest command",
    "invalid CBW",
    "medium fault",
    "miscompare",
    "sync after a failed sync",
    "not ready",
    "phase error",
    "refused command",
    "reset recovery",
    "short data-out",
    "slow medium",
    "source offline",
    "source online again",
    "stall",
    "stream",
    "sync",
    "unit attention",
    "unplugged",
    "write",
    "zeroed",
];

/// What must have happened besides where the process ends now and then.
const OF_MORTALS: &[&str] = &[
    "interrupted and tried again",
    "killed",
    "killed at work",
    "sense data lost with the process",
    "told to leave",
];

/// One life.
fn live(seed: u64, mortal: bool, trace: bool) -> Result<Coverage, String> {
    if trace {
        let log = tracing_subscriber::fmt().with_max_level(tracing::Level::DEBUG).without_time();
        // Another test may have it already.
        let _ = log.with_test_writer().try_init();
    }
    let mut rng = Rng::with_seed(seed);
    let stall = if rng.u8(..3) == 0 { StallPolicy::Never } else { StallPolicy::Auto };
    let life = AssertUnwindSafe(move || {
        let parts = Parts::any(&mut rng, stall);
        let (world, disks) = dut::world(&mut rng, parts);
        let mut checker = Checker::new(host::Port::new(world), disks, stall, rng, trace);
        checker.mortal = mortal;
        checker.live(TURNS).map(|()| checker.coverage)
    });
    catch_unwind(life).unwrap_or_else(|_| Err("panicked".into()))
}

#[test]
fn every_command_ends_and_no_byte_is_lost_whatever_the_host_does() {
    live_all(SEEDS, MUST_HAPPEN, |seed, trace| live(seed, false, trace));
}

#[test]
fn no_byte_is_lost_when_the_process_ends_and_another_takes_over() {
    let coverage = live_all(MORTALS, OF_MORTALS, |seed, trace| live(seed, true, trace));
    let count = |name| coverage.get(name).copied().unwrap_or(0);
    let (past, killed) = (count("CSW of the past"), count("killed") + count("killed at work"));
    assert!(past * 1000 <= killed.max(1000), "{past} hosts were told of the past after {killed} kills");
}

#[test]
fn a_seed_lives_the_same_life_twice() {
    for seed in 0..20 {
        assert_eq!(live(seed, true, false), live(seed, true, false), "seed {seed}");
    }
}
