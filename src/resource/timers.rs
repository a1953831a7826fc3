//! Timers of a process: the three interval timers, and POSIX timers with their ids.

use serde::{Deserialize, Serialize};

use crate::error::{Error, Result};
use crate::proc::{self, status::Status, Pid};
use crate::tracee::blank::Blank;
use crate::tracee::visit::Visit;
use crate::tracee::{Remote, RemoteExt};

/// Two pairs of (seconds, fraction): interval, and what remains. The kernel's itimerval and itimerspec.
pub type Spec = [u64; 4];

/// A POSIX timer.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Timer {
    /// Its id, as timer_create returned it.
    pub id: i32,
    /// Its clock.
    pub clock: i32,
    /// SIGEV_* kind.
    pub notify: i32,
    /// Signal it sends.
    pub signal: i32,
    /// Value it sends along.
    pub value: u64,
    /// The thread it notifies, in the innermost pid namespace.
    pub tid: Pid,
    /// Interval and what remains, in seconds and nanoseconds.
    pub spec: Spec,
}

/// Timers of a process.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct State {
    /// ITIMER_REAL, VIRTUAL, PROF, in seconds and microseconds.
    pub intervals: [Spec; 3],
    /// POSIX timers.
    pub timers: Vec<Timer>,
}

const SPEC_LEN: usize = 32;

/// Reads all timers.
pub fn capture(visit: &mut Visit<'_>) -> Result<State> {
    let pid = visit.pid();
    let mut timers = parse(pid, &proc::text(&proc::path(pid, "timers"))?)?;
    // The kernel lists the newest first; they come back in the order in which they were made.
    timers.sort_by_key(|timer| timer.id);
    let out = visit.scratch()?;
    let mut intervals = [[0; 4]; 3];
    for (which, interval) in intervals.iter_mut().enumerate() {
        visit.must("read an interval timer", libc::SYS_getitimer, [which as u64, out, 0, 0, 0, 0])?;
        *interval = read_spec(visit, out)?;
    }
    for timer in &mut timers {
        name_thread_clock(timer);
        visit.must(&format!("read timer {}", timer.id), libc::SYS_timer_gettime, [timer.id as u64, out, 0, 0, 0, 0])?;
        timer.spec = read_spec(visit, out)?;
    }
    Ok(State { intervals, timers })
}

fn read_spec(visit: &Visit<'_>, at: u64) -> Result<Spec> {
    let mut raw = [0; SPEC_LEN];
    visit.memory().read(at, &mut raw)?;
    let mut words = raw.chunks(8).map(|word| word.first_chunk().map_or(0, |word| u64::from_le_bytes(*word)));
    Ok(std::array::from_fn(|_| words.next().unwrap_or(0)))
}

/// Parses /proc/PID/timers: four lines a timer.
fn parse(pid: Pid, text: &str) -> Result<Vec<Timer>> {
    let mut timers: Vec<Timer> = Vec::new();
    for line in text.lines() {
        let bad = || Error::refused(format!("pid {pid}: a timer that this stillframe does not understand: {line:?}"));
        let (key, value) = line.split_once(": ").ok_or_else(bad)?;
        if key == "ID" {
            timers.push(Timer { id: value.parse().map_err(|_| bad())?, clock: 0, notify: 0, signal: 0, value: 0, tid: 0, spec: [0; 4] });
            continue;
        }
        let timer = timers.last_mut().ok_or_else(bad)?;
        match key {
            "signal" => {
                let (signal, value) = value.split_once('/').ok_or_else(bad)?;
                timer.signal = signal.parse().map_err(|_| bad())?;
                timer.value = u64::from_str_radix(value.trim_start_matches("0x"), 16).map_err(|_| bad())?;
            }
            "notify" => notify(pid, timer, value).ok_or_else(bad)?,
            "ClockID" => timer.clock = value.trim().parse().map_err(|_| bad())?,
            _ => return Err(bad()),
        }
    }
    Ok(timers)
}

fn notify(pid: Pid, timer: &mut Timer, text: &str) -> Option<()> {
    let (kind, whom) = text.split_once('/')?;
    let (scope, outer) = whom.split_once('.')?;
    timer.notify = match kind {
        "signal" => libc::SIGEV_SIGNAL,
        "none" => libc::SIGEV_NONE,
        "thread" => libc::SIGEV_THREAD,
        _ => return None,
    };
    if scope == "tid" {
        timer.notify |= libc::SIGEV_THREAD_ID;
        let outer: Pid = outer.parse().ok()?;
        timer.tid = Status::read_thread(pid, outer).and_then(|status| status.innermost("NSpid")).unwrap_or(outer);
    }
    Some(())
}

