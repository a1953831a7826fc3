//! Stops the other threads of this process for an instant: a real-time signal, in whose handler they wait.
//!
//! Between the first stop and the last release nothing here allocates: a stopped thread may hold the allocator's lock.

use std::io;
use std::os::fd::{AsRawFd, OwnedFd};
use std::sync::atomic::{AtomicI32, AtomicU32, Ordering};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use libc::{c_int, pid_t};

use super::{check, pidfd};

/// Odd while threads are to wait; they sleep on it. It never comes back to a value, so that nobody sleeps through a release.
static GATE: AtomicU32 = AtomicU32::new(0);
/// How many wait.
static ARRIVED: AtomicU32 = AtomicU32::new(0);
/// The signal that our handler is installed for; 0: none yet.
static SIGNAL: AtomicI32 = AtomicI32::new(0);
/// One stop at a time.
static TURN: Mutex<()> = Mutex::new(());
/// How long a thread may take to stop.
const PATIENCE: Duration = Duration::from_secs(2);

/// Why threads could not be stopped.
#[derive(Debug)]
pub enum Unstoppable {
    /// A system call failed.
    Io(io::Error),
    /// This thread blocks the signal, or does not get to it.
    Thread(pid_t),
}

impl From<io::Error> for Unstoppable {
    fn from(e: io::Error) -> Self {
        Unstoppable::Io(e)
    }
}

/// Async-signal-safe: atomics and futex(2) only, and errno is put back.
extern "C" fn wait_here(_: c_int) {
    // SAFETY: errno is this thread's own; the futex is a static.
    unsafe {
        let errno = *libc::__errno_location();
        let round = GATE.load(Ordering::SeqCst);
        if round % 2 == 1 {
            ARRIVED.fetch_add(1, Ordering::SeqCst);
            while GATE.load(Ordering::SeqCst) == round {
                libc::syscall(libc::SYS_futex, GATE.as_ptr(), libc::FUTEX_WAIT | libc::FUTEX_PRIVATE_FLAG, round, 0usize);
            }
        }
        *libc::__errno_location() = errno;
    }
}

/// Installs the handler for the highest real-time signal that the program leaves to us; returns its number.
pub fn install() -> io::Result<i32> {
    let _turn = TURN.lock().unwrap_or_else(PoisonError::into_inner);
    let known = SIGNAL.load(Ordering::SeqCst);
    if known != 0 {
        return Ok(known);
    }
    for signal in (libc::SIGRTMIN()..=libc::SIGRTMAX()).rev() {
        // SAFETY: both structures are live and of the type the call expects; the handler is async-signal-safe.
        unsafe {
            let mut there: libc::sigaction = std::mem::zeroed();
            check(libc::sigaction(signal, std::ptr::null(), &mut there).into())?;
            if there.sa_sigaction == libc::SIG_DFL {
                let mut ours: libc::sigaction = std::mem::zeroed();
                ours.sa_sigaction = wait_here as extern "C" fn(c_int) as usize;
                ours.sa_flags = libc::SA_RESTART;
                libc::sigfillset(&mut ours.sa_mask);
                check(libc::sigaction(signal, &ours, std::ptr::null_mut()).into())?;
                SIGNAL.store(signal, Ordering::SeqCst);
                return Ok(signal);
            }
        }
    }
    Err(io::Error::from_raw_os_error(libc::EBUSY))
}

/// Runs `work` while every other thread stands still, but for ours, whose names start with "stillframe" and which block all
/// signals. `work` must not allocate or take locks. [`install`] comes first.
pub fn while_stopped<R>(work: impl FnOnce() -> R) -> Result<R, Unstoppable> {
    let _turn = TURN.lock().unwrap_or_else(PoisonError::into_inner);
    let tasks: OwnedFd = std::fs::File::open("/proc/self/task")?.into();
    let mut list = Threads { tasks, told: [0; MOST], count: 0, buffer: [0; 16 << 10] };
    ARRIVED.store(0, Ordering::SeqCst);
    GATE.fetch_add(1, Ordering::SeqCst);
    let stopped = list.stop_all();
    let done = stopped.map(|()| work());
    GATE.fetch_add(1, Ordering::SeqCst);
    // SAFETY: the futex is a static.
    unsafe { libc::syscall(libc::SYS_futex, GATE.as_ptr(), libc::FUTEX_WAKE | libc::FUTEX_PRIVATE_FLAG, i32::MAX) };
    done
}

/// The most threads that can be stopped.
const MOST: usize = 4096;

struct Threads {
    tasks: OwnedFd,
    told: [pid_t; MOST],
    count: usize,
    buffer: [u8; 16 << 10],
}

