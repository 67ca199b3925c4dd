//! How to reach a cluster and how its keyspace is to be. Read by the rest of this folder; knows nothing of what is kept there.

use std::collections::BTreeSet;
use std::time::Duration;

use super::Error;

/// Where a cluster is, as a URL `scylla://host:port,host/keyspace` names it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Address {
    /// `host:port` of the nodes asked first; the others are learnt from them.
    pub nodes: Vec<String>,
    /// The keyspace.
    pub keyspace: String,
}

/// All else.
#[derive(Clone, PartialEq, Eq)]
pub struct Settings {
    /// The user; empty = no login.
    pub username: String,
    /// Its password.
    pub password: String,
    /// Whether connections are encrypted.
    pub tls: bool,
    /// The certificate of the authority that signs the nodes', a PEM file: no other is trusted. Needed with `tls`, as the names in certificates are not checked.
    pub ca_file: String,
    /// The datacenter whose nodes are asked, and whose quorum answers; empty = the only one there is.
    pub datacenter: String,
    /// Replication of the keyspace where `migrate` makes it: a CQL map.
    pub replication: String,
    /// How long what is only ever inserted is kept, counted from when it was taken.
    pub retention: Duration,
    /// How long a call is tried again before it fails.
    pub patience: Duration,
    /// For how long a node that is killed may lose what it acknowledged.
    pub safety_window: Duration,
}

impl std::fmt::Debug for Settings {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Settings")
            .field("tls", &self.tls)
            .field("datacenter", &self.datacenter)
            .field("replication", &self.replication)
            .field("retention", &self.retention)
            .finish_non_exhaustive()
    }
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            username: String::new(),
            password: String::new(),
            tls: false,
            ca_file: String::new(),
            datacenter: String::new(),
            replication: "{'class': 'NetworkTopologyStrategy', 'replication_factor': 3}".into(),
            retention: Duration::from_secs(400 * 86_400),
            patience: Duration::from_secs(30),
            safety_window: Duration::from_secs(60),
        }
    }
}

/// The port of nodes that name none.
const PORT: &str = "9042";

impl Address {
    /// Reads a URL.
    ///
    /// # Errors
    /// [`Error::Settings`] says what is wrong with it.
    pub fn parse(url: &str) -> Result<Self, Error> {
        let wrong = |what: &str| Error::Settings(format!("a cluster is named as scylla://host:port,host:port/keyspace: {what}"));
        let rest = url.strip_prefix("scylla://").ok_or_else(|| wrong("it does not begin with scylla://"))?;
        let (nodes, keyspace) = rest.split_once('/').ok_or_else(|| wrong("it names no keyspace"))?;
        if rest.contains(['?', '@', '#']) {
            return Err(wrong("it names nodes and keyspace only; all else is set under [scylla]"));
        }
        check_keyspace(keyspace).map_err(|told| wrong(&told))?;
        Ok(Self {
            nodes: nodes.split(',').map(|node| node_of(node).ok_or_else(|| wrong(&format!("`{node}` is no host:port")))).collect::<Result<_, _>>()?,
            keyspace: keyspace.to_owned(),
        })
    }

    /// Another keyspace of the same cluster.
    ///
    /// # Errors
    /// [`Error::Settings`] where no keyspace can have that name.
    pub fn with_keyspace(self, keyspace: &str) -> Result<Self, Error> {
        check_keyspace(keyspace).map_err(Error::Settings)?;
        Ok(Self { keyspace: keyspace.to_owned(), ..self })
    }
}

/// A name that stands in statements as it is.
fn check_keyspace(name: &str) -> Result<(), String> {
    let letters = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '_';
    if name.starts_with(|c: char| c.is_ascii_lowercase()) && name.len() <= 48 && name.chars().all(letters) {
        return Ok(());
    }
    Err(format!("`{name}` is no keyspace (a letter, then at most 47 of a-z, 0-9, _)"))
}

