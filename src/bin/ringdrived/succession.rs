//! What the last process has left to this one: checked, with its images open again, ready to be taken over.
//!
//! Anything that is not whole, or not what the configuration says, is no reason to fail: then the gadget is made anew, as after a
//! death without a store.

use std::{fmt::Write as _, fs::File, os::fd::OwnedFd, path::PathBuf, thread, time::Duration};

use anyhow::{Context, Result, ensure};
use crossbeam_channel::bounded;
use ringdrive::{
    config::{self, Config},
    drive::{Handover, HandoverError, KeptDrive, KeptImage, block_size},
    gadget::{KeptFiles, descriptors},
    media::{Access, Image, Medium},
};

use crate::{
    assembly::{self, Layers},
    store::{self, Left, Store, name_of, name_of_image},
};

/// How long a file server may take to open an image again, while the host waits.
const OPEN: Duration = Duration::from_secs(2);

/// A function as it was left.
pub(crate) struct Succession {
    pub(crate) files: KeptFiles,
    pub(crate) handover: Handover,
    pub(crate) drives: Vec<KeptDrive>,
    pub(crate) media: Vec<(u8, Box<dyn Medium>)>,
}

/// All functions of the configuration as they were left; `None` where there is nothing that can be taken over. Then everything that was
/// left has been closed, here and in the store.
pub(crate) fn find(config: &Config, layers: &Layers, mut left: Left) -> Option<Vec<Succession>> {
    if left.is_empty() {
        return None;
    }
    match take(config, layers, &mut left) {
        Ok(successions) => {
            // Images that were taken out when the last process died.
            left.iter().for_each(|(name, _)| store::forget(name));
            Some(successions)
        }
        Err(error) => {
            let error = ringdrive::control::with_sources(error.as_ref());
            tracing::warn!(error, "what the last process left cannot be taken over; starting anew");
            drop(left);
            store::forget_all();
            None
        }
    }
}

fn take(config: &Config, layers: &Layers, left: &mut Left) -> Result<Vec<Succession>> {
    let fingerprint = fingerprint(config);
    let successions = config.functions.iter().map(|function| {
        let context = || format!("function {:?}", function.name);
        take_function(function, layers, fingerprint, left).with_context(context)
    });
    successions.collect()
}

fn remove(left: &mut Left, name: &str) -> Option<OwnedFd> {
    let at = left.iter().position(|(found, _)| found == name)?;
    Some(left.swap_remove(at).1)
}

fn take_function(
    function: &config::Function,
    layers: &Layers,
    fingerprint: u64,
    left: &mut Left,
) -> Result<Succession> {
    let mut part = |what: &str| {
        remove(left, &name_of(&function.name, what)).with_context(|| format!("its {what} was not kept"))
    };
    let (state, ep0, input, output) = (part("state")?, part("ep0")?, part("in")?, part("out")?);
    let (handover, drives) = Handover::open(&File::from(state), fingerprint)?;
    ensure!(drives.len() == function.drives.len(), HandoverError::Configuration);
    let mut media = Vec::new();
    for ((lun, drive), kept) in (0u8..).zip(&function.drives).zip(&drives) {
        let Some(image) = &kept.image else { continue };
        let name = name_of_image(&function.name, lun, kept.number);
        let found = remove(left, &name);
        match open(drive, layers, kept, image, found, &name) {
            Ok(image) => media.push((lun, image)),
            Err(error) => {
                let error = ringdrive::control::with_sources(error.as_ref());
                tracing::warn!(drive = drive.name, image = image.name, error, "an image is not taken over");
                store::forget(&name);
            }
        }
    }
    Ok(Succession { files: KeptFiles { ep0, input, output }, handover, drives, media })
}

fn open(
    drive: &config::Drive,
    layers: &Layers,
    kept: &KeptDrive,
    image: &KeptImage,
    found: Option<OwnedFd>,
    name: &str,
) -> Result<Box<dyn Medium>> {
    let Some(identity) = image.identity else {
        // One with an overlay, for example: the configuration says how to come by it.
        let path = assembly::path(drive).filter(|path| path.to_string_lossy() == image.name);
        let path = path.context("it is not a file alone")?.to_owned();
        let is_qcow2 = drive.manner.container(&path).is_some();
        // A host would take what it has not synced for written.
        ensure!(!image.writable || drive.overlay.is_some() || !is_qcow2, "a qcow2 image that was written to");
        let (drive, layers) = (drive.clone(), layers.clone());
        return in_time(move || assembly::open(&drive, &path, &layers));
    };
    let access = if image.writable { Access::ReadWrite } else { Access::ReadOnly };
    let block = block_size(kept.kind, drive.block_size);
    let (path, was_kept) = (PathBuf::from(&image.name), found.is_some());
    let image = in_time(move || match found {
        Some(fd) => Ok(Image::from_fd(fd, path, access, block)?),
        None => Ok(Image::open(&path, access, block)?),
    })?;
    let is_same = (image.identity().device, image.identity().inode) == (identity.device, identity.inode);
    ensure!(is_same, "there is another file under its name");
    if let Some((file, _)) = image.kept().filter(|_| !was_kept) {
        store::store(name, &**file);
    }
    Ok(Box::new(image))
}

/// Opens an image on a thread that nobody waits for if it is late.
fn in_time<T: Send + 'static>(open: impl FnOnce() -> Result<T> + Send + 'static) -> Result<T> {
    let (tell, opened) = bounded(1);
    thread::Builder::new().name("open".into()).spawn(move || drop(tell.send(open())))?;
    opened.recv_timeout(OPEN).context("its storage does not answer")?
}

/// What the host sees of the gadget, and what cannot change under it.
pub(crate) fn fingerprint(config: &Config) -> u64 {
    let mut text = String::new();
    // Writing to a string never fails.
    let _ = match &config.gadget {
        config::Gadget::Guest => write!(text, "guest"),
        config::Gadget::Own(own) => write!(
            text,
            "{:?} {:?} {:x}:{:x}:{:x} {:?} {:?} {:?} {:?} {}",
            own.name,
            own.udc,
            own.vendor_id,
            own.product_id,
            own.device_release,
            own.manufacturer,
            own.product,
            own.serial,
            own.max_speed,
            own.max_power_ma
        ),
    };
    for function in &config.functions {
        let _ = write!(text, "\nfunction {:?} {:?}", function.name, function.mount);
        for drive in &function.drives {
            let config::Drive { name, kind, block_size, vendor, product, revision, serial, .. } = drive;
            let bytes = block_size.bytes();
            let _ = write!(
                text,
                "\ndrive {name:?} {kind:?} {bytes} {vendor:?} {product:?} {revision:?} {serial:?}"
            );
        }
    }
    config::digest(text.as_bytes().iter().chain(&descriptors()).copied())
}

/// Begins a function's record for a successor, and has it and its files kept.
pub(crate) fn keep_function(
    store: &Store,
    config: &Config,
    function: &config::Function,
    files: &KeptFiles,
) -> std::io::Result<(Handover, ringdrive::drive::Keeper)> {
    let (mut handover, state) = Handover::create()?;
    handover.begin(fingerprint(config), function.drives.len());
    let KeptFiles { ep0, input, output } = files;
    store::store(&name_of(&function.name, "state"), &state);
    store::store(&name_of(&function.name, "ep0"), ep0);
    store::store(&name_of(&function.name, "in"), input);
    store::store(&name_of(&function.name, "out"), output);
    Ok((handover, store.keeper(&function.name)))
}
