//! Bulk-Only Transport from the host's side, transfer by transfer, over usbfs: for what no decent driver would send.
//!
//! The kernel's usb-storage is detached while a [`RawBot`] lives; nothing here recovers by itself, each step is the test's.

use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use nusb::transfer::{Buffer, Bulk, ControlIn, ControlOut, ControlType, In, Out, Recipient, TransferError};
use nusb::{Endpoint, Interface, MaybeFuture};

use crate::host::UsbDevice;

/// Long enough for any answer; a pipe that stays silent so long is dead.
const PATIENCE: Duration = Duration::from_secs(5);

/// Enough for an answer that must not come.
pub const SILENCE: Duration = Duration::from_millis(300);

/// What the host said it would move: dCBWDataTransferLength and the direction bit (BOT 1.0 §5.1).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Expects {
    /// Hn.
    Nothing,
    /// Hi.
    In(u32),
    /// Ho.
    Out(u32),
}

/// bCSWStatus (BOT 1.0 §5.2).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Status {
    /// 00h.
    Passed,
    /// 01h.
    Failed,
    /// 02h.
    PhaseError,
}

/// A command status wrapper that was valid and meaningful.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Csw {
    /// bCSWStatus.
    pub status: Status,
    /// dCSWDataResidue.
    pub residue: u32,
}

/// What came of a command.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Performed {
    /// What the device sent in the data phase.
    pub data: Vec<u8>,
    /// The IN pipe was halted after the data, before the CSW.
    pub halted: bool,
    /// How it ended.
    pub csw: Csw,
}

/// What came of a transfer on a bulk pipe.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Transfer {
    /// So many bytes went to the device, or these came from it.
    Done(Vec<u8>),
    /// The pipe is halted; these bytes came before.
    Stall(Vec<u8>),
    /// Nothing, for as long as was waited.
    Silence,
}

/// A mass storage interface in our own hands.
pub struct RawBot {
    interface: Interface,
    output: Endpoint<Bulk, Out>,
    input: Endpoint<Bulk, In>,
    tag: u32,
}

impl RawBot {
    /// Takes the device's first interface from its driver.
    ///
    /// # Errors
    /// The device is gone, or is no Bulk-Only interface.
    pub fn open(device: &UsbDevice) -> Result<Self> {
        let info = nusb::list_devices()
            .wait()?
            .find(|info| info.serial_number() == Some(&device.serial))
            .with_context(|| format!("usbfs has no {}", device.serial))?;
        let opened = info.open().wait().context("cannot open the device through usbfs")?;
        let interface = opened.detach_and_claim_interface(0).wait().context("cannot claim interface 0")?;
        let described = interface.descriptor().context("interface 0 has no descriptor")?;
        ensure!(
            (described.class(), described.subclass(), described.protocol()) == (0x08, 0x06, 0x50),
            "interface 0 is not SCSI over Bulk-Only"
        );
        let address = |input: bool| {
            let found = described.endpoints().map(|endpoint| endpoint.address());
            found.into_iter().find(|address| (address & 0x80 != 0) == input)
        };
        let (Some(output), Some(input)) = (address(false), address(true)) else {
            bail!("the interface lacks a bulk pipe")
        };
        Ok(Self {
            output: interface.endpoint(output)?,
            input: interface.endpoint(input)?,
            interface,
            tag: 0x5249_4e47,
        })
    }

    /// Bytes of a full packet.
    #[must_use]
    pub fn packet(&self) -> usize {
        self.input.max_packet_size()
    }

    /// A valid and meaningful CBW for LUN 0 with the next tag.
    pub fn cbw(&mut self, expects: Expects, cdb: &[u8]) -> [u8; 31] {
        self.tag = self.tag.wrapping_add(1);
        let (length, flags) = match expects {
            Expects::Nothing => (0, 0),
            Expects::In(length) => (length, 0x80),
            Expects::Out(length) => (length, 0),
        };
        let mut cbw = [0; 31];
        cbw[..4].copy_from_slice(b"USBC");
        cbw[4..8].copy_from_slice(&self.tag.to_le_bytes());
        cbw[8..12].copy_from_slice(&u32::to_le_bytes(length));
        cbw[12] = flags;
        cbw[14] = u8::try_from(cdb.len()).unwrap_or(u8::MAX);
        cbw[15..15 + cdb.len()].copy_from_slice(cdb);
        cbw
    }

