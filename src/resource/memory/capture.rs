//! The mappings of a stopped process, and the pages of its twin.

use std::collections::HashMap;
use std::fs::File;
use std::os::unix::fs::FileExt;
use std::time::{Duration, Instant};

use super::{AddressSpace, Backing, Mapping};
use crate::error::{Context, Error, Result};
use crate::proc::maps::{self, Flagged, Vma};
use crate::proc::{self, Pid};
use crate::resource::contents::{Content, Contents};
use crate::resource::files::{FileId, FileKind, FileTable};
use crate::sys::pagemap::{self, category};
use crate::sys::PAGE;
use crate::tracee::memory::Memory;

/// What was learnt of a process's mappings before the pause: the kernel takes long to print flags.
#[derive(Debug, Default)]
pub struct Survey {
    flags: HashMap<u64, Flagged>,
    /// When it was read, and how long that took.
    read: Option<(Instant, Duration)>,
    /// The object that the private pages go to already, where they are watched.
    pub tracked: Option<u32>,
}

impl Survey {
    /// Reads the flags of all mappings of a running process, unless they were read lately: it may cost up to a hundredth of the
    /// time, because the kernel looks at every page for it.
    pub fn renew(&mut self, pid: Pid) -> Result<()> {
        const SHARE: u32 = 100;
        let fresh = self.read.is_some_and(|(when, cost)| when.elapsed() < cost * SHARE);
        if fresh && self.knows(&maps::read(&proc::path(pid, "maps"))?) {
            return Ok(());
        }
        self.read_all(pid)
    }

    fn read_all(&mut self, pid: Pid) -> Result<()> {
        let begun = Instant::now();
        let all = maps::parse_smaps(&proc::text(&proc::path(pid, "smaps"))?)?;
        self.flags = all.into_iter().map(|flagged| (flagged.vma.start, flagged)).collect();
        self.read = Some((begun, begun.elapsed()));
        Ok(())
    }

    /// Whether every mapping is one of those that were read.
    fn knows(&self, now: &[Vma]) -> bool {
        now.iter().all(|vma| self.of(vma).is_some())
    }

    /// What was read of a mapping. A stack grows and a heap moves its end without any change of flags.
    fn of(&self, vma: &Vma) -> Option<&Flagged> {
        let is_it = |old: &&Flagged| (old.vma.prot, &old.vma.name, old.vma.inode) == (vma.prot, &vma.name, vma.inode);
        let grown = || self.flags.values().find(|old| vma.name == "[stack]" && old.vma.end == vma.end);
        self.flags.get(&vma.start).filter(is_it).or_else(|| grown().filter(is_it))
    }

    /// Brings the survey up to date if there is a new mapping of whose flags not even a guess can be made. Reading takes the kernel
    /// long, and the process stands still.
    fn refresh(&mut self, pid: Pid, now: &[Vma]) -> Result<()> {
        let clear = now.iter().all(|vma| self.of(vma).is_some() || is_plain(vma));
        if clear { Ok(()) } else { self.read_all(pid) }
    }
}

/// Private memory without a name: what allocators make all the time.
fn is_plain(vma: &Vma) -> bool {
    !vma.shared && vma.inode == 0 && vma.name.is_empty()
}

/// The flags that a fresh mapping has. Until they are read it passes for one that a fork leaves out, which is right either way.
fn guess(vma: &Vma) -> Flagged {
    let mut flags = vec!["mr", "mw", "me", GUESSED];
    for (bit, flag) in [(libc::PROT_READ, "rd"), (libc::PROT_WRITE, "wr"), (libc::PROT_EXEC, "ex"), (libc::PROT_WRITE, "ac")] {
        if vma.prot & bit != 0 {
            flags.push(flag);
        }
    }
    Flagged { vma: vma.clone(), flags: flags.into_iter().map(str::to_owned).collect(), page_size: PAGE }
}

/// Left out by a fork (MADV_DONTFORK).
const GUESSED: &str = "dc";