/// A timer on "the calling thread's processor time" that notifies a thread counts that thread's time: name it, for another
/// thread will create the timer again.
fn name_thread_clock(timer: &mut Timer) {
    const OF_CALLER: i32 = -2;
    if timer.clock == OF_CALLER && timer.tid != 0 {
        timer.clock = (!timer.tid << 3) | (OF_CALLER & 7);
    }
}

/// Creates the POSIX timers under their old ids, disarmed. Threads exist by now.
pub fn restore(state: &State, blank: &mut Blank) -> Result<()> {
    const PR_TIMER_CREATE_RESTORE_IDS: u64 = 77;
    if state.timers.is_empty() {
        return Ok(());
    }
    let choosable = blank.call(libc::SYS_prctl, [PR_TIMER_CREATE_RESTORE_IDS, 1, 0, 0, 0, 0]).is_ok();
    let mut next = 0;
    for timer in &state.timers {
        // Older kernels count up: make and drop timers until the id comes.
        while !choosable && next < timer.id {
            let made = create(timer, blank, -1)?;
            blank.must("drop a spare timer", libc::SYS_timer_delete, [made as u64, 0, 0, 0, 0, 0])?;
            next = made + 1;
        }
        let made = create(timer, blank, timer.id)?;
        next = made + 1;
        if made != timer.id {
            return Err(Error::refused(format!("process {}: timer id {} is not to be had (got {made}); this needs Linux 6.15", blank.pid, timer.id)));
        }
    }
    if choosable {
        blank.must("end the choice of timer ids", libc::SYS_prctl, [PR_TIMER_CREATE_RESTORE_IDS, 0, 0, 0, 0, 0])?;
    }
    Ok(())
}

fn create(timer: &Timer, blank: &mut Blank, id: i32) -> Result<i32> {
    let mut event = [0u8; 64];
    event[..8].copy_from_slice(&timer.value.to_le_bytes());
    event[8..12].copy_from_slice(&timer.signal.to_le_bytes());
    event[12..16].copy_from_slice(&timer.notify.to_le_bytes());
    event[16..20].copy_from_slice(&timer.tid.to_le_bytes());
    let event = blank.put(&event)?;
    let out = blank.put(&id.to_le_bytes())?;
    blank.must(&format!("create timer {}", timer.id), libc::SYS_timer_create, [timer.clock as u64, event, out, 0, 0, 0])?;
    let mut made = [0; 4];
    blank.memory().read(out, &mut made)?;
    Ok(i32::from_le_bytes(made))
}

/// Starts the clocks: every timer goes on with what remained.
pub fn arm(state: &State, blank: &mut Blank) -> Result<()> {
    for (which, spec) in state.intervals.iter().enumerate().filter(|(_, spec)| is_running(spec)) {
        let at = put_spec(spec, blank)?;
        blank.must("start an interval timer", libc::SYS_setitimer, [which as u64, at, 0, 0, 0, 0])?;
    }
    for timer in state.timers.iter().filter(|timer| is_running(&timer.spec)) {
        let at = put_spec(&timer.spec, blank)?;
        blank.must(&format!("start timer {}", timer.id), libc::SYS_timer_settime, [timer.id as u64, 0, at, 0, 0, 0])?;
    }
    Ok(())
}

fn is_running(spec: &Spec) -> bool {
    (spec[2], spec[3]) != (0, 0)
}

fn put_spec(spec: &Spec, blank: &mut Blank) -> Result<u64> {
    blank.put(&spec.iter().flat_map(|word| word.to_le_bytes()).collect::<Vec<u8>>())
}

#[cfg(test)]
mod tests {
    #[test]
    fn a_timers_file_is_understood() {
        let text = "ID: 3\nsignal: 10/00007fff86e452a8\nnotify: signal/pid.2634\nClockID: 1\n";
        let timer = &super::parse(1, text).unwrap()[0];
        assert_eq!((timer.id, timer.signal, timer.value, timer.clock, timer.notify), (3, 10, 0x7fff86e452a8, 1, libc::SIGEV_SIGNAL));
        assert!(super::parse(1, "What: 1\n").is_err());
    }
}
