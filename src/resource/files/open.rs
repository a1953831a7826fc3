//! Files at a restore: checked first, all of them; then opened, or made anew from their content.

use std::collections::HashMap;
use std::fs::{self, File, OpenOptions};
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::os::unix::fs::{FileExt, MetadataExt, OpenOptionsExt};
use std::path::Path;

use super::{build_id, FileEntry, FileId, FileKind};
use crate::error::{Context, Error, Result};
use crate::sys::mapping::Shared;
use crate::sys::{shm, PAGE};

mod made;

/// Where the contents in a frame are read from.
pub trait ContentSource {
    /// Hands every stored piece (offset, bytes) of an object to `sink`; what is not handed over is zero.
    fn each(&self, object: u32, sink: &mut dyn FnMut(u64, &[u8]) -> Result<()>) -> Result<()>;
}

/// What differences between the frame's files and this host's are accepted.
#[derive(Debug, Clone, Copy, Default)]
pub struct Policy {
    /// Code and privately mapped files may differ.
    pub allow_changed: bool,
    /// No difference at all.
    pub strict: bool,
    /// Files saved with the frame are put back.
    pub saved: bool,
}

/// The files of a frame on their way to a second instance.
pub struct Opener<'a> {
    entries: &'a [FileEntry],
    source: &'a dyn ContentSource,
    policy: Policy,
    /// Files made anew: every further open goes through the first descriptor.
    made: HashMap<FileId, OwnedFd>,
    /// Regular files whose stored content stands in for what this host has.
    stand_in: Vec<bool>,
    segments: HashMap<FileId, i32>,
    /// Differences that were accepted, one line each.
    pub notes: Vec<String>,
}

