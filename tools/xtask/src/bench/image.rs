//! The sources: one image each, made on the board and gone with it.

use std::fs::{self, File};
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use anyhow::{Context, Result};
use nix::fcntl::{PosixFadviseAdvice, posix_fadvise};
use nix::unistd::sync;
use xshell::{Shell, cmd};

use super::plan::{IMAGE, MIB, Source};
use crate::wait::wait_for;

const EXPORT: &str = "/run/bench-export";
/// nfsd's own, and the one that mountd is told to use.
const MOUNTD_PORT: &str = "20048";
/// Between the NFS server and us, each way.
pub(super) const DELAY: &str = "5ms";
const LISTEN: Duration = Duration::from_secs(30);

/// An image ready to be served.
#[derive(Debug)]
pub(super) struct Image {
    pub(super) path: PathBuf,
    source: Source,
    dir: PathBuf,
    _daemons: Vec<Running>,
}

impl Image {
    /// Makes the file system and the image. `nfs` is where the NFS server's programs were unpacked.
    pub(super) fn make(shell: &Shell, source: Source, nfs: &Path) -> Result<Self> {
        let dir = PathBuf::from(format!("/run/bench-{}", source.name()));
        fs::create_dir_all(&dir)?;
        let context = || format!("cannot make the {} image", source.name());
        let mut daemons = Vec::new();
        match source {
            Source::Tmpfs => cmd!(shell, "mount -t tmpfs -o size=128m bench {dir}").quiet().run(),
            Source::Ext4 => on_ram_disk(shell, &dir),
            Source::Nfs => {
                daemons = serve_nfs(shell, nfs, &dir).with_context(context)?;
                Ok(())
            }
        }
        .with_context(context)?;
        let made_in = if source == Source::Nfs { Path::new(EXPORT) } else { &dir };
        fill(&made_in.join("image")).with_context(context)?;
        if source == Source::Nfs {
            cmd!(shell, "tc qdisc add dev lo root netem delay {DELAY} limit 100000").quiet().run()?;
        }
        Ok(Self { path: dir.join("image"), source, dir, _daemons: daemons })
    }

    /// What a test must find: nothing left to be written, and on NFS nothing in the cache.
    pub(super) fn settle(&self) -> Result<()> {
        sync();
        if self.source == Source::Nfs {
            // Not drop_caches: that would have fio's own code come over 9p again, in real time.
            posix_fadvise(File::open(&self.path)?, 0, 0, PosixFadviseAdvice::POSIX_FADV_DONTNEED)?;
        }
        Ok(())
    }

    /// Gives the memory back.
    pub(super) fn remove(self, shell: &Shell) -> Result<()> {
        if self.source == Source::Nfs {
            cmd!(shell, "tc qdisc del dev lo root").quiet().run()?;
        }
        let dir = &self.dir;
        cmd!(shell, "umount {dir}").quiet().run()?;
        Ok(())
    }
}

/// Bytes that are there: a hole is read from nowhere.
fn fill(path: &Path) -> Result<()> {
    let mut file = File::create(path).with_context(|| format!("cannot create {}", path.display()))?;
    let block: Vec<u8> = (0..=u8::MAX).cycle().take(usize::try_from(MIB)?).collect();
    for _ in 0..IMAGE / MIB {
        file.write_all(&block)?;
    }
    file.sync_all()?;
    Ok(())
}

/// A disk in memory, not a loop device: a loop device serves from a kernel worker of its own, whose time would be measured.
fn on_ram_disk(shell: &Shell, dir: &Path) -> xshell::Result<()> {
    cmd!(shell, "modprobe ext4").quiet().run()?;
    cmd!(shell, "modprobe brd rd_nr=1 rd_size=196608").quiet().run()?;
    cmd!(shell, "mkfs.ext4 -q -F /dev/ram0 160M").quiet().run()?;
    cmd!(shell, "mount -t ext4 /dev/ram0 {dir}").quiet().run()
}

/// The board's own NFSv3 server, and a mount of it. The delay comes later, so that all this is quick.
fn serve_nfs(shell: &Shell, programs: &Path, dir: &Path) -> Result<Vec<Running>> {
    cmd!(shell, "modprobe -a nfsd nfsv3 sch_netem").quiet().run()?;
    cmd!(shell, "ip link set lo up").quiet().run()?;
    fs::create_dir_all(EXPORT)?;
    cmd!(shell, "mount -t tmpfs -o size=128m bench-export {EXPORT}").quiet().run()?;
    for state in ["/var/lib/nfs/v4recovery", "/run/rpcbind"] {
        fs::create_dir_all(state)?;
    }
    for file in ["/etc/exports", "/var/lib/nfs/etab", "/var/lib/nfs/rmtab"] {
        File::create(file)?;
    }
    // rpcbind wants to become this user.
    let mut passwd = fs::OpenOptions::new().append(true).open("/etc/passwd")?;
    passwd.write_all(b"_rpc:x:990:65534::/run/rpcbind:/usr/sbin/nologin\n")?;
    if !Path::new("/etc/netconfig").exists() {
        fs::copy(programs.join("etc/netconfig"), "/etc/netconfig")?;
    }
    cmd!(shell, "mount -t nfsd nfsd /proc/fs/nfsd").quiet().run()?;
    let libraries = programs.join("usr/lib/x86_64-linux-gnu");
    let _environment = shell.push_env("LD_LIBRARY_PATH", &libraries);
    let program = |path: &str| programs.join(path);
    let (exportfs, nfsd) = (program("usr/sbin/exportfs"), program("usr/sbin/rpc.nfsd"));
    let mut daemons =
        vec![Running::start(Command::new(program("sbin/rpcbind")).args(["-f", "-w"]), &libraries)?];
    let ready = |port: &str| std::net::TcpStream::connect(format!("127.0.0.1:{port}")).ok();
    wait_for("rpcbind to listen", LISTEN, || Ok(ready("111")))?;
    cmd!(shell, "{exportfs} -o rw,async,no_root_squash,no_subtree_check,insecure,fsid=1 127.0.0.1:{EXPORT}")
        .quiet()
        .run()?;
    cmd!(shell, "{nfsd} --no-nfs-version 4 --tcp 8").quiet().run()?;
    let mountd = program("usr/sbin/rpc.mountd");
    daemons.push(Running::start(
        Command::new(mountd).args(["--foreground", "--no-nfs-version", "4", "--port", MOUNTD_PORT]),
        &libraries,
    )?);
    wait_for("mountd to listen", LISTEN, || Ok(ready(MOUNTD_PORT)))?;
    let options = format!(
        "vers=3,proto=tcp,mountproto=tcp,addr=127.0.0.1,mountaddr=127.0.0.1,port=2049,mountport={MOUNTD_PORT},nolock"
    );
    cmd!(shell, "mount -i -t nfs -o {options} 127.0.0.1:{EXPORT} {dir}").quiet().run()?;
    Ok(daemons)
}

/// A program in the background; ended when dropped.
#[derive(Debug)]
struct Running(Child);

impl Running {
    fn start(command: &mut Command, libraries: &Path) -> Result<Self> {
        let started = command.env("LD_LIBRARY_PATH", libraries).stdin(Stdio::null()).spawn();
        started.map(Self).with_context(|| format!("cannot start {}", command.get_program().display()))
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}
