//! What is booted: firmware, USB controller, drives, image.

use std::fmt;

use super::Row;
use crate::vm::Speed;

/// Whose code boots.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Firmware {
    /// A BIOS.
    SeaBios,
    /// UEFI, from EDK2.
    Ovmf,
}

/// What the drives are plugged into.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Controller {
    /// USB 2.0 only.
    Ehci,
    /// USB 2.0 and 3.0.
    Xhci,
}

/// The LUNs of the one function.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Drives {
    /// An optical drive 0 and a disk 1; the image is in one, the other is empty.
    Both,
    /// An optical drive alone.
    Optical,
    /// A disk alone.
    Disk,
}

/// What is inserted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Medium {
    /// memtest86+'s ISO in the optical drive.
    Cd,
    /// An image with a boot sector and an EFI application in the disk.
    Flash,
    /// memtest86+'s ISO, which is hybrid, in the disk.
    HybridIso,
}

/// One boot.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Combination {
    pub(super) firmware: Firmware,
    pub(super) controller: Controller,
    pub(super) drives: Drives,
    pub(super) medium: Medium,
}

/// As in the table.
impl fmt::Display for Combination {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.words().join(", "))
    }
}

impl Combination {
    fn words(&self) -> [&'static str; 4] {
        let firmware = match self.firmware {
            Firmware::SeaBios => "SeaBIOS",
            Firmware::Ovmf => "OVMF",
        };
        let controller = match self.controller {
            Controller::Ehci => "EHCI",
            Controller::Xhci => "xHCI",
        };
        let drives = match self.drives {
            Drives::Both => "both",
            Drives::Optical => "optical",
            Drives::Disk => "disk",
        };
        let medium = match self.medium {
            Medium::Cd => "CD",
            Medium::Flash => "flash disk",
            Medium::HybridIso => "hybrid ISO on a disk",
        };
        [firmware, controller, drives, medium]
    }
}

/// Media, and the drives that they fit in.
const INSERTED: [(Drives, Medium); 5] = [
    (Drives::Both, Medium::Cd),
    (Drives::Both, Medium::Flash),
    (Drives::Optical, Medium::Cd),
    (Drives::Disk, Medium::Flash),
    (Drives::Disk, Medium::HybridIso),
];

/// All boots on a board of this speed, or the few that meet each word once.
pub(super) fn combinations(speed: Speed, full: bool) -> Vec<Combination> {
    let controllers: &[Controller] = match speed {
        Speed::High => &[Controller::Ehci, Controller::Xhci],
        // EHCI has no place for a device that runs at SuperSpeed.
        Speed::Super => &[Controller::Xhci],
    };
    let mut all = Vec::new();
    for firmware in [Firmware::SeaBios, Firmware::Ovmf] {
        for &controller in controllers {
            let boot = |(drives, medium)| Combination { firmware, controller, drives, medium };
            all.extend(INSERTED.map(boot));
        }
    }
    if !full {
        all.retain(|boot| speed == Speed::High && boot.tells());
    }
    all
}

impl Combination {
    /// Whether the short form has it.
    fn tells(&self) -> bool {
        matches!(
            (self.firmware, self.controller, self.drives, self.medium),
            (Firmware::SeaBios, Controller::Xhci, Drives::Both, Medium::Cd)
                | (Firmware::SeaBios, Controller::Ehci, Drives::Both, Medium::Flash)
                | (Firmware::Ovmf, Controller::Ehci, Drives::Optical, Medium::Cd)
                | (Firmware::Ovmf, Controller::Xhci, Drives::Disk, Medium::Flash)
        )
    }
}

/// A table to keep in a document as it is.
pub(super) fn markdown(rows: &[Row]) -> String {
    let mut text = "\
        | firmware | controller | drives  | booted               | link  | s from reset |\n\
        |----------|------------|---------|----------------------|-------|-------------:|"
        .to_owned();
    for (speed, combination, outcome) in rows {
        let [firmware, controller, drives, medium] = combination.words();
        let took = outcome
            .as_ref()
            .map_or_else(|_| "did not boot".to_owned(), |took| format!("{:.1}", took.as_secs_f64()));
        text.push_str(&format!(
            "\n| {firmware:<8} | {controller:<10} | {drives:<7} | {medium:<20} | {:<5} | {took:>12} |",
            speed.name()
        ));
    }
    text
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::{Speed, combinations, markdown};

    #[test]
    fn the_full_plan_has_every_firmware_controller_and_kind_of_drive() {
        assert_eq!(combinations(Speed::High, true).len(), 20);
        assert_eq!(combinations(Speed::Super, true).len(), 10);
        for speed in [Speed::High, Speed::Super] {
            // A virtio-serial controller has 31 ports, and virtme-ng needs one.
            assert!(combinations(speed, true).len() < 31);
        }
    }

    #[test]
    fn the_short_plan_meets_each_word_that_the_issue_asks_for() {
        let words: Vec<&str> =
            combinations(Speed::High, false).iter().flat_map(super::Combination::words).collect();
        for word in ["SeaBIOS", "OVMF", "EHCI", "xHCI", "both", "optical", "disk", "CD", "flash disk"] {
            assert!(words.contains(&word), "{word} is not in {words:?}");
        }
        assert!(combinations(Speed::Super, false).is_empty());
    }

    #[test]
    fn every_line_of_the_table_is_as_long_as_the_first() {
        let boots = combinations(Speed::High, true);
        let rows: Vec<_> =
            boots.into_iter().map(|boot| (Speed::High, boot, Ok(Duration::from_secs(9)))).collect();
        let table = markdown(&rows);
        let lengths: Vec<usize> = table.lines().map(|line| line.chars().count()).collect();
        assert_eq!(lengths.len(), 22);
        assert!(lengths.windows(2).all(|pair| pair[0] == pair[1]), "{table}");
    }
}
