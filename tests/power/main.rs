//! Power cuts: whatever the host was told is durable survives one, at whatever moment.
//!
//! Each seed is one host's life with a disk, around a real `drive::Function`, over the bus and the virtual clock of the
//! simulation. The mover logs each write, hole and sync that it is asked for, and each end; after every entry the power is cut.
//! A failure prints its seed; `RINGDRIVE_SEED=N cargo test --test power` runs that life again with its log. `RINGDRIVE_SEEDS=N`
//! sets how many are run.
//!
//! | file | what |
//! |---|---|
//! | `media` | the mover, its log, and mistakes that it makes on purpose |
//! | `store` | what may be left on the storage: the kernel's page cache |
//! | `promises` | what the host was told |
//! | `life` | what the host does, and what each answer promises |
//! | `overlaid` | a disk with an overlay, and what a power cut leaves of it |
//! | `bus`, `dut`, `host`, `lives`, `model`, `world` | of the simulation, as they are |
//!
//! An image in a file is what its sectors are, so a power cut is judged sector by sector, in all combinations at once. In an overlay a
//! sector is the base's or the overlay's, as a bit in another sector says; the two survive or not each by itself, so that again all
//! combinations are judged at once.

// A test binary has no outside that could reach its items.
#![allow(unreachable_pub)]
// What clippy.toml allows in unit tests.
#![allow(clippy::unwrap_used)]

use std::panic::{AssertUnwindSafe, catch_unwind};

use dut::Parts;
use fastrand::Rng;
use life::Life;
use lives::{Coverage, live_all};
use media::{Bug, Faults};
use ringdrive::bot::StallPolicy;

#[path = "../simulation/bus.rs"]
#[allow(dead_code)]
mod bus;
#[path = "../simulation/dut.rs"]
#[allow(dead_code)]
mod dut;
use overlaid as slow;
#[path = "../simulation/host.rs"]
#[allow(dead_code)]
mod host;
mod life;
#[path = "../simulation/lives.rs"]
mod lives;
mod media;
#[path = "../simulation/model.rs"]
#[allow(dead_code)]
mod model;
mod overlaid;
mod promises;
mod store;
#[path = "../simulation/world.rs"]
#[allow(dead_code)]
mod world;

const SEEDS: u64 = 1000;
/// Commands and other happenings in one life.
const TURNS: usize = 50;
/// Lives in which a mistake of the mover must come out.
const SEEDS_FOR_A_BUG: u64 = 100;

/// What a batch of lives must have met to prove anything.
const MUST_HAPPEN: [&str; 28] = [
    "COMPARE AND WRITE",
    "SYNCHRONIZE CACHE",
    "SYNCHRONIZE CACHE of a range",
    "SYNCHRONIZE CACHE, IMMED",
    "UNMAP",
    "WRITE AND VERIFY(10)",
    "WRITE AND VERIFY(16)",
    "WRITE SAME",
    "WRITE SAME, UNMAP",
    "WRITE(10)",
    "WRITE(12)",
    "WRITE(16)",
    "broken off",
    "daemon stopped",
    "durable write",
    "ejected by a client",
    "ejected by force",
    "ejected by the host",
    "medium error",
    "not written back",
    "removal allowed",
    "stands by",
    "stopped",
    "stopped, NO_FLUSH",
    "suspended",
    "unplugged",
    "write cache off",
    "write through",
];

/// One life, of a disk with an overlay or of one without, over a mover with this mistake.
fn live(seed: u64, overlay: bool, bug: Option<Bug>, trace: bool) -> Result<Coverage, String> {
    let life = AssertUnwindSafe(move || {
        let mut rng = Rng::with_seed(seed);
        let any = Parts::any(&mut rng, StallPolicy::Auto);
        let good = rng.u8(..4) == 0;
        let faults =
            if good { Faults { delay_max: any.faults.delay_max, ..Faults::default() } } else { any.faults };
        // 128 KiB: a write of all of it is several operations.
        let blocks = 128 * 1024 / usize::try_from(any.block.bytes()).unwrap();
        // A transfer that the kernel has no memory for is the simulation's subject.
        let quirks = bus::Quirks { refuse_every: 0, ..any.quirks };
        let slow = if overlay { 4 } else { 0 };
        let parts = Parts { faults: Faults { bug, ..faults }, quirks, blocks: [blocks, 4], slow, ..any };
        let (world, mut disks) = dut::world(&mut rng, parts);
        Life::new(host::Port::new(world), disks.swap_remove(0), rng, trace).live(TURNS)
    });
    catch_unwind(life).unwrap_or_else(|_| Err("panicked".into()))
}

#[test]
fn what_the_host_was_told_is_durable_survives_a_power_cut_at_any_moment() {
    live_all(SEEDS, &MUST_HAPPEN, |seed, trace| live(seed, false, None, trace));
}

#[test]
fn so_it_does_in_an_overlay() {
    live_all(SEEDS, &MUST_HAPPEN, |seed, trace| live(seed, true, None, trace));
}

#[test]
fn mistakes_of_the_mover_come_out() {
    let any = [Bug::SyncLeftOut, Bug::SyncTooEarly, Bug::ErrorForgotten, Bug::FuaIgnored, Bug::HoleLeftOut];
    let of_overlays = [Bug::SyncLeftOut, Bug::ErrorForgotten, Bug::MetadataFirst];
    for (overlay, bug) in any.map(|bug| (false, bug)).into_iter().chain(of_overlays.map(|bug| (true, bug))) {
        let found = (0..SEEDS_FOR_A_BUG)
            .filter(|seed| live(*seed, overlay, Some(bug), false).is_err_and(|why| why.contains("power cut")))
            .count();
        println!("{bug:?} came out in {found} of {SEEDS_FOR_A_BUG} lives, overlay: {overlay}");
        assert!(found > 0, "{bug:?} was not found, overlay: {overlay}");
    }
}
