//! Names that archive and live objects must agree on: a page's path, a search term, and which events count as a view of a page.
//! Called by mapping and rollups. Pure.

use unicode_normalization::{IsNormalized, UnicodeNormalization, is_nfc_quick};

use super::{Event, SiteRules, kind};

/// Whether the event counts as one view of its `page`: only `page_viewed` does. A `product_viewed` that names its page counts for the
/// product alone, since shops send both for one visit of a product page.
pub fn counts_page_view(event: &Event) -> bool {
    event.kind == kind::PAGE_VIEWED && event.page.is_some()
}

/// The path a page goes by: percent-decoded UTF-8 in NFC, without host, query and fragment; the query parameters that the site keeps
/// follow it as `?a=1&b=2`, in the order of their names. Bytes that are no UTF-8 stay percent-encoded; a relative path is taken as is; the root is `/`.
pub fn page_path(url: &str, rules: &SiteRules) -> String {
    let parts = split(url);
    let path = if parts.path.is_empty() && !parts.origin.is_empty() { "/" } else { parts.path };
    let mut out = decoded(path);
    push_kept(&mut out, parts.query, rules);
    nfc(out)
}

/// The address shown for a page: as written, without fragment and without the query parameters that do not belong to the page.
pub fn page_url(url: &str, rules: &SiteRules) -> String {
    let parts = split(url);
    let mut out = String::with_capacity(url.len());
    out.push_str(parts.origin);
    out.push_str(parts.path);
    push_kept(&mut out, parts.query, rules);
    out
}

/// A search term as searches are counted by: its spelling in lower case.
pub fn search_term(query: &str) -> String {
    // Lower case after composing, and composed again: lower-casing one letter may yield several.
    nfc(search_spelling(query).to_lowercase())
}

/// A search term as it is shown: NFC, trimmed, runs of blanks as one space.
pub fn search_spelling(query: &str) -> String {
    let mut out = String::with_capacity(query.len());
    for word in query.split_whitespace() {
        if !out.is_empty() {
            out.push(' ');
        }
        out.push_str(word);
    }
    nfc(out)
}

/// A URL cut where its parts begin. `origin` is empty for a path.
struct Parts<'a> {
    origin: &'a str,
    path: &'a str,
    query: &'a str,
}

fn split(url: &str) -> Parts<'_> {
    let url = url.trim();
    let whole = url.split_once('#').map_or(url, |(before, _)| before);
    let (address, query) = whole.split_once('?').unwrap_or((whole, ""));
    let authority = address.find("://").filter(|at| is_scheme(address.get(..*at).unwrap_or(""))).map(|at| at + 3);
    let path_at = match authority {
        Some(from) => address.get(from..).and_then(|rest| rest.find('/')).map_or(address.len(), |at| from + at),
        None => 0,
    };
    let (origin, path) = address.split_at_checked(path_at).unwrap_or(("", address));
    Parts { origin, path, query }
}

fn is_scheme(text: &str) -> bool {
    text.starts_with(|c: char| c.is_ascii_alphabetic()) && text.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'+' | b'-' | b'.'))
}

fn push_kept(out: &mut String, query: &str, rules: &SiteRules) {
    if query.is_empty() || rules.page_parameters.is_empty() {
        return;
    }
    let mut kept: Vec<(String, String)> = query
        .split('&')
        .map(|pair| pair.split_once('=').unwrap_or((pair, "")))
        .map(|(name, value)| (decoded(name), decoded(value)))
        .filter(|(name, _)| rules.page_parameters.iter().any(|wanted| wanted == name))
        .collect();
    kept.sort();
    for (i, (name, value)) in kept.iter().enumerate() {
        out.push(if i == 0 { '?' } else { '&' });
        out.push_str(name);
        out.push('=');
        out.push_str(value);
    }
}

fn decoded(text: &str) -> String {
    if !text.contains('%') {
        return text.to_owned();
    }
    let bytes: Vec<u8> = percent_encoding::percent_decode_str(text).collect();
    let mut out = String::with_capacity(bytes.len());
    for chunk in bytes.utf8_chunks() {
        out.push_str(chunk.valid());
        for byte in chunk.invalid() {
            push_hex(&mut out, '%', *byte);
        }
    }
    out
}

/// Appends `mark` and the byte as two upper-case hexadecimal digits.
pub fn push_hex(out: &mut String, mark: char, byte: u8) {
    out.push(mark);
    for digit in [byte >> 4, byte & 15] {
        out.push(char::from_digit(u32::from(digit), 16).unwrap_or('0').to_ascii_uppercase());
    }
}

fn nfc(text: String) -> String {
    match is_nfc_quick(text.chars()) {
        IsNormalized::Yes => text,
        _ => text.nfc().collect(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths_lose_host_query_and_fragment() {
        let rules = SiteRules::default();
        for (url, path) in [
            ("https://shop.example/p/sku-1?utm=x#top", "/p/sku-1"),
            ("https://shop.example", "/"),
            ("https://shop.example?x=1", "/"),
            ("https://shop.example/", "/"),
            ("/about/", "/about/"),
            ("about#x", "about"),
            ("//double/slash", "//double/slash"),
            ("", ""),
            ("/caf%C3%A9", "/café"),
            ("/cafe%CC%81", "/café"),
            ("/x%FF%C3%A9%zz", "/x%FFé%zz"),
            ("/%D9%81%D8%B1%D9%88%D8%B4%DA%AF%D8%A7%D9%87", "/فروشگاه"),
            ("/go?to=https://other.example/x", "/go"),
            ("/go/https://other.example/x", "/go/https://other.example/x"),
        ] {
            assert_eq!(page_path(url, &rules), path, "{url}");
        }
    }

    #[test]
    fn kept_parameters_follow_in_order() {
        let rules = SiteRules { page_parameters: vec!["id".into(), "page".into()], ..SiteRules::default() };
        assert_eq!(page_path("https://s.example/list?page=2&utm=x&id=%C3%A9#f", &rules), "/list?id=é&page=2");
        assert_eq!(page_url("https://s.example/l%C3%A9?page=2&utm=x", &rules), "https://s.example/l%C3%A9?page=2");
        assert_eq!(page_path("/list?utm=x", &rules), "/list");
    }

    #[test]
    fn terms_fold() {
        for (query, term) in [("  Blue \t MUG\n", "blue mug"), ("CAFE\u{301}", "café"), ("ŞAL", "şal"), ("", ""), ("گوشی  موبایل", "گوشی موبایل")]
        {
            assert_eq!(search_term(query), term);
        }
        assert_eq!(search_term(&search_term("İstanbul")), search_term("İstanbul"));
    }
}
