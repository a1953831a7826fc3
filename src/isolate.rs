//! Fresh namespaces that stand for another machine, and clocks that do not jump back.

use std::fs::{self, File};
use std::os::fd::AsFd;
use std::path::{Path, PathBuf};
use std::str::FromStr;

use nix::mount::{mount, MsFlags};
use nix::sched::{setns, unshare, CloneFlags};

use crate::error::{Context, Error, Kind, Result};
use crate::host::Host;
use crate::proc::offsets;
use crate::sys::fd::{ioctl_set, socket, InterfaceFlags};

/// Which network an isolated instance lives in.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Network {
    /// A new namespace, with only its loopback interface up.
    New,
    /// The caller's.
    Host,
    /// The namespace behind a file such as /run/netns/NAME.
    At(PathBuf),
}

impl FromStr for Network {
    type Err = Error;

    fn from_str(text: &str) -> Result<Network> {
        match text {
            "new" => Ok(Network::New),
            "host" => Ok(Network::Host),
            path if path.starts_with('/') => Ok(Network::At(path.into())),
            _ => Err(Error::new(Kind::Usage, format!("{text:?} is no network; write new, host or the path of a network namespace"))),
        }
    }
}

impl Network {
    /// The CLONE_* flags of the namespaces that go with it: pid, mount, uts, ipc, and perhaps net.
    pub fn clone_flags(&self) -> u64 {
        let all = libc::CLONE_NEWPID | libc::CLONE_NEWNS | libc::CLONE_NEWUTS | libc::CLONE_NEWIPC;
        (all | if *self == Network::New { libc::CLONE_NEWNET } else { 0 }) as u64
    }

    /// Enters a network namespace that exists; before the others are made.
    pub fn enter(&self) -> Result<()> {
        let Network::At(path) = self else { return Ok(()) };
        let file = File::open(path).at("open", path)?;
        setns(file.as_fd(), CloneFlags::CLONE_NEWNET).at("enter", path)
    }
}

/// Furnishes the new namespaces from inside: own /proc, host name, loopback.
pub fn furnish(network: &Network, host: &Host) -> Result<()> {
    let none: Option<&str> = None;
    mount(none, "/", none, MsFlags::MS_REC | MsFlags::MS_PRIVATE, none).context("cannot make the mounts private")?;
    mount(Some("proc"), "/proc", Some("proc"), MsFlags::MS_NOSUID | MsFlags::MS_NODEV | MsFlags::MS_NOEXEC, none).context("cannot mount /proc")?;
    nix::unistd::sethostname(&host.hostname).context("cannot set the host name")?;
    if *network == Network::New {
        loopback_up()?;
    }
    Ok(())
}

fn loopback_up() -> Result<()> {
    let any = socket(libc::AF_INET, libc::SOCK_DGRAM, 0).context("cannot open a socket")?;
    let request = InterfaceFlags::new("lo", (libc::IFF_UP | libc::IFF_RUNNING) as i16);
    ioctl_set(any.as_fd(), libc::SIOCSIFFLAGS, &request).context("cannot bring the loopback interface up").map(drop)
}

/// Moves the children that we are about to fork into a time namespace, if their clocks would otherwise go back. True if it did.
pub fn keep_clocks_going(then: &Host) -> Result<bool> {
    let now = Host::here()?;
    let behind = |before: i64, after: i64| (before - after).max(0);
    let gaps = [("monotonic", behind(then.monotonic_ns, now.monotonic_ns)), ("boottime", behind(then.boottime_ns, now.boottime_ns))];
    if gaps.iter().all(|(_, gap)| *gap == 0) {
        return Ok(false);
    }
    const CLONE_NEWTIME: i32 = 0x80;
    unshare(CloneFlags::from_bits_retain(CLONE_NEWTIME)).context("the frame's clocks are ahead of ours, and a time namespace cannot be made for it (needs CAP_SYS_ADMIN)")?;
    let path = Path::new("/proc/self/timens_offsets");
    let offsets = offsets::parse(&fs::read_to_string(path).at("read", path)?);
    let rows: String = gaps.iter().map(|(clock, gap)| row(clock, offsets.get(clock) + gap)).collect();
    fs::write(path, rows).at("write", path)?;
    Ok(true)
}

fn row(clock: &str, offset_ns: i64) -> String {
    format!("{clock} {} {}\n", offset_ns.div_euclid(1_000_000_000), offset_ns.rem_euclid(1_000_000_000))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rows_have_no_negative_fraction() {
        assert_eq!(row("monotonic", -500_000_000), "monotonic -1 500000000\n");
    }

    #[test]
    fn networks() {
        assert_eq!("/run/netns/a".parse::<Network>().unwrap(), Network::At("/run/netns/a".into()));
        assert!("old".parse::<Network>().is_err());
    }
}
