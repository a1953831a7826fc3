//! Reading everything that a stopped tree has, into the values of a manifest. Reads only; the tree does not notice.

use std::collections::HashMap;

use super::{Options, SaveFiles};
use crate::error::{Error, Result};
use crate::manifest::{Body, Life, Process, Shares, Thread};
use crate::proc::{status::Status, Pid};
use crate::resource::contents::Contents;
use crate::resource::fd::{self, Descriptors};
use crate::resource::files::{FileKind, FileTable};
use crate::resource::memory::{self, AddressSpace, Survey};
use crate::resource::tree::Node;
use crate::resource::{limits, namespaces, process, signals, threads, timers};
use crate::sys::kcmp::{self, Object};
use crate::tracee::seize::{self, Frozen};
use crate::tracee::twin::{self, Kin};
use crate::tracee::visit::{Site, Visit};

/// What a stopped tree is made of.
pub struct Captured {
    /// Its processes, parents before children.
    pub processes: Vec<Process>,
    /// Their address spaces.
    pub spaces: Vec<AddressSpace>,
    /// Their descriptors.
    pub descriptors: Descriptors,
    /// The files they depend on.
    pub files: FileTable,
    /// Where each process (outer id) can be visited.
    pub sites: HashMap<Pid, Site>,
    /// The outer id of the process that owns each address space.
    pub owners: Vec<Pid>,
    /// Mappings of each address space whose flags were guessed.
    pub guessed: Vec<Vec<u64>>,
    /// Whose child a twin of each process (outer id) is to be.
    pub kin: HashMap<Pid, Kin>,
}

impl Captured {
    /// Notes guard pages (object, start, length), which the page tables told of after the thaw.
    pub fn note_guards(&mut self, guards: &[(u32, u64, u64)]) {
        for &(object, start, len) in guards {
            if let Some(space) = self.spaces.iter_mut().find(|space| space.object == object) {
                space.guards.push((start, len));
            }
        }
    }

    /// Replaces what had to be guessed in the pause; call it after the thaw.
    pub fn learn_flags(&mut self, surveys: &mut HashMap<Pid, Survey>) -> Result<()> {
        for ((space, pid), guessed) in self.spaces.iter_mut().zip(&self.owners).zip(&self.guessed) {
            memory::learn(*pid, surveys.entry(*pid).or_default(), space, guessed)?;
        }
        Ok(())
    }

    /// Adds programs and all mapped files, for a frame that restores where they are not installed.
    pub fn save_code(&mut self, wanted: bool, contents: &mut Contents) -> Result<()> {
        let ids: Vec<usize> = (0..self.files.entries.len()).collect();
        for id in ids {
            let entry = &self.files.entries[id];
            if wanted && entry.kind == FileKind::Regular && (entry.mapped || entry.code) {
                self.files.save_later(id, contents)?;
            }
        }
        Ok(())
    }
}

/// Captures all of `frozen`, but for contents that no path leads to.
pub fn capture(frozen: &mut Frozen, surveys: &mut HashMap<Pid, Survey>, contents: &mut Contents, options: &Options) -> Result<Captured> {
    let root = frozen.processes[0].pid;
    namespaces::check(&frozen.processes.iter().filter(|p| !p.is_zombie()).map(|p| p.pid).collect::<Vec<_>>())?;
    let mut tree = Tree {
        captured: Captured {
            processes: Vec::new(),
            spaces: Vec::new(),
            descriptors: Descriptors::default(),
            files: FileTable::new(root),
            sites: HashMap::new(),
            owners: Vec::new(),
            guessed: Vec::new(),
            kin: HashMap::new(),
        },
        inner: HashMap::new(),
        tables: Vec::new(),
        living: Vec::new(),
    };
    // A dead child without an exit signal is what a killed checkpointer left behind, not the program's.
    for process in frozen.processes.iter_mut().filter(|p| !(p.is_zombie() && twin::is_marked(p.pid))) {
        tree.add(process, surveys, contents)?;
    }
    let mut captured = tree.captured;
    let descriptor_options = fd::CaptureOptions { tree: frozen.processes.iter().map(|p| p.pid).collect(), ..options.descriptors.clone() };
    captured.descriptors = fd::capture(&tree.tables, &mut captured.files, &descriptor_options)?;
    save_files(&mut captured.files, &options.save_files, contents)?;
    Ok(captured)
}

