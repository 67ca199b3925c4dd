//! Tests of identifying.
