//! Single SCSI commands from the host, by sg3-utils: what an independent initiator makes of the answers.

use std::path::Path;

use anyhow::{Result, bail};

use crate::host::Lun;
use crate::tool::{self, Said};
use crate::wait::{ENUMERATION, wait_for};

/// The outcome of a command as `sg_raw` tells it.
#[derive(Clone, Debug)]
pub struct Outcome {
    /// `sg_raw`'s exit status: 0 for GOOD, else the sense category of sg3-utils.
    pub status: i32,
    /// All that it said, with the sense data in words of the standard.
    pub text: String,
}

impl Outcome {
    /// The command ended with GOOD.
    #[must_use]
    pub fn good(&self) -> bool {
        self.status == 0
    }

    /// The sense data has this key and additional sense, in the standard's words.
    #[must_use]
    pub fn has_sense(&self, key: &str, additional: &str) -> bool {
        let text = self.text.to_lowercase();
        text.contains(&format!("sense key: {}", key.to_lowercase()))
            && text.contains(&additional.to_lowercase())
    }
}

impl From<Said> for Outcome {
    fn from(said: Said) -> Self {
        Self { status: said.status, text: said.text }
    }
}

/// What a command moves.
#[derive(Clone, Copy, Debug)]
pub enum Data<'a> {
    /// Nothing.
    None,
    /// So many bytes to the host.
    In(usize),
    /// This file to the drive, so many bytes of it.
    Out(&'a Path, usize),
}

/// Sends a command with `sg_raw`.
///
/// # Errors
/// `sg_raw` could not be started.
pub fn command(lun: &Lun, cdb: &[u8], data: Data<'_>) -> Result<Outcome> {
    // It takes some operation codes for NVMe's unless told otherwise.
    let mut args: Vec<String> = ["-v", "--cmdset=1", "-t", "10"].map(str::to_owned).into();
    match data {
        Data::None => {}
        Data::In(len) => args.extend(["-r".into(), len.to_string()]),
        Data::Out(file, len) => {
            args.extend(["-s".into(), len.to_string(), "-i".into(), file.display().to_string()]);
        }
    }
    args.push(lun.sg.display().to_string());
    args.extend(cdb.iter().map(|byte| format!("{byte:02x}")));
    Ok(tool::try_run("sg_raw", args)?.into())
}

/// The data that a command gives, at most `len` bytes. The command must succeed.
///
/// # Errors
/// It did not.
pub fn data_in(lun: &Lun, cdb: &[u8], len: usize) -> Result<Vec<u8>> {
    let file = tempfile::NamedTempFile::new()?;
    let mut args = vec!["-r".to_owned(), len.to_string(), "-o".to_owned(), file.path().display().to_string()];
    args.push(lun.sg.display().to_string());
    args.extend(cdb.iter().map(|byte| format!("{byte:02x}")));
    tool::run("sg_raw", args)?;
    Ok(std::fs::read(file.path())?)
}

/// TEST UNIT READY.
///
/// # Errors
/// `sg_raw` could not be started.
pub fn test_unit_ready(lun: &Lun) -> Result<Outcome> {
    command(lun, &[0; 6], Data::None)
}

/// PREVENT ALLOW MEDIUM REMOVAL, as `sg_prevent` sends it.
///
/// # Errors
/// The drive refused.
pub fn prevent(lun: &Lun, prevent: bool) -> Result<()> {
    let code = if prevent { "--prevent=1" } else { "--prevent=0" };
    tool::run("sg_prevent", [Path::new(code), &lun.sg]).map(drop)
}

/// START STOP UNIT with LoEj: the host's own eject.
///
/// # Errors
/// `sg_raw` could not be started.
pub fn eject(lun: &Lun) -> Result<Outcome> {
    command(lun, &[0x1b, 0, 0, 0, 2, 0], Data::None)
}

/// As [`eject`], once the host's own programs have closed the drive: as long as one of them looks at it, Linux prevents removal.
///
/// # Errors
/// As [`eject`], or they never close it.
pub fn eject_when_closed(lun: &Lun) -> Result<Outcome> {
    wait_for(ENUMERATION, "the host allows removal", || {
        let outcome = eject(lun);
        let is_open = |outcome: &Outcome| outcome.has_sense("Illegal Request", "Medium removal prevented");
        Some(outcome).filter(|outcome| !outcome.as_ref().is_ok_and(is_open))
    })?
}

/// Sends TEST UNIT READY until the unit attentions are used up; gives all outcomes, the last not a unit attention.
///
/// # Errors
/// More unit attentions than any drive may hold.
pub fn drain_attentions(lun: &Lun) -> Result<Vec<Outcome>> {
    let mut outcomes = Vec::new();
    for _ in 0..16 {
        let outcome = test_unit_ready(lun)?;
        let attention = outcome.has_sense("Unit Attention", "");
        outcomes.push(outcome);
        if !attention {
            return Ok(outcomes);
        }
    }
    bail!("unit attentions without end: {outcomes:?}")
}

#[cfg(test)]
mod tests {
    use super::Outcome;

    #[test]
    fn sense_is_found_in_what_sg_raw_says() {
        let text = "SCSI Status: Check Condition\n\nSense Information:\n Fixed format, current; Sense key: Not Ready\n \
                    Additional sense: Medium not present\n";
        let outcome = Outcome { status: 2, text: text.to_owned() };
        assert!(outcome.has_sense("Not Ready", "medium not present"));
        assert!(!outcome.has_sense("Unit Attention", ""));
        assert!(!outcome.has_sense("Not Ready", "Medium may have changed"));
    }
}
