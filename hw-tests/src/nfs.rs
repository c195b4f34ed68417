//! An NFS server on the board itself, its mounts, and a network between them that can be cut.

use std::fs::{self, File, OpenOptions};
use std::io::Write as _;
use std::net::TcpStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use anyhow::{Context, Result, ensure};

use crate::tool;
use crate::wait::wait_until;

const EXPORT: &str = "/run/nfs-export";
/// The one that mountd is told to use, beside nfsd's own.
const MOUNTD_PORT: &str = "20048";
const LISTEN: Duration = Duration::from_secs(30);

/// The protocol of a mount.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Version {
    /// NFSv3, without locks.
    V3,
    /// NFSv4.2.
    V42,
}

/// A server of the kernel's, over TCP, with one export. Dropped, its network is whole again and its mounts are gone.
#[derive(Debug)]
pub struct Server {
    daemons: Vec<Child>,
    mounts: Vec<PathBuf>,
}

impl Server {
    /// Starts it. The programs are those that `cargo xtask setup` unpacked below the target directory.
    ///
    /// # Errors
    /// The programs are not there, or the kernel has no NFS.
    pub fn start() -> Result<Self> {
        let programs = programs()?;
        tool::run("modprobe", ["-a", "nfsd", "nfsv3", "nfsv4", "sch_netem"])?;
        tool::run("ip", ["link", "set", "lo", "up"])?;
        fs::create_dir_all(EXPORT)?;
        tool::run("mount", ["-t", "tmpfs", "-o", "size=96m", "nfs-export", EXPORT])?;
        for state in ["/var/lib/nfs/v4recovery", "/run/rpcbind"] {
            fs::create_dir_all(state)?;
        }
        for file in ["/etc/exports", "/var/lib/nfs/etab", "/var/lib/nfs/rmtab"] {
            File::create(file)?;
        }
        // rpcbind wants to become this user.
        let mut passwd = OpenOptions::new().append(true).open("/etc/passwd")?;
        passwd.write_all(b"_rpc:x:990:65534::/run/rpcbind:/usr/sbin/nologin\n")?;
        if !Path::new("/etc/netconfig").exists() {
            fs::copy(programs.join("etc/netconfig"), "/etc/netconfig")?;
        }
        tool::run("mount", ["-t", "nfsd", "nfsd", "/proc/fs/nfsd"])?;
        let mut server = Self { daemons: Vec::new(), mounts: Vec::new() };
        server.spawn(program(&programs, "sbin/rpcbind").args(["-f", "-w"]))?;
        await_port("111")?;
        // There are no clients of before whose locks the server would wait for: here lockd's, below version 4's.
        fs::write("/sys/module/lockd/parameters/nlm_grace_period", "1")?;
        // As 0 it is the root of what version 4 serves.
        export(&programs, 0)?;
        must(program(&programs, "usr/sbin/rpc.nfsd").args(["--tcp", "8"]))?;
        fs::write("/proc/fs/nfsd/v4_end_grace", "Y")?;
        // Without the tree of exports that version 4 would have besides this one.
        let mountd = ["--foreground", "--no-nfs-version", "4", "--port", MOUNTD_PORT];
        server.spawn(program(&programs, "usr/sbin/rpc.mountd").args(mountd))?;
        await_port(MOUNTD_PORT)?;
        Ok(server)
    }

    /// A file as the server has it.
    #[must_use]
    pub fn file(&self, name: &str) -> PathBuf {
        Path::new(EXPORT).join(name)
    }

