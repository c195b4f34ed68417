//! A run of several steps: each is announced, timed and remembered; a failed one does not stop the others.

use std::process::ExitCode;
use std::time::{Duration, Instant};

use anyhow::Result;

use crate::beside::{Beside, Ended};

/// What has been run so far.
#[derive(Default)]
pub(crate) struct Report {
    steps: Vec<Step>,
    notes: Vec<String>,
}

struct Step {
    name: String,
    failure: Option<String>,
    took: Duration,
}

impl Report {
    /// Runs one step; true if it passed.
    pub(crate) fn step(&mut self, name: &str, work: impl FnOnce() -> Result<()>) -> bool {
        eprintln!("── {name}");
        let started = Instant::now();
        let result = work();
        self.ended(name, started.elapsed(), result)
    }

    /// Waits for a step that has been run beside others, and shows what it printed; true if it passed.
    pub(crate) fn beside(&mut self, name: &str, started: Result<Beside>) -> bool {
        eprintln!("── {name}, begun before");
        let Ended { took, result, printed } = match started {
            Ok(started) => started.join(),
            Err(error) => Ended { took: Duration::ZERO, result: Err(error), printed: String::new() },
        };
        eprint!("{printed}");
        self.ended(name, took, result)
    }

    fn ended(&mut self, name: &str, took: Duration, result: Result<()>) -> bool {
        let failure = result.err().map(|error| format!("{error:#}"));
        if let Some(failure) = &failure {
            eprintln!("✗ {name}: {failure}");
        }
        let passed = failure.is_none();
        self.steps.push(Step { name: name.to_owned(), failure, took });
        passed
    }

    /// Keeps something that the reader of the closing table must not miss.
    pub(crate) fn note(&mut self, what: &str) {
        self.notes.push(what.to_owned());
    }

    /// Prints the table and the closing line.
    pub(crate) fn finish(self) -> ExitCode {
        let width = self.steps.iter().map(|step| step.name.chars().count()).max().unwrap_or(0);
        println!();
        for Step { name, failure, took } in &self.steps {
            let result = if failure.is_none() { "passed" } else { "FAILED" };
            println!("{name:width$}  {result}  {:7.1} s", took.as_secs_f64());
        }
        for Step { name, failure, .. } in &self.steps {
            if let Some(first) = failure.as_deref().and_then(|failure| failure.lines().next()) {
                println!("✗ {name}: {first}");
            }
        }
        for note in &self.notes {
            println!("! {note}");
        }
        let failed = self.steps.iter().filter(|step| step.failure.is_some()).count();
        println!("{} passed, {failed} failed", self.steps.len() - failed);
        if failed == 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE }
    }
}
