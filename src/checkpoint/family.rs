//! Who shares what with whom in a stopped tree, as far as it can be brought back: with one's parent only.

use crate::error::{Error, Result};
use crate::manifest::Shares;
use crate::proc::Pid;
use crate::sys::kcmp::{self, Object};
use crate::tracee::seize::Frozen;

/// A living process.
#[derive(Debug, Clone, Copy)]
pub struct Member {
    /// Its outer id.
    pub pid: Pid,
    /// The outer id of its parent.
    parent: Pid,
    /// What it shares with its parent.
    pub shares: Shares,
    /// Its descriptor table, an index into [`Family::tables`].
    pub table: usize,
}

/// All living processes of a tree, parents before children.
#[derive(Debug, Default)]
pub struct Family {
    members: Vec<Member>,
    /// Outer id of one holder of each descriptor table.
    pub tables: Vec<Pid>,
}

impl Family {
    /// Compares all living processes with each other.
    pub fn of(frozen: &Frozen) -> Result<Family> {
        let mut family = Family::default();
        for process in frozen.processes.iter().filter(|process| !process.is_zombie()) {
            let (pid, parent) = (process.pid, process.stat.ppid);
            let shares = family.shares(pid, parent)?;
            let table = match family.member(parent) {
                Some(parent) if shares.files => parent.table,
                _ => {
                    family.tables.push(pid);
                    family.tables.len() - 1
                }
            };
            family.members.push(Member { pid, parent, shares, table });
        }
        Ok(family)
    }

    /// The living process with this outer id.
    pub fn member(&self, pid: Pid) -> Option<&Member> {
        self.members.iter().find(|member| member.pid == pid)
    }

    /// The parent whose memory this one runs in.
    pub fn host_of(&self, member: &Member) -> Option<Pid> {
        self.member(member.parent).filter(|_| member.shares.memory).map(|parent| parent.pid)
    }

    /// What `pid` shares with its parent; sharing with anybody else cannot be brought back.
    fn shares(&self, pid: Pid, parent: Pid) -> Result<Shares> {
        let ask = |other, object| kcmp::shares(pid, other, object).map_err(|e| Error::io(format!("cannot compare pid {pid} with pid {other}"), e));
        let mut shares = Shares::default();
        for &Member { pid: other, .. } in &self.members {
            let with = Shares { memory: ask(other, Object::Memory)?, files: ask(other, Object::Files)?, fs: ask(other, Object::Fs)?, handlers: ask(other, Object::Handlers)? };
            if other == parent {
                shares = with;
            } else if with != Shares::default() && self.member(parent).is_none() {
                return Err(Error::refused(format!("pid {pid} shares memory, descriptors or handlers with pid {other}, which is not its parent; such a family cannot be born again")));
            }
        }
        Ok(shares)
    }
}
