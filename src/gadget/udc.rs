//! USB device controllers, as sysfs shows them. Called by the gadget to choose one and to watch the host come and go.

use std::{
    fmt, fs,
    path::{Path, PathBuf},
};

use ffs_descriptors::Speed;

use super::error::GadgetError;

/// Where the kernel lists them.
pub(super) const UDC_CLASS: &str = "/sys/class/udc";

/// One USB device controller.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Udc {
    dir: PathBuf,
    name: String,
}

/// Where the device stands on the bus (USB 2.0 §9.1.1), by the kernel's names.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum UdcState {
    /// No host.
    NotAttached,
    /// A host is there, and powers or resets us, or has given us an address: not configured yet.
    Attaching,
    /// The host uses us.
    Configured,
    /// The bus is idle.
    Suspended,
    /// The kernel said something else.
    Unknown,
}

impl Udc {
    /// All controllers of the machine, in the order of their names.
    pub fn list() -> Vec<Self> {
        Self::list_in(Path::new(UDC_CLASS))
    }

    pub(super) fn list_in(class: &Path) -> Vec<Self> {
        let entries = fs::read_dir(class).into_iter().flatten().flatten();
        let names = entries.filter_map(|entry| entry.file_name().into_string().ok());
        let mut all: Vec<Self> = names.map(|name| Self { dir: class.join(&name), name }).collect();
        all.sort_by(|a, b| a.name.cmp(&b.name));
        all
    }

    /// The controller called `wanted`, or the first that no gadget has.
    pub(super) fn choose(class: &Path, wanted: Option<&str>) -> Result<Self, GadgetError> {
        let all = Self::list_in(class);
        let Some(first) = all.first() else {
            return Err(GadgetError::NoUdc { path: class.to_owned() });
        };
        let found = match wanted {
            Some(wanted) => {
                all.iter().find(|udc| udc.name == wanted).ok_or_else(|| GadgetError::UnknownUdc {
                    wanted: wanted.to_owned(),
                    present: all.iter().map(|udc| udc.name.clone()).collect(),
                })?
            }
            None => all.iter().find(|udc| udc.holder().is_none()).unwrap_or(first),
        };
        match found.holder() {
            None => Ok(found.clone()),
            Some(holder) => Err(found.busy(Some(holder))),
        }
    }

    /// The kernel's name of the controller.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Where the device stands on the bus.
    pub fn state(&self) -> UdcState {
        match self.attribute("state").as_deref() {
            Some("not attached") => UdcState::NotAttached,
            Some("attached" | "powered" | "reconnecting" | "unauthenticated" | "default" | "addressed") => {
                UdcState::Attaching
            }
            Some("configured") => UdcState::Configured,
            Some("suspended") => UdcState::Suspended,
            _ => UdcState::Unknown,
        }
    }

    /// The speed agreed with the host, while there is one.
    pub fn current_speed(&self) -> Option<Speed> {
        match self.attribute("current_speed")?.as_str() {
            "full-speed" => Some(Speed::Full),
            "high-speed" => Some(Speed::High),
            "super-speed" | "super-speed-plus" => Some(Speed::Super),
            _ => None,
        }
    }

    /// The gadget that has this controller.
    pub fn holder(&self) -> Option<String> {
        self.attribute("function").filter(|name| !name.is_empty())
    }

    pub(super) fn busy(&self, holder: Option<String>) -> GadgetError {
        let holder = holder.map_or_else(|| "another gadget".to_owned(), |name| format!("the gadget {name}"));
        GadgetError::UdcBusy { udc: self.name.clone(), holder }
    }

    fn attribute(&self, name: &str) -> Option<String> {
        fs::read_to_string(self.dir.join(name)).ok().map(|text| text.trim().to_owned())
    }
}

impl fmt::Display for Udc {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.name)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn class(controllers: &[(&str, &str)]) -> tempfile::TempDir {
        let dir = tempfile::tempdir().unwrap();
        for (name, function) in controllers {
            fs::create_dir(dir.path().join(name)).unwrap();
            fs::write(dir.path().join(name).join("function"), format!("{function}\n")).unwrap();
        }
        dir
    }

    #[test]
    fn the_first_free_controller_is_chosen() {
        let class = class(&[("b.usb", ""), ("a.usb", "kvmd"), ("c.usb", "")]);
        assert_eq!(Udc::choose(class.path(), None).unwrap().name(), "b.usb");
        assert_eq!(Udc::choose(class.path(), Some("c.usb")).unwrap().name(), "c.usb");
    }

    #[test]
    fn a_controller_of_another_gadget_is_refused_with_its_name() {
        let class = class(&[("a.usb", "kvmd")]);
        for wanted in [None, Some("a.usb")] {
            let error = Udc::choose(class.path(), wanted).unwrap_err().to_string();
            assert!(error.contains("a.usb is in use by the gadget kvmd; stop"), "{error}");
        }
    }

    #[test]
    fn no_controller_and_a_wrong_name_are_told_apart() {
        let none = class(&[]);
        assert!(matches!(Udc::choose(none.path(), Some("x")), Err(GadgetError::NoUdc { .. })));
        let some = class(&[("a.usb", "")]);
        let error = Udc::choose(some.path(), Some("x")).unwrap_err().to_string();
        assert_eq!(error, "there is no USB device controller x; this machine has: a.usb");
    }
}
