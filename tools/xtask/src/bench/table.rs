//! From what the board printed to rows: as a table for people, as JSON for programs.

use std::fmt::Write;

use anyhow::{Context, Result};
use serde_json::{Value, json};

use super::plan::{Scale, Source, float};
use super::{Engine, link_name};
use crate::vm::Speed;

/// One test, by the kernel and by us.
#[derive(Clone, Debug)]
pub(super) struct Row {
    speed: Speed,
    source: Source,
    test: String,
    engine: Engine,
    limit: f64,
    kernel: Figures,
    ours: Figures,
}

#[derive(Clone, Copy, Debug)]
struct Figures {
    mb_s: f64,
    cpu: f64,
    board: f64,
}

/// What the board printed, line for line; what is no JSON is not the board's.
pub(super) fn parse(printed: &str) -> Vec<Value> {
    printed.lines().filter_map(|line| serde_json::from_str(line).ok()).collect()
}

/// The rows of one board, in the order of the plan.
pub(super) fn rows(
    lines: &[Value],
    speed: Speed,
    scale: Scale,
    sources: &[Source],
    engines: &[Engine],
) -> Result<Vec<Row>> {
    let mut rows = Vec::new();
    for &engine in engines {
        for &source in sources {
            for test in source.tests(speed, scale) {
                let name = test.name();
                let by = |by: &str| {
                    figures(lines, source, &name, by)
                        .with_context(|| format!("the board did not tell of {}, {name}, {by}", source.name()))
                };
                let (kernel, ours) = (by("kernel")?, by(engine.name())?);
                let limit = test.limit(speed);
                rows.push(Row { speed, source, test: name, engine, limit, kernel, ours });
            }
        }
    }
    Ok(rows)
}

/// The daemon's peak memory, a sentence for each set of drives.
pub(super) fn peaks(lines: &[Value]) -> Vec<String> {
    let mut peaks: Vec<(&str, u64)> = Vec::new();
    for line in lines {
        let Some(peak) = line.get("peak_memory_kib").and_then(Value::as_u64) else { continue };
        let drives = line.get("drives").and_then(Value::as_str).unwrap_or("one drive");
        match peaks.iter_mut().find(|(known, _)| *known == drives) {
            Some((_, most)) => *most = peak.max(*most),
            None => peaks.push((drives, peak)),
        }
    }
    let sentence =
        |(drives, peak)| format!("Peak memory of ringdrived: {:.1} MiB with {drives}.", float(peak) / 1024.0);
    peaks.into_iter().map(sentence).collect()
}

fn figures(lines: &[Value], source: Source, test: &str, by: &str) -> Option<Figures> {
    let line = lines
        .iter()
        .find(|line| line["source"] == source.name() && line["test"] == test && line["by"] == by)?;
    let number = |name: &str| line.get(name)?.as_f64();
    Some(Figures {
        mb_s: number("mb_s")?,
        cpu: number("cpu_us_per_mib")?,
        board: number("board_us_per_mib")?,
    })
}

impl Row {
    fn ratio(&self) -> f64 {
        self.ours.mb_s / self.kernel.mb_s
    }

    fn board_ratio(&self) -> f64 {
        self.ours.board / self.kernel.board
    }

    /// With the field names that others rely on.
    pub(super) fn json(&self) -> Value {
        json!({
            "link": link_name(self.speed),
            "source": self.source.name(),
            "test": self.test,
            "kernel_mb_s": round(self.kernel.mb_s, 2),
            "ours_mb_s": round(self.ours.mb_s, 2),
            "ratio": round(self.ratio(), 3),
            "kernel_cpu_us_per_mib": round(self.kernel.cpu, 0),
            "ours_cpu_us_per_mib": round(self.ours.cpu, 0),
            "board_cpu_ratio": round(self.board_ratio(), 3),
            "engine": self.engine.name(),
        })
    }
}

fn round(number: f64, digits: i32) -> f64 {
    let scale = 10f64.powi(digits);
    (number * scale).round() / scale
}

