//! An estimate of how many people there were. Filled in next.
