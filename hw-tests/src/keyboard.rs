//! A HID keyboard in the same gadget, typed on by us and heard by the host: shows that the rest of a gadget is left alone.

use std::fs::{self, File, OpenOptions};
use std::io::{Read, Write};
use std::os::fd::AsFd;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::thread::JoinHandle;
use std::time::Duration;

use anyhow::{Context, Result, anyhow, bail, ensure};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};

use crate::host::{UsbDevice, child, children, device_node};
use crate::tool;
use crate::wait::{ENUMERATION, wait_for};

/// The boot keyboard's report descriptor (HID 1.11, appendix B.1).
pub const REPORT_DESCRIPTOR: [u8; 63] = [
    0x05, 0x01, 0x09, 0x06, 0xa1, 0x01, 0x05, 0x07, 0x19, 0xe0, 0x29, 0xe7, 0x15, 0x00, 0x25, 0x01, 0x75,
    0x01, 0x95, 0x08, 0x81, 0x02, 0x95, 0x01, 0x75, 0x08, 0x81, 0x03, 0x95, 0x05, 0x75, 0x01, 0x05, 0x08,
    0x19, 0x01, 0x29, 0x05, 0x91, 0x02, 0x95, 0x01, 0x75, 0x03, 0x91, 0x03, 0x95, 0x06, 0x75, 0x08, 0x15,
    0x00, 0x25, 0x65, 0x05, 0x07, 0x19, 0x00, 0x29, 0x65, 0x81, 0x00, 0xc0,
];

/// Attributes of a `hid.*` function that is a boot keyboard.
pub const ATTRIBUTES: [(&str, &[u8]); 4] =
    [("protocol", b"1"), ("subclass", b"1"), ("report_length", b"8"), ("report_desc", &REPORT_DESCRIPTOR)];

/// How long a key may take from us to the host.
const KEY_LIMIT: Duration = Duration::from_secs(2);

/// F12 as a HID usage and as Linux's key code: a key that means nothing to a console.
const KEY: (u8, u16) = (0x45, 88);

/// Types one key after another, each as soon as the host has heard the last one.
#[derive(Debug)]
pub struct Typist {
    stop: Arc<AtomicBool>,
    heard: Arc<AtomicU32>,
    thread: JoinHandle<Result<()>>,
}

impl Typist {
    /// Starts typing on the `hid.*` function at `function` in configfs, and waits for the first key.
    ///
    /// # Errors
    /// The host does not hear it.
    pub fn start(function: &Path, device: &UsbDevice) -> Result<Self> {
        // udev would load them, where it runs.
        tool::run("modprobe", ["--all", "hid-generic", "evdev"])?;
        let number = fs::read_to_string(function.join("dev")).context("the keyboard has no device node")?;
        let sysfs = Path::new("/sys/dev/char").join(number.trim());
        let ours = wait_for(ENUMERATION, "our side of the keyboard", || device_node(&sysfs))?;
        let hosts = wait_for(ENUMERATION, "the host's side of the keyboard", || input_node(device))?;
        let mut ours = OpenOptions::new().write(true).open(ours)?;
        let mut hosts = File::open(hosts)?;
        type_key(&mut ours, &mut hosts)?;
        let (stop, heard) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicU32::new(1)));
        let (stopped, count) = (Arc::clone(&stop), Arc::clone(&heard));
        let thread = std::thread::spawn(move || {
            while !stopped.load(Ordering::Relaxed) {
                type_key(&mut ours, &mut hosts)?;
                count.fetch_add(1, Ordering::Relaxed);
            }
            Ok(())
        });
        Ok(Self { stop, heard, thread })
    }

    /// Waits until the host has heard five more keys.
    ///
    /// # Errors
    /// It has not; `when` says what was going on.
    pub fn still_heard(&self, when: &str) -> Result<()> {
        let before = self.heard.load(Ordering::Relaxed);
        wait_for(KEY_LIMIT * 5, &format!("keys {when}"), || {
            (self.heard.load(Ordering::Relaxed) >= before + 5).then_some(())
        })
    }

    /// Stops typing; gives how many keys the host heard.
    ///
    /// # Errors
    /// One of them was not heard.
    pub fn finish(self) -> Result<u32> {
        self.stop.store(true, Ordering::Relaxed);
        self.thread.join().map_err(|_| anyhow!("the typist panicked"))??;
        Ok(self.heard.load(Ordering::Relaxed))
    }
}

fn input_node(device: &UsbDevice) -> Option<PathBuf> {
    let hids = children(&device.sysfs).into_iter().flat_map(|interface| children(&interface));
    hids.filter_map(|hid| child(&child(&hid.join("input"), "input")?, "event"))
        .find_map(|event| device_node(&event))
}

/// Presses and releases the key, and hears both on the host.
fn type_key(ours: &mut File, hosts: &mut File) -> Result<()> {
    for (usage, value) in [(KEY.0, 1), (0, 0)] {
        ours.write_all(&[0, 0, usage, 0, 0, 0, 0, 0]).context("cannot type a key")?;
        await_key(hosts, value)?;
    }
    Ok(())
}

/// Reads `struct input_event` (two 8-byte times, type, code, value) until our key has this value.
fn await_key(hosts: &mut File, value: i32) -> Result<()> {
    for _ in 0..64 {
        let limit = PollTimeout::try_from(KEY_LIMIT).context("the limit fits")?;
        let ready = poll(&mut [PollFd::new(hosts.as_fd(), PollFlags::POLLIN)], limit)?;
        ensure!(ready > 0, "the host did not hear a key within {} s", KEY_LIMIT.as_secs());
        let mut event = [0; 24];
        hosts.read_exact(&mut event).context("the host has lost the keyboard")?;
        let [.., t0, t1, c0, c1, v0, v1, v2, v3] = event;
        let (kind, code) = (u16::from_le_bytes([t0, t1]), u16::from_le_bytes([c0, c1]));
        if (kind, code, i32::from_le_bytes([v0, v1, v2, v3])) == (1, KEY.1, value) {
            return Ok(());
        }
    }
    bail!("64 other events and no key")
}
