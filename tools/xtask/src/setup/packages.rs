//! Debian packages with the tools that the board and its tests use.

use anyhow::{Result, bail};
use xshell::{Shell, cmd};

use super::apt::Apt;

const QEMU: &str = "qemu-system-x86";

/// Package, and what it is for.
const PACKAGES: [(&str, &str); 20] = [
    (QEMU, "the machine that the virtual board is"),
    ("busybox-static", "the virtual board's first process"),
    ("kmod", "kernel modules"),
    ("udev", "device nodes on the virtual board"),
    ("dosfstools", "mkfs.vfat, fsck.vfat"),
    ("udftools", "mkudffs"),
    ("mtools", "reading a FAT image without mounting it"),
    ("eject", "ejecting from the host's side"),
    ("fio", "verified random reads and writes"),
    ("e2fsprogs", "mkfs.ext4, for measurements"),
    ("iproute2", "tc, which makes the network slow for measurements"),
    ("libiscsi-bin", "iscsi-test-cu, the SCSI conformance suite"),
    ("nginx-light", "the web server that images come from; tests start their own, on the board"),
    ("openssl", "certificates for it"),
    ("sg3-utils", "single SCSI commands from the host's side"),
    ("usbutils", "lsusb"),
    ("usbredirect", "a USB device of the virtual board in another machine, whose firmware boots from it"),
    ("seabios", "a BIOS to boot from our drives"),
    ("ovmf", "UEFI firmware to boot from our drives"),
    ("valgrind", "counting instructions"),
];

/// Installs what is missing.
///
/// # Errors
/// Something is missing and this is not root; the message has the command to run.
pub(crate) fn ensure() -> Result<()> {
    let shell = Shell::new()?;
    if cmd!(shell, "dpkg-query --version").quiet().ignore_stdout().ignore_stderr().run().is_err() {
        bail!(
            "this is not a Debian system (no dpkg-query), and only Debian on amd64 is set up automatically; \
             docs/virtual-board.md lists what the virtual board needs"
        );
    }
    let mut missing: Vec<String> =
        PACKAGES.iter().map(|(name, _)| (*name).to_owned()).filter(|name| !installed(&shell, name)).collect();
    if cmd!(shell, "python3 -c 'import ensurepip'").quiet().ignore_stderr().run().is_err() {
        missing.push("python3-venv".to_owned());
    }
    install(&shell, missing)
}

/// Installs what it takes to build a kernel module.
///
/// # Errors
/// As [`ensure`].
pub(crate) fn ensure_builders(compiler: &str) -> Result<()> {
    let shell = Shell::new()?;
    let needed = ["make", "xz-utils", compiler].map(str::to_owned);
    let missing = needed.into_iter().filter(|name| !installed(&shell, name)).collect();
    install(&shell, missing)
}

fn install(shell: &Shell, mut missing: Vec<String>) -> Result<()> {
    if missing.is_empty() {
        return Ok(());
    }
    let list = missing.join(" ");
    if !nix::unistd::geteuid().is_root() {
        bail!(
            "these Debian packages are missing: {list}; \
             install them with `sudo apt-get install --no-install-recommends {list}` and try again"
        );
    }
    eprintln!("installing Debian packages: {list}");
    let backports = qemu_backports(shell);
    let apt = Apt::open(backports.as_deref())?;
    if let Some(suite) = &backports
        && let Some(at) = missing.iter().position(|name| name == QEMU)
    {
        let qemu = missing.swap_remove(at);
        apt.install(&[qemu], Some(suite))?;
    }
    if !missing.is_empty() {
        apt.install(&missing, None)?;
    }
    Ok(())
}

fn installed(shell: &Shell, package: &str) -> bool {
    query(shell, package, "${db:Status-Status}").is_some_and(|status| status == "installed")
}

fn query(shell: &Shell, package: &str, format: &str) -> Option<String> {
    cmd!(shell, "dpkg-query --show --showformat={format} {package}").quiet().ignore_stderr().read().ok()
}

/// QEMU's packages conflict across suites: where `qemu-utils` came from backports, so must the rest.
fn qemu_backports(shell: &Shell) -> Option<String> {
    let version = query(shell, "qemu-utils", "${Version}")?;
    let release = shell.read_file("/etc/os-release").ok()?;
    let codename = release.lines().find_map(|line| line.strip_prefix("VERSION_CODENAME="))?;
    version.contains("~bpo").then(|| format!("{codename}-backports"))
}
