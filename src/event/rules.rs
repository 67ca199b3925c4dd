//! A site's rules, as far as mapping, archive and reports follow them; handed to those rooms by the composition root.

use std::sync::Arc;

use super::ids::SiteId;

/// What a shop may set about how its events are read.
#[derive(Clone, PartialEq, Eq)]
pub struct SiteRules {
    /// Key of the keyed hash that stands for a person wherever the raw id must not.
    pub hash_key: [u8; 32],
    /// IANA name of the shop's time zone; days of reports and of `top.*` begin by it.
    pub time_zone: String,
    /// The checkout's steps in their order.
    pub checkout_steps: Vec<String>,
    /// Query parameters that belong to a page's path, sorted.
    pub page_parameters: Vec<String>,
    /// Seconds without a step after which an uncompleted checkout counts as abandoned.
    pub abandoned_after_seconds: i64,
    /// Whether events are sent to it: not to the further services of an account, which have API clients' objects alone, and no dashboards.
    pub takes_events: bool,
}

impl Default for SiteRules {
    fn default() -> Self {
        Self {
            hash_key: [0; 32],
            time_zone: "UTC".into(),
            checkout_steps: ["contact", "address", "shipping", "payment"].map(str::to_owned).to_vec(),
            page_parameters: Vec::new(),
            abandoned_after_seconds: 30 * 60,
            takes_events: true,
        }
    }
}

impl std::fmt::Debug for SiteRules {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("SiteRules").field("time_zone", &self.time_zone).field("checkout_steps", &self.checkout_steps).finish_non_exhaustive()
    }
}

impl SiteRules {
    /// The keyed hash of a person's id: first 16 bytes of HMAC-SHA-256.
    pub fn person_hash(&self, id: &str) -> [u8; 16] {
        let tag = ring::hmac::sign(&ring::hmac::Key::new(ring::hmac::HMAC_SHA256, &self.hash_key), id.as_bytes());
        let mut out = [0; 16];
        out.iter_mut().zip(tag.as_ref()).for_each(|(to, from)| *to = *from);
        out
    }
}

/// Looks up a site's rules; the default ones for a site it does not know. Cheap: called per event.
pub type RulesOf = Arc<dyn Fn(&SiteId) -> Arc<SiteRules> + Send + Sync>;
