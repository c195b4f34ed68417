//! The parameters of `insert`: which image, and what is to be done with it.

use std::path::PathBuf;

use serde::Deserialize;

use super::failure::{ErrorKind, Failure};
use super::protocol::DriveRef;
use crate::media::overlay::Place;
use crate::media::qcow2::Manner;
use crate::media::url::{Checksum, Digest, Secret, URL_BYTES_MAX};
use crate::scsi::Kind;

const NAME_BYTES_MAX: usize = 255;
/// PATH_MAX, without its NUL.
const PATH_BYTES_MAX: usize = 4095;

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct InsertParams {
    pub(super) drive: DriveRef,
    path: Option<String>,
    #[serde(default)]
    fd: bool,
    name: Option<String>,
    url: Option<Secret>,
    sha256: Option<String>,
    #[serde(default)]
    sha256sums: bool,
    #[serde(default)]
    keep: bool,
    #[serde(default)]
    download: bool,
    credentials: Option<String>,
    pub(super) kind: Option<Kind>,
    pub(super) rw: Option<bool>,
    overlay: Option<String>,
    #[serde(default)]
    raw: bool,
    #[serde(default)]
    backing: bool,
    pub(super) key: Option<String>,
}

/// Where an image comes from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum ImageSource {
    Path(String),
    Descriptor { name: String },
    Url(UrlSource),
}

/// An image behind a URL, and what is to be done with it: see [`UrlOptions`](crate::media::url::UrlOptions).
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct UrlSource {
    pub(super) url: Secret,
    pub(super) checksum: Option<Checksum>,
    pub(super) keep: bool,
    pub(super) download: bool,
    pub(super) raw: bool,
    pub(super) credentials: Option<PathBuf>,
}

impl InsertParams {
    pub(super) fn wants_descriptor(&self) -> bool {
        self.fd
    }

    /// Exactly one source.
    pub(super) fn source(&self) -> Result<ImageSource, Failure> {
        if let Some(url) = &self.url {
            return match self.backing {
                true => {
                    Err(Failure::params("`backing` goes with `path`: what is behind a URL has no folder"))
                }
                false => self.url_source(url).map(ImageSource::Url),
            };
        }
        if self.sha256.is_some()
            || self.sha256sums
            || self.keep
            || self.download
            || self.credentials.is_some()
        {
            return Err(Failure::params(
                "`sha256`, `sha256sums`, `keep`, `download` and `credentials` go with `url`",
            ));
        }
        match (&self.path, self.fd, &self.name) {
            (Some(_), true, _) | (None, false, _) => {
                Err(Failure::params("insert takes one of `path`, `url` and `fd: true`"))
            }
            (Some(_), false, Some(_)) => {
                Err(Failure::params("`name` goes with `fd: true`; a path is its own name"))
            }
            (Some(path), false, None) => Ok(ImageSource::Path(checked_path("path", path)?)),
            (None, true, Some(name)) if name.is_empty() || name.len() > NAME_BYTES_MAX => {
                Err(Failure::params(format!("`name` is not of 1 to {NAME_BYTES_MAX} bytes")))
            }
            (None, true, name) => {
                Ok(ImageSource::Descriptor { name: name.as_deref().unwrap_or("descriptor").to_owned() })
            }
        }
    }

    /// How its file is to be taken.
    pub(super) fn manner(&self) -> Manner {
        Manner { raw: self.raw, backing: self.backing }
    }

    /// Where the host's writes are to go, if not into the image.
    pub(super) fn overlay(&self) -> Result<Option<Place>, Failure> {
        let Some(overlay) = &self.overlay else { return Ok(None) };
        if self.path.is_none() {
            return Err(Failure::new(
                ErrorKind::InvalidParams,
                "only an image with a path can have an overlay",
                "give `path`; of a URL: insert it with `keep` first, which makes a file of it",
            ));
        }
        if self.rw == Some(false) {
            return Err(Failure::params("an overlay is there to be written to; `rw: false` excludes it"));
        }
        Ok(Some(match overlay.as_str() {
            "tmp" => Place::Temporary,
            path => Place::File(checked_path("overlay", path)?.into()),
        }))
    }

    fn url_source(&self, url: &Secret) -> Result<UrlSource, Failure> {
        if self.path.is_some() || self.fd || self.name.is_some() {
            return Err(Failure::params("insert takes one of `path`, `url` and `fd: true`"));
        }
        if url.0.len() > URL_BYTES_MAX {
            return Err(Failure::params(format!("`url` is longer than {URL_BYTES_MAX} bytes")));
        }
        let checksum = match (&self.sha256, self.sha256sums) {
            (None, false) => None,
            (None, true) => Some(Checksum::Beside),
            (Some(_), true) => return Err(Failure::params("`sha256` and `sha256sums` exclude each other")),
            (Some(digits), false) => {
                let digest = Digest::parse(digits);
                let digest =
                    digest.ok_or_else(|| Failure::params("`sha256` is not of 64 hexadecimal digits"))?;
                Some(Checksum::Known(digest))
            }
        };
        let credentials =
            self.credentials.as_ref().map(|path| checked_path("credentials", path)).transpose()?;
        Ok(UrlSource {
            url: url.clone(),
            checksum,
            keep: self.keep,
            download: self.download,
            raw: self.raw,
            credentials: credentials.map(PathBuf::from),
        })
    }
}

pub(super) fn checked_path(key: &str, path: &str) -> Result<String, Failure> {
    if !path.starts_with('/') || path.contains('\0') || path.len() > PATH_BYTES_MAX {
        return Err(Failure::params(format!(
            "`{key}` is not an absolute path of at most {PATH_BYTES_MAX} bytes"
        )));
    }
    Ok(path.to_owned())
}
