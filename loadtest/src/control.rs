//! The control beside a measurement: how fast this machine is right now. Its clock swings by a factor of two within seconds, and nothing in
//! `/proc` shows it; so a thread parses the same 40 events every 20 ms and reads its own CPU time.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::JoinHandle;
use std::time::Duration;

/// A running control.
pub(crate) struct Control {
    stop: Arc<AtomicBool>,
    /// Nanoseconds and parses since the last reading.
    sums: Arc<(AtomicU64, AtomicU64)>,
    thread: Option<JoinHandle<()>>,
}

/// CPU nanoseconds of the calling thread.
fn own_cpu() -> u64 {
    let told = std::fs::read_to_string("/proc/thread-self/schedstat").unwrap_or_default();
    told.split_whitespace().next().and_then(|n| n.parse().ok()).unwrap_or(0)
}

impl Control {
    /// Starts it over the bodies given.
    pub(crate) fn start(bodies: Vec<Vec<u8>>) -> Self {
        let (stop, sums) = (Arc::new(AtomicBool::new(false)), Arc::new((AtomicU64::new(0), AtomicU64::new(0))));
        let (stopped, summed) = (Arc::clone(&stop), Arc::clone(&sums));
        let thread = std::thread::spawn(move || {
            while !stopped.load(Ordering::Relaxed) {
                let before = own_cpu();
                for body in &bodies {
                    std::hint::black_box(serde_json::from_slice::<serde_json::Value>(body).ok());
                }
                summed.0.fetch_add(own_cpu().saturating_sub(before), Ordering::Relaxed);
                summed.1.fetch_add(bodies.len() as u64, Ordering::Relaxed);
                std::thread::sleep(Duration::from_millis(20));
            }
        });
        Self { stop, sums, thread: Some(thread) }
    }

    /// Microseconds of one parse since the last reading.
    pub(crate) fn read(&self) -> f64 {
        let (nanos, parses) = (self.sums.0.swap(0, Ordering::Relaxed), self.sums.1.swap(0, Ordering::Relaxed));
        nanos as f64 / 1000.0 / parses.max(1) as f64
    }
}

impl Drop for Control {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take() {
            drop(thread.join());
        }
    }
}
