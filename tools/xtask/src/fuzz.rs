//! `cargo xtask fuzz`: looks for scripts of a host that break the device, guided by the coverage that each script has.
//!
//! The targets are tests of the crate `fuzz`, written with bolero. Here they are built with the compiler's coverage counters, which
//! takes no other toolchain than the stable one, and linked to libFuzzer, which is C++ and needs a compiler for it.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail, ensure};
use serde_json::Value;
use xshell::{Shell, cmd};

use crate::project;

/// The tests of the crate `fuzz`.
const TARGETS: [&str; 2] = ["transport_and_target", "whole_function"];

/// What cargo-bolero builds with for libFuzzer.
const RUSTFLAGS: &str = "--cfg fuzzing -Cpasses=sancov-module --cfg fuzzing_libfuzzer \
    -Cllvm-args=-sanitizer-coverage-inline-8bit-counters -Cllvm-args=-sanitizer-coverage-level=4 \
    -Cllvm-args=-sanitizer-coverage-pc-table -Cllvm-args=-sanitizer-coverage-trace-compares \
    -Cllvm-args=-sanitizer-coverage-stack-depth";

/// The flags of `cargo xtask fuzz`.
#[derive(Clone, Copy, Debug, clap::Args)]
pub(crate) struct Args {
    /// How long to look, for both targets together
    #[arg(long, default_value_t = 60, value_name = "N")]
    minutes: u64,
    /// Keep the scripts that together cover all that was found, in place of those kept before
    #[arg(long)]
    keep: bool,
}

/// Looks for the given time; adds what it finds to the corpus below the target directory.
///
/// # Errors
/// A script broke the device; the message says where it is.
pub(crate) fn run(args: Args) -> Result<()> {
    let shell = Shell::new()?;
    let executable = build(&shell)?;
    for target in TARGETS {
        let place = Place::of(target)?;
        place.fill()?;
        let seconds = args.minutes * 60 / u64::try_from(TARGETS.len())?;
        if seconds > 0 {
            look(&shell, &executable, &place, seconds)?;
        }
        if args.keep {
            place.keep(&covered(&shell, &executable, &place)?)?;
        }
    }
    Ok(())
}

/// Where the scripts of a target are.
struct Place {
    target: &'static str,
    /// In the source tree; `cargo test` replays these.
    kept: PathBuf,
    /// All that were found on this machine.
    found: PathBuf,
    crashes: PathBuf,
}

impl Place {
    fn of(target: &'static str) -> Result<Self> {
        let work = project::target_dir()?.join("fuzz/work").join(target);
        let kept = project::root().join("fuzz/__fuzz__").join(target).join("corpus");
        Ok(Self { target, kept, found: work.join("corpus"), crashes: work.join("crashes") })
    }

    fn fill(&self) -> Result<()> {
        for dir in [&self.kept, &self.found, &self.crashes] {
            fs::create_dir_all(dir).with_context(|| format!("cannot make {}", dir.display()))?;
        }
        copy(&files(&self.kept)?, &self.found)
    }

    fn keep(&self, scripts: &[PathBuf]) -> Result<()> {
        fs::remove_dir_all(&self.kept)?;
        fs::create_dir_all(&self.kept)?;
        copy(scripts, &self.kept)?;
        println!("{}: {} scripts kept in {}", self.target, scripts.len(), self.kept.display());
        Ok(())
    }
}

fn files(dir: &Path) -> Result<Vec<PathBuf>> {
    let entries = fs::read_dir(dir).with_context(|| format!("cannot read {}", dir.display()))?;
    entries.map(|entry| Ok(entry?.path())).collect()
}

fn copy(files: &[PathBuf], to: &Path) -> Result<()> {
    for file in files {
        let name = file.file_name().context("a file has a name")?;
        fs::copy(file, to.join(name)).with_context(|| format!("cannot copy {}", file.display()))?;
    }
    Ok(())
}

