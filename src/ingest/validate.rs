//! VALIDATE: whether a parsed event is what `schemas/events` says, and its money in minor units. Called by translation, once per event;
//! a test holds these rules and the schemas against each other. Pure, never panics; must never look at a clock or at who sent the event.
//!
//! It changes the tree where the canonical form differs from the sent one: money becomes `{amount_minor, currency}`, whole numbers written as
//! `2.0` become `2`, optional ids that are empty strings are taken as absent.

use super::json::{Node, Object, Text};
use super::reject::{Code, Invalid};
use crate::event::{Currency, Money, Timestamp, kind};

/// Largest whole number taken from outside: 2^53 - 1, exact in every JSON library.
pub const MAX_INTEGER: i64 = 9_007_199_254_740_991;
/// Most characters of an id inside the event's parts.
pub const MAX_ID_CHARS: usize = 1_024;
/// Most bytes of an event's own id.
pub const MAX_EVENT_ID_BYTES: usize = 255;
/// Most characters of a type's name.
pub const MAX_TYPE_CHARS: usize = 255;
/// Most pieces in one line of a cart or order.
pub const MAX_PIECES: i64 = 1_000_000;

/// What validation learns about a valid event.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Facts {
    /// The sender's clock, if it said.
    pub occurred_at: Option<Timestamp>,
    /// Whether an amount was rounded to the minor unit.
    pub rounded: bool,
}

type Check<T = ()> = Result<T, Invalid>;

/// Checks an event and brings its parts into canonical form.
///
/// # Errors
/// The first fault found, with its place.
pub fn event(event: &mut Object<'_>) -> Check<Facts> {
    let mut rounded = false;
    optional_id(event, "event_id", |id| id.len() <= MAX_EVENT_ID_BYTES)?;
    let occurred_at = time(event, "occurred_at")?;
    time(event, "sent_at")?;
    whole(event, "seq", -MAX_INTEGER, MAX_INTEGER)?;
    part(event, "customer", customer)?;
    part(event, "client", |client| texts(client, &["ip", "locale", "user_agent"]))?;
    part(event, "page", page)?;
    part(event, "product", |it| product(it, &mut rounded))?;
    part(event, "search", search)?;
    part(event, "cart", |it| cart(it, &mut rounded))?;
    part(event, "checkout", |it| checkout(it, &mut rounded))?;
    part(event, "order", |it| order(it, &mut rounded))?;
    part(event, "refund", |it| optional_id(it, "id", short_id))?;
    part(event, "source", source)?;
    by_type(event)?;
    Ok(Facts { occurred_at, rounded })
}

/// What each known type needs beyond legal parts.
fn by_type(event: &Object<'_>) -> Check {
    let name = match event.get("type") {
        None => return missing("type"),
        Some(Node::String(name)) => name,
        Some(other) => return wrong("a string", other).map_err(|e| e.within("type")),
    };
    if name.is_empty() {
        return invalid("type", Code::ValueInvalid, "must not be empty");
    }
    if name.len() > MAX_TYPE_CHARS && name.chars().count() > MAX_TYPE_CHARS {
        return invalid("type", Code::TooLong, "a type is at most 255 characters");
    }
    match &**name {
        kind::PAGE_VIEWED => need(event, "page"),
        kind::PRODUCT_VIEWED | kind::PRODUCT_UPDATED => need(event, "product"),
        kind::PRODUCT_SEARCHED => need(event, "search"),
        kind::CART_UPDATED => need(event, "cart"),
        kind::ORDER_COMPLETED | kind::ORDER_REFUNDED => need(event, "order"),
        kind::CHECKOUT_STEP => {
            need(event, "checkout")?;
            let checkout = event.object("checkout");
            ["step", "status"].into_iter().try_for_each(|key| match checkout.and_then(|c| c.get(key)) {
                Some(_) => Ok(()),
                None => missing(key).map_err(|e| e.within("checkout")),
            })
        }
        kind::CUSTOMER_UPDATED => {
            need(event, "customer")?;
            let customer = event.object("customer");
            match customer.and_then(|c| c.get("id").or_else(|| c.get("anonymous_id"))) {
                Some(_) => Ok(()),
                None => missing("id").map_err(|e| e.within("customer")),
            }
        }
        kind::OBJECT_CHANGED => invalid("type", Code::ValueInvalid, "this type is written by Contrail alone"),
        _ => Ok(()),
    }
}

fn customer(customer: &mut Object<'_>) -> Check {
    for key in ["anonymous_id", "id", "session_id"] {
        optional_id(customer, key, short_id)?;
    }
    part(customer, "location", |location| texts(location, &["city", "country", "region"]))
}

fn page(page: &mut Object<'_>) -> Check {
    filled(page, "url")?;
    texts(page, &["referrer", "title"])
}

