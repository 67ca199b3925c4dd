//! The state of one row. Filled in next.
