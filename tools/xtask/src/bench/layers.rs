//! Images that are not a plain file: what reads of 120 KiB come to through an overlay, and of a qcow2 file with the same bytes, beside the
//! raw image.

use std::fs;
use std::path::Path;

use anyhow::{Context, Result};
use serde_json::{Value, json};
use xshell::{Shell, cmd};

use super::plan::{KIB, MIB, Pattern, Test};
use super::served::{Medium, Served};
use super::{Engine, OnBoardArgs, fetching, fio};

const DIR: &str = "/run/bench-layers";
/// What the host writes before it reads, in pieces that are not those it reads.
const WRITES: Test = Test { pattern: Pattern::RandomWrite, block: 4 * KIB };
const WRITTEN: u64 = 8 * MIB;

/// Measures; prints a line for each engine and layer. `raw` is the image without any.
pub(super) fn run(shell: &Shell, args: &OnBoardArgs, raw: Medium<'_>) -> Result<()> {
    fs::create_dir_all(DIR)?;
    let qcow2 = Path::new(DIR).join("image.qcow2");
    let image = raw.image;
    cmd!(shell, "qemu-img convert -f raw -O qcow2 {image} {qcow2}").quiet().run()?;
    for engine in args.engine.all() {
        measure(shell, args, (raw, &qcow2), engine).with_context(|| format!("layers, {}", engine.name()))?;
    }
    Ok(fs::remove_dir_all(DIR)?)
}

fn measure(
    shell: &Shell,
    args: &OnBoardArgs,
    (raw, qcow2): (Medium<'_>, &Path),
    engine: Engine,
) -> Result<()> {
    let served = Served::by_us(shell, &[&[Medium { writable: false, ..raw }]], args.speed, engine)?;
    let overlay = Path::new(DIR).join(format!("{}.qcow2", engine.name()));
    let plain = speed(&served, args)?;
    let print = |layer: &str, mb_s: f64| {
        println!("{}", json!({ "layer": layer, "by": engine.name(), "raw_mb_s": plain, "mb_s": mb_s }));
    };
    let insert = |params: Value| -> Result<()> {
        served.ask("eject", &json!({ "drive": 0, "force": true }))?;
        served.ask("insert", &params)?;
        fio::read_block(served.disk()?, 0)
    };
    insert(json!({ "drive": 0, "path": qcow2 }))?;
    print("a qcow2 file", speed(&served, args)?);
    insert(json!({ "drive": 0, "path": raw.image, "overlay": overlay }))?;
    print("an overlay in which nothing is written", speed(&served, args)?);
    fio::run(served.disk()?, served.server()?, WRITES, WRITTEN)?;
    print("an overlay with 8 MiB written in pieces of 4 KiB", speed(&served, args)?);
    served.stop()
}

fn speed(served: &Served, args: &OnBoardArgs) -> Result<f64> {
    fetching::second(fetching::repeat(|_| fetching::speed(served, args))?)
}

/// A sentence for each, from what the board printed.
pub(super) fn sentences(lines: &[Value], link: &str) -> Vec<String> {
    let sentence = |line: &Value| {
        let (layer, by) = (line.get("layer")?.as_str()?, line["by"].as_str()?);
        let (raw, mb_s) = (line["raw_mb_s"].as_f64()?, line["mb_s"].as_f64()?);
        Some(format!(
            "Through {layer}, {link}, {by}: reads of 120 KiB at {mb_s:.1} MB/s, {:.2} of the raw image's {raw:.1} MB/s.",
            mb_s / raw
        ))
    };
    lines.iter().filter_map(sentence).collect()
}
