//! The face over an embedded log and store with their keeper, asked as clients ask.
