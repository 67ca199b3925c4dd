//! A disk in memory that loses power: whatever was not synced is then lost in any subset of its 512-byte sectors, of its lengths and of its directory
//! entries. Stands in for [`RealDisk`](super::super::disk::RealDisk) in the power-loss tests.

use std::collections::BTreeMap;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};

use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};

use super::super::disk::{Disk, DiskFile, Mode};

const SECTOR: usize = 512;

#[derive(Clone, Default)]
struct Content {
    now: Vec<u8>,
    synced: Vec<u8>,
}

/// A change of a directory that is not synced yet.
enum Entry {
    Set(PathBuf, usize),
    Removed(PathBuf),
    Renamed(PathBuf, PathBuf, usize),
}

struct World {
    files: Vec<Content>,
    names: BTreeMap<PathBuf, usize>,
    synced_names: BTreeMap<PathBuf, usize>,
    unsynced: Vec<Entry>,
    /// Changes of the disk left until the power goes.
    left: Option<u32>,
    /// Handles of an earlier life are dead.
    life: u32,
    random: StdRng,
}

/// The disk; clones are the same one.
#[derive(Clone)]
pub(super) struct SimDisk(Arc<Mutex<World>>);

fn gone() -> io::Error {
    io::Error::other("the power is gone")
}

impl World {
    /// Counts one change; fails once the power is gone.
    fn change(&mut self) -> io::Result<()> {
        match &mut self.left {
            None => Ok(()),
            Some(0) => Err(gone()),
            Some(left) => {
                *left -= 1;
                Ok(())
            }
        }
    }

    fn lose_content(&mut self) {
        let random = &mut self.random;
        for file in &mut self.files {
            let (old, new) = (file.synced.len(), file.now.len());
            let len = if random.random_bool(0.5) { new } else { random.random_range(old.min(new)..=old.max(new)) };
            let mut kept = file.synced.clone();
            kept.resize(len, 0);
            // All, none or some: each must be likely enough to be tried.
            let odds = [0.0, 0.1, 0.5, 0.9, 1.0][random.random_range(0..5usize)];
            for (sector, bytes) in kept.chunks_mut(SECTOR).enumerate() {
                if random.random_bool(odds) {
                    let from = sector * SECTOR;
                    let written = &file.now[from.min(new)..(from + bytes.len()).min(new)];
                    bytes[..written.len()].copy_from_slice(written);
                }
            }
            *file = Content { now: kept.clone(), synced: kept };
        }
    }

    fn lose_names(&mut self) {
        let mut names = std::mem::take(&mut self.synced_names);
        for entry in std::mem::take(&mut self.unsynced) {
            if self.random.random_bool(0.5) {
                apply(&mut names, &entry);
            }
        }
        self.names.clone_from(&names);
        self.synced_names = names;
    }
}

fn apply(names: &mut BTreeMap<PathBuf, usize>, entry: &Entry) {
    match entry {
        Entry::Set(path, file) => drop(names.insert(path.clone(), *file)),
        Entry::Removed(path) => drop(names.remove(path)),
        Entry::Renamed(from, to, file) => {
            names.remove(from);
            names.insert(to.clone(), *file);
        }
    }
}

impl SimDisk {
    pub(super) fn new(seed: u64) -> Self {
        let random = StdRng::seed_from_u64(seed);
        Self(Arc::new(Mutex::new(World {
            files: vec![],
            names: BTreeMap::new(),
            synced_names: BTreeMap::new(),
            unsynced: vec![],
            left: None,
            life: 0,
            random,
        })))
    }

    /// The power goes after so many further changes of the disk.
    pub(super) fn power_goes_after(&self, changes: u32) {
        self.0.lock().unwrap().left = Some(changes);
    }

    /// The power goes now, if it has not, and comes back: what was not synced is decided.
    pub(super) fn power_cycle(&self) {
        let mut world = self.0.lock().unwrap();
        world.life += 1;
        world.left = None;
        world.lose_content();
        world.lose_names();
    }
}

impl SimDisk {
    /// The process dies, the machine goes on: nothing is lost, and nothing more is synced than was.
    pub(super) fn kill(&self) {
        let mut world = self.0.lock().unwrap();
        world.life += 1;
        world.left = None;
    }

    /// Another disk with the same files, all of it synced.
    pub(super) fn copy(&self) -> Self {
        let world = self.0.lock().unwrap();
        let copy = Self::new(0);
        {
            let mut other = copy.0.lock().unwrap();
            other.files = world.files.iter().map(|file| Content { now: file.now.clone(), synced: file.now.clone() }).collect();
            other.names.clone_from(&world.names);
            other.synced_names.clone_from(&world.names);
        }
        copy
    }

    /// Looks at or changes a file's bytes behind its users' back.
    pub(super) fn edit<T>(&self, path: &Path, edit: impl FnOnce(&mut Vec<u8>) -> T) -> T {
        let mut world = self.0.lock().unwrap();
        let file = world.names[path];
        let done = edit(&mut world.files[file].now);
        world.files[file].synced = world.files[file].now.clone();
        done
    }

    /// The lengths of the files in a directory.
    pub(super) fn lengths(&self, dir: &Path) -> Vec<usize> {
        let world = self.0.lock().unwrap();
        world.names.iter().filter(|(path, _)| path.parent() == Some(dir)).map(|(_, file)| world.files[*file].now.len()).collect()
    }

    /// Puts a file there.
    pub(super) fn put(&self, path: &Path, bytes: Vec<u8>) {
        drop(self.open(path, Mode::Create).unwrap());
        self.edit(path, |now| *now = bytes);
    }

    /// Holds every use of the disk up until `work` is done.
    pub(super) fn while_stuck<T>(&self, work: impl FnOnce() -> T) -> T {
        let _held = self.0.lock().unwrap();
        work()
    }
}

