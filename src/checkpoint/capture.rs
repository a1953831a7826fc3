//! Reading everything that a stopped tree has, into the values of a manifest. Reads only; the tree does not notice.

use std::collections::HashMap;
use std::sync::mpsc::Sender;

use super::family::Family;
use super::{Options, SaveFiles};
use crate::error::Result;
use crate::manifest::{Body, Life, Process, Thread};
use crate::proc::{status::Status, Pid};
use crate::resource::contents::Contents;
use crate::resource::fd::{self, scan::Scan, Descriptors};
use crate::resource::files::{FileKind, FileTable};
use crate::resource::memory::{self, AddressSpace, Survey};
use crate::resource::tree::Node;
use crate::resource::{limits, namespaces, process, signals, threads, timers};
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

/// Captures all of `frozen`, but for descriptors, and contents that no path leads to. `asking` is dropped when the threads of the first
/// process need no processor any more.
pub fn capture(frozen: &mut Frozen, family: &Family, asking: Sender<()>, surveys: &mut HashMap<Pid, Survey>, contents: &mut Contents) -> Result<Captured> {
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
        family,
        asking: Some(asking),
        inner: HashMap::new(),
        spaces: HashMap::new(),
    };
    // A dead child without an exit signal is what a killed checkpointer left behind, not the program's.
    for process in frozen.processes.iter_mut().filter(|p| !(p.is_zombie() && twin::is_marked(p.pid))) {
        tree.add(process, surveys, contents)?;
    }
    Ok(tree.captured)
}

/// Captures the descriptors that `scan` has found in `frozen`, and the contents of files as `options` say.
pub fn descriptors(captured: &mut Captured, frozen: &Frozen, scan: Scan, contents: &mut Contents, options: &Options) -> Result<()> {
    let descriptor_options = fd::CaptureOptions { tree: frozen.processes.iter().map(|p| p.pid).collect(), ..options.descriptors.clone() };
    captured.descriptors = fd::capture(scan, &mut captured.files, &descriptor_options)?;
    save_files(&mut captured.files, &options.save_files, contents)
}

struct Tree<'a> {
    captured: Captured,
    family: &'a Family,
    /// Dropped when the threads of the first process have been asked.
    asking: Option<Sender<()>>,
    /// Outer to innermost process id.
    inner: HashMap<Pid, Pid>,
    /// The address space of each living process (outer id) so far.
    spaces: HashMap<Pid, usize>,
}

impl Tree<'_> {
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
        let member = *self.family.member(pid).ok_or_else(|| crate::tracee::gone(pid))?;
        let (space, site) = match self.family.host_of(&member) {
            Some(host) => (self.spaces[&host], self.captured.sites[&host]),
            None => self.space(pid, surveys, contents)?,
        };
        self.captured.sites.insert(pid, site);
        self.spaces.insert(pid, space);
        let files = &mut self.captured.files;
        let exe = files.intern(pid, "exe")?;
        files.entries[exe].code = true;
        let (cwd, root) = (files.intern(pid, "cwd")?, files.intern(pid, "root")?);
        let (leader, others) = process.threads.split_first_mut().ok_or_else(|| crate::tracee::gone(pid))?;
        let mut visit = Visit::begin(pid, leader, site)?;
        let told = threads::ask(&mut visit, others)?;
        self.asking = None;
        let body = Body {
            space,
            table: member.table,
            shares: member.shares,
            exe: Some(exe),
            cwd,
            root,
            signals: signals::capture(&mut visit, status)?,
            timers: timers::capture(&mut visit)?,
            limits: limits::capture(pid)?,
            attributes: process::capture(&mut visit, status, &process.stat)?,
            threads: threads::capture(&mut visit, others, &told)?.into_iter().map(|(tid, state)| Thread { tid, state }).collect(),
        };
        drop(visit);
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
