//! The commands, one file each. Called by `main`; they drive the rooms and print, and hold no logic of their own.

pub mod import;
