//! `cargo xtask test`: every test there is, on this machine and on the virtual board at both speeds.

use std::ffi::OsString;
use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::{Context, Result, bail, ensure};
use serde_json::Value;
use xshell::{Shell, cmd};

use crate::beside::Beside;
use crate::report::Report;
use crate::vm::{self, Speed};
use crate::{bench, firmware, lint, project};

/// A board that has not finished by then is stuck: on a slow machine the longest takes 1,600 seconds, of the hour that all may take.
const BOARD_LIMIT: u64 = 2000;

/// The flags of `cargo xtask test`.
#[derive(Clone, Copy, Debug, clap::Args)]
pub(crate) struct Args {
    /// Leave the virtual board out
    #[arg(long)]
    quick: bool,
}

/// Runs everything and reports all failures.
pub(crate) fn run(args: Args) -> Result<ExitCode> {
    let mut report = Report::default();
    let shell = Shell::new()?;
    shell.change_dir(project::root());
    // It waits for the network more than for a processor.
    let set_up = (!args.quick).then(|| Beside::start(&["setup"]));
    lint::steps(&mut report)?;
    let board = set_up.is_some_and(|set_up| report.beside("set-up", set_up));
    report.step("tests on this machine", || {
        cmd!(shell, "cargo test --quiet --workspace --exclude hw-tests").quiet().run()?;
        cmd!(shell, "cargo test --quiet --package hw-tests --lib").quiet().run().context("a test failed")
    });
    if board {
        // One processor counts instructions while the other builds.
        let instructions = Beside::start(&["instructions"]);
        let mut executables = Vec::new();
        report.step("build for the board", || {
            project::build_release(&shell)?;
            executables = board_tests(&shell)?;
            Ok(())
        });
        report.beside("instructions", instructions);
        // It counts instructions as time, so that it does not matter to it what else goes on; its one processor is one of two.
        let bench = Beside::start(&["bench", "--short", "--compare", bench::KEPT]);
        for (name, path) in &executables {
            for speed in [Speed::High, Speed::Super] {
                report.step(&format!("board, {} speed: {name}", speed.name()), || on_board(path, speed));
            }
        }
        report.beside("speed against the kept table", bench);
        report.step("firmware boots", || firmware::run(&firmware::Args::short()).map(drop));
    }
    if args.quick {
        report.note("--quick: the virtual board's tests were NOT run");
    }
    Ok(report.finish())
}

/// Builds hw-tests; gives names and paths of its test executables.
fn board_tests(shell: &Shell) -> Result<Vec<(String, PathBuf)>> {
    let build = cmd!(shell, "cargo test --quiet --package hw-tests --no-run --release --message-format=json");
    let messages = build.quiet().read().context("hw-tests do not build")?;
    let executables: Vec<_> = messages.lines().filter_map(test_executable).collect();
    ensure!(!executables.is_empty(), "hw-tests have no test executable");
    Ok(executables)
}

fn test_executable(message: &str) -> Option<(String, PathBuf)> {
    let message: Value = serde_json::from_str(message).ok()?;
    let target = message.get("target")?;
    let is_test = target.get("kind")?.as_array()?.iter().any(|kind| kind == "test");
    let path = message.get("executable")?.as_str()?;
    is_test.then(|| Some((target.get("name")?.as_str()?.to_owned(), PathBuf::from(path))))?
}

fn on_board(executable: &PathBuf, speed: Speed) -> Result<()> {
    let command: Vec<OsString> = vec![executable.into(), "--test-threads=1".into()];
    let args = vm::Args { timeout: BOARD_LIMIT, ..vm::Args::new(speed, command) };
    let mut printed = Vec::new();
    let status = vm::run_with(&args, |piece| {
        printed.extend_from_slice(piece);
        vm::to_stdout(piece)
    })?;
    verdict(status, &String::from_utf8_lossy(&printed))
}

/// Judges by the exit status and by the closing line, which alone tells what was skipped.
fn verdict(status: u8, printed: &str) -> Result<()> {
    ensure!(status == 0, "exit status {status}");
    let Some(closing) = printed.lines().rev().find_map(|line| line.trim().strip_prefix("test result: "))
    else {
        bail!("no closing line `test result: …`");
    };
    let count = |what: &str| {
        let words: Vec<&str> = closing.split([' ', ';', '.']).filter(|word| !word.is_empty()).collect();
        let number = words
            .windows(2)
            .find_map(|pair| (pair.get(1) == Some(&what)).then(|| pair.first()?.parse::<u32>().ok())?);
        number.with_context(|| format!("the closing line does not say how many were {what}: {closing}"))
    };
    let (passed, failed, ignored) = (count("passed")?, count("failed")?, count("ignored")?);
    ensure!(failed == 0, "{failed} tests failed");
    ensure!(ignored == 0, "{ignored} tests were skipped; on the virtual board all must run");
    ensure!(passed > 0, "no test ran");
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::{test_executable, verdict};

    #[test]
    fn only_a_run_without_failure_and_skip_passes() {
        let closing = |p, f, i| {
            format!(
                "\ntest result: ok. {p} passed; {f} failed; {i} ignored; 0 measured; 0 filtered out; finished in 0.1s\n\n"
            )
        };
        assert!(verdict(0, &closing(3, 0, 0)).is_ok());
        assert!(verdict(101, &closing(3, 0, 0)).is_err());
        assert!(verdict(0, &closing(3, 1, 0)).is_err());
        assert!(verdict(0, &closing(3, 0, 1)).is_err());
        assert!(verdict(0, &closing(0, 0, 0)).is_err());
        assert!(verdict(0, "running 3 tests").is_err());
        assert!(verdict(0, "test result: ok.").is_err());
    }

    #[test]
    fn only_test_executables_run_on_the_board() {
        let message = |kind: &str| {
            format!(
                r#"{{"reason":"compiler-artifact","target":{{"kind":["{kind}"],"name":"board"}},"executable":"/t/board"}}"#
            )
        };
        assert_eq!(test_executable(&message("test")).unwrap().0, "board");
        assert_eq!(test_executable(&message("lib")), None);
        assert_eq!(test_executable("not json"), None);
    }
}