impl Threads {
    /// Tells all, waits for all, and looks again until there is nobody new.
    fn stop_all(&mut self) -> Result<(), Unstoppable> {
        let deadline = Instant::now() + PATIENCE;
        while self.tell_new()? {
            while ARRIVED.load(Ordering::SeqCst) < self.alive() {
                if Instant::now() > deadline {
                    return Err(Unstoppable::Thread(self.laggard()));
                }
                std::thread::yield_now();
            }
        }
        Ok(())
    }

    /// Signals threads that were not told yet; whether there were any.
    fn tell_new(&mut self) -> Result<bool, Unstoppable> {
        let (pid, signal) = (std::process::id() as pid_t, SIGNAL.load(Ordering::SeqCst));
        // SAFETY: plain numbers.
        let us = unsafe { libc::gettid() };
        let before = self.count;
        // SAFETY: the descriptor is ours.
        check(unsafe { libc::lseek(self.tasks.as_raw_fd(), 0, libc::SEEK_SET) })?;
        loop {
            // SAFETY: the buffer is live and of the length we state.
            let len = check(unsafe { libc::syscall(libc::SYS_getdents64, self.tasks.as_raw_fd(), self.buffer.as_mut_ptr(), self.buffer.len()) })? as usize;
            if len == 0 {
                return Ok(self.count > before);
            }
            let mut at = 0;
            while at < len {
                let record = u16::from_ne_bytes([self.buffer[at + 16], self.buffer[at + 17]]) as usize;
                let tid = number(&self.buffer[at + 19..at + record]);
                at += record;
                let told = self.told[..self.count].contains(&tid);
                if tid == 0 || tid == us || told || ours(tid) {
                    continue;
                }
                if self.count == MOST {
                    return Err(Unstoppable::Thread(tid));
                }
                // One that has ended meanwhile need not be stopped.
                if pidfd::tgkill(pid, tid, signal).is_ok() {
                    self.told[self.count] = tid;
                    self.count += 1;
                }
            }
        }
    }

    fn alive(&self) -> u32 {
        let pid = std::process::id() as pid_t;
        self.told[..self.count].iter().filter(|&&tid| pidfd::tgkill(pid, tid, 0).is_ok()).count() as u32
    }

    /// Of those that were told, one that is likely to have not come.
    fn laggard(&self) -> pid_t {
        self.told[..self.count].last().copied().unwrap_or(0)
    }
}

/// Whether a thread has a name of ours; without a single allocation.
fn ours(tid: pid_t) -> bool {
    const HEAD: &[u8] = b"/proc/self/task/";
    const TAIL: &[u8] = b"/comm\0";
    let mut path = [0u8; 48];
    path[..HEAD.len()].copy_from_slice(HEAD);
    let digits = tid.ilog10() as usize + 1;
    (0..digits).fold(tid, |rest, digit| {
        path[HEAD.len() + digits - 1 - digit] = b'0' + (rest % 10) as u8;
        rest / 10
    });
    path[HEAD.len() + digits..HEAD.len() + digits + TAIL.len()].copy_from_slice(TAIL);
    let mut name = [0u8; 10];
    // SAFETY: the path ends with a zero, and the buffer is live and of the length we state; the descriptor is ours.
    unsafe {
        let fd = libc::open(path.as_ptr().cast(), libc::O_RDONLY | libc::O_CLOEXEC);
        if fd < 0 {
            return false;
        }
        libc::read(fd, name.as_mut_ptr().cast(), name.len());
        libc::close(fd);
    }
    name == *b"stillframe"
}

/// The number at the start of a name that ends with a zero; 0 for `.` and `..`.
fn number(name: &[u8]) -> pid_t {
    name.iter().take_while(|byte| byte.is_ascii_digit()).fold(0, |number: pid_t, byte| number.saturating_mul(10).saturating_add(pid_t::from(byte - b'0')))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::atomic::AtomicU64;
    use std::sync::Arc;

    #[test]
    fn other_threads_stand_still_and_go_on() {
        install().unwrap();
        let (count, stop) = (Arc::new(AtomicU64::new(0)), Arc::new(AtomicU32::new(0)));
        let threads: Vec<_> = (0..3)
            .map(|_| {
                let (count, stop) = (count.clone(), stop.clone());
                std::thread::spawn(move || while stop.load(Ordering::Relaxed) == 0 { count.fetch_add(1, Ordering::Relaxed); })
            })
            .collect();
        let others = std::fs::read_dir("/proc/self/task").unwrap().count();
        assert!(others > 3);
        for _ in 0..20 {
            let (before, after) = while_stopped(|| {
                let before = count.load(Ordering::SeqCst);
                let begun = Instant::now();
                while begun.elapsed() < Duration::from_millis(2) {}
                (before, count.load(Ordering::SeqCst))
            })
            .unwrap();
            assert_eq!(before, after);
        }
        stop.store(1, Ordering::Relaxed);
        threads.into_iter().for_each(|thread| thread.join().unwrap());
        assert!(count.load(Ordering::SeqCst) > 0);
    }
}
