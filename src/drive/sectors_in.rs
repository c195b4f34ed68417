//! A data-in phase of whole CD sectors, or parts of them: READ CD with more than user data.
//!
//! ```text
//!   chunk of the host's bytes ──► the blocks that they are of ──► gathered in a buffer ──► sectors built ──► send (IN pipe)
//! ```
//! Sectors have no length that packets have, so a chunk begins and ends inside of one, which is then built for both of its chunks.
//! One chunk at a time: nobody is in a hurry who reads CD sectors raw. Called by `function` and `phases`; owns no buffer that the
//! ring or an engine holds.

use crate::{
    bot::DataPhase,
    gadget::endpoints::{Endpoints, Pipe, Wake},
    media::{Extent, FaultKind, Medium, Residence},
    ring::{Moved, Mover, OpTag, Wait, pool::Buf},
    scsi::{MediaOp, Pending, SECTOR_LEN, SectorPart, sense},
    units::{ByteLen, ByteRange, Lba},
};

use super::{
    data_in::Progress,
    flights::Owner,
    function::{Function, Phase},
    look::{ReadEnd, ReadMoved},
    pipes::{PipeError, Pipes},
};

/// Bytes of a chunk: what it takes of the image, with a sector at either end that it shares, fits a buffer. A multiple of every
/// packet size.
const CHUNK: usize = 32 * 1024;
/// Requests queued to the host at once.
const QUEUED: u32 = 4;
/// Bytes of user data in a sector.
const USER_DATA: u64 = 2048;

#[derive(Debug)]
pub(super) struct SectorsIn {
    start: Lba,
    part: SectorPart,
    /// The user data of all its sectors.
    image: ByteRange,
    /// Bytes for the host.
    len: u64,
    /// Bytes queued to the host.
    moved: u64,
    chunk: Option<Chunk>,
    immediate: bool,
}

/// What the host gets next.
#[derive(Debug)]
struct Chunk {
    len: usize,
    /// Its first sector, counted from the first of the command.
    sector: u64,
    /// The user data of its sectors: none where none is needed.
    user_data: Option<Buf>,
    /// What of them is missing yet, and how much is there.
    missing: ByteRange,
    filled: usize,
    /// The ring has the buffer.
    reading: bool,
    failed: Option<FaultKind>,
}

impl SectorsIn {
    /// For the first `len` bytes of what `part` makes of the blocks at `start`, which are `image`.
    pub(super) fn new(start: Lba, part: SectorPart, image: ByteRange, len: u64) -> Self {
        Self { start, part, image, len, moved: 0, chunk: None, immediate: true }
    }

    /// Takes a finished read.
    pub(super) fn read_done(&mut self, done: Moved) {
        let Some(chunk) = &mut self.chunk else { return };
        if !std::mem::take(&mut chunk.reading) {
            return;
        }
        chunk.user_data = done.buf;
        match done.result {
            Ok(0) => chunk.failed = Some(FaultKind::Truncated),
            // A read may be short.
            Ok(n) => chunk.fill(n),
            Err(error) => chunk.failed = Some(FaultKind::from(&error)),
        }
    }

    fn pump<E: Endpoints>(
        &mut self,
        medium: &dyn Medium,
        mover: &mut impl Mover,
        pipes: &mut Pipes<E>,
    ) -> Result<Progress, PipeError> {
        while self.moved < self.len {
            if pipes.queued(Pipe::In) >= QUEUED {
                return Ok(Progress::Going);
            }
            if self.chunk.is_none() {
                self.chunk = self.next_chunk(pipes);
            }
            let Some(chunk) = &mut self.chunk else { return Ok(Progress::Going) };
            match chunk.gather(medium, mover, &mut self.immediate) {
                Progress::Done => {}
                going => return Ok(going),
            }
            let Some(mut buf) = pipes.data() else { return Ok(Progress::Going) };
            let len = chunk.len;
            chunk.build(self.start, self.part, self.moved, &mut buf);
            self.chunk = None;
            self.moved += ByteLen::from(len).0;
            // The last goes together with the CSW.
            let wake = if self.moved < self.len { Wake::Now } else { Wake::Later };
            pipes.send_data(buf, len, wake)?;
            if self.moved < self.len {
                pipes.flush();
            }
        }
        Ok(Progress::Done)
    }

    fn next_chunk<E: Endpoints>(&self, pipes: &Pipes<E>) -> Option<Chunk> {
        let stride = u64::from(self.part.len()).max(1);
        let len = ByteLen(self.len - self.moved).min(ByteLen::from(CHUNK));
        let sector = self.moved / stride;
        let sectors = (self.moved + len.0).div_ceil(stride) - sector;
        let (user_data, missing) = if self.part.needs_user_data() {
            let behind = self.image.split_at(ByteLen(sector * USER_DATA)).1;
            (Some(pipes.data()?), behind.split_at(ByteLen(sectors * USER_DATA)).0)
        } else {
            (None, self.image.split_at(ByteLen(0)).0)
        };
        let len = len.to_usize();
        Some(Chunk { len, sector, user_data, missing, filled: 0, reading: false, failed: None })
    }

    pub(super) fn moved(&self) -> u64 {
        self.moved
    }

    pub(super) fn awaits_image(&self) -> bool {
        self.chunk.as_ref().is_some_and(|chunk| chunk.reading || !chunk.missing.is_empty())
    }

    /// Ends here, whatever is still under way.
    pub(super) fn fail(&mut self, kind: FaultKind) {
        if let Some(chunk) = &mut self.chunk {
            chunk.failed = Some(kind);
        }
    }