/// Replaces guessed flags of mappings that start at `guessed` by those that the kernel tells, now that the process runs again. One
/// that is gone by now keeps those of a fresh mapping.
pub fn learn(pid: Pid, survey: &mut Survey, space: &mut AddressSpace, guessed: &[u64]) -> Result<()> {
    if guessed.is_empty() {
        return Ok(());
    }
    // A process that has ended tells nothing more.
    let told = survey.read_all(pid).is_ok();
    for mapping in space.mappings.iter_mut().filter(|mapping| guessed.contains(&mapping.start)) {
        let now = survey.flags.get(&mapping.start).filter(|now| told && is_plain(&now.vma) && now.vma.prot == mapping.prot);
        match now {
            Some(now) => {
                refuse_special(pid, &now.vma, now)?;
                mapping.flags.clone_from(&now.flags);
            }
            None => mapping.flags.retain(|flag| flag != GUESSED),
        }
    }
    Ok(())
}

/// An address space, and what of it a twin will not hold.
pub struct Captured {
    /// For the manifest.
    pub space: AddressSpace,
    /// Where the stubs go: the mappings as read.
    pub maps: Vec<Vma>,
    /// Where mappings start whose flags were guessed: see [`learn`].
    pub guessed: Vec<u64>,
}

/// Describes the memory of stopped process `pid`. Pages that a fork leaves out are copied into `contents` now.
pub fn capture(pid: Pid, survey: &mut Survey, files: &mut FileTable, contents: &mut Contents) -> Result<Captured> {
    let maps = maps::read(&proc::path(pid, "maps"))?;
    survey.refresh(pid, &maps)?;
    let object = survey.tracked.unwrap_or_else(|| contents.object());
    let mut cache = HashMap::new();
    let (mut mappings, mut guards, mut guessed) = (Vec::with_capacity(maps.len()), Vec::new(), Vec::new());
    for vma in maps.iter().filter(|vma| vma.name != "[vsyscall]") {
        let flagged = survey.of(vma).cloned().unwrap_or_else(|| {
            guessed.push(vma.start);
            guess(vma)
        });
        let mapping = describe(pid, vma, &flagged, files, &mut cache)?;
        if survey.tracked.is_none() && mapping.is_private() && mapping.escapes_fork() {
            let (copy, closed) = copy_now(pid, &mapping, object, contents)?;
            contents.list.push(copy);
            guards.extend(closed);
        }
        mappings.push(mapping);
    }
    Ok(Captured { space: AddressSpace { object, mappings, guards }, maps, guessed })
}

fn describe(pid: Pid, vma: &Vma, flagged: &Flagged, files: &mut FileTable, cache: &mut HashMap<(String, u64, String), FileId>) -> Result<Mapping> {
    let backing = if matches!(vma.name.as_str(), "[vdso]") || vma.name.starts_with("[vvar") {
        Backing::Kernel(vma.name.clone())
    } else if flagged.page_size != PAGE && !vma.shared && vma.name.starts_with("/anon_hugepage") {
        Backing::HugePages(flagged.page_size)
    } else if vma.inode == 0 {
        refuse_special(pid, vma, flagged)?;
        Backing::Anonymous
    } else {
        let key = (vma.device.clone(), vma.inode, vma.name.clone());
        let id = match cache.get(&key) {
            Some(&id) => id,
            None => {
                refuse_special(pid, vma, flagged)?;
                let id = files.intern_mapped(pid, vma).map_err(|e| e.context(format!("pid {pid} mapping {:x} ({})", vma.start, vma.name)))?;
                cache.insert(key, id);
                id
            }
        };
        mark(pid, vma, flagged, files, id)?
    };
    let mapping = Mapping { start: vma.start, end: vma.end, prot: vma.prot, shared: vma.shared, backing, offset: vma.offset, flags: flagged.flags.clone() };
    Ok(mapping)
}

fn mark(pid: Pid, vma: &Vma, flagged: &Flagged, files: &mut FileTable, id: FileId) -> Result<Backing> {
    let entry = &mut files.entries[id];
    let executable = flagged.flags.iter().any(|flag| flag == "ex");
    entry.code |= executable;
    entry.mapped |= !vma.shared;
    entry.written |= vma.shared && flagged.flags.iter().any(|flag| flag == "mw");
    let huge = flagged.page_size != PAGE;
    match entry.kind {
        FileKind::SharedHugePages(_) => Ok(Backing::File(id)),
        _ if huge => Err(Error::refused(format!("pid {pid} maps huge pages of {} at {:x}; only anonymous huge pages (MAP_HUGETLB | MAP_ANONYMOUS) can be restored", vma.name, vma.start))),
        FileKind::SystemV(_) if vma.offset != 0 || vma.len() != entry.size.next_multiple_of(PAGE) => {
            Err(Error::refused(format!("pid {pid} maps a part of System V segment {}; only whole attachments can be restored", entry.path.display())))
        }
        FileKind::SystemV(_) => Ok(Backing::Segment(id)),
        FileKind::Device if entry.path.as_os_str() != "/dev/zero" => {
            Err(Error::refused(format!("pid {pid} maps device {} at {:x}: its memory belongs to hardware or a driver; unmap it before the checkpoint", vma.name, vma.start)))
        }
        FileKind::Regular | FileKind::Deleted | FileKind::Memfd(_) | FileKind::SharedAnonymous | FileKind::Device => Ok(Backing::File(id)),
        _ => Err(Error::refused(format!("pid {pid} maps {} at {:x}, which cannot be mapped again", vma.name, vma.start))),
    }
}

