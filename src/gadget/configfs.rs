//! The gadget's tree in configfs: made, bound, unbound, and taken down in the only order that the kernel accepts.
//!
//! Called by [`super::Gadget`], which holds the lock on the gadget's name. Invariant: nothing outside `usb_gadget/NAME` is
//! written, and a tree with a function that is not `ffs.*` is never touched.

use std::{
    fs,
    os::unix::fs::symlink,
    path::{Path, PathBuf},
};

use super::{GadgetOptions, error::GadgetError, functionfs, udc::Udc};
use ffs_descriptors::Speed;

/// Where gadgets are made.
pub(super) const USB_GADGET: &str = "/sys/kernel/config/usb_gadget";

const EN_US: &str = "strings/0x409";
const CONFIGURATION: &str = "configs/c.1";

/// The directory of one gadget.
#[derive(Debug)]
pub(super) struct Tree {
    dir: PathBuf,
}

impl Tree {
    /// The tree of the gadget `name` below `gadgets`; it need not exist.
    pub(super) fn new(gadgets: &Path, name: &str) -> Result<Self, GadgetError> {
        if !gadgets.is_dir() {
            return Err(GadgetError::NoConfigfs { path: gadgets.to_owned() });
        }
        Ok(Self { dir: gadgets.join(checked_name(name)?) })
    }

    /// Makes the gadget with its functions, unbound.
    pub(super) fn create(&self, options: &GadgetOptions) -> Result<(), GadgetError> {
        self.make_dir("")?;
        self.write("idVendor", &format!("{:#06x}", options.vendor_id))?;
        self.write("idProduct", &format!("{:#06x}", options.product_id))?;
        self.write("bcdDevice", &format!("{:#06x}", options.device_release))?;
        // Kernels before 5.9 have no limit to set.
        if self.dir.join("max_speed").exists() {
            self.write("max_speed", speed_name(options.max_speed))?;
        }
        self.make_dir(EN_US)?;
        self.write(&format!("{EN_US}/manufacturer"), &options.manufacturer)?;
        self.write(&format!("{EN_US}/product"), &options.product)?;
        self.write(&format!("{EN_US}/serialnumber"), &options.serial)?;
        self.make_dir(CONFIGURATION)?;
        self.write(&format!("{CONFIGURATION}/MaxPower"), &options.max_power_ma.to_string())?;
        self.make_dir(&format!("{CONFIGURATION}/{EN_US}"))?;
        self.write(&format!("{CONFIGURATION}/{EN_US}/configuration"), "drives")?;
        for function in &options.functions {
            let name = format!("ffs.{}", checked_name(&function.name)?);
            self.make_function(&function.name)?;
            let link = self.dir.join(CONFIGURATION).join(&name);
            symlink(self.dir.join("functions").join(&name), &link).map_err(GadgetError::io("make", link))?;
        }
        Ok(())
    }

    /// Gives the gadget to `udc`: the host sees it from now on.
    pub(super) fn bind(&self, udc: &Udc) -> Result<(), GadgetError> {
        let path = self.dir.join("UDC");
        fs::write(&path, udc.name()).map_err(|error| match error.raw_os_error() {
            Some(libc::EBUSY) => udc.busy(udc.holder()),
            _ => GadgetError::io("bind the gadget by writing to", path)(error),
        })
    }

    /// Takes the gadget off the bus; nothing to do when it is off.
    pub(super) fn unbind(&self) -> Result<(), GadgetError> {
        if self.bound_to().is_none() {
            return Ok(());
        }
        match fs::write(self.dir.join("UDC"), "\n") {
            // Unbound in between, for example because the last ep0 was closed.
            Err(error) if error.raw_os_error() == Some(libc::ENODEV) => Ok(()),
            result => {
                result.map_err(GadgetError::io("unbind the gadget by writing to", self.dir.join("UDC")))
            }
        }
    }

    /// The name of the controller that has the gadget.
    pub(super) fn bound_to(&self) -> Option<String> {
        let text = fs::read_to_string(self.dir.join("UDC")).ok()?;
        Some(text.trim().to_owned()).filter(|name| !name.is_empty())
    }

    /// Whether the gadget exists.
    pub(super) fn exists(&self) -> bool {
        self.dir.exists()
    }

    /// Removes what a killed run left under this name. Refuses a gadget that was not made by us.
    pub(super) fn clean_left_over(&self, name: &str) -> Result<(), GadgetError> {
        if !self.exists() {
            return Ok(());
        }
        if let Some(function) = self.functions().into_iter().find(|function| !function.starts_with("ffs.")) {
            return Err(GadgetError::NotOurs { name: name.to_owned(), function });
        }
        tracing::info!(gadget = name, "removing the gadget that a killed run left behind");
        self.remove()
    }

    /// Unbinds and removes everything: links, configurations, FunctionFS mounts, functions, strings, the gadget.
    pub(super) fn remove(&self) -> Result<(), GadgetError> {
        if !self.exists() {
            return Ok(());
        }
        self.unbind()?;
        for configuration in entries(&self.dir.join("configs")) {
            for link in entries(&configuration).into_iter().filter(|path| path.is_symlink()) {
                fs::remove_file(&link).map_err(GadgetError::io("unlink", &link))?;
            }
            remove_dirs(entries(&configuration.join("strings")))?;
            remove_dir(&configuration)?;
        }
        for function in self.functions() {
            if let Some(name) = function.strip_prefix("ffs.") {
                functionfs::unmount_all(name)?;
            }
            remove_dir(&self.dir.join("functions").join(function))?;
        }
        remove_dirs(entries(&self.dir.join("strings")))?;
        remove_dir(&self.dir)
    }

