//! Debian's own kernel, from its package, unpacked and not installed.

use std::fs;
use std::path::PathBuf;

use anyhow::{Context, Result, bail};
use xshell::{Shell, cmd};

use super::apt::Apt;
use crate::project;

/// The series that the project is tested on.
const SERIES: &str = "linux-image-6.12.";

/// A kernel with its modules.
pub(crate) struct Kernel {
    /// As `uname -r` says it.
    pub(crate) release: String,
    /// Holds `boot/` and `lib/modules/`.
    pub(crate) tree: PathBuf,
}

impl Kernel {
    /// The file that QEMU boots.
    pub(crate) fn image(&self) -> PathBuf {
        self.tree.join(format!("boot/vmlinuz-{}", self.release))
    }

    fn is_whole(&self) -> bool {
        // depmod's last file: it is there when everything before it is.
        self.tree.join(format!("lib/modules/{}/modules.devname", self.release)).exists()
            && self.image().exists()
    }
}

/// The kernel that is there already, else the newest that Debian has.
pub(crate) fn ensure() -> Result<Kernel> {
    let dir = project::board_dir()?;
    let stamp = dir.join("kernel-release");
    if let Ok(release) = fs::read_to_string(&stamp) {
        let kernel = Kernel { tree: dir.join(&release), release };
        if kernel.is_whole() {
            return Ok(kernel);
        }
    }
    if std::env::consts::ARCH != "x86_64" {
        bail!("the virtual board runs on amd64 only; on this machine use a real board");
    }
    let apt = Apt::open(None)?;
    let package = apt
        .names(SERIES)?
        .into_iter()
        .filter_map(|name| Some((patch_level(&name)?, name)))
        .max()
        .map(|(_, name)| name)
        .with_context(|| {
            format!(
                "Debian's index has no {SERIES}*-amd64; add the security suite to /etc/apt/sources.list.d"
            )
        })?;
    let release = package.trim_start_matches("linux-image-").to_owned();
    let kernel = Kernel { tree: dir.join(&release), release };
    let Kernel { tree, release } = &kernel;
    eprintln!("unpacking {package} below {} (107 MB to download)", dir.display());
    apt.unpack(std::slice::from_ref(&package), tree)?;
    let shell = Shell::new()?;
    let path = project::path_with(&tree.join("boot"))?;
    cmd!(shell, "depmod --basedir {tree} {release}").env("PATH", path).quiet().run()?;
    if !kernel.is_whole() {
        bail!("{package} lacks a kernel or modules; remove {} and try again", tree.display());
    }
    fs::write(&stamp, release)?;
    Ok(kernel)
}

/// The `N` of `linux-image-6.12.N…-amd64`; none for cloud, rt, unsigned and debug kernels.
fn patch_level(package: &str) -> Option<u32> {
    let version = package.strip_prefix(SERIES)?.strip_suffix("-amd64")?;
    let (number, rest) =
        version.split_at(version.find(|c: char| !c.is_ascii_digit()).unwrap_or(version.len()));
    let plain = rest.is_empty() || rest.strip_prefix("+deb")?.chars().all(|c| c.is_ascii_digit());
    plain.then(|| number.parse().ok())?
}

#[cfg(test)]
mod tests {
    use super::patch_level;

    #[test]
    fn only_the_generic_kernel_counts() {
        assert_eq!(patch_level("linux-image-6.12.117+deb12-amd64"), Some(117));
        assert_eq!(patch_level("linux-image-6.12.9-amd64"), Some(9));
        for other in [
            "linux-image-6.12.117+deb12-rt-amd64",
            "linux-image-6.12.117+deb12-cloud-amd64",
            "linux-image-6.12.117+deb12-amd64-dbg",
            "linux-image-6.12.117+deb12-amd64-unsigned",
            "linux-image-6.1.0-50-amd64",
        ] {
            assert_eq!(patch_level(other), None, "{other}");
        }
    }
}
