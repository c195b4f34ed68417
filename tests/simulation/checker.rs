//! The model host's life: which command comes next, what goes wrong with it, and whether the device's answer was right.

#[path = "deaths.rs"]
mod deaths;
#[path = "hostile.rs"]
mod hostile;
#[path = "storage.rs"]
mod storage;

use fastrand::Rng;
use ringdrive::{bot::StallPolicy, gadget::endpoints::Pipe};

use crate::{
    counted::{Became, Counted},
    dut::DEADLINE,
    host::{Chaos, Csw, Expected, Outcome, Port, Script, Stop},
    job::{Job, Moves, Verdict, What},
    lives::Coverage,
    media::SECOND,
    model::{Disk, ZEROES, bytes_of},
    world::{BusSignal, Nanos, World},
};

pub const REQUEST_SENSE: u8 = 0x03;

pub struct Checker {
    pub port: Port,
    pub disks: Vec<Disk>,
    pub coverage: Coverage,
    pub stall: StallPolicy,
    rng: Rng,
    /// Unit attentions that each unit may still report.
    attentions: Vec<u32>,
    /// What each drive must have counted.
    counted: Vec<Counted>,
    writes: u64,
    /// Somebody is taking the medium out.
    going: bool,
    /// The storage of the command at hand is slower than any should be.
    held_up: bool,
    /// Of processes, as many as had ended before the last command but one.
    settled: u64,
    /// Of processes, as many as had ended when what the drives have counted was last believed.
    counted_of: u64,
    /// The process has ended in this command, or in the one before.
    disturbed: bool,
    /// The device's process ends now and then, and another one takes over.
    pub mortal: bool,
    trace: bool,
}

impl Checker {
    pub fn new(port: Port, disks: Vec<Disk>, stall: StallPolicy, rng: Rng, trace: bool) -> Self {
        let attentions = vec![0; disks.len()];
        let counted = disks.iter().map(|_| Counted::default()).collect();
        Self {
            port,
            disks,
            coverage: Coverage::new(),
            stall,
            rng,
            attentions,
            counted,
            writes: 0,
            going: false,
            held_up: false,
            settled: 0,
            counted_of: 0,
            disturbed: false,
            mortal: false,
            trace,
        }
    }

    fn mark(&mut self, name: &'static str) {
        *self.coverage.entry(name).or_default() += 1;
    }

    fn note(&self, what: impl FnOnce() -> String) {
        if self.trace {
            println!("{:>14} ns  {}", self.port.world.now, what());
        }
    }

    /// A whole life of `turns` turns.
    pub fn live(&mut self, turns: usize) -> Result<(), String> {
        self.connect();
        for turn in 0..turns {
            self.turn().map_err(|why| format!("turn {turn}: {why}"))?;
        }
        self.port.world.release();
        self.port.world.settle();
        for lun in 0..self.disks.len() {
            self.read_back(lun).map_err(|why| format!("reading back unit {lun}: {why}"))?;
        }
        self.port.disconnect();
        self.port.world.release();
        if !self.port.world.settle() {
            return Err("the device never comes to rest without a host".into());
        }
        let World { device, now, .. } = &mut self.port.world;
        let stopped = device.stop(*now);
        self.port.world.settle();
        let _answer = stopped.take().ok_or("a stop is never answered")?;
        match self.port.world.device.buffers_out() {
            0 => {}
            out => return Err(format!("{out} buffers never came back")),
        }
        self.check_all_counted()?;
        for (lun, disk) in self.disks.iter_mut().enumerate() {
            disk.check_image().map_err(|why| format!("image of unit {lun}: {why}"))?;
        }
        Ok(())
    }

    /// The host finds the device.
    pub fn connect(&mut self) {
        self.connected();
        self.port.connect();
    }

    fn connected(&mut self) {
        // Power on or reset, and one for the medium.
        self.attentions.fill(2);
    }

