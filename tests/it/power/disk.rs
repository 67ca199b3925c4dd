//! A disk made from a record, which can lose power. POSIX taken strictly: a file's content is sure once a sync of it has returned that was called
//! after the write; its name, only once its directory was synced. Of anything else any part may be there: of content any 512-byte sectors, each as it
//! was after any of the writes to it; any of the file's lengths; of a directory any of its changes, those of one name in their order.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::fs;
use std::path::Path;

use rand::Rng;
use rand::rngs::StdRng;
use rand::seq::IndexedRandom;

use super::record::Op;

const SECTOR: usize = 512;

/// What a loss of power takes of what was not synced.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Loss {
    Nothing,
    Everything,
    /// All but a number of changes of each file and directory, the first ones.
    Tails,
    Parts,
    /// One of these for each file and directory.
    Mixed,
}

pub(crate) const LOSSES: [Loss; 5] = [Loss::Nothing, Loss::Everything, Loss::Tails, Loss::Parts, Loss::Mixed];

impl Loss {
    fn of_one(self, random: &mut StdRng) -> Self {
        match self {
            Self::Mixed => *[Self::Nothing, Self::Everything, Self::Tails, Self::Parts].choose(random).unwrap(),
            one => one,
        }
    }
}

enum Change {
    Write { at: usize, bytes: Vec<u8> },
    Resize { len: usize },
}

enum Entry {
    Set { name: String, node: usize },
    Remove { name: String },
    Rename { from: String, to: String, node: usize },
}

/// With where each unsynced change ends in the record.
enum Node {
    File { synced: Vec<u8>, unsynced: Vec<(u64, Change)> },
    Dir { synced: BTreeMap<String, usize>, unsynced: Vec<(u64, Entry)>, now: BTreeMap<String, usize> },
}

/// The disk. Its first node is the directory that holds everything.
pub(crate) struct Disk {
    nodes: Vec<Node>,
    by_ino: HashMap<u64, usize>,
    /// Files that were removed, by path.
    removed: BTreeMap<String, usize>,
}

impl Disk {
    pub(crate) fn new() -> Self {
        Self { nodes: vec![Node::dir()], by_ino: HashMap::new(), removed: BTreeMap::new() }
    }

    /// Does what the record tells; `end` is where that ends in the record.
    pub(crate) fn apply(&mut self, op: Op, end: u64) {
        match op {
            Op::Root { ino } => drop(self.by_ino.insert(ino, 0)),
            Op::Create { ino, path } => self.add(ino, &path, Node::File { synced: vec![], unsynced: vec![] }, end),
            Op::MakeDir { ino, path } => self.add(ino, &path, Node::dir(), end),
            Op::Write { ino, at, bytes } => self.change(ino, Change::Write { at, bytes }, end),
            Op::Resize { ino, len } => self.change(ino, Change::Resize { len }, end),
            Op::Sync { ino, begun } => self.nodes[self.by_ino[&ino]].sync(begun),
            Op::Remove { path } => {
                let (dir, name) = self.place(&path);
                let node = self.nodes[dir].enter(end, Entry::Remove { name });
                self.removed.insert(path, node);
            }
            Op::Rename { from, to } => {
                let ((dir, from), (to_dir, to)) = (self.place(&from), self.place(&to));
                assert_eq!(dir, to_dir, "a rename from one directory to another is not modelled");
                let node = self.nodes[dir].entry(&from);
                self.nodes[dir].enter(end, Entry::Rename { from, to, node });
            }
        }
    }

    fn add(&mut self, ino: u64, path: &str, node: Node, end: u64) {
        let (dir, name) = self.place(path);
        self.nodes.push(node);
        let node = self.nodes.len() - 1;
        self.by_ino.insert(ino, node);
        self.nodes[dir].enter(end, Entry::Set { name, node });
    }

    fn change(&mut self, ino: u64, change: Change, end: u64) {
        match &mut self.nodes[self.by_ino[&ino]] {
            Node::File { unsynced, .. } => unsynced.push((end, change)),
            Node::Dir { .. } => panic!("a directory is written to"),
        }
    }

    /// The directory that a path names something in, and what.
    fn place(&self, path: &str) -> (usize, String) {
        let (dirs, name) = path.rsplit_once('/').unwrap_or(("", path));
        let dir = dirs.split('/').filter(|dir| !dir.is_empty()).fold(0, |above, dir| self.nodes[above].entry(dir));
        (dir, name.to_owned())
    }

    /// Writes to `to` what is left after the power went.
    pub(crate) fn after(&self, loss: Loss, random: &mut StdRng, to: &Path) {
        self.write(0, loss, random, to);
    }

    fn write(&self, node: usize, loss: Loss, random: &mut StdRng, to: &Path) {
        match &self.nodes[node] {
            Node::File { synced, unsynced } => {
                let changes: Vec<&Change> = unsynced.iter().map(|(_, change)| change).collect();
                fs::write(to, content(synced, &changes, loss.of_one(random), random)).unwrap();
            }
            Node::Dir { synced, unsynced, .. } => {
                fs::create_dir_all(to).unwrap();
                for (name, node) in names(synced, unsynced, loss.of_one(random), random) {
                    self.write(node, loss, random, &to.join(name));
                }
            }
        }
    }

