//! The kernel's `f_mass_storage` behind the same drives: the foreign reference.
//!
//! What it cannot do: optical media over 2.2 GiB, and drives in functions of their own are separate `mass_storage.*`.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};

use crate::configfs::{Gadget, write};
use crate::rig::{Drive, Kind, Setup, Stall};

/// The mass storage functions of a gadget.
#[derive(Debug)]
pub struct Kernel {
    /// One directory in configfs for each drive.
    luns: Vec<PathBuf>,
}

impl Kernel {
    /// Adds the functions to a gadget, which is to be bound afterwards and to live longer.
    ///
    /// # Errors
    /// configfs refused something.
    pub fn add_to(gadget: &Gadget, setup: &Setup) -> Result<Self> {
        let mut luns = Vec::new();
        for function in &setup.functions {
            let stall: &[u8] = if function.stall == Stall::Auto { b"1" } else { b"0" };
            let name = format!("mass_storage.{}", function.name);
            let dir = gadget.create(&name, &[("stall", stall)])?;
            for (number, drive) in function.drives.iter().enumerate() {
                let lun = dir.join(format!("lun.{number}"));
                if number > 0 {
                    fs::create_dir(&lun).with_context(|| format!("cannot create {}", lun.display()))?;
                }
                configure(&lun, drive)?;
                luns.push(lun);
            }
            gadget.link(&name)?;
        }
        Ok(Self { luns })
    }

    /// Inserts an image.
    ///
    /// # Errors
    /// The kernel refused: the host prevents removal, or the image cannot be served.
    pub fn insert(&self, drive: usize, image: &Path) -> Result<()> {
        self.set(drive, "file", image.display().to_string().as_bytes())
    }

    /// Ejects, unless the host prevents it.
    ///
    /// # Errors
    /// The host prevents removal.
    pub fn eject(&self, drive: usize) -> Result<()> {
        self.set(drive, "file", b"\n")
    }

    /// Ejects whatever the host says.
    ///
    /// # Errors
    /// configfs refused.
    pub fn force_eject(&self, drive: usize) -> Result<()> {
        self.set(drive, "forced_eject", b"1")
    }

    fn set(&self, drive: usize, attribute: &str, value: &[u8]) -> Result<()> {
        let lun = self.luns.get(drive).with_context(|| format!("there is no drive {drive}"))?;
        write(&lun.join(attribute), value)
    }
}

fn configure(lun: &Path, drive: &Drive) -> Result<()> {
    let flag = |on: bool| if on { &b"1"[..] } else { &b"0"[..] };
    write(&lun.join("removable"), b"1")?;
    write(&lun.join("cdrom"), flag(drive.kind == Kind::Optical))?;
    write(&lun.join("ro"), flag(!drive.rw))?;
    let name = format!("{:<8}{:<16}{:<4}", drive.vendor, drive.product, "0001");
    write(&lun.join("inquiry_string"), name.as_bytes())?;
    if let Some(image) = &drive.image {
        write(&lun.join("file"), image.display().to_string().as_bytes())?;
    }
    Ok(())
}
