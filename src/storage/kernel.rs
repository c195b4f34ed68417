//! Areas as the kernel has them: mounted by a child process with a deadline, looked at through a thread that may be stuck without
//! anybody waiting for it, unmounted lazily.

use std::{
    fs::{self, DirBuilder},
    io::{self, Read, Write},
    os::unix::fs::DirBuilderExt,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    thread,
    time::Duration,
};

use crossbeam_channel::{Receiver, bounded};
use nix::{
    errno::Errno,
    mount::{MntFlags, umount2},
    sys::statvfs::statvfs,
};

use super::{
    AREAS_DIR, Area, Awaited, Stop,
    child::MountError,
    watch::{Look, Mounter},
};
use crate::mounts::{self, Mount};

/// How long mounting may take.
const MOUNT_LIMIT: Duration = Duration::from_secs(20);
/// How long the server may take to say how full it is.
const LOOK_LIMIT: Duration = Duration::from_secs(5);
/// How long a killed child may take to end: longer only inside a system call that no signal ends.
const KILL_LIMIT: Duration = Duration::from_millis(500);
/// Of what a child says.
const SAID_BYTES_MAX: u64 = 4096;
/// Mounts of one area on top of each other, as several killed daemons may leave them.
const LEFT_MAX: usize = 16;

/// The kernel's side of one area.
#[derive(Debug)]
pub(super) struct Kernel {
    area: Area,
    /// The mount point as /proc/self/mountinfo has it.
    point: PathBuf,
    command: Vec<String>,
    limit: Duration,
    /// A child that was killed and has not ended.
    stuck: Option<Mounting>,
    /// A look that was not answered in time.
    looking: Option<Receiver<Look>>,
}

/// A child at work.
#[derive(Debug)]
struct Mounting {
    child: Child,
    /// Gets what it said when it ends.
    said: Receiver<String>,
}

impl Kernel {
    pub(super) fn new(area: Area) -> Self {
        // This very program, even if its file was replaced meanwhile.
        let command = ["/proc/self/exe", "--mount-area"].map(str::to_owned).to_vec();
        let point = area.path.clone();
        Self { area, point, command, limit: MOUNT_LIMIT, stuck: None, looking: None }
    }

    /// Makes the mount point, once what an earlier daemon left there is gone.
    fn prepare(&mut self) -> Result<(), MountError> {
        let path = self.area.path.clone();
        let point = |source| MountError::Point { path: path.clone(), source };
        if let (Some(parent), Some(name)) = (path.parent(), path.file_name()) {
            // Root's alone: images are served by us, not found in a path.
            let mode = if parent == Path::new(AREAS_DIR) { 0o700 } else { 0o755 };
            DirBuilder::new().recursive(true).mode(mode).create(parent).map_err(point)?;
            // Not the mount point itself: one that a dead daemon left may wait for its server.
            self.point = fs::canonicalize(parent).map_err(point)?.join(name);
        }
        self.detach();
        if mounts::all().iter().any(|mount| mount.point == self.point) {
            return Err(MountError::Taken { path, what: "has something else mounted on it" });
        }
        match DirBuilder::new().mode(0o700).create(&self.point) {
            Err(error) if error.kind() != io::ErrorKind::AlreadyExists => return Err(point(error)),
            _ => {}
        }
        if fs::read_dir(&self.point).map_err(point)?.next().is_some() {
            return Err(MountError::Taken { path, what: "is a directory with files, which would be hidden" });
        }
        Ok(())
    }

    fn spawn(&self) -> Result<Mounting, MountError> {
        let (program, args) = self.command.split_first().ok_or(MountError::Stopped)?;
        let mut child =
            Command::new(program).args(args).stdin(Stdio::piped()).stdout(Stdio::piped()).spawn()?;
        let pipes = child.stdin.take().zip(child.stdout.take());
        let (tell, said) = bounded(1);
        let area = serde_json::to_vec(&self.area).map_err(io::Error::from)?;
        let listen = move || {
            let mut text = String::new();
            if let Some((mut stdin, stdout)) = pipes {
                // A child that does not listen says why.
                let _ = stdin.write_all(&area);
                drop(stdin);
                let _ = stdout.take(SAID_BYTES_MAX).read_to_string(&mut text);
            }
            let _ = tell.send(text);
        };
        if let Err(error) = thread::Builder::new().name("area-mount".into()).spawn(listen) {
            let _ = child.kill();
            let _ = child.wait();
            return Err(error.into());
        }
        Ok(Mounting { child, said })
    }