impl<'a> Opener<'a> {
    /// Checks every file; nothing is made or changed yet.
    pub fn check(entries: &'a [FileEntry], source: &'a dyn ContentSource, policy: Policy) -> Result<Opener<'a>> {
        let mut opener = Opener { entries, source, policy, made: HashMap::new(), stand_in: vec![false; entries.len()], segments: HashMap::new(), notes: Vec::new() };
        for (id, entry) in entries.iter().enumerate() {
            match entry.kind {
                FileKind::Regular => opener.stand_in[id] = opener.check_regular(entry)?,
                FileKind::Directory | FileKind::Device | FileKind::Fifo => opener.check_special(entry)?,
                FileKind::SystemV(_) => opener.check_segment(entry)?,
                _ => {}
            }
        }
        Ok(opener)
    }

    /// True if the stored content must stand in for the file.
    fn check_regular(&mut self, entry: &FileEntry) -> Result<bool> {
        let path = entry.path.display();
        if self.policy.saved && entry.written && entry.content.is_some() {
            return Ok(false);
        }
        let meta = match fs::metadata(&entry.path) {
            Ok(meta) => meta,
            Err(_) if entry.content.is_some() => return Ok(true),
            Err(e) => return Err(Error::io(format!("{path}, which the frame needs, is missing here; install it, or take the frame with --self-contained"), e)),
        };
        match difference(entry, &meta) {
            None => Ok(false),
            Some(_) if entry.mapped && entry.content.is_some() => Ok(true),
            Some(what) if entry.mapped && !self.policy.allow_changed => {
                Err(Error::refused(format!("{path} {what}; it is mapped, so the program would run on other bytes than it knows: bring the same file, or --allow-changed")))
            }
            Some(what) if self.policy.strict => Err(Error::refused(format!("{path} {what}, and --strict-files allows no difference"))),
            Some(_) if meta.len() < entry.reach => {
                Err(Error::refused(format!("{path} is shorter ({} bytes) than the offset of the frame ({}); put the file back, or restore with --files saved if it was saved", meta.len(), entry.reach)))
            }
            Some(what) => {
                self.notes.push(format!("{path} {what}"));
                Ok(false)
            }
        }
    }

    fn check_special(&self, entry: &FileEntry) -> Result<()> {
        let path = &entry.path;
        let meta = fs::metadata(path).map_err(|e| Error::io(format!("{}, which the frame needs, is missing here", path.display()), e))?;
        if (meta.mode() & libc::S_IFMT) != (entry.mode & libc::S_IFMT) || meta.rdev() != entry.rdev {
            return Err(Error::refused(format!("{} is another kind of file here than in the frame", path.display())));
        }
        Ok(())
    }

    fn check_segment(&self, entry: &FileEntry) -> Result<()> {
        let (FileKind::SystemV(id), Some(segment)) = (&entry.kind, &entry.segment) else { return Ok(()) };
        match shm::stat(*id) {
            Ok(here) if here.attached > 0 => Err(Error::refused(format!("System V segment {id} is in use by {} mappings of other processes; end them or restore with --isolate", here.attached))),
            Ok(here) if (here.key, here.size) != (segment.key, segment.size) => Err(Error::refused(format!("System V segment id {id} belongs to another segment here (key {:#x}); restore with --isolate", here.key))),
            _ => Ok(()),
        }
    }

    /// Puts the saved files back where `--files saved` asks for it.
    pub fn put_back_saved(&mut self) -> Result<()> {
        if !self.policy.saved {
            return Ok(());
        }
        for entry in self.entries.iter().filter(|entry| entry.kind == FileKind::Regular && entry.written) {
            let Some(object) = entry.content else { continue };
            let dir = entry.path.parent().unwrap_or(Path::new("/"));
            let temp = tempfile::NamedTempFile::new_in(dir).at("put a saved file back in", dir)?;
            self.fill(temp.as_file(), object, entry.size)?;
            nix::sys::stat::fchmod(temp.as_file(), nix::sys::stat::Mode::from_bits_truncate(entry.mode & 0o7777)).at("set the mode of", &entry.path)?;
            std::os::unix::fs::fchown(temp.as_file(), Some(entry.uid), Some(entry.gid)).at("set the owner of", &entry.path)?;
            temp.as_file().sync_all().at("write", &entry.path)?;
            temp.persist(&entry.path).map_err(|e| e.error).at("put back", &entry.path)?;
            self.notes.push(format!("{} was put back as it was in the frame", entry.path.display()));
        }
        Ok(())
    }

    /// What is known of a file.
    pub fn entry(&self, id: FileId) -> Result<&'a FileEntry> {
        self.entries.get(id).ok_or_else(|| Error::corrupt(format!("the manifest names file {id}, which it does not list")))
    }

    /// Opens a file anew with `flags` (O_RDONLY, O_APPEND …): a new open file description.
    pub fn open(&mut self, id: FileId, flags: i32) -> Result<OwnedFd> {
        let entry = self.entry(id)?;
        let flags = flags & !(libc::O_CREAT | libc::O_EXCL | libc::O_TRUNC | libc::O_CLOEXEC) | libc::O_NOCTTY;
        if entry.needs_content() || self.stand_in[id] || matches!(entry.kind, FileKind::DeletedDirectory | FileKind::DeletedFifo) {
            let name = format!("/proc/self/fd/{}", self.make(id)?.as_raw_fd());
            return open_path(Path::new(&name), flags).at("open anew", &entry.path);
        }
        open_path(&entry.path, flags).at("open", &entry.path)
    }

    /// The first descriptor of a file made anew from its content.
    fn make(&mut self, id: FileId) -> Result<&OwnedFd> {
        if !self.made.contains_key(&id) {
            let fd = self.create(id)?;
            self.made.insert(id, fd);
        }
        Ok(&self.made[&id])
    }

    fn create(&self, id: FileId) -> Result<OwnedFd> {
        let entry = self.entry(id)?;
        match (&entry.kind, &entry.handle) {
            (FileKind::DeletedDirectory, _) => return made::deleted_directory(&entry.path),
            (FileKind::DeletedFifo, _) => return made::deleted_fifo(&entry.path),
            (_, Some(handle)) => {
                // Its content is not ours to change: others know it by its other names. Gone with them, it is made anew.
                if let Some(found) = made::by_handle(entry, handle) {
                    return Ok(found);
                }
            }
            _ => {}
        }
        let object = entry.content.ok_or_else(|| Error::corrupt(format!("the frame lacks the content of {}", entry.path.display())))?;
        if let FileKind::SharedHugePages(page_size) = entry.kind {
            return self.huge_pages(entry, object, page_size);
        }
        let file: File = match entry.kind {
            FileKind::Memfd(_) => made::memfd(&made::memfd_name(&entry.path), libc::MFD_ALLOW_SEALING)?,
            FileKind::SharedAnonymous => {
                let memory = Shared::new(entry.size.next_multiple_of(PAGE), PAGE).at("map", &entry.path)?;
                memory.file().map_err(|e| Error::io("cannot open shared anonymous memory (needs CAP_CHECKPOINT_RESTORE or CAP_SYS_ADMIN)", e))?
            }
            FileKind::Regular => made::memfd(&entry.path.file_name().unwrap_or_default().to_string_lossy(), 0)?,
            _ => made::deleted_file(&entry.path)?,
        };
        self.fill(&file, object, entry.size)?;
        let _ = nix::sys::stat::fchmod(&file, nix::sys::stat::Mode::from_bits_truncate(entry.mode & 0o7777));
        let _ = std::os::unix::fs::fchown(&file, Some(entry.uid), Some(entry.gid));
        if entry.code {
            // A program cannot be run from a file that is open for writing.
            seal(&file, entry)?;
            return open_path(Path::new(&format!("/proc/self/fd/{}", file.as_raw_fd())), libc::O_RDONLY).at("open anew", &entry.path);
        }
        Ok(file.into())
    }

    /// Shared memory in huge pages, which write(2) does not reach.
    fn huge_pages(&self, entry: &FileEntry, object: u32, page_size: u64) -> Result<OwnedFd> {
        let failed = |e| Error::io(format!("cannot map {} bytes of shared huge pages of {} KiB; reserve them in /proc/sys/vm/nr_hugepages", entry.size, page_size / 1024), e);
        let mut memory = Shared::new(entry.size, page_size).map_err(failed)?;
        self.source.each(object, &mut |offset, bytes| memory.write(offset, bytes).map_err(failed))?;
        memory.file().map(OwnedFd::from).map_err(failed)
    }

    fn fill(&self, file: &File, object: u32, size: u64) -> Result<()> {
        if file.metadata().is_ok_and(|meta| meta.len() != size) {
            file.set_len(size).context("cannot size a file made anew")?;
        }
        self.source.each(object, &mut |offset, bytes| file.write_all_at(bytes, offset).context("cannot fill a file made anew"))
    }

    /// Makes a System V segment with its old id and content, once; returns the id.
    pub fn segment(&mut self, id: FileId) -> Result<i32> {
        if let Some(&made) = self.segments.get(&id) {
            return Ok(made);
        }
        let entry = self.entry(id)?;
        let (FileKind::SystemV(wanted), Some(segment), Some(object)) = (&entry.kind, &entry.segment, entry.content) else {
            return Err(Error::corrupt(format!("file {id} of the manifest is no System V segment")));
        };
        let made = if shm::stat(*wanted).is_ok() { *wanted } else { made::create_segment(*wanted, segment)? };
        let failed = |e| Error::io(format!("cannot fill System V segment {wanted}"), e);
        shm::with_mapping(made, segment.size.next_multiple_of(PAGE), |memory| {
            memory.fill(0);
            self.source.each(object, &mut |offset, bytes| {
                let at = offset as usize;
                let room = memory.get_mut(at..at + bytes.len()).ok_or_else(|| Error::corrupt("a System V segment's content is longer than the segment"))?;
                room.copy_from_slice(bytes);
                Ok(())
            })
        })
        .map_err(failed)??;
        shm::set_owner(made, segment).map_err(failed)?;
        self.segments.insert(id, made);
        Ok(made)
    }

    /// What may only be done when every process has mapped its memory: seals, and segments that were removed while in use.
    pub fn finish(&mut self) -> Result<()> {
        const SHM_DEST: u32 = 0o1000;
        for (&id, &segment) in &self.segments {
            if self.entries[id].segment.as_ref().is_some_and(|s| s.mode & SHM_DEST != 0) {
                shm::remove(segment).map_err(|e| Error::io(format!("cannot mark System V segment {segment} as removed"), e))?;
            }
        }
        self.made.iter().filter(|(&id, _)| !self.entries[id].code).try_for_each(|(&id, fd)| seal(fd, &self.entries[id]))
    }
}

