//! The mode pages of optical units, after page code and length (MMC-6 §7; page 0Dh, 0Eh and 2Ah as in MMC-3). Nothing in them
//! can be changed.

use super::disc::BUFFER_KIB;
use super::profile::Profile;
use crate::scsi::response::Response;
use crate::scsi::unit::Unit;

/// 0Dh, CD device parameters: no inactivity timer; 60 seconds a minute, 75 frames a second.
pub(in crate::scsi) fn cd_device_parameters(_: &Unit, out: &mut Response<'_>) {
    out.push(&[0, 0]);
    out.be16(60);
    out.be16(75);
}

/// 0Eh, CD audio control: IMMED, and every port muted, as there is no audio.
pub(in crate::scsi) fn cd_audio_control(_: &Unit, out: &mut Response<'_>) {
    out.byte(0x04);
    out.zeros(13);
}

/// 1Ah, power condition: no timers.
pub(in crate::scsi) fn power_condition(_: &Unit, out: &mut Response<'_>) {
    out.zeros(10);
}

/// 1Dh, timeout and protect: no timeouts are switched on; what a host should wait for groups 1 and 2, in seconds. The second
/// covers a network source that answers at its deadline.
pub(in crate::scsi) fn timeout_and_protect(_: &Unit, out: &mut Response<'_>) {
    out.zeros(4);
    out.be16(10);
    out.be16(60);
    out.be16(0);
}

/// 2Ah, capabilities and mechanical status, without audio and without writing. Linux takes from it whether the drive has a
/// tray, can eject and can lock.
pub(in crate::scsi) fn capabilities(unit: &Unit, out: &mut Response<'_>) {
    let speed = Profile::of(unit).unwrap_or(Profile::Cd).speed();
    // Reads CD-R, CD-RW, DVD-ROM, DVD-R; writes nothing; plays nothing.
    out.push(&[0x1B, 0x00, 0x00, 0x00]);
    // Tray, ejects, locks; and whether it is locked now.
    out.push(&[0x29 | if unit.prevented() { 0x02 } else { 0 }, 0x00]);
    // Greatest read speed, volume levels, buffer, read speed now.
    out.be16(speed);
    out.be16(0);
    out.be16(BUFFER_KIB);
    out.be16(speed);
    // No digital output, no write speeds, no copy management; constant angular velocity; no write speed descriptors.
    out.zeros(11);
    out.byte(0x01);
    out.zeros(4);
}