    /// Ends a child, and gives what it has said; keeps it where it does not end.
    fn kill(&mut self, mut mounting: Mounting) -> String {
        let _ = mounting.child.kill();
        match mounting.said.recv_timeout(KILL_LIMIT) {
            Err(error) if error.is_timeout() => {
                self.stuck = Some(mounting);
                String::new()
            }
            said => {
                let _ = mounting.child.wait();
                said.unwrap_or_default()
            }
        }
    }

    /// Detaches what is mounted there from our source; open files stay valid.
    fn detach(&self) {
        for _ in 0..LEFT_MAX {
            let table = mounts::all();
            let Some(top) = table.iter().rev().find(|mount| mount.point == self.point) else { return };
            if !is_ours(top, &self.area) {
                return;
            }
            if let Err(error) = umount2(&self.point, MntFlags::MNT_DETACH | MntFlags::UMOUNT_NOFOLLOW) {
                tracing::warn!(path = %self.point.display(), %error, "cannot unmount the area");
                return;
            }
        }
    }
}

impl Mounter for Kernel {
    type Error = MountError;

    fn mount(&mut self, stop: &Stop) -> Result<(), MountError> {
        if let Some(stuck) = self.stuck.take() {
            self.kill(stuck);
            if self.stuck.is_some() {
                return Err(MountError::Stuck);
            }
        }
        self.prepare()?;
        let mut mounting = self.spawn()?;
        match stop.wait_for(&mounting.said, self.limit) {
            Awaited::Done(said) => {
                if mounting.child.wait()?.success() {
                    Ok(())
                } else {
                    Err(said_by(&said))
                }
            }
            awaited => {
                let said = self.kill(mounting);
                self.detach();
                Err(if awaited == Awaited::Stopped { MountError::Stopped } else { said_by(&said) })
            }
        }
    }

    fn look(&mut self, stop: &Stop) -> Look {
        let answer = match self.looking.take() {
            Some(answer) => answer,
            None => {
                let (tell, answer) = bounded(1);
                let (area, point) = (self.area.clone(), self.point.clone());
                let look = move || drop(tell.send(look_at(&area, &point)));
                if let Err(error) = thread::Builder::new().name("area-look".into()).spawn(look) {
                    tracing::warn!(%error, "cannot look after an area");
                    return Look::Serving;
                }
                answer
            }
        };
        match stop.wait_for(&answer, LOOK_LIMIT) {
            Awaited::Done(look) => look,
            Awaited::Dead | Awaited::Stopped => Look::Serving,
            Awaited::Late => {
                self.looking = Some(answer);
                Look::Silent("the server does not answer; check that it runs, and the network".into())
            }
        }
    }

    fn unmount(&mut self) {
        self.detach();
        if self.area.path.starts_with(AREAS_DIR) {
            // One that is not empty is not ours.
            let _ = fs::remove_dir(&self.point);
        }
    }
}

/// Why a child has not mounted: its first words, and if it had none, the server's fault.
fn said_by(said: &str) -> MountError {
    said.lines().next().map_or(MountError::Late, |first| MountError::Said(first.to_owned()))
}

/// NFS calls itself nfs or nfs4.
fn is_ours(mount: &Mount, area: &Area) -> bool {
    let device = area.source.device();
    mount.kind.starts_with(area.source.protocol().name())
        && mount.source.trim_end_matches('/') == device.trim_end_matches('/')
}

/// Asks the server, not a cache. May take as long as the server does.
fn look_at(area: &Area, point: &Path) -> Look {
    let table = mounts::all();
    if !table.iter().rev().find(|mount| mount.point == point).is_some_and(|top| is_ours(top, area)) {
        return Look::Lost("somebody has unmounted it; it is mounted again".into());
    }
    match statvfs(point) {
        Ok(_) => Look::Serving,
        Err(Errno::ESTALE) => Look::Lost(
            "the server has forgotten what was mounted (stale file handle); it is mounted again".into(),
        ),
        Err(errno) => Look::Silent(format!(
            "the server does not answer as it should: {}; check that it runs, what it exports, and the network",
            errno.desc()
        )),
    }
}

#[cfg(test)]
mod tests {
    use std::time::Instant;

    use crossbeam_channel::Sender;

    use super::*;
    use crate::storage::{Options, Source};

