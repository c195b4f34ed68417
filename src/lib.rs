//! ringdrive
