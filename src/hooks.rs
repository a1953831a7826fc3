//! Commands that a user has run at the events of a checkpoint or a restore.

use std::process::{Command, Stdio};
use std::str::FromStr;

use crate::error::{Context, Error, Kind, Result};
use crate::proc::Pid;

/// When a hook runs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Event {
    /// The tree stands still; the time to snapshot a filesystem. A failure gives the checkpoint up.
    Frozen,
    /// The tree runs again.
    Resumed,
    /// The frame is safe in the store.
    Committed,
    /// A second instance is about to run; a failure ends it.
    Restored,
}

impl Event {
    fn name(self) -> &'static str {
        match self {
            Event::Frozen => "frozen",
            Event::Resumed => "resumed",
            Event::Committed => "committed",
            Event::Restored => "restored",
        }
    }
}

/// A command for an event.
#[derive(Debug, Clone)]
pub struct Hook {
    event: Event,
    command: String,
}

impl FromStr for Hook {
    type Err = Error;

    fn from_str(text: &str) -> Result<Hook> {
        let usage = || Error::new(Kind::Usage, format!("{text:?} is no hook; write EVENT=COMMAND with frozen, resumed, committed or restored"));
        let (event, command) = text.split_once('=').ok_or_else(usage)?;
        let all = [Event::Frozen, Event::Resumed, Event::Committed, Event::Restored];
        let event = all.into_iter().find(|known| known.name() == event).ok_or_else(usage)?;
        Ok(Hook { event, command: command.to_owned() })
    }
}

/// All hooks of an operation.
#[derive(Debug, Clone, Default)]
pub struct Hooks(pub Vec<Hook>);

impl Hooks {
    /// Runs the hooks of `event` one after the other by `sh -c`, with STILLFRAME_EVENT, STILLFRAME_PID and STILLFRAME_FRAME set.
    pub fn run(&self, event: Event, pid: Pid, frame: Option<&str>) -> Result<()> {
        for hook in self.0.iter().filter(|hook| hook.event == event) {
            let mut command = Command::new("sh");
            command.args(["-c", &hook.command]).stdin(Stdio::null());
            command.env("STILLFRAME_EVENT", event.name()).env("STILLFRAME_PID", pid.to_string()).env("STILLFRAME_FRAME", frame.unwrap_or(""));
            let status = command.status().context("cannot start a shell for a hook")?;
            if !status.success() {
                return Err(Error::new(Kind::Io, format!("the {} hook {:?} failed: {status}", event.name(), hook.command)));
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hooks_are_parsed_and_run_at_their_event_only() {
        let hooks = Hooks(vec!["frozen=exit 3".parse().unwrap(), "committed=test $STILLFRAME_EVENT = committed".parse().unwrap()]);
        hooks.run(Event::Committed, 1, None).unwrap();
        assert!(hooks.run(Event::Frozen, 1, None).unwrap_err().to_string().contains("exit 3"));
        assert!("thawed=true".parse::<Hook>().is_err());
    }
}
