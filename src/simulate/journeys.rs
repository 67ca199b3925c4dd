//! What visitors of the simulated shop do: each journey a list of drafts, an event with when, by whom and how it is told. Knows nothing of
//! sending: retries, lateness and the day's length are the planner's.

use super::dice::Dice;
use super::shop::{BROWSERS, CRAWLERS, STEPS, Shop};
use crate::event::{
    Cart, Channel, Checkout, Client, Currency, Customer, Event, Item, Location, Money, Order, Page, Product, Refund, Search, StepStatus, Timestamp,
    kind,
};

/// What the simulator knows of an event beyond its text, for its own tally.
#[derive(Clone, Debug, PartialEq)]
pub(super) enum Told {
    /// Nothing that a report counts, or all that it counts stands in the typed part.
    Plainly,
    /// The page's path as it is counted.
    Page(String),
    /// The term as it is counted, and as it is shown.
    Search(String, String),
}

/// An event before it is sent.
#[derive(Clone, Debug)]
pub(super) struct Draft {
    pub(super) event: Event,
    pub(super) channel: Channel,
    pub(super) told: Told,
    /// A number by person: one for a visitor's browser, another once the customer is known.
    pub(super) person: Option<u64>,
    pub(super) crawler: bool,
}

/// Someone in the shop, and what they did so far.
pub(super) struct Journey<'a> {
    shop: &'a Shop,
    dice: &'a mut Dice,
    /// Distinguishes this day's ids from all others'.
    prefix: &'a str,
    /// The day's end: all must be done by then.
    end: Timestamp,
    now: Timestamp,
    number: u64,
    visitor: u64,
    known: bool,
    agent: Option<&'static str>,
    crawler: bool,
    drafts: Vec<Draft>,
}

/// An order as the shop knows it.
struct Placed {
    id: String,
    checkout: Option<String>,
    items: Vec<Item>,
    currency: Currency,
}

impl<'a> Journey<'a> {
    /// Visitor `visitor` of this day arrives at `now`; the `number`th journey.
    pub(super) fn new(shop: &'a Shop, dice: &'a mut Dice, prefix: &'a str, now: Timestamp, end: Timestamp, number: u64, visitor: u64) -> Self {
        let agent = Some(BROWSERS.get((visitor % 4) as usize).copied().unwrap_or_default());
        Self { shop, dice, prefix, end, now, number, visitor, known: visitor.is_multiple_of(3), agent, crawler: false, drafts: Vec::new() }
    }

    /// Looks around, perhaps fills a cart, perhaps buys.
    pub(super) fn shop(mut self) -> Vec<Draft> {
        for _ in 0..self.dice.between(1, 8) {
            self.look_around();
        }
        if self.dice.chance(30) {
            self.customer_updated();
        }
        if self.dice.chance(400) {
            let items = self.fill_cart();
            if self.dice.chance(650) {
                self.check_out(items);
            }
        }
        self.drafts
    }

    /// Page after page and product after product, fast.
    pub(super) fn crawl(mut self) -> Vec<Draft> {
        (self.crawler, self.agent) = (true, Some(self.dice.pick(&CRAWLERS)));
        for _ in 0..self.dice.between(5, 40) {
            self.wait(200, 2_500);
            if self.dice.chance(600) { self.page_viewed() } else { self.product_viewed(None) }
        }
        self.drafts
    }

    /// So many pages, to fill up a day.
    pub(super) fn leaf_through(mut self, pages: u64) -> Vec<Draft> {
        for _ in 0..pages {
            self.wait(1_000, 5_000);
            self.page_viewed();
        }
        self.drafts
    }

    /// The shop's own systems say what a product is.
    pub(super) fn restock(mut self, product: usize) -> Vec<Draft> {
        let mut product = self.shop.product(product);
        product.quantity = Some(self.dice.between(0, 400));
        self.wait(0, 1_000);
        self.tell(Event { product: Some(product), ..blank(kind::PRODUCT_UPDATED, self.now) }, Channel::Server, Told::Plainly, None);
        self.drafts
    }

    /// Money for an order of a day before, which nobody reported.
    pub(super) fn refund_of_old(mut self) -> Vec<Draft> {
        let product = self.shop.product(self.shop.product_tail.draw(self.dice));
        let item = Item { product_id: product.id, name: None, quantity: 1, price: product.price };
        let placed = Placed { id: format!("{}old{}", self.prefix, self.number), checkout: None, items: vec![item.clone()], currency: Currency::EUR };
        self.wait(0, 60_000);
        self.refund(&placed, 0, Some(vec![item]), self.now);
        self.drafts
    }

    fn wait(&mut self, least_ms: i64, most_ms: i64) {
        let micros = self.dice.between(least_ms * 1_000, most_ms * 1_000);
        self.now = self.now.plus_micros(micros);
    }

    fn tell(&mut self, event: Event, channel: Channel, told: Told, person: Option<u64>) {
        self.drafts.push(Draft { event, channel, told, person, crawler: self.crawler });
    }

