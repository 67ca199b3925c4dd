//! Regions: where a site's data may be. A node is of one region (or there are none), and takes and serves only the sites that are pinned to it, or to none.
//! Called by `site`, and by whoever reads settings. Pure.

use std::collections::BTreeMap;

use super::Error;

/// A region's name: 1 to 32 of `[a-z0-9-]`.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Region(String);

impl Region {
    /// Takes a region's name as written.
    ///
    /// # Errors
    /// [`Error::RegionName`].
    pub fn parse(name: &str) -> Result<Self, Error> {
        let legal = (1..=32).contains(&name.len()) && name.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-');
        if legal { Ok(Self(name.to_owned())) } else { Err(Error::RegionName(name.to_owned())) }
    }

    /// The name.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl std::fmt::Display for Region {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.0)
    }
}

/// The regions of an installation, as one of its nodes knows them.
#[derive(Clone, Debug, Default)]
pub struct Regions {
    own: Option<Region>,
    urls: BTreeMap<Region, String>,
}

/// A region that is not the node's own.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Elsewhere {
    /// Its name.
    pub region: Region,
    /// Where it is reached, if that is known.
    pub url: Option<String>,
}

impl Regions {
    /// From settings: the node's own region (empty = there are none), and `name=URL` of each that has one.
    ///
    /// # Errors
    /// [`Error::RegionName`], [`Error::RegionUrl`].
    pub fn new(own: &str, urls: &[String]) -> Result<Self, Error> {
        let url = |text: &String| {
            let (name, url) = text.split_once('=').ok_or_else(|| Error::RegionUrl(text.clone()))?;
            let legal = url::Url::parse(url).is_ok_and(|url| matches!(url.scheme(), "http" | "https") && url.has_host());
            if legal { Ok((Region::parse(name)?, url.to_owned())) } else { Err(Error::RegionUrl(text.clone())) }
        };
        let own = if own.is_empty() { None } else { Some(Region::parse(own)?) };
        Ok(Self { own, urls: urls.iter().map(url).collect::<Result<_, _>>()? })
    }

    /// The region that a pin names, where it is not this node's.
    pub(super) fn elsewhere(&self, pin: Option<&Region>) -> Option<Elsewhere> {
        let region = pin.filter(|pin| self.own.as_ref() != Some(*pin))?;
        Some(Elsewhere { region: region.clone(), url: self.urls.get(region).cloned() })
    }

    /// Whether a site may be pinned to a region: there are regions, and where they are listed this is one of them.
    pub(super) fn check_pin(&self, pin: Option<&Region>) -> Result<(), Error> {
        let Some(pin) = pin else { return Ok(()) };
        if self.own.is_none() {
            return Err(Error::NoRegions);
        }
        let known = self.urls.is_empty() || self.own.as_ref() == Some(pin) || self.urls.contains_key(pin);
        if known { Ok(()) } else { Err(Error::RegionUnknown(pin.clone())) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn region(name: &str) -> Region {
        Region::parse(name).unwrap()
    }

    #[test]
    fn a_node_serves_its_own_region_and_what_is_of_every_region() {
        let eu = Regions::new("eu", &["us=https://us.example".into()]).unwrap();
        assert_eq!(eu.elsewhere(None), None);
        assert_eq!(eu.elsewhere(Some(&region("eu"))), None);
        assert_eq!(eu.elsewhere(Some(&region("us"))), Some(Elsewhere { region: region("us"), url: Some("https://us.example".into()) }));
        assert_eq!(eu.elsewhere(Some(&region("asia"))), Some(Elsewhere { region: region("asia"), url: None }));
        let none = Regions::default();
        assert!(none.elsewhere(None).is_none());
        assert!(none.elsewhere(Some(&region("eu"))).is_some(), "a node that is of no region serves nobody's pinned data");
    }

    #[test]
    fn only_regions_that_there_are_can_be_pinned_to() {
        assert!(matches!(Regions::default().check_pin(Some(&region("eu"))), Err(Error::NoRegions)));
        Regions::default().check_pin(None).unwrap();
        let listed = Regions::new("eu", &["us=https://us.example".into()]).unwrap();
        listed.check_pin(Some(&region("eu"))).unwrap();
        listed.check_pin(Some(&region("us"))).unwrap();
        assert!(matches!(listed.check_pin(Some(&region("uss"))), Err(Error::RegionUnknown(named)) if named == region("uss")));
        Regions::new("eu", &[]).unwrap().check_pin(Some(&region("us"))).unwrap();
    }

    #[test]
    fn settings_that_name_no_region_are_refused() {
        for (own, url) in
            [("EU", "us=https://us.example"), ("eu", "us"), ("eu", "us=us.example"), ("eu", "US=https://us.example"), ("eu", "us=ftp://a")]
        {
            assert!(Regions::new(own, &[url.to_owned()]).is_err(), "{own} {url}");
        }
    }
}
