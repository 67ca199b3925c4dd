//! A part of a keyspace with tables and a version of its own, beside the archive's: made and changed by `contrail migrate`, checked by whoever connects to
//! it. What is in the tables is its owner's business.

use super::migrate::{migrate_by, statements_of};
use super::{Address, Cluster, Error, Settings};

/// The tables of one owner.
#[derive(Clone, Copy, Debug)]
pub struct Part {
    /// Names it in the keyspace's table of versions, and to people.
    pub name: &'static str,
    /// The version of `schema`. A change of the schema is a later version; the statements of every version are run again, so each may be repeated.
    pub version: i32,
    /// Statements, each ended by a semicolon; lines that begin with `--` are comments. Those that begin with `INSERT` are run as light-weight transactions
    /// (`IF NOT EXISTS`).
    pub schema: &'static str,
}

/// Makes the keyspace where it is missing, and the part's tables in it, or changes them to what this build needs. Does nothing where they are so. Safe with
/// several at once. Gives what was done, in words.
///
/// # Errors
/// [`Error::Schema`] for tables of a later version; [`Error::Settings`], [`Error::Unavailable`], [`Error::Refused`].
pub async fn migrate_part(address: &Address, settings: &Settings, part: &Part) -> Result<String, Error> {
    let keyspace = &address.keyspace;
    let done_already = async |cluster: &Cluster| cluster.has_part(keyspace, part).await;
    migrate_by(address, settings, done_already, async |cluster, owner| cluster.bring_up_part(keyspace, part, owner).await).await
}

impl Cluster {
    /// Connects, and checks that the keyspace has the part's tables as this build needs them.
    ///
    /// # Errors
    /// [`Error::Schema`] where they are to be made or changed by `contrail migrate` first; [`Error::Settings`], [`Error::Unavailable`].
    pub async fn connect_to(address: &Address, settings: &Settings, part: &Part) -> Result<Self, Error> {
        let cluster = Self::reach(address, settings).await?;
        let keyspace = &address.keyspace;
        let found = if cluster.has_versions(keyspace).await? { cluster.part_version(part).await? } else { None };
        match found {
            None => Err(Error::Schema(format!("the keyspace {keyspace} has no {} yet: run `contrail migrate` first", part.name))),
            Some(version) if version < part.version => Err(Error::Schema(format!(
                "the {} of keyspace {keyspace} are of version {version}, this build needs {}: run `contrail migrate` first",
                part.name, part.version
            ))),
            Some(version) => part.not_later(keyspace, version).map(|()| cluster),
        }
    }

    /// Says that the part is as this build needs it, where it is.
    async fn has_part(&self, keyspace: &str, part: &Part) -> Result<Option<String>, Error> {
        let Some(version) = self.part_version(part).await? else { return Ok(None) };
        part.not_later(keyspace, version)?;
        Ok((version == part.version).then(|| format!("the {} of keyspace {keyspace} are of version {version} already", part.name)))
    }

    async fn bring_up_part(&self, keyspace: &str, part: &Part, owner: i32) -> Result<String, Error> {
        for statement in statements_of(part.schema) {
            if statement.starts_with("INSERT") {
                self.transact(&statement).await?;
            } else {
                self.change_as(owner, &statement).await?;
            }
        }
        let put = format!("INSERT INTO schema_version (part, version) VALUES ('{}', {})", part.name, part.version);
        self.change_as(owner, &put).await?;
        Ok(format!("the {} of keyspace {keyspace} are of version {} now", part.name, part.version))
    }

    async fn part_version(&self, part: &Part) -> Result<Option<i32>, Error> {
        let found: Vec<(i32,)> = self.rows("SELECT version FROM schema_version WHERE part = ?", (part.name,)).await?;
        Ok(found.first().map(|(version,)| *version))
    }
}

impl Part {
    fn not_later(&self, keyspace: &str, version: i32) -> Result<(), Error> {
        if version <= self.version {
            return Ok(());
        }
        let (name, known) = (self.name, self.version);
        Err(Error::Schema(format!("the {name} of keyspace {keyspace} are of version {version}, this build knows {known}: use a later build")))
    }
}
