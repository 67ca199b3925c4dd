//! The event: its typed parts, ids, wire record, and the fold that decides what counts. Called by every room; imports none,
//! and never reads a clock or a file.

pub mod cardinality;
pub mod change;
pub mod identity;
pub mod ids;
pub mod money;
pub mod naming;
pub mod record;
pub mod rules;
pub mod time;

use serde::{Deserialize, Serialize};

pub use change::{Change, ObjectKey, ObjectKind};
pub use ids::{KeyKind, PARTITIONS, SiteId};
pub use money::{Currency, Money};
pub use record::{Channel, Envelope, Flags, Record, RecordKind};
pub use rules::{RulesOf, SiteRules};
pub use time::{Clock, Timestamp};

/// The names of the types that Contrail maps; any other name is archived and not mapped.
pub mod kind {
    #![expect(missing_docs, reason = "the names say it")]
    pub const PAGE_VIEWED: &str = "page_viewed";
    pub const PRODUCT_VIEWED: &str = "product_viewed";
    pub const PRODUCT_SEARCHED: &str = "product_searched";
    pub const CART_UPDATED: &str = "cart_updated";
    pub const CHECKOUT_STEP: &str = "checkout_step";
    pub const ORDER_COMPLETED: &str = "order_completed";
    pub const ORDER_REFUNDED: &str = "order_refunded";
    pub const PRODUCT_UPDATED: &str = "product_updated";
    pub const CUSTOMER_UPDATED: &str = "customer_updated";
    pub const OBJECT_CHANGED: &str = "object_changed";
}

/// A valid canonical event as its readers take it from a record's body: only what mapping, rollups and reports need, unknown
/// fields passed over (the body keeps them). Every body that ingest's validation lets through parses as this.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Event {
    /// One of [`kind`], or any other name.
    #[serde(rename = "type")]
    pub kind: String,
    /// The sender's clock, or `received_at` where it said nothing; clamped to 24 h ahead of `received_at`, a browser's also to 30 days behind it.
    pub occurred_at: Timestamp,
    /// Who did it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub customer: Option<Customer>,
    /// The shopper's browser.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub client: Option<Client>,
    /// The page it happened on.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub page: Option<Page>,
    /// The product it is about.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub product: Option<Product>,
    /// What was searched.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub search: Option<Search>,
    /// The cart as it stands now.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cart: Option<Cart>,
    /// The checkout it belongs to.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub checkout: Option<Checkout>,
    /// The order placed or refunded.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub order: Option<Order>,
    /// The refund.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub refund: Option<Refund>,
}

/// Who: any of a known id, a browser's id and a session's.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Customer {
    /// The shop's id of a known customer.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub id: Option<String>,
    /// A browser's lasting id.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub anonymous_id: Option<String>,
    /// One visit's id.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub session_id: Option<String>,
    /// Where the shopper is.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub location: Option<Location>,
}

/// Where a shopper is, as the sender knows it.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Location {
    /// ISO 3166 code or name.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub country: Option<String>,
    /// State or region.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub region: Option<String>,
    /// City.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub city: Option<String>,
}

/// The shopper's browser.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Client {
    /// Decides alone whether the shopper is a crawler.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub user_agent: Option<String>,
    /// Network address.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ip: Option<String>,
    /// Language.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub locale: Option<String>,
}

/// A page of the shop.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Page {
    /// Absolute URL or a path.
    pub url: String,
    /// The page's title.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub title: Option<String>,
    /// Where the shopper came from.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub referrer: Option<String>,
}

/// A product, as much of it as the event says.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Product {
    /// The shop's id.
    pub id: String,
    /// Display name.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub name: Option<String>,
    /// Colour.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub color: Option<String>,
    /// Category.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub category: Option<String>,
    /// Stock on hand.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub quantity: Option<i64>,
    /// Size.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub size: Option<String>,
    /// Supplier.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub supplier: Option<String>,
    /// Margin, a fraction; a JSON number that is never summed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub margin: Option<f64>,
    /// Price.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub price: Option<Money>,
    /// Countries it can be bought in.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub available_in: Option<Vec<String>>,
}

