//! The instant: the tree stands still, is captured, its pages are made safe, and it runs on.

use std::collections::HashMap;
use std::fs::File;
use std::sync::mpsc;
use std::thread;
use std::time::{Duration, Instant};

use super::aside::Aside;
use super::calls::Calls;
use super::capture::{self, Captured};
use super::family::Family;
use super::pathless;
use super::watch::Watch;
use super::{Method, Options, Then};
use crate::error::{Context, Error, Kind, Result};
use crate::hooks::Event;
use crate::host::Host;
use crate::proc::status::Status;
use crate::proc::{self, maps, Pid};
use crate::resource::contents::Contents;
use crate::resource::fd::scan::{Room, Scanner};
use crate::resource::memory::{page_ranges, Mapping, Pages, Survey};
use crate::sys::sched::{self, Urgent};
use crate::sys::PAGE;
use crate::track::forks::Forked;
use crate::track::Ranges;
use crate::tracee::memory::Memory;
use crate::tracee::seize::Frozen;
use crate::tracee::twin::Twin;
use crate::tracee::visit::{Site, Visit};
use crate::transfer::Feed;

/// What was captured, and where the pages are that are not in the frame yet.
pub struct Instance {
    pub captured: Captured,
    pub rest: Vec<Rest>,
    /// Object and addresses of every tracked space: what of its object counts.
    pub live: Vec<(u32, Ranges)>,
    pub hold: Hold,
    pub pause_ns: u64,
    /// When the tree was let go, or would have been.
    pub thawed: Instant,
    pub host: Host,
    /// Pages copied in the pause.
    pub copied: u64,
    pub notes: Vec<String>,
}

/// Pages of one address space in a process that stands still.
pub struct Rest {
    object: u32,
    pid: Pid,
    what: What,
}

enum What {
    /// These.
    Pages(Ranges),
    /// All of these mappings.
    Mappings(Vec<Mapping>),
}

/// Who holds the frame's pages until they are read.
pub enum Hold {
    /// Copies; the target runs.
    Twins(Vec<Twin>),
    /// The target itself, which is not to run again (`Then::Stop`, `Then::Kill`). Dropped, it runs on.
    Target(Frozen),
}

impl Hold {
    pub fn end_twins(self) -> Result<Hold> {
        match self {
            Hold::Twins(twins) => twins.into_iter().try_for_each(Twin::end).map(|()| Hold::Twins(Vec::new())),
            target => Ok(target),
        }
    }

    pub fn finish(self, then: Then) {
        match (self, then) {
            (Hold::Target(frozen), Then::Kill) => frozen.kill(),
            (Hold::Target(frozen), Then::Stop) => frozen.thaw_stopped(),
            _ => {}
        }
    }
}

/// What a freeze works with and on.
pub struct Job<'a> {
    pub root: Pid,
    pub options: &'a Options,
    pub watch: &'a mut Watch,
    pub calls: &'a mut Calls,
    pub surveys: &'a mut HashMap<Pid, Survey>,
    pub contents: &'a mut Contents,
    pub aside: &'a mut Aside,
    /// Bytes that will probably have to be copied in the pause.
    pub expected: u64,
    /// Above all rounds so far.
    pub generation: u32,
}

/// Stops the tree, captures it, makes its pages safe, and lets it go.
pub fn freeze(job: &mut Job<'_>) -> Result<Instance> {
    const MARGIN: u64 = 256 * PAGE;
    let mut host = Host::here()?;
    // Room for duplicates of the target's descriptors and for pages: growing takes long, and would in the pause.
    let _room = Room::make();
    job.aside.reserve((2 * job.expected + MARGIN).min(job.options.memory_limit))?;
    // On a busy machine the target would stand still while others run.
    let urgent = Urgent::begin();
    let mut frozen = seize(job.root)?;
    let begun = frozen.begun;
    // Before anything of ours forks.
    let forked = job.watch.shared().forked()?;
    job.calls.exchange(&mut frozen);
    job.options.hooks.run(Event::Frozen, job.root, None)?;
    host.read_clocks(job.root)?;
    let mut captured = capture_and_look(&mut frozen, &forked, job)?;
    let mut divided = divide(&mut captured, job)?;
    divided.copied += pathless::keep(&mut captured, job)?;
    let hold = match job.options.then {
        Then::Run => {
            let twins = split(&mut frozen, &captured, &mut divided.rest)?;
            // Those were our own.
            job.watch.shared().forked()?;
            frozen.thaw();
            Hold::Twins(twins)
        }
        Then::Stop | Then::Kill => Hold::Target(frozen),
    };
    let thawed = Instant::now();
    let pause_ns = super::nanos(thawed - begun);
    drop(urgent);
    if let Hold::Twins(twins) = &hold {
        twins.iter().try_for_each(Twin::drop_descriptors)?;
        job.options.hooks.run(Event::Resumed, job.root, None)?;
    }
    let Divided { rest, live, copied, notes } = divided;
    Ok(Instance { captured, rest, live, hold, pause_ns, thawed, host, copied, notes })
}

