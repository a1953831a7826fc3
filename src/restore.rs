//! Bringing a frame back: load → check → open → breed → fill → furnish → arm → run.
//!
//! Until the last phase nothing of the second instance runs, and if anything fails it all ends with us.

use std::collections::HashMap;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use crate::error::{Context, Error, Kind, Result};
use crate::hooks::{Event, Hooks};
use crate::host::Host;
use crate::image::Chain;
use crate::isolate;
use crate::manifest::{Body, Life, Manifest};
use crate::proc::Pid;
use crate::resource::fd::restore::{OpenSet, RestoreOptions};
use crate::resource::files::open::{ContentSource, Opener, Policy};
use crate::resource::memory;
use crate::resource::tree::{self, Node, Step};
use crate::resource::{credentials, limits, process, signals, threads, timers};
use crate::sys::sched::Together;
use crate::sys::{pidfd, ptrace};
use crate::tracee::blank::{self, Blank};
use crate::tracee::RemoteExt;
use crate::transfer::Progress;

use fill::Target;
use lazy::Pager;
use ranges::Ranges;

mod fill;
pub mod launch;
pub mod lazy;
mod ranges;

/// How to bring a frame back.
#[derive(Debug, Default)]
pub struct Options {
    /// What differences of files are accepted.
    pub files: Policy,
    /// What becomes of descriptors that led outside the tree.
    pub descriptors: RestoreOptions,
    /// Commands run at events.
    pub hooks: Hooks,
    /// Brings memory when the instance runs already; none: all of it is there before.
    pub pager: Option<Pager>,
    /// Is told how many bytes of memory are in place, and asked whether to go on; on any thread.
    pub progress: Option<Progress>,
}

/// A second instance that runs.
#[derive(Debug)]
pub struct Restored {
    /// Its root process.
    pub pid: Pid,
    /// How many processes it has.
    pub processes: usize,
    /// Things worth a line.
    pub notes: Vec<String>,
}

/// A frame that was loaded and checked, and that this host can run.
pub struct Loaded {
    chain: Arc<Chain>,
    /// What it holds.
    pub manifest: Manifest,
    notes: Vec<String>,
}

/// The root's new parent is the restorer, which may exit: that is not the death the root wanted to hear of.
fn forget_parent(manifest: &mut Manifest) -> Vec<String> {
    let root = manifest.processes.first_mut().and_then(|root| root.body.as_mut());
    let threads = root.map_or(&mut [][..], |body| &mut body.threads);
    let signals: Vec<i32> = threads.iter_mut().map(|thread| std::mem::take(&mut thread.state.parent_death_signal)).filter(|&signal| signal != 0).collect();
    signals.first().map(|signal| format!("the root process will not get signal {signal} at its parent's death: its parent is another one now")).into_iter().collect()
}

impl Loaded {
    /// Opens a frame file and those it builds upon, and checks their headers, indexes and manifests.
    pub fn open(path: &Path) -> Result<Loaded> {
        let chain = Chain::open(path)?;
        let mut manifest = Manifest::from_bytes(chain.manifest()).map_err(|e| e.context(path.display()))?;
        let notes = forget_parent(&mut manifest);
        Ok(Loaded { chain: Arc::new(chain), manifest, notes })
    }
}

impl ContentSource for Chain {
    fn each(&self, object: u32, sink: &mut dyn FnMut(u64, &[u8]) -> Result<()>) -> Result<()> {
        fill::each(self, object, sink)
    }
}