/// A node with its port.
fn node_of(text: &str) -> Option<String> {
    if text.is_empty() || text.contains(char::is_whitespace) {
        return None;
    }
    let bare = text.ends_with(']') || !text.contains(':');
    let full = if bare { format!("{text}:{PORT}") } else { text.to_owned() };
    let (host, port) = full.rsplit_once(':')?;
    let is_host = !host.is_empty() && (!host.contains(':') || host.starts_with('[') && host.ends_with(']'));
    (is_host && port.parse::<u16>().is_ok_and(|port| port > 0)).then_some(full)
}

/// A map as CQL writes it, of plain words and numbers: it becomes part of a statement.
pub(super) fn check_replication(map: &str) -> Result<(), Error> {
    let harmless = |c: char| c.is_ascii_alphanumeric() || "'_-:, .".contains(c);
    let within = map.trim().strip_prefix('{').and_then(|rest| rest.strip_suffix('}'));
    if within.is_some_and(|within| within.contains("'class'") && within.chars().all(harmless)) {
        return Ok(());
    }
    Err(Error::Settings(format!("scylla.replication is a map as CQL has it, such as {}, and not {map}", Settings::default().replication)))
}

/// The setting against the datacenters that nodes name: where there are several and none is chosen, one's quorum would acknowledge what another's then does not
/// tell; and of one that no node is in, nobody would be asked.
pub(super) fn check_datacenter(chosen: &str, known: &BTreeSet<&str>) -> Result<(), Error> {
    // Some servers may name none.
    if known.is_empty() || known.contains(chosen) || (chosen.is_empty() && known.len() == 1) {
        return Ok(());
    }
    let known = known.iter().copied().collect::<Vec<_>>().join(", ");
    Err(Error::Settings(format!("scylla.datacenter is to be the nodes' own, one of {known}, and not `{chosen}`")))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn urls_name_nodes_and_a_keyspace() {
        let parsed = Address::parse("scylla://a:9043,b,[::1],[::2]:7/shop_1").unwrap();
        assert_eq!(parsed.nodes, ["a:9043", "b:9042", "[::1]:9042", "[::2]:7"]);
        assert_eq!(parsed.keyspace, "shop_1");
        for (url, told) in [
            ("cassandra://a/b", "does not begin"),
            ("scylla://a:1", "names no keyspace"),
            ("scylla://a:1/", "`` is no keyspace"),
            ("scylla://a:1/Shop", "`Shop` is no keyspace"),
            ("scylla://a:1/1st", "`1st` is no keyspace"),
            ("scylla://a:1/a;DROP", "is no keyspace"),
            ("scylla:///k", "`` is no host:port"),
            ("scylla://a:0/k", "`a:0` is no host:port"),
            ("scylla://a:1,/k", "`` is no host:port"),
            ("scylla://a:b/k", "`a:b` is no host:port"),
            ("scylla://u:p@a:1/k", "set under [scylla]"),
            ("scylla://a:1/k?x=1", "set under [scylla]"),
        ] {
            let error = Address::parse(url).unwrap_err().to_string();
            assert!(error.contains(told), "{url}: {error}");
        }
    }

    #[test]
    fn replication_is_a_map_and_nothing_more() {
        check_replication(&Settings::default().replication).unwrap();
        check_replication("{'class': 'NetworkTopologyStrategy', 'dc1': '3', 'eu-west': 2}").unwrap();
        for bad in ["", "3", "{'replication_factor': 3}", "{'class': 'SimpleStrategy'} AND durable_writes = false", "{'class': 'x'}; DROP {}"] {
            assert!(check_replication(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn of_several_datacenters_one_is_chosen() {
        for (chosen, known, right) in [
            ("", &[][..], true),
            ("dc1", &[], true),
            ("", &["dc1"], true),
            ("dc1", &["dc1"], true),
            ("dc2", &["dc1", "dc2"], true),
            ("", &["dc1", "dc2"], false),
            ("dc3", &["dc1", "dc2"], false),
            ("dc3", &["dc1"], false),
        ] {
            let checked = check_datacenter(chosen, &known.iter().copied().collect());
            assert_eq!(checked.is_ok(), right, "{chosen} of {known:?}");
        }
    }

    #[test]
    fn no_password_is_shown() {
        let settings = Settings { username: "somebody".into(), password: "hidden".into(), ..Settings::default() };
        assert!(!format!("{settings:?}").contains("hidden"));
    }
}