    fn turn(&mut self) -> Result<(), String> {
        let lun = self.rng.usize(..self.disks.len());
        self.writes += 1;
        let job = Job::any(&mut self.rng, u8::try_from(lun).unwrap(), &self.disks[lun], self.writes);
        if self.is_unsettled() {
            return self.honest(&job);
        }
        match self.rng.u8(..100) {
            0..45 => self.honest(&job),
            45..60 if self.mortal => self.survives(&job),
            45..60 => self.honest(&job),
            60..75 => self.mismatched(&job),
            75..88 => self.broken_off(&job),
            88..92 => self.invalid_cbw(),
            92..93 => self.short_out(&job),
            93..94 => self.change_medium(&job),
            94..96 => self.odd_clear_within(&job),
            96..98 => {
                self.mark("clear halt between commands");
                let pipe = if self.rng.bool() { Pipe::In } else { Pipe::Out };
                self.port.world.bus.clear_halt(pipe, false);
                self.honest(&job)
            }
            _ => {
                self.port.world.signal(BusSignal::Suspended);
                self.port.world.idle(50);
                self.port.world.signal(BusSignal::Resumed);
                Ok(())
            }
        }
    }

    /// What the host expects when it is right about the command.
    fn expectation(&self, job: &Job) -> Expected {
        match job.moves {
            Moves::None => Expected::None,
            Moves::In(len) | Moves::UpTo(len) => Expected::In(len),
            Moves::Out(len) => Expected::Out(len),
        }
    }

    /// Bytes of a data-out phase of `len` bytes.
    fn out_bytes(&self, job: &Job, expected: Expected) -> Vec<u8> {
        let Expected::Out(len) = expected else { return Vec::new() };
        let mut bytes = match job.what {
            _ if job.out.is_some() => job.out.clone().unwrap_or_default(),
            What::Write { lba, count, id, .. } => {
                let sectors = self.disks[usize::from(job.lun)].sectors(lba, count);
                bytes_of(id, sectors.start, sectors.len())
            }
            _ => Vec::new(),
        };
        bytes.resize(usize::try_from(len).unwrap(), 0xee);
        bytes
    }

    fn run(&mut self, job: &Job, expected: Expected) -> Result<Outcome, Stop> {
        let out = self.out_bytes(job, expected);
        let script = Script { lun: job.lun, cdb: &job.cdb, expected, out: &out, odd_clear: None };
        let outcome = self.command(&script);
        self.note(|| {
            let what = outcome.as_ref().map(|outcome| format!("{:?} {:?}", outcome.data_end, outcome.csw));
            format!("lun {} {:02x?} {expected:?} -> {what:?}", job.lun, job.cdb)
        });
        outcome
    }

    /// One command, after which the device must have counted it.
    fn command(&mut self, script: &Script<'_>) -> Result<Outcome, Stop> {
        let (started, ended) = (self.port.world.now, self.port.world.ended);
        let result = self.port.command(script);
        self.disturbed = self.is_unsettled();
        self.settled = ended;
        let took = self.port.world.now - started;
        // A host that waits for what it has lost itself waits for as long as anything goes on.
        if self.disturbed {
            self.believe_counted();
            return result;
        }
        if !matches!(result, Err(Stop::Hung(_))) {
            self.check_time(script, took).map_err(Stop::Bug)?;
        }
        let (lun, opcode, expected) = (usize::from(script.lun), script.cdb[0], script.expected);
        // What is for a unit that does not exist is counted by none.
        if let Some(counted) = self.counted.get_mut(lun) {
            match &result {
                // Bytes that were on their way when the host cleared a halt that was none may be lost, but were counted.
                Ok(_) if script.odd_clear.is_some() => counted.broken_off(opcode, expected, true, took),
                Ok(outcome) => counted.completed(opcode, expected, outcome, took),
                Err(_) => counted.broken_off(opcode, expected, self.port.was_seen(), took),
            }
        }
        if result.is_ok() && lun < self.counted.len() {
            self.check_counted(lun).map_err(Stop::Bug)?;
        }
        result
    }