/// Brings `frame` back as children of the calling process, which must have a single thread.
pub fn restore(frame: &Loaded, options: &Options) -> Result<Restored> {
    let manifest = &frame.manifest;
    if !options.files.allow_changed {
        Host::here()?.check_cpu(&manifest.host)?;
    }
    let mut opener = Opener::check(&manifest.files, &*frame.chain, options.files)?;
    if let Some(pager) = &options.pager {
        pager.await_start()?;
    }
    check_ids_free(manifest)?;
    opener.put_back_saved()?;
    let mut open = OpenSet::open(&manifest.descriptors, &mut opener, &options.descriptors)?;
    let clocks_moved = isolate::keep_clocks_going(&manifest.host)?;
    let mut family = Family::breed(manifest, &open)?;
    family.fill(frame, &mut opener, options)?;
    family.furnish(manifest, &mut open, &mut opener)?;
    opener.finish()?;
    open.arm()?;
    family.arm(manifest)?;
    family.together.part();
    let mut notes = frame.notes.clone();
    notes.append(&mut family.notes);
    notes.append(&mut opener.notes);
    notes.append(&mut open.notes);
    if clocks_moved {
        notes.push("the frame's monotonic clock is ahead of this machine's: the instance runs in a time namespace".to_owned());
    }
    let root = manifest.processes[0].node.pid;
    options.hooks.run(Event::Restored, root, Some(&manifest.name))?;
    // Ends of pipes and sockets that we hold would keep the instance from seeing a hang-up.
    drop(open);
    options.pager.as_ref().map_or(Ok(()), Pager::run)?;
    family.run(manifest)?;
    Ok(Restored { pid: root, processes: manifest.processes.len(), notes })
}

/// Refuses before anything is made if an id of the frame is in use. The dead keep theirs until their parent has looked, which
/// some inits do every few seconds: they are waited for.
fn check_ids_free(manifest: &Manifest) -> Result<()> {
    const PATIENCE: Duration = Duration::from_secs(5);
    let ids = manifest.processes.iter().flat_map(|process| {
        let threads = process.body.iter().flat_map(|body| body.threads.iter().map(|thread| thread.tid));
        threads.chain([process.node.pid])
    });
    let deadline = Instant::now() + PATIENCE;
    for id in ids {
        while blank::exists(id) {
            if Instant::now() > deadline || !blank::is_dying(id) {
                return Err(blank::in_use(id));
            }
            std::thread::sleep(Duration::from_millis(20));
        }
    }
    Ok(())
}

/// The processes of a second instance in the making, by innermost id.
struct Family {
    blanks: HashMap<Pid, Blank>,
    threads: HashMap<Pid, Vec<Blank>>,
    /// Our own pidfd, at the number that every blank inherits.
    service: OwnedFd,
    /// They and we are on one processor until they get those they had.
    together: Together,
    notes: Vec<String>,
}

impl Family {
    /// All processes, empty, with their ids, parents, sessions and groups.
    fn breed(manifest: &Manifest, open: &OpenSet) -> Result<Family> {
        let service = service_fd(highest_fd(manifest))?;
        nix::sys::prctl::set_child_subreaper(true).context("cannot become a subreaper")?;
        let nodes: Vec<Node> = manifest.processes.iter().map(|process| process.node).collect();
        let (steps, lost) = tree::plan(&nodes, &blank::exists);
        let mut family = Family { blanks: HashMap::new(), threads: HashMap::new(), service, together: Together::begin(), notes: Vec::new() };
        if !lost.is_empty() {
            family.notes.push(format!("sessions or groups {lost:?} belong to processes outside the frame; their members join ours"));
        }
        for step in &steps {
            family.step(step, manifest, open)?;
        }
        Ok(family)
    }

    fn blank(&mut self, pid: Pid) -> Result<&mut Blank> {
        self.blanks.get_mut(&pid).ok_or_else(|| Error::corrupt(format!("the frame's process tree makes no sense: process {pid} is used before it is born")))
    }

