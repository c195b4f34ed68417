//! What goes wrong between here and a web server, and what to do about it.

use std::{error::Error, io};

use super::super::{FaultKind, MediaErrorKind, compressed::ExpandErrorKind, qcow2::Qcow2ErrorKind};

/// An image behind a URL that cannot be had: which, why, and how to mend it. Has no secrets in it.
#[derive(Debug, thiserror::Error)]
#[error("cannot use {url:?}: {kind}")]
pub struct UrlError {
    /// For control flow.
    pub kind: UrlErrorKind,
    /// The URL, without user, password and query.
    pub url: String,
    /// What it came from, if that says more.
    #[source]
    pub source: Option<Box<dyn Error + Send + Sync>>,
}

/// The reasons. Each is in docs/urls.md.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum UrlErrorKind {
    /// No URL, or none that is served.
    #[error("{0}; try http://SERVER/PATH or https://SERVER/PATH")]
    Address(&'static str),
    /// The file with the credentials.
    #[error("the credentials file {path:?} {problem}")]
    Credentials {
        /// The file.
        path: String,
        /// What is wrong with it, and the cure.
        problem: &'static str,
    },
    /// The file with the certificates.
    #[error("the CA file {path:?} {problem}")]
    CaFile {
        /// The file.
        path: String,
        /// What is wrong with it, and the cure.
        problem: &'static str,
    },
    /// The proxy's URL.
    #[error("the proxy is no URL; try proxy = \"http://HOST:PORT\"")]
    Proxy,
    /// No connection, or one that broke.
    #[error("the server cannot be reached; check its name, the network and the proxy")]
    Unreachable,
    /// No answer in time, or one that drips.
    #[error("the server did not answer in time; check the server and the network, and try again")]
    TimedOut,
    /// The server's certificate or its TLS.
    #[error(
        "the server's certificate is not accepted; check the name in the URL and the clock, or give `ca_file`"
    )]
    Tls,
    /// A status that is an error of the server.
    #[error("the server answered with status {0}; try again later, or ask who runs it")]
    Status(u16),
    /// 401, 403, 407.
    #[error("the server denies access (status {0}); check the credentials, or get a fresh signed URL")]
    Denied(u16),
    /// 404, 410.
    #[error("the server has no such file (status {0}); check the path")]
    Missing(u16),
    /// It sends the whole where a part was asked for.
    #[error("the server sends no byte ranges; try `--download`, which brings the whole image first")]
    NoRanges,
    /// Neither ETag nor Last-Modified: a change could not be noticed.
    #[error("the server does not say which version it sends (no ETag, no Last-Modified); try `--download`")]
    NoVersion,
    /// What came is not what was asked for.
    #[error("the server's answer is not the range that was asked for; try `--download`, or another server")]
    WrongRange,
    /// Another version than that which the image began with.
    #[error("the image has changed on its server; eject it and insert it again")]
    Changed,
    /// The body ended early.
    #[error("the server broke the connection in the middle; check the server and the network")]
    Truncated,
    /// Redirects in a circle, or too many.
    #[error("the server redirects in a circle, or more than 8 times; check the URL")]
    RedirectLoop,
    /// From https to http, or to something that is no URL.
    #[error("the server redirects to where this must not go (from https to http, or to no web address)")]
    RedirectRefused,
    /// Nothing in it.
    #[error("the file on the server is empty; check the path")]
    Empty,
    /// The same URL twice.
    #[error("this URL is in another drive; eject it there first")]
    InUse,
    /// The cache directory or a file in it.
    #[error(
        "the cache directory {0:?} cannot be used; check that the daemon may write there, and that it is no network storage"
    )]
    Cache(String),
    /// Not enough room.
    #[error(
        "the cache has no room for it; free some, raise `cache_limit_mib`, or eject other images from URLs"
    )]
    NoSpace,
    /// A checksum needs the whole image at once.
    #[error(
        "the image is larger than the room that the cache has, so that its checksum could never be checked; raise \
         `cache_limit_mib`, or leave the checksum away"
    )]
    TooLargeToCheck,
    /// It cannot be downloaded or kept, as it does not fit.
    #[error("the image is larger than the room that the cache has; raise `cache_limit_mib`, or stream it")]
    TooLarge,
    /// It has to be whole before there is an image, and does not fit.
    #[error(
        "it is compressed, or a file with a disk in it, and so has to be fetched whole, but is larger than the room that the cache \
         has; raise `cache_limit_mib`, free some of its disk, or have the bytes streamed as they are with --raw"
    )]
    TooLargeToUnpack,
    /// Expanding it.
    #[error("{0}")]
    Expand(ExpandErrorKind),
    /// The disk in it.
    #[error("{0}")]
    Qcow2(Qcow2ErrorKind),
    /// What was expanded, as of any other image.
    #[error("{0}")]
    Image(MediaErrorKind),
    /// `SHA256SUMS` lacks the image.
    #[error("there is no SHA256SUMS beside the image that lists it; give `--sha256 DIGEST`")]
    NoSums,
    /// The image is not that which was meant.
    #[error(
        "the image has another checksum than it should; get the right checksum, or another copy of the image"
    )]
    Mismatch,
    /// Whoever asked has gone.
    #[error("nobody waits for it any more; insert it again")]
    Cancelled,
}