fn product(product: &mut Object<'_>, rounded: &mut bool) -> Check {
    id(product, "id")?;
    texts(product, &["category", "color", "name", "size", "supplier"])?;
    whole(product, "quantity", -MAX_INTEGER, MAX_INTEGER)?;
    if let Some(other) = product.get("margin").filter(|margin| !matches!(margin, Node::Number(_))) {
        return wrong("a number", other).map_err(|e| e.within("margin"));
    }
    money(product, "price", rounded)?;
    match product.get("available_in") {
        None => Ok(()),
        Some(Node::Array(countries)) => countries.iter().enumerate().try_for_each(|(index, country)| match country {
            Node::String(_) => Ok(()),
            other => wrong("a string", other).map_err(|e| e.within(&index.to_string()).within("available_in")),
        }),
        Some(other) => wrong("an array", other).map_err(|e| e.within("available_in")),
    }
}

fn search(search: &mut Object<'_>) -> Check {
    match search.get("query") {
        Some(Node::String(_)) => {}
        Some(other) => return wrong("a string", other).map_err(|e| e.within("query")),
        None => return missing("query"),
    }
    whole(search, "results", 0, MAX_INTEGER)
}

fn cart(cart: &mut Object<'_>, rounded: &mut bool) -> Check {
    optional_id(cart, "id", short_id)?;
    items(cart, rounded)
}

fn checkout(checkout: &mut Object<'_>, rounded: &mut bool) -> Check {
    optional_id(checkout, "id", short_id)?;
    if checkout.get("step").is_some() {
        id(checkout, "step")?;
        if checkout.text("step") == Some(crate::event::identity::ORDER_STEP) {
            return invalid("step", Code::ValueInvalid, "this step is derived from orders by Contrail alone");
        }
    }
    one_of(checkout, "status", &["completed", "entered"])?;
    money(checkout, "value", rounded)
}

fn order(order: &mut Object<'_>, rounded: &mut bool) -> Check {
    id(order, "id")?;
    items(order, rounded)?;
    money(order, "total", rounded)
}

fn source(source: &mut Object<'_>) -> Check {
    one_of(source, "channel", &["pixel", "server", "webhook"])
}

fn items(holder: &mut Object<'_>, rounded: &mut bool) -> Check {
    let lines = match holder.get_mut("items") {
        None => return Ok(()),
        Some(Node::Array(lines)) => lines,
        Some(other) => return wrong("an array", other).map_err(|e| e.within("items")),
    };
    for (index, line) in lines.iter_mut().enumerate() {
        item(line, rounded).map_err(|e| e.within(&index.to_string()).within("items"))?;
    }
    Ok(())
}

fn item(line: &mut Node<'_>, rounded: &mut bool) -> Check {
    let Node::Object(line) = line else { return wrong("an object", line) };
    id(line, "product_id")?;
    texts(line, &["name"])?;
    if line.get("quantity").is_none() {
        return missing("quantity");
    }
    whole(line, "quantity", 1, MAX_PIECES)?;
    money(line, "price", rounded)
}

/// Brings `{amount, currency}` to `{amount_minor, currency}`; other members stay.
fn money(holder: &mut Object<'_>, key: &str, rounded: &mut bool) -> Check {
    part(holder, key, |money| {
        let currency = match money.get("currency") {
            Some(Node::String(code)) => Currency::parse(code).map_err(|e| Invalid::new(Code::MoneyInvalid, e.to_string()).within("currency"))?,
            Some(other) => return wrong("a string", other).map_err(|e| e.within("currency")),
            None => return missing("currency"),
        };
        match (money.get("amount_minor").is_some(), money.get("amount")) {
            (true, None) => whole(money, "amount_minor", -Money::MAX_MINOR, Money::MAX_MINOR),
            (false, Some(Node::String(decimal))) => {
                let (exact, inexact) = decimal_amount(decimal, currency).map_err(|e| e.within("amount"))?;
                *rounded |= inexact;
                money.remove("amount");
                money.insert("amount_minor", Node::Number(Text::Owned(exact.amount_minor.to_string())));
                Ok(())
            }
            (false, Some(_)) => invalid("amount", Code::MoneyInvalid, "an amount is a decimal in a string, never a JSON number"),
            (true, Some(_)) => Err(Invalid::new(Code::MoneyInvalid, "amount and amount_minor exclude each other")),
            (false, None) => missing("amount_minor"),
        }
    })
}

fn decimal_amount(decimal: &str, currency: Currency) -> Check<(Money, bool)> {
    // The schema's pattern bounds the digits before the point, so that it and the currency's own bound agree.
    let digits = decimal.trim_start_matches('-').split('.').next().unwrap_or("").trim_start_matches('0').len();
    if digits > if currency.exponent() > 3 { 11 } else { 12 } {
        return Err(Invalid::new(Code::MoneyInvalid, "an amount has at most 12 digits before the point (11 in CLF and UYW)"));
    }
    Money::from_decimal(decimal, currency).map_err(|e| Invalid::new(Code::MoneyInvalid, e.to_string()))
}