struct Tree {
    captured: Captured,
    /// Outer to innermost process id.
    inner: HashMap<Pid, Pid>,
    /// Outer id of one holder of each descriptor table.
    tables: Vec<Pid>,
    /// Living processes so far: outer id, outer id of the parent, space, table.
    living: Vec<(Pid, usize, usize)>,
}

impl Tree {
    fn add(&mut self, process: &mut seize::Process, surveys: &mut HashMap<Pid, Survey>, contents: &mut Contents) -> Result<()> {
        let status = Status::read(process.pid)?;
        let pid = status.innermost("NSpid")?;
        self.inner.insert(process.pid, pid);
        let node = Node {
            pid,
            ppid: self.inner.get(&process.stat.ppid).copied().unwrap_or(0),
            pgid: status.innermost("NSpgid")?,
            sid: status.innermost("NSsid")?,
        };
        let (life, body) = match process.threads.first() {
            None => (Life::Zombie(process.stat.exit_code), None),
            Some(leader) => {
                let life = leader.stopped_by.map_or(Life::Running, Life::Stopped);
                (life, Some(self.body(process, &status, surveys, contents)?))
            }
        };
        self.captured.processes.push(Process { node, exit_signal: process.stat.exit_signal, name: status.get("Name").to_owned(), life, body });
        Ok(())
    }

    fn body(&mut self, process: &mut seize::Process, status: &Status, surveys: &mut HashMap<Pid, Survey>, contents: &mut Contents) -> Result<Body> {
        let pid = process.pid;
        let shares = self.shares(pid, process.stat.ppid)?;
        let parent = self.living.iter().find(|(other, ..)| *other == process.stat.ppid).copied();
        let (space, site) = match parent {
            Some((parent, space, _)) if shares.memory => (space, self.captured.sites[&parent]),
            _ => self.space(pid, surveys, contents)?,
        };
        self.captured.sites.insert(pid, site);
        let table = match parent {
            Some((_, _, table)) if shares.files => table,
            _ => {
                self.tables.push(pid);
                self.tables.len() - 1
            }
        };
        self.living.push((pid, space, table));
        let files = &mut self.captured.files;
        let exe = files.intern(pid, "exe")?;
        files.entries[exe].code = true;
        let (cwd, root) = (files.intern(pid, "cwd")?, files.intern(pid, "root")?);
        let (leader, others) = process.threads.split_first_mut().ok_or_else(|| crate::tracee::gone(pid))?;
        let mut visit = Visit::begin(pid, leader, site)?;
        let mut body = Body {
            space,
            table,
            shares,
            exe: Some(exe),
            cwd,
            root,
            signals: signals::capture(&mut visit, status)?,
            timers: timers::capture(&mut visit)?,
            limits: limits::capture(pid)?,
            attributes: process::capture(&mut visit, status, &process.stat)?,
            threads: vec![thread(&mut visit)?],
        };
        drop(visit);
        for other in others {
            body.threads.push(thread(&mut Visit::begin(pid, other, site)?)?);
        }
        let kin = self.kin(process.stat.ppid, &body, self.inner[&pid] == 1);
        self.captured.kin.insert(pid, kin);
        Ok(body)
    }

    /// A twin must not show up among the children of a process that inherits orphans.
    fn kin(&self, parent: Pid, body: &Body, is_init: bool) -> Kin {
        let inherited = self.captured.kin.get(&parent).is_some_and(|&kin| kin != Kin::Orphan);
        match body.attributes.is_subreaper() {
            _ if inherited || is_init => Kin::Child,
            true => Kin::OrphanOfSubreaper,
            false => Kin::Orphan,
        }
    }