impl UrlErrorKind {
    /// With the URL it is about.
    pub(super) fn of(self, url: &impl ToString) -> UrlError {
        UrlError { kind: self, url: url.to_string(), source: None }
    }

    /// As [`UrlErrorKind::of`], with the error that it came from.
    pub(super) fn because(
        self,
        url: &impl ToString,
        source: impl Into<Box<dyn Error + Send + Sync>>,
    ) -> UrlError {
        UrlError { kind: self, url: url.to_string(), source: Some(source.into()) }
    }

    /// Whether it may pass by itself.
    pub(super) fn is_passing(&self) -> bool {
        match self {
            Self::Unreachable | Self::TimedOut | Self::Truncated | Self::NoSpace => true,
            Self::Status(status) => matches!(status, 408 | 425 | 429 | 500..=599),
            _ => false,
        }
    }

    /// Whether it is about what the server has, which is not soon something else.
    pub fn is_of_contents(&self) -> bool {
        match self {
            Self::Expand(kind) => kind.is_of_contents(),
            Self::Qcow2(_) | Self::Mismatch => true,
            _ => false,
        }
    }

    /// What the drive is to make of it.
    pub(super) fn fault(&self) -> FaultKind {
        match self {
            Self::TimedOut => FaultKind::TimedOut,
            Self::Unreachable | Self::Truncated | Self::Status(_) => FaultKind::Unreachable,
            Self::Denied(_) | Self::Tls | Self::Credentials { .. } | Self::CaFile { .. } => {
                FaultKind::Permission
            }
            Self::Missing(_) | Self::Changed => FaultKind::Stale,
            Self::Mismatch => FaultKind::Damaged,
            Self::NoSpace => FaultKind::CacheFull,
            Self::Cache(_) => FaultKind::NoSpace,
            _ => FaultKind::Io,
        }
    }

    /// By the status of an answer that is no success.
    pub(super) fn from_status(status: u16) -> Self {
        match status {
            401 | 403 | 407 => Self::Denied(status),
            404 | 410 => Self::Missing(status),
            _ => Self::Status(status),
        }
    }
}

/// With what ureq says, of which only parts are taken that have no URL in them.
pub(super) fn from_ureq(error: ureq::Error, url: &impl ToString) -> UrlError {
    match error {
        ureq::Error::Timeout(_) => UrlErrorKind::TimedOut.of(url),
        ureq::Error::HostNotFound => UrlErrorKind::Unreachable.because(url, "no such host"),
        ureq::Error::Rustls(error) => UrlErrorKind::Tls.because(url, error),
        ureq::Error::Io(error) => from_io(error, url),
        ureq::Error::Tls(why) => UrlErrorKind::Tls.because(url, why),
        ureq::Error::ConnectProxyFailed(_) => UrlErrorKind::Unreachable.because(url, "the proxy refused"),
        ureq::Error::LargeResponseHeader(..) | ureq::Error::Protocol(_) | ureq::Error::Http(_) => {
            UrlErrorKind::Unreachable.because(url, "what it sent is no HTTP/1.1")
        }
        _ => UrlErrorKind::Unreachable.of(url),
    }
}

/// Reading from a socket under TLS gives the errors of both.
pub(super) fn from_io(error: io::Error, url: &impl ToString) -> UrlError {
    if let Some(inner) = error.get_ref() {
        if inner.is::<rustls::Error>() {
            return UrlErrorKind::Tls.because(url, error);
        }
        if let Some(ureq::Error::Timeout(_)) = inner.downcast_ref() {
            return UrlErrorKind::TimedOut.of(url);
        }
    }
    match error.kind() {
        io::ErrorKind::TimedOut | io::ErrorKind::WouldBlock => UrlErrorKind::TimedOut.of(url),
        io::ErrorKind::UnexpectedEof => UrlErrorKind::Truncated.of(url),
        _ => UrlErrorKind::Unreachable.because(url, error),
    }
}
