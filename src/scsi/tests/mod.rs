//! Tests of the target, by command.
