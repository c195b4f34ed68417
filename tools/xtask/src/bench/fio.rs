//! The host: fio, one request at a time, past the host's cache.

use std::path::Path;

use anyhow::{Context, Result, ensure};
use serde_json::Value;
use xshell::{Shell, cmd};

use super::plan::{Test, float};

/// Moves `amount` bytes; gives megabytes per second.
pub(super) fn run(shell: &Shell, disk: &Path, test: Test, amount: u64) -> Result<f64> {
    let (pattern, block, span) = (test.pattern.fio(), test.block.to_string(), test.span().to_string());
    let amount = amount.to_string();
    let command = cmd!(
        shell,
        "fio --name=bench --filename={disk} --ioengine=psync --direct=1 --thread --rw={pattern} --bs={block}
         --size={span} --io_size={amount} --randrepeat=1 --output-format=json"
    );
    let printed = command.quiet().ignore_stderr().read().with_context(|| format!("fio, {}", test.name()))?;
    let direction = if test.pattern.is_write() { "write" } else { "read" };
    speed(&printed, direction, &amount).with_context(|| format!("fio, {}, printed:\n{printed}", test.name()))
}

fn speed(printed: &str, direction: &str, amount: &str) -> Result<f64> {
    // Notes may come before the report.
    let from = printed.find('{').context("no report")?;
    let report: Value = serde_json::from_str(printed.get(from..).unwrap_or_default())?;
    let job = report.pointer("/jobs/0").context("no job")?;
    ensure!(job.get("error").and_then(Value::as_i64) == Some(0), "an I/O error");
    let number = |name: &str| {
        job.get(direction).and_then(|side| side.get(name)?.as_u64()).with_context(|| format!("no {name}"))
    };
    let (bytes, milliseconds) = (number("io_bytes")?, number("runtime")?);
    ensure!(bytes.to_string() == amount, "{bytes} bytes moved, not {amount}");
    ensure!(milliseconds > 0, "no time passed");
    Ok(float(bytes) / float(milliseconds) / 1e3)
}

#[cfg(test)]
mod tests {
    use super::speed;

    #[test]
    fn only_a_report_without_error_and_with_every_byte_counts() {
        let report = |error, bytes| {
            format!(
                r#"note: something
                {{"jobs": [{{"error": {error}, "read": {{"io_bytes": {bytes}, "runtime": 500}}}}]}}"#
            )
        };
        let found = speed(&report(0, 4_000_000), "read", "4000000").unwrap();
        assert!((found - 8.0).abs() < 1e-9);
        assert!(speed(&report(5, 4_000_000), "read", "4000000").is_err());
        assert!(speed(&report(0, 3_999_999), "read", "4000000").is_err());
        assert!(speed(&report(0, 4_000_000), "write", "4000000").is_err());
        assert!(speed("nothing", "read", "1").is_err());
    }
}
