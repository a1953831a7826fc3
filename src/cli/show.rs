//! Numbers as people read and write them.

use std::io::{stderr, IsTerminal, Write};
use std::time::{Duration, SystemTime};

use crate::error::{Error, Kind, Result};
use crate::proc::Pid;

/// A count of bytes in binary units.
pub fn bytes(count: u64) -> String {
    const UNITS: [&str; 5] = ["KiB", "MiB", "GiB", "TiB", "PiB"];
    if count < 1024 {
        return format!("{count} B");
    }
    let mut value = count as f64 / 1024.0;
    let mut unit = 0;
    while value >= 1023.95 && unit + 1 < UNITS.len() {
        value /= 1024.0;
        unit += 1;
    }
    format!("{value:.1} {}", UNITS[unit])
}

/// A count of things, in words.
pub fn count(number: usize, one: &str, many: &str) -> String {
    format!("{number} {}", if number == 1 { one } else { many })
}

/// Nanoseconds as milliseconds.
pub fn millis(ns: u64) -> String {
    format!("{:.1} ms", ns as f64 / 1e6)
}

/// How long ago an instant was, in its largest two units; clocks that went back make it "now".
pub fn age(taken_ns: u64) -> String {
    let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
    span(now.saturating_sub(Duration::from_nanos(taken_ns)).as_secs())
}

fn span(seconds: u64) -> String {
    match seconds {
        0 => "now".to_owned(),
        1..60 => format!("{seconds}s"),
        60..3600 => format!("{}m {}s", seconds / 60, seconds % 60),
        3600..86_400 => format!("{}h {}m", seconds / 3600, seconds / 60 % 60),
        _ => format!("{}d {}h", seconds / 86_400, seconds / 3600 % 24),
    }
}

/// Reads a duration: a positive number and ms, s, m or h.
pub fn parse_duration(text: &str) -> Result<Duration> {
    let digits = text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len());
    let millis = match &text[digits..] {
        "ms" => Some(1),
        "s" => Some(1000),
        "m" => Some(60_000),
        "h" => Some(3_600_000),
        _ => None,
    };
    let total = millis.and_then(|unit: u64| text[..digits].parse::<u64>().ok()?.checked_mul(unit)).filter(|&total| total > 0);
    total.map(Duration::from_millis).ok_or_else(|| Error::new(Kind::Usage, format!("'{text}' is no duration; write a number above 0 and a unit, as in 500ms, 10s, 5m or 2h")))
}

/// Progress on a terminal, which goes away in the end.
pub struct Percent {
    shown: bool,
    last: u64,
}

impl Percent {
    /// Nothing is shown unless `wanted`, and standard error is a terminal.
    pub fn new(wanted: bool) -> Percent {
        Percent { shown: wanted && stderr().is_terminal(), last: u64::MAX }
    }

    /// So much of so much is done.
    pub fn show(&mut self, done: u64, total: u64) {
        let now = done.saturating_mul(100).checked_div(total).unwrap_or(100);
        if self.shown && now != self.last {
            self.last = now;
            // Progress that cannot be shown is no reason to stop.
            let _ = write!(stderr(), "\r{now:3} %");
        }
    }
}

impl Drop for Percent {
    fn drop(&mut self) {
        if self.shown {
            let _ = write!(stderr(), "\r     \r");
        }
    }
}

/// Reads a count of bytes: a positive number, in units of 1024 with k, M, G or T.
pub fn parse_size(text: &str) -> Result<u64> {
    let digits = text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len());
    let shift = match &text[digits..] {
        "" => Some(0),
        "k" | "K" => Some(10),
        "M" => Some(20),
        "G" => Some(30),
        "T" => Some(40),
        _ => None,
    };
    let total = shift.and_then(|shift: u32| text[..digits].parse::<u64>().ok()?.checked_mul(1 << shift)).filter(|&total| total > 0);
    total.ok_or_else(|| Error::new(Kind::Usage, format!("'{text}' is no number of bytes; write a number above 0 and k, M, G, T or no unit, as in 512k, 64M or 2G")))
}

/// Reads a process id.
pub fn parse_pid(text: &str) -> Result<Pid> {
    let pid = text.parse().ok().filter(|&pid: &Pid| pid > 0);
    pid.ok_or_else(|| Error::new(Kind::Usage, format!("'{text}' is no process id; write a number above 0, as ps shows it")))
}

/// Rows as columns of equal width, two spaces apart; the last column is left as it is.
pub fn table(rows: &[Vec<String>]) -> String {
    let columns = rows.iter().map(Vec::len).max().unwrap_or(0);
    let widths: Vec<usize> = (0..columns).map(|at| rows.iter().filter_map(|row| row.get(at)).map(|cell| cell.chars().count()).max().unwrap_or(0)).collect();
    let mut text = String::new();
    for row in rows {
        let cells: Vec<String> = row.iter().zip(&widths).map(|(cell, width)| format!("{cell:<width$}")).collect();
        text.push_str(cells.join("  ").trim_end());
        text.push('\n');
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations_have_a_unit() {
        for (text, millis) in [("500ms", 500), ("10s", 10_000), ("5m", 300_000), ("2h", 7_200_000)] {
            assert_eq!(parse_duration(text).unwrap(), Duration::from_millis(millis));
        }
        for text in ["", "10", "s", "0s", "-1s", "1.5s", "1d", "1 s", "18446744073709551615h", "é"] {
            assert_eq!(parse_duration(text).unwrap_err().kind(), Kind::Usage, "{text}");
        }
    }

    #[test]
    fn counts_of_bytes_may_have_a_unit() {
        for (text, bytes) in [("1", 1), ("4096", 4096), ("512k", 512 << 10), ("3K", 3 << 10), ("64M", 64 << 20), ("2G", 2 << 30), ("1T", 1 << 40)] {
            assert_eq!(parse_size(text).unwrap(), bytes);
        }
        for text in ["", "0", "0k", "k", "1.5M", "-1", "1 M", "1m", "1MB", "99999999999999999999", "18446744073709551615k", "é"] {
            assert_eq!(parse_size(text).unwrap_err().kind(), Kind::Usage, "{text}");
        }
    }

    #[test]
    fn sizes_and_ages_are_short() {
        assert_eq!([0, 1023, 1024, 1_048_575, 5 << 30].map(bytes), ["0 B", "1023 B", "1.0 KiB", "1.0 MiB", "5.0 GiB"]);
        assert_eq!([0, 59, 61, 7265, 90_000].map(span), ["now", "59s", "1m 1s", "2h 1m", "1d 1h"]);
        assert_eq!(age(u64::MAX), "now");
    }

    #[test]
    fn columns_line_up() {
        let row = |cells: [&str; 2]| cells.map(str::to_owned).to_vec();
        assert_eq!(table(&[row(["a", "long one"]), row(["bcd", "x"])]), "a    long one\nbcd  x\n");
    }
}
