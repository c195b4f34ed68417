//! `cargo xtask instructions`: how many instructions the pure rooms take, against the counts kept in the source tree.
//!
//! The counts come from `benches/instructions.rs` under Valgrind and repeat to the instruction on every amd64 machine with the same
//! compiler and C library. Called by `test`, too.

use std::collections::BTreeMap;
use std::fs;
use std::path::PathBuf;

use anyhow::{Context, Result, bail, ensure};
use serde_json::{Value, json};
use xshell::{Shell, cmd};

use crate::{project, setup};

/// Counts by the name of the benchmark.
type Counts = BTreeMap<String, u64>;

/// More than this many hundredths above the kept count is too many.
const TOLERANCE_PERCENT: u64 = 3;
/// What another choice of the compiler's, after a change elsewhere, may add to the shortest of them.
const SLACK: u64 = 25;

/// The flags of `cargo xtask instructions`.
#[derive(Clone, Copy, Debug, Default, clap::Args)]
pub(crate) struct Args {
    /// Keep these counts instead of comparing with those kept
    #[arg(long)]
    keep: bool,
}

/// The kept counts, and the compiler that they are of.
#[derive(Debug, PartialEq, Eq)]
struct Kept {
    rustc: String,
    counts: Counts,
}

/// Counts, and compares or keeps.
///
/// # Errors
/// A count has grown, or cannot be had.
pub(crate) fn run(args: Args) -> Result<()> {
    ensure!(std::env::consts::ARCH == "x86_64", "instructions are kept for amd64 only");
    let runner = setup::gungraun()?;
    let shell = Shell::new()?;
    shell.change_dir(project::root());
    let printed =
        cmd!(shell, "cargo bench --quiet --package ringdrive --bench instructions -- --output-format=json")
            .env("GUNGRAUN_RUNNER", runner)
            .quiet()
            .read()
            .context("instructions cannot be counted")?;
    let now = Kept { rustc: cmd!(shell, "rustc --version").quiet().read()?, counts: counts(&printed)? };
    let path = kept_path();
    if args.keep {
        return fs::write(&path, now.to_json()?).with_context(|| format!("cannot write {}", path.display()));
    }
    let text = fs::read_to_string(&path).with_context(|| format!("cannot read {}", path.display()))?;
    let kept = Kept::from_json(&text).with_context(|| format!("{} has no counts", path.display()))?;
    print!("{}", table(&kept.counts, &now.counts));
    verdict(&kept, &now)
}

fn kept_path() -> PathBuf {
    project::root().join("benches/instructions.json")
}

/// Reads gungraun's output: a JSON document for each benchmark, on a line of its own.
fn counts(printed: &str) -> Result<Counts> {
    let count = |line: &str| {
        let summary: Value = serde_json::from_str(line).ok()?;
        let path = summary.get("module_path")?.as_str()?;
        let function = path.rsplit("::").next()?;
        let name = match summary.get("id").and_then(Value::as_str) {
            Some(id) => format!("{function}.{id}"),
            None => function.to_owned(),
        };
        let instructions = summary.pointer("/profiles/0/data/total/metrics/Ir/values/new")?.as_u64()?;
        Some((name, instructions))
    };
    let lines = printed.lines().filter(|line| !line.trim().is_empty());
    lines.map(|line| count(line).with_context(|| format!("gungraun's output has no count: {line}"))).collect()
}

impl Kept {
    fn from_json(text: &str) -> Result<Self> {
        let document: Value = serde_json::from_str(text)?;
        let rustc = document.get("rustc").and_then(Value::as_str).context("no `rustc`")?.to_owned();
        let counts = document.get("instructions").and_then(Value::as_object).context("no `instructions`")?;
        let count = |(name, count): (&String, &Value)| Some((name.clone(), count.as_u64()?));
        let counts = counts.iter().map(count).collect::<Option<_>>().context("a count is no number")?;
        Ok(Self { rustc, counts })
    }

    fn to_json(&self) -> Result<String> {
        let document = json!({ "rustc": self.rustc, "instructions": self.counts });
        Ok(serde_json::to_string_pretty(&document)? + "\n")
    }
}