    fn step(&mut self, step: &Step, manifest: &Manifest, open: &OpenSet) -> Result<()> {
        match *step {
            Step::Spawn(pid) => {
                let mut blank = Blank::spawn(pid)?;
                blank.keep_only(self.service.as_raw_fd())?;
                blank.map_first_scratch()?;
                self.become_what_matters_at_birth(pid, &mut blank, manifest)?;
                self.blanks.insert(pid, blank);
            }
            Step::Fork { by, pid, sibling } => {
                let process = manifest.processes.iter().find(|process| process.node.pid == pid);
                let shares = process.and_then(|process| process.body.as_ref()).map_or(0, |body| body.shares.clone_flags());
                let flags = shares | if sibling { libc::CLONE_PARENT as u64 } else { 0 };
                let signal = if sibling { 0 } else { process.map_or(libc::SIGCHLD, |process| process.exit_signal) };
                let mut blank = self.blank(by)?.fork(pid, flags, signal)?;
                self.become_what_matters_at_birth(pid, &mut blank, manifest)?;
                self.blanks.insert(pid, blank);
            }
            Step::ForkOrphan { by, pid } => {
                let mut helper = self.blank(by)?.fork(0, 0, libc::SIGCHLD)?;
                let orphan = helper.fork(pid, 0, libc::SIGCHLD)?;
                let helper_pid = helper.pid;
                helper.finish(libc::SYS_exit_group, [0; 6])?;
                self.blank(by)?.must("wait for a helper", libc::SYS_wait4, [helper_pid as u64, 0, libc::__WALL as u64, 0, 0, 0])?;
                self.blanks.insert(pid, orphan);
            }
            Step::Setsid(pid) => {
                let blank = self.blank(pid)?;
                blank.must("lead a session", libc::SYS_setsid, [0; 6])?;
                if let Some((_, body)) = bodies(manifest).find(|(other, body)| *other == pid && !body.shares.files) {
                    open.take_terminal(body.table, blank)?;
                }
            }
            Step::Setpgid(pid, group) => drop(self.blank(pid)?.must(&format!("join group {group}"), libc::SYS_setpgid, [0, group as u64, 0, 0, 0, 0])?),
            Step::End(pid, parent) => self.end_ghost(pid, parent)?,
        }
        Ok(())
    }

    /// Adopting orphans must begin before there are any.
    fn become_what_matters_at_birth(&self, pid: Pid, blank: &mut Blank, manifest: &Manifest) -> Result<()> {
        let body = manifest.processes.iter().find(|process| process.node.pid == pid).and_then(|process| process.body.as_ref());
        if body.is_some_and(|body| body.attributes.is_subreaper()) {
            blank.must("become a subreaper", libc::SYS_prctl, [libc::PR_SET_CHILD_SUBREAPER as u64, 1, 0, 0, 0, 0])?;
        }
        Ok(())
    }

    fn end_ghost(&mut self, pid: Pid, parent: Option<Pid>) -> Result<()> {
        let ghost = self.blanks.remove(&pid).ok_or_else(|| Error::corrupt("a ghost ends twice"))?;
        ghost.finish(libc::SYS_exit_group, [0; 6])?;
        match parent {
            Some(parent) => drop(self.blank(parent)?.must("wait for a ghost", libc::SYS_wait4, [pid as u64, 0, libc::__WALL as u64, 0, 0, 0])?),
            None => drop(nix::sys::wait::waitpid(nix::unistd::Pid::from_raw(pid), Some(nix::sys::wait::WaitPidFlag::__WALL))),
        }
        Ok(())
    }

    /// Memory: mappings, pages (those that no pager brings), protections.
    fn fill(&mut self, frame: &Loaded, opener: &mut Opener<'_>, options: &Options) -> Result<()> {
        let pager = options.pager.as_ref();
        let mut targets = Vec::new();
        for (pid, body) in owners(&frame.manifest) {
            let space = &frame.manifest.spaces[body.space];
            let blank = self.blank(pid)?;
            memory::prepare(space, blank, opener).map_err(|e| e.context(format!("process {pid}")))?;
            let later = pager.map_or(Ok(Ranges::default()), |pager| pager.take(&frame.chain, space, blank))?;
            targets.push(Target::new(&frame.chain, space, blank, later)?);
        }
        self.together.part();
        fill::spaces(&frame.chain, &targets, options.progress.as_ref())?;
        self.together.gather();
        drop(targets);
        if let Some(pager) = pager {
            self.blanks.values().try_for_each(|blank| pager.tie(blank.pid))?;
            pager.serve()?;
        }
        for (pid, body) in owners(&frame.manifest) {
            let mut notes = Vec::new();
            memory::protect(&frame.manifest.spaces[body.space], self.blank(pid)?, &mut notes)?;
            self.notes.append(&mut notes);
        }
        self.follow_moved_memory(&frame.manifest)
    }

