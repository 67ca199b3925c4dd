//! VALIDATE: whether a parsed event is what `schemas/events` says, and its money in minor units. Called by translation, once per event;
//! a test holds these rules and the schemas against each other. Pure, never panics; must never look at a clock or at who sent the event.
//!
//! It changes the tree where the canonical form differs from the sent one: money becomes `{amount_minor, currency}`, whole numbers written as
//! `2.0` become `2`, optional ids that are empty strings are taken as absent.

use super::json::{Node, Object, Text};
use super::reject::{Code, Invalid};
use crate::event::identity::ORDER_STEP;
use crate::event::{Currency, Money, Timestamp, kind};

/// Largest whole number taken from outside: 2^53 - 1, exact in every JSON library.
pub(crate) const MAX_INTEGER: i64 = 9_007_199_254_740_991;
/// Most characters of an id inside the event's parts.
pub(crate) const MAX_ID_CHARS: usize = 1_024;
/// Most bytes of an event's own id.
pub(crate) const MAX_EVENT_ID_BYTES: usize = 255;
/// Most characters of a type's name.
pub(crate) const MAX_TYPE_CHARS: usize = 255;
/// Most pieces in one line of a cart or order.
pub(crate) const MAX_PIECES: i64 = 1_000_000;

/// What validation learns about a valid event.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Facts {
    /// The sender's clock, if it said.
    pub(crate) occurred_at: Option<Timestamp>,
    /// Whether an amount was rounded to the minor unit.
    pub(crate) rounded: bool,
}

type Check<T = ()> = Result<T, Invalid>;

/// Checks an event and brings its parts into canonical form.
///
/// # Errors
/// One fault found, with its place.
pub(crate) fn event(event: &mut Object<'_>) -> Check<Facts> {
    let mut facts = Facts { occurred_at: None, rounded: false };
    let rounded = &mut facts.rounded;
    members(event, |key, node| match key {
        "cart" => object(node, |it| cart(it, rounded)),
        "checkout" => object(node, |it| checkout(it, rounded)),
        "client" => object(node, client),
        "customer" => object(node, customer),
        "event_id" => optional_id(node, |id| id.len() <= MAX_EVENT_ID_BYTES),
        "occurred_at" => time(node).map(|at| facts.occurred_at = Some(at)),
        "order" => object(node, |it| order(it, rounded)),
        "page" => object(node, page),
        "product" => object(node, |it| product(it, rounded)),
        "refund" => object(node, |it| members(it, |key, node| if key == "id" { optional_id(node, short_id) } else { Ok(()) })),
        "search" => object(node, search),
        "sent_at" => time(node).map(|_| ()),
        "seq" => whole(node, -MAX_INTEGER, MAX_INTEGER),
        "source" => object(node, source),
        "type" => type_name(node),
        _ => Ok(()),
    })?;
    by_type(event)?;
    Ok(facts)
}

fn type_name(node: &Node<'_>) -> Check {
    let name = filled(node)?;
    if name.len() > MAX_TYPE_CHARS && name.chars().count() > MAX_TYPE_CHARS {
        return invalid(Code::TooLong, "a type is at most 255 characters");
    }
    if name == kind::OBJECT_CHANGED { invalid(Code::ValueInvalid, "this type is written by Contrail alone") } else { Ok(()) }
}

/// What each known type needs beyond legal parts.
fn by_type(event: &Object<'_>) -> Check {
    let Some(name) = event.text("type") else { return missing("type") };
    match name {
        kind::PAGE_VIEWED => need(event, "page"),
        kind::PRODUCT_VIEWED | kind::PRODUCT_UPDATED => need(event, "product"),
        kind::PRODUCT_SEARCHED => need(event, "search"),
        kind::CART_UPDATED => need(event, "cart"),
        kind::ORDER_COMPLETED | kind::ORDER_REFUNDED => need(event, "order"),
        kind::CHECKOUT_STEP => {
            let checkout = part(event, "checkout")?;
            need(checkout, "step").and_then(|()| need(checkout, "status")).map_err(|e| e.within("checkout"))
        }
        kind::CUSTOMER_UPDATED => {
            let customer = part(event, "customer")?;
            if customer.get("anonymous_id").is_some() { Ok(()) } else { need(customer, "id").map_err(|e| e.within("customer")) }
        }
        _ => Ok(()),
    }
}

fn customer(customer: &mut Object<'_>) -> Check {
    members(customer, |key, node| match key {
        "anonymous_id" | "id" | "session_id" => optional_id(node, short_id),
        "location" => {
            object(node, |location| members(location, |key, node| if matches!(key, "city" | "country" | "region") { text(node) } else { Ok(()) }))
        }
        _ => Ok(()),
    })
}

