//! On the board: makes each source, has it served by the kernel and then by us, and prints what it measured, a JSON object a
//! line.

use std::fs;
use std::path::Path;
use std::process::ExitCode;

use anyhow::{Context, Result};
use serde_json::json;
use xshell::Shell;

use super::plan::{KIB, MIB, Pattern, Scale, Source, Test, float};
use super::served::{Medium, Served};
use super::{Engine, OnBoardArgs, enumeration, fetching, fio, image::Image, layers, memory, outage};

/// Enough to have all code in memory, from the host's fio to the server's.
const WARM_UP: Test = Test { pattern: Pattern::Read, block: 4 * KIB };

/// What opens a connection's congestion window widest, so that a test finds it as wide whichever tests came before.
const REHEARSAL: Test = Test { pattern: Pattern::Read, block: MIB };

/// What is kept of several runs' figures, of which less is better.
///
/// What else the board does now and then can only take from a local run; but one may now and then meet the link's ticks better than
/// all others: so the best is taken for luck. A network never does the same twice: so the mean.
fn kept(source: Source, figures: impl Iterator<Item = f64>) -> Result<f64> {
    let mut figures: Vec<f64> = figures.collect();
    match source {
        Source::Nfs => Ok(figures.iter().sum::<f64>() / f64::from(u32::try_from(figures.len())?)),
        Source::Tmpfs | Source::Ext4 => {
            figures.sort_by(f64::total_cmp);
            figures.get(1).copied().context("no repeats")
        }
    }
}

/// Lets only those write back who are asked to. How much the kernel's own writer takes from them, and when, is chance.
fn nothing_written_back() -> Result<()> {
    for (limit, value) in
        [("dirty_writeback_centisecs", 0), ("dirty_bytes", 1 << 30), ("dirty_background_bytes", 1 << 29)]
    {
        fs::write(Path::new("/proc/sys/vm").join(limit), value.to_string())?;
    }
    Ok(())
}

/// Runs all tests; see the module.
pub(super) fn run(args: &OnBoardArgs) -> Result<ExitCode> {
    let shell = Shell::new()?;
    fio::meter_first(&shell)?;
    nothing_written_back()?;
    let mut enumerated = false;
    for &source in &args.sources {
        if source.tests(args.speed, args.scale).is_empty() {
            continue;
        }
        let image = Image::make(&shell, source, &args.nfs)?;
        let medium = Medium { image: &image.path, writable: source.writable(), stalls: true };
        if !std::mem::replace(&mut enumerated, true) {
            enumeration::run(&shell, args, medium, &image)?;
        }
        measure(args, source, &image, None, || Served::by_kernel(&shell, medium, args.speed))?;
        for engine in args.engine.all() {
            measure(args, source, &image, Some(engine), || {
                Served::by_us(&shell, &[&[medium]], args.speed, engine)
            })?;
        }
        if args.scale != Scale::Short {
            memory::run(&shell, args, &image.path)?;
            match source {
                Source::Tmpfs => {
                    fetching::run(&shell, args, medium)?;
                    layers::run(&shell, args, medium)?;
                }
                Source::Nfs => outage::run(&shell, args, &image)?,
                Source::Ext4 => {}
            }
        }
        image.remove(&shell)?;
    }
    Ok(ExitCode::SUCCESS)
}

/// All tests of one source with one server; `engine` is none for the kernel's.
fn measure(
    args: &OnBoardArgs,
    source: Source,
    image: &Image,
    engine: Option<Engine>,
    serve: impl FnOnce() -> Result<Served>,
) -> Result<()> {
    let by = engine.map_or("kernel", Engine::name);
    let context = || format!("{}, {} speed, {by}", source.name(), args.speed.name());
    eprintln!("{}", context());
    let served = serve().with_context(context)?;
    let server = served.server()?;
    image.settle()?;
    let disk = served.disk()?;
    let run = |test, amount| fio::run(disk, server, test, amount).with_context(context);
    run(WARM_UP, 64 * KIB)?;
    // What starting and ending a test costs the board: known, and taken off.
    let mut starts = Vec::new();
    for _ in 0..WARM_UP.repeats(source, args.scale) {
        starts.push(float(run(WARM_UP, 4 * KIB)?.used.board));
    }
    let start = kept(source, starts.into_iter())?;
    for test in source.tests(args.speed, args.scale) {
        let amount = test.amount(source, args.speed, args.scale);
        for _ in 0..source.rehearsals() {
            image.settle()?;
            run(REHEARSAL, REHEARSAL.amount(source, args.speed, args.scale))?;
        }
        let mut outcomes = Vec::new();
        let mut seconds = 0.0;
        while outcomes.len() < test.repeats(source, args.scale) || seconds < source.seconds(args.scale) {
            image.settle()?;
            let outcome = run(test, amount)?;
            seconds += float(amount) / 1e6 / outcome.mb_s;
            outcomes.push(outcome);
        }
        let of_all = |figure: fn(&fio::Outcome) -> f64| kept(source, outcomes.iter().map(figure));
        let mb_s = 1.0 / of_all(|outcome| 1.0 / outcome.mb_s)?;
        let serving = of_all(|outcome| float(outcome.used.serving))?;
        let board = of_all(|outcome| float(outcome.used.board))? - start;
        let us_per_mib = |nanoseconds: f64| nanoseconds / 1e3 / (float(amount) / float(MIB));
        let line = json!({
            "source": source.name(),
            "test": test.name(),
            "by": by,
            "mb_s": mb_s,
            "cpu_us_per_mib": us_per_mib(serving),
            "board_us_per_mib": us_per_mib(board),
        });
        println!("{line}");
    }
    if let Some(peak) = served.peak_memory()? {
        println!("{}", json!({ "drives": "one drive", "by": by, "peak_memory_kib": peak }));
    }
    served.stop().with_context(context)
}