    /// A process that shares its parent's memory finds the vDSO and the scratch area where the parent's calls have moved them.
    fn follow_moved_memory(&mut self, manifest: &Manifest) -> Result<()> {
        for process in &manifest.processes {
            let Some(body) = process.body.as_ref().filter(|body| body.shares.memory) else { continue };
            let owner = owners(manifest).find(|(_, owner)| owner.space == body.space).map(|(pid, _)| pid);
            let owner = owner.ok_or_else(|| Error::corrupt("shared memory without an owner"))?;
            let place = self.blank(owner)?.place();
            self.blank(process.node.pid)?.set_place(place);
        }
        Ok(())
    }

    /// Zombies die early, so that the SIGCHLD they cause is lost on parents that are still blank.
    fn bury(&mut self, manifest: &Manifest) -> Result<()> {
        for process in manifest.processes.iter().rev() {
            if let Life::Zombie(status) = process.life {
                let blank = self.blanks.remove(&process.node.pid).ok_or_else(|| Error::corrupt("a zombie was never born"))?;
                blank.die(status)?;
            }
        }
        Ok(())
    }

    /// Descriptors, directories, attributes, threads: all that does not yet make anything run.
    fn furnish(&mut self, manifest: &Manifest, open: &mut OpenSet, opener: &mut Opener<'_>) -> Result<()> {
        self.bury(manifest)?;
        let service = self.service.as_raw_fd();
        for (pid, body) in bodies(manifest).filter(|(_, body)| !body.shares.files) {
            open.install(body.table, self.blank(pid)?, service)?;
        }
        for (pid, body) in bodies(manifest).filter(|(_, body)| !body.shares.files) {
            open.connect(body.table, self.blank(pid)?)?;
        }
        for (pid, body) in bodies(manifest) {
            self.furnish_process(pid, body, opener).map_err(|e| e.context(format!("process {pid}")))?;
        }
        Ok(())
    }

    fn furnish_process(&mut self, pid: Pid, body: &Body, opener: &mut Opener<'_>) -> Result<()> {
        let mut notes = Vec::new();
        let blank = self.blank(pid)?;
        if !body.shares.fs {
            enter_directories(body, blank, opener)?;
        }
        let exe = match body.exe.filter(|_| !body.shares.memory) {
            Some(id) => Some(blank.borrow(opener.open(id, libc::O_RDONLY)?.as_fd())?),
            None => None,
        };
        process::restore(&body.attributes, blank, exe, &mut notes)?;
        if let Some(fd) = exe {
            blank.must("close the program file", libc::SYS_close, [fd, 0, 0, 0, 0, 0])?;
        }
        limits::restore(&body.limits, blank, &mut notes)?;
        signals::restore(&body.signals, blank)?;
        let mut others = Vec::new();
        for thread in &body.threads[1..] {
            others.push(blank.thread(thread.tid)?);
        }
        timers::restore(&body.timers, blank)?;
        for (thread, state) in std::iter::once(&mut *blank).chain(&mut others).zip(&body.threads) {
            threads::restore(&state.state, thread, &mut notes)?;
        }
        self.threads.insert(pid, others);
        self.notes.append(&mut notes);
        Ok(())
    }

    /// What must come last: clocks start to tick, rights are given up, registers are loaded.
    fn arm(&mut self, manifest: &Manifest) -> Result<()> {
        for (pid, body) in bodies(manifest) {
            let mut threads = self.threads.remove(&pid).unwrap_or_default();
            let blank = self.blank(pid)?;
            let mut notes = Vec::new();
            let armed = arm_process(body, blank, &mut threads, &mut notes);
            self.notes.append(&mut notes);
            self.threads.insert(pid, threads);
            armed.map_err(|e| e.context(format!("process {pid}")))?;
        }
        // Only when nobody needs it for calls any more, be it a process that shares it.
        owners(manifest).try_for_each(|(pid, _)| self.blank(pid)?.unmap_scratch())
    }

    /// The stopped stop, the others run.
    fn run(mut self, manifest: &Manifest) -> Result<()> {
        for process in &manifest.processes {
            let Some(body) = &process.body else { continue };
            let blank = self.blank(process.node.pid)?.tid;
            let tids: Vec<Pid> = std::iter::once(blank).chain(self.threads[&process.node.pid].iter().map(|thread| thread.tid)).collect();
            for (&tid, thread) in tids.iter().zip(&body.threads) {
                threads::load_registers(&thread.state, tid)?;
            }
            if let Life::Stopped(signal) = process.life {
                pidfd::tgkill(blank, blank, signal).context("cannot stop a process that was stopped")?;
            }
        }
        let all: Vec<Pid> = self.blanks.values().map(|blank| blank.tid).chain(self.threads.values().flatten().map(|thread| thread.tid)).collect();
        for tid in all {
            ptrace::detach(tid, 0).map_err(|e| Error::io(format!("cannot let thread {tid} run"), e))?;
        }
        self.blanks.clear();
        Ok(())
    }
}

