//! What the recorder (`recorder.c`) wrote: the changes of a directory's files in their order. It may be read while it is written.

use std::fs::File;
use std::io::{BufReader, ErrorKind, Read};
use std::path::Path;

/// A change, or a sync.
#[derive(Debug)]
pub(crate) enum Op {
    /// A recorded process began; the inode of the directory that holds everything.
    Root {
        ino: u64,
    },
    Create {
        ino: u64,
        path: String,
    },
    Write {
        ino: u64,
        at: usize,
        bytes: Vec<u8>,
    },
    Resize {
        ino: u64,
        len: usize,
    },
    /// A sync has returned that was called when the record was `begun` long.
    Sync {
        ino: u64,
        begun: u64,
    },
    MakeDir {
        ino: u64,
        path: String,
    },
    Rename {
        from: String,
        to: String,
    },
    Remove {
        path: String,
    },
}

/// A record, read from its beginning.
pub(crate) struct Record {
    file: BufReader<File>,
    /// How much of it is read.
    pub(crate) read: u64,
}

impl Record {
    pub(crate) fn open(path: &Path) -> Self {
        Self { file: BufReader::with_capacity(1 << 20, File::open(path).unwrap()), read: 0 }
    }

    /// So many bytes; None where they are not written yet.
    fn bytes(&mut self, len: u64) -> Option<Vec<u8>> {
        let mut bytes = vec![0; len as usize];
        match self.file.read_exact(&mut bytes) {
            Err(error) if error.kind() == ErrorKind::UnexpectedEof => return None,
            read => read.unwrap(),
        }
        Some(bytes)
    }
}

impl Iterator for Record {
    type Item = Op;

    /// The next change that is wholly written; after None, nothing more.
    fn next(&mut self) -> Option<Op> {
        let head = self.bytes(5 * 8)?;
        let [op, ino, number, path_len, data_len] = std::array::from_fn(|field| u64::from_ne_bytes(*head.as_chunks().0.get(field).unwrap()));
        let (path, bytes) = (String::from_utf8(self.bytes(path_len)?).unwrap(), self.bytes(data_len)?);
        self.read += 5 * 8 + path_len + data_len;
        Some(match op {
            1 => Op::Root { ino },
            2 => Op::Create { ino, path },
            3 => Op::Write { ino, at: number as usize, bytes },
            4 => Op::Resize { ino, len: number as usize },
            5 => Op::Sync { ino, begun: number },
            6 => Op::MakeDir { ino, path },
            7 => Op::Rename { from: path, to: String::from_utf8(bytes).unwrap() },
            8 => Op::Remove { path },
            other => panic!("the record has a change of kind {other}"),
        })
    }
}
