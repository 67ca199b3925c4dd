//! The data directory: who runs on it, and the token that opens that process to commands on the same machine. Called by `app` and
//! the command line.

use std::fs::{File, OpenOptions, TryLockError};
use std::io::{ErrorKind, Read, Seek, SeekFrom, Write};
use std::net::SocketAddr;
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

/// Why a data directory cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// Another process runs on it.
    #[error("{dir} is in use by process {pid} at {address}")]
    InUse {
        /// The directory.
        dir: PathBuf,
        /// Its process, as it says.
        pid: String,
        /// Its address, as it says.
        address: String,
    },
    /// The file system refused.
    #[error("{path}: {error}")]
    Io {
        /// What was touched.
        path: PathBuf,
        /// Why.
        error: std::io::Error,
    },
}

/// Exclusive use of a data directory, until dropped (or until the process dies, however it dies).
#[derive(Debug)]
pub struct DataDir {
    path: PathBuf,
    lock: File,
}

/// A process that runs on a data directory.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Running {
    /// Its process id.
    pub pid: String,
    /// Where it listens.
    pub address: String,
    /// The token that opens it.
    pub admin_token: String,
}

const LOCK: &str = "contrail.lock";
const TOKEN: &str = "admin.token";
const INSTANCE: &str = "instance";

impl DataDir {
    /// Takes a directory, creating it durably where it is missing.
    ///
    /// # Errors
    /// [`Error::InUse`] while another process holds it.
    pub fn take(path: &Path) -> Result<Self, Error> {
        let io = |path: &Path| {
            let path = path.to_owned();
            move |error| Error::Io { path, error }
        };
        make(path).map_err(io(path))?;
        let lock_path = path.join(LOCK);
        let mut lock = OpenOptions::new().read(true).write(true).create(true).truncate(false).open(&lock_path).map_err(io(&lock_path))?;
        match lock.try_lock() {
            Ok(()) => Ok(Self { path: path.to_owned(), lock }),
            Err(TryLockError::WouldBlock) => {
                let (pid, address) = holder(&mut lock);
                Err(Error::InUse { dir: path.to_owned(), pid, address })
            }
            Err(TryLockError::Error(error)) => Err(io(&lock_path)(error)),
        }
    }

    /// The directory.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The directory's own lasting name, made when it is first asked for. A copy of the directory has the same: only one of both may run.
    ///
    /// # Errors
    /// When it can be neither read nor written.
    pub fn instance(&self) -> Result<String, Error> {
        let path = self.path.join(INSTANCE);
        let io = |error| Error::Io { path: path.clone(), error };
        match std::fs::read_to_string(&path) {
            Ok(name) if !name.trim().is_empty() => return Ok(name.trim().to_owned()),
            Err(error) if error.kind() != ErrorKind::NotFound => return Err(io(error)),
            _ => {}
        }
        // Lost with a power cut, another one does as well.
        let name = uuid::Uuid::new_v4().to_string();
        std::fs::write(&path, &name).map_err(io)?;
        Ok(name)
    }

    /// Says who runs here and where it listens, and writes a fresh admin token (mode 0600), which it returns.
    ///
    /// # Errors
    /// When the files cannot be written or no randomness is to be had.
    pub fn announce(&mut self, address: SocketAddr) -> Result<String, Error> {
        let io = |error| Error::Io { path: self.path.clone(), error };
        let mut secret = [0u8; 32];
        ring::rand::SecureRandom::fill(&ring::rand::SystemRandom::new(), &mut secret).map_err(|_| io(std::io::Error::other("no randomness")))?;
        let token = format!("ca_{}", base64::Engine::encode(&base64::engine::general_purpose::URL_SAFE_NO_PAD, secret));
        let path = self.path.join(TOKEN);
        // Removed first, so that the mode below is the file's and not an older one's.
        if let Err(error) = std::fs::remove_file(&path)
            && error.kind() != ErrorKind::NotFound
        {
            return Err(io(error));
        }
        let mut file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(&path).map_err(io)?;
        file.write_all(token.as_bytes()).map_err(io)?;
        let line = format!("{} {address}\n", std::process::id());
        self.lock.set_len(0).and_then(|()| self.lock.seek(SeekFrom::Start(0))).and_then(|_| self.lock.write_all(line.as_bytes())).map_err(io)?;
        Ok(token)
    }
}

/// The process that runs on a directory now, if any.
///
/// # Errors
/// When a process holds the directory but its token cannot be read by this user.
pub fn running(path: &Path) -> Result<Option<Running>, Error> {
    let lock_path = path.join(LOCK);
    let Ok(mut lock) = OpenOptions::new().read(true).write(true).open(&lock_path) else { return Ok(None) };
    if lock.try_lock_shared().is_ok() {
        return Ok(None);
    }
    let (pid, address) = holder(&mut lock);
    let token = path.join(TOKEN);
    let admin_token = std::fs::read_to_string(&token).map_err(|error| Error::Io { path: token, error })?;
    Ok(Some(Running { pid, address, admin_token }))
}

/// Makes a directory where it is missing, and what is missing above it; with its name synced in the directory above, for all that is ever synced in
/// it is lost with its name. What it holds are customers' data: a new one is its owner's alone.
fn make(path: &Path) -> std::io::Result<()> {
    let above = path.parent().filter(|above| !above.as_os_str().is_empty()).unwrap_or(Path::new("."));
    let create = || std::fs::DirBuilder::new().mode(0o700).create(path);
    let made = match create() {
        Err(error) if error.kind() == ErrorKind::NotFound => {
            make(above)?;
            create()
        }
        other => other,
    };
    let synced = || File::open(above)?.sync_all();
    match made {
        Ok(()) => synced(),
        // Who made it may have died before its sync. One that an operator made may stand where this user reads nothing; it was made long before.
        Err(_) if path.is_dir() => synced().or_else(|error| if error.kind() == ErrorKind::PermissionDenied { Ok(()) } else { Err(error) }),
        Err(error) => Err(error),
    }
}

fn holder(lock: &mut File) -> (String, String) {
    let mut text = String::new();
    if lock.read_to_string(&mut text).is_err() {
        text.clear();
    }
    let (pid, address) = text.trim().split_once(' ').unwrap_or(("unknown", "an unknown address"));
    (pid.to_owned(), address.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_process_at_a_time_and_commands_find_it() {
        let above = tempfile::tempdir().unwrap();
        let dir = above.path().join("data");
        assert_eq!(running(&dir).unwrap(), None);
        let mut held = DataDir::take(&dir).unwrap();
        let token = held.announce("127.0.0.1:7".parse().unwrap()).unwrap();
        let found = running(&dir).unwrap().unwrap();
        assert_eq!(found, Running { pid: std::process::id().to_string(), address: "127.0.0.1:7".into(), admin_token: token });
        let mode = std::os::unix::fs::PermissionsExt::mode(&std::fs::metadata(dir.join(TOKEN)).unwrap().permissions());
        assert_eq!(mode & 0o777, 0o600);
        let mode = std::os::unix::fs::PermissionsExt::mode(&std::fs::metadata(&dir).unwrap().permissions());
        assert_eq!(mode & 0o777, 0o700);
        assert!(matches!(DataDir::take(&dir), Err(Error::InUse { .. })));
        drop(held);
        assert_eq!(running(&dir).unwrap(), None, "a stale lock file is nobody");
        assert!(DataDir::take(&dir).is_ok());
    }
}