fn client(client: &mut Object<'_>) -> Check {
    members(client, |key, node| if matches!(key, "ip" | "locale" | "user_agent") { text(node) } else { Ok(()) })
}

fn page(page: &mut Object<'_>) -> Check {
    members(page, |key, node| match key {
        "url" => filled(node).map(|_| ()),
        "referrer" | "title" => text(node),
        _ => Ok(()),
    })?;
    need(page, "url")
}

fn product(product: &mut Object<'_>, rounded: &mut bool) -> Check {
    members(product, |key, node| match key {
        "id" => id(node),
        "category" | "color" | "name" | "size" | "supplier" => text(node),
        "quantity" => whole(node, -MAX_INTEGER, MAX_INTEGER),
        "margin" if !matches!(node, Node::Number(_)) => wrong("a number", node),
        "price" => money(node, rounded),
        "available_in" => elements(node, |country| text(country)),
        _ => Ok(()),
    })?;
    need(product, "id")
}

fn search(search: &mut Object<'_>) -> Check {
    members(search, |key, node| match key {
        "query" => text(node),
        "results" => whole(node, 0, MAX_INTEGER),
        _ => Ok(()),
    })?;
    need(search, "query")
}

fn cart(cart: &mut Object<'_>, rounded: &mut bool) -> Check {
    members(cart, |key, node| match key {
        "id" => optional_id(node, short_id),
        "items" => elements(node, |line| item(line, rounded)),
        _ => Ok(()),
    })
}

fn checkout(checkout: &mut Object<'_>, rounded: &mut bool) -> Check {
    members(checkout, |key, node| match key {
        "id" => optional_id(node, short_id),
        "status" => one_of(node, &["completed", "entered"]),
        "step" if node.as_str() == Some(ORDER_STEP) => invalid(Code::ValueInvalid, "this step is derived from orders by Contrail alone"),
        "step" => id(node),
        "value" => money(node, rounded),
        _ => Ok(()),
    })
}

fn order(order: &mut Object<'_>, rounded: &mut bool) -> Check {
    members(order, |key, node| match key {
        "id" => id(node),
        "items" => elements(node, |line| item(line, rounded)),
        "total" => money(node, rounded),
        _ => Ok(()),
    })?;
    need(order, "id")
}

fn source(source: &mut Object<'_>) -> Check {
    members(source, |key, node| if key == "channel" { one_of(node, &["pixel", "server", "webhook"]) } else { Ok(()) })
}

fn item(line: &mut Node<'_>, rounded: &mut bool) -> Check {
    object(line, |line| {
        members(line, |key, node| match key {
            "name" => text(node),
            "price" => money(node, rounded),
            "product_id" => id(node),
            "quantity" => whole(node, 1, MAX_PIECES),
            _ => Ok(()),
        })?;
        need(line, "product_id").and_then(|()| need(line, "quantity"))
    })
}

/// Brings `{amount, currency}` to `{amount_minor, currency}`; other members stay.
fn money(node: &mut Node<'_>, rounded: &mut bool) -> Check {
    object(node, |money| {
        let Some(code) = money.get("currency") else { return missing("currency") };
        let currency = match code {
            Node::String(code) => Currency::parse(code).map_err(|e| Invalid::new(Code::MoneyInvalid, e.to_string())),
            other => wrong("a string", other),
        };
        let currency = currency.map_err(|e| e.within("currency"))?;
        if money.get("amount").is_none() {
            let Some(minor) = money.get_mut("amount_minor") else { return missing("amount_minor") };
            return whole(minor, -Money::MAX_MINOR, Money::MAX_MINOR).map_err(|e| e.within("amount_minor"));
        }
        if money.get("amount_minor").is_some() {
            return invalid(Code::MoneyInvalid, "amount and amount_minor exclude each other");
        }
        let Some(decimal) = money.text("amount") else {
            let float = Invalid::new(Code::MoneyInvalid, "an amount is a decimal in a string, never a JSON number");
            return Err(float.within("amount"));
        };
        let (exact, inexact) = decimal_amount(decimal, currency).map_err(|e| e.within("amount"))?;
        *rounded |= inexact;
        money.remove("amount");
        money.insert("amount_minor", Node::Number(Text::Owned(exact.amount_minor.to_string())));
        Ok(())
    })
}

fn decimal_amount(decimal: &str, currency: Currency) -> Check<(Money, bool)> {
    // The schema's pattern bounds the digits before the point, so that it and the currency's own bound agree.
    let digits = decimal.trim_start_matches('-').split('.').next().unwrap_or("").trim_start_matches('0').len();
    if digits > if currency.exponent() > 3 { 11 } else { 12 } {
        return invalid(Code::MoneyInvalid, "an amount has at most 12 digits before the point (11 in CLF and UYW)");
    }
    Money::from_decimal(decimal, currency).map_err(|e| Invalid::new(Code::MoneyInvalid, e.to_string()))
}

