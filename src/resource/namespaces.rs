//! Namespaces: a tree must live in one set of them, and be run by users that we know.

use std::fs;

use crate::error::{Error, Result};
use crate::proc::Pid;

const ALL: [&str; 7] = ["user", "pid", "mnt", "net", "ipc", "uts", "time"];

/// Refuses a tree that spans namespaces, or that lives in another user namespace than we.
pub fn check(pids: &[Pid]) -> Result<()> {
    let link = |pid: &str, name: &str| fs::read_link(format!("/proc/{pid}/ns/{name}")).unwrap_or_default();
    let Some(root) = pids.first().map(Pid::to_string) else { return Ok(()) };
    for name in ALL {
        let wanted = link(&root, name);
        if name == "user" && wanted != link("self", name) {
            return Err(Error::refused(format!("pid {root} lives in another user namespace; run stillframe inside it (nsenter --user --target {root} …)")));
        }
        if let Some(other) = pids.iter().find(|pid| link(&pid.to_string(), name) != wanted) {
            return Err(Error::refused(format!("pid {other} is in another {name} namespace than pid {root}; only a tree within one set of namespaces can be checkpointed: take its frame apart")));
        }
    }
    Ok(())
}