    /// Storage that answers slowly may be waited for; storage that does not answer, for its deadline, and no second time.
    fn check_time(&self, script: &Script<'_>, took: Nanos) -> Result<(), String> {
        let deadline = u64::try_from(DEADLINE.as_nanos()).unwrap();
        let (Expected::In(len) | Expected::Out(len)) = script.expected else { return Ok(()) };
        let operations = u64::from(len) / 65536 + 16;
        let slack = operations * self.port.world.media.delay_max() + SECOND;
        if took <= 2 * deadline + slack { Ok(()) } else { Err(format!("took {} ms", took / 1_000_000)) }
    }

    fn check_counted(&mut self, lun: usize) -> Result<(), String> {
        if self.port.world.ended != self.counted_of {
            self.believe_counted();
        }
        let World { device, now, .. } = &mut self.port.world;
        let told = device.statistics(*now, u8::try_from(lun).unwrap());
        let became = self.counted[lun].check(*now, &told).map_err(|why| format!("unit {lun} {why}"))?;
        match became {
            Some(Became::Completed) => self.mark("counted though broken off"),
            Some(Became::Aborted) => self.mark("counted as aborted"),
            Some(Became::Unseen) => self.mark("broken off unseen"),
            None => {}
        }
        Ok(())
    }

    fn check_all_counted(&mut self) -> Result<(), String> {
        (0..self.counted.len()).try_for_each(|lun| self.check_counted(lun))
    }

    /// Runs a command as its host means it, and judges the answer.
    pub fn honest(&mut self, job: &Job) -> Result<(), String> {
        self.mark("honest command");
        if self.disks.get(usize::from(job.lun)).is_some_and(|disk| disk.slow) {
            self.mark("slow medium");
        }
        let expected = self.expectation(job);
        self.judged(job, expected)
    }

    /// Runs a command to its CSW and judges it.
    fn judged(&mut self, job: &Job, expected: Expected) -> Result<(), String> {
        let stuck = self.stuck(job.lun);
        // A sync that nobody waits for may be what takes the storage offline.
        let was_slow = self.is_offline(job.lun) || self.is_stuck(job.lun);
        let faults = self.port.world.media.faults();
        let refused = self.port.world.bus.refused();
        match self.run(job, expected) {
            Ok(outcome) => {
                self.held_up = was_slow || self.stuck(job.lun) > stuck || self.is_offline(job.lun);
                let verdict = self.judge(job, expected, &outcome, faults);
                verdict.map_err(|why| format!("{why}; {job:?} {expected:?} {:?}", outcome.csw))
            }
            Err(Stop::Chaos(chaos)) => self.recover(job, chaos),
            // A transfer that the kernel had no memory for is broken off; the next is smaller.
            Err(Stop::Hung(_)) if self.port.world.bus.refused() > refused => {
                self.mark("no kernel memory");
                self.recover(job, Chaos::ResetRecovery)
            }
            Err(Stop::Hung(during)) => Err(format!("hung during {during}; {job:?} {expected:?}")),
            // A host that had nothing to say for a second speaks in the moment in which it is asked.
            Err(Stop::Bug(why))
                if self.disturbed && (why.contains("another command's tag") || self.port.read_the_past()) =>
            {
                self.mark("CSW of the past");
                self.recover(job, Chaos::BusReset)
            }
            Err(Stop::Bug(why)) => Err(format!("{why}; {job:?} {expected:?}")),
        }
    }

    /// Host and device disagree about the data phase: the thirteen cases, BOT 1.0 §6.7.
    fn mismatched(&mut self, job: &Job) -> Result<(), String> {
        let len = match job.moves {
            Moves::None | Moves::UpTo(_) => self.rng.u32(1..3000),
            Moves::In(len) | Moves::Out(len) => match self.rng.u8(..5) {
                0 => len + self.rng.u32(1..3000),
                1 => len.saturating_sub(self.rng.u32(1..3000)).max(1),
                2 => (len + 512) / 1024 * 512 + self.rng.u32(..2),
                3 => self.rng.u32(1..=len * 2),
                _ => len,
            },
        };
        let expected = match self.rng.u8(..3) {
            0 => Expected::None,
            1 => Expected::In(len.max(1)),
            _ => Expected::Out(len.max(1)),
        };
        self.judged(job, expected)
    }

