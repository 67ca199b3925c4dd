//! Tests of the JSON tree.
