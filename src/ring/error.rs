//! What can be wrong with a ring, and the cure.

use std::{fmt, io};

/// Why the ring does not work. Faults of single operations are not here: they are the `result` of their completion.
#[derive(Debug, thiserror::Error)]
pub enum RingError {
    /// io_uring_setup(2) failed.
    #[error("cannot set up io_uring: {0}")]
    Setup(SetupFailure, #[source] io::Error),
    /// The kernel has io_uring, but not all of it that we need.
    #[error("this kernel's io_uring does not know {0}; try Linux 5.19 or newer (6.1 is best)")]
    Missing(&'static str, #[source] Option<io::Error>),
    /// As many operations are in flight as there may be.
    #[error("the ring is full; try again after the next completion, or make the ring larger")]
    Full,
    /// io_uring_enter(2) failed in a way that waiting does not heal.
    #[error("io_uring_enter failed; this is a bug in ringdrive or in the kernel: please report it")]
    Enter(#[source] io::Error),
}

/// Why io_uring_setup(2) failed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SetupFailure {
    /// The kernel was built without it, or a filter pretends so.
    Absent,
    /// Switched off by sysctl, or forbidden by a filter.
    Disabled,
    /// The kernel is older than the flags we need.
    TooOld,
    /// No memory, or the limit on locked memory, against which recent kernels count the queues of a process without
    /// CAP_IPC_LOCK.
    NoMemory,
    /// No free file descriptor.
    NoDescriptors,
    /// Something else; the source tells.
    Other,
}

impl SetupFailure {
    /// By the errno of io_uring_setup(2).
    pub(super) fn from_error(error: &io::Error) -> Self {
        match error.raw_os_error() {
            Some(libc::ENOSYS) => Self::Absent,
            Some(libc::EPERM | libc::EACCES) => Self::Disabled,
            Some(libc::EINVAL) => Self::TooOld,
            Some(libc::ENOMEM) => Self::NoMemory,
            Some(libc::EMFILE | libc::ENFILE) => Self::NoDescriptors,
            _ => Self::Other,
        }
    }
}

impl fmt::Display for SetupFailure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Absent => {
                "the kernel has none; try a kernel with CONFIG_IO_URING=y, 5.19 or newer, and in a container a seccomp \
                 profile that allows io_uring_setup, io_uring_enter and io_uring_register"
            }
            Self::Disabled => {
                "it is disabled; try `sysctl kernel.io_uring_disabled=0`, and in a container a seccomp profile that allows \
                 io_uring_setup, io_uring_enter and io_uring_register"
            }
            Self::TooOld => "the kernel is too old; try Linux 5.19 or newer (6.1 is best)",
            Self::NoMemory => "no memory; try a higher limit of locked memory (`ulimit -l`, LimitMEMLOCK=) or fewer drives",
            Self::NoDescriptors => "no free file descriptor; try a higher limit (`ulimit -n`, LimitNOFILE=)",
            Self::Other => "the kernel refused",
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_refusal_names_its_cure() {
        for (errno, cure) in [
            (libc::EPERM, "sysctl kernel.io_uring_disabled=0"),
            (libc::ENOSYS, "CONFIG_IO_URING=y"),
            (libc::EINVAL, "Linux 5.19 or newer"),
            (libc::ENOMEM, "LimitMEMLOCK="),
            (libc::EMFILE, "LimitNOFILE="),
        ] {
            let source = io::Error::from_raw_os_error(errno);
            let error = RingError::Setup(SetupFailure::from_error(&source), source);
            assert!(error.to_string().contains(cure), "errno {errno}: {error}");
            assert!(error.to_string().contains("; try "), "errno {errno}: {error}");
        }
        let old = RingError::Missing("IORING_OP_WRITE_FIXED", None).to_string();
        assert!(old.contains("WRITE_FIXED; try Linux 5.19 or newer"), "{old}");
    }

    #[test]
    fn an_unknown_refusal_keeps_its_source_and_does_not_repeat_it() {
        let source = io::Error::from_raw_os_error(libc::EXDEV);
        let text = source.to_string();
        let error = RingError::Setup(SetupFailure::from_error(&source), source);
        assert!(!error.to_string().contains(&text));
        assert_eq!(std::error::Error::source(&error).map(ToString::to_string), Some(text));
    }
}