    /// The host breaks off somewhere.
    pub fn broken_off(&mut self, job: &Job) -> Result<(), String> {
        let chaos = [Chaos::ResetRecovery, Chaos::ResetRecovery, Chaos::BusReset, Chaos::Vanish];
        let chaos = chaos[self.rng.usize(..chaos.len())];
        let after = 1 << self.rng.u32(..9);
        self.port.arm(self.rng.u32(..after), chaos);
        let result = self.honest(job);
        self.port.disarm();
        result
    }

    fn judge(&mut self, job: &Job, expected: Expected, outcome: &Outcome, faults: u64) -> Result<(), String> {
        self.check_transport(job, expected, outcome)?;
        if self.disturbed && job.cdb.first() == Some(&REQUEST_SENSE) && outcome.data.is_empty() {
            self.mark("sense data lost with the process");
            return Ok(());
        }
        let error = self.is_phase_error(job, expected);
        match outcome.csw.status {
            0 if error == Some(true) => Err("passed where the standard says phase error".into()),
            0 => self.check_passed(job, expected, outcome),
            1 => self.check_failed(job, expected, outcome, faults),
            _ if error == Some(false) => Err("phase error where host and device agree".into()),
            _ => {
                self.check_data(job, outcome)?;
                self.mark("phase error");
                // A host need not recover, since the CSW was good; most do.
                if self.rng.u8(..4) > 0 { self.recover_reads(job, Chaos::ResetRecovery) } else { Ok(()) }
            }
        }
    }

    /// Reset recovery after a command that had no effect on the disk.
    fn recover_reads(&mut self, job: &Job, chaos: Chaos) -> Result<(), String> {
        self.recover(&Job { what: What::Quiet, ..job.clone() }, chaos)
    }

    /// Whether a command that could succeed must end in a phase error; `None` where the host cannot know.
    fn is_phase_error(&mut self, job: &Job, expected: Expected) -> Option<bool> {
        let (case, error) = match (expected, job.moves) {
            (_, Moves::UpTo(len)) => {
                return (self.expectation(job) == Expected::In(len) && expected == Expected::In(len))
                    .then_some(false);
            }
            (Expected::None, Moves::None) => ("case 1", false),
            (Expected::None, Moves::In(_)) => ("case 2", true),
            (Expected::None, Moves::Out(_)) => ("case 3", true),
            (Expected::In(_), Moves::None) => ("case 4", false),
            (Expected::In(host), Moves::In(device)) if host > device => ("case 5", false),
            (Expected::In(host), Moves::In(device)) if host == device => ("case 6", false),
            (Expected::In(_), Moves::In(_)) => ("case 7", true),
            (Expected::In(_), Moves::Out(_)) => ("case 8", true),
            (Expected::Out(_), Moves::None) => ("case 9", false),
            (Expected::Out(_), Moves::In(_)) => ("case 10", true),
            (Expected::Out(host), Moves::Out(device)) if host > device => ("case 11", false),
            (Expected::Out(host), Moves::Out(device)) if host == device => ("case 12", false),
            (Expected::Out(_), Moves::Out(_)) => ("case 13", true),
        };
        self.mark(case);
        Some(error)
    }

    /// Rules that hold for every command, whatever it is.
    fn check_transport(&mut self, job: &Job, expected: Expected, outcome: &Outcome) -> Result<(), String> {
        let Csw { status, residue } = outcome.csw;
        if self.disturbed {
            return self.check_disturbed(expected, outcome);
        }
        let (host, received) = match expected {
            Expected::None => (0, 0),
            Expected::In(len) => (len, u32::try_from(outcome.data.len()).unwrap()),
            Expected::Out(len) => (len, 0),
        };
        let wrong = match (expected, status) {
            (Expected::In(_), 0 | 1) => residue != host - received,
            (Expected::Out(len), 0) => match job.moves {
                Moves::Out(device) if device <= len => residue != len - device,
                _ => residue != len,
            },
            _ => residue > host,
        };
        if wrong {
            return Err(format!("residue {residue} of {host} with {received} received"));
        }
        if outcome.stalls > 0 {
            self.mark("stall");
        }
        match self.stall {
            StallPolicy::Never if outcome.stalls > 0 => Err("a stall though the policy is never".into()),
            StallPolicy::Auto if outcome.stalls > 0 && received == host => {
                Err("a stall with nothing missing".into())
            }
            StallPolicy::Auto
                if received < host && matches!(expected, Expected::In(_)) && outcome.stalls != 1 =>
            {
                Err("data-in ended early without a stall".into())
            }
            StallPolicy::Auto | StallPolicy::Never => Ok(()),
        }
    }