fn table(kept: &Counts, now: &Counts) -> String {
    let row = |(name, count): (&String, &u64)| {
        let was = kept.get(name).map_or_else(|| "none".to_owned(), u64::to_string);
        format!("{name:32} {was:>8} kept {count:>8} now\n")
    };
    now.iter().map(row).collect()
}

fn verdict(kept: &Kept, now: &Kept) -> Result<()> {
    const KEEP: &str = "run `cargo xtask instructions --keep` and commit benches/instructions.json";
    if !kept.counts.keys().eq(now.counts.keys()) {
        bail!("the benchmarks are others than those kept; {KEEP}");
    }
    let grown = |(name, was): (&String, &u64)| {
        let is = *now.counts.get(name)?;
        let limit = was + was * TOLERANCE_PERCENT / 100 + SLACK;
        (is > limit).then(|| format!("{name} takes {is} instructions, was {was}"))
    };
    let grown: Vec<_> = kept.counts.iter().filter_map(grown).collect();
    if grown.is_empty() {
        return Ok(());
    }
    let compiler = match kept.rustc == now.rustc {
        true => String::new(),
        false => format!(" (kept with {}; this is {}, which may be the reason)", kept.rustc, now.rustc),
    };
    bail!("{}{compiler}; find out why, or if it is worth it {KEEP}", grown.join("; "))
}

#[cfg(test)]
mod tests {
    use super::{Counts, Kept, counts, kept_path, verdict};

    fn kept(rustc: &str, counts: &[(&str, u64)]) -> Kept {
        let counts: Counts = counts.iter().map(|(name, count)| ((*name).to_owned(), *count)).collect();
        Kept { rustc: rustc.to_owned(), counts }
    }

    #[test]
    fn growth_is_refused_beyond_the_tolerance_and_shrinking_never() {
        let before = kept("1", &[("a", 1000)]);
        for (count, good) in [(1000, true), (10, true), (1055, true), (1056, false)] {
            assert_eq!(verdict(&before, &kept("1", &[("a", count)])).is_ok(), good, "{count}");
        }
    }

    #[test]
    fn another_compiler_is_named_beside_what_has_grown() {
        let grown = verdict(&kept("rustc 1", &[("a", 10)]), &kept("rustc 2", &[("a", 1000)]));
        let message = grown.unwrap_err().to_string();
        assert!(message.contains("a takes 1000 instructions, was 10"), "{message}");
        assert!(message.contains("rustc 1") && message.contains("rustc 2"), "{message}");
    }

    #[test]
    fn a_benchmark_that_is_not_kept_or_is_gone_is_told() {
        let (one, two) = (kept("1", &[("a", 1)]), kept("1", &[("a", 1), ("b", 1)]));
        assert!(verdict(&one, &two).is_err());
        assert!(verdict(&two, &one).is_err());
    }

    /// As gungraun 0.20 writes it, shortened; the second has an older run beside it.
    #[test]
    fn counts_are_read_from_summaries() {
        let summary = |path: &str, id: &str, values: &str| {
            format!(
                r#"{{"module_path":"{path}"{id},"profiles":[{{"tool":"Callgrind","data":{{"total":{{"metrics":{{"Ir":{{"values":{values}}}}}}}}}}}]}}"#
            )
        };
        let first = summary("instructions::rooms::map", "", r#"{"new":70}"#);
        let second =
            summary("instructions::rooms::dispatch", r#","id":"read_10""#, r#"{"new":393,"old":373}"#);
        let read = counts(&format!("{first}\n{second}\n")).unwrap();
        assert_eq!(read, kept("", &[("map", 70), ("dispatch.read_10", 393)]).counts);
        assert!(counts("warning: something").is_err());
    }

    #[test]
    fn what_is_kept_is_whole_and_in_the_form_that_is_written() {
        let text = std::fs::read_to_string(kept_path()).unwrap();
        let kept = Kept::from_json(&text).unwrap();
        assert!(kept.counts.len() >= 7, "{kept:?}");
        assert_eq!(kept.to_json().unwrap(), text);
    }
}
