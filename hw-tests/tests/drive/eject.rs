//! Media come and go under a host that holds them, or does not; the USB connection stays.

use anyhow::{Context, Result, bail, ensure};
use hw_tests::board::Board;
use hw_tests::host::{Caching, Lun, UsbDevice};
use hw_tests::image;
use hw_tests::keyboard::Typist;
use hw_tests::rig::{Backend, Drive, Rig, Setup};
use hw_tests::scsi;
use hw_tests::wait::wait_until;

use crate::{ALL, Case, DAEMON_AND_KERNEL};

pub(crate) const CASES: &[Case] = &[
    Case { name: "eject_is_refused_while_the_host_holds_the_medium", on: DAEMON_AND_KERNEL, run: refused },
    Case { name: "forced_eject_and_insert_are_seen_without_re_enumeration", on: ALL, run: forced },
    Case { name: "an_eject_by_the_host_empties_the_drive", on: DAEMON_AND_KERNEL, run: by_the_host },
    Case { name: "a_keyboard_in_the_same_gadget_is_heard_while_media_change", on: ALL, run: keyboard },
];

fn refused(board: &Board, backend: Backend) -> Result<()> {
    let scratch = board.scratch()?;
    let path = image::random(scratch.file("image"), 20, 4)?;
    for drive in [Drive::disk(), Drive::optical()] {
        let rig = Rig::start(board, backend, &Setup::of([drive.with(&path)]))?;
        let lun = rig.lun(0)?;
        // Linux prevents removal while the drive is open: a mounted file system is one case of it.
        let file = lun.open(Caching::Buffered)?;
        must_refuse(&rig, backend).context("while it is open")?;
        drop(file);
        lun.settle()?;
        scsi::prevent(&lun, true)?;
        must_refuse(&rig, backend).context("after sg_prevent")?;
        if lun.name().starts_with("sr") && backend != Backend::Kernel {
            // MMC-6, the media class: the button of a locked drive was pressed.
            let event = scsi::data_in(&lun, &[0x4a, 1, 0, 0, 0x10, 0, 0, 0, 8, 0], 8)?;
            ensure!(event[2] == 4 && event[4] == 1, "the host is not asked to eject: {event:02x?}");
        }
        ensure!(scsi::test_unit_ready(&lun)?.good(), "a refused eject changed the drive");
        scsi::prevent(&lun, false)?;
        rig.eject_when_closed(0).context("after the host allowed removal")?;
        rig.stop()?;
    }
    Ok(())
}

fn must_refuse(rig: &Rig, backend: Backend) -> Result<()> {
    let Err(refusal) = rig.eject(0) else { bail!("ejected, although the host prevents removal") };
    let reason = format!("{refusal:#}").to_lowercase();
    ensure!(backend == Backend::Kernel || reason.contains("prevent"), "no reason in: {reason}");
    Ok(())
}

fn forced(board: &Board, backend: Backend) -> Result<()> {
    let scratch = board.scratch()?;
    let first = image::random(scratch.file("first"), 21, 4)?;
    let second = image::random(scratch.file("second"), 22, 6)?;
    for drive in [Drive::disk(), Drive::optical()] {
        let rig = Rig::start(board, backend, &Setup::of([drive.with(&first)]))?;
        let lun = rig.lun(0)?;
        let caching = Caching::Buffered;
        ensure!(lun.sha(caching)? == image::sha_of_file(&first)?, "the host did not read the first image");
        lun.settle()?;
        scsi::prevent(&lun, true)?;
        rig.force_eject(0)?;
        must_notice_removal(&lun)?;
        rig.insert(0, &second)?;
        must_notice_insertion(&lun)?;
        ensure!(lun.sha(caching)? == image::sha_of_file(&second)?, "the host did not read the second image");
        ensure!(lun.len() == 6 * image::MIB, "the host still sees {} bytes", lun.len());
        must_be_the_same(&rig.device)?;
        rig.stop()?;
    }
    Ok(())
}

fn must_notice_removal(lun: &Lun) -> Result<()> {
    ensure!(lun.open(Caching::Buffered).is_err(), "the host opened an empty drive");
    lun.settle()?;
    let outcomes = scsi::drain_attentions(lun)?;
    // f_mass_storage says it as a unit attention once, before it says NOT READY.
    let last = outcomes.last().context("no outcome")?;
    ensure!(last.has_sense("Not Ready", "Medium not present"), "after the eject: {outcomes:?}");
    Ok(())
}

fn must_notice_insertion(lun: &Lun) -> Result<()> {
    let outcomes = scsi::drain_attentions(lun)?;
    let changed =
        outcomes.iter().any(|outcome| outcome.has_sense("Unit Attention", "medium may have changed"));
    ensure!(changed, "no unit attention after the insert: {outcomes:?}");
    ensure!(outcomes.last().is_some_and(scsi::Outcome::good), "not ready after the insert: {outcomes:?}");
    Ok(())
}

fn must_be_the_same(device: &UsbDevice) -> Result<()> {
    let now = UsbDevice::find(&device.serial).context("the host has lost the device")?;
    ensure!(now.number == device.number, "enumerated again: device {} is now {}", device.number, now.number);
    Ok(())
}

fn by_the_host(board: &Board, backend: Backend) -> Result<()> {
    let scratch = board.scratch()?;
    let path = image::random(scratch.file("image"), 23, 4)?;
    for drive in [Drive::disk(), Drive::optical()] {
        let rig = Rig::start(board, backend, &Setup::of([drive.with(&path)]))?;
        let lun = rig.lun(0)?;
        scsi::prevent(&lun, true)?;
        let refused = scsi::eject(&lun)?;
        ensure!(!refused.good(), "ejected, although the host itself prevents removal");
        ensure!(scsi::test_unit_ready(&lun)?.good(), "a refused eject changed the drive");
        scsi::prevent(&lun, false)?;
        let eject = scsi::eject_when_closed(&lun)?;
        ensure!(eject.good(), "START STOP UNIT said: {}", eject.text);
        must_notice_removal(&lun)?;
        rig.insert(0, &path).context("inserting again")?;
        must_notice_insertion(&lun)?;
        must_be_the_same(&rig.device)?;
        rig.stop()?;
    }
    Ok(())
}

fn keyboard(board: &Board, backend: Backend) -> Result<()> {
    let scratch = board.scratch()?;
    let first = image::random(scratch.file("first"), 24, 4)?;
    let second = image::random(scratch.file("second"), 25, 4)?;
    let rig = Rig::start(board, backend, &Setup::of([Drive::disk().with(&first)]).beside_keyboard())?;
    let typist = Typist::start(rig.keyboard.as_deref().context("no keyboard")?, &rig.device)?;
    let lun = rig.lun(0)?;
    ensure!(
        lun.sha(Caching::Direct)? == image::sha_of_file(&first)?,
        "the host did not read the first image"
    );
    typist.still_heard("before the eject")?;
    rig.force_eject(0)?;
    typist.still_heard("with an empty drive")?;
    rig.insert(0, &second)?;
    wait_until(hw_tests::wait::ENUMERATION, "the host opens the new medium", || {
        lun.open(Caching::Direct).is_ok()
    })?;
    ensure!(
        lun.sha(Caching::Direct)? == image::sha_of_file(&second)?,
        "the host did not read the second image"
    );
    typist.still_heard("after the insert")?;
    must_be_the_same(&rig.device)?;
    typist.finish()?;
    rig.stop()
}
