//! What the simulated shop has: products, pages, search terms, agents. All but the catalogue's size is fixed.

use super::dice::{Dice, LongTail};
use crate::event::{Currency, Money, Product};

/// Checkout steps in their order: a site's default.
pub(super) const STEPS: [&str; 4] = ["contact", "address", "shipping", "payment"];

/// Browsers of people.
pub(super) const BROWSERS: [&str; 4] = [
    "Mozilla/5.0 (Windows NT 10.0; Win64; x64) AppleWebKit/537.36 (KHTML, like Gecko) Chrome/130.0.0.0 Safari/537.36",
    "Mozilla/5.0 (iPhone; CPU iPhone OS 17_6 like Mac OS X) AppleWebKit/605.1.15 (KHTML, like Gecko) Version/17.6 Mobile/15E148 Safari/604.1",
    "Mozilla/5.0 (X11; Linux x86_64; rv:131.0) Gecko/20100101 Firefox/131.0",
    "Mozilla/5.0 (Linux; Android 14; Pixel 8) AppleWebKit/537.36 (KHTML, like Gecko) Chrome/129.0.0.0 Mobile Safari/537.36",
];

/// Agents of crawlers, as they introduce themselves.
pub(super) const CRAWLERS: [&str; 5] = [
    "Mozilla/5.0 (compatible; Googlebot/2.1; +http://www.google.com/bot.html)",
    "Mozilla/5.0 (compatible; bingbot/2.0; +http://www.bing.com/bingbot.htm)",
    "Mozilla/5.0 (compatible; AhrefsBot/7.0; +http://ahrefs.com/robot/)",
    "Mozilla/5.0 (compatible; YandexBot/3.0; +http://yandex.com/bots)",
    "Mozilla/5.0 (compatible; SemrushBot/7~bl; +http://www.semrush.com/bot.html)",
];

const THINGS: [&str; 10] = ["Mug", "Lamp", "Chair", "Kettle", "Blanket", "Clock", "Basket", "Vase", "Towel", "Teapot"];
const COLORS: [&str; 8] = ["red", "blue", "green", "white", "black", "oak", "sand", "grey"];
const SUPPLIERS: [&str; 5] = ["S1", "S2", "S3", "S4", "S5"];
const CATEGORIES: [(&str, &str); 5] =
    [("küche", "k%C3%BCche"), ("living", "living"), ("bath", "bath"), ("garden", "garden"), ("چای", "%DA%86%D8%A7%DB%8C")];
const FIXED_PAGES: [(&str, &str); 5] =
    [("/", "Home"), ("/about", "About us"), ("/delivery", "Delivery & returns"), ("/contact", "Contact"), ("/sale", "Sale")];
const QUALITIES: [&str; 8] = ["cheap", "small", "vintage", "large", "handmade", "زیبا", "großer", "café"];

/// A page as it is linked, and as it is counted.
#[derive(Clone, Debug)]
pub(super) struct Place {
    pub(super) url: String,
    pub(super) path: String,
    pub(super) title: String,
}

/// The shop.
#[derive(Clone, Debug)]
pub(super) struct Shop {
    pub(super) products: Vec<Product>,
    pub(super) product_tail: LongTail,
    term_tail: LongTail,
}

/// Number of different search terms; each thirteenth finds nothing.
const TERMS: usize = 600;

/// A search as typed.
#[derive(Clone, Debug)]
pub(super) struct Typed {
    /// The term in lower case: what it is counted by.
    pub(super) term: String,
    /// The term as it is shown: its case kept, its blanks folded, in composed letters.
    pub(super) spelling: String,
    /// The term as it is sent.
    pub(super) query: String,
    pub(super) finds_nothing: bool,
}

impl Shop {
    /// A shop with a catalogue that fits a day of so many events.
    pub(super) fn new(events: u64, dice: &mut Dice) -> Self {
        let count = (events / 50).clamp(20, 2_000);
        let products: Vec<Product> = (0..count).map(|n| product(n, dice)).collect();
        Self { product_tail: LongTail::new(products.len()), products, term_tail: LongTail::new(TERMS) }
    }

    /// A product that people want, or the `n`th.
    pub(super) fn product(&self, n: usize) -> Product {
        self.products.get(n % self.products.len().max(1)).cloned().unwrap_or_default()
    }

    /// A page: a fixed one, a category or a product's.
    pub(super) fn place(&self, dice: &mut Dice) -> Place {
        match dice.below(10) {
            0..=3 => {
                let (path, title) = dice.pick(&FIXED_PAGES);
                Place { url: format!("https://shop.example{path}{}", tracking(dice)), path: path.to_owned(), title: title.to_owned() }
            }
            4..=5 => {
                let (name, encoded) = dice.pick(&CATEGORIES);
                let url = format!("https://shop.example/c/{encoded}{}", tracking(dice));
                Place { url, path: format!("/c/{name}"), title: format!("Everything for {name}") }
            }
            _ => {
                let product = self.product(self.product_tail.draw(dice));
                let path = format!("/p/{}", product.id);
                Place { url: format!("https://shop.example{path}{}", tracking(dice)), path, title: product.name.unwrap_or_default() }
            }
        }
    }

    /// A search, spelled now so, now so.
    pub(super) fn search(&self, dice: &mut Dice) -> Typed {
        let rank = self.term_tail.draw(dice);
        let word = |words: &[&str], n: usize| words.get(n % words.len()).copied().unwrap_or_default().to_owned();
        let mut typed = format!("{} {}", word(&QUALITIES, rank), word(&THINGS, rank / QUALITIES.len()));
        if rank >= QUALITIES.len() * THINGS.len() {
            typed = format!("{typed} {rank}");
        }
        let term = typed.to_lowercase();
        let spelling = if dice.chance(600) { term.clone() } else { typed };
        let query = match dice.below(10) {
            0..=6 => spelling.clone(),
            7 => format!("  {spelling} "),
            8 => spelling.replace(' ', "  "),
            _ => spelling.replace('é', "e\u{301}"),
        };
        Typed { term, spelling, query, finds_nothing: rank % 13 == 12 }
    }
}

/// Query and fragment, which are no part of a page's path.
fn tracking(dice: &mut Dice) -> &'static str {
    dice.pick(&["", "", "", "?utm_source=mail", "#reviews", "?ref=a%2Fb#top"])
}

fn product(n: u64, dice: &mut Dice) -> Product {
    let thing = THINGS.get(n as usize % THINGS.len()).copied().unwrap_or_default();
    let color = dice.pick(&COLORS);
    Product {
        id: format!("sku-{n}"),
        name: Some(format!("{thing} {color} no. {n}")),
        color: Some(color.to_owned()),
        category: Some(dice.pick(&CATEGORIES).0.to_owned()),
        quantity: Some(dice.between(0, 400)),
        size: Some(format!("{} cm", dice.between(5, 180))),
        supplier: Some(dice.pick(&SUPPLIERS).to_owned()),
        margin: Some(0.25),
        price: Some(Money { amount_minor: dice.between(199, 24_999), currency: Currency::EUR }),
        available_in: Some(["DE", "AT", "US"].iter().take(1 + n as usize % 3).map(|&c| c.to_owned()).collect()),
    }
}
