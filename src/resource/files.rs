//! Files that a frame depends on: by path, or with their content where no path leads to them.

use std::collections::HashMap;
use std::fs::{self, File};
use std::os::fd::{AsFd, AsRawFd};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use libc::stat as Stat;
use serde::{Deserialize, Serialize};

use super::contents::Contents;
use crate::error::{Context, Error, Kind, Result};
use crate::proc::{self, maps::Vma, Pid};
use crate::sys::fd_extra::handle_of;
use crate::sys::shm;

pub mod build_id;
pub mod open;

/// Index into a frame's table of files.
pub type FileId = usize;

/// What a file is, and so how it comes back.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum FileKind {
    /// A regular file that its path leads to.
    Regular,
    /// A regular file without a path; its content is in the frame.
    Deleted,
    /// memfd_create(2), with its seals; its content is in the frame.
    Memfd(i32),
    /// The memory behind a shared anonymous mapping; its content is in the frame.
    SharedAnonymous,
    /// The same in explicit huge pages of this size.
    SharedHugePages(u64),
    /// A System V shared memory segment.
    SystemV(i32),
    /// A directory.
    Directory,
    /// A directory that was removed while somebody was in it.
    DeletedDirectory,
    /// A character or block device.
    Device,
    /// A named pipe.
    Fifo,
    /// A named pipe that was removed while somebody had it open.
    DeletedFifo,
    /// A socket's place in the file system.
    Socket,
    /// Anything else that has a path (a symbolic link held by O_PATH).
    Other,
}

/// name_to_handle_at(2): kind and bytes.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Handle(pub i32, #[serde(with = "super::blob")] pub Vec<u8>);

/// One file.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct FileEntry {
    /// Its path; for a file without one, the name it was known by.
    pub path: PathBuf,
    /// What it is.
    pub kind: FileKind,
    /// Device number of its file system.
    pub device: u64,
    /// Inode number.
    pub inode: u64,
    /// For a device: which.
    pub rdev: u64,
    /// Type and permission bits.
    pub mode: u32,
    /// Owner.
    pub uid: u32,
    /// Group.
    pub gid: u32,
    /// Size in bytes.
    pub size: u64,
    /// The file must be at least this long at a restore: the furthest saved offset of a regular file.
    pub reach: u64,
    /// Modification time, nanoseconds since 1970.
    pub mtime_ns: i64,
    /// GNU build id, of ELF files.
    pub build_id: Option<String>,
    /// Mapped by some process: its bytes must match at restore, unless it is mapped shared.
    pub mapped: bool,
    /// Mapped executable, or the program itself.
    pub code: bool,
    /// Some process may write it.
    pub written: bool,
    /// The object of the frame that holds its content.
    pub content: Option<u32>,
    /// How its file system finds a file again whose known name is gone while it has others.
    pub handle: Option<Handle>,
    /// Key, owner and size, of a System V segment.
    pub segment: Option<shm::Segment>,
}

impl FileKind {
    /// Whether it once had the path it is known by.
    fn is_removed(&self) -> bool {
        matches!(self, FileKind::Deleted | FileKind::DeletedDirectory | FileKind::DeletedFifo)
    }
}

impl FileEntry {
    /// Whether its content must travel in the frame, there being no path to it.
    pub fn needs_content(&self) -> bool {
        matches!(self.kind, FileKind::Deleted | FileKind::Memfd(_) | FileKind::SharedAnonymous | FileKind::SharedHugePages(_) | FileKind::SystemV(_))
    }
}

/// The table of files of a frame in the making.
#[derive(Debug)]
pub struct FileTable {
    /// What was found so far.
    pub entries: Vec<FileEntry>,
    handles: Vec<Option<File>>,
    index: HashMap<(u64, u64, PathBuf), FileId>,
    /// In front of paths, to look into the target's mount namespace where it is not ours.
    prefix: PathBuf,
}

const DELETED: &str = " (deleted)";

impl FileTable {
    /// An empty table for a tree whose root process is `pid`.
    pub fn new(pid: Pid) -> FileTable {
        let ns = |pid: &str| fs::read_link(format!("/proc/{pid}/ns/mnt")).ok();
        let foreign = ns("self") != ns(&pid.to_string());
        let prefix = if foreign { proc::path(pid, "root") } else { PathBuf::new() };
        FileTable { entries: Vec::new(), handles: Vec::new(), index: HashMap::new(), prefix }
    }

