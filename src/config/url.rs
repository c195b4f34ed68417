//! `[url]`: how images behind URLs are fetched, and where to.

use std::path::PathBuf;

use serde::Deserialize;
use toml::Spanned;

use super::{ConfigError, Source};
use crate::media::url::{CacheOptions, Patience, is_url};

/// Where images from URLs are cached unless the file says otherwise.
pub const CACHE_DEFAULT: &str = "/var/cache/ringdrive";
const CACHE_LIMIT_MIB_DEFAULT: u64 = 8192;
const CONNECTIONS_DEFAULT: usize = 4;
const CONNECTIONS_MAX: usize = 16;
/// Least that a cache is of use with: a few megabytes to stream through.
const CACHE_LIMIT_MIB_MIN: u64 = 8;
const CACHE_LIMIT_MIB_MAX: u64 = 1 << 24;

#[derive(Deserialize, Default)]
#[serde(deny_unknown_fields)]
pub(super) struct RawUrl {
    cache: Option<Spanned<String>>,
    cache_limit_mib: Option<Spanned<u64>>,
    rate_limit_kib: Option<Spanned<u64>>,
    connections: Option<Spanned<usize>>,
    credentials: Option<Spanned<String>>,
    ca_file: Option<Spanned<String>>,
    proxy: Option<Spanned<String>>,
}

impl RawUrl {
    pub(super) fn check(self, source: &Source<'_>) -> Result<CacheOptions, ConfigError> {
        let path =
            |value: Option<Spanned<String>>, key| value.map(|value| source.absolute(value, key)).transpose();
        let within = |value: &Spanned<u64>, least, most, key: &str, cure: &str| {
            if (least..=most).contains(value.get_ref()) {
                return Ok(*value.get_ref());
            }
            Err(source.invalid(value.span(), format!("{key} is not within {least} and {most}"), cure))
        };
        let limit = self.cache_limit_mib.as_ref().map_or(Ok(CACHE_LIMIT_MIB_DEFAULT), |value| {
            within(value, CACHE_LIMIT_MIB_MIN, CACHE_LIMIT_MIB_MAX, "cache_limit_mib", "try 8192")
        })?;
        let rate = self.rate_limit_kib.as_ref().map(|value| {
            within(value, 1, 1 << 30, "rate_limit_kib", "try 1024, which is a mebibyte a second")
        });
        if let Some(value) = &self.connections
            && !(1..=CONNECTIONS_MAX).contains(value.get_ref())
        {
            let cause = format!("connections is not within 1 and {CONNECTIONS_MAX}");
            return Err(source.invalid(value.span(), cause, "try 4"));
        }
        if let Some(value) = &self.proxy
            && !(is_url(value.get_ref()) && value.get_ref().starts_with("http://"))
        {
            return Err(source.invalid(value.span(), "proxy is no http:// URL", "try \"http://HOST:PORT\""));
        }
        Ok(CacheOptions {
            dir: path(self.cache, "cache")?.unwrap_or_else(|| PathBuf::from(CACHE_DEFAULT)),
            limit: limit << 20,
            rate: rate.transpose()?.map(|kib| kib << 10),
            connections: self.connections.map_or(CONNECTIONS_DEFAULT, Spanned::into_inner),
            credentials: path(self.credentials, "credentials")?,
            ca_file: path(self.ca_file, "ca_file")?,
            proxy: self.proxy.map(Spanned::into_inner),
            patience: Patience::default(),
        })
    }
}
