//! A CIFS server on the board itself, Samba, and its mounts.

use std::env;
use std::fs;
use std::net::TcpStream;
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use anyhow::{Context, Result};

use crate::board::Scratch;
use crate::tool;
use crate::wait::wait_until;

const PORT: u16 = 445;
/// It links a hundred libraries.
const LISTEN: Duration = Duration::from_secs(60);

/// Samba with one share, a directory in memory. Dropped, it ends and its mounts are gone.
#[derive(Debug)]
pub struct Samba {
    child: Child,
    share: PathBuf,
    mounts: Vec<PathBuf>,
}

impl Samba {
    /// Starts it. The programs are those that `cargo xtask setup` unpacked below the target directory, or the machine's own.
    ///
    /// # Errors
    /// There are none, the kernel has no CIFS, or it does not listen; the message has its log.
    pub fn start(scratch: &Scratch) -> Result<Self> {
        tool::run("modprobe", ["cifs"])?;
        tool::run("ip", ["link", "set", "lo", "up"])?;
        let (dir, share) = (scratch.file("samba"), scratch.file("share"));
        fs::create_dir_all(&dir)?;
        fs::create_dir_all(&share)?;
        let at = dir.display();
        let directories =
            ["lock", "state", "cache", "pid"].map(|name| format!("{name} directory = {at}\n")).concat();
        // A user that is unknown is a guest, and works as root.
        let config = format!(
            "[global]\n{directories}private dir = {at}\nncalrpc dir = {at}/ncalrpc\nlog file = {at}/log\n\
             smb ports = {PORT}\ninterfaces = 127.0.0.1\nbind interfaces only = yes\ndisable netbios = yes\n\
             map to guest = Bad User\nguest account = nobody\nload printers = no\nprintcap name = /dev/null\n\
             disable spoolss = yes\n\
             [images]\npath = {}\nguest ok = yes\nread only = no\nforce user = root\n",
            share.display()
        );
        let path = dir.join("smb.conf");
        fs::write(&path, config)?;
        let child = smbd()?
            .args(["--foreground", "--no-process-group", "--configfile"])
            .arg(&path)
            .arg(format!("--log-basename={at}"))
            .stdin(Stdio::null())
            // It ends with its whole process group, which would be ours.
            .process_group(0)
            .spawn()
            .context("no Samba; `cargo xtask setup` unpacks it")?;
        let samba = Self { child, share, mounts: Vec::new() };
        let log = || fs::read_to_string(dir.join("log")).unwrap_or_default();
        wait_until(LISTEN, "Samba listens", || TcpStream::connect(("127.0.0.1", PORT)).is_ok())
            .with_context(log)?;
        Ok(samba)
    }

    /// A file as the server has it.
    #[must_use]
    pub fn file(&self, name: &str) -> PathBuf {
        self.share.join(name)
    }

    /// Mounts the share with these options beside those that it needs.
    ///
    /// # Errors
    /// The mount failed.
    pub fn mount(&mut self, name: &str, options: &str) -> Result<PathBuf> {
        let dir = PathBuf::from(format!("/run/cifs-{name}"));
        fs::create_dir_all(&dir)?;
        let options = format!("ip=127.0.0.1,username=guest,password=,iocharset=utf8,nosharesock,{options}");
        let at = dir.display().to_string();
        tool::run("mount", ["-i", "-t", "cifs", "-o", &options, "//127.0.0.1/images", &at])?;
        self.mounts.push(dir.clone());
        Ok(dir)
    }
}

impl Drop for Samba {
    fn drop(&mut self) {
        for dir in &self.mounts {
            let _ = tool::run("umount", [Path::new("-f"), Path::new("-l"), dir]);
        }
        // Those that serve the connections end with it only if it is asked.
        let _ = tool::try_run("kill", [self.child.id().to_string()]);
        let _ = self.child.wait();
    }
}

/// `board/samba` of the target directory that this program is in, else what is on PATH.
fn smbd() -> Result<Command> {
    let program = env::current_exe()?;
    let target = program.ancestors().nth(3).context("this test is not in a target directory")?;
    let tree = target.join("board/samba/usr");
    let unpacked = tree.join("sbin/smbd");
    if !unpacked.exists() {
        return Ok(Command::new("smbd"));
    }
    let libraries = tree.join("lib/x86_64-linux-gnu");
    let mut command = Command::new(unpacked);
    command.env("LD_LIBRARY_PATH", env::join_paths([&libraries, &libraries.join("samba")])?);
    Ok(command)
}
