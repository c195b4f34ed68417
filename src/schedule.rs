//! How the kernel schedules the threads that serve one function: real-time priority and CPUs, both optional.
//!
//! Read from the configuration, and applied by each of those threads to itself when it starts (`drive::thread`, and the threads of
//! the `sync` engine). The threads of ep0 and of the control socket stay as they are. A thread starts with what its maker has, and so
//! do the io workers that the kernel makes for the ring of a drive thread; before Linux 6.2 it then gave them every CPU.

use std::{fmt, io, thread};

use nix::{
    sched::{CpuSet, sched_getaffinity, sched_setaffinity},
    unistd::Pid,
};
use thread_priority::{
    RealtimeThreadSchedulePolicy, ThreadPriority, ThreadPriorityValue, ThreadSchedulePolicy,
    set_thread_priority_and_policy, thread_native_id,
};

/// The threads of one function.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Schedule {
    /// SCHED_FIFO; `None`: as the process.
    pub realtime: Option<RealtimePriority>,
    /// Where they may run; `None`: as the process.
    pub cpus: Option<Cpus>,
}

/// A priority of SCHED_FIFO: 1, the lowest, to 99.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct RealtimePriority(u8);

/// One CPU or more, by the kernel's numbers.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct Cpus(CpuSet);

/// Why a thread is not scheduled as asked for.
#[derive(Debug, thiserror::Error)]
pub enum ScheduleError {
    /// The kernel does not allow it.
    #[error(
        "realtime_priority = {priority} is not allowed to this process; try LimitRTPRIO={priority} and RestrictRealtime=no in \
         its systemd unit (`ulimit -r {priority}` in a shell), or give it CAP_SYS_NICE"
    )]
    NotAllowed {
        /// As asked for.
        priority: u8,
        /// What the kernel said.
        source: io::Error,
    },
    /// Some of the CPUs are not there, are off, or belong to others.
    #[error(
        "cpus: this process cannot run on {missing}; try CPUs that /sys/devices/system/cpu/online lists and that AllowedCPUs= of \
         its systemd unit, if set, has"
    )]
    NoCpu {
        /// The CPUs.
        missing: Box<Cpus>,
    },
    /// Anything else.
    #[error("cannot set the scheduling of a thread; try without realtime_priority and cpus")]
    Kernel(#[from] io::Error),
}

impl RealtimePriority {
    /// The lowest.
    pub const MIN: u8 = 1;
    /// The highest (sched(7)).
    pub const MAX: u8 = 99;

    /// `None`: not within [`Self::MIN`] and [`Self::MAX`].
    pub fn new(priority: u8) -> Option<Self> {
        (Self::MIN..=Self::MAX).contains(&priority).then_some(Self(priority))
    }
}

impl Cpus {
    /// CPUs that can be named.
    pub const COUNT_MAX: usize = CpuSet::count();

    /// `None`: an empty list, or a number not below [`Self::COUNT_MAX`].
    pub fn new(numbers: impl IntoIterator<Item = usize>) -> Option<Self> {
        let mut set = CpuSet::new();
        for number in numbers {
            set.set(number).ok()?;
        }
        (set != CpuSet::new()).then_some(Self(set))
    }

    /// Those that are not in `other`.
    fn without(self, other: CpuSet) -> Option<Self> {
        Self::new(self.iter().filter(|number| !has(&other, *number)))
    }

    fn iter(&self) -> impl Iterator<Item = usize> {
        (0..Self::COUNT_MAX).filter(|number| has(&self.0, *number))
    }
}

fn has(set: &CpuSet, number: usize) -> bool {
    set.is_set(number).unwrap_or(false)
}

impl fmt::Display for Cpus {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let numbers: Vec<String> = self.iter().map(|number| number.to_string()).collect();
        write!(f, "CPU {}", numbers.join(", "))
    }
}

impl fmt::Debug for Cpus {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_set().entries(self.iter()).finish()
    }
}

