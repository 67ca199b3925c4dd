//! Items updated by REST, open loop: each answer means that the update is applied and durable. Ends in the books: every item stands at the revision that its
//! updates give it, and every write is archived.

use std::path::Path;

use anyhow::ensure;

use super::{Plan, requests, text};
use crate::account::Account;
use crate::books;
use crate::findings::Findings;
use crate::http::{self, Connection};
use crate::load::{Pace, ms, send};
use crate::process::Server;

const CONNECTIONS: usize = 64;

/// Updates at the rate asked for, each of another map than the one before.
pub(super) async fn measure(contrail: &Path, plan: &Plan, findings: &mut Findings) -> anyhow::Result<()> {
    let server = Server::start(contrail, &[], None).await?;
    let Account { basic, .. } = Account::of(contrail, &server)?;
    let objects = plan.objects.max(1);
    let with = basic.clone();
    let maps = (0..objects).map(move |n| http::sync("POST", "/Maps", &with, &[("UniqueName", &format!("m{n}"))]));
    send(&server.address, requests(maps), CONNECTIONS, Pace::Closed).await?;
    let with = basic.clone();
    let items = (0..objects).map(move |n| http::sync("POST", &format!("/Maps/m{n}/Items"), &with, &[("Key", "k"), ("Data", r#"{"n":0}"#)]));
    send(&server.address, requests(items), CONNECTIONS, Pace::Closed).await?;
    let count = (plan.rate * plan.seconds as f64) as usize;
    let with = basic.clone();
    let updates = (0..count).map(move |n| {
        let data = format!(r#"{{"n":{n},"status":"waiting","agent":"agent-{}"}}"#, n % 97);
        http::sync("POST", &format!("/Maps/m{}/Items/k", n % objects), &with, &[("Data", &data)])
    });
    let before = server.usage()?.cpu;
    let sent = send(&server.address, requests(updates), CONNECTIONS, Pace::Open(plan.rate)).await?;
    let cpu = (server.usage()?.cpu - before).as_secs_f64() * 1e6 / sent.requests.max(1) as f64;
    let latency = |quantile| ms(&sent.latency, quantile);
    findings.note(
        format!("update: {count} of {objects} items at {:.0}/s over {CONNECTIONS} connections", plan.rate),
        format!("p50 {:.2} ms, p90 {:.2} ms, max {:.1} ms; {cpu:.0} us of CPU each", latency(0.5), latency(0.9), latency(1.0)),
    );
    findings.at_most("update: answer, applied and durable, p99", latency(0.99), 20.0, "ms");
    findings.at_least("update: answered a second", sent.requests as f64 / sent.took.as_secs_f64(), plan.rate * 0.99, "");
    findings.exactly("update: answered 2xx", sent.requests, count as u64);
    findings.exactly("update: sent again after 429 or 503", sent.repeated, 0);
    let mut connection = Connection::open(&server.address).await?;
    let mut revisions = 0;
    for n in 0..objects {
        let answer = connection.call(&http::sync("GET", &format!("/Maps/m{n}/Items/k"), &basic, &[])).await?;
        ensure!(answer.status == 200, "m{n}: {}", answer.status);
        revisions += text(&answer.body, "revision")?.parse::<u64>()?;
    }
    findings.exactly("update: revisions of all items", revisions, count as u64);
    books::settle(&server, &books::ALL).await?;
    books::audit(contrail, &server, findings)?;
    findings.exactly("update: archived writes", books::exported(contrail, &server)?, (count + 2 * objects) as u64);
    server.stop().await
}