/// A Markdown table, aligned, so that it can be kept in a document as it is.
pub(super) fn markdown(rows: &[Row]) -> String {
    let head = [
        "link",
        "source",
        "test",
        "engine",
        "kernel MB/s",
        "ours MB/s",
        "ratio",
        "of limit",
        "kernel µs/MiB",
        "ours µs/MiB",
        "CPU ratio",
        "board CPU",
    ];
    let mut cells = vec![head.map(str::to_owned)];
    for row in rows {
        let Row { kernel, ours, .. } = row;
        cells.push([
            link_name(row.speed).to_owned(),
            row.source.name().to_owned(),
            row.test.clone(),
            row.engine.name().to_owned(),
            format!("{:.1}", kernel.mb_s),
            format!("{:.1}", ours.mb_s),
            format!("{:.2}", row.ratio()),
            format!("{:.0} %", 100.0 * ours.mb_s / row.limit),
            format!("{:.0}", kernel.cpu),
            format!("{:.0}", ours.cpu),
            format!("{:.2}", ours.cpu / kernel.cpu),
            format!("{:.2}", row.board_ratio()),
        ]);
    }
    let widths: Vec<usize> = (0..head.len())
        .map(|column| {
            let width = |line: &[String; 12]| line.get(column).map_or(0, |cell| cell.chars().count());
            cells.iter().map(width).max().unwrap_or(0)
        })
        .collect();
    let mut table = String::new();
    for (index, line) in cells.iter().enumerate() {
        for (column, (cell, &width)) in line.iter().zip(&widths).enumerate() {
            let _ = if column < 4 {
                write!(table, "| {cell:<width$} ")
            } else {
                write!(table, "| {cell:>width$} ")
            };
        }
        table.push_str("|\n");
        if index == 0 {
            for (column, &width) in widths.iter().enumerate() {
                let dashes = "-".repeat(width);
                table.push_str(&if column < 4 { format!("|-{dashes}-") } else { format!("|-{dashes}:") });
            }
            table.push_str("|\n");
        }
    }
    table
}

#[cfg(test)]
mod tests {
    use super::{Engine, Result, Row, Scale, Source, Speed, Value, markdown, parse, peaks};

    fn rows(engine: Engine) -> Result<Vec<Row>> {
        super::rows(&printed(), Speed::High, Scale::Full, &[Source::Nfs], &[engine])
    }

    fn printed() -> Vec<Value> {
        let mut printed = String::from("not JSON\n");
        for (by, speed, cpu) in [("kernel", 20.0, 1000.0), ("aio", 50.0, 500.0)] {
            for test in Source::Nfs.tests(Speed::High, Scale::Full) {
                let line = serde_json::json!({
                    "source": "nfs", "test": test.name(), "by": by,
                    "mb_s": speed, "cpu_us_per_mib": cpu, "board_us_per_mib": cpu * 2.0,
                });
                printed.push_str(&format!("{line}\n"));
            }
        }
        for (drives, peak) in [("one drive", 4096), ("one drive", 2048), ("two drives", 8192)] {
            let line = serde_json::json!({ "drives": drives, "by": "aio", "peak_memory_kib": peak });
            printed.push_str(&format!("{line}\n"));
        }
        parse(&printed)
    }

    #[test]
    fn a_row_has_exactly_the_agreed_fields() {
        let rows = rows(Engine::Aio).unwrap();
        assert_eq!(rows.len(), 3);
        let expected = serde_json::json!({
            "link": "hs", "source": "nfs", "test": "sequential read 120 KiB",
            "kernel_mb_s": 20.0, "ours_mb_s": 50.0, "ratio": 2.5,
            "kernel_cpu_us_per_mib": 1000.0, "ours_cpu_us_per_mib": 500.0,
            "board_cpu_ratio": 0.5, "engine": "aio",
        });
        assert_eq!(rows[0].json(), expected);
    }

    #[test]
    fn a_missing_figure_is_an_error() {
        let error = rows(Engine::Sync).unwrap_err();
        assert!(error.to_string().contains("sync"), "{error}");
    }

    #[test]
    fn of_several_peaks_the_highest_counts() {
        let expected = [("4.0", "one drive"), ("8.0", "two drives")]
            .map(|(peak, drives)| format!("Peak memory of ringdrived: {peak} MiB with {drives}."));
        assert_eq!(peaks(&printed()), expected);
    }

    #[test]
    fn every_line_of_the_table_is_as_long_as_the_first() {
        let table = markdown(&rows(Engine::Aio).unwrap());
        let lengths: Vec<usize> = table.lines().map(|line| line.chars().count()).collect();
        assert_eq!(lengths.len(), 5);
        assert!(lengths.windows(2).all(|pair| pair[0] == pair[1]), "{table}");
    }
}
