//! Signals that are counted, for a program that looks when it has time.

use std::io;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};

use libc::c_int;

use super::check;

/// Signals that may be counted, by their names without "SIG".
pub const KNOWN: [(&str, c_int); 6] = [("TERM", libc::SIGTERM), ("INT", libc::SIGINT), ("HUP", libc::SIGHUP), ("USR1", libc::SIGUSR1), ("USR2", libc::SIGUSR2), ("XCPU", libc::SIGXCPU)];

/// How often each of them came.
static CAME: [AtomicU32; KNOWN.len()] = [const { AtomicU32::new(0) }; KNOWN.len()];
/// For each of them, who counts, and what the program did with it before.
static USERS: Mutex<[(u32, usize); KNOWN.len()]> = Mutex::new([(0, 0); KNOWN.len()]);

fn users() -> MutexGuard<'static, [(u32, usize); KNOWN.len()]> {
    USERS.lock().unwrap_or_else(PoisonError::into_inner)
}

/// A count of one signal from a certain time on. When the last one goes, the signal means again what it meant before.
#[derive(Debug)]
pub struct Tally {
    place: usize,
    seen: AtomicU32,
}

/// Async-signal-safe: one atomic.
extern "C" fn count(signal: c_int) {
    if let Some(place) = KNOWN.iter().position(|(_, number)| *number == signal) {
        CAME[place].fetch_add(1, Ordering::SeqCst);
    }
}

impl Tally {
    /// Counts the signal of this name from now on; none if the name is not known. EBUSY: the program has a handler of its own.
    pub fn new(name: &str) -> Option<io::Result<Tally>> {
        let place = KNOWN.iter().position(|(known, _)| *known == name)?;
        Some(install(place).map(|()| Tally { place, seen: AtomicU32::new(CAME[place].load(Ordering::SeqCst)) }))
    }

    /// Whether it came since the beginning, or since it was last forgotten.
    pub fn came(&self) -> bool {
        CAME[self.place].load(Ordering::SeqCst) != self.seen.load(Ordering::SeqCst)
    }

    /// What came so far counts no more.
    pub fn forget(&self) {
        self.seen.store(CAME[self.place].load(Ordering::SeqCst), Ordering::SeqCst);
    }
}

fn install(place: usize) -> io::Result<()> {
    let mut users = users();
    if users[place].0 == 0 {
        let before = replace(KNOWN[place].1, None)?;
        if before != libc::SIG_DFL && before != libc::SIG_IGN {
            return Err(io::Error::from_raw_os_error(libc::EBUSY));
        }
        users[place].1 = replace(KNOWN[place].1, Some(count as extern "C" fn(c_int) as usize))?;
    }
    users[place].0 += 1;
    Ok(())
}

/// What a signal does now, and what it does from now on.
fn replace(signal: c_int, handler: Option<usize>) -> io::Result<usize> {
    // SAFETY: both structures are live and of the type the call expects; our handler is async-signal-safe.
    unsafe {
        let (mut before, mut after): (libc::sigaction, libc::sigaction) = (std::mem::zeroed(), std::mem::zeroed());
        after.sa_flags = libc::SA_RESTART;
        after.sa_sigaction = handler.unwrap_or(libc::SIG_DFL);
        check(libc::sigaction(signal, if handler.is_some() { &after } else { std::ptr::null() }, &mut before).into())?;
        Ok(before.sa_sigaction)
    }
}

impl Drop for Tally {
    fn drop(&mut self) {
        let mut users = users();
        users[self.place].0 -= 1;
        let (left, before) = users[self.place];
        let ours = count as extern "C" fn(c_int) as usize;
        // The program may have installed a handler of its own meanwhile, which stays.
        if left == 0 && replace(KNOWN[self.place].1, None).is_ok_and(|now| now == ours) {
            let _ = replace(KNOWN[self.place].1, Some(before));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn raise(signal: c_int) {
        // SAFETY: the signal has a handler.
        unsafe { libc::raise(signal) };
    }

    #[test]
    fn signals_are_counted_and_mean_again_what_they_meant() {
        assert!(Tally::new("KILL").is_none());
        let first = Tally::new("USR2").unwrap().unwrap();
        raise(libc::SIGUSR2);
        let second = Tally::new("USR2").unwrap().unwrap();
        assert!(first.came() && !second.came());
        first.forget();
        assert!(!first.came());
        drop(first);
        raise(libc::SIGUSR2);
        assert!(second.came());
        drop(second);
        assert_eq!(replace(libc::SIGUSR2, None).unwrap(), libc::SIG_DFL);
    }

    #[test]
    fn a_handler_of_the_programs_own_is_left_alone() {
        extern "C" fn own(_: c_int) {}
        let handler = own as extern "C" fn(c_int) as usize;
        replace(libc::SIGXCPU, Some(handler)).unwrap();
        assert_eq!(Tally::new("XCPU").unwrap().unwrap_err().raw_os_error(), Some(libc::EBUSY));
        assert_eq!(replace(libc::SIGXCPU, None).unwrap(), handler);
    }
}