    /// An event of the visitor's browser, now.
    fn browser_event(&self, kind: &str) -> Event {
        let client = self.agent.map(|agent| Client { user_agent: Some(agent.to_owned()), ..Client::default() });
        Event { customer: (!self.crawler).then(|| self.customer()), client, ..blank(kind, self.now) }
    }

    fn customer(&self) -> Customer {
        let country = if self.pays_dollars() { "US" } else { "DE" };
        Customer {
            id: self.known.then(|| format!("c{}", self.visitor)),
            anonymous_id: Some(format!("a{}", self.visitor)),
            session_id: Some(format!("{}s{}", self.prefix, self.number)),
            location: Some(Location { country: Some(country.to_owned()), ..Location::default() }),
        }
    }

    fn person(&self) -> Option<u64> {
        (!self.crawler).then_some(self.visitor * 2 + u64::from(self.known))
    }

    fn pays_dollars(&self) -> bool {
        self.visitor % 10 == 7
    }

    fn look_around(&mut self) {
        self.wait(3_000, 45_000);
        match self.dice.below(10) {
            0..=3 => self.page_viewed(),
            4..=6 => self.search(),
            _ => self.product_viewed(None),
        }
    }

    fn page_viewed(&mut self) {
        let place = self.shop.place(self.dice);
        let referrer = self.drafts.is_empty().then(|| "https://search.example/".to_owned());
        let page = Page { url: place.url, title: Some(place.title), referrer };
        self.tell(Event { page: Some(page), ..self.browser_event(kind::PAGE_VIEWED) }, Channel::Pixel, Told::Page(place.path), self.person());
    }

    fn search(&mut self) {
        let typed = self.shop.search(self.dice);
        let results = if typed.finds_nothing { 0 } else { 1 + self.dice.below(60) };
        let search = Search { query: typed.query, results: Some(results) };
        let event = Event { search: Some(search), ..self.browser_event(kind::PRODUCT_SEARCHED) };
        self.tell(event, Channel::Pixel, Told::Search(typed.term, typed.spelling), self.person());
    }

    fn product_viewed(&mut self, product: Option<&Product>) {
        let product = product.cloned().unwrap_or_else(|| self.shop.product(self.shop.product_tail.draw(self.dice)));
        let shown = Product { id: product.id, name: product.name, price: product.price, category: product.category, ..Product::default() };
        self.tell(Event { product: Some(shown), ..self.browser_event(kind::PRODUCT_VIEWED) }, Channel::Pixel, Told::Plainly, self.person());
    }

    fn customer_updated(&mut self) {
        self.wait(100, 2_000);
        self.known = true;
        let event = Event { client: None, ..self.browser_event(kind::CUSTOMER_UPDATED) };
        self.tell(event, Channel::Server, Told::Plainly, self.person());
    }

    /// Puts one to four products into a cart: what lies in it at the end.
    fn fill_cart(&mut self) -> Vec<Item> {
        let mut items: Vec<Item> = Vec::new();
        for _ in 0..self.dice.between(1, 4) {
            let product = self.shop.product(self.shop.product_tail.draw(self.dice));
            self.wait(2_000, 30_000);
            self.product_viewed(Some(&product));
            self.wait(2_000, 20_000);
            let quantity = self.dice.between(1, 3);
            let price = product.price.map(|euros| self.price(euros));
            match items.iter_mut().find(|item| item.product_id == product.id) {
                Some(item) => item.quantity += quantity,
                None => items.push(Item { product_id: product.id, name: None, quantity, price }),
            }
            let cart = Cart { id: Some(format!("{}k{}", self.prefix, self.number)), items: items.clone() };
            self.tell(Event { cart: Some(cart), ..self.browser_event(kind::CART_UPDATED) }, Channel::Pixel, Told::Plainly, self.person());
        }
        items
    }

    /// A price in the visitor's currency.
    fn price(&self, euros: Money) -> Money {
        if self.pays_dollars() { Money { amount_minor: euros.amount_minor * 11 / 10, currency: Currency::USD } } else { euros }
    }

    /// Goes through the steps, or stops in between.
    fn check_out(&mut self, items: Vec<Item>) {
        // A checkout without an id belongs to its session's UTC day: only where no midnight can fall into it.
        let same_day = self.now.utc_day() == self.now.plus_seconds(12 * 3_600).utc_day();
        let named = !same_day || !self.dice.chance(60);
        let checkout = named.then(|| format!("{}ch{}", self.prefix, self.number));
        let value = worth(&items);
        for step in STEPS {
            self.wait(2_000, 25_000);
            self.step(&checkout, step, StepStatus::Entered, value);
            if self.dice.chance(110) {
                return;
            }
            if self.dice.chance(40) {
                self.wait(5_000, 60_000);
                self.step(&checkout, step, StepStatus::Entered, value);
            }
            if self.dice.chance(20) && self.now.plus_seconds(4 * 3_600) < self.end {
                // Called away; comes back hours later.
                self.wait(3_600_000, 2 * 3_600_000);
            }
            self.wait(5_000, 60_000);
            self.known |= step == "contact";
            self.step(&checkout, step, StepStatus::Completed, value);
            if step != "payment" && self.dice.chance(50) {
                return;
            }
        }
        let currency = value.map_or(Currency::EUR, |value| value.currency);
        self.buy(Placed { id: format!("{}o{}", self.prefix, self.number), checkout, items, currency });
    }

