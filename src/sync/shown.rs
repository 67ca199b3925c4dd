//! What values in objects look like as JSON: the shapes of ring entries, trail items and carts. Called by [`super::mapping`] only. Pure. Field order is the
//! order in the JSON.

use serde::Serialize;

use crate::event::{Cart, Currency, Item, Money, StepStatus, Timestamp};

/// Most bytes of a free text (a title, a query, an address) in an object.
pub(super) const MAX_TEXT: usize = 500;
/// Lines of a cart that are shown.
const CART_LINES: usize = 20;

/// An entry of an index.
#[derive(Serialize)]
pub(super) struct Indexed<'a> {
    pub(super) id: &'a str,
    pub(super) object: &'a str,
}

/// A product a person looked at.
#[derive(Serialize)]
pub(super) struct Interest<'a> {
    pub(super) product_id: &'a str,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) name: Option<&'a str>,
    pub(super) at: Timestamp,
}

/// A search of a person.
#[derive(Serialize)]
pub(super) struct Searched<'a> {
    pub(super) query: &'a str,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) results: Option<u64>,
    pub(super) at: Timestamp,
}

/// An item of a trail.
#[derive(Serialize)]
pub(super) struct Seen<'a> {
    #[serde(rename = "type")]
    pub(super) kind: &'a str,
    pub(super) at: Timestamp,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) path: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) title: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) product_id: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) name: Option<&'a str>,
}

/// How far a person's checkout is.
#[derive(Serialize)]
pub(super) struct CheckoutShown<'a> {
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) id: Option<&'a str>,
    pub(super) step: &'a str,
    pub(super) status: StepStatus,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) value: Option<Money>,
    pub(super) at: Timestamp,
}

/// An order of a person.
#[derive(Serialize)]
pub(super) struct Ordered<'a> {
    pub(super) order_id: &'a str,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) total: Option<Money>,
    pub(super) units: i64,
    pub(super) at: Timestamp,
}

/// A refund of a person.
#[derive(Serialize)]
pub(super) struct Refunded<'a> {
    pub(super) order_id: &'a str,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) refund_id: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) amount: Option<Money>,
    pub(super) at: Timestamp,
}

/// A cart as its item shows it: the first lines, and what all of them come to.
#[derive(Serialize)]
pub(super) struct CartShown<'a> {
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) id: Option<&'a str>,
    pub(super) items: Vec<CartLine<'a>>,
    pub(super) lines: usize,
    pub(super) units: i64,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) value: Option<Money>,
    pub(super) at: Timestamp,
}

/// A line of a cart.
#[derive(Serialize)]
pub(super) struct CartLine<'a> {
    pub(super) product_id: &'a str,
    pub(super) quantity: i64,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) price: Option<Money>,
}

impl<'a> CartShown<'a> {
    /// What is shown of a cart as it stood at `at`.
    pub(super) fn of(cart: &'a Cart, at: Timestamp) -> Self {
        let line = |item: &'a Item| CartLine { product_id: &item.product_id, quantity: item.quantity, price: item.price };
        Self {
            id: cart.id.as_deref(),
            items: cart.items.iter().take(CART_LINES).map(line).collect(),
            lines: cart.items.len(),
            units: units(&cart.items),
            value: sum(&cart.items),
            at,
        }
    }
}

/// Pieces of all lines.
pub(super) fn units(items: &[Item]) -> i64 {
    items.iter().fold(0, |sum, item| sum.saturating_add(item.quantity))
}

/// What lines come to in the currency of the first that has a price.
pub(super) fn sum(items: &[Item]) -> Option<Money> {
    let currency: Currency = items.iter().find_map(|item| item.price)?.currency;
    let lines = items.iter().filter_map(|item| item.price.filter(|price| price.currency == currency).map(|price| (price, item.quantity)));
    let amount_minor = lines.fold(0_i64, |sum, (price, quantity)| sum.saturating_add(price.amount_minor.saturating_mul(quantity)));
    Some(Money { amount_minor, currency })
}

/// JSON text of plain data, which cannot fail to be written.
pub(super) fn json<T: Serialize + ?Sized>(value: &T) -> String {
    serde_json::to_string(value).unwrap_or_else(|_| "null".into())
}

/// The text's first [`MAX_TEXT`] bytes at most, cut between characters.
pub(super) fn cut(text: &str) -> &str {
    let mut end = text.len().min(MAX_TEXT);
    while !text.is_char_boundary(end) {
        end -= 1;
    }
    text.get(..end).unwrap_or(text)
}
