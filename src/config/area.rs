//! `[[area]]`: file servers that the daemon mounts.

use std::path::{Component, Path, PathBuf};

use serde::Deserialize;
use toml::Spanned;

use super::{ConfigError, Source};
use crate::storage::{self, AREAS_DIR, AREAS_MAX, Area, Mistake, Options, Protocol, Version};

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct RawArea {
    name: Spanned<String>,
    source: Spanned<String>,
    version: Option<Spanned<String>>,
    options: Option<Vec<Spanned<String>>>,
    credentials: Option<Spanned<String>>,
    #[serde(default)]
    rw: bool,
    path: Option<Spanned<String>>,
}

/// All areas; no two with the same name, or one within the other.
pub(super) fn check_areas(raw: Vec<Spanned<RawArea>>, source: &Source<'_>) -> Result<Vec<Area>, ConfigError> {
    let mut areas: Vec<Area> = Vec::new();
    for area in raw {
        let span = area.span();
        if areas.len() == AREAS_MAX {
            let cure = "mount a folder above some of them instead";
            return Err(source.invalid(span, format!("more than {AREAS_MAX} areas"), cure));
        }
        let area = area.into_inner().check(source)?;
        if let Some(other) = areas.iter().find(|other| other.name == area.name) {
            let cause = format!("two areas are named {:?}", other.name);
            return Err(source.invalid(span, cause, "give each its own name"));
        }
        let overlaps =
            |other: &&Area| other.path.starts_with(&area.path) || area.path.starts_with(&other.path);
        if let Some(other) = areas.iter().find(overlaps) {
            let cause = format!("the areas {:?} and {:?} would hide each other", other.name, area.name);
            return Err(source.invalid(span, cause, "give each a `path` of its own, or none"));
        }
        areas.push(area);
    }
    Ok(areas)
}

impl RawArea {
    fn check(self, source: &Source<'_>) -> Result<Area, ConfigError> {
        let name = source.name(self.name, "area's name")?;
        let server = storage::Source::parse(self.source.get_ref());
        let server = server.map_err(|mistake| at(source, &self.source, mistake))?;
        let protocol = server.protocol();
        let version = self.version.map(|value| {
            Version::parse(protocol, value.get_ref()).map_err(|mistake| at(source, &value, mistake))
        });
        let mut options = Options::default();
        for option in self.options.unwrap_or_default() {
            options.add(protocol, option.get_ref()).map_err(|mistake| at(source, &option, mistake))?;
        }
        if let (Protocol::Nfs, Some(value)) = (protocol, &self.credentials) {
            let cause = "NFS knows no user and password";
            return Err(source.invalid(
                value.span(),
                cause,
                "remove credentials; the server decides by our address",
            ));
        }
        let credentials = self.credentials.map(|value| source.absolute(value, "credentials"));
        let path = match self.path {
            None => Path::new(AREAS_DIR).join(&name),
            Some(value) => mount_point(value, source)?,
        };
        let (version, credentials) = (version.transpose()?, credentials.transpose()?);
        Ok(Area { name, source: server, version, options, credentials, rw: self.rw, path })
    }
}

fn at<T>(source: &Source<'_>, value: &Spanned<T>, mistake: Mistake) -> ConfigError {
    source.invalid(value.span(), mistake.cause, mistake.cure)
}

/// As it will be in the kernel's table of mounts, but for links on its way.
fn mount_point(value: Spanned<String>, source: &Source<'_>) -> Result<PathBuf, ConfigError> {
    let span = value.span();
    let path = source.absolute(value, "path")?;
    let plain = |part: Component<'_>| matches!(part, Component::RootDir | Component::Normal(_));
    if path.components().all(plain) && path.file_name().is_some() {
        // Without doubled and last slashes.
        return Ok(path.components().collect());
    }
    Err(source.invalid(span, "nothing can be mounted there", "give a directory of its own, without `..`"))
}

#[cfg(test)]
mod tests {
    use crate::config::Config;

    use super::*;

    fn areas(text: &str) -> Result<Vec<Area>, String> {
        Config::parse(text, "test.toml").map(|config| config.areas).map_err(|error| error.to_string())
    }

    fn with(keys: &str) -> String {
        format!("[[area]]\nname = 'iso'\nsource = 'nfs://nas/srv/iso'\n{keys}\n")
    }

    #[test]
    fn an_area_needs_no_more_than_a_name_and_a_source() {
        let found = areas(&with("")).unwrap();
        assert_eq!(found[0].path, Path::new("/run/ringdrive/areas/iso"));
        assert!(!found[0].rw && found[0].version.is_none() && found[0].credentials.is_none());
        assert_eq!(areas("").unwrap(), []);
        let found = areas(&with("path = '/srv//images/'\nrw = true")).unwrap();
        assert_eq!(found[0].path.as_os_str(), "/srv/images");
        assert!(found[0].rw);
    }

    #[test]
    fn mistakes_are_told_where_they_stand() {
        for (keys, at, says) in [
            ("version = '2'", "4:11", "choose from 4.2"),
            ("options = ['hard', 'suid']", "4:20", "not among the mount options of nfs that are safe"),
            ("options = ['hard', 'soft']", "4:20", "contradicts"),
            ("credentials = '/etc/c'", "4:15", "NFS knows no user"),
            ("path = 'images'", "4:8", "not an absolute path"),
            ("path = '/'", "4:8", "nothing can be mounted there"),
            ("path = '/srv/../etc'", "4:8", "nothing can be mounted there"),
            ("surce = 'x'", "4:1", "did you mean `source`?"),
        ] {
            let refused = areas(&with(keys)).unwrap_err();
            assert!(refused.starts_with(&format!("test.toml:{at}: ")) && refused.contains(says), "{refused}");
        }
        let refused = areas("[[area]]\nname = '../x'\nsource = 'nfs://nas/a'\n").unwrap_err();
        assert!(refused.starts_with("test.toml:2:8: "), "{refused}");
        let refused = areas("[[area]]\nname = 'x'\nsource = 'ftp://nas/a'\n").unwrap_err();
        assert!(
            refused.starts_with("test.toml:3:10: ") && refused.contains("cifs://SERVER/SHARE"),
            "{refused}"
        );
    }

    #[test]
    fn areas_that_clash_are_refused() {
        let second = |name: &str, keys: &str| {
            format!("{}[[area]]\nname = '{name}'\nsource = 'nfs://nas/b'\n{keys}\n", with("path = '/srv/a'"))
        };
        assert_eq!(areas(&second("b", "path = '/srv/ab'")).unwrap().len(), 2);
        for (name, keys) in
            [("iso", ""), ("b", "path = '/srv/a'"), ("b", "path = '/srv/a/b'"), ("b", "path = '/srv'")]
        {
            assert!(areas(&second(name, keys)).is_err(), "{name} {keys}");
        }
        let many = |n: usize| -> String {
            (0..n).map(|n| format!("[[area]]\nname = 'a{n}'\nsource = 'nfs://nas/a'\n")).collect()
        };
        assert!(areas(&many(AREAS_MAX)).is_ok() && areas(&many(AREAS_MAX + 1)).is_err());
    }
}
