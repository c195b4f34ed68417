//! Linux USB gadgets.
pub mod endpoints;
