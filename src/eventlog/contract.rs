//! The suite that every EventLog must pass.
