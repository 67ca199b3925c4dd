//! What every run ends with: all accepted is archived and counted, by three independent words. The server's own audit, the number of rows an export
//! gives, and the simulator's tally of what it sent.

use std::io::{BufRead, BufReader};
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, bail, ensure};
use contrail::archive::report::{Answer, MAX_LIMIT, ReportName};
use contrail::simulate::Tally;
use serde_json::Value;

use crate::findings::Findings;
use crate::http::{self, Connection};
use crate::load::Outcome;
use crate::process::{READ_TOKEN, Server};

/// Longest wait for the readers to catch up.
const PATIENCE: Duration = Duration::from_secs(300);

/// How far the readers named are behind, in records.
pub(crate) async fn behind(server: &Server, readers: &[&str]) -> anyhow::Result<u64> {
    let token = std::fs::read_to_string(server.data.join("admin.token"))?;
    let mut connection = Connection::open(&server.address).await?;
    let answer = connection.call(&http::get("/admin/progress", token.trim())).await?;
    ensure!(answer.status == 200, "progress: status {}", answer.status);
    let told: Value = serde_json::from_slice(&answer.body)?;
    Ok(readers.iter().filter_map(|reader| told.get("behind")?.get(reader)?.as_u64()).sum())
}

/// Waits until the readers named have passed all that is in the log.
pub(crate) async fn settle(server: &Server, readers: &[&str]) -> anyhow::Result<Duration> {
    let began = Instant::now();
    while behind(server, readers).await? > 0 {
        if began.elapsed() > PATIENCE {
            bail!("not caught up after {PATIENCE:?}");
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    Ok(began.elapsed())
}

/// All readers.
pub(crate) const ALL: [&str; 3] = ["router", "keeper", "archiver"];

/// Runs `contrail audit` beside the server.
pub(crate) fn audit(contrail: &Path, server: &Server, findings: &mut Findings) -> anyhow::Result<()> {
    let began = Instant::now();
    let told = Command::new(contrail).arg("audit").arg("--data").arg(&server.data).output().context("running contrail audit")?;
    let answer: Value = serde_json::from_slice(&told.stdout).with_context(|| String::from_utf8_lossy(&told.stderr).into_owned())?;
    let figure = |name: &str| answer.get("audit").and_then(|audit| audit.get(name)).and_then(Value::as_u64).unwrap_or(u64::MAX);
    findings.note(
        "audit: rows, cells, hours, log records",
        format!("{}, {}, {}, {}", figure("events"), figure("cells"), figure("hours"), figure("records")),
    );
    findings.note("audit took", format!("{:.1} s", began.elapsed().as_secs_f64()));
    findings.exactly("audit: differences", figure("found"), 0);
    findings.exactly("audit: exit status", u64::from(!told.status.success()), 0);
    if let Some(Value::Array(differences)) = answer.get("audit").and_then(|audit| audit.get("differences")) {
        for difference in differences.iter().take(5) {
            eprintln!("differs: {difference}");
        }
    }
    Ok(())
}

/// Rows that an export gives.
pub(crate) fn exported(contrail: &Path, server: &Server) -> anyhow::Result<u64> {
    let mut export = Command::new(contrail).arg("export").arg("--data").arg(&server.data).stdout(Stdio::piped()).spawn()?;
    let mut out = BufReader::with_capacity(1 << 20, export.stdout.take().context("no standard output")?);
    let (mut rows, mut line) = (0, Vec::new());
    while out.read_until(b'\n', &mut line)? > 0 {
        rows += 1;
        line.clear();
    }
    ensure!(export.wait()?.success(), "the export failed");
    Ok(rows)
}

/// Closes the books of a day: what was acknowledged, what is archived, what is counted. `besides` counts the events sent beside the day's.
pub(crate) async fn close(
    contrail: &Path,
    server: &Server,
    sent: &Outcome,
    tally: &Tally,
    besides: u64,
    findings: &mut Findings,
) -> anyhow::Result<()> {
    let took = settle(server, &ALL).await?;
    findings.note("caught up after the last answer", format!("{:.2} s", took.as_secs_f64()));
    findings.exactly("acknowledged (accepted + duplicates)", sent.accepted + sent.duplicates, tally.sent);
    findings.exactly("rejected", sent.rejected, 0);
    findings.note("requests, and those sent again after 429 or 503", format!("{}, {}", sent.requests, sent.repeated));
    audit(contrail, server, findings)?;
    findings.exactly("archived rows", exported(contrail, server)?, tally.distinct + besides);
    Ok(())
}

/// Asks for every report and compares each row with the tally.
pub(crate) async fn reports(server: &Server, tally: &Tally, from: &str, to: &str, findings: &mut Findings) -> anyhow::Result<()> {
    let mut connection = Connection::open(&server.address).await?;
    for report in ReportName::ALL {
        let path = format!("/v1/reports/{}?from={from}&to={to}&limit={MAX_LIMIT}", report.name());
        let answer = connection.call(&http::get(&path, READ_TOKEN)).await?;
        ensure!(answer.status == 200, "{}: status {}", report.name(), answer.status);
        let difference = contrail::cli::demo::check::differences(&Answer::from_json(&answer.body)?, tally);
        if let Some(told) = &difference {
            eprintln!("differs: {told}");
        }
        findings.exactly(format!("rows of {} unlike the simulator's", report.name()), u64::from(difference.is_some()), 0);
    }
    Ok(())
}
