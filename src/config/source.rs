//! Checks of single values, and errors that say where the value stands and what to write instead.

use std::ops::Range;
use std::path::PathBuf;

use toml::Spanned;

use super::ConfigError;
use crate::gadget;
use crate::schedule::{Cpus, RealtimePriority, Schedule};

const NAME_LEN_MAX: usize = 32;
const USB_STRING_UNITS_MAX: usize = 126;

/// The text, for errors that say where.
pub(super) struct Source<'a> {
    pub(super) text: &'a str,
    pub(super) origin: &'a str,
}

impl Source<'_> {
    pub(super) fn invalid(
        &self,
        span: Range<usize>,
        cause: impl Into<String>,
        cure: impl Into<String>,
    ) -> ConfigError {
        let before = self.text.get(..span.start).unwrap_or(self.text);
        let line_start = before.rfind('\n').map_or(0, |newline| newline + 1);
        ConfigError::Invalid {
            origin: self.origin.to_owned(),
            line: before.matches('\n').count() + 1,
            column: before.get(line_start..).unwrap_or_default().chars().count() + 1,
            cause: cause.into(),
            cure: cure.into(),
        }
    }

    pub(super) fn syntax(&self, error: &toml::de::Error) -> ConfigError {
        let message = error.message().trim_end().replace('\n', ", ");
        let cure = nearest(&message).map_or_else(
            || "docs/configuration.md lists every key with its values".to_owned(),
            |near| format!("did you mean `{near}`?"),
        );
        self.invalid(error.span().unwrap_or(0..0), message, cure)
    }

    /// The name of a gadget or function: one for the command line, and one that the gadget takes.
    pub(super) fn gadget_name(&self, value: Spanned<String>, what: &str) -> Result<String, ConfigError> {
        let span = value.span();
        let name = self.name(value, what)?;
        if gadget::is_name(&name) {
            return Ok(name);
        }
        Err(self.invalid(
            span,
            format!("the {what} {name:?} cannot be a directory in configfs"),
            format!("use 1 to {NAME_LEN_MAX} letters, digits, `_` and `-`, the first not `-`"),
        ))
    }

    /// A name on a command line and in a log.
    pub(super) fn name(&self, value: Spanned<String>, what: &str) -> Result<String, ConfigError> {
        let span = value.span();
        let name = value.into_inner();
        let plain = |c: char| c.is_ascii_alphanumeric() || matches!(c, '_' | '-' | '.');
        if (1..=NAME_LEN_MAX).contains(&name.len())
            && name.chars().all(plain)
            && name.starts_with(|c: char| c.is_ascii_alphanumeric() || c == '_')
        {
            return Ok(name);
        }
        Err(self.invalid(
            span,
            format!("the {what} {name:?} cannot be used"),
            format!(
                "use 1 to {NAME_LEN_MAX} letters, digits, `_`, `-` and `.`, the first a letter, a digit or `_`"
            ),
        ))
    }

    pub(super) fn udc(&self, value: Spanned<String>) -> Result<String, ConfigError> {
        let span = value.span();
        let name = value.into_inner();
        if (1..=64).contains(&name.len())
            && name.chars().all(|c| c.is_ascii_graphic() && c != '/')
            && !name.starts_with('.')
        {
            return Ok(name);
        }
        Err(self.invalid(
            span,
            format!("{name:?} is not a USB device controller's name"),
            "use a name from `ls /sys/class/udc`, or remove the key to use the first that is free",
        ))
    }

    pub(super) fn absolute(&self, value: Spanned<String>, key: &str) -> Result<PathBuf, ConfigError> {
        let span = value.span();
        let path = PathBuf::from(value.into_inner());
        if path.is_absolute() && !path.as_os_str().as_encoded_bytes().contains(&0) {
            return Ok(path);
        }
        Err(self.invalid(
            span,
            format!("{key} is not an absolute path"),
            "start it with `/`: the daemon has no current directory to speak of",
        ))
    }

    pub(super) fn schedule(
        &self,
        realtime_priority: Option<&Spanned<u8>>,
        cpus: Option<&Spanned<Vec<usize>>>,
    ) -> Result<Schedule, ConfigError> {
        Ok(Schedule {
            realtime: realtime_priority.map(|value| self.realtime_priority(value)).transpose()?,
            cpus: cpus.map(|value| self.cpus(value)).transpose()?,
        })
    }

    fn realtime_priority(&self, value: &Spanned<u8>) -> Result<RealtimePriority, ConfigError> {
        let (min, max) = (RealtimePriority::MIN, RealtimePriority::MAX);
        RealtimePriority::new(*value.get_ref()).ok_or_else(|| {
            self.invalid(
                value.span(),
                format!("realtime_priority is not within {min} and {max}"),
                "try 10, or remove the key for normal scheduling",
            )
        })
    }

    fn cpus(&self, value: &Spanned<Vec<usize>>) -> Result<Cpus, ConfigError> {
        Cpus::new(value.get_ref().iter().copied()).ok_or_else(|| {
            self.invalid(
                value.span(),
                format!("cpus is not a list of CPU numbers from 0 to {}", Cpus::COUNT_MAX - 1),
                "name at least one, as in [2, 3], or remove the key to run on any",
            )
        })
    }

    pub(super) fn usb_string(&self, value: Spanned<String>, key: &str) -> Result<String, ConfigError> {
        let span = value.span();
        let text = value.into_inner();
        if (1..=USB_STRING_UNITS_MAX).contains(&text.encode_utf16().count())
            && !text.chars().any(char::is_control)
        {
            return Ok(text);
        }
        Err(self.invalid(
            span,
            format!("{key} does not fit a USB string descriptor"),
            format!("use 1 to {USB_STRING_UNITS_MAX} characters, none of them a control character"),
        ))
    }

    pub(super) fn inquiry(
        &self,
        value: Spanned<String>,
        key: &str,
        len_max: usize,
    ) -> Result<String, ConfigError> {
        let span = value.span();
        let text = value.into_inner();
        if (1..=len_max).contains(&text.len())
            && text.bytes().all(|byte| matches!(byte, b' '..=b'~'))
            && !text.trim().is_empty()
        {
            return Ok(text);
        }
        Err(self.invalid(
            span,
            format!("{key} {text:?} does not fit its INQUIRY field"),
            format!("use 1 to {len_max} printable ASCII characters, not spaces alone"),
        ))
    }
}

/// What was probably meant, from serde's "unknown field `x`, expected one of `y`, `z`".
fn nearest(message: &str) -> Option<&str> {
    let mut quoted = message.split('`').skip(1).step_by(2);
    let wrong = quoted.next().filter(|_| message.starts_with("unknown "))?;
    quoted
        .map(|candidate| (distance(wrong, candidate), candidate))
        .min()
        .filter(|(distance, candidate)| *distance <= 1 + candidate.len() / 4)
        .map(|(_, candidate)| candidate)
}

/// Edits between two words (Levenshtein).
fn distance(from: &str, to: &str) -> usize {
    let mut row: Vec<usize> = (0..=to.len()).collect();
    for (i, a) in from.bytes().take(64).enumerate() {
        let mut diagonal = std::mem::replace(&mut row[0], i + 1);
        for (j, b) in to.bytes().enumerate() {
            let substituted = diagonal + usize::from(a != b);
            diagonal = row[j + 1];
            row[j + 1] = substituted.min(row[j] + 1).min(diagonal + 1);
        }
    }
    row[to.len()]
}