impl Schedule {
    /// Applies it to the calling thread.
    ///
    /// # Errors
    /// [`ScheduleError`]; the thread may then have the CPUs without the priority.
    pub fn apply(&self) -> Result<(), ScheduleError> {
        if let Some(cpus) = self.cpus {
            let this = Pid::from_raw(0);
            match sched_setaffinity(this, &cpus.0) {
                // None of them may be used.
                Err(nix::Error::EINVAL) => return Err(ScheduleError::NoCpu { missing: Box::new(cpus) }),
                result => result.map_err(io::Error::from)?,
            }
            // The kernel leaves out without a word those that it does not have.
            let given = sched_getaffinity(this).map_err(io::Error::from)?;
            if let Some(missing) = cpus.without(given) {
                return Err(ScheduleError::NoCpu { missing: Box::new(missing) });
            }
        }
        match self.realtime {
            Some(priority) => set_fifo(priority),
            None => Ok(()),
        }
    }

    /// Whether a thread can have it, tried on one that ends at once.
    ///
    /// # Errors
    /// As [`Schedule::apply`].
    pub fn check(self) -> Result<(), ScheduleError> {
        if self == Self::default() {
            return Ok(());
        }
        let tried = thread::Builder::new().name("schedule".into()).spawn(move || self.apply())?;
        tried.join().unwrap_or_else(|_| Err(io::Error::other("the thread panicked").into()))
    }
}

fn set_fifo(RealtimePriority(priority): RealtimePriority) -> Result<(), ScheduleError> {
    let value = ThreadPriorityValue::try_from(priority).map_err(io::Error::other)?;
    let policy = ThreadSchedulePolicy::Realtime(RealtimeThreadSchedulePolicy::Fifo);
    let set =
        set_thread_priority_and_policy(thread_native_id(), ThreadPriority::Crossplatform(value), policy);
    set.map_err(|error| match error {
        thread_priority::Error::OS(errno) => {
            let source = io::Error::from_raw_os_error(errno);
            match source.kind() {
                io::ErrorKind::PermissionDenied => ScheduleError::NotAllowed { priority, source },
                _ => source.into(),
            }
        }
        other => io::Error::other(format!("{other:?}")).into(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Numbers that the process may run on, from the kernel's own list ("0-3,8").
    fn allowed() -> Vec<usize> {
        let status = std::fs::read_to_string("/proc/thread-self/status").unwrap();
        let list = status.lines().find_map(|line| line.strip_prefix("Cpus_allowed_list:")).unwrap();
        let ranges = list.trim().split(',').map(|range| range.split_once('-').unwrap_or((range, range)));
        ranges.flat_map(|(first, last)| first.parse().unwrap()..=last.parse().unwrap()).collect()
    }

    fn on(cpus: &[usize]) -> Schedule {
        Schedule { cpus: Cpus::new(cpus.iter().copied()), ..Schedule::default() }
    }

    #[test]
    fn a_thread_runs_where_it_is_told_to_and_nowhere_else() {
        let last = *allowed().last().unwrap();
        let seen = thread::spawn(move || on(&[last]).apply().map(|()| allowed())).join().unwrap();
        assert_eq!(seen.unwrap(), [last]);
    }

    #[test]
    fn a_cpu_that_is_not_there_is_named_even_beside_one_that_is() {
        let first = allowed()[0];
        for cpus in [vec![1023], vec![first, 1023]] {
            let message = on(&cpus).check().unwrap_err().to_string();
            assert!(message.contains("cannot run on CPU 1023;"), "{message}");
        }
    }

    #[test]
    fn only_what_the_kernel_could_take_is_a_schedule() {
        assert_eq!([0, 1, 99, 100].map(|n| RealtimePriority::new(n).is_some()), [false, true, true, false]);
        assert_eq!(Cpus::new([]), None);
        assert_eq!(Cpus::new([1024]), None);
        assert_eq!(Cpus::new([3, 2, 3]), Cpus::new([2, 3]));
    }
}
