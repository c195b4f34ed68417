//! Two tables beside each other, as `--json` writes them: a run and the kept one, or two runs.
//!
//! Rows are the same if link, source, test and engine are. A figure's change is in percent of the earlier one.

use std::fmt::Write;
use std::fs;
use std::path::Path;

use anyhow::{Context, Result, bail, ensure};
use serde_json::Value;

use super::KEPT;

/// What names a row.
const NAMES: [&str; 4] = ["link", "source", "test", "engine"];
/// How much worse than the kept table a figure may be.
const KEPT_WITHIN: f64 = 3.0;

/// A figure of a row.
struct Figure {
    name: &'static str,
    better: Better,
    whose: Whose,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Better {
    Higher,
    Lower,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Whose {
    Ours,
    Kernels,
}

const fn figure(name: &'static str, better: Better, whose: Whose) -> Figure {
    Figure { name, better, whose }
}

const FIGURES: [Figure; 6] = [
    figure("kernel_mb_s", Better::Higher, Whose::Kernels),
    figure("ours_mb_s", Better::Higher, Whose::Ours),
    figure("ratio", Better::Higher, Whose::Ours),
    figure("kernel_cpu_us_per_mib", Better::Lower, Whose::Kernels),
    figure("ours_cpu_us_per_mib", Better::Lower, Whose::Ours),
    figure("board_cpu_ratio", Better::Lower, Whose::Ours),
];

/// A figure in both tables.
struct Change<'a> {
    row: &'a Value,
    figure: &'static Figure,
    before: f64,
    after: f64,
}

impl Change<'_> {
    fn percent(&self) -> f64 {
        100.0 * (self.after - self.before) / self.before
    }

    /// Percent; below zero if it got better.
    fn worse_by(&self) -> f64 {
        match self.figure.better {
            Better::Higher => -self.percent(),
            Better::Lower => self.percent(),
        }
    }
}

/// Reads what `--json` wrote.
pub(super) fn read(path: &Path) -> Result<Vec<Value>> {
    let context = || {
        format!("{} is no table; `cargo xtask bench --json {}` writes one", path.display(), path.display())
    };
    let text = fs::read_to_string(path).with_context(context)?;
    serde_json::from_str(&text).with_context(context)
}

/// Fails if a figure of ours is worse than the kept one.
pub(super) fn against_kept(kept: &[Value], now: &[Value]) -> Result<()> {
    let mut changes = changes(kept, now, Rows::AllOfAfter)?;
    changes.retain(|change| change.figure.whose == Whose::Ours && change.percent().abs() > KEPT_WITHIN);
    let (worse, better): (Vec<_>, Vec<_>) = changes.into_iter().partition(|change| change.worse_by() > 0.0);
    if !better.is_empty() {
        println!("Better than the kept table:\n{}", listed(&better, ["kept", "now"]));
    }
    ensure!(
        worse.is_empty(),
        "worse than the kept table by more than {KEPT_WITHIN} %; \
         if this is meant, run `cargo xtask bench --json {KEPT}` and commit it\n{}",
        listed(&worse, ["kept", "now"])
    );
    println!("No figure of {} rows is worse than the kept one by more than {KEPT_WITHIN} %.", now.len());
    Ok(())
}

/// Prints the largest difference of each figure; fails if one is above `within` percent.
pub(super) fn two_runs(before: &[Value], after: &[Value], within: f64) -> Result<()> {
    let mut changes = changes(before, after, Rows::OfBoth)?;
    ensure!(!changes.is_empty(), "the two tables have no row in common");
    changes.sort_by(|one, other| other.percent().abs().total_cmp(&one.percent().abs()));
    let largest = |figure: &Figure| changes.iter().find(|change| change.figure.name == figure.name);
    let largest: Vec<&Change<'_>> = FIGURES.iter().filter_map(largest).collect();
    println!("The largest difference of each figure:\n{}", listed(largest, ["first", "second"]));
    changes.retain(|change| change.percent().abs() > within);
    ensure!(
        changes.is_empty(),
        "{} figures differ by more than {within} %; look for what differed between the runs\n{}",
        changes.len(),
        listed(&changes, ["first", "second"])
    );
    Ok(())
}

/// Which rows are compared.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Rows {
    /// Those that both have.
    OfBoth,
    /// All that were measured now; a missing one is an error.
    AllOfAfter,
}