    /// Bytes of a read are right as far as they came.
    fn check_data(&mut self, job: &Job, outcome: &Outcome) -> Result<(), String> {
        if self.disturbed && outcome.csw.status == 1 && !outcome.data.is_empty() && self.port.read_the_past()
        {
            // It is none of its data, which a host does not use when the command has failed.
            self.mark("CSW of the past");
            return Ok(());
        }
        match job.what {
            What::Sectors { lba, count, ref part } => {
                self.disks[usize::from(job.lun)].check_sectors(lba, count, part, &outcome.data)
            }
            What::Read { lba, count } => {
                let disk = &mut self.disks[usize::from(job.lun)];
                let len = outcome.data.len().min(count * disk.block);
                if len < outcome.data.len() {
                    return Err(format!("{} bytes for a read of {len}", outcome.data.len()));
                }
                disk.check(disk.sectors(lba, count).start, &outcome.data)
            }
            _ => Ok(()),
        }
    }

    fn check_passed(&mut self, job: &Job, expected: Expected, outcome: &Outcome) -> Result<(), String> {
        let media = self.port.world.media.clone();
        match job.what {
            What::Refused { .. } => Err("passed a command that it must refuse".into()),
            What::Quiet | What::SyncSoon => Ok(()),
            What::Answer(_) if expected != self.expectation(job) => Ok(()),
            What::Answer(check) => {
                let disk = &self.disks[usize::from(job.lun)];
                if check(&outcome.data, disk) { Ok(()) } else { Err(format!("answer {:02x?}", outcome.data)) }
            }
            What::Read { count, .. } | What::Sectors { count, .. } => {
                self.mark(if matches!(job.what, What::Sectors { .. }) { "READ CD" } else { "READ" });
                let whole = count * job.stride(self.disks[usize::from(job.lun)].block);
                if matches!(expected, Expected::In(_)) && outcome.data.len() != whole {
                    return Err(format!("passed with {} of {whole} bytes", outcome.data.len()));
                }
                if self.disks[usize::from(job.lun)].stream.get() > 2 {
                    self.mark("stream");
                }
                self.check_data(job, outcome)
            }
            What::Compare { verdict: Verdict::Differs(at), .. } => {
                Err(format!("byte {at} differs, but it passed"))
            }
            What::Compare { then: None, .. } => {
                self.mark("compared");
                Ok(())
            }
            What::Write { lba, count, id, durable }
            | What::Compare { then: Some((lba, count, id, durable)), .. } => {
                if matches!(job.what, What::Compare { .. }) {
                    self.mark("compared and written");
                }
                if id == ZEROES {
                    self.mark("zeroed");
                }
                let disk = &mut self.disks[usize::from(job.lun)];
                let sectors = disk.sectors(lba, count);
                disk.written(id, sectors.clone());
                let volatile = media.volatile(&disk.file, sectors);
                if durable && !volatile.is_empty() {
                    return Err(format!("FUA write left volatile: sectors {volatile:?}"));
                }
                self.mark(if durable { "FUA write" } else { "write" });
                Ok(())
            }
            What::Sync => {
                let disk = &self.disks[usize::from(job.lun)];
                let volatile = media.volatile(&disk.file, disk.sectors(0, disk.blocks()));
                self.mark("sync");
                if volatile.is_empty() {
                    Ok(())
                } else {
                    Err(format!("SYNCHRONIZE CACHE left volatile: sectors {volatile:?}"))
                }
            }
        }
    }

