//! The machine a frame was taken on, as far as a second instance may depend on it.

use std::collections::BTreeSet;
use std::path::Path;

use nix::time::{clock_gettime, ClockId};
use serde::{Deserialize, Serialize};

use crate::arch::cpu;
use crate::error::{Context, Error, Result};
use crate::proc::{self, offsets, Pid};

/// A machine at an instant.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Host {
    /// Host name in the target's uts namespace.
    pub hostname: String,
    /// Kernel release.
    pub kernel: String,
    /// Tells one boot from another.
    pub boot_id: String,
    /// Processor model.
    pub cpu: String,
    /// Its user-visible features, by their names in /proc/cpuinfo.
    pub cpu_features: BTreeSet<String>,
    /// CLOCK_MONOTONIC in nanoseconds.
    pub monotonic_ns: i64,
    /// CLOCK_BOOTTIME in nanoseconds.
    pub boottime_ns: i64,
}

impl Host {
    /// This machine, now.
    pub fn here() -> Result<Host> {
        let cpuinfo = proc::text(Path::new("/proc/cpuinfo"))?;
        let read = |path: &str| proc::text(Path::new(path)).map(|text| text.trim().to_owned());
        Ok(Host {
            hostname: read("/proc/sys/kernel/hostname")?,
            kernel: read("/proc/sys/kernel/osrelease")?,
            boot_id: read("/proc/sys/kernel/random/boot_id")?,
            cpu: cpu::model(&cpuinfo),
            cpu_features: cpu::features(&cpuinfo),
            monotonic_ns: clock(ClockId::CLOCK_MONOTONIC)?,
            boottime_ns: clock(ClockId::CLOCK_BOOTTIME)?,
        })
    }

    /// Brings the clocks up to date, as process `pid` sees them.
    pub fn read_clocks(&mut self, pid: Pid) -> Result<()> {
        let read = |pid: &str| offsets::parse(&proc::text(Path::new(&format!("/proc/{pid}/timens_offsets"))).unwrap_or_default());
        let (ours, theirs) = (read("self"), read(&pid.to_string()));
        self.monotonic_ns = clock(ClockId::CLOCK_MONOTONIC)? + theirs.get("monotonic") - ours.get("monotonic");
        self.boottime_ns = clock(ClockId::CLOCK_BOOTTIME)? + theirs.get("boottime") - ours.get("boottime");
        Ok(())
    }

    /// Refuses this machine if its processor lacks what a frame of `other` may use.
    pub fn check_cpu(&self, other: &Host) -> Result<()> {
        let missing: Vec<&str> = other.cpu_features.difference(&self.cpu_features).map(String::as_str).collect();
        if missing.is_empty() {
            return Ok(());
        }
        Err(Error::refused(format!(
            "this processor ({}) lacks {}, which the frame's program may use (taken on {}); restore on a processor that has it, or --allow-changed",
            self.cpu,
            missing.join(", "),
            other.cpu
        )))
    }
}

fn clock(id: ClockId) -> Result<i64> {
    let now = clock_gettime(id).context("cannot read the clock")?;
    Ok(now.tv_sec() * 1_000_000_000 + now.tv_nsec())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_missing_feature_is_named() {
        let here = Host::here().unwrap();
        here.check_cpu(&here).unwrap();
        let mut other = here.clone();
        other.cpu_features.insert("amx_dream".to_owned());
        assert!(here.check_cpu(&other).unwrap_err().to_string().contains("amx_dream"));
    }
}
