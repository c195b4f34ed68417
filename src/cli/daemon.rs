//! What `ringdrived` understands. Parsed by the daemon; here because `ringdrive man` writes its man page.

use std::path::PathBuf;

use clap::Parser;

use crate::config;

/// Serves virtual USB drives on this machine's USB device port.
///
/// Stops on SIGTERM, SIGINT (Ctrl-C) and `ringdrive shutdown`: leaves the bus, makes durable what the host wrote, and removes the
/// gadget. What a killed run left behind is removed at the next start. Where the service manager keeps descriptors, as systemd does with
/// FileDescriptorStoreMax=, SIGTERM leaves the gadget on the bus instead, and the next start takes over, also from a killed run.
#[derive(Debug, Parser)]
#[command(
    name = "ringdrived",
    version,
    after_help = "Exit status: 0 stopped as asked; 1 could not start, or what the host wrote could not be stored; 2 wrong usage.\n\
                  Environment: RUST_LOG chooses what is logged, as error, warn, info, debug or ringdrive::gadget=debug.\n\
                  NOTIFY_SOCKET, FDSTORE and LISTEN_FDS are the service manager's, of sd_notify(3).\n\
                  See also: ringdrive(1), and docs/configuration.md for every key."
)]
pub struct DaemonArgs {
    /// The configuration file.
    #[arg(long, short, value_name = "FILE", default_value = config::CONFIG_DEFAULT)]
    pub config: PathBuf,

    /// Only check the configuration.
    #[arg(long)]
    pub check: bool,

    /// What the daemon starts itself with to mount one area, which it gives on standard input.
    #[arg(long, hide = true)]
    pub mount_area: bool,
}