/// Checks each member in one pass; those that a check empties (see [`optional_id`]) are taken out.
fn members(of: &mut Object<'_>, mut check: impl FnMut(&str, &mut Node<'_>) -> Check) -> Check {
    let mut emptied = false;
    for (key, node) in of.iter_mut() {
        check(key, node).map_err(|e| e.within(key))?;
        emptied |= matches!(node, Node::Null);
    }
    if emptied {
        of.drop_nulls();
    }
    Ok(())
}

fn elements(node: &mut Node<'_>, mut check: impl FnMut(&mut Node<'_>) -> Check) -> Check {
    let Node::Array(items) = node else { return wrong("an array", node) };
    items.iter_mut().enumerate().try_for_each(|(index, item)| check(item).map_err(|e| e.within(&index.to_string())))
}

fn object(node: &mut Node<'_>, check: impl FnOnce(&mut Object<'_>) -> Check) -> Check {
    match node {
        Node::Object(object) => check(object),
        other => wrong("an object", other),
    }
}

fn need(of: &Object<'_>, key: &str) -> Check {
    if of.get(key).is_some() { Ok(()) } else { missing(key) }
}

fn part<'e, 'a>(event: &'e Object<'a>, key: &str) -> Check<&'e Object<'a>> {
    event.object(key).map_or_else(|| missing(key), Ok)
}

fn text(node: &Node<'_>) -> Check {
    if matches!(node, Node::String(_)) { Ok(()) } else { wrong("a string", node) }
}

fn filled<'e>(node: &'e Node<'_>) -> Check<&'e str> {
    match node {
        Node::String(text) if !text.is_empty() => Ok(text),
        Node::String(_) => invalid(Code::ValueInvalid, "must not be empty"),
        other => wrong("a string", other),
    }
}

fn id(node: &Node<'_>) -> Check {
    if short_id(filled(node)?) { Ok(()) } else { invalid(Code::TooLong, "an id is at most 1,024 characters") }
}

fn short_id(id: &str) -> bool {
    id.len() <= MAX_ID_CHARS || id.chars().count() <= MAX_ID_CHARS
}

/// An id that may be missing; an empty one becomes null and is taken out, so that nobody shares the id "".
fn optional_id(node: &mut Node<'_>, fits: impl Fn(&str) -> bool) -> Check {
    match node {
        Node::String(id) if id.is_empty() => *node = Node::Null,
        Node::String(id) if fits(id) => {}
        Node::String(_) => return invalid(Code::TooLong, "an event_id is at most 255 bytes, any other id 1,024 characters"),
        other => return wrong("a string", other),
    }
    Ok(())
}

fn one_of(node: &Node<'_>, legal: &[&str]) -> Check {
    match node {
        Node::String(text) if legal.contains(&&**text) => Ok(()),
        Node::String(_) => invalid(Code::ValueInvalid, format!("must be one of {}", legal.join(", "))),
        other => wrong("a string", other),
    }
}

fn time(node: &Node<'_>) -> Check<Timestamp> {
    match node {
        Node::String(text) => Timestamp::parse(text).map_err(|e| Invalid::new(Code::TimestampInvalid, e.to_string())),
        other => wrong("a string", other),
    }
}

/// A whole number within bounds; written as one afterwards.
fn whole(node: &mut Node<'_>, least: i64, greatest: i64) -> Check {
    let Node::Number(number) = node else { return wrong("a whole number", node) };
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
            Ok(double) if double.fract() == 0.0 => return invalid(Code::ValueInvalid, "the number is out of its range"),
            _ => return invalid(Code::TypeWrong, "expected a whole number"),
        },
    };
    if (least..=greatest).contains(&value) { Ok(()) } else { invalid(Code::ValueInvalid, format!("must be from {least} to {greatest}")) }
}

fn missing<T>(key: &str) -> Check<T> {
    Err(Invalid::new(Code::FieldMissing, format!("{key} is required here")).within(key))
}

fn invalid<T>(code: Code, message: impl Into<std::borrow::Cow<'static, str>>) -> Check<T> {
    Err(Invalid::new(code, message))
}

fn wrong<T>(wanted: &str, found: &Node<'_>) -> Check<T> {
    invalid(Code::TypeWrong, format!("expected {wanted}, found {}", found.describe()))
}

#[cfg(test)]
pub(in crate::ingest) mod tests;