impl Drop for Family {
    /// A restore that failed leaves nobody behind, be the restorer a process that goes on.
    fn drop(&mut self) {
        for blank in self.blanks.values() {
            blank.kill();
        }
    }
}

fn arm_process(body: &Body, blank: &mut Blank, others: &mut [Blank], notes: &mut Vec<String>) -> Result<()> {
    blank.block_signals()?;
    others.iter().try_for_each(|thread| thread.block_signals())?;
    timers::arm(&body.timers, blank)?;
    signals::arm(&body.signals, blank)?;
    if !body.shares.files {
        blank.must("close the service descriptor", libc::SYS_close, [blank.service() as u64, 0, 0, 0, 0, 0])?;
    }
    let mut threads: Vec<_> = body.threads.iter().zip(std::iter::once(&mut *blank).chain(others)).collect();
    credentials::confine(&mut threads.iter_mut().map(|(thread, blank)| (&thread.state.credentials, &mut **blank)).collect::<Vec<_>>())?;
    for (thread, blank) in threads {
        threads::arm(&thread.state, blank, notes)?;
    }
    process::arm(&body.attributes, blank)
}

fn bodies(manifest: &Manifest) -> impl Iterator<Item = (Pid, &Body)> {
    manifest.processes.iter().filter_map(|process| Some((process.node.pid, process.body.as_ref()?)))
}

/// Processes with an address space of their own.
fn owners(manifest: &Manifest) -> impl Iterator<Item = (Pid, &Body)> {
    bodies(manifest).filter(|(_, body)| !body.shares.memory)
}

fn highest_fd(manifest: &Manifest) -> i32 {
    manifest.descriptors.tables.iter().flat_map(|table| table.slots.iter().map(|slot| slot.fd)).max().unwrap_or(2)
}

/// Our own pidfd at a number above every descriptor of the frame.
fn service_fd(highest: i32) -> Result<OwnedFd> {
    let own = pidfd::open(std::process::id() as Pid).context("cannot open our own pidfd")?;
    let (soft, hard) = nix::sys::resource::getrlimit(nix::sys::resource::Resource::RLIMIT_NOFILE).context("cannot read the limit of open files")?;
    if soft < hard {
        nix::sys::resource::setrlimit(nix::sys::resource::Resource::RLIMIT_NOFILE, hard, hard).context("cannot raise the limit of open files")?;
    }
    let wanted = highest.saturating_add(1);
    let fd = nix::fcntl::fcntl(own.as_fd(), nix::fcntl::FcntlArg::F_DUPFD_CLOEXEC(wanted));
    let fd = fd.map_err(|e| Error::new(Kind::Refused, format!("descriptor {wanted} is above our limit of open files ({hard}): {e}; raise it with ulimit -n")))?;
    crate::sys::fd::own(fd).context("cannot hold our own pidfd")
}

fn enter_directories(body: &Body, blank: &mut Blank, opener: &mut Opener<'_>) -> Result<()> {
    let cwd = blank.borrow(opener.open(body.cwd, libc::O_PATH | libc::O_DIRECTORY)?.as_fd())?;
    let root = &opener.entry(body.root)?.path;
    if root.as_os_str() != "/" {
        let path = blank.put_str(std::os::unix::ffi::OsStrExt::as_bytes(root.as_os_str()))?;
        blank.must(&format!("change root to {}", root.display()), libc::SYS_chroot, [path, 0, 0, 0, 0, 0])?;
    }
    blank.must("enter its working directory", libc::SYS_fchdir, [cwd, 0, 0, 0, 0, 0])?;
    blank.must("close its working directory", libc::SYS_close, [cwd, 0, 0, 0, 0, 0]).map(drop)
}
