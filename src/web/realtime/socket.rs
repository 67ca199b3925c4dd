//! One websocket with what is to be sent on it: a bounded queue in front of the socket's own buffer. Owned by a connection; knows no Twilsock.

use std::collections::VecDeque;
use std::future::poll_fn;
use std::task::{Context, Poll};
use std::time::Duration;

use axum::extract::ws::{Message, WebSocket};
use bytes::Bytes;
use futures::{SinkExt, StreamExt};
use tokio::time::Instant;

/// Frames in the queue beyond which no more is made.
const ROOM_FRAMES: usize = 128;
/// Bytes likewise.
const ROOM_BYTES: usize = 128 << 10;

/// A websocket and its queue.
pub(super) struct Socket {
    socket: WebSocket,
    queue: VecDeque<Bytes>,
    bytes: usize,
    /// Whether what was given to the socket is to be flushed.
    unflushed: bool,
    /// When something was last given to the network, or the queue began.
    moved: Instant,
}

/// What came.
#[derive(Debug)]
pub(super) enum Arrived {
    /// A binary message.
    Frame(Bytes),
    /// A message that is none of ours.
    Other,
    /// The queue has room again.
    Room,
    /// The connection is gone.
    Gone,
}

impl Socket {
    /// Of an open websocket.
    pub(super) fn new(socket: WebSocket) -> Self {
        Self { socket, queue: VecDeque::new(), bytes: 0, unflushed: false, moved: Instant::now() }
    }

    /// Puts a frame in the queue.
    pub(super) fn put(&mut self, frame: Bytes) {
        if self.queue.is_empty() && !self.unflushed {
            self.moved = Instant::now();
        }
        self.bytes += frame.len();
        self.queue.push_back(frame);
    }

    /// Whether more is to be made for the queue. Answers that were asked for may still be put in it.
    pub(super) fn has_room(&self) -> bool {
        self.queue.len() < ROOM_FRAMES && self.bytes < ROOM_BYTES
    }

    /// How long the client has read nothing of what is to be sent; None where nothing is.
    pub(super) fn stalled(&self) -> Option<Duration> {
        (self.unflushed || !self.queue.is_empty()).then(|| self.moved.elapsed())
    }

    /// Sends what it can, and gives what comes, if it is to `read`. Where the queue had no room, tells when it has. Cancel-safe.
    pub(super) async fn next(&mut self, read: bool) -> Arrived {
        poll_fn(|context| self.poll(context, read)).await
    }

    fn poll(&mut self, context: &mut Context<'_>, read: bool) -> Poll<Arrived> {
        let full = !self.has_room();
        if self.poll_send(context).is_err() {
            return Poll::Ready(Arrived::Gone);
        }
        if full && self.has_room() {
            return Poll::Ready(Arrived::Room);
        }
        if !read {
            return Poll::Pending;
        }
        loop {
            let Poll::Ready(came) = self.socket.poll_next_unpin(context) else { return Poll::Pending };
            return Poll::Ready(match came {
                Some(Ok(Message::Binary(bytes))) => Arrived::Frame(bytes),
                Some(Ok(Message::Text(_))) => Arrived::Other,
                // Answered by the socket itself.
                Some(Ok(Message::Ping(_) | Message::Pong(_))) => continue,
                Some(Ok(Message::Close(_)) | Err(_)) | None => Arrived::Gone,
            });
        }
    }

    fn poll_send(&mut self, context: &mut Context<'_>) -> Result<(), axum::Error> {
        while !self.queue.is_empty() {
            match self.socket.poll_ready_unpin(context) {
                Poll::Ready(ready) => ready?,
                Poll::Pending => return Ok(()),
            }
            if let Some(frame) = self.queue.pop_front() {
                self.bytes = self.bytes.saturating_sub(frame.len());
                self.socket.start_send_unpin(Message::Binary(frame))?;
                self.unflushed = true;
                self.moved = Instant::now();
            }
        }
        if self.queue.capacity() > ROOM_FRAMES / 4 {
            self.queue = VecDeque::new();
        }
        if self.unflushed
            && let Poll::Ready(flushed) = self.socket.poll_flush_unpin(context)
        {
            flushed?;
            self.unflushed = false;
        }
        Ok(())
    }

    /// Sends what is left, then ends the connection; gives up where that takes long.
    pub(super) async fn close(mut self) {
        let all = async {
            while let Some(frame) = self.queue.pop_front() {
                if self.socket.send(Message::Binary(frame)).await.is_err() {
                    return;
                }
            }
            self.socket.send(Message::Close(None)).await.ok();
        };
        tokio::time::timeout(Duration::from_secs(2), all).await.ok();
    }
}