/// Reads state on this thread, and page tables on another at the same time, in the end on both.
fn capture_and_look(frozen: &mut Frozen, forked: &Forked, job: &mut Job<'_>) -> Result<Captured> {
    let looks = job.watch.begin_look()?;
    let visited = frozen.processes[0].stat.processor;
    let family = Family::of(frozen)?;
    let several = frozen.processes[0].threads.len() > 1;
    let (asking, asked) = mpsc::channel();
    let (family, seen, scanner) = (&family, &looks, Scanner::new(&family.tables));
    let captured = thread::scope(|scope| {
        let scanner = &scanner;
        scope.spawn(move || {
            // Visited threads run where they ran: behind this one they would wait for its end. One can be kept clear of, not many.
            if several {
                let _ = asked.recv();
            }
            let _urgent = Urgent::begin();
            sched::keep_off(visited);
            scanner.help();
            seen.iter().for_each(|(_, look)| look.help());
        });
        let captured = capture::capture(frozen, family, asking, job.surveys, job.contents);
        scanner.help();
        looks.iter().for_each(|(_, look)| look.help());
        captured
    });
    let mut captured = captured?;
    capture::descriptors(&mut captured, frozen, scanner.end()?, job.contents, job.options)?;
    job.watch.end_look(looks, forked)?;
    Ok(captured)
}

/// Which pages are where, once the pause has done its part.
#[derive(Default)]
struct Divided {
    rest: Vec<Rest>,
    live: Vec<(u32, Ranges)>,
    copied: u64,
    notes: Vec<String>,
}

/// Copies what is worth copying now, and says what is left for whom.
fn divide(captured: &mut Captured, job: &mut Job<'_>) -> Result<Divided> {
    let mut divided = Divided::default();
    let owners = captured.owners.clone();
    for (space, &pid) in captured.spaces.iter_mut().zip(&owners) {
        let private: Vec<&Mapping> = space.mappings.iter().filter(|mapping| mapping.is_private()).collect();
        let (object, escapes) = (space.object, cover(&private, Mapping::escapes_fork));
        let Some(tracked) = job.watch.of(pid).filter(|tracked| tracked.object == object) else {
            if job.watch.spaces().iter().any(|known| known.object == object) {
                return Err(Error::new(Kind::Busy, format!("pid {pid}: its memory could not be looked at while it stood still; try again")));
            }
            // What a fork leaves out was copied by the capture.
            let mappings = private.into_iter().filter(|mapping| !mapping.escapes_fork()).cloned().collect();
            divided.rest.push(Rest { object, pid, what: What::Mappings(mappings) });
            continue;
        };
        let all = cover(&private, |_| true);
        let live = tracked.last.live.intersect(&all);
        let dirty = tracked.last.dirty.union(&tracked.owed).intersect(&live);
        space.guards = tracked.last.guards.intersect(&all).lengths();
        let (now, later) = choose(pid, &dirty, &escapes, live.bytes(), job, &mut divided.notes)?;
        divided.copied += now.bytes() / PAGE;
        let unread = job.aside.copy(object, &Memory::open(pid)?, &now, job.generation)?;
        let live = live.minus(&closed(job.watch, object, pid, unread, &mut space.guards)?);
        if !later.is_empty() {
            divided.rest.push(Rest { object, pid, what: What::Pages(later) });
        }
        divided.live.push((object, live));
    }
    Ok(divided)
}

/// Pages that cannot be read must be guards, which the frame has a list of; returns them.
fn closed(watch: &mut Watch, object: u32, pid: Pid, unread: Ranges, guards: &mut Vec<(u64, u64)>) -> Result<Ranges> {
    if unread.is_empty() {
        return Ok(unread);
    }
    let space = watch.spaces().iter_mut().find(|space| space.object == object).ok_or_else(|| crate::tracee::gone(pid))?;
    let found = space.tracker.guards_among(pid, &unread)?;
    if let Some((at, _)) = unread.minus(&found).as_slice().first() {
        return Err(Error::new(Kind::Io, format!("pid {pid}: cannot read its memory at {at:#x}")));
    }
    guards.extend(found.lengths());
    Ok(found)
}

fn cover(mappings: &[&Mapping], wanted: impl Fn(&Mapping) -> bool) -> Ranges {
    Ranges::of(mappings.iter().filter(|mapping| wanted(mapping)).map(|mapping| (mapping.start, mapping.end)).collect())
}

