//! /proc/PID/status.

use super::{bad, path, text, Pid};
use crate::error::Result;

/// The key-value rows of a status file.
#[derive(Debug, Clone)]
pub struct Status {
    text: String,
    /// Where each row, its value and the next row begin.
    rows: Vec<(usize, usize, usize)>,
}

impl Status {
    /// Of the text of a status file.
    pub fn parse(text: &str) -> Status {
        Status::of(text.to_owned())
    }

    fn of(text: String) -> Status {
        let mut rows = Vec::with_capacity(64);
        let mut at = 0;
        for row in text.split_inclusive('\n') {
            rows.extend(row.find(':').map(|colon| (at, at + colon + 1, at + row.len())));
            at += row.len();
        }
        Status { text, rows }
    }

    /// Reads /proc/PID/status.
    pub fn read(pid: Pid) -> Result<Status> {
        Ok(Status::of(text(&path(pid, "status"))?))
    }

    /// Reads the status file of one thread.
    pub fn read_thread(pid: Pid, tid: Pid) -> Result<Status> {
        Ok(Status::of(text(&path(pid, &format!("task/{tid}/status")))?))
    }

    /// A row's text; empty if the kernel does not print it.
    pub fn get(&self, key: &str) -> &str {
        let row = self.rows.iter().find(|(row, value, _)| &self.text[*row..value - 1] == key);
        row.map_or("", |&(_, value, end)| self.text[value..end].trim())
    }

    /// A row's decimal numbers.
    pub fn numbers(&self, key: &str) -> Result<Vec<i64>> {
        let words = self.get(key).split_whitespace().filter(|word| *word != "kB");
        words.map(|word| word.parse().map_err(|_| bad(key, self.get(key)))).collect()
    }

    /// A row's only, or first, decimal number; 0 if the row is absent.
    pub fn number(&self, key: &str) -> Result<i64> {
        Ok(self.numbers(key)?.first().copied().unwrap_or(0))
    }

    /// A row's last number: the innermost namespace's view in NSpid and its kin.
    pub fn innermost(&self, key: &str) -> Result<Pid> {
        self.numbers(key)?.last().map(|n| *n as Pid).ok_or_else(|| bad(key, "no such row"))
    }

    /// A row in hexadecimal.
    pub fn hex(&self, key: &str) -> Result<u64> {
        u64::from_str_radix(self.get(key), 16).map_err(|_| bad(key, self.get(key)))
    }

    /// A row in octal.
    pub fn octal(&self, key: &str) -> Result<u32> {
        u32::from_str_radix(self.get(key), 8).map_err(|_| bad(key, self.get(key)))
    }
}

#[cfg(test)]
mod tests {
    #[test]
    fn rows_by_kind() {
        let status = super::Status::parse("Name:\ta: b\nUmask:\t0022\nUid:\t0\t1\t2\t3\nSigBlk:\t00000000000000ff\nNSpid:\t100\t7\nVmLck:\t  4 kB\n");
        assert_eq!(status.get("Name"), "a: b");
        assert_eq!(status.octal("Umask").unwrap(), 0o22);
        assert_eq!(status.numbers("Uid").unwrap(), [0, 1, 2, 3]);
        assert_eq!(status.hex("SigBlk").unwrap(), 0xff);
        assert_eq!(status.innermost("NSpid").unwrap(), 7);
        assert_eq!(status.number("VmLck").unwrap(), 4);
    }
}
