//! The io_uring reactor and the buffers it owns.
#![allow(unsafe_code)]
pub mod pool;