    /// The entry of the file behind a link in /proc/PID (fd/N, map_files/A-B, exe, cwd, root), which `pid` holds as `what`.
    pub fn intern(&mut self, pid: Pid, what: &str) -> Result<FileId> {
        self.intern_at(pid, what, &proc::path(pid, what))
    }

    /// The entry of the file that `pid` maps as `vma`.
    pub fn intern_mapped(&mut self, pid: Pid, vma: &Vma) -> Result<FileId> {
        let what = format!("map_files/{:x}-{:x}", vma.start, vma.end);
        if !fs::metadata(proc::path(pid, &what)).is_err_and(|e| e.raw_os_error() == Some(libc::EPERM)) {
            return self.intern(pid, &what);
        }
        // Only the privileged may follow these links; the path will do as long as it leads to the same file.
        let path = self.visible(Path::new(&vma.name));
        if fs::metadata(&path).is_ok_and(|meta| meta.ino() == vma.inode) {
            return self.intern_at(pid, &what, &path);
        }
        Err(Error::new(Kind::Privilege, "no path leads to this mapping, so its content can only be read with CAP_SYS_ADMIN or CAP_CHECKPOINT_RESTORE; run as root"))
    }

    /// `at` is a way to the file for us.
    fn intern_at(&mut self, pid: Pid, what: &str, at: &Path) -> Result<FileId> {
        let name = proc::link(&proc::path(pid, what))?;
        let stat = nix::sys::stat::stat(at).map_err(std::io::Error::from).at("examine", at)?;
        self.intern_known(pid, what, at, name, &stat)
    }

    /// The same of a file whose link leads to `name`, and of which stat(2) says `stat`.
    pub fn intern_known(&mut self, pid: Pid, what: &str, at: &Path, name: PathBuf, stat: &Stat) -> Result<FileId> {
        let key = (stat.st_dev, stat.st_ino, name);
        if let Some(&id) = self.index.get(&key) {
            return Ok(id);
        }
        let mut entry = self.describe(pid, what, &key.2, stat)?;
        // A content is needed later, when the path may be gone with the process: keep the file.
        let handle = if entry.needs_content() || entry.kind == FileKind::Regular { File::open(at).ok() } else { None };
        if let (FileKind::Deleted, Some(file), 1..) = (&entry.kind, &handle, stat.st_nlink) {
            entry.handle = handle_of(file.as_fd()).ok().map(|(kind, bytes)| Handle(kind, bytes));
        }
        self.entries.push(entry);
        self.handles.push(handle);
        self.index.insert(key, self.entries.len() - 1);
        Ok(self.entries.len() - 1)
    }

    fn describe(&self, pid: Pid, what: &str, name: &Path, stat: &Stat) -> Result<FileEntry> {
        let text = name.to_string_lossy();
        let kind = self.classify(pid, what, &text, stat)?;
        let path = if kind.is_removed() { PathBuf::from(text.trim_end_matches(DELETED)) } else { name.to_owned() };
        let segment = match kind {
            FileKind::SystemV(id) => Some(shm::stat(id).map_err(|e| Error::io(format!("pid {pid}: cannot examine System V segment {id}; it belongs to another ipc namespace?"), e))?),
            _ => None,
        };
        Ok(FileEntry {
            path,
            device: stat.st_dev,
            inode: stat.st_ino,
            rdev: stat.st_rdev,
            mode: stat.st_mode,
            uid: stat.st_uid,
            gid: stat.st_gid,
            size: segment.as_ref().map_or(stat.st_size as u64, |segment| segment.size),
            reach: 0,
            mtime_ns: stat.st_mtime * 1_000_000_000 + stat.st_mtime_nsec,
            build_id: None,
            mapped: false,
            code: false,
            written: false,
            content: None,
            handle: None,
            segment,
            kind,
        })
    }

