//! Connections that are told nothing: what each costs in memory, and how long it takes until all are back that were cut at once.

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context, ensure};
use futures::StreamExt;
use tokio::sync::{mpsc, watch};
use tokio::task::JoinSet;

use super::{Plan, text};
use crate::account::Account;
use crate::books;
use crate::findings::Findings;
use crate::http::{self, Connection};
use crate::process::{Server, open_files};
use crate::twilsock::{Client, Known};

/// Subscriptions of each.
const SUBSCRIPTIONS: usize = 5;
/// Clients that connect at once the first time.
const CONNECTING: usize = 100;
/// How long nothing happens before memory is read.
const REST: Duration = Duration::from_secs(10);
/// Pause before a client that could not connect tries again.
const AGAIN: Duration = Duration::from_millis(500);

/// All clients, each in a task of its own that holds its connection.
struct Crowd {
    tasks: JoinSet<anyhow::Result<()>>,
    cut: watch::Sender<bool>,
    back: mpsc::Receiver<()>,
    refused: Arc<AtomicU64>,
}

/// Connects as many as asked for, cuts all, and has all come back.
pub(super) async fn measure(contrail: &Path, plan: &Plan, findings: &mut Findings) -> anyhow::Result<()> {
    open_files(plan.connections + 500)?;
    let server = Server::start(contrail, &[], None).await?;
    let account = Account::of(contrail, &server)?;
    let mut connection = Connection::open(&server.address).await?;
    let mut sids = Vec::new();
    for n in 0..plan.objects.max(SUBSCRIPTIONS) {
        let made = connection.call(&http::sync("POST", "/Documents", &account.basic, &[("UniqueName", &format!("d{n}"))])).await?;
        ensure!(made.status == 201, "an object was refused: {}", made.status);
        sids.push(text(&made.body, "sid")?);
    }
    books::settle(&server, &books::ALL).await?;
    tokio::time::sleep(REST).await;
    let without = server.usage()?.resident;
    let (mut crowd, connected) = Crowd::gather(&server.address, &account.token, &sids, plan.connections).await?;
    tokio::time::sleep(REST).await;
    let with = server.usage()?;
    let each = with.resident.saturating_sub(without) as f64 / plan.connections.max(1) as f64 / 1e3;
    findings.note(
        format!("crowd: {} connections of {SUBSCRIPTIONS} subscriptions", plan.connections),
        format!(
            "resident {:.1} MB, and {:.1} MB with them; connected in {:.1} s",
            without as f64 / 1e6,
            with.resident as f64 / 1e6,
            connected.as_secs_f64()
        ),
    );
    findings.at_most("crowd: resident, each", each, 20.0, "kB");
    let back = crowd.come_back(plan.connections).await?;
    findings.at_most("crowd: all back that were cut at once, subscriptions included", back.as_secs_f64(), 60.0, "s");
    findings.note("crowd: attempts that were refused meanwhile", crowd.refused.load(Ordering::Relaxed).to_string());
    let after = server.usage()?;
    findings.note("crowd: CPU of that", format!("{:.0} us each", (after.cpu - with.cpu).as_secs_f64() * 1e6 / plan.connections.max(1) as f64));
    crowd.tasks.shutdown().await;
    server.stop().await
}

impl Crowd {
    /// Connects them, some at once. Gives how long it took.
    async fn gather(address: &str, token: &str, sids: &[String], connections: usize) -> anyhow::Result<(Self, Duration)> {
        let began = Instant::now();
        let (cut, is_cut) = watch::channel(false);
        let (tell, back) = mpsc::channel(connections.max(1));
        let mut crowd = Self { tasks: JoinSet::new(), cut, back, refused: Arc::default() };
        let connecting = (0..connections).map(|n| async move {
            let objects = (0..SUBSCRIPTIONS).filter_map(|m| sids.get((n * SUBSCRIPTIONS + m) % sids.len())).map(|sid| (sid.clone(), None));
            let mut client = Client::open(address, token).await?;
            let known = client.subscribe("document", &objects.collect::<Vec<_>>()).await?;
            anyhow::Ok((client, known))
        });
        let mut connecting = futures::stream::iter(connecting).buffer_unordered(CONNECTING);
        while let Some(connected) = connecting.next().await {
            let (client, known) = connected?;
            let (address, token, is_cut, tell) = (address.to_owned(), token.to_owned(), is_cut.clone(), tell.clone());
            let refused = Arc::clone(&crowd.refused);
            crowd.tasks.spawn(async move {
                stay(client, is_cut).await?;
                let client = return_to(&address, &token, &known, &refused).await;
                if tell.send(()).await.is_err() {
                    anyhow::bail!("nobody counts who is back");
                }
                rest(client).await
            });
        }
        Ok((crowd, began.elapsed()))
    }

    /// Cuts all connections and waits until all are there again. Gives how long that took.
    async fn come_back(&mut self, connections: usize) -> anyhow::Result<Duration> {
        let began = Instant::now();
        self.cut.send(true).context("no client is left")?;
        for _ in 0..connections {
            tokio::select! {
                back = self.back.recv() => back.context("no client is left")?,
                Some(ended) = self.tasks.join_next() => ended.context("a client panicked")?.context("a client ended")?,
            }
        }
        Ok(began.elapsed())
    }
}

/// Holds a connection until it is to be cut.
async fn stay(client: Client, mut is_cut: watch::Receiver<bool>) -> anyhow::Result<()> {
    tokio::select! {
        ended = rest(client) => ended,
        cut = is_cut.wait_for(|cut| *cut) => cut.map(drop).context("nobody cuts it"),
    }
}

/// Holds a connection. It is told nothing.
async fn rest(mut client: Client) -> anyhow::Result<()> {
    let told = client.next().await?;
    anyhow::bail!("an idle client was told of {}", told.event_type)
}

/// Connects and subscribes, as often as it takes.
async fn return_to(address: &str, token: &str, known: &[Known], refused: &AtomicU64) -> Client {
    loop {
        let attempt = async {
            let mut client = Client::open(address, token).await?;
            client.subscribe("document", known).await?;
            anyhow::Ok(client)
        };
        match attempt.await {
            Ok(client) => return client,
            Err(_) => {
                refused.fetch_add(1, Ordering::Relaxed);
                tokio::time::sleep(AGAIN).await;
            }
        }
    }
}