fn refuse_special(pid: Pid, vma: &Vma, flagged: &Flagged) -> Result<()> {
    let has = |flag: &str| flagged.flags.iter().any(|f| f == flag);
    let why = match () {
        () if vma.name.contains("[aio]") => "an asynchronous I/O ring (io_setup); end its use before the checkpoint",
        () if vma.name.contains("io_uring") => "an io_uring; close it before the checkpoint",
        () if vma.name.contains("secretmem") => "memfd_secret memory, which nobody but its owner can read",
        () if vma.name.contains("perf_event") => "a perf_event buffer; close it before the checkpoint",
        () if vma.name == "[uprobes]" => "uprobes breakpoints; remove them first",
        () if has("um") || has("ui") => "memory whose missing pages come by userfaultfd: unregister it if the program does that itself, wait if it is being restored with --lazy",
        () if has("ss") => "a shadow stack; start the program with GLIBC_TUNABLES=glibc.cpu.x86_shstk=off",
        () if has("pf") || has("io") => "memory of a device; unmap it before the checkpoint",
        () => return Ok(()),
    };
    Err(Error::refused(format!("pid {pid} mapping {:x}-{:x} is {why}", vma.start, vma.end)))
}

/// Copies the present pages of a mapping that a fork would leave out; the copy's offset 0 is the mapping's start. Also gives its
/// guard pages (start, length).
fn copy_now(pid: Pid, mapping: &Mapping, object: u32, contents: &Contents) -> Result<(Content, Vec<(u64, u64)>)> {
    let file = contents.spool_file()?;
    file.set_len(mapping.len()).context("cannot size a temporary file")?;
    let pagemap_path = proc::path(pid, "pagemap");
    let pagemap = File::open(&pagemap_path).at("open", &pagemap_path)?;
    let memory = Memory::open(pid)?;
    let mut buf = vec![0; 1 << 20];
    let pages = page_ranges(&pagemap, mapping)?;
    for (start, end) in pages.data {
        for at in (start..end).step_by(buf.len()) {
            let part = &mut buf[..(end - at).min(1 << 20) as usize];
            memory.read(at, part)?;
            file.write_all_at(part, at - mapping.start).context("cannot copy memory into the store")?;
        }
    }
    let guards = pages.guards.into_iter().map(|(start, end)| (start, end - start)).collect();
    Ok((Content { object, file, len: mapping.len(), base: mapping.start }, guards))
}

/// What the page tables tell of one private mapping, as address ranges (start, end).
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Pages {
    /// Pages that differ from what a fresh mapping would show.
    pub data: Vec<(u64, u64)>,
    /// Guard pages.
    pub guards: Vec<(u64, u64)>,
}

/// The pages of a private mapping that a frame must hold.
pub fn page_ranges(pagemap: &File, mapping: &Mapping) -> Result<Pages> {
    let absent = if matches!(mapping.backing, Backing::File(_)) { category::FILE } else { category::ZERO };
    let asked = category::PRESENT | category::SWAPPED | category::GUARD;
    let told = absent | category::GUARD;
    let regions = pagemap::scan(pagemap, mapping.start, mapping.end, asked, told).context("cannot scan the pages of a process")?;
    let mut pages = Pages::default();
    for region in regions {
        let list = match region.categories {
            categories if categories & category::GUARD != 0 => &mut pages.guards,
            categories if categories & absent != 0 => continue,
            _ => &mut pages.data,
        };
        match list.last_mut() {
            Some(last) if last.1 == region.start => last.1 = region.end,
            _ => list.push((region.start, region.end)),
        }
    }
    Ok(pages)
}