    fn classify(&self, pid: Pid, what: &str, text: &str, stat: &Stat) -> Result<FileKind> {
        let deleted = text.ends_with(DELETED);
        match stat.st_mode & libc::S_IFMT {
            libc::S_IFDIR if deleted => return Ok(FileKind::DeletedDirectory),
            libc::S_IFDIR => return Ok(FileKind::Directory),
            libc::S_IFCHR | libc::S_IFBLK => return Ok(FileKind::Device),
            libc::S_IFIFO if deleted => return Ok(FileKind::DeletedFifo),
            libc::S_IFIFO => return Ok(FileKind::Fifo),
            libc::S_IFSOCK => return Ok(FileKind::Socket),
            libc::S_IFREG => {}
            _ => return Ok(FileKind::Other),
        }
        if text.starts_with("/memfd:") {
            return Ok(FileKind::Memfd(0));
        } else if text.starts_with("/dev/zero (deleted)") {
            return Ok(FileKind::SharedAnonymous);
        } else if text.starts_with("/anon_hugepage") {
            return Ok(FileKind::SharedHugePages(stat.st_blksize as u64));
        } else if text.starts_with("/SYSV") {
            return Ok(FileKind::SystemV(stat.st_ino as i32));
        } else if deleted {
            return Ok(FileKind::Deleted);
        }
        self.check_reachable(pid, what, text, stat)
    }

    fn check_reachable(&self, pid: Pid, what: &str, text: &str, stat: &Stat) -> Result<FileKind> {
        let found = fs::metadata(self.visible(Path::new(text)));
        if found.is_ok_and(|found| (found.dev(), found.ino()) == (stat.st_dev, stat.st_ino)) {
            return Ok(FileKind::Regular);
        }
        Err(Error::refused(format!("pid {pid} {what} is {text}, which that path does not lead to (hidden by a mount, or in another mount namespace); a restore could not find it: make it reachable or close it")))
    }

    /// Where we see the file that the target calls `path`.
    pub fn visible(&self, path: &Path) -> PathBuf {
        if self.prefix.as_os_str().is_empty() {
            return path.to_owned();
        }
        self.prefix.join(path.strip_prefix("/").unwrap_or(path))
    }

    /// Saves, as of now, the contents that no path leads to.
    pub fn save_pathless(&mut self, contents: &mut Contents) -> Result<()> {
        for id in 0..self.entries.len() {
            if self.entries[id].needs_content() && self.entries[id].content.is_none() {
                self.save(id, contents)?;
            }
        }
        Ok(())
    }

    /// Saves, as of now, the content of one file.
    pub fn save(&mut self, id: FileId, contents: &mut Contents) -> Result<()> {
        let (entry, file) = self.renew(id)?;
        // A segment's last page is all usable, yet its file ends at the size that was asked for.
        let tail = match entry.kind {
            FileKind::SystemV(segment) => shm::tail(segment, entry.size).map_err(|e| Error::io(format!("cannot read the end of System V segment {segment}"), e))?,
            _ => Vec::new(),
        };
        entry.content = Some(contents.copy(file, entry.size, &tail)?);
        Ok(())
    }

    /// Says that object `object` holds, or will hold, the content of one file as of now.
    pub fn keep_in(&mut self, id: FileId, object: u32) -> Result<()> {
        self.renew(id)?.0.content = Some(object);
        Ok(())
    }

    /// The size and the seals of a file as of now.
    fn renew(&mut self, id: FileId) -> Result<(&mut FileEntry, &File)> {
        let entry = &mut self.entries[id];
        let file = self.handles[id].as_ref().ok_or_else(|| Error::refused(format!("{} cannot be opened to save its content", entry.path.display())))?;
        if let FileKind::Memfd(seals) = &mut entry.kind {
            *seals = nix::fcntl::fcntl(file, nix::fcntl::FcntlArg::F_GET_SEALS).unwrap_or(0);
        }
        if !matches!(entry.kind, FileKind::SystemV(_)) {
            entry.size = file.metadata().at("examine", &entry.path)?.len();
        }
        Ok((entry, file))
    }

    /// Saves a file that nobody changes (a program, a library); it is read after the thaw.
    pub fn save_later(&mut self, id: FileId, contents: &mut Contents) -> Result<()> {
        let entry = &mut self.entries[id];
        if entry.content.is_none() {
            let file = self.handles[id].as_ref().ok_or_else(|| Error::refused(format!("{} cannot be opened to save its content", entry.path.display())))?;
            let file = File::open(format!("/proc/self/fd/{}", file.as_raw_fd())).at("open", &entry.path)?;
            entry.content = Some(contents.later(file, entry.size));
        }
        Ok(())
    }

    /// Reads the build ids of files that are mapped as code; outside the pause.
    pub fn note_build_ids(&mut self) {
        for (entry, handle) in self.entries.iter_mut().zip(&self.handles) {
            if let (true, Some(file)) = (entry.code, handle) {
                entry.build_id = build_id::read(file);
            }
        }
    }
}