    /// Sends bytes on the OUT pipe.
    ///
    /// # Errors
    /// The device is gone, or broke the rules of USB.
    pub fn send(&mut self, bytes: &[u8]) -> Result<Transfer> {
        self.send_within(bytes, PATIENCE)
    }

    /// As [`Self::send`], for a pipe that may stay silent.
    ///
    /// # Errors
    /// The device is gone, or broke the rules of USB.
    pub fn send_within(&mut self, bytes: &[u8], patience: Duration) -> Result<Transfer> {
        let done = self.output.transfer_blocking(bytes.to_vec().into(), patience);
        outcome(done.status, Vec::new()).context("OUT pipe")
    }

    /// Receives at most `len` bytes, whole packets, up to a short one.
    ///
    /// # Errors
    /// The device is gone, or broke the rules of USB.
    pub fn receive(&mut self, len: usize) -> Result<Transfer> {
        self.receive_within(len, PATIENCE)
    }

    /// As [`Self::receive`], for a pipe that may stay silent.
    ///
    /// # Errors
    /// The device is gone, or broke the rules of USB.
    pub fn receive_within(&mut self, len: usize, patience: Duration) -> Result<Transfer> {
        let whole = len.max(1).next_multiple_of(self.packet());
        let done = self.input.transfer_blocking(Buffer::new(whole), patience);
        outcome(done.status, done.buffer.into_vec()).context("IN pipe")
    }

    /// Sends a valid CBW, which must be accepted.
    ///
    /// # Errors
    /// It was not.
    pub fn begin(&mut self, expects: Expects, cdb: &[u8]) -> Result<()> {
        let cbw = self.cbw(expects, cdb);
        match self.send(&cbw)? {
            Transfer::Done(_) => Ok(()),
            other => bail!("a valid CBW was answered with {other:?}"),
        }
    }

    /// Receives the CSW of the last command (BOT 1.0 §5.3.3 and figure 2): one halt is cleared on the way, and told.
    ///
    /// # Errors
    /// There is none, or it is not valid or not meaningful (§6.3).
    pub fn csw(&mut self) -> Result<(Csw, bool)> {
        let mut got = self.receive(13)?;
        let halted = matches!(got, Transfer::Stall(_));
        if halted {
            self.clear_in()?;
            got = self.receive(13)?;
        }
        let Transfer::Done(bytes) = got else { bail!("no CSW: {got:02x?}") };
        let word =
            |at: usize| bytes.get(at..at + 4).and_then(|word| word.try_into().ok()).map(u32::from_le_bytes);
        let (Some(tag), Some(residue), Some(code), 13) = (word(4), word(8), bytes.get(12), bytes.len())
        else {
            bail!("{} bytes instead of a CSW: {:02x?}", bytes.len(), bytes.get(..32).unwrap_or(&bytes))
        };
        ensure!(bytes.starts_with(b"USBS"), "not a CSW: {bytes:02x?}");
        ensure!(tag == self.tag, "CSW with tag {tag:#x}, not {:#x}", self.tag);
        let status = match code {
            0 => Status::Passed,
            1 => Status::Failed,
            2 => Status::PhaseError,
            other => bail!("bCSWStatus {other}"),
        };
        Ok((Csw { status, residue }, halted))
    }

