//! A CIFS server on the board itself, Samba, and its mounts.

use std::env;
use std::fs;
use std::io::Write as _;
use std::net::TcpStream;
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use anyhow::{Context, Result, ensure};

use crate::board::Scratch;
use crate::tool;
use crate::wait::wait_until;

const PORT: u16 = 445;
/// It links a hundred libraries.
const LISTEN: Duration = Duration::from_secs(60);

/// The one user that it knows; everybody else is a guest.
pub const USER: &str = "root";
/// With what separates mount options, and keys from values.
pub const PASSWORD: &str = "correct horse, battery=staple";

/// Samba with one directory in memory as two shares: `images` for everybody, and `private` for [`USER`]. Dropped, it ends and its
/// mounts are gone.
#[derive(Debug)]
pub struct Samba {
    child: Child,
    dir: PathBuf,
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
             [images]\npath = {share}\nguest ok = yes\nread only = no\nforce user = root\n\
             [private]\npath = {share}\nvalid users = {USER}\nread only = no\n",
            share = share.display()
        );
        fs::write(dir.join("smb.conf"), config)?;
        let child = listen(&dir)?;
        Ok(Self { child, dir, share, mounts: Vec::new() })
    }

    /// Lets [`USER`] in with [`PASSWORD`].
    ///
    /// # Errors
    /// The program for it is not there, or failed.
    pub fn let_user_in(&self) -> Result<()> {
        let mut child = program("bin/smbpasswd")?
            .arg("-c")
            .arg(self.dir.join("smb.conf"))
            .args(["-s", "-a", USER])
            .stdin(Stdio::piped())
            .stdout(Stdio::null())
            .spawn()
            .context("no smbpasswd; `cargo xtask setup` unpacks it")?;
        let mut stdin = child.stdin.take().context("smbpasswd has no standard input")?;
        write!(stdin, "{PASSWORD}\n{PASSWORD}\n")?;
        drop(stdin);
        ensure!(child.wait()?.success(), "smbpasswd failed");
        Ok(())
    }

    /// Kills it, and with it all connections.
    ///
    /// # Errors
    /// It is not there any more.
    pub fn kill(&mut self) -> Result<()> {
        tool::run("kill", ["-KILL".to_owned(), "--".to_owned(), format!("-{}", self.child.id())])?;
        self.child.wait().map(drop).context("cannot wait for Samba")
    }

    /// Starts it again after [`Samba::kill`].
    ///
    /// # Errors
    /// As of [`Samba::start`].
    pub fn start_again(&mut self) -> Result<()> {
        self.child = listen(&self.dir)?;
        Ok(())
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

/// Starts a server of the configuration in `dir`, and waits until it listens.
fn listen(dir: &Path) -> Result<Child> {
    let child = program("sbin/smbd")?
        .args(["--foreground", "--no-process-group", "--configfile"])
        .arg(dir.join("smb.conf"))
        .arg(format!("--log-basename={}", dir.display()))
        .stdin(Stdio::null())
        // It ends with its whole process group, which would be ours.
        .process_group(0)
        .spawn()
        .context("no Samba; `cargo xtask setup` unpacks it")?;
    let log = || fs::read_to_string(dir.join("log")).unwrap_or_default();
    wait_until(LISTEN, "Samba listens", || TcpStream::connect(("127.0.0.1", PORT)).is_ok())
        .with_context(log)?;
    Ok(child)
}

/// One of `board/samba/usr` of the target directory that this program is in, else what is on PATH.
fn program(path: &str) -> Result<Command> {
    let program = env::current_exe()?;
    let target = program.ancestors().nth(3).context("this test is not in a target directory")?;
    let tree = target.join("board/samba/usr");
    let unpacked = tree.join(path);
    if !unpacked.exists() {
        return Ok(Command::new(unpacked.file_name().unwrap_or(path.as_ref())));
    }
    let libraries = tree.join("lib/x86_64-linux-gnu");
    let mut command = Command::new(unpacked);
    command.env("LD_LIBRARY_PATH", env::join_paths([&libraries, &libraries.join("samba")])?);
    Ok(command)
}
