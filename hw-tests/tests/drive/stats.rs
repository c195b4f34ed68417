//! What a drive has counted is what the host has done, byte for byte.

use anyhow::{Context, Result, ensure};
use hw_tests::board::Board;
use hw_tests::host::Caching;
use hw_tests::image::{self, MIB};
use hw_tests::rig::{Backend, Drive, Rig, Setup};
use ringdrive::control::protocol::DriveStats;
use serde_json::Value;

use crate::{Case, ENGINES};

pub(crate) const CASES: &[Case] =
    &[Case { name: "the_bytes_counted_are_those_that_the_host_read_and_wrote", on: ENGINES, run: counted }];

fn look(rig: &mut Rig) -> Result<DriveStats> {
    let said = rig.daemon()?.cli(&["stats", "disk", "--json"])?;
    let mut object: Value = serde_json::from_str(&said).with_context(|| format!("not JSON: {said}"))?;
    serde_json::from_value(object["drives"][0].take()).with_context(|| format!("not a drive's: {said}"))
}

fn times(stats: &DriveStats, opcode: u8) -> u64 {
    let mut opcodes = stats.opcodes.iter().flatten();
    opcodes.find(|of| of.opcode == opcode).map_or(0, |of| of.commands)
}

fn counted(board: &Board, backend: Backend) -> Result<()> {
    let scratch = board.scratch()?;
    let path = image::random(scratch.file("image"), 60, 8)?;
    let mut rig = Rig::start(board, backend, &Setup::of([Drive::disk().with(&path).writable()]))?;
    let lun = rig.lun(0)?;
    // The host looks at a drive by itself when the last file of it is closed.
    let open = lun.open(Caching::Direct)?;
    lun.settle()?;

    let before = look(&mut rig)?;
    let bytes = lun.read_at(MIB, 3 << 20)?;
    let read = look(&mut rig)?.since(&before);
    ensure!(bytes == image::peek(&path, MIB, 3 << 20)?, "the host read other bytes");
    ensure!((read.bytes_read, read.bytes_written) == (3 * MIB, 0), "after 3 MiB were read: {read:#?}");
    let (reads, latency) = (times(&read, 0x28), &read.latency.read);
    ensure!(reads > 0 && latency.commands == reads, "{reads} times READ(10): {read:#?}");
    let whole = read.reads_from_memory + read.reads_from_storage;
    ensure!(whole == reads, "from memory or from the storage, each: {read:#?}");
    ensure!(0 < latency.p50_us && latency.p50_us <= latency.max_us, "latencies: {read:#?}");

    let before = look(&mut rig)?;
    lun.write_at(5 * MIB, &image::noise(61, 1 << 20))?;
    let wrote = look(&mut rig)?.since(&before);
    ensure!(wrote.bytes_written == MIB, "after 1 MiB was written: {wrote:#?}");
    let writes = times(&wrote, 0x2a);
    ensure!(writes > 0 && wrote.latency.write.commands == writes, "{writes} times WRITE(10): {wrote:#?}");
    ensure!(times(&wrote, 0x35) > 0, "the host asked for SYNCHRONIZE CACHE: {wrote:#?}");
    ensure!((wrote.aborted, wrote.check_conditions) == (0, 0), "all went well: {wrote:#?}");
    drop(open);
    rig.stop()
}