/// Builds the targets with coverage counters; gives the executable.
fn build(shell: &Shell) -> Result<PathBuf> {
    let machine = cmd!(shell, "rustc -vV").quiet().read()?;
    let machine =
        machine.lines().find_map(|line| line.strip_prefix("host: ")).context("rustc has no host")?;
    shell.change_dir(project::root());
    // With --target the flags are not those of build scripts and procedural macros, which libFuzzer is not linked to.
    let build = cmd!(
        shell,
        "cargo test --package fuzz --profile fuzz --target {machine} --no-run --message-format=json"
    );
    let messages = build
        .env("RUSTFLAGS", RUSTFLAGS)
        .env("CARGO_TARGET_DIR", project::target_dir()?.join("fuzz"))
        .quiet()
        .read()
        .context("the targets do not build; libFuzzer needs a C++ compiler (Debian's g++)")?;
    let executable = |line: &str| {
        let message: Value = serde_json::from_str(line).ok()?;
        Some(PathBuf::from(message.get("executable")?.as_str()?))
    };
    messages.lines().find_map(executable).context("cargo named no executable")
}

/// Runs libFuzzer with these arguments.
fn fuzzer(shell: &Shell, executable: &Path, target: &str, args: &str) -> Result<()> {
    cmd!(shell, "{executable} {target} --exact --nocapture --quiet --test-threads=1")
        .env("BOLERO_LIBFUZZER_ARGS", args)
        .quiet()
        .run()
        .context("libFuzzer ended")
}

fn look(shell: &Shell, executable: &Path, place: &Place, seconds: u64) -> Result<()> {
    let (found, crashes) = (place.found.display(), place.crashes.display());
    // Scripts as long as they need to be from the start, and a step closer to an operation code is progress.
    let args = format!(
        "{found} -artifact_prefix={crashes}/ -timeout=20 -max_total_time={seconds} -max_len=600 -len_control=0 \
         -use_value_profile=1 -print_final_stats=1"
    );
    fuzzer(shell, executable, place.target, &args).with_context(|| {
        format!(
            "a script broke {}; it is in {crashes}. Copy it to {} and `cargo test --package fuzz` plays it",
            place.target,
            place.kept.with_file_name("crashes").display()
        )
    })
}

/// The scripts without which something would not be covered any more, preferring short ones.
fn covered(shell: &Shell, executable: &Path, place: &Place) -> Result<Vec<PathBuf>> {
    let mut scripts: Vec<(u64, PathBuf)> = files(&place.found)?
        .into_iter()
        .map(|path| Ok((fs::metadata(&path)?.len(), path)))
        .collect::<Result<_>>()?;
    scripts.sort();
    let control = place.found.with_file_name("control");
    let names: String = scripts.iter().map(|(_, path)| format!("{}\n", path.display())).collect();
    fs::write(&control, format!("{0}\n{0}\n{names}", scripts.len()))?;
    let args = format!("-merge_control_file={} -merge_inner=1 -max_len=600", control.display());
    fuzzer(shell, executable, place.target, &args)?;
    let report = fs::read_to_string(&control)?;
    let chosen = choose(&report)?;
    ensure!(!chosen.is_empty(), "libFuzzer says of no script what it covers");
    chosen
        .into_iter()
        .map(|index| Ok(scripts.get(index).context("libFuzzer names a script that is none")?.1.clone()))
        .collect()
}

/// libFuzzer's report has a line `COV script edge edge …` for each script.
fn choose(report: &str) -> Result<Vec<usize>> {
    let (mut known, mut chosen) = (BTreeSet::new(), Vec::new());
    for line in report.lines().filter_map(|line| line.strip_prefix("COV ")) {
        let mut words = line.split_whitespace();
        let Some(script) = words.next() else { bail!("libFuzzer's report has an empty line of edges") };
        let mut is_new = false;
        for edge in words {
            is_new |= known.insert(edge.parse::<u64>().context("an edge is a number")?);
        }
        if is_new {
            chosen.push(script.parse()?);
        }
    }
    Ok(chosen)
}

#[cfg(test)]
mod tests {
    use super::{TARGETS, choose};

    #[test]
    fn the_first_script_with_an_edge_is_chosen() {
        let report = "3\n3\na\nb\nc\nSTARTED 0 1\nFT 0 1\nCOV 0 5 6\nCOV 1 6 5\nCOV 2 5 7\n";
        assert_eq!(choose(report).unwrap(), [0, 2]);
        assert!(choose("COV x 1\n").is_err());
    }

    #[test]
    fn the_targets_are_those_of_the_crate() {
        let source = include_str!("../../../fuzz/main.rs");
        let tests = source.matches("#[test]").count();
        assert_eq!(tests, TARGETS.len());
        assert!(TARGETS.iter().all(|target| source.contains(&format!("fn {target}()"))));
    }
}