fn part(holder: &mut Object<'_>, key: &str, check: impl FnOnce(&mut Object<'_>) -> Check) -> Check {
    match holder.get_mut(key) {
        None => Ok(()),
        Some(Node::Object(object)) => check(object).map_err(|e| e.within(key)),
        Some(other) => wrong("an object", other).map_err(|e| e.within(key)),
    }
}

fn need(event: &Object<'_>, key: &str) -> Check {
    if event.get(key).is_some() { Ok(()) } else { missing(key) }
}

fn texts(holder: &Object<'_>, keys: &[&str]) -> Check {
    keys.iter().try_for_each(|key| match holder.get(key) {
        None | Some(Node::String(_)) => Ok(()),
        Some(other) => wrong("a string", other).map_err(|e| e.within(key)),
    })
}

fn filled(holder: &Object<'_>, key: &str) -> Check {
    match holder.get(key) {
        Some(Node::String(text)) if !text.is_empty() => Ok(()),
        Some(Node::String(_)) => invalid(key, Code::ValueInvalid, "must not be empty"),
        Some(other) => wrong("a string", other).map_err(|e| e.within(key)),
        None => missing(key),
    }
}

fn id(holder: &Object<'_>, key: &str) -> Check {
    filled(holder, key)?;
    if holder.text(key).is_some_and(|id| !short_id(id)) { invalid(key, Code::TooLong, "an id is at most 1,024 characters") } else { Ok(()) }
}

fn short_id(id: &str) -> bool {
    id.len() <= MAX_ID_CHARS || id.chars().count() <= MAX_ID_CHARS
}

/// An id that may be missing; an empty one is taken out, so that nobody shares the id "".
fn optional_id(holder: &mut Object<'_>, key: &str, fits: impl Fn(&str) -> bool) -> Check {
    match holder.get(key) {
        None => Ok(()),
        Some(Node::String(id)) if id.is_empty() => {
            holder.remove(key);
            Ok(())
        }
        Some(Node::String(id)) if fits(id) => Ok(()),
        Some(Node::String(_)) => invalid(key, Code::TooLong, "an event_id is at most 255 bytes, any other id 1,024 characters"),
        Some(other) => wrong("a string", other).map_err(|e| e.within(key)),
    }
}

fn one_of(holder: &Object<'_>, key: &str, legal: &[&'static str]) -> Check {
    match holder.get(key) {
        None => Ok(()),
        Some(Node::String(text)) if legal.contains(&&**text) => Ok(()),
        Some(Node::String(_)) => invalid(key, Code::ValueInvalid, format!("must be one of {}", legal.join(", "))),
        Some(other) => wrong("a string", other).map_err(|e| e.within(key)),
    }
}

fn time(holder: &Object<'_>, key: &str) -> Check<Option<Timestamp>> {
    match holder.get(key) {
        None => Ok(None),
        Some(Node::String(text)) => Timestamp::parse(text).map(Some).map_err(|e| Invalid::new(Code::TimestampInvalid, e.to_string()).within(key)),
        Some(other) => wrong("a string", other).map_err(|e| e.within(key)).map(|()| None),
    }
}

/// A whole number within bounds, if there; written as one afterwards.
fn whole(holder: &mut Object<'_>, key: &str, least: i64, greatest: i64) -> Check {
    let number = match holder.get_mut(key) {
        None => return Ok(()),
        Some(Node::Number(number)) => number,
        Some(other) => return wrong("a whole number", other).map_err(|e| e.within(key)),
    };
    let value = match number.parse::<i64>() {
        Ok(value) => {
            if &**number == "-0" {
                *number = Text::Plain("0");
            }
            value
        }
        // Schemas call 2.0 and 2e0 integers too. Beyond 2^53 - 1 every bound refuses, whatever a double makes of it.
        Err(_) => match number.parse::<f64>() {
            Ok(double) if double.fract() == 0.0 && double.abs() <= MAX_INTEGER as f64 => {
                let value = double as i64;
                *number = Text::Owned(value.to_string());
                value
            }
            Ok(double) if double.fract() == 0.0 => return invalid(key, Code::ValueInvalid, "the number is out of its range"),
            _ => return invalid(key, Code::TypeWrong, "expected a whole number"),
        },
    };
    if (least..=greatest).contains(&value) { Ok(()) } else { invalid(key, Code::ValueInvalid, format!("must be from {least} to {greatest}")) }
}

fn missing<T>(key: &str) -> Check<T> {
    Err(Invalid::new(Code::FieldMissing, format!("{key} is required here")).within(key))
}

fn invalid<T>(key: &str, code: Code, message: impl Into<std::borrow::Cow<'static, str>>) -> Check<T> {
    Err(Invalid::new(code, message).within(key))
}

fn wrong<T>(wanted: &str, found: &Node<'_>) -> Check<T> {
    Err(Invalid::new(Code::TypeWrong, format!("expected {wanted}, found {}", found.describe())))
}

#[cfg(test)]
pub(in crate::ingest) mod tests;
