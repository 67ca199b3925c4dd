//! A log in memory that fails when told to, for the tests of this room.

use std::collections::VecDeque;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, Ordering};

use async_trait::async_trait;

use crate::event::{Record, Timestamp};
use crate::eventlog::{Append, Bounds, Consumer, Error, EventLog, Offset, Stored, Topic};

/// Keeps what is appended; each scripted error refuses one call, and one that hangs answers none.
#[derive(Default)]
pub(super) struct FakeLog {
    appended: Mutex<Vec<(u16, Record)>>,
    script: Mutex<VecDeque<Error>>,
    calls: Mutex<usize>,
    hangs: AtomicBool,
}

impl FakeLog {
    /// Lets the next calls fail, in order.
    pub(super) fn fail_with(&self, errors: impl IntoIterator<Item = Error>) {
        self.script.lock().unwrap().extend(errors);
    }

    /// Answers no further call.
    pub(super) fn hang(&self) {
        self.hangs.store(true, Ordering::SeqCst);
    }

    /// What was appended so far, with its partition.
    pub(super) fn records(&self) -> Vec<(u16, Record)> {
        self.appended.lock().unwrap().clone()
    }

    /// How often anything was appended or refused.
    pub(super) fn calls(&self) -> usize {
        *self.calls.lock().unwrap()
    }
}

#[async_trait]
impl EventLog for FakeLog {
    async fn append(&self, topic: Topic, records: Vec<Append>) -> Result<Vec<Offset>, Error> {
        assert_eq!(topic, Topic::Events);
        *self.calls.lock().unwrap() += 1;
        if self.hangs.load(Ordering::SeqCst) {
            std::future::pending::<()>().await;
        }
        if let Some(error) = self.script.lock().unwrap().pop_front() {
            return Err(error);
        }
        let mut appended = self.appended.lock().unwrap();
        let from = appended.len() as Offset;
        let count = records.len() as Offset;
        appended.extend(records.into_iter().map(|append| (append.partition, Record::decode(&append.value).unwrap())));
        Ok((from..from + count).collect())
    }

    async fn subscribe(&self, _: Topic, _: &str) -> Result<Box<dyn Consumer>, Error> {
        Err(Error::Closed("a fake has no readers".into()))
    }

    async fn read(&self, _: Topic, _: u16, _: Offset, _: usize) -> Result<Vec<Stored>, Error> {
        Ok(Vec::new())
    }

    async fn bounds(&self, _: Topic) -> Result<Vec<Bounds>, Error> {
        Ok(Vec::new())
    }

    async fn committed(&self, _: Topic, _: &str) -> Result<Vec<Offset>, Error> {
        Ok(Vec::new())
    }

    async fn forget_group(&self, _: Topic, _: &str) -> Result<(), Error> {
        Ok(())
    }

    async fn retain(&self, _: Timestamp) -> Result<(), Error> {
        Ok(())
    }

    async fn close(&self) -> Result<(), Error> {
        Ok(())
    }
}
