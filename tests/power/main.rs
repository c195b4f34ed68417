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
//! | `bus`, `dut`, `host`, `model`, `world` | of the simulation, as they are |
//!
//! An image in a file is what its sectors are, so a power cut is judged sector by sector, in all combinations at once. In an overlay a
//! sector is the base's or the overlay's, as a bit in another sector says; the two survive or not each by itself, so that again all
//! combinations are judged at once.

// A test binary has no outside that could reach its items.
#![allow(unreachable_pub)]
// What clippy.toml allows in unit tests.
#![allow(clippy::unwrap_used)]

use std::{
    panic::{AssertUnwindSafe, catch_unwind},
    sync::atomic::{AtomicU64, Ordering},
    thread,
};

use dut::Parts;
use fastrand::Rng;
use life::{Coverage, Life};
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

fn variable(name: &str) -> Option<u64> {
    std::env::var(name)
        .ok()
        .map(|value| value.parse().unwrap_or_else(|_| panic!("{name}={value} is no number")))
}

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
    live_all(false);
}

#[test]
fn so_it_does_in_an_overlay() {
    live_all(true);
}

fn live_all(overlay: bool) {
    if let Some(seed) = variable("RINGDRIVE_SEED") {
        live(seed, overlay, None, true).unwrap_or_else(|why| panic!("seed {seed}: {why}"));
        return;
    }
    let seeds = variable("RINGDRIVE_SEEDS").unwrap_or(SEEDS);
    let next = AtomicU64::new(0);
    let batch = || {
        let (mut coverage, mut failures) = (Coverage::new(), Vec::new());
        loop {
            match next.fetch_add(1, Ordering::Relaxed) {
                seed if seed >= seeds => return (coverage, failures),
                seed => match live(seed, overlay, None, false) {
                    Ok(more) => add(&mut coverage, more),
                    Err(why) => failures.push((seed, why)),
                },
            }
        }
    };
    let threads = thread::available_parallelism().map_or(1, usize::from);
    let (mut coverage, mut failures) = (Coverage::new(), Vec::new());
    thread::scope(|scope| {
        let workers: Vec<_> = (0..threads).map(|_| scope.spawn(batch)).collect();
        for worker in workers {
            let (more, failed) = worker.join().unwrap();
            add(&mut coverage, more);
            failures.extend(failed);
        }
    });
    failures.sort();
    for (seed, why) in failures.iter().take(10) {
        println!("seed {seed}: {why}; RINGDRIVE_SEED={seed} runs it again");
    }
    assert!(failures.is_empty(), "{} of {seeds} lives failed", failures.len());
    println!("{seeds} lives: {coverage:#?}");
    let missing: Vec<_> = MUST_HAPPEN.iter().filter(|name| !coverage.contains_key(**name)).collect();
    assert!(seeds < SEEDS || missing.is_empty(), "{seeds} lives never met {missing:?}");
}

fn add(total: &mut Coverage, more: Coverage) {
    for (name, count) in more {
        *total.entry(name).or_default() += count;
    }
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