/// Which dirty pages to copy now, and which to leave to whoever holds them still.
fn choose(pid: Pid, dirty: &Ranges, escapes: &Ranges, populated: u64, job: &Job<'_>, notes: &mut Vec<String>) -> Result<(Ranges, Ranges)> {
    // Nanoseconds a page, as measured: a copy, and the copy of a page table entry by fork.
    const COPY: u64 = 600;
    const FORK: u64 = 65;
    if job.options.then != Then::Run {
        return Ok((Ranges::default(), dirty.clone()));
    }
    let fits = job.aside.held() + dirty.bytes() <= job.options.memory_limit;
    let mib = dirty.bytes() >> 20;
    match job.options.method {
        Method::Track if !fits => Err(Error::refused(format!(
            "pid {pid} wrote {mib} MiB while the last round was copied, more than the memory limit of {} MiB; raise --memory-limit, or let --method auto hold the pages by a fork",
            job.options.memory_limit >> 20
        ))),
        Method::Track => Ok((dirty.clone(), Ranges::default())),
        _ if fits && dirty.bytes() / PAGE * COPY <= populated / PAGE * FORK + 2_000_000 => Ok((dirty.clone(), Ranges::default())),
        _ => {
            notes.push(format!("pid {pid} writes faster than its pages are stored: a forked twin held the last {mib} MiB"));
            Ok((dirty.intersect(escapes), dirty.minus(escapes)))
        }
    }
}

/// About how many bytes that is.
pub fn size_of(rest: &[Rest]) -> u64 {
    let kib = |status: &Status, row| status.number(row).map_or(0, |kib| kib.unsigned_abs() * 1024);
    let size = |Rest { pid, what, .. }: &Rest| match what {
        What::Pages(pages) => pages.bytes(),
        // Private pages, as far as the kernel tells.
        What::Mappings(_) => Status::read(*pid).map_or(0, |status| kib(&status, "RssAnon") + kib(&status, "VmSwap")),
    };
    rest.iter().map(size).sum()
}

/// Feeds what is not in the frame yet, and takes what proves to be no data out of `live`; returns guard ranges (object, start,
/// length) met on the way.
pub fn feed_rest(feed: &mut Feed<'_>, watch: &mut Watch, rest: &[Rest], live: &mut [(u32, Ranges)], generation: u32) -> Result<Vec<(u32, u64, u64)>> {
    let mut guards = Vec::new();
    for Rest { object, pid, what } in rest {
        let memory = Memory::open(*pid)?;
        let mut found = Vec::new();
        match what {
            What::Pages(pages) => {
                let unread = Ranges::of(feed.memory_of_running(*object, &memory, pages.as_slice(), generation, false)?);
                let closed = closed(watch, *object, *pid, unread, &mut found)?;
                live.iter_mut().filter(|(known, _)| known == object).for_each(|(_, live)| *live = live.minus(&closed));
            }
            What::Mappings(mappings) => {
                let path = proc::path(*pid, "pagemap");
                let pagemap = File::open(&path).at("open", &path)?;
                for mapping in mappings {
                    let pages: Pages = page_ranges(&pagemap, mapping)?;
                    found.extend(pages.guards.into_iter().map(|(start, end)| (start, end - start)));
                    feed.memory(*object, &memory, &pages.data, generation)?;
                }
            }
        }
        guards.extend(found.into_iter().map(|(start, len)| (*object, start, len)));
    }
    Ok(guards)
}

/// Stops the tree; waits out threads that cannot be stopped just now, or that a dead checkpointer left on their way home.
pub fn seize(root: Pid) -> Result<Frozen> {
    const PATIENCE: Duration = Duration::from_secs(10);
    let deadline = Instant::now() + PATIENCE;
    loop {
        match Frozen::seize(root) {
            Ok(frozen) if !on_the_way_home(&frozen)? => return Ok(frozen),
            Ok(frozen) => frozen.thaw(),
            Err(e) if e.kind() != Kind::Busy || Instant::now() > deadline => return Err(e),
            Err(_) => {}
        }
        if Instant::now() > deadline {
            return Err(Error::refused(format!("pid {root}: another stillframe is at work in it; wait until that is done")));
        }
        thread::sleep(Duration::from_millis(2));
    }
}

fn on_the_way_home(frozen: &Frozen) -> Result<bool> {
    for process in frozen.processes.iter().filter(|process| !process.is_zombie()) {
        let site = Site::find(process.pid, &maps::read(&proc::path(process.pid, "maps"))?)?;
        if process.threads.iter().any(|thread| site.contains(thread.regs.rip)) {
            return Ok(true);
        }
    }
    Ok(false)
}

/// Forks a twin of every address space that pages are left in, and points their source at it.
fn split(frozen: &mut Frozen, captured: &Captured, rest: &mut [Rest]) -> Result<Vec<Twin>> {
    let mut twins = Vec::new();
    for source in rest {
        let owner = frozen.processes.iter_mut().find(|process| process.pid == source.pid);
        let thread = owner.and_then(|process| process.threads.first_mut()).ok_or_else(|| crate::tracee::gone(source.pid))?;
        let mut visit = Visit::begin(source.pid, thread, captured.sites[&source.pid])?;
        let twin = Twin::fork(&mut visit, captured.kin[&source.pid])?;
        source.pid = twin.pid;
        twins.push(twin);
    }
    Ok(twins)
}