fn changes<'a>(before: &[Value], after: &'a [Value], rows: Rows) -> Result<Vec<Change<'a>>> {
    let mut changes = Vec::new();
    for row in after {
        let same = |other: &&Value| NAMES.iter().all(|name| other.get(name) == row.get(name));
        let Some(earlier) = before.iter().find(same) else {
            if rows == Rows::OfBoth {
                continue;
            }
            bail!(
                "the kept table has no row `{}`; run `cargo xtask bench --json {KEPT}` and commit it",
                name(row)
            );
        };
        for figure in &FIGURES {
            let number = |row: &Value| {
                let number = row.get(figure.name).and_then(Value::as_f64).filter(|number| *number > 0.0);
                number.with_context(|| format!("row `{}` has no {}", name(row), figure.name))
            };
            changes.push(Change { row, figure, before: number(earlier)?, after: number(row)? });
        }
    }
    Ok(changes)
}

fn name(row: &Value) -> String {
    let words = NAMES.map(|name| row.get(name).and_then(Value::as_str).unwrap_or("?"));
    words.join(" ")
}

/// A line for each change.
fn listed<'a>(changes: impl IntoIterator<Item = &'a Change<'a>>, [before, after]: [&str; 2]) -> String {
    let mut text = format!("  {:<36} {:<22} {before:>9} {after:>9}  change", "row", "figure");
    for change in changes {
        let _ = write!(
            text,
            "\n  {:<36} {:<22} {:>9} {:>9} {:>+6.1} %",
            name(change.row),
            change.figure.name,
            change.before,
            change.after,
            change.percent()
        );
    }
    text
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::{FIGURES, against_kept, two_runs};

    fn row(test: &str) -> Value {
        json!({
            "link": "ss", "source": "tmpfs", "test": test, "engine": "aio",
            "kernel_mb_s": 200.0, "ours_mb_s": 300.0, "ratio": 1.5,
            "kernel_cpu_us_per_mib": 900.0, "ours_cpu_us_per_mib": 450.0, "board_cpu_ratio": 0.9,
        })
    }

    fn with(figure: &str, factor: f64) -> Vec<Value> {
        let mut row = row("one");
        row[figure] = json!(row[figure].as_f64().unwrap() * factor);
        vec![row]
    }

    #[test]
    fn only_what_is_ours_and_worse_by_more_than_three_percent_fails() {
        let kept = vec![row("one"), row("two")];
        for (figure, worse, better) in [
            ("ours_mb_s", 0.965, 1.1),
            ("ratio", 0.965, 1.1),
            ("ours_cpu_us_per_mib", 1.035, 0.9),
            ("board_cpu_ratio", 1.035, 0.9),
        ] {
            let error = against_kept(&kept, &with(figure, worse)).unwrap_err().to_string();
            for told in
                [figure, "ss tmpfs one aio", "3.5 %", "cargo xtask bench --json docs/performance.json"]
            {
                assert!(error.contains(told), "{told} is not in: {error}");
            }
            against_kept(&kept, &with(figure, better)).unwrap();
            against_kept(&kept, &with(figure, 1.0 + (worse - 1.0) * 0.8)).unwrap();
        }
        for figure in ["kernel_mb_s", "kernel_cpu_us_per_mib"] {
            against_kept(&kept, &with(figure, 0.5)).unwrap();
            against_kept(&kept, &with(figure, 2.0)).unwrap();
        }
    }

    #[test]
    fn a_row_or_figure_that_is_missing_is_an_error() {
        let error = against_kept(&[row("one")], &[row("one"), row("two")]).unwrap_err().to_string();
        assert!(error.contains("no row `ss tmpfs two aio`"), "{error}");
        let mut kept = row("one");
        kept["ratio"] = Value::Null;
        let error = against_kept(&[kept], &[row("one")]).unwrap_err().to_string();
        assert!(error.contains("has no ratio"), "{error}");
    }

    #[test]
    fn two_runs_agree_if_no_figure_of_either_side_differs_either_way() {
        let first = [row("one")];
        for figure in &FIGURES {
            for factor in [0.97, 1.03] {
                let second = with(figure.name, factor);
                let error = two_runs(&first, &second, 2.0).unwrap_err().to_string();
                assert!(error.contains(figure.name), "{error}");
                two_runs(&first, &second, 4.0).unwrap();
            }
        }
        assert!(two_runs(&first, &[row("two")], 2.0).is_err(), "nothing was compared");
    }
}
