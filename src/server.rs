//! The HTTP listener: accepts connections, bounds their number and the time a request's head may take, and drains them. Called by `app`
//! with one router of all rooms; knows no room.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::http::Extensions;
use hyper::server::conn::http1;
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::service::TowerToHyperService;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Semaphore;
use tokio_util::sync::CancellationToken;
use tower::ServiceExt;

/// Bounds of the listener.
#[derive(Clone, Copy, Debug)]
pub struct Settings {
    /// Connections held at once; further ones wait in the kernel's queue.
    pub max_connections: usize,
    /// How long a request's head may take, idle keep-alive included.
    pub header_timeout: Duration,
    /// How long running requests may take to finish once the server stops.
    pub drain: Duration,
}

/// Tells a room what it wants to know of a request's peer, through the request's extensions.
pub type Introduce = fn(SocketAddr, &mut Extensions);

/// Serves until `stop`, then lets running requests finish (new ones on kept connections are not taken) for at most the drain time.
///
/// # Errors
/// When connections were still open at the end of the drain time.
pub async fn serve(
    listener: TcpListener,
    router: Router,
    introduce: Introduce,
    settings: Settings,
    stop: CancellationToken,
) -> Result<(), crate::shutdown::Failure> {
    let places = Arc::new(Semaphore::new(settings.max_connections));
    let mut connections = tokio::task::JoinSet::new();
    loop {
        let place = tokio::select! {
            () = stop.cancelled() => break,
            place = Arc::clone(&places).acquire_owned() => place?,
        };
        let stream = tokio::select! {
            () = stop.cancelled() => break,
            accepted = listener.accept() => match accepted {
                Ok((stream, _)) => stream,
                Err(error) => {
                    // Out of file descriptors and the like: the connection waits, others end and free them.
                    tracing::warn!(error = %error, "connection not accepted");
                    tokio::time::sleep(Duration::from_millis(50)).await;
                    continue;
                }
            },
        };
        while connections.try_join_next().is_some() {}
        if let Some(connection) = connection(stream, &router, introduce, settings.header_timeout, stop.clone()) {
            connections.spawn(async move {
                connection.await;
                drop(place);
            });
        }
    }
    drop(listener);
    let open = connections.len();
    let drained = async { while connections.join_next().await.is_some() {} };
    if tokio::time::timeout(settings.drain, drained).await.is_err() {
        return Err(format!("{open} connections at the stop, some still busy after {:?}", settings.drain).into());
    }
    Ok(())
}

fn connection(
    stream: TcpStream,
    router: &Router,
    introduce: Introduce,
    header_timeout: Duration,
    stop: CancellationToken,
) -> Option<impl Future<Output = ()> + Send + use<>> {
    let peer = stream.peer_addr().ok()?;
    // Answers are written whole; waiting for more to send would only delay them.
    stream.set_nodelay(true).ok()?;
    let service = router.clone().map_request(move |mut request: hyper::Request<hyper::body::Incoming>| {
        introduce(peer, request.extensions_mut());
        request.map(axum::body::Body::new)
    });
    let served = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(header_timeout)
        .serve_connection(TokioIo::new(stream), TowerToHyperService::new(service))
        // A connection that becomes a websocket is its room's from then on, and no longer counted or drained here.
        .with_upgrades();
    Some(async move {
        let mut served = std::pin::pin!(served);
        let ended = tokio::select! {
            ended = served.as_mut() => ended,
            () = stop.cancelled() => {
                served.as_mut().graceful_shutdown();
                served.await
            }
        };
        if let Err(error) = ended {
            tracing::debug!(error = %error, "connection ended early");
        }
    })
}