/// A search.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Search {
    /// As typed.
    pub query: String,
    /// How many results it showed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub results: Option<u64>,
}

/// One line of a cart, order or refund.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Item {
    /// The product.
    pub product_id: String,
    /// Its name as sold.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub name: Option<String>,
    /// Pieces, at least 1.
    pub quantity: i64,
    /// Price of one piece.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub price: Option<Money>,
}

/// A cart as it stands.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Cart {
    /// The shop's id of the cart.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub id: Option<String>,
    /// All of its lines; empty when emptied.
    #[serde(default)]
    pub items: Vec<Item>,
}

/// A checkout, and in a `checkout_step` the step.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Checkout {
    /// The shop's id of the checkout.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub id: Option<String>,
    /// Named by the shop; present in every `checkout_step`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub step: Option<String>,
    /// Present in every `checkout_step`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub status: Option<StepStatus>,
    /// What the cart was worth then.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub value: Option<Money>,
}

/// How far a checkout step came.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum StepStatus {
    /// The shopper saw it.
    Entered,
    /// The shopper finished it.
    Completed,
}

/// An order; in a refund without items only its id counts.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Order {
    /// The shop's id of the order.
    pub id: String,
    /// Lines sold or given back.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub items: Option<Vec<Item>>,
    /// What the customer paid.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub total: Option<Money>,
}

/// A refund of an order.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Refund {
    /// The shop's id of the refund.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub id: Option<String>,
}

impl Event {
    /// Reads a record's body.
    pub fn from_body(body: &[u8]) -> Result<Self, serde_json::Error> {
        serde_json::from_slice(body)
    }

    /// The id that people are counted by: customer id, else anonymous id.
    pub fn person(&self) -> Option<&str> {
        let customer = self.customer.as_ref()?;
        customer.id.as_deref().or(customer.anonymous_id.as_deref())
    }

    /// What this event is partitioned by: order id for orders and refunds; checkout id (else session, anonymous or
    /// customer id) for checkout steps; else the event id.
    pub fn partition_key<'a>(&'a self, event_id: &'a str) -> (KeyKind, &'a str) {
        match self.kind.as_str() {
            kind::ORDER_COMPLETED | kind::ORDER_REFUNDED => match &self.order {
                Some(order) => (KeyKind::Order, &order.id),
                None => (KeyKind::Event, event_id),
            },
            kind::CHECKOUT_STEP => self.checkout_party().unwrap_or((KeyKind::Event, event_id)),
            _ => (KeyKind::Event, event_id),
        }
    }

    /// Which checkout an event of a checkout or an order belongs to: the checkout id, else the session, else the
    /// anonymous, else the customer id (each of the last three together with the UTC day of `occurred_at`).
    pub fn checkout_party(&self) -> Option<(KeyKind, &str)> {
        if let Some(id) = self.checkout.as_ref().and_then(|c| c.id.as_deref()) {
            return Some((KeyKind::Checkout, id));
        }
        let customer = self.customer.as_ref()?;
        let ids = [(KeyKind::Session, &customer.session_id), (KeyKind::Anonymous, &customer.anonymous_id), (KeyKind::Customer, &customer.id)];
        ids.into_iter().find_map(|(kind, id)| id.as_deref().map(|id| (kind, id)))
    }

    /// The name a checkout goes by in the archive: its id, or `session:<id>:<UTC day>` and the like where it has none;
    /// None where nothing names one.
    pub fn checkout_name(&self) -> Option<String> {
        self.checkout_party().map(|(kind, id)| match kind {
            KeyKind::Checkout => id.to_owned(),
            other => format!("{}:{id}:{}", other.name(), self.occurred_at.utc_date()),
        })
    }
}
