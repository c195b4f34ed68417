//! What is booted: memtest86+'s ISO, and a flash image whose boot sector and EFI application both tell that they run.

use std::fs::{self, File};
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, ensure};
use xshell::{Shell, cmd};

use super::plan::Medium;
use super::screen::Font;

const SECTOR: usize = 512;

/// Where the partition starts, as partitioning programs have it: at 1 MiB.
const PARTITION: u32 = 2048;

/// Sectors of the partition.
const PARTITION_SECTORS: u32 = 32_768;

/// The sector with what the boot sector prints: as far away as nobody reads by chance.
const MESSAGE_AT: u32 = PARTITION - 1;

/// What the boot sector prints over the first serial port.
pub(super) const MESSAGE: &str = "ringdrive's flash disk is booted";

/// What memtest86+ shows on its screen.
pub(super) const MEMTEST: &str = "Memtest86+ v";

/// The first sector's program, which the BIOS loads to 0000:7C00 with the drive's number in DL. It reads the message with the
/// BIOS's extended read and prints it with the BIOS's serial service.
const BOOT: [u8; 47] = [
    0x31, 0xc0, // xor ax, ax
    0x8e, 0xd8, // mov ds, ax
    0x8e, 0xd0, // mov ss, ax
    0xbc, 0x00, 0x7c, // mov sp, 7C00h
    0xb4, 0x42, // mov ah, 42h
    0xbe, 0x1f, 0x7c, // mov si, packet
    0xcd, 0x13, // int 13h: read
    0xbe, 0x00, 0x7e, // mov si, 7E00h
    0xac, // next: lodsb
    0x84, 0xc0, // test al, al
    0x74, 0xfe, // stop: jz stop
    0xb4, 0x01, // mov ah, 1
    0x99, // cwd: DX = 0, the first port; AH is positive
    0xcd, 0x14, // int 14h: send
    0xeb, 0xf4, // jmp next
    // packet: 16 bytes long, one sector, to 0000:7E00, from MESSAGE_AT
    0x10, 0x00, 0x01, 0x00, 0x00, 0x7e, 0x00, 0x00, 0xff, 0x07, 0, 0, 0, 0, 0, 0,
];

/// Files of the images, and the font with which memtest86+ draws.
#[derive(Debug)]
pub(super) struct Images {
    pub(super) font: Font,
}

/// Where an image is, below the directory that the board sees too.
pub(super) fn path(dir: &Path, medium: Medium) -> PathBuf {
    dir.join(match medium {
        Medium::Cd | Medium::HybridIso => "memtest.iso",
        Medium::Flash => "flash.img",
    })
}

impl Images {
    /// Makes all images in `dir`.
    pub(super) fn make(shell: &Shell, dir: &Path, iso: &Path) -> Result<Self> {
        let cd = path(dir, Medium::Cd);
        fs::copy(iso, &cd).with_context(|| format!("cannot copy {}", iso.display()))?;
        let application =
            iso.ancestors().nth(4).context("an ISO of no package")?.join("boot/memtest86+x64.efi");
        make_flash(shell, &path(dir, Medium::Flash), &application)?;
        Ok(Self { font: Font::find(&fs::read(&cd)?)? })
    }
}

/// A disk with our boot sector and one partition: a FAT file system with the application where firmware looks for it.
fn make_flash(shell: &Shell, image: &Path, application: &Path) -> Result<()> {
    let partition = image.with_extension("fat");
    File::create(&partition)?.set_len(u64::from(PARTITION_SECTORS) * SECTOR as u64)?;
    cmd!(shell, "mkfs.vfat -n RINGDRIVE {partition}").quiet().ignore_stdout().run()?;
    cmd!(shell, "mmd -i {partition} ::/EFI ::/EFI/BOOT").quiet().run()?;
    cmd!(shell, "mcopy -i {partition} {application} ::/EFI/BOOT/BOOTX64.EFI").quiet().run()?;
    let mut disk = head()?;
    disk.extend(fs::read(&partition)?);
    fs::remove_file(&partition)?;
    fs::write(image, disk).with_context(|| format!("cannot write {}", image.display()))
}

/// What comes before the partition.
fn head() -> Result<Vec<u8>> {
    let mut sector = BOOT.to_vec();
    sector.resize(446, 0);
    // Active, an EFI system partition; cylinders, heads and sectors are beyond what they can say.
    sector.extend([0x80, 0xfe, 0xff, 0xff, 0xef, 0xfe, 0xff, 0xff]);
    sector.extend(PARTITION.to_le_bytes());
    sector.extend(PARTITION_SECTORS.to_le_bytes());
    sector.resize(510, 0);
    sector.extend([0x55, 0xaa]);
    ensure!(sector.len() == SECTOR, "a boot sector of {} bytes", sector.len());
    sector.resize(usize::try_from(MESSAGE_AT)? * SECTOR, 0);
    sector.extend(MESSAGE.bytes());
    sector.resize(usize::try_from(PARTITION)? * SECTOR, 0);
    Ok(sector)
}