/// Puts the seals of a memfd back; nothing else has any.
fn seal(fd: impl AsFd, entry: &FileEntry) -> Result<()> {
    let FileKind::Memfd(seals) = entry.kind else { return Ok(()) };
    let seals = nix::fcntl::SealFlag::from_bits_retain(seals);
    nix::fcntl::fcntl(fd.as_fd(), nix::fcntl::FcntlArg::F_ADD_SEALS(seals)).at("seal", &entry.path).map(drop)
}

fn difference(entry: &FileEntry, meta: &fs::Metadata) -> Option<String> {
    let mtime = meta.mtime() * 1_000_000_000 + meta.mtime_nsec();
    if let (true, Some(wanted)) = (entry.code, &entry.build_id) {
        let here = File::open(&entry.path).ok().and_then(|file| build_id::read(&file)).unwrap_or_default();
        return (here != *wanted || meta.len() != entry.size).then(|| format!("differs from the frame's (build id {here:.12}, not {wanted:.12})"));
    }
    match meta.len().cmp(&entry.size) {
        std::cmp::Ordering::Greater => Some(format!("has grown since the frame ({} to {} bytes)", entry.size, meta.len())),
        std::cmp::Ordering::Less => Some(format!("has shrunk since the frame ({} to {} bytes)", entry.size, meta.len())),
        std::cmp::Ordering::Equal => (mtime != entry.mtime_ns).then(|| "was written to since the frame".to_owned()),
    }
}

fn open_path(path: &Path, flags: i32) -> std::io::Result<OwnedFd> {
    let access = flags & libc::O_ACCMODE;
    let mut options = OpenOptions::new();
    options.read(access != libc::O_WRONLY).write(access != libc::O_RDONLY).custom_flags(flags & !libc::O_ACCMODE);
    options.open(path).map(Into::into)
}