    /// The first block that could not be had.
    fn lba(&self) -> Lba {
        let done =
            self.chunk.as_ref().map_or(0, |chunk| chunk.sector + ByteLen::from(chunk.filled).0 / USER_DATA);
        Lba(self.start.0 + done)
    }
}

impl Chunk {
    /// Where the next `len` bytes of user data go.
    fn room(&mut self, len: usize) -> Option<&mut [u8]> {
        self.user_data.as_mut()?.get_mut(self.filled..)?.get_mut(..len)
    }

    fn fill(&mut self, len: usize) {
        self.filled += len;
        self.missing = self.missing.split_at(ByteLen::from(len)).1;
    }

    /// Done once all of its user data is there.
    fn gather(&mut self, medium: &dyn Medium, mover: &mut impl Mover, immediate: &mut bool) -> Progress {
        while !self.reading && self.failed.is_none() && !self.missing.is_empty() {
            let missing = self.missing.len();
            match medium.map(self.missing) {
                Extent::File { file, offset, len } => {
                    let len = len.min(missing).to_usize();
                    let wait = match medium.residence() {
                        Residence::Memory => Some(Wait::ForMemory),
                        Residence::Local => Some(Wait::Never),
                        Residence::Remote => None,
                    };
                    let now = wait.filter(|_| *immediate).is_some_and(|wait| {
                        self.room(len).is_some_and(|to| mover.read_now(&file, offset, to, wait))
                    });
                    if now {
                        self.fill(len);
                        continue;
                    }
                    *immediate = false;
                    let Some(buf) = self.user_data.take() else { return Progress::Going };
                    // If the ring is full: asked again after its next completion.
                    self.user_data =
                        mover.read(&file, offset, buf, self.filled..self.filled + len, OpTag(0)).err();
                    self.reading = self.user_data.is_none();
                    return Progress::Going;
                }
                Extent::Zero { len } => {
                    let len = len.min(missing).to_usize();
                    if let Some(room) = self.room(len) {
                        room.fill(0);
                    }
                    self.fill(len);
                }
                // Asked again when it wakes us.
                Extent::Pending { .. } => {
                    *immediate = false;
                    return Progress::Going;
                }
                Extent::Fault { kind, .. } => self.failed = Some(kind),
            }
        }
        match self.failed {
            Some(kind) => Progress::Fault(kind),
            None if self.reading => Progress::Going,
            None => Progress::Done,
        }
    }

    /// Writes its bytes, which begin `at` bytes behind those of the first sector of the command.
    fn build(&self, start: Lba, part: SectorPart, at: u64, to: &mut [u8]) {
        let mut scratch = [0; SECTOR_LEN];
        let mut rest = to.get_mut(..self.len).unwrap_or_default();
        let mut skip = ByteLen(at % u64::from(part.len()).max(1)).to_usize();
        let mut blocks = self.user_data.as_deref().unwrap_or_default().chunks(ByteLen(USER_DATA).to_usize());
        let mut lba = start.0 + self.sector;
        while !rest.is_empty() {
            let sector = part.build(Lba(lba), blocks.next().unwrap_or_default(), &mut scratch);
            let bytes = sector.get(skip..).unwrap_or_default();
            let (room, behind) = rest.split_at_mut(bytes.len().clamp(1, rest.len()));
            for (to, byte) in room.iter_mut().zip(bytes) {
                *to = *byte;
            }
            rest = behind;
            skip = 0;
            lba += 1;
        }
    }
}

impl<E: Endpoints, M: Mover> Function<E, M> {
    /// Starts READ CD on `image`, the bytes of the medium that its blocks are.
    pub(super) fn start_sectors(
        &mut self,
        op: MediaOp,
        image: Option<ByteRange>,
        pending: Pending,
    ) -> Result<(), PipeError> {
        match (op, image, self.open.data) {
            (MediaOp::ReadSectors { range, part }, Some(image), DataPhase::In { send }) => {
                let data = SectorsIn::new(range.start(), part, image, send.into());
                self.phase = Phase::Sectors { data, pending };
                self.note_first_read(self.open.lun, range.start().0);
                self.pump_sectors()
            }
            _ => self.complete(pending, Err(sense::LBA_OUT_OF_RANGE)),
        }
    }

    pub(super) fn pump_sectors(&mut self) -> Result<(), PipeError> {
        let Phase::Sectors { data, .. } = &mut self.phase else { return Ok(()) };
        let lun = self.open.lun;
        let loaded = self.drives.get(usize::from(lun)).and_then(|drive| drive.loaded.as_ref());
        let progress = match loaded {
            Some(loaded) => {
                let mut mover = self.mover.on(loaded.purpose(Owner::Command, lun));
                data.pump(&*loaded.image, &mut mover, &mut self.pipes)?
            }
            None => Progress::Fault(FaultKind::Gone),
        };
        if progress == Progress::Going {
            return Ok(());
        }
        let Phase::Sectors { data, pending } = std::mem::replace(&mut self.phase, Phase::Idle) else {
            return Ok(());
        };
        let fault = match progress {
            Progress::Fault(kind) => Some((kind, data.lba())),
            Progress::Going | Progress::Done => {
                if let Some(tally) = &mut self.open.tally {
                    tally.had_all(data.immediate);
                }
                None
            }
        };
        let moved = ReadMoved::In(u32::try_from(data.moved).unwrap_or(u32::MAX));
        self.end_read(ReadEnd { pending, first: data.start, moved, result: Ok(()) }, fault)
    }
}
