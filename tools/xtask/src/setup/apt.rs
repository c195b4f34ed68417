//! apt with a package index of our own, so that looking and downloading need no root and leave the machine's alone.

use std::ffi::OsString;
use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use xshell::{Shell, cmd};

use crate::project;

/// An up-to-date view of Debian's package index.
pub(crate) struct Apt {
    shell: Shell,
    options: Vec<OsString>,
}

impl Apt {
    /// Fetches the index of the suites this machine uses, and of `extra_suite` if named.
    ///
    /// # Errors
    /// No way to Debian's mirror.
    pub(crate) fn open(extra_suite: Option<&str>) -> Result<Self> {
        let shell = Shell::new()?;
        let dir = project::board_dir()?.join("apt");
        let parts = dir.join("sources.list.d");
        for path in [&dir.join("lists/partial"), &dir.join("cache/archives/partial"), &parts] {
            fs::create_dir_all(path).with_context(|| format!("cannot create {}", path.display()))?;
        }
        copy_sources(&parts)?;
        let extra = parts.join("ringdrive.list");
        match extra_suite {
            Some(suite) => fs::write(&extra, format!("deb http://deb.debian.org/debian {suite} main\n"))?,
            None => remove_if_there(&extra)?,
        }
        let apt = Self { shell, options: private_state(&dir, &parts) };
        let options = &apt.options;
        eprintln!("reading Debian's package index");
        cmd!(apt.shell, "apt-get {options...} -qq update")
            .quiet()
            .run()
            .context("cannot read Debian's package index; check the network and /etc/apt/sources.list.d")?;
        Ok(apt)
    }

    /// Names of the packages that start with `prefix`.
    pub(crate) fn names(&self, prefix: &str) -> Result<Vec<String>> {
        let options = &self.options;
        let output = cmd!(self.shell, "apt-cache {options...} pkgnames {prefix}").quiet().read()?;
        Ok(output.lines().map(str::to_owned).collect())
    }

    /// The newest version of `package` that the index has.
    pub(crate) fn version(&self, package: &str) -> Option<String> {
        let options = &self.options;
        let show = cmd!(self.shell, "apt-cache {options...} show --no-all-versions {package}");
        let text = show.quiet().ignore_stderr().read().ok()?;
        text.lines().find_map(|line| line.strip_prefix("Version: ")).map(str::to_owned)
    }

    /// The packages that an installation of `package` would bring to this machine.
    pub(crate) fn lacking(&self, package: &str) -> Result<Vec<String>> {
        let options = &self.options;
        let plan = cmd!(self.shell, "apt-get {options...} -qq -s --no-install-recommends install {package}");
        let text = plan.quiet().read().with_context(|| format!("Debian's index has no usable {package}"))?;
        let names = text.lines().filter_map(|line| line.strip_prefix("Inst ")?.split(' ').next());
        Ok(names.map(str::to_owned).collect())
    }

    /// Downloads packages and unpacks them into one tree, which appears only when it is whole.
    pub(crate) fn unpack(&self, packages: &[String], into: &Path) -> Result<()> {
        let parent = into.parent().context("a package cannot be unpacked at the root")?;
        let work = tempfile::Builder::new().prefix("unpack-").tempdir_in(parent)?;
        let (options, tree) = (&self.options, work.path().join("tree"));
        let _here = self.shell.push_dir(work.path());
        let names = packages.join(" ");
        cmd!(self.shell, "apt-get {options...} -qq download {packages...}")
            .quiet()
            .run()
            .with_context(|| format!("cannot download {names}; check the network and try again"))?;
        for file in self.shell.read_dir(work.path())? {
            if file.extension().is_some_and(|extension| extension == "deb") {
                cmd!(self.shell, "dpkg-deb --extract {file} {tree}").quiet().run()?;
            }
        }
        if into.exists() {
            fs::remove_dir_all(into)?;
        }
        fs::rename(&tree, into).with_context(|| format!("cannot move {names} to {}", into.display()))
    }

    /// Installs packages on this machine; refuses to remove any. Needs root.
    pub(crate) fn install(&self, packages: &[String], suite: Option<&str>) -> Result<()> {
        let options = &self.options;
        let suite: Vec<String> = suite.map(|name| format!("--target-release={name}")).into_iter().collect();
        cmd!(
            self.shell,
            "apt-get {options...} -qq -y --no-remove --no-install-recommends {suite...} install {packages...}"
        )
        .env("DEBIAN_FRONTEND", "noninteractive")
        .ignore_stdout()
        .quiet()
        .run()
        .with_context(|| format!("cannot install {}; try it by hand with apt-get", packages.join(" ")))
    }
}

fn private_state(dir: &Path, parts: &Path) -> Vec<OsString> {
    let settings: [(&str, PathBuf); 3] = [
        ("Dir::State::Lists", dir.join("lists")),
        ("Dir::Cache", dir.join("cache")),
        ("Dir::Etc::SourceParts", parts.to_owned()),
    ];
    let paths = settings.iter().flat_map(|(key, path)| {
        let mut setting = OsString::from(format!("{key}="));
        setting.push(path);
        [OsString::from("-o"), setting]
    });
    // The sandbox user could not read a target directory in somebody's home.
    paths.chain(["-o", "APT::Sandbox::User=root"].map(OsString::from)).collect()
}

fn copy_sources(parts: &Path) -> Result<()> {
    let Ok(entries) = fs::read_dir("/etc/apt/sources.list.d") else { return Ok(()) };
    for entry in entries {
        let entry = entry?;
        let to = parts.join(entry.file_name());
        fs::copy(entry.path(), &to).with_context(|| format!("cannot copy {}", entry.path().display()))?;
    }
    Ok(())
}

fn remove_if_there(path: &Path) -> Result<()> {
    match fs::remove_file(path) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
            Err(error).with_context(|| format!("cannot remove {}", path.display()))
        }
        _ => Ok(()),
    }
}
