//! One attempt to tell a service: the form, its signature, and what the answer means. Called by the room's loop. Must never log what is told.

use std::sync::Arc;
use std::time::Duration;

use hyper::header::{HeaderName, HeaderValue, USER_AGENT};
use hyper::{Method, StatusCode};
use url::Url;

use super::message::Message;
use super::queue::Outcome;
use crate::event::SiteId;
use crate::outbound::{Client, Error, Request};
use crate::signature;
use crate::site::Sites;

/// Bytes of an answer that are read: nobody looks at them, but a connection whose answer was read can be used again.
const ANSWER: usize = 16 << 10;
/// Names a webhook, the same however often it is sent.
const IDEMPOTENCY: HeaderName = HeaderName::from_static("i-twilio-idempotency-token");

/// What attempts are made with.
#[derive(Clone, Debug)]
pub(super) struct Delivery {
    pub(super) client: Client,
    pub(super) sites: Arc<Sites>,
    pub(super) timeout: Duration,
}

impl Delivery {
    /// Tells a service, as it is set now.
    pub(super) async fn attempt(&self, site: &SiteId, message: &Message) -> Outcome {
        let (Some(site), Some(token)) = (self.sites.get(site), self.sites.webhook_secret(site)) else { return Outcome::Refused("off") };
        let Some(configured) = site.service.webhook_url.as_deref() else { return Outcome::Refused("off") };
        let Ok(url) = Url::parse(configured) else { return Outcome::Refused("url") };
        let form = message.params(&site.service);
        let (Ok(signed), Ok(id)) = (HeaderValue::from_str(&signature::of(&token, configured, &form)), HeaderValue::from_str(&message.id)) else {
            return Outcome::Refused("url");
        };
        let headers = [(HeaderName::from_static(signature::HEADER), signed), (IDEMPOTENCY, id), (USER_AGENT, HeaderValue::from_static("Contrail"))];
        let request =
            Request { method: Method::POST, url: &url, headers: &headers, basic: None, form: &form, timeout: self.timeout, max_body: ANSWER };
        match self.client.send(&request).await {
            Ok(answer) => of_status(answer.status),
            Err(Error::Private) => Outcome::Refused("private"),
            Err(Error::Url) => Outcome::Refused("url"),
            Err(Error::Connect(_)) => Outcome::Failed("connect"),
            Err(Error::Broken(_)) => Outcome::Failed("broken"),
            Err(Error::Timeout) => Outcome::Failed("timeout"),
        }
    }
}

fn of_status(status: StatusCode) -> Outcome {
    match status {
        StatusCode::REQUEST_TIMEOUT | StatusCode::TOO_MANY_REQUESTS => Outcome::Failed("busy"),
        _ if status.is_success() => Outcome::Told,
        _ if status.is_server_error() => Outcome::Failed("status"),
        _ => Outcome::Refused("refused"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_an_answer_means() {
        let of = |status: u16| of_status(StatusCode::from_u16(status).unwrap());
        for status in [200, 201, 204, 299] {
            assert_eq!(of(status), Outcome::Told, "{status}");
        }
        for status in [301, 302, 307, 308, 400, 401, 403, 404, 410, 422] {
            assert_eq!(of(status), Outcome::Refused("refused"), "{status}");
        }
        assert_eq!((of(408), of(429)), (Outcome::Failed("busy"), Outcome::Failed("busy")));
        for status in [500, 502, 503, 504, 599] {
            assert_eq!(of(status), Outcome::Failed("status"), "{status}");
        }
    }
}
