//! On the board: serves one set of drives after the other, each through a port of its own to the machine that boots from it.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Read, Write};
use std::net::TcpStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitCode, Stdio};
use std::thread;
use std::time::Duration;

use anyhow::{Context, Result};
use nix::sys::signal::{Signal, kill};
use xshell::{Shell, cmd};

use super::plan::{Combination, Drives, Medium};
use super::{OnBoardArgs, PORT, READY, image};
use crate::daemon::Daemon;
use crate::sysfs::attribute;
use crate::vm::Speed;
use crate::wait::wait_for;

const SERIAL: &str = "0123456789F0";
/// Where usbredirect waits for a machine.
const ADDRESS: &str = "127.0.0.1:4000";
const APPEAR: Duration = Duration::from_secs(30);
const CONNECT: Duration = Duration::from_secs(60);

/// Serves all combinations, in the order of the plan.
pub(super) fn run(args: &OnBoardArgs) -> Result<ExitCode> {
    let shell = Shell::new()?;
    // The drives are for the other machine alone.
    cmd!(shell, "modprobe --remove uas usb_storage").quiet().run()?;
    cmd!(shell, "ip link set lo up").quiet().run()?;
    let dir = std::env::temp_dir();
    for medium in [Medium::Cd, Medium::Flash] {
        fs::copy(image::path(&args.images, medium), image::path(&dir, medium))?;
    }
    for (number, combination) in args.choice.combinations(args.speed).iter().enumerate() {
        serve(&dir, combination, args.speed, number).with_context(|| combination.to_string())?;
    }
    Ok(ExitCode::SUCCESS)
}

/// Serves one machine from its connection to its end.
fn serve(dir: &Path, combination: &Combination, speed: Speed, number: usize) -> Result<()> {
    let mut daemon = Daemon::start(dir, &configuration(dir, combination, speed))?;
    let device = wait_for("the drives to be enumerated", APPEAR, || {
        daemon.check()?;
        Ok(find_device())
    })?;
    let redirect = Redirect::start(&device)?;
    let tcp = wait_for("usbredirect to listen", APPEAR, || Ok(TcpStream::connect(ADDRESS).ok()))?;
    let name = format!("{PORT}{number}");
    let port = wait_for("the port to the other machine", APPEAR, || Ok(find_port(&name)))?;
    let port = OpenOptions::new()
        .read(true)
        .write(true)
        .open(&port)
        .with_context(|| format!("cannot open {}", port.display()))?;
    println!("{READY}{number}");
    relay(&port, &tcp)?;
    drop(redirect);
    kill(daemon.pid()?, Signal::SIGTERM)?;
    daemon.ended()
}

/// Carries bytes both ways until the other machine has ended.
fn relay(port: &File, tcp: &TcpStream) -> Result<()> {
    let (mut to_port, mut from_tcp) = (port.try_clone()?, tcp.try_clone()?);
    // Never awaited: a write to a port waits for somebody at its other end, at the beginning, and for ever at the end.
    thread::spawn(move || io::copy(&mut from_tcp, &mut to_port));
    let (mut port, mut tcp) = (port, tcp);
    let mut buffer = vec![0; 64 * 1024];
    // A port to which nobody is connected reads as ended: until the first bytes come, that is not the end.
    let mut read = wait_for("the other machine", CONNECT, || {
        let read = port.read(&mut buffer)?;
        Ok((read > 0).then_some(read))
    })?;
    while read > 0 {
        tcp.write_all(buffer.get(..read).unwrap_or_default())?;
        read = port.read(&mut buffer)?;
    }
    Ok(())
}

/// A running usbredirect; killed when dropped.
struct Redirect(Child);

impl Redirect {
    fn start(device: &str) -> Result<Self> {
        let child = Command::new("usbredirect")
            .args(["--device", device, "--as", ADDRESS])
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .spawn()
            .context("cannot start usbredirect; run `cargo xtask setup`")?;
        Ok(Self(child))
    }
}

impl Drop for Redirect {
    fn drop(&mut self) {
        // Both fail when it has ended, which is as good.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// The drives' bus and device numbers, as usbredirect takes them.
fn find_device() -> Option<String> {
    let entries = fs::read_dir("/sys/bus/usb/devices").ok()?.flatten();
    let device = entries.map(|entry| entry.path()).find(|dir| attribute(dir, "serial") == SERIAL)?;
    let number = |name| Some(attribute(&device, name)).filter(|number| !number.is_empty());
    Some(format!("{}-{}", number("busnum")?, number("devnum")?))
}

/// The node of a virtio-serial port.
fn find_port(name: &str) -> Option<PathBuf> {
    let entries = fs::read_dir("/sys/class/virtio-ports").ok()?.flatten();
    let port = entries.map(|entry| entry.path()).find(|dir| attribute(dir, "name") == name)?;
    Some(Path::new("/dev").join(port.file_name()?))
}

fn configuration(dir: &Path, combination: &Combination, speed: Speed) -> String {
    let (socket, speed) = (dir.join("control.sock"), speed.name());
    let mut text = format!(
        "[control]\nsocket = {socket:?}\n\n\
         [gadget]\nname = \"firmware\"\nserial = {SERIAL:?}\nmax_speed = {speed:?}\n\n\
         [[function]]\nname = \"usb0\"\n"
    );
    let kinds: &[&str] = match combination.drives {
        Drives::Both => &["optical", "disk"],
        Drives::Optical => &["optical"],
        Drives::Disk => &["disk"],
    };
    let fitting = if combination.medium == Medium::Cd { "optical" } else { "disk" };
    for kind in kinds {
        text.push_str(&format!("\n[[function.drive]]\nname = \"{kind}\"\nkind = \"{kind}\"\n"));
        if *kind == fitting {
            text.push_str(&format!("image = {:?}\n", image::path(dir, combination.medium)));
        }
    }
    text
}
