//! Errors as clients see them: a closed list of kinds with their codes, each message with its cause and its cure.

use std::error::Error;

use crate::drive::Refusal;

/// Why a request was not carried out, for a program. A closed list; codes never change their meaning.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ErrorKind {
    /// The line is not JSON.
    Parse,
    /// It is, but no request.
    InvalidRequest,
    /// No such method.
    MethodNotFound,
    /// The method does not take this.
    InvalidParams,
    /// No drive has that index or name.
    NoSuchDrive,
    /// Another client holds the drive.
    Locked,
    /// Nobody does.
    NotLocked,
    /// The host prevents removal.
    Prevented,
    /// There is an image in the drive.
    Occupied,
    /// There is none.
    Empty,
    /// The setting cannot change while there is one.
    Inserted,
    /// Optical drives are read-only.
    Optical,
    /// The drive is not of the kind asked for.
    WrongKind,
    /// The image cannot be opened or used.
    Image,
    /// What the host wrote could not be stored.
    Sync,
    /// The file descriptor is missing, or there are several.
    Descriptor,
    /// Too much at once.
    Busy,
    /// The function has stopped.
    Stopped,
    /// The gadget could not be plugged in again.
    Replug,
    /// The peer may not use the socket.
    NotPermitted,
    /// All places are taken.
    TooManyClients,
    /// The image behind a URL cannot be had.
    Url,
    /// The overlay cannot be used, or there is none.
    Overlay,
}

impl ErrorKind {
    /// All of them.
    pub const ALL: [Self; 23] = [
        Self::Parse,
        Self::InvalidRequest,
        Self::MethodNotFound,
        Self::InvalidParams,
        Self::NoSuchDrive,
        Self::Locked,
        Self::NotLocked,
        Self::Prevented,
        Self::Occupied,
        Self::Empty,
        Self::Inserted,
        Self::Optical,
        Self::WrongKind,
        Self::Image,
        Self::Sync,
        Self::Descriptor,
        Self::Busy,
        Self::Stopped,
        Self::Replug,
        Self::NotPermitted,
        Self::TooManyClients,
        Self::Url,
        Self::Overlay,
    ];

    /// JSON-RPC's own code, or ours: from 1.
    pub const fn code(self) -> i32 {
        match self {
            Self::Parse => -32700,
            Self::InvalidRequest => -32600,
            Self::MethodNotFound => -32601,
            Self::InvalidParams => -32602,
            Self::NoSuchDrive => 1,
            Self::Locked => 2,
            Self::NotLocked => 3,
            Self::Prevented => 4,
            Self::Occupied => 5,
            Self::Empty => 6,
            Self::Inserted => 7,
            Self::Optical => 8,
            Self::WrongKind => 9,
            Self::Image => 10,
            Self::Sync => 11,
            Self::Descriptor => 12,
            Self::Busy => 13,
            Self::Stopped => 14,
            Self::Replug => 15,
            Self::NotPermitted => 16,
            Self::TooManyClients => 17,
            Self::Url => 18,
            Self::Overlay => 19,
        }
    }

    /// `data.kind`.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Parse => "parse",
            Self::InvalidRequest => "invalid_request",
            Self::MethodNotFound => "method_not_found",
            Self::InvalidParams => "invalid_params",
            Self::NoSuchDrive => "no_such_drive",
            Self::Locked => "locked",
            Self::NotLocked => "not_locked",
            Self::Prevented => "prevented",
            Self::Occupied => "occupied",
            Self::Empty => "empty",
            Self::Inserted => "inserted",
            Self::Optical => "optical",
            Self::WrongKind => "wrong_kind",
            Self::Image => "image",
            Self::Sync => "sync",
            Self::Descriptor => "descriptor",
            Self::Busy => "busy",
            Self::Stopped => "stopped",
            Self::Replug => "replug",
            Self::NotPermitted => "not_permitted",
            Self::TooManyClients => "too_many_clients",
            Self::Url => "url",
            Self::Overlay => "overlay",
        }
    }
}

/// An error object before it is JSON.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Failure {
    pub(super) kind: ErrorKind,
    pub(super) cause: String,
    pub(super) cure: String,
}

impl Failure {
    pub(super) fn new(kind: ErrorKind, cause: impl Into<String>, cure: impl Into<String>) -> Self {
        Self { kind, cause: cause.into(), cure: cure.into() }
    }

    /// From a message of the form "cause; cure".
    pub(super) fn from_message(kind: ErrorKind, message: &str) -> Self {
        let (cause, cure) = message.rsplit_once("; ").unwrap_or((message, "see the daemon's log"));
        Self::new(kind, cause, cure)
    }

    pub(super) fn params(cause: impl Into<String>) -> Self {
        Self::new(ErrorKind::InvalidParams, cause, "see the method in docs/control.md")
    }

    pub(super) fn request(cause: impl Into<String>, cure: impl Into<String>) -> Self {
        Self::new(ErrorKind::InvalidRequest, cause, cure)
    }
}

impl From<&Refusal> for Failure {
    fn from(refusal: &Refusal) -> Self {
        let kind = match refusal {
            Refusal::Prevented => ErrorKind::Prevented,
            Refusal::Occupied(_) => ErrorKind::Occupied,
            Refusal::Empty => {
                return Self::new(ErrorKind::Empty, refusal.to_string(), "insert an image first");
            }
            Refusal::NoDrive => ErrorKind::NoSuchDrive,
            Refusal::KindChanged => ErrorKind::WrongKind,
            Refusal::Inserted(_) => ErrorKind::Inserted,
            Refusal::Optical => ErrorKind::Optical,
            Refusal::Sync(_) | Refusal::NotStored(_) => ErrorKind::Sync,
            Refusal::Busy => ErrorKind::Busy,
            Refusal::Stopped => ErrorKind::Stopped,
        };
        Self::from_message(kind, &refusal.to_string())
    }
}

/// An error of the form "cause; cure" with what it came from: "cause: source; cure".
pub fn with_sources(error: &dyn Error) -> String {
    let message = error.to_string();
    let mut causes = String::new();
    let mut source = error.source();
    while let Some(error) = source {
        causes.push_str(&format!(": {error}"));
        source = error.source();
    }
    match message.rsplit_once("; ") {
        Some((cause, cure)) => format!("{cause}{causes}; {cure}"),
        None => message + &causes,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Debug, thiserror::Error)]
    #[error("cannot open it; try another")]
    struct Outer(#[source] std::io::Error);

    #[test]
    fn the_cure_stays_last() {
        let error = Outer(std::io::Error::from_raw_os_error(2));
        let text = with_sources(&error);
        assert_eq!(text, "cannot open it: No such file or directory (os error 2); try another");
    }
}