    /// An area below `dir`, "mounted" by a shell.
    fn kernel(dir: &Path, script: &str) -> (Kernel, Stop, Sender<()>) {
        let area = Area {
            name: "a".into(),
            source: Source::parse("nfs://nas/iso").unwrap(),
            version: None,
            options: Options::default(),
            credentials: None,
            rw: false,
            path: dir.join("deep/point"),
        };
        let mut kernel = Kernel::new(area);
        kernel.command = ["/bin/sh", "-c", script].map(str::to_owned).to_vec();
        let (stop, stopped) = bounded(0);
        (kernel, Stop(stopped), stop)
    }

    #[test]
    fn the_child_gets_the_area_and_its_words_are_the_cause() {
        let dir = tempfile::tempdir().unwrap();
        let (mut kernel, stop, _keep) = kernel(dir.path(), "cat; echo; exit 1");
        let said = kernel.mount(&stop).unwrap_err().to_string();
        assert_eq!(serde_json::from_str::<Area>(&said).unwrap(), kernel.area);
        assert!(dir.path().join("deep/point").is_dir());
        kernel.command[2] = "exit 0".into();
        kernel.mount(&stop).unwrap();
    }

    #[test]
    fn a_mount_that_hangs_is_given_up_and_its_process_is_gone() {
        let dir = tempfile::tempdir().unwrap();
        let pid = dir.path().join("pid");
        let script = format!("echo $$ > {}; exec sleep 1000", pid.display());
        let (mut kernel, stop, _keep) = kernel(dir.path(), &script);
        kernel.limit = Duration::from_millis(300);
        assert!(matches!(kernel.mount(&stop), Err(MountError::Late)));
        assert!(kernel.stuck.is_none());
        let pid = fs::read_to_string(pid).unwrap();
        assert!(!Path::new("/proc").join(pid.trim()).exists());
    }

    #[test]
    fn what_a_child_said_before_it_hung_is_the_cause() {
        let dir = tempfile::tempdir().unwrap();
        let (mut kernel, stop, _keep) = kernel(dir.path(), "echo no such export; exec sleep 1000");
        kernel.limit = Duration::from_millis(300);
        assert_eq!(kernel.mount(&stop).unwrap_err().to_string(), "no such export");
    }

    #[test]
    fn the_end_of_the_daemon_does_not_wait_for_a_mount_that_hangs() {
        let dir = tempfile::tempdir().unwrap();
        let (mut kernel, stop, end) = kernel(dir.path(), "exec sleep 1000");
        let began = Instant::now();
        drop(end);
        assert!(matches!(kernel.mount(&stop), Err(MountError::Stopped)));
        assert!(began.elapsed() < MOUNT_LIMIT / 2);
    }

    #[test]
    fn files_are_never_hidden_by_a_mount() {
        let dir = tempfile::tempdir().unwrap();
        let (mut kernel, stop, _keep) = kernel(dir.path(), "exit 0");
        fs::create_dir_all(dir.path().join("deep/point/precious")).unwrap();
        let refused = kernel.mount(&stop).unwrap_err().to_string();
        assert!(refused.contains("would be hidden; choose another"), "{refused}");
    }

    #[test]
    fn a_mount_point_that_is_a_file_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        let (mut kernel, stop, _keep) = kernel(dir.path(), "exit 0");
        fs::create_dir(dir.path().join("deep")).unwrap();
        fs::write(dir.path().join("deep/point"), "").unwrap();
        assert!(matches!(kernel.mount(&stop), Err(MountError::Point { .. })));
    }

    #[test]
    fn what_is_not_mounted_is_lost() {
        let dir = tempfile::tempdir().unwrap();
        let (mut kernel, stop, _keep) = kernel(dir.path(), "exit 0");
        kernel.mount(&stop).unwrap();
        assert!(matches!(kernel.look(&stop), Look::Lost(_)));
        kernel.unmount();
    }

    #[test]
    fn only_what_is_mounted_from_our_source_is_ours() {
        let dir = tempfile::tempdir().unwrap();
        let (kernel, ..) = kernel(dir.path(), "");
        let mount = |kind: &str, source: &str| Mount {
            device: 0,
            point: "/a".into(),
            kind: kind.to_owned(),
            source: source.to_owned(),
            options: String::new(),
        };
        assert!(is_ours(&mount("nfs4", "nas:/iso"), &kernel.area));
        assert!(is_ours(&mount("nfs", "nas:/iso/"), &kernel.area));
        assert!(!is_ours(&mount("nfs", "nas:/other"), &kernel.area));
        assert!(!is_ours(&mount("ext4", "nas:/iso"), &kernel.area));
    }
}