    fn check_deferred(&mut self, lun: u8) -> Result<(), String> {
        self.mark("deferred error");
        let has_lost = self.port.world.media.has_lost(&self.disks[usize::from(lun)].file);
        if has_lost { Ok(()) } else { Err("a deferred error without a cause".into()) }
    }

    /// The host asks why; `None`: it broke off and has recovered.
    fn ask_why(&mut self, job: &Job) -> Result<Option<Outcome>, String> {
        let ask = Job::request_sense(job.lun, 252);
        let sense = match self.run(&ask, Expected::In(252)) {
            Ok(outcome) => {
                self.check_transport(&ask, Expected::In(252), &outcome)?;
                outcome
            }
            Err(Stop::Chaos(chaos)) => return self.recover_reads(job, chaos).map(|()| None),
            Err(stop) => return Err(format!("{stop:?} during REQUEST SENSE")),
        };
        Ok(Some(sense))
    }

    /// The host asks why, and weighs the answer.
    fn check_failed(
        &mut self,
        job: &Job,
        expected: Expected,
        outcome: &Outcome,
        faults: u64,
    ) -> Result<(), String> {
        let disturbed = self.disturbed;
        self.check_data(job, outcome)?;
        if !matches!(job.what, What::Compare { verdict: Verdict::Differs(_), .. }) {
            self.perhaps_written(job);
        }
        let Some(sense) = self.ask_why(job)? else { return Ok(()) };
        if self.disturbed && (sense.csw.status != 0 || sense.data.is_empty()) {
            self.mark("sense data lost with the process");
            return self.try_again(job, expected);
        }
        let deferred = sense.data.first().is_some_and(|code| code & 0x7f == 0x71);
        if sense.csw.status != 0 || sense.data.len() < 14 {
            return Err(format!("REQUEST SENSE ended in {:?} with {:02x?}", sense.csw, sense.data));
        }
        let (key, code) = (sense.data[2] & 0x0f, [sense.data[12], sense.data[13]]);
        self.note(|| format!("  sense {key:x}/{code:02x?}"));
        if deferred {
            if matches!(job.cdb.first(), Some(&(0x35 | 0x91))) {
                return Err("a host may take a flush that ends with a deferred error for done".into());
            }
            return self.check_deferred(job.lun);
        }
        if (disturbed || self.disturbed) && ((key, code) == (0xb, [0, 0]) || key == 0) {
            self.mark("interrupted and tried again");
            return self.try_again(job, expected);
        }
        if (key, code) == (2, [4, 1]) && self.held_up && self.stuck(job.lun) > 0 {
            return self.await_source(job.lun);
        }
        match (key, &job.what) {
            (6, _) if job.reports_unit_attention() => self.check_attention(job.lun, code),
            (0xe, What::Compare { verdict: Verdict::Differs(at), then }) => {
                // INFORMATION does not outlive the process.
                let may_lack = then.is_none() || disturbed || self.disturbed;
                self.check_miscompare(*at, &sense.data, may_lack)
            }
            (0xe, What::Compare { verdict: Verdict::Unsure, .. }) => Ok(()),
            (key, What::Refused { key: wanted }) if key == *wanted || key == 5 => {
                self.mark("refused command");
                Ok(())
            }
            (2, _) if self.going => {
                self.mark("ejected before the command");
                Ok(())
            }
            // Without write cache, what makes no durable writes ends in a sync.
            // A sync tells what became of one that nobody has waited for, too: there may have been no room (7).
            (3, What::Sync | What::SyncSoon | What::Write { .. }) | (7, What::Sync | What::SyncSoon)
                if self.port.world.media.has_lost(&self.disks[usize::from(job.lun)].file) =>
            {
                self.mark("sync after a failed sync");
                Ok(())
            }
            (3 | 4 | 7 | 0xb, _) if self.port.world.media.faults() > faults => {
                self.mark("medium fault");
                Ok(())
            }
            _ => Err(format!("failed with sense {key:x}/{code:02x?}")),
        }
    }
}