    fn space(&mut self, pid: Pid, surveys: &mut HashMap<Pid, Survey>, contents: &mut Contents) -> Result<(usize, Site)> {
        let survey = surveys.entry(pid).or_default();
        let captured = memory::capture(pid, survey, &mut self.captured.files, contents)?;
        let site = Site::find(pid, &captured.maps)?;
        self.captured.spaces.push(captured.space);
        self.captured.owners.push(pid);
        self.captured.guessed.push(captured.guessed);
        Ok((self.captured.spaces.len() - 1, site))
    }

    /// What `pid` shares with its parent; sharing with anybody else cannot be brought back.
    fn shares(&self, pid: Pid, ppid: Pid) -> Result<Shares> {
        let ask = |other, object| kcmp::shares(pid, other, object).map_err(|e| Error::io(format!("cannot compare pid {pid} with pid {other}"), e));
        let mut shares = Shares::default();
        for &(other, ..) in &self.living {
            let with = Shares { memory: ask(other, Object::Memory)?, files: ask(other, Object::Files)?, fs: ask(other, Object::Fs)?, handlers: ask(other, Object::Handlers)? };
            if other == ppid {
                shares = with;
            } else if with != Shares::default() && !self.living.iter().any(|(p, ..)| *p == ppid) {
                return Err(Error::refused(format!("pid {pid} shares memory, descriptors or handlers with pid {other}, which is not its parent; such a family cannot be born again")));
            }
        }
        Ok(shares)
    }
}

fn thread(visit: &mut Visit<'_>) -> Result<Thread> {
    let (pid, tid) = (proc_pid(visit), visit.thread().tid);
    let inner = Status::read_thread(pid, tid)?.innermost("NSpid")?;
    Ok(Thread { tid: inner, state: threads::capture(visit)? })
}

fn proc_pid(visit: &Visit<'_>) -> Pid {
    use crate::tracee::Remote;
    visit.pid()
}

/// Keeps the content of files open for writing, as of now.
fn save_files(files: &mut FileTable, wanted: &SaveFiles, contents: &mut Contents) -> Result<()> {
    for id in 0..files.entries.len() {
        let entry = &files.entries[id];
        let path = entry.path.to_string_lossy();
        let chosen = match wanted {
            SaveFiles::None => false,
            SaveFiles::All => true,
            SaveFiles::Matching(pattern) => matches_glob(pattern, &path),
        };
        if chosen && entry.written && entry.kind == FileKind::Regular {
            files.save(id, contents)?;
        }
    }
    Ok(())
}

/// Shell patterns with `*` (any text, slashes too) and `?`.
fn matches_glob(pattern: &str, text: &str) -> bool {
    let (pattern, text): (Vec<char>, Vec<char>) = (pattern.chars().collect(), text.chars().collect());
    let (mut p, mut t, mut star) = (0, 0, None);
    while t < text.len() {
        match pattern.get(p) {
            Some('*') => {
                star = Some((p, t));
                p += 1;
            }
            Some(c) if *c == '?' || *c == text[t] => (p, t) = (p + 1, t + 1),
            _ => match star {
                // Let the last star swallow one more.
                Some((at, swallowed)) => {
                    star = Some((at, swallowed + 1));
                    (p, t) = (at + 1, swallowed + 1);
                }
                None => return false,
            },
        }
    }
    pattern[p..].iter().all(|c| *c == '*')
}

#[cfg(test)]
mod tests {
    use super::matches_glob;

    #[test]
    fn globs() {
        assert!(matches_glob("/var/lib/*.db", "/var/lib/a/b.db"));
        assert!(matches_glob("*", "/x"));
        assert!(matches_glob("/a?c", "/abc"));
        assert!(!matches_glob("/a?c", "/ac"));
        assert!(!matches_glob("*.db", "/x.dbx"));
    }
}