impl Disk for SimDisk {
    fn create_dir(&self, _dir: &Path) -> io::Result<()> {
        self.0.lock().unwrap().change()
    }

    fn list(&self, dir: &Path) -> io::Result<Vec<String>> {
        let world = self.0.lock().unwrap();
        let inside = world.names.keys().filter(|path| path.parent() == Some(dir));
        Ok(inside.map(|path| path.file_name().unwrap().to_str().unwrap().to_owned()).collect())
    }

    fn open(&self, path: &Path, mode: Mode) -> io::Result<Box<dyn DiskFile>> {
        let mut world = self.0.lock().unwrap();
        let file = match (world.names.get(path).copied(), mode) {
            (Some(file), Mode::Read | Mode::Write) => file,
            (None, Mode::Read | Mode::Write) => return Err(io::ErrorKind::NotFound.into()),
            (Some(file), Mode::Create) => {
                world.change()?;
                world.files[file].now.clear();
                file
            }
            (None, Mode::Create) => {
                world.change()?;
                world.files.push(Content::default());
                let file = world.files.len() - 1;
                world.names.insert(path.to_owned(), file);
                world.unsynced.push(Entry::Set(path.to_owned(), file));
                file
            }
        };
        Ok(Box::new(SimFile { disk: self.clone(), file, life: world.life }))
    }

    fn remove(&self, path: &Path) -> io::Result<()> {
        let mut world = self.0.lock().unwrap();
        world.change()?;
        world.names.remove(path).ok_or(io::ErrorKind::NotFound)?;
        world.unsynced.push(Entry::Removed(path.to_owned()));
        Ok(())
    }

    fn rename(&self, from: &Path, to: &Path) -> io::Result<()> {
        let mut world = self.0.lock().unwrap();
        world.change()?;
        let file = world.names.remove(from).ok_or(io::ErrorKind::NotFound)?;
        world.names.insert(to.to_owned(), file);
        world.unsynced.push(Entry::Renamed(from.to_owned(), to.to_owned(), file));
        Ok(())
    }

    fn sync_dir(&self, dir: &Path) -> io::Result<()> {
        let mut world = self.0.lock().unwrap();
        world.change()?;
        let (synced, rest) = std::mem::take(&mut world.unsynced).into_iter().partition(|entry| {
            let (Entry::Set(path, _) | Entry::Removed(path) | Entry::Renamed(_, path, _)) = entry;
            path.parent() == Some(dir)
        });
        let synced: Vec<Entry> = synced;
        for entry in &synced {
            apply(&mut world.synced_names, entry);
        }
        world.unsynced = rest;
        Ok(())
    }
}

struct SimFile {
    disk: SimDisk,
    file: usize,
    life: u32,
}

impl SimFile {
    fn with<T>(&self, changes: bool, work: impl FnOnce(&mut Content) -> T) -> io::Result<T> {
        let mut world = self.disk.0.lock().unwrap();
        if world.life != self.life {
            return Err(gone());
        }
        let powered = if changes { world.change() } else { Ok(()) };
        let done = work(&mut world.files[self.file]);
        // The change under way when the power goes was begun: it is among what may be lost.
        powered.map(|()| done)
    }
}

impl DiskFile for SimFile {
    fn len(&self) -> io::Result<u64> {
        self.with(false, |file| file.now.len() as u64)
    }

    fn read_at(&self, buf: &mut [u8], at: u64) -> io::Result<usize> {
        self.with(false, |file| {
            let rest = file.now.get(at as usize..).unwrap_or_default();
            let read = rest.len().min(buf.len());
            buf[..read].copy_from_slice(&rest[..read]);
            read
        })
    }

    fn write_at(&self, bytes: &[u8], at: u64) -> io::Result<()> {
        self.with(true, |file| {
            let (at, end) = (at as usize, at as usize + bytes.len());
            file.now.resize(file.now.len().max(end), 0);
            file.now[at..end].copy_from_slice(bytes);
        })
    }

    fn set_len(&self, len: u64) -> io::Result<()> {
        self.with(true, |file| file.now.resize(len as usize, 0))
    }

    fn sync_data(&self) -> io::Result<()> {
        let mut world = self.disk.0.lock().unwrap();
        if world.life != self.life {
            return Err(gone());
        }
        world.change()?;
        let file = &mut world.files[self.file];
        file.synced.clone_from(&file.now);
        Ok(())
    }
}

#[test]
fn only_what_is_synced_outlives_a_power_cycle_for_sure() {
    let (mut lost, mut kept) = (0, 0);
    for seed in 0..50 {
        let disk = SimDisk::new(seed);
        let (dir, path) = (Path::new("d"), Path::new("d/f"));
        let file = disk.open(path, Mode::Create).unwrap();
        file.write_at(&[1; 2000], 0).unwrap();
        file.sync_data().unwrap();
        disk.sync_dir(dir).unwrap();
        file.write_at(&[2; 3000], 2000).unwrap();
        drop(disk.open(Path::new("d/g"), Mode::Create).unwrap());
        disk.power_cycle();
        assert!(file.read_at(&mut [0], 0).is_err(), "an old handle is dead");
        let file = disk.open(path, Mode::Read).unwrap();
        let mut bytes = vec![0; 5000];
        let len = file.read_at(&mut bytes, 0).unwrap();
        assert!(len >= 2000 && bytes[..2000].iter().all(|b| *b == 1), "what was synced is there");
        let whole = bytes[2000..].iter().all(|b| *b == 2);
        lost += u32::from(!whole);
        kept += u32::from(disk.list(dir).unwrap().len() == 2);
    }
    assert!(lost > 10 && lost < 50 && kept > 5 && kept < 45, "both happen: {lost} {kept}");
}