    fn step(&mut self, checkout: &Option<String>, step: &str, status: StepStatus, value: Option<Money>) {
        let checkout = Checkout { id: checkout.clone(), step: Some(step.to_owned()), status: Some(status), value };
        let event = Event { checkout: Some(checkout), ..self.browser_event(kind::CHECKOUT_STEP) };
        self.tell(event, Channel::Pixel, Told::Plainly, self.person());
    }

    /// The order, told by pixel, webhook and server in some combination, with totals that differ; later perhaps refunds.
    fn buy(&mut self, placed: Placed) {
        let sum = worth(&placed.items).map_or(0, |value| value.amount_minor);
        let (pixel, webhook) = (self.dice.chance(800), self.dice.chance(850));
        if pixel {
            self.wait(200, 2_000);
            // The thank-you page knows no postage, and sometimes loses a line.
            let lines = if placed.items.len() > 1 && self.dice.chance(100) { placed.items.get(1..) } else { placed.items.get(..) };
            let event = Event { client: self.browser_event("").client, ..self.order(&placed, lines.unwrap_or_default(), sum) };
            self.tell(event, Channel::Pixel, Told::Plainly, self.person());
        }
        if webhook {
            self.wait(300, 4_000);
            let event = self.order(&placed, &placed.items, sum + 490);
            self.tell(event, Channel::Webhook, Told::Plainly, self.person());
        }
        if !(pixel || webhook) || self.dice.chance(100) {
            self.wait(300, 9_000);
            let event = self.order(&placed, &placed.items, sum + 491);
            self.tell(event, Channel::Server, Told::Plainly, self.person());
        }
        if self.dice.chance(150) {
            self.give_back(&placed);
        }
    }

    fn order(&self, placed: &Placed, items: &[Item], total: i64) -> Event {
        let total = Money { amount_minor: total, currency: placed.currency };
        Event {
            customer: Some(self.customer()),
            checkout: placed.checkout.clone().map(|id| Checkout { id: Some(id), ..Checkout::default() }),
            order: Some(Order { id: placed.id.clone(), items: Some(items.to_vec()), total: Some(total) }),
            ..blank(kind::ORDER_COMPLETED, self.now)
        }
    }

    /// One or two parts of the order, the whole, or a part and then the rest.
    fn give_back(&mut self, placed: &Placed) {
        let parts = self.dice.below(3);
        for n in 0..parts {
            let at = self.later();
            let one = placed.items.get(self.dice.below(placed.items.len() as u64) as usize);
            let items = one.map(|item| {
                let price = if self.dice.chance(800) { item.price } else { None };
                Item { quantity: self.dice.between(1, item.quantity), price, ..item.clone() }
            });
            self.refund(placed, n, Some(items.into_iter().collect()), at);
        }
        if parts == 0 || self.dice.chance(200) {
            let at = self.later();
            self.refund(placed, parts, None, at);
        }
    }

    /// Some time after the order, within the day.
    fn later(&mut self) -> Timestamp {
        let at = self.now.plus_micros(self.dice.between(20 * 60_000_000, 6 * 3_600_000_000));
        if at < self.end { at } else { self.now.plus_micros(self.dice.between(0, self.end.micros() - self.now.micros() - 1)) }
    }

    /// A refund, told by the server or by its event id alone, sometimes by webhook too.
    fn refund(&mut self, placed: &Placed, n: u64, items: Option<Vec<Item>>, at: Timestamp) {
        let named = self.dice.chance(850);
        let refund = named.then(|| Refund { id: Some(format!("{}-r{n}", placed.id)) });
        let order = Some(Order { id: placed.id.clone(), items, total: None });
        let event = Event { order, refund, ..blank(kind::ORDER_REFUNDED, at) };
        if named && self.dice.chance(200) {
            self.tell(event.clone(), Channel::Webhook, Told::Plainly, None);
        }
        self.tell(event, Channel::Server, Told::Plainly, None);
    }
}

fn worth(items: &[Item]) -> Option<Money> {
    let currency = items.first()?.price?.currency;
    let amount_minor = items.iter().filter_map(|item| item.price.map(|price| price.amount_minor * item.quantity)).sum();
    Some(Money { amount_minor, currency })
}

fn blank(kind: &str, occurred_at: Timestamp) -> Event {
    Event {
        kind: kind.to_owned(),
        occurred_at,
        customer: None,
        client: None,
        page: None,
        product: None,
        search: None,
        cart: None,
        checkout: None,
        order: None,
        refund: None,
    }
}