    /// Writes the files of a directory that were removed, as they were, to `to`.
    pub(crate) fn removed(&self, dir: &str, to: &Path) {
        fs::create_dir_all(to).unwrap();
        for (path, node) in &self.removed {
            if let Some((above, name)) = path.rsplit_once('/')
                && above == dir
                && let Node::File { synced, .. } = &self.nodes[*node]
            {
                fs::write(to.join(name), synced).unwrap();
            }
        }
    }
}

impl Node {
    fn dir() -> Self {
        Self::Dir { synced: BTreeMap::new(), unsynced: vec![], now: BTreeMap::new() }
    }

    /// What is under a name of a directory.
    fn entry(&self, name: &str) -> usize {
        match self {
            Self::Dir { now, .. } => now[name],
            Self::File { .. } => panic!("{name} in a file"),
        }
    }

    /// Changes a directory; gives the node that it is about.
    fn enter(&mut self, end: u64, entry: Entry) -> usize {
        let Self::Dir { now, unsynced, .. } = self else { panic!("an entry of a file") };
        let node = entry.apply(now);
        unsynced.push((end, entry));
        node
    }

    /// What was done before the record was `begun` long is sure.
    fn sync(&mut self, begun: u64) {
        match self {
            Self::File { synced, unsynced } => {
                let covered = unsynced.iter().take_while(|(end, _)| *end <= begun).count();
                unsynced.drain(..covered).for_each(|(_, change)| change.apply(synced));
            }
            Self::Dir { synced, unsynced, .. } => {
                let covered = unsynced.iter().take_while(|(end, _)| *end <= begun).count();
                for (_, entry) in unsynced.drain(..covered) {
                    entry.apply(synced);
                }
            }
        }
    }
}

impl Entry {
    fn apply(&self, names: &mut BTreeMap<String, usize>) -> usize {
        match self {
            Self::Set { name, node } => {
                names.insert(name.clone(), *node);
                *node
            }
            // After a loss it may not be there.
            Self::Remove { name } => names.remove(name).unwrap_or_default(),
            Self::Rename { from, to, node } => {
                names.remove(from);
                names.insert(to.clone(), *node);
                *node
            }
        }
    }

    fn names(&self) -> Vec<&str> {
        match self {
            Self::Set { name, .. } | Self::Remove { name } => vec![name],
            Self::Rename { from, to, .. } => vec![from, to],
        }
    }
}

impl Change {
    fn apply(&self, content: &mut Vec<u8>) {
        match self {
            Self::Write { at, bytes } => put(content, *at, bytes),
            Self::Resize { len } => content.resize(*len, 0),
        }
    }

    fn len_after(&self, before: usize) -> usize {
        match self {
            Self::Write { at, bytes } => before.max(at + bytes.len()),
            Self::Resize { len } => *len,
        }
    }
}

fn put(content: &mut Vec<u8>, at: usize, bytes: &[u8]) {
    let end = at + bytes.len();
    if content.len() < end {
        content.resize(end, 0);
    }
    content[at..end].copy_from_slice(bytes);
}

/// The names in a directory after a loss.
fn names(synced: &BTreeMap<String, usize>, unsynced: &[(u64, Entry)], loss: Loss, random: &mut StdRng) -> BTreeMap<String, usize> {
    let mut names = synced.clone();
    let first = random.random_range(0..=unsynced.len());
    let mut lost = BTreeSet::new();
    for (number, (_, entry)) in unsynced.iter().enumerate() {
        let arrives = match loss {
            Loss::Nothing => true,
            Loss::Everything => false,
            Loss::Tails => number < first,
            Loss::Parts | Loss::Mixed => random.random_bool(0.5) && entry.names().iter().all(|name| !lost.contains(name)),
        };
        if arrives {
            entry.apply(&mut names);
        } else {
            lost.extend(entry.names());
        }
    }
    names
}

/// A file's content after a loss.
fn content(synced: &[u8], changes: &[&Change], loss: Loss, random: &mut StdRng) -> Vec<u8> {
    let all = changes.len();
    let first = random.random_range(0..=all);
    // How many changes show: in the length, and in sectors. All, none and some must each be likely enough to be tried.
    let odds = *[0.0, 0.1, 0.5, 0.9, 1.0].choose(random).unwrap();
    let parts = move |random: &mut StdRng| match random.random_bool(odds) {
        true => all,
        false if random.random_bool(0.5) => 0,
        false => random.random_range(0..=all),
    };
    let shown = |random: &mut StdRng| match loss {
        Loss::Nothing => all,
        Loss::Everything => 0,
        Loss::Tails => first,
        Loss::Parts | Loss::Mixed => parts(random),
    };
    let in_length = shown(random);
    let mut in_sector = HashMap::<usize, usize>::new();
    let (mut content, mut len) = (synced.to_vec(), synced.len());
    for (number, change) in changes.iter().enumerate() {
        if number < in_length {
            len = change.len_after(len);
        }
        match change {
            Change::Write { at, bytes } => {
                let mut from = 0;
                while from < bytes.len() {
                    let sector = (at + from) / SECTOR;
                    let to = ((sector + 1) * SECTOR - at).min(bytes.len());
                    if number < *in_sector.entry(sector).or_insert_with(|| shown(random)) {
                        put(&mut content, at + from, &bytes[from..to]);
                    }
                    from = to;
                }
            }
            // What was cut off comes back only where the cut is undone.
            Change::Resize { len } if number < in_length => content.truncate(*len),
            Change::Resize { .. } => {}
        }
    }
    content.resize(len, 0);
    content
}
