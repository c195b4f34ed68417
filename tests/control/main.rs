//! The control socket from outside: what its document promises, what bad clients meet, and the command line.

// Helpers of tests are tests to everybody but the lint.
#![allow(clippy::unwrap_used)]

mod bad_clients;
mod command_line;
mod compressed;
mod document;
mod fake;
mod methods;
mod overlay;
mod qcow2;
mod stats;
mod urls;