    /// Mounts the export with these options beside those that it needs: a mount with a connection and a cache of its own.
    ///
    /// # Errors
    /// The mount failed.
    pub fn mount(&mut self, name: &str, version: Version, options: &str) -> Result<PathBuf> {
        let dir = PathBuf::from(format!("/run/nfs-{name}"));
        fs::create_dir_all(&dir)?;
        let common = "proto=tcp,addr=127.0.0.1,port=2049,nosharecache";
        let (kind, from, own) = match version {
            Version::V3 => (
                "nfs",
                format!("127.0.0.1:{EXPORT}"),
                format!("vers=3,mountproto=tcp,mountaddr=127.0.0.1,mountport={MOUNTD_PORT},nolock"),
            ),
            Version::V42 => {
                ("nfs4", "127.0.0.1:/".to_owned(), "vers=4.2,clientaddr=127.0.0.1,sec=sys".to_owned())
            }
        };
        let options = format!("{common},{own},{options}");
        let at = dir.display().to_string();
        tool::run("mount", ["-i", "-t", kind, "-o", &options, &from, &at])?;
        self.mounts.push(dir.clone());
        Ok(dir)
    }

    /// Exports the same anew: what clients have mounted or open is stale.
    ///
    /// # Errors
    /// The kernel refused.
    pub fn forget(&mut self) -> Result<()> {
        let programs = programs()?;
        must(program(&programs, "usr/sbin/exportfs").args(["-u", &format!("127.0.0.1:{EXPORT}")]))?;
        export(&programs, 2)
    }

    /// Loses every packet between server and mounts.
    ///
    /// # Errors
    /// The kernel has no netem.
    pub fn cut(&self) -> Result<()> {
        tool::run("tc", ["qdisc", "add", "dev", "lo", "root", "netem", "loss", "100%"]).map(drop)
    }

    /// Lets them through again.
    ///
    /// # Errors
    /// It was not cut.
    pub fn mend(&self) -> Result<()> {
        tool::run("tc", ["qdisc", "del", "dev", "lo", "root"]).map(drop)
    }

    fn spawn(&mut self, command: &mut Command) -> Result<()> {
        let name = command.get_program().display().to_string();
        let child = command.stdin(Stdio::null()).spawn().with_context(|| format!("cannot start {name}"))?;
        self.daemons.push(child);
        Ok(())
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.mend();
        for dir in &self.mounts {
            let _ = tool::run("umount", [Path::new("-f"), Path::new("-l"), dir]);
        }
        let _ = fs::write("/proc/fs/nfsd/threads", "0");
        for daemon in &mut self.daemons {
            let _ = daemon.kill();
            let _ = daemon.wait();
        }
        let _ = tool::run("umount", ["/proc/fs/nfsd"]);
        let _ = tool::run("umount", ["-l", EXPORT]);
    }
}

/// Where `cargo xtask setup` unpacked them: `board/nfs-server` of the target directory that this program is in.
fn programs() -> Result<PathBuf> {
    let program = std::env::current_exe()?;
    let target = program.ancestors().nth(3).context("this test is not in a target directory")?;
    let tree = target.join("board/nfs-server");
    ensure!(
        tree.join("usr/sbin/rpc.nfsd").exists(),
        "no NFS server below {}; run `cargo xtask setup`",
        tree.display()
    );
    Ok(tree)
}

fn export(programs: &Path, fsid: u8) -> Result<()> {
    let options = format!("rw,async,no_root_squash,no_subtree_check,insecure,fsid={fsid}");
    let what = format!("127.0.0.1:{EXPORT}");
    must(program(programs, "usr/sbin/exportfs").args(["-o", &options, &what]))
}

fn program(programs: &Path, path: &str) -> Command {
    let mut command = Command::new(programs.join(path));
    command.env("LD_LIBRARY_PATH", programs.join("usr/lib/x86_64-linux-gnu"));
    command
}

fn must(command: &mut Command) -> Result<()> {
    let name = command.get_program().display().to_string();
    let output = command.output().with_context(|| format!("cannot start {name}"))?;
    let said = String::from_utf8_lossy(&output.stderr);
    ensure!(output.status.success(), "{name} ended with {}: {said}", output.status);
    Ok(())
}

fn await_port(port: &str) -> Result<()> {
    let address = format!("127.0.0.1:{port}");
    wait_until(LISTEN, &format!("a server listens on port {port}"), || TcpStream::connect(&address).is_ok())
}
