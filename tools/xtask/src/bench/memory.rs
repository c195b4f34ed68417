//! The daemon's peak memory with two drives under load, and whether it grows with an image's size.

use std::fs::{self, File};
use std::path::Path;
use std::process::{Command, Stdio};

use anyhow::{Context, Result, ensure};
use serde_json::{Value, json};
use xshell::Shell;

use super::plan::{IMAGE, MIB};
use super::served::{Medium, Served};
use super::{Engine, OnBoardArgs};

/// A sparse image that does not fit into the board.
const LARGE: u64 = 1024 * IMAGE;
/// Bytes that each drive moves in each pattern.
const AMOUNT: u64 = 32 * MIB;

/// Where the two drives stand.
#[derive(Clone, Copy, Debug)]
enum Layout {
    OneFunction,
    TwoFunctions,
}

/// Prints the peak of each layout, a JSON object a line. One image is `image`; the other is made beside it.
pub(super) fn run(shell: &Shell, args: &OnBoardArgs, image: &Path) -> Result<()> {
    let beside = image.with_file_name("second");
    for engine in args.engine.all() {
        for (layout, size) in
            [(Layout::OneFunction, IMAGE), (Layout::OneFunction, LARGE), (Layout::TwoFunctions, LARGE)]
        {
            File::create(&beside)?.set_len(size)?;
            let media = [image, &beside].map(|image| Medium { image, writable: true, stalls: true });
            let peak = peak(shell, args, engine, layout, media)
                .with_context(|| format!("two drives under load, {layout:?}, {size} bytes"))?;
            println!("{}", line(layout, size, engine, peak));
        }
    }
    fs::remove_file(beside)?;
    Ok(())
}

fn line(layout: Layout, second: u64, engine: Engine, peak: u64) -> Value {
    let functions = match layout {
        Layout::OneFunction => "one function",
        Layout::TwoFunctions => "two functions",
    };
    let drives =
        format!("two drives of {functions} under load, {} MiB and {} MiB", IMAGE / MIB, second / MIB);
    json!({ "drives": drives, "by": engine.name(), "peak_memory_kib": peak })
}

/// KiB.
fn peak(
    shell: &Shell,
    args: &OnBoardArgs,
    engine: Engine,
    layout: Layout,
    [first, second]: [Medium<'_>; 2],
) -> Result<u64> {
    let served = match layout {
        Layout::OneFunction => Served::by_us(shell, &[&[first, second]], args.speed, engine),
        Layout::TwoFunctions => Served::by_us(shell, &[&[first], &[second]], args.speed, engine),
    }?;
    for (pattern, blocks) in [("rw", "1m-1m"), ("randrw", "4k-1m")] {
        load(&served, pattern, blocks)?;
    }
    let peak = served.peak_memory()?.context("no daemon serves")?;
    served.stop()?;
    Ok(peak)
}

/// Reads and writes all drives at once, wherever `pattern` goes on the whole of them.
fn load(served: &Served, pattern: &str, blocks: &str) -> Result<()> {
    let mut fio = Command::new("fio");
    fio.args(["--ioengine=psync", "--direct=1", "--thread", "--norandommap", "--blockalign=4k"]);
    fio.args([format!("--rw={pattern}"), format!("--bsrange={blocks}"), format!("--io_size={AMOUNT}")]);
    for disk in &served.disks {
        fio.arg("--name=load").arg(format!("--filename={}", disk.display()));
    }
    let output = fio.stdin(Stdio::null()).output().context("fio")?;
    let said = || String::from_utf8_lossy(&output.stderr).into_owned();
    ensure!(output.status.success(), "fio, {pattern}: {}; it said:\n{}", output.status, said());
    Ok(())
}
