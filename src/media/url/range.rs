//! Which bytes of which version an answer has (RFC 9110 §8.8, §13.1.5, §14.4, §15.3.7). Pure.

use std::ops::Range;

use ureq::http::{HeaderMap, header};

use super::error::UrlErrorKind;

/// Longest ETag and Last-Modified that are kept.
const TEXT_BYTES_MAX: usize = 1_024;

/// How a server names a version of a file.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Version {
    pub(super) etag: Option<String>,
    pub(super) modified: Option<String>,
}

impl Version {
    pub(super) fn of(headers: &HeaderMap) -> Self {
        let text = |name| {
            let value = headers.get(name)?.to_str().ok()?.trim();
            (!value.is_empty() && value.len() <= TEXT_BYTES_MAX).then(|| value.to_owned())
        };
        Self { etag: text(header::ETAG), modified: text(header::LAST_MODIFIED) }
    }

    /// Whether a change would be noticed.
    pub(super) fn is_named(&self) -> bool {
        self.etag.is_some() || self.modified.is_some()
    }

    /// For `If-Range`, which takes no weak ETag.
    pub(super) fn if_range(&self) -> Option<&str> {
        let strong = self.etag.as_deref().filter(|etag| !etag.starts_with("W/"));
        strong.or(self.modified.as_deref())
    }

    /// Whether a partial answer is of this version. An answer to `If-Range` may leave away the date.
    fn is_in(&self, answer: &Self) -> bool {
        let same_date = match (&self.modified, &answer.modified) {
            (Some(ours), Some(theirs)) => ours == theirs,
            (Some(_), None) => self.if_range().is_some(),
            (None, _) => true,
        };
        self.etag == answer.etag && same_date
    }

    /// Whether a whole answer, sent instead of a part, is of another version: otherwise the server has just no ranges.
    pub(super) fn is_left_by(&self, answer: &Self) -> bool {
        self.is_named() && *self != *answer
    }
}

/// What an answer with status 206 is a part of.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Part {
    /// Bytes of the whole.
    pub(super) total: u64,
    pub(super) version: Version,
}

/// Believes a partial answer only if it is exactly what was asked for: `asked`, cut off at the end of the whole; of `total`
/// bytes and `version`, where these are known.
///
/// # Errors
/// [`UrlErrorKind::WrongRange`], [`UrlErrorKind::Changed`].
pub(super) fn check(
    headers: &HeaderMap,
    asked: &Range<u64>,
    known: Option<&Part>,
) -> Result<Part, UrlErrorKind> {
    let encoded = headers.get(header::CONTENT_ENCODING).is_some_and(|value| value != "identity");
    let ranges: Vec<_> = headers.get_all(header::CONTENT_RANGE).iter().collect();
    let (true, [range]) = (!encoded, ranges.as_slice()) else { return Err(UrlErrorKind::WrongRange) };
    let (sent, total) = range.to_str().ok().and_then(parse).ok_or(UrlErrorKind::WrongRange)?;
    let version = Version::of(headers);
    if let Some(known) = known
        && (known.total != total || !known.version.is_in(&version))
    {
        return Err(UrlErrorKind::Changed);
    }
    let wanted = asked.start..asked.end.min(total);
    let length = headers.get(header::CONTENT_LENGTH).map(|value| value.to_str().ok()?.parse::<u64>().ok());
    if sent != wanted || length.is_some_and(|length| length != Some(sent.end - sent.start)) {
        return Err(UrlErrorKind::WrongRange);
    }
    Ok(Part { total, version })
}

/// `bytes 0-131071/6193152`.
fn parse(text: &str) -> Option<(Range<u64>, u64)> {
    let number =
        |text: &str| text.parse::<u64>().ok().filter(|_| text.bytes().all(|byte| byte.is_ascii_digit()));
    let (range, total) = text.trim().strip_prefix("bytes ")?.split_once('/')?;
    let (first, last) = range.trim().split_once('-')?;
    let (first, last, total) = (number(first)?, number(last)?, number(total.trim())?);
    (first <= last && last < total).then(|| (first..last + 1, total))
}

#[cfg(test)]
mod tests {
    use ureq::http::{HeaderName, HeaderValue};

    use super::*;

    fn headers(lines: &[(&'static str, &str)]) -> HeaderMap {
        let pair = |(name, value): &(&'static str, &str)| {
            (HeaderName::from_static(name), HeaderValue::from_str(value).unwrap())
        };
        lines.iter().map(pair).collect()
    }

    #[test]
    fn only_what_was_asked_for_is_believed() {
        let sent =
            |range: &str| check(&headers(&[("content-range", range), ("etag", "\"1\"")]), &(10..20), None);
        assert_eq!(sent("bytes 10-19/100").unwrap().total, 100);
        // Cut off at the end of the file.
        assert_eq!(sent("bytes 10-14/15").unwrap().total, 15);
        for lie in [
            "bytes 0-9/100",
            "bytes 10-18/100",
            "bytes 10-20/100",
            "bytes 11-20/100",
            "bytes 10-19/*",
            "bytes 10-19/19",
            "bytes */100",
            "bytes 19-10/100",
            "bytes +10-19/100",
            "octets 10-19/100",
            "10-19/100",
            "",
        ] {
            assert_eq!(sent(lie), Err(UrlErrorKind::WrongRange), "{lie}");
        }
        let more = |line| headers(&[("content-range", "bytes 10-19/100"), line]);
        assert!(check(&more(("content-length", "10")), &(10..20), None).is_ok());
        for lie in [("content-length", "11"), ("content-length", "x"), ("content-encoding", "gzip")] {
            assert_eq!(check(&more(lie), &(10..20), None), Err(UrlErrorKind::WrongRange), "{lie:?}");
        }
        assert!(check(&more(("content-range", "bytes 10-19/100")), &(10..20), None).is_err());
    }

    #[test]
    fn another_version_is_noticed() {
        let known = |lines: &[_]| Part { total: 100, version: Version::of(&headers(lines)) };
        let range = ("content-range", "bytes 10-19/100");
        let (etag, date) = (("etag", "\"1\""), ("last-modified", "Thu, 01 Jan 1970 00:00:00 GMT"));
        let check = |known: &Part, lines: &[_]| check(&headers(lines), &(10..20), Some(known)).map(drop);
        assert_eq!(check(&known(&[etag, date]), &[range, etag, date]), Ok(()));
        assert_eq!(check(&known(&[etag, date]), &[range, etag]), Ok(()));
        let changed = Err(UrlErrorKind::Changed);
        assert_eq!(check(&known(&[etag, date]), &[range, date]), changed);
        assert_eq!(check(&known(&[etag]), &[range, ("etag", "\"2\"")]), changed);
        assert_eq!(check(&known(&[etag]), &[range, ("etag", "W/\"1\"")]), changed);
        let later = ("last-modified", "Fri, 02 Jan 1970 00:00:00 GMT");
        assert_eq!(check(&known(&[date]), &[range, later]), changed);
        assert_eq!(check(&known(&[etag]), &[("content-range", "bytes 10-19/101"), etag]), changed);
    }

    #[test]
    fn a_weak_etag_is_compared_but_not_sent() {
        let date = "Thu, 01 Jan 1970 00:00:00 GMT";
        let version = Version::of(&headers(&[("etag", "W/\"1\""), ("last-modified", date)]));
        assert_eq!(version.if_range(), Some(date));
        let version = Version::of(&headers(&[("etag", "\"1\""), ("last-modified", date)]));
        assert_eq!(version.if_range(), Some("\"1\""));
    }
}
