//! Whether a user agent is a crawler's: the `isbot` crate's list, with a verdict kept per agent, for one look at its expression costs more than
//! all the rest of an event. Called by `ingest::canonical`. Bounded: 10,000 agents, none over 1 KiB.

use moka::sync::Cache;

/// Longest agent looked at, in bytes; of a longer one its beginning decides.
const LONGEST: usize = 1_024;

/// Judges agents.
#[derive(Debug)]
pub(crate) struct Crawlers {
    known: isbot::Bots,
    verdicts: Cache<Box<str>, bool>,
}

impl Default for Crawlers {
    fn default() -> Self {
        Self { known: isbot::Bots::default(), verdicts: Cache::new(10_000) }
    }
}

impl Crawlers {
    /// Whether this is a crawler. No agent at all (or an empty one) is human.
    pub(crate) fn is_crawler(&self, agent: &str) -> bool {
        let end = (0..=LONGEST.min(agent.len())).rev().find(|end| agent.is_char_boundary(*end)).unwrap_or(0);
        let agent = agent.get(..end).unwrap_or(agent);
        if agent.is_empty() {
            return false;
        }
        if let Some(verdict) = self.verdicts.get(agent) {
            return verdict;
        }
        let verdict = self.known.is_bot(agent);
        self.verdicts.insert(agent.into(), verdict);
        verdict
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn crawlers_are_told_from_people_each_time() {
        let crawlers = Crawlers::default();
        for _ in 0..2 {
            assert!(crawlers.is_crawler("Mozilla/5.0 (compatible; Googlebot/2.1; +http://www.google.com/bot.html)"));
            assert!(!crawlers.is_crawler("Mozilla/5.0 (X11; Linux x86_64; rv:128.0) Gecko/20100101 Firefox/128.0"));
            assert!(!crawlers.is_crawler(""));
            assert!(!crawlers.is_crawler(&"é".repeat(4_000)));
        }
    }
}
