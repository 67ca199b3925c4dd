//! The objects on a real Cassandra against the suite, and what is their own.

use std::sync::Arc;

use super::object::Encoded;
use super::*;
use crate::cql::testing::{Keyspace, settings};

use crate::sync::Row;
use crate::sync::contract::{self, key, map, row, write};

async fn open(keyspace: &Keyspace) -> Scylla {
    Scylla::open(&keyspace.0, &settings(), Clock::system()).await.unwrap()
}