    /// One command from CBW to CSW, as a host does it that looks at everything.
    ///
    /// `data` is sent when `expects` is out.
    ///
    /// # Errors
    /// No valid CSW came, or the OUT pipe was halted.
    pub fn perform(&mut self, expects: Expects, cdb: &[u8], data: &[u8]) -> Result<Performed> {
        self.begin(expects, cdb)?;
        let (mut got, mut halted) = (Vec::new(), false);
        match expects {
            Expects::Nothing => {}
            Expects::In(len) => match self.receive(usize::try_from(len)?)? {
                Transfer::Done(bytes) => got = bytes,
                Transfer::Stall(bytes) => {
                    (got, halted) = (bytes, true);
                    self.clear_in()?;
                }
                Transfer::Silence => bail!("no data"),
            },
            Expects::Out(_) => match self.send(data)? {
                Transfer::Done(_) => {}
                other => bail!("data-out phase: {other:?}"),
            },
        }
        let (csw, halted_late) = self.csw()?;
        ensure!(!(halted && halted_late), "the IN pipe was halted before the data's end and before the CSW");
        Ok(Performed { data: got, halted: halted || halted_late, csw })
    }

    /// CLEAR FEATURE (ENDPOINT_HALT) on the IN pipe.
    ///
    /// # Errors
    /// The device refused.
    pub fn clear_in(&mut self) -> Result<()> {
        self.input.clear_halt().wait().context("cannot clear the IN pipe")
    }

    /// CLEAR FEATURE (ENDPOINT_HALT) on the OUT pipe.
    ///
    /// # Errors
    /// The device refused.
    pub fn clear_out(&mut self) -> Result<()> {
        self.output.clear_halt().wait().context("cannot clear the OUT pipe")
    }

    /// Bulk-Only Mass Storage Reset alone (BOT 1.0 §3.1).
    ///
    /// # Errors
    /// The device refused.
    pub fn reset(&mut self) -> Result<()> {
        let request = ControlOut {
            control_type: ControlType::Class,
            recipient: Recipient::Interface,
            request: 0xff,
            value: 0,
            index: self.interface.interface_number().into(),
            data: &[],
        };
        self.interface.control_out(request, PATIENCE).wait().context("Bulk-Only Mass Storage Reset")
    }

    /// Reset recovery (BOT 1.0 §5.3.4).
    ///
    /// # Errors
    /// The device refused a step.
    pub fn recover(&mut self) -> Result<()> {
        self.reset()?;
        self.clear_in()?;
        self.clear_out()
    }

    /// GET MAX LUN (BOT 1.0 §3.2).
    ///
    /// # Errors
    /// The device stalled it, or answered with another length.
    pub fn max_lun(&mut self) -> Result<u8> {
        let request = ControlIn {
            control_type: ControlType::Class,
            recipient: Recipient::Interface,
            request: 0xfe,
            value: 0,
            index: self.interface.interface_number().into(),
            length: 1,
        };
        match self.interface.control_in(request, PATIENCE).wait().context("GET MAX LUN")?.as_slice() {
            [last] => Ok(*last),
            other => bail!("GET MAX LUN gave {other:?}"),
        }
    }
}

fn outcome(status: Result<(), TransferError>, bytes: Vec<u8>) -> Result<Transfer> {
    match status {
        Ok(()) => Ok(Transfer::Done(bytes)),
        Err(TransferError::Stall) => Ok(Transfer::Stall(bytes)),
        Err(TransferError::Cancelled) => Ok(Transfer::Silence),
        Err(other) => Err(other.into()),
    }
}

/// READ(10) or WRITE(10) (SBC-3 §5.11, §5.29).
#[must_use]
pub fn rw10(write: bool, lba: u32, blocks: u16) -> [u8; 10] {
    let [a, b, c, d] = lba.to_be_bytes();
    let [e, f] = blocks.to_be_bytes();
    [if write { 0x2a } else { 0x28 }, 0, a, b, c, d, 0, e, f, 0]
}

/// TEST UNIT READY (SPC-4 §6.47).
pub const TEST_UNIT_READY: [u8; 6] = [0; 6];

/// INQUIRY for the 36 bytes of standard data (SPC-4 §6.6).
pub const INQUIRY: [u8; 6] = [0x12, 0, 0, 0, 36, 0];

/// REQUEST SENSE for 18 bytes of fixed format (SPC-4 §6.39).
pub const REQUEST_SENSE: [u8; 6] = [3, 0, 0, 0, 18, 0];
