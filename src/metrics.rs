//! Figures of continuous protection, for people and for Prometheus.

use std::fmt::Write as _;
use std::fs;
use std::path::Path;
use std::time::{Duration, Instant, SystemTime};

use crate::checkpoint::Report;
use crate::error::{Context, Result};
use crate::proc::Pid;
use crate::sys::PAGE;

/// Figures of one protected tree.
#[derive(Debug)]
pub struct Metrics {
    pid: Pid,
    name: String,
    epochs: u64,
    failures: u64,
    pause: Sum,
    lag: Sum,
    dirty_bytes: u64,
    stored_bytes: u64,
    /// Bytes written a second by the tree, going by the last increment.
    dirty_rate: f64,
    interval: Duration,
    sequence: u64,
    taken: Option<SystemTime>,
    before: Option<Instant>,
}

/// Seconds, summed up.
#[derive(Debug, Default)]
struct Sum {
    last: f64,
    total: f64,
    most: f64,
}

impl Sum {
    fn add(&mut self, ns: u64) {
        self.last = ns as f64 / 1e9;
        self.total += self.last;
        self.most = self.most.max(self.last);
    }
}

impl Metrics {
    /// No epoch yet.
    pub fn new(pid: Pid) -> Metrics {
        Metrics {
            pid,
            name: String::new(),
            epochs: 0,
            failures: 0,
            pause: Sum::default(),
            lag: Sum::default(),
            dirty_bytes: 0,
            stored_bytes: 0,
            dirty_rate: 0.0,
            interval: Duration::ZERO,
            sequence: 0,
            taken: None,
            before: None,
        }
    }

    /// Adds a frame taken at this interval.
    pub fn epoch(&mut self, report: &Report, interval: Duration) {
        self.epochs += 1;
        self.name = report.frame.name().to_owned();
        self.sequence = report.frame.seq();
        self.pause.add(report.pause_ns);
        self.lag.add(report.lag_ns);
        self.stored_bytes += report.bytes;
        self.interval = interval;
        let now = Instant::now();
        // A full frame says nothing of what was written.
        if report.parent.is_some() {
            let bytes = (report.pages + report.zero_pages) * PAGE;
            self.dirty_bytes += bytes;
            let since = self.before.map_or(interval, |before| now - before);
            self.dirty_rate = bytes as f64 / since.as_secs_f64().max(1e-3);
        }
        self.before = Some(now);
        self.taken = Some(SystemTime::now());
    }

    /// Counts a frame that could not be taken.
    pub fn failure(&mut self) {
        self.failures += 1;
    }

    /// Frames taken.
    pub fn epochs(&self) -> u64 {
        self.epochs
    }

    /// The state of things on one line.
    pub fn sentence(&self, report: &Report) -> String {
        let kind = if report.parent.is_some() { "increment" } else { "full" };
        format!(
            "epoch {}: {} ({kind}, {:.1} MiB), paused {:.1} ms, {:.1} MiB/s written, durable {:.0} ms later",
            self.epochs,
            report.frame,
            report.bytes as f64 / f64::from(1 << 20),
            self.pause.last * 1e3,
            self.dirty_rate / f64::from(1 << 20),
            self.lag.last * 1e3,
        )
    }

    /// All figures in Prometheus' text format.
    pub fn text(&self) -> String {
        let mut text = String::new();
        let labels = format!("{{name=\"{}\",pid=\"{}\"}}", self.name, self.pid);
        let mut put = |name: &str, kind: &str, help: &str, value: f64| {
            let _ = writeln!(text, "# HELP stillframe_{name} {help}\n# TYPE stillframe_{name} {kind}\nstillframe_{name}{labels} {value}");
        };
        put("epochs_total", "counter", "Frames taken.", self.epochs as f64);
        put("failures_total", "counter", "Frames that could not be taken.", self.failures as f64);
        put("pause_seconds", "gauge", "How long the tree stood still for the last frame.", self.pause.last);
        put("pause_seconds_total", "counter", "How long the tree stood still for all frames.", self.pause.total);
        put("pause_seconds_max", "gauge", "The longest of all pauses.", self.pause.most);
        put("durable_lag_seconds", "gauge", "From the instant of the last frame until it was safe on storage.", self.lag.last);
        put("durable_lag_seconds_max", "gauge", "The longest of all lags.", self.lag.most);
        put("written_bytes_total", "counter", "Memory that the tree wrote, counted in pages once an epoch.", self.dirty_bytes as f64);
        put("written_bytes_per_second", "gauge", "The same, by the last increment.", self.dirty_rate);
        put("stored_bytes_total", "counter", "Bytes of all frames.", self.stored_bytes as f64);
        put("interval_seconds", "gauge", "From one frame to the next.", self.interval.as_secs_f64());
        put("last_sequence", "gauge", "Number of the last frame.", self.sequence as f64);
        let taken = self.taken.and_then(|taken| taken.duration_since(SystemTime::UNIX_EPOCH).ok()).unwrap_or_default();
        put("last_frame_timestamp_seconds", "gauge", "When the last frame became durable.", taken.as_secs_f64());
        text
    }

    /// Renews the file at `path`; a reader sees the old text or the new one.
    pub fn write(&self, path: &Path) -> Result<()> {
        let new = path.with_extension("new");
        fs::write(&new, self.text()).at("write", &new)?;
        fs::rename(&new, path).at("renew", path)
    }
}
