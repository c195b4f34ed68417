//! Memory is flat: one device lives through a million commands of the simulation's model host, and every allocation counts.
//!
//! A binary of its own with one test, because the allocator and the resident set are the whole process's; the heap is counted on
//! the test's thread, where device, model and host live. What the device allocates is counted within the calls to it; the
//! simulated bus and mover, which it calls, allocate nothing themselves once they are warm.

// What clippy.toml allows in unit tests.
#![allow(clippy::unwrap_used)]

use allocation_counter::{AllocationInfo, measure};
use checker::Checker;
use dut::Parts;
use fastrand::Rng;
use job::Job;
use ringdrive::bot::StallPolicy;
use ringdrive::units::BlockSize;

#[path = "../simulation/bus.rs"]
#[allow(dead_code, unreachable_pub)]
mod bus;
#[path = "../simulation/checker.rs"]
#[allow(dead_code, unreachable_pub)]
mod checker;
#[path = "../simulation/counted.rs"]
#[allow(dead_code, unreachable_pub)]
mod counted;
#[path = "../simulation/dut.rs"]
#[allow(dead_code, unreachable_pub)]
mod dut;
#[path = "../simulation/host.rs"]
#[allow(dead_code, unreachable_pub)]
mod host;
#[path = "../simulation/job.rs"]
#[allow(dead_code, unreachable_pub)]
mod job;
#[path = "../simulation/lives.rs"]
#[allow(dead_code, unreachable_pub)]
mod lives;
#[path = "../simulation/media.rs"]
#[allow(dead_code, unreachable_pub)]
mod media;
#[path = "../simulation/model.rs"]
#[allow(dead_code, unreachable_pub)]
mod model;
#[path = "../simulation/slow.rs"]
#[allow(dead_code, unreachable_pub)]
mod slow;
#[path = "../simulation/world.rs"]
#[allow(dead_code, unreachable_pub)]
mod world;

const WARM_UP: u64 = 10_000;
const COMMANDS: u64 = 1_000_000;
/// Pages touched for the first time, and kept by the C library for reasons of its own. A byte a command would be 967 KiB.
const RESIDENT_SLACK_KIB: u64 = 512;

fn resident_kib() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).unwrap();
    line.trim().trim_end_matches(" kB").parse().unwrap()
}

/// A host that is always right about its commands, and breaks off about one in a thousand.
struct Life {
    checker: Checker,
    rng: Rng,
    commands: u64,
}

impl Life {
    fn live(&mut self, until: u64) -> Result<(), String> {
        while self.commands < until {
            self.commands += 1;
            let lun = self.rng.usize(..self.checker.disks.len());
            let disk = &self.checker.disks[lun];
            let job = Job::any(&mut self.rng, u8::try_from(lun).unwrap(), disk, self.commands);
            let broken_off = self.rng.u16(..1000) == 0;
            let ended = if broken_off { self.checker.broken_off(&job) } else { self.checker.honest(&job) };
            ended.map_err(|why| format!("command {}: {why}", self.commands))?;
        }
        self.rest()
    }

    /// Until nothing is under way, and the model knows again what every sector holds.
    fn rest(&mut self) -> Result<(), String> {
        for lun in 0..self.checker.disks.len() {
            self.checker.read_back(lun).map_err(|why| format!("reading back unit {lun}: {why}"))?;
        }
        if self.checker.port.world.settle() { Ok(()) } else { Err("the device never comes to rest".into()) }
    }
}

#[test]
fn a_million_commands_leave_memory_as_it_was() {
    let mut rng = Rng::with_seed(1);
    let parts = Parts {
        quirks: bus::Quirks { early_in: false, clear_halt_interrupts: true, refuse_every: 0 },
        faults: media::Faults { errors: 0, shorts: 0, full: 0, stuck: 0, outages: 0, delay_max: 1 << 20 },
        stall: StallPolicy::Auto,
        block: BlockSize::B512,
        blocks: [256, 32],
        slow: 0,
        allocations_of: |call| measure(call).count_total,
    };
    let (world, disks) = dut::world(&mut rng, parts);
    let checker = Checker::new(host::Port::new(world), disks, StallPolicy::Auto, rng.fork(), false);
    let mut life = Life { checker, rng, commands: 0 };
    life.checker.connect();
    life.live(WARM_UP).unwrap();
    let (resident, allocations) = (resident_kib(), life.checker.port.world.device.allocations);
    let AllocationInfo { count_total, bytes_current, .. } = measure(|| life.live(COMMANDS).unwrap());
    let (resident, allocations) =
        (resident_kib().saturating_sub(resident), life.checker.port.world.device.allocations - allocations);
    let coverage = &life.checker.coverage;
    println!(
        "grown by {bytes_current} bytes, {resident} KiB resident; model and host allocated {count_total} times"
    );
    println!("{coverage:#?}");
    assert!(count_total > COMMANDS, "model and host allocate, but nobody counts");
    assert_eq!(allocations, 0, "the device allocates on the data path");
    assert_eq!(bytes_current, 0, "the live heap has changed");
    assert!(resident <= RESIDENT_SLACK_KIB, "{resident} KiB more are resident");
    for must in ["reset recovery", "bus reset", "unplugged", "write", "sync", "FUA write", "stall"] {
        assert!(coverage.contains_key(must), "the host never met {must:?}");
    }
}
