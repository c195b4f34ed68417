//! Another command of this program, run beside what goes on: what it prints is kept until it has ended.

use std::env;
use std::process::{Command, Stdio};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, anyhow, ensure};

use crate::project;

/// A command that runs, and what becomes of it.
pub(crate) struct Beside(JoinHandle<Ended>);

/// How it ended, and how long it took.
pub(crate) struct Ended {
    pub(crate) took: Duration,
    pub(crate) result: Result<()>,
    /// Both of its outputs.
    pub(crate) printed: String,
}

impl Beside {
    /// Starts `cargo xtask` with these arguments.
    pub(crate) fn start(args: &[&str]) -> Result<Self> {
        let mut command = Command::new(env::current_exe().context("cannot tell where this program is")?);
        command.args(args).current_dir(project::root()).stdin(Stdio::null());
        Ok(Self(thread::spawn(move || {
            let started = Instant::now();
            let output = command.output();
            let took = started.elapsed();
            let mut printed = String::new();
            let result = output.context("cannot start this program anew").and_then(|output| {
                for stream in [&output.stderr, &output.stdout] {
                    printed.push_str(&String::from_utf8_lossy(stream));
                }
                ensure!(output.status.success(), "ended with {}; see above", output.status);
                Ok(())
            });
            Ended { took, result, printed }
        })))
    }

    /// Waits for its end.
    pub(crate) fn join(self) -> Ended {
        self.0.join().unwrap_or_else(|_| Ended {
            took: Duration::ZERO,
            result: Err(anyhow!("the thread that waits for it panicked")),
            printed: String::new(),
        })
    }
}