    fn functions(&self) -> Vec<String> {
        let paths = entries(&self.dir.join("functions")).into_iter();
        paths.filter_map(|path| path.file_name()?.to_str().map(str::to_owned)).collect()
    }

    fn make_dir(&self, below: &str) -> Result<(), GadgetError> {
        let path = self.dir.join(below);
        fs::create_dir(&path).map_err(GadgetError::io("make the directory", path))
    }

    fn make_function(&self, name: &str) -> Result<(), GadgetError> {
        let path = self.dir.join("functions").join(format!("ffs.{name}"));
        fs::create_dir(&path).map_err(|error| match error.raw_os_error() {
            // No kernel module answers to "ffs".
            Some(libc::ENOENT) => GadgetError::NoFunctionFs,
            Some(libc::EBUSY | libc::EEXIST) => GadgetError::FunctionName { name: name.to_owned() },
            _ => GadgetError::io("make the function", path)(error),
        })
    }

    fn write(&self, attribute: &str, value: &str) -> Result<(), GadgetError> {
        let path = self.dir.join(attribute);
        fs::write(&path, value).map_err(GadgetError::io("set", path))
    }
}

fn speed_name(speed: Speed) -> &'static str {
    match speed {
        Speed::Full => "full-speed",
        Speed::High => "high-speed",
        Speed::Super => "super-speed",
    }
}

/// Whether a gadget or function can have this name: it is one directory in configfs, and a FunctionFS instance (at most 40
/// bytes there).
pub fn is_name(name: &str) -> bool {
    let legal = |c: char| c.is_ascii_alphanumeric() || c == '-' || c == '_';
    (1..=40).contains(&name.len()) && name.chars().all(legal)
}

pub(super) fn checked_name(name: &str) -> Result<&str, GadgetError> {
    if is_name(name) { Ok(name) } else { Err(GadgetError::Name { name: name.to_owned() }) }
}

fn entries(dir: &Path) -> Vec<PathBuf> {
    let entries = fs::read_dir(dir).into_iter().flatten().flatten();
    entries
        .filter(|entry| entry.file_type().is_ok_and(|kind| !kind.is_file()))
        .map(|entry| entry.path())
        .collect()
}

fn remove_dirs(dirs: Vec<PathBuf>) -> Result<(), GadgetError> {
    dirs.iter().try_for_each(|dir| remove_dir(dir))
}

fn remove_dir(dir: &Path) -> Result<(), GadgetError> {
    fs::remove_dir(dir).map_err(GadgetError::io("remove", dir))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn gadgets() -> (tempfile::TempDir, Tree) {
        let dir = tempfile::tempdir().unwrap();
        let tree = Tree::new(dir.path(), "g").unwrap();
        (dir, tree)
    }

    #[test]
    fn a_missing_configfs_is_told_with_its_cure() {
        let error = Tree::new(Path::new("/nowhere/usb_gadget"), "g").unwrap_err().to_string();
        assert!(error.contains("modprobe libcomposite") && error.contains("mount -t configfs"), "{error}");
    }

    #[test]
    fn names_that_would_leave_the_directory_are_refused() {
        let (dir, _) = gadgets();
        for name in ["", "..", "a/b", ".", "a b", "ü", &"x".repeat(41)] {
            assert!(matches!(Tree::new(dir.path(), name), Err(GadgetError::Name { .. })), "{name}");
        }
        assert!(Tree::new(dir.path(), &"x".repeat(40)).is_ok());
    }

    #[test]
    fn a_gadget_with_a_foreign_function_is_not_cleaned() {
        let (dir, tree) = gadgets();
        fs::create_dir_all(dir.path().join("g/functions/hid.usb0")).unwrap();
        let error = tree.clean_left_over("g").unwrap_err();
        assert!(matches!(error, GadgetError::NotOurs { function, .. } if function == "hid.usb0"));
        assert!(dir.path().join("g/functions/hid.usb0").exists());
    }

    #[test]
    fn an_unbind_writes_a_newline_and_only_to_a_bound_gadget() {
        let (dir, tree) = gadgets();
        fs::create_dir(dir.path().join("g")).unwrap();
        let udc = dir.path().join("g/UDC");
        fs::write(&udc, "\n").unwrap();
        tree.unbind().unwrap();
        fs::write(&udc, "dummy_udc.0\n").unwrap();
        assert_eq!(tree.bound_to().as_deref(), Some("dummy_udc.0"));
        tree.unbind().unwrap();
        assert_eq!(fs::read(&udc).unwrap(), b"\n");
        assert_eq!(tree.bound_to(), None);
    }

    #[test]
    fn removing_takes_links_before_configurations_and_functions_before_the_gadget() {
        let (dir, tree) = gadgets();
        let gadget = dir.path().join("g");
        for below in ["configs/c.1/strings/0x409", "functions/ffs.unit_test_of_ringdrive", "strings/0x409"] {
            fs::create_dir_all(gadget.join(below)).unwrap();
        }
        let function = gadget.join("functions/ffs.unit_test_of_ringdrive");
        symlink(&function, gadget.join("configs/c.1/ffs.unit_test_of_ringdrive")).unwrap();
        // What is left is what configfs removes by itself with its parent, and a plain directory does not.
        assert!(
            matches!(tree.remove(), Err(GadgetError::Io { path, .. }) if path == gadget.join("configs/c.1"))
        );
        fs::remove_dir(gadget.join("configs/c.1/strings")).unwrap();
        assert!(matches!(tree.remove(), Err(GadgetError::Io { path, .. }) if path == gadget));
        assert!(!function.exists());
        assert!(!gadget.join("strings/0x409").exists());
    }
}
